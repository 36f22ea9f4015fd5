"""Connection tracking entries beside the sockets at both of their ends.

An entry and its sockets can disagree: a mismatch is mostly the cause, or the trace, of a connection that cannot
finish closing. What an entry *should* look like is told by the states of its ends; an end that is on another
machine says nothing, and is then not held against the entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.join import matches, unique_match
from finwait.uapi import conntrack as ct
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.table.flows import FlowTable
    from finwait.table.sockets import SocketTable

__all__ = ["AGREE", "Tracked", "tracked", "untracked"]

AGREE: Final = "agree"
_CLOSING: Final = frozenset({"FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE"})


@dataclass(frozen=True, slots=True)
class Tracked:
    """Entries (TCP only) with the rows of their ends and a verdict each."""

    flow: NDArray[np.int64]
    """Row of the entry in the flow table."""
    client: NDArray[np.int64]
    """Row of the socket with the original tuple, −1 for none here."""
    server: NDArray[np.int64]
    """Row of the socket with the reply tuple, −1 for none here."""
    verdict: tuple[str, ...]


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
    local: frozenset[tuple[int, int]],
    dumped: frozenset[int] = frozenset(),
) -> Tracked:
    """Join entries with sockets and judge each.

    Args:
        sockets: all TCP sockets of all namespaces.
        flows: all entries.
        local: addresses of namespaces that were looked into entirely (loopback left out).
        dumped: those namespaces: the ends of their loopback connections are in them, or nowhere.
    """
    mine = np.flatnonzero(flows.protocol == 6)
    f = flows.select(mine)
    rows = np.flatnonzero((sockets.state != tcp.LISTEN) & (sockets.protocol == 6))
    s = sockets.select(rows)
    ours = _words(s.netns, s.src, s.dst, s.sport, s.dport)
    ends = []
    for tuples in (
        _words(f.netns, f.orig_src, f.orig_dst, f.orig_sport, f.orig_dport),
        _words(f.netns, f.reply_src, f.reply_dst, f.reply_sport, f.reply_dport),
    ):
        i, j = matches(tuples, ours)
        partner, _ = unique_match(len(f), i, j)
        ends.append(np.where(partner >= 0, rows[np.maximum(partner, 0)] if len(rows) else -1, -1))
    client, server = ends
    there = np.isin(f.netns, np.array(sorted(dumped), np.uint32))
    client_here = _here(f.orig_src, local) | (_loopback(f.orig_src) & there)
    server_here = _here(f.reply_src, local) | (_loopback(f.reply_src) & there)
    verdict = tuple(
        _verdict(
            ct.TCP_STATES.get(int(f.tcp_state[k]), "?"),
            tcp.STATES.get(int(sockets.state[client[k]])) if client[k] >= 0 else None,
            tcp.STATES.get(int(sockets.state[server[k]])) if server[k] >= 0 else None,
            bool(client_here[k]),
            bool(server_here[k]),
        )
        for k in range(len(f))
    )
    return Tracked(mine, client, server, verdict)


def _here(address: NDArray[np.uint64], local: frozenset[tuple[int, int]]) -> NDArray[np.bool_]:
    out = np.zeros(len(address), np.bool_)
    if local:
        words = np.array(sorted(local), np.uint64)
        i, _ = matches((address[:, 0], address[:, 1]), (words[:, 0], words[:, 1]))
        out[i] = True
    return out


def _verdict(entry: str, client: str | None, server: str | None, client_here: bool, server_here: bool) -> str:
    lost = [
        name
        for name, end, here in (("client", client, client_here), ("server", server, server_here))
        if here and end is None
    ]
    if client is None and server is None:
        if len(lost) == 2:
            # The kernel keeps an entry for a while after both ends are gone: that is its TIME_WAIT.
            return AGREE if entry in ("TIME_WAIT", "CLOSE") else "entry without sockets"
        return "forwarded: no end is here"
    if lost:
        return AGREE if entry in ("TIME_WAIT", "CLOSE", "LAST_ACK") else f"the {lost[0]} end is gone"
    known = [e for e in (client, server) if e is not None]
    if entry == "ESTABLISHED" and any(
        e in ("FIN_WAIT2", "CLOSE_WAIT", "TIME_WAIT", "LAST_ACK") for e in known
    ):
        return "the ends are closing and the entry does not know: a FIN was not seen"
    if entry in _CLOSING and known and all(e == "ESTABLISHED" for e in known):
        return "the entry is closing and the ends are not: a FIN or RST passed that they did not take"
    return AGREE


def untracked(
    sockets: SocketTable, has_flow: NDArray[np.bool_], near: NDArray[np.bool_], tracking: set[int]
) -> NDArray[np.int64]:
    """Return sockets without an entry in namespaces that track connections.

    Loopback connections and minisockets are left out: the former are often not tracked, the latter need none.
    """
    s = sockets
    here = np.isin(s.netns, np.array(sorted(tracking), np.uint32))
    states = np.isin(
        s.state, (tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)
    )
    return np.flatnonzero(here & states & ~has_flow & ~near & (s.timer != 3) & (s.protocol == 6))
