"""Who an act is about: connections named by namespace and cookie, read again, and what came of each.

A plan may be minutes old. Before an act its connections are read again by cookie; that is done here, as are the
names under which the journal and the kernel know them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np

from finwait.errors import FinwaitError, TargetGone
from finwait.kernel import netns as ns_edge
from finwait.kernel import procfs
from finwait.kernel.destroy import Target, read_back
from finwait.kernel.journal import Taken
from finwait.kernel.observe import RunningMachine
from finwait.remedy.journal import Act
from finwait.remedy.outcome import Outcome
from finwait.remedy.plan import End, Step
from finwait.table import decode
from finwait.table.sockets import SocketTable, pack_address
from finwait.table.units import endpoint
from finwait.uapi import inet_diag
from finwait.uapi import netlink as nl
from finwait.uapi import observation as obs

__all__ = [
    "NOT_ENTERED",
    "ActJournal",
    "Holder",
    "Key",
    "Say",
    "failed",
    "in_words",
    "journal_target",
    "journaled",
    "kernel_target",
    "key_of",
    "leads",
    "namespaces_of",
    "quiet",
    "reread",
    "rows_by_cookie",
    "vanished",
]

Say = Callable[[str], None]

Holder = tuple[int, int, str]
"""pid, descriptor, name of the program."""


class ActJournal(Protocol):
    """What is asked of the journal; `finwait.kernel.journal.SqliteJournal` has it."""

    def record_many(self, acts: Sequence[Act]) -> list[int]:
        """Write acts down before they are done; return their numbers."""

    def claim_many(self, acts: Sequence[Act], *, besides: int | None = None) -> list[int | Taken]:
        """Write acts down that no other act on the same connections overlaps; return numbers, or who is at it."""

    def complete_many(self, results: Mapping[int, Mapping[str, Any]]) -> None:
        """Write down what came of acts."""

    def get(self, act_id: int) -> Any:  # noqa: ANN401 - a JournalEntry
        """Return an act; ValueError if there is none."""

    def open_undos(self, act_id: int) -> Sequence[Any]:
        """Return the acts that began to take an act back and have no result."""

    def is_running(self, entry: Any) -> bool:  # noqa: ANN401 - a JournalEntry
        """Return whether the process that does it is still there."""


def quiet(_: str) -> None:
    """Say nothing."""
    return


_DUMP_FROM: Final = 20_000
"""So many connections of a namespace are read again by a dump rather than one by one."""


def reread(
    ends: Iterable[Step | End], spaces: Sequence[ns_edge.NetNamespace] | None = None
) -> tuple[SocketTable, frozenset[int]]:
    """Read connections again, without owners and files: each by its cookie, or (very many, MPTCP) by a dump.

    Args:
        ends: the connections.
        spaces: their namespaces, where those are known already: to find them may take longer than the reading.

    Returns:
        The rows that are there, and the namespaces that are there and could not be inspected: what is missing of
        those is not known to be gone.
    """
    by_ns: dict[int, list[Step | End]] = {}
    for end in ends:
        by_ns.setdefault(end.netns, []).append(end)
    dumped = {
        n for n, group in by_ns.items() if len(group) >= _DUMP_FROM or any(e.protocol != 6 for e in group)
    }
    if not dumped:
        return _read_each([e for group in by_ns.values() for e in group], spaces)
    plan = obs.LookPlan(
        extensions=inet_diag.extension_mask(inet_diag.INFO), only=frozenset(by_ns), conntrack=False, files=False,
        descriptors=False, established_limit=None,
    )  # fmt: skip
    look = RunningMachine().observe(plan)
    missing = by_ns.keys() - {ns.inode for ns in look.namespaces}
    return decode.sockets(look), frozenset(
        n.inode for n in namespaces_of(missing)
    ) if missing else frozenset()


def _read_each(
    ends: Sequence[Step | End], spaces: Sequence[ns_edge.NetNamespace] | None
) -> tuple[SocketTable, frozenset[int]]:
    targets = [kernel_target(end) for end in ends]
    inodes = {e.netns for e in ends}
    if spaces is None:
        spaces = namespaces_of(inodes, leads(ends))
    answers, entered = read_back(spaces, targets, inet_diag.extension_mask(inet_diag.INFO))
    closed = frozenset(space.inode for space in spaces if space.inode in inodes) - entered
    if not answers:
        return SocketTable.empty(), closed
    lengths = np.array([len(data) for _, data in answers], np.int64)
    stops = np.cumsum(lengths)
    buffer = np.frombuffer(b"".join(data for _, data in answers), np.uint8)
    rows = inet_diag.find_rows(buffer, nl.walk(buffer, stops - lengths, stops))
    netns = np.array([targets[k].netns for k, _ in answers], np.uint32)
    return SocketTable.from_rows(rows, netns[rows.chain], np.full(len(rows), 6, np.uint16)), closed


def rows_by_cookie(table: SocketTable) -> dict[tuple[int, int], int]:
    """Return the row of each connection of a table, by namespace and cookie."""
    return {
        (n, c): k for k, (n, c) in enumerate(zip(table.netns.tolist(), table.cookie.tolist(), strict=True))
    }


def leads(ends: Iterable[Step | End]) -> list[tuple[int, int, int]]:
    """Return descriptors of sockets that lead into their namespaces, where nothing else may."""
    return [(e.netns, pid, fd) for e in ends if isinstance(e, Step) for pid, fd, _ in e.holders[:1]]


def namespaces_of(
    inodes: Iterable[int], leads: Sequence[tuple[int, int, int]] = ()
) -> list[ns_edge.NetNamespace]:
    """Return namespaces by inode; descriptors, which may keep one alive, are listed only when they must be."""
    requested = set(inodes)
    namespaces = [n for n in ns_edge.discover()[0] if n.inode in requested]
    # A thread may only be visiting, as ours do: where nothing else leads in, look further.
    if sum(any("/task/" not in path for path in n.paths) for n in namespaces) < len(requested):
        namespaces = [n for n in ns_edge.discover(procfs.descriptors()[1], leads)[0] if n.inode in requested]
    return namespaces


@lru_cache(maxsize=4096)
def _address(family: int, text: str) -> bytes:
    high, low = pack_address(text)
    if family == inet_diag.AF_INET:
        return (low & 0xFFFFFFFF).to_bytes(4, "big")
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


def kernel_target(end: Step | End) -> Target:
    """Return what SOCK_DIAG knows a connection end by."""
    identity = inet_diag.SocketId(
        end.sport, end.dport, _address(end.family, end.src), _address(end.family, end.dst), end.ifindex,
        int(end.cookie, 16),
    )  # fmt: skip
    return Target(end.netns, end.family, end.protocol, identity)


def journal_target(step: Step) -> dict[str, Any]:
    """Return what the journal knows a connection by."""
    return {
        "means": step.means,
        "netns": step.netns,
        "protocol": step.protocol,
        "family": step.family,
        "src": step.src,
        "sport": step.sport,
        "dst": step.dst,
        "dport": step.dport,
        "ifindex": step.ifindex,
        "cookie": step.cookie,
        "inode": step.inode,
        "connection": f"{endpoint(step.src, step.sport)} {endpoint(step.dst, step.dport)}",
        "state": step.state,
        "holders": [[pid, fd, comm] for pid, fd, comm in step.holders],
    }


def vanished(netns: Iterable[int]) -> frozenset[int]:
    """Return those namespaces to which nothing leads any more, and which therefore nobody could look into."""
    requested = frozenset(netns)
    return requested - {n.inode for n in namespaces_of(requested)}


def journaled(o: Outcome) -> dict[str, str]:
    """Return what the journal writes down of an outcome."""
    return {"error": o.detail} if o.result == "failed" else {"result": o.result, "detail": o.detail}


Key = tuple[int, int]
"""Namespace and cookie: what names a connection end."""


def key_of(end: Step | End) -> Key:
    """Return what names a connection end on this boot."""
    return end.netns, int(end.cookie, 16)


NOT_ENTERED: Final = "its namespace could not be inspected"


def in_words(error: FinwaitError) -> str:
    """Return an error with its hint."""
    return f"{error} ({error.hint})" if error.hint else str(error)


def failed(step: Step, error: FinwaitError, act_id: int = 0) -> Outcome:
    """Return the outcome of a step whose act failed; that its connection left is no failure."""
    if isinstance(error, TargetGone):
        return Outcome(step, "left before", str(error), act_id)
    return Outcome(step, "failed", in_words(error), act_id)
