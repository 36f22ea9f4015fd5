"""What the rules look at: sockets with everything that was joined to them.

A view is built once a diagnosis; every array has one cell a socket. Where something was not looked at, the
view says so (`HolderRows.complete`, `moved_known`, `swept`), and a rule that would need it does not conclude.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from finwait.attribution.container import Workload, workloads_of_rows
from finwait.attribution.join import matches
from finwait.attribution.mptcp import MPTCP, subflows
from finwait.attribution.named import Origins, RowNames, names_of_rows
from finwait.attribution.owners import HolderRows
from finwait.attribution.process import ProcessView
from finwait.attribution.services import services
from finwait.attribution.waiting import EOF_RECEIVED, READABLE, Waits
from finwait.diagnosis import activity, roles, untold
from finwait.diagnosis.accepting import Accepting, accepting
from finwait.diagnosis.ages import FOLLOWED
from finwait.diagnosis.moves import keeper_text, moves
from finwait.diagnosis.relay_legs import RelayLegs, relay_legs
from finwait.diagnosis.silence import lived_of, silence_of
from finwait.diagnosis.view_parts import HiddenDescriptor, NamespaceView, Options
from finwait.errors import Gap
from finwait.table.schema import Mask
from finwait.table.sockets import MAPPED, SocketTable, endpoint_text
from finwait.uapi import tcp
from finwait.uapi.cluster import NO_NAMES, ClusterNames
from finwait.uapi.observation import ProcessWaits, Releasing, SocketOptions

__all__ = ["HiddenDescriptor", "NamespaceView", "Options", "ProcessView", "View"]

I64 = NDArray[np.int64]

_KEEPALIVE = 2
"""``idiag_timer``: keepalive."""
PROBING_WINDOW = 4
"""``idiag_timer``: window probes."""
_FELL_BACK = 1
"""MPTCP_INFO_FLAG_FALLBACK, include/uapi/linux/mptcp.h."""
_TO_LOOK_MS = 2000
"""So long before a keepalive probe somebody still comes in time to look."""
_LINGERING = (tcp.FIN_WAIT1, tcp.CLOSING, tcp.LAST_ACK)
"""States in which close() waits with SO_LINGER (sk_stream_closing(), net/core/stream.c)."""
_JUST_USED_MS = 1000
"""What was used so short ago may have been opened after descriptors were listed."""


class View(Struct, frozen=True, dict=True):
    """Sockets and what is known about each."""

    sockets: SocketTable
    other: I64
    """Row of the other end on this machine, −1 for none found."""
    other_how: NDArray[np.uint8]
    """0 none, 1 the reversed tuple, 2 through NAT by a conntrack entry, 3 by the client's address alone."""
    other_ambiguous: Mask
    other_possible: I64
    """Row of a connection with the reversed tuple, in a namespace that is not known to be connected; −1 for none."""
    holders: HolderRows
    at_least_ms: NDArray[np.int64]
    """It has been in its state for at least so long; −1 unknown."""
    at_most_ms: NDArray[np.int64]
    """… and at most so long; −1 unknown."""
    age_source: NDArray[np.uint8]
    """0 none, 1 last_ack_recv, 2 expires, 3 seen by us, by cookie, 4 retransmissions of the FIN,
    5 an agent that has followed it, 6 the clock of the other end."""
    clock_ms: NDArray[np.int64]
    """`at_least_ms` by what the socket itself tells, without a second look; −1 for nothing."""
    moved: Mask
    """bytes_received grew between two looks."""
    sent: Mask
    """bytes_acked grew between two looks: the kernel sent, perhaps what its program gave it long before."""
    wrote: Mask
    """The program gave the kernel bytes to send between two looks."""
    read: Mask
    """The program took bytes out of the receive queue between two looks."""
    moved_known: Mask
    """Whether there were two looks at this socket, and counters in both."""
    queue_before: NDArray[np.int64]
    """`rqueue` at the first of two looks; −1 where the row was not there."""
    held_before: Mask
    """Which rows had a struct socket at the first of two looks: what has none may be accepted in between."""
    has_flow: Mask
    """A conntrack entry for its tuple exists in some namespace."""
    flow_state: NDArray[np.uint8]
    flow_natted: Mask
    flow_timeout_s: NDArray[np.int64]
    peer_here: Mask
    """The other end's address belongs to a namespace that was swept entirely."""
    peer_reached: Mask
    """That namespace is the row's own, or other connections of its namespace to that address end there."""
    peer: NDArray[np.uint64]
    """Address of each row's other end after translation, two words a row."""
    asked: NDArray[np.uint64]
    """Where the client of each row asked, as `finwait.attribution.named.asked_at` returns it."""
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
    hidden_twice: bool = False
    """Whether those are without a row at both of two looks."""
    established_skipped: int = 0
    options: Options = field(default_factory=Options)
    watched_ms: int = 0
    """Time between the two looks."""
    took_ms: int = 0
    """How long the (last) look took."""
    lone_before: Mask | None = None
    """Which rows were there at the first of two looks, and had no other end then either; None where there was one."""
    ran: Mapping[int, bool] = field(default_factory=dict)
    """Pid → whether one of its threads was given a processor between two looks, of those that had unread bytes."""
    waits_read: Mapping[int, ProcessWaits] = field(default_factory=dict)
    """Pid → who waits in it, of processes that were asked; see `waits`."""
    socket_options: Mapping[int, SocketOptions] = field(default_factory=dict)
    """Inode → the options of sockets that were asked."""
    releasing: tuple[Releasing, ...] = ()
    """Threads that are closing a socket, where rows have no holder."""
    whole: bool = True
    """Whether every namespace was inspected: an address that none of them has is then that of another machine."""
    names: ClusterNames = NO_NAMES
    """What a cluster calls pods and addresses."""
    unnamed: tuple[Gap, ...] = ()
    """Why some of that is not known."""
    all_entered: bool = True
    """Whether every namespace that there is, or was asked for, could be found and entered."""

    def __len__(self) -> int:
        return len(self.sockets)

    @property
    def every_connection(self) -> bool:
        """Whether all connections of a process that was inspected are here: every namespace, in every state."""
        return self.whole and self.all_entered and all(space.dumped for space in self.namespaces.values())

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
    def waits(self) -> Waits:
        """Who waits for each row, of those that were asked for."""
        s = self.sockets
        readable = np.where(np.isin(s.state, EOF_RECEIVED), READABLE.index("fin"), s.rqueue > 0)
        return Waits(self.waits_read, s.inode, self.holders, self.socket_options, readable.astype(np.int8))

    @cached_property
    def worked_out(self) -> dict[int, tuple[I64, Any]]:
        """What was worked out of findings, by the identity of their rows (`finwait.diagnosis.outlook`)."""
        return {}

    @cached_property
    def moves(self) -> NDArray[np.int8]:
        """Whose move it is in the program that holds each row, as its place in `finwait.diagnosis.moves.Move`."""
        return moves(self)

    def clock_shows(self, rows: I64, age_ms: int) -> I64:
        """Return after how many ms the sockets themselves tell that they are so old; −1: never, however long one waits.

        Nothing tells how long a FIN waits behind data. An answered keepalive probe sets last_ack_recv anew, by which
        the age of a half-close is known; so does whatever arrives, also where nobody reads it. Retransmissions tell
        what is over of their waits, each twice the one before.

        Args:
            rows: which.
            age_ms: how old.
        """
        s, clock = self.sockets, self.clock_ms[rows]
        wait = np.maximum(age_ms - clock, 0)
        repeated = (s.timer[rows] == 1) & np.isin(s.state[rows], (tcp.FIN_WAIT1, tcp.LAST_ACK))
        first_ms = (s.rto_us[rows].astype(np.int64) // 1000) >> np.minimum(
            s.backoff[rows].astype(np.int64), 32
        )
        wait[repeated & (wait > 0)] += age_ms + first_ms[repeated & (wait > 0)]
        probed = (s.timer[rows] == _KEEPALIVE) & np.isin(s.state[rows], (tcp.FIN_WAIT2, tcp.CLOSE_WAIT))
        probed &= s.expires_ms[rows].astype(np.int64) < wait + _TO_LOOK_MS
        return np.where((clock < 0) | ((probed | self.ignored[rows]) & (wait > 0)), -1, wait)

    @cached_property
    def relay_legs(self) -> RelayLegs:
        """Which rows are legs of relays, and which of them belong together."""
        return relay_legs(self)

    @cached_property
    def subflows(self) -> tuple[I64, I64]:
        """Rows of MPTCP connections and of their subflows, as pairs."""
        return subflows(self.sockets)

    @cached_property
    def fell_back(self) -> Mask:
        """Which rows are MPTCP connections that fell back to TCP: they have a TCP row that says all."""
        return np.asarray((self.sockets.protocol == MPTCP) & (self.sockets.mptcp_flags & _FELL_BACK != 0))

    @cached_property
    def connection_of(self) -> Mapping[int, int]:
        """For rows of subflows, the row of their MPTCP connection."""
        whole, part = self.subflows
        return dict(zip(part.tolist(), whole.tolist(), strict=True))

    @cached_property
    def _silences(self) -> dict[tuple[str, ...], I64]:
        return {}

    def silence(self, *clocks: str) -> I64:
        """For how long nothing has happened by some clocks of tcp_info: see `silence_of`. Not to be written to."""
        if clocks not in self._silences:
            self._silences[clocks] = silence_of(self.sockets, clocks, self.subflows)
        return self._silences[clocks]

    @cached_property
    def lived(self) -> I64:
        """For how long each connection has been there: see `lived_of`."""
        return lived_of(self.sockets, self.subflows)

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
    def held_untold(self) -> Mask:
        """Which rows may have a struct socket or not: what was read does not say it (pasted text)."""
        return untold.held_untold(self.sockets)

    @cached_property
    def undecided(self) -> Mask:
        """Which rows lack what tells one pattern from another (pasted text); see `finwait.diagnosis.untold`."""
        return untold.undecided(self.sockets)

    @cached_property
    def holder_found(self) -> Mask:
        """Which rows have a holder that we saw."""
        return self.holders.count > 0

    @cached_property
    def holder_unknown(self) -> Mask:
        """Which rows are held, and by whom is not known: no holder was found, and one may have been overlooked.

        Not everybody could be inspected; or the row may have been opened, or accepted, after one list of descriptors
        and closed before the other, so that it is in neither.
        """
        doubt = self._maybe_new | self._released | (not self.holders.complete)
        return self.held & ~self.holder_found & doubt | self.held_untold

    @cached_property
    def _released(self) -> Mask:
        """Which rows a thread may be closing at this moment: no descriptor is left, and the thread holds it."""
        s = self.sockets
        if not self.releasing:
            return np.zeros(len(self), np.bool_)
        lone = self.held & ~self.holder_found
        return lone & (np.isin(s.state, _LINGERING) | any(thread.exiting for thread in self.releasing))

    def releasers(self, row: int) -> tuple[Releasing, ...]:
        """Return the threads of which one holds a row, in close() or while its process ends; none of any other row.

        Those of other namespaces count only where there is none of the row's own, and then only possibly (`nearby`).
        """
        if not self._released[row]:
            return ()
        lingering = int(self.sockets.state[row]) in _LINGERING
        threads = [thread for thread in self.releasing if thread.pid and (thread.exiting or lingering)]
        return tuple(thread for thread in threads if self.nearby(thread, row)) or tuple(threads)

    def nearby(self, thread: Releasing, row: int) -> bool:
        """Return whether a thread that is closing a socket is known to be in the namespace of a row.

        One that is ending has left its own, and nothing tells which that was.
        """
        return thread.netns == int(self.sockets.netns[row])

    @property
    def threads_unseen(self) -> bool:
        """Whether there were too many threads to look for one that is closing a socket."""
        return any(not thread.pid for thread in self.releasing)

    def doubt_of(self, row: int) -> str:
        """Return why the holder of a row is not known, or known only as a thread that is closing it; for people."""
        return keeper_text(self, row) or self.holder_doubt

    @cached_property
    def holder_missing(self) -> Mask:
        """Which rows are held by nobody *although everybody was looked at*, at a time when they were there."""
        return self.held & ~self.holder_found & ~self.holder_unknown

    @cached_property
    def holder_in_question(self) -> Mask:
        """Which rows have no holder although they are older than the look: only a second one can tell more.

        One whose descriptor is in flight looks like one that was accepted and closed during the look.
        """
        if not self.holders.complete or self.lone_before is not None:
            return np.zeros(len(self), np.bool_)
        return self.holder_unknown & ~self._released & (self.lived >= max(_JUST_USED_MS, self.took_ms))

    @cached_property
    def _maybe_new(self) -> Mask:
        """Which rows may have got their descriptor during the look: no earlier look saw them with one."""
        s = self.sockets
        quiet = self.silence("last_data_sent_ms", "last_data_recv_ms")
        used = (quiet >= 0) & (quiet < _JUST_USED_MS) & (s.state != tcp.LISTEN)  # a listener has no clocks
        # The clocks of a connection that is being opened have not begun.
        opening = (s.state == tcp.SYN_SENT) & (s.retrans == 0)
        # What waited to be accepted has been there for longer than its descriptor.
        return np.asarray(
            ~self.held_before & (used | opening | (self.queue_before >= 0) | self._behind_a_queue)
        )

    @cached_property
    def _behind_a_queue(self) -> Mask:
        """Which rows are on the port of a listener at which connections wait, so that they may have waited there."""
        s = self.sockets
        queues = np.flatnonzero((s.state == tcp.LISTEN) & (s.rqueue > 0))
        out = np.zeros(len(self), np.bool_)
        if len(queues):
            i, _ = matches((s.netns, s.sport), (s.netns[queues], s.sport[queues]))
            out[i] = s.state[i] != tcp.LISTEN
        return out

    @property
    def holder_doubt(self) -> str:
        """Why holders are unknown (`holder_unknown`), for people."""
        if self.holders.pasted:
            return "the pasted text does not name it"
        if not self.holders.searched:
            return "not looked for: `--no-owners`"
        if not self.holders.complete:
            return "not every process could be inspected"
        if self.threads_unseen:
            return "may be held by a thread that was not inspected"
        return "may have been opened while processes were being inspected"

    @property
    def unknown_holder(self) -> str:
        """What stands in the place of a holder that is unknown, for people: where nobody looked, that."""
        if not self.holders.searched and not self.holders.pasted:
            return "not looked for (`--no-owners`)"
        return f"unknown ({self.holder_doubt})"

    @cached_property
    def queued(self) -> Mask:
        """Which rows wait in an accept queue: the handshake is complete, and accept() has not made a file of them."""
        # Of MPTCP both the connection and its subflow wait.
        state = self.sockets.state
        return np.asarray(((state == tcp.ESTABLISHED) | (state == tcp.CLOSE_WAIT)) & ~self.held)

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
        return self.arrived_at(
            np.flatnonzero((s.inode == 0) & ((s.state == tcp.ESTABLISHED) | (s.state == tcp.CLOSE_WAIT)))
        )

    @cached_property
    def handshakes(self) -> tuple[I64, I64]:
        """Rows in SYN_RECV and each listener that may have received their SYN, as pairs, by row; as `listeners`."""
        s = self.sockets
        return self.arrived_at(
            np.flatnonzero((s.inode == 0) & np.isin(s.state, (tcp.SYN_RECV, tcp.NEW_SYN_RECV)))
        )

    @cached_property
    def handshakes_at(self) -> I64:
        """For each listener, how many handshakes that are not complete it may have."""
        return np.bincount(self.handshakes[1], minlength=len(self)).astype(np.int64)

    def arrived_at(self, left: I64) -> tuple[I64, I64]:
        """Return some rows and each listener that may have received them, as pairs, by row."""
        s = self.sockets
        right = np.flatnonzero(s.state == tcp.LISTEN)
        i, j = matches(
            (s.netns[left], s.protocol[left], s.sport[left]),
            (s.netns[right], s.protocol[right], s.sport[right]),
        )
        i, j = left[i], right[j]
        bound, peer = s.src[j], s.src[i]
        exact = (bound == peer).all(axis=1)
        v4 = (peer[:, 0] == 0) & (peer[:, 1] >> np.uint64(32) == np.uint64(0xFFFF))
        any6 = (bound == 0).all(axis=1) & (s.family[j] == 10) & ~(v4 & (s.v6only[j] == 1))
        any4 = (bound[:, 0] == 0) & (bound[:, 1] == np.uint64(MAPPED)) & v4
        device = (s.ifindex[j] == 0) | (s.ifindex[j] == s.ifindex[i])
        precision = np.select([exact, any4, any6], [3, 2, 1], 0) * device
        best = np.zeros(len(self), np.int64)
        np.maximum.at(best, i, precision)
        keep = (precision > 0) & (precision == best[i])
        return i[keep], j[keep]

    @cached_property
    def accepting(self) -> Accepting:
        """Whether the programs behind listeners accept, as far as that is known."""
        return accepting(self)

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
    def given_ports(self) -> tuple[Mask, Mask]:
        """On which rows the local port is one that the kernel gives to clients, and on which the remote one is."""
        return roles.given_ports(self)

    @cached_property
    def clients(self) -> Mask:
        """Which rows their program opened itself, as far as that is known."""
        return roles.clients(self)

    @cached_property
    def servers(self) -> Mask:
        """Which rows their program accepted, as far as that is known, also if its listener is gone."""
        return roles.servers(self)

    @cached_property
    def listening(self) -> roles.Listening:
        """Who listens, by door and by port."""
        return roles.listening(self)

    @cached_property
    def strays(self) -> Mask:
        """Which open connections only a process of another program than the listening one holds."""
        return roles.strays(self)

    @cached_property
    def strangers(self) -> Mask:
        """Which connections in CLOSE_WAIT a program holds that is not the one that listens where they were accepted."""
        return roles.strangers(self)

    @cached_property
    def asked_about(self) -> Mask:
        """Of which rows it matters who waits for them, beside those that somebody asks about."""
        return self.sockets.unfinished | self.strays

    @cached_property
    def busy_pids(self) -> frozenset[int]:
        """Processes that read, wrote or accepted something between two looks, or may be blocked in sending."""
        return activity.active(self)

    @cached_property
    def perhaps_paused(self) -> Mask:
        """Which rows a process may leave as they are while it waits for room on another connection: a relay does.

        Only for as long as is idle: a relay that forgets connections has slow clients, too. Where no clock of the state
        grows, as where keepalive probes are answered, no data may have been missing for longer than that.
        """
        idle = self.options.idle_ms
        quiet = self.silence("last_data_sent_ms", "last_data_recv_ms")
        clockless = (self.clock_ms < 0) | (self.sockets.timer == _KEEPALIVE)
        clockless &= self.age_source < FOLLOWED  # otherwise it goes on elsewhere
        young = (self.at_least_ms < idle) & (~clockless | ((quiet >= 0) & (quiet < idle)))
        return activity.waiting_elsewhere(self, young & self.holder_found & ~self.halted)

    @cached_property
    def shut_out(self) -> Mask:
        """Which rows have bytes to send and a peer without room; where the window is not told, the kernel probes it."""
        s = self.sockets
        return (s.timer == PROBING_WINDOW) & ((s.snd_wnd == 0) | ~s.present("snd_wnd")) & (s.wqueue > 0)

    @cached_property
    def kept_from_sending(self) -> Mask:
        """Of those, which have a program that may be waiting for that very room: it can do nothing else meanwhile."""
        return activity.sending(self, self.shut_out & self.holder_found) & ~self.halted

    @cached_property
    def other_reads(self) -> Mask:
        """Which rows have their other end here, and its program took something out of its queue between two looks."""
        return (self.other >= 0) & self.read[np.maximum(self.other, 0)] if len(self) else self.read

    @cached_property
    def draining(self) -> Mask:
        """Which rows the peer still takes bytes of: it acknowledged some between two looks, or made room for more."""
        return self.sent | (self.shut_out & self.other_reads)

    @cached_property
    def abandoned(self) -> Mask:
        """Which rows are in CLOSE_WAIT and have a program that does nothing more about them, though their kernel may.

        Between two looks it wrote and read nothing, and it is stopped, or nobody in it waits for them.
        """
        idle = self.halted | (self.moved_known & self.waits.rows("nobody"))
        return self.in_state(tcp.CLOSE_WAIT) & self.held & idle & ~self.wrote & ~self.read

    @cached_property
    def ignored(self) -> Mask:
        """Which rows are in FIN_WAIT2, and receive what their program leaves unread: the mirror of `abandoned`."""
        return activity.ignored(self)

    @cached_property
    def stopped_pids(self) -> frozenset[int]:
        """Processes that cannot go on until something lets them: stopped by a signal or a debugger, or frozen."""
        return activity.stopped(self)

    @cached_property
    def halted(self) -> Mask:
        """Which rows are held by stopped processes only."""
        return activity.held_by_all(self, self.holder_found, self.stopped_pids)

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
        by_pid = {pid: process.cgroup for pid, process in self.processes.items()}
        return workloads_of_rows(self.sockets.cgroup_id, self.cgroup_paths, self.holders.first_pid(), by_pid)

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

    @cached_property
    def placed(self) -> Mask:
        """Of which rows it is known where they belong (a container, a pod, a unit): nowhere, if nothing is said."""
        s = self.sockets
        by_cgroup = np.isin(s.cgroup_id, np.array([*self.cgroup_paths], s.cgroup_id.dtype)) & (
            s.cgroup_id != 0
        )
        by_holder = np.array([p for p, process in self.processes.items() if process.cgroup], np.int64)
        return np.asarray(by_cgroup | np.isin(self.holders.first_pid(), by_holder))

    @cached_property
    def row_names(self) -> RowNames:
        """What a cluster calls both ends of each row, and the Service between them."""
        return names_of_rows(
            self.sockets,
            self.names,
            workload=self.workload,
            workloads=self.workload_names,
            other=self.other,
            peer=self.peer,
            asked=self.asked,
            origins=lambda: Origins(roles.arrived(self), self.clients, self.placed),
        )

    def cell(self, name: str, row: int) -> Any:  # noqa: ANN401 - a number or bytes, by column
        """Return one cell, or None when it is missing."""
        if not self.sockets.present(name)[row]:
            return None
        return self.sockets.column(name)[row].item()
