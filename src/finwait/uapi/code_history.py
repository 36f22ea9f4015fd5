"""What code processes had mapped, and when, as the kernel told of it.

Theory of operation. ``/proc/PID/maps`` says what is mapped now. An address of an earlier moment may have been another
library's then (``dlclose()`` and ``dlopen()``). The kernel tells when a process maps code (`Mapped`) and not when it
gives it back; but code was executed at that address, so it was mapped, and the last record before that moment says as
what. Where a later record covers the address, what is mapped now is not what was executed.

Too many records, and records that were lost, make it not known what was mapped before: `CodeHistory.known`.

This module touches values only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from finwait.uapi.maps import Mapping
from finwait.uapi.perf_event import Ended, Executed, Forked, Mapped

__all__ = ["CodeHistory"]

_MOST: Final = 100_000
_MOST_OF_PROCESS: Final = 4096
_RECENT: Final = 64


class CodeHistory:
    """Mappings of code by process, in the order of time; as many as fit.

    Args:
        most: records that are kept.
        most_of_process: records that are kept of one process.
    """

    def __init__(self, most: int = _MOST, most_of_process: int = _MOST_OF_PROCESS) -> None:
        self._most = most
        self._most_of_process = most_of_process
        self._records: OrderedDict[int, list[Mapped]] = OrderedDict()
        self._forgotten: dict[int, int] = {}
        self._count = 0
        self._lost_ns = -1

    def add(self, record: Executed | Ended | Forked | Mapped) -> None:
        """Take a record; they come in the order of time."""
        if isinstance(record, Mapped):
            self._map(record)
        elif isinstance(record, Ended):
            if record.pid == record.tid and record.pid in self._records:
                self._records.move_to_end(record.pid, last=False)  # the first to be forgotten
        else:  # nothing of what was mapped is left; a child's, that its parent mapped, is not in these records
            self._drop(record.pid)
            self._forgotten.pop(record.pid, None)

    def _map(self, record: Mapped) -> None:
        records = self._records.setdefault(record.pid, [])
        recent = (
            last
            for last in reversed(records[-_RECENT:])
            if last.begin < record.end and record.begin < last.end
        )
        last = next(recent, None)
        if last is not None and _identity(last) == _identity(record):  # made writable and executable again
            return
        records.append(record)
        self._count += 1
        if len(records) > self._most_of_process:
            self._forgotten[record.pid] = records.pop(0).time_ns
            self._count -= 1
        while self._count > self._most:
            pid = next(iter(self._records))
            self._forgotten[pid] = self._records[pid][-1].time_ns
            self._drop(pid)

    def _drop(self, pid: int) -> None:
        self._count -= len(self._records.pop(pid, ()))

    def lost(self, time_ns: int) -> None:
        """Note that records until then may be missing."""
        self._lost_ns = max(self._lost_ns, time_ns)

    def known(self, pid: int, time_ns: int) -> bool:
        """Return whether all that a process mapped since a moment is known."""
        return time_ns > max(self._lost_ns, self._forgotten.get(pid, -1))

    def changed(self, pid: int, address: int, time_ns: int) -> bool:
        """Return whether something else was mapped over an address since a moment."""
        records = self._records.get(pid, ())
        return any(record.time_ns > time_ns and record.begin <= address < record.end for record in records)

    def before(self, pid: int, address: int, time_ns: int) -> Mapping | None:
        """Return what was mapped at an address of code at a moment; None where no record says."""
        for record in reversed(self._records.get(pid, ())):
            if record.time_ns <= time_ns and record.begin <= address < record.end:
                return Mapping(record.begin, record.end, True, record.offset, record.inode, record.name)
        return None


def _identity(record: Mapped) -> tuple[int, int, int, int, bytes]:
    return record.begin, record.end, record.offset, record.inode, record.name
