"""Listening sockets: made here, passed by systemd, or handed over by the relay that ran before.

Each worker gets a TCP socket of its own for each address (SO_REUSEPORT), so none is woken for another's
connection; the supervisor keeps them all open, so a worker that dies leaves its queue to its successor.
Unix sockets and sockets from systemd exist once, and all workers accept from them.

The surprise: options set here are inherited by every accepted socket (``sk_clone_lock``), so keepalive, the user
timeout and TCP_NODELAY cost the data path nothing.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from finwait import files
from finwait.errors import KernelError, PermissionNeeded
from finwait.relay import sockets
from finwait.relay.config.addresses import Listen, parse_listen, split_address
from finwait.relay.config.model import ConfigError
from finwait.relay.liveness import liveness_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finwait.relay.config.model import Config, Service

__all__ = [
    "EVERY_IPV4", "Bound", "bind_all", "bind_metrics", "hand_over", "inherited", "made", "refused", "remove_stale",
]  # fmt: skip

_FIRST_FD: Final = 3
EVERY_IPV4: Final = "0.0.0.0"  # noqa: S104 - where the configuration says so
HANDED: Final = "FINWAIT_RELAY_SOCKETS"


class Bound(Struct, frozen=True):
    """An address and its sockets: one for each worker, or one that all of them share."""

    key: str
    service: str
    sockets: tuple[socket.socket, ...]

    def of(self, worker: int) -> socket.socket:
        """Return the socket that a worker accepts from."""
        return self.sockets[worker % len(self.sockets)]

    def close(self) -> None:
        """Close the supervisor's descriptors."""
        for sock in self.sockets:
            sock.close()


def inherited(environ: Mapping[str, str], pid: int) -> dict[str, list[socket.socket]]:
    """Return sockets that were passed to this process, by name.

    From systemd (sd_listen_fds(3)) the name is ``fd:`` and that in LISTEN_FDNAMES; from the relay that ran before it
    is the address as written in the configuration.
    """
    named_sockets: dict[str, list[socket.socket]] = {}
    if environ.get(HANDED):
        for key, fds in json.loads(environ[HANDED]).items():
            named_sockets[key] = [socket.socket(fileno=fd) for fd in fds]
    elif environ.get("LISTEN_PID") == str(pid) and environ.get("LISTEN_FDS", "").isdecimal():
        count = int(environ["LISTEN_FDS"])
        names = environ.get("LISTEN_FDNAMES", "").split(":")
        for at in range(count):
            name = names[at] if at < len(names) else ""
            named_sockets.setdefault(f"fd:{name}", []).append(socket.socket(fileno=_FIRST_FD + at))
    for socks in named_sockets.values():
        for sock in socks:
            sock.set_inheritable(False)
    return named_sockets


def hand_over(
    bound: Mapping[str, Bound], own: Mapping[str, list[socket.socket]]
) -> tuple[dict[str, str], list[int]]:
    """Return the environment and the descriptors that give these sockets to a new process."""
    every = {**{key: listener.sockets for key, listener in bound.items()}, **own}
    fds = {key: [sock.fileno() for sock in socks] for key, socks in every.items()}
    return {HANDED: json.dumps(fds)}, [fd for group in fds.values() for fd in group]


def bind_all(
    config: Config, current: Mapping[str, Bound], passed: dict[str, list[socket.socket]]
) -> dict[str, Bound]:
    """Return the listeners that a configuration asks for, with those there are already kept as they are.

    Args:
        config: the configuration.
        current: the present ones, by key.
        passed: sockets from `inherited`; those taken are removed.

    Raises:
        KernelError: an address cannot be bound; whatever was bound by this call is closed again.
        ConfigError: a socket that systemd should have passed is not there.
    """
    bound: dict[str, Bound] = {}
    fresh: list[Bound] = []
    try:
        for service in config.service:
            for text in service.listen:
                for at, listen in enumerate(parse_listen(text)):
                    key = (
                        str(listen)
                        if listen.port or listen.kind in ("unix", "fd")
                        else f"{text}#{service.name}.{at}"
                    )
                    for listener in _bind(service, listen, key, config.workers, current, passed):
                        bound[listener.key] = listener
                        if listener.key not in current:
                            fresh.append(listener)
    except Exception:
        for listener in fresh:
            listener.close()
        raise
    return bound


def _bind(
    service: Service,
    listen: Listen,
    key: str,
    workers: int,
    current: Mapping[str, Bound],
    passed: dict[str, list[socket.socket]],
) -> list[Bound]:
    if key in current:
        kept = current[key]
        _set_options(kept.sockets, service)
        return [Bound(key, service.name, kept.sockets)]
    if listen.kind == "fd":
        prefixes = ("fd:",) if key == "fd:" else (key, f"{key}/")
        names = [name for name in passed if name == key or name.startswith(prefixes[-1])]
        socks = [(name, sock) for name in names for sock in passed.pop(name)]
        present = [listener for name, listener in current.items() if name.startswith(prefixes[-1])]
        if not socks and not present:
            raise ConfigError(
                f"service `{service.name}`: no socket `{key}` was passed to this process",
                hint="start it by a systemd .socket unit with FileDescriptorName=, as examples/relay/ has one",
            )
        _set_options([sock for _, sock in socks], service)
        return [Bound(listener.key, service.name, listener.sockets) for listener in present] + [
            Bound(name if "/" in name else f"{name}/{sock.fileno()}", service.name, (sock,))
            for name, sock in socks
        ]
    ready = passed.pop(key, [])
    shared = listen.kind == "unix"
    count = 1 if shared else workers
    socks_made: list[socket.socket] = []
    try:
        for _ in range(max(0, count - len(ready))):
            port_of = [*ready, *socks_made]
            socks_made.append(
                _open(service, listen, port_of[0].getsockname()[1] if port_of and not shared else None)
            )
    except BaseException:
        for sock in socks_made:
            sock.close()
        raise
    if not shared and len(ready) > workers:
        # Handed over by a relay with more workers. A socket that nobody accepts from would swallow its share of
        # clients; the relay that ran before empties its queue when it drains.
        for sock in ready[workers:]:
            sock.close()
        del ready[workers:]
    every = (*ready, *socks_made)
    try:
        _set_options(every, service)
    except OSError as error:
        for sock in socks_made:
            sock.close()
        raise refused(error, f"set the options of the listener {listen}") from None
    return [Bound(key, service.name, every)]


