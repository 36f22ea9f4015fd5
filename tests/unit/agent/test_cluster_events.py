"""What is worth an Event, how often, and what becomes of it at an API server."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from finwait.agent.cluster_events import AGAIN_S, MOST, EventPace
from finwait.agent.cluster_following import ClusterFollowing
from finwait.agent.cluster_told import decode_events, encode_events
from finwait.agent.protocol import StuckGroup
from finwait.kube.access import KubeAccess
from finwait.kube.events import EventWriter
from finwait.uapi import tcp
from finwait.uapi.cluster import ClusterEvent, ClusterNames, Pod
from tests.kube import cluster
from tests.kube.api_server import ApiServer, Asked
from tests.unit.agent.test_cluster_following import until
from tests.unit.agent.test_cluster_loop import KNOWN, Bench

EVENT = ClusterEvent(
    news="ConnectionsNotClosing", namespace="shop", kind="Deployment", name="cart", rule="close-wait-eof-read",
    message="7 connections do not finish closing",
)  # fmt: skip


def group(**more: Any) -> StuckGroup:
    values: dict[str, Any] = {
        "rule": "close-wait-eof-read", "severity": "problem", "namespace": "shop", "workload": "cart", "count": 7,
        "oldest_s": 7200.0, **more,
    }  # fmt: skip
    return StuckGroup(**values)


def test_news_of_one_kind_is_told_every_five_minutes() -> None:
    pace = EventPace()
    (event,) = pace.due([group()], {}, KNOWN, 0.0)
    assert (event.news, event.namespace, event.kind, event.name) == (
        "ConnectionsNotClosing", "shop", "Deployment", "cart",
    )  # fmt: skip
    assert "7 connections do not finish closing" in event.message
    assert "2 h" in event.message
    assert pace.due([group(count=8)], {}, KNOWN, AGAIN_S - 1) == []
    assert len(pace.due([group(count=8)], {}, KNOWN, AGAIN_S)) == 1
    assert len(pace.due([group(rule="fin-wait2-held")], {}, KNOWN, AGAIN_S + 1)) == 1


def test_of_two_workloads_with_one_name_it_is_not_known_which_one_is_meant() -> None:
    first, second = (
        Pod(f"u{k}", "shop", f"cart-{k}", kind=kind, owner="cart")
        for k, kind in ((1, "Deployment"), (2, "Job"))
    )
    for pods in ((first, second), (second, first)):
        assert EventPace().due([group()], {}, ClusterNames(pods=pods), 0.0) == []
    assert len(EventPace().due([group()], {}, ClusterNames(pods=(first, first)), 0.0)) == 1


@pytest.mark.parametrize(
    "more",
    [{"severity": "notice"}, {"namespace": ""}, {"count": 0}, {"oldest_s": 59.0}, {"workload": "gone"}],
)
def test_what_is_no_news_of_a_workload(more: dict[str, Any]) -> None:
    assert EventPace().due([group(**more)], {}, KNOWN, 0.0) == []


def test_there_are_few_in_all_and_what_is_new_comes_first() -> None:
    pods = tuple(Pod(f"u{k}", "shop", f"p{k}") for k in range(30))
    names = ClusterNames(pods=pods, as_of={"pods": 1.0})
    groups = [group(workload=f"p{k}", count=1 + k) for k in range(30)]
    pace = EventPace()
    first = pace.due(groups, {}, names, 0.0)
    assert [event.name for event in first] == [f"p{k}" for k in range(29, 29 - MOST, -1)]
    assert {event.kind for event in first} == {"Pod"}
    assert pace.due(groups, {}, names, AGAIN_S - 1) == []
    told = {event.name for event in [*first, *pace.due(groups, {}, names, AGAIN_S)]}
    told |= {event.name for event in pace.due(groups, {}, names, 2 * AGAIN_S)}
    assert len(told) == 30, "every one is told, sooner or later"


def test_what_a_policy_ended_is_summed_up_until_it_is_told() -> None:
    pace = EventPace()
    one = Counter({("fin-wait2-held", "shop/cart"): 1})
    (event,) = pace.due([], one, KNOWN, 0.0)
    assert (event.news, event.rule) == ("ConnectionsCleared", "fin-wait2-held")
    assert "ended 1 connection that did" in event.message
    assert pace.due([], one, KNOWN, 10.0) == []
    assert pace.due([], one, KNOWN, 20.0) == []
    (event,) = pace.due([], {}, KNOWN, AGAIN_S)
    assert "ended 2 connections that did" in event.message
    assert pace.due([], {}, KNOWN, 3 * AGAIN_S) == []


def test_events_cross_as_a_line() -> None:
    line = encode_events([EVENT, EVENT])
    assert line.count(b"\n") == 1
    assert decode_events(line) == [EVENT, EVENT]
    with pytest.raises(ValueError, match="truncated"):
        decode_events(b"no")


def test_the_looker_tells_only_where_it_is_asked_to(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.source.names = KNOWN
    bench.world.add(tcp.FIN_WAIT2, pid=7, pod="A")
    bench.run(200)
    assert bench.source.told == []
    bench.looker._events = EventPace()
    bench.run(200)
    assert [(event.news, event.name) for event in bench.source.told] == [("ConnectionsNotClosing", "cart")]


# ── at an API server ─────────────────────────────────────────────────────────────────────────────────────


class EventApi(ApiServer):
    """Keeps Events, too.

    Attributes:
        events: path → Event.
        status: what is answered instead; 0 for nothing.
        writes: method of each request that writes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: dict[str, dict[str, Any]] = {}
        self.status = 0
        self.writes: list[str] = []

    def _requests(self, sock: socket.socket) -> Iterator[Asked]:
        if not sock.recv(4, socket.MSG_PEEK).startswith((b"POST", b"PATC")):
            yield from super()._requests(sock)
            return
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(1 << 16)
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        while len(body) < int(headers["content-length"]):
            body += sock.recv(1 << 16)
        method, path, _ = lines[0].split()
        self.writes.append(method)
        status, answer = self._written(method, path, headers["content-type"], json.loads(body))
        text = json.dumps(answer).encode()
        sock.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(text)) + text)

    def _written(self, method: str, path: str, kind: str, item: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.status:
            return self.status, {}
        if method == "POST":
            assert kind == "application/json"
            assert item["involvedObject"]["namespace"] == item["metadata"]["namespace"]
            place = f"{path}/{item['metadata']['name']}"
            if place in self.events:
                return 409, {}
            self.events[place] = item
            return 201, item
        assert kind == "application/merge-patch+json"
        if path not in self.events:
            return 404, {}
        self.events[path] |= item
        return 200, self.events[path]


@pytest.fixture
def api() -> Iterator[EventApi]:
    with EventApi() as server:
        yield server


@pytest.fixture
def writer(api: EventApi) -> Iterator[Callable[[], EventWriter]]:
    wake, awake = os.pipe()
    yield lambda: EventWriter(KubeAccess(api.url, node="n1"), wake)
    os.close(wake)
    os.close(awake)


def test_an_event_is_created_once_and_then_patched(api: EventApi, writer: Callable[[], EventWriter]) -> None:
    made = writer()
    assert made.write(EVENT)
    assert made.write(EVENT)
    ((place, event),) = api.events.items()
    assert place.startswith("/api/v1/namespaces/shop/events/cart.finwait-")
    assert (event["count"], event["reason"], event["type"]) == (2, "ConnectionsNotClosing", "Warning")
    assert event["involvedObject"] == {
        "apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "cart",
    }  # fmt: skip
    assert api.writes == ["POST", "PATCH"]
    again = writer()
    assert again.write(EVENT)
    assert again.write(EVENT)
    assert next(iter(api.events.values()))["count"] == 4, "a restart counts on"
    api.events.clear()
    assert again.write(EVENT)
    assert [event["count"] for event in api.events.values()] == [1], "what the server forgot is created anew"


def test_an_event_has_the_uid_that_kubectl_describe_asks_for(
    api: EventApi, writer: Callable[[], EventWriter]
) -> None:
    pods = (
        Pod("u1", "shop", "lone"),
        Pod("u2", "shop", "db-0", kind="StatefulSet", owner="db", owner_uid="s1"),
    )
    names = ClusterNames(pods=pods, as_of={"pods": 1.0})
    news = EventPace().due([group(workload="lone"), group(workload="db")], {}, names, 0.0)
    made = writer()
    assert all(made.write(event) for event in news)
    about = {event["involvedObject"]["name"]: event["involvedObject"] for event in api.events.values()}
    assert {name: item["uid"] for name, item in about.items()} == {"lone": "u1", "db": "s1"}
    anew = [msgspec.structs.replace(event, uid="s2") for event in news if event.name == "db"]
    assert made.write(anew[0])
    assert len(api.events) == 3, "one of that name that was made anew is another"


def test_without_the_right_there_is_a_gap_until_it_is_given(
    api: EventApi, writer: Callable[[], EventWriter]
) -> None:
    made = writer()
    api.status = 403
    assert not made.write(EVENT)
    assert made.gap is not None
    assert made.gap.needs == "the right to create and patch events"
    api.status = 0
    assert made.write(EVENT)
    assert made.gap is None
    api.stop()
    assert not made.write(EVENT)
    assert made.gap is not None


def test_what_fails_for_another_reason_asks_for_no_right(
    api: EventApi, writer: Callable[[], EventWriter]
) -> None:
    made = writer()
    for status in (400, 429, 500):
        api.status = status
        assert not made.write(EVENT)
        assert made.gap is not None
        assert (made.gap.needs, f"status {status}" in made.gap.doing) == ("", True)


@pytest.mark.parametrize("name", ["ok", "a_b", "A:b", "x..y", "a.-b", "~", "-", "a" * 253])
def test_the_name_of_an_event_is_one_whatever_a_pod_says_of_its_owner(
    api: EventApi, writer: Callable[[], EventWriter], name: str
) -> None:
    assert writer().write(msgspec.structs.replace(EVENT, name=name))
    (made,) = (path.rpartition("/")[2] for path in api.events)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", made)
    assert len(made) <= 253


@pytest.mark.parametrize("status", [404, 422])
def test_an_event_that_only_its_own_workload_spoils_is_no_gap(
    api: EventApi, writer: Callable[[], EventWriter], status: int
) -> None:
    """Its namespace has gone; or something in it is refused."""
    made = writer()
    api.status = status
    assert not made.write(EVENT)
    assert made.gap is None


def test_a_failure_is_not_told_for_ever(api: EventApi, writer: Callable[[], EventWriter]) -> None:
    times = [1000.0]
    made = EventWriter(writer()._access, writer()._wake, lambda: times[0])
    api.status = 500
    assert not made.write(EVENT)
    assert made.gap is not None
    times[0] += 601.0
    assert made.gap is None


def test_a_name_that_is_cut_ends_as_a_name_does(api: EventApi, writer: Callable[[], EventWriter]) -> None:
    assert writer().write(msgspec.structs.replace(EVENT, name="a" * 199 + "-" + "b" * 20))
    ((place, _),) = api.events.items()
    assert f"/{'a' * 199}.finwait-" in place


def test_the_process_tells_what_the_looker_wants_to_be_told(api: EventApi) -> None:
    api.put("pods", cluster.pod())
    with ClusterFollowing(api.url, node=cluster.NODE, pace_s=0.1) as following:
        following.tell([EVENT])  # nobody listens yet: it is lost, and nothing breaks
        until(lambda: following.names.pods)
        following.tell([EVENT] * 60)
        until(lambda: [event["count"] for event in api.events.values()] == [60])
        api.status = 403
        following.tell([EVENT])
        until(lambda: any("events" in gap.needs for gap in following.gaps))
        assert time.time() - min(following.names.as_of.values()) < 60
