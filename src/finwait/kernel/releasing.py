"""Threads that keep a socket of which no descriptor is left: in close(), or in a process that is ending.

close() of the last descriptor takes the descriptor out of its table first. With SO_LINGER it then waits until the peer
has acknowledged everything, for as long as the option says (``sk_stream_wait_close``), and until then the socket
belongs to the thread alone. In the same way a process that is ending has no descriptors any more while the kernel
closes what they referred to, one by one. Which socket a thread is closing, nothing tells: only its network namespace is
known. A thread may have sockets of other namespaces too: that it has moved (``setns``), or got a socket from elsewhere,
cannot be seen any more. So the threads of every namespace are looked at.

What this cannot see: what a close() is about, where ``/proc/PID/task/TID/stack`` may not be read; then the system call
alone counts.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Final

from finwait.errors import DecodeError
from finwait.kernel import procfs, tasks
from finwait.kernel.procfs import read
from finwait.table.units import printable
from finwait.uapi import syscall
from finwait.uapi.observation import UNSEEN_THREADS, Releasing
from finwait.uapi.proc import parse_stat

__all__ = ["threads"]

MOST_THREADS: Final = 50_000
"""Threads that are looked into at most: two seconds. Those of the namespaces that have such sockets come first."""
_CALLS: Final = frozenset({"close", "close_range", "dup2", "dup3"})
_WAITS: Final = frozenset({"wait_woken", "sk_stream_wait_close"})
_DONE: Final = frozenset({"zap_pid_ns_processes"})
"""Where a thread that is ending waits once everything is closed: the first process of a container for the others."""
_FRAMES: Final = (b"tcp_close+", b"inet_release+", b"__sock_release+", b"sock_close+", b"__fput+")
_PF_EXITING: Final = 0x4


def threads(spaces: Collection[int]) -> tuple[Releasing, ...]:
    """Return the threads that are closing a socket.

    Args:
        spaces: inodes of the network namespaces that have sockets without a descriptor; if there are none, nobody is
            looked at. Threads of these namespaces come first.

    Returns:
        The threads, of whatever namespace, and last `UNSEEN_THREADS` if there were more than are looked into.
    """
    result: list[Releasing] = []
    if not spaces:
        return ()
    remaining = MOST_THREADS
    machine = os.uname().machine
    for pid, netns in _processes(spaces):
        tids = tasks.of(pid)
        for tid in tids[:remaining]:
            thread = _thread(pid, tid, netns, machine)
            if thread is not None:
                result.append(thread)
        if len(tids) > remaining:
            return (*result, UNSEEN_THREADS)
        remaining -= len(tids)
    return tuple(result)


def _processes(spaces: Collection[int]) -> Iterator[tuple[int, int]]:
    """Return all processes, those of some namespaces first, each with its namespace, 0 where that is not known."""
    others: list[tuple[int, int]] = []
    for pid in procfs.pids():
        netns = _netns(f"/proc/{pid}/")  # 0: it may be ending, and then it has left its namespace
        if netns and netns not in spaces:
            others.append((pid, netns))
        else:
            yield pid, netns
    yield from others


def _netns(base: str) -> int:
    try:
        return os.stat(base + "ns/net").st_ino
    except OSError:
        return 0


def _thread(pid: int, tid: int, netns: int, machine: str) -> Releasing | None:
    base = f"/proc/{pid}/task/{tid}/"
    data = read(base + "stat", 4096)
    if not data:
        return None
    try:
        fields = parse_stat(data)
        if fields.kernel_thread or fields.state not in "SD":
            return None
        exiting = bool(fields.flags & _PF_EXITING)
        if not netns and not exiting:
            return None
        inside = syscall.parse(read(base + "syscall", 512) or b"running")
    except DecodeError:
        return None
    call = None if inside is None else syscall.call(machine, inside.number)
    name = "" if call is None else call.name
    own = _netns(base) or netns  # a thread may have moved alone
    waits_in = (read(base + "wchan", 128) or b"").decode("ascii", "replace")
    if waits_in in _DONE or (not exiting and name not in _CALLS and waits_in not in _WAITS):
        return None
    stack = read(base + "stack", 65536)
    # One that is ending shows its descriptors until it begins to close what they referred to.
    closing = exiting or name in _CALLS if stack is None else any(frame in stack for frame in _FRAMES)
    return Releasing(pid, tid, printable(fields.comm), own, name, exiting) if closing else None
