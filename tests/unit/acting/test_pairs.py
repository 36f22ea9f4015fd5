"""Legs of a relay pair: in which order they are ended, and what is left alone with what is not as planned."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from finwait.acting import apply
from finwait.errors import FinwaitError
from finwait.remedy.outcome import Outcome
from finwait.remedy.plan import Step
from finwait.remedy.steps import step_of
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view

V = view(*(socket(state=state, inode=n, cookie=n) for n, state in ((1, tcp.FIN_WAIT2), (2, tcp.CLOSE_WAIT))))
HALF, WAIT = (step_of(V, row, "relay-pair", "destroy") for row in range(2))


@pytest.mark.parametrize(
    ("step", "selected", "second"),
    [(WAIT, None, True), (WAIT, False, False), (HALF, None, False), (HALF, False, False)],
)
def test_the_leg_that_its_relay_does_not_wait_for_is_ended_last(
    step: Step, selected: bool | None, second: bool
) -> None:
    assert apply._second(msgspec.structs.replace(step, selected=selected)) is second


def test_what_is_not_as_planned_is_left_alone_with_its_other_legs_and_what_was_ended_is_not() -> None:
    pairs = [msgspec.structs.replace(step, pair=number) for number in (1, 2) for step in (HALF, WAIT)]
    steps = dict(enumerate(pairs))
    acts = apply._Acts(steps, {}, {}, cast("Any", None), {}, cast("Any", None))
    acts.errors[2] = FinwaitError("ended, and reported as that")
    bad = {k: Outcome(steps[k], "changed meanwhile", "another state") for k in (0, 2)}
    acts._leave(bad, steps)
    assert sorted(acts.unfit) == [0, 1, 3]
    assert acts.unfit[0] is bad[0]
    assert "other leg: another state" in acts.unfit[1].detail
