"""What a plan that cannot be carried out here is refused with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from finwait.acting import rights
from finwait.errors import Refused
from finwait.remedy.steps import step_of
from tests.unit.diagnosis.test_rules import HELD, OWNED
from tests.unit.diagnosis.views import view

NO_DESTROY = "this kernel has no SOCK_DESTROY"


@pytest.fixture(autouse=True)
def without_destroy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(requested: Iterable[tuple[int, int]], _: Sequence[object]) -> dict[tuple[int, int], str]:
        return dict.fromkeys(requested, NO_DESTROY)

    monkeypatch.setattr(rights, "_no_destroy", missing)
    monkeypatch.setattr(rights, "leads", lambda _: [])
    monkeypatch.setattr(rights, "_no_borrow", lambda _: {})


def test_a_refusal_counts_the_connections_that_need_what_is_missing_and_no_others() -> None:
    v = view(HELD, HELD | {"inode": 8, "sport": 2}, holders=OWNED)
    steps = [step_of(v, 0, "", "destroy"), step_of(v, 1, "", "destroy"), step_of(v, 0, "", "keepalive")]
    with pytest.raises(Refused) as refused:
        rights.check_means(steps)
    assert f"{NO_DESTROY}; 2 connections of the plan need it" in str(refused.value)
    assert "1 of them are held by a process" in refused.value.hint


def test_connections_that_nobody_holds_are_told_to_have_no_other_means() -> None:
    with pytest.raises(Refused) as refused:
        rights.check_means([step_of(view(HELD), 0, "", "destroy")])
    assert refused.value.hint == "no process is known to hold them, so only SOCK_DESTROY can end them"


def test_a_plan_that_destroys_nothing_is_not_refused() -> None:
    rights.check_means([step_of(view(HELD, holders=OWNED), 0, "", "keepalive")])


@pytest.mark.parametrize(
    ("means", "holders", "refused"),
    [
        ("keepalive", [500], True),
        ("reset", [500, 501], True),
        ("fin", [500, 502], False),  # one of the two may be borrowed from
        ("keepalive", [502], False),
        ("destroy", [500], False),  # that needs no descriptor
    ],
)
@pytest.mark.parametrize("destroys", [True, False])
def test_a_plan_is_refused_where_no_holder_s_descriptor_may_be_borrowed(
    means: Any, holders: list[int], refused: bool, destroys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "pid {} may not be borrowed from"
    monkeypatch.setattr(rights, "_no_borrow", lambda first: {p: why.format(p) for p in first if p != 502})
    if destroys:
        monkeypatch.setattr(rights, "_no_destroy", lambda *_: {})
    elif means == "destroy":
        return
    step = step_of(view(HELD, holders={7: holders}), 0, "", means)
    if not refused:
        rights.check_means([step])
        return
    with pytest.raises(Refused, match=f"{why.format(500)}; nothing was done") as error:
        rights.check_means([step])
    assert ("plan again with `--with destroy`" in (error.value.hint or "")) is destroys
