"""What numbers were at the last looks: a ring that is bounded in looks and in names.

A look gives a number for each of some names at a moment; a look that failed gives none. What was at another moment is
what the last look before it said, so that looks may come at any pace. Four things are kept apart, for they lead to
opposite conclusions: a number that was 0, a moment whose look failed (`None`), one at which it was due and nobody has
counted (`late`; not a number, `UNCOUNTED`), and one before the first look (nothing at all: `levels` is then shorter).

Moments are arguments, in seconds of any clock. A look at an earlier moment than the last one, as when a recording is
turned back, forgets what came after it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from itertools import islice
from typing import Final

__all__ = ["UNCOUNTED", "History"]

UNCOUNTED: Final = float("nan")
"""What is in place of a number where nobody has counted."""

_LOOKS: Final = 900
"""Half an hour at a look every two seconds."""
_NAMES: Final = 256


class History:
    """Numbers by name, of the last looks.

    Args:
        looks: that are kept.
        names: that are kept of each look, its first ones; of the others nothing is known.
    """

    def __init__(self, *, looks: int = _LOOKS, names: int = _NAMES) -> None:
        self._most = looks
        self._names = names
        self._when: list[float] = []
        self._seen: list[Mapping[str, float] | None] = []
        self._whole: list[bool] = []
        self._late: list[bool] = []

    def __len__(self) -> int:
        return len(self._when)

    def clear(self) -> None:
        """Forget everything."""
        self._when, self._seen, self._whole, self._late = [], [], [], []

    def look(self, when_s: float, numbers: Mapping[str, float]) -> None:
        """Remember a look; a name that it does not have was 0 then."""
        self._add(when_s, dict(islice(numbers.items(), self._names)), len(numbers) <= self._names)

    def failed(self, when_s: float) -> None:
        """Remember that a look failed."""
        self._add(when_s, None, False)

    def late(self, when_s: float) -> None:
        """Remember that nothing has been counted since the last look: what it said is not repeated."""
        self._add(when_s, None, False, late=True)

    def _add(
        self, when_s: float, numbers: Mapping[str, float] | None, whole: bool, *, late: bool = False
    ) -> None:
        first = bisect_left(self._when, when_s)
        for kept in (self._when, self._seen, self._whole, self._late):
            del kept[first:]
        self._when.append(when_s)
        self._seen.append(numbers)
        self._whole.append(whole)
        self._late.append(late)
        if len(self._when) > self._most:
            for kept in (self._when, self._seen, self._whole, self._late):
                del kept[: len(kept) - self._most]

    def _at(self, place: int, name: str) -> float | None:
        numbers = self._seen[place]
        if numbers is None:
            return None
        return numbers.get(name, 0.0 if self._whole[place] else None)

    def levels(self, name: str, cells: int, span_s: float) -> list[float | None]:
        """Return what was at the end of each of some equal parts of the last seconds, the newest last.

        Parts begin at multiples of their length, so that a number stays in its part while time goes on.

        Returns:
            At most ``cells`` numbers; None where the look failed, `UNCOUNTED` where nobody has counted. What was before
            the first look is left out.
        """
        if not self._when or cells < 1:
            return []
        step = span_s / cells
        newest = self._when[-1]
        last = newest // step
        levels: list[float | None] = []
        for cell in range(cells):
            end = newest if cell == cells - 1 else (last - (cells - 2 - cell)) * step
            place = (
                bisect_right(self._when, end) - 1 if cell == cells - 1 else bisect_left(self._when, end) - 1
            )
            if place >= 0:
                begin = (last - (cells - 1 - cell)) * step
                levels.append(self._in_cell(place, name, begin))
        return levels

    def _in_cell(self, place: int, name: str, begin: float) -> float | None:
        """Return what the last look of a cell that counted said; what was counted before it began is not repeated."""
        if not self._late[place]:
            return self._at(place, name)
        while place >= 0 and self._late[place] and self._when[place] >= begin:
            place -= 1
        counted = place >= 0 and not self._late[place] and self._when[place] >= begin
        return self._at(place, name) if counted else UNCOUNTED

    def per_minute(self, name: str, span_s: float = 60.0, least_s: float = 1.0) -> float | None:
        """Return by how much a number rose (fell: below 0) in a minute, by the last look and one before it.

        Args:
            name: which number.
            span_s: compare with the oldest known look of so many seconds, or the one before where looks are rarer.
            least_s: … which is at least so much older than the last one.

        Returns:
            None where the last look failed, or no look is there to compare with; where nobody has counted since, by the
            last look that did.
        """
        places = [place for place, late in enumerate(self._late) if not late]
        if not places or (now := self._at(places[-1], name)) is None:
            return None
        newest = self._when[places[-1]]
        begin = bisect_left(places, bisect_left(self._when, newest - span_s))
        for place in places[max(min(begin, len(places) - 2), 0) : -1]:
            before = self._at(place, name)
            passed = newest - self._when[place]
            if before is not None and passed >= least_s:
                return 60.0 * (now - before) / passed
        return None
