"""How a connection closed, told from its packets: who sent FIN, which ACK answered, what never came.

Theory of operation. Each connection has two ends, *a* (who sent the SYN, or is taken for the client) and *b*.
Of each end four things are asked, and each is yes, no or not known: has it sent its FIN, has it received the
ACK of it, has it received the other's FIN, did its own go out before that. From the four follows the state of
its kernel (`possible`, RFC 9293 §3.3.2); what is not known leaves several states.

What may be concluded from packets that are there and from packets that are not:

=====================================  ======================================================================
a FIN of X is here                     X has sent it
a SYN or new data of X is here         X had not sent its FIN before that
neither                                it may have been sent before the capture began: not known
an ACK of X covers the FIN of Y        X has received it
an ACK covers the FIN of X             X has received that ACK, unless X sends the FIN again after it: once
                                       may be a crossing on the way, twice is an ACK that does not arrive
X acknowledges a FIN whose ACK         X has received the ACK of its own FIN
covers its own
the first FIN of X does not cover      X closed first, or both at once; if it covers and was the first
the FIN of Y                           sending, Y closed first
X falls silent for four times the      X has stopped: it was heard at last, or gave up
last interval between its FINs
a RST outside the window, or late      ended nothing (RFC 5961)
X goes on sending after a RST to it    X did not take it
what X's own kernel says               is so, whatever the packets look like
=====================================  ======================================================================

What this cannot see: packets that were not captured. "Never came" means "not in this capture": a packet
lost behind the place of capture looks as if it had arrived, one lost before it as if it was never sent. A
copy of a packet on a second interface (a bridge and its port) is recognised and counted once.

Memory is bounded: of each connection the first and the last steps are kept, and of all connections those
that had packets last. What was left out is counted.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from finwait.diagnosis.stream import Nth, Sender, Standing, at_or_behind, consumed, standing
from finwait.uapi import tcp
from finwait.uapi.segment import ACK, FIN, RST, SYN, Segment
from finwait.uapi.socket_filter import Tuple

__all__ = [
    "Closing",
    "Closings",
    "Facts",
    "Kind",
    "Missing",
    "Outcome",
    "Reset",
    "Side",
    "Step",
    "closings",
    "possible",
]

End = tuple[tuple[int, int], int]
"""Address and port."""

_COPY_NS: Final = 2_000_000  # a bridge hands a packet on within microseconds; the quickest RTO is 200 ms
_GONE_ON_NS: Final = 1_000_000_000  # longer than a packet is on its way: what is sent later knows of the RST
_STOPPED: Final = 4  # retransmission intervals double; after four of the last the next is long overdue
_KEPT_STEPS: Final = 200
_KEPT_MARKS: Final = 32
_RECENT: Final = 64


class Kind(enum.Enum):
    """What an arrow of the diagram is."""

    FIN = "FIN"
    FIN_AGAIN = "FIN again"
    DATA = "data"
    DATA_AGAIN = "data again"
    DATA_LATE = "data, overtaken on the way"
    DATA_REPAIR = "data again, lost before"
    DATA_EITHER = "data, late or again"
    KEEPALIVE = "keepalive probe"
    WINDOW_PROBE = "window probe"
    ACK = "ACK"
    RESET = "RST"
    SYN = "SYN on numbers in use"


_MERGED: Final = frozenset(Kind) - {Kind.FIN, Kind.ACK, Kind.SYN}
_DATA: Final = {
    Nth.NEW: Kind.DATA,
    Nth.AGAIN: Kind.DATA_AGAIN,
    Nth.LATE: Kind.DATA_LATE,
    Nth.REPAIR: Kind.DATA_REPAIR,
    Nth.EITHER: Kind.DATA_EITHER,
}


class Outcome(enum.Enum):
    """How it stands at the end of the capture."""

    NOT_OPENED = "not opened"
    OPEN = "open"
    UNSEEN = "no closing seen, and the begin is missing"
    UNANSWERED = "FIN not acknowledged"
    HALF_CLOSED = "half closed"
    HALF_OR_CLOSED = "FIN acknowledged; whether the other end had closed before is not known"
    LAST_UNANSWERED = "second FIN not acknowledged"
    UNHEARD = "FIN sent again after its ACK"
    ONE_SIDED = "only one direction captured"
    IN_ORDER = "closed in order"
    REFUSED = "refused"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Step:
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
    standing: Standing | None = None
    """Of a RST."""
    late: bool = False
    """Of a RST: its receiver was done already."""


@dataclass(frozen=True, slots=True)
class Facts:
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
_NAMES: Final = {number: tcp.STATES[number] for number in _STATES.values()} | {tcp.CLOSE: CLOSED}
_FACTS: Final = {_NAMES[number]: Facts(*key) for key, number in _STATES.items() if number != tcp.CLOSE}
"""What the state of a kernel says of that end."""


def possible(facts: Facts) -> tuple[str, ...]:
    """Return the states that an end may be in, in the order of a closing."""
    known = (facts.sent, facts.acked, facts.received, facts.first)
    found = []
    for key, number in _STATES.items():
        sent, _, received, _ = key
        asked = (True, sent, True, sent and received)  # what has no meaning in a state is not asked
        if all(
            not ask or fact is None or fact == value
            for fact, value, ask in zip(known, key, asked, strict=True)
        ):
            found.append(_NAMES[number])
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that would have come next."""

    what: Kind
    """`Kind.FIN`, or `Kind.ACK` of a FIN."""
    from_a: bool
    """Who would have sent it."""


