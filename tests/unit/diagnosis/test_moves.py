"""Whose move it is inside the program: what tells findings apart, and what is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from finwait.diagnosis import catalogue, engine, moves
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.moves import Move
from finwait.uapi import tcp
from finwait.uapi.eventpoll import (
    EPOLLERR,
    EPOLLET,
    EPOLLHUP,
    EPOLLIN,
    EPOLLONESHOT,
    EPOLLOUT,
    EPOLLRDHUP,
    EPOLLRDNORM,
)
from finwait.uapi.observation import LoopWatch, ProcessWaits, ThreadWait
from tests.unit.diagnosis.views import socket, view

BUSY = ThreadWait(11, "main", "S", "futex", "other", steady=True)
RUNNING = ThreadWait(11, "main", "R")
ALWAYS = EPOLLERR | EPOLLHUP


def asleep(*fds: int) -> ThreadWait:
    return ThreadWait(12, "loop", "S", "epoll_wait", "epoll", tuple((fd, 0) for fd in fds), steady=True)


def inside(call: str, kind: str = "fd", events: int = 0, **more: Any) -> ThreadWait:
    return ThreadWait(13, "worker", "S", call, kind, ((3, events),), steady=True, **more)


def watched(events: int) -> tuple[LoopWatch, ...]:
    return (LoopWatch(9, 1, ((3, events | ALWAYS, 7),)),)


CLOSE_WAIT = {"state": tcp.CLOSE_WAIT, "rqueue": 1}
UNREAD = {"state": tcp.ESTABLISHED, "rqueue": 5}
FIN_WAIT2 = {"state": tcp.FIN_WAIT2, "rqueue": 0, "shutdown": 2}


def move(state: dict[str, Any], waits: ProcessWaits) -> Move:
    built = view(socket(inode=7, cookie=1, **state), holders={7: [10]}, waits={10: waits})
    return list(Move)[int(built.moves[0])]


@pytest.mark.parametrize(
    ("state", "waits", "expected"),
    [
        (CLOSE_WAIT, ProcessWaits((BUSY,)), Move.FORGOTTEN),
        (FIN_WAIT2, ProcessWaits((BUSY,)), Move.FORGOTTEN),
        (CLOSE_WAIT, ProcessWaits((asleep(9),), watched(0)), Move.PAUSED),
        (CLOSE_WAIT, ProcessWaits((asleep(9),), watched(EPOLLOUT)), Move.PAUSED),
        (CLOSE_WAIT, ProcessWaits((BUSY,), watched(EPOLLIN)), Move.LOOP_ELSEWHERE),
        (CLOSE_WAIT, ProcessWaits((BUSY, BUSY), watched(EPOLLIN)), Move.LOOP_ELSEWHERE),
        (CLOSE_WAIT, ProcessWaits((asleep(9),), watched(EPOLLIN | EPOLLRDHUP | EPOLLET)), Move.TOLD_ONCE),
        # It would have been woken: what was read was read in the middle of that.
        (CLOSE_WAIT, ProcessWaits((asleep(9),), watched(EPOLLIN)), Move.UNKNOWN),
        (CLOSE_WAIT, ProcessWaits((inside("recvfrom"),)), Move.UNKNOWN),
        (CLOSE_WAIT, ProcessWaits((inside("poll", "set", 1),)), Move.UNKNOWN),
        (CLOSE_WAIT, ProcessWaits((inside("sendto"),)), Move.WAITS),
        (
            CLOSE_WAIT,
            ProcessWaits((inside("poll", "set", 4, limited=True, timeout_ms=9),)),
            Move.WAITS_LIMITED,
        ),
        (FIN_WAIT2, ProcessWaits((asleep(9),), watched(EPOLLIN)), Move.LOOP_WATCHES),
        # Nothing is late yet, but while its thread is elsewhere the peer's FIN will not be noticed either.
        (FIN_WAIT2, ProcessWaits((BUSY,), watched(EPOLLIN)), Move.LOOP_ELSEWHERE),
        (FIN_WAIT2, ProcessWaits((RUNNING,), watched(EPOLLIN)), Move.LOOP_WATCHES),
        # Room to send in is waited for as well by calls that move bytes, and by poll(2).
        (CLOSE_WAIT, ProcessWaits((inside("sendfile", events=EPOLLOUT),)), Move.WAITS),
        (CLOSE_WAIT, ProcessWaits((inside("splice", events=EPOLLIN),)), Move.UNKNOWN),
        (CLOSE_WAIT, ProcessWaits((inside("poll", "set", EPOLLRDHUP),)), Move.UNKNOWN),
        (CLOSE_WAIT, ProcessWaits((inside("poll", "set", EPOLLRDNORM),)), Move.UNKNOWN),
        (CLOSE_WAIT, ProcessWaits((inside("poll", "set", 0),)), Move.WAITS_FOR_EVER),
        # Unread bytes wake nobody who waits for the FIN alone.
        (UNREAD, ProcessWaits((inside("poll", "set", EPOLLRDHUP),)), Move.WAITS_FOR_EVER),
        (UNREAD, ProcessWaits((inside("poll", "set", EPOLLRDHUP | EPOLLIN),)), Move.UNKNOWN),
        (UNREAD, ProcessWaits((inside("recvfrom"),)), Move.UNKNOWN),
        (UNREAD, ProcessWaits((asleep(9),), watched(EPOLLRDHUP)), Move.PAUSED),
        (UNREAD, ProcessWaits((asleep(9),), watched(EPOLLRDNORM | EPOLLET)), Move.TOLD_ONCE),
        (UNREAD, ProcessWaits((BUSY,), watched(EPOLLIN)), Move.LOOP_ELSEWHERE),
        # Who is stopped waits for nothing, whatever call it was stopped in.
        (FIN_WAIT2, ProcessWaits((replace(inside("recvfrom"), state="T"),)), Move.UNKNOWN),
        (FIN_WAIT2, ProcessWaits((replace(asleep(9), state="T"),), watched(EPOLLIN)), Move.UNKNOWN),
        (
            FIN_WAIT2,
            ProcessWaits((replace(asleep(9), wchan="do_freezer_trap"),), watched(EPOLLIN)),
            Move.UNKNOWN,
        ),
        (FIN_WAIT2, ProcessWaits((inside("recvfrom"),)), Move.WAITS),
        (
            FIN_WAIT2,
            ProcessWaits((inside("poll", "set", 1, limited=True, timeout_ms=9),)),
            Move.WAITS_LIMITED,
        ),
        (FIN_WAIT2, ProcessWaits((asleep(9),), watched(EPOLLOUT)), Move.PAUSED),
        (FIN_WAIT2, ProcessWaits((BUSY,), rings=(4,)), Move.UNKNOWN),
    ],
)
def test_what_waits_means_something_else_in_each_state(
    state: dict[str, Any], waits: ProcessWaits, expected: Move
) -> None:
    assert move(state, waits) is expected


def test_where_nobody_asked_the_move_is_not_known() -> None:
    built = view(socket(inode=7, cookie=1, **CLOSE_WAIT), holders={7: [10]})
    assert list(Move)[int(built.moves[0])] is Move.UNKNOWN


def findings(waits: dict[int, ProcessWaits], *rows: dict[str, Any]) -> list[Finding]:
    holders = {row["inode"]: [10] for row in rows}
    built = view(*rows, holders=holders, waits=waits)
    return [f for f in engine.diagnose(built, catalogue.rules()) if f.primary]


def waits_lines(finding: Finding) -> list[tuple[str, str]]:
    return [(e.value, e.says) for e in finding.evidence if e.column in ("waits", "threads")]


NOW = "no thread and no event loop of the program waits for it now: "
FORGOTTEN = socket(inode=7, cookie=1, last_data_sent_ms=60_000, **CLOSE_WAIT)
PAUSED = socket(inode=8, cookie=2, sport=4001, last_data_sent_ms=60_000, **CLOSE_WAIT)


def test_connections_of_one_process_with_different_moves_are_different_findings() -> None:
    loop = LoopWatch(9, 1, ((4, ALWAYS, 8),))
    found = findings({10: ProcessWaits((BUSY,), (loop,))}, FORGOTTEN, PAUSED)
    assert [f.rule for f in found] == ["close-wait-eof-unread"] * 2
    said = {int(f.rows[0]): waits_lines(f) for f in found}
    assert said[0] == [
        ("nobody", NOW + "it acts only if it comes back to it by itself"),
        ("in futex", "what its only thread 11 (main) does instead"),
    ]
    assert said[1] == [
        (
            "epoll descriptor 9 of pid 10",
            (
                "an event loop has it, but not for reading, and no thread sleeps in that loop: "
                "the program does something else"
            ),
        ),
        ("in futex", "what its only thread 11 (main) does instead"),
    ]


def test_what_was_not_read_is_said_to_be_unknown_with_the_reason() -> None:
    (found,) = findings({10: ProcessWaits((BUSY,), rings=(4,))}, FORGOTTEN)
    ((value, says),) = waits_lines(found)
    assert value == "unknown"
    assert "io_uring" in says


def test_without_an_answer_nothing_is_said() -> None:
    (found,) = findings({}, FORGOTTEN, PAUSED)
    assert waits_lines(found) == []


def test_where_threads_run_it_is_not_known_whether_they_wait() -> None:
    running = ThreadWait(14, "busy", "R")
    (found,) = findings({10: ProcessWaits((BUSY, running))}, FORGOTTEN)
    (value, says), (doing, _) = waits_lines(found)
    assert (value, says) == ("unknown", "1 of its threads ran during the look and may come back to it")
    assert doing == "1 in futex, 1 running"


def test_a_listener_waits_for_new_connections() -> None:
    door = socket(inode=7, cookie=1, state=tcp.LISTEN, rqueue=6, wqueue=5, dport=0, dst="0.0.0.0")
    (found,) = findings({10: ProcessWaits((BUSY,))}, door)
    assert found.rule == "accept-queue-full"
    assert waits_lines(found)[0] == (
        "nobody",
        "no thread and no event loop of the program waits for new connections",
    )
    (found,) = findings({10: ProcessWaits((BUSY,), watched(EPOLLIN))}, door)
    assert waits_lines(found)[0][1].startswith("its event loop should be accepting now")


BY_ITSELF = "but not for reading: the program reads it only if it comes back to it by itself"
SPENT = (LoopWatch(9, 1, ((3, EPOLLONESHOT, 7),)),)


@pytest.mark.parametrize(
    ("state", "waits", "expected"),
    [
        # A backend of PostgreSQL, which registered its client for writing and sleeps in another loop.
        (CLOSE_WAIT, ProcessWaits((asleep(4),), watched(EPOLLOUT)), "the program does something else"),
        (
            UNREAD | {"wqueue": 900},
            ProcessWaits((asleep(9),), watched(EPOLLOUT)),
            "the program waits for the peer to read",
        ),
        # A registration that is left over from an answer which went out long ago.
        (CLOSE_WAIT, ProcessWaits((asleep(9),), watched(EPOLLOUT | EPOLLET)), BY_ITSELF),
        (CLOSE_WAIT, ProcessWaits((asleep(9),), watched(0)), BY_ITSELF),
        (FIN_WAIT2, ProcessWaits((asleep(9),), watched(0)), "the peer's FIN wakes that loop all the same"),
        (
            FIN_WAIT2,
            ProcessWaits((asleep(9),), watched(EPOLLOUT)),
            "the peer's FIN wakes that loop all the same",
        ),
        (FIN_WAIT2, ProcessWaits((asleep(9),), SPENT), "its one-shot registration has fired"),
        (FIN_WAIT2, ProcessWaits((BUSY,), watched(EPOLLIN)), "noticed only when one returns there"),
        (FIN_WAIT2, ProcessWaits((asleep(9),), watched(EPOLLIN)), "the peer's FIN will wake it"),
        (FIN_WAIT2, ProcessWaits((RUNNING,)), "1 of its threads ran during the look"),
        (FIN_WAIT2, ProcessWaits((BUSY,)), "it notices the peer's FIN only if it comes back to it by itself"),
        (FIN_WAIT2, ProcessWaits((replace(inside("read"), state="T"),)), "stopped (SIGSTOP)"),
    ],
)
def test_what_is_said_is_so_in_that_state(state: dict[str, Any], waits: ProcessWaits, expected: str) -> None:
    built = view(socket(inode=7, cookie=1, **state), holders={7: [10]}, waits={10: waits})
    lines = moves.evidence(built, np.array([0]))
    assert expected in lines[0].says


def test_of_a_program_that_nobody_wakes_it_is_not_said_what_it_will_do() -> None:
    """It may look by itself: sleep(3), then recv(MSG_DONTWAIT)."""
    said = [text for texts in (moves._SAYS, *moves._IN_STATE.values()) for text in texts.values()]
    for text in (*said, moves._LEFT, moves._DISARMED, moves._STUCK):
        for promise in ("will not", "only the descriptor", "must resume", "a second time", "nothing will"):
            assert promise not in text


def test_where_its_loop_is_left_the_call_of_its_thread_is_named_with_its_descriptor() -> None:
    """Else `epoll_wait` would read as if it slept in that very loop."""
    waits = {10: ProcessWaits((asleep(4),), watched(EPOLLOUT))}
    built = view(socket(inode=7, cookie=1, **CLOSE_WAIT), holders={7: [10]}, waits=waits)
    (_, threads) = moves.evidence(built, np.array([0]))
    assert threads.value == "in epoll_wait of descriptor 4"


def test_a_thread_that_waits_for_another_connection_of_its_program_is_told_with_that() -> None:
    """A worker that forgot its client while it waits for its backend, a relay that waits for the other leg."""
    backend = socket(inode=8, cookie=2, state=tcp.ESTABLISHED, dst="192.0.2.9", dport=5432)
    rows = (socket(inode=7, cookie=1, **CLOSE_WAIT), backend)
    for fd, expected in (
        (3, ""),
        (4, "its connection to 192.0.2.9:5432 (ESTABLISHED, descriptor 4)"),
        (9, ""),
    ):
        thread = ThreadWait(10, "worker", "S", "recvfrom", "fd", ((fd, 0),), steady=True)
        built = view(*rows, waits={10: ProcessWaits((thread,))}, holders={7: [10], 8: [99, 10]})
        told = " ".join(line.says for line in moves.evidence(built, np.array([0])))
        assert expected in told
        assert ("waits for its connection" in told) == bool(expected)
    unsteady = ThreadWait(10, "worker", "S", "recvfrom", "fd", ((4, 0),))
    built = view(*rows, waits={10: ProcessWaits((unsteady,))}, holders={7: [10], 8: [99, 10]})
    assert "connection to" not in " ".join(line.says for line in moves.evidence(built, np.array([0])))


def test_a_listener_is_no_connection_that_a_thread_waits_for() -> None:
    rows = (
        socket(inode=7, cookie=1, **CLOSE_WAIT),
        socket(inode=8, cookie=2, state=tcp.LISTEN),
        *(
            socket(inode=20 + k, cookie=3 + k, state=tcp.ESTABLISHED, dst="192.0.2.9", dport=80)
            for k in range(3)
        ),
    )
    threads = tuple(
        ThreadWait(10 + k, "worker", "S", call, "fd", ((4 + k, 0),), steady=True)
        for k, call in enumerate(("accept4", "recvfrom", "recvfrom", "recvfrom"))
    )
    held = {7: [10], 8: [99, 10], 20: [98, 99, 10], 21: [97, 98, 99, 10], 22: [96, 97, 98, 99, 10]}
    built = view(*rows, waits={10: ProcessWaits(threads)}, holders=held)
    told = " ".join(line.says for line in moves.evidence(built, np.array([0])))
    assert "LISTEN" not in told
    assert "waits for its connection to 192.0.2.9:80 (ESTABLISHED" in told
    assert "and 2 more for others" in told


@pytest.mark.parametrize("waits", [ProcessWaits((BUSY,)), ProcessWaits((asleep(9),), watched(EPOLLOUT))])
def test_that_another_process_may_hold_it_is_said_where_nobody_who_was_read_would_act(
    waits: ProcessWaits,
) -> None:
    one = socket(inode=7, cookie=1, **CLOSE_WAIT)
    said = []
    for unreadable in ((), (99,)):
        built = view(one, holders={7: [10]}, waits={10: waits}, unreadable=unreadable)
        said.append(moves.evidence(built, np.array([0]))[0].says)
    assert said[1] == f"{said[0]}; a process that could not be inspected may hold it too"


def test_that_another_process_may_hold_it_is_not_said_of_a_wait_that_will_end() -> None:
    one = socket(inode=7, cookie=1, **FIN_WAIT2)
    waits = {10: ProcessWaits((asleep(9),), watched(EPOLLIN))}
    built = view(one, holders={7: [10]}, waits=waits, unreadable=(99,))
    assert "could not be inspected" not in moves.evidence(built, np.array([0]))[0].says
