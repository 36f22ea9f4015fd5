"""Paths of Unix sockets that we bound, and of nothing else.

A path is removed at the end only while it is still the socket that was bound there: by then somebody else may have
put a socket of their own in its place.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from finwait import files
from finwait.errors import FinwaitError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from finwait.relay.listeners import Bound

__all__ = ["OwnPaths"]


class OwnPaths:
    """Paths with device and inode of what we bound there."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}

    def note(self, path: str) -> None:
        """Note a path that has just been bound, or was handed over."""
        try:
            status = os.lstat(path)
        except OSError:
            self._known[path] = 0, 0
        else:
            self._known[path] = status.st_dev, status.st_ino

    def note_listeners(self, bound: Iterable[Bound]) -> None:
        """Note the paths of listeners that are not noted yet."""
        for path in _paths(bound):
            if path not in self._known:
                self.note(path)

    def remove(self, path: str) -> None:
        """Remove a path, if it was noted and is what it was."""
        known = self._known.pop(path, None)
        if known:
            with contextlib.suppress(OSError, FinwaitError):
                files.remove(path, known)

    def remove_listeners(self, bound: Iterable[Bound]) -> None:
        """Remove the paths of listeners, while they are open and so known to be ours."""
        for path in _paths(bound):
            self.remove(path)


def _paths(bound: Iterable[Bound]) -> list[str]:
    """Return the paths of listening sockets that are open and that we have bound ourselves."""
    names = [
        sock.getsockname()
        for listener in bound
        if not listener.key.startswith("fd:")
        for sock in listener.sockets
        if sock.fileno() >= 0 and sock.family == socket.AF_UNIX
    ]
    return [name for name in names if isinstance(name, str) and name]
