"""What a workload is called, in counts, episodes, the journal and budgets. Pure.

A workload is named by what outlives a process: ``NAMESPACE/NAME`` of what owns its pod where a cluster has told that
(`finwait.uapi.cluster`), else the pod by its uid, the systemd unit, the program. Never by a pid, which is another's
tomorrow. A program that has a slash in its name is written without it, or it could pass for a workload of a cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from finwait.attribution.container import Workload
    from finwait.uapi.cluster import Pod

__all__ = ["placed_in_cluster", "split_workload", "workload_of"]

_UNNAMED: Final = ("pod/", "container/")
"""How a workload begins that has a slash and no name from a cluster; no namespace should be called so."""


def workload_of(workload: Workload | None, comm: str, pod: Pod | None = None) -> str:
    """Return what a connection's workload is called; empty for unknown.

    Args:
        workload: what its cgroup tells.
        comm: name of the process that holds it; empty or ``?`` where that is not known.
        pod: what a cluster calls its pod.

    Returns:
        ``NAMESPACE/NAME``, ``pod/UID``, a unit, ``container/ID``, or the program.
    """
    if pod is not None:
        return pod.workload
    if workload is not None and workload.pod_uid:
        return f"pod/{workload.pod_uid}"
    if workload is not None and workload.unit.endswith(".service"):
        return workload.unit
    if workload is not None and workload.container_id:
        return f"container/{workload.container_id[:12]}"
    return "" if comm in ("", "?") else comm.replace("/", "\\x2f")


def placed_in_cluster(workload: str) -> bool:
    """Return whether this is the name that a cluster gives to a workload, as of `workload_of`."""
    return "/" in workload and not workload.startswith(_UNNAMED)


def split_workload(workload: str) -> tuple[str, str]:
    """Return namespace and name of a workload, as of `workload_of`; without a cluster's name the namespace is empty."""
    if not placed_in_cluster(workload):
        return "", workload
    namespace, _, name = workload.partition("/")
    return namespace, name
