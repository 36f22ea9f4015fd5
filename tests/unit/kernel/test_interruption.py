"""Signals that are noted: the first sets a mark, waits end, and a KeyboardInterrupt comes at the end, once."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from finwait.kernel import interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_noted_and_raised_at_the_end_once(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    reached = []

    @interruption.noted()
    def act() -> None:
        interruption.check()
        with interruption.noted():  # inside another one it does nothing
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)
        reached.append(interruption.interrupted())
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
        reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        act()
    assert reached == [True, True]
    assert not interruption.interrupted()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_another_error_is_not_hidden_by_an_interruption() -> None:
    @interruption.noted()
    def act() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        act()


def test_a_signal_ends_a_wait_also_that_of_another_thread() -> None:
    ended = threading.Event()

    def work(mark: interruption.Stop) -> None:
        mark.wait(60)
        ended.set()

    @interruption.noted()
    def act() -> None:
        thread = threading.Thread(target=work, args=(interruption.stop(),))
        thread.start()
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        interruption.pause(60)
        thread.join(30)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        act()
    assert ended.is_set()
    assert time.monotonic() - begun < 30


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.noted():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.interrupted()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_while_somebody_is_asked_ctrl_c_ends_it_at_once() -> None:
    reached = []

    @interruption.noted()
    def act() -> None:
        with interruption.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("after")

    with pytest.raises(KeyboardInterrupt):
        act()
    assert reached == []
