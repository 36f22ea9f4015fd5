"""What the rules look at: sockets with everything that was joined to them.

A view is built once a diagnosis; every array has one cell a socket. Where something was not looked at, the
view says so (`Holders.complete`, `moved_known`, `swept`), and a rule that would need it does not conclude.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.container import Workload, workload_of_path
from finwait.attribution.join import matches
from finwait.attribution.mptcp import MPTCP, subflows
from finwait.attribution.owners import Holders
from finwait.attribution.process import ProcessView
from finwait.attribution.services import services
from finwait.table.schema import Mask
from finwait.table.sockets import MAPPED, SocketTable, endpoint_text
from finwait.uapi import tcp

__all__ = ["HiddenDescriptor", "NamespaceView", "Options", "ProcessView", "View"]

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Options:
    """What counts as long, and as many."""

    idle_ms: int = 600_000
    """An ESTABLISHED connection silent for so long is worth a probe."""
    flood: int = 10_000
    """So many TIME_WAIT in a namespace are worth a word."""
    hidden: int = 5
    """So many descriptors of dead sockets in the processes of one service are a leak."""
    retransmits: int = 2
    """So many unanswered retransmissions mean that nobody answers."""


@dataclass(frozen=True, slots=True)
class NamespaceView:
    """One namespace: names, settings and counters."""

    inode: int
    names: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """``ipv4/tcp_fin_timeout`` → ``60``."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """Of netstat, snmp, sockstat and conntrack: ``TcpExt.TCPTimeWaitOverflow``, ``conntrack.invalid``."""
    before: Mapping[str, int] = field(default_factory=dict)
    """The same counters at the first of two looks; empty where there was one."""
    addresses: frozenset[tuple[int, int]] = frozenset()
    dumped: bool = True
    """Whether its sockets could be dumped in all states."""
    island: int | None = None
    """The same of namespaces that interfaces connect, also over others; None where that was not looked at."""

    def sysctl(self, name: str) -> int | None:
        """Return a numeric sysctl, or None when it could not be read."""
        text = self.sysctls.get(name)
        try:
            return int(text.split()[0]) if text is not None else None
        except (ValueError, IndexError):
            return None

    def grown(self, name: str) -> int | None:
        """Return by how much a counter grew between two looks; None where that is not known."""
        if name not in self.counters or name not in self.before:
            return None
        return self.counters[name] - self.before[name]

    @property
    def label(self) -> str:
        """The name that people know it by, or its inode."""
        return self.names[0] if self.names else f"netns {self.inode}"


@dataclass(frozen=True, slots=True)
class HiddenDescriptor:
    """A descriptor of a TCP socket that no dump contains, for it is in TCP_CLOSE and has been in use."""

    pid: int
    fd: int
    inode: int
    netns: int = 0
    """The socket's; 0 where it is not known."""


