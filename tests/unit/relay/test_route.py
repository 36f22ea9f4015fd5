"""What a worker counts of a service, and how its settings are shared out among workers."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from finwait.relay.balance import Backend
from finwait.relay.config.parsing import parse
from finwait.relay.connection import Conn, Leg
from finwait.relay.machine import Reason
from finwait.relay.route import CONNECT_BUCKETS, SUSPICIOUS, Route

SERVICE = {"name": "a", "listen": ["*:1"], "backend": [{"address": "10.0.0.1:1"}]}


def route(share: int = 1, **changed: Any) -> Route:
    return Route(parse({"service": [{**SERVICE, **changed}]}).service[0], share)


def ended(one: Route, reason: Reason, *, to_client: int = 0, to_server: int | None = None) -> Conn:
    """Count a connection of a backend from its beginning to its end."""
    conn = Conn(one, ("192.0.2.1", 1), 1, 0.0, is_tcp=True)
    one.count += 1
    one.count_source(conn, "192.0.2.1")
    conn.client = Leg(-1, conn, True)
    conn.client.total = to_client
    if to_server is not None:
        conn.server = Leg(-1, conn, False)
        conn.server.total = to_server
    conn.backend = one.balancer.backends[0]
    conn.backend.active += 1
    conn.reason = reason
    one.count_end(conn, 10.0)
    return conn


def test_a_service_begins_with_nothing_counted() -> None:
    one = route()
    assert (one.count, one.accepted, one.bytes_client, one.bytes_server) == (0, 0, 0, 0)
    assert (one.rejected, one.ended, one.sources) == ({}, {}, {})
    assert (one.latency, one.latency_sum) == ([0] * (len(CONNECT_BUCKETS) + 1), 0.0)
    assert one.suspicious == SUSPICIOUS


def test_a_time_to_connect_is_counted_in_the_first_bucket_that_it_does_not_exceed() -> None:
    one = route()
    for took in (0.0, 0.001, 0.0011, 5.0, 5.1, 60.0):
        one.count_connect(took)
    assert one.latency == [2, 1, 0, 0, 0, 0, 1, 2]
    assert one.latency_sum == pytest.approx(70.1021)


def test_connections_that_are_turned_away_are_counted_by_the_reason() -> None:
    one = route()
    for why in ("acl", "acl", "full"):
        one.reject(why)
    assert one.rejected == {"acl": 2, "full": 1}


def test_a_connection_is_counted_for_its_source_until_it_ends() -> None:
    one = route(max_per_source=2)
    conns = [Conn(one, ("192.0.2.1", k), 1, 0.0, is_tcp=True) for k in (1, 2)]
    for conn in conns:
        assert not one.is_crowded("192.0.2.1")
        one.count_source(conn, "192.0.2.1")
        conn.client, conn.reason = Leg(-1, conn, True), Reason.IDLE
    assert one.is_crowded("192.0.2.1")
    assert list(one.sources.values()) == [2]
    one.count_end(conns[0], 0.0)
    assert not one.is_crowded("192.0.2.1")
    one.count_end(conns[1], 0.0)
    assert one.sources == {}


def test_what_a_connection_has_carried_and_why_it_ended_is_counted_when_it_ends() -> None:
    one = route()
    one.balancer.update([Backend("b", socket.AF_INET, ("10.0.0.1", 1))])
    ended(one, Reason.CLIENT_FIN_FIRST, to_client=5, to_server=7)
    ended(one, Reason.CLIENT_FIN_FIRST, to_client=10)
    ended(one, Reason.IDLE, to_server=100)
    assert one.ended == {"client_fin_first": 2, "idle": 1}
    assert (one.bytes_client, one.bytes_server) == (15, 107)
    assert (one.count, one.balancer.backends[0].active) == (0, 0)


def test_only_a_server_that_resets_without_a_byte_counts_against_its_backend() -> None:
    one = route()
    (backend,) = [Backend("b", socket.AF_INET, ("10.0.0.1", 1))]
    one.balancer.update([backend])
    ended(one, Reason.SERVER_RESET, to_server=0)
    assert backend.failures == 1
    ended(one, Reason.CLIENT_RESET, to_server=0)
    ended(one, Reason.SERVER_VANISHED, to_server=0)
    assert backend.failures == 1  # neither for it nor against it
    ended(one, Reason.SERVER_RESET, to_server=1)
    assert backend.failures == 0
    ended(one, Reason.SERVER_RESET, to_server=0)
    ended(one, Reason.SERVER_FIN_FIRST, to_server=0)
    assert backend.failures == 0


@pytest.mark.parametrize(
    ("limit", "share", "each"), [(10, 1, 10), (10, 3, 4), (9, 3, 3), (1, 4, 1), (0, 4, 0)]
)
def test_a_limit_is_shared_out_among_workers_and_rounded_up(limit: int, share: int, each: int) -> None:
    one = route(share, max_connections=limit or 0, max_per_source=limit)
    assert one.max_per_source == each
    if limit:
        assert one.max_connections == each


@pytest.mark.parametrize(
    ("changed", "balances", "needs"),
    [
        ({}, False, False),
        ({"balance": "source_hash"}, True, False),
        ({"affinity": {"timeout": "10s"}}, True, False),
        ({"allow": ["10.0.0.0/8"]}, False, True),
        ({"deny": ["10.0.0.0/8"]}, False, True),
        ({"max_per_source": 1}, False, True),
    ],
)
def test_who_the_client_is_matters_only_where_something_depends_on_it(
    changed: dict[str, Any], balances: bool, needs: bool
) -> None:
    one = route(**changed)
    assert (one.balances_by_source, one.needs_source) == (balances, needs)


@pytest.mark.parametrize(
    ("timeouts", "young"),
    [
        ({}, 1.0),
        ({"connect": "0.5s"}, 0.5),
        ({"first_byte": "0.6s"}, 0.6),
        ({"half_close": "0.7s"}, 0.7),
        ({"header": "0.4s"}, 0.4),
        ({"lifetime": "0.3s"}, 0.3),
        ({"idle": "0.01s"}, 0.25),  # the grain of the wheel
        ({"idle": "5s"}, 1.0),
    ],
)
def test_a_new_connection_is_looked_after_within_a_second_or_its_shortest_limit(
    timeouts: dict[str, str], young: float
) -> None:
    assert route(timeouts=timeouts).young == young


@pytest.mark.parametrize(
    ("client", "server", "watch"),
    [
        ("10s", "20s", 4.0),
        ("20s", "10s", 4.0),
        ("100s", "100s", 12.0),
        ("0.1s", "100s", 0.25),
        ("0", "0", 12.0),
    ],
)
def test_readers_are_looked_at_more_often_than_a_user_timeout_can_end_them(
    client: str, server: str, watch: float
) -> None:
    one = route(client={"user_timeout": client}, server={"user_timeout": server})
    assert one.watch == watch
