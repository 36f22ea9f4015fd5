"""What one or two looks read → the `View` that the rules look at.

All joins happen here, once: holders, other ends, conntrack entries, ages, movement between two looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.attribution.join import matches, unique_match
from finwait.attribution.mptcp import MPTCP
from finwait.attribution.named import asked_at
from finwait.attribution.other_end import HALF, OtherEnds, other_ends
from finwait.attribution.owners import holders
from finwait.attribution.process import ProcessView
from finwait.diagnosis.ages import FOLLOWED, ages, bound_by_other_end
from finwait.diagnosis.view import HiddenDescriptor, NamespaceView, Options, View
from finwait.table.schema import Mask
from finwait.table.sockets import MAPPED, SocketTable
from finwait.uapi.sets import among

if TYPE_CHECKING:
    from finwait.table.flows import FlowTable
    from finwait.uapi.observation import Descriptors

__all__ = ["Movement", "assemble", "followed", "loopback", "movement"]


_JOINED = (
    "family", "state", "timer", "retrans", "sport", "dport", "cookie", "expires_ms", "rqueue", "wqueue", "uid",
    "inode", "shutdown", "cgroup_id", "last_data_sent_ms", "last_data_recv_ms",
    "last_ack_recv_ms", "unacked", "backoff", "rto_us", "bytes_acked", "bytes_received", "snd_wnd",
    "notsent_bytes", "data_segs_out", "bytes_sent", "bytes_retrans",
)  # fmt: skip
"""Columns that the joins or the rules look at: read together."""
_RECEIVED = ("bytes_received", "mptcp_bytes_received", "mptcp_rcv_nxt")
"""Counters of what came, the first that a row has: of TCP, of MPTCP, and of MPTCP on a kernel without those."""
_ACKNOWLEDGED = ("bytes_acked", "mptcp_bytes_acked", "mptcp_snd_una")


def loopback(sockets: SocketTable) -> Mask:
    """Return which rows talk to their own namespace: 127/8, ::1, or an address to itself."""
    src, dst = sockets.src, sockets.dst
    v4 = (dst[:, 0] == 0) & (dst[:, 1] >> np.uint64(24) == np.uint64((MAPPED | 127 << 24) >> 24))
    v6 = (dst[:, 0] == 0) & (dst[:, 1] == 1)
    return v4 | v6 | (src == dst).all(axis=1)


class Movement(Struct, frozen=True):
    """What changed between two looks, row by row."""

    received: Mask
    """Bytes came."""
    acknowledged: Mask
    """Bytes of ours were acknowledged."""
    wrote: Mask
    """The program gave bytes to send."""
    read: Mask
    """The program took bytes out of the receive queue."""
    known: Mask
    """The socket was there before, with counters: what did not move stood still."""
    same_state: Mask
    queue: NDArray[np.int64]
    """What was in the receive queue then; −1 where the socket was not there."""
    held: Mask
    """It was there, and had a struct socket."""


_CLOCK_SLACK_MS = 100
"""Clocks of sockets count in jiffies, and a namespace is dumped a little sooner or later within each look."""


class _TwoLooks(Struct, frozen=True):
    """The rows of a look, and the same sockets in an earlier one."""

    sockets: SocketTable
    earlier: SocketTable
    known: Mask
    """Which rows were there."""
    at: NDArray[np.int64]
    """Where, of those that were."""
    watched_ms: int
    first_look_ms: int

    def grew(self, names: tuple[str, ...]) -> tuple[Mask, Mask]:
        """Return which rows have one of the counters in both looks, and in which the first such has grown."""
        n = len(self.sockets)
        counted, more = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        for name in names:
            both = self.known & ~counted & self.sockets.present(name) & self.earlier.present(name)[self.at]
            more |= both & (self.sockets.column(name) > self.earlier.column(name)[self.at])
            counted |= both
        return counted, more

    def stirred(self, name: str) -> tuple[Mask, Mask]:
        """Return which rows have a clock that tells, and in which it has been set anew in between."""
        both = self.known & self.sockets.present(name) & self.earlier.present(name)[self.at]
        previous = self.earlier.column(name)[self.at].astype(np.int64)
        older = self.sockets.column(name).astype(np.int64) + _CLOCK_SLACK_MS - previous
        anew = (older < self.watched_ms - self.first_look_ms) | (older < _CLOCK_SLACK_MS)
        return both & (anew | (older >= self.watched_ms)), both & anew


def movement(
    sockets: SocketTable, earlier: SocketTable | None, watched_ms: int = 0, first_look_ms: int = 0
) -> Movement:
    """Compare with an earlier look, by cookie.

    Rows that have no counters (kernels before 4.1) are judged by their clocks and queues, for two looks that began
    ``watched_ms`` apart: what is silent has grown older by just that time, less what the first look had taken
    (``first_look_ms``) when it came to the row. Where that makes the difference, nothing is known.
    """
    n = len(sockets)
    if earlier is None or not len(earlier) or not n:
        none = np.zeros(n, np.bool_)
        return Movement(none, none, none, none, none, none, np.full(n, -1, np.int64), none)
    i, j = matches((sockets.cookie, sockets.protocol), (earlier.cookie, earlier.protocol))
    before, _ = unique_match(n, i, j)
    looks = _TwoLooks(sockets, earlier, before >= 0, np.maximum(before, 0), watched_ms, first_look_ms)
    known, at = looks.known, looks.at
    mptcp = bool((sockets.protocol == 262).any())
    counted, moved = looks.grew(_RECEIVED if mptcp else _RECEIVED[:1])
    acked, sent = looks.grew(_ACKNOWLEDGED if mptcp else _ACKNOWLEDGED[:1])
    # Received less what is still unread is what was read; both numbers count a FIN as 1.
    taken = sockets.bytes_received.astype(np.int64) - sockets.rqueue
    read = counted & (taken > (earlier.bytes_received.astype(np.int64) - earlier.rqueue)[at])
    same_state = known & (sockets.state == earlier.state[at])
    # All that was ever written: what was acknowledged, and what was not; a FIN of ours counts 1 in a later state.
    written, written_before = (
        t.bytes_acked.astype(np.int64) + t.wqueue.astype(np.int64) for t in (sockets, earlier)
    )
    counted_out = (
        (sockets.protocol == 6) & sockets.present("bytes_acked") & earlier.present("bytes_acked")[at]
    )
    wrote = known & counted_out & same_state & (written > written_before[at])
    if not (counted & acked)[known].all():
        in_clocked, receiving = looks.stirred("last_data_recv_ms")
        out_clocked, sending = looks.stirred("last_data_sent_ms")
        more, less = sockets.rqueue > earlier.rqueue[at], sockets.rqueue < earlier.rqueue[at]
        moved |= known & ~counted & (more & same_state | receiving)
        read |= known & ~counted & (less | receiving & ~more)
        # What is sent again sets the clock as well.
        fewer = (sockets.wqueue < earlier.wqueue[at]) & same_state
        sent |= known & ~acked & (fewer | sending & (sockets.retrans == 0))
        counted = (counted | in_clocked) & (acked | out_clocked | (sockets.protocol != 6))
    # What leaves the queue of a subflow the kernel has moved to the connection's. That queue is told in memory, which
    # shrinks only if something was read, and grows with what comes.
    read &= (sockets.protocol == 6) & (sockets.ulp != b"mptcp")
    read |= (
        (sockets.protocol == MPTCP)
        & known
        & ((sockets.rqueue < earlier.rqueue[at]) | (moved & (sockets.rqueue == earlier.rqueue[at])))
    )
    queue = np.where(known, earlier.rqueue[at].astype(np.int64), -1)
    wrote |= sent & ~(counted_out & same_state)
    return Movement(moved, sent, wrote, read, counted, same_state, queue, known & (earlier.inode[at] != 0))


def _bound_ages(
    least: NDArray[np.int64],
    most: NDArray[np.int64],
    source: NDArray[np.uint8],
    change: Movement,
    earlier: SocketTable | None,
    watched_ms: int,
    first_look_ms: int,
) -> None:
    """Bound ages by what two looks saw: what has its state still is older than the time between, all else younger."""
    seen_ms = max(0, watched_ms - first_look_ms)
    longer = change.same_state & (least < seen_ms)
    least[longer] = seen_ms
    source[longer] = 3
    new = ~change.same_state & (earlier is not None)
    shorter = new & ((most < 0) | (most > watched_ms)) & (least <= watched_ms)
    most[shorter] = watched_ms


def _tracked(
    flow: NDArray[np.int64], flows: FlowTable | None
) -> tuple[NDArray[np.uint8], Mask, NDArray[np.int64]]:
    """Return the state of each row's conntrack entry, whether it translates, and its time left (of none 0, no, −1)."""
    n = len(flow)
    if flows is None or not len(flows):
        return np.zeros(n, np.uint8), np.zeros(n, np.bool_), np.full(n, -1, np.int64)
    has_flow = flow >= 0
    at = np.maximum(flow, 0)
    return (
        np.where(has_flow, flows.tcp_state[at], 0).astype(np.uint8),
        has_flow & flows.natted()[at],
        np.where(has_flow, flows.timeout_s[at].astype(np.int64), -1),
    )


