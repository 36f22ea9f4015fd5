"""Options of the relay whose effect only the wire, the routing table or the descriptor table shows."""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path

import pytest

from finwait import session
from finwait.diagnosis.finding import Finding
from finwait.kernel.observe import LookPlan
from finwait.session import Look
from tests.kernel import needs
from tests.kernel.relay_behaviour import BACKEND, PORT, Scene, is_reset, read_all, reset, until
from tests.kernel.test_relay_service import (
    Several,
    children,
    config_scene,
    echo,
    gone,
    pid_of,
    turned_away,
    write,
)

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs() -> None:
    needs.root_and("ip", "ss", "nft")


# ── seen from outside ──


def test_finwait_knows_a_half_closed_pair_of_its_own_relay() -> None:
    """The keepalive timer is armed on both legs while nothing is on its way, so the finding is a notice."""
    with Scene() as scene:
        client, server = scene.pair()
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        assert read_all(server) == (b"request", "FIN")
        look = Look(plan=LookPlan(only=frozenset({scene.relay_ns.inode}), established_limit=None))
        found: list[Finding] = []

        def seen() -> bool:
            found[:] = [one for one in session.diagnose(how=look).findings if one.rule == "relay-pair"]
            return bool(found) and found[0].severity == "notice"

        assert until(seen), found
        assert len(found[0].rows) == 2
        holder = next(evidence for evidence in found[0].evidence if evidence.column == "holder")
        assert holder.value == "finwait-relay"
        server.sendall(b"answer")
        server.close()
        assert read_all(client) == (b"answer", "FIN")


# ── descriptors ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_without_descriptors_lives_while_connections_end_and_are_logged() -> None:
    with config_scene() as scene:
        worker = children(pid_of(scene))[0]
        first, second = scene.pair(), scene.pair()
        kept = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{worker}/fd").iterdir()))
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (used, kept[1]))
        waiting = scene.dial()
        assert until(lambda: 'why="no_room"} 0' not in scene.ask("stats"))
        assert len(scene.ask("ls").splitlines()) == 3
        reset(first[0])
        assert is_reset(first[1])
        log = scene.folder / "access.log"
        assert until(lambda: '"client_reset"' in log.read_text())
        assert json.loads(log.read_text().splitlines()[0])["server"]["local"].startswith(scene.back.a4)
        server = scene.accept()
        server.sendall(b"later")
        assert waiting.recv(5) == b"later"
        resource.prlimit(worker, resource.RLIMIT_NOFILE, kept)
        second[0].sendall(b"all along")
        assert second[1].recv(9) == b"all along"
        assert children(pid_of(scene)) == [worker]


def test_no_more_connections_are_taken_than_there_are_descriptors_for() -> None:
    scene = Scene("finwait")
    command = scene.command
    scene.command = lambda: ["prlimit", "--nofile=181:181", *command()]  # type: ignore[method-assign]
    with scene:
        assert "the limit is 181" in scene.said()
        room = (181 - 2 * 64 - 32 - 1) // 2
        held = [scene.pair() for _ in range(room)]
        waiting = scene.dial()
        assert until(lambda: len(scene.ask("ls", "-o", "jsonl").splitlines()) == room)
        assert not select.select([scene.listener], [], [], 0.5)[0]
        assert 'why="no_room"} 0' in scene.ask("stats"), "it ran into the limit instead of knowing it"
        for sock in held.pop():
            sock.close()
        server = scene.accept()
        server.sendall(b"now")
        assert waiting.recv(3) == b"now"


# ── upgrade ──────────────────────────────────────────────────────────────────────────────────────────────────

UPGRADE = """
workers = {workers}
admin = "{admin}"
metrics = "{front}:7090"
[[service]]
listen = ["{front}:{port}"]
backend = [{{ address = "{backend}" }}]
"""


