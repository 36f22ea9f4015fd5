"""fin-wait2-streaming: half-closed on purpose, and the answer is still coming.

Seen as       FIN_WAIT2 with an inode, and bytes_received grows between two looks, or what had come is being read.
Why it stays  The program has said all it had to say (shutdown(SHUT_WR)) and receives a long answer. This is
              what the half-close is for.
Not this      bytes_received and rqueue stand still: fin-wait2-held. One look cannot tell them apart; `--for 5s` can.
What ends it  The end of the answer.
What does not Nothing should: destroying it cuts off data that was asked for.
Reproduce     finwait lab run fin-wait2-streaming
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
    return view.in_state(tcp.FIN_WAIT2) & view.held & (view.moved | view.read)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:  # noqa: ARG001
    return certain(f"bytes arrived, or were read, within {view.watched_ms / 1000:.1f} s of watching")


RULE = Rule(
    name="fin-wait2-streaming",
    title="half-closed on purpose, and the answer is still coming: healthy",
    severity="healthy",
    rank=10,
    means=None,
    beyond_sysctls="data still arrives: the connection is in use",
    claims=("C1b",),
    clues=(
        Clue("state", "we have said all; the peer has not"),
        Clue("inode", "not 0: a process is receiving"),
        Clue("bytes_received", "grew between the two looks, or what had come was read"),
        Clue("last_data_recv_ms", "since data last arrived"),
    ),
    ends=(Remedy("the end of the answer; leave it alone", "read-only"),),
    does_not=(Advice("destroy it", "it works, and cuts off an answer that is being read"),),
    confidence=_confidence,
    match=match,
)
