"""``.eh_frame``: where the caller of a function is, at each of its instructions.

Mirrors the Linux Standard Base (``.eh_frame_hdr``, the encodings of pointers) and chapter 6.4 of DWARF 5 (call frame
instructions), for x86-64. The linker sorts the table of ``.eh_frame_hdr``, so that one description is found without
reading the others, nor the table as a whole; without that table (static programs) all are scanned once. A
``.debug_frame`` is laid out nearly the same.

Only what compilers write for functions is understood: a frame address that is a register plus a number, and registers
that are saved at a number from there. Where a description holds an expression for what is needed, or anything else, the
answer is None: not known. Every loop eats bytes.

This module touches bytes only. Finding the tables is `finwait.kernel.user_symbols`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from finwait.errors import DecodeError

__all__ = ["FrameRule", "Index", "TableHeader", "frame_rule", "parse_table_header", "scan"]

BP, SP, RETURN = 6, 7, 16  # as DWARF numbers the registers of x86-64
_PC_RELATIVE, _TABLE_RELATIVE = 0x10, 0x30
_FORMATS: Final = {0x00: "<Q", 0x03: "<I", 0x04: "<Q", 0x0B: "<i", 0x0C: "<q"}
_MOST_INSTRUCTIONS: Final = 4096
_DEBUG_CIE: Final = 0xFFFFFFFF


class FrameRule(Struct, frozen=True):
    """How to come from a function to its caller."""

    register: int
    """`BP` or `SP`: the address of the frame is this register …"""
    offset: int
    """… plus this number."""
    return_at: int | None
    """Where the return address is, from the address of the frame; None where there is no caller."""
    bp_at: int | None = None
    """Where the caller's frame pointer is saved; None where the register still has it."""


class TableHeader(Struct, frozen=True):
    """The beginning of ``.eh_frame_hdr``, whose table follows: pairs of ``int32``, from its own address."""

    SIZE: ClassVar[int] = 12

    address: int
    count: int

    def find(self, address: int, entry: Callable[[int], bytes]) -> int | None:
        """Return where the description is that may be of the function at an address.

        Args:
            address: of the file.
            entry: place in the table → its eight bytes, or fewer where there are no more.
        """
        low, high = 0, self.count
        described = None
        while low < high:
            middle = (low + high) // 2
            data = entry(middle)
            if len(data) < 8:
                return None
            begin, at = struct.unpack("<ii", data)
            if begin + self.address <= address:
                low, described = middle + 1, at + self.address
            else:
                high = middle
        return described


class Index(Struct, frozen=True):
    """Descriptions by the functions that they are of."""

    begin: np.ndarray[tuple[int], np.dtype[np.int64]]
    """Where functions begin, in the addresses of the file, in order."""
    described: np.ndarray[tuple[int], np.dtype[np.int64]]
    """Where each is described: the place in the section."""

    @property
    def taken(self) -> int:
        """What it takes in memory."""
        return 16 * len(self.begin)

    def find(self, address: int) -> int | None:
        """Return where the description is that may be of the function at an address."""
        if not 0 <= address < 1 << 63:
            return None
        place = int(np.searchsorted(self.begin, address, "right")) - 1
        return int(self.described[place]) if place >= 0 else None


