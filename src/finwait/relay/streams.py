"""The relay as a library: join two asyncio streams, or two sockets, and close them correctly.

``await relay(a, b)`` moves bytes both ways until the connection has ended, by `finwait.relay.machine`'s rules, and
says how it ended. It replaces this, which every asyncio program with two streams writes once::

    await asyncio.gather(copy(reader_a, writer_b), copy(reader_b, writer_a))

where ``copy`` either closes at its first EOF, and cuts off a peer that half-closed, or waits for both, and then holds
a CLOSE_WAIT and a FIN_WAIT2 for ever when one peer never closes.

Surprises, each of which has a test:

* asyncio stops watching a socket once its EOF was read, so a peer that goes away behind a half-close is never
  noticed. Sockets are therefore watched by an epoll set of our own, for nothing but the FIN: the kernel always reports
  errors. Keepalive is switched on, for it is the probe that provokes the error.
* ``drain()`` returns while 64 KiB still wait in the transport. An EOF is passed on, and the last bytes count as
  delivered, only when nothing waits any more; until then the limits of the machine hold.
* ``close()`` by anyone, and ``transport.close()`` inside of asyncio, is a FIN, and makes an EOF of our own reader.
  Neither is one of the peer's.
* A task that is cancelled before its first turn runs nothing of its coroutine, not even ``finally``. See `_Given`.
* TCP_USER_TIMEOUT also ends a connection whose peer lives and keeps its window shut. See `sockets.tend_reader`.

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
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from finwait.relay import sockets
from finwait.relay.config.model import ServerSide
from finwait.relay.liveness import liveness_options
from finwait.relay.machine import Command, Event, Reason, RelayLimits, RelayMachine, RelayState
from finwait.relay.sockets import NO_ROOM, VANISHED

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["End", "relay"]

_CHUNK: Final = 65536
_LINGER_ZERO: Final = struct.pack("ii", 1, 0)
_LOOK: Final = 12.0
"""Seconds between looks at what readers take, at most; see `_Relay._look`."""

End = tuple[asyncio.StreamReader, asyncio.StreamWriter] | socket.socket
"""One side: the pair that `asyncio.open_connection` returns, or a connected socket."""


def relay(
    a: End,
    b: End,
    *,
    half_close: float = 300.0,
    idle: float = 0.0,
    lifetime: float = 0.0,
    keepalive: tuple[float, float, int] | None = (15.0, 5.0, 3),
    user_timeout: float = 30.0,
) -> Coroutine[Any, Any, Reason]:
    """Relay between two connections until both have ended; both are closed when this returns, or raises.

    The mistake that it replaces: two copies, and a guess at what to do when the first one ends.

    Args:
        a: the client, as `Reason` calls it.
        b: the server.
        half_close: seconds of silence in the open direction after which a half-closed connection is cut; 0: no limit.
        idle: seconds without a byte, both directions open, after which it is cut; 0: no limit.
        lifetime: seconds after which it is cut in any case; 0: no limit.
        keepalive: (idle, interval, count) for both sockets, in whole seconds; None leaves them as they are.
        user_timeout: TCP_USER_TIMEOUT of both sockets, seconds; 0 leaves it. A peer that lives and keeps its window
            shut is not held to it.

    Returns:
        How it ended. Errors of the sockets are ends, not exceptions; one that is closed already counts as reset.

    Cancelling cuts both sides by RST, and the cancellation goes on: a cut answer never looks complete.
    """
    options = ServerSide(
        keepalive_idle=keepalive[0] if keepalive else 0.0,
        keepalive_interval=keepalive[1] if keepalive else 0.0,
        keepalive_count=keepalive[2] if keepalive else 1,
        user_timeout=user_timeout,
    )
    limits = RelayLimits(connect=0, idle=idle, half_close=half_close, lifetime=lifetime)
    return _Given(a, b, _run(a, b, limits, options))


async def _run(a: End, b: End, limits: RelayLimits, options: ServerSide) -> Reason:
    return await _Relay(_Side(a), _Side(b), limits, options).run()


async def _cut(a: End, b: End, error: BaseException) -> Reason:
    """End a relay that never began."""
    sides = _Side(a), _Side(b)
    for side in sides:
        side.abort()
    for side in sides:
        await side.closed()
    raise error


class _Given(Coroutine[Any, Any, Reason]):
    """The coroutine of `relay`, whose ends are given away with the call.

    Python runs nothing of a coroutine into which an exception is thrown before its first step, as a task does
    that is cancelled at once. The two ends would then stay open, with nobody to own them.
    """

    def __init__(self, a: End, b: End, work: Coroutine[Any, Any, Reason]) -> None:
        self._ends: tuple[End, End] | None = (a, b)
        self._work = work

    def send(self, value: Any, /) -> Any:  # noqa: ANN401  # what a loop and its futures say to each other
        self._ends = None
        return self._work.send(value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None, /) -> Any:  # noqa: ANN401  # as `Coroutine.throw`
        error = typ if isinstance(typ, BaseException) else val or typ()
        ends, self._ends = self._ends, None
        if ends is None:
            return self._work.throw(error.with_traceback(tb) if tb is not None else error)
        self._work.close()
        self._work = _cut(*ends, error)
        return self._work.send(None)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Reason]:
        return self._work.__await__()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # cr_frame and the like, for debuggers
        return getattr(self._work, name)


class _Side:
    """A reader, a writer, and the socket below them where there is one.

    Attributes:
        reader: set once it is open.
        writer: set once it is open.
        is_open: whether asyncio has it; a socket that was given begins without.
        error: why it could not be opened, an errno.
        told: the machine knows of its FIN.
        unsent: how many bytes waited in asyncio for this side to take them, at the last look.
        relaxed: its user timeout is lifted, see `sockets.tend_reader`.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sock: socket.socket | None

    def __init__(self, end: End) -> None:
        self.is_open = False
        self.error = 0
        self.told = False
        self.unsent = 0
        self.relaxed = False
        self._closing: asyncio.Task[None] | None = None
        if isinstance(end, socket.socket):
            self.sock = end
        else:
            self.reader, self.writer = end
            self.is_open = True
            try:
                self.sock = self.writer.get_extra_info("socket")
            except AttributeError:  # asyncio's TLS, closed twice, has forgotten all about itself
                self.sock = None
                self.error = errno.ECONNRESET

    async def open(self) -> None:
        """Give a socket to asyncio. One that it does not take is closed by RST."""
        if self.is_open:
            return
        try:
            self.reader, self.writer = await asyncio.open_connection(sock=self.sock)
        except OSError as error:
            self.abort()
            self.error = error.errno or errno.ECONNRESET
        else:
            self.is_open = True

    @property
    def fd(self) -> int:
        """The descriptor of its socket; -1 when there is none any more."""
        return self.sock.fileno() if self.sock is not None else -1

    @property
    def is_tcp(self) -> bool:
        return self.sock is not None and sockets.is_tcp(self.sock.family) and self.fd >= 0

    @property
    def waits(self) -> int:
        """How many bytes wait in asyncio for this side to take them."""
        return self.writer.transport.get_write_buffer_size()

    def set(self, options: list[tuple[int, int, int]]) -> None:
        """Set socket options, if it is TCP; a dead socket refuses them, and says so elsewhere."""
        if self.is_tcp and self.sock is not None:
            for level, name, value in options:
                with contextlib.suppress(OSError):
                    self.sock.setsockopt(level, name, value)

    def abort(self) -> None:
        """Close by RST where that is possible."""
        if self.is_tcp and self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        if self.is_open:
            self.writer.transport.abort()
        elif self.sock is not None:
            # asyncio may have begun with it: that transport closes too, a turn later, and finds it closed.
            self.sock.close()

    async def closed(self, seconds: float | None = None) -> bool:
        """Wait until asyncio has closed it, for some time at most; return whether it has."""
        if not self.is_open:
            return True
        if self._closing is None:
            # A task of its own, for the wait that is cancelled takes asyncio's future with it.
            self._closing = asyncio.get_running_loop().create_task(self._wait_closed())
        await asyncio.wait({self._closing}, timeout=seconds)
        return self._closing.done()

    async def _wait_closed(self) -> None:
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class _Relay:
    """The edge of one machine in asyncio."""

    def __init__(self, client: _Side, server: _Side, limits: RelayLimits, options: ServerSide) -> None:
        self.loop = asyncio.get_running_loop()
        self.client, self.server = client, server
        self.options = options
        self.machine = RelayMachine(limits, self.loop.time())
        self.ended = asyncio.Event()
        self.epoll: select.epoll | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.mistake: BaseException | None = None
        self.until = float("inf")
        """Until when the machine allowed what it was last told to wait for."""
        known = [x / 4 for x in (options.user_timeout, limits.idle, limits.half_close) if x]
        self.every = max(0.1, min([_LOOK, *known]))
        self.looked = self.loop.time()
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
            await self._begin()
            await self.ended.wait()
            await self._stop()
            return await self._finish()
        except BaseException:
            # Also where the two FINs were out already: what was not delivered then must not look complete.
            if self.machine.state is not RelayState.CLOSED:
                self._feed(Event.KILL)
            else:
                self._abort()
            await self._stop()
            for side in (self.client, self.server):
                await side.closed()
            raise
        finally:
            self._forget()

    async def _begin(self) -> None:
        for side in (self.client, self.server):
            await side.open()
            side.set(liveness_options(self.options))
        try:
            self.epoll = select.epoll()
            for side in (self.client, self.server):
                # asyncio closes a socket that was reset before we came to it; its reader then says so.
                if side.fd >= 0:
                    self.epoll.register(side.fd, select.EPOLLRDHUP)
            self.loop.add_reader(self.epoll.fileno(), self._on_event)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._feed(Event.EXHAUSTED)
            return
        self._feed(Event.CONNECTED)
        for side in (self.client, self.server):
            if side.error:
                self._failed(side, side.error)

    async def _stop(self) -> None:
        """End the copying."""
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)

    async def _finish(self) -> Reason:
        """Wait until both are closed: at once, but for a transport that has something to say (TLS)."""
        if self.mistake is not None:
            raise self.mistake
        reason = self.machine.reason
        assert reason is not None
        for side in (self.client, self.server):
            at = self.until
            if await side.closed(max(0.0, at - self.loop.time()) if at != float("inf") else None):
                continue
            limits = self.machine.limits
            late = limits.lifetime and at >= self.machine.born + limits.lifetime
            reason = Reason.LIFETIME if late else Reason.HALF_CLOSE
            self._abort()
            self.until = float("inf")
            await side.closed()
        return reason

    def _forget(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.epoll is not None:
            self.loop.remove_reader(self.epoll.fileno())
            self.epoll.close()

    def _feed(self, event: Event) -> None:
        if self.machine.state is RelayState.CLOSED:
            return
        until = self.machine.next_deadline()
        for command in self.machine.feed(event, self.loop.time()):
            if command is Command.CLOSE:
                self.until = until
            self._do[command]()
        if self.machine.reason is not None:
            self.ended.set()
        else:
            self._arm()

    def _arm(self) -> None:
        """Wake up when the machine wants to; bytes only make that later, so a timer that is set stays."""
        at = min(self.machine.next_deadline(), self.looked + self.every)
        if self.timer is not None:
            if self.timer.when() <= at:
                return
            self.timer.cancel()
        self.timer = self.loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self.timer = None
        self._look()
        self._feed(Event.TICK)

    def _look(self) -> None:
        """See what both readers took: it is no silence; and one whose window is shut is slow, or gone."""
        self.looked = self.loop.time()
        for side, clock in ((self.client, "last_server"), (self.server, "last_client")):
            waits = side.waits
            if waits < side.unsent:
                setattr(self.machine, clock, self.looked)
            side.unsent = waits
            if self.options.user_timeout and side.is_tcp:
                side.relaxed, gone, _ = sockets.tend_reader(side.fd, self.options.user_timeout, side.relaxed)
                if gone:
                    self._failed(side, errno.ETIMEDOUT)

    def _pump(self) -> None:
        self.tasks = [
            self.loop.create_task(self._copy(self.client, self.server, "last_client", Event.CLIENT_DONE)),
            self.loop.create_task(self._copy(self.server, self.client, "last_server", Event.SERVER_DONE)),
        ]
        for task in self.tasks:
            task.add_done_callback(self._copied)

    async def _copy(self, source: _Side, sink: _Side, clock: str, done: Event) -> None:
        """Move one direction to its end."""
        try:
            while data := await source.reader.read(_CHUNK):
                setattr(self.machine, clock, self.loop.time())
                if not await self._write(sink, data, clock):
                    return
        except OSError as error:
            self._failed(source, error.errno or 0)
            return
        if source.writer.can_write_eof() and source.writer.is_closing():
            # Closed on this side, by its program or after an error: that is no FIN of the peer.
            self._failed(source, 0)
            return
        if sink.waits:
            self._tell_fin(source)
            sink.writer.transport.set_write_buffer_limits(0)
            if not await self._write(sink, b"", clock):
                return
        source.told = True
        self._feed(done)

    async def _write(self, sink: _Side, data: bytes, clock: str) -> bool:
        """Hand bytes to a side and wait for room for more; return whether it lives."""
        try:
            sink.writer.write(data)
            await sink.writer.drain()
        except OSError as error:
            self._failed(sink, error.errno or 0)
            return False
        setattr(self.machine, clock, self.loop.time())
        return True

    def _copied(self, task: asyncio.Task[None]) -> None:
        """A direction is over: what is no error of a socket goes to the caller."""
        if not task.cancelled() and task.exception() is not None:
            self.mistake = self.mistake or task.exception()
            self._feed(Event.KILL)

    def _on_event(self) -> None:
        """A socket failed, perhaps one that asyncio does not look at any more; or its FIN has come."""
        assert self.epoll is not None
        for fd, mask in self.epoll.poll(0):
            side = next((s for s in (self.client, self.server) if s.fd == fd), None)
            if side is None or side.sock is None:
                continue
            if mask & select.EPOLLERR:
                number = side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self.epoll.unregister(fd)
                self._failed(side, number or errno.ECONNRESET)
                continue
            if mask & select.EPOLLHUP:
                # Both directions are shut and nothing failed: asyncio reads to the end by itself.
                self.epoll.unregister(fd)
            else:
                self.epoll.modify(fd, 0)
            self._tell_fin(side)

    def _tell_fin(self, side: _Side) -> None:
        """Say that a FIN has arrived before all bytes are delivered."""
        if not side.told:
            side.told = True
            self._feed(Event.CLIENT_EOF if side is self.client else Event.SERVER_EOF)

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
            if self.options.user_timeout and side.is_tcp:
                # The kernel may go on delivering to a slow reader, as the command's `linger` has it.
                info = sockets.tcp_info(side.fd)
                if info is not None and info.notsent:
                    milliseconds = int(self.options.linger * 1000)
                    side.set([(socket.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, milliseconds)])
            # Closed twice, asyncio's TLS could not be aborted any more.
            if not side.writer.is_closing():
                side.writer.close()

    def _abort(self) -> None:
        for side in (self.client, self.server):
            side.abort()
