"""One end's sequence numbers, as its own segments and the other's ACKs show them.

Theory of operation. A `Sender` keeps the number behind the last byte that was seen, the holes before it, and
the highest ACK. From these follow what a segment is (new, sent again, late, a probe) and whether a RST is one
that the other end takes (RFC 9293 §3.10.7.4, RFC 5961 §3.2). Numbers are compared modulo 2**32.

A segment that fills a hole was either overtaken on its way or sent again because the first copy was lost
before the place of capture. The sender's time stamp tells, or else its IPv4 identification; where both are
silent, so are we (`Nth.EITHER`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from finwait.uapi.segment import ACK, FIN, RST, SYN, Segment

__all__ = ["Nth", "Sender", "Standing", "at_or_behind", "consumed", "standing"]

_MOST_HOLES: Final = 64
_IP_ID_STEP: Final = 4096  # a sender that counts its packets does not jump farther within one window
_WIDEST: Final = 14


class Nth(enum.Enum):
    """What a segment adds to what was seen of its sender."""

    NEW = "new"
    AGAIN = "all of it was here before"
    LATE = "overtaken by others on the way"
    REPAIR = "sent again; the first copy was lost before this place"
    EITHER = "late or sent again"
    PROBE = "one number before the next: it only asks for an ACK"
    NOTHING = "no data"


class Standing(enum.Enum):
    """Whether the other end takes a RST, by its sequence number."""

    EXACT = "the number that is expected"
    WINDOW = "in the window, not the number that is expected: answered with a challenge ACK"
    OUTSIDE = "outside the window: ignored"
    UNKNOWN = "the window is not known"


@dataclass(frozen=True, slots=True)
class _Hole:
    begins: int
    ends: int
    tsval: int | None
    """Of the segment that left it open."""
    ip_id: int | None


@dataclass(slots=True)
class Sender:
    """What one end has been seen to send."""

    packets: int = 0
    isn: int | None = None
    scale: int | None = None
    """Of its window, from its SYN; None when that is not in the capture."""
    highest: int | None = None
    """Behind the last number that it has used: SYN, byte or FIN."""
    next: int | None = None
    """What it would have used next at some time in the capture, by its SYN or a bare ACK: what is beyond was sent after
    that. Data alone does not say so, because all behind what was lost may be sent again."""
    ack: int | None = None
    """The highest that it has acknowledged of the other."""
    window: int = 0
    """As last sent, not scaled."""
    holes: list[_Hole] = field(default_factory=list)

    def take(self, one: Segment) -> Nth:
        """Add a segment (not a RST) of this end, and say what it was."""
        kind = self._kind(one)
        self.packets += 1
        if kind is Nth.NOTHING or one.flags & SYN or self.is_fresh(one):
            ends = (one.seq + consumed(one)) & 0xFFFFFFFF
            if self.next is None or at_or_behind(ends, self.next):
                self.next = ends
        if one.flags & SYN:
            self.isn = one.seq
            self.scale = one.scale if one.scale is not None else 0
        if one.flags & ACK:
            if self.ack is None or at_or_behind(one.ack, self.ack):
                self.ack = one.ack
            self.window = one.window
        length = consumed(one)
        ends = (one.seq + length) & 0xFFFFFFFF
        if kind in (Nth.LATE, Nth.REPAIR, Nth.EITHER):
            self._fill(one.seq, ends)
        if self.highest is None:
            self.highest = ends
        elif not at_or_behind(self.highest, ends):
            if length and not at_or_behind(self.highest, one.seq):
                self._open(self.highest, one)
            self.highest = ends
        return kind

    def is_fresh(self, one: Segment) -> bool:
        """Whether what a segment ends with was first sent while the capture ran; ask before `take`."""
        if self.next is None or not consumed(one):
            return False
        return not at_or_behind(self.next, (one.seq + consumed(one)) & 0xFFFFFFFF)

    def _kind(self, one: Segment) -> Nth:
        length = consumed(one)
        if self.highest is None:
            return Nth.NEW if length else Nth.NOTHING
        if not length:
            return Nth.PROBE if one.seq == (self.highest - 1) & 0xFFFFFFFF else Nth.NOTHING
        ends = (one.seq + length) & 0xFFFFFFFF
        if not at_or_behind(self.highest, ends):
            return Nth.NEW
        for hole in self.holes:
            if at_or_behind(one.seq, hole.begins) and at_or_behind(hole.ends, ends):
                return _late_or_again(one, hole)
        return Nth.AGAIN

    def _open(self, begins: int, one: Segment) -> None:
        self.holes.append(_Hole(begins, one.seq, one.tsval, one.ip_id))
        if len(self.holes) > _MOST_HOLES:
            del self.holes[0]

    def _fill(self, begins: int, ends: int) -> None:
        rest: list[_Hole] = []
        for hole in self.holes:
            if at_or_behind(begins, hole.ends) or at_or_behind(hole.begins, ends):
                rest.append(hole)
                continue
            if not at_or_behind(hole.begins, begins):
                rest.append(_Hole(hole.begins, begins, hole.tsval, hole.ip_id))
            if not at_or_behind(ends, hole.ends):
                rest.append(_Hole(ends, hole.ends, hole.tsval, hole.ip_id))
        self.holes = rest[-_MOST_HOLES:]


def at_or_behind(a: int, b: int) -> bool:
    """Whether sequence number ``a`` is at or behind (later than) ``b``, modulo 2**32."""
    return (a - b) & 0xFFFFFFFF < 0x80000000


def consumed(one: Segment) -> int:
    """Return how many sequence numbers a segment uses."""
    return one.payload + bool(one.flags & SYN) + bool(one.flags & FIN)


def _late_or_again(one: Segment, hole: _Hole) -> Nth:
    if one.tsval is not None and hole.tsval is not None and one.tsval != hole.tsval:
        return Nth.REPAIR if at_or_behind(one.tsval, hole.tsval) else Nth.LATE
    if one.ip_id and hole.ip_id:
        step = (one.ip_id - hole.ip_id) & 0xFFFF
        if 0 < step < _IP_ID_STEP:
            return Nth.REPAIR
        if step > 0x10000 - _IP_ID_STEP:
            return Nth.LATE
    return Nth.EITHER


def standing(one: Segment, sender: Sender, receiver: Sender, *, peer_fin: int | None = None) -> Standing:
    """Return how the receiver takes a RST.

    Args:
        one: the RST.
        sender: what its sender has sent before.
        receiver: what the other end has sent.
        peer_fin: the number behind the sender's FIN, if it has sent one.
    """
    assert one.flags & RST
    low = receiver.ack
    if low is None:
        return _before_an_ack(one, sender, receiver)
    # What is on its way to the receiver may arrive before the RST, so any number up to the last is expected.
    high = sender.highest if sender.highest is not None and at_or_behind(sender.highest, low) else low
    if at_or_behind(one.seq, low) and at_or_behind(high, one.seq):
        return Standing.EXACT
    if peer_fin == low and one.seq == (low - 1) & 0xFFFFFFFF:
        return Standing.EXACT  # Linux takes the number of the FIN too (tcp_reset_check): others send that
    ahead = (one.seq - low) & 0xFFFFFFFF
    if ahead < receiver.window << (receiver.scale or 0):
        return Standing.WINDOW
    if receiver.scale is None and ahead < receiver.window << _WIDEST:
        return Standing.UNKNOWN
    return Standing.OUTSIDE


def _before_an_ack(one: Segment, sender: Sender, receiver: Sender) -> Standing:
    """The receiver has acknowledged nothing that we saw: it is in SYN_SENT, or out of sight."""
    if receiver.isn is not None:
        answers = bool(one.flags & ACK) and one.ack == receiver.highest
        return Standing.EXACT if answers else Standing.OUTSIDE
    return Standing.EXACT if one.seq == sender.highest else Standing.UNKNOWN
