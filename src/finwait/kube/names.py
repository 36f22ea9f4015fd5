"""What lists and watch events say → the names of a cluster as of now.

Pure: the caller reads the clock. A list replaces what was known, so that what was deleted while nobody watched is gone
then; nothing but a list or an event takes a name away. Pods are kept for ten minutes after they are deleted, for their
connections outlive them.

How much is kept is bounded, by counting parts (addresses, labels, containers, ports) and not objects, since one object
can hold thousands. Where there is no room, the namespace that has most makes way, so that nobody takes the names of all
others. What is left out comes in with its next event or list once there is room, and is counted until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import msgspec

from finwait.errors import Gap
from finwait.kube.objects import (
    RESOURCES,
    EndpointSlice,
    KubeList,
    KubeNamespace,
    KubeObject,
    Resource,
    WatchEvent,
)
from finwait.uapi.cluster import NO_NAMES, ClusterNames, KubeService, Pod

__all__ = ["GONE_FOR_S", "GONE_MOST", "PARTS_MOST", "NameKeeper"]

GONE_FOR_S: Final = 600.0
"""For how long the name of a deleted pod is kept."""
GONE_MOST: Final = 2_000
"""Deleted pods that are kept; of more, those that went last."""
PARTS_MOST: Final[Mapping[Resource, int]] = {
    "pods": 50_000,
    "services": 100_000,
    "endpointslices": 60_000,
    "namespaces": 50_000,
}
"""How much is kept of each resource: about 10 MB at most."""
_COUNTED: Final[Mapping[Resource, str]] = {
    "pods": "pods",
    "services": "Services",
    "endpointslices": "endpoints",
    "namespaces": "namespaces",
}
_WHERE: Final = "names from Kubernetes"
_Value = TypeVar("_Value", Pod, KubeService, EndpointSlice, KubeNamespace)


def _parts(value: Pod | KubeService | EndpointSlice | KubeNamespace) -> int:
    """Return how much there is to keep of an object."""
    match value:
        case Pod():
            return 1 + len(value.addresses) + len(value.containers) + len(value.labels)
        case KubeService():
            return 1 + len(value.addresses) + len(value.ports)
        case EndpointSlice():
            return 1 + len(value.endpoints)
    return 1


class _Shelf:
    """What is kept of one resource.

    Where there is no room, no namespace may take the place of one that has less: the one that has most makes way.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: dict[str, KubeObject] = {}
        self.parts = 0
        self.left_out: dict[str, int] = {}
        """The uid of what found no room → for how many it counts."""
        self.unread = 0
        self._of: dict[str, dict[str, int]] = {}
        """Namespace → the uids of what is kept of it, in order, and the parts of each."""
        self._used: dict[str, int] = {}
        """Namespace → all these parts."""

    def put(self, item: KubeObject) -> bool:
        """Keep an object if there is room; return whether anything changed."""
        earlier = self.kept.get(item.uid)
        if earlier is not None and earlier.value == item.value and earlier.host == item.host:
            return False
        if earlier is not None:
            self.drop(item.uid)
        parts = _parts(item.value)
        fits, made_way = (False, False) if _unspelled(item.value) else self._make_room(item.namespace, parts)
        if not fits:
            self.left_out[item.uid] = _counts_for(item.value)
            return earlier is not None or made_way
        self.left_out.pop(item.uid, None)
        self.kept[item.uid] = item
        self.parts += parts
        self._of.setdefault(item.namespace, {})[item.uid] = parts
        self._used[item.namespace] = self._used.get(item.namespace, 0) + parts
        return True

    def _make_room(self, namespace: str, parts: int) -> tuple[bool, bool]:
        """Return whether there is room for so many parts, and whether something was dropped for it."""
        together = self._used.get(namespace, 0) + parts
        made_way = False
        while self.parts + parts > self.most:
            largest = max(self._used, key=self._used.__getitem__, default=namespace)
            if self._used.get(largest, 0) <= together:
                return False, made_way
            last = self.kept[next(reversed(self._of[largest]))]
            self.drop(last.uid)
            self.left_out[last.uid] = _counts_for(last.value)
            made_way = True
        return True, made_way

    def drop(self, uid: str) -> KubeObject | None:
        """Forget an object; return what was kept of it."""
        self.left_out.pop(uid, None)
        item = self.kept.pop(uid, None)
        if item is not None:
            of = self._of[item.namespace]
            parts = of.pop(uid)
            self.parts -= parts
            self._used[item.namespace] -= parts
            if not of:
                del self._of[item.namespace], self._used[item.namespace]
        return item


