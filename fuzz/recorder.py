"""Fuzz what the agent's flight recorder makes of ring-buffer pages, and the stories that it keeps in the history."""

from __future__ import annotations

import numpy as np
from tests import ring_pages as rp

from finwait.agent.episode_values import Instant
from finwait.agent.recorder import ROW, Ring, StoryQuery, decode, verdict
from finwait.agent.stories import cell_of, step_items, steps_of, story_lines, told_steps
from finwait.errors import DecodeError
from finwait.uapi import tcp, tracepoint

_PAGE = 512
_LAYOUT = tracepoint.PageLayout(data_size=_PAGE - 16)
_RECEIVED = rp.DESTROY.replace(b"tcp_destroy_sock\nID: 2278", b"tcp_receive_reset\nID: 2279")
_FORMATS = {form.id: form for form in map(tracepoint.parse_format, (rp.SET_STATE, _RECEIVED, rp.RESET))}
_OF_TRACE, _OF_HISTORY = b"t", b"h"


def seeds() -> list[bytes]:
    page = rp.PageWriter(_LAYOUT, 1_000_000)
    page.data(rp.set_state(1, 4, sport=40000), 900)
    page.data(rp.set_state(4, 5, sport=40000), 50)
    page.data(rp.set_state(5, 7, sport=40000), 60_000_000)
    cell = b'[[1000000000,1,4,812,"nginx"],[1000000100,4,5],[2000000000,5,7,0,"","received","",30]]'
    return [_OF_TRACE + page.page(), _OF_TRACE + page.page() * 2, _OF_HISTORY + cell]


def one_input(data: bytes) -> None:
    """Take ``data`` as pages of the trace, to the printed story; or as a cell of the history."""
    if data[:1] == _OF_HISTORY:
        try:
            steps = told_steps(data[1:].decode("utf-8", "surrogateescape"))
        except ValueError:
            return
        assert told_steps(cell_of(steps)) == steps
        list(story_lines(step_items(steps, Instant(0, 0), 1 << 62)))
        list(story_lines(step_items(steps, Instant(0, 1 << 62), None)))
        return
    _trace(data[1:])


def _trace(data: bytes) -> None:
    starts = np.arange(0, len(data), _PAGE)
    lengths = np.minimum(_PAGE, len(data) - starts)
    try:
        records = tracepoint.walk(np.frombuffer(data, np.uint8), starts, lengths, _LAYOUT)
        rows, resets = decode(records, _FORMATS, byteorder="little")
    except DecodeError:
        return
    assert (np.diff(rows["time"]) >= 0).all()
    ring = Ring(most=64)
    for until in (1 << 20, 1 << 62):
        kept = ring.sift(
            rows if until == 1 << 20 else rows[:0], resets if until == 1 << 20 else resets[:0], until
        )
        if len(kept):
            ring.append(kept)
    assert len(ring) <= 64
    assert ring.nbytes <= 64 * ROW.itemsize
    queries = [
        StoryQuery(
            (*row["src"].tolist(), *row["dst"].tolist(), int(row["sport"]), int(row["dport"])),
            0, int(row["new"]), -1, 1 << 62, 0,
        )
        for row in rows[:8]
    ]  # fmt: skip
    for found in ring.find(queries):
        verdict(found.rows, tcp.FIN_WAIT2, held=True, seen_ns=0, resets=True)
        list(story_lines(step_items(steps_of(found.rows, {}, {}), Instant(0, 0), 1 << 62)))
