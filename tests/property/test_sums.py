"""Sums over random sequences: no arithmetic leaves its domain, and the picture that comes of it can be read."""

from __future__ import annotations

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.agent import protocol
from finwait.agent.episodes import Book, Instant
from finwait.agent.leak import WINDOWS_S, Growth, Used, WindowEnd
from finwait.agent.tally import Tally
from finwait.uapi import tcp
from tests.agent_world import S, Sock, cause_of, said, table
from tests.unit.agent.test_metrics import PICTURE

AMOUNT = st.integers(0, 1 << 40) | st.integers(0, 20)
SUBJECTS = (("nofile", 1), ("nofile", 2), ("tcp-mem", 0))
LIMITS = st.lists(st.tuples(AMOUNT, AMOUNT), min_size=2, max_size=len(SUBJECTS))
STEP = st.tuples(
    st.sampled_from((300.0, 300.0, 300.0, 330.0, 1.0, 3600.0, 90_000.0)),  # that pass
    st.sampled_from((30, 30, 30, 10, 10, 1, 0, -5, -100)),  # connections more
    LIMITS,
    st.sampled_from((False, False, False, True)),  # whether the agent is started anew
)


def readable(tally: Tally, book: Book, boot_ns: int) -> protocol.RoundPicture:
    """The picture as another process reads it."""
    values = {
        "groups": tally.groups(book, boot_ns),
        "limits": tally.limits,
        "opened": tally.opened,
        "ended": tally.ended,
        "durations": tally.durations,
    }
    picture = protocol.RoundPicture(
        **{name: getattr(PICTURE, name) for name in PICTURE.__struct_fields__} | values
    )
    again = protocol.decode_answer(protocol.encode(protocol.AgentAnswer(picture=picture))).picture
    assert again == picture
    return picture


@given(st.lists(STEP, min_size=6, max_size=14))
@settings(max_examples=150, deadline=None)
def test_whatever_comes_and_goes_the_sums_are_numbers_and_rates_never_negative(
    steps: list[tuple[float, int, list[tuple[int, int]], bool]],
) -> None:
    now_s, count, tally = 1000.0, 0, Tally(15.0)
    for passed, more, limits, anew in steps:
        now_s, count = now_s + passed, max(0, count + more)
        now = Instant(int(now_s * S), 0)
        socks = [Sock(k, tcp.CLOSE_WAIT, sport=k, pid=1 + k % 2, since_ns=S) for k in range(1, count + 1)]
        if anew:
            stored, tally = tally.marks, Tally(15.0)
            tally.restore(
                {key: [(w, m) for w, ms in several.items() for m in ms] for key, several in stored.items()}
            )
        book = Book("b")
        book.walked([table(socks, now.boot_ns)], [1], now)
        book.diagnosed(said(socks, [cause_of(s) for s in socks]), now, everything=True)
        tally.opened_more(book.count_opened())
        tally.mark(
            book,
            now_s,
            [
                Used(kind, f"pid {pid}", used, most, workload=f"program{pid}" if pid else "")
                for (kind, pid), (used, most) in zip(SUBJECTS, limits, strict=False)
            ],
        )
        picture = readable(tally, book, now.boot_ns)
        assert all(group.rate >= 0 and math.isfinite(group.rate) for group in picture.groups)
        assert all(limit.reached_s is None or 0 <= limit.reached_s < math.inf for limit in picture.limits)


MARKS = st.lists(
    st.tuples(st.sampled_from((0.0, 60.0, *map(float, WINDOWS_S))), AMOUNT, AMOUNT, AMOUNT), max_size=20
)


@given(MARKS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_marks_give_a_rate_and_none_where_the_number_fell(
    steps: list[tuple[float, int, int, int]], restored: bool
) -> None:
    growth, at, marks = Growth(), 0.0, list[WindowEnd]()
    for passed, survivors, arrived, departed in steps:
        at += passed
        marks.append(WindowEnd(at, survivors, arrived, departed))
    if restored:
        growth.restore((window, mark) for window in WINDOWS_S for mark in marks)
    else:
        for mark in marks:
            growth.mark(mark)
    assert growth.rate >= 0
    assert math.isfinite(growth.rate)
    if all(b.survivors <= a.survivors for a, b in itertools.pairwise(marks)):
        assert growth.rate == 0
