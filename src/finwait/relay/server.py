"""One worker: the sockets of `finwait.relay.machine`, moved by edge-triggered epoll and splice(2).

Theory of operation
===================

A worker is one process with one loop. It accepts, connects, and moves bytes; every decision about the life
of a connection is `machine.Machine`'s. Three things happen in a turn: events are handled, timers that are due
are ticked, descriptors that ended are closed (last, so that no number is reused while events of its former
owner may still be in the batch).

Bytes go the short way while there are few: ``read``, ``write``. A read that fills the chunk switches that
direction to ``splice`` through a pipe borrowed from a small pool, so the bytes never enter this process; when
the source runs dry the pipe goes back. A direction reads only while nothing of it waits to be written: that
is all the back-pressure there is, and it bounds memory to one chunk or one pipe for each direction.

Traps, each of which has a test
===============================

* A short read means "drained" only while the FIN has not arrived. With EPOLLRDHUP seen, read on until 0:
  no further edge will come for the FIN.
* EPOLLHUP says that both directions are shut, not that something failed: bytes may still be unread. Only
  EPOLLERR, or a failing call, is a failure.
* A failing call clears the socket's error; the next read then returns 0 and looks like an honest FIN. Once a
  leg has failed, nothing read from it counts as EOF.
* After EOF a descriptor stays in the epoll set. It costs nothing, and EPOLLERR on it is the proof that
  the peer behind a half-close is gone.
* EAGAIN from ``splice`` into a pipe means "source empty" or "pipe full": only an empty pipe is filled.
* ``splice`` never passes the urgent mark: after EPOLLPRI a direction is read. SO_OOBINLINE keeps the urgent byte in
  the stream. With the FIN behind the mark it returns 0 there, so its 0 is no end of file; that of ``read`` is.
* While its bytes wait for the peer, each segment that a source sends is an edge that nobody can use: twelve of thirteen
  wakes of a bulk transfer. It is muted then. ``ep_modify`` looks again, so no edge is lost by that, but EPOLLOUT goes
  with EPOLLIN (asked for, it would be told at once), so a leg is heard again before the other direction waits for it.
* TCP_USER_TIMEOUT also ends a connection whose peer lives and keeps its window shut. A slow reader is not a dead
  one, so the timeout is lifted while the window is shut and the probes are answered.

What this cannot see
====================

Unix sockets know no RST: where one leg is a Unix socket, an abort reaches it as EOF.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import random
import select
import socket
import sys
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from finwait.errors import DecodeError
from finwait.relay import proxy_protocol, sockets
from finwait.relay.acl import Acl, source_network
from finwait.relay.balance import Balancer
from finwait.relay.machine import ENDED_BY_FIN, Command, Event, Machine, Reason, State
from finwait.relay.notice import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from finwait.relay.balance import Backend
    from finwait.relay.config.model import Service

__all__ = ["Conn", "Leg", "Listener", "Route", "Worker"]

CHUNK: Final = 16384
PIPE_BYTES: Final = 1 << 20
PIPES: Final = 64
"""Pipes at most; beyond, bulk is copied. Root aside, 64 of 1 MiB are what pipe-user-pages-soft allows."""
PIPE_REST: Final = 5.0
"""Seconds after which a pipe that was not needed is closed: it counts against its user's pipe-user-pages-soft."""
TURN_BYTES: Final = 2 << 20
"""After so many bytes in one go the others get their turn."""
BULK_TURN: Final = 4 << 20
"""The same for splice, which moves so much in about a millisecond; shorter turns move a fifth less beside 16 others."""
GRAIN: Final = 0.25
"""Seconds between turns of the timer wheel."""
ACCEPTS: Final = 8
SUSPICIOUS: Final = 32
"""Connections of a service from which on it is worth looking whether they run in a circle."""
LEADS_BACK: Final = 30.0
"""Seconds for which a backend takes nothing after its connections came back."""
LONG_ENOUGH: Final = 1024
"""Fewer bytes than this fit the first window of any reader, so none of them can be left unsent at close."""

IN, OUT, ERR, HUP, RDHUP, PRI, ET = (
    select.EPOLLIN,
    select.EPOLLOUT,
    select.EPOLLERR,
    select.EPOLLHUP,
    select.EPOLLRDHUP,
    select.EPOLLPRI,
    select.EPOLLET,
)
MASK: Final = IN | OUT | RDHUP | PRI | ET
MUTED: Final = RDHUP | PRI | ET
READABLE: Final = IN | RDHUP | HUP | PRI
SPLICE: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
VANISHED: Final = frozenset(
    {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENONET}
)
OURS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM}
)
"""Errors of connecting that say something about this machine, not about the backend."""
NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
CONNECT_BUCKETS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0)

_OPEN, _CONNECTING, _HEADER, _CLOSED = State.OPEN, State.CONNECTING, State.HEADER, State.CLOSED
_read, _write, _splice = os.read, os.write, os.splice


class Leg:
    """One socket of a connection, and the direction that begins in it.

    Attributes:
        fd: the descriptor; -1 once it is closed.
        peer: the other socket, where bytes read here go.
        buf: bytes read here that the peer did not take yet.
        pipe: (read end, write end) while borrowed, with ``in_pipe`` bytes in it.
        waiting: whether ``buf`` or the pipe holds anything; the peer's EPOLLOUT continues then.
        rdhup: the FIN has arrived: read on until 0.
        eof: 0 was read.
        muted: it is not watched for IN nor OUT, for its bytes wait already and none wait for it.
        queued: it waits for its next turn though no event will come.
        armed: it is in the epoll set.
        total: bytes read here.
    """

    __slots__ = (
        "armed",
        "buf",
        "bulk",
        "conn",
        "eof",
        "fd",
        "in_pipe",
        "is_client",
        "muted",
        "peer",
        "pipe",
        "queued",
        "rdhup",
        "relaxed",
        "told",
        "total",
        "urgent",
        "waiting",
    )

    def __init__(self, fd: int, conn: Conn, is_client: bool) -> None:
        self.fd = fd
        self.conn = conn
        self.is_client = is_client
        self.peer: Leg = self
        self.buf = b""
        self.pipe: tuple[int, int] | None = None
        self.in_pipe = 0
        self.waiting = False
        self.bulk = False
        self.rdhup = False
        self.urgent = False
        self.muted = False
        self.queued = False
        self.told = False
        self.eof = False
        self.armed = False
        self.relaxed = False
        self.total = 0


