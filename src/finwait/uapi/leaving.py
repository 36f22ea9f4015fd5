"""x86-64 instructions that come next → where the function that they are of has its return address.

Theory of operation. Of a function without unwinding tables (an assembler's, the C library of musl) nothing says how
large its frame is, but what it will execute until it returns does: what it pops and adds to the stack pointer before
``ret``. Compilers keep the size of the frame the same on every path to an instruction, so the one straight ahead is
enough; a jump ends it, and so does a call behind a branch that is not taken: it may be one that never returns, and what
stands behind it another function.

What cannot be decoded, and what changes the stack pointer by a number that is not in the code, is None. Lengths of
instructions are those of the Intel SDM, volume 2, appendix A; no operand but the stack and the frame pointer matters.

This module touches bytes only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from finwait.uapi.eh_frame import BP, SP, FrameRule

__all__ = ["follows_call", "keeps_frame_pointer", "leaving"]

_MOST_STEPS: Final = 40
_LONGEST: Final = 15
_PREFIXES: Final = frozenset(b"\x66\x2e\x36\x3e\x26\x64\x65\xf0\xf2\xf3")
_ENDBR: Final = b"\xf3\x0f\x1e\xfa"
_KEEPS: Final = (b"\x55\x48\x89\xe5", b"\x55\x48\x8b\xec")
_MODRM: Final = frozenset(
    [base + low for base in range(0, 0x40, 8) for low in range(4)]
    + [0x63, *range(0x84, 0x8E), 0xD0, 0xD1, 0xD2, 0xD3, 0xFE, *range(0xD8, 0xE0)]
)
_MODRM_BYTE: Final = frozenset([0x6B, 0x80, 0x83, 0xC0, 0xC1, 0xC6])
_MODRM_WORD: Final = frozenset([0x69, 0x81, 0xC7])
_BYTE: Final = frozenset([*range(0x04, 0x40, 8), 0xA8, *range(0xB0, 0xB8)])
_WORD: Final = frozenset([*range(0x05, 0x40, 8), 0xA9])
_NONE: Final = frozenset([*range(0x90, 0x9A), 0xA4, 0xA5, 0xAA, 0xAB, 0xF5, 0xF8, 0xF9, 0xFC, 0xFD])
_TWO_MODRM: Final = frozenset(
    [
        *range(0x10, 0x20), *range(0x28, 0x30), *range(0x40, 0x70), *range(0x74, 0x77), 0x7E, 0x7F, *range(0x90, 0xA0),
        0xA3, 0xA5, 0xAB, *range(0xAD, 0xB2), 0xB3, 0xB6, 0xB7, *range(0xBB, 0xC2), 0xC3, 0xC7, *range(0xD0, 0xFF),
    ]
)  # fmt: skip
_TWO_MODRM_BYTE: Final = frozenset([0x70, 0x71, 0x72, 0x73, 0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6])
_COMPARES: Final = frozenset([*range(0x38, 0x3C), 0x84, 0x85])
"""With a ModRM byte, and nothing is written."""
_STORES: Final = frozenset([0x88, 0x89, *(base + low for base in range(0, 0x38, 8) for low in (0, 1))])
"""The operand `rm` is written, and `reg` is not."""

Read = Callable[[int, int], bytes]
"""Address and size → so many bytes of code, or fewer where there are no more."""


class _Unclear(Exception):
    """It cannot be said what the instruction does to the stack."""


class _Path(Struct):
    """How far one path has come."""

    at: int
    register: int = SP
    """The stack pointer is this register, as it was at the beginning …"""
    moved: int = 0
    """… plus this number."""
    saved: int | None = None
    """Where the caller's frame pointer was popped from, from `register` as of then; None: the register has it."""
    saved_by: int = SP
    bp_written: bool = False
    called: bool = False
    """Whether the instruction before was a call, which may never return."""
    branched: bool = False
    """Whether a branch was passed that is thought not to be taken."""


class _Code(Struct):
    """An instruction without its prefixes."""

    data: bytes
    size: int
    """Of the prefixes."""
    rex: int = 0
    narrow: bool = False
    """Whether numbers have 16 bits."""

    def byte(self, at: int) -> int:
        if at >= len(self.data):
            raise _Unclear
        return self.data[at]

    def number(self, at: int, size: int) -> int:
        if at + size > len(self.data):
            raise _Unclear
        return int.from_bytes(self.data[at : at + size], "little", signed=True)

    def modrm_size(self, at: int) -> int:
        """Return the size of the ModRM byte at a place and of what belongs to it."""
        modrm = self.byte(at)
        mod, rm = modrm >> 6, modrm & 7
        if mod == 3:
            return 1
        size = 1
        if rm == 4:
            size += 1
            if mod == 0 and self.byte(at + 1) & 7 == 5:
                return size + 4
        if mod == 0 and rm == 5:
            return size + 4
        return size + (0, 1, 4)[mod]


