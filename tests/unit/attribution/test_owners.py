"""Holders: all of them, and "nobody" kept apart from "not allowed to look"."""

from __future__ import annotations

import numpy as np
import pytest

from finwait.attribution.owners import holders
from finwait.uapi.observation import Descriptors


def listed(
    *rows: tuple[int, int, int],
    unreadable: tuple[int, ...] = (),
    searched: bool = True,
    threads: tuple[int, ...] = (),
) -> Descriptors:
    pid, fd, inode = ([r[k] for r in rows] for k in range(3))
    return Descriptors(
        np.array(pid, np.uint32),
        np.array(fd, np.uint32),
        np.array(inode, np.uint64),
        unreadable,
        searched,
        threads,
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


@pytest.mark.parametrize(
    ("found", "missing", "wanting", "hint"),
    [
        (listed(), "", "", ""),
        (
            listed(searched=False),
            "holders were not looked for (`--no-owners`)",
            "a look without `--no-owners`",
            "without `--no-owners` they are looked for",
        ),
        (
            listed(unreadable=(812, 0)),
            "processes outside this pid namespace cannot be seen (run on the host, or with hostPID)",
            "a look from the host, or with hostPID",
            "run it on the host, or with hostPID",
        ),
        (
            listed(unreadable=(812,)),
            "pid 812 could not be inspected (needs CAP_SYS_PTRACE; `--not-holder PID` vouches for one)",
            "CAP_SYS_PTRACE, or `--not-holder PID`",
            "run it as root, or give it CAP_SYS_PTRACE, so that it can inspect every process",
        ),
        (
            listed(unreadable=(812, 813), threads=(9,)),
            "2 processes could not be inspected (needs CAP_SYS_PTRACE; `--not-holder PID` vouches for one)",
            "CAP_SYS_PTRACE, or `--not-holder PID`",
            "run it as root, or give it CAP_SYS_PTRACE, so that it can inspect every process",
        ),
        (
            listed(threads=(9,)),
            "there are too many threads to check each for its own descriptor table",
            "",
            "",
        ),
    ],
)
def test_what_kept_us_from_finding_every_holder_is_said_with_what_helps(
    found: Descriptors, missing: str, wanting: str, hint: str
) -> None:
    held = holders(np.array([70], np.uint32), found)
    assert (held.missing, held.wanting, held.hint) == (missing, wanting, hint)
    assert held.complete is (not missing)


def test_where_a_capability_is_not_what_is_missing_none_is_asked_for() -> None:
    held = holders(np.array([70], np.uint32), listed(unreadable=(812,)), needs="a host without yama")
    assert held.hint == "`--not-holder PID` vouches for a process; others need a host without yama"


def test_a_descriptor_leads_to_the_row_that_it_refers_to() -> None:
    inodes = np.array([70, 71, 72], np.uint32)
    held = holders(inodes, listed((5, 3, 71), (5, 4, 70), (6, 3, 72), (7, 9, 99)))
    assert [held.row_of(*one) for one in ((5, 4), (5, 3), (6, 3), (7, 9), (8, 1))] == [0, 1, 2, -1, -1]


def test_what_a_process_holds_twice_is_counted_once() -> None:
    inodes = np.array([70, 71, 72], np.uint32)
    held = holders(inodes, listed((5, 3, 70), (5, 4, 70), (6, 3, 70), (5, 9, 71)))
    assert held.counted(np.array([0, 1, 2])) == {5: 2, 6: 1}
    assert held.counted(np.array([0])) == {5: 1, 6: 1}
    assert held.counted(np.array([2])) == {}
