from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finwait.attribution.join import largest_group, matches
from finwait.attribution.owners import holders
from finwait.uapi.observation import Descriptors

WORD = st.sampled_from([0, 1, 2, 1 << 32, (1 << 64) - 1])
ROWS = st.lists(st.tuples(WORD, WORD), max_size=40)


def columns(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(rows, np.uint64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@given(ROWS, ROWS)
def test_matches_are_exactly_the_pairs_of_equal_rows_in_order_of_the_left(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    i, j = matches(columns(left), columns(right))
    found = list(zip(i.tolist(), j.tolist(), strict=True))
    assert sorted(found) == [(a, b) for a, x in enumerate(left) for b, y in enumerate(right) if x == y]
    assert i.tolist() == sorted(i.tolist())


@given(ROWS)
def test_the_largest_group_is_that_of_the_most_frequent_tuple(rows: list[tuple[int, int]]) -> None:
    assert largest_group(columns(rows)) == max(Counter(rows).values(), default=0)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9), st.integers(0, 6)), max_size=30), st.booleans()
)
def test_every_descriptor_of_an_inode_is_a_holder_lowest_pid_first(
    found: list[tuple[int, int, int]], by_pid: bool
) -> None:
    listed = sorted(found) if by_pid else found
    pid, fd, inode = (np.array([row[k] for row in listed], np.uint32) for k in range(3))
    inodes = np.arange(7, dtype=np.uint32)
    result = holders(inodes, Descriptors(pid, fd, inode.astype(np.uint64)))
    for number in range(7):
        expected = [] if number == 0 else sorted((p, f) for p, f, i in found if i == number)
        held = result.of(number)
        assert sorted(held) == expected
        assert [p for p, _ in held] == [p for p, _ in expected]
