"""How many connections were stuck over time, in a bounded number of steps and series. Pure.

A step in which nobody looked has ``None``, never 0: "not known" and "none" lead to opposite advice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from finwait.agent.tally import OTHER
from finwait.report.agent_page import CountsDocument, CountSeries

__all__ = ["POINTS_MOST", "SERIES_MOST", "curve", "table_and_step"]

POINTS_MOST: Final = 360
SERIES_MOST: Final = 8
"""More colours cannot be told apart; the rest is one series."""
_MINUTES_S: Final = 2 * 86400


def table_and_step(since_s: int, now_s: int) -> tuple[str, int]:
    """Return from which table to read, and how wide a step is, in seconds.

    Args:
        since_s: seconds since 1970.
        now_s: the time.
    """
    span = max(60, min(now_s - since_s, 90 * 86400))
    table, width = ("minutes", 60) if span <= _MINUTES_S else ("quarters", 900)
    return table, width * max(1, -(-span // (width * POINTS_MOST)))


def curve(
    rows: Sequence[tuple[int, str, int]],
    looked: Mapping[int, int],
    by: Literal["rule", "workload"],
    since_s: int,
    now_s: int,
    step_s: int,
) -> CountsDocument:
    """Return counts as series of one value for each step.

    Args:
        rows: (step, name, count), as of `finwait.agent.store.Store.counts`.
        looked: step → gaps, of those in which somebody looked.
        by: what a series is.
        since_s: the beginning of the first step.
        now_s: the time.
        step_s: width of a step.
    """
    steps = list(range(since_s, now_s + 1, step_s))[-POINTS_MOST - 1 :]
    place = {at: k for k, at in enumerate(steps)}
    values: dict[str, list[int]] = {}
    for at, name, n in rows:
        if at in place:
            values.setdefault(name, [0] * len(steps))[place[at]] += n
    order = sorted(
        (name for name in values if any(values[name])), key=lambda name: (-max(values[name]), name)
    )
    named = [name for name in order if name != OTHER][:SERIES_MOST]
    rest = [name for name in order if name not in named]
    series = [(name, values[name]) for name in named]
    if rest:
        series.append((OTHER, [sum(column) for column in zip(*(values[name] for name in rest), strict=True)]))
    return CountsDocument(
        by=by,
        step_s=step_s,
        at=steps,
        series=[
            CountSeries(
                name=name,
                values=[n if at in looked else None for at, n in zip(steps, counts, strict=True)],
            )
            for name, counts in series
        ],
        gaps=[looked.get(at) for at in steps],
    )