@dataclass(frozen=True, slots=True)
class Reset:
    """A RST that ended something, as far as the capture shows."""

    time_ns: int
    from_a: bool
    standing: Standing
    answers: bool
    """Without ACK bit: how a kernel answers a packet of which it wants no more (RFC 9293 §3.10.7.1)."""
    late: bool = False
    """Its receiver was done already."""


@dataclass(frozen=True, slots=True)
class Side:
    """One end at the end of the capture."""

    end: End
    states: tuple[str, ...]
    """The states that its kernel may be in."""
    kernel: str
    """What its own kernel said after the last packet; empty when it was not asked then."""
    began: str
    """What its own kernel said first."""
    facts: Facts
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


@dataclass(frozen=True, slots=True)
class Closing:
    """How one connection closed, as far as the capture shows."""

    a: Side
    b: Side
    opened: bool
    """Whether the SYN is in the capture, so that *a* is the client for certain."""
    place: str
    scope: str
    """The interface that the numbers belong to; empty where they are those of the whole namespace."""
    outcome: Outcome
    a_first: bool | None
    """Which end closed first."""
    reset: Reset | None
    ignored: tuple[Reset, ...]
    """RSTs that ended nothing, one of each kind."""
    missing: tuple[Missing, ...]
    """What never came; empty when the closing is complete, or what came before the capture is not known."""
    steps: tuple[Step, ...]
    left_out: int
    """Steps in the middle that were not kept."""
    packets: int
    copies: int
    """Packets seen again on another interface, and not counted."""
    last_ns: int
    marks: frozenset[tuple[int, ...]] = frozenset()
    """Of the first and the last packets, by which the connection is recognised elsewhere."""


@dataclass(slots=True)
class _End:
    """What one end has sent, and what its kernel said."""

    stream: Sender = field(default_factory=Sender)
    fin: int | None = None
    """Sequence number behind its FIN."""
    fin_new: bool = False
    """The first sending of the FIN is in the capture."""
    fin_ack: int = 0
    """What the first FIN acknowledged."""
    fin_ns: int = 0
    fin_last_ns: int = 0
    fin_gap_ns: int = 0
    fins: int = 0
    acked_ns: int = 0
    acked_last_ns: int = 0
    unheard: int = 0
    new_ns: int = 0
    """When it last sent new data, so had not sent its FIN."""
    late_bytes: int = 0
    probes: int = 0
    active_ns: int = 0
    """When it last sent anything but a RST or a bare ACK."""
    any_ns: int = 0
    """When it last sent anything but a RST."""
    stated: _Stated | None = None


