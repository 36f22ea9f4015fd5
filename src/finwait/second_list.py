"""A second list of descriptors: only it tells who holds a socket that was made after the first one.

A dump of sockets comes after the first list. What the list does not name is looked for again, and then whatever cannot
have changed is not read again; only if a socket still has no holder is everything read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec.structs import replace

from finwait.diagnosis.rules.holder_not_found import suspects
from finwait.kernel import procfs
from finwait.table.sockets import SocketTable
from finwait.uapi.observation import Descriptors
from finwait.uapi.sets import among

__all__ = ["completed", "unchanged"]


def completed(
    sockets: SocketTable, listed: Descriptors, again: Callable[[Descriptors | None], Descriptors]
) -> Descriptors:
    """Return the descriptors of a look, with those of further lists where some socket has no holder in the first.

    Args:
        sockets: the dump, made after the first list.
        listed: the first list.
        again: lists once more, but for those that are known to refer to the same socket as before; None: all.
    """
    if not listed.searched or not _unheld(sockets, listed):
        return listed
    # Made after the descriptors were listed, or held by none of them.
    listed = procfs.unique(_both(listed, again(unchanged(sockets, listed))))
    if _unheld(sockets, listed):  # a number may have become another socket's while the dump was under way
        listed = procfs.unique(_both(listed, again(None)))
    return listed


def unchanged(sockets: SocketTable, listed: Descriptors) -> Descriptors:
    """Return the descriptors of a list that referred to their socket at the dump, too.

    They are the only ones of a socket that the dump, which came later, still knows as held: who closes the only
    descriptor of a socket to use its number for another one ends that socket, too.
    """
    order = np.argsort(listed.inode, kind="stable")
    inodes = listed.inode[order]
    alone = np.ones(len(order), np.bool_)
    again = inodes[1:] == inodes[:-1]
    alone[1:][again] = alone[:-1][again] = False
    kept = np.zeros(len(order), np.bool_)
    kept[order] = alone & among(inodes, sockets.inode[sockets.inode != 0].astype(np.uint64))
    return replace(listed, pid=listed.pid[kept], fd=listed.fd[kept], inode=listed.inode[kept])


def _unheld(sockets: SocketTable, descriptors: Descriptors) -> bool:
    """Whether rows that deserve a word without a holder have an inode that no listed descriptor names."""
    inodes = sockets.inode[suspects(sockets)]
    return bool(len(inodes)) and not among(inodes.astype(np.uint64), descriptors.inode).all()


def _both(a: Descriptors, b: Descriptors) -> Descriptors:
    """Return what either list has; what one of them left out of the threads, the later one says."""
    return replace(
        b,
        pid=np.concatenate([a.pid, b.pid]),
        fd=np.concatenate([a.fd, b.fd]),
        inode=np.concatenate([a.inode, b.inode]),
        unreadable=tuple(sorted({*a.unreadable, *b.unreadable})),
        loops=tuple(sorted({*a.loops, *b.loops})),
        rings=tuple(sorted({*a.rings, *b.rings})),
    )
