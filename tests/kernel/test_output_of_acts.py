"""Acts whose output cannot be written: standard error says how much was done, and where that is listed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finwait.lab.topology import Lab, unmet
from tests.kernel.acting_pair import Pair, settled
from tests.kernel.needs import missing
from tests.kernel.test_interruption import ARMED, LOOKED, ROOT, chosen, finwait, hit

pytestmark = pytest.mark.kernel
CLEAR = ("clear", "--with", "destroy", "--min-age", "0", "--share", "1", "--yes")
JSON = ("-o", "json")
SEE = "; see `finwait journal`\n"


@pytest.fixture
def pair() -> Iterator[Pair]:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))
    with Lab() as lab:
        yield Pair(lab, 3)


def unread(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose output has no room."""
    with open("/dev/full", "wb") as full:
        return subprocess.run(
            [sys.executable, "-m", "finwait", *words], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            stdin=subprocess.DEVNULL, env={**os.environ, "FINWAIT_STATE_DIR": str(folder)},
        )  # fmt: skip


def without_reader(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose output nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [sys.executable, "-m", "finwait", *words], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            stdin=subprocess.DEVNULL, env={**os.environ, "FINWAIT_STATE_DIR": str(folder)},
        )  # fmt: skip
    finally:
        os.close(writing)


@pytest.mark.parametrize("form", [(), JSON], ids=["text", "json"])
@pytest.mark.parametrize("run", [unread, without_reader])
def test_what_was_cleared_is_counted(
    tmp_path: Path, pair: Pair, run: Callable[..., subprocess.CompletedProcess[str]], form: tuple[str, ...]
) -> None:
    pair.near.shutdown(pair.ours, "WR")
    settled(pair, pair.ours, "FIN_WAIT2")
    done = run(tmp_path, *CLEAR, *form, *chosen(pair))
    assert f"not everything could be written: 3 ended{SEE}" in done.stderr
    assert done.returncode == (1 if run is unread else 0)
    assert ("error: the output could not be written" in done.stderr) == (run is unread)
    assert finwait(tmp_path, "journal").stdout.count("ended") == 3


@pytest.mark.parametrize("form", [(), JSON], ids=["text", "json"])
def test_what_was_set_and_put_back_is_counted(tmp_path: Path, pair: Pair, form: tuple[str, ...]) -> None:
    done = unread(tmp_path, *ARMED, *form, *chosen(pair))
    assert (done.returncode, f": 3 set{SEE}" in done.stderr) == (1, True), done.stderr
    done = unread(tmp_path, "probe", "--keepalive", "1/1/2", *form, *chosen(pair))
    assert (done.returncode, f": 3 alive{SEE}" in done.stderr) == (1, True), done.stderr
    done = unread(tmp_path, "undo", "1-3", "--yes", *form)
    assert f": 3 of 3 acts were reverted or checked{SEE}" in done.stderr
    assert done.returncode == 1
    assert finwait(tmp_path, "journal").stdout.count("undone by") == 3


@pytest.mark.parametrize("form", [(), JSON], ids=["text", "json"])
def test_settings_that_were_changed_are_counted(tmp_path: Path, pair: Pair, form: tuple[str, ...]) -> None:
    words = ("tune", "apply", "net.ipv4.tcp_fin_timeout=42", "--no-diagnosis", "--yes")
    done = unread(tmp_path, *words, *form, "--netns", f"netns:{pair.a.inode}")
    if not form:  # the plan itself could not be written, and nothing was done
        assert "values were set" not in done.stderr or ": 1 values were set, as act 1" in done.stderr
    assert done.returncode == 1
    assert (f": 1 values were set, as act 1{SEE}" in done.stderr) == (
        "sysctl" in finwait(tmp_path, "journal").stdout
    )
    if finwait(tmp_path, "journal").stdout:
        done = unread(tmp_path, "tune", "rollback", "1", "--yes", *form)
        assert f": act 1 was reverted, by act 2{SEE}" in done.stderr


def test_a_status_of_acts_that_failed_is_kept_where_nobody_reads(tmp_path: Path, pair: Pair) -> None:
    done = without_reader(tmp_path, *ARMED, *chosen(pair))
    assert done.returncode in LOOKED
    words = ("undo", "1-2", "9", "--yes")  # there is no act 9
    done = without_reader(tmp_path, *words)
    assert done.returncode == 1
    assert ": 2 of 2 acts were reverted or checked" in done.stderr


FULL = """
import sys
from finwait.errors import KernelError
from finwait.kernel.journal import SqliteJournal

def full(self, results):
    raise KernelError(28, "write the journal", hint="free space")

SqliteJournal.complete_many = full
"""


def test_an_interrupted_act_on_a_full_disk_is_told_as_both(tmp_path: Path, pair: Pair) -> None:
    """The status is that of an interruption; what was done is shown, and what is not in the journal is said."""
    pair.near.shutdown(pair.ours, "WR")
    settled(pair, pair.ours, "FIN_WAIT2")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(FULL, encoding="utf-8")
    path = os.environ.get("PYTHONPATH", "")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{path}")
        done = hit(tmp_path, "finwait.acting.apply:destroy", 1, (signal.SIGTERM,), *CLEAR, *chosen(pair))
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "finwait: interrupted; " in done.stderr
    assert "finwait: error: could not write the journal" in done.stderr
    assert "failed" in done.stdout or "ended" in done.stdout
