"""inherited-descriptor: a child process keeps a connection that its parent closed (or meant to).

Seen as       A connection in FIN_WAIT2 or CLOSE_WAIT that two or more processes hold. Or a
              connection whose holders all started after the last byte was exchanged: they inherited
              the descriptor. A single such holder counts if it runs another program than its
              parent, and the connection is neither its standard input nor its output. Data that
              arrived since then and is unread does not count as use of the connection. ESTABLISHED
              is only a notice. Or a connection for which nobody waits in the only process that
              holds it, while the listener on its port belongs to another program, which accepted it.
Why it stays  A descriptor without FD_CLOEXEC is passed to every program that is started. close() in
              the parent then closes nothing: no FIN is sent while a child holds a copy. shutdown()
              does send the FIN, but the socket stays held and tcp_fin_timeout does not start.
              FD_CLOEXEC (reported for each holder) acts only on exec(): the child itself has to
              close a copy made by a plain fork(). A holder whose copy has the flag set is such a
              child.
Not this      Threads of one process, and processes that share one descriptor table
              (clone(CLONE_FILES), reported by kcmp(2)): close() in one closes it in both. A server
              that forks for each connection, or starts a program on it as inetd does. A connection
              on which an answer still passes.
What ends it  close() in every holder, or the end of the child; SOCK_DESTROY.
Won't help    Closing it in the parent again.
Reproduce     finwait lab run inherited-descriptor
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.moves import Move
from finwait.diagnosis.roles import (
    left_without_listener,
    programs_at_door,
    runs_what_its_parent_runs,
    taken_over,
)
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    NOT_FIN_TIMEOUT,
    RECENT_MS,
    certain,
    destroy,
    just_received,
    just_sent,
    likely,
    look_again,
    possible,
    silence,
    unclocked,
    watched_long,
)
from finwait.diagnosis.view import View
from finwait.errors import Gap
from finwait.uapi import tcp

__all__ = ["RULE", "SHARED", "match"]

SHARED = (tcp.FIN_WAIT2, tcp.CLOSE_WAIT)
"""States in which a second holder keeps open what the first one may have closed."""

_FORGOTTEN = (*Move,).index(Move.FORGOTTEN)

SEVERAL = 3
"""So many unread requests are no single conversation that takes its time."""

SLACK_MS = 20
"""Process start times are told in clock ticks (10 ms), socket times in jiffies (up to 10 ms)."""


def _unused_by_its_holders(view: View) -> NDArray[np.bool_]:
    """Rows on which nothing happened since the *oldest* of their holders was started."""
    candidates = view.connections_in(tcp.ESTABLISHED, tcp.CLOSE_WAIT, tcp.FIN_WAIT2) & view.holder_found
    silent = np.where(
        _left_unread(view),
        silence(view, "last_data_sent_ms"),
        _silence(view),
    )
    out = np.zeros(len(view), np.bool_)
    for pid, rows in view.pid_rows(candidates).items():
        process = view.processes.get(pid)
        age = process.age_ms if process else -1
        if age >= 0:
            out[rows] |= silent[rows] > age + SLACK_MS
    for row in np.flatnonzero(out).tolist():
        holders = view.holders.of(row)
        if len({pid for pid, _ in holders}) == 1:
            out[row] = not _handed_over(view, holders)
            continue
        # Several holders: unused only if it is unused by all of them.
        ages = [view.processes[pid].age_ms if pid in view.processes else -1 for pid, _ in holders]
        out[row] = all(age >= 0 and silent[row] > age + SLACK_MS for age in ages)
    return out


def _silence(view: View) -> NDArray[np.int64]:
    """Return how long no data has passed, in ms; −1 where that is not known."""
    return silence(view, "last_data_sent_ms", "last_data_recv_ms")


def _left_unread(view: View) -> NDArray[np.bool_]:
    """Return rows on which data has come that nobody reads: it shows no use by whoever holds them."""
    s = view.sockets
    data = s.rqueue.astype(np.int64) - (s.state == tcp.CLOSE_WAIT)  # an unread FIN counts 1
    stale = watched_long(view) | (silence(view, "last_data_recv_ms") >= RECENT_MS)
    unread: NDArray[np.bool_] = (data > 0) & stale & ~view.read
    return unread


def _handed_over(view: View, holders: list[tuple[int, int]]) -> bool:
    """Return whether the only process that holds a connection looks like one that was made to serve it."""
    pid = holders[0][0]
    return all(fd <= 2 for _, fd in holders) or runs_what_its_parent_runs(view, pid) is True


def _accepted_by_another_program(view: View) -> NDArray[np.bool_]:
    """Rows whose only holder is not of the program that accepted them, and does not wait for them.

    `silence` says nothing of them where the parent still used the connection after it had started the child.
    """
    out = view.connections_in(*SHARED) & view.holder_found & view.accepted & (view.moves == _FORGOTTEN)
    out &= ~view.holders.several_processes()
    # What a client goes on sending, and nobody reads, shows no use by the holder.
    coming = np.where(_left_unread(view), silence(view, "last_data_sent_ms"), _silence(view))
    stray = view.strays & view.waits.rows("nobody") & (coming >= RECENT_MS)
    for row in np.flatnonzero(out).tolist():
        out[row] = taken_over(view, row)
    out &= ~view.moved
    out |= stray & (~view.moved | _left_unread(view))
    out &= ~view.sent & ~view.read
    for row in np.flatnonzero(out).tolist():
        out[row] = all(fd > 2 for _, fd in view.holders.of(row))
    return out


def _several_tables(view: View) -> NDArray[np.bool_]:
    """Return which rows are held by several processes that are not known to share one descriptor table."""
    several = view.holders.several_processes()
    if any(view.one_table.values()):
        for row in np.flatnonzero(several).tolist():
            several[row] = not all(view.one_table.get(pair) for pair in _pairs(view, row))
    return several


def _piped(view: View) -> NDArray[np.bool_]:
    """Return rows that are the standard input or output of all that hold them: a script was started on them."""
    out = view.connections_in(*SHARED) & view.holders.several_processes()
    for row in np.flatnonzero(out).tolist():
        out[row] = all(fd <= 2 for _, fd in view.holders.of(row))
    return out


def _pairs(view: View, row: int) -> list[tuple[int, int]]:
    first, *others = sorted({pid for pid, _ in view.holders.of(row)})
    return [(first, other) for other in others]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    shared = view.connections_in(*SHARED) & _several_tables(view) & ~_piped(view)
    unused = _unused_by_its_holders(view) | _accepted_by_another_program(view)
    # Where one of them waits for what the peer still has to send, it is the peer's move.
    awaited = view.in_state(tcp.FIN_WAIT2, tcp.ESTABLISHED) & view.waits.rows("thread", "loop")
    return ((shared & ~view.moved & ~view.sent & ~view.read) | unused) & ~awaited


def _established(view: View) -> NDArray[np.bool_]:
    return view.connections_in(tcp.ESTABLISHED)


def _stray(view: View) -> NDArray[np.bool_]:
    """Return connections that nothing shows but that their holder is a stranger and does not wait for them.

    They may have been handed over, or their holder accepted them when it was itself that listened.
    """
    alone = ~view.holders.several_processes() | _established(view)
    return alone & ~_unused_by_its_holders(view)


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    if not _established(view)[rows].all():
        return "problem"
    # Clients that go on sending wait for an answer that a stranger cannot give.
    waiting = _established(view) & _stray(view) & _left_unread(view) & watched_long(view)
    if not waiting[rows].any():
        return "notice"
    # Each child holds the one that it inherited: of one server they count together.
    s, first = view.sockets, rows[0]
    of_server = (
        waiting
        & _accepted_by_another_program(view)
        & (s.netns == s.netns[first])
        & (s.sport == s.sport[first])
    )
    return "problem" if int(of_server.sum()) >= SEVERAL else "notice"


def _unjudged(view: View) -> list[Gap]:
    rows = _established(view) & view.holder_found
    return [*unclocked(view, rows), *unclocked(view, rows & _left_unread(view), ("last_data_sent_ms",))]


def _fresh(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return on which rows data passed so short ago that a single look cannot say whether more will."""
    state = view.sockets.state
    received = (state == tcp.FIN_WAIT2) & just_received(view)
    sent = (state == tcp.CLOSE_WAIT) & just_sent(view)
    fresh: NDArray[np.bool_] = (received | sent)[rows]
    return fresh


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if fresh := int(_fresh(view, rows).sum()):
        return look_again(
            f"data passed on {fresh} of {len(rows)} in the last {RECENT_MS // 1000} s, so the answer may "
            "still be streaming; check with `--for 5s`"
        )
    if view.holders.several_processes()[rows].all():
        if (view.in_state(tcp.FIN_WAIT2) & view.waits.rows("unknown"))[rows].all():
            return possible(
                "two or more processes hold the same socket; if one of them waits for the answer, which is not known, "
                "it is the peer's to give"
            )
        if all(any(view.one_table.get(pair) is False for pair in _pairs(view, row)) for row in rows.tolist()):
            return certain("two or more processes hold the same socket, each in its own descriptor table")
        return likely(
            "two or more processes hold the same socket; it is unknown whether they share one descriptor "
            "table (kcmp)"
        )
    if (_established(view) & _stray(view))[rows].all():
        door = (
            "nobody listens on its port any more"
            if left_without_listener(view)[rows].all()
            else "another program listens on its port"
        )
        older = "" if _younger(view, rows).all() else ", or its holder listened there before"
        return possible(
            f"nobody waits for it in its holder, and {door}; it was inherited or handed over{older}"
        )
    if _established(view)[rows].all():
        return possible(
            "no byte was exchanged since its holder started; it was inherited, or handed over to wait for its peer"
        )
    if not _unused_by_its_holders(view)[rows].all():
        return likely(
            "nobody waits for it in its holder, and another program listens on its port; it was inherited or handed "
            "over; a program that works on a long answer looks the same"
        )
    return likely(
        "no byte was exchanged since its holder started; it was inherited or handed over, and not used"
    )


