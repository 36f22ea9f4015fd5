"""Every lab scenario is diagnosed exactly: its rule on its rows, other rules on the others, nothing more."""

from __future__ import annotations

import os
import time

import pytest

from finwait import session
from finwait.diagnosis.view import Options
from finwait.kernel import procfs
from finwait.kernel.observe import Plan
from finwait.lab.scenario import Expected, Scenario, Situation, scenarios
from finwait.lab.topology import Lab, unmet
from finwait.session import Diagnosis, Look
from finwait.table.sockets import address_text
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel

Key = tuple[int, int, str, int, str, int]
DEADLINE_S = 40.0


def key_of(one: Expected) -> Key:
    plain = [a.removeprefix("::ffff:") if "." in a else a for a in (one.src, one.dst)]
    return (one.netns, one.protocol, plain[0], one.sport, plain[1], one.dport)


def found(diagnosis: Diagnosis, *, primary: bool) -> dict[Key, str]:
    s = diagnosis.view.sockets
    result = {}
    for finding in diagnosis.findings:
        if finding.primary is primary:
            for row in finding.rows.tolist():
                src, dst = (address_text(*(int(x) for x in s[name][row])) for name in ("src", "dst"))
                key = (
                    int(s.netns[row]),
                    int(s.protocol[row]),
                    src,
                    int(s.sport[row]),
                    dst,
                    int(s.dport[row]),
                )
                result[key] = finding.rule
    return result


def looked(situation: Situation, scenario: Scenario) -> Diagnosis:
    plan = Plan(only=frozenset(situation.namespaces.values()), established_limit=None)
    options = Options() if scenario.idle_ms is None else Options(idle_ms=scenario.idle_ms)
    return session.diagnose(
        how=Look(plan=plan, options=options, watch_ms=scenario.watch_ms, not_holders=walled_off())
    )


def walled_off() -> frozenset[int]:
    """Processes that even root may not look into here (a sandbox's init); they hold none of the lab's sockets."""
    return frozenset(procfs.descriptors()[0].unreadable) if os.geteuid() == 0 else frozenset()


@pytest.mark.parametrize("scenario", scenarios().values(), ids=lambda s: s.name)
def test_a_scenario_is_explained_row_by_row(scenario: Scenario) -> None:
    if lacking := unmet(scenario.needs):
        missing("; ".join(lacking))
    with Lab() as lab:
        situation = scenario.build(lab).settle()
        wanted = {key_of(e): e.rule for e in situation.all if e.rule and e.state != "CLOSE"}
        end = time.monotonic() + DEADLINE_S
        # Retransmissions and accept queues become evidence with time; what is wrong stays wrong.
        while True:
            diagnosis = looked(situation, scenario)
            got = found(diagnosis, primary=True)
            if got == wanted or time.monotonic() > end:
                break
            time.sleep(0.1)
        assert got == wanted
        leaks = [f for f in diagnosis.findings if f.rule == "hidden-leak"]
        dead = [e for e in situation.expected if e.state == "CLOSE"]
        assert sum(f.count for f in leaks) == len(dead)
        assert {f.pids[0] for f in leaks} == {pid for e in dead for pid, _ in e.owners}


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
