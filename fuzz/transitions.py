"""Fuzz what is made of ring-buffer pages: columns, lives and times, stacks, and the lines that are printed."""

from __future__ import annotations

import numpy as np
from tests import ring_pages as rp

from finwait.errors import DecodeError
from finwait.report import transitions as text
from finwait.table import transitions as tr
from finwait.table.lives import Follower
from finwait.uapi import tracepoint

_PAGE = 512
_LAYOUT = tracepoint.PageLayout(data_size=_PAGE - 16)
_STACK = (
    b"name: kernel_stack\nID: 4\n" + rp.COMMON
    + b"\tfield:int size;\toffset:8;\tsize:4;\tsigned:1;\n"
    + b"\tfield:unsigned long caller[8];\toffset:16;\tsize:0;\tsigned:0;\n"
)  # fmt: skip
_FORMATS = {
    form.id: form for form in map(tracepoint.parse_format, (rp.SET_STATE, rp.DESTROY, rp.RESET, _STACK))
}


def seeds() -> list[bytes]:
    page = rp.PageWriter(_LAYOUT, 1_000_000)
    page.data(rp.set_state(7, 2, sport=40000), 0)
    page.data(rp.set_state(2, 1, sport=40000), 50)
    page.data(rp.set_state(1, 4, sport=40000), 900)
    page.data(rp.destroyed(77, sport=40000), 10)
    other = rp.PageWriter(_LAYOUT, 1_000_100)
    other.data(rp.set_state(1, 8, sport=80, dport=40000, sk=0xFFFF888000002000), 5)
    return [page.page() + other.page(), page.page(), rp.PageWriter(_LAYOUT, 5).page()]


def one_input(data: bytes) -> None:
    """Follow ``data`` as the pages of two CPUs, to the printed line."""
    starts = np.arange(0, len(data), _PAGE)
    lengths = np.minimum(_PAGE, len(data) - starts)
    cpu = np.arange(len(starts), dtype=np.int64) % 2
    follower = Follower()
    try:
        records = tracepoint.walk(np.frombuffer(data, np.uint8), starts, lengths, _LAYOUT)
        table, cookies = tr.decode(records, cpu, _FORMATS, byteorder="little")
        tr.stacks(records, cpu, _FORMATS, byteorder="little")
    except DecodeError:
        return
    follower.feed(table, cookies, 1 << 62, missed=records.missed)
    rows = follower.take(1 << 62)
    for record in text.records(rows, text.TransitionNames()):
        text.line(record, text.TransitionNames())
        text.csv_line(record)
    summary = text.Summary()
    summary.add(rows)
    summary.lines()
