"""unexplained: it is neither open nor finished, and no rule of finwait knows why.

Seen as       Any state except ESTABLISHED and LISTEN that no other rule explains, healthy patterns
              included.
Why it stays  Unknown. It may be between two states for an instant; a second look shows only those
              that stay.
Not this      Rows that another rule explains. ESTABLISHED: an open connection needs no explanation.
What ends it  Also unknown. The evidence lists everything that could decide; a recording of it
              (`finwait record`) is the best bug report.
Won't help    Guessing: without a cause no cure can be named. Destroying it is possible and explains
              nothing.
Reproduce     not possible on demand: every pattern that can be built has a rule. On Linux 6.18,
              MPTCP connections that were reset, refused or closed at one end were tried, without a
              find. The rule is tested with recordings of real sockets whose states and timers are
              altered to every number that a state can have.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import RECENT_MS, likely, look_again
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows want an explanation; the engine takes away those that another rule explains."""
    need_none = (tcp.ESTABLISHED, tcp.LISTEN, tcp.BOUND_INACTIVE)
    return ~np.isin(view.sockets.state, need_none)


def _passing(view: View) -> NDArray[np.bool_]:
    """Return rows of which nobody knows that they have been in their state for seconds."""
    return view.at_least_ms < RECENT_MS


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "notice" if _passing(view)[rows].all() else "problem"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if not _passing(view)[rows].any():
        return likely("it has been in its state for seconds, so it is not just passing through")
    return look_again("it may be on its way to another state; check with `--for 5s`")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return what decides elsewhere and is no column: the other end."""
    other = view.other[rows]
    peer_rows = other[other >= 0]
    if not len(peer_rows):
        return ()
    states, counts = np.unique(view.sockets.state[peer_rows], return_counts=True)
    summary = ", ".join(
        f"{tcp.state_name(s)} ×{n}" for s, n in zip(states.tolist(), counts.tolist(), strict=True)
    )
    return (
        Evidence("other end", summary, "sock_diag", "the state of the other end, if that is on this machine"),
    )


_CLUES = (
    Clue("state", "the state that the kernel reports"),
    Clue("inode", "0: no descriptor refers to it"),
    Clue("timer", "0: nothing will fire; 1 retransmission, 2 keepalive or FIN, 3 timewait, 4 probe"),
    Clue("expires_ms", "time until it fires"),
    Clue("retrans", "retransmissions or probes in a row"),
    Clue("backoff", "how often the timer was doubled"),
    Clue("rqueue", "bytes that the program has not read; a FIN counts as 1"),
    Clue("wqueue", "bytes that the peer has not acknowledged; a FIN counts as 1"),
    Clue("notsent_bytes", "bytes of these that were never sent"),
    Clue("unacked", "segments in flight"),
    Clue("snd_wnd", "the peer's receive window"),
    Clue("shutdown", "1: receiving is shut, 2: sending, 3: both"),
    Clue("last_ack_recv_ms", "time since anything was last heard from the peer"),
    Clue("last_data_sent_ms", "time since data was last sent"),
    Clue("last_data_recv_ms", "time since data last arrived"),
    Clue("protocol", "6 TCP, 262 MPTCP"),
)
_ENDS = (
    Remedy("look again with `--for 5s`, to tell passing connections from stuck ones", "read-only"),
    Remedy(
        "record it for a bug report; the file is redacted, and any command can read it",
        "read-only",
        "finwait record --redact unexplained.finwait",
    ),
)
_DOES_NOT = (
    Advice(
        "one of the popular cures",
        "no cure can be chosen without a cause, and most of them act on other states",
    ),
)

RULE = Rule(
    name="unexplained",
    title="neither open nor finished, and none of the rules applied explains it",
    severity="problem",
    rank=1000,
    harm="stall",
    turn=Turn("unknown"),
    means="by-state",
    beyond_sysctls="the cause is unknown, so no setting is known to act on it",
    claims=("C0",),
    clues=_CLUES,
    ends=_ENDS,
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    rest=True,
    cases=(
        Case(
            title="neither open nor finished, and none of the rules applied explains it; it may be passing",
            rows=_passing,
            clues=_CLUES,
            ends=_ENDS,
            does_not=_DOES_NOT,
        ),
    ),
)
