"""proc-net: `/proc/net/tcp`, `/proc/net/tcp6`, and those of a process (`/proc/PID/net/tcp`).

Understood    The rows with or without their header, of kernels with the low byte first (x86, Arm).
Told          State, queues, both ends, timer, uid and inode: whether anybody holds it is told.
Not told      Who holds it, the cookie, the backlog of a listener, which directions are shut, and all
              of tcp_info. `/proc/net/sockstat` and `/proc/net/netstat` are read as counters.
"""

from __future__ import annotations

import re
from typing import Final

from finwait.pasted.rows import PastedEnd, SocketRows, TextPart
from finwait.table.sockets import MAPPED
from finwait.uapi import tcp

__all__ = ["NAME", "part_of", "read", "starts"]

NAME: Final = "proc-net"

_ROW = re.compile(
    r"\s{0,8}\d{1,8}: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) "
    r"([0-9A-F]{2}) ([0-9A-F]{8}):([0-9A-F]{8}) ([0-9A-F]{2}):([0-9A-F]{8,12}) ([0-9A-F]{8})"
    r"(?: +(\d{1,10}) +(\d{1,10}) +(\d{1,15}))?"
)


def starts(line: str) -> bool:
    """Return whether a line is a row of such a file, or its header."""
    return _ROW.match(line) is not None or line.split()[:2] == ["sl", "local_address"]


def part_of(lines: list[str]) -> str:
    """Return which of the two files it is: they are printed one after the other."""
    match = next(filter(None, map(_ROW.match, lines)), None)
    return "" if match is None else "tcp" if len(match[1]) == 8 else "tcp6"


def read(lines: list[str], args: str) -> TextPart:  # noqa: ARG001
    """Read the lines of one file."""
    rows, unread = SocketRows(), dict[str, int]()
    for line in lines:
        match = _ROW.match(line)
        if match is None:
            continue
        state = int(match[5], 16)
        if state not in tcp.STATES or len(match[1]) != len(match[3]):
            unread["read rows of no TCP state"] = unread.get("read rows of no TCP state", 0) + 1
            continue
        kind, when = int(match[8], 16), int(match[9], 16)
        cells = {
            "state": state,
            "wqueue": int(match[6], 16),
            "rqueue": int(match[7], 16),
            "timer": kind,
            "expires_ms": when * 10 if kind else 0,  # in hundredths of a second
            "protocol": 6,
        }
        if state == tcp.LISTEN:
            del cells["wqueue"]
        if kind in (0, 1, 3):
            cells["retrans"] = int(match[10], 16) & 0xFF
        if match[13]:
            cells["uid"], cells["inode"] = int(match[11]), int(match[13])
            if kind in (2, 4):
                cells["retrans"] = min(int(match[12]), 255)
        rows.add(_end(match[1], match[2]), _end(match[3], match[4]), cells)
    return TextPart(NAME, rows, unread=unread)


def _end(address: str, port: str) -> PastedEnd:
    words = [int.from_bytes(bytes.fromhex(address[k : k + 8])[::-1]) for k in range(0, len(address), 8)]
    if len(words) == 1:
        return PastedEnd((0, MAPPED | words[0]), int(port, 16), 2)
    return PastedEnd((words[0] << 32 | words[1], words[2] << 32 | words[3]), int(port, 16), 10)
