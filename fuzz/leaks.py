"""What `trace --leaks` reads of strangers: ELF files, unwinding tables, perf maps, maps; and the records of perf."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

from finwait.errors import DecodeError
from finwait.uapi import elf, perf_event
from finwait.uapi.eh_frame import BP, SP, frame_rule, parse_table_header, scan
from finwait.uapi.leaving import follows_call, leaving
from finwait.uapi.maps import parse_maps
from finwait.uapi.perf_map import parse_perf_map

_ELF = (
    b"\x7fELF\x02\x01\x01"
    + bytes(9)
    + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 120, 0, 64, 56, 1, 64, 2, 1)
    + struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 512, 512, 4096)
    + struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, 248, 48, 1, 0, 8, 24)
    + struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, 296, 8, 0, 0, 1, 0)
    + struct.pack("<IBBHQQ", 1, 2, 0, 1, 16, 8) * 2
    + b"\0f\0g\0\0\0\0"
)
_CIE = b"\x01zR\0\x01\x78\x10\x01\x1b\x0c\x07\x08\x90\x01"
_FDE = struct.pack("<ii", 16, 64) + b"\0\x41\x0e\x10\x86\x02\x43\x0d\x06\x5a\x0c\x07\x08\xc6"
_SAMPLE = struct.pack("=IHHIIQQQI4sQQQQQQ", 9, 0, 92, 1, 1, 5, 1, 7, 4, b"abcd", 2, 1, 2, 3, 0, 0)


def _elf(data: bytes) -> None:
    header = elf.parse_header(data[:64])
    elf.parse_segments(data[header.segments_at :][: header.segments_size], header)
    sections = elf.parse_sections(data[header.sections_at :][: header.sections_size], header)
    for section in sections:
        if section.link < len(sections):
            names = sections[section.link]
            table = data[section.offset :][: section.size]
            symbols = elf.parse_symbols([table[:240], table[240:]], header)
            if (function := symbols.at(20)) is not None:
                assert function.begin <= 20 < function.end
                assert elf.plainest(
                    elf.name_in(data[names.offset :][at : names.size]) for at in function.names_at
                ).isprintable()


def _frames(data: bytes) -> None:
    rule = frame_rule(_CIE, _FDE[:9] + data, 0, 20)
    assert rule is None or rule.register in (BP, SP)
    frame_rule(data[: len(data) // 2], data[len(data) // 2 :], 0, 20)


def _index(data: bytes) -> None:
    header = parse_table_header(data, 4096, len(data))
    header.find(4100, lambda place: data[12 + 8 * place : 20 + 8 * place])


def _section(data: bytes) -> None:
    for debug in (False, True):
        index = scan(data, 4096, debug=debug)
        assert list(index.begin) == sorted(index.begin)
        index.find(4100)


def _code(data: bytes) -> None:
    rule = leaving(lambda address, size: data[address : address + size], 0)
    assert rule is None or rule.register in (BP, SP)
    follows_call(data[:7])


def _records(data: bytes) -> None:
    for _ in perf_event.records(data, registers=True, stack=True):
        pass


def _maps(data: bytes) -> None:
    parse_maps(data).at(0x7F0000001000)
    assert parse_perf_map(data).name(0x7F12).isprintable()


_KINDS: list[tuple[Callable[[bytes], None], bytes]] = [
    (_elf, _ELF),
    (_frames, _FDE[9:]),
    (_index, b"\x01\x1b\x03\x3b" + struct.pack("<iIii", 0, 1, 0, 64)),
    (_records, _SAMPLE),
    (
        _section,
        struct.pack("<II", len(_CIE) + 4, 0)
        + _CIE
        + struct.pack("<II", len(_FDE) + 4, len(_CIE) + 12)
        + _FDE,
    ),
    (_code, b"\x48\x3d\x00\xf0\xff\xff\x77\x08\x48\x83\xc4\x18\x5d\xc3"),
    (_maps, b"7f0000001000-7f0000002000 r-xp 00000000 fe:00 12  /srv/a\n7f10 8 py::f:/a.py\n"),
]


def seeds() -> list[bytes]:
    return [bytes([number]) + content for number, (_, content) in enumerate(_KINDS)]


def one_input(data: bytes) -> None:
    if not data:
        return
    parse, _ = _KINDS[data[0] % len(_KINDS)]
    with contextlib.suppress(DecodeError):
        parse(data[1:])
