"""Relay pairs in a plan: both legs are ended, or none."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.view import View
from finwait.remedy import making, plan_file
from finwait.remedy.guards import Abilities, Limits
from finwait.remedy.plan import Plan
from finwait.report.plan import plan_json, plan_lines
from tests.unit.diagnosis.test_relay_legs import DOOR, half, relay, wait
from tests.unit.diagnosis.views import view


def make(v: View, limits: Limits | None = None, only: list[int] | None = None, **more: Any) -> Plan:
    """Make a plan for some cookies; for all of them."""
    findings = engine.diagnose(v, catalogue.rules())
    s = v.sockets
    rows = s.inode > 99 if only is None else np.isin(s.cookie, only)
    return making.make(v, findings, rows, limits or Limits(), **more)


def acts(plan: Plan) -> list[tuple[int, str, int]]:
    return sorted((int(step.cookie, 16), step.means, step.pair) for step in plan.steps)


def left(plan: Plan) -> list[tuple[int, str]]:
    return sorted((int(one.end.cookie, 16), one.guard) for one in plan.left)


def two() -> View:
    return relay(wait(1), half(1), wait(2, 9_000), half(2, 9_000))


def crowd(**of_one: Any) -> View:
    return relay(wait(1, **of_one), half(1), wait(2), half(2))


def test_a_pair_is_two_steps_of_one_number() -> None:
    plan = make(two())
    assert acts(plan) == [(101, "fin", 1), (102, "fin", 2), (201, "destroy", 1), (202, "destroy", 2)]
    assert plan_file.decode(plan_json(plan)).steps[0].pair == 1


def test_a_guard_that_keeps_one_leg_keeps_the_other() -> None:
    v = two()
    plan = make(v, Limits(min_age_ms=20_000))
    assert left(plan) == [(102, "min-age"), (202, "min-age")]
    assert acts(plan) == [(101, "fin", 1), (201, "destroy", 1)]
    old = make(relay(wait(1, 60_000), half(1, 59_900)), Limits(min_age_ms=60_000))
    assert acts(old) == []
    assert left(old) == [(101, "pair"), (201, "min-age")]
    reason = next(one.reason for one in old.left if one.guard == "pair")
    assert "its other leg is left alone by guard `min-age`" in reason
    anyway = make(
        relay(wait(1, 60_000), half(1, 59_900)), Limits(min_age_ms=60_000, override=frozenset({"pair"}))
    )
    assert acts(anyway) == [(101, "fin", 0)]


@pytest.mark.parametrize("cookie", [101, 201])
def test_a_leg_that_is_selected_takes_the_other_leg_of_a_known_pair_in(cookie: int) -> None:
    plan = make(two(), only=[cookie])
    assert acts(plan) == [(101, "fin", 1), (201, "destroy", 1)]
    (taken,) = (step for step in plan.steps if int(step.cookie, 16) != cookie)
    assert "not selected" in taken.note
    text = " ".join("".join(plan_lines(plan)).split())
    assert "not selected, but the other leg of a connection that is" in text


def test_of_legs_that_may_belong_together_all_are_selected_or_none_is_ended() -> None:
    assert [number for _, _, number in acts(make(crowd()))] == [1] * 4
    some = make(crowd(), only=[101, 102, 201])
    assert acts(some) == []
    assert left(some) == [(101, "pair"), (102, "pair"), (201, "pair")]
    assert "not all 4 legs that may belong together are selected" in some.left[0].reason


def test_a_guard_that_keeps_one_of_several_legs_keeps_them_all() -> None:
    plan = make(crowd(last_ack_recv_ms=59_900), Limits(min_age_ms=60_000))
    assert acts(plan) == []
    assert left(plan) == [(101, "min-age"), (102, "pair"), (201, "pair"), (202, "pair")]
    assert (
        "of the 4 legs that may belong together 1 are left alone by guard `min-age`" in plan.left[-1].reason
    )


def test_what_cannot_be_done_to_one_leg_is_not_done_to_the_other() -> None:
    plan = make(two(), force="fin")
    assert acts(plan) == []
    assert left(plan) == [(101, "pair"), (102, "pair"), (201, "means"), (202, "means")]


@pytest.mark.parametrize("means", ["keepalive"])
def test_a_means_that_ends_nothing_by_itself_knows_no_pairs(means: Any) -> None:
    assert acts(make(two(), only=[101], force=means)) == [(101, means, 0)]


def again(plan: Plan, v: View, limits: Limits | None = None) -> Plan:
    return making.again(plan, v, engine.diagnose(v, catalogue.rules()), limits or Limits(), can=Abilities())


def test_a_plan_from_a_file_from_which_one_leg_was_cut_ends_none() -> None:
    """The look finds the pair again, also where the file does not say that there is one."""
    plan = make(two())
    cut = msgspec.structs.replace(
        plan, steps=tuple(msgspec.structs.replace(step, pair=0) for step in plan.steps[:1])
    )
    assert left(again(cut, two())) == [(101, "pair")]
    assert "its other leg is not in the plan" in again(cut, two()).left[0].reason
    assert len(again(cut, two(), Limits(override=frozenset({"pair"}))).steps) == 1
    assert acts(again(plan, two())) == acts(plan)


def test_a_plan_from_a_file_of_which_one_leg_has_ended_leaves_the_other_alone() -> None:
    plan = make(two(), only=[101])
    fresh = again(plan, relay(wait(1), wait(2, 9_000), half(2, 9_000)))
    assert [step.gone for step in fresh.steps] == [True]
    assert left(fresh) == [(101, "pair")]
    assert "another leg has ended" in fresh.left[0].reason


def test_the_end_of_a_leg_that_is_here_gives_the_fin_and_belongs_to_the_pair() -> None:
    far = wait(9, src="192.0.2.9", sport=8080, dst="10.0.0.1", dport=5001, inode=300, cookie=300)
    far |= {"bytes_received": 11, "bytes_acked": 0}

    def with_far(age: int) -> View:
        return view(DOOR, wait(1, age), half(1), far, holders={5: [9], 101: [9], 201: [9], 300: [10]})

    plan = make(with_far(60_000))
    assert acts(plan) == [(101, "fin", 1), (300, "fin", 1)]
    young = Limits(min_age_ms=60_000)
    kept = make(with_far(59_950), young)
    assert acts(kept) == [(300, "fin", 0)], "the far server's own close() is what the relay waits for"
    assert (201, "pair") in left(kept)
