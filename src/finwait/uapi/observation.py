"""Everything that one look at the machine read, as bytes.

The seam between the edges and the core: `finwait.kernel.observe` fills it from the running kernel,
`finwait.recording` from a file, and the core cannot tell which. Nothing in here is interpreted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from finwait.errors import Gap
from finwait.uapi import inet_diag, tcp

__all__ = [
    "ESTABLISHED_LIMIT",
    "Descriptors",
    "Dump",
    "Facts",
    "LoneSocket",
    "Namespace",
    "Observation",
    "Plan",
    "ProcessFiles",
    "unseen",
]


@dataclass(frozen=True, slots=True)
class Facts:
    """Which machine, when, and as whom."""

    kernel: str = ""
    """``uname -r``."""
    hostname: str = ""
    boot_id: str = ""
    unix_ns: int = 0
    """Wall clock at the start of the look."""
    boottime_ns: int = 0
    """CLOCK_BOOTTIME at the start of the look: what process start times count from."""
    boottime_end_ns: int = 0
    """… and after its last dump: a process is never older than this says, whatever the look took."""
    clock_ticks: int = 100
    """``sysconf(_SC_CLK_TCK)``: the unit of start times in ``/proc/PID/stat``."""
    page_size: int = 4096
    euid: int = 0
    capabilities: int = 0
    """CapEff of the looking process."""


@dataclass(frozen=True, slots=True)
class Dump:
    """One netlink dump: what was asked, and where the answering datagrams are in the buffer."""

    kind: str
    """``tcp``, ``mptcp`` or ``conntrack``."""
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Namespace:
    """One network namespace: its names, what was dumped in it, and the files read in it."""

    inode: int
    names: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    process_count: int = 0
    dumps: tuple[Dump, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    """Path below ``/proc/sys/net`` or ``/proc/net`` → content, e.g. ``sys/ipv4/tcp_fin_timeout``."""
    established_skipped: int = 0
    """How many ESTABLISHED sockets were left out of the dump to keep it cheap; 0 when none were."""
    island: int | None = None
    """The same of namespaces that interfaces connect, also over others; None where nobody looked (older recordings)."""


@dataclass(frozen=True, slots=True)
class ProcessFiles:
    """Files of one process, as read; an absent one could not be read."""

    stat: bytes | None = None
    status: bytes | None = None
    cmdline: bytes | None = None
    cgroup: bytes | None = None
    exe: bytes | None = None
    """What the ``exe`` link says."""
    netns: int | None = None
    denied: bool = False


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Every descriptor of a process that refers to a socket: three columns of equal length."""

    pid: NDArray[np.uint32]
    fd: NDArray[np.uint32]
    inode: NDArray[np.uint64]
    unreadable: tuple[int, ...] = ()
    """Pids whose descriptors we were not allowed to list."""
    searched: bool = True
    """False when nobody looked: then an inode that is absent here says nothing."""
    threads: tuple[int, ...] = ()
    """Pids that were too many to look for threads with a descriptor table of their own."""

    @classmethod
    def none(cls, *, searched: bool = False) -> Descriptors:
        """Return no descriptors, because nobody looked."""
        return cls(np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.uint64), (), searched)

    def __len__(self) -> int:
        return len(self.pid)


@dataclass(frozen=True, slots=True)
class LoneSocket:
    """A TCP socket that a descriptor names and no dump contains, as the socket itself says (`pidfd_getfd`)."""

    netns: int
    """Its network namespace (SIOCGSKNS), which need not be its process's; 0 where we may not ask."""
    state: int
    """As of TCP_INFO; 0 where we may not ask."""
    used: bool
    """Whether it ever sent or received a segment."""
    errno: int = 0
    """Why it could not be asked, where `state` is 0: EPERM, or ENOSYS before Linux 5.6; 0 where nobody asked."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at the machine."""

    facts: Facts
    buffer: NDArray[np.uint8]
    namespaces: tuple[Namespace, ...]
    descriptors: Descriptors
    processes: dict[int, ProcessFiles] = field(default_factory=dict)
    cgroups: dict[int, str] = field(default_factory=dict)
    """cgroup id → path below the cgroup2 mount point."""
    socket_protocols: dict[int, str] = field(default_factory=dict)
    """Inode → sockfs protocol name (``TCP``, ``UNIX``) of descriptors that no dump explains."""
    close_on_exec: dict[tuple[int, int], bool] = field(default_factory=dict)
    """(pid, fd) → FD_CLOEXEC."""
    gaps: tuple[Gap, ...] = ()
    complete: bool = True
    """Whether every TCP state was asked for."""
    lone_sockets: dict[int, LoneSocket] = field(default_factory=dict)
    """Inode → what such a TCP socket says of itself, as far as it could be asked."""
    one_table: dict[tuple[int, int], bool] = field(default_factory=dict)
    """Two pids → whether they share one descriptor table, of holders of one socket, as far as that could be asked."""


ESTABLISHED_LIMIT: Final = 50_000
"""Namespaces with more sockets are dumped without the ESTABLISHED ones, unless asked otherwise."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to look at."""

    states: int = tcp.ALL_STATES
    """Mask of ``1 << state``."""
    extensions: int = inet_diag.EXT_ALL
    bytecode: bytes = b""
    """inet_diag bytecode that the kernel applies."""
    only: frozenset[int] | None = None
    """Inodes of the namespaces to look into; None for all."""
    mptcp: bool = True
    conntrack: bool = True
    files: bool = True
    descriptors: bool = True
    established_limit: int | None = ESTABLISHED_LIMIT
    """Dump ESTABLISHED only where at most so many sockets are; None for always."""
    progress: Callable[[str], None] | None = field(default=None, compare=False)


def unseen(
    look: Observation, lone: Mapping[int, LoneSocket], triples: Iterable[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    """Return ``(netns, pid, fd)`` of sockets that live in namespaces that the look knows nothing of.

    Args:
        look: what was seen.
        lone: inode → what the socket says.
        triples: ``(pid, fd, inode)`` of their descriptors.
    """
    known = {ns.inode for ns in look.namespaces}
    found: dict[int, tuple[int, int]] = {}
    for pid, fd, inode in triples:
        one = lone.get(inode)
        if one is not None and one.netns and one.state not in (0, tcp.CLOSE) and one.netns not in known:
            found.setdefault(one.netns, (pid, fd))
    return [(netns, pid, fd) for netns, (pid, fd) in found.items()]
