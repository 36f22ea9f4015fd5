"""close-wait-eof-unread: the peer closed and the program has not even looked.

Seen as       CLOSE_WAIT with an inode and rqueue 1 (only the FIN) or more (data and the FIN).
Why it stays  Nobody reads this socket: it idles in a connection pool, its thread is blocked elsewhere, or it is
              not in the poll set. The unread FIN counts 1 in the receive queue.
Not this      A program that is busy with its answer, or reads slowly: bytes are acknowledged or read between two looks.
              rqueue 0: read and not closed (close-wait-eof-read). inode 0: not even accepted (never-accepted).
What ends it  The program using or evicting the connection; a FIN from outside; SOCK_DESTROY.
What does not Any sysctl. And with data unread, its close() sends a RST, not a FIN (RFC 2525, 2.17).
Reproduce     finwait lab run close-wait-eof-unread
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Confidence, Remedy
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import NOT_FIN_TIMEOUT, certain, destroy, likely
from finwait.diagnosis.rules.close_wait_eof_read import NOT_ANY_SYSCTL, maybe_answering
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return view.in_state(tcp.CLOSE_WAIT) & view.held & (view.sockets.rqueue > 0) & ~view.sent & ~view.read


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
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


RULE = Rule(
    name="close-wait-eof-unread",
    title="the peer closed and the program has not read it: an idle pool or a stuck reader",
    severity="problem",
    rank=60,
    claims=("C5", "X09"),
    clues=(
        Clue("state", "the peer has sent its FIN; we have not"),
        Clue("inode", "not 0: a descriptor refers to it"),
        Clue("rqueue", "1: only the FIN is unread; more: data too"),
        Clue("last_ack_recv_ms", "since the peer was last heard: it has waited at least so long"),
    ),
    ends=(
        Remedy(
            "evict idle connections from the pool before the server's keep-alive timeout; or unblock the reader"
        ),
        Remedy(
            "send the FIN from outside: pidfd_getfd and shutdown()",
            "destructive",
            "finwait clear close-wait-eof-unread",
        ),
        destroy("close-wait-eof-unread"),
    ),
    does_not=(NOT_FIN_TIMEOUT, NOT_ANY_SYSCTL),
    confidence=_confidence,
    match=match,
)
