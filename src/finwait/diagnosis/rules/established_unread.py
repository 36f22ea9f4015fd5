"""established-unread: requests have arrived on open connections, and the program does not read them.

Seen as       ESTABLISHED connections that a program accepted, with bytes in the receive queue (rqueue) and nothing
              received, sent or read for 3 s. One look is a notice. A problem are three and more of one process over
              two looks, while the process moved nothing on any of its connections. Of MPTCP it is the row of the
              connection that counts, not its subflows; its rqueue is memory, and where more came meanwhile nobody
              can tell whether some was read: then it stays a notice.
Why it stays  The kernel took the request in; the program hangs: its only thread waits for something else (a lock, a
              database, a full pipe), or it is stopped. The client waits for an answer until its own timeout. Nothing
              in TCP ends this: to both kernels the connection is well.
Not this      A program that is slow, or works at a long answer, moves something between two looks. One whose own
              sending is blocked passes the pressure on (the window of *its* peer is closed): only a notice. A program
              that opened the connection itself and does not read is only a notice, too.
What ends it  The program reading again; its restart.
What does not Keepalive (the kernel answers for the program); destroying the connections (the clients come back).
Reproduce     finwait lab run established-unread
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    NOT_FIN_TIMEOUT,
    RECENT_MS,
    certain,
    likely,
    look_again,
    mptcp_rows,
    silence,
    unclocked,
)
from finwait.diagnosis.view import ProcessView, View
from finwait.uapi import tcp

__all__ = ["RULE", "WHAT_IT_WAITS_FOR", "holding", "match", "process_states", "stopped"]

SEVERAL = 3
"""So many unread requests of one process are no single conversation that takes its time."""


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    unread = view.connections_in(tcp.ESTABLISHED) & view.held & (s.rqueue > 0) & (s.ulp != b"mptcp")
    if not unread.any():
        return unread
    unread &= ~view.read & ~view.sent
    quiet = silence(view, "last_data_recv_ms", "last_data_sent_ms") >= RECENT_MS
    return unread & (_watched(view) | (quiet & view.accepted))


def _watched(view: View) -> NDArray[np.bool_]:
    return view.moved_known & (view.watched_ms >= RECENT_MS)


def _opened(view: View) -> NDArray[np.bool_]:
    """Return connections that their program opened itself: what it does not read is the answer to its own request."""
    return ~view.accepted


def holding(view: View, rows: NDArray[np.int64]) -> set[int]:
    """Return the processes that hold some rows."""
    return {pid for row in rows.tolist() for pid, _ in view.holders.of(row)}


def stopped(view: View, pids: set[int]) -> bool:
    """Return whether processes are stopped, all of them."""
    return bool(pids) and all(pid in view.processes and _is_stopped(view.processes[pid]) for pid in pids)


def _is_stopped(process: ProcessView) -> bool:
    """Return whether all threads of a process are stopped: a signal stops all, a tracer each for itself."""
    return process.state == "T" or (process.state == "t" and process.threads == 1)


def _idle(view: View, pids: set[int]) -> bool:
    """Return whether processes moved nothing on any connection between two looks, and nothing blocks them there."""
    return not pids & view.busy_pids


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    if not _watched(view)[rows].all() or _opened(view)[rows].any():
        return "notice"
    if (mptcp_rows(view) & view.moved)[
        rows
    ].any():  # its queue is told in memory: whether some was read is not known
        return "notice"
    pids = holding(view, rows)
    if stopped(view, pids):
        return "problem"
    return "problem" if len(rows) >= SEVERAL and pids and _idle(view, pids) else "notice"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    pids = holding(view, rows)
    if stopped(view, pids):
        return certain("the process that should read is stopped (state T)")
    if not _watched(view)[rows].all():
        return look_again(
            "a program that is busy with something else looks the same in a single look; `--for 5s` looks twice and "
            "tells"
        )
    said = f"no byte was read or sent in {view.watched_ms / 1000:.1f} s on any of them"
    if not _idle(view, pids):
        return likely(
            f"{said}; its program moved something else, or cannot send elsewhere, and may come back to these"
        )
    return likely(f"{said}; a program at one long piece of work looks the same")


def process_states(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return what the processes that hold some rows are doing."""
    result = []
    for pid in sorted(holding(view, rows))[:4]:
        process = view.processes.get(pid)
        if process is not None and process.state:
            says = _PROCESS.get(process.state, "what the process is doing")
            value = f"{process.comm}, state {process.state}"
            if process.threads != 1 and process.state != "T":
                value += " (main thread)"
                says = (
                    f"{_MAIN.get(process.state, 'what its main thread is doing')}; {_others(process.threads)}"
                )
            result.append(Evidence(f"process {pid}", value, f"/proc/{pid}/stat", says))
    return tuple(result)


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    mptcp = int(mptcp_rows(view)[rows].sum())
    memory = Evidence(
        "MPTCP connections", str(mptcp), "the MPTCP dump", "their rqueue is the memory that unread bytes take"
    )
    return (*((memory,) if mptcp else ()), *process_states(view, rows))


