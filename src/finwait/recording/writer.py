"""Looking at a machine for a recording: everything is asked for, because nobody can ask again later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from finwait.errors import DecodeError, Gap
from finwait.recording.format import writing
from finwait.recording.redact import Pseudonyms, redact_look
from finwait.table import decode
from finwait.uapi import tcp
from finwait.uapi.observation import Descriptors, LoneSocket, Observation, Plan, ProcessFiles, unseen
from finwait.uapi.proc import parse_stat

__all__ = ["Recorded", "complete", "record"]


class Source(Protocol):
    """The machine, as far as a recording needs it."""

    def observe(self, plan: Plan) -> Observation: ...
    def descriptors_again(self) -> Descriptors: ...
    def processes(self, which: Iterable[int]) -> dict[int, ProcessFiles]: ...
    def cgroups(self, ids: Iterable[int]) -> dict[int, str]: ...
    def close_on_exec(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]: ...
    def socket_protocols(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, str]: ...
    def lone_sockets(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, LoneSocket]: ...
    def one_table(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]: ...
    def remember(self, spaces: Iterable[tuple[int, int, int]]) -> None: ...


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was recorded, and what could not be seen of it."""

    rows: int
    """Connections in the last look."""
    gaps: tuple[Gap, ...]
    """Of all looks."""
    last: Observation
    """The last look as it was read, before anything was redacted."""


def complete(machine: Source, plan: Plan, *, once_more: bool = True) -> Observation:
    """Look once and read everything that any command could ask about what was seen.

    Args:
        machine: what is looked at.
        plan: what to look at.
        once_more: look again where sockets lead to namespaces that nothing else leads to.
    """
    look = machine.observe(plan)
    sockets = decode.sockets(look)
    found = look.descriptors
    if found.searched:
        again = machine.descriptors_again()
        both = np.unique(
            np.stack(
                [
                    np.concatenate([found.pid, again.pid]).astype(np.uint64),
                    np.concatenate([found.fd, again.fd]).astype(np.uint64),
                    np.concatenate([found.inode, again.inode]),
                ]
            ),
            axis=1,
        )
        found = Descriptors(
            both[0].astype(np.uint32),
            both[1].astype(np.uint32),
            both[2],
            tuple(sorted({*found.unreadable, *again.unreadable, *again.threads})),
        )
    here = np.isin(found.inode, sockets.inode.astype(np.uint64))
    files = machine.processes(np.unique(found.pid).tolist())
    files |= machine.processes(sorted(_parents(files) - files.keys()))  # they tell the workers of one server
    if plan.only is not None:
        # Of other namespaces nothing is recorded, their processes and descriptors neither.
        inside = [pid for pid, one in files.items() if one.netns in plan.only]
        keep = here | np.isin(found.pid, np.array(inside, np.uint32))
        found = Descriptors(found.pid[keep], found.fd[keep], found.inode[keep], found.unreadable)
        here = here[keep]
        inside_too = _parents(files) & set(inside)
        files = {pid: files[pid] for pid in (set(found.pid.tolist()) | inside_too) & files.keys()}
    stuck = np.isin(sockets.state, [s for s in range(12) if tcp.CLOSING_STATES >> s & 1])
    closing = np.isin(found.inode, sockets.inode[stuck & (sockets.inode != 0)].astype(np.uint64))
    lost = ~here
    rows = list(zip(found.pid.tolist(), found.fd.tolist(), found.inode.tolist(), strict=True))
    triples = [rows[k] for k in np.flatnonzero(lost).tolist()]
    names = machine.socket_protocols(triples)
    triples = [triple for triple in triples if names.get(triple[2]) in ("TCP", "TCPv6")]
    lone = machine.lone_sockets(triples)
    if plan.only is not None:
        # Of a process of a namespace that was asked for, a socket of another: nobody asked for that one.
        others = [inode for inode, one in lone.items() if one.netns and one.netns not in plan.only]
        stay = ~np.isin(found.inode, np.array(others, np.uint64))
        found = Descriptors(found.pid[stay], found.fd[stay], found.inode[stay], found.unreadable)
        lone = {inode: one for inode, one in lone.items() if inode not in set(others)}
        closing = closing[stay]
        rows = [row for row, kept in zip(rows, stay.tolist(), strict=True) if kept]
    names = {inode: name for inode, name in names.items() if name not in ("TCP", "TCPv6") or inode in lone}
    if once_more and plan.only is None and (spaces := unseen(look, lone, triples)):
        machine.remember(spaces)
        return complete(machine, plan, once_more=False)
    return replace(
        look,
        descriptors=found,
        processes=files,
        cgroups=machine.cgroups(np.unique(sockets.cgroup_id).tolist() if len(sockets) else []),
        close_on_exec=machine.close_on_exec(
            (rows[k][0], rows[k][1]) for k in np.flatnonzero(closing).tolist()
        ),
        socket_protocols=names,
        lone_sockets=lone,
        one_table=machine.one_table(_held_by_several(rows[k] for k in np.flatnonzero(closing).tolist())),
    )


def _held_by_several(triples: Iterable[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Return the pairs of processes that hold one socket both: the lowest pid of each with every other."""
    by_inode: dict[int, set[int]] = {}
    for pid, _, inode in triples:
        by_inode.setdefault(inode, set()).add(pid)
    return sorted({(min(pids), pid) for pids in by_inode.values() for pid in pids if pid != min(pids)})


def _parents(files: Mapping[int, ProcessFiles]) -> set[int]:
    """Return the parents of processes, init left out, as far as their files tell."""
    found = set()
    for one in files.values():
        with suppress(DecodeError):
            if one.stat is not None:
                found.add(parse_stat(one.stat).ppid)
    return {pid for pid in found if pid > 1}


def record(
    machine: Source,
    path: str,
    *,
    looks: int = 1,
    interval_ms: int = 1000,
    only: frozenset[int] | None = None,
    redact: bool = False,
    keep_names: frozenset[str] = frozenset(),
    note: str = "",
    progress: Callable[[str], None] | None = None,
) -> Recorded:
    """Record one or more looks at a machine into a file.

    Args:
        machine: the running machine.
        path: of the file; replaced if it is there, and only by a complete recording.
        looks: how many looks.
        interval_ms: time from the start of one to the start of the next, if it does not itself take longer.
        only: inodes of namespaces; all if None.
        redact: replace addresses, names and command lines by pseudonyms.
        keep_names: process names that redaction leaves as they are.
        note: a line for the reader.
        progress: told what is being done.

    Raises:
        ValueError: not even one look.
        RecordingError: the file cannot be written.
        KernelError: the look failed.
    """
    if looks < 1:
        raise ValueError("a recording has at least one look")
    plan = Plan(only=only, established_limit=None, progress=progress)
    names = Pseudonyms(keep=keep_names) if redact else None
    gaps: set[Gap] = set()
    with writing(path, looks=looks, redacted=redact, note=note) as add:
        due = time.monotonic()
        for _ in range(looks):
            time.sleep(max(0.0, due - time.monotonic()))
            due = time.monotonic() + interval_ms / 1000
            look = complete(machine, plan)
            gaps.update(look.gaps)
            # one at a time: a look at a million sockets is 600 MB
            add(look if names is None else redact_look(look, names))
    return Recorded(len(decode.sockets(look)), tuple(sorted(gaps)), look)
