"""One look at the running machine: namespaces, dumps, files, descriptors, as bytes.

Order matters. Descriptors are listed before the dumps (they lead to namespaces that nothing else shows), so
a socket made in between has a row and no descriptor; `RunningMachine.descriptors_again` lists them once more when
the caller meets such rows, and then also looks for threads that have a table of descriptors for themselves. A
dump asks first what is cheap: a namespace whose counters say that it holds no TCP socket is not walked, and
ESTABLISHED sockets, which can be hundreds of thousands and are rarely the question, are dumped only up to a
number (`LookPlan.established_limit`) or on demand; what was left out is said.

Reading only: nothing here writes to the kernel, starts conntrack in a namespace, or loads a module that
``ss`` and ``conntrack -L`` would not load.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.errors import Gap, KernelError, NotSupported
from finwait.kernel import (
    cgroup,
    kcmp,
    netns,
    pidfd,
    procfs,
    releasing,
    rights,
    socket_options,
    tasks,
    waiting,
)
from finwait.kernel.links import Links
from finwait.kernel.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NETLINK_SOCK_DIAG,
    Answer,
    Arena,
    dump,
    netlink_socket,
    no_sock_diag,
)
from finwait.uapi import conntrack, inet_diag, rtnetlink, tcp
from finwait.uapi.observation import (
    ESTABLISHED_LIMIT,
    Descriptors,
    Dump,
    LoneSocket,
    LookPlan,
    Namespace,
    Observation,
    ProcessFiles,
    ProcessWaits,
    Releasing,
    SocketOptions,
)

__all__ = [
    "ESTABLISHED_LIMIT",
    "GLOBAL_FILES",
    "NAMESPACE_FILES",
    "LookPlan",
    "RunningMachine",
]

_MOST_THREADS: Final = 8
_SYS: Final = "/proc/sys/net/"
_NET: Final = "/proc/thread-self/net/"

SYSCTLS: Final = (
    "ipv4/tcp_fin_timeout",
    "ipv4/tcp_keepalive_time",
    "ipv4/tcp_keepalive_intvl",
    "ipv4/tcp_keepalive_probes",
    "ipv4/tcp_orphan_retries",
    "ipv4/tcp_retries2",
    "ipv4/tcp_syn_linear_timeouts",
    "ipv4/tcp_syn_retries",
    "ipv4/tcp_synack_retries",
    "ipv4/tcp_max_tw_buckets",
    "ipv4/tcp_tw_reuse",
    "ipv4/tcp_rto_max_ms",
    "ipv4/ip_local_port_range",
    "mptcp/close_timeout",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_max",
    "netfilter/nf_conntrack_tcp_be_liberal",
    "netfilter/nf_conntrack_tcp_loose",
    "netfilter/nf_conntrack_tcp_timeout_close_wait",
    "netfilter/nf_conntrack_tcp_timeout_established",
    "netfilter/nf_conntrack_tcp_timeout_fin_wait",
    "netfilter/nf_conntrack_tcp_timeout_last_ack",
    "netfilter/nf_conntrack_tcp_timeout_time_wait",
)
_CONNTRACK: Final = "sys/netfilter/"
NAMESPACE_FILES: Final = (
    *(f"sys/{name}" for name in SYSCTLS),
    "net/sockstat",
    "net/sockstat6",
    "net/netstat",
    "net/snmp",
    "net/stat/nf_conntrack",
)
"""Files that say something else in every network namespace."""
GLOBAL_FILES: Final = ("sys/ipv4/tcp_max_orphans", "sys/ipv4/tcp_mem")
"""Files of the initial namespace that hold for the whole machine."""


class RunningMachine:
    """The running machine, as `finwait.session` reads it.

    Args:
        spaces: ``(netns, pid, fd)`` of descriptors that alone lead to namespaces, as of an earlier look (`ways`).
        socket_spaces: … of sockets.
    """

    live: Final = True
    again: Final = True

    def __init__(
        self, spaces: Iterable[tuple[int, int, int]] = (), socket_spaces: Iterable[tuple[int, int, int]] = ()
    ) -> None:
        # Namespaces that only a descriptor keeps, as of the last listing: looks without one go there too.
        self._spaces = list(spaces)
        self._socket_spaces = list(socket_spaces)

    @property
    def ways(self) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
        """What leads to namespaces that nothing else leads to, as of the last look: arguments of `netns.discover`."""
        return list(self._spaces), list(self._socket_spaces)

    def begin(self) -> RunningMachine:
        """Return what a look uses: this."""
        return self

    def observe(self, plan: LookPlan) -> Observation:
        """Look once."""
        say = plan.progress or (lambda _: None)
        gaps: list[Gap] = []
        facts = procfs.facts()
        descriptors = Descriptors.none()
        if plan.descriptors:
            say("listing descriptors")
            descriptors, self._spaces = procfs.descriptors()
            gaps += _unreadable(descriptors)
        say("finding network namespaces")
        namespaces, more = netns.discover(self._spaces, self._socket_spaces)
        gaps += more
        links, others = Links(namespaces), []
        if plan.only is not None:
            others = [ns for ns in namespaces if ns.inode not in plan.only]
            namespaces = [ns for ns in namespaces if ns.inode in plan.only]
        arenas = _Arenas()
        say(f"reading sockets of {len(namespaces)} namespace{'' if len(namespaces) == 1 else 's'}")
        seen, more = netns.visit(
            namespaces,
            lambda ns: arenas.beside(
                lambda arena: _look(ns, plan, arena, gaps, links, first=ns is namespaces[0])
            ),
            threads=_threads(len(namespaces)),
        )
        buffer, looks = arenas.joined(seen)
        gaps += more
        gaps += _gone(plan, looks, gaps)
        if len(namespaces) > 1 and others:  # two may be connected through a third
            netns.visit(others, links.read)
        islands = links.islands()
        facts = replace(facts, boottime_end_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        return Observation(
            facts,
            buffer,
            tuple(
                replace(looks[ns.inode], island=islands[ns.inode]) for ns in namespaces if ns.inode in looks
            ),
            descriptors,
            gaps=tuple(rights.honest(gap, facts.capabilities) for gap in gaps),
            complete=plan.states & tcp.ALL_STATES == tcp.ALL_STATES
            and not any(look.established_skipped for look in looks.values()),
        )

    def descriptors_again(self, known: Descriptors | None = None) -> Descriptors:
        """List all descriptors once more, those of threads with a table of their own too; see the module for when.

        Args:
            known: those of the first list whose sockets are still there and have no other holder: they are not read
                again.
        """
        return procfs.descriptors(threads=True, known=known)[0]

    def processes(self, pids: Iterable[int]) -> dict[int, ProcessFiles]:
        """Read the files that describe processes."""
        return procfs.processes(pids)

    def cgroups(self, ids: Iterable[int]) -> dict[int, str]:
        """Return the paths of cgroups by id."""
        return cgroup.paths(ids)

    def close_on_exec(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:
        """Return which descriptors an executed program would not inherit."""
        return procfs.close_on_exec(pairs)

    def one_table(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:
        """Return which pairs of processes share one descriptor table, as far as the kernel tells."""
        return kcmp.one_table(pairs)

    def waits(
        self, fds_of: Mapping[int, Collection[int]], descriptors: Descriptors, inodes: Collection[int]
    ) -> dict[int, ProcessWaits]:
        """Return who in processes waits for sockets; see `finwait.kernel.waiting.waits`."""
        return waiting.waits(fds_of, descriptors.loops, descriptors.rings, inodes)

    def releasing(self, spaces: Collection[int]) -> tuple[Releasing, ...]:
        """Return threads that may be closing a socket of some namespaces; see `finwait.kernel.releasing`."""
        return releasing.threads(spaces)

    def turns(self, pids: Iterable[int]) -> dict[int, int]:
        """Return how many times the threads of processes were given a processor."""
        return tasks.turns(pids)

    def socket_options(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, SocketOptions]:
        """Return the options of sockets by inode, of ``(pid, fd, inode)``."""
        return socket_options.read(triples)

    def lone_sockets(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, LoneSocket]:
        """Return what TCP sockets that no dump contains say of themselves, by inode, of ``(pid, fd, inode)``."""
        return pidfd.lone_sockets(triples)

    def remember(self, spaces: Iterable[tuple[int, int, int]]) -> None:
        """Look into further namespaces from now on: ``(netns, pid, fd)`` of sockets that alone lead there."""
        self._socket_spaces += spaces

    def devices(self, spaces: Iterable[int]) -> dict[tuple[int, int], str]:
        """Return the names of the interfaces of namespaces, by (netns, ifindex)."""
        requested = set(spaces)
        if not requested:
            return {}
        namespaces, _ = netns.discover(self._spaces, self._socket_spaces)
        interfaces, _ = netns.visit(
            [ns for ns in namespaces if ns.inode in requested], lambda _: dict(socket.if_nameindex())
        )
        return {(inode, index): name for inode, names in interfaces.items() for index, name in names.items()}

    def socket_protocols(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, str]:
        """Return the protocol names of sockets by inode, of ``(pid, fd, inode)``."""
        return procfs.socket_protocols(triples)


def _threads(namespaces: int) -> int:
    """Return how many threads look at so many namespaces at once; few namespaces are not worth a second one."""
    return max(1, min(len(os.sched_getaffinity(0)), _MOST_THREADS, namespaces // 8))


class _Arenas:
    """Memory for what is dumped: of each thread its own."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def beside(self, look: Callable[[Arena], Namespace]) -> tuple[Namespace, Arena]:
        """Return what a look laid into the memory of the calling thread, and that memory."""
        if not hasattr(self._of_thread, "arena"):
            self._of_thread.arena = Arena()
        arena: Arena = self._of_thread.arena
        return look(arena), arena

    @staticmethod
    def joined(
        seen: Mapping[int, tuple[Namespace, Arena]],
    ) -> tuple[NDArray[np.uint8], dict[int, Namespace]]:
        """Return one buffer for all, and the looks with the places that their dumps have in it.

        The largest stays where it is; the others are copied behind it.
        """
        if not seen:
            return np.empty(0, np.uint8), {}
        arenas = {id(arena): arena for _, arena in seen.values()}
        largest = max(arenas.values(), key=lambda arena: arena.used)
        moved = {
            key: 0 if arena is largest else largest.append(arena.view()) for key, arena in arenas.items()
        }
        return largest.array(), {
            inode: _shifted(look, moved[id(arena)]) for inode, (look, arena) in seen.items()
        }


