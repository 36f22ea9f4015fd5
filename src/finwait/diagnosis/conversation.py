"""One captured connection, segment by segment: what each end has sent, and the arrows of its diagram.

A copy of a packet on a second interface (a bridge and its port) is recognised and counted once. Memory is bounded:
the first and the last arrows are kept, and those between are counted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from finwait.diagnosis.closing import CLOSED, Arrow, End, Kind, Reset, possible
from finwait.diagnosis.party import Party, facts_of, has_sent
from finwait.diagnosis.stream import Nth, ResetStanding, at_or_behind, consumed, standing
from finwait.uapi.segment import ACK, FIN, RST, SYN, Segment

__all__ = ["Conversation", "add", "is_copy", "take"]

_COPY_NS: Final = 2_000_000  # a bridge hands a packet on within microseconds; the quickest RTO is 200 ms
_KEPT_STEPS: Final = 40
_KEPT_MARKS: Final = 8
_RECENT: Final = 32
_MERGED: Final = frozenset(Kind) - {Kind.FIN, Kind.ACK, Kind.SYN}
_DATA: Final = {
    Nth.NEW: Kind.DATA,
    Nth.AGAIN: Kind.DATA_AGAIN,
    Nth.LATE: Kind.DATA_LATE,
    Nth.REPAIR: Kind.DATA_REPAIR,
    Nth.EITHER: Kind.DATA_EITHER,
}


class Conversation(Struct):
    """What is kept of a connection."""

    a: End
    b: End
    place: str
    scope: str
    opened: bool = False
    ends: tuple[Party, Party] = field(default_factory=lambda: (Party(), Party()))
    first: list[Arrow] = field(default_factory=list)
    last: deque[Arrow] = field(default_factory=lambda: deque(maxlen=_KEPT_STEPS))
    left_out: int = 0
    recent: OrderedDict[tuple[object, ...], tuple[int, str]] = field(default_factory=OrderedDict)
    marks: dict[tuple[int, ...], None] = field(default_factory=dict)
    resets: list[tuple[Reset, int]] = field(default_factory=list)
    """Those that may have ended something, with their sequence numbers; the first and the last of each end."""
    ignored: dict[tuple[bool, ResetStanding], Reset] = field(default_factory=dict)
    again: Segment | None = None
    """A SYN on numbers that are in use, which a SYN,ACK may answer."""
    packets: int = 0
    copies: int = 0
    last_ns: int = 0


def is_copy(c: Conversation, segment: Segment, *, from_a: bool) -> bool:
    """Whether this packet was seen a moment ago, on its way through another interface.

    Nothing is sent again so soon. Bare ACKs are: those of the same interface count unless their IPv4
    identification shows that they are one packet (a mirrored port).
    """
    mark = (
        from_a,
        segment.seq,
        segment.ack,
        segment.flags,
        segment.payload,
        segment.window,
        segment.ip_id,
        segment.tsval,
    )
    before = c.recent.pop(mark, None)
    c.recent[mark] = (segment.time_ns, segment.interface)
    if len(c.recent) > _RECENT:
        c.recent.popitem(last=False)
    if before is None or abs(segment.time_ns - before[0]) > _COPY_NS:
        return False
    if before[1] == segment.interface and not (segment.ip_id or consumed(segment)):
        return False
    c.copies += 1
    return True


def take(c: Conversation, segment: Segment, *, from_a: bool) -> None:
    """Add a segment that is no copy."""
    sender, peer = c.ends if from_a else c.ends[::-1]
    c.packets += 1
    c.last_ns = max(c.last_ns, segment.time_ns)
    _mark(c, segment, from_a)
    if segment.flags & RST:
        _reset(c, segment, from_a)
        return
    fresh = sender.stream.is_fresh(segment)
    nth = sender.stream.take(segment)
    sender.any_ns = segment.time_ns
    if segment.flags & SYN and not segment.flags & ACK:
        c.opened = True
    step = None
    if segment.flags & FIN:
        step = _fin(sender, segment, from_a, fresh)
    elif segment.payload:
        step = _data(c, segment, from_a, nth, fresh)
    elif nth is Nth.PROBE:
        sender.probes += 1
        starved = peer.stream.ack is not None and not peer.stream.window
        step = Arrow(segment.time_ns, from_a, Kind.WINDOW_PROBE if starved else Kind.KEEPALIVE, segment.flags)
    if segment.flags & (FIN | SYN) or segment.payload:
        sender.active_ns = segment.time_ns
    if segment.flags & ACK and peer.fin is not None and at_or_behind(segment.ack, peer.fin):
        step = _ack(peer, segment, from_a, step)
    if step is not None:
        add(c, step)


def _mark(c: Conversation, segment: Segment, from_a: bool) -> None:
    """Remember the first and the last packets by what no translator changes."""
    if not segment.flags & ACK or not segment.ack:
        return
    mark = (
        from_a,
        segment.seq,
        segment.ack,
        segment.flags,
        segment.payload,
        -1 if segment.tsval is None else segment.tsval,
    )
    if mark in c.marks:
        return
    if len(c.marks) >= 2 * _KEPT_MARKS:
        del c.marks[next(k for n, k in enumerate(c.marks) if n == _KEPT_MARKS)]
    c.marks[mark] = None


def _fin(sender: Party, segment: Segment, from_a: bool, fresh: bool) -> Arrow:
    sender.fins += 1
    if sender.fin is None:
        sender.fin = (segment.seq + consumed(segment)) & 0xFFFFFFFF
        sender.fin_new = fresh
        sender.fin_ns, sender.fin_ack = segment.time_ns, segment.ack
        kind = Kind.FIN
    else:
        sender.fin_gap_ns = segment.time_ns - sender.fin_last_ns
        sender.unheard += bool(sender.acked_ns)
        kind = Kind.FIN_AGAIN
    sender.fin_last_ns = segment.time_ns
    return Arrow(
        segment.time_ns,
        from_a,
        kind,
        segment.flags,
        payload=segment.payload,
        number=sender.fins,
        last_ns=segment.time_ns,
    )


def _data(c: Conversation, segment: Segment, from_a: bool, nth: Nth, fresh: bool) -> Arrow | None:
    sender, peer = c.ends if from_a else c.ends[::-1]
    if fresh:
        sender.new_ns = segment.time_ns
    if nth is Nth.NEW and has_sent(peer):
        sender.late_bytes += segment.payload
    if nth is not Nth.NEW and sender.acked_ns:
        sender.unheard += 1
    if not (has_sent(sender) or has_sent(peer)):
        return None
    return Arrow(segment.time_ns, from_a, _DATA.get(nth, Kind.DATA), segment.flags, payload=segment.payload)


def _ack(peer: Party, segment: Segment, from_a: bool, step: Arrow | None) -> Arrow | None:
    """Note that the peer's FIN is acknowledged; the first time since it was sent, the arrow says so."""
    first = peer.acked_last_ns <= peer.fin_last_ns or not peer.acked_ns
    peer.acked_ns = peer.acked_ns or segment.time_ns
    peer.acked_last_ns = max(segment.time_ns, peer.acked_last_ns)
    if not first:
        return step
    if step is not None:
        return replace(step, acks_fin=True)
    return Arrow(segment.time_ns, from_a, Kind.ACK, segment.flags, acks_fin=True)


