"""The rows of the history, read: nothing here writes, and what cannot be read is a `StoreError`."""

from __future__ import annotations

import contextlib
import errno
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from finwait.agent.episode_rows import SELECT, episode_of, signed, storable
from finwait.agent.episodes import Episode
from finwait.agent.history_file import StoreError, errno_of, hint_of
from finwait.agent.leak import WindowEnd
from finwait.agent.stories import RecordedStep, told_steps

__all__ = ["HistoryRows", "Key"]

Key = tuple[str, str, str]
"""A series: rule, severity, workload."""
_Told = TypeVar("_Told")


class HistoryRows:
    """The reading half of an open history.

    Attributes:
        path: of its file.
    """

    path: Path
    _db: sqlite3.Connection | None = None

    @property
    def _base(self) -> sqlite3.Connection:
        if self._db is None:
            raise sqlite3.ProgrammingError("the history is not open")
        return self._db

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError) as error:
            number = errno_of(error) if isinstance(error, sqlite3.Error) else errno.EIO
            reason = " ".join(str(error).split())  # SQLite breaks lines
            doing = f"read the history `{self.path}`"
            raise StoreError(number, doing, reason=reason, hint=hint_of(error)) from error

    def open_episodes(self) -> list[Episode]:
        """Return the episodes without an end.

        Raises:
            StoreError: they cannot be read.
        """
        with self._reading():
            return [
                episode_of(row)
                for row in self._base.execute(f"{SELECT} WHERE ended_wall IS NULL ORDER BY e.id")
            ]

    def batches(
        self,
        since_ns: int = 0,
        *,
        open_of: str = "",
        rules: Collection[str] | None = None,
        open_first: bool = False,
        size: int = 2000,
    ) -> Iterator[list[Episode]]:
        """Give the episodes that lasted at some time since then, some at a time, so that memory stays bounded.

        Args:
            since_ns: nanoseconds since 1970.
            open_of: only what has no end, of this boot, the oldest first; empty for all, the latest first.
            rules: of the diagnosis, of which one found them; None for all.
            open_first: what has no end comes before what has one, the oldest first.
            size: how many at a time.

        Raises:
            StoreError: they cannot be read.
        """
        with self._reading():
            if open_of:
                rows = self._base.execute(
                    f"{SELECT} WHERE ended_wall IS NULL AND boot = ? ORDER BY latest, e.id", (open_of,)
                )
            else:
                of_rules = "" if rules is None else f" AND s.rule IN ({','.join('?' * len(rules))})"
                before = (
                    "ended_wall IS NOT NULL, CASE WHEN ended_wall IS NULL THEN first_wall END, "
                    if open_first
                    else ""
                )
                rows = self._base.execute(
                    f"{SELECT} WHERE (ended_wall IS NULL OR ended_wall >= ?){of_rules}"
                    f" ORDER BY {before}first_wall DESC, e.id DESC",
                    (storable(since_ns), *(rules or ())),
                )
        while True:
            with self._reading():
                part = [episode_of(row) for row in rows.fetchmany(size)]
            if not part:
                return
            yield part

    def select(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a statement.

        Raises:
            StoreError: they cannot be read.
        """
        with self._reading():
            return self._base.execute(statement, values).fetchall()

    def names(self) -> dict[tuple[str, int], tuple[str, ...]]:
        """Return what network namespaces were called, by (boot, inode).

        Raises:
            StoreError: they cannot be read.
        """
        with self._reading():
            rows = self._base.execute("SELECT boot, netns, names FROM names")
            return {(boot, inode): tuple(json.loads(names)) for boot, inode, names in rows}

    def episodes(self, since_ns: int = 0, limit: int = 1_000_000) -> list[Episode]:
        """Return the episodes that lasted at some time since then, the latest first.

        Args:
            since_ns: nanoseconds since 1970.
            limit: how many.

        Raises:
            StoreError: they cannot be read.
        """
        with self._reading():
            rows = self._base.execute(
                f"{SELECT} WHERE ended_wall IS NULL OR ended_wall >= ? ORDER BY first_wall DESC, e.id DESC LIMIT ?",
                (storable(since_ns), limit),
            )
            return [episode_of(row) for row in rows]

    def ages(self, boot: str, cookies: Iterable[int]) -> dict[tuple[int, int], Episode]:
        """Return the open episodes of a boot by (cookie, state), of the cookies that are named.

        Raises:
            StoreError: they cannot be read.
        """
        hits: dict[tuple[int, int], Episode] = {}
        named = [signed(cookie) for cookie in cookies]
        with self._reading():
            for k in range(0, len(named), 500):
                part = named[k : k + 500]
                marks = ",".join("?" * len(part))
                rows = self._base.execute(
                    f"{SELECT} WHERE ended_wall IS NULL AND boot = ? AND cookie IN ({marks})", (boot, *part)
                )
                for row in rows:
                    episode = episode_of(row)
                    hits[episode.cookie, episode.state] = episode
        return hits

    def stories(
        self, keys: Iterable[tuple[str, int, int, int]]
    ) -> dict[tuple[str, int, int, int], tuple[RecordedStep, ...]]:
        """Return the stories of episodes by boot, cookie, state and first sight (CLOCK_BOOTTIME, ns).

        Raises:
            StoreError: they cannot be read.
        """
        hits: dict[tuple[str, int, int, int], tuple[RecordedStep, ...]] = {}
        with self._reading():
            for key in keys:
                row = self._base.execute(
                    "SELECT steps FROM stories JOIN episodes USING (id)"
                    " WHERE boot = ? AND cookie = ? AND state = ? AND first_boot = ?",
                    (key[0], signed(key[1]), key[2], key[3]),
                ).fetchone()
                if row is not None:
                    hits[key] = told_steps(row[0])
        return hits

    def stories_by_cookie(
        self, boot: str, cookies: Iterable[int]
    ) -> dict[tuple[int, int], tuple[RecordedStep, ...]]:
        """Return the latest stories of connections by (cookie, state), of one boot.

        Raises:
            StoreError: they cannot be read.
        """
        hits: dict[tuple[int, int], tuple[RecordedStep, ...]] = {}
        with self._reading():
            for cookie in cookies:
                rows = self._base.execute(
                    "SELECT state, steps FROM stories JOIN episodes USING (id)"
                    " WHERE boot = ? AND cookie = ? ORDER BY first_boot",
                    (boot, signed(cookie)),
                )
                hits |= {(cookie, state): told_steps(steps) for state, steps in rows}
        return hits

    def marks(self, boot: str) -> dict[Key, list[tuple[int, WindowEnd]]]:
        """Return the ends of windows of this boot, oldest first, by series.

        Raises:
            StoreError: they cannot be read.
        """
        hits: dict[Key, list[tuple[int, WindowEnd]]] = {}
        with self._reading():
            rows = self._base.execute(
                "SELECT s.rule, s.severity, s.workload, window, at_s, survivors, arrived, departed"
                " FROM marks m JOIN series s ON s.id = m.series WHERE boot = ? ORDER BY at_s",
                (boot,),
            )
            for rule, severity, workload, window, *mark in rows:
                hits.setdefault((rule, severity, workload), []).append((window, WindowEnd(*mark)))
        return hits

    def rollups(self, table: str, since_s: int) -> list[tuple[int, str, str, str, int, int]]:
        """Return ``(at, rule, severity, workload, open, oldest_s)`` of ``minutes`` or ``quarters``, oldest first.

        Raises:
            StoreError: they cannot be read.
            ValueError: there is no such table.
        """
        if table not in ("minutes", "quarters"):
            raise ValueError(f"there is no table {table}")
        with self._reading():
            return self._base.execute(
                f"SELECT at, rule, severity, workload, open, oldest_s FROM {table} m"  # noqa: S608 - one of two
                " JOIN series s ON s.id = m.series WHERE at >= ? AND rule <> '' ORDER BY at, rule, workload",
                (since_s,),
            ).fetchall()

    def read(self, question: Callable[[sqlite3.Connection], _Told]) -> _Told:
        """Return what a question finds.

        Raises:
            StoreError: it cannot be read.
        """
        with self._reading():
            return question(self._base)

    def meta(self, name: str) -> Any:  # noqa: ANN401 - a value of JSON
        """Return what the last round knew; None where it did not."""
        with self._reading():
            row = self._base.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
            return None if row is None else json.loads(row[0])
