"""Whether the program behind a listener accepts: what two looks at its queue tell, and what they do not.

The length of a queue says little: a server that accepts all the time and is overloaded has a full queue at every look.
What tells is which connections wait in it. Those that were in the queue at the first look and are in it no more were
accepted, or they died in it. A dead one keeps its place until accept(), so places without a row bound how many died.
What remains was taken.

With SO_REUSEPORT the kernel chooses the listener by a hash, and no row says which. A listener is then known to have
taken something only where all that waits still, and all that died, are fewer than it had at the first look alone. If
the listeners that share an address have taken something together, and that does not show which, then neither "it
accepts" nor "it accepts nothing" is known of any of them, unless a process that has only one of them holds a
connection that is new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.attribution.join import matches
from finwait.table.schema import Mask
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.view import View
    from finwait.table.sockets import SocketTable

__all__ = ["Accepting", "accepting"]

I64 = NDArray[np.int64]


class Accepting(Struct, frozen=True):
    """What is known of each listener of a view; of other rows nothing is."""

    twice: Mask
    """It was there at both of two looks."""
    shared: Mask
    """Others listen on its address and port: no row says who has which connection."""
    alive: I64
    """How many connections that are still there wait at it, or at one that shares its address."""
    new: I64
    """How many of those came between the two looks."""
    taken: Mask
    """Its program took connections out of its queue between the two looks."""
    perhaps: Mask
    """One of those that share its address did, and whether it was this one is not known."""


def accepting(view: View) -> Accepting:
    """Return what is known of the listeners of a view."""
    s = view.sockets
    n = len(view)
    doors = np.flatnonzero(s.state == tcp.LISTEN)
    twice = np.zeros(n, np.bool_)
    twice[doors] = (view.queue_before[doors] >= 0) & (view.watched_ms > 0)
    group, size = _groups(view, doors)
    shared, taken, perhaps = np.zeros(n, np.bool_), np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    shared[doors] = size[group] > 1
    row, door = view.listeners
    alive, new = np.zeros(n, np.int64), np.zeros(n, np.int64)
    np.add.at(alive, door, 1)
    np.add.at(new, door[view.queue_before[row] < 0], 1)

    # Of each group: what waited at the first look, what waits, and how much of that has a row.
    before, now = view.queue_before[doors], s.rqueue[doors].astype(np.int64)
    total_before, total_now = _sums(group, before, len(size)), _sums(group, now, len(size))
    place = np.full(n, -1, np.int64)
    place[doors] = group
    queued = np.flatnonzero(view.listener >= 0)  # each row once; all of its listeners are of one group
    at = place[view.listener[queued]]
    rows, old = _sums(at, np.ones(len(at), np.int64), len(size)), np.zeros(len(size), np.int64)
    np.add.at(old, at[view.queue_before[queued] >= 0], 1)
    undrained = old + np.maximum(total_now - rows, 0)  # waits still, or has died in the queue
    known = _sums(group, (~twice[doors]).astype(np.int64), len(size)) == 0
    taken[doors] = twice[doors] & (before > undrained[group])
    took_some = known & (total_before > undrained)
    one_of_them = shared[doors] & took_some[group] & ~taken[doors]
    served = _served(view, doors, group, one_of_them)
    taken[doors[served]] = True
    perhaps[doors] = one_of_them & ~served
    return Accepting(twice, shared, alive, new, taken, perhaps)


def _sums(group: I64, amounts: I64, n: int) -> I64:
    out = np.zeros(n, np.int64)
    np.add.at(out, group, amounts)
    return out


def _groups(view: View, doors: I64) -> tuple[I64, I64]:
    """Return the group of each listener, those on one address and port, and how many each group has.

    Of TCP and MPTCP apart. A listener that is bound to a device is among those that are not: rows may be of either.
    """
    s = view.sockets
    keys = np.stack(
        [
            *(word[doors].astype(np.uint64) for word in (s.netns, s.protocol, s.sport)),
            s.src[doors, 0],
            s.src[doors, 1],
        ],
        axis=1,
    )
    _, group, size = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    return group.reshape(-1).astype(np.int64), size.astype(np.int64)


def _served(view: View, doors: I64, group: I64, asked: Mask) -> Mask:
    """Return which listeners, of some, have a process of their own that holds a new connection on their port."""
    s = view.sockets
    out = np.zeros(len(doors), np.bool_)
    if not asked.any():
        return out
    ports = (s.netns[doors[asked]], s.sport[doors[asked]])
    on_ports, _ = matches((s.netns, s.sport), tuple(np.unique(np.stack(ports), axis=1)))
    fresh = np.zeros(len(view), np.bool_)
    fresh[on_ports] = (view.queue_before[on_ports] < 0) & (s.state[on_ports] != tcp.LISTEN)
    by_pid = view.pid_rows(fresh)
    beside = np.flatnonzero(np.isin(group, group[asked])).tolist()
    holding = {k: {pid for pid, _ in view.holders.of(int(doors[k]))} for k in beside}
    for k in np.flatnonzero(asked).tolist():
        others = (holding[other] for other in np.flatnonzero(group == group[k]).tolist() if other != k)
        alone = holding[k].difference(*others) & by_pid.keys()
        out[k] = any(_on_port(s, by_pid[pid], int(doors[k])) for pid in alone)
    return out


def _on_port(sockets: SocketTable, rows: I64, door: int) -> bool:
    same = (sockets.netns[rows] == sockets.netns[door]) & (sockets.sport[rows] == sockets.sport[door])
    return bool(same.any())
