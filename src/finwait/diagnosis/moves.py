"""Whose move it is inside the program that holds a connection: what will be noticed there, and what not.

`finwait.attribution.waiting` says who waits. What that means depends on what there is to notice: in CLOSE_WAIT, and
where bytes lie unread, there is something to read at this moment and for ever (tcp_poll(), net/ipv4/tcp.c: EPOLLIN and
EPOLLRDHUP stay set after a FIN). Whoever waits for that would have been woken. So a level-triggered event loop that
watches such a socket and whose thread sleeps elsewhere is stuck there; one whose thread sleeps *in* the loop cannot
be. In FIN_WAIT2 there is nothing to notice yet, and the question is whether anybody will when the peer's FIN comes.
Bytes that lie unread wake no one who waits for the FIN alone (EPOLLRDHUP).

The one surprise: a FIN that arrives in FIN_WAIT2 shuts the second direction, and that is EPOLLHUP, which the kernel
reports whatever a program registered for. So it wakes a loop that does not watch for reading, unless its one-shot
registration has fired.

What this cannot see: code that comes back to a connection by itself, by a timer or at its next use. `FORGOTTEN` says
that nobody waits, not that nobody ever will.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.waiting import EOF_RECEIVED, WaitedOn
from finwait.diagnosis.finding import Evidence
from finwait.table.sockets import address_text
from finwait.table.units import duration_text, endpoint
from finwait.uapi import tcp
from finwait.uapi.eventpoll import EPOLLOUT
from finwait.uapi.observation import Releasing, ThreadWait

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = ["Move", "evidence", "inside", "moves", "released", "releasing_text"]


class Move(StrEnum):
    """What waits for a connection, and what that means for it."""

    FORGOTTEN = "forgotten"
    """Nobody waits for it at present; whether its program will come back to it cannot be seen."""
    PAUSED = "paused"
    """An event loop watches it, but not for reading."""
    LOOP_ELSEWHERE = "loop-elsewhere"
    """Its event loop watches it for reading, and no thread sleeps in the loop."""
    TOLD_ONCE = "told-once"
    """An edge-triggered event loop was told, and its thread sleeps again."""
    LOOP_WATCHES = "loop-watches"
    """An event loop will notice what comes."""
    WAITS = "waits"
    """A thread waits for it; whether that has a limit is not known."""
    WAITS_FOR_EVER = "waits-for-ever"
    """A thread waits for it without a limit."""
    WAITS_LIMITED = "waits-limited"
    """A thread waits for it, for some time at most."""
    UNKNOWN = "unknown"


_Readable = Literal["no", "data", "fin"]


def moves(view: View) -> NDArray[np.int8]:
    """Return the move of each row, as its place in `Move`; that of `Move.UNKNOWN` where it was not asked."""
    order = {move: k for k, move in enumerate(Move)}
    result = np.full(len(view), order[Move.UNKNOWN], np.int8)
    s = view.sockets
    fin = np.isin(s.state, EOF_RECEIVED)
    data = ~fin & (s.rqueue > 0)
    kinds: tuple[tuple[_Readable, NDArray[np.bool_]], ...] = (
        ("fin", fin),
        ("data", data),
        ("no", ~fin & ~data),
    )
    for wait, rows in view.waits.answers:
        for readable, kind in kinds:
            result[rows[kind[rows]]] = order[_move(wait, readable)]
    return result


def _readable(view: View, row: int) -> _Readable:
    """Return what there is of which a reader would have been told."""
    s = view.sockets
    if int(s.state[row]) in EOF_RECEIVED:
        return "fin"
    return "data" if int(s.rqueue[row]) > 0 else "no"


def _move(wait: WaitedOn, readable: _Readable) -> Move:
    if wait.kind == "nobody":
        return Move.FORGOTTEN
    if wait.kind == "paused":
        return Move.PAUSED
    if wait.kind == "thread":
        if all(thread.limited for thread in wait.threads):
            return Move.WAITS_LIMITED
        return Move.WAITS_FOR_EVER if any(thread.limited is False for thread in wait.threads) else Move.WAITS
    if wait.kind == "loop":
        return _loop(wait, readable)
    return Move.UNKNOWN


def _loop(wait: WaitedOn, readable: _Readable) -> Move:
    reading = [loop for loop in wait.loops if loop.reading]
    if readable == "data":
        reading = [loop for loop in reading if loop.for_data]
        if not reading:
            return Move.PAUSED
    nowhere = all(loop.asleep is False for loop in reading)
    if readable == "no":
        # A loop that has work is out of its call for a moment; nothing is late yet.
        return Move.LOOP_ELSEWHERE if nowhere and not wait.unsteady else Move.LOOP_WATCHES
    if any(loop.asleep is None for loop in reading):
        return Move.UNKNOWN
    if nowhere:
        return Move.LOOP_ELSEWHERE
    if all(loop.edge for loop in reading if loop.asleep):
        return Move.TOLD_ONCE
    return Move.UNKNOWN  # it is being woken at this moment


_SAYS: Final = {
    Move.FORGOTTEN: (
        "no thread and no event loop of the program waits for it now: it acts only if it comes back to it by itself"
    ),
    Move.PAUSED: (
        "an event loop watches it, but not for reading: the program reads it only if it comes back to it by itself"
    ),
    Move.LOOP_ELSEWHERE: "its event loop should be reading it now, but no thread sleeps in that loop",
    Move.TOLD_ONCE: (
        "its event loop was told once (edge-triggered) and sleeps again: it is not told again of what is there already"
    ),
    Move.LOOP_WATCHES: "an event loop watches it for reading: the peer's FIN will wake it",
    Move.WAITS: "a thread waits for it; whether that wait has a time-out is not known",
    Move.WAITS_FOR_EVER: "a thread waits for it without a time-out",
    Move.WAITS_LIMITED: "a thread waits for it, with a time-out",
    Move.UNKNOWN: "who waits for it is not known",
}
_IN_STATE: Final[Mapping[int, Mapping[Move, str]]] = {
    tcp.FIN_WAIT2: {
        Move.FORGOTTEN: (
            "no thread and no event loop of the program waits for it now: it notices the peer's FIN only if it comes "
            "back to it by itself"
        ),
        Move.PAUSED: (
            "an event loop watches it, but not for reading: the peer's FIN wakes that loop all the same (EPOLLHUP)"
        ),
    },
    tcp.LISTEN: {
        Move.FORGOTTEN: "no thread and no event loop of the program waits for new connections",
        Move.PAUSED: (
            "an event loop watches the listener, but not for new connections: the program accepts them only if it "
            "comes back to it by itself"
        ),
        Move.LOOP_ELSEWHERE: "its event loop should be accepting now, but no thread sleeps in that loop",
        Move.TOLD_ONCE: "its event loop was told once (edge-triggered), did not accept all, and sleeps again",
    },
}
_STUCK: Final = (
    "an event loop watches it for reading, but no thread sleeps in that loop: "
    "what comes is noticed only when one returns there"
)
_DISARMED: Final = (
    "an event loop has it, but its one-shot registration has fired: the program notices the peer's FIN only if it "
    "comes back to it by itself"
)
_WRITING: Final = "an event loop watches it for writing only: the program waits for the peer to read"
_LEFT: Final = (
    "an event loop has it, but not for reading, and no thread sleeps in that loop: "
    "the program does something else"
)
_WOKEN: Final = "an event loop watches it and a thread sleeps in that loop, which should have been woken"
_LINGERS: Final = (
    "with SO_LINGER, closing the last one waits until the peer has acknowledged everything, or the time of the option "
    "is over"
)
_ENDING: Final = "the kernel has not closed it yet"
_OTHERS: Final = "; a process that could not be inspected may hold it too"
_READ_FROM: Final = "/proc/PID/task/TID/syscall and /proc/PID/fdinfo"
_SHOWN: Final = 3
_SAMPLE: Final = 1000
"""Of more rows not all are looked at where a line or two is said of them."""


def evidence(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return who waits for rows that have one move, in one or two lines; nothing where nobody asked."""
    waits = view.waits
    asked = rows[waits.asked[rows]]
    if not len(asked):
        return released(view, rows)
    first = waits.of(int(asked[0]))
    move = _move(first, readable=_readable(view, int(asked[0])))
    state = int(view.sockets.state[asked[0]])
    says = _IN_STATE.get(state, {}).get(move, _SAYS[move])
    departed = bool(first.loops) and all(loop.asleep is False for loop in first.loops)
    if move is Move.UNKNOWN:
        unknown = Evidence("waits", "unknown", _READ_FROM, first.why or _WOKEN)
        doing = _doing(view, asked) if first.unsteady and not first.loops else None
        return (unknown,) if doing is None else (unknown, Evidence("threads", doing[0], _READ_FROM, doing[1]))
    if move is Move.PAUSED:
        says = _paused(view, int(asked[0]), first, says)
    if move is Move.LOOP_ELSEWHERE and _readable(view, int(asked[0])) == "no":
        says = _STUCK
    if first.others and move in (Move.FORGOTTEN, Move.PAUSED):
        says += _OTHERS
    if first.unsteady and move is Move.LOOP_ELSEWHERE:
        says += f"; {first.unsteady} of its threads were running and may come back to it"
    result = [Evidence("waits", _waiters(view, asked), _READ_FROM, says)]
    if (departed or move is Move.FORGOTTEN) and (doing := _doing(view, asked)):
        result.append(Evidence("threads", doing[0], _READ_FROM, doing[1]))
    return tuple(result)