class Conn(Machine):
    """A connection: the machine, and what the edge must know beside it."""

    __slots__ = (
        "accepted",
        "backend",
        "checked",
        "client",
        "connected_at",
        "counted",
        "destination",
        "listener",
        "number",
        "peer",
        "route",
        "server",
        "source",
        "tried",
        "wheel",
        "young",
    )

    client: Leg
    server: Leg | None

    def __init__(self, listener: Listener, peer: Any, number: int, now: float) -> None:  # noqa: ANN401
        route = listener.route
        Machine.__init__(self, route.limits, now, header=route.service.accept_proxy)
        self.listener = listener
        self.route = route
        """Where it is counted until it ends, whatever a reload makes of the listener."""
        self.peer = peer
        self.source: tuple[str, int] | None = None
        """What a PROXY header said; else None, and ``peer`` is the client."""
        self.destination: tuple[str, int] | None = None
        """What a PROXY header said of where the client connected to."""
        self.number = number
        self.server = None
        self.backend: Backend | None = None
        self.tried: tuple[Backend, ...] = ()
        self.connected_at = 0.0
        self.counted = ""
        """The source that this connection counts for in `Route.sources`; empty: for none."""
        self.checked = 0.0
        self.wheel = 0
        self.young = True


class Route:
    """A service as a worker runs it: its settings, backends and counts."""

    def __init__(self, service: Service, share: int) -> None:
        self.count = 0
        self.accepted = 0
        self.rejected: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self.bytes_client = 0
        self.bytes_server = 0
        self.latency = [0] * (len(CONNECT_BUCKETS) + 1)
        self.latency_sum = 0.0
        self.sources: dict[str, int] = {}
        self.suspicious = SUSPICIOUS
        """At this many connections the worker looks whether they run in a circle."""
        self.balancer = Balancer(service)
        self.set(service, share)

    def set(self, service: Service, share: int) -> None:
        """Take new settings; connections that live keep those they began with."""
        self.service = service
        self.balancer.service = service
        self.limits = service.timeouts.limits()
        self.acl = Acl(service.allow, service.deny)
        self.max_connections = -(-service.max_connections // share)
        self.max_per_source = -(-service.max_per_source // share)
        self.prefixes = (service.source_prefix_v4, service.source_prefix_v6)
        self.needs_source = bool(service.allow or service.deny or service.max_per_source)
        t = service.timeouts
        known = [x for x in (t.connect, t.half_close, t.idle, t.first_byte, t.lifetime, t.header) if x]
        self.young = max(GRAIN, min([1.0, *known]))
        tightest = min([x.user_timeout for x in (service.client, service.server) if x.user_timeout] or [30.0])
        self.watch = max(GRAIN, min(12.0, tightest / 2.5))

    def is_crowded(self, source: str) -> bool:
        """Return whether a source has as many connections as it may."""
        if not self.max_per_source:
            return False
        return self.sources.get(source_network(source, *self.prefixes), 0) >= self.max_per_source

    def reject(self, why: str) -> None:
        """Count a connection that was turned away."""
        self.rejected[why] = self.rejected.get(why, 0) + 1


def _opener(conn: Conn, opened: dict[tuple[str, int], Conn]) -> Conn | None:
    """Return the connection of ours whose other leg is this one's client."""
    if not conn.listener.tcp:
        return None
    return opened.get((str(conn.peer[0]).removeprefix("::ffff:"), conn.peer[1]))


class Listener:
    """A listening socket and the route behind it."""

    __slots__ = ("key", "paused_until", "route", "sock", "tcp")

    def __init__(self, key: str, sock: socket.socket, route: Route) -> None:
        self.key = key
        self.sock = sock
        self.route = route
        self.tcp = sockets.is_tcp(sock.family)
        self.paused_until = 0.0


class _Idle:
    """A pre-opened connection to a backend, unused."""

    __slots__ = ("backend", "fd", "opened", "ready", "route")

    def __init__(self, fd: int, backend: Backend, route: Route, opened: float) -> None:
        self.fd = fd
        self.backend = backend
        self.route = route
        self.opened = opened
        self.ready = False


class Worker:
    """One process of the relay.

    Args:
        index: which of ``workers``; ids of connections begin with it.
        share: how many workers there are: limits are divided among them.
        max_connections: of the whole relay.
        log: takes a dict for each connection that ended, or None.
    """

    def __init__(
        self,
        *,
        index: int = 0,
        share: int = 1,
        max_connections: int = 9000,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.index = index
        self.share = share
        self.max_connections = -(-max_connections // share)
        self.log = log
        self.epoll = select.epoll()
        self.table: list[Any] = [None] * 256
        """By descriptor: a `Leg`, or a callable that takes the event mask."""
        self.routes: dict[str, Route] = {}
        self.listeners: dict[str, Listener] = {}
        self.count = 0
        self.now = time.monotonic()
        self.wall = time.time() - self.now
        self.draining = False
        self.stopped = False
        self.deadline = float("inf")
        self._number = 0
        self._ready: list[Leg] = []
        self._graves: list[int] = []
        self._pipes: list[tuple[int, int]] = []
        self._pipes_made = 0
        self._pipe_bytes = PIPE_BYTES
        self._pipes_spare = 0
        """The fewest pipes that lay in the pool at once since it was last looked at."""
        self._pipes_checked = self.now
        self._wheel: dict[int, set[Conn]] = {}
        self._turned = int(self.now / GRAIN)
        self._paused: set[str] = set()
        self._idle_checked = 0.0
        self._accepting: list[Listener] = []
        self._do: tuple[Callable[[Conn], None], ...] = (
            self._connect,
            self._start,
            self._shut_server,
            self._shut_client,
            self._flush_client,
            self._flush_server,
            self._close,
            self._abort,
        )
        assert len(self._do) == len(Command)

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────

    def run(self, after: Callable[[], None] = lambda: None) -> None:
        """Work until stopped: by `stop`, or when draining is over. ``after`` is called after every turn."""
        # Every cycle that a connection makes is taken apart when it ends, so collections find nothing; with
        # ten thousand connections a full one would hold up everybody for some 20 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        try:
            while not self.stopped:
                self.turn()
                after()
        finally:
            self.close()

    def turn(self) -> None:
        """Wait for events and handle them, once."""
        timeout = 0.0 if self._ready else GRAIN if self.count or self._paused else 1.0
        try:
            events = self.epoll.poll(timeout, 256)
        except InterruptedError:
            events = []
        self.now = now = time.monotonic()
        table = self.table
        pump = self._pump
        # A mistake of ours ends the connection that it happened to; the worker's other thousands go on.
        todo = iter(events)
        while True:
            leg = None
            try:
                for fd, mask in todo:
                    leg = table[fd]
                    if type(leg) is not Leg:
                        if leg is not None:
                            leg(mask)
                        continue
                    if mask & ERR:
                        self._failed(leg)
                        continue
                    state = leg.conn.state
                    if state is _CONNECTING or state is _HEADER:
                        self._early(leg, mask)
                        continue
                    if mask & RDHUP:
                        leg.rdhup = True
                    if mask & PRI:
                        leg.urgent = True
                    if mask & OUT and leg.peer.waiting:
                        pump(leg.peer)
                        if leg.fd < 0:
                            continue
                    if mask & READABLE and not leg.waiting and not leg.eof:
                        pump(leg)
                    if leg.rdhup and not leg.eof and not leg.told and leg.fd >= 0:
                        self._tell_fin(leg)
                break
            except Exception:  # the outermost loop of a worker
                if type(leg) is not Leg:
                    raise
                self._our_mistake(leg)
        if self._accepting:
            accepting, self._accepting = self._accepting, []
            for listener in accepting:
                self._accept(listener)
        if self._ready:
            ready, self._ready = self._ready, []
            for leg in ready:
                leg.queued = False
                if leg.fd >= 0 and not leg.waiting and not leg.eof:
                    try:
                        pump(leg)
                    except Exception:  # noqa: BLE001  # the outermost loop of a worker
                        self._our_mistake(leg)
        at = int(now / GRAIN)
        if at > self._turned:
            self._turn_wheel(at)
        if self._graves:
            for fd in self._graves:
                os.close(fd)
            self._graves.clear()
        if self.draining and not self.count:
            self.stopped = True

    def watch(self, fd: int, handler: Callable[[int], None], mask: int = IN) -> None:
        """Have ``handler(mask)`` called for a descriptor that is no leg."""
        self._own(fd, handler)
        self.epoll.register(fd, mask)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor given to `watch`; it is not closed."""
        self.table[fd] = None
        self.epoll.unregister(fd)

    def _own(self, fd: int, owner: object) -> None:
        table = self.table
        if fd >= len(table):
            table.extend([None] * max(fd + 1 - len(table), len(table)))
        table[fd] = owner

    # ── listening ────────────────────────────────────────────────────────────────────────────────────────

    def listen(self, key: str, sock: socket.socket, route: Route) -> None:
        """Accept from a listening socket, which becomes the worker's."""
        sock.setblocking(False)
        listener = Listener(key, sock, route)
        self.listeners[key] = listener
        self.watch(sock.fileno(), lambda _mask: self._accepting.append(listener))

    def unlisten(self, key: str) -> None:
        """Accept no more from a listener. What waits in the kernel's queue is left to whoever shares it."""
        listener = self.listeners.pop(key)
        fd = listener.sock.fileno()
        if key in self._paused:
            self._paused.discard(key)
            self.table[fd] = None
        else:
            self.unwatch(fd)
        listener.sock.close()

    def _pause(self, listener: Listener, seconds: float) -> None:
        """Leave connections in the kernel's queue for a while."""
        listener.paused_until = self.now + seconds
        if listener.key not in self._paused:
            self._paused.add(listener.key)
            self.epoll.unregister(listener.sock.fileno())

    def _resume(self) -> None:
        """Accept again where there is room again."""
        for key in list(self._paused):
            listener = self.listeners[key]
            if self.now >= listener.paused_until and self._has_room(listener.route):
                self._paused.discard(key)
                self.epoll.register(listener.sock.fileno(), IN)

    def _has_room(self, route: Route) -> bool:
        full = route.max_connections and route.count >= route.max_connections
        return self.count < self.max_connections and not full

    def _accept(self, listener: Listener) -> None:
        route = listener.route
        accept = listener.sock._accept  # type: ignore[attr-defined]  # no object for each of ten thousand descriptors
        for _ in range(ACCEPTS):
            if route.count * 4 < route.suspicious > SUSPICIOUS:
                route.suspicious //= 2
            if not self._has_room(route):
                self._pause(listener, 0.0)
                return
            try:
                fd, peer = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_ROOM:
                    route.reject("no_room")
                    self._pause(listener, 1.0)
                    return
                continue  # accept(2): errors of a connection that ended while it waited
            os.set_blocking(fd, False)
            source = ""
            if route.needs_source:
                source = str(peer[0]).removeprefix("::ffff:") if listener.tcp else ""
                if not self._admit(route, source, fd):
                    continue
            self._number += 1
            conn = Conn(listener, peer, self._number, self.now)
            if source and route.max_per_source and not route.service.accept_proxy:
                self._count_source(conn, source)
            leg = Leg(fd, conn, True)
            conn.client = leg
            self._own(fd, leg)
            self.count += 1
            route.count += 1
            route.accepted += 1
            self._schedule(conn, self.now + route.young)
            if route.count >= route.suspicious:
                self._look_for_circles(route)
                if conn.state is _CLOSED:
                    continue
            if conn.state is _HEADER:
                leg.armed = True
                self.epoll.register(fd, MASK)
            else:
                self._connect(conn)

    def _look_for_circles(self, route: Route) -> None:
        """End connections that came back to the service that opened them; each time there are twice as many.

        Who accepts from itself sees its own connection to a backend as a client: same address, same port. With several
        workers a part of a circle is seen by one of them, and ending that part ends the circle.
        """
        route.suspicious = max(SUSPICIOUS, 2 * route.count)
        opened: dict[tuple[str, int], Conn] = {}
        lives = list(self.conns())
        for conn in lives:
            if conn.server is not None and conn.server.fd >= 0:
                local = sockets.names(conn.server.fd)[0]
                if isinstance(local, tuple):
                    opened[str(local[0]).removeprefix("::ffff:"), local[1]] = conn
        for conn in lives:
            at = _opener(conn, opened)
            for _ in range(len(self.routes)):
                if at is None or at.route is conn.route:
                    break
                at = _opener(at, opened)
            if at is not None and at is not conn and at.route is conn.route and conn.state is not _CLOSED:
                self._end_circle(conn, at)

    def _end_circle(self, conn: Conn, opener: Conn) -> None:
        backend = opener.backend
        if backend is not None and self.now >= backend.leads_back_until:
            backend.leads_back_until = self.now + LEADS_BACK
            say(
                f"service `{conn.route.service.name}` relays to itself by way of backend {backend.name}: "
                f"it takes no connections for {LEADS_BACK:g} s"
            )
        conn.route.reject("circle")
        conn.route.suspicious = SUSPICIOUS
        self._step(conn, Event.KILL)

    def _admit(self, route: Route, source: str, fd: int) -> bool:
        """Say whether this source (empty: a Unix socket) may connect; if not, it gets RST."""
        why = ""
        if not (route.acl.admits(source) if source else route.acl.admits_unix):
            why = "acl"
        elif source and route.is_crowded(source) and not route.service.accept_proxy:
            why = "per_source"
        if why:
            route.reject(why)
            sockets.abort_on_close(fd)
            os.close(fd)
        return not why

    def _count_source(self, conn: Conn, source: str) -> None:
        """Count a connection for its source until it ends."""
        route = conn.route
        conn.counted = counted = source_network(source, *route.prefixes)
        route.sources[counted] = route.sources.get(counted, 0) + 1

    # ── before the connection is open ────────────────────────────────────────────────────────────────────

    def _early(self, leg: Leg, mask: int) -> None:
        """Handle an event of a connection without a server."""
        conn = leg.conn
        if mask & RDHUP:
            leg.rdhup = True
        if mask & PRI:
            leg.urgent = True
        if conn.state is _HEADER:
            self._read_header(conn)
        elif not leg.is_client and mask & (OUT | HUP):
            self._connected(conn)
            if mask & READABLE and leg.fd >= 0:
                self._pump(leg)
        # The client's bytes wait in its socket until there is a server; `_start` reads them.

    def _read_header(self, conn: Conn) -> None:
        leg = conn.client
        while True:
            try:
                data = _read(leg.fd, CHUNK)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(leg, error.errno or 0)
                return
            leg.buf += data
            leg.total += len(data)
            try:
                header = proxy_protocol.parse(leg.buf) if data else None
            except DecodeError:
                self._step(conn, Event.HEADER_BAD)
                return
            if not data:
                self._step(conn, Event.HEADER_BAD)
                return
            if header is not None:
                break
        conn.source, conn.destination = header.source, header.destination
        leg.buf = leg.buf[header.size :]
        leg.total = len(leg.buf)
        leg.waiting = bool(leg.buf)
        if leg.buf:
            conn.last_client = self.now
        route = conn.route
        if route.max_per_source and conn.source is not None:
            if route.is_crowded(conn.source[0]):
                route.reject("per_source")
                self._step(conn, Event.UNWANTED)
                return
            self._count_source(conn, conn.source[0])
        self._step(conn, Event.HEADER_READ)

    def source_of(self, conn: Conn) -> str:
        """Return the client's address as text, for balancing; empty for a Unix socket."""
        if conn.source is not None:
            return conn.source[0]
        return str(conn.peer[0]).removeprefix("::ffff:") if conn.listener.tcp else ""

    def _connect(self, conn: Conn) -> None:
        """Start the next try. Command CONNECT."""
        self._leave_server(conn)
        route = conn.route
        balancer = route.balancer
        backend = balancer.pick(self.source_of(conn), conn.tried, self.now)
        if backend is None:
            self._step(conn, Event.NO_BACKEND)
            return
        conn.backend = backend
        backend.active += 1
        if backend.idle and self._take_idle(conn, backend):
            return
        try:
            fd, number = self._open(route, backend, conn)
        except OSError as error:
            fd, number = -1, error.errno or 0
        if fd >= 0:
            leg = Leg(fd, conn, False)
            conn.server = leg
            leg.peer, conn.client.peer = conn.client, leg
            self._own(fd, leg)
        if number in (0, errno.EINPROGRESS):
            self.epoll.register(fd, MASK)
            assert conn.server is not None
            conn.server.armed = True
            if not number:
                self._connected(conn)
        else:
            self._connect_failed(conn, number)

    def _open(self, route: Route, backend: Backend, conn: Conn | None) -> tuple[int, int]:
        """Begin a connection to a backend; return its descriptor and what connect() said."""
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
                    self._bind(sock, route, backend, conn)
            number = sock.connect_ex(backend.address)
        except OSError:
            sock.close()
            raise
        return sock.detach(), number

    def _bind(self, sock: socket.SocketType, route: Route, backend: Backend, conn: Conn | None) -> None:
        """Choose the source address of a connection to a backend."""
        side = route.service.server
        # Without this the kernel picks the port at bind(), from far fewer (ip(7)).
        sock.setsockopt(socket.IPPROTO_IP, sockets.IP_BIND_ADDRESS_NO_PORT, 1)
        if side.transparent and conn is not None and conn.listener.tcp:
            if backend.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, sockets.IP_TRANSPARENT, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, sockets.IPV6_TRANSPARENT, 1)
            sock.bind((self.source_of(conn), 0))
        elif side.bind:
            sock.bind((side.bind, 0))

    def _connected(self, conn: Conn) -> None:
        backend = conn.backend
        assert backend is not None
        route = conn.route
        conn.connected_at = self.now
        took = time.monotonic() - conn.since
        at = 0
        for bound in CONNECT_BUCKETS:
            if took <= bound:
                break
            at += 1
        route.latency[at] += 1
        route.latency_sum += took
        backend.connected += 1
        backend.connect_seconds += took
        self._step(conn, Event.CONNECTED)

    def _connect_failed(self, conn: Conn, number: int) -> None:
        """Take it that a try failed with an errno."""
        if number in OURS:
            self._step(conn, Event.EXHAUSTED)
            return
        self._blame(conn)
        if number == errno.ETIMEDOUT:
            self._step(conn, Event.CONNECT_TIMEOUT)
        elif conn.route.balancer.has_untried(conn.tried):
            self._step(conn, Event.CONNECT_REFUSED)
        else:
            self._step(conn, Event.LAST_REFUSED)

    def _blame(self, conn: Conn) -> None:
        assert conn.backend is not None
        conn.tried = (*conn.tried, conn.backend)
        conn.route.balancer.failed(conn.backend, self.now)

    def _leave_server(self, conn: Conn) -> None:
        """Give up the present try, if there is one."""
        leg = conn.server
        if leg is not None:
            self.table[leg.fd] = None
            self._graves.append(leg.fd)
            if leg.armed:
                self.epoll.unregister(leg.fd)
            leg.fd = -1
            conn.server = None
        if conn.backend is not None:
            conn.backend.active -= 1
            conn.backend = None

    def _start(self, conn: Conn) -> None:
        """Both ends are there. Command PUMP."""
        client, server = conn.client, conn.server
        assert server is not None
        service = conn.route.service
        if not conn.young:  # its first second went by with connecting
            self._keep_alive(server)
        if service.send_proxy:
            source, destination = self._ends(conn)
            client.buf = proxy_protocol.encode(service.send_proxy, source, destination) + client.buf
            client.waiting = True
        if not client.armed:
            client.armed = True
            self.epoll.register(client.fd, MASK)
            if client.waiting:
                self._pump(client)
        else:
            # It was watched for errors meanwhile: its edge has been taken already.
            self._pump(client)
            if client.fd >= 0 and client.rdhup and not client.eof:
                self._tell_fin(client)

    def _tell_fin(self, leg: Leg) -> None:
        """Say that a FIN has arrived before all bytes are delivered."""
        if not leg.told:
            leg.told = True
            self._step(leg.conn, Event.CLIENT_EOF if leg.is_client else Event.SERVER_EOF)

    def _ends(self, conn: Conn) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
        """Return the client's address and the one it connected to; None for Unix sockets."""
        if conn.source is not None and conn.destination is not None:
            return conn.source, conn.destination
        if not conn.listener.tcp:
            return None, None
        here, _ = sockets.names(conn.client.fd)
        source = conn.peer[:2]
        return source, (here[0], here[1]) if isinstance(here, tuple) else None

    # ── moving bytes ─────────────────────────────────────────────────────────────────────────────────────

    def _pump(self, leg: Leg) -> None:
        """Move bytes from a leg to its peer until it is dry, or the peer full, or its turn over."""
        conn = leg.conn
        peer = leg.peer
        source, sink = leg.fd, peer.fd
        moved = 0
        if leg.waiting and not self._deliver(leg):
            return
        if leg.bulk and leg.pipe is None and not self._borrow(leg):
            leg.bulk = False
        while not leg.bulk:
            try:
                data = _read(source, CHUNK)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(leg, error.errno or 0)
                return
            size = len(data)
            if not size:
                leg.eof = True
                self._step(conn, Event.CLIENT_DONE if leg.is_client else Event.SERVER_DONE)
                return
            leg.total += size
            if leg.is_client:
                conn.last_client = self.now
            else:
                conn.last_server = self.now
            try:
                sent = _write(sink, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._failed(peer, error.errno or 0)
                return
            if sent < size:
                leg.buf = data[sent:]
                self._wait(leg)
                return
            if size < CHUNK:
                if not leg.rdhup and not leg.urgent:
                    return
            elif not leg.urgent and self._borrow(leg):
                break
            moved += size
            if moved >= TURN_BYTES:
                self._queue(leg)
                return
        self._pump_bulk(leg, moved)

    def _pump_bulk(self, leg: Leg, moved: int) -> None:
        """As `_pump`, by splice."""
        conn, peer = leg.conn, leg.peer
        source, sink = leg.fd, peer.fd
        assert leg.pipe is not None
        out, into = leg.pipe
        size = self._pipe_bytes
        while True:
            try:
                got = _splice(source, into, size, flags=SPLICE)
            except BlockingIOError:
                if leg.muted:
                    self._unmute(leg)
                self._give_back(leg)
                # What moves little is read again the next time: two calls are cheaper than four.
                leg.bulk = moved >= CHUNK
                if leg.urgent or leg.rdhup:
                    leg.bulk = False
                    self._pump(leg)
                return
            except OSError as error:
                self._failed(leg, error.errno or 0)
                return
            if not got:
                # The end of file, or an urgent mark with the FIN behind it: read() tells.
                if leg.muted:
                    self._unmute(leg)
                self._give_back(leg)
                leg.bulk = False
                leg.urgent = True
                self._pump(leg)
                return
            leg.total += got
            moved += got
            if leg.is_client:
                conn.last_client = self.now
            else:
                conn.last_server = self.now
            left = got
            while left:
                try:
                    left -= _splice(out, sink, left, flags=SPLICE)
                except BlockingIOError:
                    leg.in_pipe = left
                    self._wait(leg)
                    if not leg.muted and not peer.waiting:
                        leg.muted = True
                        self.epoll.modify(source, MUTED)
                    return
                except OSError as error:
                    leg.in_pipe = left
                    self._failed(peer, error.errno or 0)
                    return
            if leg.urgent:
                if leg.muted:
                    self._unmute(leg)
                self._give_back(leg)
                leg.bulk = False
                self._pump(leg)
                return
            if moved >= BULK_TURN:
                self._queue(leg)
                return

    def _wait(self, leg: Leg) -> None:
        """Let what was read from a leg wait for its peer's EPOLLOUT."""
        leg.waiting = True
        if leg.peer.muted:
            self._unmute(leg.peer)

    def _unmute(self, leg: Leg) -> None:
        """Watch a leg for everything again; what came meanwhile is told as an edge (``ep_modify``)."""
        leg.muted = False
        self.epoll.modify(leg.fd, MASK)

    def _queue(self, leg: Leg) -> None:
        """Give a leg another turn after the others."""
        if not leg.queued:
            leg.queued = True
            self._ready.append(leg)

    def _deliver(self, leg: Leg) -> bool:
        """Hand on what waits; return whether nothing waits any more and the leg lives."""
        sink = leg.peer.fd
        try:
            if leg.buf:
                sent = _write(sink, leg.buf)
                self._touch(leg)
                leg.buf = leg.buf[sent:]
                if leg.buf:
                    return False
            while leg.in_pipe:
                assert leg.pipe is not None
                leg.in_pipe -= _splice(leg.pipe[0], sink, leg.in_pipe, flags=SPLICE)
                self._touch(leg)
        except BlockingIOError:
            return False
        except OSError as error:
            self._failed(leg.peer, error.errno or 0)
            return False
        leg.waiting = False
        return True

    def _touch(self, leg: Leg) -> None:
        if leg.is_client:
            leg.conn.last_client = self.now
        else:
            leg.conn.last_server = self.now

    def _borrow(self, leg: Leg) -> bool:
        """Get a pipe for a leg; return whether there was one."""
        if not self._pipes and (self._pipes_made >= PIPES or not self._make_pipe()):
            return False
        leg.pipe = self._pipes.pop()
        self._pipes_spare = min(self._pipes_spare, len(self._pipes))
        leg.bulk = True
        return True

    def _make_pipe(self) -> bool:
        """Add a pipe to the pool; return whether one of a useful size was to be had."""
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        for size in (PIPE_BYTES, PIPE_BYTES // 4, PIPE_BYTES // 16):
            try:
                fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, size)
                break
            except OSError:  # EPERM: over pipe-user-pages-soft, or over pipe-max-size
                continue
        # Over the soft limit a new pipe has two pages only: copying is better than that.
        if fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ) < PIPE_BYTES // 16:
            os.close(pipe[0])
            os.close(pipe[1])
            return False
        self._pipes.append(pipe)
        self._pipes_made += 1
        return True

    def _close_spare_pipes(self) -> None:
        """Close the pipes that nobody has needed for a while."""
        for pipe in self._pipes[: self._pipes_spare]:
            self._graves += pipe
            self._pipes_made -= 1
        del self._pipes[: self._pipes_spare]
        self._pipes_spare = len(self._pipes)
        self._pipes_checked = self.now

    def _give_back(self, leg: Leg) -> None:
        """Return a leg's pipe; one that still holds bytes is closed, for nobody may get them."""
        pipe = leg.pipe
        if pipe is None:
            return
        leg.pipe = None
        if leg.in_pipe:
            leg.in_pipe = 0
            self._graves += pipe
            self._pipes_made -= 1
        else:
            self._pipes.append(pipe)

    # ── transitions ──────────────────────────────────────────────────────────────────────────────────────

    def _step(self, conn: Conn, event: Event) -> None:
        """Feed the machine, and do what it says."""
        before = conn.state
        for command in conn.feed(event, self.now):
            self._do[command](conn)
        # A young connection is visited within its first second anyway.
        if not conn.young and conn.state is not before and conn.state is not _CLOSED:
            self._schedule(conn, min(conn.next_deadline(), self.now + conn.route.watch))

    def _failed(self, leg: Leg, number: int = 0) -> None:
        """Take it that a socket failed, with an errno or the one it holds."""
        conn = leg.conn
        if leg.fd < 0 or conn.state is _CLOSED:
            return
        if not number:
            number = sockets.error_of(leg.fd)
        if leg.is_client:
            event = Event.CLIENT_VANISHED if number in VANISHED else Event.CLIENT_RESET
        elif conn.state is _CONNECTING:
            self._connect_failed(conn, number)
            return
        else:
            event = Event.SERVER_VANISHED if number in VANISHED else Event.SERVER_RESET
        self._step(conn, event)

    def _our_mistake(self, leg: Leg) -> None:
        """End the connection at which the code failed, by RST, and say so."""
        sys.stderr.write(f"finwait relay: a mistake of ours ends a connection of worker {self.index}:\n")
        traceback.print_exc()
        if leg.fd < 0:
            return
        conn = leg.conn
        try:
            if conn.state is not _CLOSED:
                self._step(conn, Event.KILL)
                return
            # It fell between the transition and the last command.
            conn.reason = conn.reason or Reason.KILLED
            self._abort(conn)
        except Exception:  # noqa: BLE001  # told above; this one would be the same
            traceback.print_exc()

    def _shut_server(self, conn: Conn) -> None:
        assert conn.server is not None
        self._shut(conn.server)

    def _shut_client(self, conn: Conn) -> None:
        self._shut(conn.client)

    def _shut(self, leg: Leg) -> None:
        try:
            sockets.shut_write(leg.fd)
        except OSError as error:
            self._failed(leg, error.errno or 0)

    def _flush_client(self, conn: Conn) -> None:
        self._flush(conn.client)

    def _flush_server(self, conn: Conn) -> None:
        if conn.server is not None:
            self._flush(conn.server)

    def _flush(self, leg: Leg) -> None:
        """Hand what a failed leg's queue still holds to its peer, as far as it takes it at once."""
        sink = leg.peer.fd
        try:
            if leg.buf:
                sent = _write(sink, leg.buf)
                leg.buf = leg.buf[sent:]
            while leg.in_pipe and not leg.buf:
                assert leg.pipe is not None
                leg.in_pipe -= _splice(leg.pipe[0], sink, leg.in_pipe, flags=SPLICE)
            told = False
            while not leg.buf:
                try:
                    data = _read(leg.fd, CHUNK)
                except ConnectionError:
                    if told:
                        return
                    told = True  # The error is reported once; what the queue held can be read after it.
                    continue
                if not data:
                    return
                leg.total += len(data)
                if _write(sink, data) < len(data):
                    return
        except OSError:
            return

    def _close(self, conn: Conn) -> None:
        """Close both; FINs go out. Command CLOSE."""
        server = conn.server
        assert server is not None
        if server.total >= LONG_ENOUGH:
            self._let_linger(conn.client, conn.route.service.client.linger)
        if conn.client.total >= LONG_ENOUGH:
            self._let_linger(server, conn.route.service.server.linger)
        self._finish(conn)

    def _let_linger(self, leg: Leg, seconds: float) -> None:
        """Give a slow reader time for what is still unsent when we close."""
        info = sockets.tcp_info(leg.fd)
        if info is not None and info.notsent:
            try:
                sockets.set_int(leg.fd, socket.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, int(seconds * 1000))
            except OSError:
                return

    def _abort(self, conn: Conn) -> None:
        """Close what there is by RST. Command ABORT."""
        sockets.abort_on_close(conn.client.fd)
        if conn.server is not None:
            sockets.abort_on_close(conn.server.fd)
        self._finish(conn)

    def _finish(self, conn: Conn) -> None:
        """Tell, count and forget a connection."""
        try:
            if self.log is not None:
                self.log(self.describe(conn))
        finally:
            self._forget(conn)

    def _forget(self, conn: Conn) -> None:
        """Count a connection that ended, and let go of all that it has."""
        route = conn.route
        reason = conn.reason
        assert reason is not None
        client, server, backend = conn.client, conn.server, conn.backend
        self.count -= 1
        route.count -= 1
        ended = route.ended
        ended[reason.value] = ended.get(reason.value, 0) + 1
        route.bytes_client += client.total
        if conn.counted:
            left = route.sources[conn.counted] - 1
            if left:
                route.sources[conn.counted] = left
            else:
                del route.sources[conn.counted]
        if conn.wheel:
            bucket = self._wheel.get(conn.wheel)
            if bucket is not None:
                bucket.discard(conn)
        if client.pipe is not None:
            self._give_back(client)
        self.table[client.fd] = None
        self._graves.append(client.fd)
        client.fd = -1
        if server is not None:
            route.bytes_server += server.total
            if server.pipe is not None:
                self._give_back(server)
            self.table[server.fd] = None
            self._graves.append(server.fd)
            server.fd = -1
            del server.peer, server.conn
        # Without cycles nothing is left to the collector.
        del client.peer, client.conn
        if backend is not None:
            backend.active -= 1
            if reason in ENDED_BY_FIN or (server is not None and server.total):
                backend.failures = 0
            elif reason is Reason.SERVER_RESET:
                route.balancer.failed(backend, self.now)
        if self._paused:
            self._resume()

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────

    def _schedule(self, conn: Conn, at: float) -> None:
        """Have `_visit` called for a connection at or shortly after a time."""
        slot = max(int(min(at, self.now + 3600.0) / GRAIN), int(self.now / GRAIN)) + 1
        if slot == conn.wheel:
            return
        wheel = self._wheel
        if conn.wheel:
            bucket = wheel.get(conn.wheel)
            if bucket is not None:
                bucket.discard(conn)
        conn.wheel = slot
        bucket = wheel.get(slot)
        if bucket is None:
            wheel[slot] = {conn}
        else:
            bucket.add(conn)

    def _turn_wheel(self, at: int) -> None:
        """Visit every connection whose slot has come."""
        for slot in range(self._turned + 1, at + 1):
            for conn in self._wheel.pop(slot, ()):
                conn.wheel = 0
                if conn.state is not _CLOSED:
                    try:
                        self._visit(conn)
                    except Exception:  # noqa: BLE001  # the outermost loop of a worker
                        self._our_mistake(conn.client)
        self._turned = at
        if self._paused:
            self._resume()
        if self.now - self._pipes_checked >= PIPE_REST:
            self._close_spare_pipes()
        if self.now - self._idle_checked >= 1.0:
            self._idle_checked = self.now
            for route in self.routes.values():
                if route.service.pool.max_idle or any(b.idle for b in route.balancer.backends):
                    self._tend_pool(route)

    def _visit(self, conn: Conn) -> None:
        """Look after a connection: its deadlines, its first second, its slow readers."""
        route = conn.route
        if conn.young:
            conn.young = False
            self._settle(conn)
        last = conn.last_client + conn.last_server
        # Once for each visit: with nine thousand idle connections this is most of what the relay does.
        deadline = conn.next_deadline()
        if deadline <= self.now:
            if (
                conn.state is _CONNECTING
                and conn.limits.connect
                and self.now >= conn.since + conn.limits.connect
            ):
                self._blame(conn)
            self._step(conn, Event.TICK)
            if conn.state is _CLOSED:
                return
            deadline = conn.next_deadline()
        if conn.server is not None and (last != conn.checked or conn.client.relaxed or conn.server.relaxed):
            unsent = self._check_reader(conn.client, route.service.client.user_timeout)
            if conn.state is not _CLOSED:
                unsent |= self._check_reader(conn.server, route.service.server.user_timeout)
            # A reader may take what the kernel holds, and stop, without a byte that passes here.
            conn.checked = -1.0 if unsent else last
        if conn.state is not _CLOSED:
            self._schedule(conn, min(deadline, self.now + route.watch))

    def _settle(self, conn: Conn) -> None:
        """Do for a connection that lasts what a short one need not pay for."""
        if not conn.client.armed:
            # Still connecting: from now on a client that gives up is noticed.
            conn.client.armed = True
            self.epoll.register(conn.client.fd, MASK)
        if conn.server is not None and conn.state is not _CONNECTING:
            self._keep_alive(conn.server)

    def _keep_alive(self, leg: Leg) -> None:
        """Set keepalive and the user timeout on a server's socket; a client's has them from the listener."""
        backend = leg.conn.backend
        if backend is None or not sockets.is_tcp(backend.family):
            return
        for level, name, value in liveness_options(leg.conn.route.service.server):
            try:
                sockets.set_int(leg.fd, level, name, value)
            except OSError:  # a socket that was reset meanwhile; its event is on the way
                return

    def _check_reader(self, leg: Leg, user_timeout: float) -> bool:
        """Look after a slow reader; return whether bytes for it wait in the kernel still."""
        if not user_timeout:
            return False
        leg.relaxed, gone, unsent = sockets.tend_reader(leg.fd, user_timeout, leg.relaxed)
        if gone:
            self._step(leg.conn, Event.CLIENT_VANISHED if leg.is_client else Event.SERVER_VANISHED)
        return unsent

    # ── connections opened in advance ────────────────────────────────────────────────────────────────────

    def _tend_pool(self, route: Route) -> None:
        """Close what has waited too long, and open what is missing."""
        pool = route.service.pool
        for backend in route.balancer.backends:
            for place, idle in enumerate(list(backend.idle)):
                old = pool.idle_timeout and self.now - idle.opened >= pool.idle_timeout
                if self.draining or old or place >= pool.max_idle:
                    self.drop_idle(idle)
            usable = backend.up and not backend.ejected(self.now) and not self.draining
            while usable and len(backend.idle) < pool.max_idle:
                try:
                    fd, number = self._open(route, backend, None)
                except OSError:
                    return
                if number not in (0, errno.EINPROGRESS):
                    os.close(fd)
                    route.balancer.failed(backend, self.now)
                    break
                idle = _Idle(fd, backend, route, self.now)
                backend.idle.append(idle)
                self.watch(fd, partial(self._idle_event, idle), MASK)

    def _idle_event(self, idle: _Idle, mask: int) -> None:
        """A pre-opened connection opened, or ended before it was used."""
        if mask & (ERR | RDHUP | HUP):
            if not idle.ready:
                idle.route.balancer.failed(idle.backend, self.now)
            self.drop_idle(idle)
        elif mask & OUT and not idle.ready:
            idle.ready = True

    def drop_idle(self, idle: _Idle) -> None:
        """Close a pre-opened connection."""
        idle.backend.idle.remove(idle)
        self.unwatch(idle.fd)
        self._graves.append(idle.fd)

    def _take_idle(self, conn: Conn, backend: Backend) -> bool:
        """Use a pre-opened connection; return whether there was one that is still good."""
        for idle in list(backend.idle):
            if not idle.ready:
                continue
            backend.idle.remove(idle)
            self.unwatch(idle.fd)
            # Bytes are welcome: a server that speaks first has spoken. An end of file or an error is not.
            if not sockets.is_usable(idle.fd):
                self._graves.append(idle.fd)
                continue
            leg = Leg(idle.fd, conn, False)
            conn.server = leg
            leg.peer, conn.client.peer = conn.client, leg
            leg.armed = True
            self._own(idle.fd, leg)
            self.epoll.register(idle.fd, MASK)
            self._connected(conn)
            return True
        return False

    # ── what others may ask ──────────────────────────────────────────────────────────────────────────────

    def conns(self) -> Iterator[Conn]:
        """Yield every connection that lives."""
        for leg in list(self.table):
            if type(leg) is Leg and leg.is_client and leg.fd >= 0 and leg.conn.state is not _CLOSED:
                yield leg.conn

    def find(self, number: int) -> Conn | None:
        """Return a connection by its number, if it lives."""
        return next((conn for conn in self.conns() if conn.number == number), None)

    def kill(self, numbers: Iterable[int]) -> int:
        """End connections by RST; return how many there were."""
        wanted = set(numbers)
        doomed = [conn for conn in self.conns() if conn.number in wanted]
        for conn in doomed:
            self._step(conn, Event.KILL)
        return len(doomed)

    def drain(self, seconds: float | None = None) -> None:
        """Stop accepting; let connections end; cut what is left after the services' ``drain`` (or ``seconds``)."""
        self.now = time.monotonic()
        for key, listener in list(self.listeners.items()):
            # Who waits in the queue was promised a connection: closing the listener would reset it.
            before = -1
            while before != listener.route.accepted and key not in self._paused:
                before = listener.route.accepted
                self._accept(listener)
            self.unlisten(key)
        self.draining = True
        for conn in list(self.conns()):
            timeouts = conn.route.service.timeouts
            patience = timeouts.drain if seconds is None else seconds
            patience *= 1 - random.random() * timeouts.drain_spread  # noqa: S311  # spreading, not secrecy
            conn.drain(self.now, self.now + patience)
            self._schedule(conn, conn.next_deadline())
        for route in self.routes.values():
            self._tend_pool(route)

    def stop(self) -> None:
        """End everything now, by RST."""
        self.now = time.monotonic()
        for conn in list(self.conns()):
            conn.drain(self.now, self.now)
            self._step(conn, Event.TICK)
        self.stopped = True

    def close(self) -> None:
        """Give every descriptor back; what still lives ends by RST, also when a mistake of ours ends the worker."""
        for leg in self.table:
            if type(leg) is Leg and leg.fd >= 0:
                sockets.abort_on_close(leg.fd)
        for conn in list(self.conns()):
            self._step(conn, Event.KILL)
        for key in list(self.listeners):
            self.unlisten(key)
        for route in self.routes.values():
            for backend in route.balancer.backends:
                for idle in list(backend.idle):
                    self.drop_idle(idle)
        for fd in (*self._graves, *(fd for pipe in self._pipes for fd in pipe)):
            os.close(fd)
        self._graves.clear()
        self._pipes.clear()
        self.epoll.close()

    def describe(self, conn: Conn) -> dict[str, Any]:
        """Return what is known of a connection, as the admin socket and the access log tell it."""
        client, server, backend = conn.client, conn.server, conn.backend
        client_local = sockets.names(client.fd)[0] if client.fd >= 0 else ""
        server_local = sockets.names(server.fd)[0] if server is not None and server.fd >= 0 else ""
        half = conn.half_closed_since()
        told: dict[str, Any] = {
            "id": f"{self.index}-{conn.number}",
            "service": conn.route.service.name,
            "state": conn.state.name,
            "client": {"peer": show(conn.peer), "local": show(client_local)},
            "server": {"local": show(server_local), "peer": backend.name if backend is not None else ""},
            "accepted": _rfc3339(conn.born + self.wall),
            "age_s": round(self.now - conn.born, 3),
            "tries": conn.tries,
            "bytes_from_client": client.total,
            "bytes_from_server": server.total if server is not None else 0,
        }
        if conn.source is not None:
            told["client"]["source"] = show(conn.source)
        if conn.connected_at:
            told["connect_s"] = round(conn.connected_at - conn.born, 6)
        last = max(conn.last_client, conn.last_server)
        if last:
            told["silent_s"] = round(self.now - last, 3)
        if conn.reason is not None:
            told["reason"] = str(conn.reason)
        else:
            deadline = conn.next_deadline()
            told["deadline_s"] = round(deadline - self.now, 3) if deadline != float("inf") else None
            told["waiting_to_server"] = client.waiting
            told["waiting_to_client"] = server is not None and server.waiting
        if half is not None:
            told["half_closed_s"] = round(self.now - half, 3)
        return told

    def stats(self) -> dict[str, Any]:
        """Return the counts of this worker, for metrics."""
        longest: dict[str, float] = {}
        halves: dict[str, int] = {}
        live: dict[str, list[int]] = {name: [0, 0] for name in self.routes}
        for conn in self.conns():
            half = conn.half_closed_since()
            if half is not None:
                name = conn.route.service.name
                halves[name] = halves.get(name, 0) + 1
                longest[name] = max(longest.get(name, 0.0), self.now - half)
            counts = live.setdefault(conn.route.service.name, [0, 0])
            counts[0] += conn.client.total
            counts[1] += conn.server.total if conn.server is not None else 0
        return {
            "pipes": self._pipes_made,
            "services": {
                name: {
                    "now": route.count,
                    "accepted": route.accepted,
                    "admits_unix": route.acl.admits_unix,
                    "rejected": route.rejected,
                    "ended": route.ended,
                    "half_closed": halves.get(name, 0),
                    "half_closed_longest_s": longest.get(name, 0.0),
                    "bytes_from_client": route.bytes_client + live[name][0],
                    "bytes_from_server": route.bytes_server + live[name][1],
                    "connect_buckets": route.latency,
                    "connect_sum_s": route.latency_sum,
                    "backends": [
                        {
                            "name": backend.name,
                            "active": backend.active,
                            "up": backend.up,
                            "ejected": backend.ejected(self.now),
                            "connected": backend.connected,
                            "failed": backend.failed,
                            "idle": len(backend.idle),
                        }
                        for backend in route.balancer.backends
                    ],
                }
                for name, route in self.routes.items()
            },
        }


def liveness_options(side: Any) -> list[tuple[int, int, int]]:  # noqa: ANN401  # either side's options
    """Return the socket options that find a dead peer, as (level, name, value)."""
    found = []
    if side.keepalive_idle:
        found += [
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, round(side.keepalive_idle)),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(side.keepalive_interval))),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, side.keepalive_count),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        ]
    if side.user_timeout:
        found.append((socket.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, int(side.user_timeout * 1000)))
    return found


def show(address: object) -> str:
    """Return a socket address as people write it."""
    if isinstance(address, tuple) and len(address) >= 2:
        host = str(address[0])
        return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"
    if isinstance(address, bytes):
        return "unix:@" + address[1:].decode("utf-8", "backslashreplace")
    return f"unix:{address}" if address else ""


def _rfc3339(seconds: float) -> str:
    whole = int(seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((seconds - whole) * 1000):03d}Z"
