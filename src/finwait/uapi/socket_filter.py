"""Classic BPF for SO_ATTACH_FILTER: the packets of chosen connections and of nobody else.

Mirrors include/uapi/linux/filter.h. Made from addresses and ports: each connection in both directions, and in
every form that a translator gives it. It looks behind one VLAN tag only if the kernel left it in the packet,
and never at IPv4 fragments after the first (their ports are not in them).

This module makes bytes only. Attaching them is `finwait.kernel.capture`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["Address", "Tuple", "closing_filter", "socket_filter"]

Address = tuple[int, int]
"""Two 64-bit words, IPv4 mapped into IPv6 (as in `finwait.table.sockets`)."""

Tuple = tuple[Address, int, Address, int]
"""Address and port of one end, address and port of the other."""

_LD, _LDH, _LDB, _LDX_MSH = 0x20, 0x28, 0x30, 0xB1
_LDH_IND, _LDB_IND = 0x48, 0x50
_SYN_FIN_RST: Final = 0x07
_JEQ, _JSET, _JA, _RET = 0x15, 0x45, 0x05, 0x06
_LONGEST_PROGRAM: Final = 4096  # BPF_MAXINSNS
_SKF_AD_IFINDEX: Final = 0xFFFFF000 + 8  # SKF_AD_OFF + SKF_AD_IFINDEX
_MOST_INTERFACES: Final = 100  # a jump reaches over 255 instructions


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


def socket_filter(
    tuples: Iterable[Tuple],
    *,
    interfaces: Mapping[Tuple, frozenset[int]] = MappingProxyType({}),
    snaplen: int = 1 << 16,
) -> bytes:
    """Return an array of ``struct sock_filter`` that keeps both directions of each connection.

    For a packet socket of type SOCK_DGRAM: the packet begins with the network header.

    Args:
        tuples: the two ends of each connection; give every form that translation makes of it. A port 0 is
            any port.
        interfaces: of some of the tuples, the interfaces on which they count; all where it is empty.
        snaplen: bytes to keep of each packet.

    Raises:
        ValueError: so many that the program would be longer than the kernel takes (4096 instructions).
    """
    interfaces_of: dict[Tuple, frozenset[int]] = {}
    for a, p, b, q in sorted(tuples):
        on = interfaces.get((a, p, b, q), frozenset[int]())
        for ends in ((a, p, b, q), (b, q, a, p)):
            before = interfaces_of.get(ends)
            interfaces_of[ends] = on if before is None else before | on if before and on else frozenset()
    v4 = [t for t in interfaces_of if _is4(t[0])]
    v6 = [t for t in interfaces_of if not _is4(t[0])]
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
    for number, ends in enumerate(v4):
        _test_ends(program, f"4-{number}", ends, interfaces_of[ends], snaplen, six=False)
    add(_RET, 0)
    program.label("not4")
    add(_JEQ, 0x60, None, "drop6")
    add(_LDB, 6)
    add(_JEQ, 6, "tests6", None)
    program.label("drop6")
    add(_RET, 0)
    program.label("tests6")
    for number, ends in enumerate(v6):
        _test_ends(program, f"6-{number}", ends, interfaces_of[ends], snaplen, six=True)
    add(_RET, 0)
    if len(program.code) > _LONGEST_PROGRAM:
        raise ValueError(f"{len(interfaces_of) // 2} connections are too many for one socket filter")
    return program.assemble()


def closing_filter(snaplen: int) -> bytes:
    """Return an array of ``struct sock_filter`` that keeps the beginning of TCP packets with SYN, FIN or RST set.

    For a packet socket of type SOCK_DGRAM. It reads no extension headers of IPv6: packets with such are left out, as
    are fragments after the first.

    Args:
        snaplen: bytes to keep of each packet, from its IP header on.
    """
    program = _Program()
    add = program.add
    add(_LDB, 0)
    add(0x54, 0xF0)  # AND: the version
    add(_JEQ, 0x40, None, "not4")
    add(_LDB, 9)
    add(_JEQ, 6, None, "drop")
    add(_LDH, 6)
    add(_JSET, 0x1FFF, "drop", None)
    add(_LDX_MSH, 0)  # X = length of the IPv4 header
    add(_LDB_IND, 13)
    add(_JSET, _SYN_FIN_RST, "take", "drop")
    program.label("not4")
    add(_JEQ, 0x60, None, "drop")
    add(_LDB, 6)
    add(_JEQ, 6, None, "drop")
    add(_LDB, 40 + 13)
    add(_JSET, _SYN_FIN_RST, "take", "drop")
    program.label("take")
    add(_RET, snaplen)
    program.label("drop")
    add(_RET, 0)
    return program.assemble()


def _is4(address: Address) -> bool:
    return address[0] == 0 and address[1] >> 32 == 0xFFFF


def _test_ends(
    program: _Program, name: str, ends: Tuple, interfaces: frozenset[int], snaplen: int, *, six: bool
) -> None:
    src, sport, dst, dport = ends
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
    if interfaces and len(interfaces) <= _MOST_INTERFACES:
        program.add(_LD, _SKF_AD_IFINDEX)
        for ifindex in sorted(interfaces):
            program.add(_JEQ, ifindex, f"{name}-take", None)
        program.add(_RET, 0)
        program.label(f"{name}-take")
    program.add(_RET, snaplen)
    program.label(miss)
