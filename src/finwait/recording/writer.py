"""Looking at a machine for a recording: everything is asked for, because nobody can ask again later."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.errors import DecodeError, Gap
from finwait.recording.format import writing
from finwait.recording.redact import Pseudonyms, redact_look
from finwait.table import decode
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp
from finwait.uapi.cluster import ClusterNames
from finwait.uapi.inet_diag import SOCKET_NAMES
from finwait.uapi.observation import (
    Descriptors,
    LoneSocket,
    LookPlan,
    Observation,
    ProcessFiles,
    ProcessWaits,
    Releasing,
    SocketOptions,
    unseen,
)
from finwait.uapi.proc import parse_stat
from finwait.uapi.sets import distinct

__all__ = ["Recorded", "complete", "observed", "record"]


class RecordingSource(Protocol):
    """The machine, as far as a recording needs it."""

    def observe(self, plan: LookPlan) -> Observation: ...
    def descriptors_again(self) -> Descriptors: ...
    def processes(self, pids: Iterable[int]) -> dict[int, ProcessFiles]: ...
    def cgroups(self, ids: Iterable[int]) -> dict[int, str]: ...
    def close_on_exec(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]: ...
    def socket_protocols(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, str]: ...
    def waits(
        self, fds_of: Mapping[int, Collection[int]], descriptors: Descriptors, inodes: Collection[int]
    ) -> dict[int, ProcessWaits]: ...
    def releasing(self, spaces: Collection[int]) -> tuple[Releasing, ...]: ...
    def socket_options(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, SocketOptions]: ...
    def lone_sockets(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, LoneSocket]: ...
    def one_table(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]: ...
    def remember(self, spaces: Iterable[tuple[int, int, int]]) -> None: ...


class Recorded(Struct, frozen=True):
    """What was recorded, and what could not be seen of it."""

    rows: int
    """Connections in the last look."""
    gaps: tuple[Gap, ...]
    """Of all looks."""
    last: Observation
    """The last look as it was read, before anything was redacted."""


def complete(machine: RecordingSource, plan: LookPlan, *, once_more: bool = True) -> Observation:
    """Look once and read everything that any command could ask about what was seen.

    Args:
        machine: what is looked at.
        plan: what to look at.
        once_more: look again where sockets lead to namespaces that nothing else leads to.
    """
    look = machine.observe(plan)
    sockets = decode.sockets(look)
    listed = look.descriptors
    if listed.searched:
        listed = _together(listed, machine.descriptors_again())
    of_sockets = np.isin(listed.inode, sockets.inode.astype(np.uint64))
    files = machine.processes(distinct(listed.pid).tolist())
    files |= machine.processes(sorted(_parents(files) - files.keys()))  # they tell the workers of one server
    if plan.only is not None:
        listed, of_sockets, files = _inside(plan.only, listed, of_sockets, files)
    stuck = np.isin(sockets.state, [s for s in range(12) if tcp.CLOSING_STATES >> s & 1])
    closing = np.isin(listed.inode, sockets.inode[stuck & (sockets.inode != 0)].astype(np.uint64))
    unfinished = distinct(sockets.inode[sockets.unfinished]).astype(np.uint64)
    asked = distinct(sockets.inode[sockets.unfinished | sockets.answering]).astype(np.uint64)
    lost = ~of_sockets
    rows = list(zip(listed.pid.tolist(), listed.fd.tolist(), listed.inode.tolist(), strict=True))
    triples = [rows[k] for k in np.flatnonzero(lost).tolist()]
    names = machine.socket_protocols(triples)
    triples = [triple for triple in triples if names.get(triple[2]) in SOCKET_NAMES]
    lone = machine.lone_sockets(triples)
    if plan.only is not None:
        # Of a process of a namespace that was asked for, a socket of another: nobody asked for that one.
        others = [inode for inode, sock in lone.items() if sock.netns and sock.netns not in plan.only]
        stay = ~np.isin(listed.inode, np.array(others, np.uint64))
        listed = Descriptors(listed.pid[stay], listed.fd[stay], listed.inode[stay], listed.unreadable)
        lone = {inode: sock for inode, sock in lone.items() if inode not in set(others)}
        closing = closing[stay]
        rows = [row for row, kept in zip(rows, stay.tolist(), strict=True) if kept]
    names = {inode: name for inode, name in names.items() if name not in SOCKET_NAMES or inode in lone}
    if once_more and plan.only is None and (spaces := unseen(look, lone, triples)):
        machine.remember(spaces)
        return complete(machine, plan, once_more=False)
    return replace(
        look,
        descriptors=listed,
        processes=files,
        cgroups=machine.cgroups(distinct(sockets.cgroup_id).tolist() if len(sockets) else []),
        close_on_exec=machine.close_on_exec(
            (rows[k][0], rows[k][1]) for k in np.flatnonzero(closing).tolist()
        ),
        socket_protocols=names,
        lone_sockets=lone,
        one_table=machine.one_table(_held_by_several(rows[k] for k in np.flatnonzero(closing).tolist())),
        releasing=machine.releasing(_unheld(sockets, listed)) if listed.searched else (),
        socket_options=machine.socket_options(listed.triples(asked)),
        waits=machine.waits(listed.of(unfinished), look.descriptors, unfinished.tolist()),
    )


def _inside(
    spaces: Collection[int],
    listed: Descriptors,
    of_sockets: NDArray[np.bool_],
    files: dict[int, ProcessFiles],
) -> tuple[Descriptors, NDArray[np.bool_], dict[int, ProcessFiles]]:
    """Leave out processes and descriptors of other namespaces: of those nothing is recorded."""
    pids = [pid for pid, process_files in files.items() if process_files.netns in spaces]
    keep = of_sockets | np.isin(listed.pid, np.array(pids, np.uint32))
    listed = Descriptors(listed.pid[keep], listed.fd[keep], listed.inode[keep], listed.unreadable)
    parents = _parents(files) & set(pids)
    kept = (set(listed.pid.tolist()) | parents) & files.keys()
    return listed, of_sockets[keep], {pid: files[pid] for pid in kept}


def _unheld(sockets: SocketTable, listed: Descriptors) -> list[int]:
    """Return the namespaces of sockets that do not finish closing and that no descriptor refers to."""
    suspect = sockets.unfinished & (sockets.inode != 0) & ~np.isin(sockets.inode, listed.inode)
    return distinct(sockets.netns[suspect]).tolist()


def _together(first: Descriptors, again: Descriptors) -> Descriptors:
    """Return what either of two searches saw, each descriptor once."""
    both = np.unique(
        np.stack(
            [
                np.concatenate([first.pid, again.pid]).astype(np.uint64),
                np.concatenate([first.fd, again.fd]).astype(np.uint64),
                np.concatenate([first.inode, again.inode]),
            ]
        ),
        axis=1,
    )
    return Descriptors(
        both[0].astype(np.uint32),
        both[1].astype(np.uint32),
        both[2],
        tuple(sorted({*first.unreadable, *again.unreadable, *again.threads})),
    )


def _held_by_several(triples: Iterable[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Return the pairs of processes that hold one socket both: the lowest pid of each with every other."""
    by_inode: dict[int, set[int]] = {}
    for pid, _, inode in triples:
        by_inode.setdefault(inode, set()).add(pid)
    return sorted({(min(pids), pid) for pids in by_inode.values() for pid in pids if pid != min(pids)})


