"""Records of a perf ring buffer: what is in each, and bytes that are none."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.errors import DecodeError
from finwait.uapi import perf_event
from finwait.uapi.perf_event import (
    Ended,
    Executed,
    Forked,
    Lost,
    Mapped,
    ProcessRecord,
    Registers,
    Renamed,
    Sample,
)


def record(kind: int, body: bytes, misc: int = 0) -> bytes:
    return struct.pack("=IHH", kind, misc, 8 + len(body)) + body


def sample(*, abi: int = 2, stack: bytes = bytes(16), used: int = 12) -> bytes:
    chain = (-512 & (1 << 64) - 1, 0x10, 0x20)
    return record(
        9,
        struct.pack("=IIQQ3Q", 7, 8, 99, 3, *chain)
        + struct.pack("=I", 12)
        + b"rawrawrawraw"
        + struct.pack("=Q", abi)
        + (struct.pack("=3Q", 1, 2, 3) if abi else b"")
        + struct.pack("=Q", len(stack))
        + stack
        + (struct.pack("=Q", used) if stack else b""),
    )


def all_of(data: bytes, *, registers: bool = True, stack: bool = True) -> list[Sample | ProcessRecord | Lost]:
    return list(perf_event.records(data, registers=registers, stack=stack))


def test_a_sample_has_its_process_its_stack_and_its_registers() -> None:
    assert all_of(sample()) == [
        Sample(7, 8, 99, (0x10, 0x20), b"rawrawrawraw", Registers(3, 2, 1), bytes(12))
    ]


def test_a_thread_without_registers_has_a_chain_alone() -> None:
    (only,) = all_of(sample(abi=0, stack=b""))
    assert isinstance(only, Sample)
    assert only.registers is None
    assert only.stack == b""


def test_losses_ends_and_new_programs_are_told_apart() -> None:
    ends = struct.pack("=IIQ", 7, 7, 99)
    data = (
        record(2, struct.pack("=QQ", 1, 5) + ends)
        + record(13, struct.pack("=Q", 6) + ends)
        + record(3, struct.pack("=II", 7, 7) + b"name\0\0\0\0" + ends, misc=1 << 13)
        + record(3, struct.pack("=II", 7, 7) + b"renamed\0" + ends)
        + record(3, struct.pack("=II", 7, 8) + b"thread\0\0" + ends)
        + record(4, struct.pack("=IIIIQ", 7, 1, 8, 1, 98) + ends)
        + record(7, struct.pack("=IIIIQ", 7, 7, 8, 7, 98) + ends)
        + record(7, struct.pack("=IIIIQ", 9, 7, 9, 7, 98) + ends)
        + record(
            10,
            struct.pack("=IIQQQIIQQII", 7, 7, 0x1000, 0x2000, 0x3000, 8, 1, 55, 0, 5, 2)
            + b"/srv/a\0\0"
            + ends,
        )
    )
    assert all_of(data) == [
        Lost(5),
        Lost(6),
        Executed(7, 99, b"name"),
        Renamed(7, 99, b"renamed"),
        Ended(7, 8, 98),
        Forked(9, 7, 98, 7),
        Mapped(7, 99, 0x1000, 0x3000, 0x3000, 55, b"/srv/a"),
    ]


def test_a_process_that_is_ending_has_no_number() -> None:
    (only,) = all_of(record(4, struct.pack("=iiiiQ", -1, -1, -1, -1, 98) + struct.pack("=iiQ", -1, -1, 98)))
    assert only == Ended(-1, -1, 98)
    data = bytearray(sample())
    data[8:16] = struct.pack("=ii", -1, -1)
    (one,) = all_of(bytes(data))
    assert isinstance(one, Sample)
    assert one.pid == -1


@pytest.mark.parametrize(
    "data",
    [
        bytes(4),
        struct.pack("=IHH", 9, 0, 4),
        struct.pack("=IHH", 9, 0, 64) + bytes(8),
        record(9, bytes(8)),
        record(9, struct.pack("=IIQQ", 7, 8, 99, 1 << 40)),
        sample(stack=bytes(16))[:-16],
    ],
)
def test_a_record_that_is_not_whole_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        all_of(data)


def test_what_is_asked_for_has_the_size_that_the_kernel_knows() -> None:
    plain, whole = (
        perf_event.attribute(42),
        perf_event.attribute(42, registers=7, stack_bytes=4096),
    )
    assert len(plain) == len(whole) == 136
    assert struct.unpack_from("=IIQ", plain) == (2, 136, 42)
    assert struct.unpack_from("=QI", whole, 80) == (7, 4096)
    assert struct.unpack_from("=IIQ", perf_event.process_attribute()) == (1, 136, 9)
    assert struct.unpack_from("=QI", perf_event.attribute(42, stack_bytes=4096), 80) == (0, 0)


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_any_bytes_are_records_or_an_error(data: bytes, registers: bool, stack: bool) -> None:
    with contextlib.suppress(DecodeError):
        all_of(data, registers=registers, stack=stack)
    with contextlib.suppress(DecodeError):
        all_of(record(9, data), registers=registers, stack=stack)
