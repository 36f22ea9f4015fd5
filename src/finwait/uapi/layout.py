"""Rows of a netlink dump, found and read as columns without a Python loop over rows.

Mirrors no header: this is how ``inet_diag``, ``ctnetlink`` and their like are read at memory speed. A dump
is many messages of one kind: a fixed struct behind the netlink header, then attributes.

Theory of operation. Messages of one kind have the same attributes at the same places, so instead of
parsing each we find the few *layouts* that occur. Equal length does not prove equal layout: one row of
each length is parsed as a template, its attribute headers are compared with those at the same places of
every other row of that length, and the rows that differ go round again with a new template. A column is
then a gather: row offset + place of the attribute in the row's layout + offset of the field. Nothing is
copied until a column is asked for.

The surprise: attribute *headers* are always in host order, whatever the payload is; so layouts are found
in the same way in ``inet_diag`` (host order) and in ``ctnetlink`` (network order), and the byte order of a
value is that of the numpy type that `Rows.scalar` is asked for. Which attributes hold attributes is told
by `Shape.nests` and not by ``NLA_F_NESTED``, which older subsystems never set.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from msgspec import Struct
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from finwait.errors import DecodeError
from finwait.uapi import netlink
from finwait.uapi.netlink import NLA_HEADER, NLMSG_HEADER, Messages
from finwait.uapi.sets import distinct

__all__ = ["Layout", "Path", "Rows", "Shape", "find_rows", "low_half_first"]

Path = tuple[int, ...]
"""Attribute types from the outermost inwards; the empty path means the fixed struct."""


def low_half_first(
    cells: NDArray[np.uint64], byteorder: Literal["little", "big"] = sys.byteorder
) -> NDArray[np.uint64]:
    """Return 64-bit numbers that the kernel wrote as ``__u32 x[2]``, the low half in ``x[0]``.

    Args:
        cells: what eight bytes in a row are as one number on the machine that wrote them.
        byteorder: of that machine.
    """
    if byteorder == "little":
        return cells
    return (cells >> np.uint64(32)) | (cells << np.uint64(32))


class Shape(Struct, frozen=True):
    """What a kind of message looks like before one has seen it.

    Args:
        name: the fixed struct in the kernel's words, for errors.
        fixed: its size in bytes, as the oldest kernel has it.
        nests: paths of the attributes whose payload is attributes again.
    """

    name: str
    fixed: int
    nests: frozenset[Path] = frozenset()


class Layout(Struct, frozen=True):
    """Where the attributes of one shape of message are, relative to the netlink header."""

    places: dict[Path, tuple[int, int]]
    """Attribute path → (offset, length) of its payload. Nested attributes have longer paths."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Messages in a buffer of received datagrams, found but not yet copied.

    ``offset`` is the place of each row's netlink header, ``layout`` the index into ``layouts``, ``chain``
    the datagram it came in.
    """

    buffer: NDArray[np.uint8]
    offset: NDArray[np.int64]
    layout: NDArray[np.int32]
    chain: NDArray[np.int64]
    layouts: tuple[Layout, ...]
    _words: NDArray[np.uint32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        usable = (len(self.buffer) // 4) * 4
        object.__setattr__(self, "_words", self.buffer[:usable].view(np.uint32))

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, index: NDArray[Any]) -> Rows:
        """Return some of the rows (by mask or index), without copying what they say."""
        return Rows(self.buffer, self.offset[index], self.layout[index], self.chain[index], self.layouts)

    def place(self, path: Path, need: int) -> NDArray[np.int64]:
        """Return where each row keeps an attribute (absolute offset), −1 where it is missing or too short."""
        table = self._table(path, need)
        if len(table) == 1 or (table == table[0]).all():
            return self.offset + table[0] if table[0] >= 0 else np.full(len(self.offset), -1, np.int64)
        rel = table[self.layout]
        return np.where(rel >= 0, self.offset + rel, -1)

    def scalar(self, at: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Gather one number a row at absolute offsets ``at`` (−1 gives what stands at 0).

        ``at`` must be a multiple of the size of the number, or of four if that is less.
        """
        at = np.maximum(at, 0)
        size = dtype.itemsize
        if size == 1:
            return self.buffer[at].view(dtype)
        if size == 4:
            return self._words[at >> 2].view(dtype)
        if size == 2:
            return self._words.view(np.uint16)[at >> 1].view(dtype)
        pair = np.empty((len(at), 2), np.uint32)
        pair[:, 0] = self._words[at >> 2]
        pair[:, 1] = self._words[(at >> 2) + 1]
        return pair.reshape(-1).view(dtype)

    def scalars(
        self, path: Path, fields: Sequence[tuple[int, np.dtype[Any]]]
    ) -> list[tuple[NDArray[Any], NDArray[np.bool_]]]:
        """Gather several numbers of one attribute (or of the fixed struct) in one pass over the rows.

        What `place` and `scalar` give for each field, but every row's cache lines are fetched once and not
        once a field: rows are copied, some thousand at a time, into a block that fits the processor's cache.

        Args:
            path: see `place`; the empty path is the fixed struct behind the netlink header.
            fields: (offset, type) of each number; offsets are multiples of the size, or of four.

        Returns:
            For each field its cells, 0 where it is missing, and which rows have it.
        """
        n = len(self)
        width = (max(offset + dtype.itemsize for offset, dtype in fields) + 3) // 4
        count = len(self._words) - width + 1
        tables = [self._table(path, offset + dtype.itemsize) for offset, dtype in fields]
        if all((table < 0).all() for table in tables):  # untouched zeros cost no memory
            nowhere = np.zeros(n, np.bool_)
            return [(np.zeros(n, dtype), nowhere) for _, dtype in fields]
        start, present = self._starts(tables[0])
        if (
            any((table != tables[0]).any() for table in tables)  # an older struct among newer ones
            or count <= 0
            or (n and int(start.max()) >= count)  # the last attribute of a buffer that ends with it
        ):
            return [
                self._scalar_where(*self._starts(table), *field)
                for table, field in zip(tables, fields, strict=True)
            ]
        windows = as_strided(self._words, (count, width), (4, 4), writeable=False)
        # Fields of one size that follow one another are copied together, and lie in one piece of memory: large
        # ones come from the kernel as huge pages, and hundreds of small ones as twenty thousand page faults.
        runs = _runs(fields)
        cells = [np.empty((count, n), dtype) for _, dtype, count in runs]
        step = max(64, _BLOCK // (4 * width))
        whole = bool(present.all())
        for begin in range(0, n, step):
            part = slice(begin, begin + step)
            block = windows[start[part]]
            if not whole:
                block[~present[part]] = 0
            for out, (offset, dtype, count) in zip(cells, runs, strict=True):
                size = dtype.itemsize
                if size == 8:
                    pairs = np.ascontiguousarray(block[:, offset >> 2 : (offset >> 2) + 2 * count])
                    out[:, part] = pairs.view(dtype).T
                else:
                    out[:, part] = block.view(dtype)[:, offset // size : offset // size + count].T
        return [(column, present) for out in cells for column in out]

    def _table(self, path: Path, need: int) -> NDArray[np.int64]:
        """Return for each layout where it has an attribute of at least ``need`` bytes, −1 for nowhere."""
        if not path:
            return np.full(max(len(self.layouts), 1), NLMSG_HEADER, np.int64)
        return np.array(
            [
                (span[0] if (span := lay.places.get(path)) is not None and span[1] >= need else -1)
                for lay in self.layouts
            ]
            or [-1],
            np.int64,
        )

    def _starts(self, table: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the word at which each row's attribute begins (0 where it has none), and which rows have it."""
        n = len(self)
        if (table == table[0]).all():
            if table[0] < 0:
                return np.zeros(n, np.int64), np.zeros(n, np.bool_)
            return (self.offset + table[0]) >> 2, np.ones(n, np.bool_)
        place = table[self.layout]
        present = place >= 0
        return np.where(present, (self.offset + place) >> 2, 0), present

    def _scalar_where(
        self, start: NDArray[np.int64], present: NDArray[np.bool_], offset: int, dtype: np.dtype[Any]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        cells = self.scalar(np.where(present, (start << 2) + offset, 0), dtype)
        return np.where(present, cells, np.zeros(1, dtype)), present

    def text(self, path: Path, width: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Gather a NUL-terminated string attribute as ``S<width>``, and which rows have it."""
        at = self.place(path, 0)
        present = at >= 0
        out = np.zeros(len(self), f"S{width}")
        rows = np.flatnonzero(present)
        if not len(rows):
            return out, present
        sizes = np.array(
            [span[1] if (span := lay.places.get(path)) is not None else 0 for lay in self.layouts],
            np.int64,
        )
        # No more than the longest value is fetched: names of 16 bytes at most are mostly "cubic".
        width = min(width, int(sizes.max()))
        if width and self._same_text(at[rows], sizes[self.layout[rows]], width):
            where = int(at[rows[0]])
            out[rows] = self.buffer[where : where + width].tobytes().partition(b"\0")[0]
            return out, present
        step = np.arange(width)
        for begin in range(0, len(rows) if width else 0, 8192):
            chunk = rows[begin : begin + 8192]
            place = np.minimum(at[chunk][:, None] + step, len(self.buffer) - 1)
            cells = np.where(step < sizes[self.layout[chunk]][:, None], self.buffer[place], np.uint8(0))
            # What follows the first NUL is padding, not text.
            cells[np.logical_or.accumulate(cells == 0, axis=1)] = 0
            out[chunk] = np.ascontiguousarray(cells).view(f"S{width}")[:, 0]
        return out, present

    def _same_text(self, at: NDArray[np.int64], sizes: NDArray[np.int64], width: int) -> bool:
        """Whether all strings are the same one, as they are on most machines: then one need be read."""
        words = (width + 3) // 4
        start = at >> 2
        count = len(self._words) - words + 1
        if (sizes != sizes[0]).any() or count <= 0 or int(start.max()) >= count:
            return False
        windows = as_strided(self._words, (count, words), (4, 4), writeable=False)
        first = windows[start[0]]
        return all(bool((windows[start[k : k + 8192]] == first).all()) for k in range(0, len(start), 8192))

    def raw(self, row: int) -> dict[Path, bytes]:
        """Return every attribute of one row as bytes, unknown ones too."""
        start = int(self.offset[row])
        places = self.layouts[int(self.layout[row])].places
        return {path: self.buffer[start + o : start + o + n].tobytes() for path, (o, n) in places.items()}


def _template(
    buffer: NDArray[np.uint8], start: int, length: int, shape: Shape
) -> tuple[dict[Path, tuple[int, int]], list[int]]:
    """Parse one row: its attribute places, and where its attribute headers stand (both relative)."""
    data = buffer[start : start + length].tobytes()
    places: dict[Path, tuple[int, int]] = {}
    headers: list[int] = []

    def visit(prefix: Path, begin: int, end: int) -> None:
        for kind, at, size in netlink.attributes(data, begin, end, f"attribute of {shape.name}"):
            path = (*prefix, kind)
            headers.append(at - NLA_HEADER)
            places[path] = (at, size)
            if path in shape.nests:
                visit(path, at, at + size)

    try:
        visit((), NLMSG_HEADER + netlink.align4(shape.fixed), length)
    except DecodeError as error:
        raise DecodeError(error.what, start + error.offset, error.window, error.reason) from None
    return places, headers


def _runs(fields: Sequence[tuple[int, np.dtype[Any]]]) -> list[tuple[int, np.dtype[Any], int]]:
    """Return (offset, type, number) of fields of one type that follow one another without a gap."""
    runs: list[tuple[int, np.dtype[Any], int]] = []
    for offset, dtype in fields:
        if runs:
            begin, kind, count = runs[-1]
            if dtype == kind and offset == begin + count * dtype.itemsize:
                runs[-1] = (begin, kind, count + 1)
                continue
        runs.append((offset, dtype, 1))
    return runs


def _same_headers(
    words: NDArray[np.uint32], at: NDArray[np.int64], first: int, headers: list[int]
) -> NDArray[np.bool_]:
    """Return which rows at ``at`` have the attribute headers of the row at ``first`` where that has them.

    Rows are copied into the cache a block at a time and compared there: fetching one header of every row
    after the other would read the whole dump from memory once for each attribute.
    """
    same = np.ones(len(at), np.bool_)
    if not headers:
        return same
    begin = headers[0] >> 2
    where = np.array(headers, np.int64) // 4 - begin
    width = int(where[-1]) + 1
    template = words[(first >> 2) + begin + where]
    windows = as_strided(words[begin:], (len(words) - begin - width + 1, width), (4, 4), writeable=False)
    step = max(1, _BLOCK // (4 * width))
    for k in range(0, len(at), step):
        block = windows[at[k : k + step] >> 2]
        same[k : k + step] = (block[:, where] == template).all(axis=1)
    return same


_BLOCK = 1 << 19
"""Bytes of a block: half of what a core's second-level cache holds these days."""
_TEMPLATES_A_LENGTH = 64
_LENGTHS_AT_ONCE = 64


def _by_length(length: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each length that occurs and the rows that have it."""
    lengths = distinct(length)
    if len(lengths) <= _LENGTHS_AT_ONCE:
        for size in lengths:
            yield int(size), np.flatnonzero(length == size)
        return
    order = np.argsort(length, kind="stable")  # a crafted recording may have as many lengths as rows
    ends = np.searchsorted(length[order], lengths, side="right")
    for size, rows in zip(lengths, np.split(order, ends[:-1]), strict=True):
        yield int(size), rows


def find_rows(buffer: NDArray[np.uint8], messages: Messages, shape: Shape) -> Rows:
    """Find the layout of every message of one shape (``messages`` must hold nothing else).

    A message longer than the layouts known today is a newer kernel, not an error; one shorter than the
    fixed struct is an error.

    Raises:
        DecodeError: a message is shorter than the struct, or its attributes do not fit into it.
    """
    minimum = NLMSG_HEADER + shape.fixed
    short = messages.length < minimum
    if short.any():
        where = int(messages.offset[short][0])
        raise DecodeError(
            shape.name,
            where,
            buffer[where : where + 16].tobytes(),
            f"message of {int(messages.length[short][0])} bytes is shorter than {minimum}",
        )
    usable = (len(buffer) // 4) * 4
    words = buffer[:usable].view(np.uint32)
    layout = np.zeros(len(messages), np.int32)
    layouts: list[Layout] = []
    for length, rest in _by_length(messages.length):
        for _ in range(_TEMPLATES_A_LENGTH):
            first = int(messages.offset[rest[0]])
            places, headers = _template(buffer, first, length, shape)
            same = _same_headers(words, messages.offset[rest], first, headers)
            layout[rest[same]] = len(layouts)
            layouts.append(Layout(places))
            rest = rest[~same]
            if not len(rest):
                break
        if len(rest):
            _one_by_one(buffer, messages, rest, shape, layout, layouts)
    return Rows(buffer, messages.offset, layout, messages.chain, tuple(layouts))


def _one_by_one(
    buffer: NDArray[np.uint8],
    messages: Messages,
    rest: NDArray[np.int64],
    shape: Shape,
    layout: NDArray[np.int32],
    layouts: list[Layout],
) -> None:
    """Parse rows singly: no kernel mixes so many shapes, but a crafted recording may, and stays linear."""
    known: dict[tuple[tuple[Path, tuple[int, int]], ...], int] = {}
    for row in rest:
        places, _ = _template(buffer, int(messages.offset[row]), int(messages.length[row]), shape)
        key = tuple(places.items())
        number = known.get(key)
        if number is None:
            number = known[key] = len(layouts)
            layouts.append(Layout(places))
        layout[row] = number
