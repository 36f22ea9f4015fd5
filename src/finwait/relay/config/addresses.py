"""Addresses as a configuration writes them: to listen on, and of backends.

Nothing is resolved and nothing opened here. What cannot be an address is a `ValueError` that says how to write it.
"""

from __future__ import annotations

# The codec is imported at its first use, and `user` may not be allowed to read the interpreter's directory.
import encodings.idna  # noqa: F401
import ipaddress
import re
from typing import Final, Literal

import msgspec

__all__ = ["Listen", "check_backend", "check_path", "parse_listen", "parse_port", "split_address"]

_MAX_PATH: Final = 107
"""Bytes in the name of a Unix socket: sun_path less its final NUL, unix(7)."""


class Listen(msgspec.Struct, frozen=True):
    """One address to listen on; ``host`` is a path for ``unix`` and a name for ``fd``."""

    kind: Literal["ipv4", "ipv6", "dual", "unix", "fd"]
    host: str
    port: int = 0

    def __str__(self) -> str:
        if self.kind in ("unix", "fd"):
            return f"{self.kind}:{self.host}"
        host = {"ipv6": f"[{self.host}]", "dual": "*"}.get(self.kind, self.host)
        return f"{host}:{self.port}"


def split_address(text: str) -> tuple[str, str]:
    """Split ``host:port``, with brackets around an IPv6 address.

    Raises:
        ValueError: there is no port, or a bare IPv6 address is ambiguous.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port:
        raise ValueError(f"`{text}` has no port; write for example 10.0.0.5:80")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], port
    if ":" in host:
        raise ValueError(f"`{text}`: write an IPv6 address in brackets, as in [{host}]:{port}")
    return host, port


def parse_port(text: str, least: int = 0) -> int:
    """Return a port.

    Raises:
        ValueError: it is no number from ``least`` to 65535.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 7 and least <= int(text) <= 65535):
        raise ValueError(f"`{text}` is not a port ({least} to 65535)")
    return int(text)


def parse_listen(text: str) -> tuple[Listen, ...]:
    """Return the addresses that one entry of ``listen`` stands for (a range of ports stands for many).

    Raises:
        ValueError: it is no address to listen on.
    """
    if text.startswith("unix:"):
        if not text[5:]:
            raise ValueError("`unix:` needs a path, as in unix:/run/relay.sock")
        check_path(text[5:])
        return (Listen("unix", text[5:]),)
    if text.startswith("fd:"):
        return (Listen("fd", text[3:]),)
    host, ports = split_address(text)
    first, dash, last = ports.partition("-")
    low = parse_port(first)
    high = parse_port(last, low) if dash else low
    if high - low > 1023:
        raise ValueError(f"`{ports}` is {high - low + 1} ports; a range has at most 1024")
    if host in ("", "*"):
        return tuple(Listen("dual", "::", port) for port in range(low, high + 1))
    try:
        kind: Literal["ipv4", "ipv6"] = "ipv6" if ipaddress.ip_address(host).version == 6 else "ipv4"
    except ValueError:
        raise ValueError(f"`{host}` is not an IP address; a listener needs one, or `*`") from None
    return tuple(Listen(kind, host, port) for port in range(low, high + 1))


def check_path(path: str) -> None:
    """Raise ValueError when a path cannot be that of a Unix socket."""
    if "\0" in path or len(path.encode("utf-8", "surrogateescape")) > _MAX_PATH:
        raise ValueError(f"a Unix socket's path has at most {_MAX_PATH} bytes and no NUL")


def check_backend(text: str) -> None:
    """Raise ValueError when ``text`` cannot be the address of a backend."""
    kind, _, rest = text.partition(":")
    if kind in ("unix", "file"):
        if not rest:
            raise ValueError(f"`{text}` needs a path")
        if kind == "unix":
            check_path(rest)
        elif "\0" in rest:
            raise ValueError("a path cannot contain a NUL byte")
        return
    host, port = split_address(rest if kind == "dns" else text)
    parse_port(port, 1)
    if kind == "dns":
        _check_name(host)
        return
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"`{host}` is not an IP address; for a name write `dns:{host}:{port}`") from None


def _check_name(name: str) -> None:
    """Raise ValueError when a text cannot be a name of the DNS (RFC 1035, 2.3.4)."""
    try:
        plain = name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError(f"`{name}` cannot be a DNS name") from None
    labels = plain.removesuffix(".").split(".")
    if len(plain) > 253 or not all(0 < len(label) < 64 for label in labels):
        raise ValueError(
            f"`{name}` cannot be a DNS name: each part between dots has 1 to 63 characters, and the whole "
            "at most 253"
        )
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", plain):
        raise ValueError(
            f"`{name}` cannot be a DNS name: it has a character other than letters, digits, `-`, `_` and `.`"
        )
