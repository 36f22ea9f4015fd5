"""MPTCP: a connection → its subflows, which are TCP rows of their own.

The row of the connection (protocol 262) has its state, its queue and its holder; clocks and timers run on the subflows.
Its token names it in the row of each subflow; where a kernel does not tell that, the inode does, which the connection
shares with the subflows that its program's descriptor leads to.

What this does not do: count a connection that fell back to TCP as anything else. It has a row of each kind, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.join import matches
from finwait.table.sockets import SocketTable

__all__ = ["MPTCP", "subflows"]

MPTCP = 262
"""IPPROTO_MPTCP."""
I64 = NDArray[np.int64]


def subflows(sockets: SocketTable) -> tuple[I64, I64]:
    """Return the rows of MPTCP connections and of their subflows, as pairs."""
    s = sockets
    whole = np.flatnonzero(s.protocol == MPTCP)
    if not len(whole):
        return whole, whole
    parts = np.flatnonzero((s.protocol == 6) & (s.ulp == b"mptcp"))
    with_token = s.present("mptcp_token_local")[parts]
    named, held = parts[with_token], parts[~with_token & (s.inode[parts] != 0)]
    a, b = matches((s.netns[whole], s.mptcp_token[whole]), (s.netns[named], s.mptcp_token_local[named]))
    c, d = matches((s.netns[whole], s.inode[whole]), (s.netns[held], s.inode[held]))
    above, below = np.append(whole[a], whole[c]), np.append(named[b], held[d])
    order = np.lexsort((below, above))
    return above[order], below[order]
