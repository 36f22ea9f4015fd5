"""The access log of a worker, written by a thread.

A log's descriptor may be a pipe that nobody reads, or a disk that hangs. ``write`` waits then, and O_NONBLOCK is no
way out: it belongs to the open file, which is the operator's terminal or pipe as well. So a thread waits, and the
loop that moves bytes only ever queues. The queue is bounded; what does not fit is dropped, counted and told. So are
lines that the kernel refuses, as on a full disk; one that was cut there ends with the next line feed.

Lines of several workers never mix: each write is of whole lines, to a file that was opened with O_APPEND.
"""

from __future__ import annotations

import errno
import os
import queue
import select
import threading
from typing import Final

from finwait.relay.notice import say

__all__ = ["AccessLog", "LostLines"]

MOST_WAITING: Final = 4 << 20
"""Bytes that may wait for a slow reader; some seconds of a busy relay."""


class LostLines:
    """How many lines were lost, of one log after another.

    Attributes:
        count: so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def add(self, lines: int) -> None:
        """Count some more; any thread may."""
        with self._lock:
            self.count += lines


class AccessLog:
    """A descriptor for lines, and the thread that writes them.

    Args:
        fd: becomes the log's own.
        lost: counts the lines that did not fit or that the kernel refused.
    """

    def __init__(self, fd: int, lost: LostLines) -> None:
        self.fd = fd
        self._lost = lost
        self._slow = False
        self._torn = False
        """Whether what was written last ends within a line."""
        self._refused = 0
        """The errno of the last write; what is refused for the same reason again is not said again."""
        self._waiting = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="access-log", daemon=True)
        self._thread.start()

    def write(self, lines: list[bytes]) -> None:
        """Queue whole lines; never waits."""
        data = b"".join(lines)
        with self._lock:
            fits = self._waiting + len(data) <= MOST_WAITING
            if fits:
                self._waiting += len(data)
        if fits:
            self._queue.put(data)
            return
        if not self._slow:
            self._slow = True
            say("the reader of the access log is too slow; lines are dropped")
        self._lost.add(len(lines))

    def close(self, seconds: float = 0.0) -> None:
        """Write what is queued, then close the descriptor; wait for that so long at most."""
        self._queue.put(None)
        if seconds:
            self._thread.join(seconds)

    def _work(self) -> None:
        while (data := self._queue.get()) is not None:
            remaining = memoryview(data)
            try:
                if self._torn:
                    self._write(memoryview(b"\n"))
                    self._torn = False
                while remaining:
                    remaining = remaining[self._write(remaining) :]
                self._refused = 0
            except OSError as error:  # a full disk must not end connections
                self._torn = self._torn or (
                    0 < len(remaining) < len(data) and data[-len(remaining) - 1] != 10
                )
                self._refuse(error, bytes(remaining).count(b"\n"))
            with self._lock:
                self._waiting -= len(data)
        os.close(self.fd)

    def _refuse(self, error: OSError, lines: int) -> None:
        self._lost.add(lines)
        if error.errno != self._refused:
            say(f"could not write the access log: {error.strerror}; lines are dropped")
        self._refused = error.errno or 0

    def _write(self, data: memoryview) -> int:
        """Write all with one call, where the kernel takes it so; return how much it took."""
        while True:
            try:
                return os.write(self.fd, data)
            except OSError as error:
                if error.errno != errno.EAGAIN:  # somebody else made it O_NONBLOCK
                    raise
                select.select([], [self.fd], [])
