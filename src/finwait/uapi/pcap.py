"""Capture files: pcap and pcapng read into packets, pcapng written, and the socket filter that chooses.

Mirrors the pcap format (draft-ietf-opsawg-pcap), pcapng (draft-ietf-opsawg-pcapng), the link types
Ethernet (with VLAN tags), Linux SLL and SLL2, RAW and NULL, IPv4 and IPv6 headers (extension headers
followed), and TCP of RFC 9293. Packets that are not TCP are counted, not errors; a packet cut short by the
snapshot length keeps what its headers say.

`socket_filter` is classic BPF for SO_ATTACH_FILTER, made from addresses and ports: each connection in both
directions, and in every form that a translator gives it. It looks behind one VLAN tag only if the kernel
left it in the packet, and never at IPv4 fragments after the first (their ports are not in them).

This module touches bytes only. Files and gzip are the caller's, sockets are `finwait.kernel.capture`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from finwait.errors import DecodeError

__all__ = [
    "ACK",
    "FIN",
    "LINKTYPE_ETHERNET",
    "LINKTYPE_LINUX_SLL",
    "LINKTYPE_LINUX_SLL2",
    "LINKTYPE_RAW",
    "PSH",
    "RST",
    "SYN",
    "Frame",
    "Segment",
    "Tuple",
    "interface_block",
    "packet_block",
    "parse_segment",
    "read",
    "section_block",
    "socket_filter",
]

LINKTYPE_NULL: Final = 0
LINKTYPE_ETHERNET: Final = 1
LINKTYPE_RAW_BSD: Final = 12
LINKTYPE_RAW: Final = 101
LINKTYPE_LOOP: Final = 108
LINKTYPE_LINUX_SLL: Final = 113
LINKTYPE_IPV4: Final = 228
LINKTYPE_IPV6: Final = 229
LINKTYPE_LINUX_SLL2: Final = 276

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32

_ETH_IPV4: Final = 0x0800
_ETH_IPV6: Final = 0x86DD
_ETH_VLAN: Final = frozenset((0x8100, 0x88A8, 0x9100))
_LONGEST_PACKET: Final = 1 << 18  # the largest snapshot length that libpcap writes
_LONGEST_BLOCK: Final = 1 << 24  # pcapng sets none; beyond this the length is not one

Address = tuple[int, int]
"""Two 64-bit words, IPv4 mapped into IPv6 (as in `finwait.table.sockets`)."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One captured packet, as the file has it."""

    time_ns: int
    """Unix time."""
    link: int
    """LINKTYPE_*."""
    data: bytes
    length: int
    """On the wire; more than ``len(data)`` when it was cut."""
    interface: str = ""
    comment: str = ""
    offset: int = 0
    """Of the packet's record in the file."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment."""

    time_ns: int
    src: Address
    dst: Address
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    window: int
    """As sent, not scaled."""
    payload: int
    """Bytes of data, by the IP header (also when the capture cut them)."""
    outgoing: bool | None = None
    """Whether the capturing host sent it; None where the link type does not say."""
    interface: str = ""


# --------------------------------------------------------------------------------------------------------
# Files


def read(data: bytes) -> Iterator[Frame]:
    """Yield the packets of a pcap or pcapng file, uncompressed.

    A file that was cut in the middle of a packet (a full disk, a killed capture) gives the packets before,
    then the error.

    Raises:
        DecodeError: not a capture file, or not one any more from some place on.
    """
    if len(data) < 4:
        raise DecodeError("capture file", 0, data, "shorter than a magic number")
    (magic,) = struct.unpack_from("<I", data, 0)
    if magic == 0x0A0D0D0A:
        yield from _read_pcapng(data)
        return
    for order in "<>":
        (magic,) = struct.unpack_from(f"{order}I", data, 0)
        if magic in (0xA1B2C3D4, 0xA1B23C4D):
            yield from _read_pcap(data, order, 1000 if magic == 0xA1B2C3D4 else 1)
            return
    reason = (
        "compressed with gzip; uncompress it first" if data[:2] == b"\x1f\x8b" else "no known magic number"
    )
    raise DecodeError("capture file", 0, data, reason)


