"""The listening sockets of a worker: who may come in, and when there is room.

What there is no room for is left in the kernel's queue: its listener is *paused*, not watched until connections have
ended (or, where descriptors ran out, for a second). Who may not come in gets RST.

Descriptors are accepted without a socket object: for ten thousand of them that would be memory, and a call each.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from finwait.relay import sockets
from finwait.relay.circles import came_back
from finwait.relay.loop import IN
from finwait.relay.machine import Event, RelayState
from finwait.relay.notice import say
from finwait.relay.route import SUSPICIOUS

if TYPE_CHECKING:
    import socket

    from finwait.relay.driver import Driver
    from finwait.relay.loop import Loop
    from finwait.relay.route import Route

__all__ = ["Acceptor", "Listener"]

_ACCEPTS: Final = 8
"""From one listener in a turn."""
_LEADS_BACK: Final = 30.0
"""Seconds for which a backend takes nothing after its connections came back."""
_NO_ROOM: Final = 1.0
"""Seconds to wait when there was no descriptor left."""


class Listener:
    """A listening socket and the route behind it."""

    __slots__ = ("is_tcp", "key", "paused_until", "route", "sock")

    def __init__(self, key: str, sock: socket.socket, route: Route) -> None:
        self.key = key
        self.sock = sock
        self.route = route
        self.is_tcp = sockets.is_tcp(sock.family)
        self.paused_until = 0.0


class Acceptor:
    """Accepts connections and gives them to the driver.

    Attributes:
        listeners: by key.
        max_connections: of all of them together.
        waiting: listeners at which somebody waits.
        paused: keys of listeners at which somebody may wait whom nobody will tell of.
    """

    def __init__(self, loop: Loop, driver: Driver, max_connections: int) -> None:
        self.listeners: dict[str, Listener] = {}
        self.max_connections = max_connections
        self._loop = loop
        self._driver = driver
        self.waiting: list[Listener] = []
        self.paused: set[str] = set()
        self._ended = 0
        """Connections that had ended when it was last looked whether there is room again."""

    def listen(self, key: str, sock: socket.socket, route: Route) -> None:
        """Accept from a listening socket, which becomes the worker's."""
        sock.setblocking(False)
        listener = Listener(key, sock, route)
        self.listeners[key] = listener
        self._loop.watch(sock.fileno(), lambda _mask: self.waiting.append(listener))

    def unlisten(self, key: str) -> None:
        """Accept no more from a listener. What waits in the kernel's queue is left to whoever shares it."""
        listener = self.listeners.pop(key)
        self.waiting = [other for other in self.waiting if other is not listener]
        fd = listener.sock.fileno()
        if key in self.paused:
            self.paused.discard(key)
            self._loop.own(fd, None)
        else:
            self._loop.unwatch(fd)
        listener.sock.close()

    def close(self) -> None:
        """Accept no more."""
        for key in list(self.listeners):
            self.unlisten(key)

    def drain(self) -> None:
        """Accept whoever waits already and then no more: closing a listener would reset those in its queue."""
        for key, listener in list(self.listeners.items()):
            before = -1
            while before != listener.route.accepted and key not in self.paused:
                before = listener.route.accepted
                self._accept(listener)
            self.unlisten(key)

    def accept(self) -> None:
        """Accept from the listeners at which somebody waits."""
        waiting, self.waiting = self.waiting, []
        for listener in waiting:
            self._accept(listener)

    def resume(self) -> None:
        """Accept again where there is room again."""
        for key in list(self.paused):
            listener = self.listeners[key]
            if self._loop.now >= listener.paused_until and self._room(listener.route):
                self.paused.discard(key)
                self._loop.epoll.register(listener.sock.fileno(), IN)

    def resume_after_ends(self) -> None:
        """As `resume`, if connections have ended since the last time."""
        if self._ended != self._driver.ended:
            self._ended = self._driver.ended
            self.resume()

    def _pause(self, listener: Listener, seconds: float) -> None:
        """Leave connections in the kernel's queue for a while."""
        listener.paused_until = self._loop.now + seconds
        if listener.key not in self.paused:
            self.paused.add(listener.key)
            self._loop.epoll.unregister(listener.sock.fileno())

    def _room(self, route: Route) -> int:
        """Return how many more connections a service may have."""
        room = self.max_connections - self._driver.count
        if route.max_connections:
            room = min(room, route.max_connections - route.count)
        return max(0, room)

    def _accept(self, listener: Listener) -> None:
        route, driver = listener.route, self._driver
        accept = listener.sock._accept  # type: ignore[attr-defined]  # no object for each descriptor
        if route.count * 4 < route.suspicious > SUSPICIOUS:
            route.suspicious //= 2
        room = self._room(route)
        if not room:
            self._pause(listener, 0.0)
            return
        for _ in range(min(_ACCEPTS, room)):
            try:
                fd, peer = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in sockets.NO_ROOM:
                    route.reject("no_room")
                    self._pause(listener, _NO_ROOM)
                    return
                continue  # accept(2): errors of a connection that ended while it waited
            os.set_blocking(fd, False)
            source = ""
            if route.needs_source:
                source = str(peer[0]).removeprefix("::ffff:") if listener.is_tcp else ""
                if why := _unwanted(route, source):
                    route.reject(why)
                    sockets.abort_on_close(fd)
                    os.close(fd)
                    continue
            counted = source if route.max_per_source and not route.service.accept_proxy else ""
            driver.admit(route, fd, peer, counted, is_tcp=listener.is_tcp)
            if route.count >= route.suspicious:
                self._end_circles(route)

    def _end_circles(self, route: Route) -> None:
        """End connections that run in a circle; each time it is looked for them there are twice as many."""
        driver, now = self._driver, self._loop.now
        route.suspicious = max(SUSPICIOUS, 2 * route.count)
        for conn, opener in came_back(driver.conns(), len(self.listeners)):
            if conn.state is RelayState.CLOSED:
                continue
            backend = opener.backend
            if backend is not None and now >= backend.leads_back_until:
                backend.leads_back_until = now + _LEADS_BACK
                say(
                    f"service `{conn.route.service.name}` relays to itself through backend {backend.name}, "
                    f"which gets no connections for {_LEADS_BACK:g} s"
                )
            conn.route.reject("circle")
            conn.route.suspicious = SUSPICIOUS
            driver.step(conn, Event.KILL)


def _unwanted(route: Route, source: str) -> str:
    """Return why a source (empty: a Unix socket) may not connect; an empty string when it may."""
    if not (route.acl.admits(source) if source else route.acl.admits_unix):
        return "acl"
    if source and route.is_crowded(source) and not route.service.accept_proxy:
        return "per_source"
    return ""
