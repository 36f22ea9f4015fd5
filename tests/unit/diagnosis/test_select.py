"""What a FILTER names and is not here."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.select import KnownNames, judge, nothing_like_it
from finwait.diagnosis.view import HiddenDescriptor
from finwait.table.filter import parse
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view

NAMES = KnownNames(
    lambda pids: [pid for pid in pids if pid == 500], {1001: "ann"}, lambda _: {(1, 2): "eth0"}
)
V = view(socket(state=tcp.CLOSE_WAIT, inode=7), holders={7: [500]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pid=500", []),
        ("pid=501", ["there is no process 501"]),
        ("pid!=501", []),
        ("pid=501 or pid=500", []),
        ("pid=501 or pid=502", ["there is no process 501", "there is no process 502"]),
        ("pid=501 and state=CLOSE_WAIT", ["there is no process 501"]),
        ("user=ann", []),
        ("user=1002", []),
        ("user=bob", ["no user that this machine can list is named `bob`; a number always works"]),
        ("dev=eth0", []),
        ("dev=eth1", ["no network interface is named `eth1`"]),
        ("netns=1", []),
        ("netns=2", ["there is no network namespace 2 among the inspected ones"]),
        ("netns=host", []),
    ],
)
def test_what_is_named_and_is_not_here_is_said_where_nothing_can_match(text: str, said: list[str]) -> None:
    assert list(nothing_like_it(parse(text), V, NAMES)) == said


@pytest.mark.parametrize("text", ["netns=2", "netns=web", "comm=nginx", "pod=web"])
def test_what_may_be_in_a_namespace_that_could_not_be_entered_is_not_said_to_be_absent(text: str) -> None:
    inside = replace(V, processes={500: ProcessView(500, "cat", cgroup="/")})
    assert nothing_like_it(parse(text), inside, NAMES)
    assert not nothing_like_it(parse(text), replace(inside, all_entered=False), NAMES)


def test_a_process_that_is_hidden_from_us_is_not_said_to_be_absent() -> None:
    hidden = view(socket(state=tcp.CLOSE_WAIT, inode=7), holders={7: [500]}, unreadable=(0,))
    assert not nothing_like_it(parse("pid=501"), hidden, NAMES)
    (said,) = nothing_like_it(parse("pid=501"), V, replace(NAMES, recorded=True))
    assert said.startswith("the recording has no process 501")


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("pid=500", True),
        ("pid=501", False),
        ("pid!=500", False),
        ("rule=hidden-leak", True),
        ("rule=time-wait", False),
        ("severity=problem", True),
        ("severity=notice", False),
        ("comm=app", True),
        ("comm=nginx", False),
        ("user=ann", True),
        ("user=bob", False),
        ("held", True),
        ("orphan", False),
        ("pid=500 and dport=80", None),
        ("pid=501 and dport=80", False),
        ("pid=501 or dport=80", None),
        ("age>1s", None),
        ("state=CLOSE", True),
        ("state=CLOSE_WAIT", False),
    ],
)
def test_a_filter_is_judged_on_descriptors_without_a_connection_by_what_is_known_of_them(
    text: str, selected: bool | None
) -> None:
    processes = {500: ProcessView(500, "app", uid=1001, cgroup="/")}
    hidden = tuple(HiddenDescriptor(500, fd, 900 + fd) for fd in range(6))
    v = view(hidden=hidden, processes=processes)
    (leak,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "hidden-leak")
    assert judge(parse(text), leak, v, {1001: "ann"}) is selected


@pytest.mark.parametrize("text", ["pid=500", "pid!=500", "comm=app", "user=ann"])
def test_a_filter_that_asks_for_the_holder_is_left_open_where_no_holder_is_known(text: str) -> None:
    v = view(hidden=tuple(HiddenDescriptor(500, fd, 900 + fd) for fd in range(6)))
    (leak,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "hidden-leak")
    assert judge(parse(text), replace(leak, pids=()), v, {1001: "ann"}) is None
