"""A signal in place of an answer: every command that asks ends alike, and nothing is done."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from finwait.kernel import sysctl
from finwait.kernel.journal import SqliteJournal
from finwait.lab.topology import Lab, unmet
from tests.kernel.acting_pair import Pair, settled
from tests.kernel.needs import missing
from tests.kernel.terminal import Terminal
from tests.kernel.test_interruption import chosen, finwait

pytestmark = pytest.mark.kernel
KEY = "net.ipv4.tcp_fin_timeout"


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


def asked(folder: Path, number: signal.Signals, *words: str) -> int:
    terminal = Terminal(sys.executable, "-m", "finwait", *words, FINWAIT_STATE_DIR=str(folder))
    try:
        terminal.until(b"[y/N]")
        os.kill(terminal.process.pid, number)
        return terminal.ended()
    finally:
        terminal.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_a_question_ends_every_command_as_ctrl_c_does(
    tmp_path: Path, number: signal.Signals
) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        there = ("--netns", f"netns:{pair.a.inode}")
        words = ("clear", "--with", "destroy", "--min-age", "0", "--share", "1", *chosen(pair))
        assert asked(tmp_path, number, *words) == 130
        assert asked(tmp_path, number, "tune", "apply", f"{KEY}=42", "--no-diagnosis", *there) == 130
        assert finwait(tmp_path, "journal", "-o", "json").stdout.count('"id"') == 0
        done = finwait(tmp_path, "tune", "apply", f"{KEY}=42", "--no-diagnosis", "--yes", *there)
        assert done.returncode == 0, done.stderr
        assert asked(tmp_path, number, "tune", "rollback", "1") == 130
        assert asked(tmp_path, number, "undo", "1") == 130
        with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            assert [entry.id for entry in journal.entries()] == [1]
        with sysctl.open_target(pair.a.fd) as target:
            assert sysctl.read([KEY], target).values == {KEY: "42"}
        assert pair.states(pair.ours) == ["FIN_WAIT2"]
