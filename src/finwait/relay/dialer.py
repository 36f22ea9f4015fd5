"""Tries to connect to a backend, and what is learnt from them.

A `Dialer` chooses a backend, takes a connection that was opened in advance or begins one, and says what came of it as
the `Event` for the machine. A try that fails at once and one that fails later are told alike.
"""

from __future__ import annotations

import errno
import socket
import time
from typing import TYPE_CHECKING

from finwait.relay import sockets
from finwait.relay.connection import Leg
from finwait.relay.loop import MASK
from finwait.relay.machine import Event
from finwait.relay.pool import IdlePool

if TYPE_CHECKING:
    from finwait.relay.balance import Backend
    from finwait.relay.connection import Conn
    from finwait.relay.loop import Loop
    from finwait.relay.route import Route

__all__ = ["Dialer"]


class Dialer:
    """Gives connections their server."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.pool = IdlePool(loop, open_connection)

    def dial(self, conn: Conn) -> Event | None:
        """Start the next try; return what came of it, None while that is not known."""
        self._leave(conn)
        now = self._loop.now
        route = conn.route
        source = conn.client_host() if route.balances_by_source else ""
        backend = route.balancer.pick(source, conn.tried, now)
        if backend is None:
            return Event.NO_BACKEND
        conn.backend = backend
        backend.active += 1
        fd = self.pool.take(backend)
        number = 0
        if fd < 0:
            try:
                fd, number = open_connection(route, backend, conn)
            except OSError as error:
                return self.failed(conn, error.errno or 0)
        leg = Leg(fd, conn, False)
        conn.server = leg
        leg.other, conn.client.other = conn.client, leg
        self._loop.own(fd, leg)
        if number not in (0, errno.EINPROGRESS):
            return self.failed(conn, number)
        leg.armed = True
        self._loop.epoll.register(fd, MASK)
        return None if number else self.succeeded(conn)

    def succeeded(self, conn: Conn) -> Event:
        """Count that the present try has succeeded."""
        backend = conn.backend
        assert backend is not None
        conn.connected_at = self._loop.now
        took = time.monotonic() - conn.since
        conn.route.count_connect(took)
        backend.connected += 1
        backend.connect_seconds += took
        return Event.CONNECTED

    def failed(self, conn: Conn, number: int) -> Event:
        """Count that the present try has failed with an errno."""
        if number in sockets.OURS:
            return Event.EXHAUSTED
        self.blame(conn)
        if number == errno.ETIMEDOUT:
            return Event.CONNECT_TIMEOUT
        return Event.CONNECT_REFUSED if conn.route.balancer.has_untried(conn.tried) else Event.LAST_REFUSED

    def blame(self, conn: Conn) -> None:
        """Hold the failure of the present try against its backend."""
        assert conn.backend is not None
        conn.tried = (*conn.tried, conn.backend)
        conn.route.balancer.failed(conn.backend, self._loop.now)

    def _leave(self, conn: Conn) -> None:
        """Give up the present try, if there is one."""
        leg = conn.server
        if leg is not None:
            self._loop.bury(leg.fd)
            if leg.armed:
                self._loop.epoll.unregister(leg.fd)
            leg.fd = -1
            conn.server = None
        if conn.backend is not None:
            conn.backend.active -= 1
            conn.backend = None


def open_connection(route: Route, backend: Backend, conn: Conn | None) -> tuple[int, int]:
    """Begin a connection to a backend; return its descriptor and what connect() said.

    Args:
        route: the service.
        backend: where to.
        conn: whose it will be; None in advance.

    Raises:
        OSError: there is no socket to be had, or not with these options.
    """
    side = route.service.server
    sock = socket.SocketType(backend.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if sockets.is_tcp(backend.family):
            if side.nodelay:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            if side.mark:
                sock.setsockopt(socket.SOL_SOCKET, sockets.SO_MARK, side.mark)
            if side.fast_open:
                sock.setsockopt(socket.IPPROTO_TCP, sockets.TCP_FASTOPEN_CONNECT, 1)
            if side.bind or side.transparent:
                _bind(sock, route, backend, conn)
        number = sock.connect_ex(backend.address)
    except OSError:
        sock.close()
        raise
    return sock.detach(), number


def _bind(sock: socket.SocketType, route: Route, backend: Backend, conn: Conn | None) -> None:
    """Choose the source address of a connection to a backend."""
    side = route.service.server
    # Without this the kernel picks the port at bind(), from far fewer (ip(7)).
    sock.setsockopt(socket.IPPROTO_IP, sockets.IP_BIND_ADDRESS_NO_PORT, 1)
    if side.transparent and conn is not None and conn.is_tcp:
        if backend.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, sockets.IP_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, sockets.IPV6_TRANSPARENT, 1)
        sock.bind((conn.client_host(), 0))
    elif side.bind:
        sock.bind((side.bind, 0))
