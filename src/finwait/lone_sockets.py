"""TCP sockets that descriptors name and no dump contains: asked one by one, for what they say of themselves.

Such a socket may be one whose connection is gone while its descriptor stays open (which nothing else shows), one that
was never connected, one that was made since, or one that lives in a namespace that nothing else leads to.

What this cannot see: sockets that a missing right, or a kernel before 5.6, keeps us from asking; those are gaps.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.diagnosis.view import HiddenDescriptor
from finwait.errors import Gap
from finwait.kernel import rights
from finwait.table import decode
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp
from finwait.uapi.inet_diag import SOCKET_NAMES
from finwait.uapi.observation import Descriptors, LoneSocket, LookPlan, Observation, ProcessFiles, unseen
from finwait.uapi.sets import among

__all__ = [
    "LoneSockets",
    "ask_lone_sockets",
    "closed_already",
    "hidden_before",
    "hidden_descriptors",
    "may_trace",
    "not_entered",
]


class Answering(Protocol):
    """What of a machine answers questions about such sockets (see `finwait.session.Machine`)."""

    @property
    def live(self) -> bool:
        """Whether it is the machine that we run on."""

    def observe(self, plan: LookPlan) -> Observation:
        """Look once."""

    def lone_sockets(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, LoneSocket]:
        """Return what TCP sockets that no dump contains say of themselves, by inode."""

    def socket_protocols(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, str]:
        """Return the protocol names of sockets by inode."""


_CAP_SYS_PTRACE: Final = 19
_MOST_ASKED: Final = 20_000
"""Sockets without a row to ask at most; some 10 µs each."""


def _lost(
    machine: Answering,
    listed: NDArray[np.uint64],
    descriptors: Descriptors,
    only: frozenset[int] | None,
    files: Mapping[int, ProcessFiles],
) -> list[tuple[int, int, int]]:
    """Return ``(pid, fd, inode)`` of TCP sockets that are not among those that some dump has listed."""
    lost = ~among(descriptors.inode, listed)
    if only is not None:  # its process's namespace is the best lead, but a process may hold sockets of others
        pids = [pid for pid, process_files in files.items() if process_files.netns in only]
        lost &= np.isin(descriptors.pid, np.array(pids, np.uint32))
    triples = list(
        zip(
            descriptors.pid[lost].tolist(),
            descriptors.fd[lost].tolist(),
            descriptors.inode[lost].tolist(),
            strict=True,
        )
    )
    names = machine.socket_protocols(triples)
    return [triple for triple in triples if names.get(triple[2]) in SOCKET_NAMES]


def hidden_descriptors(
    asked: LoneSockets,
    only: frozenset[int] | None,
    enough: int,
    service: Mapping[int, int],
    capable: bool,
) -> tuple[tuple[HiddenDescriptor, ...], list[Gap]]:
    """Say which descriptors refer to connections that are gone, and of which processes nobody knows.

    Before Linux 5.6 no socket can be asked. There a service that has fewer of both together than ``enough`` is no gap:
    it would be no finding whatever they are, and every machine with a socket not yet connected had a gap for ever.

    A socket that no dump contains may also be one that was never connected, one that was made since, or one that lives
    in a namespace that was not inspected.
    """
    hidden: list[HiddenDescriptor] = []
    unknown: dict[int, list[int]] = {}
    for pid, fd, inode in asked.triples:
        sock = asked.said.get(inode)
        if sock is None:  # it is gone by now
            continue
        if not sock.state:
            unknown.setdefault(pid, []).append(sock.errno)
        elif sock.state == tcp.CLOSE and sock.used and (only is None or not sock.netns or sock.netns in only):
            hidden.append(HiddenDescriptor(pid, fd, inode, sock.netns, sock.sport, sock.unread))
    perhaps = Counter(service.get(descriptor.pid, descriptor.pid) for descriptor in hidden)
    for pid, errnos in unknown.items():
        perhaps[service.get(pid, pid)] += len(errnos)
    why = {
        pid: numbers
        for pid, numbers in unknown.items()
        if perhaps[service.get(pid, pid)] >= enough or errno.ENOSYS not in numbers
    }
    if not why:
        return tuple(hidden), []
    doing = "ask the TCP sockets that no dump contains for their state"
    numbers = {number for errnos in why.values() for number in errnos}
    return tuple(hidden), [Gap.of_processes(why, doing, _right_to_ask(numbers, capable=capable))]


def closed_already(asked: LoneSockets) -> dict[tuple[int, int, int], int]:
    """Return ``(pid, fd, inode)`` of those whose connection was gone at this look, or of which that is not known.

    Each with the bytes that could still be read from it; 0 where that is not known. Where the state is not known, what
    a later look finds is not held against them any less.
    """
    return {
        triple: lone.unread
        for triple in asked.triples
        if (lone := asked.said.get(triple[2])) is not None
        and (not lone.state or (lone.state == tcp.CLOSE and lone.used))
    }


def hidden_before(
    hidden: tuple[HiddenDescriptor, ...], before: Mapping[tuple[int, int, int], int]
) -> tuple[HiddenDescriptor, ...]:
    """Return those of descriptors without a connection that were so at an earlier look as well (`closed_already`).

    A server whose clients cancel has such descriptors at every moment, and closes each of them a little later. That a
    descriptor was in no dump at the earlier look is not enough: it may have been made while that look went on, or not
    have been connected yet. One from which something was read meanwhile is in use: its program reads what came before
    the end.
    """
    return tuple(
        descriptor
        for descriptor in hidden
        if (unread := before.get((descriptor.pid, descriptor.fd, descriptor.inode))) is not None
        and unread <= descriptor.unread
    )


def may_trace(look: Observation) -> bool:
    """Return whether the looker had CAP_SYS_PTRACE."""
    return bool(look.facts.capabilities >> _CAP_SYS_PTRACE & 1)


def _right_to_ask(numbers: set[int], *, capable: bool) -> str:
    """Return what would let us ask a socket that only a descriptor names, by why we could not."""
    if errno.ENOSYS in numbers:
        return "pidfd_getfd, which came with Linux 5.6"
    if errno.EINVAL in numbers:
        return "pidfd_open() of a thread, which came with Linux 6.9"
    if not numbers & {errno.EPERM, errno.EACCES}:
        return ""
    if capable:
        return "a policy that allows it (yama's ptrace_scope below 3, a security module); CAP_SYS_PTRACE is not enough"
    return "CAP_SYS_PTRACE"


_MANY: Final = 2_000
"""Of more descriptors without a row, those of ESTABLISHED sockets are told apart by a dump of their inodes alone."""


def _left_out(
    machine: Answering, observation: Observation, plan: LookPlan, descriptors: Descriptors
) -> NDArray[np.uint64]:
    """Return the inodes of ESTABLISHED sockets that were left out of the dumps, where there are many descriptors.

    A dump without attributes takes less than a microsecond a socket; asking each descriptor takes ten and more.
    """
    spaces = frozenset(ns.inode for ns in observation.namespaces if ns.established_skipped)
    if not spaces or not machine.live or len(descriptors.inode) < _MANY:
        return np.empty(0, np.uint64)
    bare = replace(
        plan, states=1 << tcp.ESTABLISHED, extensions=0, conntrack=False, files=False, descriptors=False,
        established_limit=None, only=spaces,
    )  # fmt: skip
    return decode.sockets(machine.observe(bare)).inode.astype(np.uint64)


def _few_of_each(
    triples: list[tuple[int, int, int]],
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """Return as many as can be asked, the same number of each process as far as they go round; and the others."""
    if len(triples) <= _MOST_ASKED:
        return triples, []
    ranked = _fairly(triples)
    return ranked[:_MOST_ASKED], ranked[_MOST_ASKED:]


def _fairly(triples: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return the first of each process, then the second of each, and so on."""
    count: Counter[int] = Counter()
    ranked = []
    for triple in triples:
        ranked.append((count[triple[0]], *triple))
        count[triple[0]] += 1
    return [(pid, fd, inode) for _, pid, fd, inode in sorted(ranked)]


