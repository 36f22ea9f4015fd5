"""What a Kubernetes API server answers → values, of the fields that names need and of no other.

Mirrors core/v1 (Pod, Service, Namespace), discovery.k8s.io/v1 and v1beta1 (EndpointSlice), and what surrounds them:
lists, watch events, Status, APIGroup. The objects of a list are read one by one, so that the whole of it never exists
twice, and one that cannot be read costs its own name only.

The surprise: a list is believed only if it says that it is one. An empty JSON object would otherwise read as "there is
nothing any more", and whatever answers with status 200 in place of an API server could empty all names.

Nobody checks what a pod says of its owner, its annotations, or to what an EndpointSlice leads, so that anybody who may
make one can write anything there. What has not the shape of its field is left out, and costs nobody else a name.

Whose pod it is comes from its owner, without a right to read owners: a ReplicaSet of a Deployment is named for it and
for the label ``pod-template-hash``; a Job of a CronJob ends in the minute at which it was due, since 1970, and its pods
are made then. (Before Kubernetes 1.21 it ended in seconds: those are Jobs here.) A static pod is owned by its Node,
which is no workload; the annotation that names its cgroup counts for such pods only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from ipaddress import ip_address
from itertools import islice
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from finwait.errors import DecodeError
from finwait.uapi.cluster import (
    KUBE_PARTS_MOST,
    NAME,
    TEXT_MOST,
    UID,
    Endpoint,
    KubeService,
    Pod,
    ServicePort,
)

__all__ = [
    "EVENT_MOST",
    "RESOURCES",
    "EndpointSlice",
    "EventLines",
    "KubeList",
    "KubeNamespace",
    "KubeObject",
    "Resource",
    "WatchEvent",
    "decode_event",
    "decode_list",
    "discovery_version",
]

Resource = Literal["pods", "services", "endpointslices", "namespaces"]
RESOURCES: Final[tuple[Resource, ...]] = ("pods", "services", "endpointslices", "namespaces")

EVENT_MOST: Final = 8 << 20
"""Bytes in the line of an event. etcd refuses objects above 1.5 MB unless it is told otherwise."""
_SLICE_MOST: Final = 20_000
"""Endpoints of one slice that are spelled out. The API allows 1,000 addresses and 100 ports."""
_VERSION_MOST: Final = 128
_Decoded = TypeVar("_Decoded")
_PORT_MOST: Final = 65_535
_Port = Annotated[int, msgspec.Meta(ge=0, le=_PORT_MOST)]


class KubeNamespace(msgspec.Struct, frozen=True, gc=False):
    """A namespace, and whether its annotation ``finwait.io/exclude`` keeps policies off its pods."""

    name: str
    excluded: bool = False


class EndpointSlice(msgspec.Struct, frozen=True, gc=False):
    """Where a Service leads, or a part of that."""

    endpoints: tuple[Endpoint, ...] = ()
    total: int = 0
    """How many endpoints it has; more than `endpoints` where those are too many to be spelled out."""


class KubeObject(msgspec.Struct, frozen=True, gc=False):
    """An object, as far as names need it."""

    uid: str
    value: Pod | KubeService | EndpointSlice | KubeNamespace
    version: str = ""
    """The ``resourceVersion`` of this state of it."""
    host: tuple[str, ...] = ()
    """Of a pod the addresses of its node."""
    namespace: str = ""
    """Empty for a namespace itself."""


class KubeList(msgspec.Struct, frozen=True):
    """All objects of a resource, as of one version."""

    objects: tuple[KubeObject, ...]
    version: str
    """The ``resourceVersion`` from which on to watch."""
    unread: int = 0
    """How many objects could not be read."""


class WatchEvent(msgspec.Struct, frozen=True):
    """What became of an object, or of the watch."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: KubeObject | None = None
    """Of the first three types."""
    version: str = ""
    """From which on to watch next; empty for an error."""
    code: int = 0
    """The HTTP status that an error stands for; 410 means that the history was compacted."""


class _Wanted(msgspec.Struct, gc=False):
    """The fields of an object that are wanted; no cycle can come of JSON, so that there is nothing to collect."""


class _Owner(_Wanted):
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class _Notes(_Wanted):
    """The annotations that count; others can be 256 kB."""

    exclude: str | None = msgspec.field(default=None, name="finwait.io/exclude")
    config_hash: str | None = msgspec.field(default=None, name="kubernetes.io/config.hash")
    config_mirror: str | None = msgspec.field(default=None, name="kubernetes.io/config.mirror")
    """Of the object that stands for a static pod: the hash as well."""


