"""A program on this machine that reads slowly, or a little: healthy, whatever its kernel's window says."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from finwait import session
from finwait.diagnosis import outlook, window_probes
from finwait.diagnosis.view import Options, View
from finwait.lab.proofs.instruments import Pair, Place
from finwait.lab.topology import Lab, unmet
from finwait.session import Diagnosis, Look
from finwait.uapi.observation import LookPlan
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel
PERSIST = 4
"""``idiag_timer``: the window probe."""


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))


def looked(place: Place, watch_ms: int = 0, idle_ms: int = 600_000) -> Diagnosis:
    plan = LookPlan(only=frozenset({place.ns.inode}), established_limit=None)
    return session.diagnose(how=Look(plan=plan, watch_ms=watch_ms, options=Options(idle_ms=idle_ms)))


def row_of(view: View, pair: Pair) -> int:
    (row,) = np.flatnonzero(
        (view.sockets.sport == pair.a_port) & (view.sockets.dport == pair.b_port)
    ).tolist()
    return int(row)


def until(place: Place, pair: Pair, true: Callable[[View, int], bool]) -> None:
    end = time.monotonic() + 20
    while not true(view := looked(place).view, row_of(view, pair)):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)


def fill(pair: Pair, piece: int) -> None:
    pair.a.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            pair.a.send(bytes(piece))
    pair.a.shutdown(socket.SHUT_WR)


def rule(diagnosis: Diagnosis, pair: Pair) -> tuple[str, str, bool]:
    row = row_of(diagnosis.view, pair)
    (found,) = (f for f in diagnosis.findings if f.primary and (f.rows == row).any())
    return found.rule, found.severity, found.confidence.look_again


def test_a_shut_window_does_not_accuse_a_program_that_reads_all_the_time() -> None:
    with Lab() as lab, Place(lab) as place:
        pair, stop = place.pair(), threading.Event()
        fill(pair, 65_536)

        def read() -> None:
            while not stop.wait(0.05):
                pair.b.recv(100)

        reader = threading.Thread(target=read)
        reader.start()
        try:

            def shut(view: View, row: int) -> bool:
                s = view.sockets
                return bool(
                    s.timer[row] == PERSIST and not s.snd_wnd[row] and s.last_data_sent_ms[row] > 1500
                )

            until(place, pair, shut)
            assert rule(looked(place, idle_ms=1000), pair) == ("zero-window", "notice", True)
            assert rule(looked(place, watch_ms=3100, idle_ms=1000), pair)[:2] == (
                "closing-in-progress",
                "healthy",
            )
        finally:
            stop.set()
            reader.join()
        assert rule(looked(place, watch_ms=3100, idle_ms=1000), pair)[:2] == ("zero-window", "problem")


def test_a_timer_that_waits_for_room_for_a_segment_gives_nothing_up() -> None:
    with Lab() as lab, Place(lab) as place:
        door = place.fresh()
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        door.bind(("127.0.0.1", 0))
        door.listen()
        pair = place.pair(door)
        pair.a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fill(pair, 500)

        def probed(view: View, row: int) -> bool:
            return bool(view.sockets.timer[row] == PERSIST and view.sockets.backoff[row] >= 4)

        until(place, pair, probed)
        before = time.monotonic()
        for _ in range(4):
            pair.b.recv(3000)
            diagnosis = looked(place)
            row = row_of(diagnosis.view, pair)
            if window_probes.sends_next(diagnosis.view, row):
                break
        else:
            pytest.skip(
                f"this kernel opens its window by whole segments (after {time.monotonic() - before:.1f} s)"
            )
        assert rule(diagnosis, pair)[:2] == ("closing-in-progress", "healthy")
        assert outlook.of_row(diagnosis.view, row).ends == "unknown"
