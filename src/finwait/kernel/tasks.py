"""Threads of processes: where the main one has ended, and which have a descriptor table of their own.

A process whose main thread ended (``pthread_exit``) goes on in its other threads. Its main thread is then a zombie
until they end too, and what /proc/PID says of descriptors, namespaces and the program is empty: only
/proc/PID/task/TID tells. A thread may also leave the table of its process by ``unshare(CLONE_FILES)``; what it opens
then no other directory lists. ``kcmp(2)`` tells which threads share a table, for a microsecond each.

What this cannot see: threads of processes that we may not look into.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from finwait.kernel import kcmp

__all__ = ["Tables", "has_threads", "live_thread", "of", "own_tables", "sharing", "turns"]

_MOST_THREADS: Final = 4096
"""Of all processes together, whose turns are counted."""


def has_threads(pid: int) -> bool:
    """Return whether a process has more than one thread: the links of its directory are those and two."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink > 3
    except OSError:
        return False


def of(pid: int) -> list[int]:
    """Return the threads of a process, the main one among them."""
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return []


def turns(pids: Iterable[int]) -> dict[int, int]:
    """Return how many times the threads of processes were given a processor.

    ``schedstat`` of each thread has it (Documentation/scheduler/sched-stats.rst); a kernel without it, or a process of
    which a thread could not be read, is left out. What differs between two moments has run in between.
    """
    result: dict[int, int] = {}
    count = 0
    for pid in pids:
        total = 0
        threads = of(pid)
        count += len(threads)
        if count > _MOST_THREADS:
            break
        for tid in threads:
            try:
                with open(f"/proc/{pid}/task/{tid}/schedstat", "rb") as file:
                    words = file.read(128).split()
            except OSError:
                break
            if len(words) < 3 or not words[2].isdigit():
                break
            total += int(words[2])
        else:
            if threads:
                result[pid] = total
    return result


def _ended(tid: int) -> bool:
    """Return whether a thread has ended: it may still be listed, as the main one is until all have."""
    try:
        with open(f"/proc/{tid}/stat", "rb") as file:
            data = file.read(1024)
    except OSError:
        return True
    return data[data.rfind(b")") + 2 :][:1] in (b"Z", b"X", b"x", b"")


def live_thread(pid: int) -> int | None:
    """Return a thread that goes on of a process whose main thread has ended; None of every other process."""
    if not has_threads(pid) or not _ended(pid):
        return None
    return next((tid for tid in of(pid) if tid != pid and not _ended(tid)), None)


def own_tables(pid: int) -> tuple[list[int], int]:
    """Return threads whose descriptor tables are not that of the main thread, one for each table.

    Where the kernel does not tell tables apart, they are all threads but the main one.

    Returns:
        The threads, and how many were looked at.
    """
    tids = [tid for tid in of(pid) if tid != pid]
    ordered = [pid]
    for tid in tids:
        low, high = 0, len(ordered)
        while low < high:
            middle = (low + high) // 2
            answer = kcmp.order(tid, ordered[middle])
            if answer is None:
                break
            if answer == 0:
                low = -1
                break
            low, high = (low, middle) if answer == 1 else (middle + 1, high)
        if low < 0 or _ended(tid):
            continue
        if low < high:
            return tids, len(tids)
        ordered.insert(low, tid)
    return [tid for tid in tids if tid in set(ordered)], len(tids)


def sharing(pids: Iterable[int]) -> frozenset[int] | None:
    """Return the processes that share their descriptor table with another of them; None where nobody can tell.

    Processes that we may not look into are left out.
    """
    ordered: list[list[int]] = []
    tasks = [(pid, live_thread(pid) or pid) for pid in pids]
    for pid, task in tasks:
        if _ended(task) or kcmp.order(task, task) is None:
            continue
        low, high = 0, len(ordered)
        while low < high:
            middle = (low + high) // 2
            answer = kcmp.order(task, ordered[middle][0])
            if answer == 0:
                ordered[middle].append(pid)
                break
            if answer is None:  # either is gone: a wrong place would hide others
                low = middle + 1
            else:
                low, high = (low, middle) if answer == 1 else (middle + 1, high)
        else:
            ordered.insert(low, [task, pid])
    return frozenset(pid for group in ordered if len(group) > 2 for pid in group[1:]) if ordered else None


_MOST_TABLES: Final = 64
"""Where tables cannot be told apart, in so many threads a descriptor is looked for."""


class Tables(dict[int, tuple[int, ...]]):
    """The threads of processes in whose tables a descriptor may be, the main one first; each found when asked for."""

    def __missing__(self, pid: int) -> tuple[int, ...]:
        """Find them."""
        own = own_tables(pid)[0][:_MOST_TABLES] if has_threads(pid) else ()
        self[pid] = (pid, *own)
        return self[pid]

    def path(self, pid: int, fd: int, inode: int) -> str | None:
        """Return the link of a descriptor that refers to a socket, in whichever table it does."""
        link, path = f"socket:[{inode}]", f"/proc/{pid}/fd/{fd}"
        if _link(path) == link:
            return path
        for tid in self[pid][1:]:
            path = f"/proc/{pid}/task/{tid}/fd/{fd}"
            if _link(path) == link:
                return path
        return None


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
