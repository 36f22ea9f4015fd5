"""fdinfo of an epoll descriptor."""

from __future__ import annotations

import select
import socket
from pathlib import Path

import pytest

from finwait.errors import DecodeError
from finwait.uapi import eventpoll as ep

HEAD = b"pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1039\n"
NEW = HEAD + (
    b"tfd:        8 events: 40000000 data:                8  pos:0 ino:1483a sdev:9\n"
    b"tfd:        6 events:     201d data: ffffffffffffffff  pos:0 ino:14838 sdev:9\n"
)
OLD = b"pos:\t0\nflags:\t02\nmnt_id:\t11\ntfd:        5 events:       1d data:                5\n"


def test_each_line_is_a_registration_with_the_inode_that_is_watched() -> None:
    found = ep.parse(NEW)
    assert len(found) == 2
    assert found.fd.tolist() == [8, 6]
    assert found.events.tolist() == [ep.EPOLLONESHOT, 0x201D]
    assert found.inode.tolist() == [0x1483A, 0x14838]


def test_kernels_before_4_13_tell_no_inode() -> None:
    found = ep.parse(OLD)
    assert (found.fd.tolist(), found.inode.tolist()) == ([5], [-1])


def test_an_empty_instance_watches_nothing() -> None:
    assert len(ep.parse(HEAD)) == 0
    assert len(ep.parse(b"")) == 0


@pytest.mark.parametrize(
    "line", [b"tfd: x events: 1 data: 1\n", b"tfd: 5\n", b"tfd:  5 events: 1 data: 1 more\n"]
)
def test_a_line_that_only_begins_as_a_registration_is_an_error(line: bytes) -> None:
    with pytest.raises(DecodeError) as error:
        ep.parse(NEW + line)
    assert error.value.offset == len(NEW)


def test_this_kernel_says_what_python_registered() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, select.epoll() as watch:
        watch.register(ours, select.EPOLLIN | select.EPOLLRDHUP)
        found = ep.parse(Path(f"/proc/self/fdinfo/{watch.fileno()}").read_bytes())
    assert found.fd.tolist() == [ours.fileno()] or len(found) == 1
    assert ep.event_names(int(found.events[0])) == ("IN", "ERR", "HUP", "RDHUP")


def test_bits_without_a_name_are_shown_as_a_number() -> None:
    assert ep.event_names(0x80001001 | 1 << 20) == ("IN", "ET", "0x101000")
