"""What threads and event loops wait for: any bytes decode or say where they stopped, and what is written comes back."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.errors import DecodeError
from finwait.uapi import eventpoll, poll, syscall
from tests.property.test_decoders import says_where

WORD = st.integers(0, (1 << 64) - 1)
FD = st.integers(0, (1 << 31) - 1)
MASK = st.integers(0, (1 << 32) - 1)
INODE = st.integers(0, (1 << 32) - 1)


@pytest.mark.parametrize("decode", [syscall.parse, eventpoll.parse])
@given(data=st.binary(max_size=400))
def test_any_bytes_are_read_or_say_where_they_stopped(decode: Callable[[bytes], object], data: bytes) -> None:
    says_where_it_stopped(decode, data)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_what_begins_like_a_registration_and_is_none_is_said(before: bytes, after: bytes) -> None:
    says_where_it_stopped(eventpoll.parse, before + b"\ntfd: " + after)


def says_where_it_stopped(decode: Callable[[bytes], object], data: bytes) -> None:
    try:
        decode(data)
    except DecodeError as error:
        says_where(error, len(data))


@given(st.integers(0, 999), st.tuples(WORD, WORD, WORD, WORD, WORD, WORD), WORD, WORD)
def test_a_call_as_the_kernel_writes_it_comes_back(
    number: int, args: tuple[int, ...], sp: int, pc: int
) -> None:
    line = f"{number} {' '.join(f'{word:#x}' for word in (*args, sp, pc))}\n"
    found = syscall.parse(line.encode())
    assert found is not None
    assert (found.number, found.args) == (number, args)


@given(st.lists(st.tuples(FD, MASK, WORD, INODE), max_size=20), st.booleans())
def test_registrations_as_the_kernel_writes_them_come_back(
    rows: list[tuple[int, int, int, int]], inodes: bool
) -> None:
    text = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t9\n"
    for fd, events, data, inode in rows:
        text += f"tfd: {fd:8d} events: {events:8x} data: {data:16x}"
        text += f"  pos:0 ino:{inode:x} sdev:9\n" if inodes else "\n"
    found = eventpoll.parse(text.encode())
    assert found.fd.tolist() == [fd for fd, *_ in rows]
    assert found.events.tolist() == [events for _, events, *_ in rows]
    assert found.inode.tolist() == [inode if inodes else -1 for *_, inode in rows]


@given(st.dictionaries(FD, st.integers(0, 0xFFFF), max_size=30), st.binary(max_size=7))
def test_a_poll_set_comes_back_and_a_broken_last_entry_is_left_out(
    wanted: dict[int, int], rest: bytes
) -> None:
    memory = b"".join(struct.pack("=iHH", fd, events, 7) for fd, events in wanted.items())
    assert poll.poll_set(memory + rest) == wanted


@given(st.sets(st.integers(0, 1100)), st.sets(st.integers(0, 1100)), st.integers(0, 1200))
def test_a_select_set_comes_back_up_to_its_highest_descriptor(
    read: set[int], write: set[int], nfds: int
) -> None:
    def words(fds: set[int]) -> bytes:
        return sum(1 << fd for fd in fds).to_bytes(160, "little")

    found = poll.select_sets(nfds, (words(read), words(write), b""))
    wanted = {
        fd: (poll.POLLIN if fd in read else 0) | (poll.POLLOUT if fd in write else 0)
        for fd in read | write
        if fd < nfds
    }
    assert found == wanted


@given(st.integers(0, 1 << 40), st.integers(-5, 1_000_005))
def test_a_limit_is_a_number_of_ms_or_none_at_all(whole: int, part: int) -> None:
    found = poll.timeval_ms(struct.pack("=qq", whole, part))
    assert found == (whole * 1000 + part // 1000 if 0 <= part < 1_000_000 else None)
