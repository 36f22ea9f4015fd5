"""accept-queue-full: a listener's accept queue is full, and its program does not accept.

Seen as       LISTEN with more connections in its queue (rqueue) than its backlog (wqueue). Two looks tell whether the
              program accepts: a queue that did not move is a problem, a full one that moves only a notice, and only
              while handshakes are dropped. Below the backlog a notice, where connections have died in the queue and
              the program accepts none.
Why it stays  The kernel completes handshakes until the queue is full, and then drops what arrives: new clients time
              out. A connection that its client has reset keeps its place until accept(), so the queue may be full
              of connections that are in no list any more.
Not this      A queue that is emptied: its program is only slow for a moment.
What ends it  The program accepting again; its restart, which resets the whole queue.
What does not A longer backlog (it is filled too, and counts from the next listen()); destroying what is queued (the
              places stay taken); tcp_abort_on_overflow (it resets new clients).
Reproduce     finwait lab run accept-queue-full
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.join import matches
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import RECENT_MS, certain, likely, look_again, silence
from finwait.diagnosis.view import View
from finwait.table.units import duration_text
from finwait.uapi import tcp

__all__ = ["NOT_BACKLOG", "RULE", "match"]

MOMENT_MS = 1000
"""A connection that was used so short ago shows that its listener's program was accepting during the look."""


def _listeners(view: View) -> NDArray[np.bool_]:
    """Return the listeners, each once: one of MPTCP has a row of TCP as well."""
    s = view.sockets
    doors = np.asarray(s.state == tcp.LISTEN)
    inner = doors & (s.protocol == 6) & (s.ulp == b"mptcp")
    if not inner.any():
        return doors
    whole = doors & (s.protocol == 262)
    return doors & ~(inner & np.isin(s.inode, s.inode[whole]))


def _alive(view: View) -> NDArray[np.int64]:
    """Return how many connections that are still there wait at each listener (or at one that shares its port)."""
    out = np.zeros(len(view), np.int64)
    np.add.at(out, view.listeners[1], 1)
    return out


def _shared(view: View) -> NDArray[np.bool_]:
    """Return which listeners share what they listen on with another: no row says who has which connection."""
    s = view.sockets
    doors = np.flatnonzero(s.state == tcp.LISTEN)
    words = (s.netns, s.protocol, s.family, s.sport, s.ifindex, s.src[:, 0], s.src[:, 1])
    keys = tuple(word[doors] for word in words)
    i, _ = matches(keys, keys)
    out = np.zeros(len(view), np.bool_)
    out[doors] = np.bincount(i, minlength=len(doors)) > 1
    return out


def _new(view: View) -> NDArray[np.int64]:
    """Return how many of those came between two looks."""
    row, listener = view.listeners
    out = np.zeros(len(view), np.int64)
    np.add.at(out, listener[view.queue_before[row] < 0], 1)
    return out


def _full(view: View) -> NDArray[np.bool_]:
    full: NDArray[np.bool_] = view.sockets.rqueue > view.sockets.wqueue  # sk_acceptq_is_full()
    return full


def _twice(view: View) -> NDArray[np.bool_]:
    twice: NDArray[np.bool_] = (view.queue_before >= 0) & (view.watched_ms > 0)
    return twice


def _taken(view: View) -> NDArray[np.bool_]:
    """Return which listeners gave connections to their program between two looks, for all that the rows tell."""
    came = np.where(_shared(view), 0, _new(view))
    taken: NDArray[np.bool_] = _twice(view) & (view.queue_before + came > view.sockets.rqueue)
    return taken


def _still(view: View) -> NDArray[np.bool_]:
    return _twice(view) & ~_taken(view) & (view.watched_ms >= RECENT_MS)


def _dropping(view: View) -> NDArray[np.bool_]:
    """Return rows of namespaces in which handshakes met a full queue between two looks."""
    dropping = [
        number for number, ns in view.namespaces.items() if (ns.grown("TcpExt.ListenOverflows") or 0) > 0
    ]
    return np.isin(view.sockets.netns, dropping)


def _dead(view: View) -> NDArray[np.bool_]:
    """Return listeners whose queue holds connections that are in no list any more, for all that the rows tell."""
    s = view.sockets
    listed = np.isin(s.netns, [number for number, ns in view.namespaces.items() if ns.dumped])
    return listed & ~_shared(view) & (s.rqueue.astype(np.int64) > _alive(view))


def _served(view: View) -> NDArray[np.bool_]:
    """Return listeners on whose port something was accepted a moment ago, or has just been closed."""
    s = view.sockets
    quiet = silence(view, "last_data_sent_ms", "last_data_recv_ms", "last_ack_recv_ms")
    busy = (s.state != tcp.LISTEN) & ~view.queued & ((s.timer == 3) | (quiet < MOMENT_MS))
    doors, rows = np.flatnonzero(s.state == tcp.LISTEN), np.flatnonzero(busy)
    i, _ = matches((s.netns[doors], s.sport[doors]), (s.netns[rows], s.sport[rows]))
    out = np.zeros(len(view), np.bool_)
    out[doors[i]] = True
    return out


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    doors = _listeners(view) & (view.sockets.rqueue > 0)
    if not doors.any():
        return doors
    full = doors & _full(view) & (~_taken(view) | _dropping(view))
    waiting = doors & ~_full(view) & _dead(view) & (_still(view) | (~_twice(view) & ~_served(view)))
    return full | waiting