def _younger(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return of which rows the holder cannot have been what listened: nobody listens, or who does is older."""
    closed = left_without_listener(view)
    return np.array([closed[row] or taken_over(view, row) for row in rows.tolist()], np.bool_)


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    result = []
    pairs = {pair for row in rows.tolist() for pair in view.holders.of(row)}
    flags = {pair: view.close_on_exec[pair] for pair in pairs & view.close_on_exec.keys()}
    for pid in sorted({pid for pid, _ in pairs})[:8]:
        process = view.processes.get(pid)
        if process is None:
            continue
        age = f"{process.age_ms / 1000:.1f} s old" if process.age_ms >= 0 else "age unknown"
        pid_flags = {flag for (holder, _), flag in flags.items() if holder == pid}
        says = "holds a descriptor of it"
        if len(pid_flags) == 1:
            says += ", FD_CLOEXEC set" if pid_flags == {True} else ", FD_CLOEXEC not set"
        result.append(
            Evidence(
                f"holder pid {pid}",
                f"{process.comm}, {age}, parent {process.ppid}",
                f"/proc/{pid}/fd, fdinfo and stat",
                says,
            )
        )
    return (*result, *_accepted_by(view, rows))


def _accepted_by(view: View, rows: NDArray[np.int64]) -> list[Evidence]:
    """Return which program accepted those that are here because their holder did not."""
    taken = rows[_accepted_by_another_program(view)[rows] & ~_unused_by_its_holders(view)[rows]]
    if not len(taken):
        return []
    port = int(view.sockets.sport[taken[0]])
    if left_without_listener(view)[taken[0]]:
        return [
            Evidence(
                f"listener on port {port}",
                "none",
                "sock_diag",
                "what accepted it is gone, or listens no more; " + _of_parent(view, int(taken[0])),
            )
        ]
    return [
        Evidence(
            f"listener on port {port}",
            ", ".join(sorted(programs_at_door(view, int(taken[0])))),
            "/proc/PID/fd and exe",
            "another program than that of the holder; its process is the "
            + ("older one" if taken_over(view, int(taken[0])) else "younger one"),
        )
    ]


def _of_parent(view: View, row: int) -> str:
    """Return whether the holder of a row is of another program than what started it."""
    parents = {runs_what_its_parent_runs(view, pid) for pid, _ in view.holders.of(row)}
    if parents == {False}:
        return "its holder runs another program than its parent"
    return "whether its holder is of the same program is not known"


_END = Remedy("end the child that holds it, or close its descriptor there")
_NOT_EXEC = Remedy(
    "open sockets with SOCK_CLOEXEC and accept4(), so that programs started later do not inherit the next one"
)
_NOT_FORK = Remedy(
    "close the copy in the child right after fork(); SOCK_CLOEXEC has no effect in a child that does not exec"
)
_NOT_EITHER = Remedy(
    "SOCK_CLOEXEC and accept4() keep the next one from programs that are started; after a plain fork() the child "
    "has to close its copy itself"
)
_CLUES = (
    Clue("state", "ESTABLISHED: no FIN was ever sent; FIN_WAIT2: one holder called shutdown()"),
    Clue("inode", "not 0: the socket lives as long as any process holds it"),
    Clue("last_data_sent_ms", "time since a byte was last sent"),
    Clue("last_data_recv_ms", "time since a byte was last received"),
    Clue("rqueue", "bytes that nobody has read; a FIN counts as 1"),
)
_DOES_NOT = (
    Advice(
        "close it in the parent",
        "no FIN is sent while another process holds the socket",
        proofs=("inherited",),
    ),
    NOT_FIN_TIMEOUT,
)


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    """Return what ends a group and what prevents the next one, which depends on how the descriptor got there."""
    pairs = {pair for row in rows[:1000].tolist() for pair in view.holders.of(row)}
    pids = {pid for pid, _ in pairs}
    if len(pids) > 1:  # the oldest had it first
        pids.discard(max(pids, key=lambda pid: view.processes[pid].age_ms if pid in view.processes else -1))
    ways = {_prevention(view, pid, fd) for pid, fd in pairs if pid in pids}
    prevention = ways.pop() if len(ways) == 1 else _NOT_EITHER
    act = () if _established(view)[rows].all() else (destroy("inherited-descriptor"),)
    return (_END, prevention, *act)


def _prevention(view: View, pid: int, fd: int) -> Remedy:
    if view.close_on_exec.get((pid, fd)):  # exec() would have closed it
        return _NOT_FORK
    return _NOT_EXEC if runs_what_its_parent_runs(view, pid) is False else _NOT_EITHER


RULE = Rule(
    name="inherited-descriptor",
    title="a child process inherited the connection, so closing it in the parent closes nothing",
    severity="problem",
    rank=25,
    harm="leak",
    turn=Turn("holder", "close()"),
    owners=True,
    means="by-state",
    beyond_sysctls="another process still holds a descriptor",
    claims=("C7", "X14", "S06"),
    clues=_CLUES,
    ends=(_END, _NOT_EITHER, destroy("inherited-descriptor")),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    remedies=_remedies,
    unjudged=_unjudged,
    flags=True,
    cases=(
        Case(
            title="a program that does not listen on its port holds the connection, and waits for nothing on it",
            rows=_stray,
            clues=_CLUES,
            ends=(_END, _NOT_EITHER),
            does_not=_DOES_NOT,
        ),
        Case(
            title="a process that started later holds a connection that has been silent since then",
            rows=_established,
            clues=_CLUES,
            ends=(_END, _NOT_EITHER),
            does_not=_DOES_NOT,
        ),
    ),
)
