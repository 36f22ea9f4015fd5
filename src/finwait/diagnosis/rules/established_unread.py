"""established-unread: requests arrived on open connections, and the program does not read them.

Seen as       ESTABLISHED connections that a program accepted, with bytes in the receive queue
              (rqueue), and nothing received, sent or read for 3 s. One look gives a notice. It is a
              problem if processes of one service have three or more of them over two looks, and
              those processes read, wrote and accepted nothing in between; what other workers did
              does not count, nor what the kernel sent that was written before. For MPTCP, the row
              of the connection counts, not
              its subflows. Its rqueue is memory: if more data arrived in between, nobody can tell
              whether some was read, and it stays a notice.
Why it stays  The kernel received the request, but the program hangs: its only thread waits for
              something else (a lock, a database, a full pipe), or it is stopped. The client waits
              for an answer until its own timeout. Nothing in TCP ends this: both kernels consider
              the connection healthy.
Not this      A program that is slow, or works on a long answer: it moves something between two
              looks. A program that may be blocked in sending passes the pressure on (the window of
              *its* peer is closed): only a notice. A program that opened the connection itself and
              does not read: also only a notice. Where one thread of a process goes on, nothing
              shows that the others hang: a notice, beside which stands what each thread does.
What ends it  The program reads again; or a restart.
Won't help    Keepalive: the kernel answers for the program. Destroying the connections: the clients
              come back.
Reproduce     finwait lab run established-unread
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.activity import held_by_some
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    NOT_FIN_TIMEOUT,
    RECENT_MS,
    certain,
    likely,
    look_again,
    mptcp_rows,
    possible,
    silence,
    unclocked,
    watched_long,
)
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "WHAT_IT_WAITS_FOR", "holding", "match", "process_states", "stopped", "undecided"]

SEVERAL = 3
"""So many unread requests of one process are no single conversation that takes its time."""


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains.

    What its peer sends shows no life of its program: while data keeps coming, one look tells only where that is
    stopped.
    """
    unread = _unread(view)
    if not unread.any():
        return unread
    return unread & (watched_long(view) | ((_settled(view) | view.halted) & view.servers))


def _unread(view: View) -> NDArray[np.bool_]:
    """Return open connections with unread bytes of which nothing shows that their program goes on."""
    s = view.sockets
    unread = view.connections_in(tcp.ESTABLISHED) & view.held & (s.rqueue > 0) & (s.ulp != b"mptcp")
    return unread & ~view.read & ~view.wrote


def undecided(view: View) -> NDArray[np.bool_]:
    """Return rows that this rule says nothing of although their program may hang: data came a moment ago.

    A second look some seconds later tells.
    """
    return _unread(view) & view.servers & ~watched_long(view) & ~match(view)


def _settled(view: View) -> NDArray[np.bool_]:
    """Return rows on which nothing has passed for some seconds, or that were watched for as long."""
    return watched_long(view) | (silence(view, "last_data_recv_ms", "last_data_sent_ms") >= RECENT_MS)


def _told_in_memory(view: View) -> NDArray[np.bool_]:
    """Return rows whose queue is told in memory, and grew: whether some was read is not known."""
    return mptcp_rows(view) & view.moved


def _opened(view: View) -> NDArray[np.bool_]:
    """Return connections that their program opened itself: what it does not read is the answer to its own request."""
    return ~view.servers & ~view.holder_missing


def _unheld(view: View) -> NDArray[np.bool_]:
    """Return connections that no process can read from."""
    return view.holder_missing


def holding(view: View, rows: NDArray[np.int64]) -> set[int]:
    """Return the processes that hold some rows."""
    return view.holders.pids(rows)


def stopped(view: View, pids: set[int]) -> bool:
    """Return whether processes are stopped, all of them."""
    return bool(pids) and pids <= view.stopped_pids


def _idle(view: View, pids: set[int]) -> bool:
    """Return whether processes moved nothing on any connection between two looks, and nothing blocks them there."""
    return not pids & view.busy_pids


