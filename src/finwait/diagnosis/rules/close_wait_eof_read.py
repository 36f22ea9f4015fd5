"""close-wait-eof-read: the program has read the end of file and did not close.

Seen as       CLOSE_WAIT with an inode and an empty receive queue (rqueue 0).
Why it stays  The peer closed; its FIN counts 1 in the receive queue until the program reads it. Here the queue
              is empty: the program has seen the end and kept the descriptor. CLOSE_WAIT has no timer.
Not this      rqueue 1 or more: the program never got as far as reading the end (close-wait-eof-unread).
              Bytes still being acknowledged by the peer: the answer to a half-closed request, which is healthy.
What ends it  close() by the owner. From outside: a FIN through pidfd_getfd and shutdown(), or SOCK_DESTROY.
What does not Any sysctl: none of them acts on CLOSE_WAIT.
Reproduce     finwait lab run close-wait-eof-read
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Remedy
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    NOT_FIN_TIMEOUT,
    RECENT_MS,
    certain,
    destroy,
    just_sent,
    look_again,
    peer_missing,
)
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["NOT_ANY_SYSCTL", "NOT_KEEPALIVE_WAITING", "PROBE_GONE", "RULE", "match", "maybe_answering"]

PROBE_GONE = Remedy(
    "probe it: the peer's socket is gone, so the first probe ends the connection; the descriptor stays open",
    "reversible",
    proofs=("holder-ends",),
)
NOT_KEEPALIVE_WAITING = Advice(
    "turn on keepalive while the peer waits",
    "its kernel answers every probe; where its socket is gone, a probe ends the connection and not the descriptor",
    proofs=("live-peer-answers", "holder-ends"),
)
NOT_ANY_SYSCTL = Advice(
    "`tcp_tw_reuse`, `tcp_keepalive_*` or any other sysctl",
    "CLOSE_WAIT has no timer in any class, and no sysctl turns keepalive on",
)


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return view.in_state(tcp.CLOSE_WAIT) & view.held & (view.sockets.rqueue == 0) & ~view.sent


def maybe_answering(view: View, rows: NDArray[np.int64], otherwise: str) -> Confidence | None:
    """Return the confidence in rows of which a single look cannot say whether they answer; None for others."""
    fresh = int(just_sent(view)[rows].sum())
    if not fresh:
        return None
    if not view.sockets.present("last_data_sent_ms")[rows].all():
        return look_again(
            f"nothing says when data was last sent: {otherwise}; `--for 5s` looks twice and tells"
        )
    return look_again(
        f"on {fresh} of {len(rows)} data was sent in the last {RECENT_MS // 1000} s: {otherwise}; "
        "`--for 5s` looks twice and tells"
    )


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    unsure = maybe_answering(view, rows, "the answer may still be going out")
    return unsure or certain("an unread FIN would count 1 in the receive queue; it is empty")


_CLUES = (
    Clue("state", "the peer has sent its FIN; we have not"),
    Clue("inode", "not 0: a descriptor refers to it"),
    Clue("rqueue", "0: all was read, the FIN too; the program knows"),
    Clue("last_ack_recv_ms", "since the peer was last heard: it has waited at least so long"),
)
_FIX = Remedy("fix the program to close() on end of file; restarting it closes what it holds now")
_DOES_NOT = (NOT_FIN_TIMEOUT, NOT_ANY_SYSCTL, NOT_KEEPALIVE_WAITING)

RULE = Rule(
    name="close-wait-eof-read",
    title="the peer closed, the program read the end of file and keeps the socket",
    severity="problem",
    rank=60,
    means="by-state",
    beyond_sysctls="CLOSE_WAIT has no timer in any kernel; the program has to close",
    claims=("C4", "X17"),
    clues=_CLUES,
    ends=(
        _FIX,
        Remedy(
            "send the FIN from outside: pidfd_getfd and shutdown(); a peer that still waits sees a clean end",
            "destructive",
            "finwait clear close-wait-eof-read",
        ),
        destroy("close-wait-eof-read"),
    ),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    cases=(
        Case(
            title="the peer closed and is gone; the program read the end of file and keeps the socket",
            rows=peer_missing,
            clues=_CLUES,
            ends=(
                _FIX,
                replace(PROBE_GONE, command="finwait probe rule = close-wait-eof-read"),
                destroy("close-wait-eof-read"),
            ),
            does_not=(NOT_FIN_TIMEOUT, NOT_ANY_SYSCTL),
        ),
    ),
)
