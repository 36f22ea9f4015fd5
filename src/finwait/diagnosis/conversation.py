"""One captured connection, segment by segment: what each end has sent, and the arrows of its diagram.

A copy of a packet on a second interface (a bridge and its port) is recognised and counted once. Memory is bounded:
the first and the last arrows are kept, and those between are counted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from typing import Final

from finwait.diagnosis.closing import CLOSED, End, Kind, Reset, Step, possible
from finwait.diagnosis.party import Party, facts_of, has_sent
from finwait.diagnosis.stream import Nth, Standing, at_or_behind, consumed, standing
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


@dataclass(slots=True)
class Conversation:
    """What is kept of a connection."""

    a: End
    b: End
    place: str
    scope: str
    opened: bool = False
    ends: tuple[Party, Party] = field(default_factory=lambda: (Party(), Party()))
    first: list[Step] = field(default_factory=list)
    last: deque[Step] = field(default_factory=lambda: deque(maxlen=_KEPT_STEPS))
    left_out: int = 0
    recent: OrderedDict[tuple[object, ...], tuple[int, str]] = field(default_factory=OrderedDict)
    marks: dict[tuple[int, ...], None] = field(default_factory=dict)
    resets: list[tuple[Reset, int]] = field(default_factory=list)
    """Those that may have ended something, with their sequence numbers; the first and the last of each end."""
    ignored: dict[tuple[bool, Standing], Reset] = field(default_factory=dict)
    again: Segment | None = None
    """A SYN on numbers that are in use, which a SYN,ACK may answer."""
    packets: int = 0
    copies: int = 0
    last_ns: int = 0


def is_copy(c: Conversation, one: Segment, *, from_a: bool) -> bool:
    """Whether this packet was seen a moment ago, on its way through another interface.

    Nothing is sent again so soon. Bare ACKs are: those of the same interface count unless their IPv4
    identification shows that they are one packet (a mirrored port).
    """
    mark = (from_a, one.seq, one.ack, one.flags, one.payload, one.window, one.ip_id, one.tsval)
    before = c.recent.pop(mark, None)
    c.recent[mark] = (one.time_ns, one.interface)
    if len(c.recent) > _RECENT:
        c.recent.popitem(last=False)
    if before is None or abs(one.time_ns - before[0]) > _COPY_NS:
        return False
    if before[1] == one.interface and not (one.ip_id or consumed(one)):
        return False
    c.copies += 1
    return True


def take(c: Conversation, one: Segment, *, from_a: bool) -> None:
    """Add a segment that is no copy."""
    me, peer = c.ends if from_a else c.ends[::-1]
    c.packets += 1
    c.last_ns = max(c.last_ns, one.time_ns)
    _mark(c, one, from_a)
    if one.flags & RST:
        _reset(c, one, from_a)
        return
    fresh = me.stream.is_fresh(one)
    nth = me.stream.take(one)
    me.any_ns = one.time_ns
    if one.flags & SYN and not one.flags & ACK:
        c.opened = True
    step = None
    if one.flags & FIN:
        step = _fin(me, one, from_a, fresh)
    elif one.payload:
        step = _data(c, one, from_a, nth, fresh)
    elif nth is Nth.PROBE:
        me.probes += 1
        starved = peer.stream.ack is not None and not peer.stream.window
        step = Step(one.time_ns, from_a, Kind.WINDOW_PROBE if starved else Kind.KEEPALIVE, one.flags)
    if one.flags & (FIN | SYN) or one.payload:
        me.active_ns = one.time_ns
    if one.flags & ACK and peer.fin is not None and at_or_behind(one.ack, peer.fin):
        step = _ack(peer, one, from_a, step)
    if step is not None:
        add(c, step)


def _mark(c: Conversation, one: Segment, from_a: bool) -> None:
    """Remember the first and the last packets by what no translator changes."""
    if not one.flags & ACK or not one.ack:
        return
    mark = (from_a, one.seq, one.ack, one.flags, one.payload, -1 if one.tsval is None else one.tsval)
    if mark in c.marks:
        return
    if len(c.marks) >= 2 * _KEPT_MARKS:
        del c.marks[next(k for n, k in enumerate(c.marks) if n == _KEPT_MARKS)]
    c.marks[mark] = None


def _fin(me: Party, one: Segment, from_a: bool, fresh: bool) -> Step:
    me.fins += 1
    if me.fin is None:
        me.fin = (one.seq + consumed(one)) & 0xFFFFFFFF
        me.fin_new = fresh
        me.fin_ns, me.fin_ack = one.time_ns, one.ack
        kind = Kind.FIN
    else:
        me.fin_gap_ns = one.time_ns - me.fin_last_ns
        me.unheard += bool(me.acked_ns)
        kind = Kind.FIN_AGAIN
    me.fin_last_ns = one.time_ns
    return Step(
        one.time_ns, from_a, kind, one.flags, payload=one.payload, number=me.fins, last_ns=one.time_ns
    )


def _data(c: Conversation, one: Segment, from_a: bool, nth: Nth, fresh: bool) -> Step | None:
    me, peer = c.ends if from_a else c.ends[::-1]
    if fresh:
        me.new_ns = one.time_ns
    if nth is Nth.NEW and has_sent(peer):
        me.late_bytes += one.payload
    if nth is not Nth.NEW and me.acked_ns:
        me.unheard += 1
    if not (has_sent(me) or has_sent(peer)):
        return None
    return Step(one.time_ns, from_a, _DATA.get(nth, Kind.DATA), one.flags, payload=one.payload)


def _ack(peer: Party, one: Segment, from_a: bool, step: Step | None) -> Step | None:
    """Note that the peer's FIN is acknowledged; the first time since it was sent, the arrow says so."""
    first = peer.acked_last_ns <= peer.fin_last_ns or not peer.acked_ns
    peer.acked_ns = peer.acked_ns or one.time_ns
    peer.acked_last_ns = max(one.time_ns, peer.acked_last_ns)
    if not first:
        return step
    if step is not None:
        return replace(step, acks_fin=True)
    return Step(one.time_ns, from_a, Kind.ACK, one.flags, acks_fin=True)


def _reset(c: Conversation, one: Segment, from_a: bool) -> None:
    me, peer = c.ends if from_a else c.ends[::-1]
    how = standing(one, me.stream, peer.stream, peer_fin=me.fin)
    late = set(possible(facts_of(peer, me, 0))) <= {CLOSED, "TIME_WAIT"}
    reset = Reset(one.time_ns, from_a, how, not one.flags & ACK, late)
    add(
        c,
        Step(one.time_ns, from_a, Kind.RESET, one.flags, standing=how, late=late, last_ns=one.time_ns),
    )
    if late or how in (Standing.OUTSIDE, Standing.WINDOW):
        c.ignored.setdefault((from_a, how), reset)
        return
    mine = [k for k, (other, _) in enumerate(c.resets) if other.from_a == from_a]
    if len(mine) > 1:
        del c.resets[mine[-1]]
    c.resets.append((reset, one.seq))


def add(c: Conversation, step: Step) -> None:
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
