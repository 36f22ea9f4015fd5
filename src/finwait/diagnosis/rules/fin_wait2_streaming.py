"""fin-wait2-streaming: half-closed on purpose, and the answer is still arriving.

Seen as       FIN_WAIT2 with an inode, and bytes_received grows between two looks, or received data
              is being read; or the other end, here, is still reading what was sent before the FIN.
Why it stays  The program has finished sending (shutdown(SHUT_WR)) and is receiving a long answer.
              This is what a half-close is for.
Not this      bytes_received and rqueue do not change, or what arrives is left unread by a program that is
              stopped or waits for nothing here: fin-wait2-held. One look cannot tell the difference;
              `--for 5s` can.
What ends it  The end of the answer.
Won't help    Nothing needs to be done. Destroying it cuts off data that was asked for.
Reproduce     finwait lab run fin-wait2-streaming
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.activity import streaming
from finwait.diagnosis.finding import Advice, Confidence, Remedy, Turn
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import certain, look_again
from finwait.diagnosis.view import View

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return streaming(view)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if (view.moved & (view.sockets.rqueue > 0) & ~view.read)[rows].any():
        return look_again(
            "the first bytes arrived between the two looks, and none is read yet; check again with `--for 5s`"
        )
    return certain(f"bytes arrived, or were read, within {view.watched_ms / 1000:.1f} s of watching")


RULE = Rule(
    name="fin-wait2-streaming",
    title="half-closed on purpose; the answer is still arriving",
    severity="healthy",
    rank=10,
    harm="residue",
    turn=Turn("peer", "finish sending"),
    means=None,
    beyond_sysctls="data still arrives: the connection is in use",
    claims=("C1b",),
    clues=(
        Clue("state", "this end has finished sending; the peer has not"),
        Clue("inode", "not 0: a process is receiving"),
        Clue("bytes_received", "grew between the two looks, or received data was read"),
        Clue("last_data_recv_ms", "time since data last arrived"),
    ),
    ends=(Remedy("wait for the end of the answer; leave it alone", "read-only"),),
    does_not=(Advice("destroy it", "it works, but cuts off an answer that is being read"),),
    confidence=_confidence,
    match=match,
)
