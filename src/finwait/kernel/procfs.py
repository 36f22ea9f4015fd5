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
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import compress
from types import MappingProxyType
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.kernel import tasks
from finwait.kernel.boot import boot_id
from finwait.uapi.observation import Descriptors, Facts, ProcessFiles
from finwait.uapi.sets import among

__all__ = [
    "close_on_exec",
    "descriptors",
    "facts",
    "links",
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
        contents = ((name, read(name, at=at)) for name in names)
        return {name: data for name, data in contents if data is not None}
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
        # A file of records (maps, modules, stat/nf_conntrack) gives at most a page at a time, and less where the next
        # record does not fit: only an empty read says that it was the end.
        parts = []
        size = 0
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
        boot_id=boot_id(),
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
_COUNTS = struct.Struct("=QQQQQ")


def descriptors(
    only: Iterable[int] | None = None,
    *,
    processes: int | None = None,
    threads: bool = False,
    known: Descriptors | None = None,
) -> Listing:
    """List every descriptor that refers to a socket, of all processes or of some.

    Reading a link costs the kernel some microseconds, so where there are many, and this process has one
    thread only (a fork of several can deadlock), children list a share each.

    Args:
        only: pids to look into; all if not given.
        processes: how many may work on it; as many as there are processors, four at most, if not given.
        threads: look for threads with a table of their own, too, whose descriptors are then their process's.
        known: descriptors of an earlier list that refer to the same socket as then, as far as can be told; their links
            are not read again, and they are left out. If one of those sockets turns out to be held elsewhere as well,
            it was copied or handed over meanwhile; then everything is read.

    Returns:
        The sockets' descriptors, and ``(inode, pid, fd)`` of those that refer to a network namespace. Where
        /proc does not list every process, pid 0 is among the unreadable: the kernel's number for processes
        that cannot be named here.
    """
    if only is None and not sees_all_processes():
        listed, spaces = descriptors(pids(), processes=processes, threads=threads, known=known)
        return replace(listed, unreadable=(0, *listed.unreadable)), spaces
    pid_list = pids() if only is None else list(only)
    if known is not None:
        listed, spaces = _listed(pid_list, processes, _by_pid(known))
        if among(listed.inode, known.inode).any():
            listed, spaces = _listed(pid_list, processes, {})
    else:
        listed, spaces = _listed(pid_list, processes, {})
    if threads:
        listed, spaces = _joined([(listed, spaces), _of_threads(pid_list)])
        return unique(listed), spaces
    return listed, spaces


def _by_pid(known: Descriptors) -> dict[int, NDArray[np.uint32]]:
    order = np.argsort(known.pid, kind="stable")
    by_pid, begins, counts = np.unique(known.pid[order], return_index=True, return_counts=True)
    return {
        pid: known.fd[order[begin : begin + count]]
        for pid, begin, count in zip(by_pid.tolist(), begins.tolist(), counts.tolist(), strict=True)
    }


def _listed(pid_list: list[int], processes: int | None, known: Mapping[int, NDArray[np.uint32]]) -> Listing:
    """List the main tables of processes, but for descriptors that are known, side by side where there are many."""
    counts = _counts(pid_list)
    if counts is None:
        return _list(pid_list, known)
    pid_list = [pid for pid in pid_list if counts[pid]]  # kernel threads and zombies hold nothing
    for pid, fds in known.items():
        if pid in counts:
            counts[pid] = max(counts[pid] - len(fds), 1)
    total = sum(counts.values())
    if processes is None:
        processes = min(_PROCESSES, len(os.sched_getaffinity(0)), 1 + total // _WORTH_A_PROCESS)
    if processes < 2 or len(os.listdir("/proc/self/task")) > 1:
        return _list(pid_list, known)
    shares: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for pid in sorted(pid_list, key=lambda pid: -counts[pid]):
        least = loads.index(min(loads))
        shares[least].append(pid)
        loads[least] += counts[pid]
    return _joined(_side_by_side([share for share in shares if share] or [[]], known))


def _counts(pids: Iterable[int]) -> dict[int, int] | None:
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
    for pid in pids:
        try:
            result[pid] = os.stat(f"/proc/{pid}/fd").st_size or int(tasks.has_threads(pid))
        except PermissionError:  # then `_list` shall say so
            result[pid] = 1
        except OSError:
            result[pid] = 0
    return result


def unique(listed: Descriptors) -> Descriptors:
    """Return a list without what it has twice, by pid."""
    order = np.lexsort((listed.inode, listed.fd, listed.pid))
    pid, fd, inode = listed.pid[order], listed.fd[order], listed.inode[order]
    new = np.ones(len(pid), np.bool_)
    new[1:] = (pid[1:] != pid[:-1]) | (fd[1:] != fd[:-1]) | (inode[1:] != inode[:-1])
    return replace(listed, pid=pid[new], fd=fd[new], inode=inode[new])


def _side_by_side(shares: list[list[int]], known: Mapping[int, NDArray[np.uint32]]) -> list[Listing]:
    """List each share in a child; a share whose child failed is listed here."""
    children: list[tuple[int, int, list[int]]] = []
    results: list[Listing] = []
    try:
        for share in shares:
            read_end, write_end = os.pipe()
            try:
                pid = os.fork()
            except OSError:  # no more processes allowed: then there is one process less to share with
                os.close(read_end)
                os.close(write_end)
                results.append(_list(share, known))
                continue
            if pid == 0:
                try:
                    os.close(read_end)
                    _send(write_end, _list(share, known, enter=True))
                finally:
                    os._exit(0)  # whatever happened: nothing of the parent's may be finished twice
            os.close(write_end)
            children.append((pid, read_end, share))
        for _, read_end, share in children:
            results.append(_received(read_end) or _list(share, known))
    finally:
        for pid, read_end, _ in children:
            os.close(read_end)  # a child that still writes ends by SIGPIPE or EPIPE
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:  # our host ignores SIGCHLD
                continue
    return results


def _send(fd: int, listing: Listing) -> None:
    listed, spaces = listing
    pieces = (
        _COUNTS.pack(
            len(listed),
            len(spaces),
            len(listed.unreadable),
            len(listed.loops),
            len(listed.rings),
        ),
        *(column.tobytes() for column in (listed.pid, listed.fd, listed.inode)),
        np.array(spaces, np.int64).tobytes(),
        np.array(listed.unreadable, np.int64).tobytes(),
        np.array(listed.loops, np.int64).tobytes(),
        np.array(listed.rings, np.int64).tobytes(),
    )
    with open(fd, "wb") as file:
        file.writelines(pieces)


def _received(fd: int) -> Listing | None:
    """Return what a child sent, None if it did not come to its end."""
    with open(fd, "rb", closefd=False) as file:
        data = file.read()
    if len(data) < _COUNTS.size:
        return None
    n, spaces, denied, loops, rings = _COUNTS.unpack_from(data)
    sizes = (4 * n, 4 * n, 8 * n, 24 * spaces, 8 * denied, 16 * loops, 16 * rings)
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
            loops=_pairs(parts[5]),
            rings=_pairs(parts[6]),
        ),
        [(inode, pid, number) for inode, pid, number in triples],
    )


