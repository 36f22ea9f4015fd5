"""The history as `finwait report --since` hands it on: read, selected, counted.

As `finwait history`, it reads the file whether an agent runs or not, and says as a gap where none does.
"""

from __future__ import annotations

import time
from typing import Final

from finwait.agent import rollup_counts, telling
from finwait.agent.curve import curve, table_and_step
from finwait.agent.episodes import Instant
from finwait.agent.store import Store, agent_runs, store_path
from finwait.errors import FilterError
from finwait.kernel import procfs
from finwait.report.account import when
from finwait.report.agent_page import CountsDocument
from finwait.report.past import AgentPast, PastEpisode
from finwait.table.filter import Filter

__all__ = ["read_past"]

_NAMED: Final = 30
"""Episodes that a report names."""
_LOOKED_THROUGH: Final = 100_000
_DAYS: Final = 90
"""Counts are kept for so long."""


def read_past(
    since_ms: int, row_filter: Filter, *, filtered: bool, directory: str | None = None
) -> AgentPast:
    """Return the history since so long ago.

    Args:
        since_ms: how long ago.
        row_filter: which episodes.
        filtered: whether it says anything.
        directory: where the agent keeps its history, if not at the usual place.

    Raises:
        FinwaitError: there is no history, or it cannot be read.
        FilterError: it asks for something that an episode does not know.
    """
    now = Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())
    since_ns = now.wall_ns - since_ms * 1_000_000
    boot, path = procfs.facts().boot_id, store_path(directory)
    with Store(path, read_only=True) as store:
        last, looker = store.meta("round"), store.meta("looker")
        seen = telling.seen_until(last, now, boot)
        hits, gaps = telling.picked(
            row_filter,
            store.batches(since_ns),
            now.boot_ns,
            boot,
            seen_ns=seen,
            names=store.names(),
            most=_LOOKED_THROUGH,
        )
        try:
            counts = _counts(store, since_ns, now, row_filter if filtered else None)
            note = ""
        except FilterError:
            counts, note = (
                None,
                "Counts over time are kept by rule, severity and workload, not by what the FILTER asks for.",
            )
    nobody = telling.nobody_since(last, looker, now, boot, runs=agent_runs(path.parent))
    gaps = [*([nobody] if nobody is not None else ()), *telling.looker_gaps(looker), *gaps]
    rows = [
        PastEpisode(*telling.episode_row(e, now.boot_ns, boot, seen_ns=seen, looked_at=nobody is None))
        for e in hits[:_NAMED]
    ]
    return AgentPast(when(since_ns), counts, note, tuple(rows), len(hits) - len(rows), tuple(gaps))


def _counts(store: Store, since_ns: int, now: Instant, row_filter: Filter | None) -> CountsDocument:
    """Return how many were stuck, by rule, in a bounded number of steps.

    Raises:
        FilterError: it asks for something that counts do not know.
    """
    now_s = now.wall_ns // 1_000_000_000
    table, step_s = table_and_step(since_ns // 1_000_000_000, now_s)
    since_s = max(since_ns // 1_000_000_000, now_s - _DAYS * 86400) // step_s * step_s
    numbers = None if row_filter is None else telling.series_of(row_filter, store.read(rollup_counts.series))
    rows, looked = store.read(lambda db: rollup_counts.counts(db, table, since_s, step_s, "rule", numbers))
    return curve(rows, looked, "rule", since_s, now_s, step_s)