def _read_pcap(data: bytes, order: str, unit: int) -> Iterator[Frame]:
    what = "pcap file"
    if len(data) < 24:
        raise DecodeError(what, 4, data[4:], "the file header is cut")
    link = struct.unpack_from(f"{order}I", data, 20)[0] & 0x0FFFFFFF  # the high bits tell of an FCS
    at = 24
    while at < len(data):
        if len(data) - at < 16:
            raise DecodeError(what, at, data[at:], "the header of a packet is cut")
        seconds, fraction, kept, length = struct.unpack_from(f"{order}IIII", data, at)
        if kept > _LONGEST_PACKET:
            raise DecodeError(what, at, data[at:], f"a packet of {kept} bytes is impossible")
        if kept > len(data) - at - 16:
            raise DecodeError(what, at, data[at:], f"a packet of {kept} bytes is cut")
        body = data[at + 16 : at + 16 + kept]
        yield Frame(seconds * 1_000_000_000 + fraction * unit, link, body, max(length, kept), offset=at)
        at += 16 + kept


@dataclass(slots=True)
class _Interface:
    link: int
    name: str
    ticks: int
    """Time stamps a second."""
    offset_s: int


def _options(data: bytes, at: int, end: int, order: str) -> Iterator[tuple[int, bytes]]:
    while end - at >= 4:
        code, length = struct.unpack_from(f"{order}HH", data, at)
        if code == 0:
            return
        if length > end - at - 4:
            raise DecodeError("pcapng option", at, data[at:], f"an option of {length} bytes is cut")
        yield code, data[at + 4 : at + 4 + length]
        at += 4 + ((length + 3) & ~3)


def _read_pcapng(data: bytes) -> Iterator[Frame]:
    what = "pcapng file"
    order = "<"
    interfaces: list[_Interface] = []
    at = 0
    while at < len(data):
        if len(data) - at < 12:
            raise DecodeError(what, at, data[at:], "a block is cut")
        (kind,) = struct.unpack_from(f"{order}I", data, at)
        if kind == 0x0A0D0D0A:  # the same in both byte orders
            mark = data[at + 8 : at + 12]
            if mark not in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"):
                raise DecodeError(what, at + 8, data[at + 8 :], "no byte-order magic in a section header")
            order = "<" if mark == b"\x4d\x3c\x2b\x1a" else ">"
            interfaces = []
        (length,) = struct.unpack_from(f"{order}I", data, at + 4)
        if length < 12 or length % 4 or length > _LONGEST_BLOCK:
            raise DecodeError(what, at + 4, data[at + 4 :], f"a block of {length} bytes is impossible")
        if length > len(data) - at:
            raise DecodeError(what, at, data[at:], f"a block of {length} bytes is cut")
        (again,) = struct.unpack_from(f"{order}I", data, at + length - 4)
        if again != length:
            raise DecodeError(
                what, at + length - 4, data[at + length - 4 :], "the two lengths of a block differ"
            )
        end = at + length - 4
        if kind == 1:
            interfaces.append(_interface(data, at + 8, end, order))
        elif kind in (2, 3, 6):
            yield _packet(data, at, end, kind, order, interfaces)
        at += length


def _interface(data: bytes, at: int, end: int, order: str) -> _Interface:
    if end - at < 8:
        raise DecodeError("pcapng interface", at, data[at:end], "the block is too short")
    (link,) = struct.unpack_from(f"{order}H", data, at)
    found = _Interface(link, "", 1_000_000, 0)
    for code, value in _options(data, at + 8, end, order):
        if code == 2:
            found.name = value.decode("utf-8", "replace").rstrip("\0")
        elif code == 9 and len(value) == 1:
            power = value[0] & 0x7F
            if power > (63 if value[0] & 0x80 else 19):
                raise DecodeError("pcapng interface", at, value, f"time stamps of resolution {value[0]:#x}")
            found.ticks = 2**power if value[0] & 0x80 else 10**power
        elif code == 14 and len(value) == 8:
            (found.offset_s,) = struct.unpack(f"{order}q", value)
    return found


