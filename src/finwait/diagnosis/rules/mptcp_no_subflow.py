"""mptcp-no-subflow: an MPTCP connection has lost its last subflow, and nothing can pass any more.

Seen as       An MPTCP row (IPPROTO_MPTCP dump) in ESTABLISHED or a closing state, and no TCP row of its token or
              inode. Or an MPTCP row in CLOSE with a descriptor: the kernel has given it up since.
Why it stays  MPTCP outlives its subflows, so that another path can take over. Where none comes, the kernel closes the
              connection after net.mptcp.close_timeout (60 s; the timer counts down); kernels without that setting
              keep it for ever. What the program writes meanwhile waits, and it is told nothing.
Not this      A connection that fell back to plain TCP. One with a subflow in any state.
What ends it  A new subflow; close_timeout; close() by the owner.
What does not Keepalive: it probes subflows. Anything that sends a packet: there is no path for one.
Reproduce     finwait lab run mptcp-no-subflow
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.join import matches
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import NOT_FIN_TIMEOUT, certain, look_again
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

_FELL_BACK = 1
"""MPTCP_INFO_FLAG_FALLBACK, include/uapi/linux/mptcp.h."""
_TIMER = 2
"""``idiag_timer`` of an MPTCP row: its close timeout counts down."""
_STATES = (tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    whole = view.sockets.protocol == 262
    return _alone(view, whole) | _given_up(view) if whole.any() else whole


def _alone(view: View, whole: NDArray[np.bool_]) -> NDArray[np.bool_]:
    s = view.sockets
    listed = np.isin(s.netns, [number for number, ns in view.namespaces.items() if ns.dumped])
    fell_back = (s.mptcp_flags & _FELL_BACK) != 0
    rows = np.flatnonzero(whole & listed & np.isin(s.state, _STATES) & view.held & ~fell_back)
    out = np.zeros(len(view), np.bool_)
    subflows = np.flatnonzero(s.protocol == 6)
    named = subflows[s.present("mptcp_token_local")[subflows]]
    by_token, _ = matches((s.netns[rows], s.mptcp_token[rows]), (s.netns[named], s.mptcp_token_local[named]))
    by_inode, _ = matches((s.netns[rows], s.inode[rows]), (s.netns[subflows], s.inode[subflows]))
    out[rows] = True
    out[rows[by_token]] = False
    out[rows[by_inode]] = False
    return out


def _given_up(view: View) -> NDArray[np.bool_]:
    """Return connections that the kernel has closed and a descriptor still names; never connected ones have no peer."""
    s = view.sockets
    return (s.protocol == 262) & (s.state == tcp.CLOSE) & view.held & (s.dport != 0)


def _timed(view: View) -> NDArray[np.bool_]:
    return (view.sockets.timer == _TIMER) & ~_given_up(view)


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "notice" if _timed(view)[rows].all() else "problem"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if _given_up(view)[rows].all():
        return certain("the row itself says CLOSE, and a descriptor refers to it")
    if _timed(view)[rows].all():
        return certain("no TCP row belongs to it, and its close timeout counts down")
    if (view.queue_before[rows] >= 0).all():
        return certain(f"no TCP row belongs to it, and it was there {view.watched_ms / 1000:.1f} s before")
    return look_again(
        "no TCP row belongs to it, but it may have been made after those were read; `--for 5s` tells"
    )


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    ns = view.namespaces.get(int(view.sockets.netns[rows[0]]))
    seconds = ns.sysctl("mptcp/close_timeout") if ns is not None else None
    if seconds is None or _given_up(view)[rows].all():
        return ()
    where = f"/proc/sys/net/mptcp/close_timeout of {ns.label if ns else '?'}"
    return (
        Evidence("close_timeout", f"{seconds} s", where, "so long a connection without subflows is kept"),
    )


_CLUES = (
    Clue("protocol", "262: the MPTCP connection itself; no TCP row has its token or its inode"),
    Clue("state", "what its program believes"),
    Clue("timer", "2: its close timeout counts down; 0: nothing will ever fire"),
    Clue("expires_ms", "until the kernel closes it"),
    Clue("mptcp_subflows", "additional subflows: 0"),
    Clue("wqueue", "bytes that wait for a path"),
)
_CLOSE = Remedy("close() in the program: nothing is sent, for there is no path, and the descriptor is free")
_DOES_NOT = (
    Advice("turn on keepalive, or `finwait probe`", "both act on subflows, and there is none"),
    Advice("`ss -K`", "SOCK_DESTROY does not know MPTCP connections, and there is no subflow to destroy"),
    NOT_FIN_TIMEOUT,
)

RULE = Rule(
    name="mptcp-no-subflow",
    title="an MPTCP connection without any subflow: nothing can pass, and nothing tells its program",
    severity="problem",
    rank=25,
    means="by-state",
    beyond_sysctls="no setting of TCP applies without a subflow; net.mptcp.close_timeout does",
    claims=("C17b", "X57"),
    clues=_CLUES,
    ends=(
        Remedy("bring a path back: a new subflow takes over what waits"),
        _CLOSE,
    ),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    softens=("mptcp-half-close",),
    cases=(
        Case(
            title="an MPTCP connection without any subflow: nothing can pass, and the kernel will give it up",
            rows=_timed,
            clues=_CLUES,
            ends=(
                Remedy("bring a path back before the timer fires: a new subflow takes over what waits"),
                Remedy(
                    "it ends by itself: `net.mptcp.close_timeout` after the last subflow went",
                    "read-only",
                    proofs=("mptcp-without-subflow",),
                ),
                _CLOSE,
            ),
            does_not=_DOES_NOT,
        ),
        Case(
            title="an MPTCP connection that the kernel has given up, and its program keeps",
            rows=_given_up,
            clues=(
                Clue("protocol", "262: the MPTCP connection itself"),
                Clue("state", "CLOSE: it was given up, or reset"),
                Clue("inode", "not 0: a descriptor refers to it"),
            ),
            ends=(
                Remedy(
                    "close() in the program, which would see the error if it read or wrote; or its restart"
                ),
            ),
            does_not=_DOES_NOT,
        ),
    ),
)
