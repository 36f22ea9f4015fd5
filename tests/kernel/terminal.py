"""A program on a pseudo-terminal: what it writes is read, keys are typed, and how it ends is seen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

__all__ = ["Terminal"]


class Terminal:
    """A terminal of its own with a program on it."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.main, other = pty.openpty()
        self.resize(24, 80)
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, start_new_session=True, close_fds=True,
            env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"} | environment,
        )  # fmt: skip
        os.close(other)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, *texts: bytes, seconds: float = 60) -> None:
        """Read until one of some texts is there."""
        deadline = time.monotonic() + seconds
        while not any(text in self.seen for text in texts):
            assert time.monotonic() < deadline, self.seen[-3000:]
            if select.select([self.main], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.main, 1 << 16)
                except OSError:  # the other side is closed
                    assert any(text in self.seen for text in texts), self.seen[-3000:]

    def key(self, text: str) -> None:
        self.seen = b""
        os.write(self.main, text.encode())

    def ended(self) -> int:
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self.main], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.main, 1 << 16)
                except OSError:
                    continue
        while select.select([self.main], [], [], 0)[0]:
            try:
                self.seen += os.read(self.main, 1 << 16)
            except OSError:
                break
        return self.process.returncode

    def close(self) -> None:
        """End the program, if it has not, and the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self.main)
