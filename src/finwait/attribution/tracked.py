"""Connection tracking entries beside the sockets at both of their ends.

An entry and its sockets can disagree: a mismatch is mostly the cause, or the trace, of a connection that cannot
finish closing. What an entry *should* look like is told by the states of its ends; an end that is on another
machine, or in a namespace that was not inspected, says nothing, and is then not held against the entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.attribution.join import matches, unique_match
from finwait.attribution.other_end import connected
from finwait.uapi import conntrack as ct
from finwait.uapi import tcp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finwait.table.flows import FlowTable
    from finwait.table.sockets import SocketTable

__all__ = ["AGREE", "Seen", "Tracked", "tracked", "untracked"]

AGREE: Final = "agree"
Seen = Literal["socket", "gone", "elsewhere", "not-looked-at"]
"""What is known of an end: it has a socket here; its address is here and it has none; its address is on no namespace of
this machine that the entry's leads to; or not every namespace was inspected, so that it may be in another."""
_CLOSING: Final = frozenset({"FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE"})


class Tracked(Struct, frozen=True):
    """Entries (TCP only) with the rows of their ends and a verdict each."""

    flow: NDArray[np.int64]
    """Row of the entry in the flow table."""
    client: NDArray[np.int64]
    """Row of the socket with the original tuple, −1 for none here."""
    server: NDArray[np.int64]
    """Row of the socket with the reply tuple, −1 for none here."""
    verdict: tuple[str, ...]
    mismatch: tuple[bool, ...]
    """Whether entry and sockets disagree."""
    passing: tuple[bool, ...]
    """Whether nothing is known of either end: the connection passes through, or its ends were not looked at."""
    client_seen: tuple[Seen, ...]
    server_seen: tuple[Seen, ...]


def _words(
    netns: NDArray[Any], src: NDArray[Any], dst: NDArray[Any], sport: NDArray[Any], dport: NDArray[Any]
) -> tuple[NDArray[Any], ...]:
    # Every namespace has a loopback address of its own; other addresses are the same end wherever the entry is.
    where = np.where(_loopback(src), netns.astype(np.uint64), np.uint64(0))
    return (where, src[:, 0], src[:, 1], dst[:, 0], dst[:, 1], sport, dport)


