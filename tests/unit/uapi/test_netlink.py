from __future__ import annotations

import struct

import numpy as np
import pytest

from finwait.errors import DecodeError
from finwait.uapi import netlink as nl
from tests.synthetic import arena, walk


def test_a_message_carries_its_length_type_flags_and_sequence() -> None:
    made = nl.message(20, 0x301, b"abcde", seq=7)
    assert struct.unpack_from("=IHHII", made) == (21, 20, 0x301, 7, 0)
    assert len(made) == 24, "padded to four bytes, which the length does not count"


def test_an_attribute_counts_its_header_and_not_its_padding() -> None:
    made = nl.attribute(5, b"abcde")
    assert struct.unpack_from("=HH", made) == (9, 5)
    assert made[4:] == b"abcde\0\0\0"


def test_a_nested_attribute_says_so() -> None:
    made = nl.nested(3, nl.attribute(1, b"ab"), nl.attribute(2, b""))
    assert struct.unpack_from("=HH", made) == (len(made), 3 | 0x8000)
    ((kind, at, size),) = nl.attributes(made, 0, len(made), "outer")
    inner = [(k, made[a : a + n]) for k, a, n in nl.attributes(made, at, at + size, "inner")]
    assert kind == 3
    assert inner == [(1, b"ab"), (2, b"")]


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (struct.pack("=HH", 3, 1), 0),
        (struct.pack("=HH", 9, 1) + b"abcd", 0),
        (nl.attribute(1, b"abcd") + b"\1\0", 8),
        (nl.attribute(1, b"abcd") + struct.pack("=HH", 0, 1), 8),
    ],
)
def test_impossible_attributes_are_errors_that_say_where(data: bytes, offset: int) -> None:
    with pytest.raises(DecodeError) as caught:
        list(nl.attributes(data, 0, len(data), "some attribute"))
    assert caught.value.offset == offset
    assert caught.value.what == "some attribute"


def test_messages_of_many_datagrams_come_in_order_of_arrival() -> None:
    datagrams = [
        b"".join(nl.message(100 * d + m, m, bytes(d + m)) for m in range(count))
        for d, count in enumerate((3, 1, 0, 5))
    ]
    buffer, found = walk(datagrams)
    assert found.type.tolist() == [0, 1, 2, 100, 300, 301, 302, 303, 304]
    assert found.flags.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
    assert found.chain.tolist() == [0, 0, 0, 1, 3, 3, 3, 3, 3]
    assert found.length.tolist() == [16, 17, 18, 17, 19, 20, 21, 22, 23]
    for offset, kind in zip(found.offset, found.type, strict=True):
        assert struct.unpack_from("=H", buffer.tobytes(), offset + 4) == (kind,)


def test_a_mask_selects_messages() -> None:
    _, found = walk([nl.message(1, 0, b"") + nl.message(2, 0, b"")])
    assert found.where(found.type == 2).offset.tolist() == [16]
    assert len(found) == 2


def test_no_datagrams_have_no_messages() -> None:
    _, found = walk([])
    assert len(found) == 0


def test_fewer_bytes_than_a_header_end_a_chain() -> None:
    _, found = walk([nl.message(1, 0, b"") + b"\x40\0\0\0"])
    assert len(found) == 1


@pytest.mark.parametrize("length", [0, 15, 37, 0xFFFFFFFF])
def test_a_message_of_impossible_length_is_an_error_that_says_where(length: int) -> None:
    first = nl.message(1, 0, b"abcd")
    bad = struct.pack("=IHHII", length, 2, 0, 0, 0)
    buffer, starts, ends = arena([first, first + bad])
    with pytest.raises(DecodeError) as caught:
        nl.walk(buffer, starts, ends)
    assert caught.value.offset == int(starts[1]) + len(first)
    assert caught.value.window == bad
    assert f"length {length}" in str(caught.value)


def test_the_offsets_are_those_of_the_whole_buffer() -> None:
    buffer = np.frombuffer(bytes(64) + nl.message(9, 0, b""), np.uint8)
    found = nl.walk(buffer, np.array([64]), np.array([80]))
    assert found.offset.tolist() == [64]
