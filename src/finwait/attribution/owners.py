"""Who holds each socket: every (pid, fd) whose link names its inode.

A socket may have several holders (a descriptor that a child inherited is the classic), none although it has
an inode (in flight over a Unix socket, io_uring, a kernel user), or none that we were *allowed to see*. The
last two are kept apart by `Holders.complete`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finwait.uapi.observation import Descriptors

__all__ = ["Holders", "holders"]


@dataclass(frozen=True, slots=True)
class Holders:
    """Holders in compressed rows: those of row *i* are ``pid[start[i]:start[i] + count[i]]``."""

    start: NDArray[np.int64]
    count: NDArray[np.int64]
    pid: NDArray[np.uint32]
    fd: NDArray[np.uint32]
    unreadable: tuple[int, ...] = ()
    """Pids that could not be inspected; 0 stands for those that cannot be named from here."""
    searched: bool = True
    """False when nobody looked."""
    threads: tuple[int, ...] = ()
    """Pids that were too many to look for threads with a descriptor table of their own."""

    @property
    def complete(self) -> bool:
        """Whether every process could be inspected; if not, no holder found does not mean no holder."""
        return self.searched and not self.unreadable and not self.threads

    @property
    def missing(self) -> str:
        """What kept us from finding every holder, with what would have let us; empty when nothing did."""
        if not self.searched:
            return "holders were not looked for (`--no-owners`)"
        if 0 in self.unreadable:
            return "processes outside this pid namespace cannot be seen (run on the host, or with hostPID)"
        if not self.unreadable and self.threads:
            return "there are too many threads to look for descriptor tables of their own"
        if not self.unreadable:
            return ""
        n = len(self.unreadable)
        who = f"pid {self.unreadable[0]}" if n == 1 else f"{n} processes"
        return f"{who} could not be inspected (needs CAP_SYS_PTRACE; `--not-holder PID` vouches for one)"

    def of(self, row: int) -> list[tuple[int, int]]:
        """Return the (pid, fd) pairs that hold a row's socket."""
        a = int(self.start[row])
        b = a + int(self.count[row])
        return list(zip(self.pid[a:b].tolist(), self.fd[a:b].tolist(), strict=True))

    def first_pid(self) -> NDArray[np.int64]:
        """Return the lowest holding pid of each row, −1 where none was found."""
        out = np.full(len(self.start), -1, np.int64)
        has = self.count > 0
        out[has] = self.pid[self.start[has]]
        return out

    def counted(self, rows: NDArray[np.int64]) -> dict[int, int]:
        """Return how many of some rows each process holds, by pid."""
        count = self.count[rows]
        row = np.repeat(np.arange(len(rows)), count)
        within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        pid = self.pid[np.repeat(self.start[rows], count) + within].astype(np.int64)
        pairs = np.unique(row << 32 | pid)  # one that holds it twice holds it once
        pids, held = np.unique(pairs & 0xFFFFFFFF, return_counts=True)
        return dict(zip(pids.tolist(), held.tolist(), strict=True))

    def several_processes(self) -> NDArray[np.bool_]:
        """Return which rows are held by more than one process."""
        out = np.zeros(len(self.start), np.bool_)
        has = self.count > 1
        out[has] = self.pid[self.start[has]] != self.pid[self.start[has] + self.count[has] - 1]
        return out

    def compared(self, rows: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Return the pairs of processes that hold one row both: the lowest pid of each row with every other."""
        pairs: set[tuple[int, int]] = set()
        for row in np.flatnonzero(rows & self.several_processes()).tolist():
            first, *others = sorted({pid for pid, _ in self.of(row)})
            pairs |= {(first, other) for other in others}
        return sorted(pairs)

    def select(self, index: NDArray[Any]) -> Holders:
        """Return the holders of some rows."""
        return Holders(
            self.start[index], self.count[index], self.pid, self.fd, self.unreadable, self.searched,
            self.threads,
        )  # fmt: skip


def holders(
    inodes: NDArray[Any], descriptors: Descriptors, *, ignore: frozenset[int] = frozenset()
) -> Holders:
    """Join sockets with descriptors by inode.

    Args:
        inodes: one a socket; 0 has no holder by definition.
        descriptors: all that was listed.
        ignore: pids that could not be listed and are known to hold none of these sockets.
    """
    by_pid = descriptors.pid
    if len(by_pid) and (by_pid[1:] >= by_pid[:-1]).all():  # as they are listed: then one key is enough
        order = np.argsort(descriptors.inode, kind="stable")
    else:
        order = np.lexsort((by_pid, descriptors.inode))
    sorted_inodes = descriptors.inode[order]
    wanted = inodes.astype(np.uint64)
    start = np.searchsorted(sorted_inodes, wanted, "left").astype(np.int64)
    count = np.searchsorted(sorted_inodes, wanted, "right").astype(np.int64) - start
    count[wanted == 0] = 0
    unreadable = tuple(sorted(set(descriptors.unreadable) - ignore))
    pid, fd = descriptors.pid[order], descriptors.fd[order]
    threads = tuple(sorted(set(descriptors.threads) - ignore))
    return Holders(start, count, pid, fd, unreadable, descriptors.searched, threads)
