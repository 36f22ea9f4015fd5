"""Fuzz the ring-buffer pages and the files that describe them."""

from __future__ import annotations

import numpy as np

from finwait.errors import DecodeError
from finwait.uapi import tracepoint

_SMALL = tracepoint.PageLayout(data_size=112)
_BIG = tracepoint.PageLayout(commit_size=4, data=12, data_size=116, byteorder="big")


def one_input(data: bytes) -> None:
    """Decode ``data``: the first byte chooses what it is."""
    kind, data = (data[0], data[1:]) if data else (0, data)
    try:
        if kind & 3 == 1:
            tracepoint.parse_format(data)
        elif kind & 3 == 2:
            layout = tracepoint.parse_header_page(data, byteorder="little")
            tracepoint.parse_header_event(data, layout)
        elif kind & 3 == 3:
            tracepoint.parse_header_event(data, _SMALL)
        else:
            starts = np.arange(0, len(data), 128)
            lengths = np.minimum(128, len(data) - starts)
            layout = _BIG if kind & 4 else _SMALL
            found = tracepoint.walk(np.frombuffer(data, np.uint8), starts, lengths, layout)
            assert (found.offset + found.length <= len(data)).all()
    except DecodeError:
        return
