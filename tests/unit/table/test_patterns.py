"""Patterns of a FILTER: exact, and as quick as the text is long, whoever wrote them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.table.patterns import MATCHERS, glob

_UID = "00000000-0000-4000-8000-000000000001"


@given(st.text("ab*?", max_size=10), st.text("ab\n", max_size=14))
def test_a_pattern_matches_what_fnmatch_matches(pattern: str, text: str) -> None:
    assert glob(pattern)(text) == fnmatchcase(text, pattern)


@given(st.text("a*?[].\\é", max_size=8), st.text("a[].\\é*?", max_size=10))
def test_only_the_asterisk_and_the_question_mark_mean_anything(pattern: str, text: str) -> None:
    assert glob(pattern)(text) == fnmatchcase(text, pattern.replace("[", "[[]"))


def _lines(call: Callable[[], object]) -> tuple[object, int]:
    """Return what a call returns, and how many lines of Python it ran."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return call(), count
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("asterisks", [2, 16, 400])
@pytest.mark.parametrize("piece", ["?", "a", "a?", "a??", "?a"])
def test_no_pattern_takes_longer_than_the_text_is_long(piece: str, asterisks: int) -> None:
    text = "a" * 4096
    pattern = f"{piece}*" * asterisks + "Z"

    hit, lines = _lines(lambda: glob(pattern)(text))

    assert not hit
    assert lines < 4 * (len(text) + len(pattern)) + 200


@pytest.mark.parametrize("kind", sorted(set(MATCHERS) - {"pid"}))
def test_a_pattern_with_many_asterisks_does_not_hold_up_a_look_at_pods(kind: str) -> None:
    assert not MATCHERS[kind]("?*" * 16 + "Z")(f"pod/{_UID}" if kind != "pod" else _UID)