def test_an_upgrade_keeps_all_sockets_and_may_have_fewer_workers() -> None:
    scene = config_scene()
    text = ""

    def put(workers: int) -> None:
        nonlocal text
        backend = f"{scene.backend[0]}:{BACKEND}"
        text = UPGRADE.format(
            workers=workers, admin=scene.admin, front=scene.address[0], port=PORT, backend=backend
        )
        write(scene, text=text)

    command = scene.command

    def first() -> list[str]:
        put(3)
        return command()

    scene.command = first  # type: ignore[method-assign]
    with scene:
        client, server = scene.pair()
        old = pid_of(scene)
        path = os.stat(scene.admin).st_ino
        put(1)
        os.kill(old, signal.SIGUSR2)
        assert until(lambda: "draining" in scene.said()), scene.said()
        successor = int(scene.said().rpartition("started pid ")[2].split()[0])
        try:
            assert until(lambda: len(children(old)) < 3, 20)
            # Whatever listener the kernel chooses, somebody accepts.
            for _ in range(24):
                echo(scene)
            assert [
                worker["index"] for worker in json.loads(scene.ask("stats", "-o", "json"))["workers"]
            ] == [0]
            client.close()
            assert read_all(server)[1] == "FIN"
            server.close()
            assert scene.process is not None
            assert scene.process.wait(10) == 0
            assert os.stat(scene.admin).st_ino == path
            echo(scene)
            with scene.client_ns.call(lambda: socket.create_connection((scene.address[0], 7090))) as scrape:
                scrape.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                assert b"finwait_relay_workers 1\n" in read_all(scrape)[0]
        finally:
            os.kill(successor, signal.SIGTERM)
            os.kill(successor, signal.SIGTERM)
            assert until(lambda: not Path(f"/proc/{successor}").exists() or gone(successor))


def test_an_upgrade_that_cannot_start_changes_nothing() -> None:
    scene = Scene()
    command = scene.command

    def by_a_link() -> list[str]:
        link = scene.folder / "python"
        link.symlink_to(sys.executable)
        return ["env", f"PYTHONPATH={os.pathsep.join(filter(None, sys.path))}", str(link), *command()[1:]]

    scene.command = by_a_link  # type: ignore[method-assign]
    with scene:
        (scene.folder / "python").unlink()
        os.kill(pid_of(scene), signal.SIGUSR2)
        assert until(lambda: f"to take over: {os.strerror(errno.ENOENT)}" in scene.said())
        echo(scene)
        scene.ask("ls")


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_behind_a_proxy_the_clients_are_counted_and_not_the_proxy() -> None:
    with Scene("finwait", "--accept-proxy", "--max-per-source", "1") as scene:

        def arrive(host: str) -> socket.socket:
            sock = scene.dial()
            sock.sendall(f"PROXY TCP4 {host} 198.51.100.1 999 80\r\n".encode())
            return sock

        first, other = arrive("192.0.2.1"), arrive("192.0.2.2")
        pairs = [scene.accept(), scene.accept()]
        assert is_reset(arrive("192.0.2.1"))
        stats = scene.ask("stats")
        assert 'why="per_source"} 1' in stats
        assert 'reason="per_source"} 1' in stats
        first.close()
        other.close()
        for server in pairs:
            assert read_all(server)[1] == "FIN"
            server.close()
        assert until(lambda: not scene.ask("ls", "-o", "jsonl"))
        arrive("192.0.2.1")
        scene.accept()


def test_a_backend_is_not_given_more_than_it_may_have() -> None:
    with Scene() as scene:
        several = Several(scene, 1)
        scene.restart(several.to[0], several.to[1] + ",max=1", "--balance", "least_connections")
        held = [several.hold()[0] for _ in range(5)]
        assert sorted(held) == [0, 0, 0, 0, 1]


def test_draining_spreads_the_cuts() -> None:
    with Scene("finwait", "--drain", "60", "--drain-spread", "1") as scene:
        for _ in range(8):
            scene.pair()
        scene.ask("drain")
        assert until(lambda: "draining" in scene.said())
        found = [json.loads(line)["deadline_s"] for line in scene.ask("ls", "-o", "jsonl").splitlines()]
        assert len(set(found)) == 8
        assert max(found) - min(found) > 5


def test_a_drain_of_nonsense_is_refused_and_nothing_drains() -> None:
    with Scene() as scene, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(scene.admin)
        answers = sock.makefile("rb")
        for question in (
            b'{"do":"drain","seconds":"soon"}',
            b"{}",
            b"[1]",
            b"\xff",
            b'{"do":"close","ids":7}',
        ):
            sock.sendall(question + b"\n")
            assert "error" in json.loads(answers.readline())
        echo(scene)


# ── addresses and marks ──────────────────────────────────────────────────────────────────────────────────────


def test_a_transparent_relay_shows_the_client_to_the_server() -> None:
    with Scene("finwait", "--server-transparent") as scene:
        scene.relay_ns.ip(f"rule add iif {scene.back.a_dev} lookup 100")
        scene.relay_ns.ip("route add local 0.0.0.0/0 dev lo table 100")
        scene.server_ns.ip(f"route add {scene.front.a4} via {scene.back.a4}")
        client, server = scene.pair()
        assert server.getpeername()[0] == client.getsockname()[0] == scene.front.a4
        client.sendall(b"as myself")
        assert server.recv(9) == b"as myself"


