"""What `finwait relay` says when something is not there, is taken, or may not be done."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from finwait.relay import command
from finwait.relay.command import main


def run(*words: str, before: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    argv = [*before, sys.executable, "-m", "finwait.relay", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def test_a_relay_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    plain = tmp_path / "plain"
    plain.touch()
    expected = ((tmp_path / "none", errno.ENOENT), (stale, errno.ECONNREFUSED), (plain, errno.ECONNREFUSED))
    for path, number in expected:
        for words in (["ls"], ["show", "0-1"], ["close", "0-1"], ["drain"], ["stats"]):
            assert main([*words, "--admin", str(path)]) == 1
            error = capsys.readouterr().err
            assert error.startswith(f"finwait relay: error: could not ask the relay at `{path}`: ")
            assert os.strerror(number) in error
            assert error.splitlines()[1].startswith("hint: is it running with `--admin PATH`?")


@pytest.mark.parametrize("answer", [b"", b"not json\n", b'{"error": "no"}\n', b"[]\n"])
def test_something_else_answers_at_the_admin_socket(
    answer: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()

        def serve() -> None:
            with sock.accept()[0] as conn:
                conn.recv(1000)
                conn.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert main(["ls", "--admin", str(tmp_path / "s")]) == 1
        thread.join()
    assert capsys.readouterr().err.startswith(f"finwait relay: error: the relay at `{tmp_path}/s` said")


def test_an_address_that_is_taken(taken: str) -> None:
    status, said = run("run", "--listen", taken, "--to", "127.0.0.1:1")
    assert (status, said) == (
        1,
        [
            f"finwait relay: error: could not listen on {taken}: the kernel said EADDRINUSE",
            "hint: `ss -ltnp` shows who uses it",
        ],
    )
    status, said = run("run", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:1", "--metrics", taken)
    assert (status, said[0]) == (
        1,
        f"finwait relay: error: could not listen on {taken} for metrics: the kernel said EADDRINUSE",
    )


def test_an_admin_socket_that_is_something_else_or_taken(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("precious")
    given = ("run", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:1", "--admin")
    status, said = run(*given, str(plain))
    assert (status, plain.read_text()) == (1, "precious")
    assert said[0].endswith(f"could not bind the admin socket `{plain}`: the kernel said EADDRINUSE")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        status, said = run(*given, str(tmp_path / "s"))
        assert status == 1
        assert "EADDRINUSE" in said[0]
        assert "another relay may use it" in said[1]
    status, said = run(*given, str(tmp_path / "none" / "s"))
    assert (status, said[0].rpartition(" ")[2]) == (1, "ENOENT")


def test_a_port_that_needs_a_capability() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if os.geteuid() != 0 or not shutil.which("setpriv") or lowest < 2:
        pytest.skip("needs root and setpriv, to be without one capability")
    before = ("setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service")
    status, said = run("run", "--listen", "127.0.0.1:1", "--to", "127.0.0.1:9", before=before)
    assert status == 1
    assert said[0] == "finwait relay: error: could not listen on 127.0.0.1:1: the kernel said EACCES"
    assert "CAP_NET_BIND_SERVICE" in said[1]


@pytest.mark.parametrize("word", ["show", "close"])
def test_an_id_that_is_none(word: str) -> None:
    for text in ("zz", "0", "-1", "0-", "0-x"):
        status, said = run(word, "--", text)
        assert status == 2
        assert "such as 0-17" in said[-2]
        assert said[-1].startswith("hint: ")


def test_a_user_a_log_a_socket_and_a_file_that_are_not_there(tmp_path: Path) -> None:
    given = ("run", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:1")
    for words in (given, (*given, "--check")):
        assert run(*words, "--user", "no-such-user")[1][0].endswith("there is no user `no-such-user`")
    log = tmp_path / "none" / "log"
    assert run(*given, "--access-log", str(log))[1][0].endswith(
        f"open the access log `{log}`: the kernel said ENOENT"
    )
    status, said = run("run", "--listen", "fd:web", "--to", "127.0.0.1:1")
    assert said[0].endswith("service `relay`: no socket `fd:web` was passed to this process")
    status, said = run("run", "--config", str(tmp_path / "none"))
    assert (status, said[0].partition(": the kernel")[0]) == (
        1,
        f"finwait relay: error: could not read `{tmp_path}/none`",
    )
    status, said = run("run")
    assert said[0].startswith("finwait relay: error: nothing to relay")
    status, said = run("drain", "--seconds", "soon")
    assert status == 2
    assert any(line.startswith("finwait relay: error: argument --seconds: `soon` is not a") for line in said)


def test_explain_and_check_need_no_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--explain"]) == 0
    plain = capsys.readouterr().out
    assert "service.timeouts.half_close = 300 s    [--half-close]" in plain
    assert main(["run", "--explain", "--to", "10.0.0.5:80", "--listen", "*:1", "--drain-spread", "0.5"]) == 0
    assert "service.timeouts.drain_spread = 0.5 " in capsys.readouterr().out
    path = tmp_path / "r.toml"
    path.write_text('[[service]]\nlisten = ["192.0.2.1:1"]\nbackend = [{ address = "10.0.0.5:80" }]\n')
    assert main(["run", "--check", "--config", str(path)]) == 0
    assert capsys.readouterr().out == "the configuration is valid: `relay`, 1 worker(s)\n"
    assert main(["run", "--check", "--config", str(path), "--workers", "0"]) == 1
    assert "`0` is less than 1 (`--workers`)" in capsys.readouterr().err


def test_a_list_of_connections_says_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    command._columns(
        [("ID", "CLIENT"), ("0-1", "fe80::1%\x1b]0;x\x07\n0-2  forged"), ("0-3", "\u202ex\x9b2J")]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.isascii() and line.isprintable() for line in lines)
