"""Connections to backends that are opened in advance, and used once.

After a byte was sent a TCP connection cannot be used for another client, so these are connections on which nobody
has said anything. They are watched like all others: a backend that ends one is noticed before a client gets it. Bytes
from a backend that speaks first are no end.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

from finwait.relay import sockets
from finwait.relay.loop import ERR, HUP, MASK, OUT, RDHUP

if TYPE_CHECKING:
    from collections.abc import Callable

    from finwait.relay.balance import Backend
    from finwait.relay.loop import Loop
    from finwait.relay.route import Route

__all__ = ["IdlePool"]


class _Idle:
    """A connection to a backend, unused."""

    __slots__ = ("backend", "fd", "opened", "ready", "route")

    def __init__(self, fd: int, backend: Backend, route: Route, opened: float) -> None:
        self.fd = fd
        self.backend = backend
        self.route = route
        self.opened = opened
        self.ready = False


class IdlePool:
    """The unused connections of a worker.

    Args:
        loop: watches them.
        begin: begins a connection of a route to a backend; returns its descriptor and what connect() said.
    """

    def __init__(self, loop: Loop, begin: Callable[[Route, Backend, None], tuple[int, int]]) -> None:
        self._loop = loop
        self._begin = begin
        self._idle: dict[Backend, list[_Idle]] = {}

    def count(self, backend: Backend) -> int:
        """Return how many are kept for a backend."""
        return len(self._idle.get(backend, ()))

    def take(self, backend: Backend) -> int:
        """Return a connection that is still good, as a descriptor that is not watched; -1 when there is none."""
        kept = self._idle.get(backend)
        for idle in list(kept) if kept else ():
            if not idle.ready:
                continue
            self._forget(idle)
            if sockets.is_usable(idle.fd):
                return idle.fd
            self._loop.bury(idle.fd)
        return -1

    def tend(self, route: Route, *, draining: bool) -> None:
        """Close what has waited too long, and open what is missing."""
        pool, now = route.service.pool, self._loop.now
        if not (pool.max_idle or self._idle):
            return
        for backend in route.balancer.backends:
            for place, idle in enumerate(list(self._idle.get(backend, ()))):
                old = pool.idle_timeout and now - idle.opened >= pool.idle_timeout
                if draining or old or place >= pool.max_idle:
                    self._drop(idle)
            usable = backend.up and not backend.ejected(now) and not draining
            while usable and self.count(backend) < pool.max_idle:
                try:
                    fd, number = self._begin(route, backend, None)
                except OSError:
                    return
                if number not in (0, errno.EINPROGRESS):
                    os.close(fd)
                    route.balancer.failed(backend, now)
                    break
                idle = _Idle(fd, backend, route, now)
                self._idle.setdefault(backend, []).append(idle)
                self._loop.watch(fd, partial(self._happened, idle), MASK)

    def drop(self, backend: Backend) -> None:
        """Close all that are kept for a backend."""
        for idle in list(self._idle.get(backend, ())):
            self._drop(idle)

    def close(self) -> None:
        """Close all."""
        for backend in list(self._idle):
            self.drop(backend)

    def _happened(self, idle: _Idle, mask: int) -> None:
        """One opened, or ended before it was used."""
        if mask & (ERR | RDHUP | HUP):
            if not idle.ready:
                idle.route.balancer.failed(idle.backend, self._loop.now)
            self._drop(idle)
        elif mask & OUT and not idle.ready:
            idle.ready = True

    def _drop(self, idle: _Idle) -> None:
        self._forget(idle)
        self._loop.bury(idle.fd)

    def _forget(self, idle: _Idle) -> None:
        kept = self._idle[idle.backend]
        kept.remove(idle)
        if not kept:
            del self._idle[idle.backend]
        self._loop.unwatch(idle.fd)