def _parents(files: Mapping[int, ProcessFiles]) -> set[int]:
    """Return the parents of processes, init left out, as far as their files tell."""
    parents = set()
    for process_files in files.values():
        with suppress(DecodeError):
            if process_files.stat is not None:
                parents.add(parse_stat(process_files.stat).ppid)
    return {pid for pid in parents if pid > 1}


def record(
    machine: RecordingSource,
    path: str,
    *,
    looks: int = 1,
    interval_ms: int = 1000,
    only: frozenset[int] | None = None,
    redact: bool = False,
    keep_names: frozenset[str] = frozenset(),
    note: str = "",
    cluster: Callable[[Collection[str]], tuple[ClusterNames, tuple[Gap, ...]]] | None = None,
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
        cluster: asked with addresses what a cluster calls them and its pods, and what of that is not known.
        progress: told what is being done.

    Raises:
        ValueError: not even one look.
        RecordingError: the file cannot be written.
        KernelError: the look failed.
    """
    names = Pseudonyms(keep=keep_names) if redact else None
    gaps: set[Gap] = set()
    plan = LookPlan(only=only, established_limit=None, progress=progress)
    with writing(path, looks=looks, redacted=redact, note=note) as add:
        for look in observed(machine, plan, looks=looks, interval_ms=interval_ms, cluster=cluster):
            gaps.update(look.gaps)
            # one at a time: a look at a million sockets is 600 MB
            add(look if names is None else redact_look(look, names))
    return Recorded(len(decode.sockets(look)), tuple(sorted(gaps)), look)


def observed(
    machine: RecordingSource,
    plan: LookPlan,
    *,
    looks: int,
    interval_ms: int,
    cluster: Callable[[Collection[str]], tuple[ClusterNames, tuple[Gap, ...]]] | None = None,
) -> Iterator[Observation]:
    """Look once or more often, and read everything each time that any command could ask.

    Args:
        machine: the running machine.
        plan: what to look at.
        looks: how many looks.
        interval_ms: as of `record`.
        cluster: as of `record`.

    Raises:
        ValueError: not even one look.
        KernelError: the look failed.
    """
    if looks < 1:
        raise ValueError("a recording has at least one look")
    due = time.monotonic()
    for _ in range(looks):
        time.sleep(max(0.0, due - time.monotonic()))
        due = time.monotonic() + interval_ms / 1000
        look = complete(machine, plan)
        if cluster is not None:
            addresses = decode.addresses(decode.sockets(look), decode.flows(look))
            called, unnamed = cluster(addresses)
            look = replace(look, names=called.about(addresses), gaps=(*look.gaps, *unnamed))
        yield look
