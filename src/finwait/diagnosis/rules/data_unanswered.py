"""data-unanswered: we keep retransmitting, and nobody answers.

Seen as       ESTABLISHED or CLOSE_WAIT on the retransmission timer, several retransmissions without answer.
Why it stays  The peer or the path is gone while data is in flight. TCP sends again with doubling pauses, and
              gives up after tcp_retries2. That is a time, not a count: what so many retransmissions take with an
              RTO of 200 ms (about 15 minutes by default), whatever the RTO is, looked at when the timer fires.
              Where this machine itself refuses to send (a full queue) it tries every 0.5 s, and retrans goes far
              above 15. Keepalive does not run while data is in flight.
              Where the other end is on this machine and has received more than was acknowledged here, the peer does
              answer: its acknowledgment is lost on the way back.
Not this      timer 4: the peer answers, and has closed its window (zero-window).
What ends it  TCP_USER_TIMEOUT set on the socket (from outside too, by pidfd_getfd); SOCK_DESTROY; time.
What does not Keepalive; tcp_fin_timeout.
Reproduce     finwait lab run data-unanswered
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import forecast
from finwait.diagnosis.arrival import FIND_THE_LOSS, NOT_AT_PEER, WAY_BACK, arrived, looks, observed
from finwait.diagnosis.finding import Advice, Confidence, Remedy
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import BOUND_IN_FLIGHT, NOT_FIN_TIMEOUT, RECENT_MS, certain, destroy, likely
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["NOT_KEEPALIVE_IN_FLIGHT", "RULE", "match"]

NOT_KEEPALIVE_IN_FLIGHT = Advice(
    "turn on keepalive now",
    "it does not run while data is in flight: the retransmission timer runs instead",
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


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    n = int(view.sockets.retrans[rows].min())
    tries = f"at least {n} retransmissions in a row without an acknowledgment"
    if not arrived(view)[rows].all():
        return certain(tries)
    more = "and the other end has received more than this end has had acknowledged"
    if view.moved_known[rows].all() and view.watched_ms >= RECENT_MS:
        return certain(f"{tries}, {more}")
    return likely(f"{tries}, {more}; in a single look one may be on its way, `--for 5s` tells")


_CLUES = (
    Clue("timer", "1: waiting for an acknowledgment"),
    Clue("retrans", "retransmissions in a row without answer"),
    Clue("backoff", "doublings of the pause so far"),
    Clue("unacked", "segments that nobody acknowledged"),
    Clue("last_ack_recv_ms", "since anything was last heard of the peer"),
    Clue("expires_ms", "until the next retransmission"),
)
_ENDS = (
    Remedy(
        "set TCP_USER_TIMEOUT on the socket (pidfd_getfd): it then ends after so long unanswered",
        "reversible",
        "finwait clear data-unanswered",
        proofs=("dead-peer",),
    ),
    destroy("data-unanswered"),
    BOUND_IN_FLIGHT,
    Remedy(
        f"it ends by itself: with the kernel's defaults after {forecast.span(forecast.retransmission())} "
        "(`tcp_retries2`)",
        "read-only",
        proofs=("retransmission-limits", "refused-here"),
    ),
)


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    when = (
        f"it ends by itself {forecast.ends_by_itself(view, rows)} (`tcp_retries2`), without TCP_USER_TIMEOUT"
    )
    return (*looks(view, rows), *_ENDS[:-1], Remedy(when, "read-only"))


_DOES_NOT = (NOT_KEEPALIVE_IN_FLIGHT, NOT_FIN_TIMEOUT)

RULE = Rule(
    name="data-unanswered",
    title="data in flight, retransmitted again and again, and nobody answers",
    severity="problem",
    rank=40,
    means="user-timeout",
    beyond_sysctls="only the retransmission limits and TCP_USER_TIMEOUT govern it",
    claims=("C10", "X20"),
    clues=_CLUES,
    ends=_ENDS,
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=observed,
    remedies=_remedies,
    cases=(
        Case(
            title="data is retransmitted although the peer has received it: its acknowledgment is lost on the way back",
            rows=arrived,
            clues=_CLUES,
            ends=(FIND_THE_LOSS, WAY_BACK, *_ENDS),
            does_not=(NOT_AT_PEER, *_DOES_NOT),
        ),
    ),
)
