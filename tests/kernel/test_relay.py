"""The relay's behaviour on the wire: real processes and sockets in namespaces, both ends asserted."""

from __future__ import annotations

import contextlib
import select
import signal
import socket

import pytest

from tests.kernel import needs
from tests.kernel.relay_behaviour import (
    BACKEND,
    BEHAVIOURS,
    Scene,
    is_reset,
    read_all,
    reset,
    stays,
    until,
)

pytestmark = pytest.mark.kernel

PROBES = (
    *("--client-keepalive-idle", "1", "--client-keepalive-interval", "1", "--client-keepalive-count", "2"),
    *("--server-keepalive-idle", "1", "--server-keepalive-interval", "1", "--server-keepalive-count", "2"),
)
USER_TIMEOUT = ("--client-user-timeout", "2", "--server-user-timeout", "2")


@pytest.fixture(autouse=True)
def _needs() -> None:
    needs.root_and("ip", "ss", "nft")


@pytest.mark.parametrize("name", [name for name in BEHAVIOURS if name not in ("T7", "T8")])
def test_the_relay_behaves_as_a_direct_connection_would(name: str) -> None:
    with Scene() as scene:
        before = scene.descriptors()
        assert BEHAVIOURS[name](scene) == ""
        assert until(lambda: scene.ask("ls", "-o", "jsonl") == "")
        pipes = 4  # what is kept for the next bulk transfer
        assert until(lambda: scene.descriptors() <= before + pipes)


def test_a_direct_connection_passes_the_same_scripts() -> None:
    """The oracle: what is asked of the relay is what TCP does without one."""
    for name in ("T1", "T2", "T3", "T4", "T5", "T10", "T11", "T12"):
        with Scene("direct") as scene:
            assert BEHAVIOURS[name](scene) == "", name


def test_a_half_closed_client_with_live_peers_is_held() -> None:
    with Scene("finwait", *PROBES, "--half-close", "60", fin_timeout=2) as scene:
        assert BEHAVIOURS["T7"](scene) == ""


def test_a_half_close_is_capped_from_its_last_byte() -> None:
    with Scene("finwait", "--half-close", "1.5") as scene:
        client, server = scene.pair()
        client.shutdown(socket.SHUT_WR)
        assert read_all(server) == (b"", "FIN")
        # Bytes that trickle hold it: five of them, two a second, are longer than the cap.
        for _ in range(5):
            assert stays(lambda: len(scene.legs()) == 2, 0.5)
            server.sendall(b".")
        assert read_all(client, 5) == (b".....", "more")
        assert is_reset(client)
        assert is_reset(server)
        assert until(lambda: not scene.legs())
        assert scene.reasons() == {"half_close": 1}


def test_a_client_that_closed_fully_is_found_by_a_probe_and_both_legs_go() -> None:
    with Scene("finwait", *PROBES, "--half-close", "0", fin_timeout=2) as scene:
        assert BEHAVIOURS["T8"](scene) == ""
        assert scene.reasons() == {"client_gone": 1}


def test_a_server_that_closed_fully_is_found_by_a_probe_and_both_legs_go() -> None:
    with Scene("finwait", *PROBES, "--half-close", "0", fin_timeout=2) as scene:
        client, server = scene.pair()
        server.close()
        assert read_all(client) == (b"", "FIN")
        assert until(lambda: not scene.legs())
        assert scene.reasons() == {"server_gone": 1}


@pytest.mark.parametrize("state", ["open", "client_half", "server_half", "sending", "zero_window"])
@pytest.mark.parametrize("lost", ["client", "server"])
def test_a_peer_that_vanishes_in_any_state_leaves_nothing(state: str, lost: str) -> None:
    with Scene("finwait", *PROBES, *USER_TIMEOUT, "--half-close", "0", fin_timeout=2) as scene:
        client, server = scene.pair()
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        near, far = (client, server) if lost == "client" else (server, client)
        if state == "client_half":
            client.shutdown(socket.SHUT_WR)
            assert read_all(server)[1] == "FIN"
        elif state == "server_half":
            server.shutdown(socket.SHUT_WR)
            assert read_all(client)[1] == "FIN"
        elif state == "zero_window":
            # The one that will vanish does not read, until nothing more goes.
            far.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while (
                    stays(lambda: not select.select([], [far], [], 0)[1], 0)
                    or select.select([], [far], [], 1.0)[1]
                ):
                    far.send(b"z" * 65536)
        link = scene.front if lost == "client" else scene.back
        link.cut()
        if state == "sending":
            far.sendall(b"y" * 1000)
        assert until(lambda: not scene.legs(), 30), scene.legs()
        assert is_reset(far)
        del near


