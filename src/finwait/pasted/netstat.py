"""netstat: sockets as netstat of net-tools and of BusyBox print them.

Understood    netstat -tan, -tanp, -tpn, -tnoe, -tanoep, -antup, -W, and the counters of netstat -s.
              Columns are told by what is in them, so a header is not needed.
Told          State, queues and both ends. With -o the timer with its retransmissions, with -e user
              and inode, with -p one holder.
Not told      Without -e whether anybody holds it, unless -p names a holder; a `-` there names none,
              and may stand for a process that netstat was not allowed to see. The backlog of a
              listener, the cookie, and all of tcp_info. An IPv6 address that netstat cut (use -W).
"""

from __future__ import annotations

import re
from typing import Final

from finwait.pasted.rows import SocketRows, TextPart, endpoint, state_of
from finwait.uapi import tcp
from finwait.uapi.observation import UNTOLD_FD

__all__ = ["NAME", "read", "starts"]

NAME: Final = "netstat"

_ROW = re.compile(
    r"\s{0,8}(tcp6?|udp6?|raw6?)\s+(\d{1,10})\s+(\d{1,10})\s+(\S{1,80})\s+(\S{1,80})(?:\s+(.*))?$"
)
_HEADS: Final = ("Proto Recv-Q Send-Q", "Active Internet connections")
_TIMER = re.compile(
    r"\s*\b(off|on|keepalive|timewait|probe|unkn-\d{1,3}) \(([\d.]{1,16})/(\d{1,10})/(\d{1,10})\)\s*$"
)
_PID = re.compile(r"(?:^|\s+)(?:(-)|(\d{1,7})/(.{0,64}?))\s*$")
_USER = re.compile(r"^(\S{1,32})\s+(\d{1,10})(?=\s|$)")
_TIMERS: Final = {"off": 0, "on": 1, "keepalive": 2, "timewait": 3, "probe": 4, "unkn-4": 4}


def starts(line: str) -> bool:
    """Return whether a line is a row of netstat, or its header."""
    match = _ROW.match(line)
    if match is None:
        return line.lstrip().startswith(_HEADS)
    if match[1][:3] != "tcp":
        return True
    words = (match[6] or "").split(None, 1)
    return not words or state_of(words[0]) is not None


def read(lines: list[str], args: str) -> TextPart:  # noqa: ARG001 - the columns tell
    """Read the lines of one command's output."""
    rows, unread = SocketRows(), dict[str, int]()
    for line in lines:
        match = _ROW.match(line)
        if match is None or match[1][:3] != "tcp":
            continue
        if (why := _add(rows, match)) is not None:
            unread[why] = unread.get(why, 0) + 1
    return TextPart(NAME, rows, unread=unread)


def _add(rows: SocketRows, match: re.Match[str]) -> str | None:
    """Add a row; return why it cannot be read."""
    src, dst = endpoint(match[4]), endpoint(match[5])
    word, _, rest = (match[6] or "").partition(" ")
    state = state_of(word)
    if state is None:
        return "read rows without a state"
    if src is None or dst is None:
        return "read rows with cut addresses, or names (`netstat -W -n` prints them whole, as numbers)"
    cells = {"state": state, "rqueue": int(match[2]), "protocol": 6}
    if state != tcp.LISTEN:  # of a listener it is not the backlog
        cells["wqueue"] = int(match[3])
    rest = rest.strip()
    if timer := _TIMER.search(rest):
        rest = rest[: timer.start()]
        _timer(cells, timer)
    pid = _PID.search(rest)
    if pid is not None:
        rest = rest[: pid.start()]
    if user := _USER.match(rest.strip()):
        cells["inode"] = int(user[2])
        if user[1].isdecimal():
            cells["uid"] = int(user[1])
    row = rows.add(src, dst, cells)
    if pid is not None and pid[2]:
        rows.hold(row, int(pid[2]), pid[3].strip(), UNTOLD_FD)
    return None


def _timer(cells: dict[str, int], match: re.Match[str]) -> None:
    kind = _TIMERS.get(match[1])
    if kind is None:
        return
    cells["timer"] = kind
    try:
        cells["expires_ms"] = round(float(match[2]) * 1000)
    except ValueError:
        return
    # The kernel counts what was sent again, and apart from it the probes that nobody answered.
    cells["retrans"] = min(int(match[3] if kind == 1 else match[4]), 255)
