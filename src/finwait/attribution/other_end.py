"""The other end of each connection, when it is on this machine.

Three ways, tried in order. *Direct*: the reversed tuple, in any namespace (loopback addresses only in their
own). *Through NAT*: a conntrack entry says what the tuple becomes; entries are followed from namespace to
namespace, a few hops. *By the client alone*: an entry that is gone joins nothing any more, but a client that
retransmits its FIN and a server end that waits for exactly that client address and port, both without a
partner, were one connection, if what each counts as received is what the other counts as acknowledged.

A tuple that fits several rows is given none of them, and none of them is given it: a guess would be worse than
"unknown". Addresses repeat between namespaces that are not connected (private networks, fe80::1), and where one of two
such connections has lost an end, the other's fits both. So two rows are ends of one connection only if interfaces
connect their namespaces, over any number of others, and if their counters do not refute it. Where several of the
namespaces so connected have the address of one of the two, interfaces do not tell whose it is: pairs that know nothing
of each other may hang on one host. What fits in a namespace of which it is not known is at best possible
(`OtherEnds.possible`), and no conclusion rests on it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.attribution.join import matches, unique_match
from finwait.table.schema import Mask
from finwait.uapi import tcp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finwait.table.flows import FlowTable
    from finwait.table.sockets import SocketTable

__all__ = ["DIRECT", "HALF", "NAT", "NONE", "OtherEnds", "connected", "counts_agree", "other_ends"]

NONE, DIRECT, NAT, HALF = 0, 1, 2, 3
_HOPS = 4

Words = tuple[NDArray[Any], ...]
I64 = NDArray[np.int64]
Address = tuple[int, int]


class OtherEnds(Struct, frozen=True):
    """For each socket its partner and the conntrack entry that carries it."""

    row: I64
    """Row of the other end; −1 for none."""
    how: NDArray[np.uint8]
    ambiguous: Mask
    flow: I64
    """Row of the conntrack entry (of the translating one, where several namespaces track it); −1 for none."""
    peer: NDArray[np.uint64]
    """Address of the other end after translation, two words a row."""
    possible: I64
    """Row that fits in a namespace that is not known to be connected with this one; −1 for none, or for several."""


def _forward(src: NDArray[Any], dst: NDArray[Any], sport: NDArray[Any], dport: NDArray[Any]) -> Words:
    return (
        src[:, 0],
        src[:, 1],
        dst[:, 0],
        dst[:, 1],
        sport.astype(np.uint64) << np.uint64(16) | dport.astype(np.uint64),
    )


def _take(words: Words, index: NDArray[Any]) -> Words:
    return tuple(w[index] for w in words)


def counts_agree(sockets: SocketTable, i: I64, j: I64, *, unknown: bool = False) -> Mask:
    """Say for each pair of rows whether they can be the ends of one connection, by what they have counted.

    What one had acknowledged the other received, but for the SYN, which only the end that opened it counts, as
    acknowledged, and for the FIN, which both may count (``tcp_snd_una_update``, ``tcp_rcv_nxt_update``). Of a
    connection that is moving two dumps disagree.

    Args:
        sockets: the table.
        i: rows.
        j: as many others.
        unknown: what to say of rows without counts (minisocks, MPTCP).
    """
    s = sockets
    acked, received = s.bytes_acked.astype(np.int64), s.bytes_received.astype(np.int64)
    known = s.present("bytes_acked") & s.present("bytes_received")
    forth, back = acked[i] - received[j], acked[j] - received[i]
    agree = (np.abs(forth) <= 2) & (np.abs(back) <= 2)
    return np.where(known[i] & known[j], agree, np.bool_(unknown))


_QUIET_MS: Final = 1000
"""Two dumps of one look may be so far apart: what moved meanwhile is counted differently."""


def _refuted(sockets: SocketTable, i: I64, j: I64) -> Mask:
    """Say for each pair of rows whether they cannot be the ends of one connection, by what they have counted.

    Between what one had acknowledged and all that it has sent (``wqueue`` more) lies what the other received, but for
    the SYN and the FIN; on a connection on which data has passed lately two dumps may disagree. One that is being
    opened has counted nothing yet, also where its other end has an old connection (half-open).
    """
    s = sockets
    names = ("bytes_acked", "bytes_received", "last_data_sent_ms", "last_data_recv_ms")
    known = ~np.isin(s.state, (tcp.SYN_SENT, tcp.SYN_RECV, tcp.NEW_SYN_RECV))
    for name in names:
        known &= s.present(name)
    quiet = np.minimum(s.last_data_sent_ms, s.last_data_recv_ms) >= _QUIET_MS
    acked, received = s.bytes_acked.astype(np.int64), s.bytes_received.astype(np.int64)
    sent = acked + s.wqueue.astype(np.int64)
    wrong = np.zeros(len(i), np.bool_)
    for a, b in ((i, j), (j, i)):
        wrong |= (acked[a] > received[b] + 2) | (received[b] > sent[a] + 2)
    refuted: Mask = wrong & (known & quiet)[i] & (known & quiet)[j]
    return refuted


def connected(a: NDArray[Any], b: NDArray[Any], islands: Mapping[int, int | None]) -> Mask:
    """Say for pairs of namespaces whether interfaces are known to connect them; where nobody looked, all are.

    Args:
        a: namespaces.
        b: as many others.
        islands: namespace → a number that connected ones share; None for one of which that is not known.
    """
    same: Mask = a == b
    if same.all() or not any(island is not None for island in islands.values()):
        return np.ones(len(same), np.bool_)
    numbers = np.array([*islands], np.int64)
    order = np.argsort(numbers)
    island = np.array([-1 if n is None else n for n in islands.values()], np.int64)[order]
    numbers = numbers[order]

    def of(netns: NDArray[Any]) -> I64:
        at = np.minimum(np.searchsorted(numbers, netns), len(numbers) - 1)
        return np.where(numbers[at] == netns, island[at], -1)

    left, right = of(a), of(b)
    return same | ((left == right) & (left >= 0))


class _Near:
    """Which pairs of rows may be ends of one connection by where they are."""

    def __init__(
        self,
        sockets: SocketTable,
        islands: Mapping[int, int | None],
        addresses: Mapping[int, frozenset[Address]],
    ) -> None:
        self._netns = sockets.netns
        self._islands = islands
        times = Counter(
            (island, *address)
            for number, island in islands.items()
            if island is not None
            for address in addresses.get(number, ())
        )
        self._repeated = np.zeros(len(sockets), np.bool_)
        if shared := [place for place, n in times.items() if n > 1]:
            words = np.array(shared, np.uint64)
            known = {number: island for number, island in islands.items() if island is not None}
            at = np.array([[number, known[number]] for number in sorted(known)], np.int64)
            index = np.minimum(np.searchsorted(at[:, 0], self._netns), len(at) - 1)
            rows = np.flatnonzero(at[index, 0] == self._netns)
            source = sockets.src[rows]
            i, _ = matches(
                (at[index[rows], 1].astype(np.uint64), source[:, 0], source[:, 1]),
                (words[:, 0], words[:, 1], words[:, 2]),
            )
            self._repeated[rows[i]] = True

    def __call__(self, i: I64, j: I64) -> Mask:
        """Say for pairs of rows whether they are in one namespace, or in two that are connected and not ambiguous."""
        a, b = self._netns[i], self._netns[j]
        near: Mask = (a == b) | (connected(a, b, self._islands) & ~self._repeated[i] & ~self._repeated[j])
        return near


def other_ends(
    sockets: SocketTable,
    flows: FlowTable | None,
    loopback: Mask,
    *,
    untranslated: frozenset[tuple[int, int]] | None = None,
    islands: Mapping[int, int | None] | None = None,
    addresses: Mapping[int, frozenset[Address]] | None = None,
) -> OtherEnds:
    """Find the other end of every connection.

    Args:
        sockets: all sockets of all namespaces that were inspected.
        flows: all conntrack entries of those namespaces, or None.
        loopback: rows that talk to their own namespace.
        untranslated: addresses that are no translation's, for they belong to namespaces in which no packet was
            without an entry; None where entries may exist that were not read, or no namespace has lost any: then
            no two ends are joined by the client alone.
        islands: namespace → a number that connected ones share; None for one of which that is not known.
        addresses: namespace → its own, in two words each.
    """
    n = len(sockets)
    row = np.full(n, -1, np.int64)
    method = np.zeros(n, np.uint8)
    flow = np.full(n, -1, np.int64)
    peer = sockets.dst.copy()
    talking = np.flatnonzero(sockets.state != tcp.LISTEN)
    proto = sockets.protocol
    forward = _forward(sockets.src, sockets.dst, sockets.sport, sockets.dport)
    backward = _forward(sockets.dst, sockets.src, sockets.dport, sockets.sport)
    i, j = matches((*_take(forward, talking), proto[talking]), (*_take(backward, talking), proto[talking]))
    i, j = talking[i], talking[j]
    fits = (i != j) & (~loopback[i] | (sockets.netns[i] == sockets.netns[j]))
    i, j = i[fits], j[fits]
    fits = ~_refuted(sockets, i, j)
    i, j = i[fits], j[fits]
    may_be = _Near(sockets, islands or {}, addresses or {})
    near = may_be(i, j)
    row, ambiguous = unique_match(n, i[near], j[near])
    method[row >= 0] = DIRECT
    _only_mutual(row, method, ambiguous)
    if flows is not None and len(flows):
        _through_nat(sockets, flows, forward, row, method, flow, peer, ambiguous)
        _only_mutual(row, method, ambiguous)
    possible, several = unique_match(n, i[~near], j[~near])
    ambiguous |= several & (row < 0)
    joined = np.flatnonzero(row >= 0)
    apart = joined[~may_be(joined, row[joined])]
    possible[apart], row[apart], method[apart] = row[apart], -1, NONE
    possible[(row >= 0) | ambiguous | (row[np.maximum(possible, 0)] >= 0)] = -1
    if untranslated is not None:
        _half(sockets, row, method, flow, ambiguous, untranslated, may_be)
    return OtherEnds(row, method, ambiguous, flow, peer, possible)


def _only_mutual(row: I64, method: NDArray[np.uint8], ambiguous: Mask) -> None:
    """Take back a partner that fits others as well."""
    joined = np.flatnonzero(row >= 0)
    doubtful = joined[row[row[joined]] != joined]
    row[doubtful], method[doubtful], ambiguous[doubtful] = -1, NONE, True


def _through_nat(
    sockets: SocketTable,
    flows: FlowTable,
    forward: Words,
    row: I64,
    method: NDArray[np.uint8],
    flow: I64,
    peer: NDArray[np.uint64],
    ambiguous: Mask,
) -> None:
    tracked = np.flatnonzero(flows.protocol == 6)
    if not len(tracked):
        return
    f = flows.select(tracked)
    orig = _forward(f.orig_src, f.orig_dst, f.orig_sport, f.orig_dport)
    reply = _forward(f.reply_src, f.reply_dst, f.reply_sport, f.reply_dport)
    onward = _forward(f.reply_dst, f.reply_src, f.reply_dport, f.reply_sport)
    back = _forward(f.orig_dst, f.orig_src, f.orig_dport, f.orig_sport)
    same = np.ones(len(f), np.bool_)
    for a, b in zip(orig, onward, strict=True):
        same &= a == b
    translated = ~same
    tcp_rows = np.flatnonzero((sockets.protocol == 6) & (sockets.state != tcp.LISTEN))
    socket_tuples = _take(forward, tcp_rows)
    # As a client a socket has the entry's original tuple, as a server its reply tuple.
    for tuples in (orig, reply):
        i, k = matches(socket_tuples, tuples)
        for only in (~translated, translated):  # the translating entry is written last and wins
            keep = only[k]
            flow[tcp_rows[i[keep]]] = tracked[k[keep]]
    # Follow the translations: what a client sent goes on as `onward`, what a server answers comes as `back`.
    for entry, result in ((orig, onward), (reply, back)):
        lost = tcp_rows[(row[tcp_rows] < 0)]
        where = _take(forward, lost)
        for _ in range(_HOPS):
            if not len(lost):
                break
            i, k = matches(where, _take(entry, np.flatnonzero(translated)))
            k = np.flatnonzero(translated)[k]
            step, several = unique_match(len(lost), i, k)
            # The same translation seen by two namespaces is no ambiguity.
            if several.any():
                first = np.full(len(lost), -1, np.int64)
                first[i[::-1]] = k[::-1]
                step = np.where(several, first, step)
            moved = step >= 0
            if not moved.any():
                break
            lost, where = lost[moved], _take(result, step[moved])
            peer[lost, 0], peer[lost, 1] = where[2], where[3]
            reversed_ = (where[2], where[3], where[0], where[1], _swap(where[4]))
            i, j = matches(reversed_, socket_tuples)
            partner, doubt = unique_match(len(lost), i, tcp_rows[j])
            ambiguous[lost[doubt]] = True
            hit = partner >= 0
            row[lost[hit]], method[lost[hit]] = partner[hit], NAT
            free = hit & (row[np.maximum(partner, 0)] < 0)
            row[partner[free]], method[partner[free]] = lost[free], NAT
            lost, where = lost[~hit], _take(where, ~hit)


def _swap(ports: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return (ports & np.uint64(0xFFFF)) << np.uint64(16) | ports >> np.uint64(16)


def _half(
    sockets: SocketTable,
    row: I64,
    method: NDArray[np.uint8],
    flow: I64,
    ambiguous: Mask,
    untranslated: frozenset[Address],
    may_be: _Near,
) -> None:
    s = sockets
    alone = (row < 0) & (flow < 0) & ~ambiguous & (s.protocol == 6)
    clients = np.flatnonzero(
        alone & np.isin(s.state, (tcp.LAST_ACK, tcp.FIN_WAIT1, tcp.CLOSING)) & (s.timer == 1)
    )
    servers = np.flatnonzero(
        alone & np.isin(s.state, (tcp.FIN_WAIT2, tcp.ESTABLISHED, tcp.CLOSE_WAIT)) & (s.timer != 3)
    )
    i, j = matches(
        (s.src[clients, 0], s.src[clients, 1], s.sport[clients]),
        (s.dst[servers, 0], s.dst[servers, 1], s.dport[servers]),
    )
    i, j = clients[i], servers[j]
    other_address = (s.dst[i] != s.src[j]).any(axis=1)
    i, j = i[other_address], j[other_address]
    same = counts_agree(s, i, j) & may_be(i, j)
    same &= np.array([(int(a), int(b)) not in untranslated for a, b in s.dst[i]], np.bool_)
    i, j = i[same], j[same]
    n = len(s)
    forth, _ = unique_match(n, i, j)
    back, _ = unique_match(n, j, i)
    rows = np.flatnonzero(forth >= 0)
    rows = rows[back[forth[rows]] == rows]
    row[rows], method[rows] = forth[rows], HALF
    row[forth[rows]], method[forth[rows]] = rows, HALF
