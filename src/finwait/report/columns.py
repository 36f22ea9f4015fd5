"""Everything that can be printed about a connection, by name: the kernel's columns and what was joined.

``--columns`` takes these names; CSV, Arrow and Parquet have them as columns of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finwait.report.json import addresses, different_addresses
from finwait.table.sockets import SCHEMA
from finwait.table.units import endpoint, span_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.finding import Finding
    from finwait.diagnosis.view import View

__all__ = ["DERIVED", "NAMES", "Cells", "rules_of"]

DERIVED = {
    "local": "Local address and port.",
    "peer": "Remote address and port.",
    "state_name": "TCP state by name.",
    "family_name": "`inet` or `inet6`.",
    "src_text": "Local address as text.",
    "dst_text": "Remote address as text.",
    "netns_name": "Name of the network namespace, or its inode.",
    "owner": "Holders as `comm(pid:fd)`; `-` for none, `?` when not all processes could be inspected.",
    "pid": "Lowest pid that holds it; empty if none was found.",
    "fd": "Its descriptor there.",
    "comm": "Name of that process.",
    "holders": "Number of descriptors that refer to it.",
    "age": "How long it has been in its state, within bounds.",
    "age_at_least_s": "… at least, in seconds; empty when unknown.",
    "age_at_most_s": "… at most, in seconds; empty when unknown.",
    "timer_name": "Timer by name, with the time left.",
    "other_end": "State, owner and namespace of the other end, if it is on this machine.",
    "other_state": "State of the other end, if it is on this machine.",
    "conntrack": "State and seconds left of its conntrack entry.",
    "cgroup": "Path of the cgroup in which it was created.",
    "container_id": "Container in which it was created.",
    "pod_uid": "Kubernetes pod in which it was created.",
    "unit": "systemd unit in which it was created.",
    "rule": "Primary cause, if a rule has one.",
    "also": "Other rules that match it.",
}
NAMES = tuple(DERIVED) + tuple(SCHEMA.names)
_TIMERS = {0: "", 1: "on", 2: "keepalive", 3: "timewait", 4: "persist"}


def rules_of(view: View, findings: Sequence[Finding]) -> tuple[list[str], list[str]]:
    """Return for each row its primary rule, and the other rules that match it."""
    primary, also = [""] * len(view), [""] * len(view)
    for finding in findings:
        for row in finding.rows.tolist():
            if finding.primary:
                primary[row] = finding.rule
            else:
                also[row] = f"{also[row]},{finding.rule}" if also[row] else finding.rule
    return primary, also


class Cells:
    """Columns of some rows of a view, as Python values, by name."""

    def __init__(self, view: View, rows: NDArray[np.int64], findings: Sequence[Finding] = ()) -> None:
        self.view = view
        self.rows = rows
        self.sockets = view.sockets.select(rows)
        self._findings = findings
        self._made: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[Any]:
        """Return one value a row; None where there is none.

        Raises:
            KeyError: no such column.
        """
        if name not in self._made:
            maker: Callable[[], list[Any]] | None = (
                getattr(self, f"_{name}", None) if name in DERIVED else None
            )
            self._made[name] = maker() if maker else self._raw(name)
        return self._made[name]

    def _raw(self, name: str) -> list[Any]:
        if name not in SCHEMA:
            raise KeyError(name)
        if name in ("src", "dst"):
            return addresses(self.sockets.column(name))
        cells: list[Any] = self.sockets.column(name).tolist()
        if self.sockets.column(name).dtype.kind == "S":
            cells = [c.decode("ascii", "replace") for c in cells]
        present = self.sockets.present(name)
        if not present.all():
            cells = [c if p else None for c, p in zip(cells, present.tolist(), strict=True)]
        return cells

    def _endpoint(self, side: str) -> list[str]:
        s = self.sockets
        hosts, which = different_addresses(s.src if side == "s" else s.dst)
        begins = [endpoint(host, "") for host in hosts]
        ports = map(str, (s.sport if side == "s" else s.dport).tolist())
        result = [begins[k] + port for k, port in zip(which.tolist(), ports, strict=True)]
        if side == "d":
            for k in np.flatnonzero(s.state == tcp.LISTEN).tolist():
                result[k] = "*:*"
        return result

    def _local(self) -> list[str]:
        return self._endpoint("s")

    def _peer(self) -> list[str]:
        return self._endpoint("d")

    def _src_text(self) -> list[str]:
        return addresses(self.sockets.src)

    def _dst_text(self) -> list[str]:
        return addresses(self.sockets.dst)

    def _state_name(self) -> list[str]:
        return [tcp.state_name(s) for s in self.sockets.state.tolist()]

    def _family_name(self) -> list[str]:
        return ["inet" if f == 2 else "inet6" for f in self.sockets.family.tolist()]

    def _netns_name(self) -> list[str]:
        names = {n: v.names[0] if v.names else str(n) for n, v in self.view.namespaces.items()}
        return [names.get(n, str(n)) for n in self.sockets.netns.tolist()]

    def _owner(self) -> list[str]:
        return self.owners(self.rows)

    def owners(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the holders of any rows of the view as text."""
        view = self.view
        holders = view.holders
        comm = {pid: p.comm for pid, p in view.processes.items()}
        count = holders.count[rows]
        unknown = "-" if holders.complete else "?"
        result: list[str] = np.where(view.sockets.inode[rows] == 0, "-", unknown).tolist()
        one = np.flatnonzero(count == 1)
        first = holders.start[rows[one]]
        begins = {pid: f"{comm.get(pid, '?')}({pid}:" for pid in np.unique(holders.pid[first]).tolist()}
        for k, pid, fd in zip(
            one.tolist(), holders.pid[first].tolist(), holders.fd[first].tolist(), strict=True
        ):
            result[k] = f"{begins[pid]}{fd})"
        for k in np.flatnonzero(count > 1).tolist():
            result[k] = ",".join(f"{comm.get(pid, '?')}({pid}:{fd})" for pid, fd in holders.of(int(rows[k])))
        return result

    def _first_holder(self, what: str) -> list[Any]:
        holders = self.view.holders
        has = holders.count[self.rows] > 0
        cells = (
            getattr(holders, what)[np.where(has, holders.start[self.rows], 0)] if len(holders.pid) else has
        )
        return [c if h else None for c, h in zip(cells.tolist(), has.tolist(), strict=True)]

    def _pid(self) -> list[Any]:
        return self._first_holder("pid")

    def _fd(self) -> list[Any]:
        return self._first_holder("fd")

    def _comm(self) -> list[Any]:
        processes = self.view.processes
        return [processes[p].comm if p in processes else None for p in self.column("pid")]

    def _holders(self) -> list[int]:
        return self.view.holders.count[self.rows].tolist()

    def _age(self) -> list[str]:
        least, most = self.view.at_least_ms[self.rows].tolist(), self.view.at_most_ms[self.rows].tolist()
        return [span_text(a, b) for a, b in zip(least, most, strict=True)]

    def _age_at_least_s(self) -> list[float | None]:
        return [None if v < 0 else v / 1000 for v in self.view.at_least_ms[self.rows].tolist()]

    def _age_at_most_s(self) -> list[float | None]:
        return [None if v < 0 else v / 1000 for v in self.view.at_most_ms[self.rows].tolist()]

    def _timer_name(self) -> list[str]:
        s = self.sockets
        return [
            f"{_TIMERS.get(t, t)},{_left(e)},{r}" if t else ""
            for t, e, r in zip(s.timer.tolist(), s.expires_ms.tolist(), s.retrans.tolist(), strict=True)
        ]

    def _other_end(self) -> list[str | None]:
        view = self.view
        other = view.other[self.rows]
        has = np.flatnonzero(other >= 0)
        result: list[str | None] = [None] * len(self.rows)
        if len(has):
            ends = other[has]
            owners = self.owners(ends)
            for k, end, owner in zip(has.tolist(), ends.tolist(), owners, strict=True):
                ns = int(view.sockets.netns[end])
                here = ns == int(view.sockets.netns[self.rows[k]])
                where = "" if here else f" in {view.namespaces[ns].label}"
                result[k] = f"{tcp.state_name(int(view.sockets.state[end]))} {owner}{where}"
        return result

    def _other_state(self) -> list[str | None]:
        other = self.view.other[self.rows]
        states = self.view.sockets.state[np.maximum(other, 0)] if len(self.view) else other
        return [
            tcp.state_name(s) if o >= 0 else None
            for o, s in zip(other.tolist(), states.tolist(), strict=True)
        ]

    def _conntrack(self) -> list[str | None]:
        from finwait.uapi.conntrack import TCP_STATES

        view = self.view
        return [
            f"{TCP_STATES.get(st, st)},{left}s" if has else None
            for has, st, left in zip(
                view.has_flow[self.rows].tolist(),
                view.flow_state[self.rows].tolist(),
                view.flow_timeout_s[self.rows].tolist(),
                strict=True,
            )
        ]

    def _cgroup(self) -> list[str | None]:
        paths = self.view.cgroup_paths
        return [paths.get(c) for c in self.sockets.cgroup_id.tolist()]

    def _workload(self, what: str) -> list[str | None]:
        all_of_them = self.view.workloads
        return [getattr(w, what) or None if (w := all_of_them[r]) else None for r in self.rows.tolist()]

    def _container_id(self) -> list[str | None]:
        return self._workload("container_id")

    def _pod_uid(self) -> list[str | None]:
        return self._workload("pod_uid")

    def _unit(self) -> list[str | None]:
        return self._workload("unit")

    def _rule(self) -> list[str | None]:
        primary, _ = rules_of(self.view, self._findings)
        return [primary[r] or None for r in self.rows.tolist()]

    def _also(self) -> list[str | None]:
        _, also = rules_of(self.view, self._findings)
        return [also[r] or None for r in self.rows.tolist()]


def _left(ms: int) -> str:
    """What is left of a timer, as ``ss`` prints it: ``.123ms``, ``12sec``, ``1min59sec``."""
    seconds, minutes = ms // 1000, ms // 60_000
    if minutes:
        rest = seconds - 60 * minutes
        return f"{minutes}min{rest}sec" if rest and minutes < 10 else f"{minutes}min"
    return f"{seconds}sec" if seconds >= 9 else f"{ms / 1000:.1f}sec" if seconds else f"{ms}ms"
