"""Processes and their descriptors, from /proc.

Each ``/proc/PID/fd`` is opened once and its links are read relative to it; a link is compared as text and
only the digits are parsed. What was not readable is kept apart from what was empty, because "nobody holds
it" and "we were not allowed to look" lead to opposite advice.

Descriptors belong to processes, as a rule. Of a process whose main thread has ended the table of a thread that goes on
is read; tables of threads' own only where that is asked for (`finwait.kernel.tasks`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from finwait.kernel import tasks
from finwait.uapi.observation import Descriptors, Facts, ProcessFiles

__all__ = [
    "close_on_exec",
    "descriptors",
    "facts",
    "pids",
    "processes",
    "read",
    "read_all",
    "sees_all_processes",
    "socket_protocols",
    "unique",
]


def read_all(directory: str, names: Iterable[str]) -> dict[str, bytes]:
    """Return those files of a directory of /proc that are there and may be read.

    The directory is opened once. Below /proc/sys/net that is ten times as fast as whole paths where there are
    hundreds of network namespaces: directories of one name share a chain of the kernel's dentry hash.
    """
    try:
        at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        found = ((name, read(name, at=at)) for name in names)
        return {name: data for name, data in found if data is not None}
    finally:
        os.close(at)


def read(path: str, limit: int = 1 << 20, *, at: int | None = None) -> bytes | None:
    """Return a file of /proc, or None if it is not there (any more) or may not be read.

    Args:
        path: where it is; relative to the directory ``at`` if that is given.
        limit: how many bytes to read at most, give or take a buffer.
        at: descriptor of a directory.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    except OSError:
        return None
    try:
        data = os.read(fd, 16384)
        if not data or len(data) < 4096:  # the common case: one read gives all of it
            return data
        parts = [data]
        size = len(data)
        while size < limit and (data := os.read(fd, 65536)):
            parts.append(data)
            size += len(data)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(fd)


def pids() -> list[int]:
    """Return the processes that are there now, lowest first."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def facts() -> Facts:
    """Return which machine this is, the time, and what we may do."""
    import time

    status = read("/proc/self/status") or b""
    cap = next((line.split()[1] for line in status.splitlines() if line.startswith(b"CapEff:")), b"0")
    return Facts(
        kernel=os.uname().release,
        hostname=os.uname().nodename,
        boot_id=(read("/proc/sys/kernel/random/boot_id") or b"").decode("ascii", "replace").strip(),
        unix_ns=time.time_ns(),
        boottime_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        clock_ticks=os.sysconf("SC_CLK_TCK"),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        euid=os.geteuid(),
        capabilities=int(cap, 16),
    )


_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO of include/linux/proc_ns.h: the same on every machine."""


def sees_all_processes() -> bool:
    """Return whether /proc lists every process of the machine.

    It does not in a container with a pid namespace of its own, nor for a plain user where /proc is mounted
    with ``hidepid``. Both are silent: what is not listed looks like what does not exist.
    """
    try:
        own = os.stat("/proc/self/ns/pid").st_ino
        os.stat("/proc/1")
    except OSError:
        return False
    return own == _INITIAL_PID_NAMESPACE


Listing = tuple[Descriptors, list[tuple[int, int, int]]]

_WORTH_A_PROCESS = 30_000
"""So many descriptors take about 150 ms to list; a fork and what it sends back take a few."""
_PROCESSES = 4
_COUNTS = struct.Struct("=QQQ")


