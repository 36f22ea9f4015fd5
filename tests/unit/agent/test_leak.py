"""Growth of survivors: a leak is one, a spike, a step and noise are none."""

from __future__ import annotations

import random

import pytest

from finwait.agent.leak import Growth, Used, WindowEnd, reached_in_s


def grown(values: list[int], *, step_s: float = 300.0, churn: int = 0) -> Growth:
    """Marks of these survivors, of which at each mark ``churn`` left and as many came."""
    growth, arrived, departed = Growth(), 0, 0
    for k, n in enumerate(values):
        before = values[k - 1] if k else 0
        arrived += max(n - before, 0) + churn
        departed += max(before - n, 0) + churn
        growth.mark(WindowEnd(k * step_s, n, arrived, departed))
    return growth


def test_a_leak_is_told_after_three_windows_at_its_rate() -> None:
    assert grown([0, 150, 300]).rate == 0
    assert grown([0, 150, 300, 450]).rate == pytest.approx(0.5)


def test_a_step_at_a_deploy_is_no_leak_even_across_the_end_of_a_window() -> None:
    for values in ([10, 10, 1010, 1010, 1010, 1010], [10, 400, 1010, 1010, 1010, 1010]):
        assert all(grown(values[:k]).rate == 0 for k in range(len(values) + 1))


def test_a_spike_that_goes_away_is_no_leak() -> None:
    values = [5, 5, 5000, 4000, 5, 5, 5]
    assert all(grown(values[:k]).rate == 0 for k in range(len(values) + 1))


def test_a_leak_on_top_of_a_day_of_leaking_is_still_one() -> None:
    assert grown([86_400, 86_700, 87_000, 87_300]).rate == pytest.approx(1.0)


def test_what_comes_and_goes_by_chance_is_none() -> None:
    rng, growth = random.Random(1), Growth()
    alive, arrived, departed, told = 1000, 0, 0, 0
    for k in range(2000):
        growth.mark(WindowEnd(k * 300.0, alive, arrived, departed))
        told += growth.rate > 0
        come = sum(rng.random() < 0.1 for _ in range(2000))
        go = sum(rng.random() < 0.2 for _ in range(alive))
        alive, arrived, departed = alive + come - go, arrived + come, departed + go
    assert told <= 2


def test_a_slow_leak_is_seen_by_longer_windows() -> None:
    growth, told = Growth(), 0.0
    for k in range(12 * 24):  # one in ten minutes, for a day
        growth.mark(WindowEnd(k * 300.0, k // 2, k // 2, 0))
        told = max(told, growth.rate)
    assert told == pytest.approx(1 / 600, rel=0.1)


def test_a_window_in_which_nobody_looked_begins_anew() -> None:
    growth = Growth()
    for at, n in ((0, 0), (300, 100), (600, 200), (1200, 400), (1500, 500), (1800, 600)):
        growth.mark(WindowEnd(at, n, n, 0))
    assert growth.rate == 0
    growth.mark(WindowEnd(2100, 700, 700, 0))
    assert growth.rate == pytest.approx(1 / 3)


def test_marks_that_wait_for_looks_far_apart_leave_no_hole_but_a_missed_look_does() -> None:
    growth = Growth(600.0)
    for k in range(4):
        growth.mark(WindowEnd(600.0 * k, 100 * k, 100 * k, 0))
    assert growth.rate == pytest.approx(1 / 6)
    growth.mark(WindowEnd(3000.0, 500, 500, 0))
    assert growth.rate == 0


def test_marks_outlive_a_restart() -> None:
    growth = grown([0, 150, 300])
    again = Growth()
    again.restore([(window, mark) for window, marks in growth.marks.items() for mark in marks])
    again.mark(WindowEnd(900, 450, 450, 0))
    assert again.rate == pytest.approx(0.5)


def test_a_limit_is_reached_when_the_rest_is_used_up_and_never_while_nothing_grows() -> None:
    used = Used("nofile", "pid 1", 400, 1000)
    assert used.ratio == 0.4
    assert reached_in_s(used, 0.0) is None
    assert reached_in_s(used, 0.5) == 1200
    assert reached_in_s(Used("nofile", "pid 1", 1200, 1000), 0.5) == 0
