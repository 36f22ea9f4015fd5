"""handshake: a connection that is being opened.

Seen as       SYN_SENT or SYN_RECV on the timer that retransmits the SYN, or the answer to it.
Why it stays  The other side has not answered yet. There is nothing to close.
Not this      A SYN that was retransmitted several times (syn-unanswered). ESTABLISHED on this side
              and SYN_SENT at the other: one side does not know the other's connection (half-open).
What ends it  The answer; or time: tcp_syn_retries (6, about 2 minutes) for SYN_SENT,
              tcp_synack_retries (5, about 1 minute) for SYN_RECV, or TCP_SYNCNT of the listener.
Won't help    Any setting for closing connections.
Reproduce     finwait lab run handshake
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Remedy, Turn
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import certain
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    opening = np.isin(s.state, (tcp.SYN_SENT, tcp.SYN_RECV, tcp.NEW_SYN_RECV))
    return opening & ((s.timer == 1) | (s.protocol != 6))  # MPTCP rows show no timer of their subflow


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:  # noqa: ARG001
    return certain("its timer is running, and its retries are limited")


RULE = Rule(
    name="handshake",
    title="being opened; there is nothing to close yet",
    severity="healthy",
    rank=90,
    harm="residue",
    turn=Turn("kernel"),
    means=None,
    beyond_sysctls="it is being opened; there is nothing to close",
    claims=("C19", "X60", "X61"),
    clues=(
        Clue("state", "opening"),
        Clue("timer", "1: the SYN, or the answer to it, is being retransmitted"),
        Clue("retrans", "retransmissions so far"),
    ),
    ends=(
        Remedy(
            "it ends by itself: with an answer, or after tcp_syn_retries or tcp_synack_retries",
            "read-only",
            proofs=("syn-retries", "ends-of-handshakes"),
        ),
    ),
    does_not=(Advice("any setting for closing connections", "nothing is open yet"),),
    confidence=_confidence,
    match=match,
    counted=True,
)
