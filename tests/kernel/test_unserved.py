"""What no program serves although every row looks well: full accept queues, open connections that nobody reads."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
import pytest

from finwait import session
from finwait.diagnosis.finding import Finding
from finwait.lab.topology import Lab, Netns, unmet
from finwait.remedy import making
from finwait.remedy.guards import Limits
from finwait.session import Diagnosis, Look
from finwait.uapi import tcp
from finwait.uapi.observation import LookPlan
from tests.captures.make import walled_off
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel
PATIENT_MS = 3300


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


def looked(lab: Lab, watch_ms: int = 0) -> Diagnosis:
    plan = LookPlan(only=frozenset(ns.inode for ns in lab.namespaces.values()), established_limit=None)
    return session.diagnose(how=Look(plan=plan, watch_ms=watch_ms, not_holders=walled_off()))


def found(diagnosis: Diagnosis, rule: str) -> list[Finding]:
    return [f for f in diagnosis.findings if f.rule == rule and f.primary]


def until(lab: Lab, done: Callable[[Diagnosis], bool], watch_ms: int = 0) -> Diagnosis:
    end = time.monotonic() + 30
    while not done(diagnosis := looked(lab, watch_ms)):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)
    return diagnosis


def door_in(netns: Netns, backlog: int) -> socket.socket:
    door = netns.call(socket.socket)
    door.bind(("127.0.0.1", 0))
    door.listen(backlog)
    return door


@contextlib.contextmanager
def program_in(netns: Netns, code: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A Python program in a namespace, which is killed at the end with its children, and what it prints."""
    words = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{netns.fd}", sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as program:
        assert program.stdout is not None
        try:
            yield program, program.stdout
        finally:
            os.killpg(program.pid, signal.SIGKILL)


def client_in(netns: Netns, door: socket.socket) -> socket.socket:
    client = netns.call(socket.socket)
    client.settimeout(20)
    client.connect(door.getsockname())
    return client


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_a_queue_full_of_the_dead_is_told_and_that_busy_threads_look_the_same() -> None:
    with Lab() as lab, contextlib.ExitStack() as open_:
        netns = lab.netns("one")
        door = open_.enter_context(door_in(netns, 2))
        for _ in range(3):
            reset(client_in(netns, door))
        once = until(lab, lambda d: len(d.view) == 1)
        (glance,) = found(once, "accept-queue-full")
        assert (glance.severity, glance.confidence.look_again) == ("problem", True)
        (watched,) = found(looked(lab, PATIENT_MS), "accept-queue-full")
        assert (watched.severity, watched.confidence.level) == ("problem", "likely")
        assert "busy with long work" in watched.confidence.reason
        values = {e.column: e.value for e in watched.evidence}
        assert values["of the queue"] == "0 alive, 3 dead"
        assert "ListenOverflows" in values


_BUSY = """
import socket, sys, time
door = socket.socket()
door.bind(("127.0.0.1", 0))
door.listen(2)
print(door.getsockname()[1], flush=True)
time.sleep(600)
"""


def test_of_a_stopped_program_it_is_certain_that_it_accepts_nothing_and_of_a_busy_one_it_is_not() -> None:
    with Lab() as lab, contextlib.ExitStack() as open_:
        netns = lab.netns("one")
        program, output = open_.enter_context(program_in(netns, _BUSY))
        port = int(output.readline())
        for _ in range(3):
            client = open_.enter_context(netns.call(socket.socket))
            client.settimeout(20)
            client.connect(("127.0.0.1", port))
        until(lab, lambda d: bool(found(d, "accept-queue-full")))
        (busy,) = found(looked(lab, PATIENT_MS), "accept-queue-full")
        assert (busy.severity, busy.confidence.level) == ("problem", "likely")
        assert any(e.column == "threads" and "nanosleep" in e.value for e in busy.evidence)
        program.send_signal(signal.SIGSTOP)
        halted = until(lab, lambda d: d.view.processes[program.pid].state == "T")
        (stopped,) = found(halted, "accept-queue-full")
        assert (stopped.severity, stopped.confidence.level) == ("problem", "certain")


_WORKERS = """
import os, socket, time
door = socket.create_server(("127.0.0.1", 0))
print(door.getsockname()[1], flush=True)
kept = [door.accept()[0] for _ in range(4)]
read, write = os.pipe()
if os.fork() == 0:
    os.read(read, 1)
for connection in kept:
    connection.close()
print("forked", flush=True)
while True:
    connection = door.accept()[0]
    if os.environ["READS"] == "yes":
        connection.recv(100)
    connection.close()
    time.sleep(0.05)
"""


