"""Every lab scenario is diagnosed exactly: its rule on its rows, other rules on the others, nothing more."""

from __future__ import annotations

import time

import pytest

from finwait import session
from finwait.diagnosis.view import Options
from finwait.kernel.observe import LookPlan
from finwait.lab.differences import Difference, differences
from finwait.lab.scenario import Expected, Scenario, Situation, scenarios
from finwait.lab.topology import Lab, unmet
from finwait.session import Diagnosis, Look
from finwait.table.sockets import address_text
from tests.captures.make import walled_off
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel

Key = tuple[int, int, str, int, str, int]
DEADLINE_S = 40.0
STEADY_S = 5.0
"""After so long without a change, a rule on rows that are to have none is wrong; time adds evidence only."""


def key_of(one: Expected) -> Key:
    plain = [a.removeprefix("::ffff:") if "." in a else a for a in (one.src, one.dst)]
    return (one.netns, one.protocol, plain[0], one.sport, plain[1], one.dport)


def looked(situation: Situation, scenario: Scenario) -> Diagnosis:
    plan = LookPlan(only=frozenset(situation.namespaces.values()), established_limit=None)
    options = Options() if scenario.idle_ms is None else Options(idle_ms=scenario.idle_ms)
    return session.diagnose(
        how=Look(plan=plan, options=options, watch_ms=scenario.watch_ms, not_holders=walled_off())
    )


@pytest.mark.parametrize("scenario", scenarios().values(), ids=lambda s: s.name)
def test_a_scenario_is_explained_row_by_row(scenario: Scenario) -> None:
    if lacking := unmet(scenario.needs):
        missing("; ".join(lacking))
    with Lab() as lab:
        situation = scenario.build(lab).settle()
        end = time.monotonic() + DEADLINE_S
        before: list[Difference] = []
        # Retransmissions and accept queues become evidence with time; what is wrong stays wrong.
        while differs := differences(situation, looked(situation, scenario)):
            now = time.monotonic()
            if differs != before:
                before, since = differs, now
            only_more = not any(one.missing for one in differs)
            if now > end or (only_more and now > since + STEADY_S):
                break
            time.sleep(0.1)
        assert not differs, told(differs)


def told(differs: list[Difference]) -> str:
    """What a person who changed a rule is to read."""
    advice = "if a new rule takes a row of another scenario, name it there, under `others`"
    return "\n".join(["", *map(str, differs), advice])


@pytest.mark.parametrize("scenario", scenarios().values(), ids=lambda s: s.name)
def test_the_holders_that_are_told_are_the_programs_that_hold(scenario: Scenario) -> None:
    if lacking := unmet(scenario.needs):
        missing("; ".join(lacking))
    with Lab() as lab:
        situation = scenario.build(lab).settle()
        view = looked(situation, scenario).view
        s = view.sockets
        rows = {
            (
                int(s.netns[r]),
                int(s.protocol[r]),
                address_text(*(int(x) for x in s.src[r])),
                int(s.sport[r]),
                address_text(*(int(x) for x in s.dst[r])),
                int(s.dport[r]),
            ): r
            for r in range(len(s))
        }
        for one in situation.all:
            if one.state != "CLOSE" and one.protocol == 6:
                assert set(view.holders.of(rows[key_of(one)])) == set(one.owners), one
