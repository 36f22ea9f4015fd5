"""Tracepoint records as columns, by the format that the kernel itself describes.

Mirrors ``events/*/*/format``, ``events/header_page`` and ``events/header_event`` of tracefs, and the ring
buffer of kernel/trace/ring_buffer.c as ``trace_pipe_raw`` hands it out: pages, each a time stamp, a commit
word and records that carry the time since the record before.

Theory of operation. No offset is compiled in: fields, page header and the widths of the record header all
come from the text files, so another kernel, word size or byte order is another layout and not another
program. Records can be walked only one after the other, but pages do not depend on one another: `walk`
steps through *all* pages in lockstep, a few vector operations a step. A column is then a gather.

The surprises: a page says that records were lost *before* it (two high bits of the commit word, and the
number behind the data if there was room); an absolute time stamp carries only 59 bits; the delta of a
discarded record does not count.

This module touches bytes only. Opening the files is `finwait.kernel.tracefs`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any, Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.errors import DecodeError

__all__ = [
    "EventFormat",
    "Field",
    "PageLayout",
    "Records",
    "cells",
    "column",
    "parse_format",
    "parse_header_event",
    "parse_header_page",
    "walk",
]

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
ByteOrder = Literal["little", "big"]

_MISSED_EVENTS: Final = 1 << 31  # RB_MISSED_EVENTS of kernel/trace/ring_buffer.c
_MISSED_STORED: Final = 1 << 30  # RB_MISSED_STORED: how many is written behind the data
_STAMP_BITS: Final = 59  # TS_SHIFT (27) and the 32 bits of array[0]
_STAMP_HIGH: Final = ((1 << 64) - 1) ^ ((1 << _STAMP_BITS) - 1)

_FIELD = re.compile(
    r"field:(?P<decl>[^;\n]{1,200});\s*offset:(?P<offset>\d{1,9});\s*size:(?P<size>\d{1,9});"
    r"(?:\s*signed:(?P<signed>[01]);)?"
)
_NAME = re.compile(r"(?P<name>[A-Za-z_]\w*)\s*(?P<array>\[[^\]]*\])?\s*$")
_SYMBOLIC = re.compile(r"__print_symbolic\(REC->(?P<name>\w+),(?P<pairs>(?:\s*\{[^{}]*\}\s*,?)+)\)")
_PAIR = re.compile(r"\{\s*(?P<number>-?(?:0x[0-9a-fA-F]{1,16}|\d{1,20}))\s*,\s*\"(?P<word>[^\"]*)\"\s*\}")
_HEADER_LINE = re.compile(
    r"^\s*(?P<name>[a-z_ ]+?)\s*:\s*(?:(?P<bits>\d{1,3}) bits|type(?:_len max)?\s*==\s*(?P<kind>\d{1,3}))"
)


class Field(Struct, frozen=True):
    """One field of a record: what it is called and where it lies in the record's payload."""

    name: str
    declaration: str
    """As the kernel wrote it, e.g. ``__u8 saddr_v6[16]``."""
    offset: int
    size: int
    """Bytes, of the whole array if it is one."""
    signed: bool
    count: int
    """Elements of an array; 1 of a scalar; 0 of an array that ends the record (``caller[]``)."""
    dynamic: bool = False
    """``__data_loc``: the value is where the data is (low 16 bits: offset, high 16: length)."""


class EventFormat(Struct, frozen=True):
    """What a ``format`` file says: the number in ``common_type``, the fields, and names of values."""

    name: str
    id: int
    fields: dict[str, Field]
    symbols: dict[str, dict[int, str]]
    """Field → value → word, of every ``__print_symbolic`` with plain numbers (``reason`` of a reset)."""

    @property
    def size(self) -> int:
        """Bytes that a record must have for all its fields."""
        return max((f.offset + f.size for f in self.fields.values()), default=0)


