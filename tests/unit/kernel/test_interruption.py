"""Signals that are noted: the first sets a mark, waits end, and a KeyboardInterrupt comes at the end, once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_somebody_is_asked_outside_of_an_act_every_signal_is_ctrl_c(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt), interruption.interruptible():
        os.kill(os.getpid(), number)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_an_act_of_another_thread_is_stopped_by_a_mark_and_never_begun_after_it() -> None:
    mark, acting, told = interruption.Stop(), threading.Event(), []

    @interruption.noted()
    def act() -> None:
        acting.set()
        interruption.pause(60)
        told.append("reached")
        interruption.check()
        told.append("not reached")

    def work() -> None:
        try:
            with interruption.stopped_by(mark):
                act()
        except KeyboardInterrupt:
            told.append("stopped")

    thread = threading.Thread(target=work)
    thread.start()
    assert acting.wait(30)
    mark.set()
    thread.join(30)
    assert told == ["reached", "stopped"]
    work()
    assert told == ["reached", "stopped", "stopped"]
    assert not interruption.interrupted()


BURST = """
import os, signal, sys
import finwait.cli as cli
from finwait.kernel import interruption

def run(inside):
    with interruption.interruptible():
        os.kill(os.getpid(), signal.SIGTERM)

def begin(at):
    count, main, there = 0, cli._status.__code__, interruption.__file__
    begins = next(n for _, _, n in main.co_lines() if n and "interruption.over()" in lines[n - 1])
    def trace(frame, event, arg):
        nonlocal count
        here = (
            frame.f_code.co_filename == there
            or frame.f_code is main and frame.f_lineno >= begins
            or frame.f_code is cli.main.__code__
        )
        if interruption.Interruptions.over and here and event == "line":
            count += 1
            if count == at:
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    os.kill(os.getpid(), number)
        return trace
    sys.settrace(trace)
    return lambda: count

lines = open(cli.__file__).read().splitlines()
cli._parsed = lambda words: type("Args", (), {"run": staticmethod(asked)})()
asked = run if sys.argv[1] == "prompt" else interruption.noted()(run)
sys.argv[1:] = ["list"]
at = places = 0
while at <= places:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        reached = begin(at)
        status = cli.main()
        os.write(write, bytes([reached()]))
        os._exit(status)
    os.close(write)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    places = places or os.read(read, 1)[0]
    os.close(read)
    if code != 130:
        print(f"{at}: {code}")
    at += 1
print(at, "done")
"""


@pytest.mark.parametrize("where", ["prompt", "prompt of an act"])
def test_a_burst_of_signals_ends_with_130_wherever_the_others_come(where: str) -> None:
    """At each line from the first interruption to the end of `main`, three more signals come."""
    done = subprocess.run(
        [sys.executable, "-c", BURST, where], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stderr == ""
    assert re.fullmatch(r"\d+ done\n", done.stdout), done.stdout
    assert int(done.stdout.split()[0]) > 15  # so many places were tried


LATE = """
import os, signal, sys
import finwait.cli as cli
from finwait.errors import FinwaitError
from finwait.kernel.interruption import interruptible, noted

what = sys.argv[1]

class Late:
    kill, me, numbers = os.kill, os.getpid(), (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def __del__(self):
        for number in self.numbers:
            self.kill(self.me, number)

@noted()
def act(_):
    os.kill(os.getpid(), signal.SIGTERM)
    if what == "error":
        raise FinwaitError("the journal cannot be written")

def prompt(_):
    with interruptible():
        os.kill(os.getpid(), signal.SIGTERM)

run = prompt if what == "prompt" else act if what in ("act", "error") else lambda _: 128 + signal.SIGTERM
cli._parsed = lambda words: type("Args", (), {"run": staticmethod(run)})()
late = Late()
del sys.argv[1:]
sys.argv.append("list")
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("what", "status"), [("prompt", 130), ("act", 130), ("error", 130), ("top", 128 + signal.SIGTERM)]
)
def test_signals_while_the_interpreter_ends_do_not_replace_the_status(what: str, status: int) -> None:
    """What is left of a module is deleted when Python has given all signals back their default."""
    done = subprocess.run([sys.executable, "-c", LATE, what], capture_output=True, text=True, check=False)
    assert done.returncode == status
    said = "finwait: error: the journal cannot be written\n" if what == "error" else ""
    assert done.stderr == said
