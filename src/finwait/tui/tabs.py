"""The line of tabs: which views there are, on which keys, and where each of them is for the mouse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from finwait.report.painted import Line

__all__ = ["TABS", "tab_at", "tab_line"]

TABS: Final = (
    ("Groups", "connections by cause"),
    ("Connections", "every connection"),
    ("Processes", "connections by process"),
    ("Places", "connections by pod or network namespace"),
    ("Settings", "what is set, and whether it helps"),
    ("Journal", "what finwait did"),
)


def _labels(active: int, width: int) -> Iterator[str]:
    """Yield what stands on each tab: where there is no room, only the open one has its name."""
    full = [f" {k} {name} " for k, (name, _) in enumerate(TABS, 1)]
    wide = sum(map(len, full)) <= width
    for k, text in enumerate(full):
        yield text if wide or k == active else f" {k + 1} "


def tab_line(active: int, width: int) -> Line:
    """Return the line; the open tab is marked."""
    return [(label, "active" if k == active else "") for k, label in enumerate(_labels(active, width))]


def tab_at(x: int, active: int, width: int) -> int | None:
    """Return which tab is in a column of the screen."""
    end = 0
    for k, label in enumerate(_labels(active, width)):
        end += len(label)
        if x < end:
            return k
    return None
