"""Fuzz what an API server of Kubernetes answers: lists, events, groups, and lines in pieces; by the first byte."""

from __future__ import annotations

import json

from tests.kube import cluster

from finwait.errors import DecodeError
from finwait.kube.names import NameKeeper
from finwait.kube.objects import RESOURCES, EventLines, decode_event, decode_list, discovery_version

_NOW = 1_800_000_000.0
_KINDS = ("PodList", "ServiceList", "EndpointSliceList", "NamespaceList")


def seeds() -> list[bytes]:
    items = [cluster.pod(), cluster.service(), cluster.endpoint_slice(version="v1beta1"), cluster.namespace()]
    found = []
    for number, (kind, item) in enumerate(zip(_KINDS, items, strict=True)):
        item["metadata"] |= {"uid": f"u{number}", "resourceVersion": "7"}
        whole = {"kind": kind, "metadata": {"resourceVersion": "9"}, "items": [item]}
        found.append(b"%d" % number + json.dumps(whole).encode())
        lines = [
            {"type": "ADDED", "object": item},
            {"type": "BOOKMARK", "object": item},
            {"type": "DELETED", "object": item},
        ]
        lines.append({"type": "ERROR", "object": {"code": 410}})
        found.append(b"%d" % (4 + number) + b"\n".join(json.dumps(line).encode() for line in lines) + b"\n")
    found.append(b"8" + json.dumps({"versions": [{"version": "v1"}]}).encode())
    return found


def one_input(data: bytes) -> None:
    """Take ``data`` as a list, as the lines of a watch, or as a group."""
    choice, rest = data[0] % 9 if data else 0, data[1:]
    resource = RESOURCES[choice % 4]
    keeper = NameKeeper("node-a")
    try:
        if choice == 8:
            assert discovery_version(rest) in ("v1", "v1beta1", "")
        elif choice < 4:
            keeper.listed(resource, decode_list(resource, rest), _NOW)
        else:
            lines = EventLines(most=4096)
            for k in range(0, len(rest), 64):
                for line in lines.feed(rest[k : k + 64]):
                    keeper.happened(resource, decode_event(resource, line), _NOW)
    except DecodeError:
        pass
    names = keeper.names(_NOW)
    for pod in names.pods:
        assert names.pod(pod.uid) is not None
    for endpoint in names.endpoints:
        names.pod_at(endpoint.address)
        assert endpoint.protocol != "TCP" or names.services_behind(endpoint.address, endpoint.port)
    keeper.gaps()
