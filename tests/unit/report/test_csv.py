"""CSV of connections, whose owners may call themselves anything."""

from __future__ import annotations

import csv
import io
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from finwait.report import rows
from finwait.table.units import csv_cells


class Named:
    """Cells as `finwait.report.columns.Cells` gives them."""

    def column(self, name: str) -> list[Any]:
        cells: dict[str, list[Any]] = {"owner": ["=1+cmd|x(7:3)", "nginx(8:4)", None], "rqueue": [-1, 0, 5]}
        return cells[name]


def test_an_owner_s_name_is_no_formula_and_numbers_stay_numbers() -> None:
    text = "".join(rows.csv_lines(Named(), ("owner", "rqueue")))  # type: ignore[arg-type]
    assert list(csv.reader(text.splitlines())) == [
        ["owner", "rqueue"], ["'=1+cmd|x(7:3)", "-1"], ["nginx(8:4)", "0"], ["", "5"],
    ]  # fmt: skip


TEXTS = st.text(alphabet=st.sampled_from('ab,"\r\n\x1e;é\udcff '), max_size=4)
VALUES = st.one_of(TEXTS, st.none(), st.integers(-5, 2**64), st.floats(allow_nan=False), st.booleans())


class Table:
    """Any cells."""

    def __init__(self, columns: list[list[Any]]) -> None:
        self._columns = columns

    def column(self, name: str) -> list[Any]:
        return self._columns[int(name)]


@given(
    st.lists(
        st.lists(VALUES, min_size=3, max_size=3) | st.lists(TEXTS, min_size=3, max_size=3),
        min_size=1,
        max_size=3,
    )
)
@example([["a", None, "b"], [1, 2, 3]])
@example([["", "", None]])
def test_fields_are_those_of_a_writer_whichever_way_they_are_put_together(columns: list[list[Any]]) -> None:
    names = tuple(map(str, range(len(columns))))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(names)
    writer.writerows(zip(*map(csv_cells, columns), strict=True))
    table: Any = Table(columns)
    assert "".join(rows.csv_lines(table, names)) == out.getvalue()
    assert "".join(rows.csv_lines(table, names, headers=False)) == out.getvalue().partition("\r\n")[2]