@dataclass(slots=True)
class _Stated:
    """What the kernel of an end said of it, first and last."""

    forms: tuple[Tuple, ...]
    place: str
    scope: str
    began: str
    began_ns: int
    last: str
    last_ns: int
    final: str = ""
    """What it said last, if no packet came after that."""
    seen: bool = False


@dataclass(slots=True)
class _Connection:
    a: End
    b: End
    place: str
    scope: str
    opened: bool = False
    ends: tuple[_End, _End] = field(default_factory=lambda: (_End(), _End()))
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


def closings(segments: Iterable[Segment]) -> Iterator[Closing]:
    """Tell of every connection in the packets; connections come in the order of their last packet."""
    book = Closings()
    for one in segments:
        book.feed(one)
    yield from book.told()


class Closings:
    """Every connection in a stream of packets, told at any time.

    A SYN on numbers that were used before begins another connection.

    Args:
        most: connections to remember; of more, those without packets for the longest time are given up.
    """

    def __init__(self, most: int = 20_000) -> None:
        self._most = most
        self._live: OrderedDict[tuple[object, ...], _Connection] = OrderedDict()
        self._over: deque[_Connection] = deque()
        self._stated: dict[tuple[object, ...], dict[End, _Stated]] = {}
        self.given_up = 0
        """Connections that were not remembered."""

    def feed(self, one: Segment, scope: str | None = None) -> None:
        """Take one segment.

        Args:
            one: the segment; those of a connection come in the order of time.
            scope: the interface that the numbers belong to; by default that of link-local addresses.
        """
        me, peer = (one.src, one.sport), (one.dst, one.dport)
        if scope is None:
            scope = one.interface if _link_local(one.src) or _link_local(one.dst) else ""
        key = (one.place, scope, *((me, peer) if me <= peer else (peer, me)))
        found = self._live.get(key)
        opens = one.flags & (SYN | ACK) == SYN
        pending = None
        if found is not None:
            self._live.move_to_end(key)
            if opens and _ended(found):
                self._end(key)
                found = None
            elif opens and _other_numbers(found, one, from_a=me == found.a):
                found.again = one
                _add(found, Step(one.time_ns, me == found.a, Kind.SYN, one.flags))
                return
            elif found.again is not None and _answers(one, found.again):
                pending = found.again
                self._end(key)
                found = None
        if found is None:
            # Without a SYN the lower port is taken for the server's: only the layout depends on it.
            swap = pending is not None or (not opens and (bool(one.flags & SYN) or one.sport < one.dport))
            a, b = (peer, me) if swap else (me, peer)
            found = self._begin(key, _Connection(a, b, one.place, scope))
        if pending is not None:
            _feed(found, pending, from_a=True)
        from_a = me == found.a
        if not _is_copy(found, one, from_a=from_a):
            _feed(found, one, from_a=from_a)

    def state(
        self, forms: Sequence[Tuple], state: str, time_ns: int, *, place: str = "", scope: str = ""
    ) -> None:
        """Take what the kernel of an end says: the first time as the state before all packets.

        Args:
            forms: the connection as that end has it, and as translators make it; its own end first.
            state: ``FIN_WAIT2``, or `CLOSED` for a connection that it does not know any more.
            time_ns: when it was asked.
            place: where the packets of it are captured.
            scope: the interface that the numbers belong to.
        """
        stated: _Stated | None = None
        for a, p, b, q in forms:
            mine, other = (a, p), (b, q)
            key = (place, scope, *((mine, other) if mine <= other else (other, mine)))
            entry = self._stated.setdefault(key, {})
            stated = entry.get(mine) or stated
            if stated is None:
                stated = _Stated(tuple(forms), place, scope, state, time_ns, state, time_ns)
            entry[mine] = stated
            connection = self._live.get(key)
            if connection is not None:
                self._attach(key, connection)
        if stated is not None:
            stated.last, stated.last_ns = state, time_ns

    def _begin(self, key: tuple[object, ...], connection: _Connection) -> _Connection:
        self._live[key] = connection
        self._attach(key, connection)
        while len(self._live) + len(self._over) > self._most:
            if self._over:
                self._over.popleft()
            else:
                self._live.popitem(last=False)
            self.given_up += 1
        return connection

    def _attach(self, key: tuple[object, ...], connection: _Connection) -> None:
        for end, stated in self._stated.get(key, {}).items():
            connection.ends[0 if end == connection.a else 1].stated = stated
            stated.seen = True

    def _end(self, key: tuple[object, ...]) -> None:
        """Another connection takes the numbers; what the kernel said was about the one before."""
        self._over.append(self._live.pop(key))
        self._stated.pop(key, None)

    def told(self, until_ns: int = 0) -> list[Closing]:
        """Return every connection, in the order of the last packet.

        Args:
            until_ns: when the capture ended, as far as is known: what is missing may only not have come *yet*.
        """
        silent = []
        for key, entry in self._stated.items():
            unseen = [one for one in entry.values() if not one.seen]
            if unseen and key not in self._live and _first_form(unseen[0], key):
                a, p, b, q = unseen[0].forms[0]
                mine, other = (a, p), (b, q)
                ends = (mine, other) if p >= q else (other, mine)
                connection = _Connection(*ends, unseen[0].place, unseen[0].scope)
                for end, stated in entry.items():
                    connection.ends[0 if end == connection.a else 1].stated = stated
                connection.last_ns = unseen[0].last_ns
                silent.append(connection)
        found = sorted([*silent, *self._over, *self._live.values()], key=lambda c: c.last_ns)
        return [_judge(connection, until_ns) for connection in found]


