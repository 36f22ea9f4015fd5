"""Who holds each socket: every (pid, fd) whose link names its inode.

A socket may have several holders (a descriptor that a child inherited is the classic), none although it has
an inode (in flight over a Unix socket, io_uring, a kernel user), or none that we were *allowed to see*. The
last two are kept apart by `HolderRows.complete`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.uapi.observation import Descriptors
from finwait.uapi.sets import distinct

__all__ = ["HolderRows", "holders"]


class HolderRows(Struct, frozen=True):
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
    needs: str = "CAP_SYS_PTRACE"
    """What would have let us inspect those that are unreadable; a capability only if we lack it."""
    pasted: bool = False
    """Whether they are those that a pasted text names."""

    @property
    def complete(self) -> bool:
        """Whether every process could be inspected; if not, no holder found does not mean no holder."""
        return self.searched and not self.unreadable and not self.threads and not self.pasted

    @property
    def missing(self) -> str:
        """What kept us from finding every holder, with what would have let us; empty when nothing did."""
        if self.pasted:
            return "a pasted text need not name every holder (`ss -tanoep`, run as root, names them)"
        if not self.searched:
            return "holders were not looked for (`--no-owners`)"
        if 0 in self.unreadable:
            return "processes outside this pid namespace cannot be seen (run on the host, or with hostPID)"
        if not self.unreadable and self.threads:
            return "there are too many threads to check each for its own descriptor table"
        if not self.unreadable:
            return ""
        n = len(self.unreadable)
        processes = f"pid {self.unreadable[0]}" if n == 1 else f"{n} processes"
        return f"{processes} could not be inspected (needs {self.needs}; `--not-holder PID` vouches for one)"

    @property
    def wanting(self) -> str:
        """What would have let us find every holder, as a `Gap` says it; empty where nothing would."""
        if self.pasted:
            return "`ss -tanoep`, run as root"
        if not self.searched:
            return "a look without `--no-owners`"
        if 0 in self.unreadable:
            return "a look from the host, or with hostPID"
        return f"{self.needs}, or `--not-holder PID`" if self.unreadable else ""

    @property
    def hint(self) -> str:
        """What to do about what is `missing`."""
        if self.pasted:
            return "run `ss -tanoep` as root there, and paste what it prints"
        if not self.searched:
            return "without `--no-owners` they are looked for"
        if 0 in self.unreadable:
            return "run it on the host, or with hostPID"
        if self.unreadable and self.needs.isidentifier():
            return f"run it as root, or give it {self.needs}, so that it can inspect every process"
        return (
            f"`--not-holder PID` vouches for a process; others need {self.needs}" if self.unreadable else ""
        )

    def of(self, row: int) -> list[tuple[int, int]]:
        """Return the (pid, fd) pairs that hold a row's socket."""
        a = int(self.start[row])
        if self.count[row] == 1:  # nearly always
            return [(int(self.pid[a]), int(self.fd[a]))]
        b = a + int(self.count[row])
        return list(zip(self.pid[a:b].tolist(), self.fd[a:b].tolist(), strict=True))

    def row_of(self, pid: int, fd: int) -> int:
        """Return the row that a descriptor of a process refers to; −1 where it is none of them."""
        places = np.flatnonzero((self.pid == pid) & (self.fd == fd))
        if not len(places):
            return -1
        rows = np.flatnonzero((self.start <= places[0]) & (places[0] < self.start + self.count))
        return int(rows[0]) if len(rows) else -1

    def first_pid(self) -> NDArray[np.int64]:
        """Return the lowest holding pid of each row, −1 where none was found."""
        out = np.full(len(self.start), -1, np.int64)
        held = self.count > 0
        out[held] = self.pid[self.start[held]]
        return out

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where in `pid` and `fd` the holders of some rows are, row by row."""
        count = self.count[rows]
        before = np.cumsum(count) - count
        return np.repeat(self.start[rows] - before, count) + np.arange(int(count.sum()))

    def pids(self, rows: NDArray[np.int64]) -> set[int]:
        """Return the processes that hold some rows."""
        return set(distinct(self.pid[self.places(rows)]).tolist())

    def counted(self, rows: NDArray[np.int64]) -> dict[int, int]:
        """Return how many of some rows each process holds, by pid."""
        row = np.repeat(np.arange(len(rows)), self.count[rows])
        pid = self.pid[self.places(rows)].astype(np.int64)
        pairs = distinct(row << 32 | pid)  # one that holds it twice holds it once
        pids, held = np.unique(pairs & 0xFFFFFFFF, return_counts=True)
        return dict(zip(pids.tolist(), held.tolist(), strict=True))

    def several_processes(self) -> NDArray[np.bool_]:
        """Return which rows are held by more than one process."""
        out = np.zeros(len(self.start), np.bool_)
        held = self.count > 1
        out[held] = self.pid[self.start[held]] != self.pid[self.start[held] + self.count[held] - 1]
        return out

    def compared(self, rows: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Return the pairs of processes that hold one row both: the lowest pid of each row with every other."""
        pairs: set[tuple[int, int]] = set()
        for row in np.flatnonzero(rows & self.several_processes()).tolist():
            first, *others = sorted({pid for pid, _ in self.of(row)})
            pairs |= {(first, other) for other in others}
        return sorted(pairs)

    def select(self, index: NDArray[Any]) -> HolderRows:
        """Return the holders of some rows."""
        return HolderRows(
            self.start[index], self.count[index], self.pid, self.fd, self.unreadable, self.searched,
            self.threads, self.needs, self.pasted,
        )  # fmt: skip


def holders(
    inodes: NDArray[Any],
    descriptors: Descriptors,
    *,
    ignore: frozenset[int] = frozenset(),
    needs: str = "CAP_SYS_PTRACE",
) -> HolderRows:
    """Join sockets with descriptors by inode.

    Args:
        inodes: one a socket; 0 has no holder by definition.
        descriptors: all that was listed.
        ignore: pids that could not be listed and are known to hold none of these sockets.
        needs: what would have let us list the others.
    """
    by_pid = descriptors.pid
    if len(by_pid) and (by_pid[1:] >= by_pid[:-1]).all():  # as they are listed: then one key is enough
        order = np.argsort(descriptors.inode, kind="stable")
    else:
        order = np.lexsort((by_pid, descriptors.inode))
    sorted_inodes = descriptors.inode[order]
    keys = inodes.astype(np.uint64)
    start = np.searchsorted(sorted_inodes, keys, "left").astype(np.int64)
    count = np.searchsorted(sorted_inodes, keys, "right").astype(np.int64) - start
    count[keys == 0] = 0
    unreadable = tuple(sorted(set(descriptors.unreadable) - ignore))
    pid, fd = descriptors.pid[order], descriptors.fd[order]
    threads = tuple(sorted(set(descriptors.threads) - ignore))
    return HolderRows(
        start, count, pid, fd, unreadable, descriptors.searched, threads, needs, descriptors.pasted
    )
