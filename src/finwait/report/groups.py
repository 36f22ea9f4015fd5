"""Connections in groups: by cause, process, pod, peer, port, namespace or state.

Made with columns: a quarter of a million connections in some thousand groups take some tens of milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.attribution.services import name_of
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import View
from finwait.report.json import different_addresses
from finwait.uapi import tcp

__all__ = ["GROUPINGS", "SORTS", "Grouping", "Groups", "groups", "workers"]

Grouping = Literal["cause", "process", "pod", "peer", "local port", "netns", "state"]

GROUPINGS: Final[tuple[Grouping, ...]] = get_args(Grouping)
"""What connections can be grouped by. A pod is a container or a unit where there is no pod."""

SORTS: Final = ("connections", "oldest", "name")
"""What groups can be sorted by."""

I64 = NDArray[np.int64]

_STATES: Final = 256
"""``idiag_state`` is a byte, and a newer kernel may have states that we do not know."""


class Groups(Struct, frozen=True):
    """Connections in groups."""

    by: Grouping
    rows: I64
    """The rows of the view that were grouped."""
    code: I64
    """Which group each of them is in: an index into `labels`."""
    labels: tuple[str, ...]
    counts: I64
    states: I64
    """(groups, 256): connections in each state."""
    oldest_ms: I64
    """The longest time that a connection of the group has been in its state for sure; −1 unknown."""

    def __len__(self) -> int:
        return len(self.labels)

    def order(self, sort: str, *, reverse: bool = False) -> I64:
        """Return the groups in an order of `SORTS`: most, oldest, or by name.

        Raises:
            ValueError: no such order.
        """
        if sort == "connections":
            order = np.lexsort((-self.oldest_ms, -self.counts))
        elif sort == "oldest":
            order = np.lexsort((-self.counts, -self.oldest_ms))
        elif sort == "name":
            order = np.argsort(np.array(self.labels, dtype=object), kind="stable")
        else:
            raise ValueError(f"groups cannot be sorted by {sort}")
        return order[::-1] if reverse else order

    def members(self, label: str) -> I64:
        """Return the rows of a group; none when there is no such group."""
        codes = [k for k, name in enumerate(self.labels) if name == label]
        return self.rows[np.isin(self.code, codes)]

    def states_text(self, group: int) -> str:
        """Return a group's states, most first: ``FIN_WAIT2 7, CLOSE_WAIT 7``."""
        counted = self.states[group]
        return ", ".join(
            f"{tcp.state_name(s)} {int(counted[s]):,}"
            for s in np.argsort(-counted, kind="stable").tolist()
            if counted[s]
        )


def groups(view: View, findings: Sequence[Finding], rows: I64, by: Grouping) -> Groups:
    """Return rows of a view in groups.

    Args:
        view: the connections.
        findings: what was said of them; their rows index the view.
        rows: which of them.
        by: what they have in common.

    Raises:
        ValueError: no such grouping.
    """
    code, labels = _codes(view, findings, rows, by)
    # Two processes of one name, or two addresses that read alike, stay two groups only if their labels differ.
    used, code = np.unique(code, return_inverse=True) if len(code) else (np.empty(0, np.int64), code)
    names = tuple(labels[k] for k in used.tolist())
    code = code.reshape(-1).astype(np.int64)
    state = view.sockets.state[rows].astype(np.int64)
    states = np.bincount(code * _STATES + state, minlength=len(names) * _STATES).reshape(-1, _STATES)
    oldest = np.full(len(names), -1, np.int64)
    np.maximum.at(oldest, code, view.at_least_ms[rows].astype(np.int64))
    return Groups(by, rows, code, names, states.sum(axis=1), states, oldest)


def _codes(view: View, findings: Sequence[Finding], rows: I64, by: Grouping) -> tuple[I64, Sequence[str]]:
    s = view.sockets
    if by == "cause":
        return _causes(view, findings, rows)
    if by == "process":
        pids, inverse = np.unique(view.holders.first_pid()[rows], return_inverse=True)
        nobody = "no holder found"
        unknown = "not known" if view.holders.searched else "not looked for (`--no-owners`)"
        services: dict[int, list[int]] = {}
        for pid in pids.tolist():
            services.setdefault(view.services.get(pid, pid), []).append(pid)
        place = {pid: k for k, members in enumerate(services.values()) for pid in members}
        names = [nobody if members[0] < 0 else workers(view, members) for members in services.values()]
        code = np.array([place[pid] for pid in pids.tolist()], np.int64)[inverse.reshape(-1)]
        orphan = (s.inode[rows] == 0) & (view.holders.first_pid()[rows] < 0)
        code[orphan] = len(names)
        code[view.holder_unknown[rows]] = len(names) + 1
        return code, [*names, "nobody: closed, or not accepted yet", unknown]
    if by == "pod":
        names = [
            f"pod {pod.path}"
            if (pod := view.names.pod(w.pod_uid))
            else f"pod {w.pod_uid}"
            if w.pod_uid
            else f"container {w.container_id[:12]}"
            if w.container_id
            else w.unit
            for w in view.workload_names
        ]
        code = view.workload[rows].astype(np.int64)
        return np.where(code < 0, len(names), code), [*(n or "?" for n in names), "none, or not known"]
    if by == "peer":
        texts, inverse = different_addresses(s.dst[rows])
        return inverse.astype(np.int64), texts
    if by == "local port":
        ports, code = np.unique(s.sport[rows], return_inverse=True)
        return code.reshape(-1).astype(np.int64), [str(p) for p in ports.tolist()]
    if by == "netns":
        inodes, code = np.unique(s.netns[rows], return_inverse=True)
        spaces = view.namespaces
        return code.reshape(-1).astype(np.int64), [
            spaces[n].label if n in spaces else f"netns {n}" for n in inodes.tolist()
        ]
    if by == "state":
        return s.state[rows].astype(np.int64), [tcp.state_name(k) for k in range(_STATES)]
    raise ValueError(f"connections cannot be grouped by {by}")


def workers(view: View, pids: Sequence[int]) -> str:
    """Return the name of a process, or of the workers of one service: ``app (812)``, ``app ×60 (812…903)``."""
    name = name_of(view.processes[pid].comm if pid in view.processes else "?" for pid in pids)
    return f"{name} ({pids[0]})" if len(pids) == 1 else f"{name} ×{len(pids)} ({min(pids)}…{max(pids)})"


def _causes(view: View, findings: Sequence[Finding], rows: I64) -> tuple[I64, Sequence[str]]:
    labels = ["no finding"]
    index: dict[str, int] = {}
    code = np.zeros(len(view), np.int64)
    for finding in findings:
        if not finding.primary:
            continue
        label = f"{finding.rule} [{finding.severity}]"
        if label not in index:
            index[label] = len(labels)
            labels.append(label)
        code[finding.rows] = index[label]
    return code[rows], labels
