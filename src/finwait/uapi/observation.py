"""Everything that one look at the machine read, as bytes.

The seam between the edges and the core: `finwait.kernel.observe` fills it from the running kernel,
`finwait.recording` from a file, and the core cannot tell which. Nothing in here is interpreted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from finwait.errors import Gap
from finwait.uapi import inet_diag, tcp
from finwait.uapi.cluster import NO_NAMES, ClusterNames
from finwait.uapi.sets import among

__all__ = [
    "ESTABLISHED_LIMIT",
    "UNLISTED",
    "UNTOLD_FD",
    "Descriptors",
    "Dump",
    "Facts",
    "LoneSocket",
    "LookPlan",
    "LoopWatch",
    "Namespace",
    "Observation",
    "ProcessFiles",
    "ProcessWaits",
    "Releasing",
    "SocketOptions",
    "ThreadWait",
    "unseen",
]


class Facts(Struct, frozen=True):
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


class Dump(Struct, frozen=True):
    """One netlink dump: what was asked, and where the answering datagrams are in the buffer."""

    kind: str
    """``tcp``, ``mptcp`` or ``conntrack``."""
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    interrupted: bool = False
    untold: tuple[str, ...] = ()
    """Columns that say nothing in its rows, because what was read did not have them (pasted text): they are missing
    there. An inode that is missing and not 0 stands for one: something refers to the socket, and which number it has
    is not known."""


class Namespace(Struct, frozen=True):
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


class ProcessFiles(Struct, frozen=True):
    """Files of one process, as read; an absent one could not be read."""

    stat: bytes | None = None
    status: bytes | None = None
    cmdline: bytes | None = None
    cgroup: bytes | None = None
    exe: bytes | None = None
    """What the ``exe`` link says."""
    netns: int | None = None
    denied: bool = False
    comm: bytes | None = None
    """Its name, where nothing else of it is known (pasted text)."""


class Descriptors(Struct, frozen=True):
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
    loops: tuple[tuple[int, int], ...] = ()
    """``(pid, fd)`` of descriptors of epoll instances, as far as descriptors were listed."""
    rings: tuple[tuple[int, int], ...] = ()
    """``(pid, fd)`` of descriptors of io_uring instances."""
    pasted: bool = False
    """Whether they are those that a pasted text names: of a socket that it names none for, nothing is known."""

    @classmethod
    def none(cls, *, searched: bool = False) -> Descriptors:
        """Return no descriptors, because nobody looked."""
        return cls(np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.uint64), (), searched)

    def __len__(self) -> int:
        return len(self.pid)

    def triples(self, inodes: NDArray[np.uint64]) -> list[tuple[int, int, int]]:
        """Return ``(pid, fd, inode)`` of the descriptors of some sockets."""
        matching = among(self.inode, inodes)
        columns = (self.pid[matching], self.fd[matching], self.inode[matching])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def of(self, inodes: NDArray[np.uint64]) -> dict[int, tuple[int, ...]]:
        """Return which descriptors each process has of some sockets, by pid."""
        matching = among(self.inode, inodes)
        pid, fd = self.pid[matching], self.fd[matching]
        order = np.argsort(pid, kind="stable")
        pids, begins, counts = np.unique(pid[order], return_index=True, return_counts=True)
        fds = fd[order].tolist()
        parts = zip(pids.tolist(), begins.tolist(), counts.tolist(), strict=True)
        return {pid: tuple(fds[begin : begin + count]) for pid, begin, count in parts}


class LoneSocket(Struct, frozen=True):
    """A TCP socket that a descriptor names and no dump contains, as the socket itself says (`pidfd_getfd`)."""

    netns: int
    """Its network namespace (SIOCGSKNS), which need not be its process's; 0 where we may not ask."""
    state: int
    """As of TCP_INFO; 0 where we may not ask."""
    used: bool
    """Whether it ever sent or received a segment; of MPTCP, whether it ever had a peer."""
    errno: int = 0
    """Why it could not be asked, where `state` is 0: EPERM, or ENOSYS before Linux 5.6; 0 where nobody asked."""
    sport: int = 0
    """Its local port, which getsockname(2) tells also after the connection is gone; 0 where it is not known."""
    unread: int = 0
    """Bytes that its program can still read (SIOCINQ)."""


class SocketOptions(Struct, frozen=True):
    """Options that a program has set on a socket; None where it has no such option, or was not asked."""

    keepalive: bool | None = None
    keepidle_s: int | None = None
    keepintvl_s: int | None = None
    keepcnt: int | None = None
    user_timeout_ms: int | None = None
    """TCP_USER_TIMEOUT; 0 for none."""
    linger_s: int | None = None
    """SO_LINGER; −1 where it is off, 0: close() sends a RST."""
    linger2_s: int | None = None
    """TCP_LINGER2: how long an orphan stays in FIN_WAIT2; −1 not at all. The namespace's tcp_fin_timeout unless set."""
    nodelay: bool | None = None
    defer_accept_s: int | None = None
    rcvtimeo_ms: int | None = None
    """SO_RCVTIMEO: how long a call that reads waits at most; 0 for no limit."""
    sndtimeo_ms: int | None = None
    reuseaddr: bool | None = None
    reuseport: bool | None = None
    mark: int | None = None
    congestion: str = ""
    syncnt: int | None = None
    """TCP_SYNCNT: how often connect() sends its SYN again; the namespace's tcp_syn_retries where it set none."""
    rto_max_ms: int | None = None
    """TCP_RTO_MAX_MS: how far its RTO grows; the namespace's tcp_rto_max_ms of when it was made unless set. Since Linux
    6.15; before, and in recordings of an earlier finwait, None."""
    errno: int = 0
    """Why it could not be asked; 0 where it was."""


