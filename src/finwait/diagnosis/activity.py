"""Which programs went on between two looks, and which cannot: what shows a program at work, and what only its kernel.

What a program reads leaves a receive queue, and what it writes enters a send queue: the bytes that were acknowledged
and those that are not yet, together, are all that it has written. The bytes that were acknowledged show the kernel,
which goes on sending what it was given while the program hangs, or is stopped.

A connection that a process did not have at the first look, it accepted, or opened, in between. One that was taken out
of an accept queue and is gone shows one of the processes that have the listener at work; workers of one server share
it, and a process of which no thread was given a processor meanwhile (``schedstat``) did nothing of all this.

A program that waits for room in a send queue cannot read meanwhile. That needs a thread in such a call on such a
connection; a thread that runs, or waits for a lock, a database or the next client, does not wait to send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.process import ProcessView
from finwait.attribution.waiting import SENDING, WaitedOn
from finwait.table.schema import Mask
from finwait.uapi import tcp
from finwait.uapi.eventpoll import EPOLLOUT
from finwait.uapi.observation import ThreadWait

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = [
    "RECENT_MS",
    "active",
    "held_by_all",
    "held_by_some",
    "ignored",
    "sending",
    "stopped",
    "streaming",
    "unattended",
    "waiting_elsewhere",
]

RECENT_MS: Final = 3000
"""Data that passed so short ago leaves open, in a single look, whether more is coming."""
_TO_ONE: Final = SENDING | {"splice", "tee", "sendfile"}
"""Calls that write to a descriptor."""


def stopped(view: View) -> frozenset[int]:
    """Return the processes that cannot go on until a signal, a debugger or a thawed cgroup lets them."""
    return frozenset(
        pid for pid, process in view.processes.items() if _is_stopped(process, view.waits.doing(pid))
    )


def _is_stopped(process: ProcessView, threads: tuple[ThreadWait, ...]) -> bool:
    """Return whether all threads are stopped: a signal stops all of them, a tracer each for itself."""
    if process.state == "T" or (process.state == "t" and process.threads == 1):
        return True
    return bool(threads) and len(threads) == process.threads and all(thread.halted for thread in threads)


def active(view: View) -> frozenset[int]:
    """Return the processes that read, wrote or accepted between two looks, or may be blocked in sending."""
    s = view.sockets
    pids = set(
        view.pid_rows((view.read | view.wrote) & (s.state != tcp.LISTEN))
    )  # a listener's queue is another
    pids |= _accepted(view)
    pids -= {pid for pid, ran in view.ran.items() if not ran}  # then it was another that has the same socket
    blocked = view.pid_rows((s.timer == 4) | ((s.timer == 1) & (s.retrans > 0)))
    return frozenset(pids | {pid for pid, rows in blocked.items() if _may_be_sending(view, pid, rows)})


def _accepted(view: View) -> set[int]:
    """Return the processes that got a connection between two looks, or may have taken one out of a queue."""
    if view.lone_before is None:
        return set()
    s = view.sockets
    fresh = view.held & ~view.held_before & (s.state != tcp.LISTEN) & (s.state != tcp.SYN_SENT)
    by_pid = view.pid_rows(fresh)
    pids = set(by_pid)
    unread = set(view.pid_rows((s.state == tcp.ESTABLISHED) & (s.rqueue > 0) & ~view.read))
    for door in np.flatnonzero(view.accepting.taken).tolist():
        sharing = {pid for pid, _ in view.holders.of(door)}
        if any(_any_on_port(view, by_pid[pid], door) for pid in sharing & by_pid.keys()):
            continue
        able = {pid for pid in sharing if view.ran.get(pid, True)}
        likely = {pid for pid in able if not _elsewhere(view.waits.doing(pid))}
        pids |= likely - unread or able - unread or likely or able
    return pids


def _any_on_port(view: View, rows: NDArray[np.int64], door: int) -> bool:
    s = view.sockets
    return bool(((s.netns[rows] == s.netns[door]) & (s.sport[rows] == s.sport[door])).any())


def _elsewhere(threads: tuple[ThreadWait, ...]) -> bool:
    """Return whether all threads of a process are known, and each is stopped or sleeps in what waits for no socket."""
    return bool(threads) and all(
        thread.halted or (thread.steady and thread.state != "R" and thread.kind == "other")
        for thread in threads
    )


def _may_be_sending(view: View, pid: int, rows: NDArray[np.int64]) -> bool:
    """Return whether a thread of a process may wait for room on some connections that it holds."""
    threads = view.waits.doing(pid)
    fds = {fd for row in rows.tolist() for holder, fd in view.holders.of(row) if holder == pid}
    return not threads or any(_sends(thread, fds) for thread in threads)


def _sends(thread: ThreadWait, fds: set[int]) -> bool:
    if thread.halted or thread.state == "R":  # what runs is not blocked
        return False
    if not thread.steady:
        return True
    if thread.kind == "fd":
        return thread.call in _TO_ONE and any(fd in fds for fd, _ in thread.waits_for)
    if thread.kind == "set":
        return any(fd in fds and events & EPOLLOUT for fd, events in thread.waits_for)
    return thread.kind != "other"  # an event loop, an io_uring, or a call that is not known


def waiting_elsewhere(view: View, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which of some rows a process holds that may wait for room on another: as a relay with a slow client.

    On such a connection there are bytes to send, and they pass slowly, or the peer has no room. If its program has
    written all of them and its FIN (FIN_WAIT1), it waits for them to arrive, in whatever call. In a single look bytes
    pass where the peer acknowledged something just now.
    """
    s = view.sockets
    answered = ~view.moved_known & (s.retrans == 0) & s.present("last_ack_recv_ms")
    answered &= s.last_ack_recv_ms < RECENT_MS
    slow = (s.wqueue > 0) & view.held & (view.sent | answered | (s.timer == 4))
    writing = slow & ((s.state == tcp.ESTABLISHED) | (s.state == tcp.CLOSE_WAIT))
    pids = {pid for pid, held in view.pid_rows(writing).items() if _may_be_sending(view, pid, held)}
    closing = slow & (s.state == tcp.FIN_WAIT1)
    pids |= view.pid_rows(closing).keys()
    out = np.zeros(len(view), np.bool_)
    if not pids:
        return out
    others = view.pid_rows(writing | closing)
    for pid, held in view.pid_rows(rows).items():
        if pid in pids:
            out[held] |= ~np.isin(held, others[pid]) | (len(others[pid]) > 1)
    return out


