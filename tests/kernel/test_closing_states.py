"""Real closings in every state: what the packets are said to mean is what both kernels have.

Each scene is captured at both ends from before the connection opens. Then every capture is told again as if it had
begun at each of its packets, and as if it had seen one direction only: less is known then, and never something else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from finwait.diagnosis.closing import Closing, Ending, Kind
from finwait.diagnosis.closings import Closings
from finwait.kernel.capture import Capture, space_of
from finwait.kernel.lookup import Question, ask
from finwait.lab.actor import Actor, ProgramSocket, meet
from finwait.lab.topology import Lab, Link, Netns, unmet
from finwait.report.closing import diagram
from finwait.table.sockets import pack_address
from finwait.uapi import tcp
from finwait.uapi.pcap import Frame
from finwait.uapi.segment import ACK, FIN, LINKTYPE_LINUX_SLL2, RST, SYN, Segment, parse_segment
from finwait.uapi.socket_filter import Tuple
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel

PORT = 8080


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


@dataclass
class Scene:
    """A client and a server in namespaces of their own, and what was captured at each."""

    here: Netns
    there: Netns
    link: Link
    client: Actor
    server: Actor
    mine: ProgramSocket = field(init=False)
    other: ProgramSocket = field(init=False)
    captures: tuple[Capture, Capture] = field(init=False)
    taken: tuple[list[Segment], list[Segment]] = field(default_factory=lambda: ([], []))

    @property
    def numbers(self) -> Tuple:
        return (pack_address(self.mine.src), self.mine.sport, pack_address(self.mine.dst), self.mine.dport)

    def states(self) -> tuple[str, str]:
        """What the kernels of both ends say; CLOSED where there is no such connection."""
        a, p, b, q = self.numbers
        found = []
        for space, question in ((self.here, (a, b, p, q)), (self.there, (b, a, q, p))):
            sockets, gaps = ask([Question(*question)], [space_of(space.inode)])
            assert not gaps
            found.append(tcp.STATES[int(sockets.state[0])] if len(sockets) else "CLOSED")
        return found[0], found[1]

    def gather(self) -> None:
        for capture, taken in zip(self.captures, self.taken, strict=True):
            for packet in capture.drain():
                one = parse_segment(
                    Frame(packet.time_ns, LINKTYPE_LINUX_SLL2, packet.data, packet.length, "eth0")
                )
                assert isinstance(one, Segment)
                taken.append(one)

    def until(self, what: Callable[[], bool], doing: str) -> None:
        deadline = time.monotonic() + 30
        while not what():
            assert time.monotonic() < deadline, (doing, self.states())
            time.sleep(0.02)
            self.gather()

    def reach(self, *states: str) -> None:
        """Wait for the states of client and server, and for the packets that led there."""
        self.until(lambda: self.states() == states, f"reach {states}")
        self.settle()

    def settle(self) -> tuple[str, str]:
        """Return the states, once the packets that led there are taken and nothing has changed meanwhile."""
        while True:
            states = self.states()
            time.sleep(0.15)  # a block of the ring that is not full is handed over after 50 ms
            self.gather()
            if self.states() == states:
                return states

    def fins(self, where: int, sport: int, wanted: int) -> None:
        self.until(
            lambda: sum(s.flags & FIN and s.sport == sport for s in self.taken[where]) >= wanted,
            f"capture {wanted} FINs",
        )

    def drop(self, space: Netns, hook: str, rule: str) -> None:
        space.nft(
            f"table inet lose_{hook} {{\n chain lose {{\n  type filter hook {hook} priority -400\n"
            f"  meta l4proto tcp {rule} drop\n }}\n}}"
        )

    def heal(self) -> None:
        for space in (self.here, self.there):
            space.nft("flush ruleset")


@contextmanager
def scene() -> Iterator[Scene]:
    with Lab() as lab, ExitStack() as stack:
        here, there = lab.netns("here"), lab.netns("there")
        link = lab.link(here, there)
        made = Scene(here, there, link, lab.actor(here, "client"), lab.actor(there, "server"))
        door = made.server.listen(link.b4, PORT)
        wanted = [((pack_address(link.a4), 0, pack_address(link.b4), PORT), 0)]
        made.captures = (
            stack.enter_context(Capture(space_of(here.inode), wanted)),
            stack.enter_context(Capture(space_of(there.inode), wanted)),
        )
        (made.mine,), (made.other,) = meet(made.client, link.b4, made.server, door)
        made.client.send([made.mine], "hello")
        made.server.recv([made.other], 5)
        yield made


def told(segments: Sequence[Segment], stated: Sequence[tuple[Tuple, str]] = ()) -> Closing:
    book = Closings()
    for one in segments:
        book.feed(one)
    for tuple_, state in stated:
        book.state([tuple_], state, segments[-1].time_ns + 1)
    (closing,) = book.told()
    return closing


def in_order(closing: Closing, port: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The states of client and server, whichever end was taken for the client."""
    ends = (closing.a, closing.b)
    return tuple(side.states for side in (ends if closing.b.end[1] == port else ends[::-1]))  # type: ignore[return-value]