def _unspelled(value: Pod | KubeService | EndpointSlice | KubeNamespace) -> bool:
    """Whether an object has more in it than is ever kept of one."""
    return isinstance(value, EndpointSlice) and value.total > len(value.endpoints)


def _counts_for(value: Pod | KubeService | EndpointSlice | KubeNamespace) -> int:
    """Return for how many an object counts that is left out."""
    return value.total if isinstance(value, EndpointSlice) else 1


class NameKeeper:
    """Keeps what an API server said, and gives it as one value.

    Args:
        node: the node that this machine is.
        most: how much to keep of each resource, in parts.
    """

    def __init__(self, node: str = "", most: Mapping[Resource, int] = PARTS_MOST) -> None:
        self._node = node
        self._shelves = {resource: _Shelf(most[resource]) for resource in RESOURCES}
        self._gone: dict[str, Pod] = {}
        """Deleted pods by uid, in the order of their deletion."""
        self._gone_dropped = 0.0
        """When a deleted pod had to make room for another; 0 for never."""
        self._as_of: dict[str, float] = {}
        self._changed: set[Resource] = set(RESOURCES)
        self._names = NO_NAMES
        self.changes = 0
        """How many lists and events changed a name."""

    def listed(self, resource: Resource, answer: KubeList, now: float) -> None:
        """Take a list: what is missing in it was deleted.

        Args:
            resource: of what.
            answer: all of it.
            now: seconds since 1970, when it was asked for.
        """
        shelf = self._shelves[resource]
        present = {item.uid for item in answer.objects}
        changed = False
        # Room first: what is gone makes place for what is new.
        for uid in [uid for uid in shelf.kept if uid not in present]:
            self._deleted(resource, uid, now)
            changed = True
        shelf.left_out.clear()
        shelf.unread = answer.unread
        for item in answer.objects:
            changed |= self._present(resource, item)
        self._heard(resource, now, changed=changed)

    def happened(self, resource: Resource, event: WatchEvent, now: float) -> None:
        """Take an event of a watch; an error changes nothing.

        Args:
            resource: of what.
            event: as it was read.
            now: seconds since 1970.
        """
        if event.type == "ERROR":
            return
        changed = False
        if event.object is not None:
            if event.type == "DELETED":
                changed = self._deleted(resource, event.object.uid, now, event.object)
            else:
                changed = self._present(resource, event.object)
        self._heard(resource, now, changed=changed)

    def heard(self, resource: Resource, now: float) -> None:
        """Take note that what is known of a resource was right at a time."""
        self._heard(resource, now, changed=False)

    def names(self, now: float) -> ClusterNames:
        """Return everything with a name; the same value as before while nothing changed.

        Args:
            now: seconds since 1970.
        """
        self._forget(now)
        before = self._names
        if self._changed:
            self._names = self._joined().taking_over(before)
            self._changed.clear()
        elif before.as_of != self._as_of:
            self._names = msgspec.structs.replace(before, as_of=dict(self._as_of)).taking_over(before)
        return self._names

    @property
    def as_of(self) -> Mapping[str, float]:
        """What was listed → when that was known to be right, in seconds since 1970."""
        return self._as_of

    def gaps(self) -> tuple[Gap, ...]:
        """Return what is not among the names, though the API server said it."""
        gaps = []
        for resource, shelf in self._shelves.items():
            if number := sum(shelf.left_out.values()):
                kept = self._number(resource)
                doing = f"keep all {_COUNTED[resource]}: {kept:,} are kept, {number:,} were left out"
                gaps.append(Gap(_WHERE, doing, ""))
            if shelf.unread:
                gaps.append(Gap(_WHERE, f"read {shelf.unread:,} of the {resource}", ""))
        if self._gone_dropped:
            doing = (
                f"keep the names of more than {GONE_MOST:,} deleted pods for {GONE_FOR_S / 60:.0f} minutes"
            )
            gaps.append(Gap(_WHERE, doing, ""))
        return tuple(gaps)

    def _number(self, resource: Resource) -> int:
        kept = self._shelves[resource].kept
        if resource != "endpointslices":
            return len(kept)
        return sum(item.value.total for item in kept.values() if isinstance(item.value, EndpointSlice))

    def _heard(self, resource: Resource, now: float, *, changed: bool) -> None:
        self._as_of[resource] = now
        if changed:
            self._changed.add(resource)
            self.changes += 1

    def _present(self, resource: Resource, item: KubeObject) -> bool:
        """Keep an object; return whether that changed anything."""
        revived = self._gone.pop(item.uid, None) is not None  # an older list, or a copy of an event
        return self._shelves[resource].put(item) or revived

    def _deleted(self, resource: Resource, uid: str, now: float, last: KubeObject | None = None) -> bool:
        """Forget an object, of a pod all but its name; return whether that changed anything.

        Args:
            resource: of what.
            uid: which.
            now: when.
            last: as it was in the end, where that is known.
        """
        item = self._shelves[resource].drop(uid)
        if item is None or not isinstance(item.value, Pod):
            return item is not None
        end = last.value if last is not None and isinstance(last.value, Pod) else item.value
        # What has ended has no address any more; its connections have those that it had.
        addresses = end.addresses or item.value.addresses
        self._gone[uid] = msgspec.structs.replace(end, addresses=addresses, gone_s=now)
        if len(self._gone) > GONE_MOST:
            del self._gone[next(iter(self._gone))]
            self._gone_dropped = now
        return True

    def _forget(self, now: float) -> None:
        """Forget pods that were deleted ten minutes ago."""
        while self._gone:
            uid, pod = next(iter(self._gone.items()))
            if abs(now - pod.gone_s) < GONE_FOR_S:  # a clock may be set back
                break
            del self._gone[uid]
            self._changed.add("pods")
        if self._gone_dropped and abs(now - self._gone_dropped) >= GONE_FOR_S:
            self._gone_dropped = 0.0

    def _joined(self) -> ClusterNames:
        """Return all that is kept; parts that did not change are the very same as before."""
        before, pods = self._names, self._names.pods
        hosts = before.node_addresses
        if self._changed & {"pods", "namespaces"}:
            shelf = self._shelves["pods"].kept
            pods = tuple(self._excluded([*self._values("pods", Pod), *self._gone.values()]))
            hosts = tuple(sorted({address for item in shelf.values() for address in item.host}))
        services, endpoints = before.services, before.endpoints
        if "services" in self._changed:
            services = tuple(self._values("services", KubeService))
        if "endpointslices" in self._changed:
            slices = self._values("endpointslices", EndpointSlice)
            endpoints = tuple(endpoint for part in slices for endpoint in part.endpoints)
        return ClusterNames(
            node=self._node,
            pods=pods,
            services=services,
            endpoints=endpoints,
            node_addresses=before.node_addresses if hosts == before.node_addresses else hosts,
            as_of=dict(self._as_of),
        )

    def _values(self, resource: Resource, kind: type[_Value]) -> list[_Value]:
        return [item.value for item in self._shelves[resource].kept.values() if isinstance(item.value, kind)]

    def _excluded(self, pods: Iterable[Pod]) -> list[Pod]:
        """Return pods with what their namespaces' annotations say of them."""
        spaces = {space.name for space in self._values("namespaces", KubeNamespace) if space.excluded}
        return [
            msgspec.structs.replace(pod, excluded=True) if pod.namespace in spaces else pod for pod in pods
        ]
