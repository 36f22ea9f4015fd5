"""Where to look, and what counters say of it: the ticks of the looker.

Namespaces are found anew twice a minute, and those that nothing leads to any more are given up once a full look could
not find them either. At each tick counters of some or all are read (`schedule.Sweep`), listeners are counted where only
that tells, and accept queues come with them (`finwait.agent.queues`).

This decides nothing that `schedule`, `queues` and `episodes` decide, and knows no clock but that of its machine.
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping
from typing import TYPE_CHECKING, Final

from finwait.agent.queues import Queues
from finwait.agent.schedule import CounterReading, Sweep, Turns
from finwait.errors import Gap
from finwait.pace import Pace
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.agent.edge import AgentMachine
    from finwait.agent.episodes import Book
    from finwait.agent.tally import Tally
    from finwait.kernel.closing import ClosingWalk, Counters
    from finwait.kernel.netns import NetNamespace

__all__ = ["Counting"]

_DISCOVER_S: Final = 30.0
_DISCOVER_SHARE: Final = 0.2
"""Of the share: what finding namespaces may take."""
_LISTED_EVERY_S: Final = 120.0
"""Where something changes, listeners are listed as often as this."""
_LOST_S: Final = 600.0


class Counting:
    """Namespaces and their counters.

    Args:
        machine: what is looked at.
        turns: whose turn it is to be walked.
        book: the episodes.
        tally: counts what looks cost.
        gaps: takes what cannot be seen, by kind.
        tick_s: seconds between two ticks.
        share: of a processor, that all looking may take.

    Attributes:
        spaces: inode → namespace.
        counters: inode → its counters as they were last read.
        listeners: inode → how many listeners it has, what its counters said then, and when that was.
        walked_states: inode → state → rows of its last walk; minisockets under the negative of their state.
        queues: the accept queues.
        lost: namespaces of open episodes that nothing leads to any more → since when.
        look_at_ns: wall clock of the last look that succeeded; 0 for none.
    """

    def __init__(
        self,
        machine: AgentMachine,
        turns: Turns,
        book: Book,
        tally: Tally,
        gaps: MutableMapping[str, tuple[Gap, ...]],
        *,
        tick_s: float,
        share: float,
    ) -> None:
        self._machine = machine
        self._turns = turns
        self._book = book
        self._tally = tally
        self._gaps = gaps
        self._sweep = Sweep(tick_s)
        self._discover = Pace(min(_DISCOVER_S, 2 * tick_s), share * _DISCOVER_SHARE)
        self._now = 0.0
        self.spaces: dict[int, NetNamespace] = {}
        self.counters: dict[int, Counters] = {}
        self.listeners: dict[int, tuple[int, int, int, float]] = {}
        self.walked_states: dict[int, dict[int, int]] = {}
        self.queues = Queues()
        self.lost: dict[int, float] = {}
        self.look_at_ns = 0

    def look(self, mono: float, diagnosed_at: float) -> None:
        """Read counters, of namespaces that are found anew where that is due.

        Args:
            mono: seconds of the machine's clock that does not go back.
            diagnosed_at: when the last diagnosis began.
        """
        machine = self._machine
        if mono >= self._discover.due:
            cpu = machine.cpu()
            spaces, gaps = machine.namespaces()
            self.spaces = {ns.inode: ns for ns in spaces}
            self._gaps["namespaces"] = tuple(gaps)
            self._lose(mono, diagnosed_at)
            cost = machine.cpu() - cpu
            self._discover.done(mono, cost)
            self._tally.looked("namespaces", cost)
        self._now = mono
        chosen = self._sweep.due(self.spaces)
        cpu = machine.cpu()
        read, gaps = machine.counters([self.spaces[n] for n in chosen], self._wants_count)
        cost = machine.cpu() - cpu
        self._sweep.read(chosen, mono, cost)
        self._tally.looked("tick", cost)
        asked = frozenset(chosen)
        before = (gap for gap in self._gaps.get("counters", ()) if gap.netns in self.spaces)
        self._gaps["counters"] = (*gaps, *(gap for gap in before if gap.netns not in asked))
        kept = {n: entry for n, entry in self.counters.items() if n in self.spaces and n not in asked}
        self.counters = {**kept, **read}
        self._enter(read)
        if read or not chosen:
            self.look_at_ns = machine.now().wall_ns

    def _enter(self, read: dict[int, Counters] | Collection[int]) -> None:
        """Enter what was read."""
        # What is gone may come back under the same inode as another.
        self.listeners = {n: known for n, known in self.listeners.items() if n in self.counters}
        self.walked_states = {n: states for n, states in self.walked_states.items() if n in self.spaces}
        self.queues.keep(self.counters.keys())
        readings = []
        for inode in read:
            entry = self.counters[inode]
            if entry.listeners >= 0:
                self.listeners[inode] = (entry.listeners, entry.in_use, entry.established, self._now)
                self.queues.listed(inode, entry.doors, self._now)
            listeners = self.listeners.get(inode, (0,))[0]
            reading = CounterReading(
                inode, entry.in_use, listeners, entry.established, entry.timewait, entry.listeners >= 0,
                entry.segments,
            )  # fmt: skip
            readings.append(reading)
            if not reading.may_hold:  # what its last walk found is gone
                self.walked_states.pop(inode, None)
        self._turns.tick(readings, self.spaces, self._now)
        self._book.emptied(reading.netns for reading in readings if not reading.may_hold)

    def _wants_count(self, inode: int, entry: Counters) -> bool:
        """Return whether the listeners of a namespace must be counted anew.

        They must where nothing but listeners is, for only a count of now says so; where more is closing by the last
        count than the last walk found, for it may be listeners; and now and then where something changes.
        """
        known = self.listeners.get(inode)
        if known is None or not entry.in_use:
            return True
        count, in_use, established, at = known
        closing = entry.in_use - count - entry.established
        if closing <= 0 and not entry.established and not entry.timewait:
            return True
        if (entry.in_use, entry.established) == (in_use, established):
            return False
        return closing > self._turns.found(inode) or self._now - at >= _LISTED_EVERY_S

    def _lose(self, mono: float, diagnosed_at: float) -> None:
        """Give up namespaces that nothing leads to any more.

        Where only sockets keep one alive, a full look alone finds it: it comes first. Nor is what is not found gone:
        what was in it ends as unknown.
        """
        missing = self._book.namespaces - self.spaces.keys()
        lost = {n: self.lost.get(n, mono) for n in missing}
        self.lost = {n: at for n, at in lost.items() if diagnosed_at < at and mono - at < _LOST_S}
        self._gaps["lost"] = tuple(
            Gap.of_namespace(n, "ask for its connections: nothing that was found leads to it", "")
            for n in sorted(self.lost)
        )
        self._book.forget_namespaces({*self.spaces, *self.lost})

    def walked(self, inode: int, walk: ClosingWalk, mono: float) -> None:
        """Enter what a walk counts, and its listeners."""
        states, counts = walk.sockets.state.tolist(), dict[int, int]()
        for state in states:
            counts[state] = counts.get(state, 0) + 1
        mini = int(((walk.sockets.state == tcp.FIN_WAIT2) & (walk.sockets.timer == 3)).sum())
        counts[-tcp.FIN_WAIT2] = mini
        self.walked_states[inode] = counts
        if walk.whole:
            self.queues.listed(inode, walk.doors, mono)

    def discover_again(self, vanished: Collection[int]) -> None:
        """Find namespaces anew soon, where one that is among them has vanished."""
        if any(n in self.spaces for n in vanished):
            self._discover.at_once()

    def find_soon(self) -> None:
        """Find namespaces anew at the next tick."""
        self._discover.at_once()

    def renew(self) -> None:
        """Find namespaces anew, and read the counters of all, at the next tick."""
        self._discover.at_once()
        self._sweep.renew()

    @property
    def names(self) -> dict[int, str]:
        """What people call the namespaces that have a name."""
        return {n: ns.names[0] for n, ns in self.spaces.items() if ns.names}
