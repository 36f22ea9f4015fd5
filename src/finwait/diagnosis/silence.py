"""What the clocks of tcp_info tell of a connection as a whole: how long it is silent, and how long it is there.

Of an MPTCP connection they run on its subflows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finwait.table.sockets import SocketTable
from finwait.uapi import tcp

__all__ = ["lived_of", "silence_of"]

I64 = NDArray[np.int64]


def silence_of(sockets: SocketTable, clocks: Sequence[str], subflows: tuple[I64, I64]) -> I64:
    """Return for how long nothing has happened by some clocks of tcp_info, in ms; −1 where none of them is there.

    Args:
        sockets: all.
        clocks: columns; the one that was set anew last decides.
        subflows: rows of MPTCP connections and of their subflows, as pairs.
    """
    never = np.iinfo(np.int64).max
    quiet = np.full(len(sockets), never, np.int64)
    for name in clocks:
        quiet = np.minimum(
            quiet, np.where(sockets.present(name), sockets.column(name).astype(np.int64), never)
        )
    whole, part = subflows
    np.minimum.at(quiet, whole, quiet[part])
    return np.where(quiet == never, -1, quiet)


def lived_of(sockets: SocketTable, subflows: tuple[I64, I64]) -> I64:
    """Return for how long each connection has been there, at least, in ms; −1 where nothing says.

    The clocks of tcp_info begin when the connection is made: whichever was not set anew for longest says most.
    """
    lived = np.full(len(sockets), -1, np.int64)
    begun = ~np.isin(sockets.state, (tcp.LISTEN, tcp.SYN_SENT))
    for name in ("last_data_sent_ms", "last_data_recv_ms", "last_ack_recv_ms"):
        clocked = begun & sockets.present(name)
        lived[clocked] = np.maximum(lived, sockets.column(name).astype(np.int64))[clocked]
    whole, part = subflows
    np.maximum.at(lived, whole, lived[part])
    return lived
