"""Names from an API server: any bytes are read or refused, and after any history names are those of its objects."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.errors import DecodeError
from finwait.kube import objects
from finwait.kube.names import NameKeeper
from finwait.kube.objects import RESOURCES, Resource
from tests.kube import api_server as api
from tests.kube import cluster
from tests.kube.api_server import KINDS, ApiServer
from tests.kube.following import agree, watcher_of

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["10.0.0.1", "None", "TCP", ":"])
)
WORDS = [
    "metadata",
    "spec",
    "status",
    "items",
    "kind",
    "type",
    "object",
    "name",
    "uid",
    "namespace",
    "labels",
    "annotations",
    "ownerReferences",
    "resourceVersion",
    "podIP",
    "podIPs",
    "ip",
    "hostIP",
    "containerStatuses",
    "containerID",
    "ports",
    "port",
    "addresses",
    "endpoints",
    "targetRef",
    "conditions",
]
KEYS = st.text(max_size=4) | st.sampled_from(WORDS)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)
RESOURCE = st.sampled_from(RESOURCES)
SAMPLES: dict[Resource, Callable[[], dict[str, Any]]] = {
    "pods": cluster.pod,
    "services": cluster.service,
    "endpointslices": cluster.endpoint_slice,
    "namespaces": cluster.namespace,
}


def read_by_everything(resource: Resource, data: bytes) -> None:
    for decode in (objects.decode_list, objects.decode_event):
        try:
            decode(resource, data)
        except DecodeError:
            continue


@given(RESOURCE, st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(resource: Resource, data: bytes) -> None:
    read_by_everything(resource, data)
    try:
        objects.discovery_version(data)
    except DecodeError:
        return


@given(RESOURCE, JSON)
def test_any_json_is_read_or_refused(resource: Resource, value: Any) -> None:
    read_by_everything(resource, json.dumps(value).encode())
    read_by_everything(resource, json.dumps({"type": "ADDED", "object": value}).encode())
    whole = {"kind": objects._KINDS[resource], "metadata": {"resourceVersion": "1"}, "items": [value]}
    answer = objects.decode_list(resource, json.dumps(whole).encode())
    assert len(answer.objects) + answer.unread == 1


@given(RESOURCE, st.data())
def test_an_object_with_something_else_in_one_place_is_read_or_refused(
    resource: Resource, data: st.DataObject
) -> None:
    item: Any = copy.deepcopy(SAMPLES[resource]())
    item["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    place = item
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            break
        place = inner
    place[key] = data.draw(JSON)
    read_by_everything(resource, json.dumps({"type": "MODIFIED", "object": item}).encode())


@given(st.lists(st.binary(max_size=12) | st.just(b"\n"), max_size=20), st.integers(1, 40))
def test_pieces_make_the_same_lines_as_the_whole(pieces: list[bytes], most: int) -> None:
    def lines_of(parts: list[bytes]) -> list[bytes]:
        lines = objects.EventLines(most)
        return [line for part in parts for line in lines.feed(part)]

    whole = b"".join(pieces)
    try:
        seen = lines_of(pieces)
    except DecodeError:
        assert any(len(line) > most for line in whole.split(b"\n"))
        return
    assert seen == [line for line in whole.split(b"\n")[:-1] if line.strip()]


NUMBERS = st.integers(0, 4)
CHANGES = st.one_of(
    st.tuples(
        st.just("pod"), NUMBERS, st.integers(1, 250), st.sampled_from([cluster.NODE, cluster.NODE, "node-b"])
    ),
    st.tuples(st.just("no pod"), NUMBERS),
    st.tuples(st.just("service"), NUMBERS, st.integers(1, 250)),
    st.tuples(st.just("no service"), NUMBERS),
    st.tuples(st.just("slice"), NUMBERS, st.lists(st.integers(1, 250), max_size=3, unique=True)),
    st.tuples(st.just("no slice"), NUMBERS),
    st.tuples(st.just("namespace"), st.booleans()),
)


def change(server: ApiServer, step: tuple[Any, ...]) -> None:
    """Change what a server stores."""
    match step:
        case ("pod", number, address, node):
            # A pod does not move: one of the same name elsewhere is another.
            stored = server.objects["pods"].get(("shop", f"p{number}"))
            if stored is not None and stored["spec"]["nodeName"] != node:
                server.delete("pods", "shop", f"p{number}")
            server.put("pods", cluster.pod(f"p{number}", ip=f"10.244.0.{address}", node=node))
        case ("service", number, address):
            server.put("services", cluster.service(f"s{number}", ip=f"10.96.0.{address}"))
        case ("slice", number, addresses):
            reached = [(f"10.244.1.{address}", f"q{address}") for address in addresses]
            server.put("endpointslices", cluster.endpoint_slice(f"e{number}", reached))
        case ("namespace", excluded):
            server.put(
                "namespaces", cluster.namespace("shop", **{"finwait.io/exclude": str(excluded).lower()})
            )
        case ("no pod", number):
            server.delete("pods", "shop", f"p{number}")
        case ("no service", number):
            server.delete("services", "shop", f"s{number}")
        case ("no slice", number):
            server.delete("endpointslices", "shop", f"e{number}")


STEPS = st.lists(
    CHANGES | st.sampled_from([("deliver", 1), ("deliver", 3), ("copy",), ("compact",), ("older list",)]),
    max_size=40,
)


class Model:
    """A keeper that is fed from a server's history by hand, as a watch would feed it."""

    def __init__(self) -> None:
        self.server = ApiServer()
        self.keeper = NameKeeper(cluster.NODE)
        self.at = dict.fromkeys(RESOURCES, 0)
        self.now = 1_800_000_000.0

    def list(self, resource: Resource, stored: dict[str, list[dict[str, Any]]], version: int) -> None:
        items = [x for x in stored[resource] if resource != "pods" or x["spec"]["nodeName"] == cluster.NODE]
        whole = {
            "kind": f"{KINDS[resource]}List",
            "metadata": {"resourceVersion": str(version)},
            "items": items,
        }
        self.keeper.listed(resource, objects.decode_list(resource, json.dumps(whole).encode()), self.now)
        self.at[resource] = version

    def deliver(self, resource: Resource, most: int, *, copies: int = 1) -> None:
        if self.at[resource] < self.server.compacted:
            self.list(resource, self.server.stored(), self.server.version)
            return
        waiting = [
            entry for entry in self.server._history
            if entry[0] > self.at[resource] and entry[1] == resource
            and (resource != "pods" or entry[3]["spec"]["nodeName"] == cluster.NODE)
        ]  # fmt: skip
        for version, _, kind, item in waiting[:most]:
            line = json.dumps({"type": kind, "object": item}).encode()
            for _ in range(copies):
                self.keeper.happened(resource, objects.decode_event(resource, line), self.now)
            self.at[resource] = version


