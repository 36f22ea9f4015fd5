"""Which rows are two ends of one connection, before a diagnosis says so.

A diagnosis looks at every socket and at address translation, and what it says stands. Until it has seen a row, its
addresses tell: the other end has them the other way round. In one network namespace that is certain. Across
namespaces two rows are a pair only where no third one has those addresses: addresses of containers repeat.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["paired"]


def paired(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the cookie of each row's other end; 0 where none is known.

    Args:
        rows: in the order of their cookies, with addresses, ports, namespace, and what a diagnosis said (``diagnosed``,
            ``other``).
    """
    cookie = rows["cookie"]
    other: NDArray[np.uint64] = rows["other"].copy()
    naming = np.flatnonzero(other)  # of one that a diagnosis has seen, which named one that it has not
    named = np.minimum(np.searchsorted(cookie, other[naming]), len(cookie) - 1)
    right = (cookie[named] == other[naming]) & ~rows["diagnosed"][named] & (other[named] == 0)
    other[named[right]] = cookie[naming[right]]
    for names in (("netns",), ()):
        open_ = np.flatnonzero(~rows["diagnosed"] & (other == 0))
        if len(open_) > 1:
            first, second = _mirrored(rows[open_], names)
            other[open_[first]] = cookie[open_[second]]
    return other


def _mirrored(rows: NDArray[Any], names: tuple[str, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the places of rows that have one another's addresses the other way round, and of those others.

    Args:
        rows: among which.
        names: what else must be the same in both.
    """
    own = (rows["src"][:, 0], rows["src"][:, 1], rows["sport"].astype(np.uint64))
    far = (rows["dst"][:, 0], rows["dst"][:, 1], rows["dport"].astype(np.uint64))
    swapped = own[0] > far[0]
    for level in (1, 2):
        same = np.logical_and.reduce([own[k] == far[k] for k in range(level)])
        swapped |= same & (own[level] > far[level])
    parts = [np.where(swapped, b, a) for a, b in zip(own, far, strict=True)]
    parts += [np.where(swapped, a, b) for a, b in zip(own, far, strict=True)]
    parts += [rows[name].astype(np.uint64) for name in names]
    order = np.lexsort((swapped, *parts))
    new = np.ones(len(rows), np.bool_)
    new[1:] = np.logical_or.reduce([part[order][1:] != part[order][:-1] for part in parts])
    begins = np.flatnonzero(new)
    pairs = begins[np.diff(np.append(begins, len(rows))) == 2]
    pairs = pairs[
        swapped[order[pairs]] != swapped[order[pairs + 1]]
    ]  # else both are the same end, of two connections
    first, second = order[pairs], order[pairs + 1]
    return np.concatenate((first, second)), np.concatenate((second, first))
