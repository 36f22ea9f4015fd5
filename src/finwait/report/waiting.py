"""Who waits for a connection, as text and as JSON."""

from __future__ import annotations

from typing import Any

from finwait.attribution.waiting import EventLoop, WaitedOn, Waiter
from finwait.table.units import duration_text
from finwait.uapi.eventpoll import event_names
from finwait.uapi.observation import ThreadWait
from finwait.uapi.poll import POLLIN, POLLOUT, POLLPRI, POLLRDHUP

__all__ = ["call_text", "loop_text", "waited_on", "waiter_text", "waiting_text"]

_POLL = ((POLLIN, "IN"), (POLLPRI, "PRI"), (POLLOUT, "OUT"), (POLLRDHUP, "RDHUP"))


def call_text(call: str, *, limited: bool | None, timeout_ms: int | None) -> str:
    """Return a system call with the limit of its wait: `poll, at most 5 s`, `recvfrom, no time-out`."""
    if limited is None:
        return call
    if not limited:
        return f"{call}, no time-out"
    return (
        f"{call}, at most {duration_text(timeout_ms)}"
        if timeout_ms is not None
        else f"{call}, with a time-out"
    )


def thread_text(thread: ThreadWait) -> str:
    """Return what a thread was doing: `thread 812 (worker) in futex`."""
    doing = "running" if not thread.call else f"in {thread.call}"
    if thread.kind == "epoll" and len(thread.waits_for) == 1:
        doing += f" of descriptor {thread.waits_for[0][0]}"
    if thread.halted:
        doing = thread.halted
    return f"thread {thread.tid} ({thread.name}) {doing}"


def waiter_text(waiter: Waiter) -> str:
    """Return a thread that waits: `recvfrom 812/worker`."""
    call = call_text(waiter.call, limited=waiter.limited, timeout_ms=waiter.timeout_ms)
    return f"thread {waiter.tid} ({waiter.name}) in {call}"


def loop_text(loop: EventLoop) -> str:
    """Return an event loop that watches: `epoll 5 of pid 812 for IN|RDHUP, thread 812 (nginx) asleep in it`."""
    events = (
        "|".join(name for name in event_names(loop.events) if name not in ("ERR", "HUP")) or "errors only"
    )
    if loop.spent:
        events = "nothing: its one-shot was not armed again"
    text = f"event loop (epoll descriptor {loop.epoll_fd} of pid {loop.pid}) for {events}"
    if loop.asleep and loop.thread is not None:
        return f"{text}; thread {loop.thread.tid} ({loop.thread.name}) sleeps in it"
    if loop.thread is not None and loop.asleep is False:
        return f"{text}; its thread is elsewhere: {thread_text(loop.thread)}"
    return f"{text}; no thread sleeps in it" if loop.asleep is False else text


def waiting_text(wait: WaitedOn) -> str:
    """Return who waits, on one line."""
    parts = [*map(waiter_text, wait.threads), *map(loop_text, wait.loops)]
    if wait.kind == "nobody":
        return "nobody"
    if wait.kind == "unknown":
        return "; ".join([*parts, f"unknown: {wait.why}"])
    return "; ".join(parts)


def waited_on(wait: WaitedOn) -> dict[str, Any]:
    """Return who waits as a JSON object."""
    return {
        "kind": wait.kind,
        "why": wait.why or None,
        "threads": [
            {
                "pid": thread.pid,
                "tid": thread.tid,
                "name": thread.name,
                "call": thread.call,
                "timeout_ms": thread.timeout_ms,
                "limited": thread.limited,
                "events": [name for bit, name in _POLL if thread.events & bit],
            }
            for thread in wait.threads
        ],
        "loops": [
            {
                "pid": loop.pid,
                "epoll_fd": loop.epoll_fd,
                "events": list(event_names(loop.events)),
                "thread": None
                if loop.thread is None
                else {"tid": loop.thread.tid, "name": loop.thread.name, "call": loop.thread.call or None},
                "asleep": loop.asleep,
            }
            for loop in wait.loops
        ],
    }
