"""``finwait.relay.relay``: asyncio streams and sockets, joined and closed correctly."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from finwait.lab.topology import Lab, Netns
from finwait.relay import relay, sockets
from finwait.relay.machine import Reason
from tests.kernel import needs
from tests.kernel.relay_behaviour import MB, _send_and_close, blob, is_reset, read_all, reset, stays

pytestmark = pytest.mark.kernel


@pytest.fixture
def netns() -> Iterator[Netns]:
    needs.root_and("ip", "ss")
    with Lab() as lab:
        one = lab.netns("one")
        one.sysctl("net.ipv4.tcp_fin_timeout", 2)
        yield one


Pair = tuple[socket.socket, socket.socket]


def tcp(netns: Netns, *, receive: int = 0, send: int = 0) -> Pair:
    """The two ends of a connection: the one that receives, and the one that sends, with buffers of these sizes."""

    def make() -> Pair:
        with socket.create_server(("127.0.0.1", 0)) as door:
            near = socket.socket()
            if receive:  # before it connects: a window that was announced is not taken back
                near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
            near.connect(door.getsockname())
            far, _ = door.accept()
            if send:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send)
            return near, far

    return netns.call(make)


def play(
    netns: Netns,
    script: Callable[[socket.socket, socket.socket], object],
    *,
    streams: bool = False,
    buffers: dict[str, int] | None = None,
    **options: float,
) -> Reason:
    """Run a relay between two connections while a thread plays their outer ends; return how it ended."""
    (client, a), (b, server) = tcp(netns, **(buffers or {})), tcp(netns)

    async def main() -> Reason:
        ends: tuple[object, object] = (a, b)
        if streams:
            ends = (await asyncio.open_connection(sock=a), await asyncio.open_connection(sock=b))
        played = asyncio.get_running_loop().run_in_executor(None, script, client, server)
        work: Awaitable[Reason] = relay(*ends, keepalive=(1, 1, 2), **options)  # type: ignore[arg-type]
        reason = await asyncio.wait_for(work, 30)
        await played
        return reason

    try:
        return asyncio.run(main())
    finally:
        for sock in (client, server, a, b):
            sock.close()
        assert a.fileno() == -1
        assert b.fileno() == -1


@pytest.mark.parametrize("streams", [False, True])
def test_a_half_closed_client_gets_a_whole_answer(netns: Netns, streams: bool) -> None:
    data = blob(4 * MB)

    def script(client: socket.socket, server: socket.socket) -> None:
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        assert read_all(server) == (b"request", "FIN")
        server.settimeout(10)

        sending = threading.Thread(target=_send_and_close, args=(server, data))
        sending.start()
        assert read_all(client) == (data, "FIN")
        sending.join()
        client.close()

    assert play(netns, script, streams=streams) is Reason.CLIENT_FIN_FIRST


def test_a_reset_becomes_a_reset_in_both_directions(netns: Netns) -> None:
    def from_server(client: socket.socket, server: socket.socket) -> None:
        reset(server)
        assert read_all(client) == (b"", "RST")

    def from_client(client: socket.socket, server: socket.socket) -> None:
        reset(client)
        assert read_all(server) == (b"", "RST")

    assert play(netns, from_server) is Reason.SERVER_RESET
    assert play(netns, from_client) is Reason.CLIENT_RESET


def test_a_reset_after_the_fin_is_noticed_although_asyncio_looks_away(netns: Netns) -> None:
    def script(client: socket.socket, server: socket.socket) -> None:
        client.shutdown(socket.SHUT_WR)
        assert read_all(server) == (b"", "FIN")
        reset(client)
        assert is_reset(server)

    assert play(netns, script, half_close=0) is Reason.CLIENT_GONE


def test_a_client_that_closed_fully_is_found_by_a_probe(netns: Netns) -> None:
    def script(client: socket.socket, server: socket.socket) -> None:
        client.close()
        assert read_all(server) == (b"", "FIN")
        assert is_reset(server)

    assert play(netns, script, half_close=0) is Reason.CLIENT_GONE


def test_a_half_close_and_silence_are_capped(netns: Netns) -> None:
    def half(client: socket.socket, server: socket.socket) -> None:
        client.shutdown(socket.SHUT_WR)
        assert is_reset(client)
        assert is_reset(server)

    def silent(client: socket.socket, server: socket.socket) -> None:
        assert is_reset(client)
        assert is_reset(server)

    assert play(netns, half, half_close=0.5) is Reason.HALF_CLOSE
    assert play(netns, silent, idle=0.5) is Reason.IDLE
    assert play(netns, silent, lifetime=0.5) is Reason.LIFETIME


def test_cancelling_cuts_both_sides_visibly(netns: Netns) -> None:
    (client, a), (b, server) = tcp(netns), tcp(netns)

    async def main() -> None:
        task = asyncio.create_task(relay(a, b))
        await asyncio.sleep(0)
        server.sendall(b"half an")
        client.setblocking(False)
        while True:
            with contextlib.suppress(BlockingIOError):
                assert client.recv(7) == b"half an"
                break
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    client.setblocking(True)
    assert read_all(client) == (b"", "RST")
    assert read_all(server) == (b"", "RST")
    for sock in (client, server, a, b):
        sock.close()


NARROW = {"receive": 4096, "send": 4608}
"""Little fits between the relay and such a client."""

TAIL = blob(60_000)
"""More than a narrow client takes, less than asyncio's limit on what waits."""


