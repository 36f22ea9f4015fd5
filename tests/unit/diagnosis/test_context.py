"""What a FILTER may ask of a row, by the name that it asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.context import ViewContext
from finwait.diagnosis.view import NamespaceView
from finwait.table.filter import parse
from finwait.uapi import tcp
from finwait.uapi.observation import Releasing
from tests.unit.diagnosis.test_rules import HELD
from tests.unit.diagnosis.views import socket, view

ID, POD = "c" * 64, "0a1b2c3d-0000-4000-8000-000000000001"
PATH = f"/kubepods/burstable/pod{POD}/{ID}"
V = view(
    HELD | {"cgroup_id": 41, "uid": 1001, "ifindex": 2},
    socket(state=tcp.ESTABLISHED, inode=8, cookie=2, cgroup_id=42, uid=0, ifindex=0, netns=2),
    socket(state=tcp.TIME_WAIT, timer=3, cookie=3, uid=0, ifindex=3),
    holders={7: [500], 8: [501, 502]},
    processes={500: ProcessView(500, "web", cgroup=PATH), 501: ProcessView(501, "a", cgroup="/x.slice")},
    cgroup_paths={41: PATH, 42: "/x.slice"},
    namespaces={1: NamespaceView(1, ("host",)), 2: NamespaceView(2, ())},
)
CONTEXT = ViewContext(
    V, engine.diagnose(V, catalogue.rules()), {1001: "ann", 0: "root"}, lambda _: {(1, 2): "eth0"}
)


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("pid", [(500,), (501, 502), ()]),
        ("comm", [("web",), ("a", None), ()]),
        ("netns", [("host", "1"), ("2",), ("host", "1")]),
        ("cgroup", [PATH, "/x.slice", None]),
        ("user", ["ann", "root", None]),
        ("dev", ["eth0", "", None]),
        ("container", [(ID, None), (), None]),
        ("pod", [(POD, None), (), None]),
        ("rule", [("fin-wait2-held",), (), ("time-wait",)]),
        ("also", [(), (), ()]),
        ("severity", [("problem",), (), ("healthy",)]),
    ],
)
def test_each_name_has_its_own_value_a_row(name: str, cells: list[Any]) -> None:
    assert list(CONTEXT.values(name)) == cells


def test_what_is_not_known_is_an_error() -> None:
    with pytest.raises(KeyError):
        ViewContext(V).values("rule")
    with pytest.raises(KeyError):
        CONTEXT.values("weather")
    with pytest.raises(ValueError, match="compare with its range, `sport >= :32768 sport <= :60999`"):
        CONTEXT.values("autobound")
    with pytest.raises(ValueError, match="a recording has no user names"):
        ViewContext(V).values("user")


def test_of_what_may_have_been_opened_during_the_look_neither_a_name_nor_its_opposite_is_true() -> None:
    young = HELD | {"last_data_sent_ms": 4, "last_data_recv_ms": 4}
    once, twice = view(young), view(young, earlier=[young], watched_ms=4_000)
    for words in ("comm = web", "comm != web", "pid = 5", "pid != 5"):
        selects = [bool(parse(words).mask(v.sockets, ViewContext(v))[0]) for v in (once, twice)]
        assert selects == [False, "!=" in words], words
        assert parse(words).possible(once.sockets, ViewContext(once), np.array([0])).all()


@pytest.mark.parametrize(
    ("threads", "cells"),
    [
        ([(50, 1)], (50,)),
        ([(50, 1), (50, 1)], (50,)),
        ([(50, 1), (51, 1)], (None,)),  # one of them
        ([(50, 2)], (None,)),  # of another namespace: perhaps
    ],
)
def test_a_thread_that_is_closing_a_socket_is_who_holds_it(
    threads: list[tuple[int, int]], cells: tuple[int | None, ...]
) -> None:
    row = socket(state=tcp.FIN_WAIT1, inode=7, cookie=1, last_data_sent_ms=60_000, last_data_recv_ms=60_000)
    closing = tuple(Releasing(pid, pid, "closer", netns, "close", False) for pid, netns in threads)
    v = replace(view(row), releasing=closing)
    assert list(ViewContext(v, (), {}, lambda _: {}).values("pid")) == [cells]


DOOR = socket(
    state=tcp.LISTEN, sport=80, src="0.0.0.0", dst="0.0.0.0", dport=0, inode=5, cookie=50, rqueue=2, wqueue=9
)
QUEUED = socket(state=tcp.ESTABLISHED, sport=80, dport=4000, inode=0, cookie=51, rqueue=20)
SERVER = {p: ProcessView(p, name) for p, name in ((9, "app"), (10, "app"), (11, "other"))}


def test_what_waits_to_be_accepted_has_the_holders_of_its_listener() -> None:
    """A hung server that is asked for by name has its queue; nobody holds that."""
    built = view(DOOR, QUEUED, holders={5: [9, 10]}, processes=SERVER)
    assert list(ViewContext(built).values("pid"))[1] == (9, 10)
    for text, selected in (
        ("comm = app", [True, True]),
        ("pid = 10", [True, True]),
        ("comm = other", [False, False]),
        ("comm != app", [False, False]),
        ("held", [True, False]),
    ):
        assert parse(text).mask(built.sockets, ViewContext(built)).tolist() == selected, text


def test_of_several_listeners_nothing_tells_which_has_a_connection_that_waits() -> None:
    twin = DOOR | {"inode": 6, "cookie": 52}
    same = view(DOOR, twin, QUEUED, holders={5: [9], 6: [10]}, processes=SERVER)
    assert parse("comm = app").mask(same.sockets, ViewContext(same)).tolist() == [True, True, True]
    assert parse("pid = 9").mask(same.sockets, ViewContext(same)).tolist() == [True, False, False]
    assert parse("pid != 9").mask(same.sockets, ViewContext(same)).tolist() == [False, True, False]
    (row,) = parse("pid = 9").possible(same.sockets, ViewContext(same), np.array([2]))
    assert row
    assert (same.listener >= 0).tolist() == [False, False, True], "what is not selected is told as not judged"


def test_without_owners_nobody_knows_who_is_to_accept() -> None:
    built = view(DOOR, QUEUED, searched=False)
    assert parse("comm = app").mask(built.sockets, ViewContext(built)).tolist() == [False, False]
    assert parse("comm = app").possible(built.sockets, ViewContext(built), np.array([1])).tolist() == [True]