def assemble(
    sockets: SocketTable,
    *,
    flows: FlowTable | None,
    descriptors: Descriptors,
    namespaces: Mapping[int, NamespaceView],
    processes: Mapping[int, ProcessView],
    cgroup_paths: Mapping[int, str],
    options: Options,
    earlier: SocketTable | None = None,
    watched_ms: int = 0,
    first_look_ms: int = 0,
    took_ms: int = 0,
    not_holders: frozenset[int] = frozenset(),
    to_inspect: str = "CAP_SYS_PTRACE",
    hidden: tuple[HiddenDescriptor, ...] = (),
    hidden_known: bool = False,
    established_skipped: int = 0,
    flows_complete: bool = False,
) -> View:
    """Join everything to the sockets.

    Args:
        sockets: all rows of all namespaces.
        flows: conntrack entries, or None when none were read.
        descriptors: every socket descriptor that could be listed.
        namespaces: names, settings, counters and addresses of each namespace.
        processes: those that hold sockets, as far as they could be read.
        cgroup_paths: cgroup id → path.
        options: what counts as long, and as many.
        earlier: the table of a first look, when there were two.
        watched_ms: the time between their beginnings.
        first_look_ms: how long the first one took.
        took_ms: how long the last one took.
        not_holders: pids that could not be inspected, of which the caller says that they hold nothing.
        to_inspect: what would have let the looker inspect the others.
        hidden: descriptors of TCP sockets that have no row.
        hidden_known: whether those were looked for.
        established_skipped: how many ESTABLISHED rows were left out of the dump.
        flows_complete: whether ``flows`` has every conntrack entry that may concern the sockets.
    """
    sockets.load(_JOINED)
    near = loopback(sockets)
    islands = {number: ns.island for number, ns in namespaces.items()}
    ends = other_ends(
        sockets, flows, near, untranslated=_untranslated(namespaces) if flows_complete else None, islands=islands,
        addresses={number: ns.addresses for number, ns in namespaces.items()},
    )  # fmt: skip
    change = movement(sockets, earlier, watched_ms, first_look_ms)
    least, most, source = ages(sockets)
    clock = least.copy()
    if watched_ms:
        _bound_ages(least, most, source, change, earlier, watched_ms, first_look_ms)
    bound_by_other_end(least, most, source, sockets, ends.row, took_ms)
    peer_here, reached = _peer_here(sockets, ends, near, namespaces)
    state, natted, timeout = _tracked(ends.flow, flows)
    return View(
        sockets=sockets,
        other=ends.row,
        other_how=ends.how,
        other_ambiguous=ends.ambiguous,
        other_possible=ends.possible,
        holders=holders(sockets.inode, descriptors, ignore=not_holders, needs=to_inspect),
        at_least_ms=least,
        at_most_ms=most,
        age_source=source,
        clock_ms=clock,
        moved=change.received,
        sent=change.acknowledged,
        wrote=change.wrote,
        read=change.read,
        moved_known=change.known,
        queue_before=change.queue,
        held_before=change.held,
        has_flow=ends.flow >= 0,
        flow_state=state,
        flow_natted=natted,
        flow_timeout_s=timeout,
        peer_here=peer_here,
        peer_reached=reached,
        namespaces=namespaces,
        processes=processes,
        cgroup_paths=cgroup_paths,
        hidden=hidden,
        hidden_known=hidden_known,
        established_skipped=established_skipped,
        options=options,
        watched_ms=watched_ms,
        took_ms=took_ms,
        peer=ends.peer,
        asked=asked_at(sockets, ends.flow, flows),
        lone_before=_lone_before(sockets, earlier, flows, namespaces, first_look_ms),
    )


