"""Who waits for a connection inside the programs that hold it: a thread, an event loop, or nobody.

The join is per holder: a thread's system call names descriptors of its process, a registration of an epoll instance
names the socket itself (its inode), and an epoll instance is waited for by the thread that sleeps in ``epoll_wait``
on it, or on another instance (or poll set) that it is part of.

The one surprise: an edge-triggered registration says less than any other. Its event was reported once, when it
happened; whether the program will come back to the socket, the registration does not tell. Go registers every socket
in this way, and keeps who waits for it to itself (`RUNTIME`). nginx and single-threaded tokio register the same
events; where a process has one thread only, nobody else can be waiting in it.

What is not known is never "nobody": `Waits.of` says ``unknown`` and why. "Nobody" is: all threads of all holders that
were found were read twice, all of them slept and none on it, no event loop watches it, and nothing that cannot be read
(io_uring, libaio, signals, descriptor tables of threads' own) could be waiting. It does not say that the program has
forgotten it: a thread may come back to it by itself.

A thread in a call names a descriptor, and what that is now. Where another thread closed it and the number is used
again, the call is about what it was before. Nothing tells, except where there is something to read: who sleeps then in
a call that it would have ended does not wait for this connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from finwait.attribution.owners import HolderRows
from finwait.table.vocabulary import WAITED
from finwait.uapi import tcp
from finwait.uapi.eventpoll import (
    DATA,
    EPOLLERR,
    EPOLLET,
    EPOLLHUP,
    EPOLLIN,
    EPOLLONESHOT,
    EPOLLOUT,
    EPOLLRDHUP,
    PRIVATE,
    READING,
)
from finwait.uapi.observation import LoopWatch, ProcessWaits, SocketOptions, ThreadWait
from finwait.uapi.poll import POLLPRI

__all__ = [
    "EOF_RECEIVED",
    "KINDS",
    "READABLE",
    "SENDING",
    "EventLoop",
    "WaitKind",
    "WaitedOn",
    "Waiter",
    "Waits",
]

WaitKind = Literal["thread", "loop", "paused", "nobody", "unknown"]
KINDS: Final = WAITED
"""A thread sleeps in a call on it; an event loop watches it for reading; one watches it, but not for reading; nothing
does; it is not known."""
NOT_ASKED: Final = -1
READABLE: Final = ("no", "data", "fin")
"""What there is of which a reader would have been told: nothing, unread bytes, or the peer's FIN."""
EOF_RECEIVED: Final = (tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)
"""States in which the peer's FIN is there to read, and for ever."""
SENDING: Final = frozenset({"write", "writev", "sendto", "sendmsg", "sendmmsg", "pwritev2"})
"""System calls that wait for room to send in; of those that both read and write, `Waiter.events` tells."""
RUNTIME: Final = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
"""How Go's netpoller watches every socket (src/runtime/netpoll_epoll.go)."""
_DEEPEST: Final = 5
"""EP_MAX_NESTS of fs/eventpoll.c, and one."""


class Waiter(Struct, frozen=True):
    """A thread that sleeps in a call on a connection."""

    pid: int
    tid: int
    name: str
    call: str
    limited: bool | None
    """Whether its wait has a limit, by the call or by the socket (SO_RCVTIMEO, SO_SNDTIMEO); None: not known."""
    timeout_ms: int | None
    """How long the call waits at most; None with `limited` where that could not be read."""
    events: int = 0
    """What poll(2), select(2), or a call that moves bytes between descriptors waits for; 0 for any other call on this
    descriptor alone."""

    @property
    def sending(self) -> bool:
        """Whether it waits only for room to send in."""
        return self.call in SENDING or (bool(self.events) and not self.events & READING)

    def woken_by(self, readable: int) -> bool:
        """Return whether what there is to read ends its wait: a place in `READABLE`."""
        if not readable or self.sending or self.only_errors:
            return False
        return READABLE[readable] == "fin" or not self.only_fin

    @property
    def only_errors(self) -> bool:
        """Whether it is a poll(2) that waits for nothing but errors."""
        return self.call in ("poll", "ppoll") and not self.events & ~(EPOLLERR | EPOLLHUP)

    @property
    def only_urgent(self) -> bool:
        """Whether it is a select(2) with only the set of exceptional conditions.

        Of the three sets this one alone is woken neither by an error nor by a FIN (POLLEX_SET, fs/select.c).
        """
        return self.call in ("select", "pselect6") and self.events == POLLPRI

    @property
    def only_fin(self) -> bool:
        """Whether it waits for the peer's FIN, and not for data."""
        return bool(self.events & EPOLLRDHUP) and not self.events & DATA


