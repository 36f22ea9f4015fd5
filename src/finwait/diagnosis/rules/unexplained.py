"""unexplained: it is neither open nor finished, and no rule of finwait knows why.

Seen as       Any state but ESTABLISHED and LISTEN that no other rule explains, healthy patterns included.
Why it stays  Not known. It may be between two states for an instant; what is still there at a second look is not.
Not this      Rows that another rule explains. ESTABLISHED: an open connection needs no explanation.
What ends it  Not known either. The evidence has all that could decide; a recording (`finwait record`) of it is the
              best bug report there is.
What does not Guessing: without a cause, no cure can be named. Destroying it is possible and explains nothing.
Reproduce     not possible on demand: a pattern that can be made has a rule. On Linux 6.18 MPTCP connections that were
              reset, refused or closed at one end were tried, without a find. What the rule says is tested with
              recordings of real sockets whose states and timers are altered, by every number that a state can have.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity
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
        return likely("it has been in its state for seconds: it is not on its way to another")
    return look_again("it may be on its way to another state; `--for 5s` looks twice and tells")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return what decides elsewhere and is no column: the other end."""
    other = view.other[rows]
    there = other[other >= 0]
    if not len(there):
        return ()
    states, counts = np.unique(view.sockets.state[there], return_counts=True)
    said = ", ".join(
        f"{tcp.state_name(s)} ×{n}" for s, n in zip(states.tolist(), counts.tolist(), strict=True)
    )
    return (Evidence("other end", said, "sock_diag", "state of the other end, where it is on this machine"),)


_CLUES = (
    Clue("state", "what the kernel calls it"),
    Clue("inode", "0: no descriptor refers to it"),
    Clue("timer", "0: nothing will fire; 1 retransmission, 2 keepalive or FIN, 3 timewait, 4 probe"),
    Clue("expires_ms", "until it fires"),
    Clue("retrans", "retransmissions or probes in a row"),
    Clue("backoff", "doublings of the timer"),
    Clue("rqueue", "not read by the program, a FIN counting 1"),
    Clue("wqueue", "not acknowledged by the peer, a FIN counting 1"),
    Clue("notsent_bytes", "of that, never sent once"),
    Clue("unacked", "segments in flight"),
    Clue("snd_wnd", "room that the peer offers"),
    Clue("shutdown", "1: receiving is shut, 2: sending, 3: both"),
    Clue("last_ack_recv_ms", "since anything was heard of the peer"),
    Clue("last_data_sent_ms", "since data was sent"),
    Clue("last_data_recv_ms", "since data came"),
    Clue("protocol", "6 TCP, 262 MPTCP"),
)
_ENDS = (
    Remedy("look again: `--for 5s` tells what is only passing from what stays", "read-only"),
    Remedy(
        "record it for a report: the file is redacted and any command can read it",
        "read-only",
        "finwait record --redact unexplained.finwait",
    ),
)
_DOES_NOT = (
    Advice("one of the popular cures", "without a cause none can be chosen, and most act on other states"),
)

RULE = Rule(
    name="unexplained",
    title="neither open nor finished, and no rule that was applied explains it",
    severity="problem",
    rank=1000,
    means="by-state",
    beyond_sysctls="nobody knows why it stays, so no setting is known to act on it",
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
            title="neither open nor finished, and no rule that was applied explains it; it may be passing",
            rows=_passing,
            clues=_CLUES,
            ends=_ENDS,
            does_not=_DOES_NOT,
        ),
    ),
)
