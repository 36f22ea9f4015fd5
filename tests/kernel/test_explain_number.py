"""``finwait``, and then ``finwait explain 1``: the number means the connections that were on the screen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finwait.lab.topology import Lab, unmet
from tests.kernel.acting_pair import Pair
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))


def test_a_number_means_the_connections_that_were_shown(tmp_path: Path) -> None:
    environment = os.environ | {"FINWAIT_STATE_DIR": str(tmp_path / "state")}

    def finwait(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "finwait", *words, "--not-holder", "1"],
            capture_output=True, text=True, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    with Lab() as lab:
        pair = Pair(lab, 5)
        here = ("--netns", str(pair.a.inode), "--netns", str(pair.b.inode))
        assert "no overview was printed before" in finwait("explain", "1", *here).stderr
        pair.near.shutdown(pair.ours[:4], "WR")
        shown = ""
        while "4  FIN_WAIT2" not in shown:
            shown = finwait(*here).stdout
        number = next(
            line.split()[0] for line in shown.splitlines() if "4  FIN_WAIT2" in line and "held" in line
        )
        told = finwait("explain", number, *here).stdout
        assert "4 × fin-wait2-held." in told
        assert "still there" not in told
        assert told.count("FIN_WAIT2") >= 4
        pair.near.close(pair.ours[:1])
        pair.near.shutdown(pair.ours[4:], "WR")  # one more of the kind, which the number does not mean
        told = finwait("explain", number, *here).stdout
        assert "3 of them are still there." in told or " now " in told, told
        document = json.loads(finwait("explain", number, *here, "-o", "json").stdout)
        ports = {s["sport"] for f in document["findings"] for s in f["sockets"]}
        assert ports <= {c.sport for c in pair.ours[:4]}
        refused = finwait("explain", "99", *here)
        assert refused.returncode == 1
        assert "the last overview had" in refused.stderr
