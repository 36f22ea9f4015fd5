"""`finwait conntrack` beside real sockets behind a real translation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finwait.lab.scenario import Situation, scenarios
from finwait.lab.topology import Lab, unmet
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel


def run(situation: Situation, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    where = [x for inode in situation.namespaces.values() for x in ("--netns", str(inode))]
    return subprocess.run(
        [sys.executable, "-m", "finwait", "conntrack", *where, *words],
        capture_output=True, text=True, env={**os.environ, "FINWAIT_STATE_DIR": str(tmp_path)},
    )  # fmt: skip


def items(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return found


def test_a_zombie_s_entry_is_a_mismatch_and_deleting_it_is_journaled(tmp_path: Path) -> None:
    scenario = scenarios()["nat-zombie"]
    if lacking := unmet(scenario.needs):
        missing("; ".join(lacking))
    with Lab() as lab:
        situation = scenario.build(lab).settle()
        zombies = {f"{e.src}:{e.sport} → {e.dst}:{e.dport}" for e in situation.expected}
        wrong = items(run(situation, tmp_path, "-o", "json"))
        assert {i["entry"]["original"] for i in wrong} == zombies
        assert {i["verdict"] for i in wrong} == {"the server end is gone"}
        everything = items(run(situation, tmp_path, "-o", "json", "--all"))
        assert len(everything) > len(wrong)
        dry = run(situation, tmp_path, "--delete")
        assert "nothing was done" in dry.stderr
        assert len(items(run(situation, tmp_path, "-o", "json"))) == len(wrong)
        done = run(situation, tmp_path, "--delete", "--yes")
        assert done.stdout.count("deleted: ") == len(wrong)
        assert items(run(situation, tmp_path, "-o", "json")) == []
        # The sockets are still there: deleting an entry closes nothing.
        assert situation.missing() == ()
    journal = subprocess.run(
        [sys.executable, "-m", "finwait", "journal"],
        capture_output=True, text=True, env={**os.environ, "FINWAIT_STATE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert journal.stdout.count("conntrack-delete") == len(wrong)
