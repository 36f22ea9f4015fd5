"""Joins: the same pairs as two nested loops would give."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finwait.attribution.join import matches, unique_match

cells = st.integers(0, 3)
rows = st.lists(st.tuples(cells, cells), max_size=20)


@given(rows, rows)
def test_pairs_are_those_of_nested_loops(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    a, b = (np.array(x, np.uint64).reshape(-1, 2) for x in (left, right))
    i, j = matches((a[:, 0], a[:, 1]), (b[:, 0], b[:, 1]))
    wanted = {(p, q) for p, x in enumerate(left) for q, y in enumerate(right) if x == y}
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == wanted
    assert len(i) == len(wanted)
    assert i.tolist() == sorted(i.tolist())


def test_a_row_with_two_partners_gets_none() -> None:
    partner, several = unique_match(3, np.array([0, 1, 1]), np.array([5, 6, 7]))
    assert partner.tolist() == [5, -1, -1]
    assert several.tolist() == [False, True, False]


def test_words_of_different_types_are_equal_when_their_values_are() -> None:
    i, j = matches((np.array([443], ">u2"),), (np.array([443], "<u4"),))
    assert (i.tolist(), j.tolist()) == ([0], [0])
