"""inherited-descriptor: a child process keeps a connection that its parent closed (or thinks it closed).

Seen as       A connection in FIN_WAIT2 or CLOSE_WAIT with two or more holding processes; or a connection
              whose every holder was started after the last byte was exchanged: it inherited the descriptor.
Why it stays  A descriptor without FD_CLOEXEC is passed to every program that is started. close() in the parent
              then closes nothing: no FIN is sent while a child holds a copy. shutdown() does send the FIN, but
              the socket stays held and tcp_fin_timeout does not start.
Not this      Threads of one process. A server that forks for each connection and uses it.
What ends it  close() in every holder, or the end of the child; SOCK_DESTROY.
What does not Closing in the parent again.
Reproduce     finwait lab run inherited-descriptor
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import NOT_FIN_TIMEOUT, certain, destroy, likely
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

SLACK_MS = 20
"""Process start times are told in clock ticks (10 ms), socket times in jiffies (up to 10 ms)."""


def _unused_by_its_holders(view: View) -> NDArray[np.bool_]:
    """Rows on which nothing happened since the *oldest* of their holders was started."""
    s = view.sockets
    candidates = view.in_state(tcp.ESTABLISHED, tcp.CLOSE_WAIT, tcp.FIN_WAIT2) & view.holder_found
    candidates &= s.present("last_data_sent_ms")
    silent = np.minimum(s.last_data_sent_ms, s.last_data_recv_ms).astype(np.int64)
    out = np.zeros(len(view), np.bool_)
    for pid, rows in view.pid_rows(candidates).items():
        process = view.processes.get(pid)
        age = process.age_ms if process else -1
        if age >= 0:
            out[rows] |= silent[rows] > age + SLACK_MS
    # Several holders: unused only if it is unused by all of them.
    for row in np.flatnonzero(out & (view.holders.count > 1)).tolist():
        ages = [
            view.processes[pid].age_ms if pid in view.processes else -1 for pid, _ in view.holders.of(row)
        ]
        out[row] = all(age >= 0 and silent[row] > age + SLACK_MS for age in ages)
    return out


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    shared = view.in_state(tcp.FIN_WAIT2, tcp.CLOSE_WAIT) & view.holders.several_processes()
    return (shared & ~view.moved) | _unused_by_its_holders(view)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if view.holders.several_processes()[rows].all():
        return certain("two or more processes hold the same socket")
    return likely(
        "no byte was exchanged since its holder was started: it was inherited or handed over, and not used"
    )


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    result = []
    pids = sorted({pid for row in rows.tolist() for pid, _ in view.holders.of(row)})
    for pid in pids[:8]:
        process = view.processes.get(pid)
        if process is None:
            continue
        age = f"{process.age_ms / 1000:.1f} s old" if process.age_ms >= 0 else "age unknown"
        result.append(
            Evidence(
                f"holder pid {pid}",
                f"{process.comm}, {age}, parent {process.ppid}",
                f"/proc/{pid}/fd and stat",
                "holds a descriptor of it",
            )
        )
    return tuple(result)


RULE = Rule(
    name="inherited-descriptor",
    title="a child process inherited the connection, so closing it in the parent closes nothing",
    severity="problem",
    rank=25,
    claims=("C7", "X14", "S06"),
    clues=(
        Clue("state", "ESTABLISHED: no FIN was ever sent; FIN_WAIT2: one holder called shutdown()"),
        Clue("inode", "not 0: the socket lives while any process holds it"),
        Clue("last_data_sent_ms", "since a byte was last sent"),
        Clue("last_data_recv_ms", "since a byte was last received"),
    ),
    ends=(
        Remedy("end the child that holds it, or close the descriptor there"),
        Remedy("open sockets with SOCK_CLOEXEC and accept4(), so that no child inherits the next one"),
        destroy("inherited-descriptor"),
    ),
    does_not=(
        Advice("close it in the parent", "no FIN is sent while another process holds the socket"),
        NOT_FIN_TIMEOUT,
    ),
    confidence=_confidence,
    match=match,
    observe=_observe,
)
