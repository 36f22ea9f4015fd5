"""Connections beside the names of a cluster: pods, Services, and what cannot be known."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.context import ViewContext
from finwait.diagnosis.view import NamespaceView, View
from finwait.errors import FilterError
from finwait.report.columns import Cells
from finwait.report.json import connections, objects
from finwait.report.rows import text_lines
from finwait.selecting import parse_filter
from finwait.table.sockets import pack_address
from finwait.uapi import tcp
from finwait.uapi.cluster import NO_NAMES, ClusterNames, Endpoint, KubeService, Pod, ServicePort, merged
from tests.output import mistakes
from tests.unit.diagnosis.views import socket, view

CART, DB, STATIC = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222", "0" * 32
BOX = "c" * 64
CGROUPS = {
    1: f"/kubepods/burstable/pod{CART}/{BOX}",
    2: f"/kubepods/pod{DB}",
    3: f"/kubepods/burstable/pod{STATIC}",
    4: "/system.slice/sshd.service",
}
NAMES = ClusterNames(
    node="n1",
    pods=(
        Pod(
            CART, "shop", "cart-7d9-x", "n1", "Deployment", "cart", addresses=("10.1.0.5",),
            containers={BOX: "app"}, labels={"app": "cart", "tier": "front"},
        ),
        Pod(DB, "shop", "db-0", "n1", "StatefulSet", "db", addresses=("10.1.0.6", "fd00::6")),
        Pod(
            "33333333-3333-4333-8333-333333333333", "kube-system", "proxy", "n1", cgroup_uid=STATIC, host_network=True,
            addresses=("192.0.2.1",),
        ),
    ),
    services=(
        KubeService("shop", "db", ("10.96.0.7", "fd01::7"), (ServicePort(5432, 30007),), 2),
        KubeService("shop", "db-all", (), (ServicePort(5432),)),
        KubeService("shop", "queue", ("10.96.0.8",), (ServicePort(53, protocol="UDP"), ServicePort(5672)), 1),
    ),
    endpoints=(
        Endpoint("shop/db", "10.1.0.6", 5432, pod="shop/db-0", node="n1"),
        Endpoint("shop/queue", "10.2.0.9", 5672, pod="shop/queue-1", node="n2"),
        Endpoint("shop/alone", "10.2.0.10", 80, pod="shop/alone-0", node="n2"),
    ),
    node_addresses=("192.0.2.1",),
    as_of={"pods": 1.0, "services": 1.0, "endpointslices": 1.0},
)  # fmt: skip


def replace_names(**change: Any) -> ClusterNames:
    return msgspec.structs.replace(NAMES, **change)


def row(**cells: Any) -> dict[str, Any]:
    return socket(**{"state": tcp.FIN_WAIT2, "inode": 50, "cookie": 9} | cells)


def named(*rows: dict[str, Any], names: ClusterNames = NAMES, **how: Any) -> View:
    return replace(view(*rows, cgroup_paths=CGROUPS, **how), names=names)


def column(v: View, name: str) -> list[Any]:
    return Cells(v, np.arange(len(v))).column(name)


CLIENT = row(netns=5, src="10.1.0.5", dst="10.96.0.7", sport=40000, dport=5432, cgroup_id=1)
SERVER = row(
    state=tcp.CLOSE_WAIT, inode=60, cookie=10, netns=6, src="10.1.0.6", dst="10.1.0.5", sport=5432, dport=40000,
    cgroup_id=2,
)  # fmt: skip


def test_a_pod_its_workload_and_the_service_that_it_asked() -> None:
    v = named(CLIENT)
    assert {
        name: column(v, name)[0] for name in ("pod", "namespace", "container", "workload", "node", "service")
    } == {
        "pod": "shop/cart-7d9-x",
        "namespace": "shop",
        "container": "app",
        "workload": "shop/cart",
        "node": "n1",
        "service": "shop/db",
    }


def test_what_has_no_cgroup_has_the_pod_of_its_namespace_or_of_its_address() -> None:
    orphan = CLIENT | {"inode": 0, "cookie": 11, "cgroup_id": 0, "sport": 40001}
    inside = orphan | {"src": "127.0.0.1", "dst": "127.0.0.1", "cookie": 12}
    assert column(named(CLIENT, orphan, inside), "pod") == ["shop/cart-7d9-x"] * 3
    assert column(named(orphan, inside), "pod") == ["shop/cart-7d9-x", None]
    other = CLIENT | {"cookie": 13, "cgroup_id": 2}  # two pods in one network namespace
    assert column(named(CLIENT, other, inside), "pod")[2] is None


def test_what_a_service_of_the_node_does_within_a_pod_is_not_the_pods() -> None:
    """As containerd's at each `kubectl port-forward`, or by nsenter: in the namespace and by the address."""
    service = CLIENT | {"cgroup_id": 4, "cookie": 17, "sport": 40002}
    orphan = service | {"inode": 0, "cookie": 18}
    unknown = service | {"cgroup_id": 0, "cookie": 19}  # whoever holds it cannot be seen
    v = named(CLIENT, service, orphan, unknown)
    assert column(v, "pod") == ["shop/cart-7d9-x", None, None, None]
    for words in ("workload = shop/cart", "namespace = shop", "label = app=cart"):
        assert parse_filter([words]).mask(v.sockets, ViewContext(v)).tolist() == [True, False, False, False]
    assert column(named(service, orphan), "pod") == [None, None]


