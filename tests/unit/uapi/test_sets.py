"""Arrays as sets say what numpy's own functions say, whichever way they take."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.uapi.sets import among, distinct, within

NEAR = st.lists(st.integers(0, 200), max_size=60)
FAR = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20), max_size=60)


@given(NEAR | FAR, NEAR | FAR)
def test_cells_are_found_among_others(values: list[int], of: list[int]) -> None:
    a, b = np.array(values, np.uint64), np.array(of, np.uint64)
    assert among(a, b).tolist() == [value in set(of) for value in values]
    assert among(a, np.repeat(b, 20)).tolist() == [value in set(of) for value in values]
    assert within(a, np.sort(b)).tolist() == [value in set(of) for value in values]


@given(NEAR | FAR)
def test_values_without_repetitions_are_in_order(values: list[int]) -> None:
    array = np.array(values, np.uint64)
    assert distinct(array).tolist() == sorted(set(values))
    assert distinct(array).dtype == array.dtype


def test_numbers_of_two_types_are_not_compared() -> None:
    with pytest.raises(ValueError, match="int64"):
        among(np.array([1], np.int64), np.array([1], np.uint64))
