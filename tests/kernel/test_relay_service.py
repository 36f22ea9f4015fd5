"""The relay as a service: workers, reload, upgrade, activation, limits, backends, headers, and who may ask."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finwait.relay import proxy_protocol
from tests.kernel import needs
from tests.kernel.relay_behaviour import (
    BACKEND,
    MB,
    PORT,
    WAIT,
    Scene,
    blob,
    is_reset,
    read_all,
    reset,
    stays,
    until,
)
from tests.kernel.relay_soak import Soak

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs() -> None:
    needs.root_and("ip", "ss", "nft")


def echo(scene: Scene, listener: socket.socket | None = None, word: bytes = b"ping") -> None:
    client = scene.dial()
    server, _ = (listener or scene.listener).accept()
    with client, server:
        client.sendall(word)
        assert server.recv(len(word)) == word
        server.sendall(word)
        assert client.recv(len(word)) == word


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def pid_of(scene: Scene) -> int:
    assert scene.process is not None
    return scene.process.pid


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_killing_a_worker_takes_no_other_workers_connection_and_it_is_replaced() -> None:
    with Scene("finwait", workers=2) as scene:
        pairs = [scene.pair() for _ in range(16)]
        listed = [json.loads(line) for line in scene.ask("ls", "-o", "jsonl").splitlines()]
        of_port = {int(conn["client"]["peer"].rpartition(":")[2]): int(conn["id"][0]) for conn in listed}
        owner = [of_port[client.getsockname()[1]] for client, _ in pairs]
        assert set(owner) == {0, 1}, "16 connections, and all of them in one worker"
        stats = json.loads(scene.ask("stats", "-o", "json"))
        victim = next(worker["pid"] for worker in stats["workers"] if worker["index"] == 0)
        os.kill(victim, signal.SIGKILL)
        assert until(lambda: "starting another" in scene.said())
        for (client, server), worker in zip(pairs, owner, strict=True):
            if worker == 1:
                client.sendall(b"alive")
                assert server.recv(5) == b"alive"
                server.close()
                assert read_all(client) == (b"", "FIN")
        # The sockets outlived the worker: who connects now waits a moment and is served.
        for _ in range(8):
            echo(scene)
        assert json.loads(scene.ask("stats", "-o", "json"))["restarts"] == 1


def test_workers_share_the_load_and_the_limits() -> None:
    with Scene("finwait", "--max-connections", "8", workers=2) as scene:
        clients = [scene.dial() for _ in range(24)]
        # Each worker has its half; more wait in the kernel's queue, and are served when others end.
        assert until(lambda: len(scene.ask("ls", "-o", "jsonl").splitlines()) == 8)
        assert stays(lambda: len(scene.ask("ls", "-o", "jsonl").splitlines()) == 8, 1.0)

        def let_go() -> bool:
            for client in select.select(clients, [], [], 0)[0] if clients else ():
                assert client.recv(1) == b""
                client.close()
                clients.remove(client)
            return not clients

        for _ in range(24):
            assert until(lambda: (let_go(), select.select([scene.listener], [], [], 0)[0])[1])
            scene.accept().close()
        assert until(let_go)


def test_no_privilege_is_kept_after_bind() -> None:
    with Scene("finwait", "--user", "nobody", "--client-fast-open", "16") as scene:
        pids = [pid_of(scene), *children(pid_of(scene))]
        for pid in pids:
            status = Path(f"/proc/{pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert "0" not in fields["Uid"].split()
            assert "0" not in fields["Gid"].split()
            assert int(fields["CapEff"], 16) == 0
            assert int(fields["CapPrm"], 16) == 0
        echo(scene)
        # Without privileges pipes may be small or few; bulk goes through all the same.
        client, server = scene.pair()
        data = blob(MB)
        client.settimeout(10)
        pushed = 0
        got = b""
        client.setblocking(False)
        while len(got) < MB:
            with contextlib.suppress(BlockingIOError):
                if pushed < MB:
                    pushed += client.send(data[pushed : pushed + 65536])
            if select.select([server], [], [], 0.01)[0]:
                got += server.recv(1 << 18)
        assert got == data


# ── reload, upgrade, activation ──────────────────────────────────────────────────────────────────────────────


CONFIG = """
admin = "{folder}/admin.sock"
access_log = "{folder}/access.log"
[[service]]
name = "relay"
listen = ["{front}:{port}"{more}]
[[service.backend]]
address = "{backend}"
[service.timeouts]
half_close = {half}
"""


def config_scene(half: str = '"5m"') -> Scene:
    """A scene whose relay reads a file; `write` changes the file."""
    scene = Scene("finwait")

    def command() -> list[str]:
        if not (scene.folder / "relay.toml").exists():
            write(scene, half=half)
        return [sys.executable, "-m", "finwait.relay", "run", "--config", str(scene.folder / "relay.toml")]

    scene.command = command  # type: ignore[method-assign]
    return scene


def write(
    scene: Scene, *, half: str = '"5m"', more: str = "", backend: str = "", text: str | None = None
) -> None:
    values = {
        "folder": scene.folder,
        "front": scene.address[0],
        "port": PORT,
        "more": more,
        "backend": backend or f"{scene.backend[0]}:{BACKEND}",
        "half": half,
    }
    (scene.folder / "relay.toml").write_text(CONFIG.format(**values) if text is None else text)


def test_a_reload_loses_no_connection_and_takes_new_settings() -> None:
    with config_scene() as scene:
        client, server = scene.pair()
        other = scene.server_ns.call(lambda: socket.create_server((scene.backend[0], 7010)))
        other.settimeout(10)
        write(scene, half="1", more=f', "{scene.address[0]}:7055"', backend=f"{scene.backend[0]}:7010")
        os.kill(pid_of(scene), signal.SIGHUP)
        assert until(lambda: "configuration reloaded" in scene.said())
        client.sendall(b"still here")
        assert server.recv(10) == b"still here"
        echo(scene, other)
        second = scene.client_ns.call(lambda: socket.create_connection((scene.address[0], 7055), timeout=10))
        accepted, _ = other.accept()
        # A connection keeps the settings it began with; new ones have the new.
        second.shutdown(socket.SHUT_WR)
        client.shutdown(socket.SHUT_WR)
        assert read_all(server)[1] == "FIN"
        assert is_reset(second)
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        server.sendall(b"answer")
        assert client.recv(6) == b"answer"
        accepted.close()
        second.close()
        other.close()
        # The listener goes again.
        write(scene, backend=f"{scene.backend[0]}:{BACKEND}")
        os.kill(pid_of(scene), signal.SIGHUP)
        assert until(lambda: scene.said().count("configuration reloaded") == 2)
        assert until(lambda: ":7055" not in scene.relay_ns.run("ss", "-Htln"))
        echo(scene)


def test_a_bad_configuration_is_refused_and_the_old_one_stays() -> None:
    with config_scene() as scene:
        write(scene, half='"soon"')
        os.kill(pid_of(scene), signal.SIGHUP)
        assert until(lambda: "relay.toml:10: `soon` is not a duration" in scene.said()), scene.said()
        echo(scene)
        write(scene, more=', "192.0.2.1:80"')
        os.kill(pid_of(scene), signal.SIGHUP)
        assert until(
            lambda: "could not listen on 192.0.2.1:80: the kernel said EADDRNOTAVAIL" in scene.said()
        )
        echo(scene)


def test_an_upgrade_hands_the_listeners_over_without_refusing_anyone() -> None:
    with Scene("finwait", workers=2) as scene:
        client, server = scene.pair()
        old = pid_of(scene)
        os.kill(old, signal.SIGUSR2)
        successor = 0
        # New connections all through the change: not one may be refused or reset.
        while not successor or (Path(f"/proc/{old}/status").exists() and "draining" not in scene.said()):
            echo(scene)
            if "to take over" in scene.said():
                successor = int(scene.said().rpartition("started pid ")[2].split()[0])
        try:
            for _ in range(8):
                echo(scene)
            client.sendall(b"old one")
            assert server.recv(7) == b"old one"
            client.close()
            server.close()
            assert scene.process is not None
            assert scene.process.wait(10) == 0
            assert until(lambda: scene.ask("stats", "-o", "json"))
            echo(scene)
        finally:
            os.kill(successor, signal.SIGTERM)
            os.kill(successor, signal.SIGTERM)
            assert until(lambda: not Path(f"/proc/{successor}").exists() or gone(successor))


def gone(pid: int) -> bool:
    return ") Z" in Path(f"/proc/{pid}/stat").read_text()


def test_systemd_can_pass_the_listeners() -> None:
    scene = Scene("finwait")

    def start() -> None:
        def launch() -> subprocess.Popen[bytes]:
            door = socket.create_server(scene.address)
            wrapper = (
                "import os,sys\n"
                f"os.dup2({door.fileno()}, 3)\n"
                "os.set_inheritable(3, True)\n"
                "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='web')\n"
                "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
            )
            argv = [sys.executable, "-c", wrapper, "-m", "finwait.relay", "run", "--listen", "fd:web"]
            argv += ["--to", f"{scene.backend[0]}:{BACKEND}", "--admin", scene.admin, "--workers", "2"]
            with open(scene.folder / "said", "wb") as said:
                process = subprocess.Popen(argv, stdout=said, stderr=said, pass_fds=(door.fileno(),))
            door.close()
            return process

        scene.process = scene.relay_ns.call(launch)
        assert until(lambda: "→" in scene.said()), scene.said()

    scene.start = start  # type: ignore[method-assign]
    with scene:
        for _ in range(4):
            echo(scene)


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_source_cannot_take_all() -> None:
    with Scene("finwait", "--max-per-source", "2") as scene:
        first, second = scene.pair(), scene.pair()
        assert turned_away(scene)
        first[0].close()
        first[1].close()
        assert until(lambda: len(scene.ask("ls", "-o", "jsonl").splitlines()) == 1)
        echo(scene)
        second[0].sendall(b"fine")
        assert second[1].recv(4) == b"fine"


def turned_away(scene: Scene) -> bool:
    """Whether a connection is reset, be it before connect() returns or after."""
    try:
        return is_reset(scene.dial())
    except ConnectionResetError:
        return True


def test_sources_are_admitted_by_network() -> None:
    with Scene("finwait", "--deny", "0.0.0.0/0") as scene:
        assert turned_away(scene)
        assert 'rejected_total{service="relay",why="acl"} 1' in scene.ask("stats")
        scene.restart("--allow", f"{scene.front.a4}/32")
        echo(scene)
        scene.restart("--allow", "192.0.2.0/24")
        assert turned_away(scene)


def test_without_descriptors_clients_wait_and_are_served_later() -> None:
    with Scene() as scene:
        worker = children(pid_of(scene))[0]
        used = len(list(Path(f"/proc/{worker}/fd").iterdir()))
        kept = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 4, kept[1]))
        first, second = scene.pair(), scene.pair()
        waiting = [scene.dial() for _ in range(3)]
        assert until(lambda: 'why="no_room"} 0' not in scene.ask("stats"))
        first[0].sendall(b"served")
        assert first[1].recv(6) == b"served"
        resource.prlimit(worker, resource.RLIMIT_NOFILE, kept)
        for client in waiting:
            server = scene.accept()
            server.sendall(b"later")
            assert client.recv(5) == b"later"
        second[0].close()


def test_a_connection_that_nobody_uses_is_cut() -> None:
    with Scene("finwait", "--first-byte", "1") as scene:
        silent, _ = scene.pair()
        used, server = scene.pair()
        server.sendall(b"hello")
        assert used.recv(5) == b"hello"
        assert is_reset(silent)
        assert scene.reasons() == {"first_byte": 1}
        used.sendall(b"still")
        assert server.recv(5) == b"still"


def test_idle_and_old_connections_are_cut_for_both_ends() -> None:
    with Scene("finwait", "--idle", "1") as scene:
        client, server = scene.pair()
        for _ in range(4):
            client.sendall(b".")
            assert server.recv(1) == b"."
            assert stays(lambda: len(scene.legs()) == 2, 0.5)
        assert is_reset(client)
        assert is_reset(server)
        scene.restart("--lifetime", "1")
        client, server = scene.pair()
        assert is_reset(client)
        assert is_reset(server)
        assert scene.reasons() == {"lifetime": 1}


def test_a_slow_reader_is_not_taken_for_a_dead_one() -> None:
    """TCP_USER_TIMEOUT would end it after 2 s with its window shut."""
    with Scene("finwait", "--client-user-timeout", "2") as scene:
        client, server = scene.pair()
        data = blob(32 * MB)
        server.setblocking(False)
        sent = 0
        while select.select([], [server], [], 1.0)[1] and sent < len(data):
            sent += server.send(data[sent : sent + 65536])
        assert sent < len(data), "the reader's window did not shut"
        assert stays(lambda: len(scene.legs()) == 2, 5.0)
        client.settimeout(10)
        got = b""
        while len(got) < len(data):
            with contextlib.suppress(BlockingIOError):
                if sent < len(data):
                    sent += server.send(data[sent : sent + 65536])
            if select.select([client], [], [], 0.1)[0]:
                part = client.recv(1 << 18)
                assert part
                got += part
        assert got == data


# ── backends ─────────────────────────────────────────────────────────────────────────────────────────────────


class Several:
    """The scene's backend and some more, told apart by where a connection arrives."""

    def __init__(self, scene: Scene, more: int) -> None:
        self.scene = scene
        self.socks = [scene.listener]
        self.to: list[str] = []
        for port in range(7020, 7020 + more):
            address = (scene.backend[0], port)
            sock = scene.server_ns.call(lambda address=address: socket.create_server(address, backlog=64))  # type: ignore[misc]
            scene.held.append(sock)
            self.socks.append(sock)
            self.to += ["--to", f"{address[0]}:{port}"]

    def hold(self) -> tuple[int, socket.socket, socket.socket]:
        """Connect once: which backend it was, and both ends."""
        client = self.scene.dial()
        ready = select.select(self.socks, [], [], 10)[0]
        assert len(ready) == 1
        server, _ = ready[0].accept()
        self.scene.held.append(server)
        return self.socks.index(ready[0]), client, server

    def who(self) -> int:
        """Connect, say which backend it was, and end the connection."""
        which, client, server = self.hold()
        client.close()
        assert read_all(server) == (b"", "FIN")
        server.close()
        assert until(lambda: not self.scene.legs())
        return which


