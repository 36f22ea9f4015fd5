"""The descriptors of a worker: one epoll set, who owns which descriptor, what time it is, what is to be closed.

A `Loop` waits, and hands over what happened; what that means is its owners' business (`finwait.relay.driver` for the
sockets of connections). Sockets of connections are watched edge-triggered, for everything, from the first to the last:
after EOF a descriptor stays in the set. It costs nothing, and EPOLLERR on it is the proof that the peer behind a
half-close is gone.

The surprise: a descriptor that ended is *buried* first and closed at the end of the turn. Its number must not be used
anew while events of its former owner may still be in the batch.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ERR", "HUP", "IN", "MASK", "MUTED", "OUT", "PRI", "RDHUP", "READABLE", "Loop"]

IN, OUT, ERR, HUP, RDHUP, PRI = (
    select.EPOLLIN,
    select.EPOLLOUT,
    select.EPOLLERR,
    select.EPOLLHUP,
    select.EPOLLRDHUP,
    select.EPOLLPRI,
)
MASK: Final = IN | OUT | RDHUP | PRI | select.EPOLLET
"""What the socket of a connection is watched for."""
MUTED: Final = RDHUP | PRI | select.EPOLLET
"""The same while neither its bytes nor its room are of use."""
READABLE: Final = IN | RDHUP | HUP | PRI
_EVENTS: Final = 256
"""In one batch."""


class Loop:
    """Waits for descriptors.

    Attributes:
        epoll: the set.
        table: by descriptor, its owner: whatever was given to `own`, or the handler of `watch`.
        now: when the present turn began, seconds of the monotonic clock.
        wall: what to add to ``now`` for the time of day.
        buried: descriptors that are to be closed at the end of the turn.
    """

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.table: list[Any] = [None] * 256
        self.now = time.monotonic()
        self.wall = time.time() - self.now
        self.buried: list[int] = []

    def wait(self, timeout: float) -> list[tuple[int, int]]:
        """Return what happened: (descriptor, event mask) of each; a new turn begins."""
        try:
            events = self.epoll.poll(timeout, _EVENTS)
        except InterruptedError:
            events = []
        self.now = time.monotonic()
        return events

    def look_at_the_clock(self) -> None:
        """Bring ``now`` up to date between turns."""
        self.now = time.monotonic()

    def own(self, fd: int, owner: object) -> None:
        """Note whose a descriptor is; it is not watched by that."""
        table = self.table
        if fd >= len(table):
            table.extend([None] * max(fd + 1 - len(table), len(table)))
        table[fd] = owner

    def watch(self, fd: int, handler: Callable[[int], None], mask: int = IN) -> None:
        """Have ``handler(mask)`` called for a descriptor that is no connection's."""
        self.own(fd, handler)
        self.epoll.register(fd, mask)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor given to `watch`; it is not closed."""
        self.table[fd] = None
        self.epoll.unregister(fd)

    def bury(self, fd: int) -> None:
        """Forget a descriptor, and close it at the end of the turn."""
        self.table[fd] = None
        self.buried.append(fd)

    def end_turn(self) -> None:
        """Close what was buried."""
        for fd in self.buried:
            os.close(fd)
        self.buried.clear()

    def close(self) -> None:
        """Close the set, and what was buried."""
        self.end_turn()
        self.epoll.close()
