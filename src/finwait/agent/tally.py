"""What the rounds of the looker add up to: the groups of a picture, counters, durations, growth.

A connection counts once, though both its ends are here. Series are bounded: the 200 workloads with most connections
have one each, the rest are ``other``, and how many were put there is told. What ended reports 0 for an hour, so that
a rule that watches it sees the end.

Pure: the loop hands in what it saw, and times.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.agent.causes import HEALTHY
from finwait.agent.episodes import Book, Cause, Episode
from finwait.agent.leak import MARK_S, SURVIVES_S, Growth, Used, WindowEnd, reached_in_s
from finwait.agent.protocol import DURATIONS_S, LOOKS_S, Counted, EndedCount, Histogram, LimitUse, StuckGroup
from finwait.agent.workload_names import split_workload
from finwait.uapi import tcp
from finwait.uapi.sets import among

if TYPE_CHECKING:
    from finwait.kernel.closing import Counters
    from finwait.table.sockets import SocketTable

__all__ = ["OTHER", "PENDING", "WORKLOADS", "Tally", "by_state", "counted_rows", "counted_states"]

OTHER: Final = "other"
"""The workload of all that have no series of their own."""
PENDING: Final = "undiagnosed"
"""The rule of what no diagnosis has seen yet."""
WORKLOADS: Final = 200
_LINGERS_S: Final = 3600.0
_MOST_GROWTHS: Final = 2000

Key = tuple[str, str, str]
"""Rule, severity, workload."""


def _key(cause: Cause) -> Key:
    return cause.rule or PENDING, cause.severity or "notice", cause.workload


class _Durations:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.sum_s += seconds

    def value(self, label: str) -> Histogram:
        return Histogram(label=label, counts=list(self.counts), sum_s=self.sum_s)


class Tally:
    """Adds up.

    Args:
        step_s: seconds from one look to the next.

    Attributes:
        dropped: workloads that had no series of their own in the last picture.
        limits_dropped: limits that have none since the last mark.
    """

    def __init__(self, step_s: float = 0.0) -> None:
        self.dropped = 0
        self.limits_dropped = 0
        self._step_s = step_s
        self._opened: Counter[tuple[str, str]] = Counter()
        self._ended: Counter[tuple[str, str]] = Counter()
        self._lasted: dict[str, _Durations] = {}
        self._looks: dict[str, _Durations] = {}
        self._present: dict[Key, float] = {}
        self._growth: dict[Key, Growth] = {}
        self._arrived: Counter[Key] = Counter()
        self._departed: Counter[Key] = Counter()
        self._before: Counter[Key] = Counter()
        self._survivors: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._which: NDArray[np.int32] = np.empty(0, np.int32)
        self._keys: list[Key] = []
        self._marked_s = float("-inf")
        self._used_growth: dict[tuple[str, str], Growth] = {}
        self._limits: list[tuple[Used, float | None]] = []

    # ── what comes in ────────────────────────────────────────────────────────────────────────────────────

    def opened_more(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Count what opened, by (rule, workload), as of `Book.count_opened`."""
        for (rule, workload), n in counts.items():
            self._opened[rule or PENDING, workload] += n

    def ended_more(self, episodes: Iterable[Episode]) -> None:
        """Count what ended, as of `Book.take`."""
        for e in episodes:
            rule = e.cause.rule or PENDING
            self._ended[rule, e.how or "unknown"] += 1
            self._lasted.setdefault(rule, _Durations(DURATIONS_S)).add(e.at_least_ns(0) / 1e9)

    def looked(self, kind: str, seconds: float) -> None:
        """Count a look of a kind, by how long it took."""
        self._looks.setdefault(kind, _Durations(LOOKS_S)).add(seconds)

    def restore(self, marks: Mapping[Key, Sequence[tuple[int, WindowEnd]]]) -> None:
        """Take up the ends of windows that were stored on this boot."""
        for key, several in marks.items():
            growth = self._growth[key] = Growth(self._step_s)
            growth.restore(several)
            last = max((mark for _, mark in several), key=lambda mark: mark.at_s, default=None)
            if last is not None:
                self._arrived[key], self._departed[key] = last.arrived, last.departed
                self._before[key] = last.survivors
                self._marked_s = max(self._marked_s, last.at_s)

    @property
    def marks(self) -> dict[Key, dict[int, tuple[WindowEnd, ...]]]:
        """The ends of windows, to be stored."""
        return {key: growth.marks for key, growth in self._growth.items()}

    @property
    def leaking(self) -> set[str]:
        """Workloads of which connections pile up."""
        return {workload for (_, _, workload), growth in self._growth.items() if growth.rate > 0}

    def mark_due(self, boot_s: float) -> bool:
        """Return whether the end of the shortest window has come."""
        return not 0 <= boot_s - self._marked_s < MARK_S

    def mark(self, book: Book, boot_s: float, limits: Iterable[Used]) -> None:
        """Enter the survivors at the end of a window, and how full the limits are."""
        self._marked_s = boot_s
        cookie, cause, latest = book.speaking((HEALTHY,))
        old = latest <= (boot_s - SURVIVES_S) * 1e9
        now, cause = cookie[old], cause[old]
        numbers, inverse, n = np.unique(cause, return_inverse=True, return_counts=True)
        keys = [_key(book.causes[k]) for k in numbers.tolist()]
        count: Counter[Key] = Counter()
        for key, several in zip(keys, n.tolist(), strict=True):
            count[key] += several
        if self._before:  # after a restart the survivors of before are a number, and no cookies
            for key in {*count, *self._before}:
                more = count[key] - self._before[key]
                self._arrived[key] += max(more, 0)
                self._departed[key] += max(-more, 0)
            self._before.clear()
        else:
            _add(self._departed, self._keys, self._which[~among(self._survivors, now)])
            _add(self._arrived, keys, inverse.reshape(-1)[~among(now, self._survivors)])
        self._survivors, self._which, self._keys = now, inverse.reshape(-1).astype(np.int32), keys
        for key in {*count, *self._growth}:
            if key not in self._growth and len(self._growth) >= _MOST_GROWTHS:
                continue
            growth = self._growth.setdefault(key, Growth(self._step_s))
            growth.mark(WindowEnd(boot_s, count[key], self._arrived[key], self._departed[key]))
        for key in [k for k in self._growth if not count[k] and k not in self._present]:
            del self._growth[key], self._arrived[key], self._departed[key]
        self._limits = self._reached(limits, boot_s)

    def renew(self, limit: str, several: Iterable[Used]) -> None:
        """Enter how full limits of one kind are between two marks; when they are reached is as of the last mark."""
        reached = {used.subject: at for used, at in self._limits if used.limit == limit}
        others = [entry for entry in self._limits if entry[0].limit != limit]
        self._limits = others + [(used, reached.get(used.subject)) for used in several]

    def _reached(self, limits: Iterable[Used], boot_s: float) -> list[tuple[Used, float | None]]:
        leaking = self.leaking
        growths: dict[tuple[str, str], Growth] = {}
        result: list[tuple[Used, float | None]] = []
        for used in limits:
            name = used.limit, used.subject
            growth = growths[name] = self._used_growth.get(name) or Growth(self._step_s)
            growth.mark(WindowEnd(boot_s, used.used, used.used, 0))
            survives = used.workload in leaking if used.workload else bool(leaking)
            result.append((used, reached_in_s(used, growth.rate) if survives else None))
        self._used_growth = growths
        return result

    # ── what comes out ───────────────────────────────────────────────────────────────────────────────────

    def groups(self, book: Book, boot_ns: int) -> list[StuckGroup]:
        """Return the groups of the open episodes, and those that ended within an hour with 0."""
        _, causes, latest = book.speaking((HEALTHY,))
        count: Counter[Key] = Counter()
        oldest: dict[Key, int] = {}
        number = np.bincount(causes, minlength=len(book.causes))
        began = np.full(len(book.causes), boot_ns, np.int64)
        np.minimum.at(began, causes, latest)
        for k in np.flatnonzero(number).tolist():
            key = _key(book.causes[k])
            count[key] += int(number[k])
            oldest[key] = min(oldest.get(key, boot_ns), int(began[k]))
        seconds = boot_ns / 1e9
        self._present |= dict.fromkeys(count, seconds)
        self._present = {key: at for key, at in self._present.items() if seconds - at < _LINGERS_S}
        named = self._chosen(count)
        added: dict[Key, tuple[int, float, float]] = {}
        for key in self._present:
            rule, severity, workload = key
            growth = self._growth.get(key)
            age = (boot_ns - oldest[key]) / 1e9 if key in oldest else 0.0
            shown = (rule, severity, workload if workload in named else OTHER)
            n, most, rate = added.get(shown, (0, 0.0, 0.0))
            added[shown] = (
                n + count[key],
                max(most, age),
                rate + (growth.rate if growth is not None else 0.0),
            )
        return [
            StuckGroup(
                rule=rule,
                severity=severity,
                namespace=split_workload(workload)[0],
                workload=split_workload(workload)[1],
                count=n,
                oldest_s=age,
                rate=rate,
            )
            for (rule, severity, workload), (n, age, rate) in sorted(added.items())
        ]

    def _chosen(self, count: Counter[Key]) -> frozenset[str]:
        """Return the workloads that have series of their own: the largest, of those that ended the latest."""
        by_workload: Counter[str] = Counter()
        for (_, _, workload), n in count.items():
            by_workload[workload] += n
        last: dict[str, float] = {}
        for (_, _, workload), at in self._present.items():
            last[workload] = max(at, last.get(workload, 0.0))
        order = sorted(last, key=lambda w: (-by_workload[w], -last[w], w))
        self.dropped = max(0, len(order) - WORKLOADS)
        return frozenset(order[:WORKLOADS])

    @property
    def opened(self) -> list[Counted]:
        """How many episodes have opened, of the workloads with most; the rest as ``other``."""
        total: Counter[str] = Counter()
        for (_, workload), n in self._opened.items():
            total[workload] += n
        named = {w for w, _ in total.most_common(WORKLOADS)} if len(total) > WORKLOADS else set(total)
        # A counter must not go back: once others have taken a workload's place it stays among them.
        for workload in set(total) - named:
            self._fold(workload)
        return [
            Counted(rule=rule, namespace=space, workload=name, total=n)
            for (rule, workload), n in sorted(self._opened.items())
            for space, name in (split_workload(workload),)
        ]

    def _fold(self, workload: str) -> None:
        for rule, name in [k for k in self._opened if k[1] == workload and workload != OTHER]:
            self._opened[rule, OTHER] += self._opened.pop((rule, name))

    @property
    def rates(self) -> dict[tuple[str, str], float]:
        """How many survivors a second adds, by rule and workload."""
        total: dict[tuple[str, str], float] = {}
        for (rule, _, workload), growth in self._growth.items():
            total[rule, workload] = total.get((rule, workload), 0.0) + growth.rate
        return total

    @property
    def ended(self) -> list[EndedCount]:
        """How many episodes have ended, and how."""
        return [EndedCount(rule=r, how=how, total=n) for (r, how), n in sorted(self._ended.items())]

    @property
    def durations(self) -> list[Histogram]:
        """How long episodes lasted, by rule."""
        return [lasted.value(rule) for rule, lasted in sorted(self._lasted.items())]

    @property
    def looks(self) -> list[Histogram]:
        """How long looks took, by kind."""
        return [looks.value(kind) for kind, looks in sorted(self._looks.items())]

    @property
    def limits(self) -> list[LimitUse]:
        """How full the limits were at the last mark, one for each kind and workload.

        Of several the fullest is told, and when the first of them is reached, which may be another one.
        """
        fullest: dict[tuple[str, str], Used] = {}
        soonest: dict[tuple[str, str], tuple[float, str]] = {}
        for used, reached_s in self._limits:
            name = used.limit, used.workload
            if name not in fullest or used.ratio > fullest[name].ratio:
                fullest[name] = used
            if reached_s is not None:
                soonest[name] = min(soonest.get(name, (reached_s, used.subject)), (reached_s, used.subject))
        order = sorted(
            fullest, key=lambda name: (soonest.get(name, (math.inf,))[0], -fullest[name].ratio, name)
        )
        self.limits_dropped = max(0, len(order) - WORKLOADS)
        return [
            LimitUse(
                limit=name[0], namespace=space, workload=workload, subject=fullest[name].subject,
                used=fullest[name].used, most=fullest[name].most, reached_s=soonest.get(name, (None,))[0],
                reached_subject=soonest.get(name, (0.0, ""))[1],
            )
            for name in sorted(order[:WORKLOADS])
            for space, workload in (split_workload(name[1]),)
        ]  # fmt: skip


