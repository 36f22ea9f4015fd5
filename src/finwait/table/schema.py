"""What a column is, declared once.

One declaration feeds the decoder, the JSON and Arrow output, ``--columns``, the reference page and the
tests. A column is the struct field without its prefix, with a unit where one could guess wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import DTypeLike, NDArray

__all__ = ["Column", "Mask", "Schema"]

Mask = NDArray[np.bool_]


class Column(Struct, frozen=True):
    """One column of a table.

    Args:
        name: as in ``--columns``, JSON and Python.
        dtype: the numpy type of one cell (``width`` of them side by side, if more than one).
        source: the struct and field, or the file, that it is read from.
        doc: one line for the reference page; units included.
        path: for netlink tables the attribute types that lead to the value; empty for the fixed struct.
        offset: byte offset of the value inside that struct or attribute.
        width: number of ``dtype`` values in a cell (2 for an address of 2 × 64 bits).
        protocol: only rows of this IPPROTO carry it (struct tcp_info and mptcp_info share an attribute).
        halves: the kernel writes it as two numbers of half its size, the low one first on every machine.
    """

    name: str
    dtype: DTypeLike
    source: str
    doc: str
    path: tuple[int, ...] | None = None
    offset: int = 0
    width: int = 1
    protocol: int | None = None
    halves: bool = False

    @property
    def nullable(self) -> bool:
        """Whether rows may lack it: true of everything that comes in an attribute."""
        return bool(self.path)

    def empty(self, n: int) -> NDArray[Any]:
        """Return ``n`` zeroed cells."""
        shape = (n,) if self.width == 1 else (n, self.width)
        return np.zeros(shape, self.dtype)


class Schema:
    """An ordered set of columns, by name."""

    def __init__(self, columns: Iterable[Column]) -> None:
        self._by_name = {c.name: c for c in columns}

    def __getitem__(self, name: str) -> Column:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[Column]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def names(self) -> list[str]:
        """The names, in order."""
        return list(self._by_name)
