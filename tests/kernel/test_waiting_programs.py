"""What is said of who waits, against real programs that were made to leave a connection in a known way.

`LEAKS` is the table of docs/explanation/who-waits.md. A program that is not installed is skipped by its name.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from finwait import session
from finwait.diagnosis.moves import Move
from finwait.lab.topology import Lab, Netns, unmet
from finwait.session import Look, Snapshot
from finwait.uapi import tcp
from finwait.uapi.observation import LookPlan
from tests.captures.make import walled_off
from tests.kernel.needs import missing

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]
HERE = Path(__file__).parent / "programs"
PORT = 8080
DEADLINE_S = 90
"""A Java program that is compiled at its start takes a while on a busy machine."""
NOBODY_ID = 65534


class Client:
    """The other end of the connection that is left."""

    def __init__(self, netns: Netns) -> None:
        self._netns = netns
        self.sock = self._connected()
        self.port = self.sock.getsockname()[1]

    def close(self) -> None:
        self.sock.close()

    def connect_again(self) -> None:
        self.close()
        self.sock = self._connected()
        self.port = self.sock.getsockname()[1]

    def _connected(self) -> socket.socket:
        end = time.monotonic() + DEADLINE_S
        while True:
            sock = self._netns.call(socket.socket)
            try:
                sock.connect(("127.0.0.1", PORT))
                return sock
            except ConnectionRefusedError:
                sock.close()
                assert time.monotonic() < end, "the program never listened"
                time.sleep(0.05)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def finish(self) -> None:
        """Send a FIN."""
        self.sock.shutdown(socket.SHUT_WR)

    def wait_until_read(self) -> None:
        """Wait until the program has taken the connection and read all that was sent."""
        end = time.monotonic() + DEADLINE_S
        while not self._read():
            assert time.monotonic() < end, "the program never read it"
            time.sleep(0.02)

    def looked(self) -> tuple[Snapshot, list[int]]:
        """Return a look at the namespace, and the rows that are the program's end."""
        plan = LookPlan(only=frozenset({self._netns.inode}), established_limit=None)
        look = Look(plan=plan, waits="everything", not_holders=walled_off())
        shot = session.look(session.live_machine(), look)
        s = shot.sockets
        return shot, np.flatnonzero((s.sport == PORT) & (s.dport == self.port)).tolist()

    def wait_until(self, done: Callable[[Snapshot, int], bool]) -> None:
        """Wait until something is so of the program's end."""
        end = time.monotonic() + DEADLINE_S
        while True:
            shot, rows = self.looked()
            if any(done(shot, row) for row in rows):
                return
            assert time.monotonic() < end, "it never came to that"
            time.sleep(0.05)

    def _read(self) -> bool:
        text = self._netns.call(Path("/proc/thread-self/net/tcp").read_text)
        ends = f":{PORT:04X}", f":{self.port:04X}"
        for words in map(str.split, text.splitlines()[1:]):
            if words[1].endswith(ends[0]) and words[2].endswith(ends[1]):
                return words[4].endswith(":00000000") and words[9] != "0"
        return False


def nothing(client: Client) -> None:
    """The program does it by itself."""


def finish(client: Client) -> None:
    client.finish()


def byte(client: Client) -> None:
    client.send(b"x")


def byte_and_finish(client: Client) -> None:
    client.send(b"x")
    client.wait_until_read()
    client.finish()


def two_bytes(client: Client) -> None:
    client.send(b"x")
    client.wait_until_read()
    client.send(b"y")


