"""Services that relay to themselves: found from addresses, before the first client makes them run in a circle.

A connection to such a service opens another one to the same service, and so on until descriptors run out. Each address
that a backend stands for is compared with each address that a service of this relay listens on; services are then
followed from one to the next. ``0.0.0.0`` and ``::`` as a backend's address are this machine, an IPv4 address that is
written as ``::ffff:192.0.2.1`` is an IPv4 address, and a listener on all addresses takes connections to any of ours.

What addresses cannot tell: a circle over another process or machine, or through a translation of addresses. A worker
looks for those once a service has many connections (`came_back`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

from finwait import files
from finwait.errors import FileRefused
from finwait.relay import sockets
from finwait.relay.acl import plain
from finwait.relay.config.addresses import parse_listen, split_address
from finwait.relay.config.model import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finwait.relay.config.model import BackendConfig, Config, Service
    from finwait.relay.connection import Conn
    from finwait.relay.listeners import Bound

__all__ = ["Circles", "Door", "came_back", "configured", "is_local", "listening", "refuse"]

Row = list[Any]
"""(name, family, address, weight, max_connections), as `finwait.relay.resolve` has it."""
_HERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # as an address to connect to


class Door(Struct, frozen=True):
    """An address on which a service takes connections; ``host`` is a path for ``unix``."""

    service: str
    kind: Literal["ipv4", "ipv6", "dual", "unix"]
    host: str
    port: int
    shown: str


def is_local(host: str) -> bool:
    """Return whether an address is one of this machine's (in this network namespace)."""
    address = ipaddress.ip_address(host)
    if address.is_loopback:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((host, 9))  # sends nothing; the kernel chooses the address itself where it is ours
        return str(sock.getsockname()[0]).partition("%")[0] == str(address)
    return False


def configured(config: Config) -> list[Door]:
    """Return the addresses that a configuration names; ports that the kernel chooses are not known yet."""
    doors = []
    for service in config.service:
        if not _reachable(service):
            continue
        for listen in (listen for text in service.listen for listen in parse_listen(text)):
            if listen.kind == "unix":
                doors.append(Door(service.name, "unix", os.path.realpath(listen.host), 0, str(listen)))
            elif listen.kind != "fd" and listen.port:
                doors.append(Door(service.name, listen.kind, listen.host, listen.port, str(listen)))
    return doors


def listening(config: Config, bound: Iterable[Bound]) -> list[Door]:
    """Return the addresses of listening sockets, those from systemd and with chosen ports among them."""
    reachable = {service.name for service in config.service if _reachable(service)}
    doors = []
    for listener in bound:
        for sock in listener.sockets if listener.service in reachable else ():
            name = sock.getsockname()
            if sock.family == socket.AF_UNIX:
                if isinstance(name, str) and name:
                    doors.append(Door(listener.service, "unix", os.path.realpath(name), 0, f"unix:{name}"))
                continue
            kind: Literal["ipv4", "ipv6", "dual"] = "ipv4"
            if sock.family == socket.AF_INET6:
                only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                kind = "ipv6" if only else "dual"
            doors.append(Door(listener.service, kind, name[0], name[1], listener.key))
    return list(dict.fromkeys(doors))


def _reachable(service: Service) -> bool:
    """Return whether this machine itself can connect; what comes from it comes by ``lo``."""
    return service.client.device in ("", "lo")


class Circles:
    """Follows services to the services that their backends are.

    Args:
        doors: where services listen.
        local: whether an address is this machine's.
    """

    def __init__(self, doors: Sequence[Door], local: Callable[[str], bool] = is_local) -> None:
        self._doors = doors
        self._local = local

    def door_of(self, row: Row) -> Door | None:
        """Return where a connection to a backend comes back in, if it does."""
        _, family, address, weight, _ = row
        if not weight:
            return None
        if family == socket.AF_UNIX:
            path = os.path.realpath(address)
            return next((d for d in self._doors if d.kind == "unix" and d.host == path), None)
        host = plain(address[0])
        host = _HERE.get(host, host)
        of_port = [d for d in self._doors if d.kind != "unix" and d.port == address[1]]
        return next((d for d in of_port if self._takes(d, host)), None)

    def _takes(self, door: Door, host: str) -> bool:
        own = plain(door.host)
        version = ipaddress.ip_address(host).version
        if own not in _HERE:
            return own == host
        if door.kind != "dual" and (door.kind == "ipv6") != (version == 6):
            return False
        return self._local(host)

    def circle(self, rows_of: Mapping[str, Sequence[Row]]) -> tuple[str, Row, str] | None:
        """Return a service that is led back to itself, its backend and what to say; None if there is none."""
        for name, rows in rows_of.items():
            for row in rows:
                if reason := self.closes(name, row, rows_of):
                    return name, row, reason
        return None

    def closes(self, service: str, row: Row, rows_of: Mapping[str, Sequence[Row]]) -> str:
        """Return what to say of a backend that leads back to its own service; an empty string if it does not."""
        door = self.door_of(row)
        if door is None:
            return ""
        if door.service == service:
            return f"service `{service}` would relay to itself: backend {row[0]} is its own listener {door.shown}"
        way = self._way(door.service, service, rows_of)
        if not way:
            return ""
        round_trip = " → ".join(f"`{name}`" for name in (service, *way))
        return f"services {round_trip} would relay in a circle: backend {row[0]} is the listener {door.shown}"

    def _way(self, start: str, end: str, rows_of: Mapping[str, Sequence[Row]]) -> list[str]:
        """Return the services from one to another; an empty list if there is no way."""
        before: dict[str, str] = {start: ""}
        todo = [start]
        while todo:
            at = todo.pop()
            if at == end:
                way = [at]
                while before[way[-1]]:
                    way.append(before[way[-1]])
                return way[::-1]
            for row in rows_of.get(at, ()):
                door = self.door_of(row)
                if door is not None and door.service not in before:
                    before[door.service] = at
                    todo.append(door.service)
        return []


