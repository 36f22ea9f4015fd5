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
from typing import Final

from msgspec import Struct, field

from finwait.uapi.segment import ACK, FIN, RST, SYN, Segment

__all__ = ["Nth", "ResetStanding", "Sender", "at_or_behind", "consumed", "standing"]

_MOST_HOLES: Final = 64
_IP_ID_STEP: Final = 4096  # a sender that counts its packets does not jump farther within one window
_WIDEST: Final = 14


class Nth(enum.Enum):
    """What a segment adds to what was seen of its sender."""

    NEW = "new"
    AGAIN = "all of it has arrived before"
    LATE = "overtaken by other packets on the way"
    REPAIR = "sent again; the first copy was lost before it got here"
    EITHER = "late or sent again"
    PROBE = "one number before the next one; it only asks for an ACK"
    NOTHING = "no data"


class ResetStanding(enum.Enum):
    """Whether the other end takes a RST, by its sequence number."""

    EXACT = "the expected number"
    WINDOW = "inside the window, but not the expected number: answered with a challenge ACK"
    OUTSIDE = "outside the window: ignored"
    UNKNOWN = "the window is unknown"


class _Hole(Struct, frozen=True):
    begins: int
    ends: int
    tsval: int | None
    """Of the segment that left it open."""
    ip_id: int | None


class Sender(Struct):
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

    def take(self, segment: Segment) -> Nth:
        """Add a segment (not a RST) of this end, and say what it was."""
        kind = self._kind(segment)
        self.packets += 1
        if kind is Nth.NOTHING or segment.flags & SYN or self.is_fresh(segment):
            ends = (segment.seq + consumed(segment)) & 0xFFFFFFFF
            if self.next is None or at_or_behind(ends, self.next):
                self.next = ends
        if segment.flags & SYN:
            self.isn = segment.seq
            self.scale = segment.scale if segment.scale is not None else 0
        if segment.flags & ACK:
            if self.ack is None or at_or_behind(segment.ack, self.ack):
                self.ack = segment.ack
            self.window = segment.window
        length = consumed(segment)
        ends = (segment.seq + length) & 0xFFFFFFFF
        if kind in (Nth.LATE, Nth.REPAIR, Nth.EITHER):
            self._fill(segment.seq, ends)
        if self.highest is None:
            self.highest = ends
        elif not at_or_behind(self.highest, ends):
            if length and not at_or_behind(self.highest, segment.seq):
                self._open(self.highest, segment)
            self.highest = ends
        return kind

    def is_fresh(self, segment: Segment) -> bool:
        """Whether what a segment ends with was first sent while the capture ran; ask before `take`."""
        if self.next is None or not consumed(segment):
            return False
        return not at_or_behind(self.next, (segment.seq + consumed(segment)) & 0xFFFFFFFF)

    def _kind(self, segment: Segment) -> Nth:
        length = consumed(segment)
        if self.highest is None:
            return Nth.NEW if length else Nth.NOTHING
        if not length:
            return Nth.PROBE if segment.seq == (self.highest - 1) & 0xFFFFFFFF else Nth.NOTHING
        ends = (segment.seq + length) & 0xFFFFFFFF
        if not at_or_behind(self.highest, ends):
            return Nth.NEW
        for hole in self.holes:
            if at_or_behind(segment.seq, hole.begins) and at_or_behind(hole.ends, ends):
                return _late_or_again(segment, hole)
        return Nth.AGAIN

    def _open(self, begins: int, segment: Segment) -> None:
        self.holes.append(_Hole(begins, segment.seq, segment.tsval, segment.ip_id))
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


def consumed(segment: Segment) -> int:
    """Return how many sequence numbers a segment uses."""
    return segment.payload + bool(segment.flags & SYN) + bool(segment.flags & FIN)


def _late_or_again(segment: Segment, hole: _Hole) -> Nth:
    if segment.tsval is not None and hole.tsval is not None and segment.tsval != hole.tsval:
        return Nth.REPAIR if at_or_behind(segment.tsval, hole.tsval) else Nth.LATE
    if segment.ip_id and hole.ip_id:
        step = (segment.ip_id - hole.ip_id) & 0xFFFF
        if 0 < step < _IP_ID_STEP:
            return Nth.REPAIR
        if step > 0x10000 - _IP_ID_STEP:
            return Nth.LATE
    return Nth.EITHER


def standing(
    segment: Segment, sender: Sender, receiver: Sender, *, peer_fin: int | None = None
) -> ResetStanding:
    """Return how the receiver takes a RST.

    Args:
        segment: the RST.
        sender: what its sender has sent before.
        receiver: what the other end has sent.
        peer_fin: the number behind the sender's FIN, if it has sent one.
    """
    assert segment.flags & RST
    low = receiver.ack
    if low is None:
        return _before_an_ack(segment, sender, receiver)
    # What is on its way to the receiver may arrive before the RST, so any number up to the last is expected.
    high = sender.highest if sender.highest is not None and at_or_behind(sender.highest, low) else low
    if at_or_behind(segment.seq, low) and at_or_behind(high, segment.seq):
        return ResetStanding.EXACT
    if peer_fin == low and segment.seq == (low - 1) & 0xFFFFFFFF:
        return (
            ResetStanding.EXACT
        )  # Linux takes the number of the FIN too (tcp_reset_check): others send that
    ahead = (segment.seq - low) & 0xFFFFFFFF
    if ahead < receiver.window << (receiver.scale or 0):
        return ResetStanding.WINDOW
    if receiver.scale is None and ahead < receiver.window << _WIDEST:
        return ResetStanding.UNKNOWN
    return ResetStanding.OUTSIDE


def _before_an_ack(segment: Segment, sender: Sender, receiver: Sender) -> ResetStanding:
    """The receiver has acknowledged nothing that we saw: it is in SYN_SENT, or out of sight."""
    if receiver.isn is not None:
        answers = bool(segment.flags & ACK) and segment.ack == receiver.highest
        return ResetStanding.EXACT if answers else ResetStanding.OUTSIDE
    return ResetStanding.EXACT if segment.seq == sender.highest else ResetStanding.UNKNOWN