def test_a_pod_in_its_node_s_network_is_found_by_cgroup_only() -> None:
    proxy = row(src="192.0.2.1", cgroup_id=3)
    daemon = row(src="192.0.2.1", cgroup_id=4, cookie=14)
    orphan = row(src="192.0.2.1", cgroup_id=0, cookie=15)
    assert column(named(proxy, daemon, orphan), "pod") == ["kube-system/proxy", None, None]
    assert column(named(proxy), "workload") == ["kube-system/proxy"]


def test_the_peer_behind_a_translation_is_a_pod() -> None:
    v = named(CLIENT)
    assert column(v, "peer_pod") == [None]
    translated = replace(v, peer=np.array([pack_address("10.1.0.6")], np.uint64))
    assert column(translated, "peer_pod") == ["shop/db-0"]
    assert column(translated, "peer_workload") == ["shop/db"]
    elsewhere = replace(v, peer=np.array([pack_address("10.2.0.9")], np.uint64))
    assert column(elsewhere, "peer_pod") == ["shop/queue-1"]
    assert column(elsewhere, "peer_workload") == [None]


def test_a_service_is_named_where_its_client_shows_it_and_else_not_known() -> None:
    at = {"netns": 6, "sport": 40000, "src": "10.1.0.5", "cgroup_id": 1}
    node_port = row(**at | {"dst": "192.0.2.1", "dport": 30007})
    direct = row(**at | {"dst": "10.1.0.6", "dport": 5432})
    headless = row(**at | {"dst": "10.2.0.10", "dport": 80})
    elsewhere = row(**at | {"dst": "198.51.100.1", "dport": 80})
    udp = row(**at | {"dst": "10.96.0.8", "dport": 53})
    alone = (*NAMES.services, KubeService("shop", "alone"))
    names = ClusterNames(
        pods=NAMES.pods,
        services=alone,
        endpoints=NAMES.endpoints,
        node_addresses=("192.0.2.1",),
        as_of=NAMES.as_of,
    )

    def services(*rows: dict[str, Any]) -> list[str | None]:
        return list(named(*rows, names=names).row_names.service)

    assert services(node_port) == [None]  # or a client from the node's address
    opened = {6: NamespaceView(6, ("pod",), sysctls={"ipv4/ip_local_port_range": "32768 60999"})}
    assert list(named(node_port, names=names, namespaces=opened).row_names.service) == ["shop/db"]
    assert services(direct) == [None]  # an eBPF data path translates within connect()
    assert services(headless) == ["shop/alone"]
    assert services(elsewhere) == [""]
    assert services(udp) == [""]
    assert services(SERVER | {"dst": "198.51.100.1"}) == [None]  # its client is elsewhere
    v = named(SERVER, names=names)
    asked = np.array([[*pack_address("10.96.0.7"), 5432]], np.uint64)
    assert list(replace(v, asked=asked).row_names.service) == ["shop/db"]  # its entry tells
    both = replace(named(CLIENT, SERVER, names=names), other=np.array([1, 0]))
    assert list(both.row_names.service) == ["shop/db", "shop/db"]
    assert column(both, "peer_pod") == ["shop/db-0", "shop/cart-7d9-x"]


