"""Who holds a socket, at the moment of asking.

Theory of operation. Only ``/proc/PID/fd`` says who holds a socket, and it says so process by process. To know
*every* holder, every process must be inspected: milliseconds on most machines, seconds where there are hundreds
of thousands of descriptors. So that is done in slices, one *sweep* after the other, and takes at most a tenth of the
time. What a sweep found is a hint and no answer: a server that forks closes its own copy at once, and numbers of
descriptors and processes are used again. So whatever is handed out was read back at that moment: a descriptor of that
process refers to that socket now.

Descriptors belong to processes. A thread is a way to find the process (`task`), never a holder. Where a sweep leaves
sockets without a holder, it goes on to threads that have a descriptor table of their own.

What this cannot see: a process that was handed the socket behind the sweep (by fork or SCM_RIGHTS) while another one
still holds it, until the next sweep; and a descriptor in flight or the kernel's own, which belong to no process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Final

import numpy as np
from msgspec import Struct

from finwait.errors import DecodeError
from finwait.kernel import procfs, tasks
from finwait.table.units import printable
from finwait.uapi import proc
from finwait.uapi.observation import Descriptors

__all__ = ["Held", "HolderFinder", "Owner", "Task", "task"]

_SHARE: Final = 10
"""A slice is followed by ten times as long without one."""
_AT_ONCE: Final = 16
"""Processes that are inspected between two looks at the clock."""
_ROUNDS: Final = 3
"""How often a sweep looks for processes that began since it did."""
_STALE_S: Final = 5.0
"""After this time "nobody holds it" is found out again."""
_MOST: Final = 200_000
"""Sockets that are remembered as asked for."""


class Owner(Struct, frozen=True):
    """A process that holds a socket."""

    pid: int
    comm: str

    def __str__(self) -> str:
        return f"{self.comm}[{self.pid}]"


class Held(Struct, frozen=True):
    """Who holds one socket."""

    owners: tuple[Owner, ...]
    """Processes of which a descriptor was just seen to refer to it, by pid."""
    whole: bool
    """Whether every process that may be inspected was, since the socket was first asked for."""


class Task(Struct, frozen=True):
    """A thread, and the process that it belongs to."""

    tid: int
    pid: int
    comm: str
    """Name of the process."""
    thread: str
    """Name of the thread."""
    kernel: bool
    """Whether it is one of the kernel's own: such a task holds nothing."""
    start_ticks: int
    """Start of the thread after boot (CLOCK_BOOTTIME), in ticks."""


def task(tid: int) -> Task | None:
    """Return what a thread is, by its number in our pid namespace; None when it is gone.

    Trace events carry numbers of the kernel's first pid namespace. In another one they name somebody else: see
    `finwait.kernel.procfs.sees_all_processes`.
    """
    stat, status = procfs.read(f"/proc/{tid}/stat"), procfs.read(f"/proc/{tid}/status")
    if stat is None or status is None:
        return None
    try:
        fields, more = proc.parse_stat(stat), proc.parse_status(status)
    except DecodeError:  # it ended while it was read
        return None
    name = printable(fields.comm)
    process = name if more.tgid == tid else _comm(more.tgid) or name
    return Task(tid, more.tgid, process, name, fields.kernel_thread, fields.start_ticks)


def _comm(pid: int) -> str:
    data = procfs.read(f"/proc/{pid}/comm")
    return "" if data is None else printable(data.removesuffix(b"\n").decode("utf-8", "surrogateescape"))


