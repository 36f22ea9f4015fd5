"""Capture files: pcap and pcapng, read one packet at a time and written.

Mirrors the pcap format (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng). A file is read through
`ByteSource`, so its size costs no memory: what is kept is one block and the descriptions of the interfaces.

The surprise: lengths in a file are what somebody wrote there. A length that no capture can have, a hole
(a packet header of zeros) and an endless row of empty packets or blocks end the reading with a `DecodeError`
that says where; what came before was yielded.

This module touches bytes only. Files and compression are the caller's; what is in a packet is
`finwait.uapi.segment`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from finwait.errors import DecodeError

__all__ = [
    "ByteSource",
    "Frame",
    "PacketReader",
    "interface_block",
    "packet_block",
    "section_block",
    "statistics_block",
]

_LONGEST_PACKET: Final = 1 << 18  # the largest snapshot length that libpcap writes
_LONGEST_BLOCK: Final = 1 << 24  # pcapng sets none; beyond this the length is not one
_MOST_INTERFACES: Final = 1 << 16
_MOST_EMPTY: Final = 10_000  # packets or blocks without one byte, in a row
_MOST_COMMENTS: Final = 1000
_LONGEST_NAME: Final = 256
_CHUNK: Final = 1 << 18

_PACKED: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
)


class ByteSource(Protocol):
    """What bytes come from: an open file, a pipe, a decompressor."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One captured packet, as the file has it."""  # a struct: see `finwait.uapi.segment.Segment`

    time_ns: int
    """Unix time."""
    link: int
    """LINKTYPE_*."""
    data: bytes
    length: int
    """On the wire; more than ``len(data)`` when it was cut."""
    interface: str = ""
    place: str = ""
    """What the file says about the interface (if_description); we write the network namespace there."""
    comment: str = ""
    offset: int = 0
    """Of the packet's record in the file."""


# --------------------------------------------------------------------------------------------------------
# Reading


class _Bytes:
    """A window on a source that grows to what is needed and moves on."""

    __slots__ = ("_source", "at", "base", "data")

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self.data = b""
        self.at = 0
        """Where the reader stands in `data`."""
        self.base = 0
        """Where `data` begins in the file."""

    @property
    def offset(self) -> int:
        return self.base + self.at

    def left(self) -> int:
        return len(self.data) - self.at

    def has(self, size: int) -> bool:
        """Whether ``size`` more bytes are there; they are in `data` then."""
        if len(self.data) - self.at >= size:
            return True
        parts = [self.data[self.at :]]
        available = len(parts[0])
        self.base += self.at
        self.at = 0
        while available < size and (part := self._source.read(max(_CHUNK, size - available))):
            parts.append(part)
            available += len(part)
        self.data = b"".join(parts)
        return available >= size

    def error(self, subject: str, reason: str, ahead: int = 0) -> DecodeError:
        """Return an error at the reader's place, or some bytes ahead of it."""
        at = self.at + ahead
        return DecodeError(subject, self.base + at, self.data[at : at + 16], reason)


