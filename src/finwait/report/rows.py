"""Rows of connections: aligned text, CSV, JSON lines.

Made column by column; a row exists only as the line that is written.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from finwait.report.cells import padded, widest
from finwait.table.units import csv_cells, printable
from finwait.uapi import tcp
from finwait.uapi.inet_diag import FAMILY_NAMES, PROTOCOL_NAMES

if TYPE_CHECKING:
    from finwait.report.columns import Cells

__all__ = ["DEFAULT", "HEADINGS", "WIDE", "csv_lines", "json_lines", "text_lines"]

DEFAULT = ("state_name", "rqueue", "wqueue", "local", "peer", "timer_name", "age", "owner")
WIDE = (
    "netns_name", "state_name", "rqueue", "wqueue", "local", "peer", "timer_name", "age", "owner",
    "other_end", "conntrack", "uid", "inode", "cookie", "shutdown", "container_id", "pod_uid", "rule",
)  # fmt: skip
HEADINGS = {
    "state_name": "STATE", "rqueue": "RECV-Q", "wqueue": "SEND-Q", "timer_name": "TIMER", "netns_name": "NETNS",
    "other_end": "OTHER-END",
}  # fmt: skip
_RIGHT = frozenset({"rqueue", "wqueue", "pid", "fd", "uid", "inode", "holders"})
_CHUNK = 4096
_BREAKS = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")
"""What begins a line or a column somewhere."""


def _texts(cells: Cells, name: str) -> list[str]:
    values = cells.column("state_name" if name == "state" else name)
    if name == "cookie":
        return ["-" if v is None else f"{v:x}" for v in values]
    kinds = set(map(type, values))
    if kinds == {int}:
        return list(map(str, values))
    texts = values
    if kinds != {str} or "" in values:
        texts = ["-" if v is None or v == "" else v if isinstance(v, str) else str(v) for v in values]
    # A name that somebody else chose may end a line, and go on as a row of its own.
    whole = "".join(texts)
    if whole.isprintable() or _BREAKS.isdisjoint(whole):
        return texts
    return [text if _BREAKS.isdisjoint(text) else printable(text) for text in texts]


def text_lines(cells: Cells, columns: Sequence[str], *, headers: bool = True) -> Iterator[str]:
    """Return aligned lines, in pieces of many lines; the last column is not padded."""
    texts = [_texts(cells, name) for name in columns]
    headings = [HEADINGS.get(name, name.upper().replace("_", "-")) for name in columns]
    if not all("".join(column).isascii() for column in texts):
        yield from _chunks(_wide_lines(texts, headings, columns, headers=headers))
        return
    layout = []
    for k, (name, heading, column) in enumerate(zip(columns, headings, texts, strict=True)):
        width = max(len(heading) if headers else 0, max(map(len, column), default=0))
        sign = "" if name in _RIGHT else "-"
        layout.append("%s" if k == len(columns) - 1 else f"%{sign}{width}s")
    line = ("  ".join(layout) + "\n").__mod__  # the cheapest way to pad many cells
    if headers:
        yield line(tuple(headings))
    yield from _chunks(map(line, zip(*texts, strict=True)))


def _chunks(lines: Iterator[str]) -> Iterator[str]:
    while chunk := "".join(islice(lines, _CHUNK)):
        yield chunk


def _wide_lines(
    texts: Sequence[Sequence[str]], headings: Sequence[str], names: Sequence[str], *, headers: bool
) -> Iterator[str]:
    """Return lines aligned by the columns of a terminal, which are not the lengths of texts that are not ASCII."""
    shown = [
        [*([heading] if headers else []), *column] for heading, column in zip(headings, texts, strict=True)
    ]
    widths = [*map(widest, shown[:-1]), 0]
    right = [name in _RIGHT for name in names]
    for row in zip(*shown, strict=True):
        cells = zip(row, widths, right, strict=True)
        yield "  ".join(padded(text, width, right=to_right) for text, width, to_right in cells) + "\n"


_QUOTED: Final = re.compile('[",\r\n]')


def _plain_texts(values: list[Any]) -> list[str] | None:
    """Return a column as its fields of CSV, where none of them needs quotes; None where one may."""
    kinds = set(map(type, values))
    if kinds <= {int, float}:
        return list(map(repr, values))
    if not kinds <= {str, int, float, type(None)}:
        return None
    texts = [value if type(value) is str else "" if value is None else repr(value) for value in values]
    return None if _QUOTED.search("\x1e".join(texts)) else texts


def csv_lines(cells: Cells, columns: Sequence[str], *, headers: bool = True) -> Iterator[str]:
    """Return RFC 4180 CSV with a header line; a missing value is an empty field, and no text is a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    if headers:
        writer.writerow(columns)
        yield out.getvalue()
    values = [csv_cells(cells.column(name)) for name in columns]
    plain = [texts for column in values if (texts := _plain_texts(column)) is not None]
    if len(plain) == len(values) > 1:  # as most are: putting commas between is then all there is to do
        joined = map(",".join, zip(*plain, strict=True))
        while lines := [*islice(joined, _CHUNK)]:
            yield "\r\n".join(lines) + "\r\n"
        return
    rows = zip(*values, strict=True)
    while chunk := [*islice(rows, _CHUNK)]:
        out.seek(0)
        out.truncate()
        writer.writerows(chunk)  # None becomes an empty field
        yield out.getvalue()


_SHAPED: dict[str, Callable[[int], str]] = {
    "state": tcp.state_name,
    "family": lambda number: FAMILY_NAMES.get(number, str(number)),
    "protocol": lambda number: PROTOCOL_NAMES.get(number, str(number)),
    "cookie": hex,
}
"""Columns of numbers that `finwait.report.shape.connection` has as text."""


def _as_shaped(name: str, values: list[Any]) -> list[Any]:
    shaped = _SHAPED.get(name)
    return values if shaped is None else [None if value is None else shaped(value) for value in values]


def json_lines(cells: Cells, columns: Sequence[str]) -> Iterator[str]:
    """Return one JSON object a line; a missing value is null, and what the shape of a connection has is as there."""
    encode = msgspec.json.encode
    values: list[list[Any]] = [_as_shaped(name, cells.column(name)) for name in columns]
    for row in zip(*values, strict=True):
        yield encode(dict(zip(columns, row, strict=True))).decode() + "\n"