def _open(service: Service, listen: Listen, port: int | None) -> socket.socket:
    """Bind and listen."""
    if listen.kind == "unix":
        return _open_unix(service, listen.host)
    sock, host = made(listen.host, str(listen))
    family = sock.family
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(listen.kind == "ipv6"))
        if service.client.transparent:
            level, name = (
                (socket.IPPROTO_IP, sockets.IP_TRANSPARENT)
                if family == socket.AF_INET
                else (socket.IPPROTO_IPV6, sockets.IPV6_TRANSPARENT)
            )
            sock.setsockopt(level, name, 1)
        if service.client.mark:
            sock.setsockopt(socket.SOL_SOCKET, sockets.SO_MARK, service.client.mark)
        if service.client.device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, service.client.device.encode() + b"\0")
        sock.bind((host, port or listen.port))
        sock.listen(service.client.backlog)
    except OSError as error:
        sock.close()
        raise refused(error, f"listen on {listen}") from None
    return sock


def made(host: str, shown: str) -> tuple[socket.socket, str]:
    """Return a TCP socket that is not bound yet, and the host to bind it to.

    ``::`` is every address. Where the kernel has no IPv6 (``ipv6.disable=1``), every address is those of IPv4.

    Raises:
        KernelError: there is no such family; ``shown`` is the address as it was written.
    """
    try:
        return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM), host
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT and host == "::":
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM), EVERY_IPV4
        raise refused(error, f"listen on {shown}") from None


def _open_unix(service: Service, path: str) -> socket.socket:
    """Bind a Unix socket; one that nobody listens on any more is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove_stale(path)
        sock.bind(path)
        sock.listen(service.client.backlog)
    except OSError as error:
        sock.close()
        raise refused(error, f"listen on unix:{path}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def remove_stale(path: str) -> None:
    """Remove a Unix socket that nobody listens on; anything else stays and makes ``bind()`` fail.

    Raises:
        FileRefused: a link on the way belongs to somebody else.
        OSError: it cannot be looked at or removed.
    """
    above, name = os.path.split(path)
    with files.folder(above) as folder:
        status = folder.status(name)
        if status is None or not stat.S_ISSOCK(status.st_mode):
            return
        if folder.alone and status.st_uid not in (0, os.geteuid()):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(f"/proc/self/fd/{folder.fd}/{name}")
            except ConnectionRefusedError:
                os.unlink(name, dir_fd=folder.fd)


def refused(error: OSError, doing: str) -> KernelError:
    """Return the error for something that the kernel refused, with the hint that belongs to it."""
    number = error.errno or 0
    if isinstance(error, PermissionError):
        return PermissionNeeded(
            number, doing, "CAP_NET_BIND_SERVICE (below port 1024), CAP_NET_ADMIN or CAP_NET_RAW"
        )
    hint = {
        "EADDRINUSE": "`ss -ltnp` shows who uses it",
        "EADDRNOTAVAIL": "no interface has this address; `ip address` lists the addresses of this machine",
        "EAFNOSUPPORT": "this kernel has no IPv6 (`ipv6.disable=1`); `*` then listens on IPv4 only",
        "ENODEV": "this interface does not exist; `ip link` lists the interfaces",
    }
    return KernelError(number, doing, hint=hint.get(errno.errorcode.get(number, ""), ""))


def _set_options(socks: tuple[socket.socket, ...] | list[socket.socket], service: Service) -> None:
    """Set what accepted sockets inherit."""
    side = service.client
    for sock in socks:
        if not sockets.is_tcp(sock.family):
            continue
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(side.keepalive_idle > 0))
        sock.setsockopt(socket.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, 0)
        for level, name, value in liveness_options(side):
            sock.setsockopt(level, name, value)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(side.nodelay))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if side.fast_open:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, side.fast_open)


def bind_metrics(address: str, passed: list[socket.socket]) -> socket.socket:
    """Return a socket for scrapes: the one with this address that was handed over, or a new one.

    Raises:
        KernelError: it cannot be bound.
    """
    host, port = split_address(address)
    host = "::" if host in ("", "*") else host
    for sock in passed:
        own = {host, EVERY_IPV4} if host == "::" else {host}
        if sock.getsockname()[0] in own and sock.getsockname()[1] == int(port):
            return sock
    sock, host = made(host, f"{address} for metrics")
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, int(port)))
    except OSError as error:
        sock.close()
        raise refused(error, f"listen on {address} for metrics") from None
    return sock