def follows_call(before: bytes) -> bool:
    """Return whether an address is one that a call returns to.

    Args:
        before: the seven bytes of code before it, or fewer.
    """
    if before[-5:-4] == b"\xe8":
        return True
    for size in range(2, 8):
        code = before[-size:]
        indirect = len(code) == size and code[0] == 0xFF and code[1] >> 3 & 7 == 2
        if indirect and _size_of_call(code) == size:
            return True
    return False


def _size_of_call(code: bytes) -> int:
    """Return the size of an indirect call; 0 where the code ends within it."""
    try:
        return _Code(code, 0).modrm_size(1) + 1
    except _Unclear:
        return 0


def keeps_frame_pointer(beginning: bytes) -> bool:
    """Return whether a function keeps the frame pointer.

    Args:
        beginning: its first bytes. Go looks first whether the stack is large enough.
    """
    return any(code in beginning for code in _KEEPS)


def leaving(read: Read, address: int) -> FrameRule | None:
    """Return where the return address is at an instruction, by what comes next; None where that cannot be said.

    Args:
        read: the code of the function; nothing from its end on, if that is known.
        address: of the instruction that is executed next.
    """
    path = _Path(address)
    try:
        for _ in range(_MOST_STEPS):
            if (answer := _step(read, path)) is not None:
                return answer
    except _Unclear:
        pass
    return None


def _fetched(read: Read, at: int) -> _Code:
    data = read(at, _LONGEST)
    size = 0
    while size < len(data) and data[size] in _PREFIXES:
        size += 1
    narrow = 0x66 in data[:size]
    rex = 0
    if size < len(data) and data[size] >> 4 == 4:
        rex = data[size]
        size += 1
    if size >= len(data):
        raise _Unclear
    return _Code(data[size:], size, rex, narrow)


def _step(read: Read, path: _Path) -> FrameRule | None:
    """Take one instruction; return the answer if it is the one that leaves the function."""
    code = _fetched(read, path.at)
    opcode = code.byte(0)
    behind_call, path.called = path.called, False
    if behind_call and (read(path.at, 4) == _ENDBR or opcode == 0x90 or code.data[:2] == b"\x0f\x1f"):
        raise _Unclear  # padding, or the next function: that call does not return
    if opcode in (0xC3, 0xC2):
        return _rule(path)
    if opcode == 0xC9:
        _set_sp(path, BP, 0)
        _pop_bp(path)
        path.at += code.size + 1
        return None
    path.at += code.size + _effect(code, opcode, path)
    return None


def _rule(path: _Path) -> FrameRule:
    offset = path.moved + 8
    if path.saved is None:
        if path.bp_written:
            raise _Unclear
        return FrameRule(path.register, offset, -8)
    if path.saved_by != path.register:
        raise _Unclear
    return FrameRule(path.register, offset, -8, path.saved - offset)


def _set_sp(path: _Path, register: int, moved: int) -> None:
    if register == BP and (path.bp_written or path.saved is not None):
        raise _Unclear
    path.register, path.moved = register, moved


def _pop_bp(path: _Path) -> None:
    path.saved, path.saved_by = path.moved, path.register
    path.moved += 8


