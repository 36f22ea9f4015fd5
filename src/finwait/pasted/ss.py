"""ss: sockets, in every form that `ss` of iproute2 prints.

Understood    ss -tan, -tanp, -tano, -tanoe, -tanoeip, -H, -O, -tulpn, and filters; the column sets of
              iproute2 from 2012 on. A row may go on in the lines below it, or where the terminal
              wrapped it.
Told          State, queues and both ends. With -o the timer, with -e uid, inode, cookie and which
              directions are shut, with -p the holders, with -i the clocks and counters of tcp_info.
Not told      Without -e whether anybody holds it, unless -p names a holder. Without -o, which timer
              runs. `ss state STATE` prints no state: paste the command line as well.
              A number that `ss` leaves out because it is 0 is read as 0 only if the text has it in
              some other row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from finwait.pasted.rows import SocketRows, TextPart, endpoint, state_of
from finwait.pasted.words import RowBytes, numbers_of
from finwait.uapi import tcp
from finwait.uapi.observation import UNTOLD_FD

__all__ = ["NAME", "continues", "read", "starts"]

NAME: Final = "ss"

_WORDS: Final = frozenset(tcp.ss_name(n) for n in tcp.STATES)
_OTHERS: Final = frozenset(
    [
        "udp",
        "raw",
        "icmp6",
        "u_str",
        "u_dgr",
        "u_seq",
        "nl",
        "p_raw",
        "p_dgr",
        "v_str",
        "v_dgr",
        "dccp",
        "sctp",
        "ti_rd",
        "xdp",
        "???",
    ]
)
_MORE: Final = re.compile(
    r"\s*(?:users:\(\(|timer:\(|uid:\d|ino:\d|sk:[0-9a-f]|cgroup:|skmem:\(|mem:\(|<->|-->|<--|---"
    r"|(?:ts|sack|ecn|cubic|bbr|reno|dctcp|vegas|westwood|htcp|fastopen)\b|[a-z_]{2,24}:[\d(])"
)


def starts(line: str) -> bool:
    """Return whether a line is a row of ss, or its header."""
    first, _, rest = line.lstrip(" ").partition(" ")
    if first in _WORDS:
        return rest.lstrip(" ")[:1].isdigit()
    if first in ("tcp", "mptcp"):
        second = rest.split(None, 1)[:1]
        return bool(second) and second[0] in _WORDS
    if first in _OTHERS:
        second = rest.split(None, 1)[:1]
        return bool(second) and (second[0] in _WORDS)
    if first in ("State", "Netid", "Recv-Q"):
        return "Address:Port" in rest
    return first.isdigit() and _STATELESS.match(line) is not None


_STATELESS = re.compile(r"\s{0,40}\d{1,10}\s+\d{1,10}\s+\S{1,60}:\S{1,20}\s+\S{1,60}:[\d*]\S{0,20}(?:\s|$)")


def continues(line: str) -> bool:
    """Return whether a line goes on with the row before it."""
    return line[:1] in ("\t", " ") or _MORE.match(line) is not None


_WHOLE: Final = {
    "mss": "snd_mss", "rcvmss": "rcv_mss", "pmtu": "pmtu", "advmss": "advmss", "cwnd": "snd_cwnd",
    "ssthresh": "snd_ssthresh", "bytes_sent": "bytes_sent", "bytes_retrans": "bytes_retrans",
    "bytes_acked": "bytes_acked", "bytes_received": "bytes_received", "segs_out": "segs_out", "segs_in": "segs_in",
    "data_segs_out": "data_segs_out", "data_segs_in": "data_segs_in", "lastsnd": "last_data_sent_ms",
    "lastrcv": "last_data_recv_ms", "lastack": "last_ack_recv_ms", "unacked": "unacked", "lost": "lost",
    "sacked": "sacked", "backoff": "backoff", "notsent": "notsent_bytes", "snd_wnd": "snd_wnd", "rcv_wnd": "rcv_wnd",
    "rcv_space": "rcv_space", "rcv_ssthresh": "rcv_ssthresh", "delivered": "delivered", "rehash": "rehash",
    "uid": "uid", "ino": "inode",
}  # fmt: skip
"""Word → column, of whole numbers."""
_THOUSANDTHS: Final = {"rto": "rto_us", "ato": "ato_us", "rtt": "rtt_us", "minrtt": "min_rtt_us"}
"""… and of milliseconds with a fraction."""
_TIMERS: Final = {"on": 1, "keepalive": 2, "timewait": 3, "persist": 4, "off": 0}
_TIMER = re.compile(r"timer:\((\w+),([\w.]*),(\d+)\)")
_USERS = re.compile(
    r'\("((?:[^"\\]|\\.){0,64})",(?:pid=)?(\d{1,10})(?:,proc_ctx=[^,()]{0,200})?,(?:fd=)?(\d{1,10})'
)
_PART = re.compile(r"(\d+)(min|sec|ms|\.)")
_SHUT: Final = {b"<->": 0, b"-->": 1, b"<--": 2, b"---": 3}


def milliseconds(text: str) -> int:
    """Return a time as ss prints timers: ``33sec``, ``2min3sec``, ``220ms``, ``1.234ms`` (1234 ms)."""
    total = 0
    for number, unit in _PART.findall(text):
        total += int(number[:9]) * {"min": 60_000, "sec": 1000, ".": 1000, "ms": 1}[unit]
    return total


class _Section:
    """Rows of one command's output."""

    def __init__(self, args: str) -> None:
        self.rows = SocketRows(self.more)
        self.unread: dict[str, int] = {}
        self.timers: dict[str, dict[str, int]] = {}
        """How a timer is printed → the columns that it says."""
        letters = "".join(word[1:] for word in args.split() if re.fullmatch("-[a-zA-Z0-9]+", word))
        self.shows_timers = "o" in letters
        self.udp = "u" in letters and "t" not in letters and "a" not in args.replace("-", " ").split()
        states = re.findall(r"\bstate +([\w-]+)", args)
        number = tcp.parse_state(states[0]) if len(states) == 1 else None
        self.state = number or 0

    def more(self, columns: dict[str, NDArray[np.int64]], rests: Sequence[str]) -> None:
        """Add the columns that stand behind the two ends of some rows."""
        rows = RowBytes(rests)
        columns |= numbers_of(rows, _WHOLE, _THOUSANDTHS)
        columns["shutdown"] = rows.arrows(_SHUT)
        none = np.full(rows.count, -1)
        informed = [columns.get(name, none) >= 0 for name in ("rto_us", "snd_cwnd", "rtt_us")]
        columns["_info"] = np.where(np.logical_or.reduce(informed), 1, -1)
        timer = columns.setdefault("timer", none.copy())
        known = (columns["state"] == tcp.LISTEN) | (columns.get("inode", none) >= 0)
        known |= columns.get("cookie", none) >= 0
        idle = known & (timer < 0) & self.shows_timers
        for name in ("timer", "expires_ms", "retrans"):
            columns[name] = np.where(idle, 0, columns.get(name, none))

    def timer(self, rest: str) -> dict[str, int]:
        """Return what a row says of its timer."""
        begin = rest.find("timer:(")
        if begin < 0:
            return {}
        text = rest[begin : rest.find(")", begin) + 1][:80]
        cells = self.timers.get(text)
        if cells is None:
            cells = _timer(text)
            if len(self.timers) < _REMEMBERED:
                self.timers[text] = cells
        return cells

    def count(self, doing: str) -> None:
        self.unread[doing] = self.unread.get(doing, 0) + 1


