"""What speaks against a plan as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.view import NamespaceView
from finwait.remedy import making
from finwait.remedy.guards import Limits
from finwait.remedy.plan import Refusal
from tests.unit.diagnosis.test_rules import HELD
from tests.unit.diagnosis.views import view

APP = {500: ProcessView(500, "app")}


def refused(
    count: int, limits: Limits | None = None, *, dumped: tuple[bool, ...] = (True,)
) -> tuple[Refusal, ...]:
    """What speaks against a plan for all that a process holds."""
    rows = [HELD | {"inode": k, "cookie": k, "sport": k} for k in range(1, count + 1)]
    spaces = {k: NamespaceView(k, dumped=whole) for k, whole in enumerate(dumped, 1)}
    v = view(*rows, holders={k: [500] for k in range(1, count + 1)}, processes=APP, namespaces=spaces)
    found = engine.diagnose(v, catalogue.rules())
    return making.make(v, found, np.ones(len(v), np.bool_), limits or Limits()).refused


@pytest.mark.parametrize(("count", "guards"), [(9, []), (10, ["share"])])
def test_a_plan_that_takes_most_of_ten_connections_of_a_process_is_refused(
    count: int, guards: list[str]
) -> None:
    assert [refusal.guard for refusal in refused(count)] == guards


@pytest.mark.parametrize(
    ("dumped", "seen"),
    [
        ((True,), ""),
        ((True, True), ""),
        ((True, False), " that were looked at"),
        ((False,), " that were looked at"),
    ],
)
def test_where_not_every_connection_was_looked_at_the_share_is_of_those_that_were(
    dumped: tuple[bool, ...], seen: str
) -> None:
    (refusal,) = refused(12, dumped=dumped)
    assert refusal.reason == f"the plan touches 12 of the 12 connections of app (pid 500){seen}"


@pytest.mark.parametrize(("most", "guards"), [(11, ["max"]), (12, [])])
def test_a_plan_for_more_connections_than_allowed_is_refused(most: int, guards: list[str]) -> None:
    limits = Limits(max_connections=most, share=1.0)
    assert [refusal.guard for refusal in refused(12, limits)] == guards
    assert refused(12, Limits(max_connections=1, share=1.0, override=frozenset({"max"}))) == ()
    assert refused(12, Limits(max_connections=12, override=frozenset({"share"}))) == ()