def request(client: Client) -> None:
    client.send(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")


def request_and_finish(client: Client) -> None:
    request(client)
    client.wait_until_read()
    client.finish()


def two_requests(client: Client) -> None:
    request(client)
    client.wait_until_read()
    request(client)


def _log_in(client: Client) -> None:
    """Log in to PostgreSQL, and wait until it is ready."""
    said = b"user\0postgres\0database\0postgres\0\0"
    end = time.monotonic() + DEADLINE_S
    while True:
        client.send(struct.pack(">II", 8 + len(said), 3 << 16) + said)
        got = b""
        while b"Z\0\0\0\5I" not in got and (more := client.sock.recv(65536)):
            got += more
        if b"Z\0\0\0\5I" in got:
            return
        assert b"starting up" in got, got
        assert time.monotonic() < end, got
        time.sleep(0.05)
        client.connect_again()


def _query(client: Client, sql: str) -> None:
    said = sql.encode() + b"\0"
    client.send(b"Q" + struct.pack(">I", 4 + len(said)) + said)


def sleeping_query_and_finish(client: Client) -> None:
    _log_in(client)
    client.wait_until(lambda shot, row: shot.view.waits.of(row).kind == "loop")  # idle: it waits for a query
    _query(client, "select pg_sleep(1000000)")
    client.wait_until_read()
    client.finish()


def unread_answer(client: Client) -> None:
    """Ask for more than fits, do not read it, and ask for something else."""
    _log_in(client)
    client.wait_until(lambda shot, row: shot.view.waits.of(row).kind == "loop")
    _query(client, "select repeat('x', 1000) from generate_series(1, 100000)")
    client.wait_until_read()
    _query(client, "select 1")


@dataclass(frozen=True)
class Leak:
    """One program that leaves one connection."""

    program: str
    how: str
    command: Callable[[Path, str], list[str]]
    """Folder of its own, how → argv."""
    act: Callable[[Client], None]
    state: int
    kind: str
    call: str
    """Of the thread that waits, or of the thread of the loop; where nobody waits, of the main thread."""
    move: Move


def tool(name: str) -> str:
    """Return the path of a program; the test is skipped where it is not installed."""
    path = os.pathsep.join(
        [
            os.environ.get("PATH", os.defpath),
            "/usr/sbin",
            *sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1:],
        ]
    )
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"`{name}` ({PACKAGES.get(name, name)}) is not installed")
    return found


PACKAGES = {
    "node": "nodejs", "java": "default-jdk-headless", "go": "golang-go", "nginx": "nginx-light",
    "initdb": "postgresql", "gunicorn": "PyPI", "uvicorn": "PyPI",
}  # fmt: skip


def c(folder: Path, how: str) -> list[str]:
    program = folder / "server"
    subprocess.run([tool("gcc"), "-O1", "-o", str(program), str(HERE / "server.c")], check=True)
    return [str(program), str(PORT), how]


def python(_folder: Path, how: str) -> list[str]:
    return [sys.executable, str(HERE / "server.py"), str(PORT), how]


def node(_folder: Path, how: str) -> list[str]:
    return [tool("node"), str(HERE / "server.js"), str(PORT), how]


def java(_folder: Path, how: str) -> list[str]:
    return [
        tool("java"),
        "-Xshare:auto",
        "-XX:TieredStopAtLevel=1",
        str(HERE / "Server.java"),
        str(PORT),
        how,
    ]


def go(folder: Path, how: str) -> list[str]:
    program = folder / "server"
    home = {"GOCACHE": str(folder / "cache"), "GOPATH": str(folder / "path"), "GO111MODULE": "off"}
    command = [tool("go"), "build", "-o", str(program), str(HERE / "server.go")]
    subprocess.run(command, check=True, env={**os.environ, **home})
    return [str(program), str(PORT), how]


def gunicorn(folder: Path, how: str) -> list[str]:
    options = ["--bind", f"127.0.0.1:{PORT}", "--timeout", "0", "--chdir", str(HERE), "-k", how]
    return [
        tool("gunicorn"),
        *options,
        "--worker-tmp-dir",
        str(folder),
        "--no-control-socket",
        "application:wsgi",
    ]


def uvicorn(_folder: Path, _how: str) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(PORT), "--app-dir", str(HERE), "--loop", "asyncio"]
    return [tool("uvicorn"), *options, "application:asgi"]


def nginx(folder: Path, _how: str) -> list[str]:
    """Return nginx as a proxy before a server that never answers."""
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr; user root;"
        f"events {{}} http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;"
        f" fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;"
        f" server {{ listen 127.0.0.1:{PORT}; keepalive_timeout 1h; location / {{"
        f" proxy_ignore_client_abort on; proxy_read_timeout 1h; proxy_pass http://127.0.0.1:{PORT + 1}; }} }} }}"
    )
    return [tool("nginx"), "-p", str(folder), "-c", str(conf)]


def socat(_folder: Path, how: str) -> list[str]:
    """Return socat between the client and a program that says nothing (`half`: and has said that it is done)."""
    other = "EXEC:'sleep 1000000'" if how == "forgotten" else "/dev/null"
    return [tool("socat"), "-t", "3600", f"TCP-LISTEN:{PORT},bind=127.0.0.1,reuseaddr", other]


