"""How wide text is on a terminal."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.report import rows
from finwait.report.cells import columns, cut, padded, widest
from finwait.report.columns import Cells


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("abc", 3),
        ("", 0),
        ("\u4e2d\u6587", 4),
        ("\U0001f600", 2),
        ("e\u0301", 1),
        ("\u0301", 0),
        ("caf\u00e9 …", 6),
    ],
)
def test_a_text_takes_the_columns_of_its_characters(text: str, takes: int) -> None:
    assert columns(text) == takes
    assert columns(padded(text, 9)) == columns(padded(text, 9, right=True)) == 9
    assert padded(text, 0) == text


@given(st.text(), st.integers(1, 30))
def test_what_is_cut_fits_and_begins_as_it_did(text: str, width: int) -> None:
    short = cut(text, width)
    assert columns(short) <= width
    assert short == text or (short[-1] == "…" and text.startswith(short[:-1]))
    assert widest([short, ""]) == columns(short)


class _Table:
    """Two columns of text, as `finwait.report.columns.Cells` gives them."""

    def column(self, name: str) -> list[str]:
        return {"comm": ["plain", "\u4e2d\u6587", "e\u0301"], "state_name": ["A", "B", "C"]}[name]


def test_rows_with_wide_names_are_aligned_on_a_terminal() -> None:
    text = "".join(rows.text_lines(cast("Cells", _Table()), ("comm", "state_name")))
    assert {columns(line[:-1]) for line in text.splitlines()[1:]} == {len("plain  ")}
