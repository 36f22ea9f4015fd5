"""The relay as a library: join two asyncio streams, or two sockets, and close them correctly.

``await relay(a, b)`` moves bytes both ways until the connection has ended, by `finwait.relay.machine`'s rules, and
says how it ended. It replaces this, which every asyncio program with two streams writes once::

    await asyncio.gather(copy(reader_a, writer_b), copy(reader_b, writer_a))

where ``copy`` either closes at its first EOF, and cuts off a peer that half-closed, or waits for both, and then holds
a CLOSE_WAIT and a FIN_WAIT2 for ever when one peer never closes.

The surprise: asyncio stops watching a socket once its EOF was read, so a peer that goes away behind a half-close is
never noticed. Sockets are therefore watched by an epoll set of our own, with no events asked for: the kernel always
reports errors. Keepalive is switched on, for it is the probe that provokes the error.

What this cannot do: hold a stream whose transport is not a socket (TLS, a pipe) by proof; there only the cap ends a
dead half-close, and where a transport cannot half-close the FIN is passed on as a full close.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import struct
from typing import TYPE_CHECKING, Final

from finwait.relay.config import ServerSide
from finwait.relay.machine import Command, Event, Limits, Machine, Reason, State
from finwait.relay.server import VANISHED, liveness_options

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["End", "relay"]

_CHUNK: Final = 65536
_LINGER_ZERO: Final = struct.pack("ii", 1, 0)

End = tuple[asyncio.StreamReader, asyncio.StreamWriter] | socket.socket
"""One side: the pair that `asyncio.open_connection` returns, or a connected socket."""


async def relay(
    a: End,
    b: End,
    *,
    half_close: float = 300.0,
    idle: float = 0.0,
    lifetime: float = 0.0,
    keepalive: tuple[float, float, int] | None = (15.0, 5.0, 3),
    user_timeout: float = 30.0,
) -> Reason:
    """Relay between two connections until both have ended; both are closed when this returns.

    The mistake that it replaces: two copies, and a guess at what to do when the first one ends.

    Args:
        a: the client, as `Reason` calls it.
        b: the server.
        half_close: seconds of silence in the open direction after which a half-closed connection is cut; 0: no limit.
        idle: seconds without a byte, both directions open, after which it is cut; 0: no limit.
        lifetime: seconds after which it is cut in any case; 0: no limit.
        keepalive: (idle, interval, count) for both sockets, in whole seconds; None leaves them as they are.
        user_timeout: TCP_USER_TIMEOUT of both sockets, seconds; 0 leaves it.

    Returns:
        How it ended. Errors of the sockets are ends, not exceptions.

    Cancelling cuts both sides by RST, and the cancellation goes on: a cut answer never looks complete.
    """
    sides = [await _open(end) for end in (a, b)]
    options = ServerSide(
        keepalive_idle=keepalive[0] if keepalive else 0.0,
        keepalive_interval=keepalive[1] if keepalive else 0.0,
        keepalive_count=keepalive[2] if keepalive else 1,
        user_timeout=user_timeout,
    )
    for side in sides:
        if side.sock is not None and side.sock.family in (socket.AF_INET, socket.AF_INET6):
            for level, name, value in liveness_options(options):
                with contextlib.suppress(OSError):
                    side.sock.setsockopt(level, name, value)
    limits = Limits(connect=0, idle=idle, half_close=half_close, lifetime=lifetime)
    return await _Relay(sides[0], sides[1], limits).run()


class _Side:
    """A reader, a writer, and the socket below them where there is one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.sock: socket.socket | None = writer.get_extra_info("socket")

    def abort(self) -> None:
        """Close by RST where that is possible."""
        if self.sock is not None and self.sock.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self.writer.transport.abort()


async def _open(end: End) -> _Side:
    if isinstance(end, socket.socket):
        end.setblocking(False)
        return _Side(*await asyncio.open_connection(sock=end))
    return _Side(*end)


