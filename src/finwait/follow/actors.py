"""Who holds connections, who held them, and which tasks moved them.

A holder is found by looking into processes, a fifth of a second at a time (`finwait.kernel.holders`); a task is asked
what it is at once, for it may be gone when its row is handed out. Who moved a connection through a descriptor of its
own held it then: that is remembered by life.

What this cannot see: holders among processes that may not be inspected (`Actors.blind_gaps`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np
from msgspec import Struct

from finwait.errors import Gap
from finwait.follow.bounds import LIST_S, MOST_REMEMBERED
from finwait.kernel import procfs, rights
from finwait.kernel.holders import Held, HolderFinder, Owner, Task, task
from finwait.table import transitions as tr
from finwait.table.schema import Mask
from finwait.table.units import printable
from finwait.uapi import tcp

__all__ = ["Actors", "Who"]

_TASK_S: Final = 1.0  # what a task is called is asked again after this time: it may execute another program
_BY_DESCRIPTOR: Final = frozenset(
    {
        (tcp.CLOSE, tcp.SYN_SENT), (tcp.ESTABLISHED, tcp.FIN_WAIT1), (tcp.SYN_RECV, tcp.FIN_WAIT1),
        (tcp.CLOSE_WAIT, tcp.LAST_ACK), (tcp.FIN_WAIT2, tcp.FIN_WAIT2),
    }
)  # fmt: skip
"""Changes that no packet makes and SOCK_DESTROY does not: connect(), shutdown(), close(), by who has a descriptor."""


class Who(Struct, frozen=True):
    """Who had to do with rows that are handed out."""

    owners: dict[int, tuple[Owner, ...]]
    """Inode → who holds it now, none if nobody does; a socket whose holder is not known is not in it."""
    last: dict[int, tuple[Owner, ...]]
    """Life → who held it, of connections that are over."""
    tasks: dict[int, Task]
    """Task number → the thread that moved a connection and its process; what is not known is not in it."""
    threads: dict[int, str]
    """Task number → name of a thread of which no more is known."""


class Actors:
    """Remembers tasks and holders for as long as rows may ask for them.

    Args:
        left_out: processes that cannot be inspected and of which the caller knows that they hold nothing.
    """

    def __init__(self, left_out: frozenset[int]) -> None:
        self.holders = HolderFinder()
        self._left_out = left_out
        self._lived: dict[int, dict[int, str]] = {}
        self._tasks: dict[int, tuple[Task, float]] = {}
        self._named = procfs.sees_all_processes()

    def processes(self, rows: tr.TransitionTable) -> tuple[list[dict[int, str]], Mask, Mask]:
        """Return the processes that held each row's connection, whether those are all, and which may yet be found."""
        inodes, lives = rows.inode.tolist(), rows.life.tolist()
        over = rows.over.tolist()
        open_ = [i for i, o in zip(inodes, over, strict=True) if i and not o]
        held = self.holders.held(open_, self._movers(rows))
        if lacking := [i for i, entry in held.items() if not entry.whole]:
            self.holders.search(lacking, LIST_S)
            held |= self.holders.held(lacking)
        seen: list[dict[int, str]] = []
        whole = np.zeros(len(rows), np.bool_)
        later = np.zeros(len(rows), np.bool_)
        for k, (inode, life, gone) in enumerate(zip(inodes, lives, over, strict=True)):
            entry = held.get(inode)
            holding = {} if entry is None else {owner.pid: owner.comm for owner in entry.owners}
            self._live(life, holding)
            seen.append({**self._lived.get(life, {}), **holding})
            # Where nobody is known it may be over by now: that nobody holds it says nothing of who did.
            whole[k] = bool(seen[k]) and (gone or (entry is not None and entry.whole))
            later[k] = entry is not None and not entry.whole
        return seen, whole, later

    @property
    def blind(self) -> bool:
        """Whether somebody may hold a socket whom we cannot see."""
        return bool(set(self.holders.unreadable) - self._left_out)

    @property
    def blind_gaps(self) -> tuple[Gap, ...]:
        """Processes that may hold sockets and cannot be inspected."""
        hidden = sorted(set(self.holders.unreadable) - self._left_out)
        gaps = []
        if 0 in hidden:
            needs = "the initial pid namespace: run on the host, or with hostPID"
            gaps.append(
                Gap("pid 0", "see processes outside this pid namespace (or hidden by hidepid)", needs)
            )
        if known := [pid for pid in hidden if pid]:
            single = len(known) == 1
            doing = "its" if single else "their"
            needs = f"{rights.missing('CAP_SYS_PTRACE')}; `--not-holder PID` leaves a process out"
            gaps.append(Gap.of_processes(known, f"list {doing} sockets", needs))
        return tuple(gaps)

    def _live(self, life: int, processes: dict[int, str]) -> None:
        if life < 0 or not processes:
            return
        known = self._lived.pop(life, {})  # the one that was met last stands last
        if len(known) < 64:
            known |= processes
        self._lived[life] = known
        if len(self._lived) > MOST_REMEMBERED:
            for old in list(self._lived)[: MOST_REMEMBERED // 8]:
                del self._lived[old]

    def _movers(self, rows: tr.TransitionTable) -> set[int]:
        """Return the tasks that moved rows in a system call of theirs, processes of their own."""
        if not self._named:
            return set()
        return set(rows.pid[~rows.interrupt & (rows.pid > 0) & (rows.kind != tr.POLLED)].tolist())

    def meet(self, rows: tr.TransitionTable) -> None:
        """Learn what the tasks are that moved rows, before they end."""
        now = time.monotonic()
        for tid in self._movers(rows):
            met = self._tasks.get(tid)
            if met is not None and now - met[1] < _TASK_S:
                continue
            mover = task(tid)
            if mover is not None:
                self._tasks.pop(tid, None)
                self._tasks[tid] = mover, now
        if len(self._tasks) > MOST_REMEMBERED:
            for old in list(self._tasks)[: MOST_REMEMBERED // 8]:
                del self._tasks[old]

    def _known_tasks(self, rows: tr.TransitionTable) -> dict[int, Task]:
        """Return the tasks that moved rows, but for those that are somebody else by now."""
        if not self._named:
            return {}
        by_task = ~rows.interrupt & (rows.pid > 0) & (rows.kind != tr.POLLED)
        first: dict[int, int] = {}
        for tid, at in zip(rows.pid[by_task].tolist(), rows.time_ns[by_task].tolist(), strict=True):
            first[tid] = min(at, first.get(tid, at))
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        return {
            tid: met[0]
            for tid, at in first.items()
            if (met := self._tasks.get(tid)) is not None and met[0].start_ticks * tick <= at + boot + tick
        }

    def remember(self, rows: tr.TransitionTable) -> None:
        """Remember which processes moved a connection through a descriptor of theirs."""
        if not len(rows):
            return
        pairs = rows.oldstate.astype(np.int64) << 8 | rows.newstate.astype(np.int64)
        acts = np.isin(pairs, [old << 8 | new for old, new in _BY_DESCRIPTOR])
        moved = rows.select(acts & ~rows.interrupt & (rows.kind == tr.TRANSITION) & (rows.life >= 0))
        tasks = self._known_tasks(moved)
        for life, tid in dict.fromkeys(zip(moved.life.tolist(), moved.pid.tolist(), strict=True)):
            mover = tasks.get(tid)
            if mover is not None and not mover.kernel:
                self._live(life, {mover.pid: mover.comm})

    def all_of(self, inodes: Iterable[int]) -> dict[int, Held]:
        """Return the holders of sockets, and go on looking for all of them."""
        held = self.holders.held(inodes)
        if lacking := [i for i, entry in held.items() if not entry.whole]:
            self.holders.search(lacking, LIST_S)
            held |= self.holders.held(lacking)
        return held

    def owners(self, inodes: Iterable[int], likely: Iterable[int] = ()) -> dict[int, tuple[Owner, ...]]:
        """Return who holds sockets now, by inode: no process for one that nobody holds.

        A socket whose holder is not known (yet) is not in it. Likely tasks are inspected first, all processes a
        fifth of a second at a time: with hundreds of thousands of descriptors that takes seconds, and transitions do
        not wait.

        Args:
            inodes: of the sockets; 0 is nobody's.
            likely: tasks that probably hold them, such as those that moved them.
        """
        held = self.holders.held(inodes, likely)
        if lacking := [i for i, entry in held.items() if not entry.owners and not entry.whole]:
            self.holders.search(lacking, LIST_S)
            held |= self.holders.held(lacking)
        blind = self.blind
        return {i: entry.owners for i, entry in held.items() if entry.owners or (entry.whole and not blind)}

    def who(self, rows: tr.TransitionTable, names: Callable[[set[int]], Mapping[int, str]]) -> Who:
        """Return who had to do with rows that are about to be told.

        Args:
            rows: the rows.
            names: gives what is remembered of the names of threads that are gone.
        """
        tasks = self._known_tasks(rows)
        owners = self.owners(
            rows.inode[~rows.over].tolist(), [t for t, mover in tasks.items() if not mover.kernel]
        )
        for inode, life, over in zip(
            rows.inode.tolist(), rows.life.tolist(), rows.over.tolist(), strict=True
        ):
            if not over and inode in owners:
                self._live(life, {owner.pid: owner.comm for owner in owners[inode]})
        last: dict[int, tuple[Owner, ...]] = {}
        for life in set(rows.life[rows.over].tolist()):
            if known := self._lived.get(life):
                pid = next(reversed(known))
                last[life] = (Owner(pid, known[pid]),)
        unknown = set(rows.pid[~rows.interrupt & (rows.pid > 0)].tolist()) - tasks.keys()
        threads = {tid: printable(name) for tid, name in names(unknown).items()} if unknown else {}
        return Who(owners, last, tasks, threads)
