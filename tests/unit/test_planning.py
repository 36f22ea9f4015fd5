"""Plans: the command and what others plan through start from the same limits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from finwait import planning, session
from finwait.cli import build_parser
from finwait.session import Look
from finwait.table.filter import parse
from finwait.uapi.observation import LookPlan


def test_the_defaults_of_clear_are_those_of_planning() -> None:
    """The parser must not load numpy, so it says them a second time."""
    args = build_parser().parse_args(["clear"])
    assert (args.max, args.share, args.min_age) == (planning.MOST, planning.SHARE, None)
    plain, asked = planning.limits(), planning.limits(min_age_ms=5)
    assert (plain.min_age_ms, plain.answer_ms) == (planning.MIN_AGE_MS, planning.ANSWER_MS)
    assert (asked.min_age_ms, asked.answer_ms) == (5, 0)


class _Looked(Exception):
    """The look was asked for."""


@pytest.mark.parametrize(
    ("words", "limit", "expected"),
    [
        ("sport = :80", 2000, None),
        ("pid = 7 and held", 2000, None),
        ("sport = :80", 0, 0),  # `--established never`
        ("rule = close-wait-eof-read", 2000, 2000),
        ("state close-wait sport = :80", 2000, 2000),
    ],
)
def test_open_connections_that_a_filter_may_select_are_looked_at_to_be_counted(
    words: str, limit: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Look] = []

    def diagnose(_machine: object, how: Look) -> None:
        asked.append(how)
        raise _Looked

    monkeypatch.setattr(session, "diagnose", diagnose)
    machine: Any = None
    with pytest.raises(_Looked):
        planning.make_plan(
            machine, Look(plan=LookPlan(established_limit=limit)), parse(words), planning.limits()
        )
    assert asked[0].plan.established_limit == expected


def test_open_connections_that_were_left_out_are_a_gap() -> None:
    view: Any = SimpleNamespace(established_skipped=3000)
    gap = planning._open_ones(view, parse("sport = :80"))
    assert gap is not None
    assert "about 3000 sockets" in str(gap)
    assert planning._open_ones(view, parse("rule = close-wait-eof-read")) is None
    assert planning._open_ones(view, None) is None
    none: Any = SimpleNamespace(established_skipped=0)
    assert planning._open_ones(none, parse("sport = :80")) is None
