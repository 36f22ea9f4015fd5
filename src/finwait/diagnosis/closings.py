"""Every connection in a stream of packets, each told as a `finwait.diagnosis.closing.Closing`.

Memory is bounded: of all connections those are kept that had packets last. What was left out is counted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence

from finwait.diagnosis.closing import Closing, End, Kind, Step
from finwait.diagnosis.conversation import Conversation, add, is_copy, take
from finwait.diagnosis.judgement import judge
from finwait.diagnosis.party import Stated
from finwait.uapi.segment import ACK, SYN, Segment
from finwait.uapi.socket_filter import Tuple

__all__ = ["Closings", "closings"]


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

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._live: OrderedDict[tuple[object, ...], Conversation] = OrderedDict()
        self._over: deque[Conversation] = deque()
        self._stated: dict[tuple[object, ...], dict[End, Stated]] = {}
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
                add(found, Step(one.time_ns, me == found.a, Kind.SYN, one.flags))
                return
            elif found.again is not None and _answers(one, found.again):
                pending = found.again
                self._end(key)
                found = None
        if found is None:
            # Without a SYN the lower port is taken for the server's: only the layout depends on it.
            swap = pending is not None or (not opens and (bool(one.flags & SYN) or one.sport < one.dport))
            a, b = (peer, me) if swap else (me, peer)
            found = self._begin(key, Conversation(a, b, one.place, scope))
        if pending is not None:
            take(found, pending, from_a=True)
        from_a = me == found.a
        if not is_copy(found, one, from_a=from_a):
            take(found, one, from_a=from_a)

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
            mine, other = (a, p), (b, q)
            key = (place, scope, *((mine, other) if mine <= other else (other, mine)))
            entry = self._stated.setdefault(key, {})
            stated = entry.get(mine) or stated
            if stated is None:
                stated = Stated(tuple(forms), place, scope, state, time_ns, state, time_ns)
            entry[mine] = stated
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
            unseen = [one for one in entry.values() if not one.seen]
            if unseen and key not in self._live and _first_form(unseen[0], key):
                a, p, b, q = unseen[0].forms[0]
                mine, other = (a, p), (b, q)
                ends = (mine, other) if p >= q else (other, mine)
                connection = Conversation(*ends, unseen[0].place, unseen[0].scope)
                for end, stated in entry.items():
                    connection.ends[0 if end == connection.a else 1].stated = stated
                connection.last_ns = unseen[0].last_ns
                silent.append(connection)
        found = sorted([*silent, *self._over, *self._live.values()], key=lambda c: c.last_ns)
        return [judge(connection, until_ns) for connection in found]


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


def _other_numbers(c: Conversation, one: Segment, *, from_a: bool) -> bool:
    """Whether a SYN has another sequence number than the connection began with."""
    stream = c.ends[0 if from_a else 1].stream
    return stream.isn != one.seq if stream.isn is not None else bool(stream.packets)


def _answers(one: Segment, syn: Segment) -> bool:
    return (
        one.flags & (SYN | ACK) == SYN | ACK
        and one.ack == (syn.seq + 1) & 0xFFFFFFFF
        and (one.dst, one.dport) == (syn.src, syn.sport)
    )
