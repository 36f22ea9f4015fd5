"""time-wait: closed on both sides; the kernel keeps the address pair for a minute.

Seen as       TIME_WAIT with timer 3, counting down from 60 s.
Why it stays  Late segments of the old connection must not be mistaken for those of a new one
              between the same ports. The side that closed first waits until they have expired.
Not this      Very many of them, when ports or buckets may run out (time-wait-flood).
What ends it  Time: 60 s after the last FIN.
Won't help    tcp_fin_timeout: the 60 s are compiled into the kernel.
Reproduce     finwait lab run time-wait
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
    return view.in_state(tcp.TIME_WAIT) & (view.sockets.timer == 3)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:  # noqa: ARG001
    return certain("its timer is running")


RULE = Rule(
    name="time-wait",
    title="each goes away by itself 60 s after the last FIN",
    severity="healthy",
    rank=90,
    harm="residue",
    turn=Turn("kernel"),
    means=None,
    beyond_sysctls="TIME_WAIT lasts 60 s, a constant compiled into the kernel",
    claims=("C15a", "S22"),
    clues=(Clue("timer", "3: counting down from 60 s"), Clue("expires_ms", "time left")),
    ends=(Remedy("it ends by itself within 60 s", "read-only", proofs=("time-wait-is-constant",)),),
    does_not=(
        Advice(
            "lower `net.ipv4.tcp_fin_timeout`",
            "TIME_WAIT lasts 60 s, compiled into the kernel",
            proofs=("time-wait-is-constant",),
        ),
    ),
    confidence=_confidence,
    match=match,
    counted=True,
)
