r"""A cgroup path → the container, pod or systemd unit that it belongs to.

Decides by the names that kubelet, container runtimes and systemd give to cgroup directories, in `RULES`,
one line a convention. A path is read from the root inwards and the innermost answer wins, so nesting (kind,
k3s, Docker in Docker, a runtime inside a pod) needs no rules of its own: entering a pod forgets the
container around it, which is the node.

The surprises: the systemd driver writes a pod's UID with ``_`` for ``-``, since ``-`` means a subdirectory in
slice names; a pod of class Guaranteed has *no* directory for its class; a static pod's UID is a hash and not
a UUID; and with the cgroupfs driver nothing in the path tells which runtime it was.

What this cannot tell: the sandbox ("pause") of a pod from its containers, and the names of pods and
containers; those are known to the API server and the runtime.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finwait.uapi.proc import CgroupLine

__all__ = [
    "NOWHERE",
    "RULES",
    "PathRule",
    "Workload",
    "workload_of_cgroups",
    "workload_of_path",
    "workloads_of_rows",
]


class Workload(Struct, frozen=True):
    """Who a cgroup belongs to, as far as its path tells; an empty string is "it does not tell"."""

    runtime: str = ""
    """``containerd``, ``cri-o``, ``docker``, ``podman``, ``lxc``, ``machined``."""
    container_id: str = ""
    """The full id; of lxc and machined the container's name."""
    pod_uid: str = ""
    """As the API server spells it; of a static pod the hash of its manifest."""
    qos: str = ""
    """``guaranteed``, ``burstable`` or ``besteffort``."""
    unit: str = ""
    """The innermost systemd service or scope, or slice if there is neither; inside a container *its* unit."""


NOWHERE: Final = Workload()
"""What the root cgroup, or a path that follows no convention, tells."""


class PathRule(Struct, frozen=True):
    """One naming convention for one path component.

    ``name`` matches the whole component; its groups ``pod``, ``qos``, ``id`` and ``unit`` are what it says.
    ``below`` must match the component above, if given.
    """

    source: str
    name: re.Pattern[str]
    runtime: str = ""
    below: re.Pattern[str] | None = None


_ID = r"(?P<id>[0-9a-f]{12,64})"
_ANY_ID = r"(?P<id>(?!conmon-)[0-9A-Za-z][0-9A-Za-z_.-]*)"
_POD_SLICE = r"(?:.+-)?kubepods(?:-(?P<qos>burstable|besteffort))?-pod(?P<pod>[0-9A-Za-z_.]+)\.slice"
_QOS_DIR = r"(?:.+-)?kubepods(?:\.slice)?|burstable|besteffort"
_POD_DIR = r"pod(?P<pod>[0-9A-Za-z][0-9A-Za-z.-]*)"
_UUID_OR_HASH = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}"
_NO_UNIT = r"(?!.*\.(?:scope|slice|service)\Z)"


def _rule(source: str, name: str, runtime: str = "", below: str | None = None) -> PathRule:
    return PathRule(source, re.compile(name), runtime, re.compile(below) if below else None)


RULES: Final[tuple[PathRule, ...]] = (
    _rule("kubelet, systemd driver: pod", _POD_SLICE),
    _rule("kubelet, cgroupfs driver: pod", _POD_DIR, below=_QOS_DIR),
    _rule("kubelet, cgroupfs driver: pod, seen from inside", rf"pod(?P<pod>{_UUID_OR_HASH})"),
    _rule("containerd, systemd driver", rf"cri-containerd-{_ANY_ID}\.scope", "containerd"),
    _rule("containerd without its systemd driver", rf"{_POD_SLICE}:cri-containerd:{_ANY_ID}", "containerd"),
    _rule("CRI-O, systemd driver", rf"crio-{_ANY_ID}\.scope", "cri-o"),
    _rule("CRI-O, cgroupfs driver", rf"crio-{_ID}", "cri-o"),
    _rule("Docker, systemd driver", rf"docker-{_ID}\.scope", "docker"),
    _rule("Docker, cgroupfs driver", _ID, "docker", below="docker"),
    _rule("nerdctl, systemd driver", rf"nerdctl-{_ID}\.scope", "containerd"),
    _rule("Podman, systemd driver", rf"libpod-{_ID}\.scope", "podman"),
    _rule("Podman, cgroupfs driver", rf"libpod-{_ID}", "podman"),
    _rule("Podman in a unit (quadlet)", rf"libpod-payload-{_ID}", "podman"),
    _rule("LXC before 4, monitor and payload together", r"(?P<id>[^/]+)", "lxc", below="lxc"),
    _rule("LXC 4 and later", r"(?P<id>[^/]+)", "lxc", below=r"lxc\.payload"),
    _rule("LXC 4 and later, LXD, Incus", r"lxc\.payload\.(?P<id>[^/]+)", "lxc"),
    _rule("systemd-machined (nspawn, libvirt)", r"machine-(?P<id>[^/]+)\.scope", "machined"),
    _rule("CRI, cgroupfs driver: container", _NO_UNIT + _ANY_ID, below=_POD_DIR),
    _rule("any runtime that uses the full id", r"(?P<id>[0-9a-f]{64})"),
    _rule("systemd: service, scope or socket", r"(?P<unit>[^/]+\.(?:service|scope|socket|mount|swap))"),
    _rule("systemd: slice", r"(?P<unit>[^/]+\.slice)"),
)
"""In order of precedence; the first that fits a component speaks for it."""

