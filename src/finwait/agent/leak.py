"""Whether connections that do not close pile up, how fast, and when a limit is reached.

Theory of operation. A line through points takes a spike or a step (a deploy that left a thousand connections behind)
for growth. So *survivors* are counted: connections that are older than ten minutes. A spike leaves none, and a step
makes them grow once. A leak makes them grow in each of three windows in a row, and by more than what came and went
would by chance: where *a* began to survive and *d* ended, their difference scatters by √(a + d), so less than three
times that says nothing. Windows of 5 minutes see a leak of one a minute after a quarter of an hour; those of an hour
and of six hours see slower ones.

A window in which nobody looked proves no growth: the three begin again.

What this cannot see: a leak that ends within ten minutes, and one that is slower than about ten in 18 hours.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable
from typing import Final

from msgspec import Struct, field

__all__ = ["MARK_S", "SURVIVES_S", "WINDOWS_S", "Growth", "Used", "WindowEnd", "reached_in_s"]

SURVIVES_S: Final = 600
"""What is older survives."""
WINDOWS_S: Final = (300, 3600, 21600)
"""Lengths of a window, in seconds; three in a row decide."""
MARK_S: Final = WINDOWS_S[0]
_IN_A_ROW: Final = 3
_SIGMAS: Final = 3.0
_LATE: Final = 0.2
"""A mark may be late by this part of a window, or one look and this part of it; later ones leave a hole."""


class WindowEnd(Struct, frozen=True):
    """What was so at the end of a window."""

    at_s: float
    """CLOCK_BOOTTIME, seconds."""
    survivors: int
    arrived: int
    """How many have begun to survive since counting began."""
    departed: int
    """… and ended again."""


class Growth(Struct):
    """The survivors of one group, marked at the end of each window.

    Attributes:
        step_s: seconds from one look to the next. A mark waits for a look: so much later it leaves no hole.
    """

    step_s: float = 0.0
    _marks: dict[int, deque[WindowEnd]] = field(
        default_factory=lambda: {window: deque(maxlen=_IN_A_ROW + 1) for window in WINDOWS_S}
    )

    def mark(self, mark: WindowEnd) -> None:
        """Enter what is so now; what is too early for the end of a window is left out."""
        for window, marks in self._marks.items():
            if marks:
                since = mark.at_s - marks[-1].at_s
                if since < window:
                    continue
                late = max(window * _LATE, self.step_s * (1 + _LATE))
                if since > window + late:  # nobody looked at the end of it
                    marks.clear()
            marks.append(mark)

    @property
    def rate(self) -> float:
        """Survivors that a second adds; 0.0 while they do not grow. Of the shortest windows that grew."""
        return next((rate for marks in self._marks.values() if (rate := _rate(marks)) > 0), 0.0)

    @property
    def marks(self) -> dict[int, tuple[WindowEnd, ...]]:
        """The marks by length of window, to be stored."""
        return {window: tuple(marks) for window, marks in self._marks.items()}

    def restore(self, marks: Iterable[tuple[int, WindowEnd]]) -> None:
        """Take up marks that were stored, oldest first; of another boot they must be left out."""
        for window, mark in marks:
            if window in self._marks:
                self._marks[window].append(mark)


def _rate(marks: deque[WindowEnd]) -> float:
    if len(marks) <= _IN_A_ROW:
        return 0.0
    first, last = marks[0], marks[-1]
    grew = all(b.survivors > a.survivors for a, b in itertools.pairwise(marks))
    if not grew or last.at_s <= first.at_s:
        return 0.0
    net = last.survivors - first.survivors
    moved = last.arrived - first.arrived + last.departed - first.departed
    if net < _SIGMAS * math.sqrt(max(moved, net)):  # what grew has had as many arrivals at least
        return 0.0
    return net / (last.at_s - first.at_s)


class Used(Struct, frozen=True):
    """How much of a limit is used."""

    limit: str
    """``nofile``, ``ports``, ``accept-queue``, ``conntrack``, ``tw-buckets``, ``orphans`` or ``tcp-mem``."""
    subject: str
    """Whose: a workload, a network namespace; empty for the machine's."""
    used: int
    most: int
    workload: str = ""
    """Whose leak uses it up; empty where any does."""

    @property
    def ratio(self) -> float:
        """The part that is used, 0 to 1; more where the limit was lowered."""
        return self.used / self.most if self.most > 0 else 1.0


def reached_in_s(limit: Used, rate: float) -> float | None:
    """Return in how many seconds a limit is reached; None while nothing grows.

    Args:
        limit: what is used of it.
        rate: how much a second uses up, by the survivors.
    """
    if rate <= 0:
        return None
    return max(0.0, (limit.most - limit.used) / rate)
