"""Recordings of real kernels go on being explained as they were."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finwait.diagnosis import catalogue
from tests.captures.make import HERE, changed, golden, replay, summary

RECORDINGS = sorted(HERE.glob("*/*.finwait"))
INTENDED = "intended? `python -m tests.captures.make --golden`, and read the difference"


def difference(name: str, now: list[dict[str, Any]], was: list[dict[str, Any]]) -> str:
    """Say which rule has gained rows, and which has lost how many; of others that their words differ."""

    def counts(found: list[dict[str, Any]]) -> dict[str, int]:
        totals: Counter[str] = Counter()
        for one in found:
            totals[one["rule"] if one["primary"] else f"{one['rule']} (not the primary cause)"] += one[
                "count"
            ]
        return dict(totals)

    lines = changed(name, counts(now), counts(was))
    grades = sorted({f"{f['rule']} is now {f['severity']}, {f['confidence']}" for f in now if f not in was})
    return "\n".join(["", *(lines or grades), INTENDED])


def test_a_difference_names_the_rules_that_gained_and_lost() -> None:
    one = {"rule": "a", "primary": True, "severity": "notice", "confidence": "likely", "count": 5}
    assert difference("x", [one | {"count": 3}, one | {"rule": "b", "count": 2}], [one]).splitlines() == [
        "",
        "x: a has 3 rows instead of 5 (-2)",
        "x: b has 2 rows instead of 0 (+2)",
        INTENDED,
    ]
    assert "a is now problem, likely" in difference("x", [one | {"severity": "problem"}], [one])


def test_every_rule_has_a_recording() -> None:
    assert {path.stem for path in RECORDINGS} >= {rule.name for rule in catalogue.rules()}


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_recording_gives_its_findings(path: Path) -> None:
    now, was = summary(replay(path)), json.loads(path.with_suffix(".json").read_text())
    assert now == was, difference(path.stem, now, was)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_recording_is_told_as_it_was(path: Path) -> None:
    assert golden(replay(path)) == path.with_suffix(".txt").read_text(), INTENDED


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_the_rule_of_the_name_is_the_primary_cause_of_something(path: Path) -> None:
    if path.stem in catalogue.NAMES:
        assert any(f.rule == path.stem and f.primary for f in replay(path).findings)
