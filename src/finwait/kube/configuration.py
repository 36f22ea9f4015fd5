"""What a cluster runs, as texts that can be read: its objects, each as `kubectl get -o yaml` prints it.

`read` lists the kinds that hold settings, and leaves out what another object made (the pods of a Deployment stand in
its template) and every Secret. A text comes as JSON first, which is cheap for thousands of objects; `as_shown` gives
one in the form, and with the lines, that a person sees when typing the command.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from finwait.errors import FinwaitError, Gap
from finwait.kube.kubectl import Kubectl

__all__ = ["KINDS", "ClusterObject", "ClusterObjects", "as_shown", "read"]

KINDS: Final = (
    "configmaps",
    "daemonsets.apps",
    "deployments.apps",
    "statefulsets.apps",
    "cronjobs.batch",
    "jobs.batch",
    "pods",
    "ingresses.networking.k8s.io",
    "podsecuritypolicies.policy",
    "destinationrules.networking.istio.io",
    "envoyfilters.networking.istio.io",
)
"""The kinds that are read where the cluster has them."""
_ALWAYS: Final = frozenset(KINDS[:7])
_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
"""The same object once more, as an annotation."""
_NOT_MADE: Final = frozenset(("", "Node"))
"""The kinds of owners that stand for no other object with the same settings: nobody, and the node of a static pod."""


class ClusterObject(Struct, frozen=True):
    """An object of the cluster."""

    kind: str
    """As kubectl takes it: ``configmaps``."""
    namespace: str
    name: str
    text: bytes
    """JSON."""

    @property
    def title(self) -> str:
        """``kube-system/configmap/kube-proxy``."""
        return "/".join(word for word in (self.namespace, _singular(self.kind), self.name) if word)


def _singular(kind: str) -> str:
    short = kind.partition(".")[0]
    for plural, singular in (("policies", "policy"), ("esses", "ess"), ("s", "")):
        if short.endswith(plural):
            return short.removesuffix(plural) + singular
    return short


class ClusterObjects(Struct, frozen=True):
    """What could be read, and what not."""

    objects: list[ClusterObject] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


def read(kubectl: Kubectl) -> ClusterObjects:
    """List the objects that hold settings, in all namespaces.

    Raises:
        FinwaitError: there is no kubectl, or nothing at all could be listed.
    """
    cluster = ClusterObjects()
    done = kubectl.run("api-resources", "--verbs=list", "-o", "name")
    present = {line.strip() for line in done.out.decode("utf-8", "replace").splitlines()} | _ALWAYS
    for kind in KINDS:
        if kind not in present:
            continue
        try:
            listed = kubectl.decoded(dict[str, Any], "get", kind, "-A")
        except FinwaitError as error:
            cluster.gaps.append(Gap(kind, f"list them: {error}", f"the right to list {kind}"))
            continue
        cluster.objects.extend(_objects(kind, listed))
    if len(cluster.gaps) >= len(_ALWAYS) and not cluster.objects:
        raise FinwaitError(f"nothing of the cluster could be read: {cluster.gaps[0].doing}")
    if done.status != 0:
        cluster.gaps.append(
            Gap(
                "the cluster",
                f"list which kinds of objects it has: {done.said}",
                "an API server that answers",
            )
        )
    return cluster


def _objects(kind: str, listed: dict[str, Any]) -> Iterator[ClusterObject]:
    for item in _list(listed.get("items")):
        meta = _mapping(_mapping(item).get("metadata"))
        owners = [_mapping(owner) for owner in _list(meta.get("ownerReferences"))]
        maker = next((str(owner.get("kind", "")) for owner in owners if owner.get("controller") is True), "")
        if maker not in _NOT_MADE:
            continue
        _mapping(meta.get("annotations")).pop(_APPLIED, None)
        meta.pop("managedFields", None)
        yield ClusterObject(
            kind, str(meta.get("namespace", "")), str(meta.get("name", "")), msgspec.json.encode(item)
        )


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def as_shown(kubectl: Kubectl, shown: ClusterObject) -> bytes | None:
    """Return an object as ``kubectl get -o yaml`` prints it; None where it is gone, or cannot be read any more.

    The annotation that holds the object once more is blanked; the lines stay where they are.
    """
    place = ("-n", shown.namespace) if shown.namespace else ()
    done = kubectl.run("get", shown.kind, shown.name, *place, "-o", "yaml")
    if done.status != 0:
        return None
    lines = done.out.split(b"\n")
    within = -1  # the indentation of the annotation that is being blanked
    for k, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if within >= 0 and (indent > within or not line.strip()):
            lines[k] = b""
            continue
        within = indent if line[indent:].startswith(_APPLIED.encode() + b":") else -1
        if within >= 0:
            lines[k] = line[:indent] + _APPLIED.encode() + b": ''"
    return b"\n".join(lines)
