"""The relay under everything at once, and afterwards nothing may be left.

``python -m tests.kernel.relay_soak [--seconds 600] [--seed 1] [--clients 24]``, or ``make soak``.

Clients connect through a relay with two workers to two backends. Both ends of each connection follow plans that
follow from the connection's number: so many bytes, at this pace, then FIN, RST, a close with bytes unread, or silence.
Meanwhile somebody restarts a backend, cuts and mends the path of some of the clients, reloads the configuration,
takes the workers' descriptors away, and ends connections by hand.

What must hold, whatever happens:

* Bytes that arrive are the peer's bytes, in order: every one is compared.
* Who sees a FIN has got all that the peer said, and the peer did say FIN. A cut answer never looks complete.
* A connection that nothing happened to, and whose ends both finished, is complete at both.

And at the end: no socket in the relay's namespace, and of sockets, pipes and other descriptors as many as at the start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.relay_behaviour import BACKEND, PORT, Scene, reset, until

if TYPE_CHECKING:
    from collections.abc import Callable

PATTERN = memoryview(random.Random(7).randbytes(1_000_003) * 6)
PERIOD = 1_000_003
SIZES = (0, 1, 100, 5_000, 20_000, 70_000, 300_000, 4_000_000)
WEIGHTS = (2, 2, 6, 6, 6, 6, 4, 1)
HEADER = struct.Struct("!Q")
ASKING = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 8),
)
PATIENCE = 30.0
"""Longer than anything here takes; an end that waits longer than this is a failure."""


@dataclass
class Side:
    """What one end did, and what it saw."""

    plan: str = ""
    out: int = 0
    slow: bool = False
    sent: int = 0
    got: int = 0
    said_fin: bool = False
    saw: str = ""
    """FIN, RST, or why it stopped looking."""
    wrong: str = ""


@dataclass
class Talk:
    """One connection and both of its ends."""

    number: int
    client: Side = field(default_factory=Side)
    server: Side = field(default_factory=Side)
    port: int = 0
    disturbed: str = ""
    reset_server: bool = False
    """Its backend goes down now."""
    began: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)
    served: threading.Event = field(default_factory=threading.Event)

    def plan(self) -> None:
        """Decide what both ends do."""
        dice = random.Random(self.number)
        for side in (self.client, self.server):
            side.plan = dice.choices(("fin", "rst", "close", "hold"), (14, 2, 2, 1))[0]
            side.out = dice.choices(SIZES, WEIGHTS)[0]
            side.slow = dice.random() < 0.1
        if self.client.plan == "hold":
            self.server.out = min(self.server.out, 5_000)


def stream(number: int, from_client: bool, at: int, size: int) -> memoryview:
    """Return bytes of one direction of a connection."""
    start = (number * 7919 + from_client * 50_021 + at) % PERIOD
    return PATTERN[start : start + size]


def play(sock: socket.socket, talk: Talk, is_client: bool) -> None:
    """Follow one end's plan until both directions are over."""
    side = talk.client if is_client else talk.server
    sock.setblocking(False)
    poll = select.poll()
    end = time.monotonic() + PATIENCE
    reading = side.plan != "rst"
    held_until = 0.0
    pause = 0.0
    while not side.saw:
        now = time.monotonic()
        if now > end:
            side.saw = "silence"
            break
        if talk.reset_server and not is_client:
            side.saw = "left"
            reset(sock)
            return
        if side.sent < side.out:
            mask = select.POLLOUT | (select.POLLIN if reading else 0)
        elif side.plan == "rst":
            side.saw = "left"
            reset(sock)
            return
        else:
            if not side.said_fin:
                side.said_fin = True
                try:
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    side.saw = "RST"
                    break
                if side.plan == "close":
                    # With bytes unread the kernel makes this an RST; else the peer's later bytes do.
                    side.saw = "left"
                    break
                held_until = now + 3.0 if side.plan == "hold" else 0.0
            mask = select.POLLIN
        if now < pause:
            mask &= ~select.POLLIN
        poll.register(sock, mask)
        ready = poll.poll(20 if now < pause else 500)
        if held_until and side.got and now > held_until and side.plan == "hold":
            side.saw = "left"
            break
        for _, event in ready:
            try:
                if event & select.POLLOUT and side.sent < side.out:
                    side.sent += sock.send(
                        stream(talk.number, is_client, side.sent, min(65536, side.out - side.sent))
                    )
                if event & (select.POLLIN | select.POLLHUP | select.POLLERR) and now >= pause:
                    data = sock.recv(16384 if side.slow else 262144)
                    if not data:
                        side.saw = "FIN"
                    elif data != stream(talk.number, not is_client, side.got, len(data)):
                        side.wrong = (
                            f"other bytes than were sent, between {side.got} and {side.got + len(data)}"
                        )
                    side.got += len(data)
                    pause = now + 0.004 if side.slow else 0.0
            except BlockingIOError:
                pass
            except OSError as error:
                side.saw = "RST" if isinstance(error, ConnectionError) else str(error)
    if side.saw == "FIN" and (side.sent < side.out or not side.said_fin):
        finish(sock, talk, side, is_client, end)
    sock.close()


