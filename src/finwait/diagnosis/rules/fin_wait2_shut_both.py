"""fin-wait2-shut-both: shutdown(SHUT_RDWR) was called, close() was not.

Seen as       FIN_WAIT2 with an inode and shutdown bits 3.
Why it stays  shutdown() sends the FIN and refuses further data, but it does not release the
              descriptor. Only close() makes the socket an orphan, and only an orphan has a
              FIN_WAIT2 timeout.
Not this      bits 2: the program still wants to receive (fin-wait2-held). inode 0 with bits 3 and
              timer 2: an orphan on its way out (fin-wait2-orphan-long).
What ends it  close() by the owner; any data from the peer (it is answered with a RST);
              SOCK_DESTROY.
Won't help    tcp_fin_timeout: shutdown(SHUT_RDWR) does not start it, contrary to what many pages
              say.
Reproduce     finwait lab run fin-wait2-shut-both
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Confidence, Remedy, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    CLOSE_AT_PEER,
    NOT_FIN_TIMEOUT,
    NOT_KEEPALIVE_ALIVE,
    NOT_USER_TIMEOUT_IDLE,
    NOT_WAITING_FOR_THE_GONE,
    PREVENT_SILENCE,
    certain,
    destroy,
    peer_missing,
    peer_unseen,
    probe,
)
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return view.in_state(tcp.FIN_WAIT2) & view.held & (view.sockets.shutdown == 3) & ~view.moved


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:  # noqa: ARG001
    return certain("shutdown bits 3 with an inode: both directions are shut and the descriptor is still open")


_CLUES = (
    Clue("state", "our FIN was acknowledged; the peer's has not arrived"),
    Clue("shutdown", "3: both directions are shut; the program neither sends nor receives any more"),
    Clue("inode", "not 0: the program has not called close(), so no timeout runs"),
    Clue("timer", "0: nothing will ever fire; 2: keepalive"),
)
_FIX = Remedy("fix the program to close() after shutdown(); a restart closes the ones it holds now")
_NAME = "fin-wait2-shut-both"

RULE = Rule(
    name="fin-wait2-shut-both",
    title="shut down in both directions but never closed by the process that holds it",
    severity="problem",
    rank=50,
    harm="leak",
    turn=Turn("holder", "close()"),
    means="by-state",
    beyond_sysctls="shutdown() is not close(): a descriptor still refers to the socket and no timer runs",
    claims=("C1c", "X11"),
    clues=_CLUES,
    ends=(_FIX, CLOSE_AT_PEER, destroy(_NAME)),
    does_not=(NOT_FIN_TIMEOUT, NOT_KEEPALIVE_ALIVE, NOT_USER_TIMEOUT_IDLE),
    confidence=_confidence,
    match=match,
    cases=(
        Case(
            title="shut down in both directions but never closed, and its peer is gone",
            rows=peer_missing,
            clues=_CLUES,
            ends=(probe(_NAME), _FIX, destroy(_NAME)),
            does_not=(NOT_WAITING_FOR_THE_GONE, NOT_FIN_TIMEOUT, NOT_USER_TIMEOUT_IDLE),
        ),
        Case(
            title="shut down in both directions but never closed; it is not visible here whether its peer is alive",
            rows=peer_unseen,
            clues=_CLUES,
            ends=(probe(_NAME), _FIX, CLOSE_AT_PEER, destroy(_NAME), PREVENT_SILENCE),
            does_not=(NOT_FIN_TIMEOUT, NOT_USER_TIMEOUT_IDLE),
        ),
    ),
)
