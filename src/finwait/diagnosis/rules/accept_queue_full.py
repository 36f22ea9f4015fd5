"""accept-queue-full: a listener's accept queue is full, and its program does not accept.

Seen as       LISTEN with more connections in its queue (rqueue) than its backlog (wqueue). Two
              looks show whether the program accepts: a queue that did not move is a problem. A full
              queue that moves is only a notice, and only while handshakes are dropped. A queue
              below the backlog is a notice if connections have died in it and the program accepts
              none. Of listeners that share an address (SO_REUSEPORT), each is known to accept
              if fewer connections are left of the first look than it had alone, or if its own
              process holds a new one. If only some accept and nothing shows which, that is said.
Why it stays  The kernel completes handshakes until the queue is full. It then drops new ones, and
              new clients time out. A connection that its client has reset keeps its place until
              accept(), so the queue may be full of connections that no list shows any more.
Not this      A queue that drains: its program is only slow for a moment. Two looks do not tell a
              program that is stuck from one whose workers are all busy for longer: compare what its
              threads do (`threads` in the evidence). A stopped program is stuck for certain.
What ends it  The program accepts again; or a restart, which resets the whole queue.
Won't help    A longer backlog: it fills up too, and takes effect at the next listen(). Destroying
              the queued connections: their places stay taken. tcp_abort_on_overflow: it resets new
              clients.
Reproduce     finwait lab run accept-queue-full
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.join import matches
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import RECENT_MS, certain, likely, look_again, possible, silence
from finwait.diagnosis.rules.established_unread import holding, stopped
from finwait.diagnosis.view import View
from finwait.table.units import duration_text
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

__all__ = ["BUSY", "FASTER", "NOT_BACKLOG", "RULE", "match", "stuck"]

BUSY = (
    "a program whose threads are all busy with long work for now looks the same, and accepts when one is done"
)
"""What no length of watching excludes, but of a program that is stopped."""
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


def _full(view: View) -> NDArray[np.bool_]:
    full: NDArray[np.bool_] = view.sockets.rqueue > view.sockets.wqueue  # sk_acceptq_is_full()
    return full


def _still(view: View) -> NDArray[np.bool_]:
    """Return listeners of which nothing shows that they gave a connection to their program between two looks."""
    queues = view.accepting
    return queues.twice & ~queues.taken & ~queues.perhaps & (view.watched_ms >= RECENT_MS)


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
    return listed & ~view.accepting.shared & (s.rqueue.astype(np.int64) > view.accepting.alive)


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
    full = doors & _full(view) & (~view.accepting.taken | _dropping(view))
    waiting = doors & ~_full(view) & _dead(view) & (_still(view) | (~view.accepting.twice & ~_served(view)))
    return full | waiting


def _moving(view: View) -> NDArray[np.bool_]:
    return _full(view) & view.accepting.taken


def _one_of_several(view: View) -> NDArray[np.bool_]:
    return _full(view) & view.accepting.perhaps


def _room(view: View) -> NDArray[np.bool_]:
    return ~_full(view)


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "problem" if (_full(view) & ~view.accepting.taken)[rows].any() else "notice"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    seconds = f"{view.watched_ms / 1000:.1f} s"
    if _moving(view)[rows].all():
        return certain(f"the queue was full and changed within {seconds}, and handshakes were dropped")
    queues = view.accepting
    if queues.perhaps[rows].all() and view.watched_ms >= RECENT_MS:
        return possible(
            f"of the listeners on this address some accepted within {seconds}, and no row shows which; connections "
            "that waited all that time may be in the queue of one that accepts nothing"
        )
    if stuck(view, rows):
        return certain("its program is stopped, and accepts nothing until it goes on")
    if not _still(view)[rows].all():
        return look_again("a burst of connections looks the same in a single look; check with `--for 5s`")
    s = view.sockets
    opened = {number: ns.grown("Tcp.PassiveOpens") for number, ns in view.namespaces.items()}
    nothing_new = np.array([opened.get(number) == 0 for number in s.netns[rows].tolist()], np.bool_)
    same = (queues.alive[rows] == s.rqueue[rows]) & (queues.new[rows] == 0) & ~queues.shared[rows]
    if (nothing_new | same).all():
        return likely(
            f"the same connections were in the queue at two looks {seconds} apart, so none was accepted; {BUSY}"
        )
    return likely(
        f"the queue did not shrink in {seconds}; connections that arrived in between, and left or were "
        f"accepted, are not visible; {BUSY}"
    )


def stuck(view: View, doors: NDArray[np.int64]) -> bool:
    """Return whether nothing can be accepted from any of some listeners, because all that hold them are stopped."""
    return bool(view.holders.complete and len(doors)) and all(
        stopped(view, holding(view, doors[k : k + 1])) for k in range(len(doors))
    )


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    s = view.sockets
    result: list[Evidence] = []
    child, door = view.listeners
    children = distinct(child[np.isin(door, rows)])
    if (_dead(view) | (view.accepting.alive == s.rqueue))[rows].all():
        queued, alive = int(s.rqueue[rows].astype(np.int64).sum()), len(children)
        result.append(
            Evidence(
                "of the queue",
                f"{alive} alive, {queued - alive} dead",
                "sock_diag",
                "a dead one was reset by its client; it keeps its place until accept()",
            )
        )
    waited = silence(view, "last_ack_recv_ms")[children]
    if len(waited) and waited.max() >= 0:
        result.append(
            Evidence(
                "longest wait",
                f"at least {duration_text(int(waited.max()))}",
                "tcp_info.tcpi_last_ack_recv",
                "time since the client of a queued connection was last heard",
            )
        )
    for number in distinct(s.netns[rows]).tolist():
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
    ("ListenOverflows", "handshakes that found the accept queue full, for all listeners of the namespace"),
    ("ListenDrops", "handshakes dropped by a listener for any reason"),
)
NOT_BACKLOG = Advice(
    "raise the backlog or `net.core.somaxconn`",
    "a program that does not accept fills a queue of any length; both take effect at the next listen()",
)
_WHY = Remedy(
    "find out why the program does not accept: a blocked loop, a full worker pool, EMFILE, or a stopped process"
)
_RESTART = Remedy(
    "restart the listening program; this resets every connection in its queue and lets new clients in"
)
FASTER = Remedy(
    "accept faster: use more accepting threads or processes, or do less work between two accept() calls"
)
_CLUES = (
    Clue(
        "state",
        "a listener; its queue holds connections that the kernel has accepted and the program has not",
    ),
    Clue("rqueue", "connections in the queue"),
    Clue("wqueue", "its backlog; with more connections than this in the queue, new handshakes are dropped"),
)
_DOES_NOT = (
    NOT_BACKLOG,
    Advice(
        "destroy the queued connections",
        "each one keeps its place as a dead entry until the program accepts it",
    ),
    Advice(
        "`tcp_abort_on_overflow=1`",
        "it resets new clients, which would otherwise retry; it frees no place",
    ),
)

RULE = Rule(
    name="accept-queue-full",
    title="the accept queue is full; new clients time out until the program accepts",
    severity="problem",
    rank=20,
    harm="outage",
    turn=Turn("holder", "accept()"),
    means="by-state",
    beyond_sysctls="only accept() frees a place in the queue; a new backlog takes effect at the next listen()",
    claims=("C6b", "S11", "X16"),
    clues=_CLUES,
    ends=(_WHY, _RESTART),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    waited=True,
    observe=_observe,
    grade=_grade,
    cases=(
        Case(
            title=(
                "the accept queue is full although the program accepts; connections arrive faster than it "
                "accepts them"
            ),
            rows=_moving,
            clues=_CLUES,
            ends=(
                FASTER,
                Remedy(
                    "for bursts, use a longer backlog in the program's listen(), and a `net.core.somaxconn` "
                    "that allows it",
                    "reversible",
                ),
            ),
            does_not=_DOES_NOT[1:],
        ),
        Case(
            title="connections died in the accept queue, and the program has not accepted them",
            rows=_room,
            clues=_CLUES,
            ends=(_WHY, _RESTART),
            does_not=_DOES_NOT,
        ),
        Case(
            title="the accept queue is full; of the listeners that share its address, one may accept nothing",
            rows=_one_of_several,
            clues=_CLUES,
            ends=(
                Remedy(
                    "find out which of the programs that listen there does not accept (`finwait list` shows the "
                    "queue and the owner of each), and why: a blocked loop, a full worker pool, or a stopped process",
                    "read-only",
                ),
                FASTER,
            ),
            does_not=_DOES_NOT,
        ),
    ),
)
