"""The joining of transitions, against a model that walks them one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.table import transitions as tr
from finwait.table.lives import Follower
from finwait.table.sockets import SocketTable
from finwait.table.transitions import TransitionTable
from finwait.uapi import tcp

STATES = [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]


@dataclass(frozen=True)
class Event:
    """One record, and what happens behind it."""

    sk: int
    kind: int
    old: int
    new: int
    step: int
    ends: bool
    """A batch ends behind it: it is fed, looked at and taken."""
    lost: bool
    """Records were lost before the batch that it begins."""
    waits: bool
    """The batch that it ends is fed, but its rows are not taken before the next."""
    renumbers: bool


def events(sockets: int) -> st.SearchStrategy[list[Event]]:
    one = st.builds(
        Event,
        sk=st.integers(1, sockets),
        kind=st.sampled_from([tr.TRANSITION] * 5 + [tr.DESTROY, tr.SEND_RESET, tr.RECEIVE_RESET]),
        old=st.sampled_from(STATES),
        new=st.sampled_from(STATES),
        step=st.integers(1, 1000),
        ends=st.booleans(),
        lost=st.integers(0, 9).map(lambda n: n == 0),
        waits=st.booleans(),
        renumbers=st.booleans(),
    )
    return st.lists(one, max_size=80)


@dataclass
class Model:
    """One event after the other, with all the memory in the world."""

    alive: dict[int, tuple[int, int | None, int]] = field(default_factory=dict)
    """Socket → number of its life, since when in its state, state."""
    made: int = 0
    over: set[int] = field(default_factory=set)
    """Lives that have been in CLOSE: what belongs to them later may be forgotten."""

    def take(self, event: Event, now: int) -> tuple[int, int | None]:
        """Return the number of the life (−1: of a socket that was not met) and the time in the old state."""
        if event.kind != tr.TRANSITION:
            return self.alive[event.sk][0] if event.sk in self.alive else -1, None
        birth = event.old == tcp.CLOSE or (event.old == tcp.LISTEN and event.new == tcp.SYN_RECV)
        if birth or event.sk not in self.alive:
            life, since, state = self.made, None, None
            self.made += 1
        else:
            life, since, state = self.alive[event.sk]
        self.alive[event.sk] = (life, now if event.old != event.new else since, event.new)
        if event.new == tcp.CLOSE:
            self.over.add(life)
        return life, now - since if since is not None and state == event.old else None


def run(
    script: list[Event], follower: Follower
) -> tuple[TransitionTable, list[tuple[int, int | None]], list[tuple[int, int, int]], set[int]]:
    """Feed a script; return the rows, what the model says of each, how much was remembered, lives that were closed."""
    model = Model()
    expected: list[tuple[int, int | None]] = []
    tables: list[TransitionTable] = []
    sizes: list[tuple[int, int, int]] = []
    batch: list[tuple[Event, int]] = []
    now = 0
    lost = False
    for k, event in enumerate(script):
        if not batch and event.lost:
            model.alive, lost = {}, True
        now += event.step
        batch.append((event, now))
        expected.append(model.take(event, now))
        if not event.ends and k + 1 < len(script):
            continue
        table = TransitionTable.from_columns(
            {
                "kind": [e.kind for e, _ in batch], "sk": [e.sk for e, _ in batch],
                "oldstate": [e.old for e, _ in batch], "newstate": [e.new for e, _ in batch],
                "time_ns": [t for _, t in batch], "sport": [1] * len(batch), "dport": [2] * len(batch),
            }
        )  # fmt: skip
        follower.feed(table, np.zeros(len(batch), np.uint64), now, missed=np.array([5 if lost else 0]))
        batch, lost = [], False
        if not event.waits or k + 1 == len(script):
            follower.look(tr.SocketDump(SocketTable.empty(), now, now))
            tables.append(follower.take(now))
        if event.renumbers:  # memory may be given back at any time
            follower._renumber(np.ones(len(follower._lives), np.bool_))
        sizes.append((len(follower._lives), len(follower._lives.addresses), follower.waiting))
    return TransitionTable.concatenate(tables), expected, sizes, model.over


@given(events(3))
@settings(max_examples=300, deadline=None)
def test_lives_and_times_are_those_of_the_model_however_the_events_are_batched(script: list[Event]) -> None:
    rows, expected, _, _ = run(script, Follower())
    names: dict[int, int] = {-1: -1}
    assert len(rows) == len(expected)
    have = rows.present("in_old_ns").tolist()
    for (life, spent), got, has, time in zip(
        expected, rows.life.tolist(), have, rows.in_old_ns.tolist(), strict=True
    ):
        # Within one batch lives are numbered by socket: compare which events share a life, and the times.
        assert names.setdefault(life, got) == got
        assert (time if has else None) == spent
    assert len(set(names.values())) == len(names)


@given(events(12), st.integers(1, 8))
@settings(max_examples=300, deadline=None)
def test_what_is_given_back_is_over_and_changes_no_time(script: list[Event], spare: int) -> None:
    follower = Follower(spare=spare)
    rows, expected, sizes, over = run(script, follower)
    have = rows.present("in_old_ns").tolist()
    for (life, spent), has, time in zip(expected, have, rows.in_old_ns.tolist(), strict=True):
        assert (time if has else None) == spent or (not has and life in over)
    assert follower.forgotten == 0
    for lives, sockets, waiting in sizes:
        # At most one living life a socket, the rows that wait, and what is not worth a copy.
        assert sockets <= 12
        if not waiting:
            assert lives <= max(spare, 12 + max(spare // 2, 12))


@given(events(40), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_with_too_many_lives_times_are_missing_and_never_wrong(
    script: list[Event], most: int, spare: int
) -> None:
    follower = Follower(most=most, spare=spare)
    rows, expected, sizes, over = run(script, follower)
    have = rows.present("in_old_ns").tolist()
    for (life, spent), has, time in zip(expected, have, rows.in_old_ns.tolist(), strict=True):
        assert (time if has else None) == spent or (not has and (life in over or follower.forgotten))
    for lives, sockets, waiting in sizes:
        assert sockets <= lives
        if not waiting:
            assert lives <= max(spare, 2 * most + spare)


def test_sockets_that_were_not_met_are_not_remembered_and_break_nothing() -> None:
    """Destroyed sockets of all other traffic arrive, while a port filter keeps their transitions away."""
    follower = Follower(spare=64)
    now = 0
    for batch in range(40):
        n = 200
        kind = np.full(n, tr.DESTROY)
        kind[::50] = tr.TRANSITION
        table = TransitionTable.from_columns(
            {
                "kind": kind, "sk": batch * n + np.arange(n) + 1, "time_ns": now + np.arange(n),
                "oldstate": np.full(n, tcp.CLOSE), "newstate": np.full(n, tcp.SYN_SENT),
                "sport": np.ones(n), "dport": np.ones(n),
            }
        )  # fmt: skip
        now += n
        follower.feed(table, np.zeros(n, np.uint64), now)
        follower.look(tr.SocketDump(SocketTable.empty(), now, now))
        rows = follower.take(now)
        assert (rows.life >= 0).tolist() == (kind == tr.TRANSITION).tolist()
        follower._renumber(np.ones(len(follower._lives), np.bool_))
        assert len(follower._lives.addresses) == 4 * (batch + 1)


def test_an_address_that_is_used_again_ends_the_life_whose_end_was_filtered_out() -> None:
    """With a port filter every connection's first event passes (it has no port yet), its last does not."""
    follower = Follower(spare=64)
    now = 0
    for _ in range(2000):
        table = TransitionTable.from_columns(
            {
                "kind": [tr.TRANSITION] * 8, "sk": list(range(1, 9)), "time_ns": [now + k for k in range(8)],
                "oldstate": [tcp.CLOSE] * 8, "newstate": [tcp.SYN_SENT] * 8, "sport": [0] * 8, "dport": [9] * 8,
            }
        )  # fmt: skip
        now += 10
        follower.feed(table, np.zeros(8, np.uint64), now)
        follower.look(tr.SocketDump(SocketTable.empty(), now, now))
        follower.take(now)
    assert len(follower._lives) <= 128
    assert len(follower.staying(now, 0, tcp.ALL_STATES)) == 8
