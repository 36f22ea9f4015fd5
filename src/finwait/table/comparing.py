"""Changes of state by comparing one look at the sockets with the next: for where no trace can tell them apart.

A connection is known by its cookie (and namespace: the kernel may count in each), so that what was ESTABLISHED before
and is in CLOSE_WAIT now has passed that arrow, and what is in FIN_WAIT2 now has passed FIN_WAIT1 as well. What came and
went between two looks is in neither, so these numbers are lower bounds.

Where TCP has one way only, a change is counted on it; the states and their order are those of RFC 9293, 3.3.2, and of
``tcp_set_state`` (net/ipv4/tcp.c). Where there are two, it is not placed: what has left CLOSE_WAIT was closed or reset,
and both look the same afterwards (`Changes.unplaced`). A minisocket (TIME_WAIT, orphaned FIN_WAIT2: timer 3) has a
cookie of its own (``inet_twsk_alloc``, net/ipv4/inet_timewait_sock.c); its addresses and ports are those of the
connection that it continues.

Columns only: looking at the sockets, and when, is for who calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.table.schema import Mask
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp

__all__ = ["Changes", "Looked", "changes", "looked"]

_E, _W1, _W2, _TW, _CL = tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.TIME_WAIT, tcp.CLOSE
_CW, _LA, _CG, _SR, _SS = tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING, tcp.SYN_RECV, tcp.SYN_SENT
_TIMEWAIT: Final = 3
"""``idiag_timer`` of a minisocket."""

Edge = tuple[int, int]

_FROM_OPEN: Final[Mapping[int, tuple[Edge, ...]]] = {
    _W1: ((_E, _W1),),
    _W2: ((_E, _W1), (_W1, _W2)),
    _CG: ((_E, _W1), (_W1, _CG)),
    _CW: ((_E, _CW),),
    _LA: ((_E, _CW), (_CW, _LA)),
    _TW: ((_E, _W1),),
}
"""State → the arrows that lead to it from ESTABLISHED, as far as there is one way only."""
_WAYS: Final[Mapping[Edge, tuple[Edge, ...]]] = {
    **{(_E, new): way for new, way in _FROM_OPEN.items()},
    **{(old, new): ((old, _E), *way) for old in (_SR, _SS) for new, way in _FROM_OPEN.items()},
    (_SR, _E): ((_SR, _E),),
    (_SS, _E): ((_SS, _E),),
    (_W1, _W2): ((_W1, _W2),),
    (_W1, _CG): ((_W1, _CG),),
    (_W2, _TW): ((_W2, _CL),),
    (_CG, _TW): ((_CG, _CL),),
    (_CW, _LA): ((_CW, _LA),),
}
"""(before, now) → the arrows in between. The end of FIN_WAIT2 and CLOSING is one change to CLOSE, as a trace has it."""
_GONE: Final[Mapping[int, tuple[Edge, ...]]] = {
    _W2: ((_W2, _CL),), _CG: ((_CG, _CL),), _LA: ((_LA, _CL),),
}  # fmt: skip
"""State → the arrow that a connection has passed that is not there any more."""


class Looked(Struct, frozen=True):
    """What one look leaves for the comparison with the next."""

    identity: NDArray[np.uint64]
    state: NDArray[np.uint8]
    minisocket: Mask
    wanted: Mask
    ends: NDArray[np.uint64]
    """(rows, 6): namespace, both ports in one number, and two words of each address."""


class Changes(Struct, frozen=True):
    """What is different between two looks."""

    passed: Mapping[Edge, int]
    """(old, new) → connections that are known to have passed this arrow."""
    unplaced: int
    """Connections that left a state, and nobody can say by which of several ways."""


def looked(sockets: SocketTable, selected: Mask) -> Looked:
    """Return what a look at all states of some namespaces leaves.

    Args:
        sockets: the look, listeners included.
        selected: which rows count; a connection counts that was selected before, or is now.
    """
    rows = np.flatnonzero(sockets.state != tcp.LISTEN)
    netns = sockets.netns[rows].astype(np.uint64)
    ports = sockets.sport[rows].astype(np.uint64) << np.uint64(16) | sockets.dport[rows].astype(np.uint64)
    ends = np.column_stack(
        [netns, ports, sockets.src[rows].astype(np.uint64), sockets.dst[rows].astype(np.uint64)]
    )
    return Looked(
        sockets.cookie[rows].astype(np.uint64) + (netns << np.uint64(40)),
        sockets.state[rows].astype(np.uint8),
        sockets.timer[rows] == _TIMEWAIT,
        selected[rows],
        ends,
    )


def changes(before: Looked, now: Looked) -> Changes:
    """Return what is different between two looks at the same namespaces."""
    counted: Counter[Edge] = Counter()
    unplaced = 0
    both, old, new = np.intersect1d(before.identity, now.identity, return_indices=True)
    moved = (before.state[old] != now.state[new]) & (before.wanted[old] | now.wanted[new])
    for (a, b), number in _pairs(before.state[old[moved]], now.state[new[moved]]).items():
        unplaced += _place(counted, _WAYS.get((a, b)), number)

    new_here = now.wanted & ~now.minisocket & ~np.isin(now.identity, both)
    for state, number in _numbers(now.state[new_here]).items():
        # An open one came by connect() or by accept(); which of the two a look does not tell.
        _place(counted, _FROM_OPEN.get(state, ()), number)

    gone = np.flatnonzero(before.wanted & ~before.minisocket & ~np.isin(before.identity, both))
    after = _continued(before, now, gone)
    for (a, b), number in _pairs(before.state[gone], after).items():
        if a != b:
            unplaced += _place(counted, _GONE.get(a) if b == _CL else _WAYS.get((a, b)), number)
    return Changes(dict(counted), unplaced)


def _continued(before: Looked, now: Looked, gone: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Return the state of the minisocket that continues each connection that is gone; CLOSE where there is none."""
    result = np.full(len(gone), _CL, np.uint8)
    new = np.flatnonzero(now.minisocket & ~np.isin(now.identity, before.identity))
    if not len(gone) or not len(new):
        return result
    states = dict(zip(map(bytes, now.ends[new]), now.state[new].tolist(), strict=True))
    for k, ends in enumerate(map(bytes, before.ends[gone])):
        result[k] = states.get(ends, _CL)
    return result


def _place(counted: Counter[Edge], way: tuple[Edge, ...] | None, number: int) -> int:
    """Count a number on each arrow of a way; return how many could not be placed."""
    for edge in way or ():
        counted[edge] += number
    return number if way is None else 0


def _pairs(old: NDArray[np.uint8], new: NDArray[np.uint8]) -> dict[Edge, int]:
    counted = _numbers(old.astype(np.int64) << 8 | new.astype(np.int64))
    return {(pair >> 8, pair & 255): number for pair, number in counted.items()}


def _numbers(values: NDArray[np.integer]) -> dict[int, int]:
    different, counts = np.unique(values, return_counts=True)
    return dict(zip(different.tolist(), counts.tolist(), strict=True))