def check(made: Scene, *, whole: bool = True, at_least_fins: int = 0) -> None:
    """No telling, of however much of the capture, excludes what a kernel has."""
    kernel = made.settle()
    for segments in made.taken:
        assert segments[0].flags & SYN
        closing = told(segments)
        found = in_order(closing, PORT)
        for states, state in zip(found, kernel, strict=True):
            assert state in states, diagram(closing)
            assert not whole or states == (state,), diagram(closing)
        ways = [segments]
        ways += [[s for s in segments if s.sport == port] for port in (PORT, made.mine.sport)]
        for way in ways:
            for begin in range(len(way)):
                part = way[begin:]
                if sum(bool(s.flags & FIN) for s in part) < at_least_fins:
                    continue
                closing = told(part)
                for states, state in zip(in_order(closing, PORT), kernel, strict=True):
                    assert state in states, (begin, len(way), state, *diagram(closing))
                    if closing.outcome is Ending.IN_ORDER:
                        assert state in ("TIME_WAIT", "CLOSED"), diagram(closing)


def test_fin_wait1_behind_a_cut_link() -> None:
    with scene() as s:
        s.drop(s.there, "prerouting", "")
        s.client.shutdown([s.mine])
        s.reach("FIN_WAIT1", "ESTABLISHED")
        s.fins(0, s.mine.sport, 3)
        assert told(s.taken[0]).outcome is Ending.UNANSWERED
        check(s, whole=False)
        assert in_order(told(s.taken[0]), PORT)[0] == ("FIN_WAIT1",)


def test_fin_wait2_held_and_close_wait() -> None:
    with scene() as s:
        s.client.shutdown([s.mine])
        s.reach("FIN_WAIT2", "CLOSE_WAIT")
        assert told(s.taken[0]).outcome is Ending.HALF_CLOSED
        check(s)


def test_fin_wait2_of_an_orphan() -> None:
    with scene() as s:
        s.client.leave([s.mine])
        s.reach("FIN_WAIT2", "CLOSE_WAIT")
        check(s)


def test_a_half_close_that_still_carries_data() -> None:
    with scene() as s:
        s.client.shutdown([s.mine])
        s.server.send([s.other], "late")
        s.client.recv([s.mine], 4)
        s.reach("FIN_WAIT2", "CLOSE_WAIT")
        check(s)


def test_both_at_once_and_a_lost_ack_is_closing() -> None:
    """The FINs cross because each end drops what comes; then the server hears again, and cannot answer."""
    with scene() as s:
        for space in (s.here, s.there):
            s.drop(space, "prerouting", "")
        s.client.shutdown([s.mine])
        s.server.shutdown([s.other])
        s.reach("FIN_WAIT1", "FIN_WAIT1")
        s.drop(s.there, "output", "")
        s.there.nft("delete table inet lose_prerouting")
        s.reach("FIN_WAIT1", "CLOSING")
        assert told(s.taken[1]).outcome is not Ending.IN_ORDER
        check(s, whole=False)


def test_last_ack_whose_ack_was_lost_before_the_capture() -> None:
    with scene() as s:
        s.client.shutdown([s.mine])
        s.reach("FIN_WAIT2", "CLOSE_WAIT")
        s.drop(s.here, "output", "")
        s.server.close([s.other])
        s.reach("TIME_WAIT", "LAST_ACK")
        s.fins(1, PORT, 3)
        assert told(s.taken[1]).outcome is Ending.LAST_UNANSWERED
        assert [m.what for m in told(s.taken[1]).missing] == [Kind.ACK]
        check(s, whole=False)
        assert in_order(told(s.taken[1]), PORT)[1] == ("LAST_ACK",)