def _shifted(look: Namespace, by: int) -> Namespace:
    if not by:
        return look
    dumps = tuple(
        replace(dump, starts=tuple(at + by for at in dump.starts), ends=tuple(at + by for at in dump.ends))
        for dump in look.dumps
    )
    return replace(look, dumps=dumps)


def _gone(plan: LookPlan, looks: Mapping[int, Namespace], gaps: Iterable[Gap]) -> list[Gap]:
    """Return gaps for namespaces that were asked for and are not there: of others nobody misses what ended."""
    reported = {gap.netns for gap in gaps}
    requested = sorted((plan.only or frozenset()) - looks.keys())
    return [
        Gap.of_namespace(n, "inspect it: it is gone", "", unentered=True)
        for n in requested
        if n not in reported
    ]


def _unreadable(descriptors: Descriptors) -> list[Gap]:
    gaps = []
    if 0 in descriptors.unreadable:
        needs = "the initial pid namespace: run on the host, or with hostPID"
        gaps.append(Gap("pid 0", "see processes outside this pid namespace (or hidden by hidepid)", needs))
    known = [pid for pid in descriptors.unreadable if pid]
    if known:
        doing = "list its descriptors" if len(known) == 1 else "list their descriptors"
        gaps.append(Gap.of_processes(known, doing, rights.missing("CAP_SYS_PTRACE")))
    return gaps


