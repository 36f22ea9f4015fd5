"""Numbers of the last looks, and how they are drawn: a look that failed is neither a 0 nor nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.report.history import History
from finwait.report.sparkline import BEFORE, FAILED, bar, graph, sparkline


def of(*numbers: float | None, every_s: float = 10.0) -> History:
    history = History()
    for k, number in enumerate(numbers):
        if number is None:
            history.failed(every_s * k)
        else:
            history.look(every_s * k, {"stuck": number})
    return history


def test_a_look_that_failed_is_a_gap_and_what_was_before_the_first_is_nothing():
    history = of(3, None, 0, 5)
    assert history.levels("stuck", 6, 60) == [3, None, 0, 5]
    assert sparkline(history.levels("stuck", 6, 60), 6) == f"··▅{FAILED}▁█"


def test_what_nobody_counted_again_is_a_dot_and_not_the_same_point_once_more():
    history = History()
    history.look(0, {"stuck": 3})
    for second in range(2, 48, 2):
        history.late(second)
    history.look(48, {"stuck": 6})
    levels = history.levels("stuck", 6, 60)
    assert sparkline(levels, 6) == f"{BEFORE}▅{BEFORE * 3}█"
    assert [line[-1] for line in graph(levels[:-1], 6, 2)] == [" ", BEFORE]
    assert history.per_minute("stuck") == pytest.approx(3.75)
    history.late(50)
    assert history.per_minute("stuck") == pytest.approx(3.75), "what it was at the last count"
    assert sparkline(history.levels("stuck", 6, 60), 6)[-1] == BEFORE


def test_a_cell_in_which_somebody_counted_shows_that():
    history = History()
    history.look(1, {"stuck": 3})
    history.late(3)
    assert history.levels("stuck", 1, 10) == [3]


def test_a_name_that_a_look_does_not_have_was_zero():
    assert of(3, 4).levels("other", 2, 20) == [0, 0]


def test_names_beyond_the_bound_are_not_known_rather_than_zero():
    history = History(names=2)
    history.look(0, {"a": 1, "b": 2, "c": 3})
    assert history.levels("b", 1, 10) == [2]
    assert history.levels("c", 1, 10) == [None]
    assert history.per_minute("c") is None


def test_between_looks_what_the_last_one_said_holds():
    history = of(1, 4, every_s=120)
    assert history.levels("stuck", 6, 120) == [1, 1, 1, 1, 1, 4]


def test_a_number_stays_in_its_cell_while_time_goes_on():
    history = History()
    drawn = []
    for second in range(200):
        history.look(second, {"n": second // 20})
        drawn.append(tuple(history.levels("n", 5, 50)))
    for before, after in pairwise(drawn[60:]):
        assert after[:-1] in (before[:-1], (*before[1:-1], after[-2]))


def test_the_ring_forgets_the_oldest_looks():
    history = History(looks=3)
    for k in range(10):
        history.look(k, {"n": k})
    assert len(history) == 3
    assert history.levels("n", 10, 10) == [7, 8, 9]


def test_a_look_at_an_earlier_moment_forgets_what_came_after_it():
    history = of(1, 2, 3)
    history.look(10, {"stuck": 7})
    assert len(history) == 2
    assert history.levels("stuck", 2, 20) == [1, 7]


def test_a_rate_compares_with_the_oldest_known_look_of_the_last_minute():
    assert of(100, 100, 5, 6, 7, 8, 9, 11).per_minute("stuck") == pytest.approx(-89)
    assert of(100, None, 5, 6, 7, 8, 9, 11).per_minute("stuck") == pytest.approx(60 * 6 / 50)
    assert of(7, 4).per_minute("stuck") == pytest.approx(-18)
    assert of(4).per_minute("stuck") is None
    assert of(4, None).per_minute("stuck") is None
    assert of(None, 4).per_minute("stuck") is None
    assert History().per_minute("stuck") is None
    assert History().levels("stuck", 5, 60) == []


@given(st.lists(st.none() | st.floats(0, 1e9), max_size=40), st.integers(0, 30), st.floats(0, 1e9))
def test_a_sparkline_has_its_width_and_never_draws_something_as_nothing(levels, width, top):
    drawn = sparkline(levels, width, top)
    assert len(drawn) == width
    shown = levels[-width:] if width else []
    for number, block in zip(shown, drawn[width - len(shown) :], strict=True):
        assert (block == FAILED) == (number is None)
        if number is not None:
            assert (block == "▁") == (number == 0)


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.integers(0, 30))
def test_a_bar_has_its_width_and_is_empty_only_for_nothing(number, most, width):
    drawn = bar(min(number, most), most, width)
    assert len(drawn) == width
    assert bool(drawn.strip()) == (min(number, most) > 0 and width > 0)


def test_a_graph_is_finer_than_a_sparkline():
    assert graph([1, None, 0, 16, 8], 6, 2) == [
        "    █ ",
        f"{BEFORE}▁{FAILED}▁██",
    ]


@given(st.lists(st.none() | st.floats(0, 1e9), max_size=40), st.integers(0, 30), st.integers(1, 6))
def test_a_graph_has_its_size_and_its_lowest_line_is_a_sparkline_of_what_is_there(levels, width, height):
    lines = graph(levels, width, height)
    assert len(lines) == height
    assert {len(line) for line in lines} == {width}
    for drawn, lowest in zip(sparkline(levels, width), lines[-1], strict=True):
        assert (drawn == FAILED) == (lowest == FAILED)
        assert (drawn == BEFORE) == (lowest == BEFORE)
        assert lowest != " "
