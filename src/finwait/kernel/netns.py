"""Network namespaces: finding every one, and looking into each without ever staying there.

A namespace is kept alive by a process in it, a bind mount of its nsfs file, or an open descriptor; we look
in all three places, and at threads, whose namespace may differ from that of their process.

Looking is done by threads made for the purpose. Each enters one namespace after the other (``setns`` acts
on the calling thread alone), does what it was asked there, and *ends*: no thread ever returns to work with a
foreign namespace on it, whatever failed in between.

What this cannot see: a namespace that only an in-flight descriptor or another kernel object keeps.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import fcntl
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from msgspec import Struct

from finwait.errors import Gap, PermissionNeeded
from finwait.kernel import pidfd, rights, tasks

__all__ = [
    "NetNamespace",
    "discover",
    "finish",
    "inode_of_path",
    "inode_of_pid",
    "open_path",
    "own_netns",
    "setns",
    "visit",
]

CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
"""include/uapi/linux/nsfs.h"""
_libc = ctypes.CDLL(None, use_errno=True)
_LINK = re.compile(r"net:\[(\d+)\]")
_SOCKET = "socket:"
"""Begins a path that is a socket of a process: ``socket:PID:FD:INODE``, with the inode of the namespace."""
T = TypeVar("T")


class StopMark(Protocol):
    """What tells a thread to stop: a `threading.Event`, or a `finwait.kernel.interruption.Stop`."""

    def set(self) -> None:
        """Tell it."""

    def is_set(self) -> bool:
        """Return whether it was told."""


class NetNamespace(Struct, frozen=True):
    """One network namespace and the ways that lead to it."""

    inode: int
    """Inode of its nsfs file: what ``ls -l /proc/PID/ns/net`` shows."""
    names: tuple[str, ...] = ()
    """What people call it: ``host``, names of ``ip netns``, other mount points."""
    pids: tuple[int, ...] = ()
    """Some of the processes in it, lowest first (at most eight)."""
    process_count: int = 0
    paths: tuple[str, ...] = ()
    """Files that open it, best first."""


def setns(fd: int) -> None:
    """Move the calling thread into the network namespace that ``fd`` refers to.

    Raises:
        OSError: the kernel refused.
    """
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def own_netns() -> int:
    """Return the inode of the calling thread's network namespace."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def inode_of_pid(pid: int) -> int | None:
    """Return the network namespace of a process, None if it is gone.

    Raises:
        PermissionNeeded: it is not ours to look at.
    """
    inode = _stat_namespace(pid, f"/proc/{pid}/ns/net")
    if inode is None and (tid := tasks.live_thread(pid)) is not None:
        inode = _stat_namespace(pid, f"/proc/{pid}/task/{tid}/ns/net")
    return inode


def _stat_namespace(pid: int, link: str) -> int | None:
    try:
        return os.stat(link).st_ino
    except PermissionError as error:
        doing = f"read the network namespace of pid {pid}"
        raise PermissionNeeded(error.errno or 0, doing, rights.missing("CAP_SYS_PTRACE")) from None
    except OSError:
        return None


def inode_of_path(path: str) -> int | None:
    """Return the network namespace that a file leads to; None if there is no such file, or it is something else.

    Raises:
        PermissionNeeded: it is not ours to look at.
    """
    fd = -1
    try:
        if os.stat(path).st_dev != os.stat("/proc/thread-self/ns/net").st_dev:
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return os.fstat(fd).st_ino if fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET else None
    except PermissionError as error:
        needs = "CAP_SYS_PTRACE" if path.startswith("/proc/") else "CAP_DAC_READ_SEARCH"
        raise PermissionNeeded(error.errno or 0, f"read `{path}`", rights.missing(needs)) from None
    except (OSError, ValueError):
        return None
    finally:
        if fd >= 0:
            os.close(fd)


class _Discovery:
    """What discovery gathers about each inode."""

    def __init__(self) -> None:
        self.paths: dict[int, list[str]] = {}
        self.pids: dict[int, list[int]] = {}
        self.counts: dict[int, int] = {}
        self.names: dict[int, list[str]] = {}

    def process(self, inode: int, pid: int, path: str) -> None:
        self.counts[inode] = self.counts.get(inode, 0) + 1
        pids = self.pids.setdefault(inode, [])
        if len(pids) < 8:
            pids.append(pid)
            self.paths.setdefault(inode, []).append(path)

    def name(self, inode: int, name: str, path: str) -> None:
        names = self.names.setdefault(inode, [])
        if name not in names:
            names.append(name)
        self.paths.setdefault(inode, []).insert(0, path)

    def path(self, inode: int, path: str) -> None:
        paths = self.paths.setdefault(inode, [])
        if len(paths) < 16:
            paths.append(path)


