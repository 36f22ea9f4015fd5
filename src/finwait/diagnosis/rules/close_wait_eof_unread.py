"""close-wait-eof-unread: the peer closed, and the program has not read the end of file.

Seen as       CLOSE_WAIT with an inode and rqueue 1 (only the FIN) or more (data and the FIN).
Why it stays  Nobody reads this socket. The unread FIN counts as 1 in the receive queue. If a server
              accepted the connection (a listener has its local port), a thread is blocked
              elsewhere, the process is stopped, or the connection is no longer in any poll set. If
              a client opened the connection, it is most often idle in a connection pool, or its
              reader is stuck.
Not this      A program that is busy with its answer, or reads slowly: bytes are acknowledged or
              read between two looks. An event loop that was told and waits for a backend before it
              answers a client that half-closed: a notice, until nothing has passed for --idle. So is
              a leg that a relay leaves unread while it waits for room to send on its other leg,
              where a client is slow.
              rqueue 0: read and not closed (close-wait-eof-read). inode 0: never accepted
              (never-accepted).
What ends it  The program reads to the end and closes; a pool uses or evicts the connection; a FIN
              from outside; SOCK_DESTROY.
Won't help    Any sysctl. With unread data, the program's close() sends a RST, not a FIN (RFC 2525,
              2.17).
Reproduce     finwait lab run close-wait-eof-unread
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.moves import Move
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    NOT_FIN_TIMEOUT,
    certain,
    destroy,
    likely,
    only_kernel_sends,
    paused_relay,
    peer_missing,
    possible,
    silence,
    watched_long,
)
from finwait.diagnosis.rules.close_wait_eof_read import (
    NOT_ANY_SYSCTL,
    NOT_KEEPALIVE_WAITING,
    PROBE_GONE,
    maybe_answering,
)
from finwait.diagnosis.rules.established_unread import WHAT_IT_WAITS_FOR, holding, process_states, stopped
from finwait.diagnosis.view import View
from finwait.table.units import duration_text
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

_TOLD_ONCE = (*Move,).index(Move.TOLD_ONCE)


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    unread = view.in_state(tcp.CLOSE_WAIT) & view.held & (view.sockets.rqueue > 0) & ~view.read
    unread &= ~view.kept_from_sending  # it cannot read while it waits for room to answer
    return unread & (~view.sent | view.abandoned)


def _peer_waits(view: View) -> NDArray[np.bool_]:
    """Return rows whose peer may still wait for an answer: it half-closed, or it is elsewhere and may have."""
    other = np.maximum(view.other, 0)
    half_closed = (view.sockets.state[other] == tcp.FIN_WAIT2) & view.held[other]
    waits: NDArray[np.bool_] = ~view.clients & np.where(view.other >= 0, half_closed, ~peer_missing(view))
    return waits


def _proven(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of some rows are stuck for all that can be seen.

    An event loop that was told of the end, and sleeps again, may wait for a backend before it answers a client that
    half-closed (nginx with ``proxy_ignore_client_abort``): until nothing has passed for as long as is idle.
    """
    woken = view.moves[rows] == _TOLD_ONCE
    quiet = silence(view, "last_data_sent_ms", "last_data_recv_ms")[rows]
    fresh = (quiet >= 0) & (quiet < view.options.idle_ms)
    return ~(woken & fresh & _peer_waits(view)[rows]) & ~view.perhaps_paused[rows]


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    sends = only_kernel_sends(view, rows) is not None
    return "problem" if _proven(view, rows).all() and not sends else "notice"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    idle = duration_text(view.options.idle_ms)
    if view.perhaps_paused[rows].all():
        return paused_relay(view, "its program")
    if (sends := only_kernel_sends(view, rows)) is not None:
        return sends
    if not _proven(view, rows).all():
        return possible(
            f"its event loop was told and sleeps again: it may wait for something else, such as a backend, before it "
            f"answers; it counts as stuck once nothing has passed for {idle} (`--idle`)"
        )
    if stopped(view, holding(view, rows)):
        return certain("the process that should read is stopped")
    watched = watched_long(view)[rows].all()
    if (unsure := maybe_answering(view, rows, "the program may still be working on its answer")) is not None:
        return unsure
    with_data = int((view.sockets.rqueue[rows] > 1).sum())
    if _peer_waits(view)[rows].any() and (watched or not with_data):
        held = (
            f"{with_data} of {len(rows)} also hold unread data"
            if with_data
            else "only the FIN is unread on each"
        )
        return likely(f"{held}; a program that waits for something else before it answers looks the same")
    if with_data:
        reason = f"{with_data} of {len(rows)} also hold unread data; their close() will send a RST"
        if watched:
            return certain(reason)
        return likely(f"{reason}; a slow reader looks the same in a single look, check with `--for 5s`")
    return certain("only the FIN is unread on each")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    # That the program of an idle pool sleeps says nothing.
    if view.clients[rows].all() and not stopped(view, holding(view, rows)):
        return ()
    return process_states(view, rows)


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    if view.accepted[rows].all():
        ends: tuple[Remedy, ...] = (WHAT_IT_WAITS_FOR, _READ)
    elif view.clients[rows].all():
        ends = (_EVICT, WHAT_IT_WAITS_FOR)
    else:
        ends = (WHAT_IT_WAITS_FOR, _READ_WHERE, _EVICT_WHERE)
    if peer_missing(view)[rows].all():
        probed = replace(PROBE_GONE, command="finwait probe rule = close-wait-eof-unread")
        return (*ends, probed, *_FROM_OUTSIDE[1:])
    return (*ends, *_FROM_OUTSIDE)


