"""What arrives and nobody reads, and who holds what it did not accept: to a single question both look healthy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.roles import another_program, programs_at_door, taken_over
from finwait.diagnosis.view import HiddenDescriptor, View
from finwait.lone_sockets import LoneSockets, closed_already, hidden_before
from finwait.remedy.guards import Limits, guard_other_end, guard_rows
from finwait.uapi import tcp
from finwait.uapi.eventpoll import EPOLLET, EPOLLIN, EPOLLONESHOT, EPOLLRDHUP
from finwait.uapi.observation import LoneSocket, LoopWatch, ProcessWaits, ThreadWait
from tests.unit.diagnosis.test_activity import DOOR, HUNG, RANGE, SERVICE, USED, seen
from tests.unit.diagnosis.test_rules import CLOCKS, CW, E, unread
from tests.unit.diagnosis.views import view

HALF = USED | {
    "state": tcp.FIN_WAIT2,
    "shutdown": 2,
    "rqueue": 9,
    "bytes_received": 100,
    "last_data_recv_ms": 300,
}
BEFORE = HALF | {"rqueue": 5, "bytes_received": 96}
IN_LOOP = ThreadWait(9, "app", "S", "epoll_wait", "epoll", ((5, 0),), steady=True)
SLEEPS = ThreadWait(8, "sleep", "S", "nanosleep", "other", steady=True)
RUNS = ThreadWait(9, "app", "R", "", "other", steady=False)


def told_of_unread(v: View) -> list[int]:
    return [
        f.count for f in engine.diagnose(v, catalogue.rules()) if f.rule == "established-unread" and f.primary
    ]


def primary_of(v: View, row: int = 0) -> Finding:
    (about,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary and row in f.rows)
    return about


def in_poll(events: int, fd: int = 3) -> ThreadWait:
    return ThreadWait(9, "app", "S", "poll", "set", ((fd, events),), steady=True)


@pytest.mark.parametrize(
    ("events", "severity"),
    [
        (EPOLLONESHOT, "problem"),  # it has fired
        (0, "problem"),
        (EPOLLRDHUP, "problem"),
        (EPOLLIN | EPOLLET, "notice"),  # it may have been told already, and wait for more
    ],
)
def test_a_registration_that_data_cannot_wake_waits_for_none(events: int, severity: str) -> None:
    loops = (LoopWatch(5, 1, ((3, events, 90),)),)
    v = seen([HALF], [BEFORE], holders={90: [9]}, waits={9: ProcessWaits((IN_LOOP,), loops)})
    assert (primary_of(v).rule, primary_of(v).severity) == ("fin-wait2-held", severity)


@pytest.mark.parametrize(
    ("events", "severity"), [(0, "problem"), (EPOLLRDHUP, "problem"), (EPOLLIN, "notice")]
)
def test_a_poll_that_data_cannot_wake_waits_for_none(events: int, severity: str) -> None:
    v = seen([HALF], [BEFORE], holders={90: [9]}, waits={9: ProcessWaits((in_poll(events),))})
    assert (primary_of(v).rule, primary_of(v).severity) == ("fin-wait2-held", severity)


def test_a_thread_that_runs_and_does_not_read_waits_for_nothing() -> None:
    v = seen([HALF], [BEFORE], holders={90: [9]}, waits={9: ProcessWaits((RUNS,))})
    assert (primary_of(v).severity, primary_of(v).confidence.level) == ("problem", "likely")


@pytest.mark.parametrize(
    ("other", "severity"),
    [
        (ProcessWaits((SLEEPS,)), "problem"),
        (ProcessWaits((replace(in_poll(EPOLLIN, 4), tid=8),)), "notice"),
        (None, "notice"),
    ],
)
def test_of_several_holders_each_is_asked(other: ProcessWaits | None, severity: str) -> None:
    halted = ThreadWait(9, "app", "T", "", "other", steady=True)
    processes = {
        9: ProcessView(9, "app", state="T", age_ms=90_000),
        8: ProcessView(8, "sleep", state="S", ppid=9),
    }
    waits = {9: ProcessWaits((halted,))} | ({8: other} if other else {})
    shared = {(8, 9): True}
    v = seen([HALF], [BEFORE], holders={90: [9, 8]}, processes=processes, waits=waits, one_table=shared)
    assert (primary_of(v).rule, primary_of(v).severity) == ("fin-wait2-held", severity)


def pair(near: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The other end of a half-close, which reads: at the first look and at the second."""
    far = USED | {
        "state": CW,
        "sport": near["dport"],
        "dport": near["sport"],
        "src": near["dst"],
        "dst": near["src"],
    }
    far |= {"inode": 91, "cookie": 901, "shutdown": 1}
    return far | {"rqueue": 900}, far | {"rqueue": 400}


