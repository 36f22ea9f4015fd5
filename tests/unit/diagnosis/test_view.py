"""What a view joins to the rows of a look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from finwait.attribution.process import ProcessView
from finwait.diagnosis.engine import gaps
from finwait.diagnosis.rules import time_wait_flood
from finwait.diagnosis.view import NamespaceView
from finwait.table.sockets import pack_address
from finwait.uapi import tcp
from finwait.uapi.observation import UNSEEN_THREADS, Releasing
from tests.unit.diagnosis.views import socket, view

HERE = "/system.slice/nginx.service"
ELSEWHERE = "/system.slice/cron.service"


def test_a_connection_is_of_the_unit_that_made_it_whoever_holds_it_now() -> None:
    """Its cgroup id says where it was made; only without one does the holder's cgroup tell."""
    processes = {500: ProcessView(500, "cron", cgroup=ELSEWHERE)}
    rows = [socket(inode=k, sport=k, cgroup_id=[9, 9, 0][k - 1]) for k in (1, 2, 3)]
    v = view(*rows, holders={1: [500], 3: [500]}, processes=processes, cgroup_paths={9: HERE})
    assert [w.unit if w else None for w in v.workloads] == ["nginx.service", "nginx.service", "cron.service"]


def test_what_is_in_no_unit_belongs_to_none() -> None:
    rows = [socket(inode=k, sport=k, cgroup_id=k) for k in (1, 2, 3)]
    processes = {500: ProcessView(500, "sh", cgroup="/")}
    v = view(*rows, holders={1: [500]}, processes=processes, cgroup_paths={1: "/", 2: HERE})
    assert [w.unit if w else None for w in v.workloads] == [None, "nginx.service", None]
    assert view().workloads == []


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.53", "127.255.255.254", "::1"])
def test_loopback_of_another_namespace_is_not_where_a_connection_ends(address: str) -> None:
    lo = frozenset({pack_address(address)})
    one = socket(state=tcp.CLOSE_WAIT, src=address, dst=address, family=10 if ":" in address else 2)

    def here(own: bool) -> bool:
        spaces = {1: NamespaceView(1, dumped=own), 2: NamespaceView(2, addresses=lo)}
        return bool(view(one, namespaces=spaces).peer_here[0])

    assert here(True)
    assert not here(False)


@pytest.mark.parametrize(
    ("address", "here"), [("192.0.2.1", True), ("126.0.0.1", False), ("128.0.0.1", False)]
)
def test_any_other_address_of_a_namespace_is_where_a_connection_to_it_ends(address: str, here: bool) -> None:
    one = socket(state=tcp.CLOSE_WAIT, dst="192.0.2.1")
    for dst in ("192.0.2.1", address):
        spaces = {
            1: NamespaceView(1, dumped=False),
            2: NamespaceView(2, addresses=frozenset({pack_address(address)})),
        }
        found = view(one | {"dst": dst}, namespaces=spaces).peer_here[0]
        assert found == (here or dst == address)


def flood(count: int) -> Callable[[dict[str, str]], bool]:
    """Return whether so many TIME_WAIT, each to another destination, are too many with some sysctls."""
    rows = [socket(state=tcp.TIME_WAIT, sport=k, dport=k) for k in range(count)]

    def found(sysctls: dict[str, str]) -> bool:
        v = view(*rows, namespaces={1: NamespaceView(1, sysctls=sysctls)})
        return bool(time_wait_flood.matches(v))

    return found


@pytest.mark.parametrize(("buckets", "many"), [("10", True), ("11", False), ("9", True), ("0", False)])
def test_half_of_the_places_for_time_wait_are_many(buckets: str, many: bool) -> None:
    assert flood(5)({"ipv4/tcp_max_tw_buckets": buckets}) is many


@pytest.mark.parametrize(("ports", "many"), [("1000 1009", True), ("1000 1010", False), ("1000", False)])
def test_half_of_the_ports_towards_one_destination_are_many(ports: str, many: bool) -> None:
    rows = [socket(state=tcp.TIME_WAIT, sport=k) for k in range(5)]
    space = {1: NamespaceView(1, sysctls={"ipv4/ip_local_port_range": ports})}
    assert bool(time_wait_flood.matches(view(*rows, namespaces=space))) is many
    for name, begins in (("dport", ""), ("dst", "192.0.2."), ("src", "10.0.0.")):
        apart = [row | {name: f"{begins}{k}" if begins else k} for k, row in enumerate(rows)]
        assert not time_wait_flood.matches(view(*apart, namespaces=space))


@pytest.mark.parametrize(("count", "many"), [(9_999, False), (10_000, True)])
def test_ten_thousand_time_wait_are_many_unless_another_number_is_given(count: int, many: bool) -> None:
    assert flood(count)({}) is many


@pytest.mark.parametrize(
    ("bound", "family", "v6only", "src", "takes"),
    [
        ("::", 10, 0, "10.0.0.1", True),  # dual-stack
        ("::", 10, 1, "10.0.0.1", False),
        ("::", 10, 0, "fd00::1", True),
        ("::", 10, 1, "fd00::1", True),
        ("0.0.0.0", 2, 0, "10.0.0.1", True),
        ("0.0.0.0", 2, 0, "fd00::1", False),
        ("10.0.0.1", 2, 0, "10.0.0.1", True),
        ("10.0.0.2", 2, 0, "10.0.0.1", False),
        ("fd00::1", 10, 1, "fd00::1", True),
        ("fd00::2", 10, 0, "fd00::1", False),
    ],
)
def test_a_connection_waits_at_a_listener_that_takes_its_kind_of_address(
    bound: str, family: int, v6only: int, src: str, takes: bool
) -> None:
    door = socket(
        state=tcp.LISTEN, inode=5, src=bound, dst="::", dport=0, family=family, v6only=v6only, rqueue=1
    )
    one = socket(state=tcp.ESTABLISHED, src=src, family=10 if ":" in src else 2)
    for rows in ([door, one], [one, door]):
        v = view(*rows)
        row = rows.index(one)
        assert v.listener[row] == ((1 - row) if takes else -1)
        assert v.waiting[row] == takes