_PROCESS = {
    "S": "it sleeps: it waits for something, and not for these connections",
    "D": "it waits inside the kernel, for a disk or a network file system, and cannot be interrupted",
    "R": "it runs: it is busy with something else",
    "T": "it is stopped by a signal: `kill -CONT` lets it go on",
    "t": "it is stopped by a debugger or a tracer",
}
_MAIN = {
    "S": "its main thread sleeps",
    "D": "its main thread waits inside the kernel, for a disk or a network file system, and cannot be interrupted",
    "R": "its main thread runs",
    "t": "its main thread is stopped by a debugger or a tracer",
}


def _others(threads: int) -> str:
    """Say that any other thread may be the one that should read."""
    if not threads:
        return "whether it has other threads is unknown"
    return (
        f"its {threads - 1} other threads were not looked at"
        if threads > 2
        else "its other thread was not looked at"
    )


WHAT_IT_WAITS_FOR = Remedy(
    "find out what the program waits for: a dump of its threads (`gdb -p`, `jstack`, `py-spy dump`), /proc/PID/stack; "
    "`kill -CONT` where it is stopped",
    "read-only",
)
_CLUES = (
    Clue("state", "open, and well to both kernels"),
    Clue("rqueue", "bytes that the program has not read"),
    Clue("last_data_recv_ms", "since the last of them came: they lie unread for at least so long"),
    Clue("last_data_sent_ms", "since this side last sent data: no answer went out later"),
    Clue("inode", "not 0: a descriptor refers to it"),
)
_DOES_NOT = (
    Advice("turn on keepalive", "the kernel answers probes for a program that hangs"),
    Advice("destroy the connections", "the clients come back to the same program, and nothing makes it read"),
    NOT_FIN_TIMEOUT,
)

RULE = Rule(
    name="established-unread",
    title="requests lie unread on open connections: the program that accepted them does not read",
    severity="problem",
    rank=57,
    owners=True,
    means="by-state",
    beyond_sysctls="to the kernel these connections are well; only the program can read",
    claims=("C21", "X18"),
    clues=_CLUES,
    ends=(
        WHAT_IT_WAITS_FOR,
        Remedy("restart the program: what is unread is lost, and its clients are reset"),
        Remedy("a time limit for reading at the client, or at the proxy before it, bounds the next one"),
    ),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    unjudged=lambda view: unclocked(
        view, view.connections_in(tcp.ESTABLISHED) & view.held & (view.sockets.rqueue > 0) & ~view.moved_known
    ),
    cases=(
        Case(
            title="an answer lies unread on open connections: the program that asked does not read",
            rows=_opened,
            clues=_CLUES,
            ends=(WHAT_IT_WAITS_FOR, Remedy("restart the program, or have it close what it does not read")),
            does_not=_DOES_NOT,
        ),
    ),
)