def postgres(folder: Path, _how: str) -> list[str]:
    if os.geteuid() != 0:
        pytest.skip("PostgreSQL refuses to run as root, and only root can start it as somebody else")
    base = folder / "data"
    base.mkdir()
    os.chown(base, NOBODY_ID, NOBODY_ID)
    subprocess.run(
        [tool("initdb"), "-D", str(base), "-U", "postgres", "-A", "trust", "-N", "--no-locale"],
        check=True, capture_output=True, cwd="/", user=NOBODY_ID, group=NOBODY_ID, extra_groups=[],
    )  # fmt: skip
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={PORT}", "-c", "unix_socket_directories="]
    options += ["-c", "fsync=off", "-c", "autovacuum=off"]
    setpriv = [tool("setpriv"), f"--reuid={NOBODY_ID}", f"--regid={NOBODY_ID}", "--clear-groups"]
    return [*setpriv, tool("postgres"), "-D", str(base), *options]


W, F, E = tcp.CLOSE_WAIT, tcp.FIN_WAIT2, tcp.ESTABLISHED
LEAKS = (
    Leak("C, blocking", "read", c, nothing, F, "thread", "read", Move.WAITS_FOR_EVER),
    Leak("C, blocking", "poll", c, nothing, F, "thread", "poll", Move.WAITS_FOR_EVER),
    Leak("C, blocking", "sendfile", c, finish, W, "thread", "sendfile", Move.WAITS_FOR_EVER),
    Leak("C, epoll", "half", c, nothing, F, "loop", "epoll_wait", Move.LOOP_WATCHES),
    Leak("C, epoll", "nested", c, nothing, F, "loop", "epoll_wait", Move.LOOP_WATCHES),
    Leak("C, epoll", "paused", c, finish, W, "paused", "epoll_wait", Move.PAUSED),
    Leak("C, epoll", "oneshot", c, finish, W, "paused", "epoll_wait", Move.PAUSED),
    Leak("C, epoll", "stuck", c, finish, W, "loop", "pause", Move.LOOP_ELSEWHERE),
    Leak("C, epoll", "stuck", c, byte, E, "loop", "pause", Move.LOOP_ELSEWHERE),
    Leak("C, epoll", "edge", c, finish, W, "loop", "epoll_wait", Move.TOLD_ONCE),
    Leak("Python, threads", "forgotten", python, finish, W, "nobody", "futex", Move.FORGOTTEN),
    Leak("Python, threads", "hung-handler", python, byte, E, "nobody", "futex", Move.FORGOTTEN),
    Leak("Python, threads", "half", python, nothing, F, "thread", "recvfrom", Move.WAITS_FOR_EVER),
    Leak("Python, threads", "half-limited", python, nothing, F, "thread", "poll", Move.WAITS_LIMITED),
    Leak("Python, threads", "sending", python, finish, W, "thread", "sendto", Move.WAITS_FOR_EVER),
    Leak("Python, threads", "select", python, nothing, F, "thread", "pselect6", Move.WAITS_FOR_EVER),
    Leak("Python, threads", "selectors", python, nothing, F, "loop", "epoll_wait", Move.LOOP_WATCHES),
    Leak("Python, asyncio", "aio-paused", python, finish, W, "nobody", "epoll_wait", Move.FORGOTTEN),
    Leak("Python, asyncio", "aio-half", python, nothing, F, "loop", "epoll_wait", Move.LOOP_WATCHES),
    Leak("Python, asyncio", "aio-blocked", python, byte_and_finish, W, "loop", "clock_nanosleep", Move.LOOP_ELSEWHERE),
    Leak("gunicorn", "sync", gunicorn, request_and_finish, W, "nobody", "clock_nanosleep", Move.FORGOTTEN),
    Leak("gunicorn", "sync", gunicorn, two_requests, E, "nobody", "clock_nanosleep", Move.FORGOTTEN),
    Leak("gunicorn", "gthread", gunicorn, request_and_finish, W, "nobody", "epoll_wait", Move.FORGOTTEN),
    Leak("uvicorn", "", uvicorn, request_and_finish, W, "loop", "clock_nanosleep", Move.LOOP_ELSEWHERE),
    Leak("uvicorn", "", uvicorn, two_requests, E, "loop", "clock_nanosleep", Move.LOOP_ELSEWHERE),
    Leak("Node", "paused", node, byte_and_finish, W, "nobody", "epoll_pwait", Move.FORGOTTEN),
    Leak("Node", "forgotten", node, finish, W, "nobody", "epoll_pwait", Move.FORGOTTEN),
    Leak("Node", "half", node, nothing, F, "loop", "epoll_pwait", Move.LOOP_WATCHES),
    Leak("Node", "blocked", node, two_bytes, E, "loop", "", Move.LOOP_ELSEWHERE),
    Leak("Java, blocking", "forgotten", java, finish, W, "nobody", "futex", Move.FORGOTTEN),
    Leak("Java, blocking", "half", java, nothing, F, "thread", "read", Move.WAITS_FOR_EVER),
    Leak("Java, blocking", "half-limited", java, nothing, F, "thread", "poll", Move.WAITS_LIMITED),
    Leak("Java, NIO", "nio-half", java, nothing, F, "loop", "epoll_wait", Move.LOOP_WATCHES),
    Leak("Java, NIO", "nio-paused", java, finish, W, "nobody", "futex", Move.FORGOTTEN),
    Leak("Java, NIO", "nio-stuck", java, finish, W, "loop", "", Move.LOOP_ELSEWHERE),
    Leak("Go", "handler", go, request_and_finish, W, "unknown", "epoll_pwait", Move.UNKNOWN),
    Leak("Go", "half", go, nothing, F, "unknown", "epoll_pwait", Move.UNKNOWN),
    Leak("nginx", "", nginx, request_and_finish, W, "loop", "epoll_wait", Move.TOLD_ONCE),
    Leak("PostgreSQL", "", postgres, sleeping_query_and_finish, W, "loop", "epoll_wait", Move.LOOP_ELSEWHERE),
    Leak("PostgreSQL", "", postgres, unread_answer, E, "paused", "epoll_wait", Move.PAUSED),
    Leak("socat", "half", socat, nothing, F, "thread", "pselect6", Move.WAITS_LIMITED),
    Leak("socat", "forgotten", socat, finish, W, "nobody", "pselect6", Move.FORGOTTEN),
)  # fmt: skip


