"""Looks at the sockets while they are followed: at everything, or one by one; how often, and what they left unseen.

A look costs what it costs (milliseconds, or a second at a million sockets); looks are spaced so that looking takes at
most a tenth of one CPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.errors import Gap, KernelError
from finwait.follow.bounds import MOST_REMEMBERED, SHARE
from finwait.follow.places import Places
from finwait.kernel import netns
from finwait.kernel.destroy_events import DestroyEvents
from finwait.kernel.lookup import Question, ask
from finwait.kernel.observe import LookPlan, RunningMachine
from finwait.table import decode
from finwait.table import transitions as tr
from finwait.table.filter import Filter
from finwait.table.sockets import SCHEMA as SOCKETS
from finwait.table.sockets import SocketTable
from finwait.table.trace_filter import asks_for_devices, only_ports_and_hosts
from finwait.uapi import inet_diag, tcp

__all__ = ["Looks"]

_QUESTIONS: Final = 4000  # so many single questions cost about what a dump of a usual machine costs
_PLAIN: Final = frozenset(c.name for c in SOCKETS if c.path in (None, (), (inet_diag.INFO,)))
"""Columns that every row of a look has anyway."""


def _plan(row_filter: Filter | None) -> LookPlan:
    """Return what a look at everything that a FILTER may ask for reads."""
    asked = frozenset() if row_filter is None else row_filter.columns
    return LookPlan(
        states=tcp.ALL_STATES,
        # Ages need the clocks of `tcp_info`; what else a FILTER asks for comes with the rest.
        extensions=inet_diag.EXT_ALL if asked - _PLAIN else inet_diag.extension_mask(inet_diag.INFO),
        bytecode=row_filter.bytecode()
        if row_filter is not None and only_ports_and_hosts(row_filter.root)
        else b"",
        mptcp=False,
        conntrack=False,
        files=False,
        descriptors=False,
        established_limit=None,
    )


class Looks:
    """Looks at the sockets of all namespaces.

    Args:
        wanted: which connections; None for all.
        places: learns what namespaces are called.
        interval: seconds between two looks, at least.
        left_out: processes whose gaps nobody wants to hear of.
    """

    def __init__(
        self, row_filter: Filter | None, places: Places, *, interval: float, left_out: frozenset[int]
    ) -> None:
        self._wanted = row_filter
        self._places = places
        self._interval = interval
        self._left_out = frozenset(left_out)
        self._machine = RunningMachine()
        self._next = 0.0
        self._spaces_until = 0.0
        self._gap_seen: set[Gap] = set()
        self.gaps: tuple[Gap, ...] = ()
        """What the last look could not see, told before or not."""
        self.destroys: DestroyEvents | None = None
        """Told which namespaces there are."""
        self.count = 0
        self.last: tr.SocketDump | None = None
        """The last look at everything."""
        self.seen: dict[int, tuple[int, int]] = {}
        """Cookie → closing state of its socket in the last look, and the time of the first look that it had it in."""

    @property
    def pause(self) -> float:
        """Seconds until the next look, below 0 when it is time."""
        return self._next - time.monotonic()

    def look_for(
        self, lives: NDArray[Any], descriptors: Iterable[tuple[int, int, int]]
    ) -> tuple[tr.SocketDump, tuple[Gap, ...]]:
        """Look for some connections: one by one when they are few, else by looking at everything.

        Args:
            lives: the connections.
            descriptors: ``(inode, pid, fd)`` that may lead to more namespaces.
        """
        now = time.monotonic()
        if now >= self._spaces_until:
            self._places.spaces, _ = netns.discover(descriptors)
            self._spaces_until = now + max(1.0, SHARE * (time.monotonic() - now))
            self._places.learn(self._places.spaces)
            if self.destroys is not None:
                with suppress(KernelError):
                    self.destroys.learn(self._places.spaces)
        if len(lives) * len(self._places.spaces) > _QUESTIONS:
            return self.look()
        questions = [
            Question(
                (int(o["s0"]), int(o["s1"])), (int(o["d0"]), int(o["d1"])), int(o["sport"]), int(o["dport"]),
                int(o["ifindex"]) if o["seen"] else None,
            )
            for o in lives
        ]  # fmt: skip
        begun_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        sockets, gaps = ask(questions, self._places.spaces) if questions else (SocketTable.empty(), [])
        ended_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        cost = (ended_ns - begun_ns) / 1e9
        self._next = time.monotonic() + max(self._interval, SHARE * cost)
        self.count += 1
        return tr.SocketDump(sockets, begun_ns, ended_ns), self.fresh(gaps)

    def fresh(self, gaps: Iterable[Gap]) -> tuple[Gap, ...]:
        """Return the gaps of a look that were not told before."""
        self.gaps = tuple(gap for gap in gaps if gap.pid not in self._left_out)
        if len(self._gap_seen) > MOST_REMEMBERED:
            self._gap_seen = set()
        fresh = tuple(gap for gap in self.gaps if gap not in self._gap_seen)
        self._gap_seen.update(fresh)
        return fresh

    def look(self) -> tuple[tr.SocketDump, tuple[Gap, ...]]:
        """Look at everything; return that, and the gaps that were not told before."""
        begun = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        observation = self._machine.observe(_plan(self._wanted))
        sockets = decode.sockets(observation)
        ended = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._next = time.monotonic() + max(self._interval, SHARE * (ended - begun) / 1e9)
        self._places.learn(observation.namespaces)
        if asks_for_devices(self._wanted):
            self._places.name(self._machine.devices(self._places.unnamed(sockets)))
        self.count += 1
        look = self.last = tr.SocketDump(sockets, begun, ended)
        self._first_seen(look)
        return look, self.fresh(observation.gaps)

    def _first_seen(self, look: tr.SocketDump) -> None:
        """Remember since when each socket is known to be in its closing state, by cookie."""
        sockets = look.sockets
        state = sockets["state"].astype(np.int64)
        closing = ((tcp.CLOSING_STATES >> state) & 1 == 1) & (sockets["timer"] != 3)
        seen: dict[int, tuple[int, int]] = {}
        rows = np.flatnonzero(closing)
        for cookie, now in zip(sockets["cookie"][rows].tolist(), state[rows].tolist(), strict=True):
            before = self.seen.get(cookie)
            seen[cookie] = before if before is not None and before[0] == now else (now, look.begun_ns)
        self.seen = seen