def followed(view: View, known: Mapping[tuple[int, int, int], tuple[int, int]]) -> View:
    """Return a view with the ages of connections that somebody has followed since.

    Args:
        view: what was seen now.
        known: ``(netns, cookie, state)`` → how long it has been in that state, at least and at most, in ms; −1
            unknown. A state that it has left, or a cookie that is another's in that namespace, says nothing.
    """
    least, most, source = view.at_least_ms.copy(), view.at_most_ms.copy(), view.age_source.copy()
    s = view.sockets
    cookies = np.array(sorted({cookie for _, cookie, _ in known}), np.uint64)
    for row in np.flatnonzero(among(s.cookie, cookies)).tolist():
        span = known.get((int(s.netns[row]), int(s.cookie[row]), int(s.state[row])))
        if span is None:
            continue
        longest = int(most[row])
        if longest >= 0 and span[0] > longest + _CLOCK_SLACK_MS:  # its own clock knows better
            continue
        if (shortest := span[0] if longest < 0 else min(span[0], longest)) > least[row]:
            least[row], source[row] = shortest, FOLLOWED
        if span[1] >= least[row] and (longest < 0 or span[1] < longest):
            most[row] = span[1]
    return replace(view, at_least_ms=least, at_most_ms=most, age_source=source)


def _lone_before(
    sockets: SocketTable,
    earlier: SocketTable | None,
    flows: FlowTable | None,
    namespaces: Mapping[int, NamespaceView],
    first_look_ms: int,
) -> Mask | None:
    """Return which rows were there at an earlier look without another end; None where there was no such look.

    One that was heard of during that look may have been opened between its dumps.
    """
    if earlier is None:
        return None
    if not len(earlier) or not len(sockets):
        return np.zeros(len(sockets), np.bool_)
    i, j = matches((sockets.cookie, sockets.protocol), (earlier.cookie, earlier.protocol))
    before, _ = unique_match(len(sockets), i, j)
    ends = other_ends(
        earlier, flows, loopback(earlier),
        islands={number: ns.island for number, ns in namespaces.items()},
        addresses={number: ns.addresses for number, ns in namespaces.items()},
    )  # fmt: skip
    quiet = np.full(len(earlier), np.iinfo(np.int64).max, np.int64)
    for clock in ("last_data_recv_ms", "last_ack_recv_ms"):
        clocked = earlier.present(clock)
        quiet[clocked] = np.minimum(quiet[clocked], earlier.column(clock)[clocked])
    lone = (ends.row < 0) & ~ends.ambiguous & (ends.possible < 0) & (quiet >= first_look_ms)
    lone_twice: Mask = (before >= 0) & lone[np.maximum(before, 0)]
    return lone_twice