def _reset(c: Conversation, segment: Segment, from_a: bool) -> None:
    sender, peer = c.ends if from_a else c.ends[::-1]
    reset_standing = standing(segment, sender.stream, peer.stream, peer_fin=sender.fin)
    late = set(possible(facts_of(peer, sender, 0))) <= {CLOSED, "TIME_WAIT"}
    reset = Reset(segment.time_ns, from_a, reset_standing, not segment.flags & ACK, late)
    add(
        c,
        Arrow(
            segment.time_ns,
            from_a,
            Kind.RESET,
            segment.flags,
            standing=reset_standing,
            late=late,
            last_ns=segment.time_ns,
        ),
    )
    if late or reset_standing in (ResetStanding.OUTSIDE, ResetStanding.WINDOW):
        c.ignored.setdefault((from_a, reset_standing), reset)
        return
    same_side = [k for k, (other, _) in enumerate(c.resets) if other.from_a == from_a]
    if len(same_side) > 1:
        del c.resets[same_side[-1]]
    c.resets.append((reset, segment.seq))


def add(c: Conversation, step: Arrow) -> None:
    """Add an arrow, or lengthen the last one if it is of the same kind and direction."""
    kept = c.last or c.first
    last = kept[-1] if kept else None
    if (
        last is not None
        and step.kind in _MERGED
        and (last.from_a, last.kind, last.standing, last.late)
        == (step.from_a, step.kind, step.standing, step.late)
        and not step.acks_fin
    ):
        kept[-1] = replace(
            last, count=last.count + 1, payload=last.payload + step.payload, last_ns=step.time_ns,
            number=step.number,
        )  # fmt: skip
        return
    if len(c.first) < _KEPT_STEPS:
        c.first.append(step)
        return
    c.left_out += len(c.last) == _KEPT_STEPS
    c.last.append(step)