@dataclass(frozen=True)
class View:
    """Sockets and what is known about each."""

    sockets: SocketTable
    other: I64
    """Row of the other end on this machine, −1 for none found."""
    other_how: NDArray[np.uint8]
    """0 none, 1 the reversed tuple, 2 through NAT by a conntrack entry, 3 by the client's address alone."""
    other_ambiguous: Mask
    other_possible: I64
    """Row of a connection with the reversed tuple, in a namespace that is not known to be connected; −1 for none."""
    holders: Holders
    at_least_ms: NDArray[np.int64]
    """It has been in its state for at least so long; −1 unknown."""
    at_most_ms: NDArray[np.int64]
    """… and at most so long; −1 unknown."""
    age_source: NDArray[np.uint8]
    """0 none, 1 last_ack_recv, 2 expires, 3 seen by us, by cookie, 4 retransmissions of the FIN."""
    moved: Mask
    """bytes_received grew between two looks."""
    sent: Mask
    """bytes_acked grew between two looks."""
    read: Mask
    """The program took bytes out of the receive queue between two looks."""
    moved_known: Mask
    """Whether there were two looks at this socket, and counters in both."""
    queue_before: NDArray[np.int64]
    """`rqueue` at the first of two looks; −1 where the row was not there."""
    has_flow: Mask
    """A conntrack entry for its tuple exists in some namespace."""
    flow_state: NDArray[np.uint8]
    flow_natted: Mask
    flow_timeout_s: NDArray[np.int64]
    peer_here: Mask
    """The other end's address belongs to a namespace that was swept entirely."""
    peer_reached: Mask
    """That namespace is the row's own, or other connections of its namespace to that address end there."""
    namespaces: Mapping[int, NamespaceView]
    processes: Mapping[int, ProcessView]
    cgroup_paths: Mapping[int, str] = field(default_factory=dict)
    close_on_exec: Mapping[tuple[int, int], bool] = field(default_factory=dict)
    """(pid, fd) → FD_CLOEXEC, of descriptors that a finding is about and that could be read; see `Rule.flags`."""
    one_table: Mapping[tuple[int, int], bool] = field(default_factory=dict)
    """(lowest pid, other pid) of the holders of a row → whether they share one descriptor table, where known."""
    hidden: tuple[HiddenDescriptor, ...] = ()
    hidden_known: bool = False
    """Whether descriptors without a row were looked at (needs a sweep of all states)."""
    established_skipped: int = 0
    options: Options = field(default_factory=Options)
    watched_ms: int = 0
    """Time between the two looks."""
    took_ms: int = 0
    """How long the (last) look took."""
    lone_before: Mask | None = None
    """Which rows were there at the first of two looks, and had no other end then either; None where there was one."""
    whole: bool = True
    """Whether every namespace was inspected: an address that none of them has is then that of another machine."""

    def __len__(self) -> int:
        return len(self.sockets)

    def ends(self, row: int) -> tuple[str, str]:
        """Return the local and the remote address of a row, each with its port."""
        s = self.sockets
        (src_high, src_low), (dst_high, dst_low) = s.src[row].tolist(), s.dst[row].tolist()
        return (
            endpoint_text(src_high, src_low, int(s.sport[row])),
            endpoint_text(dst_high, dst_low, int(s.dport[row])),
        )

    def connected(self, netns: int, other: int) -> bool:
        """Return whether interfaces connect two namespaces, also over others; where nobody looked, any two."""
        if netns == other or all(ns.island is None for ns in self.namespaces.values()):
            return True
        a, b = self.namespaces.get(netns), self.namespaces.get(other)
        return a is not None and b is not None and a.island is not None and a.island == b.island

    def in_state(self, *states: int) -> Mask:
        """Return which rows are in one of the states (MPTCP rows left out; see `connections_in`)."""
        mask = np.zeros(len(self), np.bool_)
        for state in states:
            mask |= self.sockets.state == state
        return mask & (self.sockets.protocol == 6)

    @cached_property
    def subflows(self) -> tuple[I64, I64]:
        """Rows of MPTCP connections and of their subflows, as pairs."""
        return subflows(self.sockets)

    @cached_property
    def own(self) -> Mask:
        """Which rows are connections of their own: all but subflows of an MPTCP connection that has a row itself."""
        own = np.ones(len(self), np.bool_)
        own[self.subflows[1]] = False
        return own

    def connections_in(self, *states: int) -> Mask:
        """Return which connections, of TCP or MPTCP, are in one of the states: each counts once."""
        return np.isin(self.sockets.state, states) & self.own

    def on_every_subflow(self, mask: Mask) -> Mask:
        """Return a mask in which an MPTCP connection is what all of its subflows are; without any it is not."""
        out = mask & (self.sockets.protocol != MPTCP)
        whole, part = self.subflows
        out[whole] = True
        out[whole[~mask[part]]] = False
        return out

    @cached_property
    def held(self) -> Mask:
        """Which rows have a struct socket."""
        return self.sockets.inode != 0

    @cached_property
    def holder_found(self) -> Mask:
        """Which rows have a holder that we saw."""
        return self.holders.count > 0

    @cached_property
    def holder_missing(self) -> Mask:
        """Which rows are held by nobody *although everybody was looked at*."""
        return self.held & ~self.holder_found & self.holders.complete

    @cached_property
    def queued(self) -> Mask:
        """Which rows wait in an accept queue: the handshake is complete, and accept() has not made a file of them."""
        # Of MPTCP both the connection and its subflow wait.
        state = self.sockets.state
        queued: Mask = ((state == tcp.ESTABLISHED) | (state == tcp.CLOSE_WAIT)) & ~self.held
        return queued

    @cached_property
    def services(self) -> Mapping[int, int]:
        """The lowest pid of the service that each known process belongs to: workers of one server have one."""
        return services(self.processes)

    @cached_property
    def listener(self) -> I64:
        """For rows in an accept queue, the first of their `listeners`; −1 for none."""
        out = np.full(len(self), -1, np.int64)
        row, listener = self.listeners
        out[row[::-1]] = listener[::-1]
        return out

    @cached_property
    def waiting(self) -> I64:
        """For rows in an accept queue, how many connections wait in the queues of their `listeners` together."""
        out = np.zeros(len(self), np.int64)
        row, listener = self.listeners
        np.add.at(out, row, self.sockets.rqueue[listener].astype(np.int64))
        return out

    @cached_property
    def listeners(self) -> tuple[I64, I64]:
        """Rows in an accept queue and each listener that may have taken them in, as pairs, by row.

        Of the listeners on their port those that are bound most exactly. There are several with SO_REUSEPORT: the
        kernel chooses by a hash, and no row says which.
        """
        s = self.sockets
        left = np.flatnonzero((s.inode == 0) & ((s.state == tcp.ESTABLISHED) | (s.state == tcp.CLOSE_WAIT)))
        right = np.flatnonzero(s.state == tcp.LISTEN)
        i, j = matches(
            (s.netns[left], s.protocol[left], s.sport[left]),
            (s.netns[right], s.protocol[right], s.sport[right]),
        )
        i, j = left[i], right[j]
        bound, peer = s.src[j], s.src[i]
        exact = (bound == peer).all(axis=1)
        any6 = (bound == 0).all(axis=1) & (s.family[j] == 10)
        v4 = (peer[:, 0] == 0) & (peer[:, 1] >> np.uint64(32) == np.uint64(0xFFFF))
        any4 = (bound[:, 0] == 0) & (bound[:, 1] == np.uint64(MAPPED)) & v4
        device = (s.ifindex[j] == 0) | (s.ifindex[j] == s.ifindex[i])
        how = np.select([exact, any4, any6], [3, 2, 1], 0) * device
        best = np.zeros(len(self), np.int64)
        np.maximum.at(best, i, how)
        keep = (how > 0) & (how == best[i])
        return i[keep], j[keep]

    @cached_property
    def accepted(self) -> Mask:
        """Which rows have the local port of a listener of their namespace: their program did not open them itself."""
        s = self.sockets
        listening = np.flatnonzero(s.state == tcp.LISTEN)
        i, _ = matches((s.netns, s.sport), (s.netns[listening], s.sport[listening]))
        out = np.zeros(len(self), np.bool_)
        out[i] = True
        return out

    @cached_property
    def busy_pids(self) -> frozenset[int]:
        """Processes that read, sent or accepted something between two looks, or cannot send what they have."""
        s = self.sockets
        took = (s.state == tcp.LISTEN) & (self.queue_before > s.rqueue)
        blocked = (s.timer == 4) | ((s.timer == 1) & (s.retrans > 0))
        return frozenset(self.pid_rows(self.read | self.sent | took | blocked))

    def pid_rows(self, mask: Mask) -> dict[int, I64]:
        """Return the rows of a mask by holding process (a row held by two is under both)."""
        rows = np.flatnonzero(mask & self.holder_found)
        if not len(rows):
            return {}
        count = self.holders.count[rows]
        owner_row = np.repeat(rows, count)
        within = np.arange(len(owner_row)) - np.repeat(np.cumsum(count) - count, count)
        pid = self.holders.pid[np.repeat(self.holders.start[rows], count) + within]
        result: dict[int, I64] = {}
        order = np.argsort(pid, kind="stable")
        pid, owner_row = pid[order], owner_row[order]
        values, begins = np.unique(pid, return_index=True)
        for value, part in zip(values.tolist(), np.split(owner_row, begins[1:]), strict=True):
            result[value] = part[np.concatenate([[True], part[1:] != part[:-1]])]
        return result

    @cached_property
    def _workload(self) -> tuple[NDArray[np.int32], list[Workload]]:
        by_path: dict[str, int] = {}
        names: list[Workload] = []

        def of(path: str | None) -> int:
            if not path or path == "/":
                return -1
            if path not in by_path:
                found = workload_of_path(path)
                by_path[path] = len(names) if found != Workload() else -1
                if found != Workload():
                    names.append(found)
            return by_path[path]

        ids, which = np.unique(self.sockets.cgroup_id, return_inverse=True)
        by_id = np.array([of(self.cgroup_paths.get(n)) if n else -1 for n in ids.tolist()], np.int32)
        result = by_id[which.reshape(-1)] if len(ids) else np.empty(0, np.int32)
        rest = np.flatnonzero(result < 0)
        pids, which = np.unique(self.holders.first_pid()[rest], return_inverse=True)
        processes = self.processes
        by_pid = np.array(
            [of(processes[p].cgroup) if p in processes else -1 for p in pids.tolist()], np.int32
        )
        if len(pids):
            result[rest] = by_pid[which.reshape(-1)]
        return result, names

    @property
    def workload(self) -> NDArray[np.int32]:
        """Index into `workload_names` of each row, −1 where nothing is known: by cgroup id, else by holder."""
        return self._workload[0]

    @property
    def workload_names(self) -> list[Workload]:
        """The different containers, pods and units behind the rows."""
        return self._workload[1]

    @cached_property
    def workloads(self) -> list[Workload | None]:
        """Container, pod or unit behind each row: by its cgroup id first, else by its holder's cgroup."""
        names: list[Workload | None] = [*self.workload_names, None]
        return [names[k] for k in self.workload.tolist()]

    def cell(self, name: str, row: int) -> Any:  # noqa: ANN401 - a number or bytes, by column
        """Return one cell, or None when it is missing."""
        if not self.sockets.present(name)[row]:
            return None
        return self.sockets.column(name)[row].item()
