"""Holders: all of them, and "nobody" kept apart from "not allowed to look"."""

from __future__ import annotations

import numpy as np

from finwait.attribution.owners import holders
from finwait.uapi.observation import Descriptors


def listed(
    *rows: tuple[int, int, int], unreadable: tuple[int, ...] = (), searched: bool = True
) -> Descriptors:
    pid, fd, inode = ([r[k] for r in rows] for k in range(3))
    return Descriptors(
        np.array(pid, np.uint32), np.array(fd, np.uint32), np.array(inode, np.uint64), unreadable, searched
    )


def test_every_holder_is_kept() -> None:
    found = holders(np.array([70, 71, 72], np.uint32), listed((9, 3, 70), (5, 4, 70), (5, 6, 71)))
    assert [found.of(k) for k in range(3)] == [[(5, 4), (9, 3)], [(5, 6)], []]
    assert found.first_pid().tolist() == [5, 5, -1]
    assert found.several_processes().tolist() == [True, False, False]


def test_two_descriptors_of_one_process_are_not_two_processes() -> None:
    found = holders(np.array([70], np.uint32), listed((5, 3, 70), (5, 4, 70)))
    assert found.count.tolist() == [2]
    assert found.several_processes().tolist() == [False]


def test_an_inode_of_zero_has_no_holder_whatever_is_listed() -> None:
    assert holders(np.array([0], np.uint32), listed((5, 3, 0))).count.tolist() == [0]


def test_the_search_is_complete_only_if_everybody_was_looked_into() -> None:
    inodes = np.array([70], np.uint32)
    assert holders(inodes, listed()).complete
    assert not holders(inodes, listed(unreadable=(1,))).complete
    assert holders(inodes, listed(unreadable=(1,)), ignore=frozenset({1})).complete
    assert not holders(inodes, listed(searched=False)).complete