def _link_local(address: tuple[int, int]) -> bool:
    return address[0] >> 54 == 0x3FA  # fe80::/10


def _first_form(stated: _Stated, key: tuple[object, ...]) -> bool:
    """Whether a key is that of the connection itself, not of a translated form."""
    a, p, b, q = stated.forms[0]
    return {(a, p), (b, q)} == set(key[2:])


def _ended(c: _Connection) -> bool:
    """Whether a SYN on the same numbers is another connection for certain."""
    a, b = c.ends
    return bool(c.resets) or (a.fin is not None and b.fin is not None)


def _other_numbers(c: _Connection, one: Segment, *, from_a: bool) -> bool:
    """Whether a SYN has another sequence number than the connection began with."""
    stream = c.ends[0 if from_a else 1].stream
    return stream.isn != one.seq if stream.isn is not None else bool(stream.packets)


def _answers(one: Segment, syn: Segment) -> bool:
    return (
        one.flags & (SYN | ACK) == SYN | ACK
        and one.ack == (syn.seq + 1) & 0xFFFFFFFF
        and (one.dst, one.dport) == (syn.src, syn.sport)
    )


def _is_copy(c: _Connection, one: Segment, *, from_a: bool) -> bool:
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


def _feed(c: _Connection, one: Segment, *, from_a: bool) -> None:
    me, peer = c.ends if from_a else c.ends[::-1]
    c.packets += 1
    c.last_ns = max(c.last_ns, one.time_ns)
    _mark(c, one, from_a)
    if one.flags & RST:
        _reset(c, one, from_a)
        return
    known = me.stream.highest
    nth = me.stream.take(one)
    me.any_ns = one.time_ns
    if one.flags & SYN and not one.flags & ACK:
        c.opened = True
    step = None
    if one.flags & FIN:
        step = _fin(me, one, from_a, known)
    elif one.payload:
        step = _data(c, one, from_a, nth, known)
    elif nth is Nth.PROBE:
        me.probes += 1
        starved = peer.stream.ack is not None and not peer.stream.window
        step = Step(one.time_ns, from_a, Kind.WINDOW_PROBE if starved else Kind.KEEPALIVE, one.flags)
    if one.flags & (FIN | SYN) or one.payload:
        me.active_ns = one.time_ns
    if one.flags & ACK and peer.fin is not None and at_or_behind(one.ack, peer.fin):
        step = _ack(peer, one, from_a, step)
    if step is not None:
        _add(c, step)


