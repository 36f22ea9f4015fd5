"""Names that a cluster gives to processes and addresses: pods, their workloads, and Services. Values only.

A process belongs to a pod by the uid in its cgroup's path, an address by what the API server says of it. A pod in its
node's network (``hostNetwork``) shares its address with the node, and so has a name by cgroup only. Static pods have
two uids: the API server's, and the hash of their manifest, by which the kubelet names their cgroup.

What follows the API server is `finwait.kube`; what is joined with connections is `finwait.attribution.named`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from itertools import islice
from typing import Annotated, Final, Literal, TypeVar

import msgspec

__all__ = [
    "JOINED_FROM",
    "KUBE_PARTS_MOST",
    "NAME",
    "NO_NAMES",
    "TEXT_MOST",
    "UID",
    "ClusterEvent",
    "ClusterNames",
    "Endpoint",
    "EventReason",
    "KubeService",
    "Pod",
    "ServicePort",
    "merged",
]

KUBE_PARTS_MOST: Final = 1000
"""Labels, addresses, containers or ports of one object that are kept."""
TEXT_MOST: Final = 512
"""Characters of a text that is kept."""
NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:~-]{0,252})", re.ASCII)
"""Of objects and namespaces: no slash, which is ours, and nothing that does not print."""
UID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
KubeText = Annotated[str, msgspec.Meta(max_length=TEXT_MOST)]
"""A name, address, id or label: the longest that Kubernetes allows is the key of a label, 317 characters."""


class Pod(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A pod, and what it is part of."""

    uid: KubeText
    """As the API server spells it."""
    namespace: KubeText
    name: KubeText
    node: KubeText = ""
    kind: KubeText = ""
    """What its workload is: ``Deployment``, ``StatefulSet``, ``DaemonSet``, ``Job``, ``CronJob`` or another kind;
    empty for a pod that nothing owns."""
    owner: KubeText = ""
    """The name of that."""
    owner_uid: KubeText = ""
    """The uid of that; empty for a Deployment and a CronJob, whose pods name what is between only."""
    cgroup_uid: KubeText = ""
    """The uid in its cgroup's path, where it is another: of static pods."""
    host_network: bool = False
    addresses: Annotated[tuple[KubeText, ...], msgspec.Meta(max_length=KUBE_PARTS_MOST)] = ()
    """Its addresses as the API server writes them; of a ``hostNetwork`` pod those of its node."""
    containers: Annotated[dict[KubeText, KubeText], msgspec.Meta(max_length=KUBE_PARTS_MOST)] = {}
    """Id of a container, without its runtime's name → its name."""
    labels: Annotated[dict[KubeText, KubeText], msgspec.Meta(max_length=KUBE_PARTS_MOST)] = {}
    excluded: bool = False
    """The annotation ``finwait.io/exclude`` of the pod or of its namespace says that a policy leaves it alone."""
    gone_s: float = 0.0
    """When it was deleted, in seconds since 1970; 0 while it is there."""

    @property
    def workload(self) -> str:
        """``NAMESPACE/NAME`` of what owns it, else of the pod itself."""
        return f"{self.namespace}/{self.owner or self.name}"

    @property
    def path(self) -> str:
        """``NAMESPACE/NAME``."""
        return f"{self.namespace}/{self.name}"