class _Meta(_Wanted, rename="camel"):
    name: str
    uid: str
    namespace: str = ""
    resource_version: str = ""
    annotations: _Notes | None = None


class _PodMeta(_Meta, rename="camel"):
    creation_timestamp: str | None = None
    labels: dict[str, str] | None = None
    owner_references: list[_Owner] | None = None


class _Address(_Wanted):
    ip: str = ""


class _PodSpec(_Wanted, rename="camel"):
    node_name: str = ""
    host_network: bool | None = None


class _Terminated(_Wanted):
    id: str = msgspec.field(default="", name="containerID")


class _ContainerState(_Wanted):
    terminated: _Terminated | None = None


class _ContainerStatus(_Wanted, rename="camel"):
    name: str
    id: str = msgspec.field(default="", name="containerID")
    last_state: _ContainerState | None = None


_Statuses = list[_ContainerStatus] | None


class _PodStatus(_Wanted, rename="camel"):
    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: list[_Address] | None = msgspec.field(default=None, name="podIPs")
    host_ip: str = msgspec.field(default="", name="hostIP")
    host_ips: list[_Address] | None = msgspec.field(default=None, name="hostIPs")
    container_statuses: _Statuses = None
    init_container_statuses: _Statuses = None
    ephemeral_container_statuses: _Statuses = None


class _Pod(_Wanted):
    metadata: _PodMeta
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _ServicePort(_Wanted, rename="camel"):
    port: _Port
    node_port: _Port | None = None
    protocol: str = "TCP"
    name: str = ""


class _ServiceSpec(_Wanted, rename="camel"):
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    ports: list[_ServicePort] | None = None


class _LoadBalancer(_Wanted):
    ingress: list[_Address] | None = None


class _ServiceStatus(_Wanted, rename="camel"):
    load_balancer: _LoadBalancer | None = None


class _Service(_Wanted):
    metadata: _Meta
    spec: _ServiceSpec = msgspec.field(default_factory=_ServiceSpec)
    status: _ServiceStatus | None = None


class _SliceLabels(_Wanted):
    service: str = msgspec.field(default="", name="kubernetes.io/service-name")


class _SliceMeta(_Meta, rename="camel"):
    labels: _SliceLabels | None = None


class _Topology(_Wanted):
    """Of v1beta1, in place of ``nodeName``."""

    node: str = msgspec.field(default="", name="kubernetes.io/hostname")


class _Target(_Wanted):
    kind: str = ""
    namespace: str = ""
    name: str = ""


class _Conditions(_Wanted):
    ready: bool | None = None


class _Endpoint(_Wanted, rename="camel"):
    addresses: list[str] | None = None
    conditions: _Conditions | None = None
    target_ref: _Target | None = None
    node_name: str | None = None
    topology: _Topology | None = None


class _SlicePort(_Wanted):
    port: int | None = None
    """The API server does not check it."""
    protocol: str | None = None


class _Slice(_Wanted, rename="camel"):
    metadata: _SliceMeta
    address_type: str = ""
    endpoints: list[_Endpoint] | None = None
    ports: list[_SlicePort] | None = None


class _Namespace(_Wanted):
    metadata: _Meta


class _ListMeta(_Wanted, rename="camel"):
    resource_version: str
    more: str | None = msgspec.field(default=None, name="continue")


class _List(_Wanted):
    kind: str
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(_Wanted):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class _BookmarkMeta(_Wanted, rename="camel"):
    resource_version: str


class _Bookmark(_Wanted):
    metadata: _BookmarkMeta


class _Status(_Wanted):
    code: int = 0
    slug: str = msgspec.field(default="", name="reason")
    """CamelCase, for programs: ``Expired``, ``Forbidden``."""


class _GroupVersion(_Wanted):
    version: str


class _Group(_Wanted):
    versions: list[_GroupVersion]


_KINDS: Final[dict[str, str]] = {
    "pods": "PodList",
    "services": "ServiceList",
    "endpointslices": "EndpointSliceList",
    "namespaces": "NamespaceList",
}
_OBJECTS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    "pods": msgspec.json.Decoder(_Pod),
    "services": msgspec.json.Decoder(_Service),
    "endpointslices": msgspec.json.Decoder(_Slice),
    "namespaces": msgspec.json.Decoder(_Namespace),
}
_LIST: Final = msgspec.json.Decoder(_List)
_EVENT: Final = msgspec.json.Decoder(_Event)
_BOOKMARK: Final = msgspec.json.Decoder(_Bookmark)
_STATUS: Final = msgspec.json.Decoder(_Status)
_GROUP: Final = msgspec.json.Decoder(_Group)

