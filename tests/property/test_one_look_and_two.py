"""What one look calls harmless, and a second one does not, is said to need a second look: `check` then takes it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.rules import RECENT_MS
from finwait.diagnosis.view import Options, ProcessView, View
from finwait.uapi import tcp
from tests.property.test_nothing_is_silently_fine import tables
from tests.unit.diagnosis.test_rules import DOOR, INFO
from tests.unit.diagnosis.views import socket, view

CLOCKS = ("last_ack_recv_ms", "last_data_recv_ms", "last_data_sent_ms")
LATER_MS = 3500


@st.composite
def served(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw a listener, and some of its connections on which nothing has passed for a while."""
    states = (tcp.ESTABLISHED, tcp.ESTABLISHED, tcp.CLOSE_WAIT, tcp.FIN_WAIT2)
    return [DOOR | {"rqueue": draw(st.sampled_from([0, 3]))}] + [
        socket(sport=80, cookie=10 + k, **INFO)
        | {
            "state": draw(st.sampled_from(states)), "dport": 4000 + k, "inode": draw(st.sampled_from([0, 7, 8])),
            "rqueue": draw(st.sampled_from([0, 1, 9])), "shutdown": draw(st.integers(0, 3)),
        }
        for k in range(draw(st.integers(1, 6)))
    ]  # fmt: skip


@st.composite
def looks(draw: st.DrawFn) -> tuple[View, View]:
    """Draw some sockets on which nothing moves, seen once, and seen again some seconds later."""
    first = draw(st.one_of(tables(), served(), served()))
    then = [row | {name: row[name] + LATER_MS for name in CLOCKS if name in row} for row in first]
    known: dict[str, Any] = {
        "holders": draw(st.sampled_from([{}, {7: [500, 501], 8: [500]}, {7: [500], 8: [500]}])),
        "processes": {
            500: ProcessView(500, "server", state=draw(st.sampled_from("ST")), age_ms=90_000),
            501: ProcessView(501, "worker", state="S", age_ms=80_000),
        },
        "options": Options(idle_ms=draw(st.sampled_from([1, 600_000]))),
    }
    return view(*first, **known), view(*then, earlier=first, watched_ms=LATER_MS, **known)


def causes(v: View) -> dict[int, Finding]:
    return {
        row: finding
        for finding in engine.diagnose(v, catalogue.rules())
        if finding.primary
        for row in finding.rows.tolist()
    }


@settings(max_examples=300)
@given(looks())
def test_what_a_second_look_calls_a_problem_the_first_does_not_call_settled(both: tuple[View, View]) -> None:
    """But for what is so young that it may pass through its state: of that, the next look tells."""
    first = both[0]
    once, twice = map(causes, both)
    for row, found in twice.items():
        if found.severity == "problem" and row in once and first.at_least_ms[row] >= RECENT_MS:
            settled = once[row].severity != "problem" and not once[row].confidence.look_again
            assert not settled, (once[row].rule, once[row].confidence, found.rule, found.confidence)
