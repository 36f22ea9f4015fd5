"""How a connection closed, told from its packets: who sent FIN, which ACK answered, what never came.

Theory of operation. Each connection has two ends, *a* (who sent the SYN, or is taken for the client) and *b*.
Of each end four things are asked, and each is yes, no or not known: has it sent its FIN, has it received the
ACK of it, has it received the other's FIN, did its own go out before that. From the four follows the state of
its kernel (`possible`, RFC 9293 §3.3.2); what is not known leaves several states.

How the four are found out is `finwait.diagnosis.party`.

What this cannot see: packets that were not captured. "Never came" means "not in this capture": a packet
lost behind the place of capture looks as if it had arrived, one lost before it as if it was never sent.

This module has the values. `finwait.diagnosis.closings` makes them.
"""

from __future__ import annotations

import enum
from typing import Final

from msgspec import Struct

from finwait.diagnosis.stream import ResetStanding
from finwait.uapi import tcp

__all__ = [
    "CLOSED",
    "Arrow",
    "Closing",
    "End",
    "EndFacts",
    "Ending",
    "Kind",
    "Missing",
    "Reset",
    "Side",
    "possible",
    "said_by",
]

End = tuple[tuple[int, int], int]
"""Address and port."""


class Kind(enum.Enum):
    """What an arrow of the diagram is."""

    FIN = "FIN"
    FIN_AGAIN = "FIN again"
    DATA = "data"
    DATA_AGAIN = "data again"
    DATA_LATE = "data, overtaken on the way"
    DATA_REPAIR = "data again, lost before"
    DATA_EITHER = "data, late or sent again"
    KEEPALIVE = "keepalive probe"
    WINDOW_PROBE = "window probe"
    ACK = "ACK"
    RESET = "RST"
    SYN = "SYN with sequence numbers in use"


class Ending(enum.Enum):
    """How it stands at the end of the capture."""

    NOT_OPENED = "not opened"
    OPEN = "open"
    UNSEEN = "no closing seen; the beginning is missing"
    UNANSWERED = "FIN not acknowledged"
    HALF_CLOSED = "half closed"
    HALF_OR_CLOSED = "FIN acknowledged; it is unknown whether the other end had closed before"
    LAST_UNANSWERED = "second FIN not acknowledged"
    UNHEARD = "FIN sent again after its ACK"
    ONE_SIDED = "only one direction captured"
    IN_ORDER = "closed in order"
    REFUSED = "refused"
    RESET = "reset"


class Arrow(Struct, frozen=True):
    """One arrow of the diagram, or several of a kind in a row."""

    time_ns: int
    from_a: bool
    kind: Kind
    flags: int
    count: int = 1
    payload: int = 0
    """Bytes of data in them."""
    acks_fin: bool = False
    """Whether it acknowledges the other end's FIN (and is the first to do so since it was sent)."""
    number: int = 0
    """Of a FIN: how often it had been sent then."""
    last_ns: int = 0
    """Of several: the time of the last."""
    standing: ResetStanding | None = None
    """Of a RST."""
    late: bool = False
    """Of a RST: its receiver was done already."""


class EndFacts(Struct, frozen=True):
    """What is known of one end: yes, no, or None."""

    sent: bool | None
    acked: bool | None
    received: bool | None
    first: bool | None
    """Its FIN went out before the other's arrived."""


_STATES: Final = {
    # sent, acked, received, first
    (False, False, False, False): tcp.ESTABLISHED,
    (False, False, True, False): tcp.CLOSE_WAIT,
    (True, False, False, True): tcp.FIN_WAIT1,
    (True, True, False, True): tcp.FIN_WAIT2,
    (True, False, True, True): tcp.CLOSING,
    (True, True, True, True): tcp.TIME_WAIT,
    (True, False, True, False): tcp.LAST_ACK,
    (True, True, True, False): tcp.CLOSE,
}
CLOSED: Final = "CLOSED"
_NAMES: Final = {number: tcp.state_name(number) for number in _STATES.values()} | {tcp.CLOSE: CLOSED}
_FACTS: Final = {_NAMES[number]: EndFacts(*key) for key, number in _STATES.items() if number != tcp.CLOSE}
"""What the state of a kernel says of that end."""


def possible(facts: EndFacts) -> tuple[str, ...]:
    """Return the states that an end may be in, in the order of a closing."""
    known = (facts.sent, facts.acked, facts.received, facts.first)
    states = []
    for key, number in _STATES.items():
        sent, _, received, _ = key
        asked = (True, sent, True, sent and received)  # what has no meaning in a state is not asked
        if all(
            not ask or fact is None or fact == value
            for fact, value, ask in zip(known, key, asked, strict=True)
        ):
            states.append(_NAMES[number])
    return tuple(states)


def said_by(state: str) -> EndFacts:
    """Return what the state of a kernel says of that end."""
    return _FACTS.get(state, EndFacts(None, None, None, None))


class Missing(Struct, frozen=True):
    """Something that would have come next."""

    what: Kind
    """`Kind.FIN`, or `Kind.ACK` of a FIN."""
    from_a: bool
    """Who would have sent it."""


class Reset(Struct, frozen=True):
    """A RST that ended something, as far as the capture shows."""

    time_ns: int
    from_a: bool
    standing: ResetStanding
    answers: bool
    """Without ACK bit: how a kernel answers a packet of which it wants no more (RFC 9293 §3.10.7.1)."""
    late: bool = False
    """Its receiver was done already."""


class Side(Struct, frozen=True):
    """One end at the end of the capture."""

    end: End
    states: tuple[str, ...]
    """The states that its kernel may be in."""
    kernel: str
    """What its own kernel said after the last packet; empty when it was not asked then."""
    began: str
    """What its own kernel said first."""
    facts: EndFacts
    packets: int
    fins: int
    fin_ns: int
    """Of the first FIN that is in the capture; 0 for none."""
    acked_ns: int
    unheard: int
    """How often it sent something again that had been acknowledged here."""
    stopped: bool
    """It sent its FIN several times, and has been silent for longer than it would have waited."""
    late_bytes: int
    """Sent after the other end's FIN."""
    window_closed: bool
    """Its receive window, as last announced, is 0."""
    probes: int


class Closing(Struct, frozen=True):
    """How one connection closed, as far as the capture shows."""

    a: Side
    b: Side
    opened: bool
    """Whether the SYN is in the capture, so that *a* is the client for certain."""
    place: str
    scope: str
    """The interface that the numbers belong to; empty where they are those of the whole namespace."""
    outcome: Ending
    a_first: bool | None
    """Which end closed first."""
    reset: Reset | None
    ignored: tuple[Reset, ...]
    """RSTs that ended nothing, one of each kind."""
    missing: tuple[Missing, ...]
    """What never came; empty when the closing is complete, or what came before the capture is not known."""
    steps: tuple[Arrow, ...]
    left_out: int
    """Steps in the middle that were not kept."""
    packets: int
    copies: int
    """Packets seen again on another interface, and not counted."""
    last_ns: int
    marks: frozenset[tuple[int, ...]] = frozenset()
    """Of the first and the last packets, by which the connection is recognised elsewhere."""
