"""The looker's side of the process that faces the network, where that was taken over, or hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finwait.agent import confined, facing, service
from finwait.errors import FileRefused
from tests.unit.agent.test_metrics import PICTURE

_BEGINNING = """
import os, signal, socket, sys, time
here = os.path.dirname({path!r})
channel = socket.socket(fileno=int(sys.argv[2]))
def note(name):
    with open(os.path.join(here, name), "a") as file:
        file.write(f"{{os.getpid()}}\\n")
def ask():
    channel.sendall(b'{{"ask":"picture"}}\\n')
    data = b""
    while not data.endswith(b"\\n"):
        more = channel.recv(1 << 16)
        if not more:
            os._exit(0)
        data += more
note("began")
"""
_LEAVES_ONE_THAT_ASKS = """
if os.fork():
    os._exit(7)
os.setsid()
note("left")
signal.alarm(60)
while True:
    ask()
"""
_LEAVES_ONE_IN_ITS_GROUP = """
if os.fork():
    os._exit(7)
note("left")
signal.alarm(60)
time.sleep(60)
"""
_HANGS_AT_FIRST = """
ask()
if len(open(os.path.join(here, "began")).readlines()) == 1:
    signal.raise_signal(signal.SIGSTOP)
while True:
    ask()
    time.sleep(0.02)
"""
_SPOILS_THE_SOCKET_AT_FIRST = """
listener = socket.socket(fileno=int(sys.argv[3]))
if len(open(os.path.join(here, "began")).readlines()) == 1:
    listener.shutdown(socket.SHUT_RDWR)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 99)
    os._exit(7)
listener.listen(8)
note("listens")
import threading
def serve():
    while True:
        client, _ = listener.accept()
        client.sendall(b"hello" + bytes([listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)]))
        client.close()
threading.Thread(target=serve, daemon=True).start()
while True:
    ask()
    time.sleep(0.02)
