"""fin-unanswered-held: shut down but held, and nobody acknowledges the FIN.

Seen as       FIN_WAIT1, LAST_ACK or CLOSING with an inode, on the retransmission timer.
Why it stays  The path or the peer is gone, and a process still holds the socket. The limit is then
              tcp_retries2, as for data (a time, about 15 minutes by default), not
              tcp_orphan_retries. If data is queued before the FIN (wqueue above 1), that data is
              retransmitted, and the FIN waits behind it. If the other end is on this machine and
              has the FIN, its acknowledgment is lost on the way back.
Not this      inode 0: an orphan, gone in about 104 s by default (fin-unanswered-orphan).
What ends it  TCP_USER_TIMEOUT; close() (it is then an orphan); SOCK_DESTROY; time.
Won't help    tcp_orphan_retries while it is held; tcp_fin_timeout.
Reproduce     finwait lab run fin-unanswered-held
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import forecast
from finwait.diagnosis.arrival import FIND_THE_LOSS, NOT_AT_PEER, WAY_BACK, arrived, looks, observed
from finwait.diagnosis.finding import Advice, Remedy, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import UNLESS_SET, destroy
from finwait.diagnosis.rules.fin_unanswered_orphan import (
    BEHIND_DATA,
    NOT_FIN_TIMEOUT_HERE,
    data_before_fin,
    unanswered,
)
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    return (
        view.in_state(tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING)
        & view.held
        & (s.timer == 1)
        & (s.retrans >= view.options.retransmits)
        & ~view.sent  # data before the FIN gets through
    )


_ENDS = (
    Remedy(
        "set TCP_USER_TIMEOUT on the socket (pidfd_getfd)",
        "reversible",
        "finwait clear fin-unanswered-held",
        proofs=("dead-peer", "retransmission-limits"),
    ),
    Remedy(
        "close() in the program: with the kernel's defaults, an orphan is given up "
        f"{forecast.span(forecast.orphan())} after its FIN was sent"
    ),
    destroy("fin-unanswered-held"),
    Remedy(
        f"it ends by itself {forecast.span(forecast.retransmission())} after its FIN was sent, with the "
        "kernel's defaults (`tcp_retries2`)",
        "read-only",
        proofs=("retransmission-limits",),
    ),
)


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    when = f"{forecast.ends_by_itself(view, rows)} (`tcp_retries2`), {UNLESS_SET}"
    close = Remedy(
        f"close() in the program: an orphan is given up {forecast.as_orphan(view, rows)} after its FIN was sent",
        proofs=("orphan-retries",),
    )
    return (*looks(view, rows), _ENDS[0], close, _ENDS[2], Remedy(when, "read-only"))


_DOES_NOT = (
    NOT_FIN_TIMEOUT_HERE,
    Advice(
        "`tcp_orphan_retries`",
        "it limits orphans; this socket is held, so tcp_retries2 applies",
        proofs=("orphan-retries",),
    ),
)

_HELD = Clue("inode", "not 0: a process still holds it, so tcp_retries2 is the limit")

RULE = Rule(
    name="fin-unanswered-held",
    title="shut down but held; the FIN is retransmitted and nobody answers",
    severity="problem",
    rank=40,
    harm="leak",
    turn=Turn("far", "answer"),
    means="user-timeout",
    beyond_sysctls="only the retransmission limits and TCP_USER_TIMEOUT limit it",
    claims=("C11b", "X25"),
    clues=(
        Clue("state", "our FIN was sent and is not acknowledged"),
        _HELD,
        Clue("timer", "1: the FIN is being retransmitted"),
        Clue("retrans", "unanswered retransmissions in a row"),
        Clue("last_ack_recv_ms", "time since anything was last heard from the peer"),
    ),
    ends=_ENDS,
    does_not=_DOES_NOT,
    confidence=unanswered,
    match=match,
    observe=observed,
    remedies=_remedies,
    cases=(
        Case(
            title=(
                "shut down but held; the peer has received what was sent, but its acknowledgment is lost on the "
                "way back"
            ),
            rows=arrived,
            clues=(
                Clue("state", "our FIN was sent, but no acknowledgment of it arrived"),
                _HELD,
                Clue("timer", "1: the FIN, or data before it, is being retransmitted"),
                Clue("retrans", "retransmissions in a row without an acknowledgment arriving"),
                Clue("last_ack_recv_ms", "time since anything was last heard from the peer"),
            ),
            ends=(FIND_THE_LOSS, WAY_BACK, *_ENDS),
            does_not=(NOT_AT_PEER, *_DOES_NOT),
        ),
        Case(
            title="shut down but held; data before the FIN is retransmitted and nobody answers",
            rows=data_before_fin,
            clues=(
                *BEHIND_DATA,
                _HELD,
                Clue("last_ack_recv_ms", "time since anything was last heard from the peer"),
            ),
            ends=_ENDS,
            does_not=_DOES_NOT,
        ),
    ),
)
