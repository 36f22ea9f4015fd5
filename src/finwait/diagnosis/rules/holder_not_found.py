"""holder-not-found: something holds the socket, and it is no descriptor of any process.

Seen as       A connection that does not finish closing, with an inode, and no /proc/*/fd entry that names it
              although *every* process could be looked into, twice.
Why it stays  The descriptor is in flight in a Unix socket (SCM_RIGHTS that nobody received), registered with
              io_uring, or used by the kernel itself (NFS, iSCSI, a tunnel). It cannot be found by its fd.
Not this      A process that we were not allowed to look into: then nothing is concluded, and a gap is reported.
What ends it  The receiver taking or dropping the message; the end of the ring; SOCK_DESTROY.
What does not Killing processes in the hope that one of them is the owner.
Reproduce     finwait lab run holder-not-found
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Remedy
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import NOT_FIN_TIMEOUT, certain, destroy
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    stuck = view.in_state(tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING)
    return (
        stuck & view.holder_missing & (view.sockets.ulp != b"mptcp") & ~view.moved & ~view.sent & ~view.read
    )


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:  # noqa: ARG001
    return certain("every process was looked into, before and after the dump, and none has its inode")


RULE = Rule(
    name="holder-not-found",
    title="held, but by no descriptor of any process: in flight, io_uring, or the kernel",
    severity="problem",
    rank=35,
    claims=("C8", "X15"),
    clues=(
        Clue("inode", "not 0: something refers to it; no /proc/*/fd link has this number"),
        Clue("state", "where it stopped"),
        Clue("cgroup_id", "where it was made, which is the best lead"),
        Clue("uid", "by whom it was made"),
    ),
    ends=(
        Remedy("look at programs of its cgroup that pass descriptors over Unix sockets or use io_uring"),
        destroy("holder-not-found"),
    ),
    does_not=(
        Advice("kill the owner", "no process can be named; the one that made it may have ended long ago"),
        NOT_FIN_TIMEOUT,
    ),
    confidence=_confidence,
    match=match,
)