def read(lines: list[str], args: str) -> TextPart:
    """Read the lines of one command's output."""
    section = _Section(args)
    whole = _joined(lines)
    if not section.shows_timers:
        section.shows_timers = any("timer:(" in line for line in whole)
    for line in whole:
        _row(section, line)
    return TextPart(NAME, section.rows, unread=section.unread)


def _joined(lines: list[str]) -> list[str]:
    """Return one line a row: those that follow a row belong to it."""
    result: list[str] = []
    wrapped = False
    last_row = next((k for k in range(len(lines) - 1, -1, -1) if starts(lines[k])), -1)
    for k, line in enumerate(lines):
        if line[:1] == "\t" and result:
            result[-1] += line
        elif starts(line):
            result.append(line)
        elif result and (line[:1] in "\t " or _MORE.match(line)):
            result[-1] += f" {line}"
        elif result and (wrapped or k < last_row or not line.strip().isdecimal()):
            # The terminal wrapped it in the middle of a word: the row's last word is in doubt. A number below the last
            # row, where nothing else was wrapped, is of another command, such as `wc -l`.
            result[-1] += f"{_DOUBT}{line}"
            wrapped = True
    return result


def _row(section: _Section, line: str) -> None:
    words = line.split(None, 5)
    state, protocol = state_of(words[0]), 6
    if state is None:
        if words[0] in ("State", "Netid", "Recv-Q") or words[0] in _OTHERS:
            return
        if words[0] in ("tcp", "mptcp"):
            protocol = 262 if words[0] == "mptcp" else 6
            words = line.split(None, 6)[1:]
            state = state_of(words[0])
        else:
            words = ["", *line.split(None, 4)]
        state = state or section.state
    if len(words) < 5 or not (words[1].isdecimal() and words[2].isdecimal()):
        section.count("read rows that are cut")
        return
    if _DOUBT in words[3] or _DOUBT in words[4]:
        section.count("read rows that are cut")
        return
    src, dst = endpoint(words[3]), endpoint(words[4])
    if src is None or dst is None:
        section.count("read rows with names in place of addresses or ports (`-n` prints numbers)")
        return
    cells = {"state": state, "rqueue": int(words[1][:10]), "wqueue": int(words[2][:10]), "protocol": protocol}
    if not state:
        del cells["state"]
    if state == tcp.CLOSE or (state and section.udp and words[0] != "tcp"):
        return  # of UDP, or bound and nothing more
    rest = _without_holders(section, len(section.rows), words[5]) if len(words) > 5 else ""
    cells |= section.timer(rest)
    section.rows.add(src, dst, cells, rest)