_CLUES = (
    Clue("state", "the peer has sent its FIN; this end has not"),
    Clue("inode", "not 0: a descriptor refers to it"),
    Clue("rqueue", "1: only the FIN is unread; more: data as well"),
    Clue("last_ack_recv_ms", "time since the peer was last heard; a lower bound on the wait"),
)
_FROM_OUTSIDE = (
    Remedy(
        "send the FIN from outside (pidfd_getfd and shutdown()); a peer that still waits sees a clean close",
        "destructive",
        "finwait clear close-wait-eof-unread",
        proofs=("owed-fin",),
    ),
    destroy("close-wait-eof-unread"),
)
_EVICT = Remedy("evict idle connections from the pool before the server's keep-alive timeout")
_EVICT_WHERE = Remedy("if it is a pool: evict idle connections before the server's keep-alive timeout")
_READ = Remedy(
    "keep every accepted connection in the poll set, with a read timeout, and close it at end of file"
)
_READ_WHERE = Remedy(
    "if it is a server: keep every accepted connection in the poll set, with a read timeout, and close it"
)
_DOES_NOT = (NOT_FIN_TIMEOUT, NOT_ANY_SYSCTL, NOT_KEEPALIVE_WAITING)

RULE = Rule(
    name="close-wait-eof-unread",
    title="the peer closed and the program has not read that: a stuck reader or an idle pool",
    severity="problem",
    rank=60,
    harm="leak",
    turn=Turn("holder", "read, close()"),
    means="by-state",
    beyond_sysctls="CLOSE_WAIT has no timer in any kernel; the program has to read and close",
    claims=("C5", "X09"),
    clues=_CLUES,
    ends=(WHAT_IT_WAITS_FOR, _READ_WHERE, _EVICT_WHERE, *_FROM_OUTSIDE),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    grade=_grade,
    proven=_proven,
    waited=True,
    observe=_observe,
    remedies=_remedies,
    cases=(
        Case(
            title=(
                "the peer closed and this server has not read that: a blocked or stopped thread, or a forgotten "
                "connection"
            ),
            rows=lambda view: view.accepted & ~view.strangers,
            clues=_CLUES,
            ends=(WHAT_IT_WAITS_FOR, _READ, *_FROM_OUTSIDE),
            does_not=(
                Advice(
                    "restart or reconfigure the clients",
                    "they have sent their FIN; the server still has to read and close()",
                ),
                *_DOES_NOT,
            ),
        ),
        Case(
            title="the peer closed and this client has not read that: an idle pool or a stuck reader",
            rows=lambda view: view.clients,
            clues=_CLUES,
            ends=(_EVICT, WHAT_IT_WAITS_FOR, *_FROM_OUTSIDE),
            does_not=_DOES_NOT,
        ),
    ),
)