"""


def pids(folder: Path, name: str) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(word) for word in (folder / name).read_text().split()]
    return []


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(holds: Callable[[], object], check: Callable[[], None] = lambda: None) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        check()
        time.sleep(0.02)


@contextlib.contextmanager
def facing_with(
    program: str, folder: Path, monkeypatch: pytest.MonkeyPatch, listen: str = "127.0.0.1:0"
) -> Iterator[facing.FaceProcess]:
    """Have a process that does what a program says."""
    text = _BEGINNING.format(path=str(folder / "x")) + program
    monkeypatch.setattr(confined, "_PYTHON", (sys.executable, "-c", text))
    monkeypatch.setattr(facing, "_FACE_PAUSE_S", 0.0)
    monkeypatch.setattr(confined, "_WAKE_MS", 20)
    looker: Any = SimpleNamespace(picture=PICTURE, status=None, history=None, boot="b")
    answering = service.AnswerSocket(looker, "")
    face = facing.FaceProcess(
        lambda end, pulse: answering.serve(end, idle_s=None, pulse=pulse), listen, "", 15.0, -1
    )
    try:
        face.start()
        yield face
    finally:
        face.end()
        for pid in pids(folder, "left"):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def test_one_that_leaves_others_behind_again_and_again_leaves_nothing_in_the_looker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with facing_with(_LEAVES_ONE_THAT_ASKS, tmp_path, monkeypatch) as face:
        counts = []
        for several in (2, 7):
            until(lambda n=several: len(pids(tmp_path, "left")) >= n, face.check)  # type: ignore[misc]
            face._due = float("inf")
            until(lambda: face._process is not None and face._process.returncode is not None, face.check)
            left = pids(tmp_path, "left")
            until(lambda several=left: not any(map(runs, several)), face.check)  # type: ignore[misc]
            until(
                lambda: not any(t.name.startswith(("finwait-face", "face-")) for t in threading.enumerate())
            )
            counts.append(len(os.listdir("/proc/self/fd")))
            face._due = 0.0
        assert counts[1] <= counts[0]


@pytest.mark.parametrize("unix", [False, True])
def test_what_one_did_to_its_listening_socket_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unix: bool
) -> None:
    listen = f"unix:{tmp_path}/page.sock" if unix else "127.0.0.1:0"
    with facing_with(_SPOILS_THE_SOCKET_AT_FIRST, tmp_path, monkeypatch, listen) as face:
        where: Any = (
            str(tmp_path / "page.sock") if unix else ("127.0.0.1", int(face._where.rpartition(":")[2]))
        )
        until(lambda: pids(tmp_path, "listens"), face.check)
        with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as client:
            client.settimeout(60)
            client.connect(where)
            assert client.recv(16) == b"hello\1"


def test_an_address_that_cannot_be_bound_again_is_a_gap_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with facing_with(_SPOILS_THE_SOCKET_AT_FIRST, tmp_path, monkeypatch) as face:
        where = ("127.0.0.1", int(face._where.rpartition(":")[2]))
        until(lambda: face._process is not None and confined.over(face._process))
        assert face._listener is not None
        face._listener.close()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(where)
            other.listen()
            until(lambda: face._unbound, face.check)
            (gap,) = face.gaps
            assert gap.where == "the page and the metrics"
            assert gap.doing.startswith("serve them again: ")
            face.change("token")
        until(lambda: pids(tmp_path, "listens"), face.check)
        assert not face._unbound


def test_what_it_leaves_in_its_process_group_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with facing_with(_LEAVES_ONE_IN_ITS_GROUP, tmp_path, monkeypatch) as face:
        face._due = float("inf")
        until(lambda: face._process is not None and face._process.returncode is not None, face.check)
        until(lambda: not any(map(runs, pids(tmp_path, "left"))))


def test_one_that_hangs_is_told_ended_and_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(facing, "_SILENT_S", 1.5)
    monkeypatch.setattr(facing, "_CHECK_MOST_S", 0.5)
    monkeypatch.setattr(facing, "_WELL_S", 0.3)
    with facing_with(_HANGS_AT_FIRST, tmp_path, monkeypatch) as face:
        until(lambda: face.gaps, face.check)
        first = pids(tmp_path, "began")[0]
        (gap,) = face.gaps
        assert gap.where == "the page and the metrics"
        assert f"(pid {first}) asks nothing, and hangs" in gap.doing
        until(lambda: len(pids(tmp_path, "began")) == 2, face.check)
        assert not runs(first)
        until(lambda: not face.gaps, face.check)
    assert f"(pid {first}) asks nothing, and hangs; ending it" in capsys.readouterr().err


def _wait(event: threading.Event) -> None:
    event.wait(30)


def test_one_of_another_container_that_hangs_is_told_and_gives_way_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facing, "_SILENT_S", 0.2)
    looker: Any = SimpleNamespace(picture=PICTURE, status=None, history=None, boot="b")
    answering = service.AnswerSocket(looker, "")
    path = str(tmp_path / "serve.sock")

    def ask(client: socket.socket) -> None:
        client.sendall(b'{"ask":"picture"}\n')
        while not client.recv(1 << 16).endswith(b"\n"):
            pass

    with (
        facing.ServeSocket(lambda end, pulse: answering.serve(end, idle_s=None, pulse=pulse), path) as served,
        socket.socket(socket.AF_UNIX) as hanging,
        socket.socket(socket.AF_UNIX) as other,
    ):

        def told() -> list[str]:
            return [gap.doing for gap in served.gaps]

        served.check()
        assert told() == [], "that none is there says nothing"
        hanging.connect(path)
        ask(hanging)
        served.check()
        assert told() == []
        until(told, served.check)
        assert told() == [f"serve it: the process that asks at `{path}` asks nothing, and hangs"]
        assert hanging.recv(1) == b""
        other.connect(path)
        ask(other)
        served.check()
        assert told() == []


def test_a_machine_that_stood_still_makes_no_process_hang() -> None:
    waiting = threading.Event()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        conversation = facing._Conversation(lambda *_: _wait(waiting), ours)
        silent = [conversation.silent_s(seconds) for seconds in (0.0, 5.0, 86400.0)]
        waiting.set()
    assert silent[-1] < facing._SILENT_S


def test_one_that_waits_for_an_answer_of_ours_does_not_hang() -> None:
    waiting = threading.Event()
    ours, theirs = socket.socketpair()

    def answer(_: object, pulse: facing.Pulse) -> None:
        pulse.asked()
        waiting.wait(30)

    with ours, theirs:
        conversation = facing._Conversation(answer, ours)
        until(lambda: conversation.begun)
        assert [conversation.silent_s(20.0) for _ in range(10)] == [0.0] * 10
        waiting.set()
        until(lambda: not conversation.runs)
        for _ in range(10):
            silent = conversation.silent_s(20.0)
        assert silent > facing._SILENT_S, "nobody answers it any more"


@pytest.mark.parametrize("threads", [0, 3])
def test_the_kernel_lets_it_start_no_more_than_it_needs(threads: int) -> None:
    program = f"""
import os, threading, time
from finwait.agent.confined import confine, own_user
confine(own_user(2), threads={threads})
for number in range({threads}):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
try:
    pid = os.fork()
except BlockingIOError:
    os._exit(11)
os._exit(12)
"""
    if threads and os.geteuid() != 0:
        pytest.skip("needs root, which becomes a user of its own")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (11, b"")


def test_a_socket_in_a_folder_of_others_is_refused_with_the_option_that_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    face = facing.FaceProcess(lambda *_: None, f"unix:{folder}/page.sock", "", 15.0, -1)
    with pytest.raises(FileRefused) as caught:
        face.start()
    assert caught.value.hint == "name another `--listen`"


def test_an_interpreter_that_cannot_be_started_is_named() -> None:
    program = """
import os, sys
from finwait.agent import facing
from finwait.errors import KernelError
sys.executable = "/proc/self/status"
try:
    facing.become_face("/nonexistent/s", "127.0.0.1:0", "", 15.0, None)
except KernelError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert "`/proc/self/status`, which serves the page" in done.stdout
    assert "EACCES" in done.stdout
