"""The file of the access log: made while we are root, opened as the user who writes it.

Root makes only a new file, by no link, and only where the user could not. Whatever else there is about the log is done
as that user: in a directory of his own he may have put anything.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from finwait import files
from finwait.errors import FileRefused, KernelError
from finwait.relay.config.model import ConfigError
from finwait.relay.privileges import user_entry

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LogFile"]

_STDOUT: Final = ("-", "/dev/stdout")
"""Names of an access log that is standard output."""


class LogFile:
    """The access log.

    Attributes:
        fd: the open file; -1 without one.
    """

    def __init__(self) -> None:
        self.fd = -1

    def make(self, path: str, user: str) -> None:
        """Make it for a user, where that user could not.

        Raises:
            ConfigError: a link, or something else, is in its place.
            KernelError: the kernel refused.
        """
        if not (user and os.geteuid() == 0 and path not in ("", *_STDOUT)):
            return
        entry = user_entry(user)
        above, name = os.path.split(path)
        with _explained(path, user), files.folder(above) as folder:
            if folder.status(name) is None and os.fstat(folder.fd).st_uid != entry.pw_uid:
                fd = folder.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                try:
                    os.fchmod(fd, 0o640)
                    os.fchown(fd, entry.pw_uid, entry.pw_gid)
                finally:
                    os.close(fd)

    def open(self, path: str, user: str) -> None:
        """Open it, anew if it is open; an empty path leaves everything as it is.

        Raises:
            ConfigError: a link, or something else, is in its place.
            KernelError: the kernel refused.
        """
        if not path:
            return
        with _explained(path, user):
            fd = os.dup(1) if path in _STDOUT else files.append_to(path, 0o640)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = fd


@contextlib.contextmanager
def _explained(path: str, user: str) -> Iterator[None]:
    try:
        yield
    except FileRefused as error:
        raise ConfigError(f"the access log {error}", hint=error.hint) from None
    except OSError as error:
        subject = f"`{user}`" if user else "this user"
        raise KernelError(
            error.errno or 0, f"open the access log `{path}`", hint=f"may {subject} write there?"
        ) from None
