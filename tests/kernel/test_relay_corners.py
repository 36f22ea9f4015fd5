"""Where a relay loses bytes, proof or count: urgent marks, slow connects, renamed services, logs that nobody reads."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel import needs
from tests.kernel.relay_behaviour import WAIT, Scene, blob, is_reset, read_all, reset, until
from tests.kernel.test_relay_service import children, config_scene, echo, pid_of, write

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs() -> None:
    needs.root_and("ip", "ss", "nft")


# ── urgent data ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fin_behind_an_urgent_byte_does_not_hide_what_follows_it() -> None:
    """splice(2) stops at the mark and, once the FIN is there, says 0."""
    first, last = blob(1_000_000), blob(5_000, 2)
    with Scene() as scene:
        for _ in range(10):
            client, server = scene.pair()
            server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            found: list[tuple[bytes, str]] = []

            def read(sock: socket.socket = server, into: list[tuple[bytes, str]] = found) -> None:
                into.append(read_all(sock))

            reader = threading.Thread(target=read)
            reader.start()
            client.sendall(first)
            client.send(b"!", socket.MSG_OOB)
            client.sendall(last)
            client.shutdown(socket.SHUT_WR)
            reader.join(WAIT)
            assert found == [(first + b"!" + last, "FIN")]
            server.close()
            assert read_all(client) == (b"", "FIN")
            client.close()


@contextlib.contextmanager
def slow_to_accept(scene: Scene, seconds: float) -> Iterator[None]:
    """Let connections to the backend wait so long at least: its queue is full until then, and SYNs are dropped."""
    scene.listener.listen(0)
    fill = [scene.relay_ns.call(socket.socket) for _ in range(3)]
    for sock in fill:
        sock.setblocking(False)
        sock.connect_ex(scene.backend)
    time.sleep(0.1)

    def empty() -> None:
        time.sleep(seconds)
        scene.listener.listen(64)
        for sock in fill:
            sock.close()

    thread = threading.Thread(target=empty)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def accepted(scene: Scene) -> socket.socket:
    """Return the server's end of a connection, past those that only filled the queue."""
    mine = json.loads(scene.ask("ls", "-o", "jsonl").splitlines()[-1])["server"]["local"]
    while True:
        server = scene.accept()
        if "{}:{}".format(*server.getpeername()) == mine:
            return server
        server.close()


def test_an_urgent_byte_that_came_while_connecting_holds_nothing_up() -> None:
    with Scene() as scene:
        with slow_to_accept(scene, 1.5):
            client = scene.dial()
            data = blob(100_000)
            client.sendall(data)
            client.send(b"!", socket.MSG_OOB)
            client.sendall(b"0123456789")
        assert until(lambda: '"OPEN"' in scene.ask("ls", "-o", "jsonl"))
        server = accepted(scene)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        assert read_all(server, 100_011)[0] == data + b"!0123456789"


# ── connections that opened late ─────────────────────────────────────────────────────────────────────────────


def timers(scene: Scene) -> list[str]:
    lines = scene.relay_ns.run("ss", "-Htno", "state", "established").splitlines()
    return [line.partition("timer:(")[2].partition(",")[0] for line in lines]


def test_a_server_that_took_its_time_to_accept_is_probed_like_any_other() -> None:
    with Scene() as scene:
        with slow_to_accept(scene, 1.5):
            scene.dial()
        assert until(lambda: '"OPEN"' in scene.ask("ls", "-o", "jsonl"))
        accepted(scene)
        assert until(lambda: timers(scene) == ["keepalive", "keepalive"]), timers(scene)


def test_behind_a_header_that_took_its_time_the_server_is_probed_too() -> None:
    with Scene("finwait", "--accept-proxy") as scene:
        client = scene.dial()
        time.sleep(1.6)
        client.sendall(b"PROXY UNKNOWN\r\n")
        scene.accept()
        assert until(lambda: timers(scene) == ["keepalive", "keepalive"]), timers(scene)


# ── the end of an answer ─────────────────────────────────────────────────────────────────────────────────────


def test_a_slow_reader_gets_the_last_bytes_of_a_short_answer() -> None:
    """TCP_USER_TIMEOUT would cut what was not sent yet when the relay closed."""
    with Scene("finwait", "--client-user-timeout", "2") as scene:

        def dial() -> socket.socket:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
            sock.settimeout(WAIT)
            sock.connect(scene.address)
            return sock

        client = scene.client_ns.call(dial)
        scene.held.append(client)
        server = scene.accept()
        client.shutdown(socket.SHUT_WR)
        answer = blob(8_000)
        server.sendall(answer)
        server.close()
        assert until(lambda: not scene.ask("ls", "-o", "jsonl"))
        time.sleep(5)
        assert read_all(client) == (answer, "FIN")


# ── reloading ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_service_that_was_renamed_keeps_the_count_of_its_connections() -> None:
    with config_scene() as scene:

        def rename(to: str, times: int) -> None:
            write(scene)
            path = scene.folder / "relay.toml"
            path.write_text(path.read_text().replace('"relay"', f'"{to}"\nmax_per_source = 5'))
            os.kill(pid_of(scene), signal.SIGHUP)
            assert until(lambda: scene.said().count("configuration reloaded") == times)

        rename("a", 1)
        client, server = scene.pair()
        rename("b", 2)
        second, third = scene.pair()
        client.close()
        assert read_all(server) == (b"", "FIN")
        server.close()

        def now() -> dict[str, int]:
            (worker,) = json.loads(scene.ask("stats", "-o", "json"))["workers"]
            return {name: counts["now"] for name, counts in worker["services"].items()}

        assert until(lambda: now().get("a", 0) == 0), now()
        assert now()["b"] == 1
        assert "Error" not in scene.said()
        assert scene.process is not None
        scene.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        second.sendall(b"still")
        assert third.recv(5) == b"still"
        second.close()
        third.close()
        assert scene.process.wait(WAIT) == 0


