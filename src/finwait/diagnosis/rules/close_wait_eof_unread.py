"""close-wait-eof-unread: the peer closed and the program has not even looked.

Seen as       CLOSE_WAIT with an inode and rqueue 1 (only the FIN) or more (data and the FIN).
Why it stays  Nobody reads this socket. The unread FIN counts 1 in the receive queue. A server accepted it (a listener
              has its local port): a thread is blocked elsewhere, the process is stopped, or the connection is in no
              poll set any more. A client opened it itself: most often it idles in a connection pool, or its reader
              is stuck.
Not this      A program that is busy with its answer, or reads slowly: bytes are acknowledged or read between two looks.
              rqueue 0: read and not closed (close-wait-eof-read). inode 0: not even accepted (never-accepted).
What ends it  The program reading to the end and closing; a pool using or evicting the connection; a FIN from outside;
              SOCK_DESTROY.
What does not Any sysctl. And with data unread, its close() sends a RST, not a FIN (RFC 2525, 2.17).
Reproduce     finwait lab run close-wait-eof-unread
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import NOT_FIN_TIMEOUT, certain, destroy, likely, peer_missing
from finwait.diagnosis.rules.close_wait_eof_read import (
    NOT_ANY_SYSCTL,
    NOT_KEEPALIVE_WAITING,
    PROBE_GONE,
    maybe_answering,
)
from finwait.diagnosis.rules.established_unread import WHAT_IT_WAITS_FOR, holding, process_states, stopped
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return view.in_state(tcp.CLOSE_WAIT) & view.held & (view.sockets.rqueue > 0) & ~view.sent & ~view.read


def _client(view: View) -> NDArray[np.bool_]:
    """Return rows that their program opened itself, as far as that can be known.

    No listener has the local port, and the other end's port has one; or, where the other end is elsewhere, the local
    port is one that the kernel gives to clients, and the other one is not.
    """
    s = view.sockets
    other = np.maximum(view.other, 0)
    there = (view.other >= 0) & view.accepted[other]
    chosen = np.zeros(len(s), np.bool_)
    for number, namespace in view.namespaces.items():
        words = namespace.sysctls.get("ipv4/ip_local_port_range", "").split()
        if namespace.dumped and len(words) == 2 and all(word.isdecimal() for word in words):
            low, high = int(words[0]), int(words[1])
            ours, theirs = ((port >= low) & (port <= high) for port in (s.sport, s.dport))
            chosen |= (s.netns == number) & ours & ~theirs
    client: NDArray[np.bool_] = ~view.accepted & (there | ((view.other < 0) & chosen))
    return client


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if stopped(view, holding(view, rows)):
        return certain("the process that should read is stopped (state T)")
    watched = view.moved_known[rows].all()
    if (unsure := maybe_answering(view, rows, "the program may be busy with its answer")) is not None:
        return unsure
    with_data = int((view.sockets.rqueue[rows] > 1).sum())
    if with_data:
        said = f"{with_data} of {len(rows)} hold unread data too: their close() will send a RST"
        if watched:
            return certain(said)
        return likely(
            f"{said}; a program that reads slowly looks the same in a single look, `--for 5s` tells"
        )
    return certain("exactly the FIN is unread on each")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    # That the program of an idle pool sleeps says nothing.
    if _client(view)[rows].all() and not stopped(view, holding(view, rows)):
        return ()
    return process_states(view, rows)


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    if view.accepted[rows].all():
        ends: tuple[Remedy, ...] = (WHAT_IT_WAITS_FOR, _READ)
    elif _client(view)[rows].all():
        ends = (_EVICT, WHAT_IT_WAITS_FOR)
    else:
        ends = (WHAT_IT_WAITS_FOR, _READ_WHERE, _EVICT_WHERE)
    if peer_missing(view)[rows].all():
        probed = replace(PROBE_GONE, command="finwait probe rule = close-wait-eof-unread")
        return (*ends, probed, *_FROM_OUTSIDE[1:])
    return (*ends, *_FROM_OUTSIDE)


_CLUES = (
    Clue("state", "the peer has sent its FIN; we have not"),
    Clue("inode", "not 0: a descriptor refers to it"),
    Clue("rqueue", "1: only the FIN is unread; more: data too"),
    Clue("last_ack_recv_ms", "since the peer was last heard: it has waited at least so long"),
)
_FROM_OUTSIDE = (
    Remedy(
        "send the FIN from outside: pidfd_getfd and shutdown(); a peer that still waits sees a clean end",
        "destructive",
        "finwait clear close-wait-eof-unread",
    ),
    destroy("close-wait-eof-unread"),
)
_EVICT = Remedy("evict idle connections from the pool before the server's keep-alive timeout")
_EVICT_WHERE = Remedy("where it is a pool: evict idle connections before the server's keep-alive timeout")
_READ = Remedy("keep each accepted connection in the poll set, with a read timeout, and close it at its end")
_READ_WHERE = Remedy(
    "where it is a server: keep each accepted connection in the poll set, with a read timeout, and close it"
)
_DOES_NOT = (NOT_FIN_TIMEOUT, NOT_ANY_SYSCTL, NOT_KEEPALIVE_WAITING)

RULE = Rule(
    name="close-wait-eof-unread",
    title="the peer closed and the program has not read it: a stuck reader, or an idle pool",
    severity="problem",
    rank=60,
    means="by-state",
    beyond_sysctls="CLOSE_WAIT has no timer in any kernel; the program has to read and close",
    claims=("C5", "X09"),
    clues=_CLUES,
    ends=(WHAT_IT_WAITS_FOR, _READ_WHERE, _EVICT_WHERE, *_FROM_OUTSIDE),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    remedies=_remedies,
    cases=(
        Case(
            title="the peer closed, and this server has not read it: a blocked or stopped thread, or a forgotten "
            "connection",
            rows=lambda view: view.accepted,
            clues=_CLUES,
            ends=(WHAT_IT_WAITS_FOR, _READ, *_FROM_OUTSIDE),
            does_not=(
                Advice(
                    "restart or reconfigure the clients",
                    "they have closed: what is missing is the read, and the close(), of the server",
                ),
                *_DOES_NOT,
            ),
        ),
        Case(
            title="the peer closed, and this client has not read it: an idle pool, or a stuck reader",
            rows=_client,
            clues=_CLUES,
            ends=(_EVICT, WHAT_IT_WAITS_FOR, *_FROM_OUTSIDE),
            does_not=_DOES_NOT,
        ),
    ),
)