@settings(max_examples=300)
@given(STEPS)
def test_after_any_history_names_are_those_of_the_objects(steps: list[tuple[Any, ...]]) -> None:
    model = Model()
    older = model.server.stored(), model.server.version
    for step in steps:
        model.now += 1
        match step:
            case ("deliver", most):
                for resource in RESOURCES:
                    model.deliver(resource, most)
            case ("copy",):
                for resource in RESOURCES:
                    model.deliver(resource, 2, copies=3)
            case ("compact",):
                model.server.compact()
                older = model.server.stored(), model.server.version
            case (
                "older list",
            ):  # from the memory of a server that lags behind; its history goes on from there
                for resource in RESOURCES:
                    if older[1] >= model.server.compacted:
                        model.list(resource, *older)
            case _:
                change(model.server, step)
    for resource in RESOURCES:
        model.deliver(resource, 1000)
        model.deliver(resource, 1000)
    names = model.keeper.names(model.now)
    assert cluster.told(names) == cluster.expected(model.server.stored())
    # Joined anew or taken over from earlier names, it is the same.
    fresh = type(names)(names.node, names.pods, names.services, names.endpoints, names.node_addresses)
    for pod in names.pods:
        assert names.pod(pod.uid) == fresh.pod(pod.uid) == pod
    for service in names.services:
        place = service.addresses[0], service.ports[0].port
        assert names.service_at(*place) == fresh.service_at(*place)
    assert not names.pods or all(model.now - pod.gone_s >= 0 for pod in names.pods)
    assert model.keeper.gaps() == ()


FAULTS = st.sampled_from(
    [
        ("end",),
        ("cut",),
        ("compact",),
        ("restart",),
        ("copies", 2),
        ("list", api.with_status(500)),
        ("list", api.with_status(429, Retry_After="0")),
        ("list", api.with_bytes(b"HTTP/1.1 200 OK\r\n\r\n{}")),
        ("list", api.with_bytes(b"\x00")),
        ("watch", api.with_error_event(410)),
        ("watch", api.with_status(410)),
        ("watch", api.with_stream(b'{"type":"ADDED","obj')),
        ("watch", api.with_stream(b"\xff\n", end=True)),
        ("watch", api.with_stream(end=True)),
    ]
)


@settings(max_examples=25)
@given(st.lists(CHANGES | FAULTS, max_size=25), st.booleans())
def test_after_any_faults_names_are_those_of_the_objects(
    steps: list[tuple[Any, ...]], as_status: bool
) -> None:
    with ApiServer() as server:
        server.gone_as_status = as_status
        with watcher_of(server) as watcher:
            for step in steps:
                match step:
                    case ("end",):
                        server.end_watches()
                    case ("cut",):
                        server.cut()
                    case ("compact",):
                        server.compact()
                    case ("restart",):
                        server.stop()
                        server.start()
                    case ("copies", number):
                        server.copies = number
                    case ("list" | "watch" as verb, fault):
                        for resource in RESOURCES:
                            server.fail(resource, verb, fault)
                        server.end_watches()
                    case _:
                        change(server, step)
            agree(watcher, server)
