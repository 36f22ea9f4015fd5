"""`finwait top` on a real terminal: it draws, takes keys, follows a resize, and leaves nothing behind."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from finwait import planning, session
from finwait.cli.top import Clear
from finwait.kernel.journal import SqliteJournal
from finwait.lab.topology import Lab
from tests.kernel.needs import missing
from tests.kernel.terminal import Terminal
from tests.kernel.test_trace import instances, tracing_is_possible  # noqa: F401

pytest.importorskip("textual")
pytestmark = pytest.mark.kernel
DIAGNOSED = b" groups by cause", b" 1 group by cause"
"""One of these is in the status line once there is a diagnosis."""


@contextmanager
def top(*arguments: str) -> Iterator[Terminal]:
    terminal = Terminal(sys.executable, "-m", "finwait", "top", "--refresh", "500ms", *arguments)
    try:
        yield terminal
    finally:
        terminal.close()


def test_a_session_on_a_terminal():
    with top() as terminal:
        terminal.until(b"ESTABLISHED")
        terminal.until(*DIAGNOSED)
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
        terminal.until(*DIAGNOSED)
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
        terminal.until(*DIAGNOSED)
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
        terminal.until(b"relay-pair")
        terminal.key("q")
        assert terminal.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTSTP])
def test_a_view_that_was_stopped_and_goes_on_leaves_the_terminal_as_it_was(number):
    main, other = pty.openpty()
    before = termios.tcgetattr(main)
    os.close(main)
    os.close(other)
    with top("--from", "tests/captures/linux-6.18/relay-pair.finwait") as terminal:
        pid = terminal.process.pid
        terminal.until(b"look 2 of 2")
        assert termios.tcgetattr(terminal.main) != before
        os.kill(pid, number)
        deadline = time.monotonic() + 30
        while Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        terminal.seen = b""
        os.kill(pid, signal.SIGCONT)
        terminal.until(b"look 2 of 2")
        terminal.key("q")
        assert terminal.ended() == 0
        assert b"Warning" not in terminal.seen
        assert termios.tcgetattr(terminal.main) == before


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
                text, act = clearing.plan([*keys, (1, 2)])
                assert act is None
                assert "left alone" in text
                assert "1 of the marked connections are gone" in text


SCRIPT = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.shutdown(socket.SHUT_WR)
print(client.getsockname()[1], flush=True)
sys.stdin.read()
"""


SLOW = """
import pathlib, sys, time
from finwait import planning
from finwait.acting import apply
from finwait.cli import main, top

plain, limits, begun = apply._through_descriptor, planning.limits, pathlib.Path(sys.argv.pop(1))

def slow(step):
    plain(step)
    begun.touch()
    time.sleep(2)

apply._through_descriptor = slow
planning.limits = lambda **_: limits(min_age_ms=0, share=1.0)
top._PATIENCE_S = 0.3
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, 0], ids=["hang-up", "SIGTERM", "ctrl+q"])
def test_an_act_that_is_met_by_the_end_stops_at_a_safe_point_and_is_journaled(tmp_path, stack, number):
    """The view may end whenever it likes; what it has begun is finished, and what it has not is left."""
    begun = tmp_path / "begun"
    here = stack.enter_context(Lab()).netns("here")
    script = SCRIPT.replace("client = ", "kept = []\nfor _ in range(3):\n client = ")
    script = script.replace("\nserver, _", "\n server, _").replace("\nclient.shut", "\n client.shut")
    script = script.replace("SHUT_WR)", "SHUT_WR)\n kept.append((client, server))")
    holder = here.call(
        lambda: subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    )
    assert holder.stdin
    assert holder.stdout
    stack.callback(holder.wait, 20)
    stack.callback(holder.stdout.close)
    stack.callback(holder.stdin.close)
    holder.stdout.readline()
    words = ("--refresh", "300ms", f"netns = {here.inode} state fin-wait-2")
    terminal = Terminal(
        sys.executable, "-c", SLOW, str(begun), "top", *words, FINWAIT_STATE_DIR=str(tmp_path)
    )
    try:
        terminal.until(b"fin-wait2-held")
        terminal.key("m")
        terminal.until(b"3 marked")
        terminal.key("c")
        terminal.until(b"do it")
        terminal.key("y")
        deadline = time.monotonic() + 60
        while not begun.exists():
            assert time.monotonic() < deadline, terminal.seen[-3000:]
            time.sleep(0.01)
        terminal.key("" if number else "q\x1b\x11")
        if number:
            os.kill(terminal.process.pid, number)
        assert terminal.ended() == (128 + number if number else 0)
        last = terminal.seen.rpartition(b"\x1b[?1049l")[2]  # behind the view
        assert b"finwait: interrupted; " in last
        assert b"interrupted before it was done" in last
    finally:
        terminal.close()
    with SqliteJournal(tmp_path / "journal.sqlite") as journal:
        acts = journal.entries()
        assert journal.incomplete() == []
    said = sorted(str((entry.result or {}).get("error", "")) for entry in acts)
    assert said == ["", *["interrupted before it was done"] * 2], said
    table = session.snapshot(only=frozenset({here.inode})).sockets
    assert int((table.state == 5).sum()) == 2  # of the first both ends have closed


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
        f"FINWAIT_STATE_DIR={tmp_path} NO_COLOR=1 {sys.executable} -m finwait top --refresh 300ms --min-age 10s"
        f" netns = {there.inode} sport = :{port} state fin-wait-2"
    )
    try:
        subprocess.run([*at, "new-session", "-d", "-x", "80", "-y", "24", command], check=True)
        until("1 group by cause", "fin-wait2-held")
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
        wait_for(lambda: any(text.decode() in ask("capture-pane", "-p") for text in DIAGNOSED))
        assert [n for n in instances() if n.startswith(f"finwait-{pid}-")]
        ask("resize-window", "-x", "20", "-y", "4")  # too small for anything, and no reason to fall over
        ask("resize-window", "-x", "300", "-y", "100")
        wait_for(lambda: "quit" in (ask("capture-pane", "-p").splitlines()[99:] or [""])[0])
        ask("kill-session")
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
        assert not [n for n in instances() if n.startswith(f"finwait-{pid}-")]
    finally:
        subprocess.run([*at, "kill-server"], capture_output=True, check=False)
