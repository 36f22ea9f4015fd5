"""What a relay must not do for somebody else: write through his links, wait for his FIFO, run in a circle."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from finwait.lab.topology import Lab, Netns
from tests.kernel import needs
from tests.kernel.relay_behaviour import until

pytestmark = pytest.mark.kernel
NOBODY = 65534


@pytest.fixture
def netns() -> Iterator[Netns]:
    needs.root_and("ip", "nft", "setpriv")
    with Lab() as lab:
        yield lab.netns("relay")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for above in (tmp_path, *tmp_path.parents[:-1]):
        above.chmod(above.stat().st_mode | 0o011)
    return tmp_path


class Relay:
    """A relay that runs in a namespace, and what it says."""

    def __init__(
        self, netns: Netns, folder: Path, *words: str, program: tuple[str, str] = ("-m", "finwait")
    ) -> None:
        self.said_in = folder / "said"
        self.admin = folder / "admin.sock"
        with self.said_in.open("wb") as out:
            self.process = netns.call(
                lambda: subprocess.Popen(
                    [sys.executable, *program, "relay", "run", "--admin", str(self.admin), *words],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                )
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self.said_in.read_text()

    def serves(self) -> bool:
        return until(lambda: "→" in self.said or self.process.poll() is not None) and "→" in self.said

    def refuses(self) -> bool:
        return until(lambda: self.process.poll() is not None) and self.process.returncode != 0

    def ask(self, line: bytes) -> dict[str, object]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(self.admin))
            sock.sendall(line + b"\n")
            answer: dict[str, object] = json.loads(sock.makefile("rb").readline())
            return answer


PLAIN = ("--listen", "127.0.0.1:8001", "--to", "127.0.0.1:8101")


def test_the_log_is_not_opened_through_a_link_of_the_user(netns: Netns, folder: Path) -> None:
    victim = folder / "victim"
    victim.write_text("secret")
    victim.chmod(0o600)
    (folder / "log").mkdir()
    os.chown(folder / "log", NOBODY, NOBODY)
    link = folder / "log" / "access.log"
    link.symlink_to(victim)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    with Relay(netns, folder, *PLAIN, "--user", "nobody", "--access-log", str(link)) as relay:
        assert relay.refuses()
        assert "a symbolic link" in relay.said
        assert "Traceback" not in relay.said
    status = victim.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode), victim.read_text()) == (0, 0o600, "secret")
    link.unlink()
    os.link(victim, link)
    with Relay(netns, folder, *PLAIN, "--user", "nobody", "--access-log", str(link)) as relay:
        assert relay.refuses()
    assert victim.stat().st_uid == 0


@pytest.mark.parametrize("owner", [0, NOBODY])
def test_the_log_is_made_for_the_user_and_opened_again(netns: Netns, folder: Path, owner: int) -> None:
    (folder / "log").mkdir()
    os.chown(folder / "log", owner, owner)
    log = folder / "log" / "access.log"
    with Relay(netns, folder, *PLAIN, "--user", "nobody", "--access-log", str(log)) as relay:
        assert relay.serves()
        assert (log.stat().st_uid, stat.S_IMODE(log.stat().st_mode)) == (NOBODY, 0o640)
        log.rename(log.with_suffix(".1"))
        if owner == 0:
            log.touch()
            os.chown(log, NOBODY, NOBODY)  # as logrotate does
        relay.process.send_signal(signal.SIGUSR1)
        relay.process.send_signal(signal.SIGHUP)
        assert until(lambda: "reloaded" in relay.said)
        assert "stays where it was" not in relay.said
        assert log.exists()


def test_an_admin_socket_where_others_could_put_one_is_refused(netns: Netns, folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run").chmod(0o777)
    with Relay(netns, folder, *PLAIN, "--admin", str(folder / "run" / "a.sock")) as relay:
        assert relay.refuses()
        assert "others can write" in relay.said


def test_a_stale_socket_of_somebody_else_is_left_alone(netns: Netns, folder: Path) -> None:
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    for name in ("theirs", "ours"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(shared / name))
    os.chown(shared / "theirs", NOBODY, NOBODY)
    words = ("--to", "127.0.0.1:8101")
    with Relay(netns, folder, "--listen", f"unix:{shared}/theirs", *words) as relay:
        assert relay.refuses()
    assert (shared / "theirs").stat().st_uid == NOBODY
    with Relay(netns, folder, "--listen", f"unix:{shared}/ours", *words) as relay:
        assert relay.serves()
        (shared / "ours").rename(shared / "moved")
        (shared / "ours").write_text("another's")
        relay.process.terminate()
        assert relay.process.wait(20) == 0
    assert (shared / "ours").read_text() == "another's"


def test_a_fifo_of_backends_holds_nobody_up(netns: Netns, folder: Path) -> None:
    os.mkfifo(folder / "backends")
    with Relay(netns, folder, "--listen", "127.0.0.1:8001", "--to", f"file:{folder}/backends") as relay:
        assert relay.serves()
        assert relay.ask(b'{"do": "ls"}') == {"ok": []}
        relay.process.terminate()
        assert relay.process.wait(20) == 0


def test_no_request_of_the_admin_socket_ends_its_answers(netns: Netns, folder: Path) -> None:
    with Relay(netns, folder, *PLAIN) as relay:
        assert relay.serves()
        for line in (
            b"[" * 60_000, b'{"do":' * 10_000, b"7", b"[]", b'{"do": 7}', b'{"do": "show", "ids": [["0-1"]]}',
            b'{"do": "close", "ids": ["0-99999999999999999999"]}', b'{"do": "show", "ids": ["x"]}', b"\xff",
            b'{"do": "drain", "seconds": "soon"}', b'{"do": "what"}',
        ):  # fmt: skip
            assert "error" in relay.ask(line), line
        assert relay.ask(b'{"do": "ls"}') == {"ok": []}
        assert "Traceback" not in relay.said


def test_head_of_the_metrics_is_answered_without_them(netns: Netns, folder: Path) -> None:
    with Relay(netns, folder, *PLAIN, "--metrics", "127.0.0.1:9464") as relay:
        assert relay.serves()

        def ask(head: bytes) -> tuple[bytes, bytes]:
            with netns.call(lambda: socket.create_connection(("127.0.0.1", 9464), 20)) as sock:
                sock.sendall(head + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                return tuple(sock.makefile("rb").read().split(b"\r\n\r\n", 1))  # type: ignore[return-value]

        head, body = ask(b"HEAD /metrics")
        assert head.startswith(b"HTTP/1.1 200")
        assert body == b""
        assert b"Content-Length: 0" not in head
        assert ask(b"GET /metrics?x=1")[1]
        assert ask(b"HEAD /")[0].startswith(b"HTTP/1.1 404")
        assert b"405" in ask(b"POST /metrics")[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_circle_through_a_translation_is_found_and_ended(netns: Netns, folder: Path, workers: int) -> None:
    """No address says it: what is sent to 192.0.2.9 comes back here."""
    script = (
        "ip link set lo up; ip address add 10.0.0.1/32 dev lo; ip route add 192.0.2.0/24 dev lo src 10.0.0.1; "
        "nft add table ip t; nft add chain ip t o '{ type nat hook output priority -100; }'; "
        "nft add rule ip t o ip daddr 192.0.2.9 tcp dport 9000 redirect to :8001"
    )
    netns.call(lambda: subprocess.run(["sh", "-ec", script], check=True))
    words = ("--listen", "*:8001", "--to", "192.0.2.9:9000", "--workers", str(workers))
    with Relay(netns, folder, *words) as relay:
        assert relay.serves(), relay.said
        with netns.call(lambda: socket.create_connection(("127.0.0.1", 8001), 20)) as client:
            assert until(lambda: "relays to itself through backend 192.0.2.9:9000" in relay.said)
            client.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        assert until(lambda: relay.ask(b'{"do": "ls"}') == {"ok": []})


def test_a_service_that_relays_to_itself_does_not_start(netns: Netns, folder: Path) -> None:
    for to in ("127.0.0.1:8001", "[::1]:8001", "dns:localhost:8001"):
        with Relay(netns, folder, "--listen", "*:8001", "--to", to) as relay:
            assert relay.refuses(), to
            assert "relay to itself" in relay.said


def test_sigterm_again_and_again_ends_it_well(netns: Netns, folder: Path) -> None:
    for _ in range(3):
        with Relay(netns, folder, *PLAIN, "--workers", "2") as relay:
            assert relay.serves()
            while relay.process.poll() is None:
                relay.process.send_signal(signal.SIGTERM)
            assert relay.process.returncode == 0
            assert "Bad file descriptor" not in relay.said
            assert "Traceback" not in relay.said


def test_a_second_sigterm_does_not_wait_for_a_worker_that_hangs(netns: Netns, folder: Path) -> None:
    with Relay(netns, folder, *PLAIN, "--drain", "10m") as relay:
        assert relay.serves()
        children = Path(f"/proc/{relay.process.pid}/task/{relay.process.pid}/children").read_text()
        os.kill(int(children), signal.SIGSTOP)
        relay.process.send_signal(signal.SIGTERM)
        assert until(lambda: "draining" in relay.said)
        relay.process.send_signal(signal.SIGTERM)
        assert until(lambda: relay.process.poll() is not None)
        assert relay.process.returncode == 0
        assert "did not end in time and was killed" in relay.said


def test_signals_to_a_relay_that_is_starting_are_answered_when_it_runs(netns: Netns, folder: Path) -> None:
    early = (
        "import os, signal, sys\n"
        "from finwait.cli import main\n"
        "from finwait.relay.supervisor import Supervisor\n"
        "bind = Supervisor.bind\n"
        "def signalled(self):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    bind(self)\n"
        "Supervisor.bind = signalled\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    with Relay(netns, folder, *PLAIN, program=("-c", early)) as relay:
        assert until(lambda: "configuration reloaded" in relay.said or relay.process.poll() is not None)
        relay.process.send_signal(signal.SIGTERM)
        assert until(lambda: relay.process.poll() is not None)
        assert relay.process.returncode == 0


@pytest.mark.parametrize(("allow", "admitted"), [("10.0.0.0/8", False), ("unix", True)])
def test_a_client_of_a_unix_socket_needs_its_word_in_a_list(folder: Path, allow: str, admitted: bool) -> None:
    """The listener comes from systemd, so that nothing but the client says what it is."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as server:
        listener.bind(str(folder / "in.sock"))
        listener.listen()
        server.bind(str(folder / "out.sock"))
        server.listen()
        server.settimeout(20)
        config = folder / "relay.toml"
        config.write_text(
            f'admin = "{folder}/admin.sock"\n[[service]]\nname = "a"\nlisten = ["fd:"]\nallow = ["{allow}"]\n'
            f'[[service.backend]]\naddress = "unix:{folder}/out.sock"\n'
        )
        activate = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_FDS='1', "
            "LISTEN_PID=str(os.getpid())); os.execv(sys.executable, [sys.executable, '-m', 'finwait', 'relay', "
            "'run', '--config', sys.argv[2]])"
        )
        said = folder / "said"
        with said.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", activate, str(listener.fileno()), str(config)],
                pass_fds=[listener.fileno()], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            assert until(lambda: "→" in said.read_text() or process.poll() is not None)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(folder / "in.sock"))
                if admitted:
                    inside, _ = server.accept()
                    with inside:
                        inside.sendall(b"in")
                        assert client.recv(2) == b"in"
                else:
                    with contextlib.suppress(ConnectionResetError):
                        assert client.recv(1) == b""
        finally:
            process.kill()
            process.wait()
