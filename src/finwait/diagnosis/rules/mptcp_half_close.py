"""mptcp-half-close: an MPTCP connection that does not finish closing, while its subflows look ESTABLISHED.

Seen as       An MPTCP row (IPPROTO_MPTCP dump) in FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK or CLOSING.
Why it stays  As with TCP: one side shut down sending and the other does not close. But the FIN is one of the
              data level: the TCP subflows stay ESTABLISHED with shutdown bits 0.
Not this      A connection that fell back to plain TCP: its TCP row tells the truth. An answer that still streams:
              between two looks mptcp_bytes_received or mptcp_bytes_acked grows. One look calls it "possible" where a
              subflow carried data in the last 3 s, or none was found by its token.
What ends it  The peer's close; close() by the owner; destroying the subflows.
What does not Looking at TCP rows; tcp_fin_timeout while it is held.
Reproduce     finwait lab run mptcp-half-close
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Remedy
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import (
    CLOSE_AT_PEER,
    NOT_FIN_TIMEOUT,
    PREVENT_SILENCE,
    RECENT_MS,
    certain,
    look_again,
    peer_missing,
    peer_unseen,
)
from finwait.diagnosis.view import View
from finwait.errors import Gap
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    states = (tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)
    return (s.protocol == 262) & np.isin(s.state, states) & view.held & ~view.moved & ~view.sent


def _quiet(view: View, rows: NDArray[np.int64]) -> bool:
    """Return whether all subflows of all rows are known to have carried nothing for a while."""
    s = view.sockets
    whole, part = view.subflows
    part = part[np.isin(whole, rows)]
    told = s.present("mptcp_token_local")[part] & s.present("last_data_recv_ms")[part]
    recent = (s.last_data_recv_ms[part] < RECENT_MS) | (s.last_data_sent_ms[part] < RECENT_MS)
    return bool(np.isin(rows, whole).all() and told.all() and not recent.any())


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if view.moved_known[rows].all():
        return certain(f"no byte came or was acknowledged in {view.watched_ms / 1000:.1f} s of watching")
    if _quiet(view, rows):
        return certain(
            "the MPTCP row is the connection, and its state the one that counts; "
            f"no subflow carried data for {RECENT_MS // 1000} s"
        )
    return look_again("the answer may still be streaming; `--for 5s` looks twice and tells")


def _unlisted(view: View) -> list[Gap]:
    """Return the namespaces in which MPTCP has open subflows, and the connections that they belong to are not told."""
    s = view.sockets
    subflows = view.in_state(tcp.ESTABLISHED) & (s.ulp == b"mptcp")
    told = np.unique(s.netns[s.protocol == 262])
    return [
        Gap.of_namespace(
            netns,
            "list its MPTCP connections: only subflows are told",
            "the module mptcp_diag (Linux 5.9)",
        )
        for netns in np.setdiff1d(s.netns[subflows], told).tolist()
    ]


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    if peer_missing(view)[rows].all():
        return (_END,)
    if peer_unseen(view)[rows].any():
        return (_PROBE, CLOSE_AT_PEER, _END, PREVENT_SILENCE)
    return (CLOSE_AT_PEER, _END)


_PROBE = Remedy(
    "keepalive, which its program has to set (`finwait probe` acts on single TCP connections): it runs on the "
    "subflows; where the peer is gone they end, and the connection after `net.mptcp.close_timeout`",
)
_END = Remedy(
    "a FIN from its CLOSE_WAIT end where that is here, else a reset (MPTCP's fast close) through the "
    "descriptor: SOCK_DESTROY does not know MPTCP",
    "destructive",
    "finwait clear mptcp-half-close",
)

RULE = Rule(
    name="mptcp-half-close",
    title="an MPTCP connection is half-closed and held; its subflows still look ESTABLISHED",
    severity="problem",
    rank=45,
    means="by-state",
    beyond_sysctls="the MPTCP connection, not its subflows, is what has to close",
    claims=("C17", "X49"),
    clues=(
        Clue("protocol", "262: the MPTCP connection itself, not one of its subflows"),
        Clue("state", "where the data level stopped"),
        Clue("inode", "not 0: a descriptor refers to it"),
        Clue("mptcp_subflows", "additional subflows, each a TCP row of its own"),
        Clue("mptcp_bytes_received", "bytes received on all subflows"),
        Clue("rqueue", "memory that is taken by what was not read"),
    ),
    ends=(_PROBE, CLOSE_AT_PEER, _END, PREVENT_SILENCE),
    does_not=(
        Advice(
            "look at the TCP rows", "subflows stay ESTABLISHED, shutdown bits 0", proofs=("mptcp-half-close",)
        ),
        NOT_FIN_TIMEOUT,
    ),
    confidence=_confidence,
    match=match,
    unjudged=_unlisted,
    remedies=_remedies,
)
