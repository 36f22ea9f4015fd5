"""Recordings of real kernels go on being explained as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finwait.diagnosis import catalogue
from tests.captures.make import HERE, golden, replay, summary

RECORDINGS = sorted(HERE.glob("*/*.finwait"))


def test_every_rule_has_a_recording() -> None:
    assert {path.stem for path in RECORDINGS} >= {rule.name for rule in catalogue.rules()}


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_recording_gives_its_findings(path: Path) -> None:
    assert summary(replay(path)) == json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_recording_is_told_as_it_was(path: Path) -> None:
    assert golden(replay(path)) == path.with_suffix(".txt").read_text()


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_the_rule_of_the_name_is_the_primary_cause_of_something(path: Path) -> None:
    if path.stem in catalogue.NAMES:
        assert any(f.rule == path.stem and f.primary for f in replay(path).findings)
