"""Rows of connections: aligned text, CSV, JSON lines.

Made column by column; a row exists only as the line that is written.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from finwait.table.units import csv_text

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


def _texts(cells: Cells, name: str) -> list[str]:
    values = cells.column("state_name" if name == "state" else name)
    if name == "cookie":
        return [f"{v:x}" for v in values]
    kinds = set(map(type, values))
    if kinds == {int}:
        return list(map(str, values))
    if kinds == {str} and "" not in values:
        return values
    return ["-" if v is None or v == "" else v if isinstance(v, str) else str(v) for v in values]


def text_lines(cells: Cells, columns: Sequence[str], *, headers: bool = True) -> Iterator[str]:
    """Return aligned lines, in pieces of many lines; the last column is not padded."""
    texts = [_texts(cells, name) for name in columns]
    headings = [HEADINGS.get(name, name.upper().replace("_", "-")) for name in columns]
    layout = []
    for k, (name, heading, column) in enumerate(zip(columns, headings, texts, strict=True)):
        width = max(len(heading) if headers else 0, max(map(len, column), default=0))
        sign = "" if name in _RIGHT else "-"
        layout.append("%s" if k == len(columns) - 1 else f"%{sign}{width}s")
    line = ("  ".join(layout) + "\n").__mod__  # the cheapest way to pad many cells
    if headers:
        yield line(tuple(headings))
    lines = map(line, zip(*texts, strict=True))
    while chunk := "".join(islice(lines, _CHUNK)):
        yield chunk


def csv_lines(cells: Cells, columns: Sequence[str], *, headers: bool = True) -> Iterator[str]:
    """Return RFC 4180 CSV with a header line; a missing value is an empty field, and no text is a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    if headers:
        writer.writerow(columns)
    values = [cells.column(name) for name in columns]
    for k, row in enumerate(zip(*values, strict=True)):
        writer.writerow(["" if v is None else csv_text(v) if isinstance(v, str) else v for v in row])
        if k % _CHUNK == _CHUNK - 1:
            yield out.getvalue()
            out.seek(0)
            out.truncate()
    yield out.getvalue()


def json_lines(cells: Cells, columns: Sequence[str]) -> Iterator[str]:
    """Return one JSON object a line; a missing value is null."""
    encode = msgspec.json.encode
    values: list[list[Any]] = [cells.column(name) for name in columns]
    for row in zip(*values, strict=True):
        yield encode(dict(zip(columns, row, strict=True))).decode() + "\n"
