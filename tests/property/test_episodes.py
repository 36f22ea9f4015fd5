"""Episodes against a model, over random life stories: opening, closing, reuse, restarts, boots, looks that fail."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.agent.episodes import GRACE_NS, Book, Episode, Instant
from finwait.uapi import tcp
from tests.agent_world import S, Sock, World, cause_of, said, table

FLOW = {
    tcp.ESTABLISHED: (tcp.FIN_WAIT1, tcp.CLOSE_WAIT),
    tcp.FIN_WAIT1: (tcp.FIN_WAIT2, tcp.CLOSING, tcp.TIME_WAIT),
    tcp.FIN_WAIT2: (tcp.TIME_WAIT,),
    tcp.CLOSING: (tcp.TIME_WAIT,),
    tcp.CLOSE_WAIT: (tcp.LAST_ACK,),
    tcp.LAST_ACK: (),
    tcp.TIME_WAIT: (),
}
"""The model's own copy of how connections close."""
WORDS = "new next next gone orphan reconnect again again clock walk walk ask ask wait wait wait fail restart boot wall"
WORDS += " sleep"
SLACK = GRACE_NS + S
"""What a socket that is connected again so soon cannot be told from one that was not; and what the machine slept."""
ANY = 1 << 62
"""Of the other states the kernel has no clock that would tell."""
STEPS = st.lists(
    st.tuples(st.sampled_from(WORDS.split()), st.integers(0, 30), st.integers(1, 120)), max_size=60
)


class Model:
    """What is true, and what the book has to agree with."""

    def __init__(self) -> None:
        self.world = World()
        self.book = Book(self.world.boot_id)
        self.spans: dict[tuple[str, int, int, int], list[tuple[int, int]]] = {}
        """(boot, cookie, state, port) → when it was entered and left, in ns; −1 while it lasts. The same more than once
        where a socket was connected again."""
        self.slept_ns = 0
        self.ended: list[Episode] = []

    def enter(self, sock: Sock) -> None:
        key = self.world.boot_id, sock.cookie, sock.state, sock.sport
        self.spans.setdefault(key, []).append((self.world.now_ns, -1))
        sock.since_ns = sock.entered_ns = self.world.now_ns

    def leave(self, sock: Sock) -> None:
        spans = self.spans[self.world.boot_id, sock.cookie, sock.state, sock.sport]
        spans[-1] = spans[-1][0], self.world.now_ns

    def step(self, what: str, which: int, amount: int) -> None:
        world, socks = self.world, list(self.world.socks.values())
        sock = socks[which % len(socks)] if socks else None
        if what == "new":
            self.enter(world.add(tcp.ESTABLISHED))
        elif what == "wait":
            world.pass_(amount)
        elif what == "sleep":
            world.sleep(amount)
            self.slept_ns += amount * S
            self.book.asleep_ns = world.asleep_ns()
        elif what == "wall":
            world.wall_off_ns += (amount - 60) * 3600 * S
        elif what == "walk":
            rows = [s for s in socks if tcp.CLOSING_STATES >> s.state & 1]
            self.book.walked([table(rows, world.now_ns)], [1], world.now())
        elif what in ("ask", "fail"):
            asked = self.book.questions(which, world.now_ns)
            ports = set(asked["sport"].tolist())
            rows = [s for s in socks if s.sport in ports] if what == "ask" else []
            gaps = () if what == "ask" else (1,)
            self.book.answered(
                asked["cookie"], table(rows, world.now_ns), gaps, world.now(), lambda *_: "vanished"
            )
        elif what == "restart":
            kept = [*self._all()]
            self.book = Book(world.boot_id)
            self.book.asleep_ns = world.asleep_ns()
            self.book.restore(kept, world.now())
        elif what == "boot":
            kept = [*self._all()]
            for one in socks:
                self.leave(one)
            world.socks.clear()
            world.boot_id = f"{world.boot_id}+"
            world.now_ns, world.slept_ns = (10 + 100 * amount) * S, 0
            self.book = Book(world.boot_id)
            self.book.restore(kept, world.now())
        elif sock is not None:
            self._socket(what, which, amount, sock)

    def _all(self) -> list[Episode]:
        self.book.touch()
        return list(self.book.changed())

    def _socket(self, what: str, which: int, amount: int, sock: Sock) -> None:
        if what == "next":
            following = FLOW[sock.state]
            self.leave(sock)
            if following:
                sock.state = following[which % len(following)]
                sock.held = sock.held and sock.state != tcp.TIME_WAIT
                self.enter(sock)
            else:
                del self.world.socks[sock.cookie]
        elif what == "gone":
            self.leave(sock)
            del self.world.socks[sock.cookie]
        elif what == "orphan" and sock.state in (tcp.FIN_WAIT1, tcp.FIN_WAIT2):
            sock.held = False
        elif what == "reconnect" and sock.held:
            self.leave(sock)
            sock.sport, sock.state = sock.sport + 30000, tcp.ESTABLISHED
            if sock.sport > 65535:
                sock.sport -= 60000
            self.enter(sock)
        elif what == "again" and sock.held:  # to the same address, and closing again
            self.leave(sock)
            if sock.state != tcp.ESTABLISHED and which % 2:
                self.world.pass_(amount)
                self.enter(sock)
            else:
                sock.state = tcp.ESTABLISHED
                self.enter(sock)
        elif what == "clock":
            sock.since_ns = self.world.now_ns  # a later ACK resets the kernel's clock

    def check(self) -> None:
        book, world = self.book, self.world
        self.ended += book.take()
        for episode in self._all():
            assert episode.boot == world.boot_id
            self._bounds(episode)
        names = [(e.cookie, e.state) for e in book.changed()]
        assert len(names) == len(set(names))

    def _bounds(self, e: Episode) -> None:
        """What is said holds of something that really happened."""
        assert e.latest_ns <= e.first.boot_ns <= e.last.boot_ns
        now = self.world.now_ns
        spans, slack = self.spans[e.boot, e.cookie, e.state, e.words[4]], 1_000_000
        if len(spans) > 1:
            slack = SLACK + self.slept_ns if e.state in (tcp.FIN_WAIT2, tcp.CLOSE_WAIT) else ANY
        assert any(self._holds(e, entered, now if left < 0 else left, slack) for entered, left in spans)

    def _holds(self, e: Episode, entered: int, left: int, slack: int) -> bool:
        now = self.world.now_ns
        if not (
            e.earliest_ns <= entered and e.latest_ns >= entered - slack and e.last.boot_ns <= left + slack
        ):
            return False
        if e.at_least_ns(min(now, e.last.boot_ns)) > left - entered + slack:
            return False
        most = e.at_most_ns(now) if e.boot == self.world.boot_id or e.ended is not None else -1
        return most < 0 or most >= left - entered - 1_000_000

    def final(self) -> None:
        seen = set()
        for e in self.ended:
            name = (e.boot, e.cookie, e.state, e.words[4], e.first)
            assert name not in seen, "an episode ends once"
            seen.add(name)
            assert e.ended is not None
            assert e.how in ("closed", "vanished", "unknown")
            self._bounds(e)
            spans = self.spans[e.boot, e.cookie, e.state, e.words[4]]
            assert any(left >= 0 and entered <= e.last.boot_ns for entered, left in spans), "it has not ended"