_PLAIN_IPV4: Final = re.compile(
    r"(?:(?:[1-9]?\d|1\d\d|2[0-4]\d|25[0-5])\.){3}(?:[1-9]?\d|1\d\d|2[0-4]\d|25[0-5])", re.ASCII
)
_CRON_END: Final = re.compile(r"(.+)-(\d{8})", re.ASCII | re.DOTALL)
_CRON_LATE_S: Final = 86_400.0
"""A pod of a CronJob is made so long after its minute at most: it may be tried again, or the controller be away."""
_KIND: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,127}", re.ASCII)
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,255}", re.ASCII)
"""Of a container."""
_HASH: Final = re.compile(r"[0-9a-f-]{1,64}", re.ASCII)
_PROTOCOLS: Final = frozenset({"TCP", "UDP", "SCTP"})
_GONE: Final = frozenset({"Expired", "Gone"})


def _decoded(
    decoder: msgspec.json.Decoder[_Decoded], data: bytes | bytearray | msgspec.Raw, subject: str
) -> _Decoded:
    """Return what JSON says.

    Raises:
        DecodeError: it is no JSON, or lacks what it must have.
    """
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError) as error:
        raise DecodeError(subject, 0, bytes(memoryview(data)[:16]), str(error)[:200]) from None


def _shaped(shape: re.Pattern[str], text: str) -> str:
    """Return a text that has the shape of its field; empty for any other."""
    return text if shape.fullmatch(text) else ""


def _identity(meta: _Meta, subject: str, *, namespaced: bool = True) -> None:
    """Refuse an object without a name of the shape that the API server demands: it comes from no API server.

    Raises:
        DecodeError: it is such a one.
    """
    names = (meta.name, meta.namespace) if namespaced else (meta.name,)
    if not all(map(NAME.fullmatch, names)) or not UID.fullmatch(meta.uid):
        raise DecodeError(subject, 0, meta.name[:16].encode(), "a name that no object has")


def _checked(version: str, subject: str) -> str:
    """Return a ``resourceVersion``; it is sent back in a request.

    Raises:
        DecodeError: it is empty, or longer than any.
    """
    if not 0 < len(version) <= _VERSION_MOST:
        raise DecodeError(subject, 0, version[:16].encode(), "a resourceVersion that cannot be asked for")
    return version


def _addresses(texts: Sequence[str]) -> tuple[str, ...]:
    """Return addresses as `ipaddress` writes them, each once; what is none (``None``, a host name) is left out."""
    if len(texts) == 1 and _PLAIN_IPV4.fullmatch(texts[0]):
        return (texts[0],)
    written: dict[str, None] = {}
    for text in texts:
        if _PLAIN_IPV4.fullmatch(text):
            written[text] = None
        elif ":" in text:
            try:
                written[str(ip_address(text))] = None
            except ValueError:
                continue
    return tuple(written)


def _excludes(notes: _Notes | None) -> bool:
    """Whether the annotation is there; only ``false`` says that it does not count."""
    return notes is not None and notes.exclude is not None and notes.exclude.strip().lower() != "false"


def _made_s(meta: _PodMeta) -> float:
    """Return when a pod was made, in seconds since 1970; 0 where it does not say."""
    try:
        return datetime.fromisoformat(meta.creation_timestamp or "").timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _workload(owners: Iterable[_Owner], labels: dict[str, str], made_s: float) -> tuple[str, str, str]:
    """Return kind, name and uid of what a pod is part of; empty for nothing, and a uid that the pod does not say.

    Args:
        owners: as the pod names them.
        labels: of the pod.
        made_s: when it was made, in seconds since 1970.
    """
    owner = next((owner for owner in owners if owner.controller), None)
    if (
        owner is None
        or owner.kind == "Node"
        or not (_KIND.fullmatch(owner.kind) and NAME.fullmatch(owner.name))
    ):
        return "", "", ""
    if owner.kind == "ReplicaSet":
        end = f"-{labels.get('pod-template-hash', '')}"
        if len(end) > 1 and owner.name.endswith(end) and owner.name != end:
            return "Deployment", owner.name.removesuffix(end), ""
    # A person may name a Job with a date, which read as minutes is many years ago.
    cron = _CRON_END.fullmatch(owner.name) if owner.kind == "Job" else None
    if cron is not None and -60.0 <= made_s - 60.0 * int(cron[2]) <= _CRON_LATE_S:
        return "CronJob", cron[1], ""
    return owner.kind, owner.name, owner.uid if UID.fullmatch(owner.uid) else ""