def finish(sock: socket.socket, talk: Talk, side: Side, is_client: bool, end: float) -> None:
    """After the peer's FIN: send what is left of our own direction."""
    sock.settimeout(max(0.1, end - time.monotonic()))
    try:
        while side.sent < side.out:
            side.sent += sock.send(
                stream(talk.number, is_client, side.sent, min(65536, side.out - side.sent))
            )
        if side.plan == "rst":
            reset(sock)
        else:
            side.said_fin = True
            sock.shutdown(socket.SHUT_WR)
    except OSError:
        side.said_fin = False


class Backend:
    """A server that can be restarted: its listener goes, and its connections are reset."""

    def __init__(self, soak: Soak, address: tuple[str, int]) -> None:
        self.soak = soak
        self.address = address
        self.lock = threading.Lock()
        self.here: dict[socket.socket, Talk | None] = {}
        self.stopping = False
        self.open()

    def open(self) -> None:
        self.listener = self.soak.scene.server_ns.call(
            lambda: socket.create_server(self.address, backlog=512)
        )
        self.listener.settimeout(0.2)

    def run(self) -> None:
        while not self.stopping:
            try:
                sock, _ = self.listener.accept()
            except TimeoutError:
                continue
            except OSError:
                time.sleep(0.01)  # it is being restarted
                continue
            with self.lock:
                self.here[sock] = None
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock: socket.socket) -> None:
        talk = None
        try:
            sock.settimeout(PATIENCE)
            head = b""
            while len(head) < HEADER.size:
                part = sock.recv(HEADER.size - len(head))
                if not part:
                    return
                head += part
            talk = self.soak.talks[HEADER.unpack(head)[0]]
            with self.lock:
                self.here[sock] = talk
            play(sock, talk, False)
        except OSError:
            pass
        finally:
            with self.lock:
                self.here.pop(sock, None)
            sock.close()
            if talk is not None:
                talk.served.set()

    def restart(self) -> None:
        with self.lock:
            for sock, talk in list(self.here.items()):
                if talk is not None:
                    talk.disturbed = "its backend was restarted"
                    talk.reset_server = True
                else:
                    with contextlib.suppress(OSError):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.soak.bad_time("backend restarted")
        self.listener.close()
        time.sleep(0.3)
        self.open()


