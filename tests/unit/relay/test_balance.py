"""Which backend takes the next connection, with all the time in the world."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

import pytest

from finwait.relay.balance import Backend, Balancer
from finwait.relay.config.model import Affinity, BackendConfig, Outlier, Service


def balancer(*names: str, now: float = 0.0, **options: Any) -> Balancer:
    service = Service(listen=("*:1",), backend=(BackendConfig(address="10.0.0.1:1"),), **options)
    made = Balancer(service)
    made.update([Backend(name, socket.AF_INET, (name, 1)) for name in names], now)
    return made


def picks(of: Balancer, count: int, now: float = 0.0, source: str = "192.0.2.1") -> list[str]:
    found = [of.pick(source, (), now) for _ in range(count)]
    return [backend.name for backend in found if backend is not None]


def test_round_robin_spreads_a_weight_out_instead_of_bunching_it() -> None:
    of = balancer("a", "b", "c")
    of.backends[0].weight = 3
    assert picks(of, 10) == ["a", "b", "a", "c", "a", "a", "b", "a", "c", "a"]


def test_a_weight_of_zero_takes_nothing() -> None:
    of = balancer("a", "b")
    of.backends[0].weight = 0
    assert picks(of, 3) == ["b", "b", "b"]


def test_what_was_tried_is_left_out_while_something_else_is_left() -> None:
    of = balancer("a", "b")
    a, b = of.backends
    assert of.pick("x", (a,), 0) is b
    assert of.pick("x", (a, b), 0) in (a, b)
    assert of.has_untried((a,))
    assert not of.has_untried((a, b))


def test_a_full_backend_is_left_out_and_nobody_is_drowned_when_all_are_full() -> None:
    of = balancer("a", "b")
    for backend in of.backends:
        backend.max_connections = 1
    of.backends[0].active = 1
    assert picks(of, 2) == ["b", "b"]
    of.backends[1].active = 1
    assert of.pick("x", (), 0) is None


def test_a_single_backend_that_is_full_takes_nobody_and_one_that_is_down_is_tried() -> None:
    of = balancer("a")
    (only,) = of.backends
    only.max_connections, only.active = 2, 1
    assert of.pick("x", (), 0) is only
    assert of.pick("x", (only,), 0) is only  # there is nothing else to try
    only.active = 2
    assert of.pick("x", (), 0) is None
    assert only.full()
    only.active, only.weight = 0, 0
    assert of.pick("x", (), 0) is None
    only.weight, only.leads_back_until = 1, 10.0
    assert of.pick("x", (), 9.9) is None
    of.mark("a", False, 0)
    assert of.pick("x", (), 10.0) is only
    only.max_connections, only.active = 0, 10_000
    assert of.pick("x", (), 10.0) is only  # 0: as many as come


def test_when_all_are_down_all_are_tried() -> None:
    of = balancer("a", "b")
    of.mark("a", False, 0)
    assert picks(of, 2) == ["b", "b"]
    of.mark("b", False, 0)
    assert set(picks(of, 4)) == {"a", "b"}


def test_a_backend_that_comes_back_gets_its_share_slowly() -> None:
    of = balancer("a", "b", slow_start=10.0)
    of.mark("a", False, 0)
    of.mark("a", True, 100)
    assert picks(of, 200, 100.5).count("a") < 15
    assert 60 < picks(of, 200, 106).count("a") < 90
    assert picks(of, 200, 110).count("a") == 100


def test_a_backend_that_joins_others_begins_slowly_and_the_first_ones_do_not() -> None:
    of = balancer("a", slow_start=10.0, now=50)
    of.update([Backend(name, socket.AF_INET, (name, 1)) for name in ("a", "b")], 100)
    assert picks(of, 200, 100.5).count("b") < 15
    assert balancer("a", "b", slow_start=10.0, now=100).backends[0].up_since == float("-inf")


def test_failures_in_a_row_eject_for_longer_each_time_but_never_more_than_the_share() -> None:
    of = balancer("a", "b", "c", outlier=Outlier(failures=2, eject=10, max_percent=50))
    a, b, _ = of.backends
    assert not of.failed(a, 0)
    of.succeeded(a)
    assert not of.failed(a, 0)
    assert of.failed(a, 0)
    assert a.ejected(9.9)
    assert not a.ejected(10)
    assert not of.failed(b, 1)
    assert not of.failed(b, 1), "two of three would be more than half"
    assert "a" not in picks(of, 10, 5)
    of.failed(a, 12)
    assert of.failed(a, 12)
    assert a.ejected(31)


def test_an_ejection_is_forgotten_by_and_by() -> None:
    of = balancer("a", "b", outlier=Outlier(failures=1, eject=10, max_percent=100))
    a = of.backends[0]
    now = 0.0
    lasted = []
    for wait in (0, 1, 1, 25, 1000, 1):
        now += wait
        assert of.failed(a, now)
        lasted.append(a.eject_until - now)
        now = a.eject_until
    assert lasted == [10, 20, 40, 20, 10, 20]


def test_an_ejection_lasts_five_minutes_at_most_or_as_long_as_configured() -> None:
    for eject, most in ((10.0, 300.0), (1000.0, 1000.0)):
        of = balancer("a", "b", outlier=Outlier(failures=1, eject=eject, max_percent=100))
        a = of.backends[0]
        now = 0.0
        for _ in range(100):
            assert of.failed(a, now)
            last, now = a.eject_until - now, a.eject_until
        assert last == most


def test_a_failure_now_and_then_among_successes_does_not_keep_an_ejection_in_mind() -> None:
    of = balancer("a", "b", outlier=Outlier(failures=2, eject=10, max_percent=100))
    a = of.backends[0]
    now = 0.0
    for _ in range(6):
        of.failed(a, now)
        assert of.failed(a, now)
        now = a.eject_until
    assert a.ejections == 6
    for _ in range(100):
        now += 9
        of.failed(a, now)
        of.succeeded(a)
    of.failed(a, now)
    assert of.failed(a, now)
    assert a.eject_until == now + 10


def test_failures_without_a_success_between_put_off_forgetting() -> None:
    of = balancer("a", "b", outlier=Outlier(failures=4, eject=10, max_percent=100))
    a = of.backends[0]
    for _ in range(4):
        of.failed(a, 0)
    for now in (19, 28, 37, 46):
        of.failed(a, now)
    assert a.eject_until == 46 + 20


@pytest.mark.parametrize(("weights", "share"), [((1, 1, 1), [20, 20, 20]), ((1, 2, 3), [10, 20, 30])])
def test_least_connections_shares_equal_load_out_in_turn(weights: tuple[int, ...], share: list[int]) -> None:
    of = balancer("a", "b", "c", balance="least_connections")
    for backend, weight in zip(of.backends, weights, strict=True):
        backend.weight = weight
    found = picks(of, 60)  # one after the other: none is active
    assert [found.count(name) for name in "abc"] == share
    of.backends[1].active = 1
    assert "b" not in picks(of, 20)


def test_a_ring_of_very_many_backends_stays_small() -> None:
    of = balancer(*(f"b{k}" for k in range(3000)), balance="source_hash")
    for backend in of.backends:
        backend.weight = 256
    of.update(of.backends)
    assert len(of._ring) <= 3000 * 256
    assert {of.pick(f"10.0.0.{k}", (), 0) for k in range(50)} - {None}


def test_an_active_check_that_succeeds_ends_an_ejection() -> None:
    of = balancer("a", "b", outlier=Outlier(failures=1, eject=1000, max_percent=100))
    of.failed(of.backends[0], 0)
    of.mark("a", False, 1)
    of.mark("a", True, 2)
    assert not of.backends[0].ejected(3)


def test_a_source_hash_moves_only_those_whose_backend_is_gone() -> None:
    of = balancer("a", "b", "c", "d", balance="source_hash")
    sources = [f"192.0.2.{n}" for n in range(200)]
    before = {source: picks(of, 1, source=source)[0] for source in sources}
    assert len(set(before.values())) == 4
    of.update([Backend(name, socket.AF_INET, (name, 1)) for name in "abc"], 0)
    for source, name in before.items():
        if name != "d":
            assert picks(of, 1, source=source) == [name]


def test_affinity_lasts_until_its_timeout_and_not_longer_than_its_backend() -> None:
    of = balancer("a", "b", affinity=Affinity(timeout=60, max_sources=2))
    first = picks(of, 1, 0)[0]
    assert picks(of, 3, 59) == [first] * 3
    assert picks(of, 1, 118) == [first], "counted from the last connection"
    of.mark(first, False, 119)
    other = picks(of, 1, 120)[0]
    assert other != first
    for number in range(3):
        picks(of, 1, 120, f"198.51.100.{number}")
    assert len(of._sources) == 2


@pytest.mark.parametrize("balance", ["round_robin", "least_connections", "source_hash"])
def test_history_survives_an_update(balance: str) -> None:
    of = balancer("a", "b", balance=balance)
    of.backends[0].active = 5
    gone = of.update([Backend("a", socket.AF_INET, ("a", 1), 7), Backend("c", socket.AF_INET, ("c", 1))], 0)
    assert [backend.name for backend in gone] == ["b"]
    assert (of.backends[0].active, of.backends[0].weight) == (5, 7)


def test_with_more_weight_than_the_ring_has_places_each_backend_has_one_for_each_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("finwait.relay.balance._MOST_POINTS", 8)
    backends = [Backend(name, socket.AF_INET, (name, 1)) for name in "abc"]
    for backend in backends:
        backend.weight = 4
    assert Counter(backend.name for _, backend in Balancer._points(backends)) == {"a": 4, "b": 4, "c": 4}
    assert Counter(backend.name for _, backend in Balancer._points(backends[:1])) == {"a": 8}
    assert Balancer._points([]) == []
