"""conntrack: connection tracking entries, as `conntrack -L` and `/proc/net/nf_conntrack` print them.

Understood    The plain and the extended form, -o id, -o xml, -o save; the counters of conntrack -S.
Told          Both directions with ports, the state that the middlebox sees, the time left, and
              whether both directions were seen.
Not told      Flags of the two directions: whether a middlebox gave up on a flow is then told by its
              state alone. Entries of protocols without ports are left out.
"""

from __future__ import annotations

import re
import struct
from itertools import pairwise
from typing import Final

from finwait.pasted.rows import PastedEnd, TextPart, endpoint
from finwait.uapi import conntrack as ct
from finwait.uapi import netlink as nl

__all__ = ["NAME", "read", "starts"]

NAME: Final = "conntrack"

_PLAIN = re.compile(r"(?:ipv[46]\s+\d{1,3}\s+)?tcp\s+6\s+(?:(\d{1,10})\s+)?(?:([A-Z_0-9]{2,12})\s+)?(src=.*)")
_OTHER = re.compile(
    r"(?:ipv[46]\s+\d{1,3}\s+)?(?:udp|icmp|icmpv6|gre|sctp|dccp|udplite|unknown)\s+\d{1,3}\s.*src="
)
_TUPLE = re.compile(r"src=(\S{1,45}) dst=(\S{1,45}) sport=(\d{1,5}) dport=(\d{1,5})")
_WORD = re.compile(r"\b(mark|zone|id|use)=(\d{1,10})")
_SAVE = re.compile(r"-A .{0,200}-p tcp\b")
_STATS = re.compile(r"cpu=\d{1,5}\s+(?:found|searched|entries)=\d")
_TOTAL = re.compile(r"conntrack v\S+ \(conntrack-tools\): \d+ flow entries")


def starts(line: str) -> bool:
    """Return whether a line is an entry, or counters of a processor."""
    return (
        ("src=" in line and (_PLAIN.match(line) is not None or _OTHER.match(line) is not None))
        or (line.startswith("-A ") and _SAVE.match(line) is not None)
        or (line.startswith("cpu=") and _STATS.match(line) is not None)
        or (line.startswith("conntrack v") and _TOTAL.match(line) is not None)
        or line.startswith(("<?xml", "<conntrack>", "<flow>"))
    )  # fmt: skip


def read(lines: list[str], args: str) -> TextPart:  # noqa: ARG001
    """Read entries and counters."""
    part = TextPart(NAME)
    statistics: list[dict[str, int]] = []
    for line in lines:
        if match := _PLAIN.match(line):
            tuples = _TUPLE.findall(match[3])
            words = {name: int(value) for name, value in _WORD.findall(match[3])}
            seen = "[UNREPLIED]" not in line
            entry = _entry(tuples, match[1], match[2], words, replied=seen, assured="[ASSURED]" in line)
        elif line.startswith("-A ") and _SAVE.match(line):
            entry = _saved(line)
        elif line.startswith("cpu="):
            statistics.append(
                {k: int(v) for k, v in re.findall(r"(\w{1,20})=(\d{1,18})", line) if k != "cpu"}
            )
            continue
        elif "<flow>" in line:
            entries = (piece.partition("</flow>") for piece in line.split("<flow>")[1:])
            part.flows += filter(
                None, (_xml(f"<flow>{entry[:2000]}</flow>") for entry, end, _ in entries if end)
            )
            continue
        else:
            continue
        if entry is None:
            part.count("read entries of connection tracking that are cut")
        else:
            part.flows.append(entry)
    if statistics:
        part.files["net/stat/nf_conntrack"] = _counters(statistics)
    return part


def _counters(statistics: list[dict[str, int]]) -> bytes:
    """Return counters as /proc/net/stat/nf_conntrack has them: a header, and one line a processor."""
    names = list(dict.fromkeys(["entries", *(name for cpu in statistics for name in cpu)]))
    lines = [" ".join(names), *(" ".join(f"{cpu.get(name, 0):08x}" for name in names) for cpu in statistics)]
    return ("\n".join(lines) + "\n").encode()


def _ends(way: tuple[str, str, str, str]) -> tuple[PastedEnd, PastedEnd] | None:
    src, dst = endpoint(f"[{way[0]}]:{way[2]}"), endpoint(f"[{way[1]}]:{way[3]}")
    return None if src is None or dst is None or src.family != dst.family else (src, dst)