def _packet(data: bytes, at: int, end: int, kind: int, order: str, interfaces: Sequence[_Interface]) -> Frame:
    what = "pcapng packet"
    need = 12 if kind == 3 else 28
    if end - at < need:
        raise DecodeError(what, at, data[at:end], "the block is too short")
    if kind == 3:  # simple packet block: no time, the first interface
        number, ticks = 0, 0
        (length,) = struct.unpack_from(f"{order}I", data, at + 8)
        kept = min(length, end - at - 12)
    else:
        high, low, kept, length = struct.unpack_from(f"{order}IIII", data, at + 12)
        (number,) = struct.unpack_from(f"{order}H" if kind == 2 else f"{order}I", data, at + 8)
        ticks = high << 32 | low
    start = at + need
    if kept > end - start:
        raise DecodeError(what, at, data[at:end], f"a packet of {kept} bytes in a block of {end - at}")
    if number >= len(interfaces):
        raise DecodeError(what, at + 8, data[at + 8 : end], f"interface {number} was never described")
    interface = interfaces[number]
    comment = ""
    for code, value in _options(data, start + ((kept + 3) & ~3), end, order) if kind == 6 else ():
        if code == 1:
            comment = value.decode("utf-8", "replace")
    when = ticks * 1_000_000_000 // interface.ticks + interface.offset_s * 1_000_000_000
    return Frame(
        when, interface.link, data[start : start + kept], max(length, kept), interface.name, comment, at
    )


# --------------------------------------------------------------------------------------------------------
# Packets


def parse_segment(frame: Frame) -> Segment | None:
    """Return the TCP segment of a packet; None when it is another protocol or too short to tell.

    A damaged packet on the wire is a fact and not an error of the file, so nothing is raised.
    """
    found = _network(frame)
    if found is None:
        return None
    kind, at, outgoing = found
    data = frame.data
    if kind == _ETH_IPV4:
        if len(data) < at + 20 or data[at] >> 4 != 4:
            return None
        head = (data[at] & 15) * 4
        total, fragment = struct.unpack_from("!H2xH", data, at + 2)
        if head < 20 or data[at + 9] != 6 or fragment & 0x1FFF:
            return None
        src, dst = ((0, 0xFFFF << 32 | int.from_bytes(data[at + k : at + k + 4], "big")) for k in (12, 16))
        # Offloading hosts hand over 0 for packets longer than 64 kB.
        size = (total or frame.length - at) - head
        at += head
    else:
        after = _behind_ipv6(data, at)
        if after is None:
            return None
        src, dst = (
            (
                int.from_bytes(data[at + k : at + k + 8], "big"),
                int.from_bytes(data[at + k + 8 : at + k + 16], "big"),
            )
            for k in (8, 24)
        )
        (total,) = struct.unpack_from("!H", data, at + 4)
        size = (total or frame.length - at - 40) - (after - at - 40)
        at = after
    if len(data) < at + 20:
        return None
    sport, dport, seq, ack, offset, flags, window = struct.unpack_from("!HHIIBBH", data, at)
    head = (offset >> 4) * 4
    if head < 20:
        return None
    return Segment(
        frame.time_ns, src, dst, sport, dport, seq, ack, flags, window, max(size - head, 0), outgoing,
        frame.interface,
    )  # fmt: skip


def _behind_ipv6(data: bytes, at: int) -> int | None:
    """Return where the TCP header is; None when there is none in this packet."""
    if len(data) < at + 40 or data[at] >> 4 != 6:
        return None
    following, at = data[at + 6], at + 40
    for _ in range(8):
        if following == 6:
            return at
        if len(data) < at + 8:
            return None
        if following in (0, 43, 60, 135):  # hop-by-hop, routing, destination options, mobility
            following, at = data[at], at + (data[at + 1] + 1) * 8
        elif following == 51:  # authentication header: counted in words
            following, at = data[at], at + (data[at + 1] + 2) * 4
        elif following == 44:  # fragment: only the first has the ports
            if struct.unpack_from("!H", data, at + 2)[0] & 0xFFF8:
                return None
            following, at = data[at], at + 8
        else:
            return None
    return None


