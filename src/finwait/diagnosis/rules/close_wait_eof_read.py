"""close-wait-eof-read: the peer closed, everything was read, and the program did not close.

Seen as       CLOSE_WAIT with an inode and an empty receive queue (rqueue 0).
Why it stays  The peer closed. Its FIN counts as 1 in the receive queue until it is read, and the queue
              is empty. The program has read everything and kept the descriptor. It need not know of
              the end: a read that takes the last bytes takes the FIN behind them with it, and only
              the next read returns the end of file. CLOSE_WAIT has no timer.
Not this      rqueue 1 or more: the program has not read the end of file yet
              (close-wait-eof-unread). The peer still acknowledges bytes: this is the answer to a
              half-closed request, which is healthy. The program may be waiting for the peer to make
              room for its answer (zero-window). A relay whose client on its other leg is slow closes
              this leg later: where the program may be waiting to send on another connection, this is
              a notice until nothing has passed for --idle (10 minutes).
What ends it  close() by the owner. From outside: a FIN through pidfd_getfd and shutdown(), or
              SOCK_DESTROY.
Won't help    Any sysctl: none of them acts on CLOSE_WAIT.
Reproduce     finwait lab run close-wait-eof-read
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    LONG_WORK,
    NOT_FIN_TIMEOUT,
    RECENT_MS,
    certain,
    destroy,
    just_sent,
    likely,
    look_again,
    may_answer,
    only_kernel_sends,
    paused_relay,
    peer_missing,
    silence,
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
    "the peer's kernel answers every probe; if the peer's socket is gone, a probe ends the connection but "
    "leaves the descriptor open",
    proofs=("live-peer-answers", "holder-ends"),
)
NOT_ANY_SYSCTL = Advice(
    "`tcp_tw_reuse`, `tcp_keepalive_*` or any other sysctl",
    "CLOSE_WAIT has no timer in any kernel, and no sysctl turns keepalive on",
)


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    read = view.in_state(tcp.CLOSE_WAIT) & view.held & (view.sockets.rqueue == 0) & ~view.kept_from_sending
    # What it writes waits for room at the peer: that is zero-window.
    return read & (~view.sent | view.abandoned) & ~(view.wrote & view.shut_out)


def maybe_answering(view: View, rows: NDArray[np.int64], otherwise: str) -> Confidence | None:
    """Return the confidence in rows of which a single look cannot say whether they answer; None for others."""
    fresh = int(just_sent(view)[rows].sum())
    if not fresh:
        return None
    s = view.sockets
    sent = s.present("data_segs_out") | (s.bytes_acked > 1)  # a 1 may be the SYN
    if not (s.present("last_data_sent_ms") & sent)[rows].all():
        return look_again(f"it is not known when data was last sent: {otherwise}; check with `--for 5s`")
    return look_again(
        f"data was sent on {fresh} of {len(rows)} in the last {RECENT_MS // 1000} s: {otherwise}; check with "
        "`--for 5s`"
    )


def _paused(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    return view.perhaps_paused[rows]


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    waits = _paused(view, rows).all() or only_kernel_sends(view, rows) is not None
    return "notice" if waits else "problem"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if _paused(view, rows).all():
        return paused_relay(view, "its program")
    if (sends := only_kernel_sends(view, rows)) is not None:
        return sends
    unsure = maybe_answering(view, rows, "the answer may still be on its way out")
    if unsure is not None:
        return unsure
    empty = "an unread FIN would count as 1 in the receive queue, and the queue is empty"
    quiet = silence(view, "last_data_sent_ms", "last_data_recv_ms")[rows]
    if (may_answer(view)[rows] & (quiet < view.options.idle_ms)).any():
        return likely(f"{empty}; {LONG_WORK}")
    return certain(empty)


_CLUES = (
    Clue("state", "the peer has sent its FIN; this end has not"),
    Clue("inode", "not 0: a descriptor refers to it"),
    Clue("rqueue", "0: everything was read, including the FIN; the next read returns the end of file"),
    Clue("last_ack_recv_ms", "time since the peer was last heard; a lower bound on the wait"),
)
_FIX = Remedy("fix the program to close() at end of file; a restart closes the ones it holds now")
_DOES_NOT = (NOT_FIN_TIMEOUT, NOT_ANY_SYSCTL, NOT_KEEPALIVE_WAITING)

RULE = Rule(
    name="close-wait-eof-read",
    title="the peer closed; the program has read everything and keeps the socket",
    severity="problem",
    rank=60,
    harm="leak",
    turn=Turn("holder", "close()"),
    means="by-state",
    beyond_sysctls="CLOSE_WAIT has no timer in any kernel; the program has to close",
    claims=("C4", "X17"),
    clues=_CLUES,
    ends=(
        _FIX,
        Remedy(
            "send the FIN from outside (pidfd_getfd and shutdown()); a peer that still waits sees a clean close",
            "destructive",
            "finwait clear close-wait-eof-read",
            proofs=("owed-fin",),
        ),
        destroy("close-wait-eof-read"),
    ),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    grade=_grade,
    proven=_paused,
    waited=True,
    cases=(
        Case(
            title="the peer closed and is gone; the program has read everything and keeps the socket",
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
