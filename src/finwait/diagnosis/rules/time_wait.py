"""time-wait: closed on both sides; the name of the connection is kept for a minute.

Seen as       TIME_WAIT with timer 3, counting down from 60 s.
Why it stays  Late segments of the old connection must not be taken for those of a new one between the same ports.
              The side that closed first waits them out.
Not this      Very many of them, when ports or buckets may run out (time-wait-flood).
What ends it  Time: 60 s after the last FIN.
What does not tcp_fin_timeout: the 60 s are compiled in.
Reproduce     finwait lab run time-wait
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Remedy
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import certain
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return view.in_state(tcp.TIME_WAIT) & (view.sockets.timer == 3)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:  # noqa: ARG001
    return certain("its timer is running")


RULE = Rule(
    name="time-wait",
    title="each leaves by itself, 60 s after the last FIN: healthy",
    severity="healthy",
    rank=90,
    means=None,
    beyond_sysctls="TIME_WAIT lasts 60 s, a constant compiled into the kernel",
    claims=("C15a", "S22"),
    clues=(Clue("timer", "3: it counts down its 60 s"), Clue("expires_ms", "what is left of it")),
    ends=(Remedy("it ends by itself within 60 s", "read-only", proofs=("time-wait-is-constant",)),),
    does_not=(
        Advice(
            "lower `net.ipv4.tcp_fin_timeout`",
            "TIME_WAIT is 60 s, compiled in",
            proofs=("time-wait-is-constant",),
        ),
    ),
    confidence=_confidence,
    match=match,
    counted=True,
)