class EventLoop(Struct, frozen=True):
    """An event loop that watches a connection."""

    pid: int
    epoll_fd: int
    events: int
    """EPOLL bits of the registration."""
    thread: ThreadWait | None
    """Who sleeps on it; or the only thread of its process, whatever that does instead; None where that is not known."""
    asleep: bool | None
    """Whether a thread sleeps on it; None where that is not known."""

    @property
    def reading(self) -> bool:
        """Whether it would notice data, or the peer's FIN."""
        return bool(self.events & READING)

    @property
    def for_data(self) -> bool:
        """Whether it would notice data: a loop that watches for EPOLLRDHUP alone notices only the peer's FIN."""
        return bool(self.events & DATA)

    @property
    def edge(self) -> bool:
        """Whether each event is reported once, when it happens."""
        return bool(self.events & EPOLLET)

    @property
    def spent(self) -> bool:
        """Whether it is a one-shot registration that has fired and was not armed again."""
        return bool(self.events & EPOLLONESHOT) and not self.events & ~PRIVATE


class WaitedOn(Struct, frozen=True):
    """Who waits for one connection."""

    kind: WaitKind
    threads: tuple[Waiter, ...] = ()
    loops: tuple[EventLoop, ...] = ()
    why: str = ""
    """Why it is not known, where it is not."""
    unsteady: int = 0
    """Threads of its holders that ran, or changed what they did, while they were read."""
    others: bool = False
    """Whether processes that could not be inspected may hold it, too: all is about the holders that were found."""
    ran: bool = False
    """Whether it is unknown for no other reason than that threads ran: none was seen to wait for it."""

    @property
    def for_data(self) -> bool | None:
        """Whether somebody waits for data of it, or will be told of it; None where that is not known."""
        if self.kind == "unknown":
            return False if self.ran else None
        data = any(not (w.sending or w.only_errors or w.only_fin or w.only_urgent) for w in self.threads)
        return data or any(loop.for_data for loop in self.loops)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the threads that wait, those that sleep in an event loop among them."""
        sleepers = (loop.thread.name for loop in self.loops if loop.thread is not None and loop.asleep)
        return tuple(dict.fromkeys([*(waiter.name for waiter in self.threads), *sleepers]))


class _Process(Struct):
    """What a process waits for, by descriptor and by inode."""

    read: ProcessWaits
    by_fd: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Descriptor → threads that sleep on it, by their places, each with poll events."""
    by_inode: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Inode → loops that watch it, by their places, each with EPOLL bits."""
    by_socket: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Inode → threads that sleep on it, where numbers do not tell (descriptor tables of threads' own)."""
    signalled: frozenset[int] = frozenset()
    """Descriptors of sockets that send signals."""
    closing: frozenset[int] = frozenset()
    """Descriptors that threads are in close() of."""
    foreign: dict[int, list[int]] = field(default_factory=dict)
    """Inode → other processes whose event loops watch the socket, whether they hold it or not."""
    by_number: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Registrations of kernels that do not tell inodes, by the number as registered."""
    sleepers: dict[int, ThreadWait | None] = field(default_factory=dict)
    """Epoll descriptor → the thread that sleeps on it; None where that is not known."""
    why: str = ""
    """Why "nobody" cannot be said of this process."""
    unsteady: int = 0
    halted: str = ""
    """Why it cannot notice anything at present, where all of its threads are stopped or frozen."""


class Waits:
    """Who waits for each of the connections of a view.

    Args:
        processes: pid → what was read of it.
        inodes: of the rows.
        holders: of the rows.
        options: inode → the options of sockets, as far as they are known.
        readable: of the rows: what there is to read, as in `READABLE`; None where nothing is known of it.
    """

    def __init__(
        self,
        processes: Mapping[int, ProcessWaits],
        inodes: NDArray[np.uint32],
        holders: HolderRows,
        options: Mapping[int, SocketOptions] = MappingProxyType({}),
        readable: NDArray[np.int8] | None = None,
    ) -> None:
        self._readable = np.zeros(len(inodes), np.int8) if readable is None else readable
        self._processes = processes
        self._options = options
        self._inodes = inodes
        self._holders = holders
        self._joined: dict[int, _Process] = {}
        self._answers: dict[tuple[Any, ...], WaitedOn] = {}
        self._pids = np.array(sorted(processes), np.uint32)

    def __bool__(self) -> bool:
        return bool(self._processes)

    @cached_property
    def asked(self) -> NDArray[np.bool_]:
        """Which rows have a holder that was read."""
        out = np.zeros(len(self._inodes), np.bool_)
        holders = self._holders
        if not len(self._pids) or not len(holders.pid):
            return out
        read = np.concatenate([[0], np.cumsum(np.isin(holders.pid, self._pids))])
        out[:] = read[holders.start + holders.count] > read[holders.start]
        return out

    @cached_property
    def kinds(self) -> NDArray[np.int8]:
        """Each row's place in `KINDS`; −1 where nobody asked."""
        kinds = np.full(len(self._inodes), NOT_ASKED, np.int8)
        for wait, rows in self.answers:
            kinds[rows] = KINDS.index(wait.kind)
        return kinds

    def rows(self, *kinds: WaitKind) -> NDArray[np.bool_]:
        """Return which rows are waited for in one of some ways."""
        return np.isin(self.kinds, [KINDS.index(kind) for kind in kinds])

    def doing(self, pid: int) -> tuple[ThreadWait, ...]:
        """Return what the threads of a process were doing; empty where that was not read."""
        process = self._processes.get(pid)
        return () if process is None else process.threads

    def of(self, row: int) -> WaitedOn:
        """Return who waits for a row; unknown where no holder of it is known: then nobody could be asked."""
        held = self._holders.of(row)
        if not held:
            doubt = not self._holders.complete
            return WaitedOn("unknown", why="no process is known to hold it", others=doubt)
        return self._answer(int(self._inodes[row]), held, int(self._readable[row]))

    def each(self, row: int) -> Iterator[tuple[int, WaitedOn]]:
        """Yield who waits for a row in each of the processes that hold it, with its pid."""
        held = self._holders.of(row)
        for pid in dict.fromkeys(pid for pid, _ in held):
            own = [pair for pair in held if pair[0] == pid]
            yield pid, self._answer(int(self._inodes[row]), own, int(self._readable[row]))

    @cached_property
    def answers(self) -> tuple[tuple[WaitedOn, NDArray[np.int64]], ...]:
        """Each answer, with the rows that were asked for and have it: a handful, however many rows there are."""
        holders = self._holders
        rows = np.flatnonzero(self.asked)
        several = holders.count[rows] != 1
        rows_of_answer: dict[int, tuple[WaitedOn, list[NDArray[np.int64]]]] = {}

        def give(wait: WaitedOn, to: NDArray[np.int64]) -> None:
            rows_of_answer.setdefault(id(wait), (wait, []))[1].append(to)  # equal answers are one object

        alone = rows[~several]
        at = holders.start[alone]
        order = np.argsort(holders.pid[at], kind="stable")
        alone, at = alone[order], at[order]
        pids, begins, counts = np.unique(holders.pid[at], return_index=True, return_counts=True)
        for pid, begin, end in zip(pids.tolist(), begins, begins + counts, strict=True):
            group, fds = alone[begin:end], holders.fd[at[begin:end]]
            inodes = self._inodes[group]
            named = self._named(pid, fds, inodes)
            others = np.flatnonzero(~named)
            if len(others):  # nothing in the process is about any of them: one answer
                give(self._answer(int(inodes[others[0]]), [(pid, int(fds[others[0]]))], 0), group[others])
            for row, inode, fd in zip(group[named], inodes[named].tolist(), fds[named].tolist(), strict=True):
                give(self._answer(inode, [(pid, fd)], int(self._readable[row])), row)
        for row in rows[several]:
            give(self.of(int(row)), row)
        return tuple((wait, np.hstack(parts)) for wait, parts in rows_of_answer.values())

    def _named(self, pid: int, fds: NDArray[np.uint32], inodes: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return of which sockets of a process something is said that is not said of all."""
        process = self._process(pid)
        if process is None:
            return np.zeros(len(fds), np.bool_)
        numbers = np.array(
            [*process.by_fd, *process.by_number, *process.signalled, *process.closing], np.int64
        )
        known = np.array([*process.by_inode, *process.by_socket, *process.foreign], np.int64)
        named: NDArray[np.bool_] = np.isin(fds, numbers) | np.isin(inodes, known)
        if process.read.unasked_from >= 0:
            named |= fds >= process.read.unasked_from
        return named

    def _answer(self, inode: int, held: list[tuple[int, int]], readable: int) -> WaitedOn:
        """Return who waits for a socket of some holders; what is not about this very socket is worked out once."""
        key: list[Any] = []
        for pid in dict.fromkeys(pid for pid, _ in held) if len(held) > 1 else (held[0][0],):
            process = self._process(pid)
            if process is None:
                key.append((pid, None))
                continue
            fds = [fd for holder, fd in held if holder == pid]
            threads = tuple(pair for fd in fds if fd in process.by_fd for pair in process.by_fd[fd])
            threads += tuple(process.by_socket.get(inode, ()))
            loops = tuple(process.by_inode.get(inode, ()))
            if process.by_number:
                loops += tuple(pair for fd in fds for pair in process.by_number.get(fd, ()))
            doubt = _doubt(process, fds, inode, held)
            key.append((pid, threads, loops, doubt, self._limits(inode) if threads else None))
        known = (readable if any(part[1] for part in key) else 0, *key)
        if known not in self._answers:
            self._answers[known] = self._made(known)
        return self._answers[known]

    def _limits(self, inode: int) -> tuple[int | None, int | None]:
        """Return how long calls that read and write a socket wait at most, in ms; 0: for ever, None: not known."""
        options = self._options.get(inode)
        return (None, None) if options is None else (options.rcvtimeo_ms, options.sndtimeo_ms)

    def _made(self, parts: tuple[Any, ...]) -> WaitedOn:
        """Put together what holders say: what there is to read, and of each pid what is about the socket, or None."""
        readable, *holders = parts
        threads: list[Waiter] = []
        loops: list[EventLoop] = []
        unsteady, maybe, silent, halted = 0, False, False, ""
        why = doubt = ""
        for pid, *details in holders:
            process = self._process(pid)
            if process is None:
                why = why or f"what the threads of pid {pid} wait for was not read"
                continue
            why = why or process.why
            doubt = doubt or details[2]
            unsteady += process.unsteady
            halted = halted or process.halted
            for place, events in details[0]:
                thread = process.read.threads[place]
                maybe |= not thread.steady
                if thread.steady:
                    threads.append(_waiter(pid, thread, events, details[3]))
            for place, events in details[1]:
                loop = process.read.loops[place]
                maybe |= not loop.steady
                if loop.steady:
                    silent |= events & ~(EPOLLERR | EPOLLHUP) == RUNTIME and len(process.read.threads) != 1
                    loops.append(self._loop(pid, process, loop, events))
        others = not self._holders.complete
        if contrary := [waiter for waiter in threads if waiter.woken_by(readable)]:
            threads = [waiter for waiter in threads if waiter not in contrary]
            doubt = doubt or _contrary(contrary[0], readable)
        kind = _kind(threads, loops, why=bool(why or doubt), maybe=maybe, silent=silent)
        ran = False
        if halted and not threads:
            kind, why = "unknown", halted
        elif kind == "nobody" and unsteady:
            kind, why, ran = "unknown", _ran(unsteady), True
        if kind == "unknown" and not (why := why or doubt):
            why = _RUNTIME_TELLS_NOTHING if silent else "the two readings differ"
        return WaitedOn(
            kind, tuple(threads), tuple(loops), why if kind == "unknown" else "", unsteady, others, ran
        )

    def _loop(self, pid: int, process: _Process, loop: LoopWatch, events: int) -> EventLoop:
        sleeper = process.sleepers.get(loop.fd)
        asleep = None if process.why or not loop.apart else False
        if sleeper is not None:
            asleep = _sleeps(sleeper)
        return EventLoop(pid, loop.fd, events, sleeper or self._only(pid), asleep)

    def _only(self, pid: int) -> ThreadWait | None:
        threads = self._processes[pid].threads
        return threads[0] if len(threads) == 1 else None

    def _process(self, pid: int) -> _Process | None:
        if pid not in self._processes:
            return None
        if pid not in self._joined:
            process = self._joined[pid] = _join(self._processes[pid])
            process.why = process.why or self._stale(pid, process)
        return self._joined[pid]

    def _stale(self, pid: int, process: _Process) -> str:
        """Return which thread is in a call on what its descriptor's number meant before, where a FIN shows it."""
        fin = READABLE.index("fin")
        if len(process.read.threads) == 1 or not process.by_fd:
            return ""
        numbers = np.array([*process.by_fd], np.int64)
        places = np.flatnonzero((self._holders.pid == pid) & np.isin(self._holders.fd, numbers))
        for place in places[self._readable[self._row_of_place[places]] == fin].tolist():
            for at, events in process.by_fd[int(self._holders.fd[place])]:
                thread = process.read.threads[at]
                waiter = _waiter(pid, thread, events, (None, None))
                alone = thread.steady and thread.kind == "fd" and thread.call not in _TWO_ENDED
                if alone and waiter.woken_by(fin):
                    return _contrary(waiter, fin)
        return ""

    @cached_property
    def _row_of_place(self) -> NDArray[np.int64]:
        """The row of each descriptor of a holder."""
        rows = np.arange(len(self._inodes))
        of_place = np.zeros(len(self._holders.pid), np.int64)
        of_place[self._holders.places(rows)] = np.repeat(rows, self._holders.count)
        return of_place


def _waiter(pid: int, thread: ThreadWait, events: int, limits: tuple[int | None, int | None]) -> Waiter:
    limited: bool | None = thread.limited
    timeout = thread.timeout_ms
    if thread.kind == "fd" and not limited:  # the call says nothing of a limit, but its socket may have one
        timeout = limits[thread.call in SENDING or bool(events & EPOLLOUT)]
        limited = None if timeout is None else timeout > 0
        timeout = timeout or None
    return Waiter(pid, thread.tid, thread.name, thread.call, limited, timeout, events)


_RUNTIME_TELLS_NOTHING: Final = (
    "it is registered for everything (edge-triggered), as Go registers every socket: that tells nothing"
)


def _sleeps(thread: ThreadWait) -> bool | None:
    """Return whether a thread that was seen in a call on an event loop slept in it all the time; None: not known."""
    return True if thread.steady else None


def _ran(unsteady: int) -> str:
    if unsteady == 1:
        return "1 of its threads ran during the look and may come back to it"
    return f"{unsteady} of its threads ran during the look and may come back to it"


def _contrary(waiter: Waiter, readable: int) -> str:
    """Return what to say of a thread that sleeps although what there is to read ends such a wait."""
    thread = f"thread {waiter.tid} ({waiter.name}) sleeps in {waiter.call}"
    if waiter.call in _TWO_ENDED:
        return f"{thread}, although there is something to read: it waits for its other descriptor"
    if readable == READABLE.index("fin"):
        return f"{thread}, which the peer's FIN would end: it began before the descriptor's number was used again"
    return f"{thread} although bytes lie unread: it waits for more, or began before the number was used again"


_TWO_ENDED: Final = frozenset({"splice", "tee", "sendfile"})


def _doubt(process: _Process, fds: list[int], inode: int, held: list[tuple[int, int]]) -> str:
    """Return why it is not known that nobody waits for one socket of a process; empty where that is known."""
    if any(fd in process.signalled for fd in fds):
        return "signals tell a program what happens on it (O_ASYNC)"
    if any(fd in process.closing for fd in fds):
        return "a thread is in close() of its descriptor's number"
    for pid in process.foreign.get(inode, ()):
        if all(pid != holder for holder, _ in held):
            return f"an event loop of pid {pid} watches it, which has no descriptor of it"
    limit = process.read.unasked_from
    if limit >= 0 and any(fd >= limit for fd in fds):
        return "not all of its program's sockets were asked whether they send signals: there are too many"
    return ""


def _kind(threads: list[Waiter], loops: list[EventLoop], *, why: bool, maybe: bool, silent: bool) -> WaitKind:
    if threads:
        return "thread"
    if silent:
        return "unknown"
    if any(loop.reading for loop in loops):
        return "loop"
    if maybe or (why and not loops):
        return "unknown"
    if loops:
        return "unknown" if why else "paused"
    return "nobody"


def _join(process: ProcessWaits) -> _Process:
    """Index what a process waits for."""
    result = _Process(
        process,
        unsteady=sum(not thread.steady for thread in process.threads),
        signalled=frozenset(process.asynchronous),
        closing=frozenset(
            fd for thread in process.threads if thread.kind == "close" for fd, _ in thread.waits_for
        ),
    )
    for inode, pid in process.foreign:
        result.foreign.setdefault(inode, []).append(pid)
    for place, thread in enumerate(process.threads):
        if thread.halted:
            continue  # it is not waiting: what comes does not wake it
        for inode, events in thread.sockets:
            result.by_socket.setdefault(inode, []).append((place, events))
        if thread.kind == "close":
            continue
        for fd, events in thread.waits_for:
            result.by_fd.setdefault(fd, []).append((place, events))
    numbers = {loop.fd for loop in process.loops}
    inner: dict[int, list[int]] = {}
    for place, loop in enumerate(process.loops):
        for fd, events, inode in loop.watched:
            if fd in numbers and events & DATA:
                inner.setdefault(loop.fd, []).append(fd)
            if inode < 0:
                result.by_number.setdefault(fd, []).append((place, events))
            else:
                result.by_inode.setdefault(inode, []).append((place, events))
    for loop in process.loops:
        for number in (loop.fd, *loop.also):
            for place, _ in result.by_fd.get(number, ()):
                for fd in _within(loop.fd, inner):
                    result.sleepers.setdefault(fd, process.threads[place])
    result.why = _unknown(process)
    stopped = [thread for thread in process.threads if thread.halted]
    if stopped and len(stopped) == len(process.threads):
        result.halted = f"its program is {stopped[0].halted}, and notices nothing until it goes on"
    return result


def _within(fd: int, inner: Mapping[int, Iterable[int]]) -> set[int]:
    """Return an epoll instance and those that it watches, and those that they watch."""
    reached, newest = {fd}, {fd}
    for _ in range(_DEEPEST):
        newest = {deeper for parent in newest for deeper in inner.get(parent, ())} - reached
        reached |= newest
    return reached


_UNLISTED: Final = {
    "io_uring": "it uses io_uring, and the kernel does not list what that waits for",
    "aio": "it uses libaio, and the kernel does not list what that waits for",
    "tables": "a thread of it has descriptors of its own",
    "tables-unknown": "this kernel does not tell whether its threads share their descriptors",
    "stale": "a thread of it sleeps in a call on a descriptor that was closed meanwhile",
    "maps": "its memory map could not be read, which tells whether it uses io_uring or libaio",
    "loops": "there are too many event loops on this machine to know whether another program's watches it",
}


def _unknown(process: ProcessWaits) -> str:
    """Return why it is not known that nobody in a process waits; empty where it is known."""
    if process.unread:
        return f"could not {process.unread[0].partition(chr(9))[0]}"
    if process.rings:
        return "it uses io_uring, and the kernel does not list what that waits for"
    for word in process.unlisted:
        return _UNLISTED.get(word, "it can wait in a way that nothing lists")
    for thread in process.threads:
        if thread.halted:
            return f"thread {thread.tid} ({thread.name}) is {thread.halted}"
        if thread.kind in ("unknown", "restart", "io_uring"):
            return (
                f"thread {thread.tid} ({thread.name}) is in {thread.call or 'a call that could not be read'}"
            )
    if not process.threads:
        return "none of its threads could be read"
    return ""
