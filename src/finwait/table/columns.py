"""A table: a struct of arrays over received bytes, read one column at a time.

Immutable once built; selecting gives a new table. Columns are read from the bytes when they are first
asked for. Missing is a mask (`ColumnTable.present`), never a sentinel number: cells of a missing value
read 0 and their mask is False.

A kind of table is a subclass with a `Schema`, and a `_wide` where a cell is more than one number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from finwait.uapi import layout
from finwait.uapi.netlink import NLMSG_HEADER

if TYPE_CHECKING:
    from finwait.table.schema import Column, Mask, Schema
    from finwait.uapi.layout import Rows

__all__ = ["ColumnTable"]


class ColumnTable:
    """Rows as columns; ``table.state``, ``table["state"]``, ``table.column("state")`` are one array."""

    __slots__ = ("__dict__", "_cache", "_length", "_present", "_rows")

    schema: ClassVar[Schema]

    def __init__(
        self,
        rows: Rows | None,
        cache: dict[str, NDArray[Any]],
        length: int,
        present: dict[str, Mask] | None = None,
    ) -> None:
        self._rows = rows
        self._cache = cache
        self._length = length
        self._present: dict[str, Mask] = present if present is not None else {}

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Sequence[Any] | NDArray[Any]],
        present: Mapping[str, Sequence[bool] | Mask] | None = None,
    ) -> Self:
        """Build a table from values; a column that is not given is missing in every row.

        Args:
            columns: cells by name.
            present: by name, in which rows a nullable column is there; in all if not given.

        Raises:
            ValueError: an unknown column, or columns of unequal length.
        """
        lengths = {len(v) for v in columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"columns differ in length: {sorted(lengths)}")
        unknown = set(columns) - set(cls.schema.names)
        if unknown:
            raise ValueError(f"no such column: {', '.join(sorted(unknown))}")
        n = lengths.pop() if lengths else 0
        cache: dict[str, NDArray[Any]] = {}
        masks: dict[str, Mask] = {}
        for column in cls.schema:
            shape = (n, column.width) if column.width > 1 else (n,)
            if column.name in columns:
                cells = np.asarray(columns[column.name], dtype=_native(column.dtype))
                cache[column.name] = cells.reshape(shape)
                mask = (present or {}).get(column.name) if column.nullable else None
                masks[column.name] = np.ones(n, np.bool_) if mask is None else np.array(mask, np.bool_)
            else:
                cache[column.name] = np.zeros(shape, _native(column.dtype))
                # zeros that nobody touches take no memory
                masks[column.name] = np.zeros(n, np.bool_) if column.nullable else np.ones(n, np.bool_)
        return cls(None, cache, n, masks)

    @classmethod
    def empty(cls) -> Self:
        """Return a table without rows."""
        return cls.from_columns({})

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.column(name)

    def __getattr__(self, name: str) -> NDArray[Any]:
        if name.startswith("_") or name not in self.schema:
            raise AttributeError(name)
        cells = self.__dict__[name] = self.column(
            name
        )  # found without a call from now on: rules ask row by row
        return cells

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._length} rows)"

    def __iter__(self) -> Iterator[str]:
        return iter(self.schema.names)

    def column(self, name: str) -> NDArray[Any]:
        """Return a column; cells of missing values read 0 (see `present`).

        Raises:
            KeyError: no such column.
        """
        cells = self._cache.get(name)
        if cells is None:
            cells = self._cache[name] = self._read(self.schema[name])
        return cells

    def load(self, names: Iterable[str] | None = None) -> None:
        """Read many columns at once (all if not given), which is far cheaper than one after the other.

        Changes nothing but the time that `column` and `present` take afterwards.

        Raises:
            KeyError: no such column.
        """
        rows = self._rows
        groups: dict[tuple[tuple[int, ...], int | None], list[Column]] = {}
        rest: list[Column] = []
        for name in self.schema.names if names is None else names:
            column = self.schema[name]
            if name in self._cache:
                continue
            if rows is None or column.width > 1 or np.dtype(column.dtype).kind == "S":
                rest.append(column)
            else:
                groups.setdefault((column.path or (), column.protocol), []).append(column)
        for (path, protocol), columns in groups.items():
            assert rows is not None
            matching = None if protocol is None else self.column("protocol") == protocol
            if matching is not None and not matching.any():  # untouched zeros cost no memory
                for column in columns:
                    self._cache[column.name] = np.zeros(self._length, _native(column.dtype))
                    self._present[column.name] = matching
                continue
            scalars = rows.scalars(path, [(c.offset, np.dtype(c.dtype)) for c in columns])
            for column, (cells, present) in zip(columns, scalars, strict=True):
                if matching is not None and not matching.all():
                    present = present & matching
                    cells = np.where(present, cells, np.zeros(1, cells.dtype))
                self._cache[column.name] = _whole(cells, column)
                if path:
                    self._present[column.name] = present
        for column in rest:
            self.column(column.name)

    def present(self, name: str) -> Mask:
        """Return which rows have a value in a column.

        Raises:
            KeyError: no such column.
        """
        column = self.schema[name]
        mask = self._present.get(name)
        if mask is None:
            if self._rows is None or not column.path:
                mask = np.ones(self._length, np.bool_)
            elif column.width > 1:
                self._cache[name], mask = self._wide(self._rows, column)
            else:
                dtype = np.dtype(column.dtype)
                need = 0 if dtype.kind == "S" else column.offset + dtype.itemsize
                mask = self._rows.place(column.path, need) >= 0
                if column.protocol is not None:
                    mask &= self.column("protocol") == column.protocol
            self._present[name] = mask
        return mask

    def leave_out(self, name: str, rows: Mask) -> None:
        """Make a column missing in some rows, of which nobody said what it is; to be called where a table is built.

        The cells of a column that came in an attribute read 0 then, as those of every other missing one; those of the
        fixed struct stay, for there what stands there may say part of it (`finwait.uapi.observation.Dump.untold`).

        Raises:
            KeyError: no such column.
        """
        cells, present = self.column(name), self.present(name)
        if self.schema[name].nullable:
            self._cache[name] = np.where(rows, np.zeros(1, cells.dtype), cells)
        self._present[name] = present & ~rows

    def _wide(self, rows: Rows, column: Column) -> tuple[NDArray[Any], Mask]:
        """Read a column whose cells are several numbers, and which rows have it."""
        raise NotImplementedError(column.name)

    def _read(self, column: Column) -> NDArray[Any]:
        rows = self._rows
        assert rows is not None, "a table from columns holds every column from the start"
        dtype = np.dtype(column.dtype)
        if column.width > 1:
            cells, self._present[column.name] = self._wide(rows, column)
            return cells
        if dtype.kind == "S":
            assert column.path
            cells, self._present[column.name] = rows.text(column.path, dtype.itemsize)
            return cells
        if not column.path:
            at = rows.offset + (NLMSG_HEADER + column.offset)
            return _whole(rows.scalar(at, dtype), column)
        at = rows.place(column.path, column.offset + dtype.itemsize)
        present = at >= 0
        if column.protocol is not None:
            present &= self.column("protocol") == column.protocol
        self._present[column.name] = present
        cells = _whole(rows.scalar(np.where(present, at + column.offset, 0), dtype), column)
        return cells if present.all() else np.where(present, cells, np.zeros(1, cells.dtype))

    def select(self, index: NDArray[Any]) -> Self:
        """Return the rows that a mask or an index array names, as a new table."""
        index = np.asarray(index)
        if index.dtype == np.bool_:
            index = np.flatnonzero(index)
        return type(self)(
            None if self._rows is None else self._rows.take(index),
            {k: v[index] for k, v in self._cache.items()},
            len(index),
            {k: v[index] for k, v in self._present.items()},
        )

    def holding(self, names: Iterable[str]) -> Self:
        """Return a table of these columns alone: in others every value is missing, and the bytes are let go.

        Raises:
            KeyError: no such column.
        """
        kept = dict.fromkeys(names)
        self.load(kept)
        columns = {name: self.column(name) for name in kept}
        table = type(self).from_columns(columns, {name: self.present(name) for name in kept})
        table._present.update((name, self._present[name]) for name in kept)
        return table

    def attributes(self, row: int) -> dict[tuple[int, ...], bytes]:
        """Return every attribute of one row as received, unknown ones included; empty without bytes."""
        return {} if self._rows is None else self._rows.raw(row)

    @classmethod
    def concatenate(cls, tables: Sequence[Self]) -> Self:
        """Return one table with the rows of all, every column read."""
        tables = [t for t in tables if len(t)]
        if not tables:
            return cls.empty()
        if len(tables) == 1:
            return tables[0]
        return cls(
            None,
            {n: np.concatenate([t.column(n) for t in tables]) for n in cls.schema.names},
            sum(len(t) for t in tables),
            {n: np.concatenate([t.present(n) for t in tables]) for n in cls.schema.names},
        )


def _native(dtype: Any) -> np.dtype[Any]:  # noqa: ANN401 - whatever numpy takes for a dtype
    return np.dtype(dtype).newbyteorder("=")


def _whole(cells: NDArray[Any], column: Column) -> NDArray[Any]:
    """Return numbers as this machine has them."""
    native = cells.astype(_native(cells.dtype), copy=False)
    return layout.low_half_first(native) if column.halves else native
