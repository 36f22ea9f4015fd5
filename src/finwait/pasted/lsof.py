"""lsof: open TCP sockets, as `lsof -i` and `lsof -nP -iTCP` print them.

Understood    One line a descriptor, with or without a thread column, with `(STATE)` behind the ends, and
              with the queues that -T qs shows. On Linux the DEVICE column is the inode.
Told          The holder with its descriptor, both ends, the state: whatever it lists is held.
Not told      Timers, and without -T qs the queues. Orphans have no descriptor, so lsof never lists
              them: what is missing here may be closing all the same.
"""

from __future__ import annotations

import re
from typing import Final

from finwait.pasted.rows import PastedEnd, SocketRows, TextPart, endpoint, state_of
from finwait.uapi import tcp
from finwait.uapi.observation import UNTOLD_FD

__all__ = ["NAME", "read", "starts"]

NAME: Final = "lsof"

_ROW = re.compile(
    r"(\S{1,40})\s+(\d{1,7})\s+(?:\d{1,7}\s+\S{1,40}\s+)?(?:\S{1,40}\s+)?(\d{1,9})[ruw-]?\S{0,2}\s+IPv([46])\s+(\S{1,20})\s+"
    r"\S{1,20}\s+TCP\s+(\S{1,110}?)(?:->(\S{1,110}))?(?:\s+\(([^)]{1,80})\))?\s*$"
)
_LOST = re.compile(r"\S{1,40}\s+\d{1,7}\s.{0,60}\bsock\b.{0,60}(?:protocol: TCP|can't identify protocol)")


def starts(line: str) -> bool:
    """Return whether a line is one of lsof, or its header."""
    if line.startswith("COMMAND "):
        return " PID " in line and " FD " in line
    return (" TCP " in line and _ROW.match(line) is not None) or (
        "sock" in line and _LOST.match(line) is not None
    )


def read(lines: list[str], args: str) -> TextPart:  # noqa: ARG001 - a line says all
    """Read lines of lsof."""
    rows = SocketRows()
    part = TextPart(NAME, rows)
    places: dict[tuple[str, str, str, str], int] = {}
    for line in lines:
        match = _ROW.match(line)
        if match is None:
            if _LOST.match(line):
                part.count("tell what sockets are that lsof knows no connection of")
            continue
        name, pid, fd, version, device, local, peer, about = match.groups()
        if device.startswith("0x"):
            part.count(
                "read lines of lsof of another system, whose connections close by other rules than Linux's"
            )
            continue
        state, queues = _about(about or "")
        src, dst = endpoint(_whole(local)), endpoint(_whole(peer or "*:*"))
        if state is None or src is None or dst is None:
            part.count("read lines of lsof with names, or without a state (`lsof -nP -iTCP` prints both)")
            continue
        if version == "6" and src.family == 2:
            src = PastedEnd(src.words, src.port, 10)
        key = (local, peer or "", device, str(state))
        row = places.get(key)
        if row is None:
            cells = {"state": state, "protocol": 6, **queues}
            if device.isdecimal():
                cells["inode"] = int(device)
            row = places[key] = rows.add(src, dst, cells)
        rows.hold(row, int(pid), name.replace("\\x20", " "), int(fd) if len(fd) < 9 else UNTOLD_FD)
    return part


def _whole(text: str) -> str:
    return text if ":" in text else f"{text}:*"


def _about(text: str) -> tuple[int | None, dict[str, int]]:
    """Return state and queues of what stands in parentheses: ``CLOSE_WAIT`` or ``ST=… QR=0 QS=0``."""
    state, queues = None, {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals or key == "ST":
            state = state_of(value if equals else key)
        elif key in ("QR", "QS") and value.isdecimal():
            queues["rqueue" if key == "QR" else "wqueue"] = int(value[:9])
    return (None if state == tcp.CLOSE else state), queues
