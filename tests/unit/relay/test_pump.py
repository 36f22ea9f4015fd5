"""The pump alone, on socket pairs: what it moves, and why it says that it cannot go on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from finwait.relay import pump
from finwait.relay.balance import Backend
from finwait.relay.config.model import BackendConfig, Service
from finwait.relay.connection import Conn, Leg
from finwait.relay.loop import MASK, MUTED
from finwait.relay.pump import CHUNK, Pump
from finwait.relay.route import Route


class Rig:
    """A connection whose two sockets are ends of socket pairs; the test holds the other ends."""

    def __init__(self, stack: contextlib.ExitStack, pair: Callable[[], tuple[socket.socket, socket.socket]]):
        (self.near, client), (server, self.far) = pair(), pair()
        self.watched: list[tuple[int, int]] = []
        for sock in (self.near, client, server, self.far):
            stack.enter_context(sock)
            sock.setblocking(False)
        self.server_sock = server
        route = Route(Service(listen=("*:1",), backend=(BackendConfig(address="127.0.0.1:1"),)), 1)
        route.balancer.update([Backend("b", socket.AF_INET, ("127.0.0.1", 1))])
        self.conn = Conn(route, ("192.0.2.1", 1), 1, 0.0, is_tcp=True)
        self.client = self.conn.client = Leg(client.fileno(), self.conn, True)
        self.server = self.conn.server = Leg(server.fileno(), self.conn, False)
        self.client.other, self.server.other = self.server, self.client
        self.pump = Pump(lambda fd, mask: self.watched.append((fd, mask)), 0.0)
        stack.callback(self.pump.pipes.close)

    def all_of(self, sock: socket.socket, least: int) -> bytes:
        got = b""
        while len(got) < least:
            assert select.select([sock], [], [], 10)[0]
            got += sock.recv(1 << 20)
        return got

    def fill(self) -> int:
        """Send from the client's end until nothing more is taken."""
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += self.near.send(b"x" * 65536)
        return sent


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        a = socket.create_connection(door.getsockname())
        return a, door.accept()[0]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        yield Rig(stack, tcp)


def test_a_few_bytes_are_read_and_written_without_a_pipe(rig: Rig) -> None:
    rig.near.sendall(b"hello")
    assert select.select([rig.client.fd], [], [], 10)[0]
    assert rig.pump.move(rig.client, 7.0) is None
    assert rig.far.recv(9) == b"hello"
    assert (rig.client.total, rig.conn.last_client, rig.conn.last_server) == (5, 7.0, 0.0)
    assert rig.pump.pipes.made == 0


def test_an_end_of_file_is_told_once_everything_before_it_went(rig: Rig) -> None:
    rig.near.sendall(b"last")
    rig.near.shutdown(socket.SHUT_WR)
    assert select.select([rig.client.fd], [], [], 10)[0]
    rig.client.rdhup = True
    stop = rig.pump.move(rig.client, 1.0)
    assert stop == (rig.client, 0)
    assert rig.client.eof
    assert rig.far.recv(9) == b"last"


def test_a_reader_that_reads_nothing_stops_its_writer_and_everything_arrives_later(rig: Rig) -> None:
    sent = 0
    while not rig.client.waiting:
        sent += rig.fill()
        assert rig.pump.move(rig.client, 1.0) is None
        rig.pump.take_waiting()
    assert rig.client.muted
    assert rig.watched == [(rig.client.fd, MUTED)]
    assert rig.pump.pipes.made == 1
    got = 0
    while got < sent:
        got += len(rig.all_of(rig.far, 1))
        assert rig.pump.move(rig.client, 2.0) is None
        rig.pump.take_waiting()
    assert got == sent == rig.client.total
    assert not rig.client.waiting
    assert not rig.client.muted
    assert rig.watched[-1] == (rig.client.fd, MASK)
    assert rig.client.pipe is None


def test_a_leg_is_heard_again_before_the_other_direction_waits_for_it(rig: Rig) -> None:
    rig.client.muted = True
    while not rig.server.waiting:
        with contextlib.suppress(BlockingIOError):
            rig.far.send(b"y" * 65536)
        rig.pump.move(rig.server, 1.0)
        rig.pump.take_waiting()
    assert not rig.client.muted, "EPOLLOUT is not told of a leg that is muted"
    assert (rig.client.fd, MASK) in rig.watched


@pytest.mark.parametrize("size", [5, CHUNK * 4])
def test_a_sink_that_is_gone_is_the_one_that_failed(rig: Rig, size: int) -> None:
    rig.server_sock.shutdown(socket.SHUT_WR)
    rig.near.sendall(b"z" * size)
    assert select.select([rig.client.fd], [], [], 10)[0]
    assert rig.pump.move(rig.client, 1.0) == (rig.server, errno.EPIPE)
    rig.pump.release(rig.client)


def test_a_pipe_with_bytes_of_a_dead_connection_is_closed(rig: Rig) -> None:
    while not rig.client.in_pipe:
        rig.fill()
        rig.pump.move(rig.client, 1.0)
        rig.pump.take_waiting()
    pipe = rig.client.pipe
    assert pipe is not None
    rig.pump.release(rig.client)
    assert (rig.client.pipe, rig.client.in_pipe, rig.pump.pipes.made) == (None, 0, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe[0])


def readable_bytes(fd: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    return int(count)


def test_a_long_stream_gives_the_others_their_turn(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "_BULK_TURN", CHUNK * 2)
    rig.near.sendall(bytes(CHUNK * 3))
    end = time.monotonic() + 10
    while readable_bytes(rig.client.fd) < CHUNK * 3:
        assert time.monotonic() < end
    assert rig.pump.move(rig.client, 1.0) is None
    assert rig.client.total == CHUNK * 3
    assert rig.pump.take_waiting() == [rig.client]
    assert rig.pump.take_waiting() == []
    rig.pump.release(rig.client)