def test_a_transparent_listener_takes_connections_to_addresses_that_are_not_ours() -> None:
    with Scene() as scene:
        scene.relay_ns.ip(f"rule add iif {scene.front.b_dev} lookup 100")
        scene.relay_ns.ip("route add local 192.0.2.0/24 dev lo table 100")
        scene.client_ns.ip(f"route add 192.0.2.0/24 via {scene.front.b4}")
        scene.restart("--listen", f"192.0.2.7:{PORT}", "--client-transparent")
        client = scene.client_ns.call(lambda: socket.create_connection(("192.0.2.7", PORT), timeout=10))
        scene.held.append(client)
        server = scene.accept()
        server.sendall(b"yes")
        assert client.recv(3) == b"yes"


def test_marks_and_source_addresses_reach_the_wire() -> None:
    with Scene() as scene:
        scene.relay_ns.ip("address add 192.0.2.77/32 dev lo")
        scene.server_ns.ip(f"route add 192.0.2.77 via {scene.back.a4}")
        scene.relay_ns.nft(
            "table inet seen {\n chain out {\n  type filter hook output priority 0\n"
            "  meta mark 7 counter\n  meta mark 9 counter\n }\n}"
        )
        scene.restart("--server-mark", "7", "--client-mark", "9", "--server-bind", "192.0.2.77")
        client, server = scene.pair()
        assert server.getpeername()[0] == "192.0.2.77"
        server.sendall(b"answer")
        assert client.recv(6) == b"answer"
        rules = scene.relay_ns.run("nft", "list", "table", "inet", "seen").splitlines()
        counted = [
            line.split("counter packets ")[1].split()[0] for line in rules if "counter packets" in line
        ]
        assert all(int(count) > 0 for count in counted)
        assert len(counted) == 2


def test_a_listener_takes_only_what_comes_in_by_its_device() -> None:
    with Scene() as scene:
        scene.restart("--client-device", scene.front.b_dev)
        echo(scene)
        scene.restart("--client-device", scene.back.a_dev)
        with pytest.raises(ConnectionRefusedError):
            scene.dial()


def test_socket_options_are_those_that_were_asked_for() -> None:
    options = ("--client-keepalive-idle", "40", "--server-keepalive-idle", "50", "--no-client-nodelay")
    with Scene("finwait", *options, "--client-user-timeout", "0") as scene:
        client, _ = scene.pair()
        client.sendall(b"x")
        shown: list[str] = []

        def timers() -> bool:
            shown[:] = scene.relay_ns.run("ss", "-Htno", "state", "established").splitlines()
            found = " ".join(line.rpartition("timer:")[2] for line in shown)
            return "(keepalive,3" in found and "(keepalive,4" in found

        assert until(timers), shown


# ── backends ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_check_speaks_the_header_and_reads_the_answer() -> None:
    options = ("--health-interval", "0.2", "--health-fall", "1", "--health-rise", "1", "--send-proxy", "v1")
    words = ("--health-send", "PING\\r\\n", "--health-expect", "PONG")
    with Scene("finwait", *options, *words) as scene:

        def answered(answer: bytes, word: str) -> bool:
            if select.select([scene.listener], [], [], 0)[0]:
                with scene.accept() as server:
                    server.settimeout(5)
                    got = b""
                    while b"PING\r\n" not in got:
                        got += server.recv(100)
                    assert got == b"PROXY UNKNOWN\r\nPING\r\n"
                    server.sendall(answer)
            return word in scene.said()

        assert until(lambda: answered(b"PANG", "is down: the answer does not contain `PONG`"))
        assert until(lambda: answered(b"PONG", "is up: "))


def test_a_name_is_a_backend_for_each_of_its_addresses() -> None:
    scene = Scene()
    command = scene.command

    def named() -> list[str]:
        argv = command()
        argv[argv.index("--to") + 1] = f"dns:{scene.backend[0]}:{BACKEND}"
        return argv

    scene.command = named  # type: ignore[method-assign]
    with scene:
        echo(scene)
        assert f'backend="{scene.backend[0]}:{BACKEND}"' in scene.ask("stats")


def test_a_limit_that_was_lifted_and_set_again_counts_right() -> None:
    with config_scene() as scene:

        def limit(text: str, times: int) -> None:
            write(scene, half='"5m"')
            path = scene.folder / "relay.toml"
            path.write_text(path.read_text().replace('name = "relay"', f'name = "relay"\n{text}'))
            os.kill(pid_of(scene), signal.SIGHUP)
            assert until(lambda: scene.said().count("configuration reloaded") == times)

        limit("max_per_source = 1", 1)
        client, server = scene.pair()
        assert turned_away(scene)
        limit("", 2)
        client.close()
        assert read_all(server)[1] == "FIN"
        server.close()
        assert until(lambda: not scene.ask("ls", "-o", "jsonl"))
        limit("max_per_source = 1", 3)
        echo(scene)
