"""Which files of a namespace are read, and that a directory opened once gives what whole paths give."""

from __future__ import annotations

import os

import pytest

from finwait.kernel import observe, procfs

HEADER = b"entries  clashres found new invalid\n"
IPV4 = [name.removeprefix("ipv4/") for name in observe.SYSCTLS if name.startswith("ipv4/")]


def test_files_read_below_one_directory_are_those_read_by_their_paths() -> None:
    found = procfs.read_all("/proc/sys/net/ipv4", [*IPV4, "there_is_no_such_setting"])
    assert found == {
        name: data for name in IPV4 if (data := procfs.read(f"/proc/sys/net/ipv4/{name}")) is not None
    }
    assert found["tcp_fin_timeout"].strip().isdigit()


def test_a_directory_that_is_not_there_has_no_files_and_none_is_left_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    assert procfs.read_all("/proc/sys/net/nothing", ["of_the_kind"]) == {}
    assert procfs.read_all("/proc/sys/net", ["ipv4"]) == {}, "a directory is not a file"
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("count", "statistics", "works"),
    [
        (None, None, False),
        (b"0\n", HEADER + b"00000000  00000000 00000000 00000000 00000000\n" * 2, False),
        (b"0\n", HEADER, False),
        (b"3\n", HEADER + b"00000003  00000000 00000000 00000000 00000000\n", True),
        (b"0\n", HEADER + b"00000000  00000000 00000000 00000000 0000000a\n", True),
        (b"0\n", None, True),
        (None, HEADER, True),
    ],
)
def test_conntrack_counts_as_at_work_unless_it_surely_never_was(
    count: bytes | None, statistics: bytes | None, works: bool
) -> None:
    assert observe._conntrack_works(count, statistics) is works