def _entry(
    tuples: list[tuple[str, str, str, str]],
    timeout: str | None,
    state: str | None,
    words: dict[str, int],
    *,
    replied: bool,
    assured: bool,
) -> bytes | None:
    """Return an entry as ctnetlink sends it; None where a direction is missing."""
    if len(tuples) < 2:
        return None
    ways = [_ends(way) for way in tuples[:2]]
    orig, reply = ways
    if orig is None or reply is None:
        return None
    bits = ct.STATUS_BITS
    status = bits["CONFIRMED"] | bits["SEEN_REPLY"] * replied | bits["ASSURED"] * assured
    if orig[1] != reply[0]:
        status |= bits["DST_NAT"] | bits["DST_NAT_DONE"]
    if orig[0] != reply[1]:
        status |= bits["SRC_NAT"] | bits["SRC_NAT_DONE"]
    parts = [_way(*orig).pack(ct.TUPLE_ORIG), _way(*reply).pack(ct.TUPLE_REPLY), _number(ct.STATUS, status)]
    if timeout is not None:
        parts.append(_number(ct.TIMEOUT, min(int(timeout), 0xFFFFFFFF)))
    if state in ct.TCP_STATE_NUMBERS:
        inner = nl.attribute(ct.TCP_STATE, bytes([ct.TCP_STATE_NUMBERS[state]]))
        parts.append(nl.nested(ct.PROTOINFO, nl.nested(ct.PROTOINFO_TCP, inner)))
    for name, kind in (("mark", ct.MARK), ("id", ct.ID), ("use", ct.USE)):
        if name in words:
            parts.append(_number(kind, words[name] & 0xFFFFFFFF))
    if "zone" in words:
        parts.append(nl.attribute(ct.ZONE, struct.pack("!H", words["zone"] & 0xFFFF)))
    family = orig[0].family
    return nl.message(ct.CT_NEW, 2, struct.pack("!BBH", family, 0, 0) + b"".join(parts))


def _number(kind: int, value: int) -> bytes:
    return nl.attribute(kind, struct.pack("!I", value))


def _way(src: PastedEnd, dst: PastedEnd) -> ct.FlowTuple:
    return ct.FlowTuple(src.family, 6, _bytes(src), _bytes(dst), src.port, dst.port)


def _bytes(end: PastedEnd) -> bytes:
    high, low = end.words
    return (low & 0xFFFFFFFF).to_bytes(4) if end.family == 2 else high.to_bytes(8) + low.to_bytes(8)


def _saved(line: str) -> bytes | None:
    """Read a line of ``-o save``: the options that would make the entry again."""
    words = line.split()
    options = {name: value for name, value in pairwise(words) if name.startswith("-")}
    names = ("-s", "-d", "--sport", "--dport"), ("-r", "-q", "--reply-port-src", "--reply-port-dst")
    if any(name not in options for way in names for name in way):
        return None
    tuples = [(options[a], options[b], options[c], options[d]) for a, b, c, d in names]
    flags = options.get("-u", "").split(",")
    timeout = options.get("-t", "")
    return _entry(
        tuples, timeout if timeout.isdecimal() else None, options.get("--state"), {},
        replied="SEEN_REPLY" in flags, assured="ASSURED" in flags,
    )  # fmt: skip


def _xml(text: str) -> bytes | None:
    """Read an entry of ``-o xml``."""
    if 'protonum="6"' not in text:
        return None
    names = ("src", "dst", "sport", "dport")
    cells = {name: re.findall(rf"<{name}>([^<]{{1,45}})</{name}>", text)[:2] for name in names}
    if any(len(values) < 2 for values in cells.values()):
        return None
    tuples = [(cells["src"][k], cells["dst"][k], cells["sport"][k], cells["dport"][k]) for k in (0, 1)]
    state, timeout = (
        re.search(r"<state>(\w{1,12})</state>", text),
        re.search(r"<timeout>(\d{1,9})</timeout>", text),
    )
    return _entry(
        tuples, timeout[1] if timeout else None, state[1] if state else None, {},
        replied="<unreplied/>" not in text, assured="<assured/>" in text,
    )  # fmt: skip