@pytest.mark.parametrize(
    ("size", "half", "options", "reason"),
    [
        (60_000, True, {"half_close": 1}, Reason.HALF_CLOSE),
        (60_000, True, {"half_close": 0, "lifetime": 1}, Reason.LIFETIME),
        (60_000, False, {"half_close": 1}, Reason.HALF_CLOSE),
        (300_000, True, {"half_close": 1}, Reason.HALF_CLOSE),
        (300_000, False, {"half_close": 1}, Reason.HALF_CLOSE),
    ],
)
def test_the_limits_hold_for_what_a_reader_leaves_unread(
    netns: Netns, size: int, half: bool, options: dict[str, float], reason: Reason
) -> None:
    (client, a), (b, server) = tcp(netns, **NARROW), tcp(netns)
    if half:
        client.shutdown(socket.SHUT_WR)
    sending = threading.Thread(target=_send_and_close, args=(server, blob(size)))
    sending.start()

    async def main() -> Reason:
        return await asyncio.wait_for(relay(a, b, user_timeout=0, **options), 10)  # type: ignore[arg-type]

    began = time.monotonic()
    assert asyncio.run(main()) is reason
    assert time.monotonic() - began < 4
    assert a.fileno() == b.fileno() == -1
    data, end = read_all(client)
    assert end == "RST"
    assert blob(size).startswith(data)
    sending.join()
    client.close()


def test_what_a_slow_reader_takes_of_the_rest_is_no_silence(netns: Netns) -> None:
    def script(client: socket.socket, server: socket.socket) -> None:
        client.shutdown(socket.SHUT_WR)
        server.sendall(TAIL)
        server.close()
        data = b""
        while part := client.recv(3000):
            data += part
            time.sleep(0.2)
        assert data == TAIL

    assert play(netns, script, buffers=NARROW, half_close=1.5) is Reason.CLIENT_FIN_FIRST


def test_cancelling_also_cuts_while_the_rest_waits(netns: Netns) -> None:
    def play_it(main: Callable[[Coroutine[Any, Any, Reason]], Coroutine[Any, Any, None]]) -> None:
        (client, a), (b, server) = tcp(netns, **NARROW), tcp(netns)
        client.shutdown(socket.SHUT_WR)
        server.sendall(TAIL)
        server.close()
        asyncio.run(main(relay(a, b, user_timeout=0, half_close=20)))
        assert a.fileno() == b.fileno() == -1
        data, end = read_all(client)
        assert end == "RST"
        assert len(data) < len(TAIL)
        client.close()

    async def cancelled(work: Coroutine[Any, Any, Reason]) -> None:
        task = asyncio.create_task(work)
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled()

    async def timed_out(work: Coroutine[Any, Any, Reason]) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await work

    play_it(cancelled)
    play_it(timed_out)


