"""What a FILTER may ask about a row beyond its columns: owners, names, ages, rules.

Answers `finwait.table.predicates.CONTEXT` from a view, and from findings where there are some.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["ViewContext"]


class ViewContext:
    """Context of the rows of a view.

    Args:
        view: the sockets and their joins.
        findings: what was found, for ``rule`` and ``severity``; None when no rule has been applied.
        users: uid → name.
        devices: (netns, ifindex) → interface name.
    """

    def __init__(
        self,
        view: View,
        findings: Iterable[Finding] | None = None,
        users: dict[int, str] | None = None,
        devices: dict[tuple[int, int], str] | None = None,
    ) -> None:
        self._view = view
        self._findings = None if findings is None else tuple(findings)
        self._users = users or {}
        self._devices = devices or {}

    def values(self, name: str) -> Sequence[Any] | NDArray[Any]:
        """Return one value a row; see `finwait.table.predicates.CONTEXT`.

        Raises:
            KeyError: nothing of that name is known.
        """
        view, s = self._view, self._view.sockets
        if name in ("age_at_least_s", "age_at_most_s"):
            ms = view.at_least_ms if name == "age_at_least_s" else view.at_most_ms
            return np.where(ms < 0, np.nan, ms / 1000)
        if name == "pid":
            return self._per_holder(lambda pid: pid)
        if name == "comm":
            return self._per_holder(lambda pid: view.processes[pid].comm if pid in view.processes else None)
        if name == "netns":
            names = {n: (*ns.names, str(n)) for n, ns in view.namespaces.items()}
            return [names.get(n, (str(n),)) for n in s.netns.tolist()]
        if name == "cgroup":
            return self._cgroups()
        if name == "user":
            known = (s.timer != 3) & ~np.isin(s.state, (tcp.TIME_WAIT, tcp.SYN_RECV))
            known &= (s.uid != 0) | (
                s.inode != 0
            )  # minisockets and older kernels' orphans report 0, whoever it was
            return [
                self._users.get(uid, str(uid)) if k else None
                for uid, k in zip(s.uid.tolist(), known.tolist(), strict=True)
            ]
        if name == "dev":
            return [
                "" if not i else self._devices.get((n, i), f"if{i}")
                for n, i in zip(s.netns.tolist(), s.ifindex.tolist(), strict=True)
            ]
        if name == "container":
            return [(w.container_id,) if w and w.container_id else () for w in view.workloads]
        if name == "pod":
            return [(w.pod_uid,) if w and w.pod_uid else () for w in view.workloads]
        if name in ("rule", "severity") and self._findings is not None:
            cells: list[tuple[str, ...]] = [()] * len(view)
            for finding in self._findings:
                text = finding.rule if name == "rule" else finding.severity
                for row in finding.rows.tolist():
                    cells[row] = (*cells[row], text)
            return cells
        raise KeyError(name)

    def _per_holder(self, what: Any) -> list[Any]:  # noqa: ANN401 - int or text
        view = self._view
        known = view.holders.complete
        result: list[Any] = []
        for row, (count, inode) in enumerate(
            zip(view.holders.count.tolist(), view.sockets.inode.tolist(), strict=True)
        ):
            if count:
                result.append(tuple(what(pid) for pid, _ in view.holders.of(row)))
            else:
                result.append(() if known or not inode else None)
        return result

    def _cgroups(self) -> list[str | None]:
        s, paths = self._view.sockets, self._view.cgroup_paths
        has = s.present("cgroup_id")
        return [(paths.get(c) if p else "") for c, p in zip(s.cgroup_id.tolist(), has.tolist(), strict=True)]