def _mark(c: _Connection, one: Segment, from_a: bool) -> None:
    """Remember the first and the last packets by what no translator changes."""
    if not one.flags & ACK or not one.ack:
        return
    mark = (from_a, one.seq, one.ack, one.flags, one.payload, -1 if one.tsval is None else one.tsval)
    if mark in c.marks:
        return
    if len(c.marks) >= 2 * _KEPT_MARKS:
        del c.marks[next(k for n, k in enumerate(c.marks) if n == _KEPT_MARKS)]
    c.marks[mark] = None


def _fin(me: _End, one: Segment, from_a: bool, known: int | None) -> Step:
    me.fins += 1
    if me.fin is None:
        me.fin = me.stream.highest
        me.fin_new = known is not None and not at_or_behind(known, (one.seq + one.payload + 1) & 0xFFFFFFFF)
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


def _data(c: _Connection, one: Segment, from_a: bool, nth: Nth, known: int | None) -> Step | None:
    me, peer = c.ends if from_a else c.ends[::-1]
    if nth is Nth.NEW and known is not None:
        me.new_ns = one.time_ns
        if _has_sent(peer):
            me.late_bytes += one.payload
    if nth is not Nth.NEW and me.acked_ns:
        me.unheard += 1
    if not (_has_sent(me) or _has_sent(peer)):
        return None
    return Step(one.time_ns, from_a, _DATA.get(nth, Kind.DATA), one.flags, payload=one.payload)


def _has_sent(end: _End) -> bool:
    """Whether the end had closed its side, by its FIN or by its kernel's word."""
    return end.fin is not None or (end.stated is not None and bool(_said(end.stated.began).sent))


def _said(state: str) -> Facts:
    return _FACTS.get(state, Facts(None, None, None, None))


def _ack(peer: _End, one: Segment, from_a: bool, step: Step | None) -> Step | None:
    """Note that the peer's FIN is acknowledged; the first time since it was sent, the arrow says so."""
    first = peer.acked_last_ns <= peer.fin_last_ns or not peer.acked_ns
    peer.acked_ns = peer.acked_ns or one.time_ns
    peer.acked_last_ns = max(one.time_ns, peer.acked_last_ns)
    if not first:
        return step
    if step is not None:
        return replace(step, acks_fin=True)
    return Step(one.time_ns, from_a, Kind.ACK, one.flags, acks_fin=True)