class Unhurried(asyncio.StreamWriter):
    """One that has something to say yet when it is closed, and is not heard, as TLS may be."""

    def close(self) -> None:
        """Begin to say it."""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"half_close": 0.5}, Reason.HALF_CLOSE),
        ({"half_close": 0, "lifetime": 0.5}, Reason.LIFETIME),
        ({}, None),
    ],
)
def test_the_limits_and_a_cancel_hold_for_a_transport_that_does_not_close(
    netns: Netns, options: dict[str, float], reason: Reason | None
) -> None:
    (client, a), (b, server) = tcp(netns), tcp(netns)
    client.shutdown(socket.SHUT_WR)
    server.shutdown(socket.SHUT_WR)

    async def main() -> Reason:
        reader, writer = await asyncio.open_connection(sock=a)
        transport = writer.transport
        unhurried = Unhurried(transport, transport.get_protocol(), reader, asyncio.get_running_loop())
        return await asyncio.wait_for(relay((reader, unhurried), b, **options), 5 if reason else 0.5)  # type: ignore[arg-type]

    if reason:
        assert asyncio.run(main()) is reason
    else:
        with pytest.raises(TimeoutError):
            asyncio.run(main())
    assert a.fileno() == b.fileno() == -1
    client.close()
    server.close()


@pytest.mark.parametrize("streams", [False, True])
def test_a_reader_that_pauses_longer_than_the_user_timeout_gets_all(netns: Netns, streams: bool) -> None:
    data = blob(4 * MB)

    def script(client: socket.socket, server: socket.socket) -> None:
        sending = threading.Thread(target=_send_and_close, args=(server, data))
        sending.start()
        assert stays(lambda: not is_reset(client, 0), 5)
        assert read_all(client) == (data, "FIN")
        sending.join()
        client.close()

    buffers = {"receive": 65536, "send": 65536}
    reason = play(netns, script, streams=streams, buffers=buffers, user_timeout=1.5)
    assert reason is Reason.SERVER_FIN_FIRST


def test_a_paused_reader_gets_what_the_kernel_held_when_both_had_ended(netns: Netns) -> None:
    (client, a), (b, server) = tcp(netns, receive=4096), tcp(netns)
    client.shutdown(socket.SHUT_WR)
    server.sendall(TAIL)
    server.close()
    assert asyncio.run(relay(a, b, user_timeout=1)) is Reason.CLIENT_FIN_FIRST
    assert stays(lambda: not is_reset(client, 0), 4)
    assert read_all(client) == (TAIL, "FIN")
    client.close()


def test_a_reader_that_vanishes_behind_a_shut_window_is_found(netns: Netns) -> None:
    needs.root_and("nft")
    (client, a), (b, server) = tcp(netns, **NARROW), tcp(netns)
    port = client.getsockname()[1]
    rules = f"tcp dport {port} drop; tcp sport {port} drop;"
    server.sendall(TAIL)

    async def main() -> Reason:
        task = asyncio.create_task(relay(a, b, user_timeout=1, half_close=0))
        await asyncio.sleep(0)
        while a.getsockopt(socket.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT) != 1000:
            await asyncio.sleep(0)
        while a.getsockopt(socket.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT):
            await asyncio.sleep(0.01)
        netns.nft(f"table inet gone {{ chain out {{ type filter hook output priority 0; {rules} }}; }}")
        return await asyncio.wait_for(task, 30)

    assert asyncio.run(main()) is Reason.CLIENT_VANISHED
    client.close()
    server.close()


KINDS = [(False, False), (True, True), (False, True), (True, False)]


async def opened(sock: socket.socket, stream: bool) -> Any:
    return await asyncio.open_connection(sock=sock) if stream else sock