def _number(data: bytes | None, key: bytes, field_name: bytes) -> int:
    """Return a number of sockstat: the value after ``field_name`` on the line that starts with ``key``."""
    for line in (data or b"").splitlines():
        if line.startswith(key):
            words = line.split()
            try:
                return int(words[words.index(field_name) + 1])
            except (ValueError, IndexError):
                return 0
    return 0


def _look(
    ns: netns.NetNamespace, plan: LookPlan, arena: Arena, gaps: list[Gap], links: Links, *, first: bool
) -> Namespace:
    v4, v6 = procfs.read(_NET + "sockstat"), procfs.read(_NET + "sockstat6")
    in_use = _number(v4, b"TCP:", b"inuse") + _number(v6, b"TCP6:", b"inuse")
    minisockets = _number(v4, b"TCP:", b"tw")
    dumps: list[Dump] = []
    netstat: bytes | None = None
    skipped = 0
    states = plan.states
    wants_established = states & (1 << tcp.ESTABLISHED)
    if wants_established and plan.established_limit is not None and in_use > plan.established_limit:
        states &= ~(1 << tcp.ESTABLISHED)
        skipped = in_use
    # An MPTCP socket need not have a TCP socket left.
    alone = plan.mptcp and not in_use and _counted_mptcp(procfs.read(_NET + "protocols"))
    if v4 is None or in_use or minisockets or alone:
        try:
            netstat = procfs.read(_NET + "netstat")
            with netlink_socket(NETLINK_SOCK_DIAG, "open a sock_diag socket") as sock:
                dumps += _sockets(sock, plan, states, arena, gaps, ns.inode, netstat)
        except NotSupported as error:
            if (
                error.errno in _NO_SOCK_DIAG
            ):  # nowhere on this machine: no gap, there is nothing that was seen
                raise no_sock_diag(error) from None
            gaps.append(Gap.of_namespace(ns.inode, error.doing, str(error)))
        except KernelError as error:
            gaps.append(
                Gap.of_namespace(
                    ns.inode, error.doing, rights.missing(getattr(error, "capability", "")) or str(error)
                )
            )
    files: dict[str, bytes] = {}
    if v4 is not None:
        files["net/sockstat"] = v4
    if v6 is not None:
        files["net/sockstat6"] = v6
    if skipped and (snmp := procfs.read(_NET + "snmp")) is not None:
        files["net/snmp"] = snmp  # its CurrEstab counts what was left out, at the moment of the dump
    entries = procfs.read(_SYS + "netfilter/nf_conntrack_count")
    if entries is not None:
        files["sys/netfilter/nf_conntrack_count"] = entries
        if plan.conntrack and entries.strip() not in (b"0", b""):
            ask = conntrack.dump_request()
            dumps += _side_dump("conntrack", NETLINK_NETFILTER, ask, arena, gaps, ns.inode)
    busy = bool(dumps)
    # Also where there is no socket: an address of such a namespace is one of this machine, without the other end there.
    dumps += _side_dump("addresses", NETLINK_ROUTE, rtnetlink.addresses_request(), arena, gaps, ns.inode)
    links.read(ns)
    if plan.files and busy:
        if netstat is not None:
            files["net/netstat"] = netstat
        _read_files(files, first)
    return Namespace(ns.inode, ns.names, ns.pids, ns.process_count, tuple(dumps), files, skipped)


