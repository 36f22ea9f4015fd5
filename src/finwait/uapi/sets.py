"""Integer arrays as sets: what is different in one, and which cells of one are in another.

``np.unique`` goes through a hash table and ``np.isin`` sorts both sides together; of hundreds of thousands of inodes
that takes far longer than a sort, or a table of their range, which is narrow: inodes are numbered in turn. Both also
bring ``numpy.ma`` into memory, 2 MB that nobody here needs.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["among", "distinct", "within"]

_WIDEST: Final = 1 << 25
"""The widest range that a table is made for: a byte for each number."""
_FEW: Final = 16


def distinct(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values without repetitions, in order."""
    if not len(values):
        return values[:0]
    ordered = np.sort(values)
    new = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return ordered[new]


def among(values: NDArray[Any], of: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which values are among others; both are integers of one type.

    Raises:
        ValueError: their types differ, so that numbers might not be compared as what they are.
    """
    if values.dtype != of.dtype:
        raise ValueError(f"{values.dtype} is not {of.dtype}")
    if not len(values) or not len(of):
        return np.zeros(len(values), np.bool_)
    if len(of) <= _FEW:
        members = np.zeros(len(values), np.bool_)
        for value in of:
            members |= values == value
        return members
    if int(of.max()) - int(of.min()) <= _WIDEST:
        return np.isin(values, of, kind="table")
    return within(values, np.sort(of))


def within(values: NDArray[Any], ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which values are among others that are in order: for few values at a time, and many to compare with."""
    if not len(values) or not len(ordered):
        return np.zeros(len(values), np.bool_)
    place = np.searchsorted(ordered, values)
    place[place == len(ordered)] = 0
    return np.asarray(ordered[place] == values)