_UNIT_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
_QOS = ("burstable", "besteffort")


def _unescaped(name: str) -> str:
    r"""Undo systemd's escaping of unit names (``\x2d`` for ``-``)."""
    return _UNIT_ESCAPE.sub(lambda m: chr(int(m[1], 16)), name)


def _pod(fields: dict[str, str | None], above: str) -> Workload:
    uid = fields["pod"] or ""
    if "qos" in fields:  # the systemd driver: the class is part of the name, or the pod is Guaranteed
        return Workload(pod_uid=uid.replace("_", "-"), qos=fields["qos"] or "guaranteed")
    if above in _QOS:
        return Workload(pod_uid=uid, qos=above)
    return Workload(pod_uid=uid, qos="guaranteed" if "kubepods" in above else "")


@lru_cache(4096)  # the processes of a machine are in few cgroups, and a walk asks for each
def workload_of_path(path: str) -> Workload:
    """Return what a cgroup path tells, v1 or v2, below any prefix.

    Args:
        path: as in ``/proc/PID/cgroup``, or below the cgroup mount point.
    """
    workload = NOWHERE
    above = ""
    for component in path.split("/"):
        for rule in RULES:
            match = rule.name.fullmatch(component)
            if match is None or (rule.below is not None and not rule.below.fullmatch(above)):
                continue
            fields = match.groupdict()
            if fields.get("pod"):
                workload = _pod(fields, above)
            if fields.get("id"):
                name = fields["id"] or ""
                workload = replace(
                    workload,
                    runtime=rule.runtime,
                    container_id=_unescaped(name) if rule.runtime == "machined" else name,
                )
            unit = fields.get("unit")
            if unit and not (
                unit.endswith(".slice") and workload.unit and not workload.unit.endswith(".slice")
            ):
                workload = replace(workload, unit=unit)
            break
        above = component
    return workload


def _weight(workload: Workload) -> tuple[bool, bool, bool]:
    return bool(workload.pod_uid), bool(workload.container_id), bool(workload.unit)


def workload_of_cgroups(lines: Iterable[CgroupLine]) -> Workload:
    """Return what the lines of ``/proc/PID/cgroup`` tell: the one that tells most.

    On a machine with both versions some hierarchies stop at the root; among lines that tell equally much,
    that of cgroup v2 speaks, then systemd's own, then the first.
    """
    ranked = sorted(
        lines, key=lambda line: (line.hierarchy != 0, "name=systemd" not in line.controllers, line.hierarchy)
    )
    return max((workload_of_path(line.path) for line in ranked), key=_weight, default=NOWHERE)


def workloads_of_rows(
    cgroup_id: NDArray[np.uint64],
    paths: Mapping[int, str],
    first_pid: NDArray[np.int64],
    cgroup_of: Mapping[int, str],
) -> tuple[NDArray[np.int32], list[Workload]]:
    """Return the index of each row's workload, −1 where nothing is known, and the different workloads.

    Args:
        cgroup_id: in which each row's socket was made; 0 for not known.
        paths: path of a cgroup by its id.
        first_pid: of each row one of its holders, which speaks where the cgroup does not.
        cgroup_of: path of the cgroup of a process.
    """
    by_path: dict[str, int] = {}
    names: list[Workload] = []

    def of(path: str | None) -> int:
        if not path or path == "/":
            return -1
        if path not in by_path:
            workload = workload_of_path(path)
            by_path[path] = len(names) if workload != NOWHERE else -1
            if workload != NOWHERE:
                names.append(workload)
        return by_path[path]

    ids, inverse = np.unique(cgroup_id, return_inverse=True)
    by_id = np.array([of(paths.get(number)) if number else -1 for number in ids.tolist()], np.int32)
    result = by_id[inverse.reshape(-1)] if len(ids) else np.empty(0, np.int32)
    rest = np.flatnonzero(result < 0)
    pids, inverse = np.unique(first_pid[rest], return_inverse=True)
    if len(pids):
        result[rest] = np.array([of(cgroup_of.get(pid)) for pid in pids.tolist()], np.int32)[
            inverse.reshape(-1)
        ]
    return result, names
