"""What to look at next, for a share of one processor.

Theory of operation. Three paces are paid from one `Purse`, which earns a share of the time that passes. What a look
cost is measured by who looked, and handed in.

*Tick.* Counters tell of each network namespace what it can hold. ``inuse − listeners − CurrEstab`` is exactly
FIN_WAIT1, held FIN_WAIT2, CLOSING, LAST_ACK and SYN states; ``tw`` is TIME_WAIT and orphaned FIN_WAIT2. CLOSE_WAIT
cannot be told from ESTABLISHED: CurrEstab counts both. Where all three are 0, a tick is as good as a walk, if the
listeners were counted at that tick: of an earlier count one listener may have closed, and a connection have taken its
place. A tick reads every namespace, or where that takes long as many as it can afford, but each once in 30 s (`Sweep`).

Nor can there be a new CLOSE_WAIT where no segment came or went (``InSegs``, ``OutSegs``): it takes a FIN; all else
shows in the other counters. So a namespace that has been quiet since a tick before its last walk is as well known as if
it were walked again. A segment may wait in a socket's backlog while its program works on the socket, counted and not
yet seen: hence the tick before; and once in ten minutes it is walked all the same.

*Walk.* A dump goes through the hash table of the whole machine, however small the namespace. So namespaces are walked
by turns: first those whose counters rose above what their last walk found (suspects), by how much; then those that
have not been walked for longest. How long ago each was looked at is a number (`Turns.unseen_s`), and it is told.

*Diagnosis* is no business of a turn: it is due when there is something that none has seen, at its own pace, which is
half of the share. It may cost seconds, of which half of what is earned pays off (`Purse.owe`): walks go on meanwhile.

The surprise: one walk is always taken, however empty the purse, when the last was a minute ago. Otherwise one namespace
that is dearer than the purse can hold would never be seen, and nor would those behind it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from msgspec import Struct, field

__all__ = ["TICK_S", "CounterReading", "Purse", "Sweep", "Turns"]

TICK_S: Final = 15.0
_AT_LEAST_EVERY_S: Final = 60.0
"""One walk is taken as often as this, whatever it costs."""
_GUESS_S: Final = 0.005
"""What a walk costs where none has been taken."""
_QUIET_MOST_S: Final = 600.0
"""For so long counters alone prove that nothing is new."""
_READ_EVERY_S: Final = 30.0
_TICK_MOST_S: Final = 0.004
_READ_GUESS_S: Final = 0.00005


class CounterReading(Struct, frozen=True):
    """The counters of one network namespace at a tick."""

    netns: int
    in_use: int
    """TCP sockets that are hashed, of both families (``sockstat`` and ``sockstat6``)."""
    listeners: int
    established: int
    """``Tcp.CurrEstab``: ESTABLISHED and CLOSE_WAIT."""
    timewait: int
    """Minisockets: TIME_WAIT, and FIN_WAIT2 of orphans."""
    closing_counted: bool = True
    """Whether the listeners were counted at this very tick; if not, `closing` may be wrong by what came and went."""
    segments: int = -1
    """How many segments came and went since the namespace began; −1 where that is not known."""

    @property
    def closing(self) -> int:
        """Sockets that are neither listeners nor counted as established."""
        return max(0, self.in_use - self.listeners - self.established)

    @property
    def may_hold(self) -> int:
        """How many sockets at most may be in a closing state; 0: there is none, without a walk."""
        least = bool(self.in_use) and not self.closing_counted
        return max(self.closing + self.established + self.timewait, int(least))


class Purse(Struct):
    """Processor time that may be spent.

    Args:
        share: of one processor, above 0.
        most_s: what can be saved up.
        left_s: what there is; in the beginning more than can be saved, so that the first look is a whole one.
        owed_s: what is still to be paid of what had a pace of its own.
    """

    share: float
    most_s: float = 0.5
    left_s: float = 2.0
    owed_s: float = 0.0
    _at: float | None = None

    def earn(self, now: float) -> None:
        """Let time pass.

        Args:
            now: seconds, of a clock that does not go back; if it does, nothing is earned.
        """
        if self._at is not None and now > self._at:
            earned = (now - self._at) * self.share
            repaid = min(self.owed_s, earned / 2)
            self.owed_s -= repaid
            self.left_s = min(max(self.most_s, self.left_s), self.left_s + earned - repaid)
        self._at = now

    def owe(self, cost_s: float) -> None:
        """Spend what has a pace of its own: half of what is earned from now on pays for it, the rest is free."""
        self.owed_s += max(0.0, cost_s)

    def pay(self, cost_s: float) -> None:
        """Spend; may leave a debt."""
        self.left_s -= max(0.0, cost_s)

    @property
    def solvent(self) -> bool:
        """Whether anything is left."""
        return self.left_s > 0

    def lasts_s(self) -> float:
        """Return after how many seconds there will be something left again."""
        return max(0.0, -self.left_s / self.share)


class _Space(Struct):
    reading: CounterReading
    since: float
    """When it was first read."""
    seen: float | None = None
    """When it was last looked at as a whole: walked, or read as empty."""
    found: int = 0
    """How many sockets its last walk found that `closing` counts."""
    orphans: int = 0
    """``tw`` at its last walk."""
    cost_s: float = _GUESS_S
    steady: int = 0
    """For how many readings, this one included, its segments have been the same."""
    quiet: int | None = None
    """Its segments at its last walk, where they had been the same for a tick; then what is new shows in them."""
    walked: float = 0.0

    def known(self, now: float) -> bool:
        """Return whether counters prove that there is nothing that its last walk has not found."""
        return self.quiet == self.reading.segments and now - self.walked < _QUIET_MOST_S

    @property
    def rose(self) -> int:
        """How many sockets are closing that its last walk did not find."""
        return max(0, self.reading.closing - (0 if self.seen is None else self.found))


class Sweep(Struct):
    """Whose counters to read at a tick.

    Args:
        tick_s: seconds between two ticks.
    """

    tick_s: float
    _read: dict[int, float] = field(default_factory=dict)
    _cost_s: float = _READ_GUESS_S

    def due(self, alive: Iterable[int]) -> list[int]:
        """Return the namespaces to read: what was never read, then what was read longest ago.

        Args:
            alive: all that there are; what is not among them is forgotten.
        """
        present = list(alive)
        fresh = [netns for netns in present if netns not in self._read]
        self._read = {netns: self._read[netns] for netns in present if netns in self._read}
        least = math.ceil(len(present) * min(1.0, self.tick_s / _READ_EVERY_S))
        most = max(least, int(_TICK_MOST_S / self._cost_s))
        return fresh + sorted(self._read, key=self._read.__getitem__)[: max(least, most - len(fresh))]

    def read(self, chosen: Collection[int], now: float, cost_s: float) -> None:
        """Say that these were read, and what processor time that took."""
        self._read.update(dict.fromkeys(chosen, now))
        if chosen:
            self._cost_s = max(1e-6, 0.5 * self._cost_s + 0.5 * cost_s / len(chosen))

    def renew(self) -> None:
        """Let all be read at the next tick."""
        self._read.clear()


class Turns:
    """Whose turn it is to be walked."""

    def __init__(self) -> None:
        self._spaces: dict[int, _Space] = {}
        self._last_walk = float("-inf")

    def __len__(self) -> int:
        return len(self._spaces)

    @property
    def unseen(self) -> int:
        """How many namespaces have never been looked at."""
        return sum(space.seen is None for space in self._spaces.values())

    def tick(self, readings: Iterable[CounterReading], alive: Iterable[int], now: float) -> None:
        """Enter the counters of a tick.

        Args:
            readings: of the namespaces that could be read.
            alive: all that there are; what is not among them is forgotten.
            now: seconds.
        """
        for reading in readings:
            space = self._spaces.get(reading.netns)
            if space is None:
                space = self._spaces[reading.netns] = _Space(reading, now)
            same = reading.segments >= 0 and reading.segments == space.reading.segments
            space.steady = space.steady + 1 if same else 1
            space.reading = reading
            if not reading.may_hold:
                space.seen, space.found, space.orphans, space.quiet = now, 0, 0, None
            elif space.known(now):
                space.seen = now
        present = set(alive)
        self._spaces = {netns: space for netns, space in self._spaces.items() if netns in present}

    def walked(self, netns: int, now: float, cost_s: float, hits: int) -> None:
        """Say that a namespace was walked.

        Args:
            netns: which.
            now: seconds, when it began.
            cost_s: processor time.
            hits: rows in FIN_WAIT1, held FIN_WAIT2, CLOSING and LAST_ACK.
        """
        self._last_walk = max(self._last_walk, now)
        space = self._spaces.get(netns)
        if space is not None:
            space.seen, space.found, space.cost_s = now, hits, cost_s
            space.orphans = space.reading.timewait
            space.walked = now
            space.quiet = space.reading.segments if space.steady > 1 else None

    def found(self, netns: int) -> int:
        """Return how many sockets the last walk of a namespace found that the counters count as closing."""
        space = self._spaces.get(netns)
        return space.found if space is not None else 0

    def failed(self, netns: int, now: float, cost_s: float) -> None:
        """Say that a namespace could not be walked: others go first now, and it stays unseen."""
        self._last_walk = max(self._last_walk, now)
        space = self._spaces.get(netns)
        if space is not None:
            space.cost_s = max(cost_s, _GUESS_S)
            space.since = now

    def due(self, purse_s: float, now: float, *, fresh_s: float = TICK_S) -> list[int]:
        """Return which namespaces to walk now, in order.

        Args:
            purse_s: what may be spent; their costs are guessed by their last.
            now: seconds.
            fresh_s: what was walked so short ago rests, unless it is a suspect.
        """
        waiting = []
        for netns, space in self._spaces.items():
            if not space.reading.may_hold:
                continue
            rose = space.rose
            at = space.since - 1e9 if space.seen is None else space.seen
            old = space.seen is None or (now - space.seen >= fresh_s and not space.known(now))
            if old or rose > 0:
                waiting.append((-rose, at, netns))
        waiting.sort()
        chosen: list[int] = []
        overdue = now - self._last_walk >= _AT_LEAST_EVERY_S
        for _, _, netns in waiting:
            cost = self._spaces[netns].cost_s
            if purse_s < cost and not (overdue and not chosen):
                break
            purse_s -= cost
            chosen.append(netns)
        return chosen

    def unseen_s(self, now: float) -> Mapping[int, float]:
        """Return for how long each namespace has not been looked at as a whole, in seconds."""
        return {
            netns: now - (space.since if space.seen is None else space.seen)
            for netns, space in self._spaces.items()
        }
