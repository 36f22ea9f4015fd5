"""The HTTP server: which requests it takes, and that nobody can hold it up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.web import http
from finwait.web.http import PLAIN, HttpReply, HttpRequest, HttpServer, host_allowed, parsed

OWN = frozenset({"localhost", "node-7", "node-7.example.org"})


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:9944",
        "[::1]:9944",
        "10.1.2.3:80",
        "localhost",
        "NODE-7:9944",
        "node-7.example.org.",
    ],
)
def test_addresses_and_own_names_are_allowed(host: str) -> None:
    assert host_allowed(host, OWN)


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:9944", "localhost:x", "localhost:999999", "[::1", "[::1]x", "local host",
     "127.0.0.1.evil.example", "localhost@evil", "-localhost", "localhost\x00"],
)  # fmt: skip
def test_names_of_others_are_refused(host: str) -> None:
    assert not host_allowed(host, OWN)


def head(*lines: str) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def test_a_plain_request_is_parsed() -> None:
    request = parsed(head("GET /metrics?x=1&y=%C3%A9 HTTP/1.1", "Host: a", "Accept:  text/plain "))
    assert request == HttpRequest(
        "GET", "/metrics", (("x", "1"), ("y", "é")), (("host", "a"), ("accept", "text/plain"))
    )
    assert request.header("accept") == "text/plain"


@pytest.mark.parametrize(
    "lines",
    [
        ("GET /metrics",),
        ("GET  /metrics HTTP/1.1",),
        ("GET /metrics HTTP/2.0",),
        ("GET /metrics HTTP/1.1", "Host : a"),
        ("GET /metrics HTTP/1.1", " folded"),
        ("GET /metrics HTTP/1.1", "Host: a\nX: b"),
        ("GET /metrics HTTP/1.1", "Host: a\0"),
        ("GET /metrics HTTP/1.1", "Host: a", "Content-Length: 5"),
        ("GET /metrics HTTP/1.1", "Transfer-Encoding: chunked"),
        ("GET /m\xe9trics HTTP/1.1",),
        ("GET /met\rrics HTTP/1.1",),
        ("G\tET /metrics HTTP/1.1",),
        (" /metrics HTTP/1.1",),
        ("GET  HTTP/1.1",),
        ("\x16\x03\x01",),
        ("GET /?a=%FF HTTP/1.1",),
        ("GET /?" + "a=1&" * 100 + " HTTP/1.1",),
    ],
)
def test_odd_requests_are_refused(lines: tuple[str, ...]) -> None:
    assert parsed(head(*lines)) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_none(data: bytes) -> None:
    request = parsed(data + b"\r\n\r\n")
    assert request is None or request.method


async def hello(_: HttpRequest) -> HttpReply:
    return HttpReply(200, PLAIN, b"hello\n")


class Serving:
    """A server on loopback."""

    def __init__(self, answer: Callable[[HttpRequest], Awaitable[HttpReply]] = hello) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.server = HttpServer(answer, frozenset({"localhost"}))

    async def __aenter__(self) -> Self:
        self.running = await self.server.start(self.listener)
        self.writers: list[asyncio.StreamWriter] = []
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.running.close()
        await asyncio.sleep(0)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.listener.getsockname())
        self.writers.append(writer)
        return reader, writer

    async def get(self, text: bytes = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") -> bytes:
        reader, writer = await self.connect()
        writer.write(text)
        with contextlib.suppress(ConnectionError):
            return await reader.read()
        return b""


def test_every_answer_has_the_headers_that_keep_the_page_to_itself() -> None:
    async def scene() -> None:
        async with Serving() as serving:
            answer = await serving.get()
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            for header in (
                b"Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; ",
                b" img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'",
                b"X-Content-Type-Options: nosniff", b"Cache-Control: no-store", b"Referrer-Policy: no-referrer",
            ):  # fmt: skip
                assert header in answer
            assert answer.endswith(b"hello\n")
            only_head = await serving.get(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"Content-Length: 6" in only_head
            assert only_head.endswith(b"\r\n\r\n")

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"421"),
        (b"GET / HTTP/1.1\r\n\r\n", b"421"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", b"421"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx", b"400"),
    ],
)
def test_what_is_not_taken_is_answered(text: bytes, status: bytes) -> None:
    async def scene() -> None:
        async with Serving() as serving:
            assert (await serving.get(text)).split()[1] == status

    asyncio.run(scene())


def test_half_a_request_ends_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PATIENCE_S", 0.05)

    async def scene() -> None:
        async with Serving() as serving:
            assert await serving.get(b"GET / HTT") == b""
            assert await serving.get(b"x" * (http.HEAD_MOST + 100)) == b""

    asyncio.run(scene())


def test_the_longest_filter_that_the_api_allows_fits_into_a_request() -> None:
    from urllib.parse import quote

    async def scene() -> None:
        async with Serving() as serving:
            text = quote("\U0010ffff" * 2000)
            get = f"GET /?filter={text} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {'x' * 500}\r\n\r\n"
            assert b"200 OK" in await serving.get(get.encode())

    asyncio.run(scene())


def test_connections_that_ask_nothing_do_not_shut_others_out() -> None:
    async def scene() -> None:
        async with Serving() as serving:
            for _ in range(http.CONNECTIONS_MOST + 10):
                await serving.connect()
            assert b"200 OK" in await serving.get()

    asyncio.run(scene())


async def endless() -> AsyncIterator[bytes]:
    yield b"first\n"
    while True:
        await asyncio.sleep(0.001)
        yield b"x" * 10_000


async def streaming(request: HttpRequest) -> HttpReply:
    return HttpReply(200, PLAIN, stream=endless) if request.path == "/stream" else await hello(request)


STREAM = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_readers_that_never_read_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_STREAM_PATIENCE_S", 0.2)

    async def scene() -> None:
        async with Serving(streaming) as serving:
            for _ in range(http.STREAMS_PER_PEER + 5):
                _, writer = await serving.connect()
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                writer.write(STREAM)
            assert b"200 OK" in await serving.get()
            reader, writer = await serving.connect()  # another reader gets in, for the oldest makes way
            writer.write(STREAM)
            assert b"first" in await reader.readuntil(b"first\n")
            writer.transport.abort()
            async with asyncio.timeout(30):
                while serving.server._streams:  # what is not taken ends
                    await asyncio.sleep(0.01)

    asyncio.run(scene())


def test_a_request_that_fails_is_answered_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    async def fails(_: HttpRequest) -> HttpReply:
        raise RuntimeError("a\nb")

    async def scene() -> None:
        async with Serving(fails) as serving:
            assert b"HTTP/1.1 500 " in await serving.get()
            assert b"HTTP/1.1 500 " in await serving.get()

    asyncio.run(scene())
    assert capsys.readouterr().err == "finwait agent: a request failed: RuntimeError('a\\nb')\n"
