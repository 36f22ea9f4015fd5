"""fin-wait2-held: our FIN is acknowledged and a process keeps the socket.

Seen as       FIN_WAIT2 with an inode; sending is shut (shutdown bits 2), no timer (or keepalive).
Why it stays  A program called shutdown(SHUT_WR), said FIN, and waits for the peer to finish too. The peer
              does not. tcp_fin_timeout counts from the close() of the last descriptor; here nobody has closed
              anything, so it never starts. RFC 9293 allows this state to last for ever: it can still receive.
Not this      inode 0: an orphan (timer 3), which the kernel ends by itself. Bytes still arriving: a streaming
              half-close (fin-wait2-streaming), which is healthy.
What ends it  The peer's FIN; close() by the owner (then tcp_fin_timeout applies); SOCK_DESTROY.
What does not A lower tcp_fin_timeout; keepalive while the peer lives; TCP_USER_TIMEOUT (nothing is in flight).
Reproduce     finwait lab run fin-wait2-held
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Confidence, Evidence, Remedy
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import (
    CLOSE_AT_PEER,
    NOT_CONNTRACK,
    NOT_FIN_TIMEOUT,
    NOT_KEEPALIVE_ALIVE,
    NOT_USER_TIMEOUT_IDLE,
    certain,
    destroy,
    possible,
)
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RECENT_MS", "RULE", "match"]

RECENT_MS = 3000
"""Data that arrived so short ago leaves open, in a single look, whether the connection is streaming."""


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return view.in_state(tcp.FIN_WAIT2) & view.held & (view.sockets.shutdown != 3) & ~view.moved


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if view.moved_known[rows].all():
        return certain(f"no byte arrived in {view.watched_ms / 1000:.1f} s of watching")
    s = view.sockets
    fresh = (
        s.present("bytes_received")[rows]
        & (s.bytes_received[rows] > 0)
        & (s.last_data_recv_ms[rows] < RECENT_MS)
    )
    if fresh.any():
        return possible(
            f"on {int(fresh.sum())} of {len(rows)} data arrived in the last {RECENT_MS // 1000} s: it may be "
            "streaming; `--for 5s` looks twice and tells"
        )
    return certain("state, inode and shutdown bits leave no other reading")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    other = view.other[rows]
    here = other[other >= 0]
    if not len(here):
        return ()
    waiting = int((view.sockets.state[here] == tcp.CLOSE_WAIT).sum())
    if not waiting:
        return ()
    return (
        Evidence(
            "other end",
            f"CLOSE_WAIT ×{waiting}",
            "sock_diag in the other end's namespace",
            "the peer has our FIN and has not closed: the wait is for its program",
        ),
    )


RULE = Rule(
    name="fin-wait2-held",
    title="half-closed and held: the peer does not close, and a process keeps waiting",
    severity="problem",
    rank=60,
    claims=("C1", "S02", "S03", "S12"),
    clues=(
        Clue("state", "our FIN was acknowledged; the peer's has not come"),
        Clue("inode", "not 0: a descriptor still refers to it, so tcp_fin_timeout is not running"),
        Clue("timer", "0: nothing will ever fire; 2: keepalive, which a live peer answers"),
        Clue("shutdown", "2: the program shut down sending and can still receive"),
        Clue("last_data_recv_ms", "since the peer last sent data"),
    ),
    ends=(
        CLOSE_AT_PEER,
        Remedy(
            "where the other end is on this machine too: send the FIN that its program owes; else as below",
            "destructive",
            "finwait clear fin-wait2-held",
        ),
        destroy("fin-wait2-held"),
    ),
    does_not=(NOT_FIN_TIMEOUT, NOT_KEEPALIVE_ALIVE, NOT_USER_TIMEOUT_IDLE, NOT_CONNTRACK),
    confidence=_confidence,
    match=match,
    observe=_observe,
)
