"""What is kept of lists and events: nothing goes away but by one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, get_args

import pytest

from finwait.kube import names as module
from finwait.kube.names import GONE_FOR_S, NameKeeper
from finwait.kube.objects import RESOURCES, KubeList, Resource, WatchEvent, decode_event, decode_list
from tests.kube import cluster

NOW = 1_800_000_000.0
KINDS = {
    "pods": "PodList",
    "services": "ServiceList",
    "endpointslices": "EndpointSliceList",
    "namespaces": "NamespaceList",
}


def known(item: dict[str, Any], uid: str, version: int = 1) -> dict[str, Any]:
    return item | {"metadata": item["metadata"] | {"uid": uid, "resourceVersion": str(version)}}


def listed(resource: Resource, items: Iterable[dict[str, Any]]) -> KubeList:
    whole = {"kind": KINDS[resource], "metadata": {"resourceVersion": "5"}, "items": list(items)}
    return decode_list(resource, json.dumps(whole).encode())


def event(kind: str, resource: Resource, item: dict[str, Any]) -> WatchEvent:
    return decode_event(resource, json.dumps({"type": kind, "object": item}).encode())


def a_pod(number: int, **more: Any) -> dict[str, Any]:
    return known(cluster.pod(f"p{number}", ip=f"10.244.0.{number}", **more), f"uid-{number}")


def keeper_of_pods(*items: dict[str, Any]) -> NameKeeper:
    keeper = NameKeeper("node-a")
    keeper.listed("pods", listed("pods", items), NOW)
    return keeper


def test_resources_are_those_of_the_type() -> None:
    assert get_args(Resource) == RESOURCES


def test_nothing_was_listed_at_first() -> None:
    names = NameKeeper("node-a").names(NOW)
    assert (names.node, names.pods, names.as_of) == ("node-a", (), {})


def test_a_list_shows_what_was_deleted_while_nobody_watched() -> None:
    keeper = keeper_of_pods(a_pod(1), a_pod(2))
    keeper.listed("pods", listed("pods", [a_pod(2), a_pod(3)]), NOW + 60)
    names = keeper.names(NOW + 61)
    assert {(pod.name, pod.gone_s) for pod in names.pods} == {("p1", NOW + 60), ("p2", 0.0), ("p3", 0.0)}
    assert names.as_of == {"pods": NOW + 60}


def test_a_deleted_pod_is_known_for_ten_minutes_by_what_it_was_last() -> None:
    keeper = keeper_of_pods(a_pod(1))
    last = a_pod(1, phase="Failed", labels={"last": "yes"})
    keeper.happened("pods", event("DELETED", "pods", last), NOW + 1)
    pod = keeper.names(NOW + GONE_FOR_S).pod("uid-1")
    assert pod is not None
    assert (pod.gone_s, pod.labels, pod.addresses) == (NOW + 1, {"last": "yes"}, ("10.244.0.1",))
    assert keeper.names(NOW + 1 + GONE_FOR_S).pods == ()


def test_a_copy_of_an_event_changes_nothing() -> None:
    keeper = keeper_of_pods(a_pod(1), a_pod(2))
    keeper.happened("pods", event("DELETED", "pods", a_pod(1)), NOW + 1)
    changes, names = keeper.changes, keeper.names(NOW + 2)
    keeper.happened("pods", event("DELETED", "pods", a_pod(1)), NOW + 2)
    keeper.happened("pods", event("MODIFIED", "pods", a_pod(2)), NOW + 2)
    keeper.happened("pods", event("DELETED", "pods", a_pod(9)), NOW + 2)
    assert keeper.changes == changes
    assert keeper.names(NOW + 2).pods is names.pods


def test_a_pod_that_an_older_list_lacked_comes_back() -> None:
    keeper = keeper_of_pods(a_pod(1))
    keeper.listed("pods", listed("pods", []), NOW + 1)
    keeper.happened("pods", event("ADDED", "pods", a_pod(1)), NOW + 2)
    assert [pod.gone_s for pod in keeper.names(NOW + 2).pods] == [0.0]


def test_errors_and_bookmarks_take_no_name_away() -> None:
    keeper = keeper_of_pods(a_pod(1))
    keeper.happened("pods", WatchEvent("ERROR", code=410), NOW + 5)
    assert keeper.names(NOW + 5).as_of == {"pods": NOW}
    keeper.happened("pods", WatchEvent("BOOKMARK", version="9"), NOW + 6)
    names = keeper.names(NOW + 6)
    assert [pod.name for pod in names.pods] == ["p1"]
    assert names.as_of == {"pods": NOW + 6}


def test_a_clock_that_is_set_back_loses_no_name() -> None:
    keeper = keeper_of_pods(a_pod(1))
    keeper.happened("pods", event("DELETED", "pods", a_pod(1)), NOW)
    assert len(keeper.names(NOW - 5).pods) == 1
    assert keeper.names(NOW - 5000).pods == ()


def test_the_annotation_of_a_namespace_holds_for_its_pods_from_then_on() -> None:
    keeper = keeper_of_pods(a_pod(1), a_pod(2, namespace="other"))
    space = known(cluster.namespace("shop", **{"finwait.io/exclude": "true"}), "ns")
    keeper.listed("namespaces", listed("namespaces", [space]), NOW)
    assert {pod.path: pod.excluded for pod in keeper.names(NOW).pods} == {"shop/p1": True, "other/p2": False}
    keeper.happened(
        "namespaces", event("MODIFIED", "namespaces", known(cluster.namespace("shop"), "ns")), NOW
    )
    assert not any(pod.excluded for pod in keeper.names(NOW).pods)


def test_addresses_of_the_node_are_those_of_its_pods() -> None:
    assert keeper_of_pods(a_pod(1), a_pod(2)).names(NOW).node_addresses == ("192.0.2.10",)


def test_what_did_not_change_is_the_very_same_with_its_joins() -> None:
    keeper = keeper_of_pods(a_pod(1))
    keeper.listed("services", listed("services", [known(cluster.service(), "s")]), NOW)
    keeper.listed("endpointslices", listed("endpointslices", [known(cluster.endpoint_slice(), "e")]), NOW)
    first = keeper.names(NOW)
    assert first.service_at("10.96.0.10", 5432) == "shop/db"
    assert first.services_behind("10.244.1.4", 5432) == ("shop/db",)
    assert keeper.names(NOW) is first
    keeper.happened("pods", event("ADDED", "pods", a_pod(2)), NOW)
    second = keeper.names(NOW)
    assert second.services is first.services
    assert second.endpoints is first.endpoints
    assert second.__dict__["_assigned"] is first.__dict__["_assigned"]
    assert second.pod("uid-2") is not None
    keeper.heard("pods", NOW + 9)
    assert keeper.names(NOW + 9).__dict__["_by_uid"] is second.__dict__["_by_uid"]


def test_what_is_too_much_is_left_out_and_counted() -> None:
    many = [
        known(cluster.endpoint_slice(f"s{k}", [(f"10.1.{k}.{n}", f"p{k}-{n}") for n in range(10)]), f"e{k}")
        for k in range(10)
    ]
    keeper = NameKeeper("node-a", {**module.PARTS_MOST, "endpointslices": 35})
    keeper.listed("endpointslices", listed("endpointslices", many), NOW)
    assert len(keeper.names(NOW).endpoints) == 30
    (gap,) = keeper.gaps()
    assert "30 are kept, 70 were left out" in str(gap)
    keeper.happened("endpointslices", event("DELETED", "endpointslices", many[9]), NOW)
    assert "60 were left out" in str(keeper.gaps()[0])
    keeper.happened("endpointslices", event("DELETED", "endpointslices", many[0]), NOW)
    keeper.happened("endpointslices", event("MODIFIED", "endpointslices", many[5]), NOW)
    assert "30 are kept, 50 were left out" in str(keeper.gaps()[0])
    keeper.listed("endpointslices", listed("endpointslices", many[:3]), NOW)
    assert keeper.gaps() == ()


def test_a_hundred_thousand_endpoints_are_bounded() -> None:
    many = [
        known(
            cluster.endpoint_slice(f"s{k}", [(f"10.{k}.{n // 250}.{n % 250}", "p") for n in range(1000)]),
            f"e{k}",
        )
        for k in range(100)
    ]
    keeper = NameKeeper("node-a")
    keeper.listed("endpointslices", listed("endpointslices", many), NOW)
    names = keeper.names(NOW)
    assert 50_000 < len(names.endpoints) <= module.PARTS_MOST["endpointslices"]
    (gap,) = keeper.gaps()
    assert f"{100_000 - len(names.endpoints):,} were left out" in str(gap)


def test_an_object_that_changes_takes_no_more_room_than_it_has() -> None:
    keeper = NameKeeper("node-a", {**module.PARTS_MOST, "services": 10})
    for version in range(20):
        item = known(cluster.service(ip=f"10.96.0.{version}"), "s", version)
        keeper.happened("services", event("MODIFIED", "services", item), NOW)
    assert [service.addresses for service in keeper.names(NOW).services] == [("10.96.0.19",)]
    assert keeper.gaps() == ()


def test_an_object_that_grows_out_of_its_room_is_left_out_and_not_kept_as_it_was() -> None:
    keeper = NameKeeper("node-a", {**module.PARTS_MOST, "pods": 20})
    keeper.listed("pods", listed("pods", [a_pod(1), a_pod(2)]), NOW)
    keeper.happened(
        "pods", event("MODIFIED", "pods", a_pod(1, labels={f"l{k}": "v" for k in range(30)})), NOW
    )
    assert [pod.name for pod in keeper.names(NOW).pods] == ["p2"]
    assert len(keeper.gaps()) == 1


def test_one_object_with_thousands_of_labels_is_counted_by_them() -> None:
    keeper = NameKeeper("node-a", {**module.PARTS_MOST, "pods": 100})
    large = a_pod(1, labels={f"l{k}": "v" for k in range(200)})
    keeper.listed("pods", listed("pods", [large, a_pod(2)]), NOW)
    assert [pod.name for pod in keeper.names(NOW).pods] == ["p2"]
    assert "1 are kept, 1 were left out" in str(keeper.gaps()[0])


def test_the_objects_of_one_namespace_take_no_room_from_those_of_another() -> None:
    keeper = NameKeeper("node-a", {**module.PARTS_MOST, "pods": 60})
    crowd = [a_pod(k, namespace="tenant") for k in range(30)]
    keeper.listed("pods", listed("pods", crowd), NOW)
    before = len(keeper.names(NOW).pods)
    assert before < 30
    for k in range(100, 103):  # came later
        keeper.happened("pods", event("ADDED", "pods", a_pod(k)), NOW)
    pods = keeper.names(NOW).pods
    assert {pod.name for pod in pods if pod.namespace == "shop"} == {"p100", "p101", "p102"}
    assert len(pods) == before
    assert not any(pod.gone_s for pod in pods), "what makes way was not deleted"
    assert f"{before} are kept, {33 - before} were left out" in str(keeper.gaps()[0])
    keeper.happened("pods", event("MODIFIED", "pods", a_pod(29, namespace="tenant")), NOW)
    assert len([pod for pod in keeper.names(NOW).pods if pod.namespace == "shop"]) == 3
    keeper.listed("pods", listed("pods", crowd[:2]), NOW)
    assert keeper.gaps() == ()


def test_a_slice_that_is_not_spelled_out_takes_no_room_and_is_said() -> None:
    large = cluster.endpoint_slice("e", [(f"10.9.{k // 250}.{k % 250}", "p") for k in range(599)], of="e")
    large["ports"] = [{"port": port} for port in range(1, 101)]
    others = [
        known(cluster.endpoint_slice(f"s{k}", [(f"10.1.{k}.{n}", f"p{n}") for n in range(10)]), f"e{k}")
        for k in range(10)
    ]
    keeper = NameKeeper("node-a", {**module.PARTS_MOST, "endpointslices": 200})
    keeper.listed("endpointslices", listed("endpointslices", [known(large, "large"), *others]), NOW)
    assert len(keeper.names(NOW).endpoints) == 100
    assert "100 are kept, 59,900 were left out" in str(keeper.gaps()[0])


def test_of_very_many_deleted_pods_the_last_are_kept_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GONE_MOST", 3)
    keeper = keeper_of_pods(*(a_pod(k) for k in range(5)))
    for k in range(5):
        keeper.happened("pods", event("DELETED", "pods", a_pod(k)), NOW + k)
    assert [pod.name for pod in keeper.names(NOW + 5).pods] == ["p2", "p3", "p4"]
    assert len(keeper.gaps()) == 1
    assert keeper.names(NOW + 1000).pods == ()
    assert keeper.gaps() == ()


def test_objects_that_could_not_be_read_are_a_gap_until_the_next_list() -> None:
    keeper = NameKeeper("node-a")
    keeper.listed("services", listed("services", [{"metadata": {}}]), NOW)
    assert "read 1 of the services" in str(keeper.gaps()[0])
    keeper.listed("services", listed("services", []), NOW)
    assert keeper.gaps() == ()
