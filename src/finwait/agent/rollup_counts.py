"""Counts over time as SQLite adds them up: some hundred steps come out of a hundred thousand rows. Opens no file.

A step has the most that were open at once in it: within a minute the series of one name are added, of minutes the
largest counts.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

__all__ = ["counts", "series"]

_TABLES = ("minutes", "quarters")
_NAMES = ("rule", "workload")


def series(db: sqlite3.Connection) -> dict[int, tuple[str, str, str]]:
    """Return rule, severity and workload of the series, by number."""
    rows = db.execute("SELECT id, rule, severity, workload FROM series")
    return {number: (rule, severity, workload) for number, rule, severity, workload in rows}


def counts(
    db: sqlite3.Connection, table: str, since_s: int, step_s: int, by: str, numbers: Collection[int] | None
) -> tuple[list[tuple[int, str, int]], dict[int, int]]:
    """Return ``(step, name, most that were open)``, and step → gaps for those in which somebody looked.

    Args:
        db: the history.
        table: ``minutes`` or ``quarters``.
        since_s: seconds since 1970.
        step_s: width of a step; each begins at a multiple of it.
        by: ``rule`` or ``workload``.
        numbers: only of these series; None for all.

    Raises:
        ValueError: there is no such table or name.
    """
    if table not in _TABLES or by not in _NAMES:
        raise ValueError(f"there are no counts of {table} by {by}")
    chosen = "" if numbers is None else f" AND m.series IN ({','.join(map(str, map(int, numbers)))})"
    times = {"step": step_s, "since": since_s}
    rows = db.execute(
        f"SELECT at / :step * :step, name, max(total) FROM (SELECT at, s.{by} AS name, sum(open) AS total"  # noqa: S608 - names of two
        f" FROM {table} m JOIN series s ON s.id = m.series WHERE at >= :since AND s.rule <> ''{chosen}"
        f" GROUP BY at, s.{by}) GROUP BY 1, 2",
        times,
    ).fetchall()
    looked = db.execute(
        f"SELECT at / :step * :step, max(CASE WHEN s.rule = '' THEN open ELSE 0 END) FROM {table} m"  # noqa: S608 - one of two
        " JOIN series s ON s.id = m.series WHERE at >= :since GROUP BY 1",
        times,
    )
    return rows, dict(looked.fetchall())
