"""Which rows lack what tells one pattern from another, because what was read does not say it (pasted text).

A look at the running kernel tells all of it; of a pasted text the columns that it does not have are missing
(`finwait.uapi.observation.Dump.untold`). No rule concludes anything of such rows but `not-told`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from finwait.table.schema import Mask
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp

__all__ = ["held_untold", "undecided"]

_TIMED: Final = (
    tcp.FIN_WAIT1, tcp.CLOSING, tcp.LAST_ACK, tcp.SYN_SENT, tcp.SYN_RECV, tcp.NEW_SYN_RECV, tcp.ESTABLISHED,
)  # fmt: skip
"""States in which the timer that runs, or that none does, tells patterns apart."""
_READ: Final = (tcp.CLOSE_WAIT, tcp.ESTABLISHED)
"""States in which it matters what the program has not read."""


def held_untold(sockets: SocketTable) -> Mask:
    """Return which rows may have a struct socket or not."""
    untold: Mask = ~sockets.present("inode") & (sockets.inode == 0)
    return untold


def undecided(sockets: SocketTable) -> Mask:
    """Return which rows lack what decides.

    Whether a process holds it; in states that a timer ends, which one runs; of CLOSE_WAIT, whether its program has
    read to the end, and with bytes to send, whether these are sent again; of a listener, how long its queue may be.
    """
    state = sockets.state
    out = held_untold(sockets)
    sending = (state == tcp.CLOSE_WAIT) & ((sockets.wqueue > 0) | ~sockets.present("wqueue"))
    timed = np.isin(state, _TIMED) | ((state == tcp.FIN_WAIT2) & (sockets.inode == 0)) | sending
    out |= ~sockets.present("timer") & timed
    out |= ~sockets.present("wqueue") & (state == tcp.LISTEN)
    out |= ~sockets.present("rqueue") & np.isin(state, _READ)
    return out & np.isin(state, list(tcp.STATES))  # of a state that nobody knows nothing would decide