def inside(view: View, rows: NDArray[np.int64]) -> str:
    """Return in a word or two what the program that holds rows does about them, or does instead of anything.

    Empty where that is not known, or not the same for all of them.
    """
    waits = view.waits
    asked = rows[waits.asked[rows]][:_SAMPLE].tolist()
    kinds = {_move(waits.of(row), _readable(view, row)) for row in asked}
    if len(kinds) != 1:
        return ""
    move = kinds.pop()
    if move in _BRIEFLY:
        return _BRIEFLY[move]
    if move in (Move.WAITS, Move.WAITS_FOR_EVER, Move.WAITS_LIMITED):
        calls = dict.fromkeys(thread.call for row in asked for thread in waits.of(row).threads)
        return f"waits in {_first(calls)}"
    if move not in (Move.FORGOTTEN, Move.LOOP_ELSEWHERE):
        return ""
    pids = sorted(view.holders.pids(np.array(asked, np.int64)))
    threads = [thread for pid in pids for thread in waits.doing(pid)]
    if move is Move.FORGOTTEN and threads and all(thread.kind == "epoll" for thread in threads):
        return "not watched"
    counted = Counter(_brief_call(thread) for thread in threads)
    return _first([text for text, _ in counted.most_common()]) if counted else ""


_BRIEFLY: Final = {Move.PAUSED: "paused", Move.TOLD_ONCE: "told once"}