def _pairs(data: bytes) -> tuple[tuple[int, int], ...]:
    return tuple((pid, fd) for pid, fd in np.frombuffer(data, np.int64).reshape(-1, 2).tolist())


def _joined(parts: list[Listing]) -> Listing:
    """Return several lists as one, by pid."""
    pid, fd, inode = (
        np.concatenate([getattr(listed, name) for listed, _ in parts]) for name in ("pid", "fd", "inode")
    )
    order = np.argsort(pid, kind="stable")
    unreadable = tuple(sorted({p for listed, _ in parts for p in listed.unreadable}))
    threads = tuple(sorted({p for listed, _ in parts for p in listed.threads}))
    spaces = sorted((space for _, group in parts for space in group), key=lambda space: space[1:])
    loops = tuple(sorted({pair for listed, _ in parts for pair in listed.loops}))
    rings = tuple(sorted({pair for listed, _ in parts for pair in listed.rings}))
    return (
        Descriptors(
            pid[order], fd[order], inode[order], unreadable, threads=threads, loops=loops, rings=rings
        ),
        spaces,
    )


def _numbers(texts: list[str], dtype: type[np.uint32 | np.uint64]) -> NDArray[Any]:
    """Return decimal numbers as an array; a text with blanks is parsed in one go."""
    return np.fromstring(" ".join(texts), dtype, sep=" ") if texts else np.empty(0, dtype)


