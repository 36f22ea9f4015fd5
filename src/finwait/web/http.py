"""A small HTTP/1.1 server: one connection, one request, each part of it with a deadline.

It takes GET and HEAD without a body, and refuses what it does not understand: a name of another machine as Host (a page
in somebody's browser must not read this by DNS rebinding), headers that two programs could read differently, and more
connections than there is room for. Of those that have not asked yet the oldest goes first, of the same peer where one
peer has many. Streams have room of their own; there, too, the oldest of a peer makes way, so that readers that never
read keep nobody else out.

With TLS a connection takes its place in the same rows before its handshake, with the same deadline: `finwait.web.tls`.

What was measured against a server from a package is in docs/adr/0012.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

from msgspec import Struct

from finwait.web import tls

__all__ = ["PLAIN", "HttpReply", "HttpRequest", "HttpServer", "host_allowed", "own_names", "parsed"]

CONNECTIONS_MOST: Final = 64
PER_PEER_MOST: Final = 32
STREAMS_MOST: Final = 64
STREAMS_PER_PEER: Final = 56
HEAD_MOST: Final = 32 << 10
"""A FILTER of 2,000 characters has 24,000 in an address, where each is four bytes and each byte is `%XX`."""
PATIENCE_S: Final = 5.0
"""For a request to be complete, and for an answer to be taken."""
_STREAM_PATIENCE_S: Final = 20.0
_STREAM_BUFFER: Final = 64 << 10
_SAID_EVERY_S: Final = 60.0
_QUERY_MOST: Final = 16
PLAIN: Final = "text/plain; charset=utf-8"

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Content-Security-Policy of every answer."""
_ALWAYS: Final = (
    ("Connection", "close"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Content-Security-Policy", POLICY),
)


class HttpRequest(Struct, frozen=True):
    """A request that was understood."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: tuple[tuple[str, str], ...]
    """Names in lower case."""

    def header(self, name: str) -> str:
        """Return a header; empty where it is not there."""
        return next((value for other, value in self.headers if other == name), "")


class HttpReply(Struct, frozen=True):
    """An answer."""

    status: int
    kind: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    stream: Callable[[], AsyncIterator[bytes]] | None = None
    """Gives what follows the body, as long as the reader stays."""


_VISIBLE: Final = re.compile(r"[!-~]+")
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})", re.ASCII)


def own_names() -> frozenset[str]:
    """Return the names of this machine, in lower case."""
    name = socket.gethostname().lower()
    return frozenset({"localhost", name, name.split(".")[0]})


def host_allowed(value: str, own: frozenset[str]) -> bool:
    """Return whether a Host header names this machine: by an address, or by a name of its own.

    Args:
        value: the header.
        own: names, in lower case.
    """
    name, port = value, ""
    if value.startswith("["):
        name, bracket, port = value[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return False
        port = port[1:]
    elif ":" in value:
        name, _, port = value.partition(":")
    if port and not (port.isascii() and port.isdecimal() and len(port) <= 5):
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(_NAME.fullmatch(name)) and name.lower().rstrip(".") in own
    return True


def parsed(head: bytes) -> HttpRequest | None:
    """Return a request; None where it is none."""
    try:
        first, *lines = head[:-4].decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        return None
    words = first.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        return None
    if not all(_VISIBLE.fullmatch(word) for word in words):
        return None
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if (
            not colon
            or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
            or re.search(r"[\0\r\n]", value)
        ):
            return None
        headers.append((name.lower(), value.strip(" \t")))
    if any(name in ("content-length", "transfer-encoding") for name, _ in headers):
        return None  # nothing here takes a body
    path, _, query = words[1].partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_QUERY_MOST, errors="strict")
    except ValueError:
        return None
    return HttpRequest(words[0], path, tuple(pairs), tuple(headers))


@dataclass(eq=False, slots=True)
class _Client:
    """A connection: how it is ended, from where, and what it is about."""

    end: Callable[[], object]
    peer: str
    place: dict[_Client, None] | None = field(default=None, repr=False)


class HttpServer:
    """Answers requests.

    Args:
        answer: what answers them; what it raises is answered by status 500, and said once a minute.
        own: names of this machine, in lower case.

    Attributes:
        context: of TLS, for connections from now on; None for none. Whether there is one is settled at the start.
    """

    def __init__(self, answer: Callable[[HttpRequest], Awaitable[HttpReply]], own: frozenset[str]) -> None:
        self.context: ssl.SSLContext | None = None
        self._answer = answer
        self._own = own
        self._idle: dict[_Client, None] = {}
        """Who has not finished a request, the oldest first."""
        self._busy: dict[_Client, None] = {}
        self._streams: dict[_Client, None] = {}
        self._said_at = float("-inf")

    async def start(self, listener: socket.socket) -> asyncio.Server | tls.TlsListener:
        """Serve on a socket that listens, as long as the context is not left."""
        if self.context is not None:
            return tls.TlsListener(listener, self._secured)
        if listener.family == socket.AF_UNIX:
            return await asyncio.start_unix_server(self.client, sock=listener, limit=HEAD_MOST)
        return await asyncio.start_server(self.client, sock=listener, limit=HEAD_MOST)

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        peer = writer.get_extra_info("peername")
        client = _Client(writer.transport.abort, str(peer[0]) if isinstance(peer, tuple) else "")
        with self._present(client):
            if not self._admit(client):
                await self._write(writer, _failed(503, "too many connections"))
                return
            await self._converse(client, reader, writer)

    async def _secured(self, sock: socket.socket, peer: str) -> None:
        """Serve one connection after its handshake, which has its place and its deadline as a request has."""
        assert self.context is not None
        task = asyncio.current_task()
        assert task is not None
        client = _Client(task.cancel, peer)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._present(client))
            closing = stack.enter_context(contextlib.ExitStack())
            closing.callback(sock.close)
            if not self._admit(client):
                return
            async with asyncio.timeout(PATIENCE_S):
                if not await tls.begins(sock):
                    plain = _failed(400, "this port speaks HTTPS: write https:// before the address")
                    await tls.refuse(sock, _head(plain, len(plain.body)) + plain.body)
                    return
                closing.pop_all()  # from here on asyncio closes it
                reader, writer = await tls.streams(sock, self.context, HEAD_MOST, PATIENCE_S)
            client.end = writer.transport.abort
            await self._converse(client, reader, writer)

    @contextlib.contextmanager
    def _present(self, client: _Client) -> Iterator[None]:
        """Let go of a client in the end; that it went, or took too long, ends nothing else."""
        try:
            yield
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except asyncio.CancelledError:  # the server ends, or it made way; asyncio would print that
            pass
        finally:
            self._drop(client)

    async def _converse(
        self, client: _Client, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
        self._move(client, self._busy)
        await self._serve(client, writer, head)

    async def _serve(self, client: _Client, writer: asyncio.StreamWriter, head: bytes) -> None:
        request = parsed(head)
        reply = await self._reply(request)
        only_head = request is not None and request.method == "HEAD"
        if reply.stream is None or only_head:
            await self._write(writer, reply, only_head=only_head)
        elif not self._admit_stream(client):
            await self._write(writer, _failed(503, "too many streams"))
        else:
            await self._stream(client, writer, reply)

    async def _reply(self, request: HttpRequest | None) -> HttpReply:
        if request is None:
            return _failed(400, "not a request")
        hosts = [value for name, value in request.headers if name == "host"]
        if len(hosts) != 1 or not host_allowed(hosts[0], self._own):
            return _failed(421, "this is another machine's name")
        if request.method not in ("GET", "HEAD"):
            return HttpReply(405, PLAIN, b"only GET and HEAD\n", (("Allow", "GET, HEAD"),))
        try:
            return await self._answer(request)
        except Exception as error:  # noqa: BLE001 - one client must not end the others
            if time.monotonic() - self._said_at >= _SAID_EVERY_S:
                self._said_at = time.monotonic()
                sys.stderr.write(f"finwait agent: a request failed: {ascii(error)[:300]}\n")
            return _failed(500, "the request failed")

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────

    def _admit(self, client: _Client) -> bool:
        """Make room for a connection: of those without a request the oldest goes, first of the same peer."""
        same = [other for other in self._idle if other.peer == client.peer]
        if len(same) >= PER_PEER_MOST:
            self._drop(same[0])
        elif len(self._idle) + len(self._busy) >= CONNECTIONS_MOST:
            if not self._idle:
                return False
            self._drop(next(iter(self._idle)))
        self._move(client, self._idle)
        return True

    def _admit_stream(self, client: _Client) -> bool:
        """Make room for a stream: the oldest of the same peer goes where that peer has most, or all."""
        same = [other for other in self._streams if other.peer == client.peer]
        if len(same) >= STREAMS_PER_PEER or (len(self._streams) >= STREAMS_MOST and same):
            self._drop(same[0])
        elif len(self._streams) >= STREAMS_MOST:
            return False
        self._move(client, self._streams)
        return True

    def _move(self, client: _Client, place: dict[_Client, None]) -> None:
        self._leave(client)
        place[client] = None
        client.place = place

    def _leave(self, client: _Client) -> None:
        if client.place is not None:
            client.place.pop(client, None)
            client.place = None

    def _drop(self, client: _Client) -> None:
        self._leave(client)
        client.end()

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────

    async def _write(
        self, writer: asyncio.StreamWriter, reply: HttpReply, *, only_head: bool = False
    ) -> None:
        writer.write(_head(reply, len(reply.body)) + (b"" if only_head else reply.body))
        async with asyncio.timeout(PATIENCE_S):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _stream(self, client: _Client, writer: asyncio.StreamWriter, reply: HttpReply) -> None:
        """Write what comes until the reader goes, or does not take it."""
        assert reply.stream is not None
        writer.transport.set_write_buffer_limits(high=_STREAM_BUFFER)
        with contextlib.suppress(OSError, AttributeError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _STREAM_BUFFER)
        writer.write(_head(reply, None) + reply.body)
        async for part in reply.stream():
            if client.place is None or writer.transport.is_closing():
                return
            writer.write(part)
            async with asyncio.timeout(_STREAM_PATIENCE_S):
                await writer.drain()


def _failed(status: int, text: str) -> HttpReply:
    return HttpReply(status, PLAIN, f"{text}\n".encode())


def _head(reply: HttpReply, length: int | None) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}", f"Content-Type: {reply.kind}"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    lines += [f"{name}: {value}" for name, value in (*_ALWAYS, *reply.headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
