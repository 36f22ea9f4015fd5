"""CSV of connections, whose owners may call themselves anything."""

from __future__ import annotations

import csv
from typing import Any

from finwait.report import rows


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
