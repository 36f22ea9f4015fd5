"""Processes → services: the workers of one server are one answer to the question who holds a connection.

A server and what it has forked belong together, as postgres, nginx, gunicorn and php-fpm do it, whatever the children
call themselves: a title over the arguments, a name for each (``wrk-0``, ``wrk-1``). So do a server and children that
run its program anew with the same script and arguments, as clusters of node do, what one program has forked before it
ended, and replicas: what one parent, or one container, pod or unit, has started with the same arguments.

The surprise: two programs of one interpreter are two services, even if their supervisor is a third one of it. A fork
keeps the place of the stack, and execve(2) draws it anew, so the kernel tells which of the two a child is; where it
does not, a command line that is a title does.

What this does not do: tell apart the children of a compiled program that runs itself with other arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping

from finwait.attribution.container import Workload, workload_of_path
from finwait.attribution.process import ProcessView

__all__ = ["name_of", "services"]

_INIT = 1
"""Everything that lost its parent is its child: that says nothing."""
_INTERPRETERS = re.compile(
    r"(ba|da|k|z|c|tc|fi)?sh|busybox|(python|pypy|perl|ruby|jruby|lua|luajit|php|node|tclsh|wish|guile)[\d.]*(-cli)?|"
    r"php-cgi[\d.]*|nodejs|deno|bun|java|dotnet|mono|erl|beam(\.smp)?|elixir|Rscript|R|julia|escript|qjs|racket"
)
_WORKER = ("multiprocessing.spawn", "multiprocessing.forkserver", "multiprocessing.resource_tracker")
"""What a child of Python's multiprocessing runs: it is part of its parent."""


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
        if parent is not None and parent.pid != _INIT and parent.comm != "?" and _is_worker(p, parent):
            join((parent.pid, p.pid))
    for key in (_siblings, _orphans, _replicas):
        for members in _grouped(known, key).values():
            join(members)
    return {pid: find(pid) for pid in processes}


def name_of(names: Iterable[str]) -> str:
    """Return what processes of one service are called together: ``wrk-*`` of those that have numbered themselves."""
    by_pattern: dict[str, set[str]] = {}
    for name in names:
        by_pattern.setdefault(re.sub(r"\d.*", "*", name), set()).add(name)
    labels = [next(iter(alike)) if len(alike) == 1 else pattern for pattern, alike in by_pattern.items()]
    return "/".join(sorted(labels)[:3]) + ("/…" if len(labels) > 3 else "")


def _program(p: ProcessView) -> tuple[str, int | None]:
    return p.exe or p.comm, p.netns


def _is_worker(p: ProcessView, parent: ProcessView) -> bool:
    """Return whether a child does its parent's work."""
    if _program(p) != _program(parent):
        return False
    written = _titled(p) or _titled(parent)
    if p.stack and parent.stack:
        if p.stack == parent.stack and (written or p.cmdline == parent.cmdline):
            return True
        written = False  # it has run a program, whatever that calls itself
    elif p.cmdline and p.cmdline == parent.cmdline:
        return True
    if p.comm != parent.comm:
        return False
    if not _INTERPRETERS.fullmatch(_base(p.exe or p.comm).removesuffix(" (deleted)")):
        return True
    return written or any(module in p.cmdline for module in _WORKER) or _script(p) == _script(parent)


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _titled(p: ProcessView) -> bool:
    """Return whether a command line is a title that the process has written over its arguments."""
    if not p.argv:
        return p.cmdline.partition(" ")[0].endswith(":")
    first = p.argv[0]
    called = _base(first).lstrip("-")
    return len(p.argv) == 1 and (" " in first.strip() or called not in (p.comm, _base(p.exe)))


def _script(p: ProcessView) -> tuple[str, ...]:
    """Return what an interpreter was told to run: options, the script without its directory, and its arguments."""
    words = (p.argv or tuple(p.cmdline.split()))[1:]
    at = next((k for k, word in enumerate(words) if not word.startswith("-")), len(words))
    return (*words[:at], *(_base(word) for word in words[at : at + 1]), *words[at + 1 :])


def _siblings(p: ProcessView) -> Hashable:
    """Return what the replicas that one parent started have in common."""
    return (_program(p), p.ppid, p.cmdline) if p.ppid > _INIT and p.cmdline else None


def _orphans(p: ProcessView) -> Hashable:
    """Return what processes have in common that one program forked before it ended, and that init took in.

    execve(2) draws the place of the stack anew: two that have the same were forked by one program and ran no other.
    """
    if p.ppid > _INIT or not p.stack or not p.cmdline:
        return None
    return _program(p), p.stack, p.cmdline, p.cgroup  # without ASLR all stacks begin at one place


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
