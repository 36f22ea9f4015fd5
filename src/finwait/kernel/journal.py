"""The journal: every act on the machine, written to disk before it is done.

An SQLite file under the state directory (``/var/lib/finwait`` for root, ``$XDG_STATE_HOME/finwait`` for
others, or ``$FINWAIT_STATE_DIR``). An act is one row: when, who, with which command line, what it is done
to, how that was before, how it shall be, and, once it is over, what came of it. The row is committed with an
fsync before the act begins, so a crash at any moment leaves either no act or an act that can be told and
taken back: a row without a result whose process has gone is *incomplete*.

If the row cannot be written, because the disk is full or the directory is read-only, the act is not done.

Whoever can write to the journal decides what is put back. So it must be ours alone: the file, what SQLite keeps beside
it, the directory, and each directory above in which somebody could put another one in its place. All of that is looked
at before anything is opened or changed (see `finwait.files`).

The kinds of acts and their fields are the caller's; this module stores JSON. The one surprise: a write-ahead
log with ``synchronous=FULL``, since the usual ``NORMAL`` would lose the last commits with the power.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import sqlite3
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec
from msgspec import Struct

from finwait.errors import FinwaitError, KernelError, PermissionNeeded
from finwait.kernel import state_files
from finwait.kernel.boot import boot_id
from finwait.kernel.interruption import noted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

__all__ = ["JournalEntry", "SqliteJournal", "Taken", "opened", "state_directory", "unfinished"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS acts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    started_ns INTEGER NOT NULL,
    finished_ns INTEGER,
    uid INTEGER NOT NULL,
    user TEXT NOT NULL,
    command TEXT NOT NULL,
    pid INTEGER NOT NULL,
    pid_start INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    target TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    why TEXT NOT NULL,
    undoes INTEGER REFERENCES acts(id),
    result TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS acts_open ON acts(id) WHERE finished_ns IS NULL;
CREATE INDEX IF NOT EXISTS acts_undoes ON acts(undoes) WHERE undoes IS NOT NULL;
"""
_VERSION = 1
_POLICY = "policy "
"""What the user of an act begins with that a policy decided; no login name has a space."""
_NO_RESULT = (
    "the journal does not have the results; `finwait undo --incomplete` finds out what became of each act"
)
_COLUMNS = (
    "id, kind, started_ns, finished_ns, uid, user, command, pid, pid_start, boot_id, target,"
    " before, after, why,"
    " undoes, result, (SELECT max(u.id) FROM acts u WHERE u.undoes = acts.id AND u.finished_ns IS NOT NULL"
    " AND json_extract(u.result, '$.error') IS NULL)"
)


class _ActLike(Protocol):
    """What is asked of an act: `finwait.remedy.journal.Act` has it."""

    @property
    def kind(self) -> str: ...
    @property
    def target(self) -> Mapping[str, Any]: ...
    @property
    def before(self) -> Mapping[str, Any]: ...
    @property
    def after(self) -> Mapping[str, Any]: ...
    @property
    def why(self) -> str: ...
    @property
    def undoes(self) -> int | None: ...
    @property
    def decided_by(self) -> str: ...


class Taken(Struct, frozen=True):
    """An act without a result that has a socket, so that no other may change its options."""

    act_id: int
    pid: int
    why: str
    running: bool
    """Whether its process is still at it; if not, it was cut short, and may have left the options changed."""

    def __str__(self) -> str:
        if self.running:
            return f"act {self.act_id} ({self.why}, pid {self.pid}) is under way on it"
        return (
            f"act {self.act_id} ({self.why}) was interrupted on it; "
            f"`finwait undo {self.act_id}` restores its options"
        )


class JournalEntry(Struct, frozen=True):
    """An act as it was written down."""

    id: int
    kind: str
    started_ns: int
    """When, in nanoseconds since 1970 UTC."""
    finished_ns: int | None
    uid: int
    user: str
    """Who: the login name, for sudo ``name via root``, and ``policy NAME`` where the agent's policy decided."""
    command: tuple[str, ...]
    pid: int
    pid_start: int
    """The process's start time in clock ticks since boot: with the pid and the boot it names one process."""
    boot_id: str
    target: Mapping[str, Any]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    why: str
    undoes: int | None
    result: Mapping[str, Any] | None
    undone_by: int | None