class PageLayout(Struct, frozen=True):
    """How a page and the header of a record are laid out (``header_page`` and ``header_event``)."""

    timestamp: int = 0
    timestamp_size: int = 8
    commit: int = 8
    commit_size: int = 8
    data: int = 16
    data_size: int = 4080
    byteorder: ByteOrder = "little"
    type_bits: int = 5
    padding: int = 29
    time_extend: int = 30
    time_stamp: int = 31
    data_max: int = 28
    """Largest ``type_len`` that is a length (in words) rather than a kind."""

    @property
    def page_size(self) -> int:
        """Bytes of a page, header included."""
        return self.data + self.data_size


class Records(Struct, frozen=True):
    """Where each record of many pages stands, as columns (page by page, in order within a page)."""

    buffer: U8
    offset: I64
    """Of the payload (``common_type`` comes first) in the buffer."""
    length: I64
    """Of the payload, in bytes; the kernel rounds up to words."""
    time: U64
    """In units of the trace clock: nanoseconds for ``mono``, ``boot``, ``local`` and ``global``."""
    page: I64
    """Index of the page."""
    missed: I64
    """By page: records lost before it; -1 when some were lost and the kernel did not say how many."""

    def __len__(self) -> int:
        return len(self.offset)

    def where(self, mask: NDArray[np.bool_]) -> Records:
        """Return the records that ``mask`` selects (``missed`` stays by page)."""
        return Records(
            self.buffer, self.offset[mask], self.length[mask], self.time[mask], self.page[mask], self.missed
        )


def _text(data: bytes, subject: str) -> str:
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as error:
        raise DecodeError(subject, error.start, data[error.start :], "not ASCII text") from None


def _field(match: re.Match[str], data: bytes, subject: str) -> Field:
    decl = match["decl"].strip()
    name = _NAME.search(decl)
    if name is None:
        at = match.start("decl")
        raise DecodeError(subject, at, data[at:], f"no name in the declaration {decl!r}")
    size = int(match["size"])
    count = 1
    dynamic = decl.startswith(("__data_loc", "__rel_loc"))
    array = name["array"]
    if array is not None and not dynamic:
        inner = array[1:-1].strip()
        # The length may be a macro's name ("comm[TASK_COMM_LEN]"): then an element is a byte.
        count = int(inner) if inner.isdigit() and len(inner) < 10 else (size if inner else 0)
        if size == 0:
            count = 0
        if count and size % count:
            at = match.start("size")
            raise DecodeError(subject, at, data[at:], f"{size} bytes do not make {count} elements")
    if size > 1 << 20 or int(match["offset"]) > 1 << 20:
        at = match.start("offset")
        raise DecodeError(subject, at, data[at:], "a field beyond any record")
    return Field(name["name"], decl, int(match["offset"]), size, match["signed"] == "1", count, dynamic)


def parse_format(data: bytes) -> EventFormat:
    """Parse ``events/<system>/<event>/format``.

    Raises:
        DecodeError: no name or no id, or a field line that is not one.
    """
    subject = "event format"
    text = _text(data, subject)
    name = re.search(r"^name: (\S{1,100})\s*$", text, re.MULTILINE)
    number = re.search(r"^ID: (\d{1,9})\s*$", text, re.MULTILINE)
    if name is None or number is None:
        raise DecodeError(subject, 0, data, "no `name:` and `ID:`")
    head, _, tail = text.partition("print fmt:")
    fields: dict[str, Field] = {}
    for match in _FIELD.finditer(head):
        field = _field(match, data, subject)
        fields[field.name] = field
    if "common_type" not in fields:
        raise DecodeError(subject, number.end(), data[number.end() :], "no field `common_type`")
    symbols = {
        m["name"]: {
            int(p["number"], 0 if "x" in p["number"] else 10): p["word"] for p in _PAIR.finditer(m["pairs"])
        }
        for m in _SYMBOLIC.finditer(tail)
    }
    return EventFormat(name[1], int(number[1]), fields, {k: v for k, v in symbols.items() if v})


