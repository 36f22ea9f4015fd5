"""Recordings of real sockets with some bytes of them altered: what a kernel might say that we have no example of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from finwait.uapi import inet_diag
from finwait.uapi import netlink as nl
from finwait.uapi.observation import Observation

__all__ = ["STATE", "TIMER", "altered", "rows"]

HEADER = 16
STATE, TIMER = 1, 2
"""Offsets in ``struct inet_diag_msg``."""


def rows(look: Observation) -> list[int]:
    """Return the offset of every ``inet_diag_msg`` of a look."""
    found: list[int] = []
    for dump in (one for space in look.namespaces for one in space.dumps if one.kind in ("tcp", "mptcp")):
        starts, ends = np.array(dump.starts, np.int64), np.array(dump.ends, np.int64)
        messages = nl.walk(look.buffer, starts, ends)
        wanted = np.isin(messages.type, (inet_diag.SOCK_DIAG_BY_FAMILY, inet_diag.TCPDIAG_GETSOCK))
        found += (messages.where(wanted).offset + HEADER).tolist()
    return found


def altered(look: Observation, changes: Sequence[dict[int, int]]) -> Observation:
    """Return a look whose messages have other bytes: for each message, offset → byte."""
    buffer = look.buffer.copy()
    for row, cells in zip(rows(look), changes, strict=False):
        for at, value in cells.items():
            buffer[row + at] = value
    return replace(look, buffer=buffer)
