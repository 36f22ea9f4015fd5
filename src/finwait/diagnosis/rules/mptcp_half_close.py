"""mptcp-half-close: an MPTCP connection that does not finish closing, while its subflows look ESTABLISHED.

Seen as       An MPTCP row (IPPROTO_MPTCP dump) in FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK or CLOSING.
Why it stays  As with TCP: one side shut down sending and the other does not close. But the FIN is one of the
              data level: the TCP subflows stay ESTABLISHED with shutdown bits 0.
Not this      A connection that fell back to plain TCP: its TCP row tells the truth.
What ends it  The peer's close; close() by the owner; destroying the subflows.
What does not Looking at TCP rows; tcp_fin_timeout while it is held.
Reproduce     finwait lab run mptcp-half-close
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Remedy
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import CLOSE_AT_PEER, NOT_FIN_TIMEOUT, certain
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    states = (tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)
    return (s.protocol == 262) & np.isin(s.state, states) & view.held


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:  # noqa: ARG001
    return certain("the MPTCP row is the connection; its state is the one that counts")


RULE = Rule(
    name="mptcp-half-close",
    title="an MPTCP connection is half-closed and held; its subflows still look ESTABLISHED",
    severity="problem",
    rank=45,
    claims=("C17", "X49"),
    clues=(
        Clue("protocol", "262: the MPTCP connection itself, not one of its subflows"),
        Clue("state", "where the data level stopped"),
        Clue("inode", "not 0: a descriptor refers to it"),
        Clue("mptcp_subflows", "additional subflows, each a TCP row of its own"),
        Clue("rqueue", "bytes not read"),
    ),
    ends=(
        CLOSE_AT_PEER,
        Remedy(
            "a FIN from its CLOSE_WAIT end where that is here, else a reset (MPTCP's fast close) through the "
            "descriptor: SOCK_DESTROY does not know MPTCP",
            "destructive",
            "finwait clear mptcp-half-close",
        ),
    ),
    does_not=(Advice("look at the TCP rows", "subflows stay ESTABLISHED, shutdown bits 0"), NOT_FIN_TIMEOUT),
    confidence=_confidence,
    match=match,
)
