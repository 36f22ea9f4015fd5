"""Turns and purse: suspects first, then what was not seen for longest, within a share."""

from __future__ import annotations

import pytest

from finwait.agent.schedule import CounterReading, Purse, Turns


def reading(
    netns: int, *, in_use: int = 0, established: int = 0, timewait: int = 0, listeners: int = 0
) -> CounterReading:
    return CounterReading(netns, in_use, listeners, established, timewait)


def ticked(*readings: CounterReading, now: float = 0.0) -> Turns:
    turns = Turns()
    turns.tick(readings, [r.netns for r in readings], now)
    return turns


def test_counters_tell_what_can_hold_something_closing() -> None:
    assert reading(1, in_use=5, listeners=2, established=3).closing == 0
    assert reading(1, in_use=9, listeners=2, established=3).closing == 4
    assert reading(1, in_use=2, listeners=2).may_hold == 0
    assert reading(1, timewait=1).may_hold == 1


def test_what_is_empty_needs_no_walk_and_counts_as_seen() -> None:
    turns = ticked(reading(1, in_use=2, listeners=2), now=100.0)
    assert turns.due(10.0, 100.0) == []
    assert turns.unseen_s(130.0) == {1: 30.0}
    assert turns.unseen == 0


def test_listeners_of_an_earlier_count_prove_nothing_empty() -> None:
    turns = ticked(CounterReading(1, 2, 2, 0, 0, closing_counted=False), now=100.0)
    assert turns.unseen == 1
    assert turns.due(10.0, 100.0) == [1]


def test_suspects_come_first_by_how_much_they_rose_then_the_longest_unseen() -> None:
    turns = ticked(*(reading(n, in_use=10, established=10) for n in (1, 2, 3, 4)))
    for at, netns in ((10.0, 3), (20.0, 1), (30.0, 2), (40.0, 4)):
        turns.walked(netns, at, 0.001, 0)
    turns.tick(
        [reading(4, in_use=30, established=10), reading(2, in_use=15, established=10)], [1, 2, 3, 4], 100.0
    )
    assert turns.due(10.0, 100.0) == [4, 2, 3, 1]


def test_what_was_never_walked_is_older_than_everything() -> None:
    turns = ticked(reading(1, established=1, in_use=1), now=0.0)
    turns.walked(1, 0.0, 0.001, 0)
    turns.tick([reading(2, established=1, in_use=1)], [1, 2], 1000.0)
    assert turns.due(10.0, 1000.0) == [2, 1]
    assert turns.unseen == 1


def test_what_a_walk_has_explained_is_no_suspect() -> None:
    turns = ticked(reading(1, in_use=7, established=2))
    turns.walked(1, 0.0, 0.001, 5)
    assert turns.due(10.0, 5.0) == []
    assert turns.due(10.0, 15.0) == [1]


def test_a_purse_limits_the_turn_by_what_walks_cost_last() -> None:
    turns = ticked(*(reading(n, in_use=1, established=1) for n in range(10)))
    for n in range(10):
        turns.walked(n, float(n), 0.01, 0)
    assert turns.due(0.035, 50.0) == [0, 1, 2]


def test_one_that_is_dearer_than_the_purse_holds_is_walked_all_the_same_in_the_end() -> None:
    turns = ticked(reading(1, in_use=1, established=1))
    turns.walked(1, 0.0, 5.0, 0)
    assert turns.due(2.0, 59.0) == []
    assert turns.due(2.0, 60.0) == [1]


def test_one_that_cannot_be_entered_does_not_keep_others_waiting_and_stays_unseen() -> None:
    turns = ticked(reading(1, in_use=1, established=1), reading(2, in_use=1, established=1))
    turns.failed(1, 10.0, 0.0)
    turns.walked(2, 10.0, 0.001, 0)
    assert turns.unseen == 1
    assert turns.due(10.0, 11.0) == [1]


def test_namespaces_that_are_gone_are_forgotten() -> None:
    turns = ticked(reading(1, in_use=1, established=1), reading(2))
    turns.tick([], [2], 1.0)
    assert len(turns) == 1


@pytest.mark.parametrize("share", [0.001, 0.01, 1.0])
def test_a_purse_earns_its_share_and_saves_only_so_much(share: float) -> None:
    purse = Purse(share, left_s=0.0)
    purse.earn(0.0)
    purse.earn(10.0)
    assert purse.left_s == pytest.approx(min(0.5, 10 * share))
    purse.pay(5.0)
    assert not purse.solvent
    assert purse.lasts_s() == pytest.approx((5.0 - min(0.5, 10 * share)) / share)
    purse.earn(1e9)
    assert purse.left_s == 0.5


def test_a_clock_that_goes_back_earns_nothing() -> None:
    purse = Purse(0.01, left_s=1.0)
    purse.earn(100.0)
    purse.earn(50.0)
    assert purse.left_s == 1.0