def _loopback(address: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which addresses are ::1 or in 127.0.0.0/8 (v4-mapped)."""
    mapped = address[:, 1] >> np.uint64(24) == np.uint64(0xFFFF << 8 | 127)
    return (address[:, 0] == 0) & (mapped | (address[:, 1] == 1))


def tracked(
    sockets: SocketTable,
    flows: FlowTable,
    local: Mapping[int, frozenset[tuple[int, int]]],
    dumped: frozenset[int] = frozenset(),
    *,
    whole: bool = True,
    islands: Mapping[int, int | None] | None = None,
) -> Tracked:
    """Join entries with sockets and judge each.

    Args:
        sockets: all TCP sockets of all namespaces.
        flows: all entries.
        local: addresses by namespace, of those that were inspected entirely (loopback left out).
        dumped: those namespaces: the ends of their loopback connections are in them, or nowhere.
        whole: whether every namespace of the machine was inspected.
        islands: namespace → a number that connected ones share, see `finwait.attribution.other_end.connected`: an end
            is gone only from where the entry's namespace leads to; elsewhere the address is a stranger's.
    """
    tcp_flows = np.flatnonzero(flows.protocol == 6)
    f = flows.select(tcp_flows)
    rows = np.flatnonzero((sockets.state != tcp.LISTEN) & (sockets.protocol == 6))
    s = sockets.select(rows)
    socket_tuples = _words(s.netns, s.src, s.dst, s.sport, s.dport)
    ends = []
    for tuples in (
        _words(f.netns, f.orig_src, f.orig_dst, f.orig_sport, f.orig_dport),
        _words(f.netns, f.reply_src, f.reply_dst, f.reply_sport, f.reply_dport),
    ):
        i, j = matches(tuples, socket_tuples)
        partner, _ = unique_match(len(f), i, j)
        ends.append(np.where(partner >= 0, rows[np.maximum(partner, 0)] if len(rows) else -1, -1))
    client, server = ends
    looked_at = np.isin(f.netns, np.array(sorted(dumped), np.uint32))
    client_here = _is_local(f, f.orig_src, local, islands or {}) | (_loopback(f.orig_src) & looked_at)
    server_here = _is_local(f, f.reply_src, local, islands or {}) | (_loopback(f.reply_src) & looked_at)
    seen: list[tuple[Seen, ...]] = []
    for row, is_here in ((client, client_here), (server, server_here)):
        unknown: Seen = "elsewhere" if whole else "not-looked-at"
        seen.append(
            tuple("socket" if r >= 0 else "gone" if h else unknown for r, h in zip(row, is_here, strict=True))
        )
    verdict, mismatch = [], []
    for k in range(len(f)):
        ends_of = (client[k], seen[0][k]), (server[k], seen[1][k])
        states = [tcp.state_name(int(sockets.state[r])) if r >= 0 else None for r, _ in ends_of]
        judgement, wrong = _verdict(
            ct.TCP_STATES.get(int(f.tcp_state[k]), "?"), states, [at for _, at in ends_of]
        )
        verdict.append(judgement)
        mismatch.append(wrong)
    passing = tuple({a, b} <= {"elsewhere", "not-looked-at"} for a, b in zip(*seen, strict=True))
    return Tracked(tcp_flows, client, server, tuple(verdict), tuple(mismatch), passing, *seen)


def _is_local(
    flows: FlowTable,
    address: NDArray[np.uint64],
    local: Mapping[int, frozenset[tuple[int, int]]],
    islands: Mapping[int, int | None],
) -> NDArray[np.bool_]:
    """Return of which entries an address belongs to a namespace that theirs is connected with."""
    out = np.zeros(len(address), np.bool_)
    places = [(*words, number) for number, addresses in sorted(local.items()) for words in sorted(addresses)]
    if places:
        words = np.array(places, np.uint64)
        i, j = matches((address[:, 0], address[:, 1]), (words[:, 0], words[:, 1]))
        near = connected(flows.netns[i].astype(np.int64), words[j, 2].astype(np.int64), islands)
        out[i[near]] = True
    return out


_ENDS: Final = ("client", "server")


def _verdict(entry: str, states: list[str | None], seen: list[Seen]) -> tuple[str, bool]:
    """Return what is to be said of an entry, and whether it disagrees with what was seen of its ends."""
    lost = [name for name, at in zip(_ENDS, seen, strict=True) if at == "gone"]
    if len(lost) == 2:
        # The kernel keeps an entry for a while after both ends are gone: that is its TIME_WAIT.
        return (AGREE, False) if entry in ("TIME_WAIT", "CLOSE") else ("entry without sockets", True)
    if lost:
        calm = entry in ("TIME_WAIT", "CLOSE", "LAST_ACK")
        return (AGREE, False) if calm else (f"the {lost[0]} end is gone", True)
    known = [state for state in states if state is not None]
    if not known:
        whole = "elsewhere" in seen
        return ("forwarded: neither end is on this machine" if whole else "neither end was inspected"), False
    if entry == "ESTABLISHED" and any(
        state in ("FIN_WAIT2", "CLOSE_WAIT", "TIME_WAIT", "LAST_ACK") for state in known
    ):
        return "the ends are closing but the entry is not: conntrack did not see a FIN", True
    if entry in _CLOSING and all(state == "ESTABLISHED" for state in known):
        return "the entry is closing but the ends are not: they did not accept a FIN or RST that passed", True
    return AGREE, False


def untracked(
    sockets: SocketTable, has_flow: NDArray[np.bool_], near: NDArray[np.bool_], tracking: set[int]
) -> NDArray[np.int64]:
    """Return sockets without an entry in namespaces that track connections.

    Loopback connections and minisockets are left out: the former are often not tracked, the latter need none.
    """
    s = sockets
    trackable = np.isin(s.netns, np.array(sorted(tracking), np.uint32))
    states = np.isin(
        s.state, (tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)
    )
    return np.flatnonzero(trackable & states & ~has_flow & ~near & (s.timer != 3) & (s.protocol == 6))
