"""never-accepted: the connection waits in the accept queue, and the program has not accepted it.

Seen as       CLOSE_WAIT with inode 0; or ESTABLISHED with inode 0, and a listener on the same port
              whose queue is not empty. Several listeners may share the port (SO_REUSEPORT): all of
              them are then listed with their queues.
Why it stays  The kernel completed the handshake; the program has not called accept() for it. The
              client may have sent its request, waited, and closed. A socket gets its inode only
              at accept(). Two looks show whether the program accepts others: then it is only
              slow, and that is a notice.
Not this      inode 0 in FIN_WAIT or LAST_ACK: an orphan. CLOSE_WAIT can never be an orphan.
What ends it  The program accepts it; a restart resets the whole queue.
Won't help    Destroying the connections: the state goes, but the place in the queue stays taken
              (accept-queue-full then reports the listener, and `finwait clear` leaves these
              connections alone).
Reproduce     finwait lab run never-accepted
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import certain, holder_names, look_again, silence
from finwait.diagnosis.rules.accept_queue_full import BUSY, FASTER, stuck
from finwait.diagnosis.view import View
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

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
    again = view.lone_before is None
    if (_waited_ms(view)[rows] < PATIENCE_MS).any():
        return look_again("it is not known how long it has waited; check with `--for 5s`")
    closed = int((view.sockets.state[rows] == tcp.CLOSE_WAIT).sum())
    only_there = "CLOSE_WAIT without an inode exists only in an accept queue"
    if _slow(view)[rows].all():
        return certain(f"its program accepted others within {view.watched_ms / 1000:.1f} s, and it waits")
    slow = (
        "; in a single look a slow accept loop looks the same, check with `--for 5s`"
        if again
        else f"; {BUSY}"
    )
    row, listener = view.listeners
    if stuck(view, distinct(listener[np.isin(row, rows)])):
        slow, again = "; its program is stopped, and accepts nothing until it goes on", False
    if closed == len(rows):
        return Confidence("certain", f"{only_there}{slow}", again)
    others = f"inode 0 and a listener with a queue{slow}"
    text = f"{closed} of {len(rows)}: {only_there}; the others: {others}" if closed else others
    return Confidence("likely", text, again)


def _slow(view: View) -> NDArray[np.bool_]:
    """Return rows of which every queue that they may wait in is one that its program takes connections from."""
    row, listener = view.listeners
    waiting = view.sockets.rqueue[listener] > 0
    out = np.zeros(len(view), np.bool_)
    out[row[waiting]] = True
    out[row[waiting & ~view.accepting.taken[listener]]] = False
    return out


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "notice" if _slow(view)[rows].all() else "problem"


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    s = view.sockets
    row, listener = view.listeners
    candidates = distinct(listener[np.isin(row, rows)])
    alike = Counter(view.ends(candidate)[0] for candidate in candidates.tolist())
    result = []
    for candidate in candidates[
        np.lexsort((-s.rqueue[candidates].astype(np.int64), s.sport[candidates]))
    ].tolist():
        several = alike[view.ends(candidate)[0]]
        owners = holder_names(view, candidate)
        port = int(s.sport[candidate])
        says = f"connections that {owners} has not accepted"
        if several > 1:
            says += (
                f"; {several} listeners share the address, and no row shows which of them has a connection"
            )
            if not s.rqueue[candidate]:
                says = f"{owners} shares the address and has accepted everything it got"
        result.append(
            Evidence(
                f"listener :{port}",
                f"{int(s.rqueue[candidate])} of {int(s.wqueue[candidate])} waiting",
                "inet_diag_msg.idiag_rqueue of the LISTEN row",
                says,
            )
        )
    return tuple(result)


_CLUES = (
    Clue("state", "the handshake is complete; in CLOSE_WAIT the client has already given up"),
    Clue("inode", "0: accept() never handed it to the program"),
    Clue("rqueue", "what the client has sent; its FIN counts as 1"),
    Clue("last_ack_recv_ms", "time since the client was last heard; a lower bound on the wait"),
)
_DOES_NOT = (
    Advice(
        "destroy the connections",
        "its place in the queue stays taken; a later accept() returns a dead socket",
    ),
    Advice(
        "lower `net.ipv4.tcp_fin_timeout`",
        "it applies to orphans in FIN_WAIT2; these were never accepted here",
    ),
)

RULE = Rule(
    name="never-accepted",
    title="waiting in the accept queue; the program has not accepted it",
    severity="problem",
    rank=20,
    harm="outage",
    turn=Turn("holder", "accept()"),
    means="by-state",
    beyond_sysctls="the connection waits in the accept queue for the program's accept()",
    claims=("C6", "X16"),
    clues=_CLUES,
    ends=(
        Remedy(
            "find out why the program has not accepted it: a blocked loop, a full worker pool, EMFILE, or a "
            "stopped process"
        ),
        Remedy("restart the listening program; this resets every connection in its queue"),
    ),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    cases=(
        Case(
            title="waiting in the accept queue of a program that accepts more slowly than connections arrive",
            rows=_slow,
            clues=_CLUES,
            ends=(Remedy("wait: the program accepts it when its turn comes"), FASTER),
            does_not=_DOES_NOT,
            severity="notice",
        ),
    ),
)
