"""What no program serves although every row looks well: full accept queues, open connections that nobody reads."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from finwait import session
from finwait.diagnosis.finding import Finding
from finwait.lab.topology import Lab, Netns, unmet
from finwait.remedy import plan as plans
from finwait.remedy.guards import Limits
from finwait.session import Diagnosis, Look
from finwait.uapi import tcp
from finwait.uapi.observation import Plan
from tests.kernel.needs import missing
from tests.kernel.test_rules import walled_off

pytestmark = pytest.mark.kernel
PATIENT_MS = 3300


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


def looked(lab: Lab, watch_ms: int = 0) -> Diagnosis:
    plan = Plan(only=frozenset(ns.inode for ns in lab.namespaces.values()), established_limit=None)
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


def client_in(netns: Netns, door: socket.socket) -> socket.socket:
    client = netns.call(socket.socket)
    client.settimeout(20)
    client.connect(door.getsockname())
    return client


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_a_queue_full_of_the_dead_is_told_for_certain_when_it_is_watched() -> None:
    with Lab() as lab, contextlib.ExitStack() as open_:
        netns = lab.netns("one")
        door = open_.enter_context(door_in(netns, 2))
        for _ in range(3):
            reset(client_in(netns, door))
        once = until(lab, lambda d: len(d.view) == 1)
        (glance,) = found(once, "accept-queue-full")
        assert (glance.severity, glance.confidence.look_again) == ("problem", True)
        (watched,) = found(looked(lab, PATIENT_MS), "accept-queue-full")
        assert (watched.severity, watched.confidence.level) == ("problem", "certain")
        values = {e.column: e.value for e in watched.evidence}
        assert values["of the queue"] == "0 alive, 3 dead"
        assert "ListenOverflows" in values


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

            plan = Plan(only=frozenset({netns.inode}), established_limit=None)
            look = Look(plan=plan, watch_ms=PATIENT_MS, not_holders=walled_off(), progress=between)
            twice = session.diagnose(how=look)
            assert accepting.is_set()
        finally:
            accepting.set()
            worker.join()
        assert found(twice, "accept-queue-full") == []


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
        spared = plans.make(view, queued.findings, mask, Limits())
        assert ({one.guard for one in spared.left}, spared.steps) == ({"accept-queue"}, ())
        netns.run("ss", "-K", "state", "close-wait")
        after = until(lab, lambda d: not d.view.queued.any())
        (left,) = found(after, "accept-queue-full")
        assert left.severity == "notice"
        assert {e.column: e.value for e in left.evidence}["of the queue"] == "0 alive, 3 dead"
        rows = np.flatnonzero(after.view.sockets.state == tcp.LISTEN)
        assert left.rows.tolist() == rows.tolist()
