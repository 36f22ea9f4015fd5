"""One worker in this process, over loopback: what only a look inside can provoke."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from finwait.relay import pipes
from finwait.relay.balance import Backend
from finwait.relay.config.model import BackendConfig, Service
from finwait.relay.machine import Command
from finwait.relay.route import Route
from finwait.relay.worker import Worker


class Rig:
    """A worker, a listener before it and a server behind it; the test turns the loop."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.behind = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = self.behind.getsockname()
        service = Service(listen=("127.0.0.1:0",), backend=(BackendConfig(address="127.0.0.1:1"),))
        route = Route(service, 1)
        route.balancer.update([Backend("b", socket.AF_INET, address)])
        self.worker = Worker()
        self.worker.routes["relay"] = route
        door = socket.create_server(("127.0.0.1", 0))
        self.address = door.getsockname()
        self.worker.acceptor.listen("door", door, route)
        stack.callback(self.worker.close)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end
            self.worker.turn()

    def pair(self) -> tuple[socket.socket, socket.socket]:
        client = self.stack.enter_context(socket.create_connection(self.address))
        self.until(lambda: select.select([self.behind], [], [], 0)[0])
        far, _ = self.behind.accept()
        self.stack.enter_context(far)
        return client, far


@pytest.fixture
def rig() -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        yield Rig(stack)


def readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def test_a_mistake_of_ours_ends_one_connection_and_no_other(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, whole = rig.pair(), rig.pair()
    rig.until(lambda: len(list(rig.worker.driver.conns())) == 2)
    port = broken[0].getsockname()[1]
    conn = next(conn for conn in rig.worker.driver.conns() if conn.peer[1] == port)
    conn.client.other = None  # type: ignore[assignment]
    broken[0].sendall(b"x")
    rig.until(lambda: readable(broken[0]))
    with pytest.raises(ConnectionResetError):
        broken[0].recv(1)
    assert "a bug in finwait ends a connection" in capsys.readouterr().err
    whole[0].sendall(b"fine")
    rig.until(lambda: readable(whole[1]))
    assert whole[1].recv(4) == b"fine"
    assert len(list(rig.worker.driver.conns())) == 1


def test_a_mistake_at_the_very_end_leaves_no_socket(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    client, far = rig.pair()
    rig.until(lambda: list(rig.worker.driver.conns()))

    def fail(_: object) -> None:
        raise RuntimeError("as if")

    do = list(rig.worker.driver._do)
    do[Command.CLOSE] = fail
    rig.worker.driver._do = tuple(do)
    client.shutdown(socket.SHUT_WR)
    far.shutdown(socket.SHUT_WR)
    rig.until(lambda: not list(rig.worker.driver.conns()))
    assert rig.worker.driver.count == 0
    assert "RuntimeError: as if" in capsys.readouterr().err


def test_pipes_that_nobody_needs_are_closed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "PIPE_REST", 1e9)
    client, far = rig.pair()
    data = bytes(1 << 20)
    client.setblocking(False)
    sent = got = 0
    while got < len(data):
        with contextlib.suppress(BlockingIOError):
            sent += client.send(data[sent:])
        rig.worker.turn()
        if readable(far):
            got += len(far.recv(1 << 20))
    assert rig.worker.stats()["pipes"] >= 1
    monkeypatch.setattr(pipes, "PIPE_REST", 0.1)
    rig.until(lambda: rig.worker.stats()["pipes"] == 0)


def test_a_full_worker_may_lose_a_listener_in_the_turn_in_which_somebody_waits_there(rig: Rig) -> None:
    rig.pair()
    rig.worker.acceptor.max_connections = 1
    rig.stack.enter_context(socket.create_connection(rig.address))
    order, told = socket.socketpair()
    with order, told:
        rig.worker.loop.watch(told.fileno(), lambda _mask: rig.worker.acceptor.unlisten("door"))
        order.send(b"reload")
        rig.worker.turn()
        assert rig.worker.acceptor.listeners == {}
        rig.worker.loop.unwatch(told.fileno())
    assert rig.worker.driver.count == 1


def test_names_and_usability_are_told_of_bare_descriptors() -> None:
    from finwait.relay import sockets

    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with (
            socket.create_server((host, 0), family=family) as door,
            socket.create_connection(door.getsockname()[:2]) as near,
        ):
            far, _ = door.accept()
            assert sockets.names(near.fileno()) == (near.getsockname()[:2], near.getpeername()[:2])
            assert sockets.is_usable(near.fileno())
            far.sendall(b"x")
            select.select([near], [], [])
            assert sockets.is_usable(near.fileno()), "bytes of a server that speaks first are no end"
            near.recv(1)
            far.close()
            select.select([near], [], [])
            assert not sockets.is_usable(near.fileno())
    a, b = socket.socketpair()
    with a, b:
        assert sockets.names(a.fileno()) == ("", "")
    with socket.socket(socket.AF_UNIX) as named:
        named.bind("\0finwait-test-" + str(id(named)))
        assert sockets.names(named.fileno())[0] == named.getsockname()
    assert sockets.names(-1) == ("", "")
