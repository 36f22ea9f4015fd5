"""One worker: a process with one loop that accepts, connects and moves bytes.

Theory of operation
===================

A worker puts together what each has a module of its own:

==================  =================================================================================
`Loop`              descriptors: waits, knows whose each is, closes them at the end of a turn
`Acceptor`          listening sockets: who may come in, and when there is room
`Driver`            connections: events to the machine of each, its commands to the sockets
`Dialer`            tries to connect to a backend; with connections opened in advance (`IdlePool`)
`Pump`              bytes from one leg to the other; with a pool of pipes (`Pipes`)
`Wheel`             when to look at a connection again
`Route`             a service: its settings, its backends, its counts
==================  =================================================================================

In a turn events are handled, listeners accept, those whose turn was over go on, connections that are due are looked
at, and last what ended is closed. Every decision about the life of a connection is `machine.RelayMachine`'s.

Orders come from `finwait.relay.process`; nothing here knows of a supervisor.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any

import msgspec

from finwait.relay import status
from finwait.relay.acceptor import Acceptor
from finwait.relay.config.model import Pool
from finwait.relay.dialer import Dialer
from finwait.relay.driver import Driver
from finwait.relay.loop import Loop
from finwait.relay.pump import Pump
from finwait.relay.route import Route
from finwait.relay.wheel import GRAIN, Wheel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from finwait.relay.balance import Backend
    from finwait.relay.config.model import Config
    from finwait.relay.connection import Conn

__all__ = ["Worker"]

_LONGEST_WAIT = 1.0
"""Seconds that a worker sleeps when it has no connection."""
_POOL_REST = 1.0
"""Seconds between two looks at the connections that are opened in advance."""


class Worker:
    """One process of the relay.

    Attributes:
        routes: by name of the service; one that is no longer configured lives on for its connections.
        draining: nothing is accepted any more, and it ends with the last connection.
    """

    def __init__(self, max_connections: int = 9000) -> None:
        self.loop = Loop()
        self.pump = Pump(self.loop.epoll.modify, self.loop.now)
        self.dialer = Dialer(self.loop)
        self.driver = Driver(self.loop, self.pump, self.dialer, Wheel(self.loop.now))
        self.acceptor = Acceptor(self.loop, self.driver, max_connections)
        self.routes: dict[str, Route] = {}
        self.draining = False
        self._stopped = False
        self._next_chores = self.loop.now
        self._next_pool = 0.0

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────

    def run(self, after: Callable[[], None] = lambda: None) -> None:
        """Work until stopped: by `stop`, or when draining is over. ``after`` is called after every turn."""
        # Every cycle that a connection makes is taken apart when it ends, so collections find nothing; with
        # ten thousand connections a full one would hold up everybody for some 20 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        try:
            while not self._stopped:
                self.turn()
                after()
        finally:
            self.close()

    def turn(self) -> None:
        """Wait for events and handle them, once."""
        loop, driver, acceptor, pump = self.loop, self.driver, self.acceptor, self.pump
        driver.handle(
            loop.wait(0.0 if pump.waiting else GRAIN if driver.count or acceptor.paused else _LONGEST_WAIT)
        )
        if acceptor.waiting:
            acceptor.accept()
        if pump.waiting:
            driver.give_turns()
        if loop.now >= self._next_chores:
            self._do_chores()
        elif acceptor.paused:
            acceptor.resume_after_ends()
        if loop.buried:
            loop.end_turn()
        if self.draining and not driver.count:
            self._stopped = True

    def _do_chores(self) -> None:
        """Do what needs no haste."""
        now = self.loop.now
        self._next_chores = (int(now / GRAIN) + 1) * GRAIN
        self.driver.visit_due()
        self.acceptor.resume()
        self.pump.pipes.tend(now)
        if now >= self._next_pool:
            self._next_pool = now + _POOL_REST
            self._tend_pools()

    def _tend_pools(self) -> None:
        for route in self.routes.values():
            self.dialer.pool.tend(route, draining=self.draining)

    # ── what it is told ──────────────────────────────────────────────────────────────────────────────────

    def configure(self, config: Config, index: int, listeners: Collection[str], room: int) -> None:
        """Take a configuration. Connections that live keep what they began with.

        Args:
            config: of the whole relay; limits are divided among its workers.
            index: which of the workers this is.
            listeners: keys of those to keep, or to come.
            room: connections that there are descriptors for.
        """
        self.driver.index = index
        self.acceptor.max_connections = min(-(-config.max_connections // config.workers), room)
        routes = {}
        for service in config.service:
            route = self.routes.get(service.name)
            if route is None:
                route = Route(service, config.workers)
            else:
                route.set(service, config.workers)
            routes[service.name] = route
        for key in [key for key in self.acceptor.listeners if key not in listeners]:
            self.acceptor.unlisten(key)
        for name, route in self.routes.items():
            if name not in routes:  # it lives on for its connections alone, and opens none in advance
                route.service = msgspec.structs.replace(route.service, pool=Pool())
                for backend in route.balancer.backends:
                    self.dialer.pool.drop(backend)
        alone = {name: route for name, route in self.routes.items() if name not in routes and route.count}
        self.routes = {**alone, **routes}

    def use_backends(self, name: str, backends: Iterable[Backend]) -> None:
        """Take the backends of a service, if there is one of that name."""
        route = self.routes.get(name)
        if route is not None:
            for gone in route.balancer.update(backends, time.monotonic()):
                self.dialer.pool.drop(gone)

    def mark_backend(self, name: str, backend: str, up: bool) -> None:
        """Take what a check says about a backend of a service, if there is one of that name."""
        route = self.routes.get(name)
        if route is not None:
            route.balancer.mark(backend, up, time.monotonic())

    def kill(self, numbers: Iterable[int]) -> int:
        """End connections by RST; return how many there were."""
        return self.driver.kill(numbers)

    def drain(self, seconds: float | None = None) -> None:
        """Stop accepting; let connections end; cut what is left after the services' ``drain`` (or ``seconds``)."""
        self.loop.look_at_the_clock()
        self.acceptor.drain()
        self.draining = True
        self.driver.drain(seconds)
        self._tend_pools()

    def stop(self) -> None:
        """End everything now, by RST."""
        self.loop.look_at_the_clock()
        self.driver.cut()
        self._stopped = True

    def close(self) -> None:
        """Give every descriptor back."""
        self.driver.close()
        self.acceptor.close()
        self.dialer.pool.close()
        self.pump.pipes.close()
        self.loop.close()

    # ── what it is asked ─────────────────────────────────────────────────────────────────────────────────

    def describe(self, conn: Conn) -> dict[str, Any]:
        """Return what is known of a connection."""
        return status.describe(conn, self.driver.index, self.loop.now, self.loop.wall)

    def list_connections(self, numbers: Collection[int] | None = None) -> list[dict[str, Any]]:
        """Describe all connections, or those with these numbers."""
        self.loop.look_at_the_clock()
        return [
            self.describe(conn) for conn in self.driver.conns() if numbers is None or conn.number in numbers
        ]

    def stats(self) -> dict[str, Any]:
        """Return the counts of this worker, for metrics."""
        self.loop.look_at_the_clock()
        of_services = status.services(self.routes, self.driver.conns(), self.dialer.pool, self.loop.now)
        return {"index": self.driver.index, "pipes": self.pump.pipes.made, "services": of_services}