@pytest.mark.parametrize("reads", ["yes", "no"])
def test_a_worker_that_hangs_is_told_although_another_accepts_from_the_same_queue(
    reads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("READS", reads)
    with Lab() as lab, contextlib.ExitStack() as open_:
        netns = lab.netns("one")
        _, output = open_.enter_context(program_in(netns, _WORKERS))
        port = int(output.readline())
        for _ in range(4):
            client = open_.enter_context(netns.call(socket.socket))
            client.settimeout(20)
            client.connect(("127.0.0.1", port))
            client.send(b"GET /")
        assert output.readline() == b"forked\n"
        over = threading.Event()

        def ask_on() -> None:
            while not over.is_set():
                with netns.call(socket.socket) as client, contextlib.suppress(OSError):
                    client.settimeout(20)
                    client.connect(("127.0.0.1", port))
                    client.send(b"GET /")
                    client.recv(100)

        asking = [threading.Thread(target=ask_on) for _ in range(3)]
        for thread in asking:
            thread.start()
            open_.callback(thread.join)
        open_.callback(over.set)
        told = found(looked(lab, PATIENT_MS), "established-unread")
        assert [(f.severity, f.count) for f in told if f.severity == "problem"] == [("problem", 4)]


_DRAINING = """
import socket, sys, threading
door = socket.create_server(("127.0.0.1", 0))
print(door.getsockname()[1], flush=True)
kept = [door.accept()[0] for _ in range(5)]
kept[4].setblocking(False)
kept[4].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
try:
    while True:
        kept[4].send(bytes(100_000))
except BlockingIOError:
    print("full", flush=True)
threading.Event().wait()
"""


def test_what_the_kernel_sends_of_a_hung_program_hides_no_unread_request() -> None:
    with Lab() as lab, contextlib.ExitStack() as open_:
        netns = lab.netns("one")
        program, output = open_.enter_context(program_in(netns, _DRAINING))
        port = int(output.readline())
        clients = [open_.enter_context(netns.call(socket.socket)) for _ in range(5)]
        for client in clients:
            client.settimeout(20)
            client.connect(("127.0.0.1", port))
        for client in clients[:4]:
            client.send(b"GET /")
        assert output.readline() == b"full\n"
        over = threading.Event()

        def drain() -> None:
            while not over.wait(0.1):
                clients[4].recv(2000)

        draining = threading.Thread(target=drain)
        draining.start()
        open_.callback(draining.join)
        open_.callback(over.set)
        (hung,) = found(looked(lab, PATIENT_MS), "established-unread")
        assert (hung.severity, hung.count, hung.confidence.level) == ("problem", 4, "likely")
        program.send_signal(signal.SIGSTOP)
        halted = until(lab, lambda d: d.view.processes[program.pid].state == "T", PATIENT_MS)
        (stopped,) = found(halted, "established-unread")
        assert (stopped.severity, stopped.count, stopped.confidence.level) == ("problem", 4, "certain")


def test_a_full_queue_that_is_emptied_is_no_problem() -> None:
    with Lab() as lab, contextlib.ExitStack() as open_:
        netns = lab.netns("one")
        door = open_.enter_context(door_in(netns, 2))
        for _ in range(3):
            open_.enter_context(client_in(netns, door))
        until(lab, lambda d: bool(found(d, "accept-queue-full")))
        accepting = threading.Event()

        def accept_all() -> None:
            accepting.wait(20)
            for _ in range(3):
                open_.enter_context(door.accept()[0])

        worker = threading.Thread(target=accept_all)
        worker.start()
        try:

            def between(said: str) -> None:
                if said.startswith("watching"):  # the first look is over
                    accepting.set()

            plan = LookPlan(only=frozenset({netns.inode}), established_limit=None)
            look = Look(plan=plan, watch_ms=PATIENT_MS, not_holders=walled_off(), progress=between)
            twice = session.diagnose(how=look)
            assert accepting.is_set()
        finally:
            accepting.set()
            worker.join()
        assert found(twice, "accept-queue-full") == []


@contextlib.contextmanager
def overloaded(netns: Netns, *, slow: int, hung: int = 0) -> Iterator[None]:
    """Run servers, each a process with a listener on one address, and more clients than they can serve."""
    program = "tests.kernel.programs.overload"
    argv = [sys.executable, "-m", program, str(slow), str(hung)]
    running = netns.call(lambda: subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    assert running.stdin is not None
    assert running.stdout is not None
    try:
        assert running.stdout.readline() == b"ready\n"
        yield
    finally:
        running.stdin.close()
        running.stdout.close()
        running.wait(30)


@pytest.mark.parametrize("slow", [1, 2])
def test_servers_that_are_overloaded_and_accept_all_the_time_are_not_said_to_accept_nothing(
    slow: int,
) -> None:
    with Lab() as lab, overloaded(lab.netns("one"), slow=slow):

        def full(diagnosis: Diagnosis) -> bool:
            s = diagnosis.view.sockets
            doors = s.state == tcp.LISTEN
            return bool((s.rqueue > s.wqueue)[doors].all())

        until(lab, full)
        watched = looked(lab, PATIENT_MS)
        assert int(watched.view.accepting.taken.sum()) == slow
        told = found(watched, "accept-queue-full")
        assert {f.severity for f in told} <= {"notice"}
        assert {f.severity for f in found(watched, "never-accepted")} <= {"notice"}


def test_one_that_hangs_beside_one_that_accepts_is_told() -> None:
    with Lab() as lab, overloaded(lab.netns("one"), slow=1, hung=1):
        s = until(lab, lambda d: int((d.view.sockets.rqueue > d.view.sockets.wqueue).sum()) == 2).view.sockets
        assert int((s.state == tcp.LISTEN).sum()) == 2
        watched = looked(lab, PATIENT_MS)
        told = found(watched, "accept-queue-full")
        assert "problem" in {f.severity for f in told}
        assert int(watched.view.accepting.taken.sum()) <= 1


def test_after_what_was_queued_is_destroyed_there_is_no_all_clear() -> None:
    with Lab() as lab, contextlib.ExitStack() as open_:
        netns = lab.netns("one")
        door = open_.enter_context(door_in(netns, 128))
        for _ in range(3):
            client = client_in(netns, door)
            client.sendall(b"GET /")
            client.close()
        queued = until(lab, lambda d: sum(f.count for f in found(d, "never-accepted")) == 3)
        view = queued.view
        mask = view.queued & (view.sockets.state == tcp.CLOSE_WAIT)
        spared = making.make(view, queued.findings, mask, Limits())
        assert ({one.guard for one in spared.left}, spared.steps) == ({"accept-queue"}, ())
        netns.run("ss", "-K", "state", "close-wait")
        after = until(lab, lambda d: not d.view.queued.any())
        (left,) = found(after, "accept-queue-full")
        assert left.severity == "notice"
        assert {e.column: e.value for e in left.evidence}["of the queue"] == "0 alive, 3 dead"
        rows = np.flatnonzero(after.view.sockets.state == tcp.LISTEN)
        assert left.rows.tolist() == rows.tolist()


def test_a_connection_in_flight_to_which_data_flows_is_told_by_a_second_look_and_not_called_well_by_one() -> (
    None
):
    """Its descriptor is in a Unix socket, so no process has it, and its peer sends all the time."""
    with Lab() as lab, contextlib.ExitStack() as open_:
        netns = lab.netns("one")
        door = open_.enter_context(door_in(netns, 8))
        client = open_.enter_context(client_in(netns, door))
        carrier = [open_.enter_context(end) for end in socket.socketpair()]
        accepted, _ = door.accept()
        socket.send_fds(carrier[0], [b"x"], [accepted.fileno()])
        accepted.close()
        over = threading.Event()

        def send() -> None:
            while not over.wait(0.1):
                client.sendall(b"x")

        sender = threading.Thread(target=send)
        sender.start()
        try:

            def in_question(diagnosis: Diagnosis) -> bool:
                return bool(diagnosis.view.holder_in_question.any())

            once = until(lab, in_question)
            assert not any(f.severity != "healthy" for f in once.findings)
            assert [gap.needs for gap in once.gaps if "holds it" in gap.doing] == [
                "a second look, `--for 5s`"
            ]
            twice = looked(lab, PATIENT_MS)
            (told,) = found(twice, "holder-not-found")
            assert (told.severity, told.count) == ("notice", 1)
            assert twice.view.moved[told.rows].all()
            assert not [gap for gap in twice.gaps if "holds it" in gap.doing]
            where = [
                "--netns",
                str(netns.inode),
                *(w for pid in walled_off() for w in ("--not-holder", str(pid))),
            ]
            argv = [sys.executable, "-m", "finwait", "check", "--severity", "notice", *where]
            checked = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert (checked.returncode, checked.stdout.split(" | ")[0]) == (
                1, "FINWAIT WARNING - 1 holder-not-found",
            ), checked.stderr  # fmt: skip
        finally:
            over.set()
            sender.join()
