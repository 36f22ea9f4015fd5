"""What several kernel tests start from."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from finwait.kernel.journal import SqliteJournal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    """A journal of the test's own, `journal.sqlite` in its folder."""
    with SqliteJournal(tmp_path / "journal.sqlite") as opened:
        yield opened


COUNTS_RECORDS = ("test_trace", "test_recorder", "test_leaks")


@pytest.fixture(autouse=True)
def no_storm_beside(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernel traces the whole machine: the storm of one test overwrites the records of every other.

    So a test that is marked `storm` waits until no other test counts records, and they wait for it.
    """
    storm = request.node.get_closest_marker("storm") is not None
    if not storm and not request.node.path.name.startswith(COUNTS_RECORDS):
        yield
        return
    with open(Path(tempfile.gettempdir(), f"finwait-tests-{os.getuid()}.storm"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if storm else fcntl.LOCK_SH)
        yield
