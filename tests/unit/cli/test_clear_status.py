"""The exit status of acts: 0 only when something was done, or had left by itself, and nothing is left."""

from __future__ import annotations

import argparse

import pytest

from finwait.cli.options import tell_outcomes
from finwait.remedy.outcome import Outcome, Result
from finwait.remedy.steps import step_of
from tests.unit.diagnosis.test_rules import HELD
from tests.unit.diagnosis.views import view

CASES: list[tuple[list[Result], int]] = [
    ([], 0),
    (["ended"], 0),
    (["left before"], 0),
    (["set"], 0),
    (["changed meanwhile"], 4),
    (["changed meanwhile", "left before"], 4),
    (["changed meanwhile", "ended"], 0),
    (["changed meanwhile", "set"], 0),
    (["changed meanwhile", "still there"], 1),
    (["ended", "failed"], 1),
]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(("results", "status"), CASES, ids=str)
def test_where_everything_changed_meanwhile_nothing_was_done(
    results: list[Result], status: int, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    step = step_of(view(HELD), 0, "", "destroy")
    outcomes = [Outcome(step, result, "why") for result in results]
    assert tell_outcomes(argparse.Namespace(output=form), outcomes) == status
    assert all(result in capsys.readouterr().out for result in results[:1])