def _network(frame: Frame) -> tuple[int, int, bool | None] | None:
    """Return the ethertype, where the network header is, and whether we sent the packet."""
    data, link = frame.data, frame.link
    outgoing: bool | None = None
    if link == LINKTYPE_ETHERNET:
        if len(data) < 14:
            return None
        (kind,), at = struct.unpack_from("!H", data, 12), 14
    elif link == LINKTYPE_LINUX_SLL:
        if len(data) < 16:
            return None
        (way,), (kind,), at = struct.unpack_from("!H", data, 0), struct.unpack_from("!H", data, 14), 16
        outgoing = way == 4
    elif link == LINKTYPE_LINUX_SLL2:
        if len(data) < 20:
            return None
        (kind,), at = struct.unpack_from("!H", data, 0), 20
        outgoing = data[10] == 4
    elif link in (LINKTYPE_RAW, LINKTYPE_RAW_BSD, LINKTYPE_IPV4, LINKTYPE_IPV6, 14):
        if not data:
            return None
        return {4: _ETH_IPV4, 6: _ETH_IPV6}.get(data[0] >> 4, 0), 0, None
    elif link in (LINKTYPE_NULL, LINKTYPE_LOOP):
        if len(data) < 5:
            return None
        return {4: _ETH_IPV4, 6: _ETH_IPV6}.get(data[4] >> 4, 0), 4, None
    else:
        return None
    for _ in range(3):
        if kind not in _ETH_VLAN:
            break
        if len(data) < at + 4:
            return None
        (kind,), at = struct.unpack_from("!H", data, at + 2), at + 4
    return (kind, at, outgoing) if kind in (_ETH_IPV4, _ETH_IPV6) else None


# --------------------------------------------------------------------------------------------------------
# Writing pcapng


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value.ljust((len(value) + 3) & ~3, b"\0")


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def section_block(*, hardware: str = "", system: str = "", application: str = "", comment: str = "") -> bytes:
    """Return a section header block: the start of a pcapng file, or of a part of it.

    A section without packets is how a comment is written that belongs to no packet: a packet block without a
    packet would be shown as a malformed one.
    """
    options = b""
    for code, text in ((1, comment), (2, hardware), (3, system), (4, application)):
        if text:
            options += _option(code, _cut(text))
    if options:
        options += _option(0, b"")
    return _block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + options)


def interface_block(
    link: int, name: str, *, snaplen: int = 0, description: str = "", filter_text: str = ""
) -> bytes:
    """Return an interface description block with time stamps in nanoseconds."""
    options = _option(2, _cut(name))
    if description:
        options += _option(3, _cut(description))
    options += _option(9, b"\x09")
    if filter_text:
        options += _option(11, b"\0" + _cut(filter_text))
    return _block(1, struct.pack("<HHI", link, 0, snaplen) + options + _option(0, b""))


def packet_block(
    interface: int, time_ns: int, data: bytes, length: int, *, comment: str = "", outgoing: bool | None = None
) -> bytes:
    """Return an enhanced packet block.

    Args:
        interface: number of its interface description block in the section.
        time_ns: Unix time.
        data: the bytes that were kept.
        length: how many there were.
        comment: shown by Wireshark with the packet.
        outgoing: whether this host sent it.
    """
    body = struct.pack(
        "<IIIII", interface, time_ns >> 32 & 0xFFFFFFFF, time_ns & 0xFFFFFFFF, len(data), length
    )
    body += data.ljust((len(data) + 3) & ~3, b"\0")
    options = b""
    if comment:
        options += _option(1, _cut(comment))
    if outgoing is not None:
        options += _option(2, struct.pack("<I", 2 if outgoing else 1))
    return _block(6, body + (options + _option(0, b"") if options else b""))


def _cut(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:4000]


# --------------------------------------------------------------------------------------------------------
# Classic BPF

Tuple = tuple[Address, int, Address, int]
"""Address and port of one end, address and port of the other."""

_LD, _LDH, _LDB, _LDX_MSH = 0x20, 0x28, 0x30, 0xB1
_LDH_IND = 0x48
_JEQ, _JSET, _JA, _RET = 0x15, 0x45, 0x05, 0x06
_LONGEST_PROGRAM: Final = 4096  # BPF_MAXINSNS


