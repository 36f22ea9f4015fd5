"""The flight recorder's ring against a model in plain lists, over random lives of sockets that share addresses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from finwait.agent.recorder import ROW, Governor, Ring, StoryQuery, decode
from finwait.table import transitions as tr
from finwait.uapi import tcp, tracepoint

MAPPED = 0xFFFF << 32
OVER_NS = 300 * 10**9
PATHS = [
    [(1, 4), (4, 5), (5, 7)],
    [(1, 4), (4, 5)],
    [(1, 4), (4, 4), (4, 11), (11, 7)],
    [(1, 8), (8, 9), (9, 7)],
    [(1, 8)],
    [(1, 8), (8, 7)],
    [(1, 4), (4, 5), (5, 5)],
]


@dataclass
class Model:
    """The same in plain lists; a row is a tuple of its time, socket, port, old and new state."""

    most: int
    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    told: set[tuple[int, int, int, int, int]] = field(default_factory=set)
    passed: int = 0
    dropped: int = 0

    @staticmethod
    def lives(rows: list[tuple[int, int, int, int, int]]) -> list[list[tuple[int, int, int, int, int]]]:
        lives: list[list[tuple[int, int, int, int, int]]] = []
        open_: dict[int, list[tuple[int, int, int, int, int]]] = {}
        for row in sorted(rows):
            life = open_.get(row[1])
            if life is None or life[-1][4] == tcp.CLOSE or life[-1][4] != row[3] or life[-1][2] != row[2]:
                life = open_[row[1]] = []
                lives.append(life)
            life.append(row)
        return lives

    def feed(self, batch: list[tuple[int, int, int, int, int]]) -> None:
        kept = []
        for life in self.lives(batch):
            whole = life[0][3] == tcp.ESTABLISHED and life[-1][4] == tcp.CLOSE
            if whole and life[-1][3] != tcp.FIN_WAIT2:
                self.passed += 1
            else:
                kept += life
        if not kept:
            return
        kept = sorted(kept)[-self.most :]
        if len(self.rows) + len(kept) > self.most:
            self.make_room(len(kept), kept[-1][0])
        self.rows += kept

    def make_room(self, coming: int, now: int) -> None:
        target = max(0, min(self.most - coming, self.most * 3 // 4))
        closed = {row for life in self.lives(self.rows) if life[-1][4] == tcp.CLOSE for row in life}
        gone = {
            row
            for life in self.lives(self.rows)
            if life[-1][4] == tcp.CLOSE and now - life[-1][0] > OVER_NS
            for row in life
        } | self.told
        rest = [row for row in self.rows if row not in gone]
        surplus = max(0, len(rest) - target)
        order = [row for row in rest if row in closed] + [row for row in rest if row not in closed]
        self.dropped += surplus
        away = set(order[:surplus])
        self.rows = [row for row in rest if row not in away]
        self.told &= set(self.rows)


def as_rows(events: list[tuple[int, int, int, int, int]]) -> NDArray[Any]:
    rows = np.zeros(len(events), ROW)
    for row, (time, sk, port, old, new) in zip(rows, events, strict=True):
        row["time"], row["sk"], row["sport"], row["dport"] = time, sk, port, 80
        row["src"], row["dst"] = (0, MAPPED | 1), (0, MAPPED | 2)
        row["kind"], row["old"], row["new"] = tr.TRANSITION, old, new
    return rows


NO_RESETS = decode(
    tracepoint.walk(
        np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64), tracepoint.PageLayout()
    ),
    {},
    byteorder="little",
)[1]


@st.composite
def stories(draw: st.DrawFn) -> list[list[tuple[int, int, int, int, int]]]:
    """Batches of events in the order of time, no two at one time."""
    events = []
    now = 0
    walks: list[tuple[int, int, list[tuple[int, int]]]] = []
    for number in range(draw(st.integers(1, 12))):
        walks.append((draw(st.integers(1, 6)), 1000 + number % 7, list(draw(st.sampled_from(PATHS)))))
        busy: set[int] = set()
        for _ in range(draw(st.integers(0, 6))):
            k = draw(st.integers(0, len(walks) - 1))
            sk, port, steps = walks[k]
            if not steps or sk in busy:
                continue
            now += draw(st.sampled_from([1, 1000, 10**9, 200 * 10**9]))
            events.append((now, sk, port, *steps.pop(0)))
    batches: list[list[tuple[int, int, int, int, int]]] = []
    while events:
        n = draw(st.integers(1, 12))
        batches.append(events[:n])
        events = events[n:]
    return batches


@settings(max_examples=50, deadline=None)
@given(stories(), st.integers(16, 40), st.randoms(use_true_random=False))
def test_the_ring_keeps_what_the_model_keeps(
    batches: list[list[tuple[int, int, int, int, int]]], most: int, random: Any
) -> None:
    ring, model = Ring(most), Model(most)
    for batch in batches:
        kept = ring.sift(as_rows(batch), NO_RESETS, batch[-1][0])
        if len(kept):
            ring.append(kept)
        model.feed(batch)
        assert ring.passed == model.passed
        assert ring.dropped == model.dropped
        assert len(ring) == len(model.rows) <= most
        rows = ring._rows[: len(ring)]
        assert [int(t) for t in rows["time"]] == [row[0] for row in model.rows]
        if random.random() < 0.3:  # an episode opens
            port = random.randrange(1000, 1007)
            query = StoryQuery((0, MAPPED | 1, 0, MAPPED | 2, port, 80), 1, 5, -1, 1 << 62, 0)
            (found,) = ring.find([query])
            fits = [
                life
                for life in model.lives(model.rows)
                if life[0][2] == port and any(5 in (row[3], row[4]) and row[3] != row[4] for row in life)
            ]
            assert found.ambiguous == (len(fits) > 1)
            if len(fits) == 1:
                assert [int(t) for t in found.rows["time"]] == [row[0] for row in fits[0]]
                model.told |= set(fits[0])
            else:
                assert not len(found.rows)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 200_000), st.floats(0, 0.05)), max_size=60))
def test_no_more_than_the_limit_is_read_for_long(drains: list[tuple[float, int, float]]) -> None:
    governor, now, read, since = Governor(1000, 0.005), 0.0, 0, None
    for passed, events, cpu in drains:
        now += passed
        if governor.off:
            since = None
            if governor.probe_in_s(now) == 0:
                on = governor.probed(now, events // 10, 0.1)
                assert on == (not governor.off)
            continue
        since, read = (now, 0) if since is None else (since, read)
        on = governor.drained(now, events, cpu)
        assert on == (not governor.off)
        if on:
            read += events
            assert read <= 1000 * (now - since) + 1000 * Governor.BURST_S + 1