def parse_table_header(data: bytes, address: int, size: int) -> TableHeader:
    """Parse the first twelve bytes of ``.eh_frame_hdr``.

    Args:
        data: those.
        address: what the section is meant for.
        size: of the section.

    Raises:
        DecodeError: another version, or other encodings than linkers write.
    """
    subject = ".eh_frame_hdr"
    if len(data) < 12 or data[0] != 1:
        raise DecodeError(subject, 0, data[:16], "no version 1")
    if data[1] & 0x0F not in (0x03, 0x0B) or data[2] != 0x03 or data[3] != (_TABLE_RELATIVE | 0x0B):
        raise DecodeError(subject, 1, data[1:17], "encodings that no linker writes")
    return TableHeader(address, min(struct.unpack_from("<I", data, 8)[0], max(size - 12, 0) // 8))


def scan(section: bytes, address: int, *, debug: bool = False) -> Index:
    """Go through ``.eh_frame``, or ``.debug_frame``, from the beginning; it ends where it is not understood.

    Args:
        section: all of it.
        address: what it is meant for.
        debug: whether it is ``.debug_frame``.
    """
    entries: list[tuple[int, int]] = []
    encodings: dict[int, int | None] = {}
    at = 0
    while at + 8 <= len(section):
        size, back = struct.unpack_from("<II", section, at)
        if not 4 <= size <= len(section) - at - 4:
            break
        common_at = back if debug else at + 4 - back
        if back != (_DEBUG_CIE if debug else 0) and 0 <= common_at < len(section):
            if common_at not in encodings:
                encodings[common_at] = _encoding(section, common_at)
            begin = _begin(section, at, size, address, encodings[common_at])
            if begin is not None:
                entries.append((begin, at))
        at += 4 + size
    pairs = np.array(sorted(entries), np.int64).reshape(-1, 2)
    return Index(pairs[:, 0], pairs[:, 1])


def _encoding(section: bytes, at: int) -> int | None:
    """Return how the CIE at a place says that pointers are written; None where it is none."""
    size = int.from_bytes(section[at : at + 4], "little")
    try:
        return _common(section[at + 8 : at + 4 + size]).encoding if size < 1 << 16 else None
    except DecodeError:
        return None


def _begin(section: bytes, at: int, size: int, address: int, encoding: int | None) -> int | None:
    """Return where the function begins that the FDE at a place is of."""
    form = None if encoding is None else _FORMATS.get(encoding & 0x0F)
    if form is None or encoding is None or encoding & 0xF0 not in (0, _PC_RELATIVE):
        return None
    if struct.calcsize(form) > size - 4:
        return None
    number: int = struct.unpack_from(form, section, at + 8)[0]
    begin = number + (address + at + 8 if encoding & _PC_RELATIVE else 0) & (1 << 64) - 1
    return begin if begin < 1 << 63 else None


class _Bytes:
    """Reads on, and raises at the end."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    @property
    def more(self) -> bool:
        return self.at < len(self.data)

    def unpack(self, form: str) -> int:
        size = struct.calcsize(form)
        if self.at + size > len(self.data):
            raise DecodeError(".eh_frame", self.at, self.data[self.at : self.at + 16], "ends too early")
        self.at += size
        number: int = struct.unpack_from(form, self.data, self.at - size)[0]
        return number

    def byte(self) -> int:
        return self.unpack("<B")

    def skip(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise DecodeError(".eh_frame", self.at, self.data[self.at : self.at + 16], "ends too early")
        self.at += count

    def unsigned(self) -> int:
        """Read a LEB128 number."""
        number = shift = 0
        while True:
            part = self.byte()
            number |= (part & 0x7F) << shift
            shift += 7
            if part < 0x80:
                return number
            if shift > 63:
                raise DecodeError(".eh_frame", self.at, b"", "a number of more than 64 bits")

    def signed(self) -> int:
        begin = self.at
        number = self.unsigned()
        bits = 7 * (self.at - begin)
        return number - (1 << bits) if number >> (bits - 1) & 1 else number


class _Common(Struct):
    """What a CIE says for all descriptions that refer to it."""

    code_factor: int
    data_factor: int
    encoding: int
    signal: bool
    augmented: bool
    instructions: bytes


def _common(data: bytes) -> _Common:
    """Parse a CIE behind its length and id.

    Raises:
        DecodeError: of another version, for another processor, or cut off.
    """
    reader = _Bytes(data)
    version = reader.byte()
    end = data.find(b"\0", reader.at)
    if version not in (1, 3, 4) or end < 0:
        raise DecodeError("CIE", 0, data[:16], f"version {version}")
    augmentation = data[reader.at : end]
    reader.at = end + 1
    if version == 4 and (reader.byte(), reader.byte()) != (
        8,
        0,
    ):  # sizes of addresses and of segment selectors
        raise DecodeError("CIE", 0, data[:16], "not of x86-64")
    common = _Common(reader.unsigned(), reader.signed(), 0, False, augmentation[:1] == b"z", b"")
    returns = reader.byte() if version == 1 else reader.unsigned()
    if returns != RETURN or (augmentation and not common.augmented):
        raise DecodeError("CIE", 0, data[:16], "not of x86-64")
    if common.augmented:
        length = reader.unsigned()
        rest = reader.at + length
        for letter in augmentation[1:]:
            if letter == ord("R"):
                common.encoding = reader.byte()
            elif letter == ord("P"):
                form = _FORMATS.get(reader.byte() & 0x0F)
                if form is None:
                    raise DecodeError("CIE", reader.at, b"", "a pointer of unknown form")
                reader.unpack(form)
            elif letter == ord("L"):
                reader.byte()
            elif letter == ord("S"):
                common.signal = True
        if not reader.at <= rest <= len(data):
            raise DecodeError("CIE", reader.at, b"", "its augmentation does not end where it says")
        reader.at = rest
    common.instructions = data[reader.at :]
    return common


def frame_rule(common: bytes, description: bytes, described_at: int, address: int) -> FrameRule | None:
    """Return how to come to the caller from one instruction.

    Args:
        common: the CIE, behind its length and id.
        description: the FDE, behind its length and the pointer to the CIE.
        described_at: the address of the FDE's first byte here.
        address: of the instruction.

    Returns:
        None where the description is of another function, of a signal's frame, or is not understood.
    """
    try:
        shared = _common(common)
        reader = _Bytes(description)
        form = _FORMATS.get(shared.encoding & 0x0F)
        if (
            form is None
            or shared.encoding & 0x70 not in (0, _PC_RELATIVE)
            or shared.encoding & 0x80
            or shared.signal
        ):
            return None
        begin = reader.unpack(form) + (described_at if shared.encoding & _PC_RELATIVE else 0)
        begin &= (1 << 64) - 1
        length = reader.unpack(form)
        if not begin <= address < begin + length:
            return None
        if shared.augmented:
            reader.skip(reader.unsigned())
        machine = _Machine(shared, begin, address)
        machine.run(shared.instructions)
        machine.initial = machine.row
        machine.run(description[reader.at :])
        return machine.rule()
    except DecodeError:
        return None


class _Row(Struct, frozen=True):
    """What is known at one instruction; ``None`` of an offset is the register itself."""

    register: int = -1
    offset: int = 0
    bp_at: int | None = None
    return_at: int | None = None
    bp_known: bool = True
    return_known: bool = True
    outermost: bool = False


class _Machine:
    """Runs call frame instructions up to an address."""

    def __init__(self, common: _Common, begin: int, until: int) -> None:
        self._common = common
        self._address = begin
        self._until = until
        self._saved: list[_Row] = []
        self._over = False
        self.row = _Row()
        self.initial = _Row()

    def rule(self) -> FrameRule | None:
        row = self.row
        if row.outermost:
            return FrameRule(SP, 0, None)
        if row.register not in (BP, SP) or not row.bp_known or not row.return_known or row.return_at is None:
            return None
        return FrameRule(row.register, row.offset, row.return_at, row.bp_at)

    def run(self, instructions: bytes) -> None:
        """Run instructions; stops behind the address.

        Raises:
            DecodeError: an instruction that nobody knows, or too many.
        """
        reader = _Bytes(instructions)
        for _ in range(_MOST_INSTRUCTIONS):
            if self._over or not reader.more:
                return
            self._step(reader)
        raise DecodeError("call frame", 0, b"", "too many instructions")

    def _step(self, reader: _Bytes) -> None:
        code = reader.byte()
        low = code & 0x3F
        if code >> 6 == 1:
            self._advance(low)
        elif code >> 6 == 2:
            self._save(low, reader.unsigned() * self._common.data_factor)
        elif code >> 6 == 3:
            self._restore(low)
        elif code in (0x02, 0x03, 0x04):
            self._advance(reader.unpack({2: "<B", 3: "<H", 4: "<I"}[code]))
        elif code == 0x0A:
            self._saved.append(self.row)
        elif code == 0x0B and self._saved:
            self.row = self._saved.pop()
        elif code in (0x0C, 0x0D, 0x0E, 0x12, 0x13, 0x0F):
            self._frame(code, reader)
        elif code:
            self._register(code, reader)

    def _advance(self, delta: int) -> None:
        self._address += delta * self._common.code_factor
        self._over = self._address > self._until

    def _frame(self, code: int, reader: _Bytes) -> None:
        """Run what says where the frame is."""
        factor = self._common.data_factor
        if code == 0x0F:  # an expression
            reader.skip(reader.unsigned())
            self.row = replace(self.row, register=-1)
        elif code in (0x0C, 0x12):
            register = reader.unsigned()
            offset = reader.unsigned() if code == 0x0C else reader.signed() * factor
            self.row = replace(self.row, register=register, offset=offset)
        elif code == 0x0D:
            self.row = replace(self.row, register=reader.unsigned())
        else:
            offset = reader.unsigned() if code == 0x0E else reader.signed() * factor
            self.row = replace(self.row, offset=offset)

    def _register(self, code: int, reader: _Bytes) -> None:
        """Run what says where registers are."""
        factor = self._common.data_factor
        if code == 0x2E:  # the size of arguments, which changes nothing here
            reader.unsigned()
            return
        register = reader.unsigned()
        if code == 0x05:
            self._save(register, reader.unsigned() * factor)
        elif code == 0x11:
            self._save(register, reader.signed() * factor)
        elif code == 0x06:
            self._restore(register)
        elif code == 0x07:
            if register == RETURN:
                self.row = replace(self.row, outermost=True)
            elif register == BP:
                self.row = replace(self.row, bp_known=False)
        elif code == 0x08:
            self._save(register, None)
        elif code in (0x09, 0x14, 0x15, 0x10, 0x16):
            if code in (0x10, 0x16):
                reader.skip(reader.unsigned())
            else:
                reader.unsigned()
            self._unknown(register)
        else:
            raise DecodeError("call frame", reader.at, b"", f"instruction {code:#x}")

    def _save(self, register: int, offset: int | None) -> None:
        if register == BP:
            self.row = replace(self.row, bp_at=offset, bp_known=True)
        elif register == RETURN:
            self.row = replace(self.row, return_at=offset, return_known=True, outermost=False)

    def _restore(self, register: int) -> None:
        if register == BP:
            self.row = replace(self.row, bp_at=self.initial.bp_at, bp_known=self.initial.bp_known)
        elif register == RETURN:
            self.row = replace(
                self.row, return_at=self.initial.return_at, return_known=self.initial.return_known
            )

    def _unknown(self, register: int) -> None:
        if register == BP:
            self.row = replace(self.row, bp_known=False)
        elif register == RETURN:
            self.row = replace(self.row, return_known=False)