def open_path(path: str) -> int:
    """Open one of the ways to a namespace; return the descriptor.

    Raises:
        OSError: it leads there no more, or we may not.
    """
    if path.startswith(_SOCKET):
        pid, fd, inode = path.removeprefix(_SOCKET).split(":")
        return pidfd.namespace_of(int(pid), int(fd), int(inode))
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def discover(
    descriptors: Iterable[tuple[int, int, int]] = (), sockets: Iterable[tuple[int, int, int]] = ()
) -> tuple[list[NetNamespace], list[Gap]]:
    """Find every network namespace on the machine.

    Args:
        descriptors: ``(inode, pid, fd)`` of open nsfs files, from `finwait.kernel.procfs.descriptors`.
        sockets: ``(inode, pid, fd)`` of sockets that keep a namespace which nothing else leads to.

    Returns:
        The namespaces by inode (the host's first, where it can be told), and what could not be seen.
    """
    discovery = _Discovery()
    discovery.path(own_netns(), "/proc/thread-self/ns/net")
    unread = _of_processes(discovery)
    for inode, pid, fd in descriptors:
        discovery.path(inode, f"/proc/{pid}/fd/{fd}")
    for inode, pid, fd in sockets:
        discovery.path(inode, f"{_SOCKET}{pid}:{fd}:{inode}")
    return _namespaces(discovery), _unread_gaps(unread)


def _of_processes(discovery: _Discovery) -> list[int]:
    """Find the namespaces of every process, its threads and its mounts; return the pids that could not be read."""
    unread: list[int] = []
    mounts_seen: set[str] = set()
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        task = f"/proc/{pid}"
        try:
            inode = _namespace(task)
            if (
                inode is None
            ):  # it ended, or its main thread has: of a zombie no link is left, others may go on
                tid = tasks.live_thread(pid)
                task = f"/proc/{pid}/task/{tid}"
                inode = None if tid is None else _namespace(task)
        except PermissionError:
            unread.append(pid)
            continue
        if inode is None:
            continue
        discovery.process(inode, pid, f"{task}/ns/net")
        _threads(discovery, pid, inode)
        _mounts(discovery, task, mounts_seen)
    return unread


def _unread_gaps(pids: list[int]) -> list[Gap]:
    """Return the gap that processes are whose namespace could not be read."""
    if not pids:
        return []
    doing = "read its network namespace" if len(pids) == 1 else "read their network namespaces"
    return [Gap.of_processes(pids, doing, rights.missing("CAP_SYS_PTRACE")).but(unlisted=True)]


def _namespaces(discovery: _Discovery) -> list[NetNamespace]:
    """Return the namespaces by inode, the host's first."""
    host = _host_inode()
    if host is not None and (host in discovery.paths):
        discovery.names.setdefault(host, []).insert(0, "host")
    return [
        NetNamespace(
            inode,
            tuple(discovery.names.get(inode, ())),
            tuple(discovery.pids.get(inode, ())),
            discovery.counts.get(inode, 0),
            tuple(discovery.paths[inode]),
        )
        for inode in sorted(discovery.paths, key=lambda i: (i != host, i))
    ]


def _host_inode() -> int | None:
    """The namespace of kthreadd: the machine's own, whatever container pid 1 may be the init of."""
    try:
        with open("/proc/2/comm", encoding="ascii", errors="replace") as file:
            if file.read() != "kthreadd\n":  # a pid namespace: nothing here tells which one is the host's
                return None
        return os.stat("/proc/2/ns/net").st_ino
    except OSError:
        return None


def _namespace(task: str) -> int | None:
    """Return the network namespace of a process or a thread; None where it ended.

    Raises:
        PermissionError: we may not look.
    """
    try:
        link = _LINK.fullmatch(os.readlink(f"{task}/ns/net"))
    except PermissionError:
        raise
    except OSError:
        return None
    return int(link[1]) if link else None


def _threads(discovery: _Discovery, pid: int, process: int) -> None:
    """Threads may be in another namespace than their process (runtimes do that while they set up pods)."""
    if not tasks.has_threads(pid):
        return
    for tid in tasks.of(pid):
        try:
            inode = _namespace(f"/proc/{pid}/task/{tid}")
        except PermissionError:  # it has other rights than its process, or is ending
            continue
        if inode is not None and inode != process:
            discovery.path(inode, f"/proc/{pid}/task/{tid}/ns/net")


def _mounts(discovery: _Discovery, task: str, seen: set[str]) -> None:
    """Bind mounts of nsfs files, once for each mount namespace."""
    try:
        mount_ns = os.readlink(f"{task}/ns/mnt")
        if mount_ns in seen:
            return
        seen.add(mount_ns)
        with open(f"{task}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return
    same_mounts = mount_ns == os.readlink("/proc/self/ns/mnt")
    for line in lines:
        if " nsfs " not in line:
            continue
        words = line.split(" ")
        link = _LINK.fullmatch(words[3])
        if not link:
            continue
        where = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), words[4])
        path = where if same_mounts else f"{task}/root{where}"
        directory, _, base = where.rpartition("/")
        discovery.name(int(link[1]), base if directory in ("/run/netns", "/var/run/netns") else where, path)