def _containers(status: _PodStatus) -> dict[str, str]:
    """Return ids of containers, the one before the last restart too: it may have left connections behind."""
    named: dict[str, str] = {}
    everyone = (
        *(status.init_container_statuses or ()),
        *(status.container_statuses or ()),
        *(status.ephemeral_container_statuses or ()),
    )
    for container in everyone:
        before = container.last_state.terminated if container.last_state else None
        for text in (before.id if before else "", container.id):
            if number := _shaped(_ID, text.rpartition("://")[2]):
                named[number] = _shaped(NAME, container.name)
    return named


def _cgroup_uid(meta: _PodMeta) -> str:
    """Return the hash by which the kubelet names the cgroup of a static pod; empty for other pods."""
    notes = meta.annotations
    static = any(owner.controller and owner.kind == "Node" for owner in meta.owner_references or ())
    if not static or notes is None or notes.config_hash is None or notes.config_hash != notes.config_mirror:
        return ""
    return _shaped(_HASH, notes.config_hash)


def _pod_object(pod: _Pod) -> KubeObject:
    meta, spec, status = pod.metadata, pod.spec, pod.status
    _identity(meta, "a pod")
    kept = (item for item in (meta.labels or {}).items() if max(map(len, item)) <= TEXT_MOST)
    labels = dict(islice(kept, KUBE_PARTS_MOST))
    kind, owner, owner_uid = _workload(meta.owner_references or (), meta.labels or {}, _made_s(meta))
    # The address of a pod that has ended belongs to the next one that gets it.
    ended = status.phase in ("Succeeded", "Failed")
    own = () if ended else (status.pod_ip, *(address.ip for address in status.pod_ips or ()))
    value = Pod(
        uid=meta.uid,
        namespace=meta.namespace,
        name=meta.name,
        node=_shaped(NAME, spec.node_name),
        kind=kind,
        owner=owner,
        owner_uid=owner_uid,
        cgroup_uid=_cgroup_uid(meta),
        host_network=bool(spec.host_network),
        addresses=_addresses(own)[:KUBE_PARTS_MOST],
        containers=dict(islice(_containers(status).items(), KUBE_PARTS_MOST)),
        labels=labels,
        excluded=_excludes(meta.annotations),
    )
    host = _addresses((status.host_ip, *(address.ip for address in status.host_ips or ())))
    return KubeObject(meta.uid, value, meta.resource_version, host, meta.namespace)


def _service_object(service: _Service) -> KubeObject:
    meta, spec = service.metadata, service.spec
    _identity(meta, "a Service")
    balancer = service.status.load_balancer if service.status else None
    assigned = (spec.cluster_ip, *(spec.cluster_ips or ()))
    ingress = (balancer.ingress if balancer else None) or ()
    addresses = _addresses((*assigned, *(spec.external_ips or ()), *(place.ip for place in ingress)))
    every = (
        ServicePort(p.port, p.node_port or 0, p.protocol, _shaped(NAME, p.name))
        for p in spec.ports or ()
        if p.protocol in _PROTOCOLS
    )
    value = KubeService(
        meta.namespace,
        meta.name,
        addresses[:KUBE_PARTS_MOST],
        tuple(islice(every, KUBE_PARTS_MOST)),
        len(_addresses(assigned)),
    )
    return KubeObject(meta.uid, value, meta.resource_version, namespace=meta.namespace)


