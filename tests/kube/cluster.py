"""Objects as an API server stores them, and what their names are, worked out another way than finwait does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from finwait.uapi.cluster import ClusterNames

NODE = "node-a"


def meta(namespace: str, name: str, **more: Any) -> dict[str, Any]:
    return {"namespace": namespace, "name": name, **more}


def pod(
    name: str = "cart-7d9f-x2x",
    *,
    namespace: str = "shop",
    node: str = NODE,
    ip: str = "10.244.0.7",
    owner: tuple[str, str] | None = ("ReplicaSet", "cart-7d9f"),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    phase: str = "Running",
    padding: str = "",
) -> dict[str, Any]:
    owners = None
    if owner is not None:
        owners = [{"apiVersion": "x/v1", "kind": owner[0], "name": owner[1], "uid": "o", "controller": True}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta(
            namespace,
            name,
            labels=dict(labels if labels is not None else {"app": "cart", "pod-template-hash": "7d9f"}),
            annotations={"padding": padding, **(annotations or {})},
            ownerReferences=owners,
        ),
        "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "image": "x", "env": [{"name": "E", "value": padding}]}],
        },
        "status": {
            "phase": phase,
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "hostIP": "192.0.2.10",
            "containerStatuses": [
                {
                    "name": "c",
                    "containerID": f"containerd://{name}0c",
                    "ready": True,
                    "image": "x",
                    "imageID": "x",
                    "restartCount": 0,
                }
            ],
        },
    }


def service(
    name: str = "db", *, namespace: str = "shop", ip: str = "10.96.0.10", port: int = 5432
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(namespace, name),
        "spec": {
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ports": [{"name": "sql", "port": port, "protocol": "TCP", "targetPort": "sql"}],
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(
    name: str = "db-abc12",
    addresses: Iterable[tuple[str, str]] = (("10.244.1.4", "db-0"),),
    *,
    namespace: str = "shop",
    of: str = "db",
    port: int = 5432,
    node: str = "node-b",
    version: str = "v1",
) -> dict[str, Any]:
    place = {"nodeName": node} if version == "v1" else {"topology": {"kubernetes.io/hostname": node}}
    return {
        "apiVersion": f"discovery.k8s.io/{version}",
        "kind": "EndpointSlice",
        "metadata": meta(namespace, name, labels={"kubernetes.io/service-name": of}),
        "addressType": "IPv4",
        "ports": [{"name": "sql", "port": port, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": True},
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod_name},
                **place,
            }
            for address, pod_name in addresses
        ],
    }


def namespace(name: str = "shop", **annotations: str) -> dict[str, Any]:
    noted = {key.replace("_", "/"): value for key, value in annotations.items()}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "annotations": noted},
    }


Told = dict[str, set[tuple[Any, ...]]]


def told(names: ClusterNames) -> Told:
    """Return what names say, in the terms of `expected`."""
    return {
        "pods": {
            (pod.namespace, pod.name, pod.uid, pod.addresses, pod.workload, pod.excluded)
            for pod in names.pods
            if not pod.gone_s
        },
        "services": {(s.namespace, s.name, s.addresses, s.ports[0].port) for s in names.services},
        "endpoints": {(e.service, e.address, e.port, e.pod, e.node) for e in names.endpoints},
    }


def expected(objects: Mapping[str, Iterable[dict[str, Any]]], node: str = NODE) -> Told:
    """Return what the names of stored objects are: of those that this module makes."""
    excluded = {
        space["metadata"]["name"]
        for space in objects["namespaces"]
        if space["metadata"]["annotations"].get("finwait.io/exclude") == "true"
    }
    pods, services, endpoints = set(), set(), set()
    for item in objects["pods"]:
        about = item["metadata"]
        if item["spec"]["nodeName"] == node:
            owners = about.get("ownerReferences")
            owner = owners[0]["name"] if owners else about["name"]
            if owners and owners[0]["kind"] == "ReplicaSet":
                owner = owner.rpartition("-")[0]
            pods.add(
                (
                    about["namespace"],
                    about["name"],
                    about["uid"],
                    (item["status"]["podIP"],) if item["status"]["phase"] == "Running" else (),
                    f"{about['namespace']}/{owner}",
                    about["namespace"] in excluded
                    or about["annotations"].get("finwait.io/exclude") == "true",
                )
            )
    for item in objects["services"]:
        about = item["metadata"]
        services.add(
            (
                about["namespace"],
                about["name"],
                (item["spec"]["clusterIP"],),
                item["spec"]["ports"][0]["port"],
            )
        )
    for item in objects["endpointslices"]:
        about = item["metadata"]
        for end in item["endpoints"]:
            endpoints.add(
                (
                    f"{about['namespace']}/{about['labels']['kubernetes.io/service-name']}",
                    end["addresses"][0],
                    item["ports"][0]["port"],
                    f"{about['namespace']}/{end['targetRef']['name']}",
                    end.get("nodeName") or end["topology"]["kubernetes.io/hostname"],
                )
            )
    return {"pods": pods, "services": services, "endpoints": endpoints}