def _effect(code: _Code, opcode: int, path: _Path) -> int:
    """Apply what an instruction does; return its size without prefixes."""
    word = 2 if code.narrow else 4
    if opcode == 0x0F:
        return _two_bytes(code, path)
    if 0x50 <= opcode <= 0x57:
        path.moved -= 8
        return 1
    if 0x58 <= opcode <= 0x5F:
        register = opcode - 0x58 + (8 if code.rex & 1 else 0)
        if register == 4:
            raise _Unclear
        if register == 5:
            _pop_bp(path)
        else:
            path.moved += 8
        return 1
    if opcode in (0x68, 0x6A):
        path.moved -= 8
        return 1 + (word if opcode == 0x68 else 1)
    if 0x70 <= opcode <= 0x7F or 0xE0 <= opcode <= 0xE3:
        path.branched = True
        return 2
    if opcode == 0xE8:
        _call(path)
        return 5
    if opcode in _NONE:
        return 1
    if 0xB8 <= opcode <= 0xBF:
        if opcode == 0xBC and not code.rex & 1:
            raise _Unclear
        path.bp_written |= opcode == 0xBD and not code.rex & 1
        return 1 + (8 if code.rex & 8 else word)
    if opcode in _BYTE:
        return 2
    if opcode in _WORD:
        return 1 + word
    if opcode in (0xF6, 0xF7):
        _write(code, 1, path, to_rm=True)
        operand = 0 if code.byte(1) >> 3 & 6 else (1 if opcode == 0xF6 else word)
        return 1 + code.modrm_size(1) + operand
    if opcode == 0xFF:
        return _group_five(code, path)
    if opcode in (0x81, 0x83) and code.byte(1) & 0xC7 == 0xC4 and not code.rex & 1:
        return _adjust(code, opcode, path)
    if opcode == 0x89 and code.byte(1) == 0xEC and code.rex == 0x48:  # mov %rbp,%rsp
        _set_sp(path, BP, 0)
        return 2
    if opcode == 0x8D and code.byte(1) >> 3 & 7 == 4 and not code.rex & 4:
        return _lea_sp(code, path)
    immediate = 1 if opcode in _MODRM_BYTE else word if opcode in _MODRM_WORD else 0
    if not immediate and opcode not in _MODRM:
        raise _Unclear
    if opcode not in _COMPARES and not (opcode in (0x80, 0x81, 0x83) and code.byte(1) >> 3 & 7 == 7):
        _write(code, 1, path, to_rm=bool(immediate) or opcode in _STORES)
    return 1 + code.modrm_size(1) + immediate


def _group_five(code: _Code, path: _Path) -> int:
    kind = code.byte(1) >> 3 & 7
    if kind == 2:
        _call(path)
    elif kind == 6:
        path.moved -= 8
    elif kind in (0, 1):
        _write(code, 1, path, to_rm=True)
    else:
        raise _Unclear
    return 1 + code.modrm_size(1)


def _adjust(code: _Code, opcode: int, path: _Path) -> int:
    """Add to the stack pointer, or take from it."""
    size = 1 if opcode == 0x83 else 4
    number = code.number(2, size)
    kind = code.byte(1) >> 3 & 7
    if kind == 7:
        return 2 + size
    if kind not in (0, 5) or not code.rex & 8:
        raise _Unclear
    path.moved += number if kind == 0 else -number
    return 2 + size


def _lea_sp(code: _Code, path: _Path) -> int:
    modrm = code.byte(1)
    mod, rm = modrm >> 6, modrm & 7
    size = {1: 1, 2: 4}.get(mod)
    if size is None or code.rex != 0x48:
        raise _Unclear
    if rm == 4 and code.byte(2) == 0x24:
        path.moved += code.number(3, size)
    elif rm == 5:
        _set_sp(path, BP, code.number(2, size))
    else:
        raise _Unclear
    return 1 + code.modrm_size(1)


def _write(code: _Code, at: int, path: _Path, *, to_rm: bool) -> None:
    """Note what an instruction with a ModRM byte at a place writes."""
    modrm = code.byte(at)
    if to_rm:
        if modrm >> 6 != 3:
            return
        register = (modrm & 7) + (8 if code.rex & 1 else 0)
    else:
        register = (modrm >> 3 & 7) + (8 if code.rex & 4 else 0)
    if register == 4:
        raise _Unclear
    path.bp_written |= register == 5


def _two_bytes(code: _Code, path: _Path) -> int:
    opcode = code.byte(1)
    if opcode in (0x05, 0xA2, 0x31) or 0xC8 <= opcode <= 0xCF:
        return 2
    if 0x80 <= opcode <= 0x8F:
        path.branched = True
        return 6
    if opcode in (0x38, 0x3A):
        return 3 + code.modrm_size(3) + (opcode == 0x3A)
    general = 0x40 <= opcode <= 0x4F or opcode in (0xAF, 0xB6, 0xB7, 0xBC, 0xBD, 0xBE, 0xBF)
    if general:
        _write(code, 2, path, to_rm=False)
    elif 0x90 <= opcode <= 0x9F or opcode in (0xB0, 0xB1, 0xC0, 0xC1, 0xA4, 0xA5, 0xAC, 0xAD):
        _write(code, 2, path, to_rm=True)
    if opcode in _TWO_MODRM:
        return 2 + code.modrm_size(2)
    if opcode in _TWO_MODRM_BYTE:
        return 3 + code.modrm_size(2)
    raise _Unclear


def _call(path: _Path) -> None:
    if path.branched:
        raise _Unclear
    path.called = True
