"""Rows as Arrow: a table in memory, an IPC stream, a Parquet file (the ``export`` extra).

Columns that numpy holds go over without a copy of each cell; text is encoded once a column.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finwait.report.columns import Cells
from finwait.table.derived import DERIVED
from finwait.table.sockets import SCHEMA

if TYPE_CHECKING:
    from finwait.diagnosis.finding import Finding
    from finwait.diagnosis.view import View

__all__ = ["of_lists", "parquet", "stream", "table"]


def table(
    view: View,
    columns: Sequence[str],
    rows: NDArray[np.int64] | None = None,
    findings: Sequence[Finding] = (),
) -> Any:  # noqa: ANN401 - arro3 is an optional dependency
    """Return rows of a view as an ``arro3.core.Table``.

    Args:
        view: the connections.
        columns: names; see `finwait.report.columns.NAMES`.
        rows: indexes; all rows if None.
        findings: for the columns ``rule`` and ``also``.

    Raises:
        ImportError: arro3 is not installed.
    """
    from arro3.core import Array, Table

    cells = Cells(view, np.arange(len(view)) if rows is None else rows, findings)
    arrays: dict[str, Any] = {}
    for name in columns:
        number = DERIVED[name].dtype if name in DERIVED else None
        if name in SCHEMA and name not in DERIVED and name not in ("src", "dst"):
            column = cells.sockets.column(name)
            present = cells.sockets.present(name)
            if column.dtype.kind != "S" and present.all():
                arrays[name] = Array.from_numpy(np.ascontiguousarray(column))
                continue
            number = None if column.dtype.kind == "S" else column.dtype.str
        arrays[name] = Array(cells.column(name), type=_type(number))
    return Table.from_pydict(arrays)


def of_lists(columns: Mapping[str, tuple[Sequence[Any], str]]) -> Any:  # noqa: ANN401
    """Return columns as an ``arro3.core.Table``.

    Args:
        columns: name → cells, None where there is nothing, and their type: ``utf8``, ``int64`` or ``float64``.

    Raises:
        ImportError: arro3 is not installed.
    """
    from arro3.core import Array, DataType, Table

    return Table.from_pydict(
        {name: Array(list(cells), type=getattr(DataType, kind)()) for name, (cells, kind) in columns.items()}
    )


def _type(number: str | None) -> Any:  # noqa: ANN401
    from arro3.core import DataType

    return getattr(DataType, "utf8" if number is None else np.dtype(number).name)()


def stream(tab: Any, out: Any) -> None:  # noqa: ANN401
    """Write an Arrow IPC stream to a binary file object."""
    from arro3.io import write_ipc_stream

    _written(write_ipc_stream, tab, out)


def parquet(tab: Any, out: Any) -> None:  # noqa: ANN401
    """Write a Parquet file to a binary file object."""
    from arro3.io import write_parquet

    _written(write_parquet, tab, out)


def _written(write: Callable[[Any, Any], object], tab: Any, out: Any) -> None:  # noqa: ANN401
    """Write by way of memory: the library panics where a write fails (a full disk, a closed pipe)."""
    buffer = io.BytesIO()
    write(tab, buffer)
    out.write(buffer.getbuffer())
    out.flush()
