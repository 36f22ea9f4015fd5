"""A state that finwait has no name for (a newer kernel, a damaged recording) is told by its number, as unexplained."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait import session
from finwait.recording import Replay, read
from finwait.remedy import making
from finwait.remedy.guards import Limits
from finwait.report import groups
from finwait.report import json as as_json
from finwait.report.connection import connection
from finwait.session import Diagnosis
from finwait.uapi import tcp
from finwait.uapi.observation import Observation
from tests.captures.altered import STATE, altered, rows
from tests.captures.make import HERE, golden, how
from tests.unit.diagnosis.views import socket, view

NAMES = sorted(path.stem for path in (HERE / "linux-6.18").glob("*.finwait"))

BYTES = [0, 0, 0, 14, 15, 16, 31, 32, 63, 64, 127, 128, 200, 255, 1, 5, 9]


@cache
def looks(name: str) -> tuple[Observation, ...]:
    return read(str(HERE / "linux-6.18" / f"{name}.finwait"))[1]


def diagnosed(name: str, bytes_: list[int]) -> Diagnosis:
    """Diagnose a recording whose rows have other states, the same at both looks for as long as there are bytes."""
    changes = [{STATE: one} if one else {} for one in bytes_]
    walled = frozenset(looks(name)[-1].descriptors.unreadable)
    return session.diagnose(Replay([altered(look, changes) for look in looks(name)]), how=how(name, walled))


def everything_told(found: Diagnosis) -> None:
    """Tell it in every form; none may stop at a number."""
    v = found.view
    golden(found)
    "".join(as_json.diagnosis(v, found.findings, found.gaps, {}))
    for row in range(min(len(v), 5)):
        "".join(connection(v, row, found.findings))
    every = np.arange(len(v))
    for by in groups.GROUPINGS:
        some = groups.groups(v, found.findings, every, by)
        assert int(some.counts.sum()) == len(v)
        for k in range(len(some)):
            some.states_text(k)
    making.make(v, found.findings, np.ones(len(v), np.bool_), Limits())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5)
@given(data=st.data())
def test_any_state_bytes_in_the_recording_of_any_rule_are_told(name: str, data: st.DataObject) -> None:
    n = len(rows(looks(name)[0]))
    some = st.lists(st.sampled_from(BYTES), max_size=min(n, 30))
    found = diagnosed(name, data.draw(some))
    everything_told(found)
    unknown = ~np.isin(found.view.sockets.state, list(tcp.STATES))
    for finding in found.findings:
        if finding.primary:
            assert finding.rule == "unexplained" or not unknown[finding.rows].any(), finding.rule
    held = np.zeros(len(unknown), np.bool_)
    for finding in found.findings:
        if finding.rule == "unexplained":
            held[finding.rows] = True
    assert held[unknown].all()


@pytest.mark.parametrize("number", [0, 14, 200, 255])
def test_its_name_is_its_number(number: int) -> None:
    from finwait.diagnosis import catalogue, engine

    v = view(socket(state=number, cookie=1))
    (found,) = engine.diagnose(v, catalogue.rules())
    cells: dict[str, Any] = {one.column: one.value for one in found.evidence}
    assert found.rule == "unexplained"
    assert cells["state"] == str(number)
    assert f'"state":"{number}"' in "".join(as_json.diagnosis(v, (found,), (), {}))


@given(st.integers(0, 255))
def test_a_plan_takes_every_name_that_a_state_can_have(number: int) -> None:
    assert tcp.is_state_name(tcp.state_name(number))


@pytest.mark.parametrize("text_", ["", "no", "007", "1", "256789", "²", "-1"])
def test_what_no_state_is_called_is_no_state(text_: str) -> None:
    assert not tcp.is_state_name(text_)
