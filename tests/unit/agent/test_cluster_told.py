"""What the process that follows a cluster tells, and what the looker keeps of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from finwait.agent import cluster_told
from finwait.agent.cluster_told import (
    LENGTH,
    FollowRequest,
    NamesMessage,
    Pieces,
    about_pods,
    bounded,
    decode_message,
    decode_request,
    encode_message,
    encode_request,
    framed,
    known_pods,
    nameable,
    taken,
)
from finwait.errors import DecodeError
from finwait.uapi.cluster import NO_NAMES, ClusterNames, Endpoint, KubeService, Pod

CART = Pod("u1", "shop", "cart-1", "n1", "Deployment", "cart", addresses=("10.1.0.5",))
DB = Pod("u2", "shop", "db-0", "n1", "StatefulSet", "db")
SERVICE = KubeService("shop", "db", ("10.96.0.7",))
END = Endpoint("shop/db", "10.1.0.6", 5432)
ALL = {"pods": 100.0, "services": 100.0, "endpointslices": 100.0, "namespaces": 100.0}
FULL = NamesMessage(
    node="n1",
    url="https://a:1",
    pods=(CART, DB),
    services=(SERVICE,),
    endpoints=(END,),
    node_addresses=("192.0.2.1",),
    as_of=ALL,
)


def body(message: NamesMessage) -> bytes:
    return encode_message(message)[LENGTH:]


def test_a_message_and_a_request_arrive_as_they_are() -> None:
    assert decode_message(body(FULL)) == FULL
    request = FollowRequest(kubernetes="auto", parent=7, node="n1")
    assert decode_request(encode_request(request)) == request


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_none(data: bytes) -> None:
    try:
        decode_message(data)
    except DecodeError:
        return


@pytest.mark.parametrize(
    "pods",
    [
        (msgspec.structs.replace(CART, owner="shop/else"),),
        (msgspec.structs.replace(CART, namespace=""),),
        (msgspec.structs.replace(CART, name="a\nb"),),
        (msgspec.structs.replace(CART, uid="../x"),),
        (msgspec.structs.replace(CART, cgroup_uid="a b"),),
        (msgspec.structs.replace(CART, owner_uid="a b"),),
    ],
)
def test_a_name_that_no_object_has_is_no_message(pods: Any) -> None:
    with pytest.raises(DecodeError):
        decode_message(body(msgspec.structs.replace(FULL, pods=pods)))


@pytest.mark.parametrize(
    "end",
    [
        replace(END, pod="shop/db-0\nFIN_WAIT2  0  0  forged row"),
        replace(END, pod="db-0"),
        replace(END, service="shop/db/x"),
        replace(END, node="a b"),
    ],
)
def test_an_endpoint_of_a_name_that_no_object_has_is_no_message(end: Endpoint) -> None:
    with pytest.raises(DecodeError):
        decode_message(body(replace(FULL, endpoints=(end,))))


def test_an_owner_that_a_pod_made_up_is_left_out_before_it_is_told() -> None:
    wild = msgspec.structs.replace(CART, owner="x/y\n")
    (pod, same) = nameable((wild, DB))
    assert (pod.workload, pod.kind, same) == ("shop/cart-1", "", DB)
    right = (CART, DB)
    assert nameable(right) is right


def test_what_did_not_change_stays_the_very_same() -> None:
    names = taken(NO_NAMES, FULL, 100.0)
    later = taken(names, NamesMessage(as_of={**ALL, "pods": 130.0}, node_addresses=("192.0.2.1",)), 130.0)
    assert later.pods is names.pods
    assert later.services is names.services
    assert later.as_of["pods"] == 130.0
    assert later.node == "n1"


def test_a_process_that_has_listed_nothing_takes_no_name_away() -> None:
    names = taken(NO_NAMES, FULL, 100.0)
    empty = NamesMessage(node="n1", pods=(), services=(), endpoints=(), as_of={})
    assert taken(names, empty, 200.0) == names
    partly = NamesMessage(node="n1", pods=(), services=(), endpoints=(), as_of={"services": 200.0})
    later = taken(names, partly, 200.0)
    assert (later.pods, later.services, later.endpoints) == (names.pods, (), names.endpoints)
    assert later.as_of == {**ALL, "services": 200.0}, "of the rest it is told how old it is"


def test_pods_that_went_while_nobody_followed_keep_their_names_for_ten_minutes() -> None:
    names = taken(NO_NAMES, FULL, 100.0)
    later = taken(names, msgspec.structs.replace(FULL, pods=(DB,)), 200.0)
    gone = later.pod("u1")
    assert gone is not None
    assert (gone.workload, gone.gone_s) == ("shop/cart", 200.0)
    again = taken(later, msgspec.structs.replace(FULL, pods=(DB,)), 799.0)
    assert again.pod("u1") == gone
    assert taken(again, msgspec.structs.replace(FULL, pods=(DB,)), 801.0).pod("u1") is None


def test_pods_without_what_their_namespaces_say_are_not_known_to_be_free() -> None:
    names = taken(NO_NAMES, FULL, 100.0)
    assert known_pods(names, 150.0)
    alone = NamesMessage(node="n1", pods=(CART,), as_of={"pods": 140.0})
    assert not known_pods(taken(names, alone, 150.0), 150.0)
    both = NamesMessage(node="n1", pods=(CART,), as_of={"pods": 140.0, "namespaces": 140.0})
    assert known_pods(taken(names, both, 150.0), 150.0)


@pytest.mark.parametrize(("now", "known"), [(100.0, True), (700.0, True), (701.0, False), (-501.0, False)])
def test_names_that_nothing_has_confirmed_are_not_acted_by(now: float, known: bool) -> None:
    assert known_pods(taken(NO_NAMES, FULL, 100.0), now) is known
    assert not known_pods(NO_NAMES, now)


def test_a_diagnosis_gets_services_only_where_somebody_asks_for_them() -> None:
    names = ClusterNames(node="n1", pods=(CART,), services=(SERVICE,), endpoints=(END,), as_of=ALL)
    assert about_pods(names, services=True) is names
    less = about_pods(names, services=False)
    assert (less.pods, less.services, less.endpoints) == ((CART,), (), ())
    assert set(less.as_of) == {"pods", "namespaces"}, "a Service is then not known, and not none"


@pytest.mark.parametrize(
    "message",
    [
        {"gaps": [["", "", ""]] * 51},
        {"as_of": {"secrets": 1.0}},
        {"node_addresses": ["10.0.0.1"] * 1001},
        {"services": [{"namespace": "a", "name": "b"}] * 100_001},
    ],
    ids=["gaps", "as_of", "addresses", "services"],
)
def test_more_than_is_ever_told_is_refused_before_it_is_kept(message: dict[str, Any]) -> None:
    """Each small thing takes forty times its bytes in memory."""
    with pytest.raises(DecodeError):
        decode_message(msgspec.msgpack.encode(message))


def test_a_pod_with_more_parts_than_are_kept_does_not_keep_the_names_of_others_away() -> None:
    many = msgspec.structs.replace(CART, labels={f"k{k}": "v" for k in range(1500)})
    wide = msgspec.structs.replace(
        SERVICE, addresses=tuple(f"10.0.{k // 250}.{k % 250}" for k in range(1200))
    )
    message = NamesMessage(pods=nameable((many, DB)), services=bounded((wide,)), as_of=ALL)
    back = decode_message(encode_message(message)[LENGTH:])
    assert back.pods is not None
    assert len(back.pods[0].labels) == 1000
    assert back.pods[1] == DB
    with pytest.raises(DecodeError):
        decode_message(encode_message(NamesMessage(pods=(many,)))[LENGTH:])


def test_what_is_too_long_for_one_message_comes_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = NamesMessage(
        pods=tuple(replace(CART, uid=f"u{k}") for k in range(100)),
        services=(SERVICE,),
        endpoints=(END,),
        as_of=ALL,
        gaps=(("a", "b", "c"),),
    )
    assert len(framed(whole)) == 1
    monkeypatch.setattr("finwait.agent.cluster_told.FRAME_MOST", 6000)
    assert len(framed(whole)) > 3
    names, pieces = NO_NAMES, Pieces()
    for data in framed(whole):
        message = pieces.put(decode_message(data[LENGTH:]))
        names = taken(names, message, 100.0) if message is not None else names
    assert (names.pods, names.services, names.endpoints) == (whole.pods, whole.services, whole.endpoints)


def told(message: NamesMessage) -> tuple[ClusterNames, NamesMessage]:
    """Return what the looker has after a message, and the last whole one."""
    names, pieces, last = NO_NAMES, Pieces(), NamesMessage()
    for data in framed(message):
        assert len(data) - LENGTH <= cluster_told.FRAME_MOST
        whole = pieces.put(decode_message(data[LENGTH:]))
        if whole is None:
            assert not names.endpoints, "a piece of a part takes nothing away"
            continue
        names, last = taken(names, whole, 100.0), whole
    return names, last


def test_a_large_cluster_keeps_all_its_names() -> None:
    """59,000 endpoints of ordinary names are 14 MiB."""
    ends = tuple(
        Endpoint(
            "team-namespace-production/some-service-name-here", f"10.{k // 62500}.{k // 250 % 250}.{k % 250 + 1}", 8080,
            "TCP", f"team-namespace-production/some-service-name-here-7d9f8b6c5d-{k:05}",
            "ip-10-0-123-45.eu-west-1.compute.internal",
        )
        for k in range(59_000)
    )  # fmt: skip
    labels = {f"{'p' * 240}/{'k' * 57}{k:04}": "v" * 63 for k in range(1000)}
    pods = tuple(replace(CART, uid=f"u{k}", labels=labels) for k in range(40))
    names, last = told(replace(FULL, endpoints=ends, pods=pods))
    assert names.endpoints == ends
    assert names.pods == pods
    assert not last.gaps


def test_what_finds_no_room_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = tuple(replace(END, pod=f"shop/db-{k:04}") for k in range(2000))
    monkeypatch.setattr(cluster_told, "FRAME_MOST", 8000)
    names, last = told(replace(FULL, endpoints=ends, gaps=(("a", "b", "c"),)))
    assert 0 < len(names.endpoints) < 2000
    assert names.endpoints == ends[: len(names.endpoints)]
    (first, second) = last.gaps
    assert first == ("a", "b", "c")
    assert (
        f"{len(names.endpoints):,} are kept, {2000 - len(names.endpoints):,} take too much room" in second[1]
    )


def test_pieces_without_an_end_are_refused() -> None:
    pieces, piece = Pieces(), NamesMessage(pods=(CART,), more=True)
    for _ in range(cluster_told.PIECES_MOST - 1):
        assert pieces.put(piece) is None
    with pytest.raises(DecodeError):
        pieces.put(piece)