class ServicePort(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A port of a Service."""

    port: int
    node_port: int = 0
    """On which every node answers for it as well; 0 for none."""
    protocol: KubeText = "TCP"
    name: KubeText = ""


class KubeService(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A Service."""

    namespace: KubeText
    name: KubeText
    addresses: Annotated[tuple[KubeText, ...], msgspec.Meta(max_length=KUBE_PARTS_MOST)] = ()
    """Its cluster addresses, external ones, and those of its load balancer; none of a headless one."""
    ports: Annotated[tuple[ServicePort, ...], msgspec.Meta(max_length=KUBE_PARTS_MOST)] = ()
    assigned: int = 0
    """How many of its addresses, the first ones, the cluster gave it; who makes a Service chooses the others."""

    @property
    def path(self) -> str:
        """``NAMESPACE/NAME``."""
        return f"{self.namespace}/{self.name}"


class Endpoint(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One address and port to which a Service leads."""

    service: KubeText
    """``NAMESPACE/NAME`` of the Service."""
    address: KubeText
    port: int
    protocol: KubeText = "TCP"
    pod: KubeText = ""
    """``NAMESPACE/NAME`` of the pod that has it; empty where it is none."""
    node: KubeText = ""
    ready: bool = True


_NOBODY: Final[AbstractSet[str]] = frozenset()
_Key = TypeVar("_Key")


def _gathered(pairs: Iterable[tuple[_Key, str]]) -> dict[_Key, set[str]]:
    """Return the paths of each key."""
    paths: dict[_Key, set[str]] = {}
    for key, path in pairs:
        paths.setdefault(key, set()).add(path)
    return paths


def _two_of(paths: AbstractSet[str], others: AbstractSet[str]) -> list[str]:
    """Return what is in both, two of it at most, for no more than the smaller of them costs."""
    few, many = sorted((paths, others), key=len)
    return list(islice((path for path in few if path in many), 2))


def _single(paths: Collection[str]) -> str | None:
    """Return the only one of some paths; None for none or several."""
    return next(iter(paths)) if len(paths) == 1 else None


EventReason = Literal["ConnectionsNotClosing", "ConnectionsCleared"]


class ClusterEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """News about a workload."""

    news: EventReason
    """What Kubernetes calls its reason."""
    namespace: KubeText
    kind: KubeText
    """``Deployment`` and the like; ``Pod`` for a pod that nothing owns."""
    name: KubeText
    uid: KubeText = ""
    """Of the workload; empty where it is not known. `kubectl describe` shows Events with the uid only."""
    rule: KubeText
    """Of the diagnosis; news of another rule is another Event."""
    message: Annotated[str, msgspec.Meta(max_length=4096)]


class ClusterNames(msgspec.Struct, frozen=True, dict=True, omit_defaults=True):
    """Everything with a name, as of one moment."""

    node: str = ""
    """The node that this machine is; its pods are all here, of other nodes only those behind Services."""
    pods: tuple[Pod, ...] = ()
    services: tuple[KubeService, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    node_addresses: tuple[str, ...] = ()
    """Addresses of this node, at which NodePorts answer."""
    as_of: dict[str, float] = {}
    """What was listed (``pods``, ``services``, ``endpointslices``, ``namespaces``) → when that was known to be right,
    in seconds since 1970. What is missing here was never listed; without ``namespaces`` no namespace's
    ``finwait.io/exclude`` is known."""

    @cached_property
    def _by_uid(self) -> dict[str, Pod]:
        # Anybody may write an annotation. It never takes the name of a pod away, and two pods with one hash are one
        # that is not known; the object of a static pod that was made anew is still that pod.
        static: dict[str, Pod] = {}
        taken: set[str] = set()
        for pod in sorted(
            (pod for pod in self.pods if pod.cgroup_uid), key=lambda pod: (pod.gone_s > 0, -pod.gone_s)
        ):
            first = static.setdefault(pod.cgroup_uid, pod)
            if first.path != pod.path and (first.gone_s > 0) == (pod.gone_s > 0):
                taken.add(pod.cgroup_uid)
        named = {uid: pod for uid, pod in static.items() if uid not in taken}
        return named | {pod.uid: pod for pod in self.pods}

    @cached_property
    def _by_path(self) -> dict[str, Pod]:
        return {pod.path: pod for pod in sorted(self.pods, key=lambda pod: pod.gone_s == 0)}

    @cached_property
    def _by_address(self) -> dict[str, Pod | str]:
        """Address → a pod of this node, or the path of one elsewhere; of one that is gone while nobody else has it.

        An address of several is nobody's that is known: that of a node, of hosts without a pod (the API server).
        """
        owners: dict[str, Pod | str] = {}
        reached = [pod for pod in self.pods if not pod.host_network]
        for pod in sorted((pod for pod in reached if pod.gone_s), key=lambda pod: pod.gone_s):
            owners |= dict.fromkeys(pod.addresses, pod)
        present = {pod.path for pod in self.pods if not pod.gone_s}
        elsewhere: dict[str, str] = {}
        shared: set[str] = set()
        for endpoint in self.endpoints:
            if endpoint.pod in present:
                continue
            if elsewhere.setdefault(endpoint.address, endpoint.pod) != endpoint.pod:
                shared.add(endpoint.address)
        for address, path in elsewhere.items():
            gone = owners.get(address)
            if address in shared or (path and isinstance(gone, Pod) and gone.path != path):
                owners.pop(address, None)
            elif path:
                owners[address] = path
        for pod in reached:
            if not pod.gone_s:
                owners |= dict.fromkeys(pod.addresses, pod)
        for address in self.node_addresses:
            owners.pop(address, None)
        return owners

    # Who makes a Service can give it a thousand addresses and a thousand ports: both are kept, and never each address
    # with each port.

    @cached_property
    def _assigned(self) -> dict[str, set[str]]:
        """Cluster address → the paths of the Services that have it."""
        return _gathered((a, s.path) for s in self.services for a in s.addresses[: s.assigned])

    @cached_property
    def _chosen(self) -> dict[str, set[str]]:
        """Another address of Services → their paths: who makes one chooses these."""
        return _gathered((a, s.path) for s in self.services for a in s.addresses[s.assigned :])

    @cached_property
    def _at_port(self) -> dict[int, set[str]]:
        """TCP port → the paths of the Services that are asked there."""
        return _gathered((p.port, s.path) for s in self.services for p in s.ports if p.protocol == "TCP")

    @cached_property
    def _at_node_port(self) -> dict[int, set[str]]:
        """TCP port at which every node answers → the paths of the Services that are asked there."""
        ports = ((p, s.path) for s in self.services for p in s.ports)
        return _gathered((p.node_port, path) for p, path in ports if p.node_port and p.protocol == "TCP")

    @cached_property
    def node_ports(self) -> frozenset[int]:
        """TCP ports at which every node answers for a Service."""
        return frozenset(self._at_node_port)

    @cached_property
    def _behind(self) -> dict[tuple[str, int], tuple[str, ...]]:
        ends = (e for e in self.endpoints if e.protocol == "TCP")
        behind = _gathered(((e.address, e.port), e.service) for e in ends)
        return {place: tuple(sorted(paths)) for place, paths in behind.items()}

    @cached_property
    def _leading(self) -> dict[str, set[str]]:
        """Address → the paths of the Services that lead to it, at whatever port."""
        return _gathered((e.address, e.service) for e in self.endpoints)

    @cached_property
    def _spaces(self) -> dict[str, set[str]]:
        """Address to which Services lead → the namespaces of these Services."""
        return _gathered((e.address, e.service.partition("/")[0]) for e in self.endpoints)

    @cached_property
    def _headless(self) -> frozenset[str]:
        """Paths of the Services that have no address of their own."""
        return frozenset(service.path for service in self.services if not service.addresses)

    @cached_property
    def door_addresses(self) -> frozenset[str]:
        """Addresses at which Services are asked."""
        return frozenset((*self._assigned, *self._chosen, *(self.node_addresses if self.node_ports else ())))

    @cached_property
    def endpoint_addresses(self) -> frozenset[str]:
        """Addresses to which Services lead."""
        return frozenset(address for address, _ in self._behind)

    def pod(self, uid: str) -> Pod | None:
        """Return the pod that a cgroup's path names, also one that was deleted not long ago."""
        return self._by_uid.get(uid)

    def pod_called(self, path: str) -> Pod | None:
        """Return the pod of this node of a path; where a new one has the name of one that is gone, the new one."""
        return self._by_path.get(path)

    def pod_at(self, address: str) -> Pod | str | None:
        """Return who has an address: a pod of this node, the path of one elsewhere, or None where that is not known.

        Args:
            address: as `ipaddress` writes it.
        """
        return self._by_address.get(address)

    def service_at(self, address: str, port: int) -> str | None:
        """Return the path of the Service that is asked at a place; empty for none, None where it is not known.

        It is not known where several say that it is theirs, or only what the owner of a Service chose says so.
        A cluster address comes first, as with kube-proxy.
        """
        at_port = self._at_port.get(port, _NOBODY)
        if paths := _two_of(self._assigned.get(address, _NOBODY), at_port):
            return _single(paths)
        if address in self.node_addresses and port in self._at_node_port:
            return _single(self._at_node_port[port])
        return None if _two_of(self._chosen.get(address, _NOBODY), at_port) else ""

    def claimed_at(self, address: str, port: int) -> str:
        """Return the path of the only Service whose owner chose a place that is nobody else's; empty for none.

        That alone does not make a connection one of that Service: its packets must be seen to reach it.
        """
        if self.pod_at(address) is not None or address in self._leading:
            return ""
        paths = _two_of(self._chosen.get(address, _NOBODY), self._at_port.get(port, _NOBODY))
        return _single(paths) or ""

    def leads_to(self, service: str, address: str) -> bool:
        """Return whether a Service leads to an address that is not this node's: there anybody may let one lead."""
        return address not in self.node_addresses and service in self._leading.get(address, _NOBODY)

    def services_behind(self, address: str, port: int) -> tuple[str, ...]:
        """Return the paths of the Services that lead to a place."""
        return self._behind.get((address, port), ())

    def headless_at(self, address: str, port: int) -> str | None:
        """Return the path of the headless Service that leads to a place: all that is seen of one.

        Empty where no Service leads there; None where it is not known: another one leads there as well, or one of
        another namespace than the address is, to which anybody may let a Service lead.
        """
        behind = self.services_behind(address, port)
        if len(behind) != 1 or behind[0] not in self._headless:
            return None if behind else ""
        holder, space = self.pod_at(address), behind[0].partition("/")[0]
        owner = holder.path if isinstance(holder, Pod) else holder or ""
        foreign = owner.partition("/")[0] not in ("", space) or self._spaces[address] != {space}
        return None if foreign or address in self.node_addresses else behind[0]

    def about(self, addresses: Collection[str]) -> ClusterNames:
        """Return all pods of the node, and what else concerns some addresses: a cluster may have many Services.

        Args:
            addresses: as `ipaddress` writes them.
        """
        asked = set(addresses)
        led = {e.service for e in self.endpoints if e.address in asked}
        return msgspec.structs.replace(
            self,
            services=tuple(
                service
                for service in self.services
                if service.path in led
                or asked & set(service.addresses)
                or any(port.node_port for port in service.ports)  # at an address of any node
            ),
            endpoints=tuple(e for e in self.endpoints if e.address in asked),
        )

    def taking_over(self, earlier: ClusterNames) -> ClusterNames:
        """Return itself, with what was joined already in earlier names from the very same parts."""
        for joined, parts in JOINED_FROM.items():
            if joined in earlier.__dict__ and all(getattr(self, p) is getattr(earlier, p) for p in parts):
                self.__dict__[joined] = earlier.__dict__[joined]
        return self


JOINED_FROM: Final[Mapping[str, tuple[str, ...]]] = {
    "_by_uid": ("pods",),
    "_by_path": ("pods",),
    "_by_address": ("pods", "endpoints", "node_addresses"),
    "_assigned": ("services",),
    "_chosen": ("services",),
    "_at_port": ("services",),
    "_at_node_port": ("services",),
    "_headless": ("services",),
    "node_ports": ("services",),
    "_behind": ("endpoints",),
    "_leading": ("endpoints",),
    "_spaces": ("endpoints",),
    "door_addresses": ("services", "node_addresses"),
    "endpoint_addresses": ("endpoints",),
}
"""What `ClusterNames` joins when it is asked for → the fields that it is joined from."""

NO_NAMES: Final = ClusterNames()
"""Nothing is known of a cluster."""


def merged(parts: Sequence[ClusterNames]) -> ClusterNames:
    """Return what several answers about one cluster say together (`ClusterNames.about` of different addresses)."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0] if parts else NO_NAMES
    return msgspec.structs.replace(
        first,
        pods=tuple({pod.uid: pod for part in parts for pod in part.pods}.values()),
        services=tuple({service.path: service for part in parts for service in part.services}.values()),
        endpoints=tuple({end: None for part in parts for end in part.endpoints}),
    )
