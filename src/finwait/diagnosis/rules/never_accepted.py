"""never-accepted: the connection waits in the accept queue of a program that does not accept.

Seen as       CLOSE_WAIT with inode 0; or ESTABLISHED with inode 0, and a listener on the same port whose queue is not
              empty. Several listeners may share the port (SO_REUSEPORT): then all of them are named, with their queues.
Why it stays  The kernel finished the handshake; the program has not called accept(). The client may have sent
              its request, waited, and closed. A socket gets its inode only at accept().
Not this      inode 0 in FIN_WAIT or LAST_ACK: an orphan. CLOSE_WAIT cannot be an orphan at all.
What ends it  The program accepting again; restarting it resets the whole queue.
What does not Destroying the connections: the state goes, the place in the queue stays taken (accept-queue-full tells
              of the listener then, and `finwait clear` leaves them alone).
Reproduce     finwait lab run never-accepted
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import certain, holder_names, likely, look_again, silence
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

PATIENCE_MS = 1000
"""A connection may wait so long for accept() without that being worth a word."""


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    waiting = view.queued & (s.ulp != b"mptcp")  # of MPTCP the connection itself, which is a row of its own
    if not waiting.any():
        return waiting
    # CLOSE_WAIT without an inode exists nowhere else; ESTABLISHED does, for the moment of an accept().
    queued = (s.state == tcp.CLOSE_WAIT) | (view.waiting > 0)
    patient = s.present("last_ack_recv_ms") & (_waited_ms(view) < PATIENCE_MS)
    return waiting & queued & ~patient


def _waited_ms(view: View) -> NDArray[np.int64]:
    """Return how long each row has waited for its accept(), at least; −1 where nothing says."""
    return np.maximum(silence(view, "last_ack_recv_ms"), np.where(view.age_source == 3, view.at_least_ms, -1))


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if (_waited_ms(view)[rows] < PATIENCE_MS).any():
        return look_again("nothing says since when it waits; `--for 5s` looks twice and tells")
    if (view.sockets.state[rows] == tcp.CLOSE_WAIT).any():
        return certain("CLOSE_WAIT without an inode exists only in an accept queue")
    return likely("inode 0 and a listener with a queue; a very slow accept loop looks the same")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    s = view.sockets
    row, listener = view.listeners
    candidates = np.unique(listener[np.isin(row, rows)])
    alike = Counter(view.ends(one)[0] for one in candidates.tolist())
    result = []
    for one in candidates[np.lexsort((-s.rqueue[candidates].astype(np.int64), s.sport[candidates]))].tolist():
        several = alike[view.ends(one)[0]]
        owners = holder_names(view, one)
        port = int(s.sport[one])
        says = f"connections that {owners} has not accepted"
        if several > 1:
            says += f"; {several} listeners share the address, and no row says which has a connection"
            if not s.rqueue[one]:
                says = f"{owners} shares the address, and has accepted all that it got"
        result.append(
            Evidence(
                f"listener :{port}",
                f"{int(s.rqueue[one])} of {int(s.wqueue[one])} waiting",
                "inet_diag_msg.idiag_rqueue of the LISTEN row",
                says,
            )
        )
    return tuple(result)


RULE = Rule(
    name="never-accepted",
    title="waiting in the accept queue of a program that does not accept",
    severity="problem",
    rank=20,
    means="by-state",
    beyond_sysctls="the connection waits in the accept queue for the program's accept()",
    claims=("C6", "X16"),
    clues=(
        Clue("state", "the handshake is complete; in CLOSE_WAIT the client has given up already"),
        Clue("inode", "0: accept() never gave it to the program"),
        Clue("rqueue", "what the client has sent, its FIN counting 1"),
        Clue("last_ack_recv_ms", "it has waited at least so long"),
    ),
    ends=(
        Remedy(
            "find out why the program does not accept: a blocked loop, a full worker pool, EMFILE, a stopped process"
        ),
        Remedy("restart the listening program: every connection in its queue is reset"),
    ),
    does_not=(
        Advice(
            "destroy the connections",
            "the place in the queue stays taken; accept() later returns a dead socket",
        ),
        Advice(
            "lower `net.ipv4.tcp_fin_timeout`",
            "it is about orphans in FIN_WAIT2; these were never accepted here",
        ),
    ),
    confidence=_confidence,
    match=match,
    observe=_observe,
)
