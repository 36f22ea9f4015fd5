"""fin-wait2-orphan: closed by its program, and waiting for its timeout. Healthy.

Seen as       FIN_WAIT2 with inode 0 and timer 3: a timewait minisocket with almost no attributes.
Why it stays  The program closed it. The peer acknowledged our FIN and has not sent its own yet. The
              kernel keeps a minisocket for tcp_fin_timeout seconds and then removes it.
Not this      An inode: a process holds it, and no timeout will end it (fin-wait2-held).
What ends it  Time: `expires_ms` shows how much is left.
Won't help    Destroying it works but is worse: the peer gets no packet and keeps its CLOSE_WAIT.
Reproduce     finwait lab run fin-wait2-orphan
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Remedy, Turn
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import certain
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return view.in_state(tcp.FIN_WAIT2) & ~view.held & (view.sockets.timer == 3)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:  # noqa: ARG001
    return certain("timer 3 is the timewait timer; only minisockets have it")


RULE = Rule(
    name="fin-wait2-orphan",
    title="closed by its program; the kernel removes it within tcp_fin_timeout",
    severity="healthy",
    rank=10,
    harm="residue",
    turn=Turn("kernel"),
    means=None,
    beyond_sysctls="it has its own countdown, set when it became an orphan",
    claims=("C2", "X40"),
    clues=(
        Clue("state", "our FIN was acknowledged"),
        Clue("inode", "0: no descriptor refers to it any more"),
        Clue("timer", "3: a timewait minisocket"),
        Clue("expires_ms", "time until the kernel removes it"),
    ),
    ends=(Remedy("nothing to do; it goes away by itself", "read-only"),),
    does_not=(
        Advice(
            "destroy it",
            "the kernel sends no packet for a minisocket, so the peer's CLOSE_WAIT would be stranded for "
            "nothing",
        ),
    ),
    confidence=_confidence,
    match=match,
)