def test_of_listeners_the_one_that_is_bound_most_exactly_takes_a_connection() -> None:
    doors = [
        socket(
            state=tcp.LISTEN,
            inode=5 + k,
            src=bound,
            dst="::",
            dport=0,
            family=10 if ":" in bound else 2,
            rqueue=k,
        )
        for k, bound in enumerate(("::", "0.0.0.0", "10.0.0.1", "10.0.0.1"), 1)
    ]
    for k, count in ((1, 1), (2, 2), (3, 3), (4, 3 + 4)):
        v = view(*doors[:k], socket(state=tcp.ESTABLISHED))
        assert v.listener[k] == min(k - 1, 2)
        assert v.waiting[k] == count


def closing(state: int, **cells: Any) -> dict[str, Any]:
    return socket(inode=7, cookie=1, state=state, last_data_sent_ms=60_000, last_data_recv_ms=60_000, **cells)


@pytest.mark.parametrize(
    ("state", "thread", "kept"),
    [
        (tcp.FIN_WAIT1, Releasing(50, 51, "closer", 1, "close", False), True),
        (tcp.LAST_ACK, Releasing(50, 51, "closer", 1, "close", False), True),
        (tcp.CLOSING, Releasing(50, 51, "closer", 1, "dup2", False), True),
        (tcp.FIN_WAIT2, Releasing(50, 51, "closer", 1, "close", False), False),
        (tcp.CLOSE_WAIT, Releasing(50, 51, "closer", 1, "close", False), False),
        (tcp.FIN_WAIT1, Releasing(50, 51, "closer", 2, "close", False), True),
        (tcp.FIN_WAIT2, Releasing(50, 51, "closer", 2, "close", False), False),
        (tcp.FIN_WAIT2, Releasing(50, 50, "main", 0, "exit_group", True), True),
        (tcp.CLOSE_WAIT, Releasing(50, 50, "main", 1, "", True), True),
    ],
)
def test_a_thread_that_is_closing_holds_what_it_may_be_closing(
    state: int, thread: Releasing, kept: bool
) -> None:
    """close() waits in the states after a FIN; a process that is ending may have had sockets in any state."""
    v = replace(view(closing(state)), releasing=(thread,))
    assert v.releasers(0) == ((thread,) if kept else ())
    assert (bool(v.holder_missing[0]), bool(v.holder_unknown[0])) == (not kept, kept)
    assert ("thread 5" in v.doubt_of(0)) is kept


def test_of_several_threads_in_close_one_holds_it() -> None:
    threads = tuple(Releasing(50, tid, "closer", 1, "close", False) for tid in (51, 52))
    v = replace(view(closing(tcp.FIN_WAIT1)), releasing=threads)
    assert v.doubt_of(0) == "one of 2 threads keeps it: thread 51 (closer) of pid 50 is in close(), for one"


def test_a_thread_of_another_namespace_counts_where_there_is_none_of_the_same() -> None:
    """A process may have sockets of other namespaces than its own."""
    far, near = (Releasing(50, tid, "closer", netns, "dup2", False) for tid, netns in ((51, 2), (52, 1)))
    v = replace(view(closing(tcp.FIN_WAIT1)), releasing=(far,))
    assert v.doubt_of(0) == (
        "thread 51 (closer) of pid 50, in another network namespace, is in dup2(), and may keep it"
    )
    v = replace(view(closing(tcp.FIN_WAIT1)), releasing=(far, near))
    assert v.doubt_of(0) == "thread 52 (closer) of pid 50 is in dup2(), and keeps it"


@pytest.mark.parametrize(
    ("thread", "says"),
    [
        (
            Releasing(50, 51, "main", 1, "", False),
            "thread 51 (main) of pid 50 is closing a socket, and keeps it",
        ),
        (
            Releasing(50, 51, "main", 0, "", True),
            "thread 51 (main) of pid 50, whose network namespace is not known any more, is ending, and may keep it",
        ),
    ],
)
def test_a_call_that_is_not_known_has_no_name(thread: Releasing, says: str) -> None:
    assert replace(view(closing(tcp.FIN_WAIT1)), releasing=(thread,)).doubt_of(0) == says


def test_where_not_every_thread_was_looked_at_the_holder_is_unknown() -> None:
    v = replace(view(closing(tcp.LAST_ACK), closing(tcp.FIN_WAIT2)), releasing=(UNSEEN_THREADS,))
    assert v.holder_unknown.tolist() == [True, True]
    assert (v.releasers(0), v.doubt_of(0)) == ((), "may be held by a thread that was not inspected")
    assert [gap.where for gap in gaps(v, ())] == ["some threads"]


def test_what_has_a_descriptor_is_held_by_that() -> None:
    thread = Releasing(50, 51, "closer", 1, "close", False)
    v = replace(view(closing(tcp.FIN_WAIT1), holders={7: [10]}), releasing=(thread,))
    assert v.releasers(0) == ()
