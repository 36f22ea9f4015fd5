"""What the fuzzers of netlink dumps share: lay bytes out as datagrams, read all that can be read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.errors import DecodeError
from finwait.table.columns import ColumnTable
from finwait.uapi import netlink as nl


def datagrams(data: bytes) -> tuple[NDArray[np.uint8], nl.Messages] | None:
    """Take the first byte as the place of a cut: one or two datagrams, laid out as the receiver does."""
    if not data:
        return None
    cut = data[0] * 8
    buffer = np.frombuffer(data[1:] + bytes(8), np.uint8)
    size = len(data) - 1
    starts, ends = [0], [size]
    if 0 < cut < size:
        starts, ends = [0, cut], [cut, size]
    try:
        return buffer, nl.walk(buffer, np.array(starts, np.int64), np.array(ends, np.int64))
    except DecodeError as error:
        check(error, size)
        return None


def check(error: DecodeError, size: int) -> None:
    """An error must say where it stands, inside the input."""
    if not 0 <= error.offset <= size or not error.reason:
        raise AssertionError(f"{error!r} does not say where in {size} bytes") from error


def read(table: ColumnTable) -> None:
    """Read every column; what is missing must read zero."""
    for column in table.schema:
        cells, there = table.column(column.name), table.present(column.name)
        if not len(cells) == len(there) == len(table) or np.any(cells[~there]):
            raise AssertionError(f"column {column.name} of {len(table)} rows is wrong")
    for row in range(len(table)):
        table.attributes(row)
    table.select(np.arange(len(table))[::-1]).present("netns")