def sending(view: View, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which of some rows are held by a process that may be waiting for room on one of them."""
    out = np.zeros(len(view), np.bool_)
    for pid, held in view.pid_rows(rows).items():
        if _may_be_sending(view, pid, held):
            out[held] = True
    return out


def held_by_some(view: View, rows: NDArray[np.bool_], pids: frozenset[int]) -> NDArray[np.bool_]:
    """Return which of some rows are held by one of some processes at least."""
    out = np.zeros(len(view), np.bool_)
    if pids:
        for pid, held in view.pid_rows(rows).items():
            if pid in pids:
                out[held] = True
    return out


def held_by_all(view: View, rows: NDArray[np.bool_], pids: frozenset[int]) -> NDArray[np.bool_]:
    """Return which of some rows are held, and by none but some processes."""
    others = frozenset(view.pid_rows(rows)) - pids
    return held_by_some(view, rows, pids) & ~held_by_some(view, rows, others)


def ignored(view: View) -> Mask:
    """Return rows in FIN_WAIT2 that receive what their program leaves where it is.

    Between two looks bytes came, some lay there all the time, and none was read. Whoever waits for them would have been
    woken, unless it waits for more (MSG_WAITALL, SO_RCVLOWAT), or pauses.
    """
    return view.moved & _left(view)


def _left(view: View) -> Mask:
    """Return rows in FIN_WAIT2 on which bytes lay all the time between two looks, or came while all was stopped."""
    lying = (view.sockets.rqueue > 0) & ((view.queue_before > 0) | view.halted) & ~view.read
    return view.in_state(tcp.FIN_WAIT2) & view.held & lying


def streaming(view: View) -> Mask:
    """Return rows in FIN_WAIT2 whose answer comes and is wanted, as far as two looks tell.

    That the other end still reads what was sent shows that it is at work; nothing comes of it where the program at this
    end leaves what it has already.
    """
    lying = _left(view)
    awaited = view.other_reads & ~lying
    if (perhaps := view.other_reads & lying & ~view.ignored).any():
        awaited |= perhaps & ~view.halted & ~unattended(view, perhaps)
    return view.in_state(tcp.FIN_WAIT2) & view.held & (view.moved | view.read | awaited) & ~view.ignored


def unattended(view: View, rows: Mask) -> Mask:
    """Return which of some rows nobody waits for to read them: each holder is stopped, or does something else.

    A thread that sleeps in epoll_wait() beside unread bytes waits for more (SO_RCVLOWAT), or was told of them already
    (EPOLLET). A one-shot registration that has fired, one without EPOLLIN, and a thread that runs and does not read,
    wait for nothing.
    """
    out = np.zeros(len(view), np.bool_)
    for wait, of in view.waits.answers:
        out[of] = _not_for_data(wait)
    for row in np.flatnonzero(rows & ~out & view.holders.several_processes()).tolist():
        out[row] = all(pid in view.stopped_pids or _not_for_data(wait) for pid, wait in view.waits.each(row))
    return rows & out


def _not_for_data(wait: WaitedOn) -> bool:
    if wait.kind == "loop" and all(loop.asleep is False for loop in wait.loops):
        return True
    return wait.for_data is False