def _add(counts: Counter[Key], keys: Sequence[Key], positions: NDArray[np.integer[Any]]) -> None:
    """Add the number of times that each key is named."""
    for key, n in zip(keys, np.bincount(positions, minlength=len(keys)).tolist(), strict=True):
        if n:
            counts[key] += n


def counted_rows(sockets: SocketTable) -> int:
    """Return how many rows the counters of a namespace count as closing."""
    state = sockets.state
    mini = sockets.timer == 3
    return int(((state != tcp.CLOSE_WAIT) & ~mini).sum())


def counted_states(sockets: SocketTable) -> dict[int, int]:
    """Return state → sockets of a walk; minisockets in FIN_WAIT2 are there once more, as −FIN_WAIT2."""
    counts = {state: int((sockets.state == state).sum()) for state in np.unique(sockets.state).tolist()}
    counts[-tcp.FIN_WAIT2] = int(((sockets.state == tcp.FIN_WAIT2) & (sockets.timer == 3)).sum())
    return counts


def by_state(
    counters: Mapping[int, Counters],
    walked_states: Mapping[int, Mapping[int, int]],
    listeners: Mapping[int, tuple[int, int, int, float]],
) -> dict[str, int]:
    """Return state → sockets: of what is walked as of the last walk, of the rest by the counters.

    Args:
        counters: of each namespace.
        walked_states: namespace → state → rows of its last walk; minisockets under the negative of their state.
        listeners: namespace → how many listeners it has, what its counters said then, and when.
    """
    total: dict[int, int] = {}
    for inode, entry in counters.items():
        walked = walked_states.get(inode, {})
        for state, n in walked.items():
            if state > 0:
                total[state] = total.get(state, 0) + n
        waiting = walked.get(tcp.CLOSE_WAIT, 0)
        total[tcp.ESTABLISHED] = total.get(tcp.ESTABLISHED, 0) + max(0, entry.established - waiting)
        minis = max(0, entry.timewait - walked.get(-tcp.FIN_WAIT2, 0))
        total[tcp.TIME_WAIT] = total.get(tcp.TIME_WAIT, 0) + minis
        total[tcp.LISTEN] = total.get(tcp.LISTEN, 0) + listeners.get(inode, (0,))[0]
    return {tcp.state_name(state): n for state, n in sorted(total.items())}