def test_round_robin_goes_by_weight() -> None:
    with Scene() as scene:
        several = Several(scene, 2)
        scene.restart(*several.to[:-1], several.to[-1] + ",weight=2")
        seen = [several.who() for _ in range(8)]
        assert [seen.count(which) for which in range(3)] == [2, 2, 4]


def test_least_connections_goes_where_there_are_fewest() -> None:
    with Scene() as scene:
        several = Several(scene, 2)
        scene.restart(*several.to, "--balance", "least_connections")
        held = [several.hold() for _ in range(6)]
        assert sorted(which for which, _, _ in held) == [0, 0, 1, 1, 2, 2]
        for which, client, server in held:
            if which == 1:
                client.close()
                server.close()
        assert until(lambda: len(scene.ask("ls", "-o", "jsonl").splitlines()) == 4)
        assert [several.hold()[0] for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("options", [("--balance", "source_hash"), ("--affinity-timeout", "60")])
def test_a_source_comes_back_to_its_backend(options: tuple[str, ...]) -> None:
    with Scene() as scene:
        several = Several(scene, 3)
        scene.restart(*several.to, *options)
        assert len({several.who() for _ in range(6)}) == 1


def test_a_backend_that_keeps_failing_is_left_out() -> None:
    with Scene() as scene:
        several = Several(scene, 1)
        scene.restart(*several.to, "--outlier-failures", "2", "--outlier-eject", "60")
        several.socks[1].close()
        del several.socks[1]
        for _ in range(6):
            assert several.who() == 0
        text = scene.ask("stats")
        assert f'backend_up{{service="relay",backend="{scene.backend[0]}:7020"}} 0' in text
        assert f'backend_failed_total{{service="relay",backend="{scene.backend[0]}:7020"}} 2' in text


def test_health_checks_take_a_backend_out_and_bring_it_back() -> None:
    with Scene("finwait", "--health-interval", "0.2", "--health-rise", "1", "--health-fall", "1") as scene:
        address = scene.backend
        scene.listener.close()
        assert until(lambda: "is down: " in scene.said())
        assert until(
            lambda: (
                "finwait_relay_backend_up{" in scene.ask("stats")
                and '"} 0\n# HELP finwait_relay_backend_c' in scene.ask("stats")
            )
        )
        scene.listener = scene.server_ns.call(lambda: socket.create_server(address, backlog=512))
        scene.listener.settimeout(10)
        assert until(lambda: "is up: " in scene.said())


def test_a_file_of_backends_is_watched() -> None:
    with Scene() as scene:
        listing = scene.folder / "backends"
        listing.write_text(f"# none of these\n{scene.backend[0]}:{BACKEND}\n")
        command = scene.command

        def with_file() -> list[str]:
            argv = command()
            argv[argv.index("--to") + 1] = f"file:{listing}"
            return argv

        scene.command = with_file  # type: ignore[method-assign]
        scene.restart()
        echo(scene)
        other = scene.server_ns.call(lambda: socket.create_server((scene.backend[0], 7010)))
        other.settimeout(10)
        fresh = listing.with_suffix(".new")
        fresh.write_text(f"{scene.backend[0]}:7010\nnonsense\n")
        fresh.rename(listing)
        assert until(lambda: f'backend="{scene.backend[0]}:7010"' in scene.ask("stats"))
        assert f"{listing}:2: `nonsense` has no port" in scene.said()
        echo(scene, other)
        other.close()


def test_idle_connections_are_opened_early_used_once_and_checked_before_use() -> None:
    with Scene("finwait", "--pool-max-idle", "2", "--pool-idle-timeout", "60") as scene:
        early = [scene.accept(), scene.accept()]
        assert until(
            lambda: 'backend_idle{service="relay"' in scene.ask("stats") and '"} 2\n' in scene.ask("stats")
        )
        client = scene.dial()
        client.sendall(b"quick")
        ready = select.select(early, [], [], 10)[0]
        assert ready, "the pre-opened connection was not used"
        assert ready[0].recv(5) == b"quick"
        # One whose server closes it is not used any more: the client meets a live one.
        for sock in early:
            if sock not in ready:
                sock.close()
        replacement = [scene.accept()]
        second = scene.dial()
        second.sendall(b"again")
        assert until(lambda: bool(select.select([*replacement, scene.listener], [], [], 0)[0]))
        while not (found := select.select(replacement, [], [], 0.2)[0]):
            replacement.append(scene.accept())
        assert found[0].recv(5) == b"again"


# ── headers, addresses, urgent data ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_backend_is_told_who_the_client_is(version: str) -> None:
    with Scene("finwait", "--send-proxy", version) as scene:
        client = scene.dial()
        client.sendall(b"hello")
        server = scene.accept()
        data = b""
        while not data.endswith(b"hello"):
            data += server.recv(1000)
        header = proxy_protocol.parse(data)
        assert header is not None
        assert (header.source, header.destination) == (client.getsockname(), scene.address)
        assert data[header.size :] == b"hello"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_clients_header_is_read_in_pieces_and_believed(version: str) -> None:
    with Scene("finwait", "--accept-proxy", "--send-proxy", "v1", "--header", "2") as scene:
        client = scene.dial()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        header = proxy_protocol.encode(version, ("192.0.2.9", 999), ("192.0.2.1", 80))
        for byte in header:
            client.sendall(bytes([byte]))
        client.sendall(b"after")
        server = scene.accept()
        data = b""
        while not data.endswith(b"after"):
            data += server.recv(1000)
        assert data == b"PROXY TCP4 192.0.2.9 192.0.2.1 999 80\r\nafter"
        assert '"source": "192.0.2.9:999"' in scene.ask("ls", "-o", "jsonl")
        nonsense = scene.dial()
        nonsense.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert is_reset(nonsense)
        assert turned_away(scene), "silence is not a header"
        assert scene.reasons() == {"header": 2}


def test_every_kind_of_address() -> None:
    with Scene() as scene:
        path, far = scene.folder / "in.sock", scene.folder / "out.sock"
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(str(far))
        unix.listen()
        unix.settimeout(10)
        scene.restart(
            "--listen", f"unix:{path}", "--listen", "*:7040", "--listen", f"[{scene.front.b6}]:7050-7052"
        )
        for where in (path, (scene.front.b4, 7040), (scene.front.b6, 7040), (scene.front.b6, 7051)):

            def dial(where: object = where) -> socket.socket:
                if isinstance(where, Path):
                    sock = socket.socket(socket.AF_UNIX)
                    sock.connect(str(where))
                    return sock
                assert isinstance(where, tuple)
                return socket.create_connection(where, timeout=10)

            client = scene.client_ns.call(dial)
            server = scene.accept()
            client.sendall(b"request")
            client.shutdown(socket.SHUT_WR)
            assert read_all(server) == (b"request", "FIN")
            server.sendall(b"answer")
            server.close()
            assert read_all(client) == (b"answer", "FIN")
            client.close()
        unix.close()


def test_an_urgent_byte_stays_in_the_stream_at_its_place() -> None:
    with Scene() as scene:
        client, server = scene.pair()
        data = blob(MB)
        server.setblocking(False)
        got = b""

        def drain(until_size: int) -> None:
            nonlocal got
            end = time.monotonic() + 20
            while len(got) < until_size and time.monotonic() < end:
                if select.select([server], [], [], 0.1)[0]:
                    got += server.recv(1 << 18)

        client.settimeout(10)
        client.sendall(data[:100_000])
        drain(100_000)
        client.send(b"!", socket.MSG_OOB)
        client.sendall(data[:100_000])
        drain(200_001)
        assert got == data[:100_000] + b"!" + data[:100_000]


def test_who_asks_gets_answers_and_can_end_a_connection() -> None:
    with Scene() as scene:
        client, server = scene.pair()
        listed = json.loads(scene.ask("ls", "-o", "jsonl"))
        assert listed["state"] == "OPEN"
        assert listed["client"]["peer"].endswith(f":{client.getsockname()[1]}")
        assert listed["server"]["local"].endswith(f":{server.getpeername()[1]}")
        client.shutdown(socket.SHUT_WR)
        assert until(lambda: scene.ask("ls", "--half-closed", "-o", "jsonl"))
        (shown,) = json.loads(scene.ask("show", listed["id"], "-o", "json"))["items"]
        assert shown["state"] == "CLIENT_ENDED"
        assert 0 < shown["deadline_s"] <= 300
        assert scene.ask("close", listed["id"]) == "1 of 1 ended by RST\n"
        assert is_reset(client)
        assert is_reset(server)
        reset(client)
        metrics = scene.ask("stats")
        assert 'ended_total{service="relay",reason="killed"} 1' in metrics
        assert oct(os.stat(scene.admin).st_mode & 0o777) == "0o600"
        assert scene.ask("drain", "--seconds", "1") == "draining\n"
        assert scene.process is not None
        assert scene.process.wait(10) == 0


def test_a_drain_can_be_shortened_and_a_longer_one_says_what_holds() -> None:
    with Scene("finwait", "--drain", "10m", workers=2) as scene:
        pairs = [scene.pair() for _ in range(4)]
        assert scene.process is not None

        def cuts() -> list[float]:
            return [json.loads(line)["deadline_s"] for line in scene.ask("ls", "-o", "jsonl").splitlines()]

        scene.process.terminate()
        assert until(lambda: "draining for up to 600 s" in scene.said())
        longer = [sys.executable, "-m", "finwait.relay", "drain", "--admin", scene.admin, "--seconds", "1h"]
        told = subprocess.run(longer, capture_output=True, text=True)
        assert told.returncode == 1
        assert re.search(r"resets what is left in (59\d\.\d|600\.0) s; ", told.stderr), told.stderr
        assert min(cuts()) > 400
        assert scene.ask("drain") == "draining\n"
        assert min(cuts()) > 400
        assert scene.ask("drain", "--seconds", "5m") == "draining\n"
        assert until(lambda: len(cuts()) == 4 and max(cuts()) <= 300)
        assert scene.ask("drain", "--seconds", "0") == "draining\n"
        for pair in pairs:
            assert all(is_reset(end) for end in pair)
        assert scene.process.wait(WAIT) == 0
        assert "killed" not in scene.said()


def test_the_access_log_has_a_line_for_each_connection() -> None:
    with config_scene() as scene:
        client, server = scene.pair()
        client.sendall(b"12345")
        client.close()
        read_all(server)
        server.close()
        log = scene.folder / "access.log"
        assert until(lambda: log.exists() and log.read_text().endswith("}\n"))
        entry = json.loads(log.read_text())
        assert entry["reason"] == "client_fin_first"
        assert entry["bytes_from_client"] == 5
        log.rename(scene.folder / "access.1")
        os.kill(pid_of(scene), signal.SIGUSR1)
        assert until(log.exists)
        echo(scene)
        assert until(lambda: log.read_text().endswith("}\n"))


def test_random_scripts_agree_with_the_model() -> None:
    from tests.kernel import relay_random

    with Scene() as scene:
        relay_random.run(scene, 300, seed=2026)


def test_under_everything_at_once_no_byte_is_lost_and_nothing_is_left() -> None:
    soak = Soak(seconds=4, seed=4, clients=12)
    assert soak.run() == []
    assert set(soak.acts) == {"reload", "restart_backend", "cut", "starve", "kill"}
    assert soak.ends["FIN/FIN"] > 50


def test_a_running_configuration_is_explained_with_its_values() -> None:
    argv = [sys.executable, "-m", "finwait.relay", "run", "--explain"]
    plain = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "service.listen = (must be given)" in plain
    given = ["--listen", "127.0.0.1:1", "--to", "127.0.0.1:2,weight=3", "--half-close", "7m"]
    told = subprocess.run([*argv, *given], capture_output=True, text=True, check=True).stdout
    assert "service.listen = 127.0.0.1:1 " in told
    assert "service.backend.weight = 3 " in told
    assert "service.timeouts.half_close = 420 s" in told
    assert "service.send_proxy = none" in told
