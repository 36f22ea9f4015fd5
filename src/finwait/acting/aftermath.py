"""What is left of connections after an act, at both ends where both are here."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec import Struct

from finwait.acting.identity import Key, key_of, reread, rows_by_cookie
from finwait.kernel import tasks
from finwait.kernel.interruption import interrupted, pause
from finwait.remedy.plan import End, Step
from finwait.uapi import tcp

__all__ = ["Seen", "wait_gone"]


def should_end_too(step: Step) -> bool:
    """Whether the plan says that the other end sees an end of it, so that it should go too."""
    return step.sees in ("fin", "fin-then-reset", "reset", "reset-if-path")


class Seen(Struct, frozen=True):
    """A connection that is still there."""

    state: str
    before_fin: int
    """Bytes before a FIN that is sent or queued (it counts 1 itself) that the peer has not acknowledged."""
    unknown: bool = False
    """Its namespace could not be inspected, so nothing else is known of it."""


def wait_gone(steps: Sequence[Step], wait_s: float) -> dict[Key, Seen]:
    """Wait until connections are gone, for a while; return each end that is not.

    Their other ends are waited for too, where they are here and hear of it. LAST_ACK and TIME_WAIT are on their
    way out: the connection is over for both programs. An interruption
    ends the wait.
    """
    if not steps:
        return {}
    end = time.monotonic() + wait_s
    ends: list[Step | End] = [*steps, *(s.other for s in steps if s.other is not None)]
    awaited = {key_of(s) for s in steps} | {
        key_of(s.other) for s in steps if s.other is not None and should_end_too(s)
    }
    wait = 0.02
    while True:
        survivors = still_there(ends)
        over = awaited.isdisjoint(k for k, seen in survivors.items() if not seen.unknown)
        if over or time.monotonic() > end or interrupted():
            return survivors
        ends = [e for e in ends if key_of(e) in survivors]
        pause(wait)
        wait = min(wait * 1.5, 0.25)


def still_there(ends: Sequence[Step | End]) -> dict[Key, Seen]:
    table, closed = reread(ends)
    rows = rows_by_cookie(table)
    states, queued = table.state.tolist(), table.wqueue.tolist()
    survivors = {}
    for end in ends:
        row = rows.get(key := key_of(end))
        if row is None:
            if end.netns in closed:
                survivors[key] = Seen("?", 0, unknown=True)
            continue
        state = tcp.state_name(states[row])
        if state not in ("TIME_WAIT", "CLOSE"):
            survivors[key] = Seen(state, max(queued[row] - 1, 0))
    return survivors


def open_descriptors(steps: Sequence[Step]) -> dict[Key, tuple[tuple[int, int, str], ...]]:
    """Return which descriptors refer to the sockets of the steps still: an ended connection leaves them open."""
    tables = tasks.Tables()
    return {
        key_of(step): tuple(
            (pid, fd, comm) for pid, fd, comm in step.holders if tables.path(pid, fd, step.inode) is not None
        )
        for step in steps
    }
