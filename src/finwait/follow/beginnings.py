"""Changes of state put together with the calls within which they happen.

``connect()`` begins a connection if it takes the socket to SYN_SENT, and the record of that change does not say which
descriptor the socket has: the record of the call does, and one thread is in one call at a time. How the connection goes
on is told by later changes of the same socket, by its address in the kernel; these tell both its ends too.
"""

from __future__ import annotations

import struct
import sys
from collections import OrderedDict
from typing import Final

from msgspec import Struct

from finwait.diagnosis.leaks import CallName, Calls, TracedCall, Unmatched
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp
from finwait.uapi.perf_event import Sample
from finwait.uapi.tracepoint import EventFormat

__all__ = ["TCP", "Beginnings", "Ends", "ends_in", "number_in"]

TCP: Final = 6
"""IPPROTOTCP. The ends of an MPTCP connection are not told: those in the records are of its subflows."""
_MOST_DESCRIPTORS: Final = 20_000
_MOST_THREADS: Final = 100_000
_FAST_OPEN_NS: Final = 100_000_000
"""Within so long ``sendto()`` with MSG_FASTOPEN takes its socket to SYN_SENT."""


class Ends(Struct, frozen=True):
    """Which connection it is, as changes of state tell of it."""

    local: tuple[bytes, int]
    """Address (IPv4 mapped into IPv6) and port; 0 where the kernel has not chosen it yet."""
    peer: tuple[bytes, int]

    def of_row(self, sockets: SocketTable, row: int) -> bool | None:
        """Return whether it is the connection of a row; None where it may be."""
        local, peer = (
            (struct.pack(">QQ", *map(int, words[row])), int(port[row]))
            for words, port in ((sockets.src, sockets.sport), (sockets.dst, sockets.dport))
        )
        if peer != self.peer:
            return False
        if not self.local[1]:
            return None
        return local == self.local


class Beginnings:
    """What threads are in, and which connections they began; as many as fit."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._ends: OrderedDict[tuple[int, int], tuple[int, Ends]] = OrderedDict()
        self._inside: dict[int, tuple[CallName, int, int]] = {}
        self._pending: dict[int, tuple[int, int, int]] = {}

    def entered(self, name: CallName, fd: int, sample: Sample) -> None:
        """Note that a thread is in a call from now on."""
        if len(self._inside) > _MOST_THREADS:
            self._inside.clear()
        self._inside[sample.tid] = name, fd, sample.time_ns

    def left(self, tid: int) -> None:
        """Note that a thread is in no call any more."""
        self._inside.pop(tid, None)

    def began(self, socket: int, ends: Ends | None, sample: Sample) -> TracedCall | None:
        """Return the call that took a socket to SYN_SENT; None where it is not known.

        Args:
            socket: its address in the kernel.
            ends: of the connection, as far as they are known by then; None of what is no TCP.
            sample: of the change.
        """
        inside = self._inside.get(sample.tid)
        if inside is None:
            return None
        name, fd, entered_ns = inside
        if name != "connect":  # nobody says when it ends
            del self._inside[sample.tid]
            if sample.time_ns - entered_ns > _FAST_OPEN_NS:
                return None
        if len(self._pending) > _MOST_DESCRIPTORS:
            self._pending.pop(next(iter(self._pending)))
        self._pending[socket] = sample.pid, fd, sample.time_ns
        self._know(sample.pid, fd, sample.time_ns, ends)
        return TracedCall(name, sample.pid, fd, sample)

    def went_on(self, socket: int, state: int, ends: Ends | None) -> None:
        """Note that a socket left SYN_SENT."""
        began = self._pending.pop(socket, None)
        if began is not None and state == tcp.CLOSE:
            self._calls.failed(*began)
        elif began is not None:
            self._know(*began, ends)

    def _know(self, pid: int, fd: int, time_ns: int, ends: Ends | None) -> None:
        if ends is None:
            return
        self._ends[pid, fd] = time_ns, ends
        self._ends.move_to_end((pid, fd))
        if len(self._ends) > _MOST_DESCRIPTORS:
            self._ends.popitem(last=False)

    def ends_of(self, call: TracedCall) -> Ends | None:
        """Return the ends of the connection that a call began; None where they are not known."""
        time_ns, ends = self._ends.get((call.pid, call.fd), (-1, None))
        return ends if time_ns == call.sample.time_ns else None

    def blind(self, reason: Unmatched) -> None:
        """Note that records are missing: what was begun may have been begun anew meanwhile."""
        self._inside.clear()
        for pid, fd, time_ns in self._pending.values():
            self._calls.doubted(pid, fd, time_ns, reason)
        self._pending.clear()


def ends_in(event_format: EventFormat, sample: Sample) -> Ends | None:
    """Return the ends of the connection whose state changed; None of what is no TCP, or is described otherwise."""
    ports = [number_in(event_format, sample, name) for name in ("sport", "dport")]
    cells = [event_format.fields.get(name) for name in ("saddr_v6", "daddr_v6")]
    addresses = [sample.raw[cell.offset : cell.offset + 16] for cell in cells if cell is not None]
    sport, dport = ports
    if number_in(event_format, sample, "protocol") != TCP or sport is None or dport is None:
        return None
    if [len(address) for address in addresses] != [16, 16]:
        return None
    return Ends((addresses[0], sport), (addresses[1], dport))


def number_in(event_format: EventFormat, sample: Sample, name: str) -> int | None:
    """Return a number in a record; None where it is not in it."""
    field = event_format.fields.get(name)
    if field is None or field.offset + field.size > len(sample.raw):
        return None
    return int.from_bytes(sample.raw[field.offset : field.offset + field.size], sys.byteorder)