@given(STEPS)
@settings(max_examples=300)
def test_a_book_agrees_with_what_really_happened(steps: list[tuple[str, int, int]]) -> None:
    model = Model()
    for what, which, amount in steps:
        model.step(what, which, amount)
        model.check()
    # Whatever happened, two walks and an answer later exactly what is there is open.
    for _ in range(2):
        model.step("walk", 0, 0)
        model.world.pass_(20)
        asked = model.book.questions(1000, model.world.now_ns)
        ports = set(asked["sport"].tolist())
        rows = [s for s in model.world.socks.values() if s.sport in ports]
        model.book.answered(
            asked["cookie"], table(rows, model.world.now_ns), (), model.world.now(), lambda *_: "vanished"
        )
    model.check()
    there = {(s.cookie, s.state) for s in model.world.socks.values() if tcp.CLOSING_STATES >> s.state & 1}
    assert {(e.cookie, e.state) for e in model._all()} == there
    model.final()


ONE = st.lists(
    st.tuples(
        st.sampled_from(("again", "sleep", "walk", "walk", "ask", "wait", "wait", "restart", "boot")),
        st.just(1),
        st.integers(1, 120),
    ),
    min_size=8,
    max_size=20,
)


@given(st.sampled_from((tcp.FIN_WAIT2, tcp.CLOSE_WAIT)), ONE)
@settings(max_examples=300)
def test_a_socket_that_is_connected_again_and_again_has_the_ages_of_its_connections(
    state: int, steps: list[tuple[str, int, int]]
) -> None:
    model = Model()
    model.enter(model.world.add(state))
    for what, which, amount in steps:
        model.step(what, which, amount)
        model.check()
    model.final()


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=30))
def test_a_diagnosis_of_anything_names_only_what_is_there(named: list[tuple[int, bool]]) -> None:
    book, now = Book("b"), Instant(100 * S, 0)
    socks = [Sock(k, tcp.CLOSE_WAIT, sport=k, since_ns=0) for k in range(1, 11)]
    book.walked([table(socks, now.boot_ns)], [1], now)
    rows = [Sock(k, tcp.CLOSE_WAIT if right else tcp.LAST_ACK) for k, right in named]
    book.diagnosed(said(rows, [cause_of(s) for s in rows]), now, everything=False)
    right = {k for k, same in named if same and k <= 10}
    wrong = {k for k, same in named if not same}
    diagnosed = {e.cookie for e in book.changed() if e.cause.rule}
    assert diagnosed <= right
    assert right - wrong <= diagnosed
    assert book.open == 10