@pytest.mark.parametrize("missing", ["services", "endpointslices"])
def test_no_service_is_said_only_where_services_are_known(missing: str) -> None:
    elsewhere = CLIENT | {"dst": "198.51.100.1", "dport": 80}
    assert list(named(elsewhere).row_names.service) == [""]
    less = replace_names(as_of={name: at for name, at in NAMES.as_of.items() if name != missing})
    assert list(named(elsewhere, names=less).row_names.service) == [None]


def test_a_node_port_of_another_node_may_be_that_of_a_service() -> None:
    other_node = CLIENT | {"dst": "192.0.2.2", "dport": 30007}
    for names in (NAMES, NAMES.about(["192.0.2.2"])):
        v = named(other_node, names=names)
        assert list(v.row_names.service) == [None]
        assert not parse_filter(["service != shop/db"]).mask(v.sockets, ViewContext(v)).any()
    assert list(named(other_node | {"dport": 30008}).row_names.service) == [""]
    assert list(named(other_node | {"dst": "10.1.0.5"}).row_names.service) == [""], "a pod is no node"


RANGE = {6: NamespaceView(6, ("pod",), sysctls={"ipv4/ip_local_port_range": "32768 60999"})}
LISTENER = row(
    state=tcp.LISTEN, inode=59, cookie=8, netns=6, src="10.1.0.6", sport=5432, dport=0, cgroup_id=2
)


def claiming(address: str, *ports: int) -> KubeService:
    """A Service of a tenant, with an address that its owner chose."""
    return KubeService("tenant", "evil", ("10.96.0.66", address), tuple(map(ServicePort, ports)), 1)


@pytest.mark.parametrize("listener", [(), (LISTENER,)])
@pytest.mark.parametrize("port", [30007, 40000])
def test_to_a_server_the_address_of_its_client_is_no_service(listener: tuple[Any, ...], port: int) -> None:
    """kube-proxy gives a masqueraded client any port from 1024 on, also that of a NodePort."""
    ends = () if listener else NAMES.endpoints
    service = replace_names(
        endpoints=ends,
        services=(*NAMES.services, claiming("10.2.0.9", 40000), claiming("192.0.2.1", 40000)),
    )
    for client in ("192.0.2.1", "10.2.0.9"):
        v = named(SERVER | {"dst": client, "dport": port}, *listener, names=service, namespaces=RANGE)
        assert v.row_names.service[0] == ("" if listener else None), client


def test_a_slice_that_leads_to_a_client_does_not_hide_which_cluster_address_it_asked() -> None:
    ends = (*NAMES.endpoints, Endpoint("tenant/x", "10.1.0.5", 40000))
    names = replace_names(endpoints=ends, services=(*NAMES.services, KubeService("shop", "alone")))
    assert list(named(CLIENT, names=names).row_names.service) == ["shop/db"]
    both = replace(named(CLIENT, SERVER, names=names), other=np.array([1, 0]))
    assert list(both.row_names.service) == ["shop/db", "shop/db"]
    direct = CLIENT | {"dst": "10.1.0.6"}
    both = replace(named(direct, SERVER, names=names), other=np.array([1, 0]))
    assert list(both.row_names.service) == [None, None], "which end asked is not known"
    headless = CLIENT | {"dst": "10.2.0.10", "dport": 80}
    assert list(named(headless, names=names).row_names.service) == [None]


def test_a_row_that_may_be_either_end_is_of_no_node_port_that_is_known() -> None:
    either = row(netns=6, src="10.1.0.6", dst="192.0.2.1", sport=8080, dport=30007, cgroup_id=2)
    assert list(named(either, namespaces=RANGE).row_names.service) == [None]
    assert list(named(either | {"sport": 40000}, namespaces=RANGE).row_names.service) == ["shop/db"]