def descriptors(
    only: Iterable[int] | None = None, *, processes: int | None = None, threads: bool = False
) -> Listing:
    """List every descriptor that refers to a socket, of all processes or of some.

    Reading a link costs the kernel some microseconds, so where there are many, and this process has one
    thread only (a fork of several can deadlock), children list a share each.

    Args:
        only: pids to look into; all if not given.
        processes: how many may work on it; as many as there are processors, four at most, if not given.
        threads: look for threads with a table of their own, too, whose descriptors are then their process's.

    Returns:
        The sockets' descriptors, and ``(inode, pid, fd)`` of those that refer to a network namespace. Where
        /proc does not list every process, pid 0 is among the unreadable: the kernel's number for processes
        that cannot be named here.
    """
    if only is None and not sees_all_processes():
        found, spaces = descriptors(pids(), processes=processes, threads=threads)
        return replace(found, unreadable=(0, *found.unreadable)), spaces
    which = pids() if only is None else list(only)
    if threads:
        found, spaces = _joined([descriptors(which, processes=processes), _of_threads(which)])
        return unique(found), spaces
    counts = _counts(which)
    if counts is None:
        return _list(which)
    which = [pid for pid in which if counts[pid]]  # kernel threads and zombies hold nothing
    total = sum(counts.values())
    if processes is None:
        processes = min(_PROCESSES, len(os.sched_getaffinity(0)), 1 + total // _WORTH_A_PROCESS)
    if processes < 2 or len(os.listdir("/proc/self/task")) > 1:
        return _list(which)
    shares: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for pid in sorted(which, key=lambda pid: -counts[pid]):
        least = loads.index(min(loads))
        shares[least].append(pid)
        loads[least] += counts[pid]
    return _joined(_side_by_side([share for share in shares if share] or [[]]))


def _counts(which: Iterable[int]) -> dict[int, int] | None:
    """Return how many descriptors each process has, which Linux 6.2 and later tell; None where it does not.

    One that ended meanwhile has none; one of whose threads some go on has at least one. Needs no permission to look
    into the process.
    """
    try:
        if not os.stat("/proc/self/fd").st_size and os.listdir("/proc/self/fd"):
            return None
    except OSError:
        return None
    result: dict[int, int] = {}
    for pid in which:
        try:
            result[pid] = os.stat(f"/proc/{pid}/fd").st_size or int(tasks.has_threads(pid))
        except PermissionError:  # then `_list` shall say so
            result[pid] = 1
        except OSError:
            result[pid] = 0
    return result


def unique(found: Descriptors) -> Descriptors:
    """Return a list without what it has twice, by pid."""
    order = np.lexsort((found.inode, found.fd, found.pid))
    pid, fd, inode = found.pid[order], found.fd[order], found.inode[order]
    new = np.ones(len(pid), np.bool_)
    new[1:] = (pid[1:] != pid[:-1]) | (fd[1:] != fd[:-1]) | (inode[1:] != inode[:-1])
    return replace(found, pid=pid[new], fd=fd[new], inode=inode[new])


def _side_by_side(shares: list[list[int]]) -> list[Listing]:
    """List the first share here and each other one in a child; a share whose child failed is listed here."""
    children: list[tuple[int, int, list[int]]] = []
    results: list[Listing] = []
    try:
        for share in shares[1:]:
            told, tell = os.pipe()
            try:
                pid = os.fork()
            except OSError:  # no more processes allowed: then there is one process less to share with
                os.close(told)
                os.close(tell)
                results.append(_list(share))
                continue
            if pid == 0:
                try:
                    _send(tell, _list(share))
                finally:
                    os._exit(0)  # whatever happened: nothing of the parent's may be finished twice
            os.close(tell)
            children.append((pid, told, share))
        results.append(_list(shares[0]))
        for _, told, share in children:
            results.append(_received(told) or _list(share))
    finally:
        for pid, told, _ in children:
            os.close(told)  # a child that still writes ends by SIGPIPE or EPIPE
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:  # our host ignores SIGCHLD
                continue
    return results


def _send(fd: int, listing: Listing) -> None:
    found, spaces = listing
    pieces = (
        _COUNTS.pack(len(found), len(spaces), len(found.unreadable)),
        *(column.tobytes() for column in (found.pid, found.fd, found.inode)),
        np.array(spaces, np.int64).tobytes(),
        np.array(found.unreadable, np.int64).tobytes(),
    )
    with open(fd, "wb") as file:
        file.writelines(pieces)


def _received(fd: int) -> Listing | None:
    """Return what a child sent, None if it did not come to its end."""
    with open(fd, "rb", closefd=False) as file:
        data = file.read()
    if len(data) < _COUNTS.size:
        return None
    n, spaces, denied = _COUNTS.unpack_from(data)
    sizes = (4 * n, 4 * n, 8 * n, 24 * spaces, 8 * denied)
    if len(data) != _COUNTS.size + sum(sizes):
        return None
    parts = []
    at = _COUNTS.size
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    triples = np.frombuffer(parts[3], np.int64).reshape(-1, 3).tolist()
    return (
        Descriptors(
            np.frombuffer(parts[0], np.uint32),
            np.frombuffer(parts[1], np.uint32),
            np.frombuffer(parts[2], np.uint64),
            tuple(np.frombuffer(parts[4], np.int64).tolist()),
        ),
        [(inode, pid, number) for inode, pid, number in triples],
    )


def _joined(parts: list[Listing]) -> Listing:
    """Return several lists as one, by pid."""
    pid, fd, inode = (
        np.concatenate([getattr(found, name) for found, _ in parts]) for name in ("pid", "fd", "inode")
    )
    order = np.argsort(pid, kind="stable")
    unreadable = tuple(sorted({p for found, _ in parts for p in found.unreadable}))
    threads = tuple(sorted({p for found, _ in parts for p in found.threads}))
    spaces = sorted((space for _, some in parts for space in some), key=lambda space: space[1:])
    return Descriptors(pid[order], fd[order], inode[order], unreadable, threads=threads), spaces


class _Reading:
    """Descriptor tables that were read, each for a process."""

    def __init__(self) -> None:
        self.denied: list[int] = []
        self.threads: list[int] = []
        self.spaces: list[tuple[int, int, int]] = []
        self._pid_of: list[int] = []
        self._counts: list[int] = []
        self._fds: list[str] = []
        self._inodes: list[str] = []

    def table(self, pid: int, tid: int) -> int | None:
        """Read the table that a thread of a process uses; return how many descriptors it has, None if it is denied."""
        readlink = os.readlink
        try:
            directory = os.open(f"/proc/{tid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            return None
        except OSError:
            return 0
        before = len(self._fds)
        names: list[str] = []
        try:
            names = os.listdir(directory)
            for name in names:
                try:
                    link = readlink(name, dir_fd=directory)
                except FileNotFoundError:  # closed meanwhile
                    continue
                if link.startswith("socket:["):
                    self._fds.append(name)
                    self._inodes.append(link[8:-1])
                elif link.startswith("net:["):
                    self.spaces.append((int(link[5:-1]), tid, int(name)))
        except PermissionError:
            return None
        except OSError:
            pass
        finally:
            os.close(directory)
        if len(self._fds) > before:
            self._pid_of.append(pid)
            self._counts.append(len(self._fds) - before)
        return len(names)

    def listing(self) -> Listing:
        found = Descriptors(
            np.repeat(np.array(self._pid_of, np.uint32), self._counts)
            if self._pid_of
            else np.empty(0, np.uint32),
            np.array(self._fds, "S10").astype(np.uint32) if self._fds else np.empty(0, np.uint32),
            np.array(self._inodes, "S20").astype(np.uint64) if self._inodes else np.empty(0, np.uint64),
            tuple(self.denied),
            threads=tuple(self.threads),
        )
        return found, self.spaces


def _list(which: Iterable[int]) -> Listing:
    reading = _Reading()
    for pid in which:
        if (count := reading.table(pid, pid)) or (tid := tasks.live_thread(pid)) is None:
            if count is None:
                reading.denied.append(pid)
            continue
        if reading.table(pid, tid) is None:  # that of a zombie is root's, whoever's its threads are
            reading.denied.append(pid)
    return reading.listing()


_MOST_THREADS = 100_000
"""Threads whose tables are told apart at most: a tenth of a second."""
_MOST_IN_THREADS = 200_000
"""Descriptors in tables of threads that are read at most; a second."""


def _of_threads(which: Iterable[int]) -> Listing:
    """List descriptors in tables that threads have for themselves.

    Where the kernel does not tell which tables are a thread's own, every one of them is read, and what is in that of
    its process, too, is told twice. `Descriptors.threads` names the processes that were too many.
    """
    reading = _Reading()
    threads = descriptors_read = 0
    for pid in which:
        if not tasks.has_threads(pid):
            continue
        if threads > _MOST_THREADS or descriptors_read > _MOST_IN_THREADS:
            reading.threads.append(pid)
            continue
        tables, looked_at = tasks.own_tables(pid)
        threads += looked_at
        counts = [reading.table(pid, tid) for tid in tables]
        descriptors_read += sum(count or 0 for count in counts)
        if None in counts:
            reading.denied.append(pid)
    return reading.listing()


def processes(which: Iterable[int]) -> dict[int, ProcessFiles]:
    """Read what describes each process; one that ended meanwhile is left out."""
    result: dict[int, ProcessFiles] = {}
    for pid in which:
        stat = read(f"/proc/{pid}/stat")
        if stat is None:
            continue
        base = f"/proc/{pid}/"
        if _is_zombie(stat) and (tid := tasks.live_thread(pid)) is not None:
            base = f"/proc/{pid}/task/{tid}/"
            stat = _as_its_thread(stat, read(base + "stat"))
        denied = False
        exe: bytes | None = None
        netns: int | None = None
        try:
            exe = os.fsencode(os.readlink(base + "exe"))
        except PermissionError:
            denied = True
        except OSError:
            exe = None
        try:
            netns = os.stat(base + "ns/net").st_ino
        except OSError:
            netns = None
        result[pid] = ProcessFiles(
            stat,
            read(base + "status"),
            read(base + "cmdline", 4096),
            read(base + "cgroup"),
            exe,
            netns,
            denied,
        )
    return result


def _is_zombie(stat: bytes) -> bool:
    return stat[stat.rfind(b")") + 2 :][:1] == b"Z"


def _as_its_thread(stat: bytes, thread: bytes | None) -> bytes:
    """Return the line of a process whose main thread has ended, with the state of one that goes on."""
    at = stat.rfind(b")") + 2
    state = b"" if thread is None else thread[thread.rfind(b")") + 2 :][:1]
    return stat[:at] + (state or b"Z") + stat[at + 1 :]


def close_on_exec(pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:
    """Return for each (pid, fd) whether a program that the process executes would *not* inherit it."""
    result: dict[tuple[int, int], bool] = {}
    tables = tasks.Tables()
    for pid, fd in pairs:
        # Of tables of threads' own it is not known which is meant: told is what all of them say.
        flags = {_flag(f"/proc/{tid}/fdinfo/{fd}") for tid in tables[pid]} - {None}
        if len(flags) == 1 and (flag := flags.pop()) is not None:
            result[pid, fd] = flag
    return result


def _flag(path: str) -> bool | None:
    """Return whether a descriptor has FD_CLOEXEC."""
    for line in (read(path) or b"").splitlines():
        if line.startswith(b"flags:"):
            return bool(int(line.split()[1], 8) & 0o2000000)
    return None


def socket_protocols(triples: Iterable[tuple[int, int, int]]) -> dict[int, str]:
    """Return the protocol of sockets by what sockfs calls it: ``TCP``, ``TCPv6``, ``UNIX``, ``NETLINK`` ….

    Args:
        triples: ``(pid, fd, inode)``. The answer is by inode.
    """
    result: dict[int, str] = {}
    tables = tasks.Tables()
    for pid, fd, inode in triples:
        path = tables.path(pid, fd, inode)
        if path is None:  # the number is another descriptor's by now
            continue
        try:
            name = os.getxattr(path, "system.sockprotoname")
        except OSError:
            continue
        if tables.path(pid, fd, inode) == path:
            result[inode] = name.rstrip(b"\0").decode("ascii", "replace")
    return result
