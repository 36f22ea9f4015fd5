"""`finwait agent serve`: a process of its own, from its command line to what it serves."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finwait.agent import facing, service
from finwait.agent.confined import NOBODY
from tests import certificates
from tests.unit.agent.test_metrics import PICTURE

TOKEN = "0123456789abcdef0123456789abcdef"


class Serving:
    """A process that serves, and where."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "finwait", "agent", "serve", "--listen", "127.0.0.1:0", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if match := re.search(r"serving at (https?)://127\.0\.0\.1:(\d+)/", line):
                self.scheme, self.port = match[1], int(match[2])
                break
        else:
            raise AssertionError("".join(self.said))
        self.reader = threading.Thread(target=self.said.extend, args=(self.process.stderr,))
        self.reader.start()

    def get(self, path: str, token: str = "") -> tuple[int, str]:
        context = ssl._create_unverified_context()
        connection = (
            http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)
            if self.scheme == "https"
            else http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        )
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        self.reader.join()
        return status


@contextlib.contextmanager
def serving(*words: str) -> Iterator[Serving]:
    made = Serving(*words)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait(30)
        made.reader.join()
        assert made.process.stderr is not None
        made.process.stderr.close()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder as a pod's emptyDir; who serves becomes nobody, where it was root."""
    with tempfile.TemporaryDirectory(prefix="finwait-serve-") as name:
        if os.geteuid() == 0:
            os.chown(name, 0, NOBODY)
            os.chmod(name, 0o2770)
        yield Path(name)


@contextlib.contextmanager
def looking(path: str) -> Iterator[None]:
    """Answer at a path, as an agent does."""
    looker: Any = SimpleNamespace(picture=PICTURE, status=None, history=None, boot="b")
    answering = service.AnswerSocket(looker, "")
    with facing.ServeSocket(lambda end, pulse: answering.serve(end, idle_s=None, pulse=pulse), path):
        yield


def until(holds: Any) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_it_waits_for_the_agent_serves_what_it_says_and_ends_when_told(shared: Path) -> None:
    pytest.importorskip("prometheus_client")
    path = str(shared / "serve.sock")
    with serving("--serve-socket", path) as made:
        absent = f"no looker answers at `{path}`: No such file or directory"
        assert made.get("/healthz") == (503, f"{absent}\n")
        assert made.get("/metrics") == (503, f"{absent}\n")
        for name in ("picture", "about", "history", "gaps", "settings"):
            status, text = made.get(f"/api/v1/{name}")
            assert (status, absent in text) == (503, True), text
        with looking(path):
            until(lambda: made.get("/metrics")[0] == 200)
            assert "finwait_stuck_connections" in made.get("/metrics")[1]
            assert made.get("/")[0] == 200, "on loopback no token is needed"
        assert made.end() == 0
    assert sum("waiting for it" in line for line in made.said) == 1


def test_token_and_certificate_are_in_no_command_line_and_in_no_environment(
    shared: Path, tmp_path: Path
) -> None:
    pytest.importorskip("prometheus_client")
    certificate, key = certificates.made(tmp_path, "own")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    path = str(shared / "serve.sock")
    words = ("--token-file", str(token), "--tls-cert", str(certificate), "--tls-key", str(key))
    with looking(path), serving("--serve-socket", path, *words) as made:
        assert made.scheme == "https"
        until(lambda: made.get("/metrics")[0] == 200)
        assert made.get("/api/v1/picture")[0] == 401
        assert made.get("/api/v1/picture", "x" * 32)[0] == 401
        assert made.get("/api/v1/picture", TOKEN)[0] != 401
        for name in ("cmdline", "environ"):
            data = Path(f"/proc/{made.process.pid}/{name}").read_bytes() if os.geteuid() == 0 else b""
            assert TOKEN.encode() not in data
            assert b"PRIVATE" not in data
        assert made.end() == 0


def test_a_socket_that_it_may_not_open_is_said_with_the_user_that_it_has(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, which becomes nobody")
    path = str(tmp_path / "serve.sock")
    told = f"Permission denied (this process has user {NOBODY} and"
    with looking(path), serving("--serve-socket", path) as made:
        until(lambda: any(told in line for line in made.said))
        assert told in made.get("/healthz")[1]
        assert told in made.get("/api/v1/about")[1]
        made.end()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--token-file", "/nonexistent/token"), "cannot be read"),
        (("--tls-cert", "/nonexistent/tls.crt"), "`--tls-key` is missing"),
        (("--serve-socket", "7"), "is a path"),
        (("--interval", "1h"), "too short or too long"),
    ],
)
def test_what_it_cannot_use_is_said_before_it_serves(words: tuple[str, ...], said: str) -> None:
    command = [
        sys.executable,
        "-m",
        "finwait",
        "agent",
        "serve",
        "--serve-socket",
        "/nonexistent/s",
        "--listen",
    ]
    done = subprocess.run([*command, "127.0.0.1:0", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2)
    assert said in done.stderr


def test_an_address_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "finwait", "agent", "serve", "--serve-socket", str(tmp_path / "s")]
        done = subprocess.run([*command, "--listen", address], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "EADDRINUSE" in done.stderr