def test_an_address_that_an_owner_chose_takes_no_name_from_a_pod() -> None:
    direct = row(netns=5, src="10.1.0.5", dst="10.1.0.6", sport=40000, dport=5432, cgroup_id=1)
    db = KubeService("shop", "db", (), (ServicePort(5432),))
    names = replace_names(services=(db, claiming("10.1.0.6", 5432)))
    assert list(named(direct, names=names).row_names.service) == ["shop/db"]
    asked = np.array([[*pack_address("10.1.0.6"), 5432]], np.uint64)
    v = replace(named(direct, names=names), asked=asked)
    assert list(v.row_names.service) == ["shop/db"]
    elsewhere = np.array([pack_address("10.3.0.1")], np.uint64)
    assert list(replace(v, peer=elsewhere).row_names.service) == [None], "what it asked is not what it got"


def test_an_address_that_an_owner_chose_is_its_service_s_where_an_entry_leads_there() -> None:
    client = row(netns=5, src="10.1.0.5", dst="203.0.113.7", sport=40000, dport=443, cgroup_id=1)
    names = replace_names(
        services=(claiming("203.0.113.7", 443),),
        endpoints=(Endpoint("tenant/evil", "10.2.0.30", 8443, pod="tenant/e-0", node="n2"),),
    )
    v = named(client, names=names)
    assert list(v.row_names.service) == [None]
    asked = np.array([[*pack_address("203.0.113.7"), 443]], np.uint64)
    assert list(replace(v, asked=asked).row_names.service) == [None], "it may have begun before that Service"
    for address, service in (("10.2.0.30", "tenant/evil"), ("10.2.0.31", None)):
        peer = np.array([pack_address(address)], np.uint64)
        assert list(replace(v, asked=asked, peer=peer).row_names.service) == [service]


def test_a_slice_gives_a_headless_name_within_its_own_namespace_only() -> None:
    headless = KubeService("tenant", "h", (), (ServicePort(9000),))
    for address, port in (("10.1.0.6", 9000), ("192.0.2.1", 10250), ("10.2.0.9", 9000)):
        client = row(netns=5, src="10.1.0.5", dst=address, sport=40000, dport=port, cgroup_id=1)
        ends = (*NAMES.endpoints, Endpoint("tenant/h", address, port))
        names = replace_names(services=(*NAMES.services, headless), endpoints=ends)
        assert list(named(client, names=names).row_names.service) == [None]


def test_a_pod_that_enters_the_node_s_namespace_gives_its_name_to_nobody_there() -> None:
    at = {"netns": 1, "src": "192.0.2.1", "dst": "203.0.113.9"}
    sshd = row(**at, sport=22, dport=50000, cgroup_id=4, inode=70, cookie=1)
    root = row(**at, sport=22, dport=50002, cgroup_id=9, inode=72, cookie=4)
    entered = row(**at, sport=41000, dport=443, cgroup_id=1, inode=71, cookie=2)
    orphan = row(**at, sport=22, dport=50001, inode=0, cookie=3, cgroup_id=0)
    for other in (sshd, root):
        v = replace(view(other, entered, orphan, cgroup_paths=CGROUPS | {9: "/"}), names=NAMES)
        assert column(v, "pod") == [None, "shop/cart-7d9-x", None]


def test_a_name_that_ends_a_line_makes_no_row_of_its_own() -> None:
    """From a file that kubectl printed, say: whatever has it, a row is a line."""
    wild = "shop/db-0\nFIN_WAIT2  0  0  forged row"
    ends = (Endpoint("shop/x", "10.2.0.77", 1, pod=wild),)
    v = named(CLIENT | {"dst": "10.2.0.77"}, names=replace_names(endpoints=ends))
    said = "".join(text_lines(Cells(v, np.arange(1)), ("dst", "peer_pod", "service")))
    assert len(said.splitlines()) == 2
    assert "shop/db-0\\nFIN_WAIT2" in said


