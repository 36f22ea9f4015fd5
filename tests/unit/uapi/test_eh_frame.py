"""Call frame information: where the caller is at each instruction, and what is not understood."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.errors import DecodeError
from finwait.uapi.eh_frame import BP, SP, FrameRule, frame_rule, parse_table_header, scan

# What GCC writes: "zR", factors 1 and −8, return address in register 16, pointers of four bytes from their own place;
# at first the frame is 8 above the stack pointer, and the return address right below it.
COMMON = b"\x01zR\0\x01\x78\x10\x01\x1b" + b"\x0c\x07\x08\x90\x01"
AT = 0x2000
BEGIN = 0x1000
PUSH_BP = b"\x41\x0e\x10\x86\x02"  # advance 1, the frame is 16 above, rbp is saved at −16
FRAME_BP = b"\x43\x0d\x06"  # advance 3, the frame is counted from rbp
LEAVE = b"\x5a\x0c\x07\x08\xc6"  # advance 26, the frame is 8 above the stack pointer, rbp is its own again


def description(instructions: bytes = b"", *, length: int = 64) -> bytes:
    return struct.pack("<ii", BEGIN - AT, length) + b"\0" + instructions


def rule(address: int, instructions: bytes, common: bytes = COMMON) -> FrameRule | None:
    return frame_rule(common, description(instructions), AT, address)


def test_a_function_with_a_frame_pointer_is_followed_instruction_by_instruction() -> None:
    code = PUSH_BP + FRAME_BP + LEAVE
    assert rule(BEGIN, code) == FrameRule(SP, 8, -8)
    assert rule(BEGIN + 1, code) == FrameRule(SP, 16, -8, -16)
    assert rule(BEGIN + 3, code) == FrameRule(SP, 16, -8, -16)
    assert rule(BEGIN + 4, code) == FrameRule(BP, 16, -8, -16)
    assert rule(BEGIN + 30, code) == FrameRule(SP, 8, -8)


def test_a_state_that_is_remembered_comes_back() -> None:
    code = PUSH_BP + b"\x42\x0a\x42\x0e\x30\x42\x0b"
    assert rule(BEGIN + 5, code) == FrameRule(SP, 48, -8, -16)
    assert rule(BEGIN + 7, code) == FrameRule(SP, 16, -8, -16)


def test_long_advances_and_signed_offsets_are_read() -> None:
    assert rule(BEGIN + 0x30, b"\x02\x20\x0e\x20") == FrameRule(SP, 32, -8)
    assert rule(BEGIN + 0x30, b"\x03\x20\x00\x13\x7c") == FrameRule(SP, 32, -8)
    assert rule(BEGIN + 0x30, b"\x04\x31\0\0\0\x0e\x20") == FrameRule(SP, 8, -8)
    assert rule(BEGIN, b"\x11\x06\x03") == FrameRule(SP, 8, -8, -24)


def test_the_outermost_function_has_no_caller() -> None:
    assert rule(BEGIN, b"\x07\x10") == FrameRule(SP, 0, None)


@pytest.mark.parametrize(
    "code",
    [
        b"\x0f\x01\x50",
        b"\x10\x10\x01\x50",
        b"\x07\x06",
        b"\x0d\x03",
        b"\x09\x10\x00",
        b"\x3f\x00",
        b"\x0e",
        b"\x0e" + b"\xff" * 12,
    ],
    ids=[
        "expression",
        "saved by one",
        "rbp lost",
        "by rbx",
        "in a register",
        "unknown",
        "cut",
        "endless number",
    ],
)
def test_what_is_not_understood_is_not_known(code: bytes) -> None:
    assert rule(BEGIN, code) is None


@pytest.mark.parametrize("address", [BEGIN - 1, BEGIN + 64, 0])
def test_a_description_of_another_function_says_nothing(address: int) -> None:
    assert rule(address, b"") is None


@pytest.mark.parametrize(
    "common",
    [
        b"",
        b"\x02zR\0\x01\x78\x10\x01\x1b",
        b"\x01zR\0\x01\x7c\x1e\x01\x1b",
        b"\x01zRS\0\x01\x78\x10\x01\x1b\x0c\x07\x08\x90\x01",
        b"\x01zR\0\x01\x78\x10\x01\x9b\x0c\x07\x08\x90\x01",
        b"\x01eh\0\x01\x78\x10",
        b"\x01zR\0\x01\x78\x10\x70\x1b",
    ],
    ids=["empty", "version 2", "another processor", "of a signal", "indirect", "old", "too long"],
)
def test_of_other_tables_nothing_is_known(common: bytes) -> None:
    assert rule(BEGIN, b"", common) is None


def test_a_personality_is_passed_over() -> None:
    common = b"\x01zPLR\0\x01\x78\x10\x07\x9b\1\2\3\4\x1b\x1b" + b"\x0c\x07\x08\x90\x01"
    assert rule(BEGIN, b"", common) == FrameRule(SP, 8, -8)


def index_bytes(pairs: list[tuple[int, int]]) -> bytes:
    flat = [n for pair in pairs for n in pair]
    return b"\x01\x1b\x03\x3b" + struct.pack(f"<iI{len(flat)}i", 0, len(pairs), *flat)


def found(data: bytes, address: int, at: int) -> int | None:
    header = parse_table_header(data[:12], address, len(data))
    return header.find(at, lambda place: data[12 + 8 * place : 20 + 8 * place])


def test_the_table_finds_the_description_of_the_function_that_began_last() -> None:
    data = index_bytes([(0x10, 0x800), (0x40, 0x900)])
    assert [found(data, 0x100, a) for a in (0x10F, 0x110, 0x13F, 0x140, 0x9999)] == [
        None,
        0x900,
        0x900,
        0xA00,
        0xA00,
    ]
    assert found(data, 0x100, -1) is None


@pytest.mark.parametrize(
    "data", [b"", b"\x02" + bytes(20), b"\x01\x1b\x03\x3c" + bytes(20), b"\x01\x1b\xff\x3b" + bytes(20)]
)
def test_a_table_of_another_form_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        parse_table_header(data, 0, len(data))


def test_a_table_that_says_more_than_it_holds_has_what_it_holds() -> None:
    data = index_bytes([(1, 2)])[:8] + struct.pack("<I", 1 << 31) + struct.pack("<ii", 1, 2)
    assert parse_table_header(data, 0, len(data)).count == 1
    assert parse_table_header(data, 0, 0).count == 0


def entry(back: int, body: bytes) -> bytes:
    return struct.pack("<II", 4 + len(body), back) + body


def section(*places: int) -> bytes:
    """`.eh_frame` at address 0 of functions of 64 bytes at some places."""
    data = entry(0, COMMON)
    for place in places:
        at = len(data)
        data += entry(at + 4, struct.pack("<ii", place - at - 8, 64) + b"\0")
    return data


def test_without_a_table_all_descriptions_are_scanned() -> None:
    data = section(0x900, 0x100)
    index = scan(data, 0)
    assert list(index.begin) == [0x100, 0x900]
    first = len(entry(0, COMMON))
    assert [index.find(a) for a in (0xFF, 0x100, 0x8FF, 0x900, -1, 1 << 64)] == [
        None,
        len(data) - (len(data) - first) // 2,
        len(data) - (len(data) - first) // 2,
        first,
        None,
        None,
    ]


def test_a_debug_frame_counts_from_its_own_beginning() -> None:
    common = b"\x04\0\x08\0\x01\x78\x10" + b"\x0c\x07\x08\x90\x01"
    data = entry(0xFFFFFFFF, common) + entry(0, struct.pack("<QQ", 0x100, 64))
    assert list(scan(data, 0, debug=True).begin) == [0x100]
    assert frame_rule(common, struct.pack("<QQ", 0x100, 64), 0, 0x110) == FrameRule(SP, 8, -8)
    assert len(scan(data, 0).begin) == 0


def test_a_scan_ends_where_it_is_not_understood() -> None:
    data = section(0x100)
    assert list(scan(data + struct.pack("<II", 1 << 31, 4) + section(0x900), 0).begin) == [0x100]
    assert list(scan(data + bytes(4) + section(0x900), 0).begin) == [0x100]


@given(st.binary(max_size=80), st.binary(max_size=120), st.integers(0, 1 << 64), st.integers(0, 1 << 64))
def test_any_bytes_give_a_rule_or_none(common: bytes, code: bytes, at: int, address: int) -> None:
    frame_rule(common, code, at, address)
    answer = frame_rule(COMMON, description(code), AT, BEGIN + address % 64)
    assert answer is None or answer.register in (BP, SP)
