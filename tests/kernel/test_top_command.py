"""`finwait top` on a real terminal: it draws, takes keys, follows a resize, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from finwait import planning, session
from finwait.cli.top import Clear
from finwait.lab.topology import Lab
from tests.kernel.needs import missing
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
def top(*arguments: str) -> Iterator[Terminal]:
    terminal = Terminal(sys.executable, "-m", "finwait", "top", "--refresh", "500ms", *arguments)
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
        terminal.until(b"groups by cause")
        terminal.key("g")
        terminal.until(b"groups by process")
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
        terminal.until(b"groups by cause")
        pid = terminal.process.pid
        assert [n for n in instances() if n.startswith(f"finwait-{pid}-")]
        os.kill(pid, number)
        assert terminal.ended() == 128 + number
        assert not [n for n in instances() if n.startswith(f"finwait-{pid}-")]


@pytest.mark.parametrize("wait_s", [0.0, 0.2, 0.4])
def test_a_terminal_that_vanishes_without_a_signal_is_noticed_by_writing_to_it(wait_s):
    """Nobody answers, and what the view has to say at its end goes nowhere as well."""
    terminal = Terminal(sys.executable, "-m", "finwait", "top", "--refresh", "500ms")
    pid = terminal.process.pid
    try:
        terminal.until(b"groups by cause")
        assert [n for n in instances() if n.startswith(f"finwait-{pid}-")]
        terminal.resize(100, 300)
        os.kill(pid, signal.SIGWINCH)
        time.sleep(wait_s)
        os.close(terminal.main)
        assert terminal.process.wait(30) in (1, 128 + signal.SIGHUP)  # 1: it read before it wrote
        assert not [n for n in instances() if n.startswith(f"finwait-{pid}-")]
    finally:
        terminal.process.kill()
        terminal.process.wait(10)


def test_without_a_terminal_it_says_what_to_use_instead():
    done = subprocess.run(
        [sys.executable, "-m", "finwait", "top"], capture_output=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1
    assert b"finwait trace" in done.stderr


def test_a_recording_is_shown():
    path = "tests/captures/linux-6.18/relay-pair.finwait"
    with top("--from", path) as terminal:
        terminal.until(b"look 2 of 2")
        terminal.until(b"relay-pair [problem]")
        terminal.key("q")
        assert terminal.ended() == 0


def test_a_file_that_is_no_recording_is_told_before_the_screen_is_taken():
    with top("--from", "/etc/hostname") as terminal:
        assert terminal.ended() == 1


def test_marked_connections_are_cleared_by_the_plan_of_clear(tmp_path, monkeypatch):
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path))
    with Lab() as lab:
        here, there = lab.netns("here"), lab.netns("there")
        link = lab.link(here, there)
        listener = there.call(lambda: socket.create_server((link.b4, 0)))
        with listener:
            client = here.call(lambda: socket.create_connection(listener.getsockname()))
            server, _ = listener.accept()
            with client, server:
                client.shutdown(socket.SHUT_WR)
                keys: list[tuple[int, int]] = []
                deadline = time.monotonic() + 20
                while not keys:  # until our FIN was acknowledged
                    assert time.monotonic() < deadline
                    table = session.snapshot(only=frozenset({here.inode, there.inode})).sockets
                    mine = (
                        (table.netns == here.inode)
                        & (table.sport == client.getsockname()[1])
                        & (table.state == 5)
                    )
                    keys = list(zip(table.netns[mine].tolist(), table.cookie[mine].tolist(), strict=True))
                clearing = Clear(planning.limits(min_age_ms=0))
                # The test itself holds the socket, and finwait leaves its own process alone.
                text, ready = clearing.plan([*keys, (1, 2)])
                assert not ready
                assert "left alone" in text
                assert "1 of the marked are gone" in text
                assert clearing.act().startswith("nothing")


SCRIPT = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.shutdown(socket.SHUT_WR)
print(client.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_a_session_in_tmux_marks_plans_and_clears(tmp_path, stack):
    """As a person would: FILTER, group, mark, plan, agree, and see that it is gone."""
    tmux = shutil.which("tmux")
    if tmux is None:
        missing("tmux is not installed")
    lab = stack.enter_context(Lab())
    there = lab.netns("there")
    holder = there.call(
        lambda: subprocess.Popen(
            [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    )
    assert holder.stdin
    assert holder.stdout
    port = holder.stdout.readline().strip()
    born = time.monotonic()
    at = [tmux, "-f", "/dev/null", "-S", str(tmp_path / "tmux")]

    def screen() -> str:
        return subprocess.run([*at, "capture-pane", "-p"], capture_output=True, text=True, check=True).stdout

    def until(*texts: str) -> None:
        deadline = time.monotonic() + 60
        while not all(text in screen() for text in texts):
            assert time.monotonic() < deadline, screen()
            time.sleep(0.1)

    def keys(*names: str) -> None:
        subprocess.run([*at, "send-keys", *names], check=True)

    command = (
        f"FINWAIT_STATE_DIR={tmp_path} NO_COLOR=1 {sys.executable} -m finwait top --refresh 300ms"
        f" netns = {there.inode} sport = :{port} state fin-wait-2"
    )
    try:
        subprocess.run([*at, "new-session", "-d", "-x", "80", "-y", "24", command], check=True)
        until("groups by cause", "fin-wait2-held")
        subprocess.run([*at, "resize-window", "-x", "120", "-y", "40"], check=True)
        keys("Enter")
        until("127.0.0.1:" + port, "sorted by age")
        keys("m", "c")
        until("left alone ×1", "min-age", "Nothing to do")  # too young: the guard of `clear`
        keys("Escape")
        until("sorted by age", "1 marked")
        time.sleep(max(0.0, born + 11 - time.monotonic()))
        keys("c")
        until("fin [destructive]", "its FIN closes both ends", "`y` does this")
        keys("y")
        until("1 ended", "finwait journal")
        keys("Escape")
        until("0 of fin-wait2-held")
        assert "marked" not in screen()
        keys("q")
        deadline = time.monotonic() + 20
        while subprocess.run([*at, "has-session"], capture_output=True, check=False).returncode == 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        subprocess.run([*at, "kill-server"], capture_output=True, check=False)
        with holder:
            holder.stdin.close()


def test_a_terminal_that_is_killed_takes_the_view_and_its_trace_with_it(tmp_path):
    tmux = shutil.which("tmux")
    if tmux is None:
        missing("tmux is not installed")
    at = [tmux, "-f", "/dev/null", "-S", str(tmp_path / "tmux")]
    command = f"exec env NO_COLOR=1 COLUMNS=80 LINES=24 {sys.executable} -m finwait top --refresh 300ms"

    def ask(*words: str) -> str:
        return subprocess.run([*at, *words], capture_output=True, text=True, check=True).stdout

    def wait_for(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    try:
        ask("new-session", "-d", "-x", "80", "-y", "24", command)
        pid = int(ask("list-panes", "-F", "#{pane_pid}"))
        wait_for(lambda: "groups by cause" in ask("capture-pane", "-p"))
        assert [n for n in instances() if n.startswith(f"finwait-{pid}-")]
        ask("resize-window", "-x", "20", "-y", "4")  # too small for anything, and no reason to fall over
        ask("resize-window", "-x", "300", "-y", "100")
        wait_for(lambda: "quit" in (ask("capture-pane", "-p").splitlines()[99:] or [""])[0])
        ask("kill-session")
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
        assert not [n for n in instances() if n.startswith(f"finwait-{pid}-")]
    finally:
        subprocess.run([*at, "kill-server"], capture_output=True, check=False)
