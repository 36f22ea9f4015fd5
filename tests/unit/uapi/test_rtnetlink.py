"""Interfaces, and the numbers of namespaces: what the kernel answers, byte by byte."""

from __future__ import annotations

import struct

import pytest

from finwait.errors import DecodeError
from finwait.uapi import netlink as nl
from finwait.uapi import rtnetlink
from tests.synthetic import walk


def link(index: int, *attributes: bytes) -> bytes:
    return nl.message(16, 2, struct.pack("=BBHiII", 0, 0, 1, index, 0, 0) + b"".join(attributes))


def number(value: int) -> bytes:
    return nl.attribute(37, struct.pack("=i", value))


def test_interfaces_tell_the_numbers_of_the_namespaces_that_they_lead_to() -> None:
    datagrams = [
        link(1),
        link(2, nl.attribute(3, b"eth0\0"), number(0)) + link(3, number(4)),
        link(4, number(-1)),
    ]
    assert rtnetlink.link_namespaces(*walk(datagrams)) == {0, 4}
    assert rtnetlink.links(*walk(datagrams))[2] == ("eth0", 0)


def answer(*attributes: bytes, kind: int = 88) -> bytes:
    return nl.message(kind, 0, bytes(4) + b"".join(attributes))


def test_a_namespace_has_a_number_or_none() -> None:
    assert rtnetlink.namespace_number(answer(nl.attribute(1, struct.pack("=i", 3)))) == 3
    assert rtnetlink.namespace_number(answer(nl.attribute(1, struct.pack("=i", -1)))) is None
    assert rtnetlink.namespace_number(answer()) is None


@pytest.mark.parametrize("data", [b"", bytes(20), answer(kind=16), answer(number(1))[:-2]])
def test_another_answer_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        rtnetlink.namespace_number(data)


def test_a_message_that_is_too_short_is_an_error() -> None:
    with pytest.raises(DecodeError):
        rtnetlink.link_namespaces(*walk([nl.message(16, 2, bytes(4))]))
