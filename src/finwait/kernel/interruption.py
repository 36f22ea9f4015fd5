"""Interruption of what acts on the machine: a signal is noted, and the act ends at its next safe point.

A KeyboardInterrupt may come out of anything: of a ``finally`` that puts options back, of a commit, between two
setsockopt(2) calls. So while something acts (`noted`), SIGINT, SIGTERM and SIGHUP do no more than set a mark, the first
of them; the others are ignored. Whoever acts asks for the mark where it can stop (`check`, `interrupted`), and waits in
a way that the mark ends (`pause`). When all is put back, written down and told, `noted` raises KeyboardInterrupt, once.

The surprise: the mark is no `threading.Event`. Its lock is held for a moment also by who waits for it, and a handler
that runs in this moment, in the same thread, would wait for ever. It is an eventfd(2).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Final

__all__ = ["Stop", "check", "interrupted", "interruptible", "noted", "pause", "stop"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """A mark that a signal handler may set, and that any thread may wait for."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._set = False

    def set(self) -> None:
        """Set it, for good."""
        if not self._set:
            self._set = True
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, at most so long; return whether it is."""
        if not self._set and seconds > 0:
            poll = select.poll()  # select() takes no descriptor above 1023, and locks may need many
            poll.register(self._fd, select.POLLIN)
            poll.poll(seconds * 1000)
        return self._set

    def close(self) -> None:
        """Give its descriptor back; whether it is set is known for ever."""
        number, self._fd = self._fd, -1
        if number >= 0:
            os.close(number)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.close()


class _Section:
    """What acts now, if anything does. Signals belong to the process, so there is one."""

    stop: Stop | None = None


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Only note signals that end a process, until this ends; inside another one, or another thread, do nothing.

    A signal that is ignored (nohup(1)) stays so.

    Raises:
        KeyboardInterrupt: one came, and nothing else was raised but that the output is closed.
    """
    if _Section.stop is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    mark = _Section.stop = Stop()
    try:
        with _handled(mark):
            try:
                yield
            finally:
                mark.close()  # here, where no signal can come between
    except OSError:
        # The output is closed: Ctrl-C ends the reader of a pipeline, too. That it was interrupted is what counts.
        if not mark.is_set():
            raise
    finally:
        _Section.stop = None
    if mark.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(mark: Stop) -> Iterator[None]:
    def note(_number: int, _frame: FrameType | None) -> None:
        mark.set()

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: was for number, was in before.items() if was not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, note)
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let signals end the process as ever, inside `noted`: while somebody is asked, and nothing is done.

    Raises:
        KeyboardInterrupt: SIGINT came, here or before.
    """
    if _Section.stop is None:
        yield
        return
    check()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in handlers.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def stop() -> Stop:
    """Return the mark of what acts now; one of its own outside of `noted`, where a KeyboardInterrupt comes instead."""
    return _Section.stop or Stop()


def interrupted() -> bool:
    """Return whether a signal has come."""
    return _Section.stop is not None and _Section.stop.is_set()


def check() -> None:
    """Stop here, if a signal has come. To be called where nothing is half done, or what is will be put back.

    Raises:
        KeyboardInterrupt: one has.
    """
    if interrupted():
        raise KeyboardInterrupt


def pause(seconds: float) -> None:
    """Wait, but not longer than until a signal comes."""
    if _Section.stop is None:
        time.sleep(seconds)
    else:
        _Section.stop.wait(seconds)
