"""Thresholds of monitoring: what they alert on, and that performance data says the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.report.nagios import Threshold, perfdata


def plugin_alerts(text: str, count: int) -> bool:
    """Judge by the convention of monitoring plugins, as their guidelines put it, read anew here."""
    inside = text.startswith("@")
    start, colon, end = text.removeprefix("@").rpartition(":")
    low = float("-inf") if start == "~" else float(start) if colon and start else 0.0
    high = float(end) if end else float("inf")
    return (low <= count <= high) is inside


@pytest.mark.parametrize(
    ("text", "alerted", "not_alerted"),
    [
        ("1", [1, 2, 10**9], [0]),
        ("10", [10, 11, 500], [0, 9]),
        ("0", [0, 1], []),
        ("10:", [0, 9], [10, 11]),
        ("10:20", [9, 21], [10, 15, 20]),
        ("0:10", [11], [0, 10]),
        (":10", [11], [0, 10]),
        ("~:5", [6], [0, 5]),
        ("@5:10", [5, 7, 10], [0, 4, 11]),
        ("@3", [0, 3], [4]),
        ("@7:", [7, 8], [6]),
        ("~:", [], [0, 5]),
        ("-3:5", [6], [0, 5]),
    ],
)
def test_a_threshold_alerts_on(text: str, alerted: list[int], not_alerted: list[int]) -> None:
    threshold = Threshold.parse(text)
    assert [n for n in alerted if not threshold.alerts(n)] == []
    assert [n for n in not_alerted if threshold.alerts(n)] == []


@pytest.mark.parametrize(
    "text", ["", "@", "x", "1x", "5:3", "@9:2", "-1", "1:2:3", "1.5", "nan", "\u0663", "9" * 40, " 1"]
)
def test_what_is_no_threshold_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(ValueError, match="is not a threshold"):
        Threshold.parse(text)


numbers = st.integers(0, 60)
RANGES = st.one_of(
    st.builds(str, numbers),
    st.builds(
        lambda at, start, width, end: f"{at}{start}:{start + width if end else ''}",
        st.sampled_from(["", "@"]), numbers, numbers, st.booleans(),
    ),
    st.builds(lambda at, end: f"{at}~:{end}", st.sampled_from(["", "@"]), numbers),
)  # fmt: skip


@given(RANGES, st.integers(0, 200))
def test_performance_data_means_exactly_what_is_alerted_on(text: str, count: int) -> None:
    threshold = Threshold.parse(text)
    data = perfdata("stuck", count, threshold, threshold)
    found = re.fullmatch(r"stuck=(\d+);([^;]+);([^;]+);0", data)
    assert found, data
    assert int(found[1]) == count
    assert found[2] == found[3]
    assert plugin_alerts(found[2], count) is threshold.alerts(count)
    if ":" in text:
        assert plugin_alerts(text, count) is threshold.alerts(count)


@given(RANGES, st.integers(0, 200))
def test_what_alerts_whatever_was_not_seen_alerts_on_every_larger_count(text: str, count: int) -> None:
    threshold = Threshold.parse(text)
    assert threshold.alerts_from(count) is all(threshold.alerts(n) for n in range(count, count + 400))


def test_a_label_that_is_no_plain_word_is_quoted() -> None:
    assert perfdata("fin-wait2-held", 5) == "'fin-wait2-held'=5;;;0"
