"""What a FILTER may ask about a row beyond its columns: owners, names, ages, rules.

Answers `finwait.table.predicates.CONTEXT` from a view, and from findings where there are some. What is not known is
None, so that neither a comparison nor its opposite matches; what is known in part ends with None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import outlook
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import View
from finwait.table.predicates import Perhaps, uid_unknown
from finwait.uapi.sets import distinct

__all__ = ["ViewContext"]

Devices = Callable[[Iterable[int]], Mapping[tuple[int, int], str]]


class ViewContext:
    """Context of the rows of a view.

    Args:
        view: the sockets and their joins.
        findings: for ``rule``, ``also``, ``variant`` and ``severity``; None when no rule has been applied.
        users: uid → name; None where names of users are not known, as in a recording.
        devices: gives (netns, ifindex) → name for the interfaces of namespaces.
    """

    def __init__(
        self,
        view: View,
        findings: Iterable[Finding] | None = None,
        users: Mapping[int, str] | None = None,
        devices: Devices | None = None,
    ) -> None:
        self._view = view
        self._findings = None if findings is None else tuple(findings)
        self.users = users
        self._devices = devices

    def values(self, name: str) -> Sequence[Any] | NDArray[Any]:
        """Return one value a row; see `finwait.table.predicates.CONTEXT`.

        Raises:
            KeyError: nothing of that name is known.
            ValueError: nothing of that name is known, and there is another way to ask.
        """
        view, s = self._view, self._view.sockets
        if name in ("age_at_least_s", "age_at_most_s"):
            ms = view.at_least_ms if name == "age_at_least_s" else view.at_most_ms
            return np.where(ms < 0, np.nan, ms / 1000)
        if name == "autobound":
            raise ValueError(
                f"the kernel does not report whether it chose a port; compare with its range, {self._port_ranges()}"
            )
        if name == "pid":
            return self._per_holder(lambda pid: pid)
        if name == "comm":
            return self._per_holder(lambda pid: view.processes[pid].comm if pid in view.processes else "?")
        if name == "netns":
            names = {n: (*ns.names, str(n)) for n, ns in view.namespaces.items()}
            return [names.get(n, (str(n),)) for n in s.netns.tolist()]
        if name == "cgroup":
            return self._cgroups()
        if name == "user":
            return self._owners()
        if name == "dev":
            return self._interfaces()
        if name in ("container", "pod"):
            return self._workloads(name)
        if name in ("namespace", "workload", "service", "label"):
            return self._cluster(name)
        if name == "ends":
            return [prospect.ends for prospect in outlook.of_rows(view, np.arange(len(view)))]
        if name in ("waited", "thread"):
            return self._waits(name)
        if name in ("rule", "also", "variant", "severity") and self._findings is not None:
            return self._causes(name, self._findings)
        raise KeyError(name)

    def _waits(self, name: str) -> NDArray[Any]:
        """Return who waits for each row; None where nobody asked, or it is not known."""
        cells: NDArray[Any] = np.empty(len(self._view), object)
        for wait, rows in self._view.waits.answers:
            if name == "waited":
                cells[rows] = wait.kind
            else:
                names = (*wait.names, None) if wait.kind == "unknown" else wait.names
                for row in rows.tolist():
                    cells[row] = names
        return cells

    def _port_ranges(self) -> str:
        """Return FILTERs for the ports that the namespaces choose from."""
        ranges = {ns.sysctls.get("ipv4/ip_local_port_range", "") for ns in self._view.namespaces.values()}
        bounds = sorted(text.split() for text in ranges if len(text.split()) == 2) or [["32768", "60999"]]
        return ", ".join(f"`sport >= :{low} sport <= :{high}`" for low, high in bounds[:3])

    def _per_holder(self, value_of: Callable[[int], Any]) -> list[Any]:
        view = self._view
        others = self._perhaps(value_of)
        nobody = others or (None,)  # of one whose holder is not known although everybody was looked into
        queued = self._acceptors(value_of, others)
        result: list[Any] = []
        for row, (count, unknown) in enumerate(
            zip(view.holders.count.tolist(), view.holder_unknown.tolist(), strict=True)
        ):
            if view.releasing and (threads := view.releasers(row)):
                names = tuple(dict.fromkeys(value_of(thread.pid) for thread in threads))
                known = len(names) == 1 and names != ("?",) and view.nearby(threads[0], row)
                result.append(names if known else (None,))
            elif count:
                cells = tuple(
                    None if (cell := value_of(pid)) == "?" else cell for pid, _ in view.holders.of(row)
                )
                result.append((*cells, *others))
            elif row in queued:
                result.append(queued[row])
            else:
                result.append(nobody if unknown else ())
        return result

    def _acceptors(
        self, value_of: Callable[[int], Any], others: tuple[Perhaps | None, ...]
    ) -> dict[int, tuple[Any, ...]]:
        """Return what a row in an accept queue has: nobody holds it yet, and whoever holds its listener is to take it.

        Of several listeners, as with SO_REUSEPORT, nothing tells which has it: what is not true of all may be so.
        """
        view = self._view
        rows, listeners = view.listeners
        of_listener = {
            listener: frozenset(value_of(pid) for pid, _ in view.holders.of(listener))
            for listener in set(listeners.tolist())
        }
        of_row: dict[int, set[frozenset[Any]]] = {}
        in_doubt = set()
        for row, listener in zip(rows.tolist(), listeners.tolist(), strict=True):
            of_row.setdefault(row, set()).add(of_listener[listener])
            if view.holder_unknown[listener]:
                in_doubt.add(row)
        made: dict[frozenset[frozenset[Any]], tuple[Any, ...]] = {}
        result = {}
        for row, ways in of_row.items():
            key = frozenset(ways)
            if key not in made:
                common, all_cells = frozenset.intersection(*key), frozenset.union(*key)
                sure = tuple(None if cell == "?" else cell for cell in sorted(common))
                perhaps = (Perhaps(frozenset(map(str, all_cells - common))),) if all_cells - common else ()
                made[key] = (*sure, *perhaps, *others)
            result[row] = (*made[key], None) if row in in_doubt else made[key]
        return result

    def _perhaps(self, value_of: Callable[[int], Any]) -> tuple[Perhaps | None, ...]:
        """Return what any held row may have beside what was found: the processes that could not be inspected."""
        holders = self._view.holders
        if holders.complete:
            return ()
        cells = {value_of(pid) for pid in (*holders.unreadable, *holders.threads)}
        if not holders.searched or 0 in holders.unreadable or "?" in cells:
            return (None,)
        return (Perhaps(frozenset(map(str, cells))),)

    def _causes(self, name: str, findings: Iterable[Finding]) -> NDArray[Any]:
        cells: NDArray[Any] = np.empty(len(self._view), object)
        cells.fill(())
        cell = np.empty((), object)
        for finding in findings:
            if finding.primary and name != "also":
                word = {"rule": finding.rule, "severity": finding.severity}.get(name, str(finding.variant))
                cell[()] = (word,)
                cells[finding.rows] = cell
            elif not finding.primary and name == "also":
                for row in finding.rows.tolist():
                    cells[row] = (*cells[row], finding.rule)
        return cells

    def _owners(self) -> list[str | None]:
        s = self._view.sockets
        if self.users is None:
            raise ValueError("a recording has no user names; compare with a number: `user = 33`")
        users = self.users
        unknown = uid_unknown(s, np.arange(len(s)))
        return [
            None if not_known else users.get(uid, str(uid))
            for uid, not_known in zip(s.uid.tolist(), unknown.tolist(), strict=True)
        ]

    def _interfaces(self) -> list[str | None]:
        s = self._view.sockets
        bound = distinct(s.netns[s.ifindex != 0]).tolist()
        names = self._devices(bound) if self._devices is not None and bound else {}
        return [
            names.get((n, i)) if i else "" for n, i in zip(s.netns.tolist(), s.ifindex.tolist(), strict=True)
        ]

    def _workloads(self, name: str) -> list[tuple[str | None, ...] | None]:
        """Return ids, and the names that people gave, as far as the API server has told them."""
        view = self._view
        result: list[tuple[str | None, ...] | None] = []
        for work, known, pod in zip(view.workloads, view.placed.tolist(), view.row_names.pod, strict=True):
            word = (work.container_id if name == "container" else work.pod_uid) if work else ""
            if name == "pod":
                called = pod.path if pod is not None else None
            else:
                called = pod.containers.get(word) if pod is not None and word else None
            if word:
                result.append((word, called))
            elif called and name == "pod":  # by its network namespace or its address
                result.append((called, None))
            else:
                result.append(() if known else None)
        return result

    def _cluster(self, name: str) -> Sequence[Any]:
        """Return what the API server's names say; of a pod that it has not named, nothing is known."""
        view = self._view
        if not view.names.as_of and view.unnamed:
            raise ValueError(f"`{name}` needs the names of a cluster: {view.unnamed[0]}")
        if not view.names.as_of:
            raise ValueError(
                f"`{name}` needs the names of a cluster: from an agent that follows one, or by `--kube-names FILE`"
            )
        if name == "service":
            known = {"services", "endpointslices"} <= view.names.as_of.keys()
            return [service if known or service else None for service in view.row_names.service]
        result: list[tuple[str, ...] | None] = []
        for pod, work, known in zip(view.row_names.pod, view.workloads, view.placed.tolist(), strict=True):
            if pod is None:
                result.append(() if known and not (work and work.pod_uid) else None)
            elif name == "label":
                result.append((*pod.labels, *(f"{key}={value}" for key, value in pod.labels.items())))
            else:
                result.append((pod.namespace if name == "namespace" else pod.workload,))
        return result

    def _cgroups(self) -> list[str | None]:
        s, paths = self._view.sockets, self._view.cgroup_paths
        present = s.present("cgroup_id")
        return [
            paths.get(c) if p else None for c, p in zip(s.cgroup_id.tolist(), present.tolist(), strict=True)
        ]
