"""Pieces of an ELF file → the names of its functions, and where in the file an address of it lies.

Mirrors include/uapi/linux/elf.h and the gABI, 64 bits of either byte order; a file of 32 bits is not read. Who reads
the file hands over pieces of it, whose places and sizes the header tells (`ElfHeader.segments_at`, `ElfSection`): a
program of hundreds of megabytes has some of symbols.

Everything in such a file may be a lie: each number is checked, no loop follows it, and a name that is no name is none.
A symbol without a size names nothing, for nobody says how far it reaches.

This module touches bytes only. Finding and opening the file is `finwait.kernel.user_symbols`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.errors import DecodeError

__all__ = [
    "ElfHeader", "ElfSection", "ElfSegment", "Function", "Symbols", "name_in", "parse_header", "parse_sections",
    "parse_segments", "parse_symbols", "plainest",
]  # fmt: skip

PT_LOAD: Final = 1
PT_GNU_EH_FRAME: Final = 0x6474E550
SHT_PROGBITS, SHT_SYMTAB, SHT_DYNSYM = 1, 2, 11
_SHF_COMPRESSED: Final = 1 << 11
SYMBOL_SIZE: Final = 24
_STT_FUNC, _STT_GNU_IFUNC = 2, 10
_SEGMENT_SIZE, _SECTION_SIZE = 56, 64
MOST_NAME: Final = 1024
"""Bytes of a name."""
_MOST_ALIASES: Final = 64


class ElfHeader(Struct, frozen=True):
    """Of ``Elf64_Ehdr`` what leads on."""

    byteorder: Literal["<", ">"]
    segments_at: int
    segments: int
    sections_at: int
    sections: int
    names: int
    """Index of the section with the names of sections."""

    @property
    def segments_size(self) -> int:
        """Bytes of the program headers."""
        return self.segments * _SEGMENT_SIZE

    @property
    def sections_size(self) -> int:
        """Bytes of the section headers."""
        return self.sections * _SECTION_SIZE


class ElfSegment(Struct, frozen=True):
    """``Elf64_Phdr``: a piece of the file and the addresses that it is meant for."""

    kind: int
    offset: int
    address: int
    size: int
    """Bytes in the file."""


class ElfSection(Struct, frozen=True):
    """``Elf64_Shdr``."""

    name_at: int
    """In the names of sections."""
    kind: int
    plain: bool
    """Whether its bytes are not compressed."""
    address: int
    offset: int
    size: int
    link: int
    """Index of the section with the names of a table of symbols."""


def parse_header(data: bytes) -> ElfHeader:
    """Parse the first 64 bytes.

    Raises:
        DecodeError: it is no ELF file of 64 bits.
    """
    if len(data) < 64 or data[:4] != b"\x7fELF":
        raise DecodeError("ELF header", 0, data[:16], "not an ELF file")
    if data[4] != 2 or data[5] not in (1, 2):
        raise DecodeError("ELF header", 4, data[4:20], "not of 64 bits")
    order: Literal["<", ">"] = "<" if data[5] == 1 else ">"
    segments_at, sections_at = struct.unpack_from(f"{order}QQ", data, 32)
    segment_size, segments, section_size, sections, names = struct.unpack_from(f"{order}5H", data, 54)
    if segments and segment_size != _SEGMENT_SIZE:
        raise DecodeError("ELF header", 54, data[54:], f"program headers of {segment_size} bytes")
    if sections and section_size != _SECTION_SIZE:
        raise DecodeError("ELF header", 58, data[58:], f"section headers of {section_size} bytes")
    return ElfHeader(order, segments_at, segments, sections_at, sections, names)


def parse_segments(data: bytes, header: ElfHeader) -> tuple[ElfSegment, ...]:
    """Parse the program headers; those that are cut off are left out."""
    entries = struct.iter_unpack(
        f"{header.byteorder}IIQQQQQQ", data[: len(data) // _SEGMENT_SIZE * _SEGMENT_SIZE]
    )
    return tuple(
        ElfSegment(kind, offset, address, size) for kind, _, offset, address, _, size, _, _ in entries
    )


def parse_sections(data: bytes, header: ElfHeader) -> tuple[ElfSection, ...]:
    """Parse the section headers; those that are cut off are left out."""
    entries = struct.iter_unpack(
        f"{header.byteorder}IIQQQQIIQQ", data[: len(data) // _SECTION_SIZE * _SECTION_SIZE]
    )
    return tuple(
        ElfSection(name, kind, not flags & _SHF_COMPRESSED, address, offset, size, link)
        for name, kind, flags, address, offset, size, link, _, _, _ in entries
    )


class Function(Struct, frozen=True):
    """A function in a table of symbols."""

    begin: int
    end: int
    names_at: tuple[int, ...]
    """Where its names are in the table of strings: it may have several."""


class Symbols:
    """Functions by address; immutable."""

    def __init__(
        self, begin: NDArray[np.uint64], end: NDArray[np.uint64], name_at: NDArray[np.uint32]
    ) -> None:
        self._begin = begin
        self._end = end
        self._name_at = name_at

    def __len__(self) -> int:
        return len(self._begin)

    @property
    def taken(self) -> int:
        """What they take in memory."""
        return 20 * len(self._begin)

    def at(self, address: int) -> Function | None:
        """Return the function that an address of the file belongs to."""
        if not 0 <= address < 1 << 64:
            return None
        place = int(np.searchsorted(self._begin, np.uint64(address), "right")) - 1
        # A function may lie within another (an alias, a cold part): the innermost has begun last.
        for earlier in range(place, max(place - _MOST_ALIASES, -1), -1):
            if address < int(self._end[earlier]):
                begin = self._begin[earlier]
                first = int(np.searchsorted(self._begin, begin, "left"))
                same = [
                    int(self._name_at[k])
                    for k in range(max(first, place - _MOST_ALIASES), place + 1)
                    if self._begin[k] == begin and address < int(self._end[k])
                ]
                return Function(int(begin), int(self._end[earlier]), tuple(same))
        return None


def plainest(names: Iterable[str]) -> str:
    """Return of the names of one function the one that people know: accept4, not __accept4; empty where none is one."""
    return min((name for name in names if name), key=lambda name: name.startswith("_"), default="")


def name_in(names: bytes) -> str:
    """Return the name at the beginning of a piece of a table of strings; empty where it is none."""
    text = names[:MOST_NAME].partition(b"\0")[0].decode("utf-8", "replace")
    return text if text.isprintable() else ""


def parse_symbols(pieces: Iterable[bytes], header: ElfHeader) -> Symbols:
    """Parse ``.symtab`` or ``.dynsym``; what is no defined function with a size is left out.

    Args:
        pieces: of the table, each of whole entries (`SYMBOL_SIZE`); what is cut off at the end of one is left out.
        header: of the file.
    """
    order = header.byteorder
    layout = np.dtype(
        [("name", f"{order}u4"), ("info", "u1"), ("other", "u1"), ("section", f"{order}u2"),
         ("value", f"{order}u8"), ("size", f"{order}u8")]
    )  # fmt: skip
    begins, ends, names = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
    for piece in pieces:
        rows = np.frombuffer(piece, layout, len(piece) // SYMBOL_SIZE)
        kind = rows["info"] & 15
        good = ((kind == _STT_FUNC) | (kind == _STT_GNU_IFUNC)) & (rows["section"] != 0) & (rows["size"] > 0)
        rows = rows[good]
        begin, size = rows["value"].astype(np.uint64), rows["size"].astype(np.uint64)
        good = size <= np.uint64((1 << 64) - 1) - begin
        begins.append(begin[good])
        ends.append((begin + size)[good])
        names.append(rows["name"][good].astype(np.uint32))
    begin, end, name_at = np.concatenate(begins), np.concatenate(ends), np.concatenate(names)
    sequence = np.argsort(begin, kind="stable")
    return Symbols(begin[sequence], end[sequence], name_at[sequence])
