"""Deadlines in coarse slots: nothing is visited too early, and nothing is forgotten."""

from __future__ import annotations

import random

from finwait.relay.wheel import GRAIN, Wheel


class Thing:
    def __init__(self) -> None:
        self.slot = 0


def visited(wheel: Wheel[Thing], thing: Thing, start: float, until: float) -> float:
    """Turn the wheel as a loop would; return when the thing was visited."""
    now = start
    while now < until:
        now += 0.1
        if thing in wheel.due(now):
            return now
    raise AssertionError("never visited")


def test_what_is_put_in_is_visited_after_its_time_and_soon() -> None:
    chance = random.Random(1)
    for _ in range(200):
        start = chance.uniform(1, 1e6)
        wheel: Wheel[Thing] = Wheel(start)
        thing, at = Thing(), start + chance.uniform(0, 30)
        wheel.put(thing, at, start)
        when = visited(wheel, thing, start, at + 5)
        assert at <= when <= at + 2 * GRAIN + 0.1
        assert thing.slot == 0


def test_what_is_due_already_comes_at_the_next_turn() -> None:
    wheel: Wheel[Thing] = Wheel(100.0)
    thing = Thing()
    wheel.put(thing, 3.0, 100.0)
    assert wheel.due(100.0) == ()
    assert wheel.due(100.0 + GRAIN) == [thing]
    assert wheel.due(100.0 + 2 * GRAIN) == []


def test_a_thing_lies_in_one_place_only() -> None:
    wheel: Wheel[Thing] = Wheel(0.0)
    thing = Thing()
    for at in (1.0, 9.0, 2.0, 5.0):
        wheel.put(thing, at, 0.0)
    found = [now for now in range(20) if thing in wheel.due(float(now))]
    assert found == [6], "put in last for 5 s, and due in the turn after"


def test_what_was_removed_is_not_visited() -> None:
    wheel: Wheel[Thing] = Wheel(0.0)
    stays, goes = Thing(), Thing()
    for thing in (stays, goes):
        wheel.put(thing, 1.0, 0.0)
    wheel.remove(goes)
    wheel.remove(goes)
    assert wheel.due(10.0) == [stays]


def test_a_deadline_far_away_is_looked_at_once_an_hour() -> None:
    wheel: Wheel[Thing] = Wheel(0.0)
    thing = Thing()
    wheel.put(thing, float("inf"), 0.0)
    assert wheel.due(3600.0) == []
    assert wheel.due(3601.0) == [thing]
