"""The history: an SQLite file beside the journal, bounded, and never a reason to stop looking.

    episodes   one row for each episode; what is open has no end
    stories    how an episode's connection got there and what ended it, where the flight recorder saw it
    rehearsed  what a policy would have done, in a dry run
    minutes    how many were open by series, each minute; kept for two days
    quarters   … each quarter of an hour; kept for 90 days
    marks      the ends of the windows by which growth is told, so that a restart does not begin again
    series     (rule, severity, workload), numbered
    names      what each network namespace was called
    meta       what the last round knew

One round is one transaction. Everything is written so that writing it twice is writing it once: what could not be
written is tried again a minute later, with what came since.

What was measured and is worked around here:

* On a full disk DELETE fails too, for the log must grow. So the limit is our own (``max_page_count``), within which
  DELETE works: then the oldest tenth of the episodes goes.
* Damaged pages give no error to a SELECT. ``quick_check`` at the start finds them; the file is set aside as
  ``.corrupt-TIME`` and a new one begun.
* An empty file opens as an empty database: a store without our tables is no store yet. One with other tables is
  somebody else's and stays as it is.
* Nothing tells a connection that its file was overwritten or its log removed: each minute a second one reads it.
* A wall clock that is wrong would let everything be too old: it has to go right for a day first.
* ``incremental_vacuum`` through `execute` frees one page; through `executescript` it frees what it was asked to.

Cookies have 64 bits and SQLite's numbers a sign: they are stored as the same bits. What this does not do: decide what
happened. It stores `Episode` values, and gives them back.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from finwait.agent.episode_rows import (
    MIGRATIONS,
    UPSERT,
    VERSION,
    signed,
    values_of,
)
from finwait.agent.episodes import Episode, Instant
from finwait.agent.history_file import (
    APPLICATION,
    LOCK,
    NO_FILE,
    SteadyClock,
    StoreError,
    agent_runs,
    errno_of,
    file_at,
    harm,
    hint_of,
    put_aside,
    store_path,
    whose,
)
from finwait.agent.history_rows import HistoryRows, Key
from finwait.agent.leak import WindowEnd
from finwait.errors import FinwaitError
from finwait.kernel import state_files

__all__ = ["LOCK", "LOOKED", "Rollup", "Store", "StoreError", "agent_runs", "store_path"]

_PAGE: Final = 4096
MOST_BYTES: Final = 256 << 20
_RETENTION_S: Final = {"episodes": 14 * 86400, "minutes": 2 * 86400, "quarters": 90 * 86400}
_PENDING_MOST: Final = 20_000
_RETRY_S: Final = 60.0

Rollup = tuple[Key, int, int]
"""A series, how many of its connections were open, and for how long the oldest, in seconds."""


LOOKED: Final[Key] = ("", "", "")
"""The series that says that somebody looked: how many gaps there were, and the longest that a namespace was unseen."""


class Store(HistoryRows):
    """The history in a file; a context manager. One object, one thread.

    Args:
        path: the file.
        read_only: only look; a history that is not there is an error then.
        most_bytes: how large it may grow.
        clock: seconds that never go back, for retries.

    Raises:
        StoreError: it cannot be opened, or a newer finwait wrote it.
        FileRefused: it is not ours alone.

    Attributes:
        errors: writes that failed since it was opened.
        said: what went wrong last; empty for nothing.
        dropped: episodes that could not be written, and were given up.
        set_aside: where a damaged file went; None where it was sound.
        renewed: how often a new file was begun since it was opened: what lasts must be written again.
    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        most_bytes: int = MOST_BYTES,
        clock: Any = time.monotonic,  # noqa: ANN401 - a function of nothing that returns seconds
    ) -> None:
        self.path = path
        self.errors = 0
        self.said = ""
        self.dropped = 0
        self.set_aside: Path | None = None
        self.renewed = 0
        self._read_only = read_only
        self._most_pages = max(16, most_bytes // _PAGE)
        self._clock = clock
        self._db: sqlite3.Connection | None = None
        self._series: dict[Key, int] = {}
        self._pending: list[Episode] = []
        self._retry_at = float("-inf")
        self._trimmed_at = float("-inf")
        self._file = (0, 0)
        self._checked_at = float("-inf")
        self._lost = ""
        self._whole_at = float("-inf")
        self._wall: SteadyClock | None = None
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> None:
        doing = f"open the history `{self.path}`"
        try:
            if not state_files.check(self.path, "the history", make=not self._read_only):
                raise StoreError(errno.ENOENT, doing, hint="`finwait agent` writes it")
        except OSError as error:
            raise StoreError(error.errno or errno.EIO, doing, hint=hint_of(error)) from error
        try:
            self._connect()
            self._refuse_foreign()
            if not self._read_only and not self._sound():
                self._put_aside()
                self._connect()
            self._prepare()
        except sqlite3.DatabaseError as error:
            if self._read_only or isinstance(error, sqlite3.OperationalError):
                self.close()
                reason = " ".join(str(error).split())
                raise StoreError(errno_of(error), doing, reason=reason, hint=hint_of(error)) from error
            self._put_aside()  # it is no database
            self._connect()
            self._prepare()

    def _connect(self) -> None:
        self.close()
        if self._read_only:
            self._db = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, timeout=5)
        else:
            self._db = sqlite3.connect(self.path, timeout=5, isolation_level=None)
        self._db.execute("PRAGMA trusted_schema=OFF")

    def _refuse_foreign(self) -> None:
        if whose(self._base) == "foreign":
            self.close()
            raise StoreError(
                errno.EINVAL,
                f"use `{self.path}` as the history",
                reason="it is a database of another program",
                hint="move it away, or name another `--state-dir`",
            )

    def _sound(self) -> bool:
        try:
            return bool(self._base.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            return False

    def _put_aside(self) -> None:
        """Rename a damaged file, and what is beside it, and begin a new one."""
        self.close()
        self.set_aside = put_aside(self.path)

    def _prepare(self) -> None:
        db = self._base
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            self.close()
            raise StoreError(
                errno.EINVAL,
                f"use the history `{self.path}` of version {version}",
                reason="a newer finwait wrote it",
                hint="use that version, or move the file away",
            )
        if self._read_only:
            if version == 0:
                self.close()
                raise StoreError(
                    errno.ENOENT, f"open the history `{self.path}`", hint="`finwait agent` writes it"
                )
            if version < VERSION:
                self.close()
                raise StoreError(
                    errno.EINVAL,
                    f"use the history `{self.path}` of version {version}",
                    reason="an older finwait wrote it",
                    hint="start `finwait agent` once: it brings the file up to date",
                )
            return
        if version == 0:
            db.executescript("PRAGMA auto_vacuum=INCREMENTAL; VACUUM;")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA journal_size_limit=4194304")
        for k in range(version, VERSION):
            db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[k]} PRAGMA user_version={k + 1}; COMMIT;")
        db.execute(f"PRAGMA application_id={APPLICATION}")
        db.execute(f"PRAGMA max_page_count={self._most_pages}")
        self.path.chmod(0o600)
        self._file = file_at(self.path)
        self._checked_at = self._clock()
        self._read_series()

    def _read_series(self) -> None:
        rows = self._base.execute("SELECT id, rule, severity, workload FROM series")
        self._series = {(rule, severity, workload): number for number, rule, severity, workload in rows}

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._db is not None:
            self._db.close()
            self._db = None

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────

    def round(
        self,
        ended: Iterable[Episode],
        changed: Iterable[Episode],
        now: Instant,
        *,
        rollups: Sequence[Rollup] = (),
        meta: Mapping[str, Any] | None = None,
    ) -> bool:
        """Write what a round changed, in one transaction; return whether it is written.

        What ended and cannot be written is kept and tried again a minute later, with what came since; of what is too
        much the oldest is given up. Nothing is raised: looking goes on.

        Args:
            ended: episodes that ended.
            changed: episodes that opened or changed, one by one; the caller gives them again where this failed.
            now: of the round.
            rollups: how many are open, at the end of a minute.
            meta: what the next start wants to know.
        """
        self._pending.extend(ended)
        if len(self._pending) > _PENDING_MOST:
            self.dropped += len(self._pending) - _PENDING_MOST
            del self._pending[:-_PENDING_MOST]
        if self._clock() < self._retry_at:
            return False
        try:
            self._still_there()
            self._write(changed, now, rollups, meta or {})
        except (sqlite3.Error, OSError, FinwaitError) as error:
            self._failed(error)
            return False
        self._pending.clear()
        self.said = self._lost
        self._retry_at = float("-inf")
        return True

    def _still_there(self) -> None:
        """Once a minute, see whether the path still leads to the file that is open, and begin a new one if not.

        What the removed file held goes into the new one; a file that somebody has put in its place stays as it is.
        """
        if self._clock() - self._checked_at < _RETRY_S:
            return
        self._checked_at = self._clock()
        at_path = file_at(self.path)
        if at_path == self._file and self._db is not None:
            self._still_sound()
            return
        before, self._db = self._db, None
        try:
            self._open()
            if at_path == NO_FILE and before is not None:
                with contextlib.suppress(sqlite3.Error):
                    before.backup(self._base)
                self._read_series()
        finally:
            if before is not None:
                before.close()
        self.errors += 1
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        fate = "removed" if at_path == NO_FILE else "replaced"
        self._lost = f"`{self.path}` was {fate} while it was open; noticed, and opened anew, at {stamp}"

    def _still_sound(self) -> None:
        """See whether others read what is written, and begin a new file if not; what can be read goes into it."""
        whole = self._clock() >= self._whole_at
        began = time.monotonic()
        reason = " ".join(harm(self.path, self._base, whole=whole).split())  # SQLite breaks lines
        if whole:  # within a thousandth of a processor
            self._whole_at = self._clock() + max(_RETRY_S, 1000 * (time.monotonic() - began))
        if not reason:
            return
        before = self._base
        readable = self._sound()
        self._db = None
        try:
            self._put_aside()
            self._connect()
            if readable:
                with contextlib.suppress(sqlite3.Error):
                    before.backup(self._base)
                if not self._sound() or whose(self._base) != "own":
                    self._put_aside()
                    self._connect()
            self._prepare()
        finally:
            before.close()
        self.errors += 1
        self.renewed += 1
        self._lost = f"`{self.path}` was damaged while it was open ({reason}); " + self._anew()

    def _anew(self) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return f"it is now `{self.set_aside}`, and a new one was begun at {stamp}"

    @property
    def failing(self) -> bool:
        """Whether what was to be written last could not be, so that `said` says why."""
        return self._retry_at > float("-inf")

    def _write(
        self, changed: Iterable[Episode], now: Instant, rollups: Sequence[Rollup], meta: Mapping[str, Any]
    ) -> None:
        with self._transaction() as db:
            db.executemany(UPSERT, (self._cells(e) for e in self._pending))
            for part in _parts(changed, 1000):
                # Of one that was given up unwritten the row may still be open; what follows it ended it.
                db.executemany(
                    "UPDATE episodes SET ended_boot = ?, ended_wall = ?, how = 'unknown' WHERE ended_wall IS NULL"
                    " AND boot = ? AND cookie = ? AND state = ? AND first_boot <> ?",
                    [
                        (
                            e.first.boot_ns,
                            e.first.wall_ns,
                            e.boot,
                            signed(e.cookie),
                            e.state,
                            e.first.boot_ns,
                        )
                        for e in part
                    ],
                )
                db.executemany(UPSERT, [self._cells(e) for e in part])
            if rollups:
                self._roll(db, now, rollups)
            if meta:
                db.executemany(
                    "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    [(name, json.dumps(value)) for name, value in meta.items()],
                )
        if self._clock() - self._trimmed_at >= 600:
            self._trimmed_at = self._clock()
            self._trim(now)

    def _roll(self, db: sqlite3.Connection, now: Instant, rollups: Sequence[Rollup]) -> None:
        seconds = now.wall_ns // 1_000_000_000
        for table, width in (("minutes", 60), ("quarters", 900)):
            at = seconds // width * width
            db.executemany(
                f"INSERT INTO {table} VALUES (?, ?, ?, ?) ON CONFLICT (at, series) DO UPDATE SET"  # noqa: S608
                " open = max(open, excluded.open), oldest_s = max(oldest_s, excluded.oldest_s)",
                [(at, self._number(key), open_, oldest) for key, open_, oldest in rollups],
            )

    def _trim(self, now: Instant) -> None:
        """Let go of what is older than it is kept, once the clock that says so is trusted, and give pages back."""
        if self._believes(now):
            self._forget(now.wall_ns // 1_000_000_000)
        self._base.executescript("PRAGMA incremental_vacuum(200); PRAGMA wal_checkpoint(PASSIVE);")

    def _believes(self, now: Instant) -> bool:
        if self._wall is None:
            known = self._base.execute("SELECT value FROM meta WHERE name = 'clock'").fetchone()
            before = (
                json.loads(known[0]) if known is not None else {"wall_s": now.wall_ns / 1e9, "steady_s": 0.0}
            )
            self._wall = SteadyClock(float(before["wall_s"]), float(before["steady_s"]))
        trusted = self._wall.see(now)
        with self._transaction() as db:
            db.execute(
                "INSERT INTO meta VALUES ('clock', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (json.dumps({"wall_s": self._wall.wall_s, "steady_s": self._wall.steady_s}),),
            )
        return trusted

    def _forget(self, seconds: int) -> None:
        with self._transaction() as db:
            db.execute(
                "DELETE FROM episodes WHERE id IN (SELECT id FROM episodes WHERE ended_wall < ? LIMIT 20000)",
                ((seconds - _RETENTION_S["episodes"]) * 1_000_000_000,),
            )
            for table in ("minutes", "quarters"):
                db.execute(f"DELETE FROM {table} WHERE at < ?", (seconds - _RETENTION_S[table],))  # noqa: S608
            db.execute(
                "DELETE FROM rehearsed WHERE wall_ns < ?",
                ((seconds - _RETENTION_S["episodes"]) * 1_000_000_000,),
            )
            db.execute(
                "DELETE FROM names WHERE boot <> (SELECT boot FROM episodes ORDER BY id DESC LIMIT 1)"
                " AND boot NOT IN (SELECT boot FROM episodes)"
            )

    def _failed(self, error: BaseException) -> None:
        self.errors += 1
        self.said = " ".join(str(error).split())  # SQLite breaks lines
        self._retry_at = self._clock() + _RETRY_S
        if self._db is None:
            return
        self._read_series_again()
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            with contextlib.suppress(sqlite3.Error, OSError), self._transaction() as db:
                count = db.execute("SELECT count(*) FROM episodes WHERE ended_wall IS NOT NULL").fetchone()[0]
                db.execute(
                    "DELETE FROM episodes WHERE id IN (SELECT id FROM episodes WHERE ended_wall IS NOT NULL"
                    " ORDER BY ended_wall LIMIT ?)",
                    (count // 10 + 1,),
                )
                for table in ("minutes", "quarters"):
                    db.execute(
                        f"DELETE FROM {table} WHERE at < (SELECT min(at) + (max(at) - min(at)) / 10 FROM {table})"  # noqa: S608
                    )

    def _read_series_again(self) -> None:
        """Forget numbers that a transaction gave which was not to be."""
        try:
            self._read_series()
        except sqlite3.Error:
            self._series = {}

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._base
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _number(self, key: Key) -> int:
        number = self._series.get(key)
        if number is None:
            row = self._base.execute(
                "INSERT INTO series (rule, severity, workload) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET rule = rule RETURNING id",
                key,
            ).fetchone()
            number = self._series[key] = int(row[0])
        return number

    def _cells(self, e: Episode) -> tuple[Any, ...]:
        return values_of(e, self._number((e.cause.rule, e.cause.severity, e.cause.workload)))

    def put_marks(self, boot: str, marks: Mapping[Key, Mapping[int, Sequence[WindowEnd]]]) -> None:
        """Store the ends of windows; a failure is counted and leaves the old ones."""
        try:
            with self._transaction() as db:
                db.execute("DELETE FROM marks")
                db.executemany(
                    "INSERT INTO marks VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (
                            boot,
                            self._number(key),
                            window,
                            mark.at_s,
                            mark.survivors,
                            mark.arrived,
                            mark.departed,
                        )
                        for key, windows in marks.items()
                        for window, several in windows.items()
                        for mark in several
                    ],
                )
        except (sqlite3.Error, OSError) as error:
            self._failed(error)

    def put(self, statement: str, rows: Sequence[Sequence[Any]]) -> bool:
        """Execute a statement with many rows; return whether it is written. A failure is counted."""
        if self._clock() < self._retry_at:
            return False
        try:
            with self._transaction() as db:
                db.executemany(statement, rows)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            return False
        return True

    def remember(self, meta: Mapping[str, Any], boot: str, names: Mapping[int, Sequence[str]]) -> bool:
        """Write down what the looker said beside its rounds; return whether it is written.

        Args:
            meta: name → a value of JSON.
            boot: id of this boot.
            names: inode → what the network namespace is called.
        """
        if self._clock() < self._retry_at:
            return False
        try:
            with self._transaction() as db:
                db.executemany(
                    "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    [(name, json.dumps(value)) for name, value in meta.items()],
                )
                db.executemany(
                    "INSERT INTO names VALUES (?, ?, ?) ON CONFLICT (boot, netns) DO UPDATE SET names = excluded.names",
                    [(boot, inode, json.dumps(list(several))) for inode, several in names.items()],
                )
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            return False
        return True

    @property
    def size(self) -> int:
        """Bytes of the file and its log."""
        total = 0
        for beside in ("", "-wal"):
            with contextlib.suppress(OSError):
                total += os.stat(str(self.path) + beside).st_size
        return total


def _parts(episodes: Iterable[Episode], size: int) -> Iterator[list[Episode]]:
    iterator = iter(episodes)
    while part := list(itertools.islice(iterator, size)):
        yield part
