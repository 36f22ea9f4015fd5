"""The access log of a worker, written by a thread.

A log's descriptor may be a pipe that nobody reads, or a disk that hangs. ``write`` waits then, and O_NONBLOCK is no
way out: it belongs to the open file, which is the operator's terminal or pipe as well. So a thread waits, and the
loop that moves bytes only ever queues. The queue is bounded; what does not fit is dropped, counted and told.

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

__all__ = ["AccessLog"]

MOST_WAITING: Final = 4 << 20
"""Bytes that may wait for a slow reader; some seconds of a busy relay."""


class AccessLog:
    """A descriptor for lines, and the thread that writes them.

    Args:
        fd: becomes the log's own.

    Attributes:
        dropped: lines that did not fit, so far.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.dropped = 0
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
        if not self.dropped:
            say("the access log's reader is too slow: lines are dropped")
        self.dropped += len(lines)

    def close(self, seconds: float = 0.0) -> None:
        """Write what is queued, then close the descriptor; wait for that so long at most."""
        self._queue.put(None)
        if seconds:
            self._thread.join(seconds)

    def _work(self) -> None:
        while (data := self._queue.get()) is not None:
            try:
                self._write(data)
            except OSError as error:  # a full disk must not end connections
                say(f"could not write the access log: {error.strerror}")
            with self._lock:
                self._waiting -= len(data)
        os.close(self.fd)

    def _write(self, data: bytes) -> None:
        """Write all; with one call where the kernel takes it so."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self.fd, left) :]
            except OSError as error:
                if error.errno != errno.EAGAIN:  # somebody else made it O_NONBLOCK
                    raise
                select.select([], [self.fd], [])
