"""What an agent said, at one moment: its last picture, its history as a curve, and whether it still answers.

Pure: who asks is `finwait.agent.watched`, who shows it is `finwait.tui.agent_view`.
"""

from __future__ import annotations

from math import isnan

from msgspec import Struct

from finwait.report.agent_page import AgentPage, CountsDocument

__all__ = ["AgentMoment", "levels", "per_minute", "resampled"]


class AgentMoment(Struct, frozen=True):
    """What is known of an agent."""

    page: AgentPage | None
    """Its last picture; None before the first."""
    counts: CountsDocument | None
    """Connections that do not finish closing, over time; None where it did not say."""
    failed: str
    """Why it does not answer now, so that the picture is an old one; empty where it does."""
    words: str
    """The FILTER that the picture is narrowed to."""
    now_ns: int
    """Wall clock when it was asked, in nanoseconds since 1970."""

    @property
    def age_s(self) -> float:
        """How old the look is that the picture shows."""
        return max(0.0, (self.now_ns - self.page.look_at_ns) / 1e9) if self.page is not None else 0.0


def levels(counts: CountsDocument | None) -> list[float]:
    """Return how many connections did not finish closing at each step; not a number where nobody looked."""
    if counts is None:
        return []
    looked = [gap is not None for gap in counts.gaps]
    return [
        float(sum(series.values[k] or 0 for series in counts.series)) if looked[k] else float("nan")
        for k in range(len(counts.at))
    ]


def resampled(numbers: list[float], cells: int) -> list[float | None]:
    """Return one number for each of some cells: the highest of those that fall into it, as far as they are known."""
    if not numbers or cells < 1:
        return []
    out: list[float | None] = []
    for cell in range(cells):
        begin = cell * len(numbers) // cells
        part = numbers[begin : max((cell + 1) * len(numbers) // cells, begin + 1)]
        known = [number for number in part if not isnan(number)]
        out.append(max(known) if known else float("nan"))
    return out


def per_minute(counts: CountsDocument | None, minutes: int = 10) -> float | None:
    """Return how much more there are in a minute than before, over the last minutes; None where that is not known."""
    if counts is None or not counts.step_s:
        return None
    since = counts.at[-1] - 60 * minutes if counts.at else 0
    known = [
        (at, number)
        for at, number in zip(counts.at, levels(counts), strict=True)
        if at >= since and not isnan(number)
    ]
    if len(known) < 2:
        return None
    (first, before), (last, after) = known[0], known[-1]
    return 60 * (after - before) / (last - first)
