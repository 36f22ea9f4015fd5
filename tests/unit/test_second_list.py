"""Which descriptors a second list need not read: those that surely refer to the same socket as at the first."""

from __future__ import annotations

import numpy as np
from msgspec.structs import fields, replace

from finwait.second_list import completed, unchanged
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp
from finwait.uapi.observation import Descriptors


def test_only_the_one_descriptor_of_a_socket_that_is_still_held_is_passed_over() -> None:
    sockets = SocketTable.from_columns({"inode": [5, 6, 0, 9]})
    listed = Descriptors(
        pid=np.array([1, 1, 1, 2, 2], np.uint32),
        fd=np.array([3, 4, 7, 4, 5], np.uint32),
        # 5 has one descriptor; 6 has two; 7 is in no row; 0 stands for orphans.
        inode=np.array([5, 6, 7, 6, 0], np.uint64),
        unreadable=(8,),
    )
    known = unchanged(sockets, listed)
    assert list(zip(known.pid, known.fd, known.inode, strict=True)) == [(1, 3, 5)]


def of(*triples: tuple[int, int, int]) -> Descriptors:
    pid, fd, inode = (list(column) for column in zip(*triples, strict=True))
    return Descriptors(np.array(pid, np.uint32), np.array(fd, np.uint32), np.array(inode, np.uint64))


def test_a_number_that_became_another_sockets_during_the_dump_is_read_before_a_socket_has_no_holder() -> None:
    """The dump still had the socket that it was of, and has the new one too: only a list of everything tells."""
    sockets = SocketTable.from_columns({"inode": [5, 6], "state": [tcp.CLOSE_WAIT] * 2, "protocol": [6, 6]})
    asked: list[bool] = []

    def again(known: Descriptors | None) -> Descriptors:
        asked.append(known is None)
        return of((1, 4, 6)) if known is None else of((2, 9, 77))

    held = completed(sockets, of((1, 4, 5)), again)
    assert asked == [False, True]
    assert {5, 6} <= set(held.inode.tolist())


def test_everything_is_read_once_where_the_second_list_names_all_holders() -> None:
    sockets = SocketTable.from_columns({"inode": [5, 6], "state": [tcp.CLOSE_WAIT] * 2, "protocol": [6, 6]})
    asked: list[bool] = []

    def again(known: Descriptors | None) -> Descriptors:
        asked.append(known is None)
        return of((1, 8, 6))

    completed(sockets, of((1, 4, 5)), again)
    assert asked == [False]


def test_a_second_list_loses_nothing_of_the_first() -> None:
    """Who waits is told by event loops and rings: without them everybody would seem to have forgotten everything."""
    first = replace(of((1, 4, 5)), loops=((1, 9), (2, 3)), rings=((1, 10),), unreadable=(8,))
    second = replace(of((1, 8, 6)), loops=((1, 9), (3, 4)), rings=((3, 5),), unreadable=(7,), threads=(6,))
    sockets = SocketTable.from_columns({"inode": [5, 6], "state": [tcp.CLOSE_WAIT] * 2, "protocol": [6, 6]})
    both = completed(sockets, first, lambda _: second)
    assert both.loops == ((1, 9), (2, 3), (3, 4))
    assert both.rings == ((1, 10), (3, 5))
    assert (both.unreadable, both.threads, both.searched) == ((7, 8), (6,), True)
    assert {f.name for f in fields(Descriptors)} == {
        "pid", "fd", "inode", "unreadable", "searched", "threads", "loops", "rings", "pasted",
    }  # fmt: skip
