"""How late the kernel's timers fire.

Mirrors kernel/time/timer.c (``calc_index``, ``LVL_START``). A timer is put into a bucket of the timer wheel and fires
with the bucket, never before its time. The buckets are wider the further ahead a timer is set, a tick at first and then
eight times as wide from level to level: up to an eighth of the wait (8/63).

The surprise: lateness is no noise that averages out. A timer that is set by a firing starts at the edge of a bucket, so
each doubling of a wait is late by at least one bucket of the wait before. That is what decides where a limit is missed
by little, as the 200 ms by which doublings of 200 ms miss ``tcp_model_timeout``.

How long a tick is cannot be read: it is one of kernel/Kconfig.hz, and an RTO is a whole number of them (`tick_rates`).
What this does not know: a machine that is too busy to run its timers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

__all__ = ["Chain", "late_ms", "tick_rates"]

_RATES: Final = (100, 250, 300, 1000)
"""CONFIG_HZ, as kernel/Kconfig.hz offers it."""
_FIRST_LEVEL: Final = 63
"""LVL_START(1): ticks from which on buckets are wider than a tick."""


def tick_rates(rto_ms: float) -> tuple[int, ...]:
    """Return the tick rates (Hz) of which an RTO is a whole number of ticks; all where it is of none."""
    fitting = tuple(hz for hz in _RATES if abs(rto_ms * hz / 1000 - round(rto_ms * hz / 1000)) < 0.02)
    return fitting or _RATES


def _width(ticks: int) -> int:
    """Return the width of the bucket, in ticks, of a timer that is set so many ticks ahead."""
    width = 1
    while ticks >= _FIRST_LEVEL * width:
        width *= 8
    return width


class Chain:
    """Timers each of which is set when the one before it fires: by how much they are late together, at one tick rate.

    `least_ms` and `most_ms` count from the first setting, which is at no edge of a bucket.
    """

    __slots__ = ("_least", "_most", "_tick_ms", "_width")

    def __init__(self, hz: int) -> None:
        self._tick_ms = 1000 / hz
        self._least, self._most, self._width = -1, 0, 1  # the first is set within a tick

    def wait(self, ms: float) -> None:
        """Add a timer that is set to fire after ``ms``."""
        ticks = max(math.ceil(ms / self._tick_ms - 0.05), 1)
        width = _width(ticks)
        edge = min(self._width, width)
        past = ticks % edge
        self._least += edge - past
        self._most += width - past + 1  # and its work is done within a tick
        self._width = width

    @property
    def least_ms(self) -> float:
        """By so much they are late at least."""
        return max(self._least, 0) * self._tick_ms

    @property
    def most_ms(self) -> float:
        """By so much they are late at most."""
        return self._most * self._tick_ms


@lru_cache(maxsize=1 << 14)  # of a thousand timers many are set to the same
def late_ms(*waits_ms: float, rto_ms: float = 0.0) -> float:
    """Return by how much timers are late at most, each set when the one before fires, whatever the tick is.

    Args:
        waits_ms: what they are set to.
        rto_ms: an RTO of the same machine, which tells something of its tick.
    """
    chains = [Chain(hz) for hz in tick_rates(rto_ms)]
    for ms in waits_ms:
        for chain in chains:
            chain.wait(ms)
    return max(chain.most_ms for chain in chains)
