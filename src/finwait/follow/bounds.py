"""Limits that all of following keeps to, so that it may run for days."""

from __future__ import annotations

from typing import Final

__all__ = ["LIST_S", "MOST_REMEMBERED", "SHARE"]

LIST_S: Final = 0.2
"""Processes are inspected for so many seconds at a time."""
MOST_REMEMBERED: Final = 100_000
"""Lives, tasks, cgroups, namespaces: of each."""
SHARE: Final = 10
"""A look may take one part in so many of the time."""