class _Program:
    """Instructions with labels; jumps go forward only."""

    def __init__(self) -> None:
        self.code: list[tuple[int, int, str | None, str | None]] = []
        self.labels: dict[str, int] = {}

    def add(self, code: int, k: int, true: str | None = None, false: str | None = None) -> None:
        self.code.append((code, k, true, false))

    def label(self, name: str) -> None:
        self.labels[name] = len(self.code)

    def assemble(self) -> bytes:
        out = b""
        for at, (code, k, true, false) in enumerate(self.code):
            if code == _JA:
                assert true is not None
                out += struct.pack("=HBBI", code, 0, 0, self.labels[true] - at - 1)
                continue
            jumps = [0 if name is None else self.labels[name] - at - 1 for name in (true, false)]
            out += struct.pack("=HBBI", code, *jumps, k)
        return out


def socket_filter(tuples: Iterable[Tuple], *, snaplen: int = 1 << 16) -> bytes:
    """Return an array of ``struct sock_filter`` that keeps both directions of each connection.

    For a packet socket of type SOCK_DGRAM: the packet begins with the network header.

    Args:
        tuples: the two ends of each connection; give every form that translation makes of it. A port 0 is
            any port.
        snaplen: bytes to keep of each packet.

    Raises:
        ValueError: so many that the program would be longer than the kernel takes (4096 instructions).
    """
    wanted = sorted({t for a, p, b, q in tuples for t in ((a, p, b, q), (b, q, a, p))})
    v4 = [t for t in wanted if _is4(t[0])]
    v6 = [t for t in wanted if not _is4(t[0])]
    program = _Program()
    add = program.add
    add(_LDB, 0)
    add(0x54, 0xF0)  # AND: the version
    add(_JEQ, 0x40, "v4", None)
    add(_JA, 0, "not4")
    program.label("v4")
    add(_LDB, 9)
    add(_JEQ, 6, None, "drop4")
    add(_LDH, 6)
    add(_JSET, 0x1FFF, "drop4", None)
    add(_LDX_MSH, 0)  # X = length of the IPv4 header
    add(_JA, 0, "tests4")
    program.label("drop4")
    add(_RET, 0)
    program.label("tests4")
    for number, one in enumerate(v4):
        _one(program, f"4-{number}", one, snaplen, six=False)
    add(_RET, 0)
    program.label("not4")
    add(_JEQ, 0x60, None, "drop6")
    add(_LDB, 6)
    add(_JEQ, 6, "tests6", None)
    program.label("drop6")
    add(_RET, 0)
    program.label("tests6")
    for number, one in enumerate(v6):
        _one(program, f"6-{number}", one, snaplen, six=True)
    add(_RET, 0)
    if len(program.code) > _LONGEST_PROGRAM:
        raise ValueError(f"{len(wanted) // 2} connections are too many for one socket filter")
    return program.assemble()


def _is4(address: Address) -> bool:
    return address[0] == 0 and address[1] >> 32 == 0xFFFF


def _one(program: _Program, name: str, one: Tuple, snaplen: int, *, six: bool) -> None:
    src, sport, dst, dport = one
    miss = f"{name}-miss"
    tests: list[tuple[int, int, int]] = []
    if six:
        for base, (high, low) in ((8, src), (24, dst)):
            words = (high >> 32, high & 0xFFFFFFFF, low >> 32, low & 0xFFFFFFFF)
            tests += [(_LD, base + 4 * k, word) for k, word in enumerate(words)]
    else:
        tests += [(_LD, 12, src[1] & 0xFFFFFFFF), (_LD, 16, dst[1] & 0xFFFFFFFF)]
    for port, offset in ((sport, 0), (dport, 2)):
        if port:
            tests.append((_LDH, 40 + offset, port) if six else (_LDH_IND, offset, port))
    for load, at, value in tests:
        program.add(load, at)
        program.add(_JEQ, value, None, miss)
    program.add(_RET, snaplen)
    program.label(miss)