def test_a_connection_attempt_ends_when_its_client_vanishes_or_resets() -> None:
    with Scene("finwait", "--connect-timeout", "30") as scene:
        scene.back.cut()
        client = scene.dial()
        assert until(lambda: any("SYN-SENT" in leg for leg in scene.legs()))
        reset(client)
        assert until(lambda: not scene.legs())
        assert scene.reasons() == {"client_reset": 1}


def test_a_black_hole_ends_in_a_reset_after_all_tries() -> None:
    with Scene("finwait", "--connect-timeout", "0.5", "--tries", "2") as scene:
        scene.back.cut()
        client = scene.dial()
        assert read_all(client) == (b"", "RST")
        assert until(lambda: not scene.legs())
        assert scene.reasons() == {"connect_timeout": 1}


def test_another_backend_is_tried_when_one_refuses_or_is_a_black_hole() -> None:
    with Scene() as scene:
        hole = scene.back.b4.rpartition(".")[0] + ".77"
        scene.relay_ns.ip(f"route add blackhole {hole}")
        scene.restart(
            *(
                "--to",
                f"{scene.backend[0]}:9",
                "--to",
                f"{hole}:{BACKEND}",
                "--connect-timeout",
                "0.5",
                "--tries",
                "3",
            )
        )
        for _ in range(4):
            client, server = scene.pair()
            client.sendall(b"through")
            assert server.recv(7) == b"through"


# ── draining ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_draining_in_each_state() -> None:
    options = ("--drain", "3", "--drain-half-close", "1", "--connect-timeout", "30")
    with Scene("finwait", *options) as scene:
        open_client, open_server = scene.pair()
        half_client, half_server = scene.pair()
        half_client.shutdown(socket.SHUT_WR)
        assert read_all(half_server)[1] == "FIN"
        busy_client, busy_server = scene.pair()
        assert scene.process is not None
        scene.process.send_signal(signal.SIGTERM)
        # No new connections …
        assert until(lambda: "draining" in scene.said())

        def refused() -> bool:
            try:
                scene.client_ns.call(lambda: socket.create_connection(scene.address, timeout=1)).close()
            except ConnectionRefusedError:
                return True
            return False

        assert until(refused)
        # … those that live go on, and may end by themselves …
        busy_client.sendall(b"still")
        assert busy_server.recv(5) == b"still"
        busy_client.close()
        assert read_all(busy_server)[1] == "FIN"
        busy_server.close()
        # … half-closed ones get a second, the rest three, and both ends see that they were cut.
        assert is_reset(half_client)
        assert is_reset(half_server)
        assert open_client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert is_reset(open_client)
        assert is_reset(open_server)
        assert scene.process.wait(10) == 0
        assert until(lambda: not scene.legs())


def test_a_drain_ends_when_the_last_connection_does() -> None:
    with Scene("finwait", "--drain", "100") as scene:
        client, server = scene.pair()
        assert scene.process is not None
        scene.process.send_signal(signal.SIGTERM)
        assert until(lambda: "draining" in scene.said())
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert read_all(server) == (b"last words", "FIN")
        server.sendall(b"answer")
        server.close()
        assert read_all(client) == (b"answer", "FIN")
        assert scene.process.wait(10) == 0


def test_the_second_sigterm_stops_at_once() -> None:
    with Scene("finwait", "--drain", "100") as scene:
        client, server = scene.pair()
        assert scene.process is not None
        scene.process.send_signal(signal.SIGTERM)
        assert until(lambda: "draining" in scene.said())
        scene.process.send_signal(signal.SIGTERM)
        assert is_reset(client)
        assert is_reset(server)
        assert scene.process.wait(10) == 0
