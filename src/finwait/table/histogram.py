"""Histograms of durations: fine enough for a median, always of the same length, so that they add up.

A cell is a part of a power of two of microseconds. `coarse` makes whole powers of two of it, as people read them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["FINE", "coarse", "fine_histogram", "fine_median_ns"]

FINE: Final = 128
"""Parts of each power of two in `fine_histogram`: a time is known to within one part in 128."""
_POWERS: Final = 54  # of microseconds: the largest is 285 years


def fine_histogram(in_old_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count durations by parts of powers of two of microseconds; always of the same length.

    Cell 0 is below one microsecond; cell ``1 + FINE * k + j`` begins at ``2**k * (1 + j / FINE)`` microseconds.
    """
    us = np.maximum(in_old_ns, 0) / 1000
    fraction, power = np.frexp(us)  # us = fraction * 2**power, 0.5 <= fraction < 1
    part = ((fraction * 2 - 1) * FINE).astype(np.int64)
    cell = np.where(us < 1, 0, 1 + FINE * (np.minimum(power.astype(np.int64), _POWERS) - 1) + part)
    return np.bincount(cell, minlength=1 + FINE * _POWERS).astype(np.int64)


def coarse(fine: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a fine histogram by whole powers of two: lower bounds in microseconds (0, 1, 2, 4 …), and counts."""
    counts = np.concatenate([fine[:1], fine[1:].reshape(-1, FINE).sum(axis=1)])
    return np.concatenate([[0], 1 << np.arange(_POWERS, dtype=np.int64)]), counts


def fine_median_ns(fine: NDArray[np.int64]) -> int:
    """Return the median of a fine histogram, to within one part in 256."""
    total = int(fine.sum())
    cell = int(np.searchsorted(np.cumsum(fine), total // 2, side="right"))
    if cell == 0:
        return 0
    power, part = divmod(cell - 1, FINE)
    return int(2**power * (1 + (part + 0.5) / FINE) * 1000)