def _shows(view: View, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what is shown of each row: whether it was watched, and whether a program that holds it went on meanwhile.

    Workers of one server are one group; that one of them is at work says nothing of the others.
    """
    watched = watched_long(view) & ~_told_in_memory(view)
    at_work = held_by_some(view, _unread(view), view.busy_pids)
    shown: NDArray[np.int64] = (watched.astype(np.int64) + 2 * at_work)[rows]
    return shown


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    if _opened(view)[rows].any() or _told_in_memory(view)[rows].any():
        return "notice"
    pids = holding(view, rows)
    if stopped(view, pids) and _settled(view)[rows].all():  # it cannot be about to read
        return "problem"
    if not watched_long(view)[rows].all():
        return "notice"
    return "problem" if len(rows) >= SEVERAL and pids and _idle(view, pids) else "notice"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    pids = holding(view, rows)
    if stopped(view, pids):
        if _settled(view)[rows].all():
            return certain("the process that should read is stopped")
        return look_again("the process that should read is stopped at this moment; check with `--for 5s`")
    if not watched_long(view)[rows].all():
        return look_again(
            "a program that is busy with something else looks the same in a single look; check with `--for 5s`"
        )
    reason = f"no byte was read or sent on any of them in {view.watched_ms / 1000:.1f} s"
    if view.holder_unknown[rows].any():
        return possible(
            f"{reason}; who holds them is unknown, so the program may have been active on other connections, and may "
            "come back to these"
        )
    if not _idle(view, pids):
        return likely(
            f"{reason}; but the program was active on another connection, or is blocked sending there, and may "
            "come back to these"
        )
    return likely(f"{reason}; a program busy with one long piece of work looks the same")


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
                says = _MAIN.get(process.state, "what its main thread is doing")
                if not view.waits.doing(pid):  # else what all of them do is told beside it
                    says += f"; {_others(process.threads)}"
            result.append(Evidence(f"process {pid}", value, f"/proc/{pid}/stat", says))
    return tuple(result)


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    mptcp = int(mptcp_rows(view)[rows].sum())
    memory = Evidence(
        "MPTCP connections",
        str(mptcp),
        "the MPTCP dump",
        "their rqueue counts the memory that unread bytes take",
    )
    return (*((memory,) if mptcp else ()), *process_states(view, rows))


_PROCESS = {
    "S": "it sleeps in a system call",
    "D": "it waits inside the kernel for a disk or a network file system, and cannot be interrupted",
    "R": "it runs, busy with something else",
    "T": "it was stopped by a signal; `kill -CONT` resumes it",
    "t": "it was stopped by a debugger or a tracer",
}
_MAIN = {
    "S": "its main thread sleeps",
    "D": "its main thread waits inside the kernel for a disk or a network file system, and cannot be interrupted",
    "R": "its main thread runs",
    "t": "its main thread was stopped by a debugger or a tracer",
}


def _others(threads: int) -> str:
    """Say that any other thread may be the one that should read."""
    if not threads:
        return "it is unknown whether it has other threads"
    return (
        f"its {threads - 1} other threads were not inspected"
        if threads > 2
        else "its other thread was not inspected"
    )


WHAT_IT_WAITS_FOR = Remedy(
    "find out what the program waits for: `finwait explain --stacks`, with the number of the group or a connection, "
    "shows the stacks of its threads (by py-spy, jcmd or gdb); `kill -CONT` resumes it if it is stopped",
    "read-only",
)
_CLUES = (
    Clue("state", "open; both kernels consider it healthy"),
    Clue("rqueue", "bytes that the program has not read"),
    Clue(
        "last_data_recv_ms",
        "time since the last of them arrived; a lower bound on how long they have been unread",
    ),
    Clue("last_data_sent_ms", "time since the kernel last sent data of this side"),
    Clue("inode", "not 0: a descriptor refers to it"),
)
_DOES_NOT = (
    Advice("turn on keepalive", "the kernel answers probes even if the program hangs"),
    Advice("destroy the connections", "the clients reconnect to the same program, which still does not read"),
    NOT_FIN_TIMEOUT,
)

RULE = Rule(
    name="established-unread",
    title="requests stay unread on open connections; the program that accepted them does not read",
    severity="problem",
    rank=57,
    harm="outage",
    turn=Turn("holder", "read"),
    owners=True,
    means="by-state",
    beyond_sysctls="the kernel considers these connections healthy; only the program can read",
    claims=("C21", "X18"),
    clues=_CLUES,
    ends=(
        WHAT_IT_WAITS_FOR,
        Remedy("restart the program; its unread data is lost, and its clients are reset"),
        Remedy("set a read timeout at the client, or at the proxy in front of it, to limit the next one"),
    ),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    waited=True,
    observe=_observe,
    grade=_grade,
    proven=_shows,
    unjudged=lambda view: unclocked(
        view, view.connections_in(tcp.ESTABLISHED) & view.held & (view.sockets.rqueue > 0) & ~view.moved_known
    ),
    cases=(
        Case(
            title="an answer stays unread on open connections; the program that sent the request does not read",
            rows=_opened,
            clues=_CLUES,
            ends=(
                WHAT_IT_WAITS_FOR,
                Remedy("restart the program, or make it close the connections it does not read"),
            ),
            does_not=_DOES_NOT,
        ),
        Case(
            title="data stays unread on open connections that no process has a descriptor of",
            rows=_unheld,
            clues=(
                _CLUES[0],
                Clue("rqueue", "bytes that nobody has read"),
                *_CLUES[2:4],
                Clue("inode", "not 0: something refers to it; no /proc/*/fd link has this number"),
            ),
            ends=(
                Remedy(
                    "look for programs in its cgroup that pass descriptors over Unix sockets or use io_uring",
                    "read-only",
                ),
            ),
            does_not=(
                Advice("turn on keepalive", "the kernel answers probes, with or without a program"),
                NOT_FIN_TIMEOUT,
            ),
        ),
    ),
)
