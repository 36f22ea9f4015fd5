"""``finwait.relay.relay``: asyncio streams and sockets, joined and closed correctly."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from finwait.lab.topology import Lab, Netns
from finwait.relay import relay
from finwait.relay.machine import Reason
from tests.kernel import needs
from tests.kernel.relay_behaviour import MB, _send_and_close, blob, is_reset, read_all, reset

pytestmark = pytest.mark.kernel


@pytest.fixture
def netns() -> Iterator[Netns]:
    needs.root_and("ip", "ss")
    with Lab() as lab:
        one = lab.netns("one")
        one.sysctl("net.ipv4.tcp_fin_timeout", 2)
        yield one


Pair = tuple[socket.socket, socket.socket]


def tcp(netns: Netns) -> Pair:
    """The two ends of a connection."""

    def make() -> Pair:
        with socket.create_server(("127.0.0.1", 0)) as door:
            near = socket.create_connection(door.getsockname())
            far, _ = door.accept()
            return near, far

    return netns.call(make)


def play(
    netns: Netns,
    script: Callable[[socket.socket, socket.socket], object],
    *,
    streams: bool = False,
    **options: float,
) -> Reason:
    """Run a relay between two connections while a thread plays their outer ends; return how it ended."""
    (client, a), (b, server) = tcp(netns), tcp(netns)

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

        import threading

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


def test_nothing_is_left_open(netns: Netns) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    test_a_reset_becomes_a_reset_in_both_directions(netns)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