def refuse(config: Config, *, names: bool = False) -> None:
    """Refuse a configuration whose services relay to themselves, as far as its text and files tell.

    Args:
        config: what to look at.
        names: also ask for the addresses of ``dns:`` backends.

    Raises:
        ConfigError: a service does.
    """
    rows_of = {
        service.name: [row for backend in service.backend for row in _rows(backend, names)]
        for service in config.service
    }
    circle = Circles(configured(config)).circle(rows_of)
    if circle is not None:
        raise ConfigError(circle[2], hint="each client would open connections until descriptors run out")


def _rows(backend: BackendConfig, names: bool) -> list[Row]:
    from finwait.relay.resolve import fixed, parse_file

    kind, _, rest = backend.address.partition(":")
    if kind == "file":
        with contextlib.suppress(OSError, ValueError, FileRefused):
            text = files.read(rest, 1 << 20, own_way=True).decode("utf-8")
            return parse_file(text, backend.weight, backend.max_connections)[0]
        return []
    if kind != "dns":
        return [fixed(backend.address, backend.weight, backend.max_connections)]
    rows = []
    if names:
        host, port = split_address(rest)
        with contextlib.suppress(OSError, ValueError):
            for family, _, _, _, address in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM):
                rows.append([str(address[0]), int(family), list(address), backend.weight, 0])
    return rows


def came_back(conns: Iterable[Conn], most: int) -> Iterator[tuple[Conn, Conn]]:
    """Yield connections that came back to the service that opened them, each with the one that opened it.

    Who accepts from itself sees its own connection to a backend as a client: from the address and port that it has,
    and to the ones that it was sent to. The last two may have been translated on the way, which connection tracking
    knows. Half of that is no proof: on one machine a client and the relay may well have the same port, for
    connections to different ones. With several workers a part of a circle is seen by one of them, and ending that part
    ends the circle.

    Args:
        conns: of a worker.
        most: services to follow, from one to the next.
    """
    opened: dict[_End, dict[_End, Conn]] = {}
    lives = list(conns)
    for conn in lives:
        if conn.server is not None and conn.server.fd >= 0:
            local, remote = map(_end, sockets.names(conn.server.fd))
            if local is not None and remote is not None:
                opened.setdefault(local, {})[remote] = conn
    openers = {conn: _opener(conn, opened) for conn in lives}
    for conn in lives:
        at = openers[conn]
        for _ in range(most):
            if at is None or at.route is conn.route:
                break
            at = openers.get(at)
        if at is not None and at is not conn and at.route is conn.route:
            yield conn, at


_End = tuple[str, int]


def _end(address: object) -> _End | None:
    """Return host and port of an address, an IPv4 one always as such; None for a Unix socket's."""
    if not isinstance(address, tuple):
        return None
    return str(address[0]).removeprefix("::ffff:"), address[1]


def _opener(conn: Conn, opened: Mapping[_End, Mapping[_End, Conn]]) -> Conn | None:
    """Return the connection of ours whose other leg is this one's client."""
    peer = _end(conn.peer)
    by_destination = opened.get(peer) if peer is not None else None
    if not by_destination:
        return None
    fd = conn.client.fd
    for asked_for in (_end(sockets.names(fd)[0]), _end(sockets.original_destination(fd))):
        if asked_for is not None and asked_for in by_destination:
            return by_destination[asked_for]
    return None