class _Relay:
    """The edge of one machine in asyncio."""

    def __init__(self, client: _Side, server: _Side, limits: Limits) -> None:
        self.loop = asyncio.get_running_loop()
        self.client, self.server = client, server
        self.machine = Machine(limits, self.loop.time())
        self.ended = asyncio.Event()
        self.epoll = select.epoll()
        self.timer: asyncio.TimerHandle | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self._do: dict[Command, Callable[[], None]] = {
            Command.PUMP: self._pump,
            Command.SHUT_SERVER: lambda: self._shut(server),
            Command.SHUT_CLIENT: lambda: self._shut(client),
            Command.CLOSE: self._close,
            Command.ABORT: self._abort,
            # asyncio has handed on what it had read; its buffers are beyond our reach.
            Command.FLUSH_CLIENT: lambda: None,
            Command.FLUSH_SERVER: lambda: None,
        }

    async def run(self) -> Reason:
        try:
            for side in (self.client, self.server):
                # asyncio closes a socket that was reset before we came to it; its reader then says so.
                if side.sock is not None and side.sock.fileno() >= 0:
                    self.epoll.register(side.sock.fileno(), 0)
            self.loop.add_reader(self.epoll.fileno(), self._on_error)
            self._feed(Event.CONNECTED)
            await self.ended.wait()
        except asyncio.CancelledError:
            if self.machine.state is not State.CLOSED:
                self._feed(Event.KILL)
            raise
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            if self.timer is not None:
                self.timer.cancel()
            self.loop.remove_reader(self.epoll.fileno())
            self.epoll.close()
            for side in (self.client, self.server):
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await side.writer.wait_closed()
        assert self.machine.reason is not None
        return self.machine.reason

    def _feed(self, event: Event) -> None:
        if self.machine.state is State.CLOSED:
            return
        for command in self.machine.feed(event, self.loop.time()):
            self._do[command]()
        if self.machine.reason is not None:
            self.ended.set()
        else:
            self._arm()

    def _arm(self) -> None:
        """Wake up when the machine wants to; bytes only make that later, so a timer that is set stays."""
        at = self.machine.next_deadline()
        if self.timer is not None:
            if self.timer.when() <= at:
                return
            self.timer.cancel()
            self.timer = None
        if at != float("inf"):
            self.timer = self.loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self.timer = None
        self._feed(Event.TICK)

    def _pump(self) -> None:
        self.tasks = [
            self.loop.create_task(self._copy(self.client, self.server, "last_client", Event.CLIENT_DONE)),
            self.loop.create_task(self._copy(self.server, self.client, "last_server", Event.SERVER_DONE)),
        ]

    async def _copy(self, source: _Side, sink: _Side, clock: str, done: Event) -> None:
        """Move one direction to its end."""
        try:
            while data := await source.reader.read(_CHUNK):
                setattr(self.machine, clock, self.loop.time())
                try:
                    sink.writer.write(data)
                    await sink.writer.drain()
                except OSError as error:
                    self._failed(sink, error.errno or 0)
                    return
                setattr(self.machine, clock, self.loop.time())
        except OSError as error:
            self._failed(source, error.errno or 0)
            return
        self._feed(done)

    def _on_error(self) -> None:
        """A socket failed, perhaps one that asyncio does not look at any more."""
        for fd, mask in self.epoll.poll(0):
            side = next(
                (s for s in (self.client, self.server) if s.sock is not None and s.sock.fileno() == fd), None
            )
            if side is None or side.sock is None:
                continue
            if mask & select.EPOLLERR:
                number = side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self.epoll.unregister(fd)
                self._failed(side, number or errno.ECONNRESET)
            elif mask & select.EPOLLHUP:
                # Both directions are shut and nothing failed: asyncio reads to the end by itself.
                self.epoll.unregister(fd)

    def _failed(self, side: _Side, number: int) -> None:
        gone = number in VANISHED
        if side is self.client:
            self._feed(Event.CLIENT_VANISHED if gone else Event.CLIENT_RESET)
        else:
            self._feed(Event.SERVER_VANISHED if gone else Event.SERVER_RESET)

    def _shut(self, side: _Side) -> None:
        if side.writer.can_write_eof():
            with contextlib.suppress(OSError):
                side.writer.write_eof()
        else:
            side.writer.close()

    def _close(self) -> None:
        for side in (self.client, self.server):
            side.writer.close()

    def _abort(self) -> None:
        for side in (self.client, self.server):
            side.abort()
