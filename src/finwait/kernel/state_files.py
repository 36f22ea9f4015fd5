"""Databases in the state directory: only what is ours alone is opened.

Whoever can write to such a file decides what we believe, or do. So all of it is looked at before anything is opened
or changed: the file, what SQLite keeps beside it, the directory, and each directory above in which somebody could put
another one in its place (see `finwait.files`). Nothing here opens the database.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from finwait import files
from finwait.errors import FileRefused

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ELSEWHERE", "check"]

ELSEWHERE = "set FINWAIT_STATE_DIR to a directory that only you can write; `mktemp -d` makes one"


def check(path: Path, label: str, *, make: bool, elsewhere: str = ELSEWHERE) -> bool:
    """Refuse what is not ours alone; return whether the file is there.

    Args:
        path: the database.
        label: what it is called in messages, ``the journal``.
        make: make what is missing, readable by us only.
        elsewhere: what to do where it is refused.

    Raises:
        FileRefused: somebody else may have written it, or could replace it.
        OSError: the kernel refused.
    """
    name = path.name
    try:
        where = files.folder(str(path.parent), make=make)
    except FileNotFoundError:
        return False
    with where as folder:
        if reason := folder.alone or folder.way:
            raise FileRefused(
                str(path), f"only you may be able to write {label}, but {reason}", hint=elsewhere
            )
        for beside in ("", "-wal", "-shm", "-journal"):
            _check_file(folder, name + beside, label, elsewhere)
        if folder.status(name) is not None:
            return True
        if not make:
            return False
        with contextlib.suppress(FileExistsError):  # another finwait was faster
            os.close(folder.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        return True


def _check_file(folder: files.Folder, name: str, label: str, elsewhere: str) -> None:
    status = folder.status(name)
    if status is None:
        return
    folder.check(name, status)
    path = folder.name_of(name)
    if status.st_uid not in (0, os.geteuid()):
        raise FileRefused(path, f"{label} belongs to another user", hint=elsewhere)
    if status.st_nlink != 1:
        raise FileRefused(path, f"{label} has {status.st_nlink} names (hard links)", hint=elsewhere)
    if status.st_mode & 0o022:
        raise FileRefused(
            path, f"others can write {label} (mode {status.st_mode & 0o7777:04o})", hint=elsewhere
        )
