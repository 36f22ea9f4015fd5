"""TLS: who shakes hands slowly or not at all holds nobody up, and a new certificate drops no stream."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from finwait.agent.certificates import tls_context
from finwait.web import http
from tests import certificates
from tests.unit.web.test_http import STREAM, Serving, hello, streaming

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificates.made(tmp_path_factory.mktemp("tls"), "first")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificates.made(tmp_path_factory.mktemp("tls"), "second")


def context(pair: tuple[Path, Path]) -> ssl.SSLContext:
    return tls_context(pair[0].read_bytes(), pair[1].read_bytes())


class Secure(Serving):
    """A server on loopback, with TLS."""

    def __init__(self, pair: tuple[Path, Path], answer: Any = hello) -> None:
        super().__init__(answer)
        self.server.context = context(pair)
        self.trust = ssl.create_default_context(cafile=str(pair[0]))

    async def secure(
        self, trust: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(
            *self.listener.getsockname(), ssl=trust or self.trust, server_hostname="localhost"
        )
        self.writers.append(writer)
        return reader, writer

    async def ask(self, trust: ssl.SSLContext | None = None) -> bytes:
        reader, writer = await self.secure(trust)
        writer.write(GET)
        return await reader.read()


def test_an_answer_comes_over_tls_1_2_and_1_3_and_nothing_older(pair: tuple[Path, Path]) -> None:
    async def scene() -> None:
        async with Secure(pair) as serving:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                trust = ssl.create_default_context(cafile=str(pair[0]))
                trust.minimum_version = trust.maximum_version = version
                assert (await serving.ask(trust)).endswith(b"hello\n")

    asyncio.run(scene())
    assert context(pair).minimum_version == ssl.TLSVersion.TLSv1_2


def test_plain_http_is_answered_by_what_to_write_instead(pair: tuple[Path, Path]) -> None:
    async def scene() -> None:
        async with Secure(pair) as serving:
            answer = await serving.get()
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.endswith(b"this port speaks HTTPS: write https:// before the address\n")
            assert (await serving.ask()).endswith(b"hello\n")

    asyncio.run(scene())


def test_handshakes_that_stop_are_ended_and_hold_nobody_up(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with Secure(pair) as serving:
            for k in range(http.CONNECTIONS_MOST + 20):  # more than there is room for: the oldest makes way
                _, writer = await serving.connect()
                writer.write(b"\x16\x03\x01" if k % 2 else b"")
            assert (await serving.ask()).endswith(b"hello\n")
            assert len(serving.server._idle) <= http.PER_PEER_MOST
            monkeypatch.setattr(http, "PATIENCE_S", 0.05)
            reader, writer = await serving.connect()
            writer.write(b"\x16\x03\x01\x02\x00\x01")
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 30) == b""

    asyncio.run(scene())


@pytest.mark.parametrize("words", [b"\x16" * 600, b"\x16\x03\x01\x00\x05hello", b"\0" * 9, b"\xff"])
def test_what_is_no_handshake_is_closed_and_the_server_goes_on(pair: tuple[Path, Path], words: bytes) -> None:
    async def scene() -> None:
        async with Secure(pair) as serving:
            reader, writer = await serving.connect()
            writer.write(words)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 30)
            assert (await serving.ask()).endswith(b"hello\n")
            async with asyncio.timeout(30):
                while serving.server._idle or serving.server._busy:
                    await asyncio.sleep(0.01)

    asyncio.run(scene())


def test_a_new_certificate_holds_for_new_connections_and_streams_go_on(
    pair: tuple[Path, Path], other: tuple[Path, Path]
) -> None:
    async def scene() -> None:
        async with Secure(pair, streaming) as serving:
            reader, writer = await serving.secure()
            writer.write(STREAM)
            await reader.readuntil(b"first\n")
            serving.server.context = context(other)
            with pytest.raises(ssl.SSLCertVerificationError):
                await serving.ask()
            new = ssl.create_default_context(cafile=str(other[0]))
            assert (await serving.ask(new)).endswith(b"hello\n")
            assert await reader.readexactly(1_000_000) == b"x" * 1_000_000

    asyncio.run(scene())


def test_a_key_of_another_certificate_or_one_that_needs_a_password_is_refused(
    pair: tuple[Path, Path], other: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ssl.SSLError):
        context((pair[0], other[1]))
    with pytest.raises(ssl.SSLError):
        tls_context(b"no certificate", pair[1].read_bytes())
    locked = certificates.made(tmp_path, "locked", "-passout", "pass:secret")
    with pytest.raises(ValueError, match="encrypted"):
        context(locked)


def test_curl_trusts_it_and_openssl_gets_nothing_older(pair: tuple[Path, Path]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("`curl` is not installed (apt: curl)")

    async def run(*words: str) -> tuple[int, bytes]:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output

    async def scene() -> None:
        async with Secure(pair) as serving:
            port = serving.listener.getsockname()[1]
            url = f"https://localhost:{port}/"
            assert await run("curl", "-sS", "--cacert", str(pair[0]), url) == (0, b"hello\n")
            status, output = await run("curl", "-sS", f"http://localhost:{port}/")
            assert (status, output.startswith(b"this port speaks HTTPS")) == (0, True)
            status, output = await run("openssl", "s_client", "-connect", f"localhost:{port}", "-tls1_1")
            assert b"Cipher is (NONE)" in output or status != 0

    asyncio.run(scene())