def _slice_object(part: _Slice) -> KubeObject:
    meta = part.metadata
    _identity(meta, "an EndpointSlice")
    name = _shaped(NAME, meta.labels.service) if meta.labels else ""
    # A slice of no Service leads nowhere that has a name; one of host names has no addresses; no port means any.
    ports = (
        [
            p
            for p in part.ports or ()
            if p.port is not None and 0 <= p.port <= _PORT_MOST and (p.protocol or "TCP") in _PROTOCOLS
        ]
        if name
        else []
    )
    reached = part.endpoints or [] if part.address_type != "FQDN" else []
    total = len(ports) * sum(len(endpoint.addresses or ()) for endpoint in reached)
    if not 0 < total <= _SLICE_MOST:
        return KubeObject(meta.uid, EndpointSlice((), total), meta.resource_version, namespace=meta.namespace)
    service = f"{meta.namespace}/{name}"
    endpoints = []
    for endpoint in reached:
        target = endpoint.target_ref
        pod = ""
        # A slice speaks for its own namespace only: Kubernetes' own never name another.
        own = target is not None and target.namespace in ("", meta.namespace)
        if target is not None and own and target.kind == "Pod" and NAME.fullmatch(target.name):
            pod = f"{meta.namespace}/{target.name}"
        node = _shaped(NAME, endpoint.node_name or (endpoint.topology.node if endpoint.topology else ""))
        ready = endpoint.conditions is None or endpoint.conditions.ready is not False
        endpoints += [
            Endpoint(service, address, port.port or 0, port.protocol or "TCP", pod, node, ready)
            for address in _addresses(endpoint.addresses or ())
            for port in ports
        ]
    value = EndpointSlice(tuple(endpoints), len(endpoints))
    return KubeObject(meta.uid, value, meta.resource_version, namespace=meta.namespace)


def _object(resource: Resource, data: bytes | msgspec.Raw) -> KubeObject:
    """Return an object.

    Raises:
        DecodeError: it is none of the resource.
    """
    raw = _decoded(_OBJECTS[resource], data, f"an object of {resource}")
    match raw:
        case _Pod():
            return _pod_object(raw)
        case _Service():
            return _service_object(raw)
        case _Slice():
            return _slice_object(raw)
    _identity(raw.metadata, "a namespace", namespaced=False)
    return KubeObject(
        raw.metadata.uid,
        KubeNamespace(raw.metadata.name, _excludes(raw.metadata.annotations)),
        raw.metadata.resource_version,
    )


def decode_list(resource: Resource, data: bytes | bytearray) -> KubeList:
    """Return what a request for all objects of a resource was answered.

    Raises:
        DecodeError: it is no such list, or only a part of one.
    """
    subject = f"a list of {resource}"
    answer = _decoded(_LIST, data, subject)
    if answer.kind != _KINDS[resource]:
        raise DecodeError(subject, 0, bytes(data[:16]), f"it says that it is {answer.kind[:80]!r}")
    if answer.metadata.more:
        raise DecodeError(subject, 0, bytes(data[:16]), "it is only a part")
    version = _checked(answer.metadata.resource_version, subject)
    objects, unread = [], 0
    for item in answer.items or ():
        try:
            objects.append(_object(resource, item))
        except DecodeError:
            unread += 1
    return KubeList(tuple(objects), version, unread)


def decode_event(resource: Resource, line: bytes) -> WatchEvent:
    """Return a line of a watch.

    Raises:
        DecodeError: it is none, or its object cannot be read.
    """
    subject = f"an event of {resource}"
    event = _decoded(_EVENT, line, subject)
    if event.type == "ERROR":
        status = _decoded(_STATUS, event.object, subject)
        return WatchEvent(event.type, code=status.code or (410 if status.slug in _GONE else 500))
    if event.type == "BOOKMARK":
        mark = _decoded(_BOOKMARK, event.object, subject)
        return WatchEvent(event.type, version=_checked(mark.metadata.resource_version, subject))
    changed = _object(resource, event.object)
    return WatchEvent(event.type, changed, _checked(changed.version, subject))


def discovery_version(data: bytes | bytearray) -> str:
    """Return the newest version of discovery.k8s.io that is understood and served: ``v1``, ``v1beta1`` or nothing.

    Raises:
        DecodeError: it is no APIGroup.
    """
    group = _decoded(_GROUP, data, "an APIGroup")
    served = {version.version for version in group.versions}
    return next((version for version in ("v1", "v1beta1") if version in served), "")


class EventLines:
    """Puts the lines of a watch together from pieces of any size."""

    def __init__(self, most: int = EVENT_MOST) -> None:
        self._most = most
        self._pending = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that a piece ends, without empty ones.

        Raises:
            DecodeError: a line is too long.
        """
        self._pending += data
        end = self._pending.rfind(b"\n", self._searched)
        self._searched = len(self._pending)
        lines: list[bytes] = []
        if end >= 0:
            lines = [line for line in bytes(self._pending[:end]).split(b"\n") if line.strip()]
            del self._pending[: end + 1]
            self._searched = len(self._pending)
        longest = max(map(len, lines), default=0)
        if max(longest, len(self._pending)) > self._most:
            raise DecodeError("an event", self._most, bytes(self._pending[:16]), "a line without an end")
        return lines
