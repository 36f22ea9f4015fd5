"""The PROXY protocol, versions 1 and 2: who the client is, told by the proxy in front.

Mirrors haproxy's doc/proxy-protocol.txt, revision 2020/03/05. The surprise: the header may arrive in pieces, and
bytes of the stream may follow it in the same segment, so a parser must say how much it took, or that
it needs more. ``LOCAL`` (v2) and ``UNKNOWN`` (v1) carry no client: the connection's own addresses stand.

This module touches bytes only.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from msgspec import Struct

from finwait.errors import DecodeError

__all__ = ["MAX_HEADER", "Header", "encode", "parse"]

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V1_MAX: Final = 107
"""Longest line of version 1, CR LF included."""
MAX_HEADER: Final = 16 + 4096
"""What we accept of version 2: the fixed part and 4 KiB of addresses and TLVs."""
_INET, _INET6 = 0x11, 0x21


class Header(Struct, frozen=True):
    """What a header says. ``source`` is None where the proxy speaks for itself (LOCAL, UNKNOWN).

    An IPv4-mapped address is given as the IPv4 address that it is, so that a client has one name.
    """

    source: tuple[str, int] | None
    destination: tuple[str, int] | None
    size: int
    """Bytes of the header; the stream begins after them."""


def parse(data: bytes) -> Header | None:
    """Return the header at the start of ``data``, or None when more bytes are needed to tell.

    Raises:
        DecodeError: this is no PROXY header, whatever follows.
    """
    if data[:12] == SIGNATURE[: len(data)]:
        return _parse_v2(data) if len(data) >= 16 else None
    if data[:6] == b"PROXY "[: len(data)]:
        return _parse_v1(data) if len(data) >= 6 else None
    raise DecodeError("PROXY header", 0, data[:16], "neither version 1 nor version 2")


def _parse_v1(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, _V1_MAX)
    if end < 0:
        if len(data) >= _V1_MAX:
            raise DecodeError("PROXY header v1", _V1_MAX, data[_V1_MAX - 16 :], "no end of line in 107 bytes")
        return None
    words = data[:end].split(b" ")
    if words[1] == b"UNKNOWN":
        return Header(None, None, end + 2)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise DecodeError("PROXY header v1", 6, data[6:22], "not TCP4, TCP6 or UNKNOWN with two addresses")
    version = 4 if words[1] == b"TCP4" else 6
    if b"%" in data[:end]:  # ipaddress takes any text after it, line ends and escapes included
        raise DecodeError("PROXY header v1", 11, data[11:27], "an address has a scope")
    try:
        hosts = [ipaddress.ip_address(word.decode("ascii")) for word in words[2:4]]
        ports = [_port(word) for word in words[4:6]]
    except ValueError:
        raise DecodeError("PROXY header v1", 11, data[11:27], "an address or a port does not parse") from None
    if any(host.version != version for host in hosts):
        raise DecodeError("PROXY header v1", 11, data[11:27], f"an address is not of IPv{version}")
    source, destination = (str(_plain(host)) for host in hosts)
    return Header((source, ports[0]), (destination, ports[1]), end + 2)


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or int(word) > 65535:
        raise ValueError("port")
    return int(word)


def _parse_v2(data: bytes) -> Header | None:
    command, family, length = data[12], data[13], int.from_bytes(data[14:16], "big")
    if command not in (0x20, 0x21):
        raise DecodeError("PROXY header v2", 12, data[12:28], "not version 2, LOCAL or PROXY")
    size = 16 + length
    if size > MAX_HEADER:
        raise DecodeError("PROXY header v2", 14, data[14:30], f"longer than {MAX_HEADER} bytes")
    if len(data) < size:
        return None
    width = {_INET: 4, _INET6: 16}.get(family)
    if command == 0x20 or width is None:
        return Header(None, None, size)
    if length < 2 * width + 4:
        raise DecodeError("PROXY header v2", 14, data[14:30], "too short for its addresses")
    body = data[16 : 16 + 2 * width + 4]
    source, destination = (str(_plain(ipaddress.ip_address(body[at : at + width]))) for at in (0, width))
    sport, dport = struct.unpack("!HH", body[2 * width :])
    return Header((source, sport), (destination, dport), size)


def encode(version: str, source: tuple[str, int] | None, destination: tuple[str, int] | None) -> bytes:
    """Return a header of version ``"v1"`` or ``"v2"``.

    Args:
        version: which.
        source: the client; None (a Unix socket) says UNKNOWN or LOCAL.
        destination: where it connected to.
    """
    hosts = None
    if source is not None and destination is not None:
        hosts = [_plain(ipaddress.ip_address(end[0].partition("%")[0])) for end in (source, destination)]
        if hosts[0].version != hosts[1].version:
            hosts = [_as_v6(host) for host in hosts]
    if version == "v1":
        if hosts is None or source is None or destination is None:
            return b"PROXY UNKNOWN\r\n"
        return f"PROXY TCP{hosts[0].version} {hosts[0]} {hosts[1]} {source[1]} {destination[1]}\r\n".encode()
    if version != "v2":
        raise ValueError(f"there is no PROXY protocol {version!r}")
    if hosts is None or source is None or destination is None:
        return SIGNATURE + struct.pack("!BBH", 0x20, 0, 0)
    family = _INET if hosts[0].version == 4 else _INET6
    body = hosts[0].packed + hosts[1].packed + struct.pack("!HH", source[1], destination[1])
    return SIGNATURE + struct.pack("!BBH", 0x21, family, len(body)) + body


def _plain(
    host: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return what a dual-stack listener shows as ``::ffff:192.0.2.1`` as the IPv4 address that it is."""
    return host if host.version == 4 else host.ipv4_mapped or host


def _as_v6(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv6Address:
    return host if host.version == 6 else ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + host.packed)