def _untranslated(namespaces: Mapping[int, NamespaceView]) -> frozenset[tuple[int, int]] | None:
    """Return the addresses of namespaces that never saw a packet without an entry; None where none of them did.

    A FIN that finds no entry is counted as invalid in the namespace that should have translated it.
    """
    lost = {number for number, ns in namespaces.items() if ns.counters.get("conntrack.invalid")}
    if not lost:
        return None
    others = {a for number, ns in namespaces.items() if number not in lost for a in ns.addresses}
    return frozenset(others.difference(*(namespaces[number].addresses for number in lost)))


def _peer_here(
    sockets: SocketTable,
    ends: OtherEnds,
    near: Mask,
    namespaces: Mapping[int, NamespaceView],
) -> tuple[Mask, Mask]:
    """Return rows whose other end has an address of a namespace dumped in all states, and which of those reach it.

    Loopback addresses belong to every namespace, so for them the row's own must have been dumped. An address of
    another namespace may be somebody else's as well, on a network that is not connected with it, or that the row's
    own routes prefer: that a row reaches the one here is known where other connections of its namespace to this very
    address do.
    """
    complete = np.array([n for n, view in namespaces.items() if view.dumped], np.uint32)
    near = near & np.isin(sockets.netns, complete)
    local: dict[tuple[int, int], set[int]] = {}
    for number, view in namespaces.items():
        for address in view.addresses:
            if not (
                address == (0, 1) or (address[0] == 0 and address[1] >> 24 == (MAPPED | 127 << 24) >> 24)
            ):
                local.setdefault(address, set()).add(number)
    # An address that a namespace without a full dump has too could be there.
    swept = {a: at for a, at in local.items() if all(namespaces[n].dumped for n in at)}
    if not swept:
        return near, near
    pairs = [(*address, number) for address in sorted(swept) for number in sorted(swept[address])]
    words = np.array(pairs, np.uint64)
    i, j = matches((ends.peer[:, 0], ends.peer[:, 1]), (words[:, 0], words[:, 1]))
    far = np.zeros(len(sockets), np.bool_)
    far[i] = True
    joined = np.flatnonzero((ends.row >= 0) & (ends.how != HALF))
    netns = sockets.netns.astype(np.uint64)
    reached = np.zeros(len(sockets), np.bool_)
    reached[i[netns[i] == words[j, 2]]] = True
    lost = ends.row[i] < 0
    i, j = i[lost], j[lost]
    if len(i) and len(joined):
        routes, inverse = np.unique(
            np.column_stack([netns[i], ends.peer[i], words[j, 2]]), axis=0, return_inverse=True
        )
        met = np.column_stack([netns[joined], ends.peer[joined], netns[ends.row[joined]]])
        _, k = matches(tuple(met.T), tuple(routes.T))
        reached[i[np.isin(inverse.reshape(-1), k)]] = True
    return near | far, near | reached