class ThreadWait(Struct, frozen=True):
    """What a thread was doing, by ``/proc/PID/task/TID`` read twice."""

    tid: int
    name: str
    state: str
    """The letter of ``stat``: ``S`` sleeps, ``R`` runs, ``D`` sleeps uninterruptibly, ``T`` is stopped."""
    call: str = ""
    """Name of the system call that it was in, ``system call N`` if we have no name; empty where it was in none."""
    kind: str = ""
    """As `finwait.uapi.syscall.CallKind`; empty where it was in none; ``unknown`` where that could not be read."""
    waits_for: tuple[tuple[int, int], ...] = ()
    """Descriptors that the call waits for, each with poll events (0 where the call names no events)."""
    limited: bool = False
    """Whether the call's wait has a limit, by its arguments."""
    timeout_ms: int | None = None
    """That limit, where it could be read."""
    steady: bool = False
    """Whether it slept in that very call from the first reading to the second."""
    slices: int = -1
    """How many times it had been given a processor (``schedstat``), at the second reading; −1 not known."""
    wchan: str = ""
    """Name of the kernel function in which it slept; empty where that is not known."""
    sockets: tuple[tuple[int, int], ...] = ()
    """Inodes of sockets that it waits for, as `waits_for`: where threads of its process have tables of their own, a
    number alone does not tell what it means, and `waits_for` is empty."""

    @property
    def halted(self) -> str:
        """Why it cannot go on although its call may end: a signal or a debugger stopped it, or its cgroup is frozen."""
        if self.wchan in _FREEZERS:
            return "frozen (cgroup)"
        return {"T": "stopped (SIGSTOP)", "t": "stopped (by a debugger)"}.get(self.state, "")


_FREEZERS: Final = frozenset({"do_freezer_trap", "__refrigerator"})
"""Kernel functions in which threads of a frozen cgroup wait (v2: kernel/cgroup/freezer.c; v1: kernel/freezer.c)."""


class LoopWatch(Struct, frozen=True):
    """An epoll instance, as one process knows it."""

    fd: int
    total: int
    """How many descriptors it watches."""
    watched: tuple[tuple[int, int, int], ...]
    """Of those that were asked for, and of other epoll instances: the number as registered, EPOLL bits, inode or −1."""
    steady: bool = True
    """Whether these registrations were the same at both readings."""
    also: tuple[int, ...] = ()
    """Further descriptors of the very same instance."""
    apart: bool = True
    """Whether all that may sleep in it is known: no other process has it, and what it is part of could be told."""


class ProcessWaits(Struct, frozen=True):
    """Who in a process waits for its sockets."""

    threads: tuple[ThreadWait, ...] = ()
    loops: tuple[LoopWatch, ...] = ()
    rings: tuple[int, ...] = ()
    """Descriptors of its io_uring instances, of which the kernel does not tell what they wait for."""
    asynchronous: tuple[int, ...] = ()
    """Descriptors of sockets that send a signal when something happens (O_ASYNC)."""
    unread: tuple[str, ...] = ()
    """What could not be read, each what and, after a tab, what would have let us; empty where all was."""
    unlisted: tuple[str, ...] = ()
    """Ways to wait that it has and of which nothing lists what they wait for: words of `UNLISTED`."""
    unasked_from: int = -1
    """Sockets from this descriptor on were not asked whether they send signals; −1 where all were that had to be."""
    foreign: tuple[tuple[int, int], ...] = ()
    """(inode, pid): sockets of it that an event loop of another process watches, which may hold them or not."""


class Releasing(Struct, frozen=True):
    """A thread that is closing a socket of which no descriptor is left."""

    pid: int
    tid: int
    name: str
    netns: int
    """Where it is; 0 where that is not known, as of one that is ending. The socket may be of another namespace."""
    call: str
    """The system call that it is in; empty where that is not known."""
    exiting: bool
    """Whether its process is ending."""


UNSEEN_THREADS: Final = Releasing(0, 0, "", 0, "", True)
"""Stands for threads that were not looked at, because there are too many: each may be closing a socket, or ending."""


UNLISTED: Final = ("io_uring", "aio", "tables", "tables-unknown", "stale", "maps", "loops")
"""An io_uring without a descriptor; libaio; threads with descriptor tables of their own, or that may have; a thread in
a call on a descriptor that was closed meanwhile; and what was too large to be read: a memory map, the event loops of
all other processes."""


class Observation(Struct, frozen=True):
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
    waits: dict[int, ProcessWaits] = field(default_factory=dict)
    """Pid → who waits in it, of processes that hold connections that do not finish closing."""
    socket_options: dict[int, SocketOptions] = field(default_factory=dict)
    """Inode → the options of such sockets, as far as they could be asked."""
    releasing: tuple[Releasing, ...] = ()
    """Threads that are closing a socket, where there are sockets that no descriptor refers to."""
    names: ClusterNames = NO_NAMES
    """What a cluster calls the pods and addresses in it."""


UNTOLD_FD: Final = 0xFFFFFFFF
"""Stands for the number of a descriptor that is not known: the text names the process alone."""

ESTABLISHED_LIMIT: Final = 50_000
"""Namespaces with more sockets are dumped without the ESTABLISHED ones, unless asked otherwise."""


class LookPlan(Struct, frozen=True):
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
    progress: Callable[[str], None] | None = None


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
    descriptors: dict[int, tuple[int, int]] = {}
    for pid, fd, inode in triples:
        sock = lone.get(inode)
        if sock is not None and sock.netns and sock.state not in (0, tcp.CLOSE) and sock.netns not in known:
            descriptors.setdefault(sock.netns, (pid, fd))
    return [(netns, pid, fd) for netns, (pid, fd) in descriptors.items()]