@pytest.mark.parametrize(
    ("state", "queue", "rule"),
    [
        ("T", (5, 9), "fin-wait2-held"),
        ("S", (5, 9), "fin-wait2-held"),
        ("T", (9, 9), "fin-wait2-held"),
        ("S", (9, 9), "fin-wait2-held"),
        ("S", (0, 0), "fin-wait2-streaming"),  # it waits for what the other end makes of the rest
        ("T", (0, 0), "fin-wait2-streaming"),
    ],
)
def test_that_the_other_end_reads_says_nothing_of_this_one(
    state: str, queue: tuple[int, int], rule: str
) -> None:
    was, now = pair(HALF)
    first, second = (HALF | {"rqueue": q, "bytes_received": 100 - queue[1] + q} for q in queue)
    v = seen(
        [second, now],
        [first, was],
        holders={90: [9], 91: [10]},
        processes={9: ProcessView(9, "app", state=state), 10: ProcessView(10, "peer", state="S")},
        waits={9: ProcessWaits((HUNG,))},
    )
    assert v.other_reads[0]
    assert primary_of(v).rule == rule


def test_first_bytes_are_left_unread_by_a_stopped_program_and_perhaps_by_another() -> None:
    first = HALF | {"rqueue": 0, "bytes_received": 91}
    stopped = {9: ProcessView(9, "app", state="T")}
    v = seen([HALF], [first], holders={90: [9]}, processes=stopped)
    assert (primary_of(v).rule, primary_of(v).confidence.level) == ("fin-wait2-held", "certain")
    v = seen([HALF], [first], holders={90: [9]}, processes={9: ProcessView(9, "app", state="S")})
    about = primary_of(v)
    assert (about.rule, about.confidence.level, about.confidence.look_again) == (
        "fin-wait2-streaming",
        "possible",
        True,
    )


def test_what_arrives_sets_the_clock_of_a_half_close_back_for_ever() -> None:
    clocks = {"last_ack_recv_ms": 300, "last_data_sent_ms": 90_000}
    v = seen([HALF | clocks], [BEFORE], holders={90: [9]}, processes={9: ProcessView(9, "app", state="T")})
    assert v.clock_shows(np.array([0]), 600_000).tolist() == [-1]
    quiet = HALF | clocks
    v = seen([quiet], [quiet], holders={90: [9]}, processes={9: ProcessView(9, "app", state="T")})
    assert v.clock_shows(np.array([0]), 600_000)[0] > 0
    verdict = guard_rows(v, 0, Limits(min_age_ms=600_000))
    assert verdict is not None
    assert verdict.guard == "min-age"


HANDED = SERVICE | {8: ProcessView(8, "worker", exe="/bin/worker", ppid=9, age_ms=60_000)}


@pytest.mark.parametrize(
    ("sent_ms", "waits", "guard"),
    [
        (10_000, SLEEPS, "unread"),  # it has answered before
        (80_000, SLEEPS, ""),  # its parent sent that
        (80_000, replace(in_poll(EPOLLIN), tid=8), "unread"),
    ],
)
def test_a_worker_that_a_dispatcher_hands_connections_to_may_read_them(
    sent_ms: int, waits: ThreadWait, guard: str
) -> None:
    near = unread(1)[0] | dict.fromkeys(CLOCKS, 20_000) | {"last_data_sent_ms": sent_ms, "inode": 90}
    far = near | {"sport": near["dport"], "dport": near["sport"], "src": near["dst"], "dst": near["src"]}
    far |= {"inode": 91, "cookie": 999, "rqueue": 0}
    v = view(
        DOOR, near, far,
        holders={5: [9], 90: [8], 91: [10]}, processes=HANDED, waits={8: ProcessWaits((waits,))},
    )  # fmt: skip
    v = replace(v, other=np.array([-1, 2, 1]))
    allowed = Limits(established_named=True, override=frozenset({"handed-over"}))
    named = guard_rows(v, 1, allowed)
    assert (named.guard if named else "") == guard
    other = guard_other_end(v, 2, allowed)
    assert (other.guard if other else "") == guard, "ending the client's end resets the same request"


def test_a_supervisor_that_keeps_the_listener_is_one_of_those_that_may_have_accepted() -> None:
    programs = HANDED | {
        7: ProcessView(7, "super", exe="/bin/super", age_ms=99_000),
        6: ProcessView(6, "sleep", exe="/bin/sleep", ppid=9, age_ms=60_000),
    }
    row = USED | dict.fromkeys(CLOCKS, 20_000)
    v = view(DOOR, row, holders={5: [7, 9], 90: [6]}, processes=programs, waits={6: ProcessWaits((SLEEPS,))})
    assert programs_at_door(v, 1) == {"/bin/super", "/bin/app"}
    assert v.strays.tolist() == [False, True]
    assert primary_of(v, 1).rule == "inherited-descriptor"
    v = view(DOOR, row, holders={5: [7, 9], 90: [9]}, processes=programs)
    assert not v.strays.any()
    unnamed = programs | {7: ProcessView(7, "super")}
    v = view(DOOR, row, holders={5: [7, 9], 90: [6]}, processes=unnamed, waits={6: ProcessWaits((SLEEPS,))})
    assert not v.strays.any(), "one of those that listen is not known"


