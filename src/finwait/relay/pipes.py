"""A small pool of pipes, which splice(2) needs in the middle.

A pipe is lent only while bytes move, so a thousand idle connections hold none. Pages of a pipe count against its
user's ``pipe-user-pages-soft``; beyond that limit the kernel makes pipes of two pages, through which copying is faster.
Such a pipe is not taken, and what nobody has needed for a while is closed.

The surprise: a pipe that still holds bytes must never be lent again, or another connection would get them.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

__all__ = ["PIPES", "PIPE_BYTES", "PIPE_REST", "Pipe", "Pipes"]

PIPE_BYTES: Final = 1 << 20
PIPES: Final = 64
"""Pipes at most; beyond, bulk is copied. Root aside, 64 of 1 MiB are what pipe-user-pages-soft allows."""
PIPE_REST: Final = 5.0
"""Seconds after which a pipe that was not needed is closed: it counts against its user's pipe-user-pages-soft."""

Pipe = tuple[int, int]
"""The end to read from, and the one to write to."""


class Pipes:
    """The pipes of one worker.

    Attributes:
        made: how many there are, lent ones included.
    """

    def __init__(self, now: float) -> None:
        self.made = 0
        self._free: list[Pipe] = []
        self._spare = 0
        """The fewest that lay here at once since `tend` looked."""
        self._tended = now

    def borrow(self) -> Pipe | None:
        """Lend an empty pipe; None when there is none to be had."""
        free = self._free
        if not free and (self.made >= PIPES or not self._make()):
            return None
        pipe = free.pop()
        self._spare = min(self._spare, len(free))
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take back a pipe, which must be empty."""
        self._free.append(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Take back a pipe that still holds bytes: it is closed, for nobody may get them."""
        self.made -= 1
        _close(pipe)

    def tend(self, now: float) -> None:
        """Close those that nobody has needed for a while. To be called now and then."""
        if now - self._tended < PIPE_REST:
            return
        for pipe in self._free[: self._spare]:
            self.discard(pipe)
        del self._free[: self._spare]
        self._spare = len(self._free)
        self._tended = now

    def close(self) -> None:
        """Close all that are not lent."""
        for pipe in self._free:
            self.discard(pipe)
        self._free.clear()

    def _make(self) -> bool:
        """Add a pipe; return whether one of a useful size was to be had."""
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        for size in (PIPE_BYTES, PIPE_BYTES // 4, PIPE_BYTES // 16):
            try:
                fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, size)
                break
            except OSError:  # EPERM: over pipe-user-pages-soft, or over pipe-max-size
                continue
        # Over the soft limit a new pipe has two pages only: copying is better than that.
        if fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ) < PIPE_BYTES // 16:
            _close(pipe)
            return False
        self._free.append(pipe)
        self.made += 1
        return True


def _close(pipe: Pipe) -> None:
    os.close(pipe[0])
    os.close(pipe[1])