def _moving(view: View) -> NDArray[np.bool_]:
    return _full(view) & _taken(view)


def _room(view: View) -> NDArray[np.bool_]:
    return ~_full(view)


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "problem" if (_full(view) & ~_taken(view))[rows].any() else "notice"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    seconds = f"{view.watched_ms / 1000:.1f} s"
    if _moving(view)[rows].all():
        return certain(
            f"the queue was full, it moved within {seconds}, and handshakes were dropped meanwhile"
        )
    if not _still(view)[rows].all():
        return look_again(
            "a burst of connections looks the same in a single look; `--for 5s` looks twice and tells"
        )
    s = view.sockets
    opened = {number: ns.grown("Tcp.PassiveOpens") for number, ns in view.namespaces.items()}
    nothing_new = np.array([opened.get(number) == 0 for number in s.netns[rows].tolist()], np.bool_)
    same = (_alive(view)[rows] == s.rqueue[rows]) & (_new(view)[rows] == 0) & ~_shared(view)[rows]
    if (nothing_new | same).all():
        return certain(
            f"the same connections were in the queue at both looks, {seconds} apart: none was accepted"
        )
    return likely(
        f"the queue did not shrink in {seconds}; connections that came, went and were accepted are not seen"
    )


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    s = view.sockets
    result: list[Evidence] = []
    child, door = view.listeners
    children = np.unique(child[np.isin(door, rows)])
    if (_dead(view) | (_alive(view) == s.rqueue))[rows].all():
        queued, alive = int(s.rqueue[rows].astype(np.int64).sum()), len(children)
        result.append(
            Evidence(
                "of the queue",
                f"{alive} alive, {queued - alive} dead",
                "sock_diag",
                "a dead one was reset by its client, and keeps its place until accept()",
            )
        )
    waited = silence(view, "last_ack_recv_ms")[children]
    if len(waited) and waited.max() >= 0:
        result.append(
            Evidence(
                "longest wait",
                f"at least {duration_text(int(waited.max()))}",
                "tcp_info.tcpi_last_ack_recv",
                "since the client of a queued connection was last heard",
            )
        )
    for number in np.unique(s.netns[rows]).tolist():
        ns = view.namespaces.get(number)
        if ns is None:
            continue
        for name, says in _COUNTERS:
            if (value := ns.counters.get(f"TcpExt.{name}")) is not None:
                grown = ns.grown(f"TcpExt.{name}")
                more = "" if not value or grown is None else f" (+{grown} in {view.watched_ms / 1000:.1f} s)"
                result.append(Evidence(name, f"{value}{more}", f"/proc/net/netstat of {ns.label}", says))
    return tuple(result)


_COUNTERS = (
    ("ListenOverflows", "handshakes that met a full accept queue, of every listener of the namespace"),
    ("ListenDrops", "handshakes that a listener dropped for any reason"),
)
NOT_BACKLOG = Advice(
    "raise the backlog or `net.core.somaxconn`",
    "a program that accepts nothing fills any queue; and both count from the next listen() on",
)
_WHY = Remedy(
    "find out why the program does not accept: a blocked loop, a full worker pool, EMFILE, a stopped process"
)
_RESTART = Remedy(
    "restart the listening program: every connection in its queue is reset, and new clients get in"
)
_CLUES = (
    Clue("state", "a listener: its queue holds what the kernel has accepted and the program has not"),
    Clue("rqueue", "connections in the queue"),
    Clue("wqueue", "its backlog: with more than this in the queue, new handshakes are dropped"),
)
_DOES_NOT = (
    NOT_BACKLOG,
    Advice(
        "destroy the queued connections", "each keeps its place as a dead entry until the program accepts it"
    ),
    Advice(
        "`tcp_abort_on_overflow=1`",
        "it resets new clients, which would try again; no place becomes free",
    ),
)

RULE = Rule(
    name="accept-queue-full",
    title="the accept queue is full and nothing is accepted: new clients time out",
    severity="problem",
    rank=20,
    means="by-state",
    beyond_sysctls="only accept() frees a place in the queue; a backlog counts from the next listen()",
    claims=("C6b", "S11", "X16"),
    clues=_CLUES,
    ends=(_WHY, _RESTART),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    cases=(
        Case(
            title="the accept queue is full although the program accepts: connections come faster than it takes them",
            rows=_moving,
            clues=_CLUES,
            ends=(
                Remedy(
                    "accept faster: more threads or processes that accept, or less work before the next accept()"
                ),
                Remedy(
                    "for bursts, a longer backlog in the program's listen() and a `net.core.somaxconn` that allows it",
                    "reversible",
                ),
            ),
            does_not=_DOES_NOT[1:],
        ),
        Case(
            title="connections have died in the accept queue, and the program does not accept",
            rows=_room,
            clues=_CLUES,
            ends=(_WHY, _RESTART),
            does_not=_DOES_NOT,
        ),
    ),
)
