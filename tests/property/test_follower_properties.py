"""The joining of transitions, against a model that walks them one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.table import transitions as tr
from finwait.table.sockets import SocketTable
from finwait.table.transitions import TransitionTable
from finwait.uapi import tcp

# (socket, old, new, time since the one before, end of a batch behind it, events lost before that batch)
EVENT = st.tuples(
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 10, 11]),
    st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 10, 11]),
    st.integers(1, 1000),
    st.booleans(),
    st.integers(0, 9).map(lambda n: n == 0),
)


def model(script: list[tuple[int, int, int, int, bool, bool]]) -> list[tuple[int, int | None]]:
    """Return the number of the life and the time in the old state of each event, or None."""
    alive: dict[int, tuple[int, int | None, int]] = {}  # socket → life, since, state
    out: list[tuple[int, int | None]] = []
    made = 0
    now = 0
    opening = True
    for sk, old, new, step, ends, lost in script:
        if opening and lost:
            alive = {}
        now += step
        birth = old == tcp.CLOSE or (old == tcp.LISTEN and new == tcp.SYN_RECV)
        if birth or sk not in alive:
            life, since, state = made, None, None
            made += 1
        else:
            life, since, state = alive[sk]
        out.append((life, now - since if since is not None and state == old else None))
        alive[sk] = (life, now if old != new else since, new)
        opening = ends
    return out


@given(st.lists(EVENT, max_size=60))
@settings(max_examples=400, deadline=None)
def test_lives_and_times_are_those_of_the_model_however_the_events_are_batched(script):
    follower = tr.Follower()
    batch: list[tuple[int, int, int, int]] = []
    now = 0
    lost = False
    opening = True
    tables = []

    def feed() -> None:
        n = len(batch)
        table = TransitionTable.from_columns(
            {
                "kind": [tr.TRANSITION] * n, "sk": [b[0] for b in batch], "oldstate": [b[1] for b in batch],
                "newstate": [b[2] for b in batch], "time_ns": [b[3] for b in batch], "sport": [1] * n, "dport": [2] * n,
            }
        )  # fmt: skip
        missed = np.array([5 if lost else 0])
        follower.feed(table, np.zeros(n, np.uint64), now, missed=missed)
        follower.look(tr.Look(SocketTable.empty(), now, now))
        tables.append(follower.take(now))
        batch.clear()

    for sk, old, new, step, ends, loses in script:
        if opening:
            lost = loses
        now += step
        batch.append((sk, old, new, now))
        opening = ends
        if ends:
            feed()
            follower._renumber(np.ones(len(follower._lives), np.bool_))  # memory given back at any time
    if batch:
        feed()
    rows = TransitionTable.concatenate(tables)
    expected = model(script)
    # Within one batch lives are numbered by socket: compare which events share a life, and the times.
    names: dict[int, int] = {}
    assert len(rows) == len(expected)
    for (life, spent), got, has, time in zip(
        expected, rows.life.tolist(), rows.present("in_old_ns").tolist(), rows.in_old_ns.tolist(), strict=True
    ):
        assert names.setdefault(life, got) == got
        assert (time if has else None) == spent
    assert len(set(names.values())) == len(names)
