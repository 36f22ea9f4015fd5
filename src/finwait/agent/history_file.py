"""The file of the history: where it is, whose, whether others read what was written, and which clock ages it.

What was measured: a connection that is open does not notice when its log is removed or its file overwritten; it goes on
writing, and nobody reads that. A second connection does. SQLite locks files by process (fcntl(2)), so the file must not
be opened and closed beside it: that would drop the locks.

A damaged file is found here; what becomes of it is decided in `finwait.agent.store`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from finwait import files
from finwait.agent.episode_values import Instant
from finwait.errors import KernelError
from finwait.kernel.journal import state_directory

__all__ = [
    "APPLICATION", "LOCK", "NO_FILE", "SteadyClock", "StoreError", "agent_runs", "errno_of", "file_at", "harm",
    "hint_of", "put_aside", "store_path", "whose",
]  # fmt: skip

LOCK: Final = "agent.lock"
"""The file beside the history that a running agent holds locked."""
APPLICATION: Final = 0x66776169
"""``application_id`` in the header of a history."""
_TABLES: Final = frozenset({"series", "episodes", "minutes", "quarters", "marks", "meta"})
_STEP_S: Final = 300.0
"""By more than this nobody corrects a clock that goes right."""
_PAUSE_MOST_S: Final = 2 * 86_400.0
"""While no agent ran so much may have passed."""
_TRUSTED_S: Final = 86_400.0


class StoreError(KernelError):
    """The history could not be opened or read; EINVAL where it never can be, as it is.

    Args:
        errno: what it comes to.
        doing: what could not be done.
        hint: what to do.
        reason: why, where it is not the kernel that says so.
    """

    def __init__(self, errno: int, doing: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(errno, doing, hint=hint)
        if reason:
            self.args = (f"could not {doing}: {reason}",)


def store_path(directory: str | None = None) -> Path:
    """Return where the history is kept: ``history.sqlite`` in the state directory.

    Args:
        directory: another directory.

    Raises:
        FinwaitError: nothing says where.
    """
    base = Path(directory) if directory else state_directory()
    return (base / "history.sqlite").absolute()


def agent_runs(directory: Path) -> bool | None:
    """Return whether an agent runs with a state directory; None where that cannot be told."""
    try:
        fd = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        return False
    finally:
        os.close(fd)


NO_FILE: Final = (0, 0)


def file_at(path: Path) -> tuple[int, int]:
    """Return device and inode of what is at a path; `NO_FILE` for nothing."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return NO_FILE
    return status.st_dev, status.st_ino


def put_aside(path: Path) -> Path:
    """Rename a damaged file, and what is beside it, to ``.corrupt-TIME``, and make an empty one; return where it is.

    Raises:
        OSError: the kernel refused.
        FileRefused: a link on the way belongs to somebody else.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    with files.folder(str(path.parent)) as folder:
        name = f"{path.name}.corrupt-{stamp}"
        k = 1
        while folder.status(name) is not None:
            name, k = f"{path.name}.corrupt-{stamp}.{k}", k + 1
        os.rename(path.name, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
        for beside in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(path.name + beside, name + beside, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
        os.close(folder.open(path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    return path.with_name(name)


def whose(db: sqlite3.Connection) -> Literal["own", "empty", "foreign"]:
    """Return whose a database is.

    Raises:
        sqlite3.DatabaseError: it cannot be read.
    """
    (application,), (version,) = (
        db.execute("PRAGMA application_id").fetchone(),
        db.execute("PRAGMA user_version").fetchone(),
    )
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    if application == APPLICATION or (application == 0 and version > 0 and names >= _TABLES):
        return "own"  # the first ones had no application_id
    return "foreign" if application or version or names else "empty"


def errno_of(error: sqlite3.Error) -> int:
    """Return the errno that says what SQLite's error says."""
    code = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
    return {
        sqlite3.SQLITE_FULL: errno.ENOSPC,
        sqlite3.SQLITE_READONLY: errno.EROFS,
        sqlite3.SQLITE_PERM: errno.EACCES,
        sqlite3.SQLITE_BUSY: errno.EBUSY,
        sqlite3.SQLITE_LOCKED: errno.EBUSY,
    }.get(code, errno.EIO)


def hint_of(error: BaseException) -> str:
    """Return what to do about an error of SQLite's or the kernel's; empty where nothing is known."""
    if isinstance(error, sqlite3.Error):
        code = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
        damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        return "`finwait agent` moves a damaged history aside, and begins a new one" if damaged else ""
    read_only = isinstance(error, OSError) and error.errno == errno.EROFS
    return "the file system is mounted read-only: name another `--state-dir`" if read_only else ""


def harm(path: Path, own: sqlite3.Connection, *, whole: bool) -> str:
    """Return why others do not read what is written; empty where they do.

    Args:
        path: of the file.
        own: the connection that writes; it is in no transaction.
        whole: whether to read all of the file.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)) as db:
            db.execute("PRAGMA trusted_schema=OFF")
            if _newest(db) != _newest(own):
                return "others do not read what was written"
            verdict = str(db.execute("PRAGMA quick_check(1)").fetchone()[0]) if whole else "ok"
    except sqlite3.Error as error:
        return str(error) if _is_damage(error, path) else ""
    return "" if verdict == "ok" else verdict


def _is_damage(error: sqlite3.Error, path: Path) -> bool:
    """Return whether it is the file that is wrong; that too many are open, or no memory is left, passes."""
    code = getattr(error, "sqlite_errorcode", 0) or 0
    if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return True  # the last: a table is not there
    return code == sqlite3.SQLITE_IOERR_SHORT_READ or not os.path.exists(f"{path}-wal")


def _newest(db: sqlite3.Connection) -> tuple[object, ...]:
    round_ = db.execute("SELECT value FROM meta WHERE name = 'round'").fetchone()
    return (round_, *db.execute("SELECT max(id), count(*) FROM series").fetchone())


class SteadyClock(Struct):
    """For how long the wall clock has gone as the clock that nobody sets.

    By a wall clock that was set wrong for an hour nothing may be thrown away. It is trusted when it has not been set
    for a day of looking; while nobody looked, it may have gone on by two days.
    """

    wall_s: float
    """When it was seen last."""
    steady_s: float = 0.0
    boot_s: float | None = None
    """The same on CLOCK_BOOTTIME; None where that was before this start."""

    def see(self, now: Instant) -> bool:
        """Return whether it is trusted."""
        wall_s, boot_s = now.wall_ns / 1e9, now.boot_ns / 1e9
        passed = wall_s - self.wall_s
        if self.boot_s is None:
            if not -_STEP_S <= passed <= _PAUSE_MOST_S:
                self.steady_s = 0.0
        elif abs(passed - (boot_s - self.boot_s)) > _STEP_S:
            self.steady_s = 0.0
        else:
            self.steady_s = min(_TRUSTED_S, self.steady_s + boot_s - self.boot_s)
        self.wall_s, self.boot_s = wall_s, boot_s
        return self.steady_s >= _TRUSTED_S
