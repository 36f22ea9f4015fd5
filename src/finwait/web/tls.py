"""TLS for the page's server: connections that take their place before their handshake.

asyncio would accept without limit and shake hands before anybody counts. So connections are accepted here, and who
serves them gives each its place and its deadline (`finwait.web.http`), looks at its first byte, and only then begins.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

__all__ = ["TlsListener", "begins", "refuse", "streams"]

_HANDSHAKE: Final = 0x16
"""ContentType of a ClientHello, RFC 8446 5.1."""
_ROOMLESS_PAUSE_S: Final = 0.2
"""Before the next accept where there is no descriptor left."""


class TlsListener:
    """Accepts connections, each in a task of its own, from the start on; as `asyncio.Server`, a context manager.

    Args:
        listener: a socket that listens; becomes ours.
        serve: is given each connection, and the address of its other end.
    """

    def __init__(
        self, listener: socket.socket, serve: Callable[[socket.socket, str], Awaitable[None]]
    ) -> None:
        self._listener = listener
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener.setblocking(False)
        accepting = asyncio.create_task(self._accept())
        accepting.add_done_callback(lambda _: self._listener.close())
        self._keep(accepting)

    async def __aenter__(self) -> Self:
        """Return it."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, with every connection."""
        tasks = tuple(self._tasks)
        self.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Begin to end."""
        for task in tuple(self._tasks):
            task.cancel()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(self._listener)
            except ConnectionError:  # it went before we took it
                continue
            except OSError:
                await asyncio.sleep(_ROOMLESS_PAUSE_S)
                continue
            sock.setblocking(False)
            peer = str(address[0]) if isinstance(address, tuple) else ""
            self._keep(asyncio.create_task(self._one(sock, peer)))

    async def _one(self, sock: socket.socket, peer: str) -> None:
        await self._serve(sock, peer)


async def begins(sock: socket.socket) -> bool:
    """Return whether what a connection begins with is a handshake; nothing of it is taken.

    Raises:
        ConnectionResetError: it was closed before it began.
    """
    while True:
        try:
            first = sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            await _readable(sock)
            continue
        if not first:
            raise ConnectionResetError("closed without a word")
        return first[0] == _HANDSHAKE


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not waiting.done():
            waiting.set_result(None)

    loop.add_reader(sock, ready)
    try:
        await waiting
    finally:
        loop.remove_reader(sock)


async def refuse(sock: socket.socket, answer: bytes) -> None:
    """Answer who does not speak TLS, in a way that reaches him: what he has sent is read first, or a RST would follow.

    Raises:
        OSError: he is gone.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, answer)
    sock.shutdown(socket.SHUT_WR)
    while await loop.sock_recv(sock, 1 << 14):
        pass


async def streams(
    sock: socket.socket, context: ssl.SSLContext, limit: int, patience_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return the streams of a connection after its handshake; the socket is theirs then.

    Args:
        sock: connected, nothing of it read.
        context: of TLS.
        limit: bytes that are buffered.
        patience_s: for the handshake, and for the end to be taken.

    Raises:
        OSError: the handshake failed, or took too long.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol,
        sock,
        ssl=context,
        ssl_handshake_timeout=patience_s,
        ssl_shutdown_timeout=patience_s,
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
