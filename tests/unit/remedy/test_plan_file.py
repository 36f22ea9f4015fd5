"""Which line of a plan file is named where something in it is wrong."""

from __future__ import annotations

import json
import re

import msgspec
import pytest

from finwait.errors import FinwaitError, Refused
from finwait.remedy import plan_file
from finwait.remedy.plan import Plan
from finwait.remedy.steps import step_of
from finwait.report.plan import plan_json
from tests.unit.diagnosis.test_rules import HELD
from tests.unit.diagnosis.views import view

V = view(*(HELD | {"inode": 7 + k, "sport": 4000 + k, "cookie": 1 + k} for k in range(3)), holders={7: [500]})
PLAN = Plan(0, "b", tuple(step_of(V, row, "fin-wait2-held", "destroy") for row in range(3)))
TEXT = json.dumps(json.loads(plan_json(PLAN)), indent=1)


def line_of(text: str, error: type[FinwaitError] = FinwaitError) -> int:
    """Return the line that is named when a file with this text is read."""
    with pytest.raises(error) as wrong:
        plan_file.decode(text.encode(), "plan.json")
    said = re.search(r"plan\.json:(\d+):", str(wrong.value))
    assert said
    return int(said[1])


def lines_with(text: str, part: str) -> list[int]:
    return [k for k, line in enumerate(text.splitlines(), 1) if part in line]


def test_the_file_itself_is_read() -> None:
    assert len(plan_file.decode(TEXT.encode()).steps) == 3
    assert len(plan_file.decode(b"\n\n" + plan_json(PLAN)).steps) == 3


@pytest.mark.parametrize("above", ["", "\n", "\n\n\n"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_step_is_named_by_the_line_on_which_it_begins(step: int, above: str) -> None:
    wrong = msgspec.structs.replace(PLAN.steps[step], kind="reversible")
    steps = (*PLAN.steps[:step], wrong, *PLAN.steps[step + 1 :])
    text = above + json.dumps(json.loads(plan_json(msgspec.structs.replace(PLAN, steps=steps))), indent=1)
    assert line_of(text) == lines_with(text, '"means"')[step] - 1  # that of the brace above


@pytest.mark.parametrize("above", ["", "\n", "\n\n\n"])
def test_a_value_of_another_type_is_named_by_its_line(above: str) -> None:
    text = above + TEXT
    (begun,) = lines_with(text, '"boot_id"')
    assert line_of(text.replace('"boot_id": "b"', '"boot_id": 5')) == begun
    first, second, third = lines_with(text, '"sport"')
    assert first < second < third
    assert line_of(text.replace('"sport": 4001', '"sport": "x"')) == second
    assert line_of(text.replace('"sport": 4002', '"sport": "x"')) == third


@pytest.mark.parametrize("above", ["", "\n", "\n\n\n"])
def test_what_is_no_json_is_named_by_the_line_on_which_it_ends(above: str) -> None:
    text = above + TEXT
    (begun,) = lines_with(text, '"boot_id"')
    assert line_of(text.replace('"boot_id": "b"', '"boot_id": b')) == begun
    cut = text[: text.index('"boot_id"')]
    assert line_of(cut) == cut.count("\n") + 1


@pytest.mark.parametrize("above", ["", "\n", "\n\n\n"])
def test_a_plan_of_another_kind_is_named_by_the_line_of_its_kind(above: str) -> None:
    text = above + TEXT
    (kind,) = lines_with(text, '"ClearPlan"')
    assert line_of(text.replace('"ClearPlan"', '"Diagnosis"')) == kind


def test_a_listener_is_refused_by_its_line() -> None:
    text = TEXT[::-1].replace('"FIN_WAIT2"'[::-1], '"LISTEN"'[::-1], 1)[::-1]
    assert line_of(text, Refused) == lines_with(text, '"means"')[2] - 1