@contextlib.contextmanager
def running(netns: Netns, argv: list[str], folder: Path) -> Iterator[None]:
    with (folder / "output").open("wb") as output:
        program = netns.call(
            lambda: subprocess.Popen(
                argv, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )
        )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait(30)


def told(shot: Snapshot, row: int) -> tuple[str, str, str]:
    """Return the kind, the call and the move that are said of a row."""
    waits = shot.view.waits
    of = waits.of(row)
    if of.threads:
        call = of.threads[0].call
    elif of.loops:
        call = "" if of.loops[0].thread is None else of.loops[0].thread.call
    else:
        call = next((t.call for pid, _ in shot.view.holders.of(row) for t in waits.doing(pid)), "")
    return of.kind, call, list(Move)[int(shot.view.moves[row])].value


@pytest.mark.parametrize(
    "leak", LEAKS, ids=lambda k: f"{k.program}-{k.how}-{k.act.__name__}".replace(" ", "-")
)
def test_what_is_said_of_a_real_program_is_what_it_does(leak: Leak) -> None:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab, contextlib.ExitStack() as open_:
        folder = Path(
            open_.enter_context(tempfile.TemporaryDirectory(prefix="finwait-", ignore_cleanup_errors=True))
        )
        folder.chmod(0o711)  # PostgreSQL runs as somebody else
        argv = leak.command(folder, leak.how)
        netns = lab.netns("program")
        backend = open_.enter_context(netns.call(socket.socket))
        backend.bind(("127.0.0.1", PORT + 1))
        backend.listen()
        open_.enter_context(running(netns, argv, folder))
        client = Client(netns)
        open_.callback(client.close)
        leak.act(client)
        wanted = (leak.kind, leak.call, leak.move.value)
        got: list[tuple[str, str, str]] = []
        end = time.monotonic() + DEADLINE_S
        while wanted not in got[-1:]:
            assert time.monotonic() < end, (got[-3:], (folder / "output").read_text()[-2000:])
            shot, rows = client.looked()
            got += [told(shot, row) for row in rows if shot.sockets.state[row] == leak.state]
            time.sleep(0.05)
