"""Functions of ELF files by address, and what hostile files give: nothing, or an error."""

from __future__ import annotations

import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.errors import DecodeError
from finwait.uapi import elf

HEADER = elf.ElfHeader("<", 64, 1, 120, 2, 1)


def header(
    *, kind: int = 2, order: int = 1, segments: tuple[int, int] = (56, 1), sections: tuple[int, int] = (64, 2)
) -> bytes:
    mark = "<" if order == 1 else ">"
    return (
        b"\x7fELF"
        + bytes([kind, order, 1])
        + bytes(9)
        + struct.pack(f"{mark}HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 120, 0, 64, *segments, *sections, 1)
    )


def symbol(name: int, value: int, size: int, *, kind: int = 2, section: int = 1) -> bytes:
    return struct.pack("<IBBHQQ", name, kind, 0, section, value, size)


def name(table: bytes, names: bytes, address: int, header: elf.ElfHeader = HEADER) -> str:
    function = elf.parse_symbols([table], header).at(address)
    return "" if function is None else elf.plainest(elf.name_in(names[at:]) for at in function.names_at)


def test_the_header_says_where_the_tables_are() -> None:
    assert elf.parse_header(header()) == HEADER
    assert elf.parse_header(header(order=2)) == elf.ElfHeader(">", 64, 1, 120, 2, 1)
    assert (HEADER.segments_size, HEADER.sections_size) == (56, 128)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh" + bytes(60),
        header(kind=1),
        header(order=3),
        header(segments=(32, 9)),
        header(sections=(40, 1)),
    ],
    ids=["empty", "cut", "script", "32 bits", "no byte order", "odd segments", "odd sections"],
)
def test_what_is_no_elf_file_of_64_bits_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        elf.parse_header(data)


def test_a_function_is_found_by_any_address_in_it() -> None:
    names = b"\0accept\0leak\0"
    table = symbol(1, 0x100, 0x20) + symbol(8, 0x120, 0x10)
    assert [name(table, names, a) for a in (0xFF, 0x100, 0x11F, 0x120, 0x12F, 0x130)] == [
        "",
        "accept",
        "accept",
        "leak",
        "leak",
        "",
    ]
    assert name(table, names, -1) == name(table, names, 1 << 64) == ""


def test_a_table_in_pieces_has_the_same_functions_and_takes_twenty_bytes_each() -> None:
    entries = [symbol(1, 16 * k, 16) for k in (3, 1, 2)]
    whole, pieces = elf.parse_symbols([b"".join(entries)], HEADER), elf.parse_symbols(entries, HEADER)
    assert [whole.at(a) for a in range(80)] == [pieces.at(a) for a in range(80)]
    assert (whole.taken, elf.parse_symbols([bytes(2400)], HEADER).taken) == (60, 0)


def test_of_aliases_the_plain_name_is_taken() -> None:
    names = b"\0__accept4\0accept4\0"
    for table in (symbol(1, 16, 8) + symbol(11, 16, 8), symbol(11, 16, 8) + symbol(1, 16, 8)):
        assert name(table, names, 20) == "accept4"


def test_an_address_behind_a_part_within_a_function_is_still_of_the_function() -> None:
    table, names = symbol(1, 0x100, 0x100) + symbol(7, 0x110, 8), b"\0outer\0inner\0"
    assert [name(table, names, a) for a in (0x108, 0x114, 0x150)] == ["outer", "inner", "outer"]


@pytest.mark.parametrize(
    "entry",
    [
        symbol(1, 16, 8, kind=1),
        symbol(1, 16, 8, section=0),
        symbol(1, 16, 0),
        symbol(99, 16, 8),
        symbol(1, (1 << 64) - 4, 8),
        symbol(1, 16, 8)[:-1],
    ],
    ids=["data", "undefined", "no size", "name beyond the table", "around the end of memory", "cut"],
)
def test_what_is_no_whole_function_names_nothing(entry: bytes) -> None:
    assert name(entry, b"\0f\0", 17) == ""


def test_a_name_that_could_move_the_terminal_is_no_name() -> None:
    assert name(symbol(1, 16, 8), b"\0a\x1b[2Jb\0", 17) == ""
    assert name(symbol(1, 16, 8), b"\0unterminated", 17) == "unterminated"


def test_a_real_file_has_the_functions_that_its_program_has() -> None:
    with open(sys.executable, "rb") as file:
        data = file.read()
    head = elf.parse_header(data[:64])
    segments = elf.parse_segments(data[head.segments_at : head.segments_at + head.segments_size], head)
    assert any(segment.kind == elf.PT_LOAD for segment in segments)
    sections = elf.parse_sections(data[head.sections_at : head.sections_at + head.sections_size], head)
    found = 0
    for section in sections:
        if section.kind in (elf.SHT_SYMTAB, elf.SHT_DYNSYM):
            table = data[section.offset : section.offset + section.size]
            found += len(elf.parse_symbols([table], head))
    assert found


@given(st.binary(max_size=300), st.binary(max_size=60), st.sampled_from("<>"), st.integers(-5, 1 << 65))
def test_any_bytes_make_a_table_or_none(table: bytes, names: bytes, order: str, address: int) -> None:
    head = elf.ElfHeader("<" if order == "<" else ">", 0, 0, 0, 0, 0)
    assert len(elf.parse_symbols([table], head)) <= len(table) // 24
    assert name(table, names, address, head).isprintable()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_an_error(data: bytes) -> None:
    try:
        head = elf.parse_header(data)
    except DecodeError:
        return
    assert len(elf.parse_segments(data, head)) == len(data) // 56
    assert len(elf.parse_sections(data, head)) == len(data) // 64
