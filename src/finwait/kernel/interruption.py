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
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final, TypeAlias

from finwait.errors import FinwaitError

__all__ = [
    "Interruptions",
    "Stop",
    "check",
    "ends_when_interrupted",
    "interrupted",
    "interruptible",
    "noted",
    "over",
    "pause",
    "sealed",
    "stop",
    "stopped_by",
]

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


Handler: TypeAlias = Callable[[int, FrameType | None], None]


class Interruptions:
    """What an interruption means to this process. Its names are set in one step, which no signal can come into."""

    ends = False
    """It is over with the first."""
    over = False
    """That was."""


class _Section:
    """What acts now, if anything does. Signals belong to the process, so there is one."""

    stop: Stop | None = None
    lock: Final = threading.Lock()
    """Of `stopped_by`, which two threads may begin at once; never taken where a signal is handled."""


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

    def note(_number: int, _frame: FrameType | None) -> None:
        mark.set()
        Interruptions.over = Interruptions.ends

    try:
        with _handled(note):
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
def _handled(handle: Handler) -> Iterator[None]:
    """Give the signals that are not ignored to a handler, which must not raise once the block has ended.

    Where the process ends once it was interrupted (`ends_when_interrupted`), it was, by then: they do nothing any more.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        # In one step, or the next signal would meet some handlers of each kind.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, before)
        try:
            for number, handler in before.items():
                signal.signal(number, _nothing if Interruptions.over else handler)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal of a process that is ending already. Unlike SIG_IGN, started programs do not inherit it."""


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Handle Ctrl-C as Python does, until the process was interrupted."""
    if not Interruptions.over:
        raise KeyboardInterrupt


def ends_when_interrupted() -> None:
    """Let the first interruption of this process be its last: what is still to be written is not cut short.

    To be called where a process begins. Whoever deals with the KeyboardInterrupt first sets ``Interruptions.over`` and
    calls `over`.
    """
    Interruptions.over, Interruptions.ends = False, True
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def over() -> None:
    """Let no signal do anything from now on, in a process that `ends_when_interrupted`; an ignored one stays so."""
    if Interruptions.ends:
        Interruptions.over = True
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, _nothing)


def sealed() -> None:
    """Block signals until the process has ended. Python gives their handlers up before that, and they would end it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


@contextlib.contextmanager
def stopped_by(mark: Stop) -> Iterator[None]:
    """Act in this thread until somebody sets a mark: another thread, which has the signals.

    The act ends at its next safe point, as after a signal.

    Raises:
        KeyboardInterrupt: it was set before anything was done.
        FinwaitError: something acts already; nothing was done.
    """
    with _Section.lock:
        if _Section.stop is not None:
            raise FinwaitError("this process is already acting, and does one thing at a time")
        _Section.stop = mark
    try:
        check()
        yield
    finally:
        _Section.stop = None


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal end what is asked as Ctrl-C does, inside of `noted` and outside: nothing is done meanwhile.

    Raises:
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP came, here or, inside of `noted`, before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    check()
    asking, signalled = True, False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal signalled
        Interruptions.over = Interruptions.ends
        again, signalled = signalled, True
        if asking and not again:
            raise KeyboardInterrupt

    with _handled(end):
        try:
            yield
        finally:
            asking = False
    if signalled:  # behind the answer
        raise KeyboardInterrupt


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
