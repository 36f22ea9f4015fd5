"""Sets of descriptors in a program's memory."""

from __future__ import annotations

import select
import struct

import pytest

from finwait.uapi import poll


def pollfds(*entries: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("=ihh", fd, events, 0) for fd, events in entries)


def test_a_poll_set_is_descriptors_with_events() -> None:
    assert poll.poll_set(pollfds((5, select.POLLIN), (7, select.POLLOUT))) == {5: 1, 7: 4}


def test_negative_descriptors_are_left_out_and_double_ones_put_together() -> None:
    assert poll.poll_set(pollfds((-1, 1), (5, 1), (5, 4), (-6, 4))) == {5: 5}


def test_what_is_cut_off_is_not_read() -> None:
    assert poll.poll_set(pollfds((5, 1), (7, 1))[:-1]) == {5: 1}


def test_select_has_three_sets_of_which_only_the_first_descriptors_count() -> None:
    def fd_set(*fds: int) -> bytes:
        return sum(1 << fd for fd in fds).to_bytes(16, "little")

    found = poll.select_sets(71, (fd_set(3, 70, 71), fd_set(3), b""))
    assert found == {3: poll.POLLIN | poll.POLLOUT, 70: poll.POLLIN}
    assert poll.select_sets(0, (b"", b"", b"")) == {}


@pytest.mark.parametrize(
    ("whole", "part", "ms"),
    [(0, 0, 0), (5, 500_000_000, 5500), (77, 1, 77_000), (-1, 0, None), (1, 10**9, None)],
)
def test_a_timespec_is_milliseconds_or_no_limit_at_all(whole: int, part: int, ms: int | None) -> None:
    assert poll.timespec_ms(struct.pack("=qq", whole, part)) == ms


def test_a_timeval_counts_microseconds() -> None:
    assert poll.timeval_ms(struct.pack("=qq", 1, 250_000)) == 1250
    assert poll.timeval_ms(struct.pack("=qq", 1, 1_000_000)) is None
    assert poll.timeval_ms(b"short") is None