def test_last_ack_whose_ack_is_lost_behind_the_capture() -> None:
    with scene() as s:
        s.client.shutdown([s.mine])
        s.reach("FIN_WAIT2", "CLOSE_WAIT")
        s.drop(s.there, "input", "")
        s.server.close([s.other])
        s.reach("TIME_WAIT", "LAST_ACK")
        s.fins(1, PORT, 4)
        s.gather()
        for segments in s.taken:
            assert told(segments).outcome is Ending.UNHEARD
        check(s, at_least_fins=4)
        # One look at the socket tells at once what took three retransmissions to be sure of.
        first = next(k for k, one in enumerate(s.taken[1]) if one.flags & FIN and one.sport == PORT)
        a, p, b, q = s.numbers
        assert told(s.taken[1][: first + 2], [((b, q, a, p), "LAST_ACK")]).outcome is not Ending.IN_ORDER


def test_time_wait_and_closed() -> None:
    with scene() as s:
        s.client.shutdown([s.mine])
        s.server.read_to_end([s.other])
        s.server.close([s.other])
        s.reach("TIME_WAIT", "CLOSED")
        closing = told(s.taken[0])
        assert closing.outcome is Ending.IN_ORDER
        assert closing.a_first == (closing.b.end[1] == PORT)
        check(s)


def test_the_server_closes_first() -> None:
    with scene() as s:
        s.server.close([s.other])
        s.client.read_to_end([s.mine])
        s.client.close([s.mine])
        s.reach("CLOSED", "TIME_WAIT")
        check(s)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_by_each_end(who: str) -> None:
    with scene() as s:
        if who == "client":
            s.client.reset([s.mine])
        else:
            s.server.reset([s.other])
        s.reach("CLOSED", "CLOSED")
        closing = told(s.taken[0])
        assert closing.outcome is Ending.RESET
        assert closing.reset
        assert (closing.reset.from_a == (closing.b.end[1] == PORT)) == (who == "client")
        check(s, at_least_fins=0)


def test_a_reset_that_answers_a_half_close() -> None:
    with scene() as s:
        s.client.shutdown([s.mine])
        s.server.read_to_end([s.other])
        s.server.reset([s.other])
        s.reach("CLOSED", "CLOSED")
        assert told(s.taken[0]).outcome is Ending.RESET
        check(s)


def test_a_half_open_connection_ends_by_the_answer_to_its_data() -> None:
    with scene() as s:
        s.drop(s.there, "output", "")
        s.server.reset([s.other])  # the RST never leaves
        s.reach("ESTABLISHED", "CLOSED")
        s.heal()
        s.client.send([s.mine], "anybody there?")
        s.reach("CLOSED", "CLOSED")
        closing = told(s.taken[0])
        assert closing.outcome is Ending.RESET
        assert closing.reset
        assert closing.reset.answers
        check(s)


def test_a_zero_window_holds_the_fin_back() -> None:
    with scene() as s:
        s.client.fill(s.mine)
        s.client.shutdown([s.mine])
        s.reach("FIN_WAIT1", "ESTABLISHED")
        s.until(
            lambda: any(step.kind is Kind.WINDOW_PROBE for step in told(s.taken[0]).steps), "a window probe"
        )
        assert not any(one.flags & (FIN | RST) for one in s.taken[0])
        a, p, b, q = s.numbers
        closing = told(s.taken[0], [((a, p, b, q), "FIN_WAIT1")])
        assert closing.outcome is Ending.UNANSWERED
        assert "The receive window of" in " ".join(diagram(closing))


def test_an_ack_of_every_segment_is_told_from_a_fin() -> None:
    """Bare ACKs alone say nothing of what was before them."""
    with scene() as s:
        s.client.shutdown([s.mine])
        s.reach("FIN_WAIT2", "CLOSE_WAIT")
        bare = [one for one in s.taken[0] if one.flags & (SYN | FIN | RST | ACK) == ACK and not one.payload]
        assert bare
        assert told(bare).outcome is Ending.UNSEEN