def state_directory() -> Path:
    """Return where finwait keeps its state: ``$FINWAIT_STATE_DIR``, else by the user.

    Raises:
        FinwaitError: the user has no home directory, and nothing else says where.
    """
    named = os.environ.get("FINWAIT_STATE_DIR")
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/finwait")
    base = os.environ.get("XDG_STATE_HOME")
    if base and base.startswith("/"):
        return Path(base) / "finwait"
    home = os.environ.get("HOME") or _home_of(os.geteuid())
    if not home.startswith("/"):
        error = FinwaitError(
            f"no place to keep the journal: HOME is {f'`{home}`' if home else 'not set'}, and the user database "
            f"has no home directory for user {os.geteuid()}"
        )
        error.hint = "set FINWAIT_STATE_DIR to a directory of your own"
        raise error
    return Path(home) / ".local/state/finwait"


def _home_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return ""


def _start_of(pid: int) -> int:
    """Return when a process started, in ticks since boot; 0 where that cannot be read, or it has ended.

    One that has ended stays listed until its parent asks for its status, as a zombie.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return 0 if fields[0] in ("Z", "X", "x") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def _user(uid: int) -> str:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    before = os.environ.get("SUDO_USER")
    return f"{before} via {name}" if before and before != name else name


def _dump(value: Mapping[str, Any]) -> str:
    return msgspec.json.encode(value).decode("utf-8")


class SqliteJournal:
    """The journal in a file. Use it as a context manager, or `close` it. One object, one thread."""

    def __init__(self, path: Path | None = None, *, read_only: bool = False) -> None:
        """Open the journal, and make it if it is not there.

        Args:
            path: the file; None for ``journal.sqlite`` in the state directory.
            read_only: only look; a journal that is not there is then an error.

        Raises:
            KernelError: it cannot be opened or is not a journal of this version.
        """
        self.path = (path if path is not None else state_directory() / "journal.sqlite").absolute()
        self._read_only = read_only
        self._db: sqlite3.Connection | None = None
        with self._errors("open"):
            self._check_files()
            if read_only:
                self._db = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, timeout=10)
            else:
                self._db = sqlite3.connect(self.path, timeout=10, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise

    def _check_files(self) -> None:
        """Refuse what is not ours alone; make what is missing, readable by us only."""
        if not state_files.check(self.path, "the journal", make=not self._read_only):
            raise self._nothing_yet()

    def _nothing_yet(self) -> KernelError:
        action = f"open the journal `{self.path}`"
        return KernelError(errno.ENOENT, action, hint="no act has been recorded yet")

    @property
    def _base(self) -> sqlite3.Connection:
        assert self._db is not None, "the journal was closed"
        return self._db

    def _prepare(self) -> None:
        db = self._base
        db.execute("PRAGMA trusted_schema=OFF")
        if not self._read_only:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and self._read_only:
            raise self._nothing_yet()
        if version == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise KernelError(
                errno.EINVAL,
                f"use the journal `{self.path}` of version {version}",
                hint="a newer finwait wrote it; use that version, or move the file away",
            )
        if not self._read_only:
            self.path.chmod(0o600)  # it is ours, and a journal; nobody else can put anything at its place

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._db is not None:
            self._base.close()
            self._db = None

    @contextlib.contextmanager
    def _errors(self, doing: str, state: str = "nothing was done") -> Iterator[None]:
        action = f"{doing} the journal `{self.path}`"
        try:
            yield
        except PermissionError as error:
            raise PermissionNeeded(
                error.errno or errno.EACCES, action, "write access to its directory"
            ) from error
        except OSError as error:
            number = error.errno or errno.EIO
            raise KernelError(number, action, hint=f"{state}; {self._way_out(number, '')}") from error
        except sqlite3.Error as error:
            number = _errno_of(error)
            if number == errno.EIO and self._full():  # sqlite calls ENOSPC in its shared memory an I/O error
                number = errno.ENOSPC
            raise KernelError(number, action, hint=f"{state}; {self._way_out(number, str(error))}") from error

    def _full(self) -> bool:
        try:
            return os.statvfs(self.path.parent).f_bavail == 0
        except OSError:
            return False

    def _way_out(self, number: int, message: str) -> str:
        if number == errno.ENOSPC:
            return f"free space under `{self.path.parent}`, or set FINWAIT_STATE_DIR"
        if number in (errno.EROFS, errno.EACCES):
            return "set FINWAIT_STATE_DIR to a directory that can be written"
        return f"sqlite said: {message}" if message else "set FINWAIT_STATE_DIR to another directory"

    def record(self, act: _ActLike) -> int:
        """Write an act down before it is done; it is on the disk when this returns.

        Returns:
            The act's id, for `complete`.

        Raises:
            KernelError: it could not be written; the act must not be done. ENOSPC is a full disk.
        """
        return self.record_many((act,))[0]

    def record_many(self, acts: Sequence[_ActLike]) -> list[int]:
        """Write many acts down in one transaction, as `record` does one; all of them, or none.

        Raises:
            KernelError: they could not be written.
        """
        with self._transaction("write"):
            return self._insert(acts)

    def _insert(self, acts: Sequence[_ActLike]) -> list[int]:
        uid = os.getuid()
        pid = os.getpid()
        argv = [
            word.encode(errors="backslashreplace").decode() for word in sys.argv
        ]  # names need not be UTF-8
        user = _user(uid)
        shared = (json.dumps(argv, ensure_ascii=False), pid, _start_of(pid), boot_id())
        now = time.time_ns()
        rows = [
            (
                act.kind,
                now,
                uid,
                f"{_POLICY}{act.decided_by}" if act.decided_by else user,
                *shared,
                _dump(act.target),
                _dump(act.before),
                _dump(act.after),
                act.why,
                act.undoes,
            )
            for act in acts
        ]
        self._base.executemany(
            "INSERT INTO acts (kind, started_ns, uid, user, command, pid, pid_start, boot_id,"
            " target, before, after, why, undoes) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            rows,
        )
        # AUTOINCREMENT under the write lock: the rows just inserted have consecutive ids.
        last = self._base.execute("SELECT coalesce(max(id), 0) FROM acts").fetchone()[0]
        return list(range(last - len(rows) + 1, last + 1))

    @contextlib.contextmanager
    def _transaction(self, doing: str, state: str = "nothing was done") -> Iterator[None]:
        with self._errors(doing, state):
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise

    def claim_many(self, acts: Sequence[_ActLike], *, besides: int | None = None) -> list[int | Taken]:
        """Write acts on options of sockets down, as `record_many` does, each only if its socket is free.

        A socket is taken while another act of that kind on it has no result: by a process that is still at it, or by
        one that was cut short and may have left its options changed. The claim ends with the act's result.

        Args:
            acts: one a socket.
            besides: the act that is taken back here, which is no obstacle; neither are those that began to take it
                back and were cut short, as this finishes them.

        Returns:
            For each act its id, or what has taken its socket; then it is not written down.

        Raises:
            KernelError: they could not be written.
        """
        claims: list[int | Taken] = []
        free: list[_ActLike] = []
        with self._transaction("write"):
            taken = self._taken(besides)
            for act in acts:
                holder = taken.get(_socket_of(act.target))
                if holder is None:
                    free.append(act)
                claims.append(holder or 0)
            ids = iter(self._insert(free))
        return [next(ids) if claim == 0 else claim for claim in claims]

    def _taken(self, besides: int | None) -> dict[tuple[str, str], Taken]:
        rows = self._base.execute(
            f"SELECT {_COLUMNS} FROM acts WHERE finished_ns IS NULL AND kind = 'sockopt'"  # noqa: S608 - constants
            " AND boot_id = ? AND id IS NOT ?",
            (boot_id(), besides),
        ).fetchall()
        taken = {}
        for row in rows:
            try:
                entry = _entry(row)
            except (
                ValueError,
                TypeError,
                RecursionError,
            ):  # damaged: `entries` says so, and no socket is known
                continue
            running = self.is_running(entry)
            if besides is not None and entry.undoes == besides and not running:
                continue
            taken[_socket_of(entry.target)] = Taken(entry.id, entry.pid, entry.why, running)
        return taken

    def complete(self, act_id: int, result: Mapping[str, Any]) -> None:
        """Write down what came of an act. A key ``error`` in the result says that it failed.

        Raises:
            ValueError: there is no such act, or it is complete already.
            KernelError: it could not be written; the act then stays incomplete.
        """
        self.complete_many({act_id: result})

    def complete_many(self, results: Mapping[int, Mapping[str, Any]]) -> None:
        """Write down what came of many acts, in one transaction.

        Raises:
            ValueError: one of them is not there or complete already; nothing was written then.
            KernelError: it could not be written.
        """
        with self._transaction("write", _NO_RESULT):
            now = time.time_ns()
            changed = self._base.executemany(
                "UPDATE acts SET finished_ns = ?, result = ? WHERE id = ? AND finished_ns IS NULL",
                [(now, _dump(result), act_id) for act_id, result in results.items()],
            )
            _all_open(changed.rowcount, list(results))

    def get(self, act_id: int) -> JournalEntry:
        """Return one act.

        Raises:
            ValueError: there is no such act.
            KernelError: the file cannot be read.
        """
        entries = self._select("WHERE id = ?", (act_id,))
        if not entries:
            raise ValueError(f"the journal has no act {act_id}")
        return entries[0]

    def entries(self, *, kind: str | None = None, limit: int = 100) -> list[JournalEntry]:
        """Return the latest acts, the newest first."""
        where = "WHERE kind = ? " if kind is not None else ""
        values: tuple[object, ...] = (kind, limit) if kind is not None else (limit,)
        return self._select(f"{where}ORDER BY id DESC LIMIT ?", values)

    def of_policies(self, limit: int) -> list[JournalEntry]:
        """Return the latest acts that a policy decided, the newest first."""
        return self._select("WHERE substr(user, 1, 7) = ? ORDER BY id DESC LIMIT ?", (_POLICY, limit))

    def incomplete(self) -> list[JournalEntry]:
        """Return the acts that were begun and never ended: without a result, and their process is gone."""
        open_ = self._select("WHERE finished_ns IS NULL ORDER BY id", ())
        return [entry for entry in open_ if not self.is_running(entry)]

    def open_undos(self, act_id: int) -> list[JournalEntry]:
        """Return the acts that began to take an act back and have no result; some may be under way."""
        return self._select("WHERE finished_ns IS NULL AND undoes = ? ORDER BY id", (act_id,))

    def left_open(self) -> int:
        """Return how many acts of this process have no result."""
        unfinished = self._select("WHERE finished_ns IS NULL AND pid = ?", (os.getpid(),))
        return sum(map(self.is_running, unfinished))

    def is_running(self, entry: JournalEntry) -> bool:
        """Return whether the process that did an act is there still."""
        return entry.boot_id == boot_id() and entry.pid_start != 0 and _start_of(entry.pid) == entry.pid_start

    def _select(self, tail: str, values: tuple[object, ...]) -> list[JournalEntry]:
        with self._errors("read"):
            rows = self._base.execute(f"SELECT {_COLUMNS} FROM acts {tail}", values).fetchall()  # noqa: S608 - constants
        entries = []
        for row in rows:
            try:
                entries.append(_entry(row))
            except (ValueError, TypeError, RecursionError) as error:
                raise KernelError(
                    errno.EINVAL,
                    f"read act {row[0]} of the journal `{self.path}`",
                    hint=f"it is damaged ({error}); move the file away to start a new one",
                ) from None
        return entries


def _socket_of(target: Mapping[str, Any]) -> tuple[str, str]:
    """Return namespace and cookie of an act's target: what names one socket on this boot, whatever is written there."""
    return str(target.get("netns")), str(target.get("cookie"))