class PacketReader:
    """The packets of a pcap or pcapng file, uncompressed; iterate over it once.

    A file that was cut in the middle of a packet (a full disk, a killed capture) gives the packets before,
    then the error.
    """

    def __init__(self, source: ByteSource) -> None:
        self._in = _Bytes(source)
        self._interfaces: list[_Interface] = []
        self.dropped = 0
        """Packets that the capturing program says it lost."""
        self.application = ""
        """What wrote the section that is being read."""
        self.comments: list[str] = []
        """Those that belong to whole sections, in order; the first thousand."""
        self.ended_ns = 0
        """When the capture ended, by its own account; 0 when it does not say."""

    def __iter__(self) -> Iterator[Frame]:
        """Yield the packets.

        Raises:
            DecodeError: not a capture file, or not one any more from some place on.
        """
        data = self._in
        if not data.has(4):
            raise data.error("capture file", "shorter than a magic number")
        head = data.data[:8]
        (magic,) = struct.unpack_from("<I", head)
        if magic == 0x0A0D0D0A:
            yield from self._pcapng()
            return
        for order in "<>":
            (magic,) = struct.unpack_from(f"{order}I", head)
            if magic in (0xA1B2C3D4, 0xA1B23C4D):
                yield from self._pcap(order, 1000 if magic == 0xA1B2C3D4 else 1)
                return
            if magic == 0xA1B2CD34:
                raise data.error("capture file", "the pcap variant of a patched libpcap, which is not read")
        packed = next((name for start, name in _PACKED if head.startswith(start)), "")
        reason = f"compressed with {packed}; uncompress it first" if packed else "no known magic number"
        raise data.error("capture file", reason)

    def _pcap(self, order: str, unit: int) -> Iterator[Frame]:
        subject = "pcap file"
        data = self._in
        if not data.has(24):
            data.at = min(4, len(data.data))
            raise data.error(subject, "the file header is cut")
        link = struct.unpack_from(f"{order}I", data.data, 20)[0] & 0xFFFF  # the high bits tell of an FCS
        data.at = 24
        head = struct.Struct(f"{order}IIII")
        empty = 0
        while data.has(16) or data.left():
            if data.left() < 16:
                raise data.error(subject, "the header of a packet is cut")
            seconds, fraction, kept, length = head.unpack_from(data.data, data.at)
            if kept > _LONGEST_PACKET:
                raise data.error(subject, f"a packet of {kept} bytes is impossible")
            if not (kept or length or seconds or fraction):
                raise data.error(subject, "a packet header of zeros: from here on the file is a hole")
            empty = 0 if kept else empty + 1
            if empty > _MOST_EMPTY:
                raise data.error(subject, f"more than {_MOST_EMPTY} packets in a row without one byte")
            if not data.has(16 + kept):
                raise data.error(subject, f"a packet of {kept} bytes is cut")
            at = data.at + 16
            body = data.data[at : at + kept]
            when = seconds * 1_000_000_000 + fraction * unit
            yield Frame(when, link, body, max(length, kept), offset=data.offset)
            data.at = at + kept

    def _pcapng(self) -> Iterator[Frame]:
        subject = "pcapng file"
        data = self._in
        order = "<"
        empty = 0
        while data.has(12) or data.left():
            if data.left() < 12:
                raise data.error(subject, "a block is cut")
            (kind,) = struct.unpack_from(f"{order}I", data.data, data.at)
            if kind == 0x0A0D0D0A:  # the same in both byte orders
                order = self._byte_order()
            (length,) = struct.unpack_from(f"{order}I", data.data, data.at + 4)
            if length < 12 or length % 4 or length > _LONGEST_BLOCK:
                raise data.error(subject, f"a block of {length} bytes is impossible", 4)
            if not data.has(length):
                raise data.error(subject, f"a block of {length} bytes is cut")
            (again,) = struct.unpack_from(f"{order}I", data.data, data.at + length - 4)
            if again != length:
                raise data.error(subject, "the two lengths of a block differ", length - 4)
            frame = self._block(kind, data.data[data.at : data.at + length - 4], order)
            empty = 0 if length > 12 and (frame is None or frame.data) else empty + 1
            if empty > _MOST_EMPTY:
                raise data.error(subject, f"more than {_MOST_EMPTY} blocks in a row without one byte")
            if frame is not None:
                yield frame
            data.at += length

    def _byte_order(self) -> str:
        mark = self._in.data[self._in.at + 8 : self._in.at + 12]
        if mark not in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"):
            raise self._in.error("pcapng file", "no byte-order magic in a section header", 8)
        return "<" if mark == b"\x4d\x3c\x2b\x1a" else ">"

    def _block(self, kind: int, block: bytes, order: str) -> Frame | None:
        """Take a block in, without its second length; return the packet in it, if it has one."""
        base = self._in.offset
        if kind == 0x0A0D0D0A:
            self._section(block, order)
        elif kind == 1:
            if len(self._interfaces) >= _MOST_INTERFACES:
                raise self._in.error("pcapng file", f"more than {_MOST_INTERFACES} interfaces")
            self._interfaces.append(_interface(block, order, base))
        elif kind == 5:
            self._statistics(block, order)
        elif kind in (2, 3, 6):
            return self._packet(block, kind, order, base)
        return None

    def _section(self, block: bytes, order: str) -> None:
        self._interfaces = []
        self.application = ""
        for code, value in _options(block, 24, order):
            if code == 4:
                self.application = _text(value)
            elif code == 1 and len(self.comments) < _MOST_COMMENTS:
                self.comments.append(_text(value, 4000))

    def _statistics(self, block: bytes, order: str) -> None:
        if len(block) < 20:
            return
        (number,) = struct.unpack_from(f"{order}I", block, 8)
        interface = self._interfaces[number] if number < len(self._interfaces) else None
        for code, value in _options(block, 20, order):
            if len(value) != 8:
                continue
            if code == 3 and interface is not None:
                high, low = struct.unpack(f"{order}II", value)
                self.ended_ns = max(self.ended_ns, interface.time_ns(high << 32 | low))
            elif code in (5, 7):  # dropped by the interface, by the operating system
                self.dropped += struct.unpack(f"{order}Q", value)[0]

    def _packet(self, block: bytes, kind: int, order: str, base: int) -> Frame:
        subject = "pcapng packet"
        need = 12 if kind == 3 else 28
        if len(block) < need:
            raise DecodeError(subject, base, block, "the block is too short")
        if kind == 3:  # simple packet block: no time, the first interface
            number, ticks = 0, 0
            (length,) = struct.unpack_from(f"{order}I", block, 8)
            kept = min(length, len(block) - 12)
            if self._interfaces and self._interfaces[0].snaplen:
                kept = min(kept, self._interfaces[0].snaplen)
        else:
            high, low, kept, length = struct.unpack_from(f"{order}IIII", block, 12)
            (number,) = struct.unpack_from(f"{order}H" if kind == 2 else f"{order}I", block, 8)
            ticks = high << 32 | low
        if kept > len(block) - need:
            raise DecodeError(subject, base, block, f"a packet of {kept} bytes in a block of {len(block)}")
        if number >= len(self._interfaces):
            raise DecodeError(subject, base + 8, block[8:], f"interface {number} was never described")
        interface = self._interfaces[number]
        comment = ""
        if kind == 6:
            for code, value in _options(block, need + ((kept + 3) & ~3), order):
                if code == 1:
                    comment = _text(value, 4000)
                elif code == 4 and len(value) == 8:
                    self.dropped += struct.unpack(f"{order}Q", value)[0]
        return Frame(
            interface.time_ns(ticks), interface.link, block[need : need + kept], max(length, kept),
            interface.name, interface.place, comment, base,
        )  # fmt: skip