def _read_files(files: dict[str, bytes], first: bool) -> None:
    """Read the files of the namespace that we are in; conntrack's settings only where conntrack works."""
    statistics = procfs.read(_NET + "stat/nf_conntrack")
    if statistics is not None:
        files["net/stat/nf_conntrack"] = statistics
    tracked = _conntrack_works(files.get("sys/netfilter/nf_conntrack_count"), statistics)
    by_directory: dict[str, list[str]] = {}
    for name in (*NAMESPACE_FILES, *(GLOBAL_FILES if first else ())):
        if name not in files and (tracked or not name.startswith(_CONNTRACK)):
            directory, _, base = name.rpartition("/")
            by_directory.setdefault(directory, []).append(base)
    for directory, names in by_directory.items():
        path = _SYS + directory[4:] if directory.startswith("sys/") else _NET + directory[4:]
        files |= {f"{directory}/{name}": data for name, data in procfs.read_all(path, names).items()}


def _conntrack_works(count: bytes | None, statistics: bytes | None) -> bool:
    """Whether conntrack has entries in a namespace or has ever counted anything there; unknown counts as yes."""
    if count is None and statistics is None:
        return False  # there is no conntrack at all
    if count is None or statistics is None or count.strip() != b"0":
        return True
    return any(line.translate(None, b"0 \t") for line in statistics.splitlines()[1:])


