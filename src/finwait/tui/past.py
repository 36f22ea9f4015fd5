"""What earlier pictures of the live view said: rings of numbers, and which connections are new in a group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from finwait.report.board import Arrivals, Group, Judged
from finwait.report.groups import Grouping
from finwait.report.history import History
from finwait.session import Diagnosis
from finwait.uapi import tcp
from finwait.watching import Picture

__all__ = ["Past", "connections_of"]

Grouped = Callable[[Picture, Diagnosis, Grouping], Sequence[Group]]
"""What makes the groups of a picture."""


def connections_of(counts: Mapping[int, int]) -> int:
    """Return how many connections there are among sockets by state: listeners are none."""
    return sum(counts.values()) - counts.get(tcp.LISTEN, 0)


class Past:
    """The numbers of earlier pictures.

    Args:
        judge: gives what a diagnosis says of each row.
        group: makes groups.
    """

    def __init__(self, judge: Callable[[Diagnosis], Judged], group: Grouped) -> None:
        self._judge = judge
        self._group = group
        self.numbers = History()
        """By state, and by ``connections`` all of them."""
        self.problems = History()
        """By ``stuck``, of each diagnosis."""
        self.counted = 0
        """How many times groups were compared."""
        self._arrivals: dict[Grouping, Arrivals] = {}
        self._new: dict[Grouping, dict[str, float | None]] = {}
        self._known: tuple[Diagnosis | None, NDArray[np.int64] | None] = (None, None)

    def new(self, by: Grouping) -> Mapping[str, float | None]:
        """Return how many connections a minute came to each group; None where that is not known."""
        return self._new.get(by, _NOTHING)

    def rates(self, by: Grouping) -> History:
        """Return the same of the looks before."""
        return self._arrivals.get(by, Arrivals()).rates

    def levels(self, state: int, cells: int, span_s: float) -> Sequence[float | None]:
        """Return how many were in a state."""
        return self.numbers.levels(str(state), cells, span_s)

    def remember(self, picture: Picture, before: Picture | None, shown: Grouping) -> None:
        """Put the numbers of a picture into the rings.

        Args:
            picture: the newest.
            before: the one before it.
            shown: how groups are made now.
        """
        seen = picture.circumstances
        if before is not None and before.circumstances.row_filter is not seen.row_filter:
            self._forget()
        when = seen.taken_s
        if seen.failed:
            self.numbers.failed(when)
            self.problems.failed(when)
            for arrivals in self._arrivals.values():
                arrivals.failed(when)
            return
        if seen.late:
            self.numbers.late(when)
        else:
            counts = {str(state): float(number) for state, number in picture.counts.items()}
            self.numbers.look(when, {"connections": float(connections_of(picture.counts)), **counts})
        diagnosis, age = picture.diagnosis, seen.diagnosed_s_ago
        known = self._known[0] is diagnosis and self._known[1] is picture.rows
        if diagnosis is not None and not known:
            self._known = diagnosis, picture.rows
            at = when - (age or 0.0)
            self.problems.look(at, {"stuck": float(self._judge(diagnosis).stuck(picture.rows))})
            self._count(picture, diagnosis, at, shown)
        elif age is not None:
            for history in (self.problems, *(arrivals.rates for arrivals in self._arrivals.values())):
                history.late(when)

    def begin(self, picture: Picture | None, by: Grouping) -> None:
        """Let the next look be compared with the present one, by what is shown now."""
        if picture is not None and picture.diagnosis is not None and by not in self._new:
            self._look(picture, picture.diagnosis, picture.circumstances.taken_s, by)
            self.counted += 1

    def _forget(self) -> None:
        self.numbers.clear()
        self.problems.clear()
        self._arrivals = {}
        self._new = {}
        self._known = (None, None)

    def _count(self, picture: Picture, diagnosis: Diagnosis, when_s: float, shown: Grouping) -> None:
        """Compare the groups that are shown, and those by cause, with those of the look before."""
        self.counted += 1
        for by in dict.fromkeys((*self._arrivals, "cause", shown)):
            if by in ("cause", shown):
                self._look(picture, diagnosis, when_s, by)
            else:  # what is not shown would only cost
                self._arrivals[by].clear()
                self._new.pop(by, None)

    def _look(self, picture: Picture, diagnosis: Diagnosis, when_s: float, by: Grouping) -> None:
        arrivals = self._arrivals.setdefault(by, Arrivals())
        self._new[by] = arrivals.look(when_s, diagnosis.view, self._group(picture, diagnosis, by))


_NOTHING: Final[Mapping[str, float | None]] = {}
