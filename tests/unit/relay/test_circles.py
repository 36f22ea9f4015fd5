"""Services that relay to themselves, in every way in which an address can say so."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from finwait.relay import circles
from finwait.relay.config.model import Config, ConfigError
from finwait.relay.config.parsing import parse
from finwait.relay.connection import Conn, Leg
from finwait.relay.resolve import fixed
from finwait.relay.route import Route

LOCAL = {"127.0.0.1", "127.0.0.9", "::1", "10.0.0.7", "2001:db8::7"}


def config(*services: tuple[str, list[str], list[str]], **changed: Any) -> Config:
    return parse(
        {
            "service": [
                {"name": name, "listen": listen, "backend": [{"address": one} for one in to], **changed}
                for name, listen, to in services
            ]
        }
    )


def said(of: Config) -> str:
    rows = {s.name: [fixed(b.address, 1, 0) for b in s.backend] for s in of.service}
    found = circles.Circles(circles.configured(of), LOCAL.__contains__).circle(rows)
    return found[2] if found else ""


@pytest.mark.parametrize(
    ("listen", "to"),
    [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("127.0.0.1:70-90", "127.0.0.1:80"),
        ("0.0.0.0:80", "127.0.0.9:80"),
        ("0.0.0.0:80", "10.0.0.7:80"),
        ("0.0.0.0:80", "0.0.0.0:80"),
        ("127.0.0.1:80", "0.0.0.0:80"),
        ("*:80", "10.0.0.7:80"),
        ("*:80", "[2001:db8::7]:80"),
        ("*:80", "[::ffff:10.0.0.7]:80"),
        ("0.0.0.0:80", "[::ffff:10.0.0.7]:80"),
        ("[::]:80", "[::1]:80"),
        ("[::]:80", "[::]:80"),
        ("[::1]:80", "[::]:80"),
        ("[::1]:80", "[0:0:0:0:0:0:0:1]:80"),
        ("[::ffff:10.0.0.7]:80", "10.0.0.7:80"),
        ("unix:/run/a.sock", "unix:/run/../run/a.sock"),
    ],
)
def test_a_backend_that_is_the_service_itself_is_seen(listen: str, to: str) -> None:
    assert said(config(("a", [listen], [to]))).startswith("service `a` would relay to itself: backend ")


@pytest.mark.parametrize(
    ("listen", "to"),
    [
        ("127.0.0.1:80", "127.0.0.1:81"),
        ("127.0.0.1:80", "127.0.0.9:80"),
        ("0.0.0.0:80", "192.0.2.1:80"),
        ("0.0.0.0:80", "[::1]:80"),
        ("[::]:80", "127.0.0.1:80"),
        ("unix:/run/a.sock", "unix:/run/b.sock"),
        ("127.0.0.1:0", "127.0.0.1:80"),
    ],
)
def test_a_backend_that_is_somebody_else_is_not(listen: str, to: str) -> None:
    assert said(config(("a", [listen], [to]))) == ""


def test_a_listener_of_another_interface_is_not_reached_from_here() -> None:
    assert said(config(("a", ["*:80"], ["127.0.0.1:80"]), client={"device": "eth0"})) == ""
    assert said(config(("a", ["*:80"], ["127.0.0.1:80"]), client={"device": "lo"})) != ""


def test_a_chain_is_no_circle_until_it_closes() -> None:
    chain = [("a", ["*:1"], ["127.0.0.1:2"]), ("b", ["*:2"], ["127.0.0.1:3"])]
    assert said(config(*chain, ("c", ["*:3"], ["192.0.2.1:1"]))) == ""
    assert said(config(*chain, ("c", ["*:3"], ["192.0.2.1:1", "127.0.0.1:1"]))).startswith(
        "services `a` → `b` → `c` → `a` would relay in a circle: backend 127.0.0.1:2 is the listener *:2"
    )


def test_a_backend_of_weight_zero_takes_nothing() -> None:
    of = config(("a", ["*:1"], ["127.0.0.1:1"]))
    rows = {"a": [fixed("127.0.0.1:1", 0, 0)]}
    assert circles.Circles(circles.configured(of), LOCAL.__contains__).circle(rows) is None


def test_a_file_and_a_name_that_lead_back_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "backends"
    file.write_text("192.0.2.1:80\n127.0.0.1:80\n")
    with pytest.raises(ConfigError, match="relay to itself: backend 127"):
        circles.refuse(config(("a", ["*:80"], [f"file:{file}"])))
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", ("127.0.0.1", 80))]
    )
    named = config(("a", ["*:80"], ["dns:me.example:80"]))
    circles.refuse(named)
    with pytest.raises(ConfigError, match="relay to itself"):
        circles.refuse(named, names=True)


def test_loopback_is_local_and_documentation_is_not() -> None:
    assert circles.is_local("127.0.0.9")
    assert circles.is_local("::1")
    assert not circles.is_local("192.0.2.1")


class Ends:
    """TCP connections on loopback, and connections of a worker made of their ends."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.route = Route(config(("a", ["*:80"], ["10.0.0.1:1"])).service[0], 1)

    def door(self) -> socket.socket:
        return self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def bound(self, port: int = 0) -> socket.socket:
        sock = self.stack.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        return sock

    def accept(self, door: socket.socket) -> socket.socket:
        return self.stack.enter_context(door.accept()[0])

    def conn(self, client: socket.socket, server: socket.socket) -> Conn:
        conn = Conn(self.route, client.getpeername(), 1, 0.0, is_tcp=True)
        conn.client, conn.server = Leg(client.fileno(), conn, True), Leg(server.fileno(), conn, False)
        return conn


def test_a_client_that_has_the_relay_s_port_by_chance_runs_in_no_circle() -> None:
    with contextlib.ExitStack() as stack:
        ends = Ends(stack)
        listener, backend = ends.door(), ends.door()
        to_backend = ends.bound()
        client = ends.bound(to_backend.getsockname()[1])
        other, also_to_backend = ends.bound(), ends.bound()
        for sock, door in (
            (to_backend, backend),
            (also_to_backend, backend),
            (client, listener),
            (other, listener),
        ):
            sock.connect(door.getsockname())
        first, second = ends.accept(listener), ends.accept(listener)
        by_chance, another = ends.conn(first, also_to_backend), ends.conn(second, to_backend)
        assert list(circles.came_back([by_chance, another], 1)) == []


def test_a_connection_that_comes_back_runs_in_a_circle() -> None:
    with contextlib.ExitStack() as stack:
        ends = Ends(stack)
        listener, backend = ends.door(), ends.door()
        client, to_ourselves, to_backend = ends.bound(), ends.bound(), ends.bound()
        client.connect(listener.getsockname())
        first = ends.accept(listener)
        to_ourselves.connect(listener.getsockname())
        came = ends.accept(listener)
        to_backend.connect(backend.getsockname())
        opener, back = ends.conn(first, to_ourselves), ends.conn(came, to_backend)
        assert list(circles.came_back([opener, back], 1)) == [(back, opener)]
