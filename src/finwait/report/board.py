"""Groups of connections as a live view shows them: how bad, how many, how many more a minute.

By cause a group is what a diagnosis shows: a finding, in the order of its overview, the most harmful first; after
those come the healthy patterns, and what no rule has found anything about. By anything else (process, pod, peer …) it
is what `finwait.report.groups` makes, and it is as bad as the worst that is in it.

`Arrivals` compares the groups of one look with those of the look before. What came and went in between is not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, get_args

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.diagnosis.finding import Finding, Harm, Severity
from finwait.report.groups import Grouping, groups
from finwait.report.history import History
from finwait.report.text import shown_groups
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = ["MARKS", "SORTS", "Arrivals", "Group", "Judged", "board", "judged", "sort_groups"]

I64 = NDArray[np.int64]

MARKS: Final[Mapping[Severity | None, str]] = {"problem": "✗", "notice": "▲", "healthy": "✓", None: "·"}
"""How bad something is, as one character; the last one of what no rule has found anything about."""
SORTS: Final = ("harm", "connections", "oldest", "new", "name")
_RANKS: Final[tuple[Severity | None, ...]] = (None, "healthy", "notice", "problem")


class Judged(Struct, frozen=True):
    """What a diagnosis says of each row."""

    rank: NDArray[np.int8]
    """0 nothing, 1 healthy, 2 notice, 3 problem."""
    cause: I64
    """Which primary finding names its cause; −1 none."""

    def severity(self, rows: I64) -> Severity | None:
        """Return how bad the worst of some rows is."""
        return _RANKS[int(self.rank[rows].max(initial=0))]

    def stuck(self, rows: I64) -> int:
        """Return how many of some rows are problems."""
        return int((self.rank[rows] == 3).sum())


def judged(view: View, findings: Sequence[Finding]) -> Judged:
    """Return what findings say of each row of their view."""
    rank, cause = np.zeros(len(view), np.int8), np.full(len(view), -1, np.int64)
    for k, finding in enumerate(findings):
        if finding.primary:
            rank[finding.rows] = np.maximum(rank[finding.rows], _RANKS.index(finding.severity))
            cause[finding.rows] = k
    return Judged(rank, cause)


class Group(Struct, frozen=True):
    """A line of the board."""

    key: str
    """What it is, the same at every look."""
    title: str
    severity: Severity | None
    count: int
    stuck: int
    rows: I64
    """Of the view, those that are wanted; empty for a finding about descriptors."""
    oldest_ms: int
    """As of `finwait.report.groups.Groups`."""
    finding: Finding | None = None
    """By cause: what it is about; None for what no rule found anything about, and by anything else."""
    cause: str = ""
    """By anything else: the cause of most of what is worst in it."""

    @property
    def mark(self) -> str:
        """How bad it is, as one character."""
        return MARKS[self.severity]


def board(view: View, findings: Sequence[Finding], verdicts: Judged, rows: I64, by: Grouping) -> list[Group]:
    """Return groups, the most harmful first; among equals the larger one, so that no line moves without a reason.

    Args:
        view: the sockets.
        findings: what a diagnosis found in it, narrowed to what is wanted: also what is about no connection.
        verdicts: … as `judged` returns it.
        rows: which connections are wanted.
        by: what the connections of a group have in common.
    """
    if by == "cause":
        return _by_cause(view, findings, verdicts, rows)
    made = groups(view, findings, rows, by)
    order = np.argsort(made.code, kind="stable")
    members = np.split(made.rows[order], np.cumsum(made.counts)[:-1]) if len(made) else []
    result = []
    for k, label in enumerate(made.labels):
        own_rows = members[k]
        worst = own_rows[verdicts.rank[own_rows] == verdicts.rank[own_rows].max(initial=0)]
        causes = verdicts.cause[worst]
        causes = causes[causes >= 0]
        rule = findings[int(np.bincount(causes).argmax())].rule if len(causes) else ""
        rules = {findings[c].rule for c in distinct(causes).tolist()}
        result.append(
            Group(
                label,
                label,
                verdicts.severity(own_rows),
                int(made.counts[k]),
                verdicts.stuck(own_rows),
                own_rows,
                int(made.oldest_ms[k]),
                cause=f"{rule} +{len(rules) - 1}" if len(rules) > 1 else rule,
            )
        )
    result.sort(key=lambda g: (-_RANKS.index(g.severity), -g.stuck, -g.count, g.key))
    return result


def _by_cause(view: View, findings: Sequence[Finding], verdicts: Judged, rows: I64) -> list[Group]:
    selected = np.zeros(len(view), np.bool_)
    selected[rows] = True
    result: list[Group] = []
    used: dict[str, int] = {}
    for finding in shown_groups(view, findings):
        own_rows = finding.rows[selected[finding.rows]] if len(finding.rows) else finding.rows
        # A queue that is full has no connection of its own.
        listeners = len(finding.rows) > 0 and bool((view.sockets.state[finding.rows] == tcp.LISTEN).all())
        if len(finding.rows) and not len(own_rows) and not listeners:
            continue
        pid = min(finding.pids, default=0)
        key = f"{finding.rule}/{finding.severity}/{finding.variant}/{finding.netns}/{view.services.get(pid, pid)}"
        used[key] = used.get(key, 0) + 1
        if used[key] > 1:
            key += f"/{used[key]}"
        count = len(own_rows) if len(finding.rows) and not listeners else finding.count
        stuck = len(own_rows) if finding.severity == "problem" else 0
        result.append(
            Group(
                key,
                finding.rule,
                finding.severity,
                count,
                stuck,
                own_rows,
                _oldest(view, own_rows),
                finding,
            )
        )
    result.sort(key=_harm)
    healthy: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.primary and finding.severity == "healthy":
            healthy.setdefault(finding.rule, []).append(finding)
    for rule, alike in healthy.items():
        own_rows = np.concatenate([f.rows for f in alike])
        own_rows = own_rows[selected[own_rows]]
        if len(own_rows):
            result.append(
                Group(
                    f"{rule}/healthy",
                    rule,
                    "healthy",
                    len(own_rows),
                    0,
                    own_rows,
                    _oldest(view, own_rows),
                    alike[0],
                )
            )
    own_rows = rows[verdicts.cause[rows] < 0]
    if len(own_rows):
        result.append(
            Group("no finding", "no finding", None, len(own_rows), 0, own_rows, _oldest(view, own_rows))
        )
    return result


def _harm(group: Group) -> tuple[int, int, int, str]:
    """Return what groups by cause are ordered by: age would let those that grow alike change places at every look."""
    assert group.finding is not None
    return -_RANKS.index(group.severity), _HARM.index(group.finding.harm), -group.count, group.key


_HARM: Final = get_args(Harm)
"""The gravest first."""


def _oldest(view: View, rows: I64) -> int:
    return int(view.at_least_ms[rows].max(initial=-1))


def sort_groups(
    made: Sequence[Group], by: str, new: Mapping[str, float | None], *, reverse: bool = False
) -> list[Group]:
    """Return groups in an order of `SORTS`: as they are, most, oldest, most new ones, or by name.

    Raises:
        ValueError: no such order.
    """
    if by == "harm":
        result = list(made)
    elif by == "connections":
        result = sorted(made, key=lambda g: (-g.count, g.key))
    elif by == "oldest":
        result = sorted(made, key=lambda g: (-g.oldest_ms, g.key))
    elif by == "new":
        result = sorted(made, key=lambda g: (-(new.get(g.key) or 0.0), g.key))
    elif by == "name":
        result = sorted(made, key=lambda g: (g.title, g.key))
    else:
        raise ValueError(f"groups cannot be sorted by {by}")
    return result[::-1] if reverse else result


class Arrivals:
    """How many connections come to each group in a minute, by comparing one look with the one before."""

    def __init__(self) -> None:
        self.rates = History()
        """By the key of a group."""
        self._before: tuple[float, dict[str, NDArray[np.uint64]]] | None = None

    def clear(self) -> None:
        """Forget everything."""
        self.rates.clear()
        self._before = None

    def failed(self, when_s: float) -> None:
        """Remember that a look failed; the next one is compared with the one before it."""
        self.rates.failed(when_s)

    def look(self, when_s: float, view: View, made: Sequence[Group]) -> dict[str, float | None]:
        """Return connections a minute that came to each group since the look before; None where that is not known."""
        now = {group.key: _identities(view, group.rows) for group in made if len(group.rows)}
        before = self._before
        self._before = when_s, now
        if before is None or when_s <= before[0]:
            return dict.fromkeys((group.key for group in made), None)
        minutes = (when_s - before[0]) / 60.0
        nothing = np.empty(0, np.uint64)
        per_minute: dict[str, float | None] = {}
        for group in made:
            if group.key in now:
                old = np.isin(now[group.key], before[1].get(group.key, nothing))
                per_minute[group.key] = float((~old).sum()) / minutes
            else:
                per_minute[group.key] = None
        self.rates.look(when_s, {key: rate for key, rate in per_minute.items() if rate is not None})
        return per_minute


def _identities(view: View, rows: I64) -> NDArray[np.uint64]:
    """Return a number of each row that stays its own: cookie and namespace, for kernels that count in each."""
    s = view.sockets
    return s.column("cookie")[rows].astype(np.uint64) + (s.netns[rows].astype(np.uint64) << np.uint64(40))
