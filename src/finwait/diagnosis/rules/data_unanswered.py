"""data-unanswered: we keep retransmitting, and nobody answers.

Seen as       ESTABLISHED or CLOSE_WAIT on the retransmission timer, several retransmissions without answer.
Why it stays  The peer or the path is gone while data is in flight. TCP sends it again with doubling
              pauses until tcp_retries2 is reached, which stands for a time: by default about 15 minutes.
              Keepalive does not run while data is in flight.
Not this      timer 4: the peer answers, and has closed its window (zero-window).
What ends it  TCP_USER_TIMEOUT set on the socket (from outside too, by pidfd_getfd); SOCK_DESTROY; time.
What does not Keepalive; tcp_fin_timeout.
Reproduce     finwait lab run data-unanswered
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import forecast
from finwait.diagnosis.finding import Advice, Confidence, Remedy
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import NOT_FIN_TIMEOUT, certain, destroy
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["NOT_KEEPALIVE_IN_FLIGHT", "RULE", "match"]

NOT_KEEPALIVE_IN_FLIGHT = Advice(
    "turn on keepalive", "it does not run while data is in flight: timer 1 has the word"
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
    return certain(f"at least {n} retransmissions in a row without an acknowledgement")


_ENDS = (
    Remedy(
        "set TCP_USER_TIMEOUT on the socket (pidfd_getfd): it then ends after so long unanswered",
        "reversible",
        "finwait clear data-unanswered",
    ),
    destroy("data-unanswered"),
    Remedy(
        f"it ends by itself after {forecast.span(forecast.retransmission())} (`tcp_retries2`)", "read-only"
    ),
)


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    when = (
        f"it ends by itself {forecast.ends_by_itself(view, rows)} (`tcp_retries2`), without TCP_USER_TIMEOUT"
    )
    return (*_ENDS[:-1], Remedy(when, "read-only"))


RULE = Rule(
    name="data-unanswered",
    title="data in flight, retransmitted again and again, and nobody answers",
    severity="problem",
    rank=40,
    claims=("C10", "X20"),
    clues=(
        Clue("timer", "1: waiting for an acknowledgement"),
        Clue("retrans", "retransmissions in a row without answer"),
        Clue("backoff", "doublings of the pause so far"),
        Clue("unacked", "segments that nobody acknowledged"),
        Clue("last_ack_recv_ms", "since anything was last heard of the peer"),
        Clue("expires_ms", "until the next retransmission"),
    ),
    ends=_ENDS,
    does_not=(NOT_KEEPALIVE_IN_FLIGHT, NOT_FIN_TIMEOUT),
    confidence=_confidence,
    match=match,
    remedies=_remedies,
)
