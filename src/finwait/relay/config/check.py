"""What the types of a configuration cannot say: options that contradict each other, texts that mean nothing.

Each mistake is a pair: the path of the option, such as ``service[0].listen[1]``, and what is wrong with it. A relay is
told the first one, so those that explain others come first.
"""

from __future__ import annotations

# The codec is imported at its first use, and `user` may not be allowed to read the interpreter's directory.
import encodings.unicode_escape  # noqa: F401
import ipaddress
from typing import TYPE_CHECKING

from finwait.relay.acl import UNIX, parse_network
from finwait.relay.config.addresses import (
    Listen,
    check_backend,
    check_path,
    parse_listen,
    parse_port,
    split_address,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finwait.relay.config.model import Config, Service

__all__ = ["check", "probe_bytes"]


def check(config: Config) -> Iterator[tuple[str, str]]:
    """Yield what types cannot say: (path, what is wrong with it)."""
    names: set[str] = set()
    taken: dict[Listen, str] = {}
    for at, service in enumerate(config.service):
        path = f"service[{at}]"
        if service.name in names:
            yield f"{path}.name", f"two services are called `{service.name}`"
        names.add(service.name)
        for part, wrong in _service(service, taken, gives_up_root=bool(config.user)):
            yield f"{path}.{part}", wrong
    if config.metrics:
        try:
            host, port = split_address(config.metrics)
            parse_port(port)
            if host not in ("", "*"):
                ipaddress.ip_address(host)
        except ValueError as error:
            yield "metrics", f"{error}; write for example 127.0.0.1:9464 or *:9464"
    if config.admin:
        try:
            check_path(config.admin)
        except ValueError as error:
            yield "admin", str(error)
    for field in ("access_log", "user"):
        if "\0" in getattr(config, field):
            yield field, "a name cannot contain a NUL byte"


def _service(service: Service, taken: dict[Listen, str], *, gives_up_root: bool) -> Iterator[tuple[str, str]]:
    """Yield what is wrong in a service; ``taken`` says who has which address, and learns this one's."""
    yield from _listen(service, taken)
    for place, backend in enumerate(service.backend):
        try:
            check_backend(backend.address)
        except ValueError as error:
            yield f"backend[{place}].address", str(error)
    yield from _networks(service)
    yield from _health(service)
    yield from _sides(service, gives_up_root=gives_up_root)
    if service.server.fast_open and service.pool.max_idle:
        yield "pool", "a pool opens connections early, and fast_open opens them late; choose one"
    if service.send_proxy and service.pool.max_idle:
        problem = (
            "with send_proxy, the server waits for the header of a client that is not there yet, and most "
            "servers count that as an error; choose one"
        )
        yield "pool", problem


def _listen(service: Service, taken: dict[Listen, str]) -> Iterator[tuple[str, str]]:
    if not service.listen:
        yield "listen", "a service needs an address to listen on"
    for place, text in enumerate(service.listen):
        try:
            parsed = parse_listen(text)
        except ValueError as error:
            yield f"listen[{place}]", str(error)
            continue
        for listen in parsed:
            if listen in taken and listen.port:
                yield f"listen[{place}]", f"{listen} is already used by service `{taken[listen]}`"
            taken[listen] = service.name


def _networks(service: Service) -> Iterator[tuple[str, str]]:
    for key in ("allow", "deny"):
        for place, network in enumerate(getattr(service, key)):
            try:
                if network != UNIX:
                    parse_network(network)
            except ValueError as error:
                yield f"{key}[{place}]", f"{error}; write for example 10.0.0.0/8"
    if any(text.startswith("unix:") for text in service.listen):
        if service.allow and UNIX not in service.allow:
            yield "allow", "nobody could connect to the Unix listener: `unix` is not in the list"
        elif UNIX in service.deny:
            yield "deny", "nobody could connect to the Unix listener: `unix` is in the list"


def _health(service: Service) -> Iterator[tuple[str, str]]:
    if service.health.send:
        try:
            probe_bytes(service.health.send)
        except ValueError:
            yield "health.send", r"an escape is not one of \r \n \t \xHH, or a character is not a byte"
    if service.send_proxy and service.health.send.startswith("PROXY "):
        yield "health.send", "send_proxy already puts a header before it; leave out the line PROXY …"


def _sides(service: Service, *, gives_up_root: bool) -> Iterator[tuple[str, str]]:
    device = service.client.device
    if "\0" in device or len(device.encode("utf-8", "surrogateescape")) > 15:
        yield "client.device", "the name of an interface has at most 15 bytes and no NUL"
    if service.server.bind:
        try:
            ipaddress.ip_address(service.server.bind)
        except ValueError:
            yield "server.bind", f"`{service.server.bind}` is not an IP address"
    for side, values in (("client", service.client), ("server", service.server)):
        if gives_up_root and (values.mark or (values.transparent and side == "server")):
            problem = (
                "mark and transparent need CAP_NET_ADMIN for each connection, which `user` gives up; "
                "let systemd set the user with AmbientCapabilities=CAP_NET_ADMIN instead"
            )
            yield side, problem
        if 0 < values.keepalive_idle < 1 or 0 < values.keepalive_interval < 1:
            yield f"{side}.keepalive_idle", "keepalive times are whole seconds, 1 or more"


def probe_bytes(text: str) -> bytes:
    r"""Return the bytes that a health check sends; ``\r``, ``\n``, ``\x00`` are escapes, for the command line.

    Raises:
        ValueError: an escape that is none, or a character that is no byte.
    """
    return text.encode().decode("unicode_escape").encode("latin-1")
