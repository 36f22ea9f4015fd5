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
from typing import Final

from finwait.pasted.rows import SocketRows, TextPart, endpoint, state_of
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


_PAIRS: Final[dict[str, tuple[str, int]]] = {
    "rto": ("rto_us", 1000), "ato": ("ato_us", 1000), "mss": ("snd_mss", 1), "rcvmss": ("rcv_mss", 1),
    "pmtu": ("pmtu", 1), "advmss": ("advmss", 1), "cwnd": ("snd_cwnd", 1), "ssthresh": ("snd_ssthresh", 1),
    "bytes_sent": ("bytes_sent", 1), "bytes_retrans": ("bytes_retrans", 1), "bytes_acked": ("bytes_acked", 1),
    "bytes_received": ("bytes_received", 1), "segs_out": ("segs_out", 1), "segs_in": ("segs_in", 1),
    "data_segs_out": ("data_segs_out", 1), "data_segs_in": ("data_segs_in", 1), "lastsnd": ("last_data_sent_ms", 1),
    "lastrcv": ("last_data_recv_ms", 1), "lastack": ("last_ack_recv_ms", 1), "unacked": ("unacked", 1),
    "lost": ("lost", 1), "sacked": ("sacked", 1), "backoff": ("backoff", 1), "notsent": ("notsent_bytes", 1),
    "snd_wnd": ("snd_wnd", 1), "rcv_wnd": ("rcv_wnd", 1), "rcv_space": ("rcv_space", 1), "minrtt": ("min_rtt_us", 1000),
    "rcv_ssthresh": ("rcv_ssthresh", 1), "delivered": ("delivered", 1), "rehash": ("rehash", 1),
    "uid": ("uid", 1), "ino": ("inode", 1),
}  # fmt: skip
_TIMERS: Final = {"on": 1, "keepalive": 2, "timewait": 3, "persist": 4, "off": 0}
_TIMER = re.compile(r"timer:\((\w+),([\w.]*),(\d+)\)")
_USERS = re.compile(
    r'\("((?:[^"\\]|\\.){0,64})",(?:pid=)?(\d{1,10})(?:,proc_ctx=[^,()]{0,200})?,(?:fd=)?(\d{1,10})'
)
_PART = re.compile(r"(\d+)(min|sec|ms|\.)")
_SHUT: Final = {"<->": 0, "-->": 1, "<--": 2, "---": 3}


def milliseconds(text: str) -> int:
    """Return a time as ss prints timers: ``33sec``, ``2min3sec``, ``220ms``, ``1.234ms`` (1234 ms)."""
    total = 0
    for number, unit in _PART.findall(text):
        total += int(number[:9]) * {"min": 60_000, "sec": 1000, ".": 1000, "ms": 1}[unit]
    return total


Cells = tuple[tuple[str, int], ...]


class _Section:
    """Rows of one command's output."""

    def __init__(self, args: str) -> None:
        self.rows = SocketRows()
        self.unread: dict[str, int] = {}
        self.memory: dict[str, Cells] = {}
        """Word → the columns that it says."""
        letters = "".join(word[1:] for word in args.split() if re.fullmatch("-[a-zA-Z0-9]+", word))
        self.shows_timers = "o" in letters
        self.udp = "u" in letters and "t" not in letters and "a" not in args.replace("-", " ").split()
        states = re.findall(r"\bstate +([\w-]+)", args)
        number = tcp.parse_state(states[0]) if len(states) == 1 else None
        self.state = number or 0

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
    for line in lines:
        if line[:1] == "\t" and result:
            result[-1] += line
        elif starts(line):
            result.append(line)
        elif result:
            # A line that the terminal wrapped goes on in the middle of a word.
            result[-1] += line if line[:1] in "\t " else f" {line}"
    return result


