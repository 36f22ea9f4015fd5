"""What a diagnosis says of each connection in a closing state, for the book of episodes and for limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from finwait.agent.episodes import Cause, Diagnosed
from finwait.agent.leak import Used
from finwait.agent.workload_names import workload_of
from finwait.attribution.join import matches
from finwait.table.sockets import endpoint_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finwait.attribution.container import Workload
    from finwait.diagnosis.finding import Finding
    from finwait.diagnosis.view import View
    from finwait.table.flows import FlowTable
    from finwait.uapi.cluster import Pod

__all__ = ["HEALTHY", "MOST_LIMITS", "NO_RULE", "diagnosed", "doors", "fullest", "pod_numbers", "ports"]

NO_RULE: Final = "unexplained"
HEALTHY: Final = "healthy"
MOST_LIMITS: Final = 100
"""Ports and queues that are told of: the fullest of each workload, then the fullest."""
_MOST_PLACES: Final = 5_000
"""Destinations to which ephemeral ports are counted."""


def _pod_key(workload: Workload | None, pod: Pod | None) -> str:
    """Return the uid of a pod as its cgroup has it, whatever names are known; empty for none."""
    if workload is not None and workload.pod_uid:
        return workload.pod_uid
    return (pod.cgroup_uid or pod.uid) if pod is not None else ""


def pod_numbers(view: View) -> tuple[NDArray[np.int64], list[Pod]]:
    """Return which pod a cluster gives each row (−1 for none), and the pods."""
    numbers = np.full(len(view.sockets), -1, np.int64)
    pods: list[Pod] = []
    if not view.names.pods:
        return numbers, pods
    known: dict[str, int] = {}
    for row, pod in enumerate(view.row_names.pod):
        if pod is not None:
            number = numbers[row] = known.setdefault(pod.uid, len(pods))
            if number == len(pods):
                pods.append(pod)
    return numbers, pods


def diagnosed(view: View, findings: Sequence[Finding], flows: FlowTable | None, now_ms: int) -> Diagnosed:
    """Return what is said of each connection in a closing state.

    Args:
        view: everything that was seen.
        findings: what the rules make of it.
        flows: entries of connection tracking; None where there are none.
        now_ms: CLOCK_BOOTTIME at the end of the look, in ms: from it processes have their ages.
    """
    s = view.sockets
    hits = np.full(len(s), -1, np.int64)
    for k, finding in enumerate(findings):
        if finding.primary:
            rows = finding.rows[hits[finding.rows] < 0]
            hits[rows] = k
    closing = (tcp.CLOSING_STATES >> s.state.astype(np.int64) & 1).astype(np.bool_)
    rows = np.flatnonzero(closing & (s.protocol == 6) & (s.cookie != 0))
    first, unknown = view.holders.first_pid(), view.holder_unknown
    several, others = _other_pids(view, rows)
    number, pods = pod_numbers(view)
    keys = np.column_stack(
        [hits[rows], first[rows], unknown[rows], view.workload[rows], others, number[rows]]
    ).astype(np.int64)
    different, positions = np.unique(keys, axis=0, return_inverse=True)
    causes = [
        _cause(
            view,
            findings[k] if k >= 0 else None,
            pid,
            bool(doubtful),
            view.workload_names[work] if work >= 0 else None,
            pods[pod] if pod >= 0 else None,
            now_ms,
            several[more],
        )
        for k, pid, doubtful, work, more, pod in different.tolist()
    ]
    other = view.other[rows]
    present = other >= 0
    at = np.where(present, other, 0)
    pids = np.where(present, first[at] if len(s) else 0, -2)
    pids[present & (pids < 0) & unknown[at]] = -3
    names, holder = np.unique(pids, return_inverse=True)
    return Diagnosed(
        cookie=s.cookie[rows],
        state=s.state[rows],
        cause=positions.reshape(-1),
        causes=causes,
        other=np.where(present, s.cookie[at], 0).astype(np.uint64) if len(s) else np.empty(0, np.uint64),
        other_netns=np.where(present, s.netns[at], 0).astype(np.uint32) if len(s) else np.empty(0, np.uint32),
        other_holder=holder.reshape(-1),
        holders=[_holder(view, pid) for pid in names.tolist()],
        translated={int(s.cookie[row]): ends for row, ends in _translated(view, flows).items()},
    )


def _holder(view: View, pid: int) -> str:
    """Return what a holder is called; −1 for nobody, −3 for unknown."""
    if pid < 0:
        return "?" if pid == -3 else ""
    return f"{view.processes[pid].comm if pid in view.processes else '?'}({pid})"


def _other_pids(view: View, rows: NDArray[np.int64]) -> tuple[list[tuple[int, ...]], NDArray[np.int64]]:
    """Return the different sets of holders beside the lowest pid, and which of them each row has; 0 is none."""
    shared = view.holders.several_processes()[rows] if len(rows) else np.zeros(0, np.bool_)
    sets: dict[tuple[int, ...], int] = {(): 0}
    others = np.zeros(len(rows), np.int64)
    for at in np.flatnonzero(shared).tolist():
        pids = tuple(sorted({pid for pid, _ in view.holders.of(int(rows[at]))})[1:])
        others[at] = sets.setdefault(pids, len(sets))
    return list(sets), others


def _began(view: View, pid: int, now_ms: int) -> int:
    process = view.processes.get(pid)
    return now_ms - process.age_ms if process is not None and process.age_ms >= 0 else -1


def _cause(
    view: View,
    hits: Finding | None,
    pid: int,
    unknown: bool,
    workload: Workload | None,
    pod: Pod | None,
    now_ms: int,
    others: tuple[int, ...],
) -> Cause:
    process = view.processes.get(pid)
    return Cause(
        rule=hits.rule if hits is not None else NO_RULE,
        severity=hits.severity if hits is not None else "notice",
        confidence=hits.confidence.level if hits is not None else "",
        whose=hits.turn.whose if hits is not None else "",
        workload=workload_of(workload, process.comm if process is not None else "", pod),
        pod=_pod_key(workload, pod),
        holder=_holder(view, pid if pid >= 0 or not unknown else -3),
        pid=max(pid, 0),
        started_ms=_began(view, pid, now_ms),
        others=tuple((other, _began(view, other, now_ms)) for other in others),
    )


def _translated(view: View, flows: FlowTable | None) -> dict[int, tuple[str, str]]:
    """Return the ends of translated connections as behind the translation, by row."""
    if flows is None or not len(flows):
        return {}
    s = view.sockets
    left, right = np.flatnonzero(view.flow_natted), np.flatnonzero(flows.natted())
    if not len(left) or not len(right):
        return {}

    def words(netns: object, src: object, dst: object, sport: object, dport: object) -> tuple[object, ...]:
        return netns, src[:, 0], src[:, 1], dst[:, 0], dst[:, 1], sport, dport  # type: ignore[index]

    i, j = matches(
        words(s.netns[left], s.src[left], s.dst[left], s.sport[left], s.dport[left]),  # type: ignore[arg-type]
        words(flows.netns[right], flows.orig_src[right], flows.orig_dst[right],
              flows.orig_sport[right], flows.orig_dport[right]),  # type: ignore[arg-type]
    )  # fmt: skip
    result: dict[int, tuple[str, str]] = {}
    nat = np.flatnonzero((view.other >= 0) & (view.other_how == 2))
    for row, other in zip(nat.tolist(), view.other[nat].tolist(), strict=True):
        far, near = view.ends(other)  # what the other end says of itself: no entry is needed for it
        result[row] = (near, far)
    for row, flow in zip(left[i].tolist(), right[j].tolist(), strict=True):
        # The answer's destination is what the other side knows us by, and its source is who really answers.
        (a, b), (c, d) = flows.reply_dst[flow].tolist(), flows.reply_src[flow].tolist()
        result[row] = (
            endpoint_text(a, b, int(flows.reply_dport[flow])),
            endpoint_text(c, d, int(flows.reply_sport[flow])),
        )
    return result


def _named(view: View, first: NDArray[np.int64], row: int) -> str:
    """Return what the workload of a row is called."""
    pid = int(first[row])
    pod = view.row_names.pod[row]
    return workload_of(view.workloads[row], view.processes[pid].comm if pid in view.processes else "", pod)


def doors(view: View, most: int) -> dict[int, str]:
    """Return cookie → workload of listeners whose holder is known; of so many at most."""
    s, first = view.sockets, view.holders.first_pid()
    rows = np.flatnonzero((s.state == tcp.LISTEN) & (s.cookie != 0) & (first >= 0))[:most]
    return {int(s.cookie[row]): _named(view, first, row) for row in rows.tolist()}


def ports(view: View) -> list[Used]:
    """Return how many ephemeral ports are used to each destination."""
    s = view.sockets
    result = []
    first = view.holders.first_pid()
    own = ~view.accepted & (s.state != tcp.LISTEN) & (s.protocol == 6)
    counted: Counter[tuple[int, int, int, int, int, int]] = Counter()
    sample: dict[tuple[int, int, int, int, int, int], int] = {}
    for netns, namespace in view.namespaces.items():
        low, high = _port_range(namespace.sysctls.get("ipv4/ip_local_port_range", ""))
        chosen = np.flatnonzero(own & (s.netns == netns) & (s.sport >= low) & (s.sport <= high))
        if len(chosen) < 64:
            continue
        keys = np.column_stack([s.src[chosen], s.dst[chosen], s.dport[chosen].astype(np.uint64)])
        different, index, count = np.unique(keys, axis=0, return_index=True, return_counts=True)
        for (a, b, c, d, port), at, n in zip(different.tolist(), index.tolist(), count.tolist(), strict=True):
            key = (netns, a, b, c, d, port)
            counted[key] = n
            sample[key] = int(chosen[at])
    for key, n in counted.most_common(_MOST_PLACES):
        row, namespace = sample[key], view.namespaces[key[0]]
        low, high = _port_range(namespace.sysctls.get("ipv4/ip_local_port_range", ""))
        local = view.ends(row)[0].rpartition(":")[0]
        subject = f"{namespace.label} {local} to {view.ends(row)[1]}"
        result.append(Used("ports", subject, n, high - low + 1, workload=_named(view, first, row)))
    return fullest(result, MOST_LIMITS)


def fullest(several: Sequence[Used], most: int) -> list[Used]:
    """Return the fullest of each kind and workload, then the fullest of the rest: one workload hides no other."""
    order = sorted(several, key=lambda used: -used.ratio)
    first: dict[tuple[str, str], Used] = {}
    for used in order:
        first.setdefault((used.limit, used.workload), used)
    rest = [used for used in order if first[used.limit, used.workload] is not used]
    return [*first.values(), *rest][:most]


def _port_range(text: str) -> tuple[int, int]:
    words = text.split()
    if len(words) == 2 and all(word.isdecimal() for word in words):
        return int(words[0]), int(words[1])
    return 32768, 60999