def test_who_listens_on_that_port_itself_may_have_accepted() -> None:
    row = USED | {"src": "127.0.0.1"} | dict.fromkeys(CLOCKS, 20_000)
    exact = DOOR | {"src": "127.0.0.1", "inode": 5}  # bound to another device
    wide = DOOR | {"src": "0.0.0.0", "inode": 6, "cookie": 2}
    v = view(exact, wide, row, holders={5: [9], 6: [8], 90: [8]}, processes=HANDED)
    assert not another_program(v, 2)
    assert not taken_over(v, 2)
    assert not v.strays.any()


@pytest.mark.parametrize(("ppid", "known"), [(1, False), (9, True)])
def test_what_is_said_of_who_accepted_it_is_what_is_known(ppid: int, known: bool) -> None:
    row = USED | {"dport": 45_000} | dict.fromkeys(CLOCKS, 20_000)
    programs = SERVICE | {8: ProcessView(8, "sleep", exe="/bin/sleep", ppid=ppid, age_ms=60_000)}
    elsewhere = DOOR | {"sport": 81}
    v = view(
        elsewhere,
        row,
        holders={5: [9], 90: [8]},
        processes=programs,
        waits={8: ProcessWaits((SLEEPS,))},
        namespaces=RANGE,
    )
    about = primary_of(v, 1)
    said = " ".join(item.says for item in about.evidence)
    assert ("another program than its parent" in said) == known
    assert ("not known" in said) != known
    assert "did not accept" not in about.title


def test_who_took_over_a_port_did_not_start_the_worker_that_accepted_before() -> None:
    row = USED | {"state": CW, "shutdown": 1} | dict.fromkeys(CLOCKS, 20_000) | {"last_data_sent_ms": 10_000}
    programs = {
        8: ProcessView(8, "v1", exe="/bin/v1", ppid=9, age_ms=60_000),
        9: ProcessView(9, "v2", exe="/bin/v2", age_ms=90_000),  # exec() keeps the time of the start
    }
    v = view(DOOR, row, holders={5: [9], 90: [8]}, processes=programs, waits={8: ProcessWaits((SLEEPS,))})
    about = primary_of(v, 1)
    assert about.rule == "inherited-descriptor"
    assert "inherited" not in about.title


def test_a_dead_socket_of_which_all_workers_have_a_copy_is_one() -> None:
    def leaks(hidden: list[HiddenDescriptor]) -> int:
        programs = {pid: ProcessView(pid, "app", exe="/bin/app", ppid=500) for pid in range(501, 509)}
        programs[500] = ProcessView(500, "app", exe="/bin/app", ppid=1)
        v = view(USED, holders={90: [500]}, processes=programs, hidden=tuple(hidden))
        return sum(f.count for f in engine.diagnose(v, catalogue.rules()) if f.rule == "hidden-leak")

    workers = range(501, 509)
    assert leaks([HiddenDescriptor(pid, 7, 900) for pid in workers]) == 0
    assert leaks([HiddenDescriptor(pid, 7, 400 + pid) for pid in workers]) == 8
    assert leaks([HiddenDescriptor(pid, 7 + k, 900 + k) for pid in workers for k in range(5)]) == 40


def test_a_dead_socket_that_is_read_from_is_in_use() -> None:
    def asked(unread: int) -> LoneSockets:
        return LoneSockets([(500, 3, 903)], {903: LoneSocket(1, tcp.CLOSE, used=True, unread=unread)}, [], [])

    for before, after, kept in ((900, 900, [3]), (900, 400, []), (900, 0, []), (0, 0, [3])):
        now = (HiddenDescriptor(500, 3, 903, unread=after),)
        assert [item.fd for item in hidden_before(now, closed_already(asked(before)))] == kept


def test_clients_that_keep_sending_to_a_stray_child_are_not_told_that_it_accepted_them() -> None:
    rows = [row | {"inode": 90 + k, "bytes_received": 100} for k, row in enumerate(unread(4))]
    rows = [
        row | {"state": E, "rqueue": 50} | dict.fromkeys(CLOCKS, 300) | {"last_data_sent_ms": 20_000}
        for row in rows
    ]
    before = [row | {"rqueue": 40, "bytes_received": 90} for row in rows]
    children = {
        20 + k: ProcessView(20 + k, "sleep", exe="/bin/sleep", ppid=9, age_ms=60_000, state="S")
        for k in range(4)
    }
    v = seen(
        [DOOR, *rows], [DOOR, *before],
        holders={5: [9]} | {90 + k: [20 + k] for k in range(4)},
        processes=SERVICE | children,
        waits={pid: ProcessWaits((replace(SLEEPS, tid=pid),)) for pid in children},
    )  # fmt: skip
    assert v.moved[1:].all()
    about = primary_of(v, 1)
    assert (about.rule, about.severity, about.count) == ("inherited-descriptor", "problem", 1)
    assert told_of_unread(v) == []