def _first(texts: Collection[str]) -> str:
    """Return the first of some texts, and whether there are others."""
    return f"{next(iter(texts))}{', …' if len(texts) > 1 else ''}"


def _brief_call(thread: ThreadWait) -> str:
    if thread.halted:
        return thread.halted.partition(" (")[0]
    if not thread.call:
        return "running" if thread.state == "R" else f"in state {thread.state}"
    return f"in {thread.call}"


def released(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return which thread holds rows of which no descriptor is left."""
    for row in rows[:_SHOWN].tolist():
        for thread in (threads := view.releasers(row)):
            held = f"{thread.name}({thread.pid})"
            nearby = view.nearby(thread, row)
            where = "" if nearby else elsewhere_text(thread)
            keeps = "keeps" if nearby and len(threads) == 1 else "may keep"
            why = _ENDING if thread.exiting else _LINGERS
            says = f"{releasing_text(thread)} and {keeps} it, although no descriptor is left: {why}"
            return (Evidence("holder", held, "/proc/PID/task/TID", f"thread {thread.tid}{where} {says}"),)
    return ()


def elsewhere_text(thread: Releasing) -> str:
    """Return where a thread is that is not known to be in the network namespace of what it may be closing."""
    return (
        ", in another network namespace,"
        if thread.netns
        else ", whose network namespace is not known any more,"
    )


def keeper_text(view: View, row: int) -> str:
    """Return which thread keeps a row of which no descriptor is left; empty where none does."""
    threads = view.releasers(row)
    if not threads:
        return ""
    first = threads[0]
    nearby = view.nearby(first, row)
    where = "" if nearby else elsewhere_text(first)
    text = f"thread {first.tid} ({first.name}) of pid {first.pid}{where} {releasing_text(first)}"
    keeps = "keeps it" if nearby else "may keep it"
    if len(threads) == 1:
        return f"{text}, and {keeps}"
    return f"one of {len(threads)} threads {keeps}: {text}, for one"


def releasing_text(thread: Releasing) -> str:
    """Return what a thread does that is closing a socket, as the rest of a sentence about it."""
    if thread.exiting:
        return "is ending"
    return f"is in {thread.call}()" if thread.call else "is closing a socket"


def _paused(view: View, row: int, wait: WaitedOn, says: str) -> str:
    """Return what to say of a row that event loops have, and none of them for reading."""
    state = int(view.sockets.state[row])
    if state == tcp.FIN_WAIT2 and all(loop.spent for loop in wait.loops):
        return _DISARMED
    if state in _IN_STATE:
        return says
    # A registration for writing may be left over: only what is not sent yet shows that the program waits to send.
    if view.sockets.wqueue[row] and any(loop.events & EPOLLOUT and loop.asleep for loop in wait.loops):
        return _WRITING
    return _LEFT if all(loop.asleep is False for loop in wait.loops) else says


def _waiters(view: View, rows: NDArray[np.int64]) -> str:
    """Return who waits for rows: `nobody`, a thread with its call, a loop with its events."""
    counted: Counter[str] = Counter()
    for row in rows[:_SAMPLE].tolist():
        wait = view.waits.of(row)
        counted[_name(wait)] += 1
    if len(counted) == 1:
        return next(iter(counted))
    shown = [f"{name} ×{n}" for name, n in counted.most_common(_SHOWN)]
    more = len(counted) - _SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _name(wait: WaitedOn) -> str:
    if wait.threads:
        thread = wait.threads[0]
        limit = f", at most {duration_text(thread.timeout_ms)}" if thread.timeout_ms is not None else ""
        return f"thread {thread.tid} ({thread.name}) in {thread.call}{limit}"
    if wait.loops:
        loop = wait.loops[0]
        asleep = ""
        if loop.asleep and loop.thread is not None:
            asleep = f", thread {loop.thread.tid} ({loop.thread.name}) sleeps in it"
        return f"epoll descriptor {loop.epoll_fd} of pid {loop.pid}{asleep}"
    return "nobody"


def _doing(view: View, rows: NDArray[np.int64]) -> tuple[str, str] | None:
    """Return what the threads of the holders do, the most frequent first, and what that says."""
    pids = view.holders.pids(rows[:_SAMPLE])
    threads = [(pid, thread) for pid in sorted(pids) for thread in view.waits.doing(pid)]
    if not threads:
        return None
    others = [text for pid, thread in threads if (text := _elsewhere(view, rows, pid, thread))]
    elsewhere = others[0] if others else ""
    if len(others) > 1:
        elsewhere += f", and {len(others) - 1} more for others"
    if len(threads) == 1:
        ((_, thread),) = threads
        says = f"what its only thread {thread.tid} ({thread.name}) does instead"
        return _call(thread, alone=True), says + elsewhere
    counted = Counter(_call(thread) for _, thread in threads)
    shown = [f"{n} {call}" for call, n in counted.most_common(_SHOWN)]
    more = len(threads) - sum(n for _, n in counted.most_common(_SHOWN))
    text = ", ".join(shown) + (f", {more} others" if more else "")
    return text, f"what the {len(threads)} threads of the program do instead{elsewhere}"


def _elsewhere(view: View, rows: NDArray[np.int64], pid: int, thread: ThreadWait) -> str:
    """Return which other connection a thread waits for; a relay waits for its other leg, a worker for a backend."""
    if thread.kind != "fd" or len(thread.waits_for) != 1 or not thread.steady:
        return ""
    descriptor = thread.waits_for[0][0]
    row = view.holders.row_of(pid, descriptor)
    s = view.sockets
    if row < 0 or row in rows or int(s.state[row]) == tcp.LISTEN:
        return ""
    peer = endpoint(address_text(*s.dst[row].tolist()), int(s.dport[row]))
    state = tcp.state_name(int(s.state[row]))
    return f"; thread {thread.tid} waits for its connection to {peer} ({state}, descriptor {descriptor})"


def _call(thread: ThreadWait, *, alone: bool = False) -> str:
    """Return what a thread does; with the descriptor, where that tells its wait from one on the connection."""
    if thread.halted:
        return thread.halted
    if not thread.call:
        return "running" if thread.state == "R" else f"in state {thread.state}"
    if len(thread.waits_for) == 1 and (thread.kind == "epoll" or (alone and thread.kind == "fd")):
        return f"in {thread.call} of descriptor {thread.waits_for[0][0]}"
    return f"in {thread.call}"
