"""closing-in-progress: the connection is closing, and something still moves.

Seen as       FIN_WAIT1, LAST_ACK or CLOSING whose FIN, or data before it, was sent moments ago
              (timer 1 with fewer than two retransmissions, or timer 4 before the first attempt).
              The same states on timer 4 while the peer has some room (snd_wnd above 0) and no attempt
              has failed: the room is less than a segment, and when the timer fires the kernel sends
              what fits. Any closing state in which bytes moved between two looks. CLOSE_WAIT that
              entered an accept queue within the last second.
Why it stays  It does not stay: each of these changes within seconds, or ends when the data has been
              transferred.
Not this      Unanswered retransmissions (fin-unanswered-orphan, fin-unanswered-held), a closed
              window (zero-window), segments that cannot leave this machine (egress-blocked).
What ends it  The peer's acknowledgment; the end of the data.
Won't help    Destroying it: this cuts off data that is on its way.
Reproduce     finwait lab run closing-in-progress
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Remedy, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import certain
from finwait.diagnosis.rules.never_accepted import PATIENCE_MS
from finwait.diagnosis.view import PROBING_WINDOW, View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

_CLOSING = (tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return _sent_now(view) | _sends_next(view) | _moving(view) | _arrived(view) | _mptcp_timed(view)


def _sent_now(view: View) -> NDArray[np.bool_]:
    """Return rows whose FIN, or the data before it, is on its way: the timer will tell soon.

    On the timer of window probes `retrans` is 0 also of a peer that answers them for hours; doublings tell of those.
    """
    s = view.sockets
    before_the_first = (s.timer == 4) & (s.retrans == 0) & (s.backoff == 0)
    return _sending(view) & (((s.timer == 1) & (s.retrans < view.options.retransmits)) | before_the_first)


def _sends_next(view: View) -> NDArray[np.bool_]:
    """Return rows whose peer has some room, less than a segment: the timer sends what fits, as nothing failed yet."""
    s = view.sockets
    room = s.present("snd_wnd") & (s.snd_wnd > 0)
    return _sending(view) & (s.timer == 4) & (s.retrans == 0) & room


def _sending(view: View) -> NDArray[np.bool_]:
    return view.in_state(tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING)


def _moving(view: View) -> NDArray[np.bool_]:
    """Return rows in a closing state on which bytes moved between two looks, or room is made at the other end."""
    waiting = (view.sockets.timer == PROBING_WINDOW) & view.other_reads
    # What the kernel sends of a program that does nothing more ends in CLOSE_WAIT.
    moving = view.moved | view.sent | view.read | waiting
    return np.isin(view.sockets.state, _CLOSING) & moving & ~view.abandoned


def _arrived(view: View) -> NDArray[np.bool_]:
    """Return rows that came into an accept queue so short ago that nobody can have accepted them yet."""
    s = view.sockets
    fresh = s.present("last_ack_recv_ms") & (s.last_ack_recv_ms < PATIENCE_MS)
    return view.in_state(tcp.CLOSE_WAIT) & ~view.held & fresh


def _mptcp_timed(view: View) -> NDArray[np.bool_]:
    """Return closed MPTCP connections whose timer runs: the kernel ends them after 60 s."""
    s = view.sockets
    return (s.protocol == 262) & np.isin(s.state, _CLOSING) & ~view.held & (s.timer == 2)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if _moving(view)[rows].all():
        return certain(f"bytes moved within {view.watched_ms / 1000:.1f} s of watching")
    if _sent_now(view)[rows].all():
        return certain("its timer is running and has fired at most once")
    if _sends_next(view)[rows].all():
        return certain("the window is open and no attempt has failed; its timer sends what fits")
    return certain("it is that young, or its timer is running")


_ENDS = (Remedy("it finishes by itself", "read-only"),)
_DOES_NOT = (Advice("destroy it", "this cuts off data that is on its way"),)

RULE = Rule(
    name="closing-in-progress",
    title="closing; the FIN, or data before it, was sent moments ago",
    severity="healthy",
    rank=95,
    harm="residue",
    turn=Turn("kernel"),
    means=None,
    beyond_sysctls="it finishes by itself",
    claims=("C20",),
    clues=(
        Clue("state", "closing"),
        Clue("timer", "1: waiting for an acknowledgment"),
        Clue("retrans", "0 or 1: no sign of a loss yet"),
    ),
    ends=_ENDS,
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    cases=(
        Case(
            title="closing, and bytes still move",
            rows=_moving,
            clues=(Clue("state", "closing"), Clue("wqueue", "bytes still to be sent or acknowledged")),
            ends=_ENDS,
            does_not=_DOES_NOT,
        ),
        Case(
            title="the peer closed while the connection waits to be accepted, for less than a second",
            rows=_arrived,
            clues=(Clue("last_ack_recv_ms", "less than a second"),),
            ends=_ENDS,
            does_not=_DOES_NOT,
        ),
        Case(
            title="an MPTCP connection that its program has closed; its timer ends it",
            rows=_mptcp_timed,
            clues=(Clue("timer", "2: it is counting down"), Clue("inode", "0: closed by its program")),
            ends=_ENDS,
            does_not=_DOES_NOT,
        ),
        Case(
            title="closing; the peer has little room, and a timer sends what fits",
            rows=lambda view: _sends_next(view) & ~_sent_now(view) & ~_moving(view),
            clues=(
                Clue("state", "closing"),
                Clue("timer", "4: the room is less than a segment; the kernel waits for more of it"),
                Clue("snd_wnd", "above 0: the peer has some room"),
                Clue("retrans", "0: no attempt has failed"),
                Clue("expires_ms", "time until the timer fires; what fits is then sent"),
                Clue("wqueue", "bytes waiting; the FIN behind them counts as 1"),
            ),
            ends=(Remedy("its timer sends what fits; then it shows whether the peer reads on", "read-only"),),
            does_not=_DOES_NOT,
        ),
    ),
)