class HolderFinder:
    """Finds the holders of sockets that are asked for, again and again."""

    def __init__(self) -> None:
        self._hints: dict[int, set[tuple[int, int, int]]] = {}
        """Inode → process, task whose table shows it (mostly the process itself), descriptor."""
        self._asked: dict[int, int] = {}
        """Inode → sweeps that had begun when it was first asked for."""
        self._fresh: set[int] = set()
        """Asked for since the last sweep ended."""
        self._table = Descriptors.none()
        """Of the last whole sweep, by inode."""
        self._parts: list[Descriptors] = []
        self._space_parts: list[tuple[int, int, int]] = []
        self.spaces: list[tuple[int, int, int]] = []
        """``(inode, pid, fd)`` of descriptors of network namespaces, as of the last whole sweep."""
        self._todo: list[int] = []
        self._met: set[int] = set()
        self._rounds = 0
        self._threads = False
        """Whether the sweep has come to tables of threads' own."""
        self._begun = 0
        self._done = 0
        self._ended = 0.0
        self._next = 0.0
        self.steps = 0
        """How often more processes were inspected."""
        self._unreadable: set[int] = set()
        self.unreadable: tuple[int, ...] = ()
        """Processes that the last whole sweep was not let into; 0 stands for those that /proc does not list."""

    @property
    def sweeping(self) -> bool:
        """Whether there are processes that a sweep has not looked into yet."""
        return bool(self._todo)

    def held(self, inodes: Iterable[int], likely: Iterable[int] = ()) -> dict[int, Held]:
        """Return who holds sockets, as far as it is known now.

        Args:
            inodes: of the sockets; 0 is nobody's and left out.
            likely: tasks that probably hold them, which are inspected at once.
        """
        requested = {i for i in inodes if i}
        for inode in requested:
            self._asked.setdefault(inode, self._begun)
        self._fresh |= requested
        owners = self._verified(requested)
        lacking = requested - owners.keys()
        if lacking and (tasks := set(likely)):
            for tid in tasks:
                self._look_into_task(tid, lacking)
            owners |= self._verified(lacking)
        if time.monotonic() > self._ended + _STALE_S:
            for inode in requested - owners.keys():  # nobody held it then; by now it may have been passed on
                self._asked[inode] = self._begun
        return {i: Held(owners.get(i, ()), self._done > self._asked[i]) for i in requested}

    def search(self, inodes: Iterable[int], seconds: float, *, hurry: bool = False) -> None:
        """Go on looking for the holders of sockets that were asked for.

        Args:
            inodes: of the sockets.
            seconds: for at most so long, give or take a process.
            hurry: do not wait until it is time for another slice.
        """
        begun = time.monotonic()
        if not hurry and begun < self._next:
            return
        requested = [i for i in inodes if i]
        while any(i in self._asked and self._done <= self._asked[i] for i in requested):
            if not self._todo:
                self._begin()
            self._slice()
            if time.monotonic() >= begun + seconds:
                break
        self._next = time.monotonic() + _SHARE * (time.monotonic() - begun)

    # -- sweeps ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._begun += 1
        self._todo = procfs.pids()
        self._met = set(self._todo)
        self._parts, self._space_parts = [], []
        self._rounds, self._threads = 1, False
        self._unreadable = set() if procfs.sees_all_processes() else {0}

    def _slice(self) -> None:
        self.steps += 1
        batch, self._todo = self._todo[:_AT_ONCE], self._todo[_AT_ONCE:]
        descriptors, spaces = procfs.descriptors(batch, processes=1, threads=self._threads)
        self._parts.append(descriptors)
        self._space_parts += spaces
        self._unreadable.update(descriptors.unreadable, descriptors.threads)
        asked = np.isin(descriptors.inode, np.fromiter(self._asked, np.uint64, len(self._asked)))
        for pid, fd, inode in zip(
            descriptors.pid[asked].tolist(),
            descriptors.fd[asked].tolist(),
            descriptors.inode[asked].tolist(),
            strict=True,
        ):
            self._hints.setdefault(inode, set()).add((pid, pid, fd))
        if (
            not self._todo and self._rounds < _ROUNDS
        ):  # who was forked meanwhile may hold what its parent closed
            self._rounds += 1
            self._todo = [pid for pid in procfs.pids() if pid not in self._met]
            self._met.update(self._todo)
        if not self._todo and not self._threads and self._unheld():
            self._threads = True
            self._todo = [pid for pid in sorted(self._met) if tasks.has_threads(pid)]
        if not self._todo:
            self._end()

    def _unheld(self) -> bool:
        """Return whether sockets that are asked for are in none of the tables that the sweep has met."""
        met = [part.inode for part in self._parts]
        asked = np.fromiter(self._asked, np.uint64, len(self._asked))
        return bool(len(asked)) and not np.isin(asked, np.concatenate(met)).all()

    def _end(self) -> None:
        self._done = self._begun
        self._ended = time.monotonic()
        self.unreadable = tuple(sorted(self._unreadable))
        inode = np.concatenate([part.inode for part in self._parts])
        order = np.argsort(inode, kind="stable")
        self._table = Descriptors(
            np.concatenate([part.pid for part in self._parts])[order],
            np.concatenate([part.fd for part in self._parts])[order],
            inode[order],
        )
        self._parts, self.spaces = [], self._space_parts
        # What nobody has asked for since the sweep before is asked anew when it is: holders change.
        self._asked = {i: n for i, n in self._asked.items() if i in self._fresh}
        if len(self._asked) > _MOST:
            self._asked = dict(list(self._asked.items())[-_MOST // 2 :])
        self._hints = {i: hints for i, hints in self._hints.items() if i in self._asked}
        self._fresh = set()

    # -- asking ------------------------------------------------------------------------------------------

    def _look_into_task(self, tid: int, requested: set[int]) -> None:
        descriptors, _ = procfs.descriptors([tid], processes=1)
        matching = np.isin(descriptors.inode, np.fromiter(requested, np.uint64, len(requested)))
        if not matching.any():
            return
        holder = task(tid)
        if holder is None or holder.kernel:
            return
        for fd, inode in zip(
            descriptors.fd[matching].tolist(), descriptors.inode[matching].tolist(), strict=True
        ):
            self._hints.setdefault(inode, set()).add((holder.pid, tid, fd))

    def _candidates(self, requested: set[int]) -> dict[int, set[tuple[int, int, int]]]:
        result = {i: set(self._hints.get(i, ())) for i in requested}
        if len(self._table.inode):
            ordered = np.array(sorted(requested), np.uint64)
            low = np.searchsorted(self._table.inode, ordered, side="left")
            high = np.searchsorted(self._table.inode, ordered, side="right")
            for inode, a, b in zip(ordered.tolist(), low.tolist(), high.tolist(), strict=True):
                for pid, fd in zip(self._table.pid[a:b].tolist(), self._table.fd[a:b].tolist(), strict=True):
                    result[inode].add((pid, pid, fd))
        return result

    def _verified(self, requested: set[int]) -> dict[int, tuple[Owner, ...]]:
        """Return who holds what now, of those that were seen to; sockets without a known holder are left out."""
        names: dict[int, str] = {}
        result: dict[int, tuple[Owner, ...]] = {}
        for inode, candidates in self._candidates(requested).items():
            link = f"socket:[{inode}]"
            pids = {pid for pid, tid, fd in candidates if _link(tid, fd) == link}
            for pid in {pid for pid, _, _ in candidates} - pids:  # perhaps by another descriptor (dup2)
                if self._has(pid, inode):
                    pids.add(pid)
            for pid in pids - names.keys():
                names[pid] = _comm(pid)
            if pids:
                result[inode] = tuple(Owner(pid, names[pid]) for pid in sorted(pids))
            elif candidates:  # who held it has let it go: whoever has it now was perhaps met before it did
                self._hints.pop(inode, None)
                self._asked[inode] = self._begun
        return result

    def _has(self, pid: int, inode: int) -> bool:
        descriptors, _ = procfs.descriptors([pid], processes=1, threads=True)
        for fd in descriptors.fd[descriptors.inode == inode].tolist():
            self._hints.setdefault(inode, set()).add((pid, pid, fd))
            return True
        return False


def _link(tid: int, fd: int) -> str:
    try:
        return os.readlink(f"/proc/{tid}/fd/{fd}")
    except OSError:
        return ""
