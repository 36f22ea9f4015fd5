"""Processes and their descriptors, from /proc.

Each ``/proc/PID/fd`` is opened once and its links are read relative to it; a link is compared as text and
only the digits are parsed. What was not readable is kept apart from what was empty, because "nobody holds
it" and "we were not allowed to look" lead to opposite advice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from finwait.uapi.observation import Descriptors, Facts, ProcessFiles

__all__ = ["close_on_exec", "descriptors", "facts", "pids", "processes", "read", "socket_protocols"]


def read(path: str, limit: int = 1 << 20) -> bytes | None:
    """Return a file of /proc, or None if it is not there (any more) or may not be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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


def descriptors(only: Iterable[int] | None = None) -> tuple[Descriptors, list[tuple[int, int, int]]]:
    """List every descriptor that refers to a socket, of all processes or of some.

    Returns:
        The sockets' descriptors, and ``(inode, pid, fd)`` of those that refer to a network namespace.
    """
    pid_of: list[int] = []
    counts: list[int] = []
    fds: list[str] = []
    inodes: list[str] = []
    spaces: list[tuple[int, int, int]] = []
    denied: list[int] = []
    readlink, listdir, close = os.readlink, os.listdir, os.close
    for pid in pids() if only is None else only:
        try:
            directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            denied.append(pid)
            continue
        except OSError:
            continue
        before = len(fds)
        try:
            for name in listdir(directory):
                try:
                    link = readlink(name, dir_fd=directory)
                except FileNotFoundError:  # closed meanwhile
                    continue
                if link.startswith("socket:["):
                    fds.append(name)
                    inodes.append(link[8:-1])
                elif link.startswith("net:["):
                    spaces.append((int(link[5:-1]), pid, int(name)))
        except PermissionError:
            denied.append(pid)
        except OSError:
            pass
        finally:
            close(directory)
        if len(fds) > before:
            pid_of.append(pid)
            counts.append(len(fds) - before)
    found = Descriptors(
        np.repeat(np.array(pid_of, np.uint32), counts) if pid_of else np.empty(0, np.uint32),
        np.array(fds, np.uint32) if not fds else np.array(fds, "S10").astype(np.uint32),
        np.array(inodes, np.uint64) if not inodes else np.array(inodes, "S20").astype(np.uint64),
        tuple(denied),
    )
    return found, spaces


def processes(which: Iterable[int]) -> dict[int, ProcessFiles]:
    """Read what describes each process; one that ended meanwhile is left out."""
    result: dict[int, ProcessFiles] = {}
    for pid in which:
        base = f"/proc/{pid}/"
        stat = read(base + "stat")
        if stat is None:
            continue
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


def close_on_exec(pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:
    """Return for each (pid, fd) whether a program that the process executes would *not* inherit it."""
    result: dict[tuple[int, int], bool] = {}
    for pid, fd in pairs:
        data = read(f"/proc/{pid}/fdinfo/{fd}")
        if data is None:
            continue
        for line in data.splitlines():
            if line.startswith(b"flags:"):
                result[pid, fd] = bool(int(line.split()[1], 8) & 0o2000000)
                break
    return result


def socket_protocols(triples: Iterable[tuple[int, int, int]]) -> dict[int, str]:
    """Return the protocol of sockets by what sockfs calls it: ``TCP``, ``TCPv6``, ``UNIX``, ``NETLINK`` ….

    Args:
        triples: ``(pid, fd, inode)``. The answer is by inode.
    """
    result: dict[int, str] = {}
    for pid, fd, inode in triples:
        path = f"/proc/{pid}/fd/{fd}"
        try:
            name = os.getxattr(path, "system.sockprotoname")
            if os.readlink(path) != f"socket:[{inode}]":  # the number is another descriptor's by now
                continue
        except OSError:
            continue
        result[inode] = name.rstrip(b"\0").decode("ascii", "replace")
    return result