def parse_header_page(data: bytes, *, byteorder: ByteOrder) -> PageLayout:
    """Parse ``events/header_page``: where the time stamp, the commit word and the data are.

    Raises:
        DecodeError: one of the three is missing or of an impossible size.
    """
    subject = "header_page"
    fields = {f.name: f for f in (_field(m, data, subject) for m in _FIELD.finditer(_text(data, subject)))}
    for name, sizes in (("timestamp", (8,)), ("commit", (4, 8)), ("data", ())):
        if name not in fields or (sizes and fields[name].size not in sizes):
            raise DecodeError(subject, 0, data, f"no usable field `{name}`")
    stamp, commit, body = fields["timestamp"], fields["commit"], fields["data"]
    layout = PageLayout(
        stamp.offset, stamp.size, commit.offset, commit.size, body.offset, body.size, byteorder
    )
    if body.offset % 4 or stamp.offset % 4 or commit.offset % 4:
        raise DecodeError(subject, 0, data, "fields of the page header are not aligned")
    if body.offset < max(stamp.offset + stamp.size, commit.offset + commit.size) or body.size < 8:
        raise DecodeError(subject, 0, data, "the data overlaps the page header")
    return layout


def parse_header_event(data: bytes, layout: PageLayout) -> PageLayout:
    """Parse ``events/header_event`` and return the layout with the widths and kinds that it names.

    Raises:
        DecodeError: the widths do not make 32 bits, or a kind is missing.
    """
    subject = "header_event"
    bits: dict[str, int] = {}
    kinds: dict[str, int] = {}
    for line in _text(data, subject).splitlines():
        if line.strip().startswith("data max type_len"):
            kinds["data max"] = int(m[1]) if (m := re.search(r"==\s*(\d{1,3})", line)) else -1
        elif match := _HEADER_LINE.match(line):
            name = match["name"].strip()
            if match["bits"] is not None:
                bits[name] = int(match["bits"])
            else:
                kinds[name] = int(match["kind"])
    type_bits, delta_bits = bits.get("type_len", 0), bits.get("time_delta", 0)
    if not 1 <= type_bits <= 16 or type_bits + delta_bits != 32 or bits.get("array") != 32:
        raise DecodeError(subject, 0, data, "type_len and time_delta do not make 32 bits")
    # Before absolute time stamps existed their kind was not listed: the highest value, never sent.
    kinds.setdefault("time_stamp", (1 << type_bits) - 1)
    values = [kinds.get(name, -1) for name in ("padding", "time_extend", "time_stamp", "data max")]
    if (
        any(not 0 <= v < 1 << type_bits for v in values)
        or len(set(values[:3])) != 3
        or values[3] >= min(values[:3])
    ):
        raise DecodeError(subject, 0, data, "the kinds of record overlap")
    return PageLayout(
        layout.timestamp, layout.timestamp_size, layout.commit, layout.commit_size, layout.data,
        layout.data_size, layout.byteorder, type_bits, *values,
    )  # fmt: skip