def test_a_renamed_service_is_at_no_time_without_its_backends() -> None:
    with config_scene() as scene:
        write(scene)
        path = scene.folder / "relay.toml"
        plain = path.read_text()
        for pid in (pid_of(scene), *children(pid_of(scene))):
            os.sched_setaffinity(
                pid, {min(os.sched_getaffinity(0))}
            )  # so that one is interrupted by the other
        for number in range(20):
            path.write_text(plain.replace('"relay"', f'"relay-{number}"'))
            os.kill(pid_of(scene), signal.SIGHUP)
            served = 0
            while scene.said().count("configuration reloaded") <= number or served < 5:
                echo(scene)
                served += 1


@pytest.mark.parametrize("name", ["relay", "renamed"])
def test_connections_opened_in_advance_go_with_the_pool_that_wanted_them(name: str) -> None:
    with config_scene() as scene:
        write(scene)
        path = scene.folder / "relay.toml"
        plain = path.read_text()
        path.write_text(f"{plain}\n[service.pool]\nmax_idle = 2\n")
        os.kill(pid_of(scene), signal.SIGHUP)
        early = [scene.accept(), scene.accept()]
        path.write_text(plain.replace('"relay"', f'"{name}"'))
        os.kill(pid_of(scene), signal.SIGHUP)
        assert [read_all(sock) for sock in early] == [(b"", "FIN")] * 2
        for sock in early:
            sock.close()
        echo(scene)


def test_the_path_of_a_unix_listener_goes_with_the_relay() -> None:
    with config_scene() as scene:
        write(scene)
        path = scene.folder / "relay.toml"
        path.write_text(
            path.read_text().replace("listen = [", f'listen = ["unix:{scene.folder}/door.sock", ')
        )
        os.kill(pid_of(scene), signal.SIGHUP)
        assert until((scene.folder / "door.sock").exists)
        assert scene.process is not None
        scene.process.send_signal(signal.SIGTERM)
        assert scene.process.wait(WAIT) == 0
        assert not (scene.folder / "door.sock").exists()


# ── a log that nobody reads ──────────────────────────────────────────────────────────────────────────────────


def test_an_access_log_that_nobody_reads_holds_nobody_up() -> None:
    reader, writer = os.pipe()
    with Scene("finwait", "--access-log", "-") as scene:
        assert scene.process is not None
        scene.process.terminate()
        scene.process.wait(WAIT)
        argv = scene.command()
        with open(scene.folder / "said", "wb") as said:
            scene.process = scene.relay_ns.call(
                lambda: subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=writer, stderr=said)
            )
        os.close(writer)
        assert until(scene.listens)
        client, server = scene.pair()
        for _ in range(400):
            echo(scene)
        client.sendall(b"ping")
        assert server.recv(4) == b"ping"
        assert len(scene.ask("ls", "-o", "jsonl").splitlines()) == 1
        client.close()
        server.close()
        scene.process.send_signal(signal.SIGTERM)
        assert scene.process.wait(WAIT) == 0
    os.close(reader)


def test_a_worker_that_does_not_answer_is_not_taken_for_one_without_connections() -> None:
    with Scene() as scene:
        scene.pair()
        assert scene.process is not None
        (pid,) = children(scene.process.pid)
        os.kill(pid, signal.SIGSTOP)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "finwait.relay", "ls", "--admin", scene.admin],
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        assert done.returncode == 3
        assert f"worker pid {pid} does not answer" in done.stderr


# ── nobody reads ─────────────────────────────────────────────────────────────────────────────────────────────


def fill(sock: socket.socket, data: bytes) -> int:
    """Send until nothing more is taken for a while; return how much was."""
    sock.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < len(data):
            sent += sock.send(data[sent : sent + (1 << 18)])
    sock.settimeout(None)
    return sent


LONG = 64 << 20
"""Bytes: more than all buffers between two ends hold."""


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("reader", [0, 1])
def test_directions_that_stand_still_at_the_same_time_go_on_one_by_one(first: int, reader: int) -> None:
    with Scene() as scene:
        ends = scene.pair()
        datas = blob(LONG), blob(LONG, 2)
        sent = [0, 0]
        for number in (first, 1 - first):
            sent[number] = fill(ends[number], datas[number])
            assert 0 < sent[number] < LONG
        for number in (reader, 1 - reader):  # what this one reads came from the other
            expected = datas[1 - number][: sent[1 - number]]
            found, how = read_all(ends[number], len(expected))
            assert found == expected, how
        for number in (0, 1):  # and it is watched for what comes after
            ends[number].sendall(b"later")
            assert ends[1 - number].recv(5) == b"later"
            ends[number].shutdown(socket.SHUT_WR)
            assert read_all(ends[1 - number]) == (b"", "FIN")


@pytest.mark.parametrize("end", ["FIN", "RST", "reader's RST"])
def test_the_end_of_a_sender_that_waits_for_a_reader_is_seen(end: str) -> None:
    with Scene() as scene:
        client, server = scene.pair()
        data = blob(LONG)
        sent = fill(client, data)
        if end == "FIN":
            client.shutdown(socket.SHUT_WR)
            assert read_all(server) == (data[:sent], "FIN")
            server.sendall(b"answer")
            server.close()
            assert read_all(client) == (b"answer", "FIN")
            return
        reset(client if end == "RST" else server)
        assert is_reset(server if end == "RST" else client)
        assert until(lambda: not scene.legs())