class _Interface(Struct):
    link: int
    snaplen: int
    name: str = ""
    place: str = ""
    ticks: int = 1_000_000
    """Time stamps a second."""
    offset_s: int = 0

    def time_ns(self, ticks: int) -> int:
        return ticks * 1_000_000_000 // self.ticks + self.offset_s * 1_000_000_000


def _text(value: bytes, most: int = _LONGEST_NAME) -> str:
    return value[:most].decode("utf-8", "replace").rstrip("\0")


def _options(block: bytes, at: int, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the options of a block; those behind one that is cut are not there."""
    while len(block) - at >= 4:
        code, length = struct.unpack_from(f"{order}HH", block, at)
        if code == 0 or length > len(block) - at - 4:
            return
        yield code, block[at + 4 : at + 4 + length]
        at += 4 + ((length + 3) & ~3)


def _interface(block: bytes, order: str, base: int) -> _Interface:
    if len(block) < 16:
        raise DecodeError("pcapng interface", base, block, "the block is too short")
    link, _, snaplen = struct.unpack_from(f"{order}HHI", block, 8)
    interface = _Interface(link, snaplen)
    for code, value in _options(block, 16, order):
        if code == 2:
            interface.name = _text(value)
        elif code == 3:
            interface.place = _text(value)
        elif code == 9 and len(value) == 1:
            power = value[0] & 0x7F
            if power > (63 if value[0] & 0x80 else 19):
                raise DecodeError("pcapng interface", base, value, f"time stamps of resolution {value[0]:#x}")
            interface.ticks = 2**power if value[0] & 0x80 else 10**power
        elif code == 14 and len(value) == 8:
            (interface.offset_s,) = struct.unpack(f"{order}q", value)
    return interface


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


def statistics_block(interface: int, time_ns: int, *, received: int, dropped: int, ended_ns: int) -> bytes:
    """Return an interface statistics block: how much came, how much was lost, until when was captured."""
    body = struct.pack("<III", interface, time_ns >> 32 & 0xFFFFFFFF, time_ns & 0xFFFFFFFF)
    body += _option(3, struct.pack("<II", ended_ns >> 32 & 0xFFFFFFFF, ended_ns & 0xFFFFFFFF))
    body += _option(4, struct.pack("<Q", received)) + _option(7, struct.pack("<Q", dropped)) + _option(0, b"")
    return _block(5, body)
