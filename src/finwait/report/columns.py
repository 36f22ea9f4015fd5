"""Everything that can be printed about a connection, by name: the kernel's columns and what was joined.

``--columns`` takes these names; CSV, Arrow and Parquet have them as columns of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.waiting import KINDS
from finwait.diagnosis import outlook
from finwait.report.json import addresses, different_addresses
from finwait.report.socket_options import keepalive_text, linger_text
from finwait.report.waiting import waiting_text
from finwait.table.derived import DERIVED
from finwait.table.sockets import SCHEMA
from finwait.table.units import endpoint, span_text
from finwait.uapi import tcp
from finwait.uapi.cluster import Pod
from finwait.uapi.observation import UNTOLD_FD
from finwait.uapi.sets import distinct

if TYPE_CHECKING:
    from finwait.diagnosis.finding import Finding
    from finwait.diagnosis.view import View
    from finwait.uapi.observation import SocketOptions

__all__ = ["NAMES", "Cells", "rules_of"]

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


def _state_names(states: list[int]) -> list[str]:
    names = {state: tcp.state_name(state) for state in set(states)}
    return [names[state] for state in states]


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
        hosts, inverse = different_addresses(s.src if side == "s" else s.dst)
        begins = [endpoint(host, "") for host in hosts]
        ports = map(str, (s.sport if side == "s" else s.dport).tolist())
        result = [begins[k] + port for k, port in zip(inverse.tolist(), ports, strict=True)]
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
        return _state_names(self.sockets.state.tolist())

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
        result: list[str] = np.where(view.holder_unknown[rows], "?", "-").tolist()
        if view.releasing:
            for k, row in enumerate(rows.tolist()):
                if len(threads := view.releasers(row)) == 1:
                    doubt = "" if view.nearby(threads[0], row) else "?"
                    result[k] = f"{threads[0].name}({threads[0].pid}:closing{doubt})"
        single = np.flatnonzero(count == 1)
        first = holders.start[rows[single]]
        begins = {pid: f"{comm.get(pid, '?')}({pid}:" for pid in distinct(holders.pid[first]).tolist()}
        for k, pid, fd in zip(
            single.tolist(), holders.pid[first].tolist(), holders.fd[first].tolist(), strict=True
        ):
            result[k] = f"{begins[pid]}{_descriptor(fd)})"
        for k in np.flatnonzero(count > 1).tolist():
            result[k] = ",".join(
                f"{comm.get(pid, '?')}({pid}:{_descriptor(fd)})" for pid, fd in holders.of(int(rows[k]))
            )
        return result

    def _first_holder(self, attribute: str) -> list[Any]:
        holders = self.view.holders
        held = holders.count[self.rows] > 0
        cells = (
            getattr(holders, attribute)[np.where(held, holders.start[self.rows], 0)]
            if len(holders.pid)
            else held
        )
        return [c if h else None for c, h in zip(cells.tolist(), held.tolist(), strict=True)]

    def _pid(self) -> list[Any]:
        return self._first_holder("pid")

    def _fd(self) -> list[Any]:
        return self._first_holder("fd")

    def _comm(self) -> list[Any]:
        processes = self.view.processes
        return [processes[p].comm if p in processes else None for p in self.column("pid")]

    def _holders(self) -> list[int]:
        return self.view.holders.count[self.rows].tolist()

    def _waited(self) -> list[str | None]:
        kinds = self.view.waits.kinds[self.rows].tolist()
        return [KINDS[kind] if kind >= 0 else None for kind in kinds]

    def _waiting(self) -> list[str | None]:
        waits = self.view.waits
        asked = waits.asked[self.rows].tolist()
        return [
            waiting_text(waits.of(row)) if ask else None
            for row, ask in zip(self.rows.tolist(), asked, strict=True)
        ]

    def _ends(self) -> list[str]:
        return [prospect.ends for prospect in outlook.of_rows(self.view, self.rows)]

    def _outlook(self) -> list[str]:
        return [outlook.text(prospect) for prospect in outlook.of_rows(self.view, self.rows)]

    def _option(self, text: Callable[[SocketOptions], Any]) -> list[Any]:
        known = self.view.socket_options
        options = (known.get(inode) for inode in self.sockets.inode.tolist())
        return [None if sockopts is None or sockopts.errno else text(sockopts) for sockopts in options]

    def _keepalive(self) -> list[Any]:
        return self._option(keepalive_text)

    def _user_timeout_ms(self) -> list[Any]:
        return self._option(lambda sockopts: sockopts.user_timeout_ms)

    def _linger(self) -> list[Any]:
        return self._option(linger_text)

    def _linger2_s(self) -> list[Any]:
        return self._option(lambda sockopts: sockopts.linger2_s)

    def _age(self) -> list[str]:
        least, most = self.view.at_least_ms[self.rows].tolist(), self.view.at_most_ms[self.rows].tolist()
        return [span_text(a, b) for a, b in zip(least, most, strict=True)]

    def _age_at_least_s(self) -> list[float | None]:
        return [None if v < 0 else v / 1000 for v in self.view.at_least_ms[self.rows].tolist()]

    def _age_at_most_s(self) -> list[float | None]:
        return [None if v < 0 else v / 1000 for v in self.view.at_most_ms[self.rows].tolist()]

    def _timer_name(self) -> list[str | None]:
        s = self.sockets
        names: list[str | None] = [
            f"{_TIMERS.get(t, t)},{_time_left(e)},{r}" if t else ""
            for t, e, r in zip(s.timer.tolist(), s.expires_ms.tolist(), s.retrans.tolist(), strict=True)
        ]
        running, due = s.present("timer"), s.present("expires_ms")
        for k in np.flatnonzero(~running | ~due).tolist():
            names[k] = str(_TIMERS.get(int(s.timer[k]), s.timer[k])) if running[k] and s.timer[k] else None
        return names

    def _other_end(self) -> list[str | None]:
        view = self.view
        other = view.other[self.rows]
        paired = np.flatnonzero(other >= 0)
        result: list[str | None] = [None] * len(self.rows)
        if len(paired):
            ends = other[paired]
            s = view.sockets
            states = _state_names(s.state[ends].tolist())
            spaces = s.netns[ends]
            elsewhere = np.where(spaces != s.netns[self.rows[paired]], spaces, 0)
            where = {ns: f" in {view.namespaces[ns].label}" if ns else "" for ns in set(elsewhere.tolist())}
            for k, state, owner, ns in zip(
                paired.tolist(), states, self.owners(ends), elsewhere.tolist(), strict=True
            ):
                result[k] = f"{state} {owner}{where[ns]}"
        return result

    def _other_state(self) -> list[str | None]:
        other = self.view.other[self.rows]
        states = self.view.sockets.state[np.maximum(other, 0)] if len(self.view) else other
        names = _state_names(states.tolist())
        return [name if o >= 0 else None for o, name in zip(other.tolist(), names, strict=True)]

    def _conntrack(self) -> list[str | None]:
        from finwait.uapi.conntrack import TCP_STATES

        view = self.view
        return [
            f"{TCP_STATES.get(st, st)},{timeout_s}s" if tracked else None
            for tracked, st, timeout_s in zip(
                view.has_flow[self.rows].tolist(),
                view.flow_state[self.rows].tolist(),
                view.flow_timeout_s[self.rows].tolist(),
                strict=True,
            )
        ]

    def _cgroup(self) -> list[str | None]:
        paths = self.view.cgroup_paths
        return [paths.get(c) for c in self.sockets.cgroup_id.tolist()]

    def _placed(self, attribute: str) -> list[str | None]:
        all_of_them = self.view.workloads
        return [getattr(w, attribute) or None if (w := all_of_them[r]) else None for r in self.rows.tolist()]

    def _container_id(self) -> list[str | None]:
        return self._placed("container_id")

    def _pod_uid(self) -> list[str | None]:
        return self._placed("pod_uid")

    def _of_pod(self, text: Callable[[Pod], str]) -> list[str | None]:
        pods = self.view.row_names.pod
        return [text(pod) or None if (pod := pods[r]) is not None else None for r in self.rows.tolist()]

    def _pod(self) -> list[str | None]:
        return self._of_pod(lambda pod: pod.path)

    def _namespace(self) -> list[str | None]:
        return self._of_pod(lambda pod: pod.namespace)

    def _workload(self) -> list[str | None]:
        return self._of_pod(lambda pod: pod.workload)

    def _node(self) -> list[str | None]:
        return self._of_pod(lambda pod: pod.node)

    def _container(self) -> list[str | None]:
        pods, boxes = self.view.row_names.pod, self._placed("container_id")
        return [
            pod.containers.get(box) if (pod := pods[r]) is not None and box else None
            for r, box in zip(self.rows.tolist(), boxes, strict=True)
        ]

    def _service(self) -> list[str | None]:
        services = self.view.row_names.service
        return [services[r] or None for r in self.rows.tolist()]

    def _peer_pod(self) -> list[str | None]:
        peers = self.view.row_names.peer
        return [peer.path if isinstance(peer := peers[r], Pod) else peer for r in self.rows.tolist()]

    def _peer_workload(self) -> list[str | None]:
        peers = self.view.row_names.peer
        return [peer.workload if isinstance(peer := peers[r], Pod) else None for r in self.rows.tolist()]

    def _unit(self) -> list[str | None]:
        return self._placed("unit")

    def _rule(self) -> list[str | None]:
        primary, _ = rules_of(self.view, self._findings)
        return [primary[r] or None for r in self.rows.tolist()]

    def _also(self) -> list[str | None]:
        _, also = rules_of(self.view, self._findings)
        return [also[r] or None for r in self.rows.tolist()]


def _time_left(ms: int) -> str:
    """What is left of a timer, as ``ss`` prints it: ``.123ms``, ``12sec``, ``1min59sec``."""
    seconds, minutes = ms // 1000, ms // 60_000
    if minutes:
        rest = seconds - 60 * minutes
        return f"{minutes}min{rest}sec" if rest and minutes < 10 else f"{minutes}min"
    return f"{seconds}sec" if seconds >= 9 else f"{ms / 1000:.1f}sec" if seconds else f"{ms}ms"


def _descriptor(number: int) -> str:
    """Return the number of a descriptor as text; `?` where only the process is known."""
    return "?" if number == UNTOLD_FD else str(number)