def _sockets(
    sock: socket.socket,
    plan: LookPlan,
    states: int,
    arena: Arena,
    gaps: list[Gap],
    inode: int,
    netstat: bytes | None,
) -> list[Dump]:
    result = []
    request = inet_diag.dump_both_families(states, plan.extensions, bytecode=plan.bytecode)
    try:
        answer = dump(sock, request, arena, "dump the TCP sockets")
        result.append(_dump("tcp", answer, gaps, inode))
    except NotSupported:  # a kernel that has lost the older request: one walk for each family
        for family in (inet_diag.AF_INET, inet_diag.AF_INET6):
            request = inet_diag.dump_request(
                family, inet_diag.IPPROTO_TCP, states, plan.extensions, bytecode=plan.bytecode
            )
            answer = dump(sock, request, arena, "dump the TCP sockets")
            result.append(_dump("tcp", answer, gaps, inode))
    if plan.mptcp and _uses_mptcp(procfs.read(_NET + "protocols"), netstat):
        for family in (inet_diag.AF_INET, inet_diag.AF_INET6):
            request = inet_diag.dump_request(
                family, inet_diag.IPPROTO_MPTCP, states, plan.extensions, bytecode=plan.bytecode
            )
            try:
                answer = dump(sock, request, arena, "dump the MPTCP sockets")
            except NotSupported:  # a kernel without MPTCP: then there is nothing to see
                break
            result.append(_dump("mptcp", answer, gaps, inode))
    return result


def _uses_mptcp(protocols: bytes | None, netstat: bytes | None) -> bool:
    """Whether this namespace may hold MPTCP sockets; unknown counts as yes.

    Judged by the number of sockets, and by the protocol's counters: 6.1, for one, does not count the sockets.
    """
    if protocols is None or netstat is None:
        return True
    if _counted_mptcp(protocols):
        return True
    lines = [line for line in netstat.splitlines() if line.startswith(b"MPTcpExt:")]
    values = [line[9:].strip() for line in lines]  # one line has the names, the next the numbers
    if any(numbers[:1].isdigit() and numbers.translate(None, b"0 ") for numbers in values):
        return True
    # Older kernels do not count either what connects from here.
    return bool(lines) and b"MPCapableSYNTX" not in netstat


def _counted_mptcp(protocols: bytes | None) -> bool:
    """Whether net/protocols counts MPTCP sockets in this namespace."""
    words = [line.split() for line in (protocols or b"").splitlines()]
    return any(w[:1] in ([b"MPTCP"], [b"MPTCPv6"]) and w[2] not in (b"0", b"-1") for w in words if len(w) > 2)


_NO_SOCK_DIAG: Final = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)


def _dump(kind: str, answer: Answer, gaps: list[Gap], inode: int) -> Dump:
    if answer.interrupted:
        gaps.append(
            Gap.of_namespace(
                inode, f"dump its {kind} rows undisturbed; they changed during every attempt", ""
            )
        )
    return Dump(kind, answer.starts, answer.ends, answer.interrupted)


def _side_dump(kind: str, family: int, ask: bytes, arena: Arena, gaps: list[Gap], inode: int) -> list[Dump]:
    doing = {"conntrack": "dump the conntrack entries", "addresses": "list its addresses"}[kind]
    try:
        with netlink_socket(family, doing) as sock:
            return [_dump(kind, dump(sock, ask, arena, doing), gaps, inode)]
    except KernelError as error:
        gaps.append(
            Gap.of_namespace(inode, doing, rights.missing(getattr(error, "capability", "")) or str(error))
        )
        return []