def visit(
    namespaces: Iterable[NetNamespace],
    look: Callable[[NetNamespace], T],
    *,
    stop: StopMark | None = None,
    threads: int = 1,
) -> tuple[dict[int, T], list[Gap]]:
    """Call ``look`` once inside each namespace, in a thread of its own that ends afterwards.

    The caller's own namespace needs no privilege. A namespace that cannot be opened or entered becomes a
    Gap, but for one that was gone by then: it ended, as pods do. An exception of ``look`` is raised again here, after
    the thread has ended.

    Args:
        namespaces: where.
        look: what to do there.
        stop: given by a caller that *acts*. When this is interrupted (Ctrl-C) it is set, no further namespace is
            entered, and the thread has ended before the interruption goes on: nothing is done behind the caller's
            back. ``look`` heeds it wherever it can stop. Without it a thread that only looks is left to itself.
        threads: how many look at once, each into another namespace: the kernel walks the whole table of sockets for
            each, which takes as long as all sockets of the machine make it, and needs none of our locks. Who acts has
            one.
    """
    results, gaps, vanished = _visit(namespaces, look, stop, threads)
    if vanished:  # on its way out when it was listed; or another way leads there by now
        again = [ns for ns in discover()[0] if ns.inode in vanished]
        more, gaps_again, still = _visit(again, look, stop, 1)
        results |= more
        listed = {ns.inode for ns in discover()[0]} if still else frozenset()
        gaps += gaps_again + [_unentered(ns, "") for ns in still.values() if ns.inode in listed]
    return results, gaps


def _visit(
    namespaces: Iterable[NetNamespace],
    look: Callable[[NetNamespace], T],
    stop: StopMark | None,
    threads: int,
) -> tuple[dict[int, T], list[Gap], dict[int, NetNamespace]]:
    """As `visit`, once; also returns those to which no way leads any more."""
    results: dict[int, T] = {}
    gaps: list[Gap] = []
    vanished: dict[int, NetNamespace] = {}
    failure: list[BaseException] = []
    waiting = deque(namespaces)

    def run() -> None:
        current = own_netns()
        try:
            while waiting and not failure:
                try:
                    ns = waiting.popleft()
                except IndexError:  # another thread took the last one
                    return
                if stop is not None and stop.is_set():
                    return
                if ns.inode != current:
                    entered = _enter(ns)
                    if entered is not _Entered.YES:
                        if entered is _Entered.DENIED:
                            gaps.append(_unentered(ns, rights.missing("CAP_SYS_ADMIN")))
                        else:
                            vanished[ns.inode] = ns
                        continue
                    current = ns.inode
                results[ns.inode] = look(ns)
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, whatever it is
            failure.append(error)

    if stop is None:
        started: list[threading.Thread] = []
        for _ in range(max(1, min(threads, len(waiting)))):
            thread = threading.Thread(target=run, name="finwait-netns", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads allowed: then there are fewer to share with
                if not started:
                    raise
                break
            started.append(thread)
        for thread in started:
            thread.join()
    else:
        finish(run, stop, "finwait-netns")
    if failure:
        raise failure[0]
    return results, gaps, vanished


def finish(work: Callable[[], None], stop: StopMark, name: str) -> None:
    """Do something in a thread, and wait for its end also when that is interrupted: ``stop`` tells it.

    (`threading.Thread.join` will not do: before Python 3.13 an interrupted one takes the thread for ended.)
    """
    over = threading.Event()

    def run() -> None:
        try:
            work()
        finally:
            over.set()

    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
        over.wait()
    except RuntimeError:  # it could not be started
        raise
    except BaseException:
        stop.set()
        while not over.is_set():
            with contextlib.suppress(KeyboardInterrupt):
                over.wait()
        raise
    thread.join()


def _unentered(ns: NetNamespace, needs: str) -> Gap:
    return Gap.of_namespace(ns.inode, "enter it", needs, name=ns.names[0] if ns.names else "", unentered=True)


class _Entered(enum.Enum):
    YES = enum.auto()
    DENIED = enum.auto()
    VANISHED = enum.auto()


def _enter(ns: NetNamespace) -> _Entered:
    denied = False
    for path in ns.paths:
        try:
            fd = open_path(path)
        except OSError as error:
            denied = denied or isinstance(error, PermissionError)
            continue
        try:
            if os.fstat(fd).st_ino != ns.inode:  # the pid or the path is another's by now
                continue
            setns(fd)
        except PermissionError:
            denied = True
            continue
        except OSError:
            continue
        finally:
            os.close(fd)
        return _Entered.YES
    return _Entered.DENIED if denied else _Entered.VANISHED