def _row(section: _Section, line: str) -> None:
    words = line.split(None, 5)
    if words[0] in ("State", "Netid", "Recv-Q") or words[0] in _OTHERS:
        return
    protocol = 6
    if words[0] in ("tcp", "mptcp"):
        protocol = 262 if words[0] == "mptcp" else 6
        words = line.split(None, 6)[1:]
    state = state_of(words[0])
    if state is None:
        state, words = section.state, ["", *line.split(None, 4)]
    if len(words) < 5 or not (words[1].isdecimal() and words[2].isdecimal()):
        section.count("read rows that are cut")
        return
    src, dst = endpoint(words[3]), endpoint(words[4])
    if src is None or dst is None:
        section.count("read rows with names in place of addresses or ports (`-n` prints numbers)")
        return
    cells = {"state": state, "rqueue": int(words[1][:10]), "wqueue": int(words[2][:10]), "protocol": protocol}
    rest = words[5] if len(words) > 5 else ""
    if rest:
        _details(section, cells, rest, state)
    if state == 0:
        cells.pop("state")
    elif state == tcp.CLOSE or (section.udp and words[0] != "tcp"):
        return  # of UDP, or bound and nothing more
    row = section.rows.add(src, dst, cells)
    if "users:((" in rest:
        for name, pid, fd in _USERS.findall(rest):
            section.rows.hold(row, int(pid), name, int(fd) if len(fd) < 10 else UNTOLD_FD)


def _details(section: _Section, cells: dict[str, int], rest: str, state: int) -> None:
    memory = section.memory
    for word in rest.split():
        pairs = memory.get(word)
        if pairs is None:
            pairs = _pairs(word)
            if len(memory) < _REMEMBERED:
                memory[word] = pairs
        if pairs:
            cells.update(pairs)
    if "rto_us" in cells or "snd_cwnd" in cells or "rtt_us" in cells:
        cells["_info"] = 1
        cells.setdefault("rto_us", 0)
    ends_told = state == tcp.LISTEN or "inode" in cells or "cookie" in cells
    if "timer" not in cells and section.shows_timers and ends_told:
        cells.update(_NO_TIMER)


_REMEMBERED: Final = 50_000
"""Words whose meaning is kept: most come again in every row."""
_NOTHING: Final[Cells] = ()
_NO_TIMER: Final[Cells] = (("timer", 0), ("expires_ms", 0), ("retrans", 0))


def _pairs(word: str) -> Cells:
    """Return the columns that a word says."""
    name, colon, value = word.partition(":")
    if not colon:
        return (("shutdown", _SHUT[word]),) if word in _SHUT else _NOTHING
    pair = _PAIRS.get(name)
    if pair is not None:
        column, factor = pair
        if value.isdecimal() and value.isascii():
            return ((column, int(value[:14]) * factor),)
        numbers = _floats(value) if factor == 1000 else []
        return ((column, round(numbers[0] * factor)),) if numbers else _NOTHING
    if name == "rtt" and (numbers := _floats(value)):
        return (("rtt_us", round(numbers[0] * 1000)),)
    if name == "retrans":
        now, _, total = value.partition("/")
        if now.isdecimal() and total.isdecimal():
            return (("retrans_out", int(now[:9])), ("total_retrans", int(total[:9])))
    elif name == "sk" and re.fullmatch("[0-9a-f]{1,16}", value):
        return (("cookie", int(value, 16) & _COOKIE),)
    elif name == "timer":
        return _timer(word)
    return _NOTHING


_COOKIE: Final = (1 << 63) - 1


def _floats(value: str) -> list[float]:
    parts = value.split("/")[:2]
    if not all(re.fullmatch(r"\d{1,12}(?:\.\d{1,6})?", part) for part in parts):
        return []
    return [float(part) for part in parts]


def _timer(word: str) -> Cells:
    match = _TIMER.match(word)
    if match is None or match[1] not in _TIMERS:
        return _NOTHING
    tries = min(int(match[3][:9]), 255)
    return (("timer", _TIMERS[match[1]]), ("retrans", tries), ("expires_ms", milliseconds(match[2])))
