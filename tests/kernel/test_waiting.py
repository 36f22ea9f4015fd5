"""Who waits for a connection, read from real programs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from finwait import session
from finwait.attribution.waiting import WaitedOn
from finwait.lab.topology import Lab, unmet
from finwait.report import json as as_json
from finwait.session import Look, Snapshot
from finwait.uapi.observation import LookPlan
from tests.captures.make import walled_off
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Snapshot, dict[str, int], int]]:
    """A look at the program, once all of its threads sleep, and which row each of its connections is."""
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        netns = lab.netns("waiting")
        argv = [sys.executable, "-m", "tests.kernel.waiting_program"]
        program = netns.call(lambda: subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        try:
            assert program.stdout is not None
            said = json.loads(program.stdout.readline())
            shot, rows = looked(netns.inode, said["ports"])
            yield shot, rows, said["pid"]
        finally:
            assert program.stdin is not None
            program.stdin.close()
            assert program.stdout is not None
            program.stdout.close()
            program.wait(30)


def looked(netns: int, ports: dict[str, int]) -> tuple[Snapshot, dict[str, int]]:
    end = time.monotonic() + 30
    while True:
        plan = LookPlan(only=frozenset({netns}))
        shot = session.look(session.live_machine(), Look(plan=plan, not_holders=walled_off()))
        s = shot.sockets
        rows = {
            name: int(row)
            for name, port in ports.items()
            for row in np.flatnonzero((s.dport == port) & (s.state == 8)).tolist()
        }
        if len(rows) == len(ports) and not any(shot.view.waits.of(row).unsteady for row in rows.values()):
            return shot, rows
        assert time.monotonic() < end, "they never came to rest in CLOSE_WAIT"
        time.sleep(0.02)


def of(scene: tuple[Snapshot, dict[str, int], int], name: str) -> WaitedOn:
    shot, rows, _ = scene
    return shot.view.waits.of(rows[name])


def test_a_thread_in_a_call(scene: tuple[Snapshot, dict[str, int], int]) -> None:
    told = of(scene, "thread")
    assert told.kind == "thread"
    assert [(one.call, one.limited) for one in told.threads] == [("sendto", False)]


def test_a_loop_that_no_thread_sleeps_in(scene: tuple[Snapshot, dict[str, int], int]) -> None:
    told = of(scene, "stuck loop")
    assert (told.kind, [loop.asleep for loop in told.loops]) == ("loop", [False])


def test_a_loop_that_was_told_once_and_whose_thread_sleeps(
    scene: tuple[Snapshot, dict[str, int], int],
) -> None:
    told = of(scene, "edge loop")
    assert (told.kind, [(loop.asleep, loop.edge) for loop in told.loops]) == ("loop", [(True, True)])


def test_what_is_watched_but_not_for_reading(scene: tuple[Snapshot, dict[str, int], int]) -> None:
    assert of(scene, "paused").kind == "paused"
    told = of(scene, "one-shot")
    assert (told.kind, [loop.spent for loop in told.loops]) == ("paused", [True])


def test_a_registration_for_everything_tells_nothing(scene: tuple[Snapshot, dict[str, int], int]) -> None:
    assert of(scene, "runtime").kind == "unknown"


def test_what_nobody_waits_for(scene: tuple[Snapshot, dict[str, int], int]) -> None:
    assert of(scene, "nobody").kind == "nobody"


def test_the_json_of_a_connection_has_it(scene: tuple[Snapshot, dict[str, int], int]) -> None:
    shot, rows, pid = scene
    (text,) = as_json.connections(shot.view, np.array([rows["paused"]]))
    told = json.loads(text)["waited_on"]
    assert told["kind"] == "paused"
    assert [(loop["pid"], loop["events"], loop["asleep"]) for loop in told["loops"]] == [
        (pid, ["ERR", "HUP"], True)
    ]


@pytest.mark.parametrize(
    ("events", "wakes"),
    [(0, True), (select.EPOLLOUT | select.EPOLLET, True), (select.EPOLLOUT | select.EPOLLONESHOT, False)],
)
def test_a_fin_in_fin_wait2_wakes_a_loop_that_does_not_watch_for_reading(events: int, wakes: bool) -> None:
    """What is said of a paused one: EPOLLHUP is reported without being asked for, but not by a spent one-shot."""
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab, contextlib.ExitStack() as stack:
        netns = lab.netns("hup")
        door = stack.enter_context(netns.call(lambda: socket.create_server(("127.0.0.1", 0))))
        near = stack.enter_context(netns.call(lambda: socket.create_connection(door.getsockname())))
        far = stack.enter_context(door.accept()[0])
        near.shutdown(socket.SHUT_WR)
        loop = stack.enter_context(contextlib.closing(select.epoll()))
        loop.register(near, events)
        loop.poll(0)  # room to send in is reported once
        assert far.recv(1) == b""
        far.close()
        hung_up = [bool(mask & select.EPOLLHUP) for _, mask in loop.poll(5 if wakes else 0.2)]
        assert hung_up == ([True] if wakes else [])


def test_nothing_is_changed_by_reading(scene: tuple[Snapshot, dict[str, int], int]) -> None:
    """The threads that sleep are not woken: they are given no processor while they are read."""
    shot, _, pid = scene
    before = {t.tid: t.slices for t in shot.view.waits.doing(pid)}
    again = session.look(session.live_machine(), Look(plan=shot_plan(shot), not_holders=walled_off()))
    assert {t.tid: t.slices for t in again.view.waits.doing(pid)} == before
    assert len(os.listdir(f"/proc/{pid}/task")) == len(before)


def shot_plan(shot: Snapshot) -> LookPlan:
    return LookPlan(only=frozenset(shot.view.namespaces))
