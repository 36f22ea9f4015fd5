"""Joining tables on tuples of 64-bit words, without a loop over rows.

Each row's words are mixed into one 64-bit hash; the right side is sorted by it once and the left side looks
it up. A hash that agrees is then compared word by word, so a collision costs time and never a wrong match.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["largest_group", "matches", "unique_match"]

U64 = NDArray[np.uint64]


def _mix(words: Sequence[NDArray[Any]]) -> U64:
    h = np.full(len(words[0]), 0x9E3779B97F4A7C15, np.uint64)
    for word in words:
        h ^= word.astype(np.uint64)
        h *= np.uint64(0xBF58476D1CE4E5B9)
        h ^= h >> np.uint64(29)
    return h


def matches(
    left: Sequence[NDArray[Any]], right: Sequence[NDArray[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all pairs ``(i, j)`` of rows whose words are equal, in order of ``i``.

    Args:
        left: one array a key word, all of the left length.
        right: the same words of the right side.
    """
    none = np.empty(0, np.int64)
    if not len(left[0]) or not len(right[0]):
        return none, none
    a, b = _mix(left), _mix(right)
    order = np.argsort(b, kind="stable")
    b = b[order]
    first = np.searchsorted(b, a, "left")
    # How many equal ones follow the first: told by where runs begin, which is cheaper than a second search.
    begins = np.flatnonzero(np.concatenate([[True], b[1:] != b[:-1]]))
    run = np.zeros(len(b) + 1, np.int64)
    run[begins] = np.diff(np.append(begins, len(b)))
    count = np.where(b[np.minimum(first, len(b) - 1)] == a, run[first], 0)
    i = np.repeat(np.arange(len(a)), count)
    if not len(i):
        return none, none
    within = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)
    j = order[np.repeat(first, count) + within]
    same = np.ones(len(i), np.bool_)
    for x, y in zip(left, right, strict=True):
        same &= x[i].astype(np.uint64) == y[j].astype(np.uint64)
    return i[same], j[same]


def largest_group(words: Sequence[NDArray[Any]]) -> int:
    """Return how many rows the most frequent tuple of words has; 0 without rows."""
    n = len(words[0])
    if not n:
        return 0
    order = np.lexsort(tuple(words))
    begins = np.zeros(n, np.bool_)
    begins[0] = True
    for word in words:
        begins[1:] |= word[order[1:]] != word[order[:-1]]
    return int(np.diff(np.append(np.flatnonzero(begins), n)).max())


def unique_match(
    n: int, i: NDArray[np.int64], j: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Reduce pairs to one partner a left row: ``−1`` for none, and a mask of rows that had several.

    A row with several candidates gets none of them: which one is the right one would be a guess.
    """
    count = np.bincount(i, minlength=n) if len(i) else np.zeros(n, np.int64)
    partner = np.full(n, -1, np.int64)
    if len(i):
        partner[i] = j
    several = count > 1
    partner[several] = -1
    return partner, several
