"""Episodes as rows of SQLite: the tables, the statements, and the cells.

Cookies have 64 bits and SQLite's numbers a sign: they are stored as the same bits. No file is opened here; that is
`finwait.agent.store`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, get_args

from finwait.agent.episodes import Cause, Episode, How, Instant, Other

__all__ = ["MIGRATIONS", "SELECT", "UPSERT", "VERSION", "episode_of", "signed", "storable", "values_of"]

_HOWS: Final = frozenset(get_args(How))

MIGRATIONS: Final[Sequence[str]] = (
    """
    CREATE TABLE series (
        id INTEGER PRIMARY KEY, rule TEXT NOT NULL, severity TEXT NOT NULL, workload TEXT NOT NULL,
        UNIQUE (rule, severity, workload)
    ) STRICT;
    CREATE TABLE episodes (
        id INTEGER PRIMARY KEY,
        boot TEXT NOT NULL, cookie INTEGER NOT NULL, state INTEGER NOT NULL, first_boot INTEGER NOT NULL,
        netns INTEGER NOT NULL, local TEXT NOT NULL, peer TEXT NOT NULL, words TEXT NOT NULL,
        first_wall INTEGER NOT NULL, last_boot INTEGER NOT NULL, last_wall INTEGER NOT NULL,
        latest INTEGER NOT NULL, earliest INTEGER NOT NULL, held INTEGER NOT NULL,
        series INTEGER NOT NULL REFERENCES series(id),
        confidence TEXT NOT NULL, whose TEXT NOT NULL, holder TEXT NOT NULL, pid INTEGER NOT NULL,
        started_ms INTEGER NOT NULL,
        other INTEGER NOT NULL, other_netns INTEGER NOT NULL, other_holder TEXT NOT NULL, translated TEXT,
        ended_boot INTEGER, ended_wall INTEGER, how TEXT,
        UNIQUE (boot, cookie, state, first_boot)
    ) STRICT;
    CREATE UNIQUE INDEX episodes_open ON episodes(boot, cookie, state) WHERE ended_wall IS NULL;
    CREATE INDEX episodes_ended ON episodes(ended_wall) WHERE ended_wall IS NOT NULL;
    CREATE TABLE minutes (
        at INTEGER NOT NULL, series INTEGER NOT NULL, open INTEGER NOT NULL, oldest_s INTEGER NOT NULL,
        PRIMARY KEY (at, series)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE quarters (
        at INTEGER NOT NULL, series INTEGER NOT NULL, open INTEGER NOT NULL, oldest_s INTEGER NOT NULL,
        PRIMARY KEY (at, series)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE marks (
        boot TEXT NOT NULL, series INTEGER NOT NULL, window INTEGER NOT NULL, at_s REAL NOT NULL,
        survivors INTEGER NOT NULL, arrived INTEGER NOT NULL, departed INTEGER NOT NULL,
        PRIMARY KEY (series, window, at_s)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE names (
        boot TEXT NOT NULL, netns INTEGER NOT NULL, names TEXT NOT NULL, PRIMARY KEY (boot, netns)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX episodes_open_first ON episodes(boot, first_boot) WHERE ended_wall IS NULL;
    """,
    """
    CREATE TABLE rehearsed (
        id INTEGER PRIMARY KEY, boot TEXT NOT NULL, boot_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL,
        policy TEXT NOT NULL, rule TEXT NOT NULL, finding TEXT NOT NULL, netns INTEGER NOT NULL, cookie TEXT NOT NULL,
        connection TEXT NOT NULL, workload TEXT NOT NULL, processes TEXT NOT NULL, means TEXT NOT NULL,
        cost TEXT NOT NULL
    ) STRICT;
    CREATE INDEX rehearsed_when ON rehearsed(wall_ns);
    """,
    """
    CREATE TABLE stories (id INTEGER PRIMARY KEY REFERENCES episodes(id), steps TEXT NOT NULL) STRICT;
    CREATE TRIGGER stories_gone AFTER DELETE ON episodes BEGIN DELETE FROM stories WHERE id = old.id; END;
    """,
    """
    ALTER TABLE episodes ADD COLUMN pod TEXT NOT NULL DEFAULT '';
    ALTER TABLE rehearsed ADD COLUMN pod TEXT NOT NULL DEFAULT '';
    """,
)
"""What makes a store of version k one of version k + 1."""
VERSION: Final = len(MIGRATIONS)

_COLUMNS: Final = (
    "boot, cookie, state, first_boot, netns, local, peer, words, first_wall, last_boot, last_wall, latest, earliest,"
    " held, series, confidence, whose, holder, pid, started_ms, other, other_netns, other_holder, translated,"
    " ended_boot, ended_wall, how, pod"
)
UPSERT: Final = (
    f"INSERT INTO episodes ({_COLUMNS}) VALUES ({','.join('?' * 28)})"  # noqa: S608 - constants
    " ON CONFLICT (boot, cookie, state, first_boot) DO UPDATE SET "
    + ", ".join(
        f"{name} = excluded.{name}"
        for name in _COLUMNS.replace(" ", "").split(",")
        if name not in ("boot", "cookie", "state", "first_boot")
    )
)
SELECT: Final = (
    f"SELECT {_COLUMNS}, s.rule, s.severity, s.workload FROM episodes e JOIN series s ON s.id = e.series"  # noqa: S608
)


def values_of(e: Episode, series: int) -> tuple[Any, ...]:
    """Return the cells of an episode's row."""
    cause, other = e.cause, e.other
    return (
        e.boot, signed(e.cookie), e.state, e.first.boot_ns, e.netns, e.local, e.peer, json.dumps(e.words),
        e.first.wall_ns, e.last.boot_ns, e.last.wall_ns, e.latest_ns, e.earliest_ns, int(e.held),
        series, cause.confidence, cause.whose, cause.holder,
        cause.pid, cause.started_ms, signed(other.cookie), other.netns, other.holder,
        None if other.translated is None else json.dumps(other.translated),
        None if e.ended is None else e.ended.boot_ns, None if e.ended is None else e.ended.wall_ns, e.how,
        cause.pod,
    )  # fmt: skip


def signed(number: int) -> int:
    """Return an unsigned number of 64 bits as SQLite stores it."""
    return number - (1 << 64) if number >= 1 << 63 else number


def storable(number: int) -> int:
    """Return a number as SQLite can compare it."""
    return max(-(1 << 63), min(number, (1 << 63) - 1))


def _unsigned(number: int) -> int:
    return number + (1 << 64) if number < 0 else number


def episode_of(row: Sequence[Any]) -> Episode:
    """Return the episode of a row of `SELECT`.

    Raises:
        ValueError: the row is none that was written here.
    """
    (boot, cookie, state, first_boot, netns, local, peer, words, first_wall, last_boot, last_wall, latest, earliest,
     held, _, confidence, workload_at, holder, pid, started_ms, other, other_netns, other_holder, translated,
     ended_boot, ended_wall, how, pod, rule, severity, workload) = row  # fmt: skip
    numbers = json.loads(words)
    behind = None if translated is None else json.loads(translated)
    if how is not None and how not in _HOWS:
        raise ValueError(f"an episode ended {how!r}")
    return Episode(
        boot=boot,
        cookie=_unsigned(cookie),
        state=state,
        netns=netns,
        local=local,
        peer=peer,
        first=Instant(first_boot, first_wall),
        last=Instant(last_boot, last_wall),
        latest_ns=latest,
        earliest_ns=earliest,
        held=bool(held),
        cause=Cause(rule, severity, confidence, workload_at, workload, holder, pid, started_ms, pod=pod),
        other=Other(
            _unsigned(other), other_netns, other_holder, None if behind is None else (behind[0], behind[1])
        ),
        ended=None if ended_wall is None else Instant(ended_boot, ended_wall),
        how=how,
        words=(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6]),
    )
