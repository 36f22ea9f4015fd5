"""Objects of an API server are read by the fields that names need, and nothing else is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finwait.agent.cluster_told import LENGTH, NamesMessage, decode_message, encode_message
from finwait.errors import DecodeError
from finwait.kube.names import NameKeeper
from finwait.kube.objects import (
    EndpointSlice,
    EventLines,
    KubeNamespace,
    KubeObject,
    Resource,
    decode_event,
    decode_list,
    discovery_version,
)
from finwait.uapi.cluster import KUBE_PARTS_MOST, Endpoint, KubeService, Pod, ServicePort
from tests.kube import cluster

UID = "0a1b2c3d-0000-4000-8000-000000000001"


def read(resource: Resource, item: dict[str, Any]) -> KubeObject:
    item["metadata"] |= {"uid": UID, "resourceVersion": "7"}
    event = decode_event(resource, json.dumps({"type": "ADDED", "object": item}).encode())
    assert event.object is not None
    assert event.version == "7"
    return event.object


def pod(item: dict[str, Any]) -> Pod:
    value = read("pods", item).value
    assert isinstance(value, Pod)
    return value


def test_a_pod_of_a_deployment() -> None:
    item = read("pods", cluster.pod(padding="x" * 1000))
    assert item == KubeObject(
        UID,
        Pod(
            uid=UID,
            namespace="shop",
            name="cart-7d9f-x2x",
            node="node-a",
            kind="Deployment",
            owner="cart",
            addresses=("10.244.0.7",),
            containers={"cart-7d9f-x2x0c": "c"},
            labels={"app": "cart", "pod-template-hash": "7d9f"},
        ),
        "7",
        ("192.0.2.10",),
        "shop",
    )


@pytest.mark.parametrize(
    ("owner", "labels", "workload"),
    [
        (("ReplicaSet", "cart-7d9f"), {"pod-template-hash": "7d9f"}, ("Deployment", "cart")),
        (("ReplicaSet", "cart-7d9f"), {}, ("ReplicaSet", "cart-7d9f")),
        (("ReplicaSet", "cart-7d9f"), {"pod-template-hash": "other"}, ("ReplicaSet", "cart-7d9f")),
        (("ReplicaSet", "-7d9f"), {"pod-template-hash": "7d9f"}, ("", "")),
        (("Job", "backup-2"), {}, ("Job", "backup-2")),
        (("Job", "backup"), {}, ("Job", "backup")),
        (("StatefulSet", "db"), {}, ("StatefulSet", "db")),
        (("DaemonSet", "agent"), {}, ("DaemonSet", "agent")),
        (("SparkApplication", "sums"), {}, ("SparkApplication", "sums")),
        (("Node", "node-a"), {}, ("", "")),
        (None, {}, ("", "")),
    ],
)
def test_a_workload_is_known_from_owners_alone(
    owner: tuple[str, str] | None, labels: dict[str, str], workload: tuple[str, str]
) -> None:
    value = pod(cluster.pod(owner=owner, labels=labels))
    assert (value.kind, value.owner) == workload


def test_the_uid_of_an_owner_is_that_of_the_workload_only_where_it_is_one() -> None:
    labels = {"pod-template-hash": "7d9f"}
    assert pod(cluster.pod(owner=("StatefulSet", "db"))).owner_uid == "o"
    for owner in (("ReplicaSet", "cart-7d9f"), None):
        assert pod(cluster.pod(owner=owner, labels=labels)).owner_uid == ""


@pytest.mark.parametrize(
    ("name", "made", "workload"),
    [
        ("backup-28882980", "2024-11-30T15:00:04Z", ("CronJob", "backup")),
        ("backup-28882980", "2024-12-01T14:00:00Z", ("CronJob", "backup")),
        ("backup-28882980", "2025-11-30T15:00:04Z", ("Job", "backup-28882980")),
        ("backup-28882980", None, ("Job", "backup-28882980")),
        ("backup-28882980", "soon", ("Job", "backup-28882980")),
        ("report-20241130", "2024-11-30T15:00:04Z", ("Job", "report-20241130")),
        ("migrate-1732978800", "2024-11-30T15:00:04Z", ("Job", "migrate-1732978800")),
        ("db-12345678", "2024-11-30T15:00:04Z", ("Job", "db-12345678")),
    ],
)
def test_a_job_is_of_a_cronjob_only_if_it_ends_in_the_minute_in_which_it_was_due(
    name: str, made: str | None, workload: tuple[str, str]
) -> None:
    item = cluster.pod(owner=("Job", name))
    item["metadata"]["creationTimestamp"] = made
    value = pod(item)
    assert (value.kind, value.owner) == workload


def test_an_owner_that_does_not_control_the_pod_is_none() -> None:
    item = cluster.pod()
    item["metadata"]["ownerReferences"][0]["controller"] = False
    item["metadata"]["ownerReferences"].append({"kind": "Job", "name": "b"})
    assert pod(item).kind == ""


def test_a_static_pod_has_the_uid_of_its_cgroup_too() -> None:
    notes = {"kubernetes.io/config.hash": "ab" * 16, "kubernetes.io/config.mirror": "ab" * 16}
    node = ("Node", "node-a")
    assert pod(cluster.pod(owner=node, annotations=notes)).cgroup_uid == "ab" * 16
    assert pod(cluster.pod(annotations=notes)).cgroup_uid == "", "only of what a Node owns"
    assert pod(cluster.pod(owner=None, annotations=notes)).cgroup_uid == ""
    for wild in ("hello world", "x" * 600, "../x"):
        wrong = dict.fromkeys(notes, wild)
        assert pod(cluster.pod(owner=node, annotations=wrong)).cgroup_uid == ""
    alone = {"kubernetes.io/config.hash": "ab" * 16}
    assert pod(cluster.pod(owner=node, annotations=alone)).cgroup_uid == ""


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_has_no_address(phase: str) -> None:
    assert pod(cluster.pod(phase=phase)).addresses == ()


def test_addresses_are_written_as_ipaddress_writes_them() -> None:
    item = cluster.pod(ip="10.244.0.7")
    item["status"]["podIPs"] = [
        {"ip": "10.244.0.7"},
        {"ip": "FD00:0::07"},
        {"ip": "none"},
        {"ip": "1.2.3.400"},
    ]
    item["spec"]["hostNetwork"] = True
    value = pod(item)
    assert value.addresses == ("10.244.0.7", "fd00::7")
    assert value.host_network


def test_containers_of_all_kinds_and_the_one_before_a_restart() -> None:
    item = cluster.pod()
    item["status"] |= {
        "initContainerStatuses": [{"name": "init", "containerID": "cri-o://1"}],
        "containerStatuses": [
            {
                "name": "app",
                "containerID": "containerd://3",
                "lastState": {"terminated": {"containerID": "containerd://2"}},
            },
            {"name": "waiting", "state": {"waiting": {}}, "lastState": {}},
        ],
        "ephemeralContainerStatuses": [{"name": "debug", "containerID": "docker://4"}],
    }
    assert pod(item).containers == {"1": "init", "2": "app", "3": "app", "4": "debug"}


@pytest.mark.parametrize(
    ("value", "excluded"), [("true", True), ("", True), ("yes", True), ("false", False), (" False ", False)]
)
def test_the_annotation_excludes_unless_it_says_false(value: str, excluded: bool) -> None:
    assert pod(cluster.pod(annotations={"finwait.io/exclude": value})).excluded is excluded
    space = read("namespaces", cluster.namespace("shop", **{"finwait.io/exclude": value})).value
    assert space == KubeNamespace("shop", excluded)


def test_a_service_has_every_address_at_which_it_is_asked() -> None:
    item = cluster.service()
    item["spec"]["clusterIPs"] = ["10.96.0.10", "FD00::10"]
    item["spec"]["externalIPs"] = ["192.0.2.7"]
    item["spec"]["ports"][0]["nodePort"] = 30432
    item["status"] = {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"hostname": "x.example"}]}}
    assert read("services", item).value == KubeService(
        "shop",
        "db",
        ("10.96.0.10", "fd00::10", "192.0.2.7", "198.51.100.1"),
        (ServicePort(5432, 30432, "TCP", "sql"),),
        2,
    )


@pytest.mark.parametrize("spec", [{"clusterIP": "None", "clusterIPs": ["None"]}, {"externalName": "x"}, {}])
def test_a_headless_service_has_no_address(spec: dict[str, Any]) -> None:
    item = cluster.service()
    item["spec"] = spec
    assert read("services", item).value == KubeService("shop", "db")


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_slice_is_read_in_both_versions(version: str) -> None:
    item = cluster.endpoint_slice(version=version)
    item["endpoints"].append({"addresses": ["10.244.1.5"], "conditions": {"ready": False}})
    item["ports"].append({"port": 9187})
    assert read("endpointslices", item).value == EndpointSlice(
        (
            Endpoint("shop/db", "10.244.1.4", 5432, "TCP", "shop/db-0", "node-b"),
            Endpoint("shop/db", "10.244.1.4", 9187, "TCP", "shop/db-0", "node-b"),
            Endpoint("shop/db", "10.244.1.5", 5432, "TCP", ready=False),
            Endpoint("shop/db", "10.244.1.5", 9187, "TCP", ready=False),
        ),
        4,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"endpoints": None},
        {"ports": None},
        {"ports": [{"name": "any"}]},
        {"addressType": "FQDN"},
        {"endpoints": [{"addresses": ["db.example"]}]},
    ],
)
def test_a_slice_that_leads_to_no_address_and_port_has_no_endpoints(change: dict[str, Any]) -> None:
    value = read("endpointslices", cluster.endpoint_slice() | change).value
    assert value == EndpointSlice((), 0)


def test_a_slice_with_too_many_endpoints_is_counted_and_not_spelled_out() -> None:
    item = cluster.endpoint_slice(addresses=[(f"10.{k // 256}.{k % 256}.1", "p") for k in range(1000)])
    item["ports"] = [{"port": port} for port in range(1, 101)]
    assert read("endpointslices", item).value == EndpointSlice((), 100_000)


@pytest.mark.parametrize("port", [70_000, -1, 2**31 - 1])
def test_a_port_of_a_slice_that_is_none_is_left_out_and_the_others_kept(port: int) -> None:
    """Kubernetes checks names of these ports, and not their numbers."""
    item = cluster.endpoint_slice()
    item["ports"].append({"port": port})
    value = read("endpointslices", item).value
    assert isinstance(value, EndpointSlice)
    assert ([end.port for end in value.endpoints], value.total) == ([5432], 1)


def test_no_more_of_one_object_is_read_than_is_kept_of_it() -> None:
    item = cluster.pod()
    item["metadata"]["labels"] |= {f"l{k}": "v" for k in range(5000)}
    value = pod(item)
    assert len(value.labels) == KUBE_PARTS_MOST
    assert value.kind == "Deployment"
    item = cluster.service()
    item["spec"]["externalIPs"] = [f"203.0.{k >> 8}.{k & 255}" for k in range(3000)]
    item["spec"]["ports"] = [{"port": 1 + k} for k in range(3000)]
    service = read("services", item).value
    assert isinstance(service, KubeService)
    assert (len(service.addresses), len(service.ports)) == (KUBE_PARTS_MOST, KUBE_PARTS_MOST)


def a_list(**change: Any) -> bytes:
    item = cluster.service()
    item["metadata"] |= {"uid": UID, "resourceVersion": "7"}
    whole = {"kind": "ServiceList", "metadata": {"resourceVersion": "9"}, "items": [item]}
    return json.dumps(whole | change).encode()


def test_a_list_is_its_objects_and_a_version() -> None:
    answer = decode_list("services", a_list())
    assert [item.value for item in answer.objects] == [
        KubeService("shop", "db", ("10.96.0.10",), (ServicePort(5432, name="sql"),), 1)
    ]
    assert (answer.version, answer.unread) == ("9", 0)
    assert decode_list("services", a_list(items=None)).objects == ()


def test_an_object_that_cannot_be_read_costs_its_own_name_only() -> None:
    whole = json.loads(a_list())
    whole["items"] += [{}, 1, {"metadata": {"name": "x", "uid": 3}}]
    answer = decode_list("services", json.dumps(whole).encode())
    assert (len(answer.objects), answer.unread) == (1, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b'{"items": []}',
        b'{"kind": "Status", "code": 500, "metadata": {}}',
        a_list(kind="PodList"),
        a_list(metadata={}),
        a_list(metadata={"resourceVersion": ""}),
        a_list(metadata={"resourceVersion": "9" * 200}),
        a_list(metadata={"resourceVersion": "9", "continue": "abc"}),
        a_list()[:-1],
        b'{"kind": "ServiceList", "items": ' + b"[" * 100_000,
    ],
)
def test_what_is_not_the_whole_list_is_no_list(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_list("services", data)


def test_a_bookmark_and_errors() -> None:
    mark = {"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": "12"}}}
    assert decode_event("pods", json.dumps(mark).encode()).version == "12"
    for status, code in (
        ({"code": 410}, 410),
        ({"reason": "Expired"}, 410),
        ({"reason": "Gone"}, 410),
        ({}, 500),
    ):
        event = decode_event("pods", json.dumps({"type": "ERROR", "object": status}).encode())
        assert (event.code, event.object, event.version) == (code, None, "")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b'{"type": "ADDED"}',
        b'{"type": "ADDED", "object": {}}',
        b'{"type": "CHANGED", "object": {"metadata": {"resourceVersion": "1"}}}',
        b'{"type": "BOOKMARK", "object": {"metadata": {}}}',
        b'{"type": "ADDED", "object": {"metadata": {"name": "x", "uid": "y"}}}',
        b'{"type": "ADDED", "object": {"metadata": {"name": "\xff", "uid": "y", "resourceVersion": "1"}}}',
        b'{"type": "ADDED", "object": {"metadata": {"name": "\\ud800", "uid": "y", "resourceVersion": "1"}}}',
    ],
)
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_event("pods", line)


def test_the_newest_version_that_is_understood() -> None:
    def group(*versions: str) -> bytes:
        return json.dumps({"kind": "APIGroup", "versions": [{"version": v} for v in versions]}).encode()

    assert discovery_version(group("v1beta1", "v1")) == "v1"
    assert discovery_version(group("v1beta1")) == "v1beta1"
    assert discovery_version(group("v2")) == ""
    with pytest.raises(DecodeError):
        discovery_version(b"{}")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_are_put_together_from_pieces_of_any_size(size: int) -> None:
    data = b"one\n\ntwo\nthree\r\n \nfour"
    lines = EventLines()
    pieces = [data[k : k + size] for k in range(0, len(data), size)]
    assert [line for piece in pieces for line in lines.feed(piece)] == [b"one", b"two", b"three\r"]
    assert lines.feed(b"\n") == [b"four"]


@pytest.mark.parametrize("data", [b"x" * 11, b"ok\n" + b"x" * 11, b"x" * 11 + b"\nok\n"])
def test_a_line_has_a_length_that_is_too_long(data: bytes) -> None:
    lines = EventLines(most=10)
    with pytest.raises(DecodeError):
        lines.feed(data)


LONG = "x" * 600


def crossed(pods: list[dict[str, Any]], slices: list[dict[str, Any]]) -> NamesMessage:
    """Return what the looker takes of objects, as the follower tells them."""
    keeper = NameKeeper("node-a")
    lists: dict[Resource, tuple[str, list[dict[str, Any]]]] = {
        "pods": ("PodList", pods), "endpointslices": ("EndpointSliceList", slices)
    }  # fmt: skip
    for resource, (kind, items) in lists.items():
        for k, item in enumerate(items):
            item["metadata"] |= {"uid": f"{UID[:-2]}{k:02}", "resourceVersion": "7"}
        whole = {"kind": kind, "metadata": {"resourceVersion": "9"}, "items": items}
        keeper.listed(resource, decode_list(resource, json.dumps(whole).encode()), 1.0)
    names = keeper.names(1.0)
    message = NamesMessage(node="node-a", pods=names.pods, endpoints=names.endpoints, as_of=names.as_of)
    return decode_message(encode_message(message)[LENGTH:])


@pytest.mark.parametrize("wild", [LONG, "a b", "x\n/y", "\x1b[31m", "a/b", ""])
def test_what_anybody_may_write_costs_nobody_else_a_name(wild: str) -> None:
    """A pod's owner and annotations, and all of an EndpointSlice: the API server checks none of it."""
    evil = [
        cluster.pod("evil", owner=(wild, "x")),
        cluster.pod("evil", owner=("Job", wild)),
        cluster.pod("evil", owner=("Node", "n"), annotations={
            "kubernetes.io/config.hash": wild, "kubernetes.io/config.mirror": wild
        }),
    ]  # fmt: skip
    slices = [
        cluster.endpoint_slice(addresses=[("10.244.1.9", wild)]),
        cluster.endpoint_slice(of=wild),
        cluster.endpoint_slice(node=wild),
        cluster.endpoint_slice() | {"ports": [{"port": 1, "protocol": wild}]},
        cluster.endpoint_slice(),
    ]
    message = crossed([cluster.pod(), *evil], slices)
    assert message.pods is not None
    assert message.endpoints is not None
    assert message.pods[0].workload == "shop/cart"
    assert len(message.pods) == 4
    assert Endpoint("shop/db", "10.244.1.4", 5432, "TCP", "shop/db-0", "node-b") in message.endpoints
    assert all(end.pod in ("", "shop/db-0") and end.protocol == "TCP" for end in message.endpoints)


def test_a_slice_names_pods_of_its_own_namespace_only() -> None:
    item = cluster.endpoint_slice(namespace="guest", addresses=[("203.0.113.9", "payments-0")])
    item["endpoints"][0]["targetRef"]["namespace"] = "bank"
    (end,) = read("endpointslices", item).value.endpoints  # type: ignore[union-attr]
    assert (end.service, end.pod) == ("guest/db", "")
