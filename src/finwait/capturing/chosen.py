"""What to capture: connections, the forms that translators give them, and what is noted about them in a file.

A note is one line of a comment in a capture file, and the only text that is read back: ``LOCAL > PEER is STATE in
netns N`` or ``… was STATE and is STATE …``, with ``, on the wire as LOCAL > PEER`` for each translated form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import numpy as np
from msgspec import Struct

from finwait.diagnosis.closing import CLOSED
from finwait.table.flows import FlowTable
from finwait.table.sockets import SocketTable, address_text, pack_address
from finwait.table.units import endpoint
from finwait.uapi import tcp
from finwait.uapi.socket_filter import Tuple

__all__ = [
    "CaptureTarget",
    "End",
    "Note",
    "choose",
    "end_text",
    "forms",
    "note",
    "parse_end",
    "read_note",
    "tuple_text",
]


class CaptureTarget(Struct, frozen=True):
    """One connection to capture."""

    netns: int
    ends: Tuple
    """Our end first."""
    state: int
    cookie: int = 0
    inode: int = 0
    forms: tuple[Tuple, ...] = ()
    """The tuple, and what translators make of it; our end first in each."""
    ifindex: int = 0
    """The interface that the socket is bound to; 0 for none."""
    device: str = ""
    """Its name, where it is known."""
    family: int = 0

    @property
    def place(self) -> str:
        """Where its packets are captured."""
        return place_of(self.netns)

    @property
    def scope(self) -> str:
        """The interface that its numbers belong to; empty where they are the namespace's."""
        return (self.device or f"if{self.ifindex}") if self.ifindex else ""

    def __str__(self) -> str:
        return tuple_text(self.ends, self.scope)


def place_of(inode: int) -> str:
    """Return what a namespace is called in capture files."""
    return f"netns {inode}"


def end_text(address: tuple[int, int], port: int, scope: str = "") -> str:
    """Return ``10.0.0.1:80`` or ``[fe80::1%eth0]:80``."""
    return endpoint(address_text(*address) + (f"%{scope}" if scope else ""), port)


def tuple_text(ends: Tuple, scope: str = "") -> str:
    """Return both ends, ours first."""
    return f"{end_text(ends[0], ends[1], scope)} > {end_text(ends[2], ends[3], scope)}"


_END: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)(?:%([^\]\s]+))?\]|([0-9.]+)(?:%([^:\s]+))?):(\d{1,5})")


End = tuple[tuple[int, int], int, str]
"""Address, port, and the interface that they belong to (empty for any)."""


def parse_end(text: str) -> End | None:
    """Return address, port and interface of ``10.0.0.1:80`` or ``[fe80::1%eth0]:80``; None for anything else."""
    match = _END.fullmatch(text)
    if match is None:
        return None
    try:
        address = pack_address(match[1] or match[3])
    except ValueError:
        return None
    return address, int(match[5]), match[2] or match[4] or ""


def forms(ends: Tuple, flows: FlowTable | None) -> tuple[Tuple, ...]:
    """Return a tuple and every form that a conntrack entry says a translator gives it, our end first."""
    if flows is None or not len(flows):
        return (ends,)
    # What answers comes from where the translated packets went: turned round, it is the translated form.
    entries = [
        (orig, (reply[2], reply[3], reply[0], reply[1]))
        for orig, reply in zip(_pairs(flows, "orig"), _pairs(flows, "reply"), strict=True)
    ]
    entries += [tuple((c, d, a, b) for a, b, c, d in entry) for entry in entries]  # type: ignore[misc]
    all_forms = {ends: None}
    grown = True
    while grown:  # a second translator sees what the first made of it
        grown = False
        for entry in entries:
            if any(form in all_forms for form in entry):
                for form in entry:
                    grown = grown or form not in all_forms
                    all_forms[form] = None
    return tuple(all_forms)


def _pairs(flows: FlowTable, way: str) -> list[Tuple]:
    rows = np.flatnonzero(flows["protocol"] == 6)
    src, dst = flows[f"{way}_src"][rows].tolist(), flows[f"{way}_dst"][rows].tolist()
    sport, dport = flows[f"{way}_sport"][rows].tolist(), flows[f"{way}_dport"][rows].tolist()
    return [((a[0], a[1]), p, (b[0], b[1]), q) for a, p, b, q in zip(src, sport, dst, dport, strict=True)]


def choose(sockets: SocketTable, rows: Iterable[int], flows: FlowTable | None) -> list[CaptureTarget]:
    """Return what to capture for rows of a look; listeners have no packets of their own and are left out."""
    chosen = []
    for row in rows:
        if not int(sockets["dport"][row]):
            continue
        src, dst = sockets["src"][row].tolist(), sockets["dst"][row].tolist()
        ends = ((src[0], src[1]), int(sockets["sport"][row]), (dst[0], dst[1]), int(sockets["dport"][row]))
        chosen.append(
            CaptureTarget(
                int(sockets["netns"][row]),
                ends,
                int(sockets["state"][row]),
                int(sockets["cookie"][row]),
                int(sockets["inode"][row]),
                forms(ends, flows),
                int(sockets["ifindex"][row]),
                family=int(sockets["family"][row]),
            )
        )
    return chosen


class Note(Struct, frozen=True):
    """What a line of a comment says."""

    forms: tuple[Tuple, ...]
    state: str
    place: str
    scope: str


def note(target: CaptureTarget, state: str, *, before: str = "", more: str = "") -> str:
    """Return a line for a comment: the state of a connection, and which it was before."""
    change = f"was {before} and is" if before else "is"
    wire = "".join(f", on the wire as {tuple_text(form, target.scope)}" for form in target.forms[1:])
    return f"{target} {change} {state}{more} in {target.place}{wire}"


_NOTE: Final = re.compile(
    r"(?P<mine>\S+) > (?P<peer>\S+) (?:was [A-Z_0-9]+(?: as a minisocket)? and )?"
    r"is (?P<state>[A-Z_0-9]+|gone)\b[^,]*? in (?P<place>netns \d+)(?P<wire>(?:, on the wire as \S+ > \S+)*)"
)
_WIRE: Final = re.compile(r", on the wire as (\S+) > (\S+)")
_STATES: Final = frozenset(tcp.STATES.values())


def read_note(line: str) -> Note | None:
    """Return what a line of a comment says; None when it is no note of ours."""
    match = _NOTE.fullmatch(line) if len(line) < 1000 else None
    if match is None:
        return None
    state = CLOSED if match["state"] == "gone" else match["state"]
    pairs = [(match["mine"], match["peer"]), *_WIRE.findall(match["wire"])]
    ends = [(parse_end(a), parse_end(b)) for a, b in pairs]
    tuples = tuple((a[0], a[1], b[0], b[1]) for a, b in ends if a is not None and b is not None)
    if len(tuples) != len(ends) or (state not in _STATES and state != CLOSED):
        return None
    first = ends[0][0]
    assert first is not None
    return Note(tuples, state, match["place"], first[2])
