"""What is said of an act by what is left of the connection: never "ended" while an end that should be gone is there."""

from __future__ import annotations

from typing import Any

import pytest

from finwait.acting.aftermath import Seen, should_end_too, still_there
from finwait.acting.apply import _outcome, batches
from finwait.acting.identity import Key, key_of
from finwait.errors import FinwaitError, TargetGone
from finwait.remedy.outcome import Outcome
from finwait.remedy.plan import Step
from finwait.remedy.steps import step_of
from finwait.uapi import tcp
from tests.unit.diagnosis.test_rules import HELD, INFO
from tests.unit.diagnosis.views import socket, view

FAR = socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, state=tcp.CLOSE_WAIT, inode=8, **INFO)
FAR |= {"cookie": 2}
OPEN = ((500, 3, "app"),)


def step(means: Any, *, far: bool = True, state: int = tcp.FIN_WAIT2) -> Step:
    near = HELD | {"state": state, "shutdown": 1 if state == tcp.CLOSE_WAIT else 2}
    return step_of(view(near, *([FAR] if far else []), holders={7: [500]}), 0, "", means)


def told(
    means: Any,
    near: Seen | None = None,
    other: Seen | None = None,
    error: FinwaitError | None = None,
    **more: Any,
) -> Outcome:
    one = step(means, **more)
    left: dict[Key, Seen] = {}
    if near is not None:
        left[key_of(one)] = near
    if other is not None:
        assert one.other is not None
        left[key_of(one.other)] = other
    return _outcome(one, error, left, {key_of(one): OPEN}, 12)


def parts(found: Outcome) -> tuple[str, str, str, bool]:
    return found.result, found.detail, found.other, found.this_end_gone


def test_where_both_ends_are_gone_it_has_ended() -> None:
    assert parts(told("destroy")) == ("ended", "both ends are gone", "gone", True)
    assert told("destroy").stays_open == OPEN
    assert told("destroy").act_id == 12


def test_an_end_that_should_have_heard_and_is_there_is_no_end() -> None:
    found = told("destroy", other=Seen("CLOSE_WAIT", 0))
    assert parts(found) == (
        "still there",
        "this end is gone; the other end is still in CLOSE_WAIT: a RST, once, not repeated did not arrive",
        "CLOSE_WAIT",
        True,
    )


def test_what_is_left_of_the_end_that_was_acted_on_is_said_by_its_state() -> None:
    for other in (None, Seen("CLOSE_WAIT", 0)):
        found = told("destroy", Seen("FIN_WAIT2", 0), other)
        where = "gone" if other is None else "CLOSE_WAIT"
        assert parts(found) == ("still there", "it is in FIN_WAIT2", where, False)
    found = told("fin", Seen("FIN_WAIT2", 0), Seen("CLOSE_WAIT", 0))
    assert parts(found)[:2] == ("still there", "FIN sent; FIN_WAIT2 until the peer closes")


@pytest.mark.parametrize(
    ("other", "result", "detail"),
    [
        (None, "ended", "FIN sent; LAST_ACK until the peer acknowledges it; the other end is gone"),
        (
            Seen("FIN_WAIT2", 0),
            "still there",
            "FIN sent, and it did not arrive: LAST_ACK here, and FIN_WAIT2 at the other end",
        ),
        (Seen("", 0, unknown=True), "still there", "FIN sent; LAST_ACK until the peer acknowledges it"),
    ],
)
def test_a_fin_in_last_ack_is_over_where_its_other_end_is(
    other: Seen | None, result: str, detail: str
) -> None:
    found = told("fin", Seen("LAST_ACK", 0), other, state=tcp.CLOSE_WAIT)
    assert parts(found)[:2] == (result, detail)
    assert found.this_end_gone is (result == "ended")


def test_without_an_other_end_here_a_fin_in_last_ack_is_not_over() -> None:
    found = told("fin", Seen("LAST_ACK", 0), far=False, state=tcp.CLOSE_WAIT)
    assert parts(found) == ("still there", "FIN sent; LAST_ACK until the peer acknowledges it", "", False)


def test_a_fin_behind_bytes_that_nobody_takes_was_not_sent() -> None:
    found = told("fin", Seen("LAST_ACK", 90), Seen("FIN_WAIT2", 0), state=tcp.CLOSE_WAIT)
    assert parts(found) == (
        "still there",
        "the FIN waits behind 90 bytes that its peer has not taken; LAST_ACK",
        "FIN_WAIT2",
        False,
    )


def test_the_other_end_of_another_machine_was_not_seen() -> None:
    found = told("destroy", far=False)
    assert parts(found) == (
        "ended",
        "its other end was not seen; it sees a RST, once, not repeated",
        "",
        True,
    )
    hidden = told("destroy", other=Seen("", 0, unknown=True))
    assert hidden.result == "ended"
    assert hidden.detail.startswith("its other end is in a namespace that could not be inspected; it sees")
    assert hidden.other == ""


def test_what_cannot_be_seen_any_more_has_an_unknown_end() -> None:
    found = told("destroy", Seen("", 0, unknown=True))
    assert parts(found)[:2] == (
        "failed",
        "it was done, but the result is unknown: its namespace could not be inspected",
    )


def test_an_act_that_failed_is_said_to_have_and_one_that_came_too_late_too() -> None:
    assert parts(told("destroy", error=FinwaitError("no right")))[:2] == ("failed", "no right")
    late = told("destroy", error=TargetGone(1))
    assert (late.result, late.act_id) == ("left before", 12)


@pytest.mark.parametrize(
    ("means", "cells", "hears"),
    [
        ("destroy", {}, True),
        ("reset", {}, True),
        ("fin", {}, True),
        ("fin", {"rqueue": 9}, True),
        ("destroy", {"inode": 0}, True),
        ("destroy", {"state": tcp.LAST_ACK}, False),
        ("keepalive", {}, False),
        ("user-timeout", {}, False),
    ],
)
def test_the_other_end_should_end_too_where_it_hears_of_it(
    means: Any, cells: dict[str, Any], hears: bool
) -> None:
    assert should_end_too(step_of(view(HELD | cells), 0, "", means)) is hears


def test_of_nothing_nothing_is_still_there() -> None:
    assert still_there([]) == {}
    assert list(batches([], 0)) == []
    assert [list(part) for part in batches(range(251), 0)] == [list(range(250)), [250]]