@pytest.mark.parametrize("turns", range(7))
@pytest.mark.parametrize("kinds", KINDS)
def test_cancelling_early_resets_and_closes_both(netns: Netns, turns: int, kinds: tuple[bool, bool]) -> None:
    (client, a), (b, server) = tcp(netns), tcp(netns)

    async def main() -> None:
        ends = [await opened(sock, stream) for sock, stream in zip((a, b), kinds, strict=True)]
        task = asyncio.create_task(relay(ends[0], ends[1]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert a.fileno() == b.fileno() == -1

    asyncio.run(main())
    assert read_all(client) == (b"", "RST")
    assert read_all(server) == (b"", "RST")
    client.close()
    server.close()


def test_a_limit_of_no_time_resets_and_closes_both(netns: Netns) -> None:
    (client, a), (b, server) = tcp(netns), tcp(netns)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(relay(a, b), 0)
        assert a.fileno() == b.fileno() == -1

    asyncio.run(main())
    assert read_all(client) == (b"", "RST")
    assert read_all(server) == (b"", "RST")
    client.close()
    server.close()


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("server_is_closed", [False, True])
def test_an_end_that_is_closed_already_is_an_end(
    netns: Netns, server_is_closed: bool, kinds: tuple[bool, bool]
) -> None:
    (client, a), (b, server) = tcp(netns), tcp(netns)

    async def main() -> Reason:
        ends = [await opened(sock, stream) for sock, stream in zip((a, b), kinds, strict=True)]
        dead = ends[server_is_closed]
        if isinstance(dead, tuple):
            dead = dead[1]
        dead.close()
        return await asyncio.wait_for(relay(ends[0], ends[1]), 5)

    reason = asyncio.run(main())
    assert reason is (Reason.SERVER_RESET if server_is_closed else Reason.CLIENT_RESET)
    assert a.fileno() == b.fileno() == -1
    assert read_all(client if server_is_closed else server) == (b"", "RST")
    client.close()
    server.close()


def test_two_closed_ends_and_two_reset_ends_are_ends(netns: Netns) -> None:
    (client, a), (b, server) = tcp(netns), tcp(netns)
    for sock in (client, a, b, server):
        sock.close()
    assert asyncio.run(relay(a, b)) is Reason.CLIENT_RESET
    (client, a), (b, server) = tcp(netns), tcp(netns)
    reset(client)
    reset(server)
    assert asyncio.run(relay(a, b)) in (Reason.CLIENT_RESET, Reason.SERVER_RESET)
    assert a.fileno() == b.fileno() == -1


@pytest.mark.parametrize("turns", [1, 3, 5])
@pytest.mark.parametrize("server_closes", [False, True])
def test_a_stream_that_its_program_closes_is_no_fin(netns: Netns, server_closes: bool, turns: int) -> None:
    (client, a), (b, server) = tcp(netns), tcp(netns)

    async def main() -> Reason:
        ends = [await opened(sock, True) for sock in (a, b)]
        task = asyncio.create_task(relay(ends[0], ends[1]))
        for _ in range(turns):
            await asyncio.sleep(0)
        ends[server_closes][1].close()
        return await asyncio.wait_for(task, 5)

    assert asyncio.run(main()) is (Reason.SERVER_RESET if server_closes else Reason.CLIENT_RESET)
    assert read_all(client if server_closes else server) == (b"", "RST")
    client.close()
    server.close()


def test_a_mistake_of_the_program_is_raised_and_cuts_both(netns: Netns) -> None:
    (client, a), (b, server) = tcp(netns), tcp(netns)

    async def fin_sent_already() -> None:
        reader, writer = await asyncio.open_connection(sock=b)
        writer.write_eof()
        client.sendall(b"to whom?")
        with pytest.raises(RuntimeError):  # asyncio's, in its own words
            await asyncio.wait_for(relay(a, (reader, writer)), 5)
        assert a.fileno() == b.fileno() == -1

    asyncio.run(fin_sent_already())
    assert read_all(client) == (b"", "RST")
    for sock in (client, server):
        sock.close()

    (client, a), datagrams = tcp(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    async def no_stream() -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - asyncio's, in its own words
            await relay(a, datagrams)
        assert a.fileno() == datagrams.fileno() == -1

    asyncio.run(no_stream())
    assert read_all(client) == (b"", "RST")
    client.close()


def test_a_relay_without_a_descriptor_to_spare_cuts_both(netns: Netns) -> None:
    (client, a), (b, server) = tcp(netns), tcp(netns)

    async def main() -> Reason:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            return await relay(a, b)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert asyncio.run(main()) is Reason.EXHAUSTED
    assert a.fileno() == b.fileno() == -1
    assert read_all(client) == (b"", "RST")
    assert read_all(server) == (b"", "RST")
    client.close()
    server.close()


def test_nothing_is_left_open(netns: Netns) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    test_a_reset_becomes_a_reset_in_both_directions(netns)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