class LoneSockets(Struct, frozen=True):
    """What was asked, and what came of it."""

    triples: list[tuple[int, int, int]]
    """``(pid, fd, inode)`` of those that were asked."""
    said: Mapping[int, LoneSocket]
    """Inode → what the socket says of itself."""
    spaces: list[tuple[int, int, int]]
    """``(netns, pid, fd)`` of those in namespaces that nothing else leads to."""
    gaps: list[Gap]
    """More of them than can be asked."""


def ask_lone_sockets(
    machine: Answering,
    observation: Observation,
    plan: LookPlan,
    sockets: SocketTable,
    descriptors: Descriptors,
    files: Mapping[int, ProcessFiles],
) -> LoneSockets:
    """Ask the TCP sockets that descriptors name and no dump contains, as many as can be asked.

    Args:
        machine: who answers.
        observation: the look.
        plan: what it was asked to read.
        sockets: its rows.
        descriptors: its descriptors.
        files: of the processes that hold its rows.
    """
    listed = np.concatenate(
        [sockets.inode.astype(np.uint64), _left_out(machine, observation, plan, descriptors)]
    )
    lost, unasked = _few_of_each(_lost(machine, listed, descriptors, plan.only, files))
    gaps = []
    if unasked:
        pids = {pid for pid, _, _ in unasked}
        doing = f"ask {len(unasked)} more TCP sockets that no dump contains for their state"
        gaps.append(Gap.of_processes(pids, doing, ""))
    answers = machine.lone_sockets(lost)
    spaces = list(unseen(observation, answers, lost)) if plan.only is None else []
    return LoneSockets(lost, answers, spaces, gaps)


def not_entered(spaces: Iterable[tuple[int, int, int]], observation: Observation) -> list[Gap]:
    """Return namespaces that only sockets lead to as gaps, but for those that could not be entered anyway."""
    unentered = {gap.netns for gap in observation.gaps if gap.unentered}
    doing = "look into it: only sockets lead there"
    needs = rights.missing("CAP_SYS_ADMIN", observation.facts.capabilities)
    return [Gap.of_namespace(netns, doing, needs) for netns, _, _ in spaces if netns not in unentered]