def _reset(c: _Connection, one: Segment, from_a: bool) -> None:
    me, peer = c.ends if from_a else c.ends[::-1]
    how = standing(one, me.stream, peer.stream, peer_fin=me.fin)
    late = set(possible(_facts(peer, me, 0))) <= {CLOSED, "TIME_WAIT"}
    reset = Reset(one.time_ns, from_a, how, not one.flags & ACK, late)
    _add(
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


def _add(c: _Connection, step: Step) -> None:
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


# --------------------------------------------------------------------------------------------------------
# Judging


def _sent(x: _End, y: _End) -> bool | None:
    """Whether an end has sent its FIN."""
    if x.fin is not None:
        return True
    for stated, fact in ((x.stated, "sent"), (y.stated, "received")):
        if stated is not None and any(getattr(_said(s), fact) for s in (stated.began, stated.final)):
            return True
    if x.stream.isn is not None or x.new_ns:
        return False
    if x.stated is not None and (said := _said(x.stated.final).sent) is not None:
        return said
    if y.stated is not None and _said(y.stated.began).received is False:
        return False  # it had not arrived when the capture began, and did not come by since
    return None


def _acked(x: _End, y: _End, until_ns: int) -> bool | None:
    """Whether an end that has sent its FIN has the ACK of it."""
    if x.stated is not None and (said := _said(x.stated.final).acked) is not None:
        return said
    if x.fin is None:
        return _said(x.stated.began).acked if x.stated is not None else _heard(x, y)
    if x.acked_ns and x.unheard:
        if _stopped(x, until_ns) and x.acked_last_ns > x.fin_last_ns:
            return True
        return None if x.unheard == 1 else False
    if x.acked_ns or _heard(x, y):
        return True
    if y.stated is not None and _said(y.stated.final).received is False:
        return False
    return None if not y.stream.packets else False


def _heard(x: _End, y: _End) -> bool | None:
    """Whether an end has acknowledged a FIN of the other that in turn acknowledged its own."""
    if y.fin is None or x.stream.ack is None or not at_or_behind(x.stream.ack, y.fin):
        return None
    answered = _first(y, x) is False or (x.fin is not None and at_or_behind(y.fin_ack, x.fin))
    return True if answered else None


def _received(x: _End, y: _End) -> bool | None:
    """Whether an end has received the other's FIN."""
    if x.stated is not None and (said := _said(x.stated.final).received) is not None:
        return said
    if y.stated is not None and (_said(y.stated.final).acked or _said(y.stated.began).acked):
        return True
    if x.stated is not None and _said(x.stated.began).received:
        return True
    if y.fin is not None:
        if x.stream.ack is not None and at_or_behind(x.stream.ack, y.fin):
            return True
        return None
    return False if _sent(y, x) is False else None


def _first(x: _End, y: _End) -> bool | None:
    """Whether an end that has sent its FIN did so before the other's arrived."""
    if x.stated is not None:
        began, last = _said(x.stated.began), _said(x.stated.final)
        if began.sent:
            return began.first
        if last.sent:
            return last.first
        if began.received:
            return False
    if x.fin is not None and y.fin is not None:
        if not at_or_behind(x.fin_ack, y.fin):
            return True
        return False if x.fin_new else None
    if x.fin is not None and x.fin_new:
        return False  # one that is not here came before
    if y.fin is not None and y.fin_new:
        return True
    if y.stated is not None:
        for said in (_said(y.stated.began), _said(y.stated.final)):
            if said.received:
                return not said.first
        if _said(y.stated.began).sent:
            return False
    return None


def _facts(x: _End, y: _End, until_ns: int) -> Facts:
    sent = _sent(x, y)
    acked = False if sent is False else _acked(x, y, until_ns)
    return Facts(sent, acked, _received(x, y), _first(x, y) if sent is not False else None)


def _stopped(x: _End, until_ns: int) -> bool:
    return x.fins > 1 and until_ns - x.fin_last_ns > _STOPPED * max(x.fin_gap_ns, _GONE_ON_NS)


def _effective(c: _Connection) -> tuple[Reset, int] | None:
    """Return the first RST that ended something, by what came after it."""
    for reset, seq in c.resets:
        me, peer = c.ends if reset.from_a else c.ends[::-1]
        last = max(other.time_ns for other, _ in c.resets if other.from_a == reset.from_a)
        went_on = peer.active_ns > last + _GONE_ON_NS
        alive = me.any_ns > last + _GONE_ON_NS or (
            me.any_ns > reset.time_ns
            and me.stream.highest is not None
            and not at_or_behind(seq, me.stream.highest)
        )
        if not (went_on or alive):
            return reset, seq
    return None


def _judge(c: _Connection, until_ns: int) -> Closing:
    a, b = c.ends
    for end in c.ends:
        if end.stated is not None:
            end.stated.final = end.stated.last if end.stated.last_ns >= c.last_ns else ""
    facts = _facts(a, b, until_ns), _facts(b, a, until_ns)
    effective = _effective(c)
    reset = None if effective is None else effective[0]
    outcome = _outcome(c, facts, reset)
    sides = (_side(c, 0, facts[0], until_ns, reset), _side(c, 1, facts[1], until_ns, reset))
    ignored = list(c.ignored.values())
    ignored += [one for one, _ in c.resets if reset is None and one not in ignored]
    return Closing(
        sides[0], sides[1], c.opened, c.place, c.scope, outcome, _who_first(c, facts), reset,
        tuple(ignored), _missing(sides, outcome), (*c.first, *c.last), c.left_out, c.packets, c.copies,
        c.last_ns, frozenset(c.marks),
    )  # fmt: skip


def _side(c: _Connection, which: int, facts: Facts, until_ns: int, reset: Reset | None) -> Side:
    me = c.ends[which]
    stated = me.stated
    kernel = "" if stated is None else stated.final
    states = possible(facts)
    if kernel:
        states = (kernel,)
    elif reset is not None:
        sender = reset.from_a == (which == 0)
        known = sender or reset.standing is Standing.EXACT
        states = (CLOSED,) if known else (*(s for s in states if s != CLOSED), CLOSED)
    elif _stopped(me, until_ns) and facts.acked is not True:
        states = (CLOSED,)
    return Side(
        c.a if which == 0 else c.b, states, kernel, "" if stated is None else stated.began, facts,
        me.stream.packets, me.fins, me.fin_ns, me.acked_ns, me.unheard, _stopped(me, until_ns), me.late_bytes,
        me.stream.ack is not None and not me.stream.window, me.probes,
    )  # fmt: skip


def _outcome(c: _Connection, facts: tuple[Facts, Facts], reset: Reset | None) -> Outcome:
    b = c.ends[1]
    if reset is not None:
        unanswered = c.opened and b.stream.isn is None and not reset.from_a
        return Outcome.REFUSED if unanswered else Outcome.RESET
    sent = [one.sent for one in facts]
    if True not in sent:
        if c.opened and not b.stream.packets:
            return Outcome.NOT_OPENED
        return Outcome.OPEN if None not in sent else Outcome.UNSEEN
    if any(x.unheard or (x.acked_ns and f.acked is False) for x, f in zip(c.ends, facts, strict=True)):
        return Outcome.UNHEARD
    if sent == [True, True]:
        acked = [one.acked for one in facts]
        if acked == [True, True]:
            return Outcome.IN_ORDER
        return Outcome.LAST_UNANSWERED if False in acked else Outcome.ONE_SIDED
    mine = facts[0] if sent[0] else facts[1]
    other = facts[1] if sent[0] else facts[0]
    if mine.acked is None and not other.received:
        return Outcome.ONE_SIDED
    if mine.acked is False:
        return Outcome.UNANSWERED
    return Outcome.HALF_CLOSED if other.sent is False else Outcome.HALF_OR_CLOSED


def _who_first(c: _Connection, facts: tuple[Facts, Facts]) -> bool | None:
    """Return whether *a* closed first; of two at once, whose FIN was captured first."""
    a, b = facts
    if a.sent and not b.sent:
        return True
    if b.sent and not a.sent:
        return False
    if not (a.sent and b.sent):
        return None
    if a.first is not b.first and None not in (a.first, b.first):
        return a.first
    if a.first is False or b.first is False:
        return b.first is False
    one, other = c.ends
    if one.fin_ns and other.fin_ns:
        return one.fin_ns <= other.fin_ns
    return None


def _missing(sides: tuple[Side, Side], outcome: Outcome) -> tuple[Missing, ...]:
    if outcome in (Outcome.RESET, Outcome.REFUSED, Outcome.IN_ORDER, Outcome.ONE_SIDED):
        return ()
    found = []
    for which, (me, other) in enumerate((sides, sides[::-1])):
        from_a = which == 0
        if me.facts.sent and me.facts.acked is False and not me.acked_ns and me.fins:
            found.append(Missing(Kind.ACK, not from_a))
        if me.facts.sent and other.facts.sent is False:
            found.append(Missing(Kind.FIN, not from_a))
    return tuple(found)
