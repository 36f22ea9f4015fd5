"""never-accepted: the connection waits in the accept queue of a program that does not accept.

Seen as       ESTABLISHED or CLOSE_WAIT with inode 0, and a listener on the same port whose queue is not empty.
Why it stays  The kernel finished the handshake; the program has not called accept(). The client may have sent
              its request, waited, and closed. A socket gets its inode only at accept().
Not this      inode 0 in FIN_WAIT or LAST_ACK: an orphan. CLOSE_WAIT cannot be an orphan at all.
What ends it  The program accepting again; restarting it resets the whole queue.
What does not Destroying the connections: the state goes, the place in the queue stays taken.
Reproduce     finwait lab run never-accepted
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import NOT_FIN_TIMEOUT, certain, likely
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

PATIENCE_MS = 1000
"""An ESTABLISHED connection may wait so long for accept() without that being worth a word."""


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    waiting = view.in_state(tcp.ESTABLISHED, tcp.CLOSE_WAIT) & ~view.held & (s.ulp != b"mptcp")
    if not waiting.any():
        return waiting
    listener = view.listener
    queue = np.where(listener >= 0, s.rqueue[np.maximum(listener, 0)], 0)
    patient = (s.state == tcp.ESTABLISHED) & (s.last_ack_recv_ms < PATIENCE_MS)
    return waiting & (listener >= 0) & (queue > 0) & ~patient


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if (view.sockets.state[rows] == tcp.CLOSE_WAIT).any():
        return certain("CLOSE_WAIT without an inode exists only in an accept queue")
    return likely("inode 0 and a listener with a queue; a very slow accept loop looks the same")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    result = []
    for row in np.unique(view.listener[rows]).tolist():
        owners = ", ".join(f"pid {pid} fd {fd}" for pid, fd in view.holders.of(row)) or "holder unknown"
        s = view.sockets
        result.append(
            Evidence(
                f"listener :{int(s.sport[row])}",
                f"{int(s.rqueue[row])} of {int(s.wqueue[row])} waiting",
                "inet_diag_msg.idiag_rqueue of the LISTEN row",
                f"connections that {owners} has not accepted",
            )
        )
    return tuple(result)


RULE = Rule(
    name="never-accepted",
    title="waiting in the accept queue of a program that does not accept",
    severity="problem",
    rank=20,
    claims=("C6", "X16"),
    clues=(
        Clue("state", "the handshake is complete; in CLOSE_WAIT the client has given up already"),
        Clue("inode", "0: accept() never gave it to the program"),
        Clue("rqueue", "what the client has sent, its FIN counting 1"),
        Clue("last_ack_recv_ms", "it has waited at least so long"),
    ),
    ends=(
        Remedy("find out why the program does not accept: a blocked loop, a full worker pool, EMFILE"),
        Remedy("restart the listening program: every connection in its queue is reset"),
    ),
    does_not=(
        Advice(
            "destroy the connections",
            "the place in the queue stays taken; accept() later returns a dead socket",
        ),
        NOT_FIN_TIMEOUT,
    ),
    confidence=_confidence,
    match=match,
    observe=_observe,
)