def _all_open(changed: int, ids: list[int]) -> None:
    if changed != len(ids):
        shown = ", ".join(map(str, ids[:5]))
        raise ValueError(
            f"the journal has no open act {shown}" if len(ids) == 1 else f"not all open: {shown}, …"
        )


def _entry(row: tuple[Any, ...]) -> JournalEntry:
    (number, kind, started, finished, uid, user, command, pid, pid_start, boot, *rest) = row
    target, before, after, why, undoes, result, undone_by = rest
    return JournalEntry(
        id=number,
        kind=kind,
        started_ns=started,
        finished_ns=finished,
        uid=uid,
        user=user,
        command=_texts(json.loads(command)),
        pid=pid,
        pid_start=pid_start,
        boot_id=boot,
        target=_mapping(target),
        before=_mapping(before),
        after=_mapping(after),
        why=why,
        undoes=undoes,
        result=_mapping(result) if result is not None else None,
        undone_by=undone_by,
    )


def _mapping(text: str) -> Mapping[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} where an object belongs")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"a {type(value).__name__} where a list belongs")
    return tuple(map(str, value))


def _errno_of(error: sqlite3.Error) -> int:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return {
        sqlite3.SQLITE_FULL: errno.ENOSPC,
        sqlite3.SQLITE_READONLY: errno.EROFS,
        sqlite3.SQLITE_CANTOPEN: errno.EACCES,
        sqlite3.SQLITE_PERM: errno.EACCES,
        sqlite3.SQLITE_BUSY: errno.EBUSY,
        sqlite3.SQLITE_LOCKED: errno.EBUSY,
        sqlite3.SQLITE_NOTADB: errno.EINVAL,
        sqlite3.SQLITE_CORRUPT: errno.EINVAL,
    }.get(code, errno.EIO)


@contextlib.contextmanager
def opened() -> Iterator[SqliteJournal]:
    """Open the journal for acting; what is done inside stops tidily at a signal, see `finwait.kernel.interruption`.

    Say inside of it what was done: when it ends, an interruption goes on as KeyboardInterrupt.
    """
    with noted(), SqliteJournal() as journal:
        try:
            yield journal
        finally:
            if sys.stdout is not None:
                with contextlib.suppress(OSError, ValueError):  # who writes next finds it again
                    sys.stdout.flush()


def unfinished() -> list[JournalEntry]:
    """Return the acts that were interrupted; none where the journal cannot be read, which the next act will say."""
    try:
        if not (state_directory() / "journal.sqlite").exists():
            return []
        with SqliteJournal(read_only=True) as journal:
            return journal.incomplete()
    except (FinwaitError, OSError):
        return []
