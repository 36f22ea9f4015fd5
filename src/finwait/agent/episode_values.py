"""Episodes as values: what an episode is, why and how it ended, and what a diagnosis says of many.

How they come about is in `finwait.agent.episodes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

__all__ = ["UNDIAGNOSED", "Cause", "Diagnosed", "Episode", "How", "Instant", "Other", "Place", "once"]

How = Literal["closed", "reset", "cleared", "owner-gone", "vanished", "unknown"]
"""How an episode ended. *closed*: the connection was seen in a later state of the close. *reset*: the flight recorder
saw the RST, of either end, that ended it. *cleared*: an act of finwait's ended it. *owner-gone*: every process that
held it had ended. *vanished*: it was gone, and nothing tells why (a reset, a timer, or a close whose TIME_WAIT had
passed). *unknown*: it ended while nobody looked, or its network namespace could not be found any more: then its end
is its last sight, and it may last."""
_UNKNOWN: Final = -1


class Instant(NamedTuple):
    """A point in time, on both clocks."""

    boot_ns: int
    """CLOCK_BOOTTIME: time asleep counts, and nobody sets it."""
    wall_ns: int
    """Since 1970 UTC; to be shown."""


class Cause(Struct, frozen=True):
    """What a diagnosis says of a connection; many share one."""

    rule: str = ""
    """Empty while no diagnosis has seen it."""
    severity: str = ""
    confidence: str = ""
    whose: str = ""
    """Whose move it is, as of `finwait.diagnosis.finding.Whose`."""
    workload: str = ""
    """``NAMESPACE/NAME`` of a cluster, ``pod/UID``, a systemd unit, or the name of a program; never a pid. Empty where
    nothing is known."""
    holder: str = ""
    """``comm(pid)`` of the lowest pid that holds it; empty for nobody, ``?`` for unknown."""
    pid: int = 0
    started_ms: int = _UNKNOWN
    """When that process began, in ms since boot: with the pid it names one process."""
    others: tuple[tuple[int, int], ...] | None = None
    """Pid and beginning of every other process that holds it; None where that is not known (it is not stored)."""
    pod: str = ""
    """The uid of its pod as its cgroup has it, whether or not its name is known; empty for none."""

    @property
    def rank(self) -> int:
        """Which of two ends of one connection speaks for it: the one whose move it is, of the more severe cause."""
        severe = {"problem": 2, "notice": 1}.get(self.severity, 0)
        return severe * 2 + (self.whose == "holder")


UNDIAGNOSED: Final = Cause()


class Other(Struct, frozen=True):
    """The other end as it was when it was first seen, for what tells of it (conntrack) forgets."""

    cookie: int = 0
    """0 where it is not on this machine, or was not found."""
    netns: int = 0
    holder: str = ""
    translated: tuple[str, str] | None = None
    """Local and remote address as behind address translation; None where nothing translates."""


_NO_OTHER: Final = Other()


Place = tuple[int, ...]
"""Addresses (two words each, ours first), ports and state, and no namespace."""


class Episode(Struct, frozen=True):
    """One episode as a value."""

    boot: str
    cookie: int
    state: int
    netns: int
    local: str
    peer: str
    first: Instant
    """First sight."""
    last: Instant
    """Last sight."""
    latest_ns: int
    """CLOCK_BOOTTIME by which it was in the state for sure."""
    earliest_ns: int
    """… before which it was not; −1 where that is not known."""
    held: bool = False
    cause: Cause = UNDIAGNOSED
    other: Other = _NO_OTHER
    ended: Instant | None = None
    """When it was seen to be over; None while it lasts."""
    how: How | None = None
    words: tuple[int, int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0, 0)
    """Both addresses as two words each, ports and interface: what a question needs."""

    @property
    def place(self) -> Place:
        """What the kernel's trace tells of it."""
        return (*self.words[:6], self.state)

    def at_least_ns(self, now_boot_ns: int) -> int:
        """Return how long it has lasted for sure: until it was last seen, where it is over."""
        return max(0, (now_boot_ns if self.ended is None else self.last.boot_ns) - self.latest_ns)

    def at_most_ns(self, now_boot_ns: int) -> int:
        """Return how long it can have lasted at most; −1 where that is not known."""
        if self.earliest_ns < 0:
            return _UNKNOWN
        if self.how == "unknown" and self.ended == self.last:  # it may have lasted for longer
            return _UNKNOWN
        return max(0, (now_boot_ns if self.ended is None else self.ended.boot_ns) - self.earliest_ns)


class Diagnosed(Struct, frozen=True):
    """What a diagnosis says of connections: one cell of each array is one of them."""

    cookie: NDArray[np.uint64]
    state: NDArray[np.uint8]
    cause: NDArray[np.int64]
    """Index into `causes`."""
    causes: Sequence[Cause]
    other: NDArray[np.uint64]
    """Cookie of the other end; 0 where it is not on this machine, or was not found."""
    other_netns: NDArray[np.uint32]
    other_holder: NDArray[np.int64]
    """Index into `holders`."""
    holders: Sequence[str]
    translated: Mapping[int, tuple[str, str]]
    """Cookie → local and remote address as behind address translation."""


def once(cookie: NDArray[np.uint64], other: NDArray[np.uint64], rank: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Return which ends speak for their connection: of two ends that are both among them, one does.

    Args:
        cookie: of each end, ascending.
        other: cookie of its other end; 0 for none.
        rank: the higher one speaks; of equal ones the lower cookie.
    """
    speaks = np.ones(len(cookie), np.bool_)
    if not len(cookie):
        return speaks
    at = np.minimum(np.searchsorted(cookie, other), len(cookie) - 1)
    # Only of a pair that agrees: one may have been found as the other end of two.
    both = (other != 0) & (cookie[at] == other) & (other[at] == cookie)
    weaker = (rank < rank[at]) | ((rank == rank[at]) & (cookie > cookie[at]))
    speaks[both & weaker] = False
    return speaks
