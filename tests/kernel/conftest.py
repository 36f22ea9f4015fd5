"""What several kernel tests start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from finwait.kernel.journal import SqliteJournal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    """A journal of the test's own, `journal.sqlite` in its folder."""
    with SqliteJournal(tmp_path / "journal.sqlite") as opened:
        yield opened
