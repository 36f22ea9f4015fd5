"""Packets and capture files, made byte by byte (addresses in text, checksums left 0)."""

from __future__ import annotations

import ipaddress
import struct

FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16}


def tcp(
    sport: int,
    dport: int,
    *,
    seq: int = 1,
    ack: int = 1,
    flags: str = "A",
    payload: bytes = b"",
    window: int = 500,
) -> bytes:
    bits = sum(FLAGS[f] for f in flags)
    head = struct.pack(
        "!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 0x50, bits, window, 0, 0
    )
    return head + payload


def ip4(
    src: str, dst: str, body: bytes, *, protocol: int = 6, fragment: int = 0, options: bytes = b""
) -> bytes:
    head = 20 + len(options)
    return (
        struct.pack("!BBHHHBBH", 0x40 | head // 4, 0, head + len(body), 0, fragment, 64, protocol, 0)
        + ipaddress.IPv4Address(src).packed
        + ipaddress.IPv4Address(dst).packed
        + options
        + body
    )


def ip6(src: str, dst: str, body: bytes, *, following: int = 6, extension: bytes = b"") -> bytes:
    """``extension`` is one hop-by-hop header, whole (its first byte says what follows)."""
    first = 0 if extension else following
    return (
        struct.pack("!IHBB", 6 << 28, len(extension) + len(body), first, 64)
        + ipaddress.IPv6Address(src).packed
        + ipaddress.IPv6Address(dst).packed
        + extension
        + body
    )


def _type(packet: bytes) -> int:
    return 0x0800 if packet[0] >> 4 == 4 else 0x86DD


def ethernet(packet: bytes, *, vlans: int = 0) -> bytes:
    tags = b"".join(struct.pack("!HH", 0x8100, 5) for _ in range(vlans))
    return bytes(12) + tags + struct.pack("!H", _type(packet)) + packet


def sll(packet: bytes, *, outgoing: bool) -> bytes:
    return struct.pack("!HHH8sH", 4 if outgoing else 0, 1, 6, bytes(8), _type(packet)) + packet


def sll2(packet: bytes, *, outgoing: bool) -> bytes:
    return struct.pack("!HHIHBB8s", _type(packet), 0, 2, 1, 4 if outgoing else 0, 6, bytes(8)) + packet


def pcap_file(packets: list[tuple[int, bytes]], link: int, *, order: str = "<", nano: bool = True) -> bytes:
    magic, unit = (0xA1B23C4D, 1) if nano else (0xA1B2C3D4, 1000)
    out = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for time_ns, data in packets:
        seconds, rest = divmod(time_ns, 1_000_000_000)
        out += struct.pack(f"{order}IIII", seconds, rest // unit, len(data), len(data)) + data
    return out