def test_dual_stack() -> None:
    v6 = CLIENT | {"family": 10, "dst": "fd01::7"}
    assert column(named(v6), "service") == ["shop/db"]
    assert column(named(CLIENT | {"family": 10, "src": "fd00::6", "cgroup_id": 0, "inode": 0}), "pod") == [
        "shop/db-0"
    ]


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("pod = shop/cart-7d9-x", [0]),
        ("pod = cart-*", [0]),
        (f"pod = {CART}", [0]),
        ("pod != shop/cart-7d9-x", [1, 2]),
        ("workload = shop/cart", [0]),
        ("workload = cart", [0]),
        ("workload = other/cart", []),
        ("workload != shop/cart", [1, 2]),
        ("namespace = shop", [0, 1]),
        ("namespace = kube-*", []),
        ("service = shop/db", [0]),
        ("service = db", [0]),
        ("service != shop/db", [2]),  # of the server's row it is not known
        ("label = app=cart", [0]),
        ("label = tier", [0]),
        ("label = app=*", [0]),
        ("label app=cart", [0]),
        ("label = app=web,app=cart,other", [0]),
        ('label = "app=cart"', [0]),
        ("label = app=cart and namespace = shop", [0]),
        ("label != tier", [1, 2]),
        ("container = app", [0]),
    ],
)
def test_a_filter_by_names(words: str, rows: list[int]) -> None:
    sshd = row(src="192.0.2.1", dst="198.51.100.1", cgroup_id=4, cookie=16, netns=1)
    v = named(CLIENT, SERVER, sshd)
    asked = parse_filter([words])
    mask = asked.mask(v.sockets, ViewContext(v))
    assert np.flatnonzero(mask).tolist() == rows


@pytest.mark.parametrize(
    "words", ["workload = shop/cart", "service = shop/db", "namespace = shop", "label = app"]
)
def test_without_names_a_filter_by_them_cannot_be_answered(words: str) -> None:
    v = named(CLIENT, names=NO_NAMES)
    with pytest.raises((FilterError, ValueError), match="names"):
        parse_filter([words]).mask(v.sockets, ViewContext(v))
    assert parse_filter([f"pod = {CART}"]).mask(v.sockets, ViewContext(v)).tolist() == [True]


def test_json_says_it_where_names_are_known() -> None:
    v = named(CLIENT, SERVER)
    first, second = (json.loads(text) for text in connections(v, np.arange(2)))
    assert first["kubernetes"]["workload_kind"] == "Deployment"
    assert first["kubernetes"]["service"] == "shop/db"
    assert second["kubernetes"]["service"] is None
    assert [one["kubernetes"] for one in objects(v, np.arange(2))] == [
        first["kubernetes"],
        second["kubernetes"],
    ]
    plain = named(CLIENT, names=NO_NAMES)
    assert "kubernetes" not in json.loads(connections(plain, np.arange(1))[0])
    document = {"apiVersion": "finwait/v1", "kind": "ConnectionList", "items": [], "gaps": []}
    assert mistakes(document) == []


def test_a_report_names_the_pod() -> None:
    from finwait.report import text
    from finwait.report.style import Style

    v = named(CLIENT | {"snd_wnd": 10}, holders={50: [7]})
    found = engine.diagnose(v, catalogue.rules())
    said = "".join(text.diagnosis(v, found, (), "n1", style=Style(100, False)))
    assert "shop/cart-7d9-x" in said


def test_only_what_concerns_some_addresses_is_handed_on() -> None:
    part = NAMES.about(["10.96.0.7", "10.1.0.6"])
    assert [service.path for service in part.services] == ["shop/db"]
    assert len(part.pods) == 3
    assert len(part.endpoints) == 1
    assert {s.path for s in NAMES.about(["192.0.2.1"]).services} == {"shop/db"}  # a NodePort of this node
    again = merged([NAMES.about(["10.96.0.7"]), NAMES.about(["10.96.0.8"])])
    assert {service.path for service in again.services} == {"shop/db", "shop/queue"}


def test_a_new_pod_of_a_name_takes_the_place_of_one_that_is_gone() -> None:
    old = Pod("a", "shop", "db-0", addresses=("10.1.0.6",), gone_s=5.0)
    new = Pod("b", "shop", "db-0", addresses=("10.1.0.6",))
    names = ClusterNames(pods=(new, old), as_of={"pods": 1.0})
    found = names.pod_called("shop/db-0")
    assert found is not None
    assert found.uid == "b"
    assert names.pod_at("10.1.0.6") == new
    assert names.pod("a") == old