_DOUBT: Final = "\0"
"""Between what a row says and a line that may be the rest of its last word; no text has it (`finwait.pasted.lines`)."""
_REMEMBERED: Final = 50_000
"""Timers whose meaning is kept: most come again."""


def _without_holders(section: _Section, row: int, rest: str) -> str:
    """Note the holders that a row names; return it without them: programs choose their names."""
    rows = section.rows
    limit = rest.find(" cgroup:")  # whose path any user may choose, as far as it is below his own
    begin = rest.find("users:((", 0, len(rest) if limit < 0 else limit)
    if begin < 0:
        return rest
    end = rest.rfind("))", 0, len(rest) if limit < 0 else limit)
    end = len(rest) if end < begin else end + 2
    users = rest[begin:end]
    matches = list(_USERS.finditer(users))
    # A program may call itself `a",pid=1,fd=3`: where that reads in more ways than one, nobody is named.
    if (
        users.count('",') == len(matches)
        and users.endswith("))")
        and users.count("(") == len(matches) + 1
        and (all(users[match.end()] == ")" for match in matches))
    ):
        for match in matches:
            name, pid, fd = match.groups()
            rows.hold(row, int(pid), name, int(fd) if len(fd) < 10 else UNTOLD_FD)
    else:
        section.count("read who holds a row: its text is cut, or a name in it is meant to mislead")
    return f"{rest[:begin]} {rest[end:]}"


def _timer(text: str) -> dict[str, int]:
    match = _TIMER.match(text)
    if match is None or match[1] not in _TIMERS:
        return {}
    tries = min(int(match[3][:9]), 255)
    return {"timer": _TIMERS[match[1]], "retrans": tries, "expires_ms": milliseconds(match[2])}
