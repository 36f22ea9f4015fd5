"""Processes → services: the workers of one server are one answer to the question who holds a connection.

Two processes belong together when they run the same program (name and executable) and either one of them, or the
parent that both have, runs it too, as the children of a server that forks do (postgres, apache, php-fpm); or they were
started with the same arguments by one parent, or in one container, pod or unit (replicas under a supervisor).

What this does not do: put together two scripts that one shell started. They share an interpreter and a parent, and
are two services; their arguments differ, and their parent is another program.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping

from finwait.attribution.container import Workload, workload_of_path
from finwait.attribution.process import ProcessView

__all__ = ["services"]

_INIT = 1
"""Everything that lost its parent is its child: that says nothing."""


def services(processes: Mapping[int, ProcessView]) -> dict[int, int]:
    """Return for each process the lowest pid of its service, its own where it is alone.

    Args:
        processes: those that are known; parents that are not among them tell less.
    """
    leader = {pid: pid for pid in processes}

    def find(pid: int) -> int:
        while leader[pid] != pid:
            leader[pid] = leader[leader[pid]]
            pid = leader[pid]
        return pid

    def join(pids: Iterable[int]) -> None:
        roots = {find(pid) for pid in pids}
        if len(roots) > 1:
            lowest = min(roots)
            for root in roots:
                leader[root] = lowest

    known = [p for p in processes.values() if p.comm != "?"]
    for p in known:
        parent = processes.get(p.ppid)
        if parent is not None and parent.pid != _INIT and _program(parent) == _program(p):
            join((parent.pid, p.pid))
    for key in (_siblings, _replicas):
        for members in _grouped(known, key).values():
            join(members)
    return {pid: find(pid) for pid in processes}


def _program(p: ProcessView) -> tuple[str, str, int | None]:
    return p.comm, p.exe, p.netns


def _siblings(p: ProcessView) -> Hashable:
    """Return what the replicas that one parent started have in common."""
    return (_program(p), p.ppid, p.cmdline) if p.ppid > _INIT and p.cmdline else None


def _replicas(p: ProcessView) -> Hashable:
    """Return what the replicas in one container, pod or service have in common."""
    work = workload_of_path(p.cgroup) if p.cgroup else Workload()
    place = work.container_id or work.pod_uid or (work.unit if work.unit.endswith(".service") else "")
    return (_program(p), place, p.cmdline) if place and p.cmdline else None


def _grouped(
    processes: Iterable[ProcessView], key: Callable[[ProcessView], Hashable]
) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for p in processes:
        if (mark := key(p)) is not None:
            groups.setdefault(mark, []).append(p.pid)
    return groups
