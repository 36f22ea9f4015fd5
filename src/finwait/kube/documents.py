"""Names out of what ``kubectl get pods,services,endpointslices -A -o json`` prints: one look at a cluster, in a file.

That is one ``List`` of objects of several kinds, or a list of one kind. Objects of other kinds are skipped. The pods
are those of all nodes, so that every address of a pod has a name.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

import msgspec

from finwait import files
from finwait.errors import DecodeError, FinwaitError, Gap
from finwait.kube.names import NameKeeper
from finwait.kube.objects import Resource, decode_list
from finwait.table.units import duration_text

if TYPE_CHECKING:
    from finwait.uapi.cluster import ClusterNames

__all__ = ["names_of", "read_names"]

_MOST: Final = 512 << 20
_FRESH_S: Final = 600.0
"""As long as names of deleted pods are kept."""
_KINDS: Final[dict[str, Resource]] = {
    "Pod": "pods",
    "Service": "services",
    "EndpointSlice": "endpointslices",
    "Namespace": "namespaces",
}


class _Typed(msgspec.Struct):
    kind: str = ""


class _Document(msgspec.Struct):
    kind: str = ""
    items: list[msgspec.Raw] | None = None
    """None of a single object, which is no list."""


def names_of(data: bytes, now: float) -> tuple[ClusterNames, tuple[Gap, ...]]:
    """Return the names that a document gives, and what it does not.

    Args:
        data: JSON as kubectl prints it.
        now: when it was printed, as far as is known, in seconds since 1970.

    Raises:
        DecodeError: it is none, or an object in it is not what the API server sends.
    """
    try:
        document = msgspec.json.decode(data, type=_Document)
        of_kind: dict[Resource, list[bytes]] = {}
        single = _KINDS.get(document.kind.removesuffix("List"))
        # `kubectl get pod NAME` prints the object itself.
        alone = document.items is None and document.kind in _KINDS
        objects = [msgspec.Raw(data)] if alone else document.items or []
        for item in objects:
            resource = single or _KINDS.get(msgspec.json.decode(item, type=_Typed).kind)
            if resource is not None:
                of_kind.setdefault(resource, []).append(bytes(item))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError("a document of kubectl", 0, data[:64], str(error)[:200]) from None
    if not of_kind and (objects or document.items is None):
        raise DecodeError("a document of kubectl", 0, data[:64], "it has no pods, Services or EndpointSlices")
    keeper = NameKeeper()
    for resource, items in of_kind.items():
        keeper.listed(resource, decode_list(resource, _as_list(resource, items)), now)
    missing = [kind for kind, resource in _KINDS.items() if resource not in of_kind and kind != "Namespace"]
    gaps = tuple(
        Gap(
            "the cluster",
            f"learn the names of its {kind} objects",
            f"`kubectl get {_KINDS[kind]} -A -o json` in it",
        )
        for kind in missing
    )
    return keeper.names(now), (*keeper.gaps(), *gaps)


def _as_list(resource: Resource, items: list[bytes]) -> bytes:
    kind = next(kind for kind, of in _KINDS.items() if of == resource)
    return (
        b'{"kind":"'
        + kind.encode()
        + b'List","metadata":{"resourceVersion":"1"},"items":['
        + b",".join(items)
        + b"]}"
    )


def _old(path: str, age_s: float) -> tuple[Gap, ...]:
    """Return what says that names are of a while ago: addresses of pods of then are those of others now."""
    if age_s <= _FRESH_S:
        return ()
    age = duration_text(round(1000 * age_s))
    return (Gap(f"`{path}`", f"know the names of now: it is {age} old", "`kubectl get` again"),)


def read_names(path: str) -> tuple[ClusterNames, tuple[Gap, ...]]:
    """Return the names that a file gives, and what it does not.

    Args:
        path: of the file; ``-`` for standard input.

    Raises:
        FinwaitError: it cannot be read, or is none.
    """
    try:
        data = sys.stdin.buffer.read(_MOST + 1) if path == "-" else files.read(path, _MOST)
        if len(data) > _MOST:
            raise FinwaitError(f"what kubectl printed is longer than {_MOST >> 20} MiB")
        now = time.time()
        made = now if path == "-" else min(now, os.stat(path).st_mtime)
        names, gaps = names_of(data, made)
        return names, (*gaps, *_old(path, now - made))
    except OSError as error:
        raise FinwaitError(f"could not read `{path}`: the kernel said {error.strerror}") from None
    except DecodeError as error:
        failure = FinwaitError(f"`{path}` has no names of a cluster: {error}")
        failure.hint = "`kubectl get pods,services,endpointslices -A -o json` prints them"
        raise failure from None
