"""What the live view shows, one picture at a time.

A picture is a look at the sockets and what passed between the states since the picture before. Looks are
paced by `finwait.follow`: at most a tenth of one CPU, however many sockets there are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from finwait.follow import Following
from finwait.table.filter import Filter
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp

__all__ = ["Feed", "Live", "Picture"]


@dataclass(frozen=True, slots=True)
class Picture:
    """One moment."""

    sockets: SocketTable
    """Connections that the FILTER wants; no listeners."""
    counts: Mapping[int, int]
    """State → connections, listeners included."""
    flows: Mapping[tuple[int, int], float] | None
    """(old, new) → a second, of everything traced; None when polling."""
    names: Mapping[int, Sequence[str]] = field(default_factory=dict)
    paths: Mapping[int, str] = field(default_factory=dict)
    note: str = ""
    """How it is watched, or why not better."""


class Feed(Protocol):
    """What gives pictures."""

    def next(self) -> Picture:
        """Return the next picture; may block for as long as the refresh interval and a look."""


class Live:
    """Pictures of the running machine; a context manager."""

    def __init__(self, wanted: Filter | None, *, refresh: float) -> None:
        self._following = Following(wanted, lookup=False, interval=refresh)
        self._refresh = refresh
        self._counts: dict[tuple[int, int], int] = {}
        self._at = 0.0

    def __enter__(self) -> Self:
        """Begin to follow.

        Raises:
            KernelError: the sockets cannot be looked at.
        """
        self._following.__enter__()
        self._at = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._following.__exit__(kind, error, trace)

    def next(self) -> Picture:
        """Return the next picture."""
        following = self._following
        end = self._at + self._refresh if following.last_look is not None else 0.0
        while (left := end - time.monotonic()) > 0:
            following.step(left)
        following.look_now()
        look = following.last_look
        assert look is not None, "the first call looks, and a look stays"
        now = time.monotonic()
        flows = None
        if following.mode == "tracing":
            counts = dict(following.follower.counts)
            span = max(now - self._at, 1e-3)
            flows = {edge: (n - self._counts.get(edge, 0)) / span for edge, n in counts.items()}
            self._counts = counts
        self._at = now
        wanted = look.sockets.select(following.matching(look.sockets))
        state = wanted["state"].astype(np.int64)
        totals = np.bincount(state, minlength=16)
        connections = wanted.select(state != tcp.LISTEN)
        paths = following.cgroups(np.unique(connections["cgroup_id"]).tolist())
        note = "tracing" if flows is not None else f"polling: {following.why_polling}"
        return Picture(
            connections,
            {s: int(n) for s, n in enumerate(totals.tolist()) if n},
            flows,
            following.netns_names(),
            paths,
            note,
        )
