"""Every connection in a stream of packets, each told as a `finwait.diagnosis.closing.Closing`.

Memory is bounded: of all connections those are kept that had packets last. What was left out is counted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence

from finwait.diagnosis.closing import Arrow, Closing, End, Kind
from finwait.diagnosis.conversation import Conversation, add, is_copy, take
from finwait.diagnosis.judgement import judge
from finwait.diagnosis.party import Stated
from finwait.uapi.segment import ACK, SYN, Segment
from finwait.uapi.socket_filter import Tuple

__all__ = ["Closings", "closings"]


def closings(segments: Iterable[Segment]) -> Iterator[Closing]:
    """Tell of every connection in the packets; connections come in the order of their last packet."""
    book = Closings()
    for segment in segments:
        book.feed(segment)
    yield from book.told()


class Closings:
    """Every connection in a stream of packets, told at any time.

    A SYN on numbers that were used before begins another connection.

    Args:
        most: connections to remember; of more, those without packets for the longest time are given up.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._live: OrderedDict[tuple[object, ...], Conversation] = OrderedDict()
        self._over: deque[Conversation] = deque()
        self._stated: dict[tuple[object, ...], dict[End, Stated]] = {}
        self.given_up = 0
        """Connections that were not remembered."""

    def feed(self, segment: Segment, scope: str | None = None) -> None:
        """Take one segment.

        Args:
            segment: the segment; those of a connection come in the order of time.
            scope: the interface that the numbers belong to; by default that of link-local addresses.
        """
        sender, peer = (segment.src, segment.sport), (segment.dst, segment.dport)
        if scope is None:
            scope = segment.interface if _link_local(segment.src) or _link_local(segment.dst) else ""
        key = (segment.place, scope, *((sender, peer) if sender <= peer else (peer, sender)))
        connection = self._live.get(key)
        opens = segment.flags & (SYN | ACK) == SYN
        pending = None
        if connection is not None:
            self._live.move_to_end(key)
            if opens and _ended(connection):
                self._end(key)
                connection = None
            elif opens and _other_numbers(connection, segment, from_a=sender == connection.a):
                connection.again = segment
                add(connection, Arrow(segment.time_ns, sender == connection.a, Kind.SYN, segment.flags))
                return
            elif connection.again is not None and _answers(segment, connection.again):
                pending = connection.again
                self._end(key)
                connection = None
        if connection is None:
            # Without a SYN the lower port is taken for the server's: only the layout depends on it.
            swap = pending is not None or (
                not opens and (bool(segment.flags & SYN) or segment.sport < segment.dport)
            )
            a, b = (peer, sender) if swap else (sender, peer)
            connection = self._begin(key, Conversation(a, b, segment.place, scope))
        if pending is not None:
            take(connection, pending, from_a=True)
        from_a = sender == connection.a
        if not is_copy(connection, segment, from_a=from_a):
            take(connection, segment, from_a=from_a)

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
        stated: Stated | None = None
        for a, p, b, q in forms:
            end, other = (a, p), (b, q)
            key = (place, scope, *((end, other) if end <= other else (other, end)))
            entry = self._stated.setdefault(key, {})
            stated = entry.get(end) or stated
            if stated is None:
                stated = Stated(tuple(forms), place, scope, state, time_ns, state, time_ns)
            entry[end] = stated
            connection = self._live.get(key)
            if connection is not None:
                self._attach(key, connection)
        if stated is not None:
            stated.last, stated.last_ns = state, time_ns

    def _begin(self, key: tuple[object, ...], connection: Conversation) -> Conversation:
        self._live[key] = connection
        self._attach(key, connection)
        while len(self._live) + len(self._over) > self._most:
            if self._over:
                self._over.popleft()
            else:
                self._live.popitem(last=False)
            self.given_up += 1
        return connection

    def _attach(self, key: tuple[object, ...], connection: Conversation) -> None:
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
            unseen = [statement for statement in entry.values() if not statement.seen]
            if unseen and key not in self._live and _first_form(unseen[0], key):
                a, p, b, q = unseen[0].forms[0]
                near, other = (a, p), (b, q)
                ends = (near, other) if p >= q else (other, near)
                connection = Conversation(*ends, unseen[0].place, unseen[0].scope)
                for end, stated in entry.items():
                    connection.ends[0 if end == connection.a else 1].stated = stated
                connection.last_ns = unseen[0].last_ns
                silent.append(connection)
        connections = sorted([*silent, *self._over, *self._live.values()], key=lambda c: c.last_ns)
        return [judge(connection, until_ns) for connection in connections]


def _link_local(address: tuple[int, int]) -> bool:
    return address[0] >> 54 == 0x3FA  # fe80::/10


def _first_form(stated: Stated, key: tuple[object, ...]) -> bool:
    """Whether a key is that of the connection itself, not of a translated form."""
    a, p, b, q = stated.forms[0]
    return {(a, p), (b, q)} == set(key[2:])


def _ended(c: Conversation) -> bool:
    """Whether a SYN on the same numbers is another connection for certain."""
    a, b = c.ends
    return bool(c.resets) or (a.fin is not None and b.fin is not None)


def _other_numbers(c: Conversation, segment: Segment, *, from_a: bool) -> bool:
    """Whether a SYN has another sequence number than the connection began with."""
    stream = c.ends[0 if from_a else 1].stream
    return stream.isn != segment.seq if stream.isn is not None else bool(stream.packets)


def _answers(segment: Segment, syn: Segment) -> bool:
    return (
        segment.flags & (SYN | ACK) == SYN | ACK
        and segment.ack == (syn.seq + 1) & 0xFFFFFFFF
        and (segment.dst, segment.dport) == (syn.src, syn.sport)
    )
