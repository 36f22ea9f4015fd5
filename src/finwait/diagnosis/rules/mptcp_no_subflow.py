"""mptcp-no-subflow: an MPTCP connection has lost its last subflow, and nothing can pass any more.

Seen as       An MPTCP row (IPPROTO_MPTCP dump) in ESTABLISHED or a closing state, without a TCP row
              of the same token or inode. Or an MPTCP row in CLOSE with a descriptor: the kernel has
              since given it up.
Why it stays  MPTCP outlives its subflows, so that another path can take over. If none comes, the
              kernel closes the connection after net.mptcp.close_timeout (60 s; the timer counts
              down); kernels without that setting keep it for ever. Data that the program writes
              meanwhile waits, and the program gets no notice.
Not this      A connection that fell back to plain TCP. One with a subflow in any state.
What ends it  A new subflow; close_timeout; close() by the owner.
Won't help    Keepalive: it probes subflows. Anything that sends a packet: there is no path for it.
Reproduce     finwait lab run mptcp-no-subflow
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.join import matches
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import NOT_FIN_TIMEOUT, certain, look_again
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

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
    rows = np.flatnonzero(whole & listed & np.isin(s.state, _STATES) & view.held & ~view.fell_back)
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
        return certain("the row itself is in CLOSE, and a descriptor refers to it")
    if _timed(view)[rows].all():
        return certain("no TCP row belongs to it, and its close timeout is counting down")
    if (view.queue_before[rows] >= 0).all():
        return certain(
            f"no TCP row belongs to it, and it was already there {view.watched_ms / 1000:.1f} s earlier"
        )
    return look_again(
        "no TCP row belongs to it, but it may have been created after the TCP rows were read; check with "
        "`--for 5s`"
    )


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    ns = view.namespaces.get(int(view.sockets.netns[rows[0]]))
    seconds = ns.sysctl("mptcp/close_timeout") if ns is not None else None
    if seconds is None or _given_up(view)[rows].all():
        return ()
    where = f"/proc/sys/net/mptcp/close_timeout of {ns.label if ns else '?'}"
    return (
        Evidence(
            "close_timeout", f"{seconds} s", where, "how long the kernel keeps a connection without subflows"
        ),
    )


_CLUES = (
    Clue("protocol", "262: the MPTCP connection itself; no TCP row has its token or its inode"),
    Clue("state", "the state that its program sees"),
    Clue("timer", "2: its close timeout is counting down; 0: nothing will ever fire"),
    Clue("expires_ms", "time until the kernel closes it"),
    Clue("mptcp_subflows", "additional subflows: 0"),
    Clue("wqueue", "bytes waiting for a path"),
)
_CLOSE = Remedy(
    "close() in the program: nothing is sent, because there is no path, and the descriptor is freed"
)
_DOES_NOT = (
    Advice("turn on keepalive, or `finwait probe`", "both act on subflows, and there are none"),
    Advice("`ss -K`", "SOCK_DESTROY does not support MPTCP connections, and there is no subflow to destroy"),
    NOT_FIN_TIMEOUT,
)

RULE = Rule(
    name="mptcp-no-subflow",
    title="an MPTCP connection without a subflow: nothing can pass, and nothing notifies its program",
    severity="problem",
    rank=25,
    harm="stall",
    turn=Turn("path", "a new subflow"),
    means="by-state",
    beyond_sysctls="no TCP setting applies without a subflow; net.mptcp.close_timeout does",
    claims=("C17b", "X57"),
    clues=_CLUES,
    ends=(
        Remedy("restore a path; a new subflow then carries the waiting data"),
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
            title="an MPTCP connection without a subflow: nothing can pass, and the kernel will give it up",
            turn=Turn("kernel"),
            rows=_timed,
            clues=_CLUES,
            ends=(
                Remedy("restore a path before the timer fires; a new subflow then carries the waiting data"),
                Remedy(
                    "it ends by itself `net.mptcp.close_timeout` after its last subflow was lost",
                    "read-only",
                    proofs=("mptcp-without-subflow",),
                ),
                _CLOSE,
            ),
            does_not=_DOES_NOT,
        ),
        Case(
            title="an MPTCP connection that the kernel has given up, and its program keeps",
            turn=Turn("holder", "close()"),
            rows=_given_up,
            clues=(
                Clue("protocol", "262: the MPTCP connection itself"),
                Clue("state", "CLOSE: the kernel gave it up, or it was reset"),
                Clue("inode", "not 0: a descriptor refers to it"),
            ),
            ends=(
                Remedy("close() in the program, which would get an error if it read or wrote; or restart it"),
            ),
            does_not=_DOES_NOT,
        ),
    ),
)
