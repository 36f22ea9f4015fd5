"""What processes were called at a moment, as the kernel told of it.

Theory of operation. A process that runs another program has another name since: what it is called now is not the
program that made an earlier call. All names are read once at the beginning; after that the kernel tells of every new
one, and a new process has that of its parent. Where records were lost, nothing is known of the time before.

This module touches values only.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict
from typing import Final

__all__ = ["ProgramNames"]

_MOST: Final = 100_000
_MOST_OF_PROCESS: Final = 64


class ProgramNames:
    """Names of processes by time; as many as fit.

    Args:
        most: processes whose names are kept.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._names: OrderedDict[int, list[tuple[int, str]]] = OrderedDict()
        self._read: dict[int, int] = {}
        self._lost_ns = -1

    def read(self, pid: int, name: str, time_ns: int) -> None:
        """Take a name that was read at a time: it is as old as no record says otherwise."""
        self._read[pid] = time_ns
        self.named(pid, name, time_ns)

    def named(self, pid: int, name: str, time_ns: int) -> None:
        """Take a name that a process has from then on."""
        if pid not in self._names and len(self._names) >= self._most:
            self._forget(next(iter(self._names)))
        names = self._names.setdefault(pid, [])
        insort(names, (time_ns, name))
        if len(names) > _MOST_OF_PROCESS:
            del names[0]
            self._read.pop(pid, None)

    def born(self, pid: int, parent: int, time_ns: int) -> None:
        """Take a new process, which is called as its parent is."""
        name = self.of(parent, time_ns)
        self._forget(pid)
        if name:
            self.named(pid, name, time_ns)

    def _forget(self, pid: int) -> None:
        self._names.pop(pid, None)
        self._read.pop(pid, None)

    def lost(self, time_ns: int) -> None:
        """Note that records until then may be missing."""
        self._lost_ns = max(self._lost_ns, time_ns)

    def of(self, pid: int, time_ns: int) -> str:
        """Return what a process was called at a time; empty where that is not known."""
        names = self._names.get(pid, [])
        if not names or time_ns <= self._lost_ns:
            return ""
        place = bisect_right(names, time_ns, key=lambda entry: entry[0]) - 1
        if place < 0:
            return names[0][1] if self._read.get(pid) == names[0][0] else ""
        return names[place][1]
