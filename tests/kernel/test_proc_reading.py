"""Files of /proc are read to their end."""

from __future__ import annotations

import pytest

from finwait.kernel import procfs

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("path", ["/proc/kallsyms", "/proc/self/maps", "/proc/self/smaps"])
def test_a_file_of_records_is_read_to_its_end(path: str) -> None:
    """One read gives at most a page, however much is asked for, and less where the next record does not fit."""
    with open(path, "rb") as file:
        whole = file.read()
    assert len(whole) > 4096
    data = procfs.read(path, limit=64 << 20)
    assert data is not None
    assert len(data.splitlines()) >= len(whole.splitlines()) * 0.9  # of a process it changes in between
