"""Which processes have descriptors that others fill too, so that a descriptor does not tell which call filled it.

Theory of operation. ``clone(CLONE_FILES)`` without CLONE_THREAD makes two processes with one descriptor table: a number
that one closes, the other may fill. ``unshare(CLONE_FILES)`` gives one thread a table of its own, so that one number of
a process means two things. io_uring fills descriptors without a system call. Those that shared before are found by
kcmp(2) (`finwait.kernel.tasks.sharing`); the rest is told by tracepoints.

What is marked stays marked until the process runs another program, which then has a table of its own: more is doubted
than must be. A child that is only forked has a copy, and is not marked.

This module touches values only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from finwait.uapi.perf_event import Forked

__all__ = ["SharedTables"]

_MOST: Final = 100_000
_ALWAYS: Final = 1 << 63


class SharedTables:
    """Processes whose descriptors are not theirs alone."""

    def __init__(self) -> None:
        self._until: dict[int, int] = {}
        self._born_by: dict[int, int] = {}

    def found(self, pids: Iterable[int]) -> None:
        """Mark processes that share a table already."""
        self._until |= dict.fromkeys(pids, _ALWAYS)

    def born(self, record: Forked) -> None:
        """Take a new process: whose child it is, and that its number means it from now on."""
        self._until.pop(record.pid, None)
        if len(self._born_by) > _MOST:
            self._born_by.clear()
        self._born_by[record.by] = record.pid

    def cloned(self, pid: int, tid: int, number: int) -> None:
        """Mark a process and the child that a thread of it has just made.

        Args:
            pid: of the process.
            tid: of the thread.
            number: of the child, in the initial pid namespace.
        """
        self.found((pid, number, self._born_by.get(tid, number)))

    def executed(self, pid: int, time_ns: int) -> None:
        """Note that a process has a table of its own from then on."""
        if pid in self._until:
            self._until[pid] = min(self._until[pid], time_ns)

    def shared(self, pid: int, time_ns: int) -> bool:
        """Return whether a call of a process at that time may be about a descriptor that others fill too."""
        return time_ns <= self._until.get(pid, -1)
