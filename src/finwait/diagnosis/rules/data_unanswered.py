"""data-unanswered: this end keeps retransmitting, and nobody answers.

Seen as       ESTABLISHED or CLOSE_WAIT on the retransmission timer, with several unanswered
              retransmissions.
Why it stays  The peer or the path is gone while data is in flight. TCP retransmits with doubling
              pauses and gives up after tcp_retries2. That setting stands for a time, not a count:
              the time that this many retransmissions take with an RTO of 200 ms (about 15 minutes
              by default), whatever the real RTO is, checked when the timer fires. If this machine
              itself refuses to send (a full queue), it tries every 0.5 s, and retrans goes far
              above 15. Keepalive does not run while data is in flight. If the other end is on this
              machine and has received more than was acknowledged here, the peer does answer: its
              acknowledgment is lost on the way back. If the other end is still in SYN_RECV at a
              listener of this machine whose accept queue is full, that is why: while it is full, the
              kernel drops the last packet of the handshake, and all data after it
              (tcp_v4_syn_recv_sock(), net/ipv4/tcp_ipv4.c). finwait names the listener.
Not this      timer 4: the peer answers, and has closed its window (zero-window).
What ends it  TCP_USER_TIMEOUT set on the socket (from outside too, by pidfd_getfd); SOCK_DESTROY;
              time.
Won't help    Keepalive; tcp_fin_timeout.
Reproduce     finwait lab run data-unanswered
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import forecast
from finwait.diagnosis.arrival import FIND_THE_LOSS, NOT_AT_PEER, WAY_BACK, arrived, looks, observed
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    BOUND_IN_FLIGHT,
    NOT_FIN_TIMEOUT,
    UNLESS_SET,
    certain,
    destroy,
    holder_names,
    likely,
    watched_long,
)
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["NOT_KEEPALIVE_IN_FLIGHT", "RULE", "match"]

_SHOWN = 3

NOT_KEEPALIVE_IN_FLIGHT = Advice(
    "turn on keepalive now",
    "it does not run while data is in flight; the retransmission timer is running instead",
    proofs=("dead-peer",),
)


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    return (
        view.in_state(tcp.ESTABLISHED, tcp.CLOSE_WAIT)
        & (s.timer == 1)
        & (s.retrans >= view.options.retransmits)
        & ((s.unacked > 0) | ~s.present("unacked"))
        & ~view.sent  # lossy, but somebody answers
    )


def _full_doors(view: View) -> dict[int, int]:
    """Return rows whose other end is an incomplete handshake at a listener with a full accept queue, and that listener.

    Of listeners that share the port all must be full: which of them received the SYN is not known.
    """
    s = view.sockets
    if not len(view.handshakes[0]):
        return {}
    full = s.rqueue > s.wqueue  # sk_acceptq_is_full()
    doors: dict[int, int] = {}
    room: set[int] = set()
    for row, door in zip(*(part.tolist() for part in view.handshakes), strict=True):
        doors.setdefault(row, door)
        if not full[door]:
            room.add(row)
    waiting = np.flatnonzero(match(view) & (view.other >= 0))
    others = zip(waiting.tolist(), view.other[waiting].tolist(), strict=True)
    return {row: doors[other] for row, other in others if other in doors and other not in room}


def _at_full(view: View) -> NDArray[np.bool_]:
    out = np.zeros(len(view), np.bool_)
    out[[*_full_doors(view)]] = True
    return out


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return what the other ends show, and the full accept queues behind which they wait."""
    s = view.sockets
    doors = _full_doors(view)
    result = []
    for door in sorted({doors[row] for row in rows.tolist() if row in doors})[:_SHOWN]:
        place = view.namespaces[n].label if (n := int(s.netns[door])) in view.namespaces else f"netns {n}"
        result.append(
            Evidence(
                "full listener",
                f"{view.ends(door)[0]} in {place}, {s.rqueue[door]} of {s.wqueue[door]} waiting",
                "sock_diag",
                f"of {holder_names(view, door)}; while its accept queue is full, its kernel drops the last packet of "
                "the handshake, and all data after it",
            )
        )
    return (*result, *observed(view, rows))


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    n = int(view.sockets.retrans[rows].min())
    tries = f"at least {n} retransmissions in a row without an acknowledgment"
    if _at_full(view)[rows].all():
        return likely(
            f"{tries}, and the other end waits for room in an accept queue that is full at this moment"
        )
    if not arrived(view)[rows].all():
        return certain(tries)
    more = "and the other end has received more than this end has had acknowledged"
    if watched_long(view)[rows].all():
        return certain(f"{tries}, {more}")
    return likely(
        f"{tries}, {more}; in a single look an acknowledgment may be on its way, check with `--for 5s`"
    )


_CLUES = (
    Clue("timer", "1: waiting for an acknowledgment"),
    Clue("retrans", "unanswered retransmissions in a row"),
    Clue("backoff", "how often the timer was doubled so far"),
    Clue("unacked", "unacknowledged segments"),
    Clue("last_ack_recv_ms", "time since anything was last heard from the peer"),
    Clue("expires_ms", "time until the next retransmission"),
)
_ENDS = (
    Remedy(
        "set TCP_USER_TIMEOUT on the socket (pidfd_getfd); the connection ends when its data stays "
        "unacknowledged that long",
        "reversible",
        "finwait clear data-unanswered",
        proofs=("dead-peer",),
        descriptor=True,
    ),
    destroy("data-unanswered"),
    BOUND_IN_FLIGHT,
    Remedy(
        f"it ends by itself after {forecast.span(forecast.retransmission())} with the kernel's defaults "
        "(`tcp_retries2`)",
        "read-only",
        proofs=("retransmission-limits", "refused-here"),
    ),
)


_ACCEPT = Remedy(
    "the program of that listener has to accept, or to accept faster; the handshake is then completed, and the data "
    "arrives (`finwait explain accept-queue-full` shows how)",
    proofs=("queue-overflow",),
)


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    when = f"{forecast.ends_by_itself(view, rows)} (`tcp_retries2`), {UNLESS_SET}"
    first = (_ACCEPT,) if _at_full(view)[rows].all() else looks(view, rows)
    return (*first, *_ENDS[:-1], Remedy(when, "read-only"))


_DOES_NOT = (NOT_KEEPALIVE_IN_FLIGHT, NOT_FIN_TIMEOUT)

RULE = Rule(
    name="data-unanswered",
    title="data in flight is retransmitted again and again, and nobody answers",
    severity="problem",
    rank=40,
    harm="stall",
    turn=Turn("far", "answer"),
    means="user-timeout",
    beyond_sysctls="only the retransmission limits and TCP_USER_TIMEOUT limit it",
    claims=("C10", "X20"),
    clues=_CLUES,
    ends=_ENDS,
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    remedies=_remedies,
    cases=(
        Case(
            title=(
                "data is retransmitted although the peer has received it; the acknowledgment is lost on the way "
                "back"
            ),
            rows=arrived,
            turn=Turn("path", "let ACKs pass"),
            clues=_CLUES,
            ends=(FIND_THE_LOSS, WAY_BACK, *_ENDS),
            does_not=(NOT_AT_PEER, *_DOES_NOT),
        ),
        Case(
            title=(
                "data is retransmitted because the accept queue of the other end's listener is full: there the "
                "connection is not open yet"
            ),
            rows=_at_full,
            turn=Turn("peer", "accept()"),
            clues=_CLUES,
            ends=(_ACCEPT, *_ENDS),
            does_not=_DOES_NOT,
        ),
    ),
)
