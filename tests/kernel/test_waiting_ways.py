"""Every way in which a program can be told of what happens on a socket: what is said, beside what is so.

The program of each row (`programs/waits.c`) waits in one way, or in none. After the look its peer sends a byte. Whether
the program notices that is the truth; "nobody" must not be said of one that does.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from finwait import session
from finwait.attribution.waiting import WaitedOn
from finwait.lab.topology import Lab, Netns, unmet
from finwait.session import Look
from finwait.uapi import tcp
from finwait.uapi.observation import LookPlan
from tests.captures.make import walled_off
from tests.kernel.needs import missing

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]
SOURCE = Path(__file__).parent / "programs" / "waits.c"
DEADLINE_S = 30
QUIET_S = 0.3
"""After so long without a word from a program that waits in no way, it did not notice."""


@dataclass(frozen=True)
class Way:
    """One way to wait."""

    name: str
    kind: str
    woken: bool = True
    asleep: bool | None = True
    """Of a loop: whether a thread sleeps in it."""
    call: str = ""
    """Of a thread that waits."""


WAYS = (
    Way("forgotten", "nobody", woken=False),
    Way("locked", "nobody", woken=False),
    Way("stopped", "unknown", woken=False),
    Way("busy", "unknown"),
    # calls
    Way("read", "thread", call="read"),
    Way("readv", "thread", call="readv"),
    Way("recvmsg", "thread", call="recvmsg"),
    Way("splice", "thread", call="splice"),
    Way("poll", "thread", call="poll"),
    Way("ppoll", "thread", call="ppoll"),
    Way("select", "thread", call="pselect6"),
    Way("thread", "thread", call="read"),
    Way("child", "thread", call="read"),
    Way("shared-table", "thread", call="read"),
    Way("own-table", "thread", call="read"),
    Way("main-ended-reads", "thread", call="read"),
    Way("main-ended", "nobody", woken=False),
    # event loops
    Way("loop", "loop"),
    Way("loop-left", "loop", woken=False, asleep=False),
    Way("loop-copied", "loop"),
    Way("loop-of-moved-socket", "loop"),
    Way("loop-in-poll", "loop"),
    Way("nested", "loop"),
    Way("nested-deep", "loop"),
    Way("nested-moved", "loop"),
    Way("loop-shared", "loop", asleep=None),
    Way("loop-of-child", "unknown"),
    Way("loop-of-child-rdnorm", "unknown"),
    Way("loop-of-stuck-child", "unknown"),  # which is read for the sake of a connection of its own
    Way("own-table-loop", "unknown"),
    Way("main-ended-loop", "loop"),
    # what nothing lists
    Way("uring", "unknown"),
    Way("uring-asleep", "unknown", woken=False),
    Way("uring-of-loop", "loop", asleep=None),
    Way("uring-closed", "unknown"),
    Way("uring-closed-asleep", "unknown", woken=False),
    Way("uring-worker", "unknown", woken=False),
    Way("main-ended-uring", "unknown", woken=False),
    Way("aio", "unknown"),
    Way("aio-eventfd", "unknown"),
    # signals
    Way("sigio", "unknown"),
    Way("sig-handler-usr1", "unknown"),
    Way("sig-handler-realtime", "unknown"),
    Way("sigwait", "unknown"),
    Way("sigwait-usr1", "unknown"),
    Way("sigwait-realtime", "unknown"),
    Way("signalfd", "unknown"),
    Way("signalfd-usr1", "unknown"),
    Way("signal-of-another", "unknown"),
    # a call that began before its descriptor's number meant something else, or nothing
    Way("moved", "unknown"),
    Way("moved-file", "unknown"),
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    if not shutil.which("gcc"):
        missing("gcc is not installed")
    built = tmp_path_factory.mktemp("waits") / "waits"
    subprocess.run(["gcc", "-O1", "-w", "-pthread", "-o", built, SOURCE], check=True)
    return built


@pytest.fixture(scope="module")
def netns() -> Iterator[Netns]:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        yield lab.netns("ways")


class Running:
    """The program, and the peer of its connection."""

    def __init__(self, netns: Netns, program: Path, way: str) -> None:
        self._netns = netns
        self._said = b""
        with netns.call(lambda: socket.create_server(("127.0.0.1", 0))) as door:
            argv = [str(program), str(door.getsockname()[1]), way]
            self._program = netns.call(
                lambda: subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
            )
            self.peer = door.accept()[0]
            assert self._program.stdout is not None
            os.set_blocking(self._program.stdout.fileno(), False)
            line = self.line(DEADLINE_S)
            if line.startswith("CANNOT"):
                self.close()
                missing(line.removeprefix("CANNOT "))
            self.others = []
            if way in ("moved-socket", "loop-of-stuck-child"):
                self.others.append(door.accept()[0])

    def line(self, seconds: float) -> str:
        """Return the next line that it prints; empty where none comes in so long."""
        end = time.monotonic() + seconds
        assert self._program.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._program.stdout, selectors.EVENT_READ)
            while b"\n" not in self._said and (left := end - time.monotonic()) > 0:
                if selector.select(left):
                    data = os.read(self._program.stdout.fileno(), 4096)
                    if not data:
                        break
                    self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def stop(self) -> None:
        self._program.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        os.killpg(self._program.pid, signal.SIGKILL)
        self._program.wait(DEADLINE_S)
        assert self._program.stdout is not None
        self._program.stdout.close()
        for sock in (self.peer, *getattr(self, "others", ())):
            sock.close()

    def told(self) -> WaitedOn:
        """Return what a look says of its connection."""
        plan = LookPlan(only=frozenset({self._netns.inode}))
        end = time.monotonic() + DEADLINE_S
        while True:
            shot = session.look(session.live_machine(), Look(plan=plan, not_holders=walled_off()))
            s = shot.sockets
            rows = np.flatnonzero(
                (s.sport == self.peer.getpeername()[1]) & (s.state == tcp.FIN_WAIT2)
            ).tolist()
            if rows:
                (row,) = rows
                return shot.view.waits.of(row)
            assert time.monotonic() < end, "its FIN was not acknowledged"


@pytest.mark.parametrize("way", [pytest.param(way, id=way.name) for way in WAYS])
def test_what_is_said_of_each_way_to_wait(netns: Netns, program: Path, way: Way) -> None:
    running = Running(netns, program, way.name)
    try:
        if way.name == "stopped":
            running.stop()
        end = time.monotonic() + DEADLINE_S
        while True:  # until its threads sleep where they will
            told = running.told()
            asleep = [loop.asleep for loop in told.loops]
            as_expected = told.kind == way.kind and (way.kind != "loop" or way.asleep in asleep)
            if as_expected and (way.name == "busy" or not told.unsteady):
                break
            assert time.monotonic() < end, told
            assert told.kind != "nobody" or told.unsteady or not way.woken, told
            time.sleep(0.02)
        if way.call:
            assert [waiter.call for waiter in told.threads] == [way.call]
        assert bool(told.why) is (way.kind == "unknown")
        running.peer.send(b"x")
        assert running.line(DEADLINE_S if way.woken else QUIET_S) == ("WOKEN" if way.woken else "")
    finally:
        running.close()


@pytest.mark.parametrize(
    ("way", "kind"),
    [("loop", "loop"), ("loop-left", "loop"), ("uring-asleep", "unknown"), ("forgotten", "nobody")],
)
def test_a_socket_of_which_no_process_has_a_descriptor_costs_no_knowledge_of_the_others(
    netns: Netns, program: Path, way: str, kind: str
) -> None:
    """Descriptors are then listed once more: event loops and rings have to be in what comes of it."""
    running = Running(netns, program, way)
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs, netns.call(lambda: socket.create_server(("127.0.0.1", 0))) as door:
        try:
            with netns.call(lambda: socket.create_connection(door.getsockname())) as flying:
                peer = door.accept()[0]
                flying.shutdown(socket.SHUT_WR)
                socket.send_fds(ours, [b"x"], [flying.fileno()])
            end = time.monotonic() + DEADLINE_S
            while (told := running.told()).kind != kind or told.unsteady:
                assert time.monotonic() < end, told
                time.sleep(0.02)
            peer.close()
        finally:
            running.close()


@pytest.mark.xfail(
    strict=True, reason="nothing in /proc tells on what a call began whose number is another socket's now"
)
def test_a_call_on_a_number_that_is_another_socket_s_now(netns: Netns, program: Path) -> None:
    running = Running(netns, program, "moved-socket")
    try:
        told = running.told()
        assert told.kind in ("unknown", "nobody")
        running.peer.send(b"x")
        assert running.line(DEADLINE_S) == "WOKEN"
        assert told.kind != "nobody"
    finally:
        running.close()
