"""closing-in-progress: it is closing, and something still moves.

Seen as       FIN_WAIT1, LAST_ACK or CLOSING whose FIN, or data before it, went out moments ago (timer 1, fewer than
              two retransmissions; or timer 4 before the first attempt). Any closing state in which bytes moved
              between two looks. CLOSE_WAIT that came into an accept queue within the last second.
Why it stays  It does not: each of them changes within seconds, or ends when what moves has moved.
Not this      Retransmissions that nobody answers (fin-unanswered-orphan, fin-unanswered-held), a closed window
              (zero-window), segments that cannot leave this machine (egress-blocked).
What ends it  The peer's acknowledgment; the end of the data.
What does not Destroying it: that cuts off data on its way.
Reproduce     finwait lab run closing-in-progress
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Remedy
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import certain
from finwait.diagnosis.rules.never_accepted import PATIENCE_MS
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

_CLOSING = (tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return _sent_now(view) | _moving(view) | _arrived(view) | _mptcp_timed(view)


def _sent_now(view: View) -> NDArray[np.bool_]:
    """Return rows whose FIN, or the data before it, is on its way: the timer will tell soon."""
    s = view.sockets
    sending = view.in_state(tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING)
    return sending & (
        ((s.timer == 1) & (s.retrans < view.options.retransmits)) | ((s.timer == 4) & (s.retrans == 0))
    )


def _moving(view: View) -> NDArray[np.bool_]:
    """Return rows in a closing state on which bytes moved between two looks, or room is made at the other end."""
    there = (view.other >= 0) & view.read[np.maximum(view.other, 0)] if len(view) else view.read
    waiting = (view.sockets.timer == 4) & there
    return np.isin(view.sockets.state, _CLOSING) & (view.moved | view.sent | view.read | waiting)


def _arrived(view: View) -> NDArray[np.bool_]:
    """Return rows that came into an accept queue so short ago that nobody can have accepted them yet."""
    s = view.sockets
    fresh = s.present("last_ack_recv_ms") & (s.last_ack_recv_ms < PATIENCE_MS)
    return view.in_state(tcp.CLOSE_WAIT) & ~view.held & fresh


def _mptcp_timed(view: View) -> NDArray[np.bool_]:
    """Return closed MPTCP connections whose timer runs: the kernel ends them after net.mptcp.close_timeout."""
    s = view.sockets
    return (s.protocol == 262) & np.isin(s.state, _CLOSING) & ~view.held & (s.timer == 2)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if _moving(view)[rows].all():
        return certain(f"bytes moved within {view.watched_ms / 1000:.1f} s of watching")
    if _sent_now(view)[rows].all():
        return certain("its timer is running and has fired at most once")
    return certain("it is as young as that, or its timer is running")


_ENDS = (Remedy("it goes on by itself", "read-only"),)
_DOES_NOT = (Advice("destroying it", "that cuts off data on its way"),)

RULE = Rule(
    name="closing-in-progress",
    title="closing: the FIN, or data before it, went out moments ago: healthy",
    severity="healthy",
    rank=95,
    means=None,
    beyond_sysctls="it goes on by itself",
    claims=("C20",),
    clues=(
        Clue("state", "closing"),
        Clue("timer", "1: what was sent waits for its acknowledgment"),
        Clue("retrans", "0 or 1: nothing is known to be lost"),
    ),
    ends=_ENDS,
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    cases=(
        Case(
            title="closing, and bytes still move: healthy",
            rows=_moving,
            clues=(Clue("state", "closing"), Clue("wqueue", "what is still to be sent or acknowledged")),
            ends=_ENDS,
            does_not=_DOES_NOT,
        ),
        Case(
            title="closed by the peer while it waits to be accepted, for less than a second: healthy",
            rows=_arrived,
            clues=(Clue("last_ack_recv_ms", "less than a second"),),
            ends=_ENDS,
            does_not=_DOES_NOT,
        ),
        Case(
            title="an MPTCP connection that its program has closed; net.mptcp.close_timeout ends it: healthy",
            rows=_mptcp_timed,
            clues=(Clue("timer", "2: it counts down"), Clue("inode", "0: closed by its program")),
            ends=_ENDS,
            does_not=_DOES_NOT,
        ),
    ),
)