def links(names: Iterable[str], directory: int | None) -> list[str]:
    """Return what the links of those names say, "" for one that is gone.

    Args:
        names: of the links.
        directory: descriptor of the directory; None where the process has entered it.

    Raises:
        OSError: a link cannot be read for another reason.
    """
    read_link = os.readlink if directory is None else partial(os.readlink, dir_fd=directory)
    result: list[str] = []
    reading = map(read_link, names)
    while True:
        try:
            result.extend(reading)  # what was read before an error is kept
        except FileNotFoundError:  # closed meanwhile
            result.append("")
        else:
            return result


class _Reading:
    """Descriptor tables that were read, each for a process.

    Args:
        known: pid → descriptors that need not be read.
        enter: whether this process may change its directory, which makes reading a link a fifth cheaper.
    """

    def __init__(self, known: Mapping[int, NDArray[np.uint32]], *, enter: bool = False) -> None:
        self.denied: list[int] = []
        self.threads: list[int] = []
        self.spaces: list[tuple[int, int, int]] = []
        self.loops: list[tuple[int, int]] = []
        self.rings: list[tuple[int, int]] = []
        self._known = known
        self._enter = enter
        self._pid_of: list[int] = []
        self._counts: list[int] = []
        self._fds: list[str] = []
        self._inodes: list[str] = []

    def table(self, pid: int, tid: int) -> int | None:
        """Read the table that a thread of a process uses; return how many descriptors it has, None if it is denied."""
        try:
            directory = os.open(f"/proc/{tid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            return None
        except OSError:
            return 0
        try:
            names = os.listdir(directory)
            count = len(names)
            if pid in self._known and names:
                unknown = ~np.isin(_numbers(names, np.uint32), self._known[pid])
                names = list(compress(names, unknown.tolist()))
            if self._enter:
                os.fchdir(directory)
            targets = links(names, None if self._enter else directory)
        except PermissionError:
            return None
        except OSError:  # it has ended
            return 0
        finally:
            os.close(directory)
        self._sort(pid, tid, names, targets)
        return count

    def _sort(self, pid: int, tid: int, names: list[str], targets: list[str]) -> None:
        """Keep what descriptors refer to, by its kind."""
        of_socket = [link.startswith("socket:[") for link in targets]
        inodes = [link[8:-1] for link in compress(targets, of_socket)]
        if inodes:
            self._pid_of.append(pid)
            self._counts.append(len(inodes))
            self._inodes += inodes
            self._fds += compress(names, of_socket)
        if len(inodes) == len(targets):
            return
        for name, link in zip(names, targets, strict=True):
            if link.startswith("net:["):
                self.spaces.append((int(link[5:-1]), tid, int(name)))
            elif link == "anon_inode:[eventpoll]":
                self.loops.append((pid, int(name)))
            elif link == "anon_inode:[io_uring]":
                self.rings.append((pid, int(name)))

    def listing(self) -> Listing:
        listed = Descriptors(
            np.repeat(np.array(self._pid_of, np.uint32), self._counts)
            if self._pid_of
            else np.empty(0, np.uint32),
            _numbers(self._fds, np.uint32),
            _numbers(self._inodes, np.uint64),
            tuple(self.denied),
            threads=tuple(self.threads),
            loops=tuple(self.loops),
            rings=tuple(self.rings),
        )
        return listed, self.spaces


def _list(
    pids: Iterable[int],
    known: Mapping[int, NDArray[np.uint32]] = MappingProxyType({}),
    *,
    enter: bool = False,
) -> Listing:
    reading = _Reading(known, enter=enter)
    for pid in pids:
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


def _of_threads(pids: Iterable[int]) -> Listing:
    """List descriptors in tables that threads have for themselves.

    Where the kernel does not tell which tables are a thread's own, every one of them is read, and what is in that of
    its process, too, is told twice. `Descriptors.threads` names the processes that were too many.
    """
    reading = _Reading({})
    threads = descriptors_read = 0
    for pid in pids:
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


def processes(pids: Iterable[int]) -> dict[int, ProcessFiles]:
    """Read what describes each process; one that ended meanwhile is left out."""
    result: dict[int, ProcessFiles] = {}
    for pid in pids:
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