class Soak:
    """The scene, its people, and who disturbs them."""

    def __init__(self, seconds: float, seed: int, clients: int) -> None:
        self.seconds = seconds
        self.dice = random.Random(seed)
        self.clients = clients
        self.talks: dict[int, Talk] = {}
        self.lock = threading.Lock()
        self.number = seed * 10_000_000
        self.failures: list[str] = []
        self.ends: Counter[str] = Counter()
        self.acts: Counter[str] = Counter()
        self.bytes = 0
        self.stop = threading.Event()
        self.had_all = threading.Event()
        self.bad_times: list[tuple[float, float, str]] = []

    def run(self) -> list[str]:
        """Do it all; return what went wrong."""
        scene = Scene("finwait", fin_timeout=2)
        scene.command = lambda: self.command(scene)  # type: ignore[method-assign]
        self.scene = scene
        self.reloads = 0
        with scene:
            scene.listener.close()
            self.victim_ns = scene.lab.netns("victim")
            self.victim_ns.sysctl("net.ipv4.tcp_fin_timeout", 2)
            self.side_road = scene.lab.link(self.victim_ns, scene.relay_ns)
            self.backends = [Backend(self, (scene.backend[0], BACKEND + n)) for n in range(2)]
            self.reload()
            started = self.settled_descriptors()
            threads = [threading.Thread(target=backend.run) for backend in self.backends]
            people = [threading.Thread(target=self.client, args=(n,)) for n in range(self.clients)]
            trouble = threading.Thread(target=self.disturb)
            for thread in (*threads, *people, trouble):
                thread.start()
            self.stop.wait(self.seconds)
            self.had_all.wait(60)  # however short it is to be, each kind of trouble comes once
            self.stop.set()
            for thread in (trouble, *people):
                thread.join()
            for backend in self.backends:
                backend.stopping = True
            for thread in threads:
                thread.join()
            self.after(started)
            for backend in self.backends:
                backend.listener.close()
        return self.failures

    def command(self, scene: Scene) -> list[str]:
        (scene.folder / "relay.toml").write_text(self.text(scene))
        return [sys.executable, "-m", "finwait.relay", "run", "--config", str(scene.folder / "relay.toml")]

    def text(self, scene: Scene, half_close: int = 6) -> str:
        """Return a configuration in which everything happens within seconds."""
        quick = (
            "keepalive_idle = 1\nkeepalive_interval = 1\nkeepalive_count = 3\nuser_timeout = 4\nlinger = 10\n"
        )
        backends = ", ".join(f'{{ address = "{scene.backend[0]}:{BACKEND + n}" }}' for n in range(2))
        return (
            f'workers = 2\nadmin = "{scene.admin}"\naccess_log = "{scene.folder}/access.log"\nmax_connections = 900\n'
            f'[[service]]\nname = "relay"\nlisten = ["*:{PORT}"]\nbackend = [{backends}]\n'
            'balance = "least_connections"\n'
            f"[service.timeouts]\nconnect = 2\nidle = 20\nhalf_close = {half_close}\n"
            f"[service.client]\n{quick}[service.server]\n{quick}[service.outlier]\nfailures = 2\neject = 1\n"
        )

    # ── people ───────────────────────────────────────────────────────────────────────────────────────────

    def client(self, which: int) -> None:
        """Connect, again and again."""
        victim = which % 4 == 0
        netns = self.victim_ns if victim else self.scene.client_ns
        address = (self.side_road.b4 if victim else self.scene.address[0], PORT)
        while not self.stop.is_set():
            with self.lock:
                self.number += 1
                talk = Talk(self.number, began=time.monotonic())
                self.talks[talk.number] = talk
            talk.plan()
            if victim:
                talk.disturbed = "its path is cut at times"
            sock: socket.socket | None = None
            try:
                sock = netns.call(lambda: socket.create_connection(address, timeout=PATIENCE))
                talk.port = sock.getsockname()[1]
                # The relay's RST is lost on a path that is cut; who wants to know must ask.
                for level, name, value in ASKING:
                    sock.setsockopt(level, name, value)
                sock.sendall(HEADER.pack(talk.number))
            except OSError as error:
                if sock is not None:
                    sock.close()
                self.judge(talk, f"could not connect: {error}")
                continue
            play(sock, talk, True)
            # The server's end may live on: a reset takes its way, and a peer behind a cut path is found by probes.
            talk.served.wait(PATIENCE if talk.client.saw == "FIN" else 12.0)
            self.judge(talk)

    def bad_time(self, what: str, seconds: float = 1.0) -> None:
        """Note that new connections may fail now."""
        now = time.monotonic()
        with self.lock:
            self.bad_times.append((now - 0.2, now + seconds, what))

    def judge(self, talk: Talk, trouble: str = "") -> None:
        """Check what must hold of one connection."""
        client, server = talk.client, talk.server
        now = time.monotonic()
        served = talk.served.is_set()
        with self.lock:
            del self.talks[talk.number]
            self.bytes += client.got + server.got
            self.ends[f"{client.saw or trouble.partition(':')[0]}/{server.saw if served else 'none'}"] += 1
            in_trouble = [what for begin, end, what in self.bad_times if begin < now and end > talk.began]
            problems = [
                f"{name} got {side.wrong}"
                for name, side in (("client", client), ("server", server))
                if side.wrong
            ]
            for name, side, peer in (("client", client, server), ("server", server, client)):
                if side.saw == "FIN" and served and not peer.said_fin and peer.plan != "rst":
                    problems.append(f"{name} saw a FIN that nobody sent")
                if side.saw == "FIN" and served and side.got != peer.out:
                    problems.append(f"{name} saw a FIN after {side.got} of {peer.out} bytes")
                if side.saw == "silence":
                    problems.append(f"{name} was left waiting for {PATIENCE} s")
            calm = not talk.disturbed and not in_trouble
            if calm and client.plan == server.plan == "fin" and (client.saw, server.saw) != ("FIN", "FIN"):
                problems.append("both finished, nothing happened to it, and it was cut")
            if calm and trouble:
                problems.append(trouble)
            for problem in problems:
                self.failures.append(f"{problem}: {talk} {in_trouble}")
                sys.stderr.write(f"FAILED {self.failures[-1]}\n")

    # ── trouble ──────────────────────────────────────────────────────────────────────────────────────────

    def disturb(self) -> None:
        """Do something to them every second or so."""
        acts: list[Callable[[], None]] = [self.reload, self.restart_backend, self.cut, self.starve, self.kill]
        turn: list[Callable[[], None]] = []
        while not self.stop.wait(self.dice.uniform(0.2, 0.9)):
            turn = turn or self.dice.sample(acts, len(acts))
            act = turn.pop()
            act()
            self.acts[act.__name__] += 1
            if not turn:
                self.had_all.set()

    def reload(self) -> None:
        """Read a changed configuration."""
        self.reloads += 1
        text = self.text(self.scene, 5 + self.reloads % 3)
        (self.scene.folder / "relay.toml").write_text(text)
        assert self.scene.process is not None
        os.kill(self.scene.process.pid, signal.SIGHUP)
        if not until(lambda: self.scene.said().count("configuration reloaded") >= self.reloads):
            self.failures.append(f"not reloaded: {self.scene.said()[-500:]}")

    def restart_backend(self) -> None:
        self.backends[1].restart()

    def cut(self) -> None:
        """Swallow what the victims send and get, for less or for longer than it takes to find out."""
        self.side_road.cut()
        self.stop.wait(self.dice.choice((0.3, 1.0, 6.0)))
        for netns, dev in (
            (self.victim_ns, self.side_road.a_dev),
            (self.scene.relay_ns, self.side_road.b_dev),
        ):
            netns.run("nft", "delete", "table", "inet", f"cut_{dev}")

    def starve(self) -> None:
        """Leave the workers without a descriptor to spare."""
        self.bad_time("no descriptors", 3.0)
        kept = []
        for pid in self.workers():
            limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            kept.append((pid, limit))
            used = max(int(link.name) for link in Path(f"/proc/{pid}/fd").iterdir())
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + self.dice.randrange(4), limit[1]))
        self.stop.wait(self.dice.uniform(0.1, 1.0))
        for pid, limit in kept:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        self.bad_time("no descriptors", 1.5)

    def kill(self) -> None:
        """End a connection by the admin socket."""
        found = [json.loads(line) for line in self.scene.ask("ls", "-o", "jsonl").splitlines()]
        if not found:
            return  # nobody is connected at this moment
        conn = self.dice.choice(found)
        port = int(conn["client"]["peer"].rpartition(":")[2])
        with self.lock:
            for talk in self.talks.values():
                if talk.port == port or not talk.port:
                    talk.disturbed = talk.disturbed or "ended by hand"
        with contextlib.suppress(Exception):
            self.scene.ask("close", conn["id"])

    # ── afterwards ───────────────────────────────────────────────────────────────────────────────────────

    def workers(self) -> list[int]:
        assert self.scene.process is not None
        pid = self.scene.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def count_descriptors(self) -> Counter[str]:
        """Count what the relay's processes have open, by kind."""
        found: Counter[str] = Counter()
        assert self.scene.process is not None
        for pid in (self.scene.process.pid, *self.workers()):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found[os.readlink(link).partition(":")[0]] += 1
        return found

    def settled_descriptors(self) -> Counter[str]:
        """Count them once each worker has closed the log that it had before the reload (a thread does)."""
        log = str(self.scene.folder / "access.log")
        found: Counter[str] = Counter()

        def settled() -> bool:
            nonlocal found
            before, found = found, self.count_descriptors()
            return found == before and found[log] == 1 + len(self.workers())

        if not until(settled):
            self.failures.append(f"{1 + len(self.workers())} logs were expected: {dict(found)}")
        return found

    def after(self, started: Counter[str]) -> None:
        """Check that nothing is left."""
        scene = self.scene
        if not until(lambda: not scene.ask("ls", "-o", "jsonl"), 30):
            self.failures.append(f"connections are left: {scene.ask('ls')}")
        if not until(lambda: not scene.legs(), 30):
            self.failures.append(f"sockets are left: {scene.legs()}")
        if not until(lambda: self.count_descriptors() == started, 30):
            self.failures.append(
                f"descriptors: {dict(started)} at the start, {dict(self.count_descriptors())} now"
            )
        if "mistake of ours" in scene.said() or "Traceback" in scene.said():
            self.failures.append(f"the relay said: {scene.said()[-3000:]}")
        stats = json.loads(scene.ask("stats", "-o", "json"))
        if stats["restarts"]:
            self.failures.append(f"{stats['restarts']} workers died: {scene.said()[-3000:]}")
        self.reasons = scene.reasons()
        lines = (scene.folder / "access.log").read_text().splitlines()
        logged = Counter(json.loads(line)["reason"] for line in lines)
        if logged != Counter(self.reasons):
            self.failures.append(f"the access log says {dict(logged)}, the counts say {self.reasons}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=24)
    args = parser.parse_args()
    soak = Soak(args.seconds, args.seed, args.clients)
    failures = soak.run()
    print(f"{sum(soak.ends.values())} connections, {soak.bytes / 1e9:.2f} GB compared, seed {args.seed}")
    print("ends seen (client/server):", dict(soak.ends.most_common()))
    print("reasons:", dict(sorted(soak.reasons.items())))
    print("disturbances:", dict(soak.acts))
    print(f"{len(failures)} failures" if failures else "nothing wrong, nothing left")
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
