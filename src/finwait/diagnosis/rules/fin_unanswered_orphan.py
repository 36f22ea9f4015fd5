"""fin-unanswered-orphan: closed by its program, and nobody acknowledges the FIN.

Seen as       FIN_WAIT1, LAST_ACK or CLOSING with inode 0 on the retransmission timer.
Why it stays  The path or the peer is gone. The kernel retransmits the FIN tcp_orphan_retries times (0 means 8),
              about 107 s in all, and gives up without a RST.
Not this      An inode: then tcp_retries2 counts, up to 15 minutes (fin-unanswered-held). timer 4: the FIN
              could not even be sent (zero-window).
What ends it  Time. tcp_orphan_retries bounds the next ones.
What does not tcp_fin_timeout: it is about FIN_WAIT2.
Reproduce     finwait lab run fin-unanswered-orphan
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import certain
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["NOT_FIN_TIMEOUT_HERE", "RULE", "match"]

NOT_FIN_TIMEOUT_HERE = Advice(
    "lower `net.ipv4.tcp_fin_timeout`", "it is about FIN_WAIT2; this FIN was never acknowledged"
)


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    return (
        view.in_state(tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING)
        & ~view.held
        & (s.timer == 1)
        & (s.retrans >= view.options.retransmits)
    )


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    return certain(
        f"at least {int(view.sockets.retrans[rows].min())} retransmissions of the FIN without answer"
    )


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    paths = sorted(
        {
            view.cgroup_paths[c]
            for c in np.unique(view.sockets.cgroup_id[rows]).tolist()
            if c in view.cgroup_paths
        }
    )
    if not paths:
        return ()
    return (
        Evidence(
            "cgroup",
            ", ".join(paths[:3]),
            "INET_DIAG_CGROUP_ID",
            "where the socket was made: the only name left of its program",
        ),
    )


RULE = Rule(
    name="fin-unanswered-orphan",
    title="closed by its program; the FIN is retransmitted and nobody answers",
    severity="notice",
    rank=40,
    claims=("C11", "S21", "X04"),
    clues=(
        Clue("state", "our FIN is out and not acknowledged"),
        Clue("inode", "0: no descriptor refers to it any more"),
        Clue("timer", "1: the FIN is being retransmitted"),
        Clue("retrans", "retransmissions in a row without answer"),
        Clue("wqueue", "what is not acknowledged, the FIN counting 1"),
        Clue("cgroup_id", "where it was made"),
    ),
    ends=(
        Remedy("it ends by itself: about 107 s with the default tcp_orphan_retries", "read-only"),
        Remedy("`tcp_orphan_retries` bounds the next ones; TCP_USER_TIMEOUT in the program does too"),
    ),
    does_not=(
        NOT_FIN_TIMEOUT_HERE,
        Advice("`tcp_orphan_retries=0`", "0 is the default and means 8"),
    ),
    confidence=_confidence,
    match=match,
    observe=_observe,
)