def _at(buffer: U8, offset: I64, size: int, layout: PageLayout) -> U64:
    """Gather one unsigned number of ``size`` bytes at every offset (aligned to four)."""
    order = "<" if layout.byteorder == "little" else ">"
    words = buffer[: len(buffer) // 4 * 4].view(f"{order}u4")
    first = words[offset >> 2].astype(np.uint64)
    if size == 4:
        return first
    second = words[(offset >> 2) + 1].astype(np.uint64)
    low, high = (first, second) if layout.byteorder == "little" else (second, first)
    return (high << np.uint64(32)) | low


def walk(buffer: U8, starts: I64, lengths: I64, layout: PageLayout) -> Records:
    """Find every record in the pages ``buffer[starts[i]:starts[i] + lengths[i]]``.

    Time extends and absolute stamps are applied, padding is skipped, losses are counted by page. Every
    step makes progress.

    Args:
        buffer: the bytes.
        starts: where each page starts; multiples of four.
        lengths: bytes of each page, as ``read`` returned them.
        layout: from `parse_header_page` and `parse_header_event`.

    Raises:
        DecodeError: a page is shorter than its header or its commit word, or a record does not fit.
    """
    starts, lengths = np.asarray(starts, np.int64), np.asarray(lengths, np.int64)
    if not len(starts):
        return _in_order(buffer, 0, [], np.empty(0, np.int64))
    stamp, commit, size = _page_headers(buffer, starts, lengths, layout)
    missed = _missed(buffer, starts, commit, size, lengths - layout.data, layout)
    return _in_order(buffer, len(starts), _steps(buffer, starts + layout.data, size, stamp, layout), missed)


def _page_headers(buffer: U8, starts: I64, lengths: I64, layout: PageLayout) -> tuple[U64, U64, I64]:
    """Return the time stamp, the commit word and the bytes of records of each page."""
    misplaced = (starts % 4 != 0) | (starts < 0) | (lengths < layout.data) | (starts + lengths > len(buffer))
    if misplaced.any():
        where = int(starts[misplaced][0])
        raise DecodeError(
            "ring buffer page", where, buffer[max(where, 0) :][:16].tobytes(), "shorter than its header"
        )
    stamp = _at(buffer, starts + layout.timestamp, layout.timestamp_size, layout)
    commit = _at(buffer, starts + layout.commit, layout.commit_size, layout)
    size = (commit & np.uint64(_MISSED_STORED - 1)).astype(np.int64)
    room = lengths - layout.data
    if (size > room).any():
        k = int(np.argmax(size > room))
        where = int(starts[k]) + layout.commit
        raise DecodeError(
            "ring buffer page", where, buffer[where : where + 16].tobytes(),
            f"{int(size[k])} bytes committed on a page that has room for {int(room[k])}",
        )  # fmt: skip
    return stamp, commit, size


_Steps = list[tuple[I64, I64, U64, I64]]
"""Of one record of every page that has so many: where its payload begins, how long it is, its time, and the page."""


def _steps(buffer: U8, body: I64, size: I64, stamp: U64, layout: PageLayout) -> _Steps:
    """Go through all pages at once, record by record."""
    end = body + size
    little = layout.byteorder == "little"
    words = buffer[: len(buffer) // 4 * 4].view("<u4" if little else ">u4")
    type_bits = layout.type_bits
    delta_shift = np.uint32(type_bits if little else 0)
    type_shift = np.uint32(0 if little else 32 - type_bits)
    type_mask = np.uint32((1 << type_bits) - 1)
    delta_mask = np.uint32((1 << (32 - type_bits)) - 1)

    at, time, page = body, stamp, np.arange(len(body), dtype=np.int64)
    live = end - at >= 4
    at, time, page, end = at[live], time[live], page[live], end[live]
    steps: _Steps = []
    while len(at):
        word = words[at >> 2]
        kind = (word >> type_shift) & type_mask
        delta = (word >> delta_shift) & delta_mask
        if int(kind.min()) >= 1 and int(kind.max()) <= layout.data_max:  # nothing but short records: usual
            length = (kind.astype(np.int64) << 2) + 4
            time = time + delta
            payload = at + 4
            _fits(buffer, at, length, end)
            steps.append((payload, length - 4, time, page))
        else:
            at, time, page, end, length = _step(
                buffer, words, at, time, page, end, kind, delta, layout, steps
            )
        at = at + length
        live = end - at >= 4
        if not live.all():
            at, time, page, end = at[live], time[live], page[live], end[live]
    return steps


def _in_order(buffer: U8, pages: int, steps: _Steps, missed: I64) -> Records:
    """Return the records page by page: record k of one goes to (records of all pages before it) + k, without a sort."""
    counts = np.zeros(pages + 1, np.int64)
    for _, _, _, owners in steps:
        counts[owners + 1] += 1
    row_of = np.cumsum(counts)[:-1].copy()
    total = int(counts.sum())
    offset, extent, owner = (np.empty(total, np.int64) for _ in range(3))
    when = np.empty(total, np.uint64)
    for payload, length, time, owners in steps:
        row = row_of[owners]
        offset[row], extent[row], owner[row], when[row] = payload, length, owners, time
        row_of[owners] += 1
    return Records(buffer, offset, extent, when, owner, missed)


def _missed(buffer: U8, starts: I64, commit: U64, size: I64, room: I64, layout: PageLayout) -> I64:
    missed = np.where(commit & np.uint64(_MISSED_EVENTS), np.int64(-1), np.int64(0))
    behind = (size + 3) & ~3
    stored = (
        (missed != 0) & ((commit & np.uint64(_MISSED_STORED)) != 0) & (behind + layout.commit_size <= room)
    )
    if stored.any():
        at = starts[stored] + layout.data + behind[stored]
        count = _at(buffer, at, layout.commit_size, layout)
        # "Some" rather than a number that no buffer can have lost.
        missed[stored] = np.where(
            (count == 0) | (count >> np.uint64(48) != 0), np.int64(-1), count.astype(np.int64)
        )
    return missed


def _fits(buffer: U8, at: I64, length: I64, end: I64) -> None:
    bad = (at + length > end) | (length < 4) | (length & 3 != 0)
    if bad.any():
        where = int(at[bad][0])
        raise DecodeError(
            "ring buffer record", where, buffer[where : where + 16].tobytes(),
            f"record of {int(length[bad][0])} bytes where {int((end - at)[bad][0])} are left",
        )  # fmt: skip


def _step(
    buffer: U8,
    words: NDArray[Any],
    at: I64,
    time: U64,
    page: I64,
    end: I64,
    kind: NDArray[Any],
    delta: NDArray[Any],
    layout: PageLayout,
    steps: list[tuple[I64, I64, U64, I64]],
) -> tuple[I64, U64, I64, I64, I64]:
    """One step over records of mixed kinds; returns the pages that go on, and the length of the step."""
    padding = kind == layout.padding
    on = ~(padding & (delta == 0))  # a null record: the rest of the page is empty
    if not on.all():
        at, time, page, end = at[on], time[on], page[on], end[on]
        kind, delta, padding = kind[on], delta[on], padding[on]
    extend, stamp = kind == layout.time_extend, kind == layout.time_stamp
    long = kind == 0
    worded = padding | extend | stamp | long
    unknown = ~worded & (kind > layout.data_max)
    if unknown.any():
        where = int(at[unknown][0])
        raise DecodeError(
            "ring buffer record", where, buffer[where : where + 16].tobytes(),
            f"unknown kind {int(kind[unknown][0])}",
        )  # fmt: skip
    has_word = end - at >= 8
    _fits(buffer, at[worded], np.full(int(worded.sum()), 8, np.int64), end[worded])
    array0 = np.where(has_word, words[np.where(has_word, (at >> 2) + 1, 0)], 0).astype(np.int64)
    length = np.where(
        extend | stamp, 8, np.where(padding | long, array0 + 4, (kind.astype(np.int64) << 2) + 4)
    )
    _fits(buffer, at, length, end)
    bits = 32 - layout.type_bits
    wide = (array0.astype(np.uint64) << np.uint64(bits)) | delta.astype(np.uint64)
    absolute = wide | (time & np.uint64(_STAMP_HIGH))
    absolute = np.where(absolute < time, absolute + np.uint64(1 << _STAMP_BITS), absolute)
    time = np.where(
        padding,
        time,
        np.where(extend, time + wide, np.where(stamp, absolute, time + delta.astype(np.uint64))),
    )
    data = long | ~worded
    if data.any():
        skip = np.where(long, 8, 4)[data]
        steps.append((at[data] + skip, length[data] - skip, time[data], page[data]))
        short = length[data] < skip
        if short.any():
            where = int(at[data][short][0])
            raise DecodeError(
                "ring buffer record", where, buffer[where : where + 16].tobytes(), "record without a payload"
            )
    return at, time, page, end, length


def column(records: Records, field: Field, *, byteorder: ByteOrder) -> NDArray[Any]:
    """Gather one field of every record: numbers for a scalar, a matrix for an array.

    Records that are too short for the field are the caller's business (select by ``length`` first).

    Raises:
        DecodeError: a record is too short, or the field has a size that is no number's.
    """
    need = field.offset + field.size
    short = records.length < need
    if short.any():
        where = int(records.offset[short][0])
        raise DecodeError(
            f"field {field.name}", where, records.buffer[where : where + 16].tobytes(),
            f"record of {int(records.length[short][0])} bytes, the field ends at {need}",
        )  # fmt: skip
    count = max(field.count, 1)
    element = field.size // count
    if element not in (1, 2, 4, 8) or field.count == 0:
        where = int(records.offset[0]) if len(records) else 0
        raise DecodeError(f"field {field.name}", where, b"", f"cannot read {field.declaration!r} as numbers")
    unit = math.gcd(field.offset, field.size, 4) or 4
    pieces = field.size // unit
    source = records.buffer[: len(records.buffer) // unit * unit].view(f"u{unit}")
    first = (records.offset + field.offset) // unit
    raw = source[first].reshape(-1, 1) if pieces == 1 else source[first[:, None] + np.arange(pieces)]
    order = "<" if byteorder == "little" else ">"
    kind = "i" if field.signed else "u"
    cells = np.ascontiguousarray(raw).view(f"{order}{kind}{element}")
    return cells if field.count > 1 else cells[:, 0]


def cells(
    records: Records, form: EventFormat, names: Collection[str], *, byteorder: ByteOrder
) -> NDArray[Any]:
    """Gather some fields of every record of one event at once: a structured array, by name.

    Much cheaper than `column` for each of them. Records that are longer than the format says are cut.

    Raises:
        DecodeError: the format lacks one of the fields, a field has a size that is no number's, or a record is too
        short.
    """
    subject = f"event {form.name}"
    order = "<" if byteorder == "little" else ">"
    formats: list[Any] = []
    offsets = []
    for name in names:
        field = form.fields.get(name)
        if field is None:
            raise DecodeError(subject, 0, b"", f"its format has no field `{name}`")
        count = max(field.count, 1)
        element = field.size // count
        if element not in (1, 2, 4, 8) or field.count == 0:
            raise DecodeError(subject, 0, b"", f"cannot read {field.declaration!r} as numbers")
        kind = f"{order}{'i' if field.signed else 'u'}{element}"
        formats.append((kind, (count,)) if count > 1 else kind)
        offsets.append(field.offset)
    size = max((form.fields[name].offset + form.fields[name].size for name in names), default=1)
    dtype = np.dtype({"names": list(names), "formats": formats, "offsets": offsets, "itemsize": size})
    if not len(records):
        return np.empty(0, dtype)
    short = records.length < size
    if short.any():
        where = int(records.offset[short][0])
        raise DecodeError(
            subject, where, records.buffer[where : where + 16].tobytes(),
            f"record of {int(records.length[short][0])} bytes where its format needs {size}",
        )  # fmt: skip
    # Records begin at multiples of four: every such place as bytes, of which those are taken that are records.
    places = (len(records.buffer) - size) // 4 + 1
    window: NDArray[Any] = np.ndarray(
        (places,), np.dtype((np.void, size)), np.ascontiguousarray(records.buffer), 0, (4,)
    )
    gathered: NDArray[Any] = window[records.offset >> 2].view(dtype)
    return gathered
