"""Whose an address or a cgroup is, where several could have it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import pytest
from msgspec.structs import replace

from finwait.uapi.cluster import JOINED_FROM, ClusterNames, Endpoint, KubeService, Pod, ServicePort

OURS = Pod("u1", "shop", "db-0", node="node-a", addresses=("10.0.0.7",))
GONE = Pod("u0", "shop", "old", node="node-a", addresses=("10.0.0.7", "10.0.0.8"), gone_s=5.0)


def test_an_address_is_that_of_the_pod_that_is_there() -> None:
    names = ClusterNames(pods=(OURS, GONE))
    assert names.pod_at("10.0.0.7") == OURS
    assert names.pod_at("10.0.0.8") == GONE
    later = Pod("u2", "shop", "older", addresses=("10.0.0.8",), gone_s=4.0)
    assert ClusterNames(pods=(GONE, later)).pod_at("10.0.0.8") == GONE


def test_an_address_that_a_pod_elsewhere_has_now_is_not_that_of_one_that_is_gone() -> None:
    elsewhere = Endpoint("shop/web", "10.0.0.8", 80, pod="shop/web-1", node="node-b")
    assert ClusterNames(pods=(GONE,), endpoints=(elsewhere,)).pod_at("10.0.0.8") is None, "anybody may say so"
    moved = Endpoint("shop/old", "10.0.0.8", 80, pod="shop/old", node="node-b")
    assert ClusterNames(pods=(GONE,), endpoints=(moved,)).pod_at("10.0.0.8") == "shop/old"


def test_a_pod_that_moved_to_another_node_has_its_new_address_there() -> None:
    gone = Pod("u1", "shop", "db-0", node="node-a", addresses=("10.0.0.7",), gone_s=5.0)
    elsewhere = Endpoint("shop/db", "10.0.1.9", 5432, pod="shop/db-0", node="node-b")
    names = ClusterNames(pods=(gone,), endpoints=(elsewhere,))
    assert names.pod_at("10.0.1.9") == "shop/db-0"
    assert names.pod_at("10.0.0.7") == gone


def test_an_annotation_takes_no_cgroup_from_another_pod() -> None:
    liar = Pod("u9", "evil", "liar", cgroup_uid="u1")
    static = Pod("u5", "kube-system", "proxy", cgroup_uid="ab12")
    for pods in ((liar, OURS, static), (static, OURS, liar)):
        names = ClusterNames(pods=pods)
        assert names.pod("u1") == OURS
        assert names.pod("ab12") == names.pod("u5") == static


def test_two_pods_with_the_hash_of_one_static_pod_have_no_name_by_it() -> None:
    server = Pod("u5", "kube-system", "kube-apiserver-n1", cgroup_uid="ab12")
    evil = Pod("u9", "guest", "evil", cgroup_uid="ab12")
    for pods in ((server, evil), (evil, server)):
        names = ClusterNames(pods=pods)
        assert names.pod("ab12") is None
        assert names.pod("u5") == server
    gone = replace(evil, gone_s=5.0)
    assert ClusterNames(pods=(gone, server)).pod("ab12") == server
    anew = Pod("u6", "kube-system", "kube-apiserver-n1", cgroup_uid="ab12")
    assert ClusterNames(pods=(anew, replace(server, gone_s=5.0))).pod("ab12") == anew


def test_nobody_takes_the_cluster_address_of_another_service() -> None:
    port = (ServicePort(80),)
    ours = KubeService("shop", "db", ("10.96.0.10",), port, 1)
    thief = KubeService("guest", "zzz", ("10.96.0.99", "10.96.0.10", "192.0.2.7"), port, 1)
    other = KubeService("guest", "yyy", ("192.0.2.7",), port)
    for services in ((ours, thief, other), (other, thief, ours)):
        names = ClusterNames(services=services)
        assert names.service_at("10.96.0.10", 80) == "shop/db"
        assert names.service_at("192.0.2.7", 80) is None, "two say that it is theirs"
        assert names.service_at("192.0.2.7", 81) == ""
        assert names.claimed_at("192.0.2.7", 80) == ""
    names = ClusterNames(services=(ours, other))
    assert names.service_at("192.0.2.7", 80) is None, "its owner chose that address"
    assert names.claimed_at("192.0.2.7", 80) == "guest/yyy"


def test_the_api_server_and_nodes_are_nobody_s_pod_or_service() -> None:
    """Whoever may write a slice may let it lead to them, and who makes a Service may claim their places."""
    port = (ServicePort(6443), ServicePort(10250))
    claims = KubeService("guest", "zzz", ("10.96.0.99", "192.0.2.7", "192.0.2.10"), port, 1)
    ends = (
        Endpoint("default/kubernetes", "192.0.2.7", 6443),
        Endpoint("guest/t", "192.0.2.7", 443, pod="guest/p"),
        Endpoint("guest/t", "192.0.2.10", 443, pod="guest/p"),
    )
    for endpoints in (ends, ends[::-1]):
        names = ClusterNames(services=(claims,), endpoints=endpoints, node_addresses=("192.0.2.10",))
        for address, number in (("192.0.2.7", 6443), ("192.0.2.10", 10250)):
            assert names.pod_at(address) is None
            assert names.service_at(address, number) is None
            assert names.claimed_at(address, number) == ""


def test_what_addresses_and_ports_a_service_has_is_never_multiplied() -> None:
    many = tuple(
        KubeService("guest", f"s{k}", tuple(f"203.{k}.{n >> 8}.{n & 255}" for n in range(1000)),
                    tuple(map(ServicePort, range(1000, 2000))), k % 2)
        for k in range(4)
    )  # fmt: skip
    names = ClusterNames(services=many)
    assert len(names.door_addresses) == 4000
    assert names.service_at("203.1.0.0", 1999) == "guest/s1"
    assert names.service_at("203.1.0.1", 1999) is None
    assert names.claimed_at("203.1.0.1", 1999) == "guest/s1"
    joined = [value for value in names.__dict__.values() if isinstance(value, dict)]
    assert sum(len(value) + sum(map(len, value.values())) for value in joined) < 20_000


def test_many_services_behind_one_place_are_gathered_and_sorted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ordered: list[int] = []

    def counting(paths: Iterable[str]) -> list[str]:
        result = sorted(paths)
        ordered.append(len(result))
        return result

    monkeypatch.setattr("finwait.uapi.cluster.sorted", counting, raising=False)
    names = ClusterNames(endpoints=tuple(Endpoint(f"guest/s{k:04}", "10.0.0.9", 80) for k in range(2000)))
    assert len(names.services_behind("10.0.0.9", 80)) == 2000
    assert sum(ordered) == 2000


def test_a_pod_of_the_nodes_network_has_no_address_of_its_own() -> None:
    pod = Pod("u1", "x", "agent", host_network=True, addresses=("192.0.2.10",))
    assert ClusterNames(pods=(pod,)).pod_at("192.0.2.10") is None


def test_an_address_that_several_pods_elsewhere_share_is_that_of_their_node() -> None:
    exporter = Endpoint("x/exporter", "192.0.2.11", 9100, pod="x/exporter-1", node="node-b")
    proxy = Endpoint("x/proxy", "192.0.2.11", 10249, pod="x/proxy-1", node="node-b")
    gone = Pod("u3", "x", "agent", addresses=("192.0.2.11",), gone_s=5.0)
    assert ClusterNames(endpoints=(exporter, exporter)).pod_at("192.0.2.11") == "x/exporter-1"
    assert ClusterNames(pods=(gone,), endpoints=(exporter, proxy, exporter)).pod_at("192.0.2.11") is None


class _Reading:
    """Names that note which of their fields are read."""

    def __init__(self, names: ClusterNames) -> None:
        self.names = names
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        join = type(self.names).__dict__.get(name)
        if isinstance(join, cached_property):
            return join.func(self)
        self.read.add(name)
        return getattr(self.names, name)


def test_every_join_names_the_fields_that_it_is_made_of() -> None:
    joins = {name for name, value in vars(ClusterNames).items() if isinstance(value, cached_property)}
    assert set(JOINED_FROM) == joins
    names = ClusterNames(
        pods=(OURS,),
        services=(KubeService("shop", "db", ("10.9.0.1",), (ServicePort(5432, 30432),)),),
        endpoints=(Endpoint("shop/db", "10.0.1.9", 5432, pod="shop/db-1"),),
        node_addresses=("192.0.2.10",),
    )
    for name in joins:
        reading = _Reading(names)
        getattr(reading, name)
        assert reading.read == set(JOINED_FROM[name])


def test_what_is_taken_over_is_only_what_is_made_of_the_same() -> None:
    first = ClusterNames(
        pods=(OURS,), services=(KubeService("shop", "db", ("10.9.0.1",), (ServicePort(1),), 1),)
    )
    assert first.service_at("10.9.0.1", 1) == "shop/db"
    assert first.pod("u1") == OURS
    second = ClusterNames(pods=(GONE,), services=first.services, node_addresses=first.node_addresses)
    second.taking_over(first)
    assert second.__dict__.keys() == {"_assigned", "_at_port"}
    assert second.pod("u1") is None
    assert second.pod("u0") == GONE
