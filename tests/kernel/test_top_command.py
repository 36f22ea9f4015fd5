"""`finwait top` on a real terminal: it draws, takes keys, follows a resize, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kernel.test_trace import instances, tracing_is_possible  # noqa: F401

pytest.importorskip("textual")
pytestmark = pytest.mark.kernel


class Terminal:
    def __init__(self, *command: str) -> None:
        self.main, other = pty.openpty()
        self.resize(24, 80)
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, start_new_session=True, close_fds=True,
            env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"},
        )  # fmt: skip
        os.close(other)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, text: bytes, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen[-3000:]
            if select.select([self.main], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.main, 1 << 16)
                except OSError:  # the other side is closed
                    assert text in self.seen, self.seen[-3000:]

    def key(self, text: str) -> None:
        self.seen = b""
        os.write(self.main, text.encode())

    def ended(self) -> int:
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self.main], [], [], 0.1)[0]:
                try:
                    os.read(self.main, 1 << 16)
                except OSError:
                    continue
        return self.process.returncode


@contextmanager
def top() -> Iterator[Terminal]:
    terminal = Terminal(sys.executable, "-m", "finwait", "top", "--refresh", "500ms")
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
            terminal.process.wait(10)
        os.close(terminal.main)


def test_a_session_on_a_terminal():
    with top() as terminal:
        terminal.until(b"ESTABLISHED")
        terminal.until(b"groups by state")
        terminal.key("g")
        terminal.until(b"groups by peer")
        terminal.resize(40, 120)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        terminal.key("?")
        terminal.until(b"TCP state diagram")
        terminal.key("x")
        terminal.key("q")
        assert terminal.ended() == 0
        assert not [n for n in instances() if n.startswith(f"finwait-{terminal.process.pid}-")]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_leaves_nothing_behind(number):
    with top() as terminal:
        terminal.until(b"groups by state")
        pid = terminal.process.pid
        assert [n for n in instances() if n.startswith(f"finwait-{pid}-")]
        os.kill(pid, number)
        terminal.ended()
        assert not [n for n in instances() if n.startswith(f"finwait-{pid}-")]


def test_without_a_terminal_it_says_what_to_use_instead():
    done = subprocess.run(
        [sys.executable, "-m", "finwait", "top"], capture_output=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1
    assert b"finwait trace" in done.stderr
