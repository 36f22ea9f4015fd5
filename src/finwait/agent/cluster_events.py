"""What is worth an Event about a workload, and how often. Pure.

Each kind of news (reason, rule, workload) at most every five minutes, few in all; what is new comes first. Only
workloads that a cluster has named, for an Event is about an object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from finwait.uapi.cluster import ClusterEvent, EventReason

if TYPE_CHECKING:
    from finwait.agent.protocol import StuckGroup
    from finwait.uapi.cluster import ClusterNames

__all__ = ["AGAIN_S", "MOST", "EventPace"]

AGAIN_S: Final = 300.0
"""Between two Events of one kind."""
MOST: Final = 10
"""Events in that time, of all kinds."""
_LEAST_S: Final = 60.0
"""What has lasted for less may still close."""
_KEPT_MOST: Final = 5000

News = tuple[EventReason, str, str]
"""Reason, rule, ``NAMESPACE/NAME`` of the workload."""


class EventPace:
    """Chooses what is told."""

    def __init__(self) -> None:
        self._told: dict[News, float] = {}
        self._recent: list[float] = []
        self._cleared: Counter[tuple[str, str]] = Counter()

    def due(
        self,
        groups: Iterable[StuckGroup],
        cleared: Mapping[tuple[str, str], int],
        names: ClusterNames,
        now_s: float,
    ) -> list[ClusterEvent]:
        """Return the Events that are due now.

        Args:
            groups: what does not finish closing.
            cleared: rule and workload → connections that a policy has ended since this was asked last.
            names: what is known of the cluster.
            now_s: seconds, of a clock that does not go back.
        """
        news: dict[News, tuple[int, str]] = {}
        self._cleared.update(cleared)  # what is not due yet is told with the next one
        for (rule, workload), n in self._cleared.items():
            noun = "connection that did" if n == 1 else "connections that did"
            text = (
                f"finwait's policy ended {n} {noun} not finish closing ({rule}); `finwait journal` has them"
            )
            news["ConnectionsCleared", rule, workload] = n, text
        for group in groups:
            if group.severity == "problem" and group.namespace and group.count and group.oldest_s >= _LEAST_S:
                noun = "connection does" if group.count == 1 else "connections do"
                text = (
                    f"{group.count} {noun} not finish closing ({group.rule}), the oldest for "
                    f"{_span(group.oldest_s)}; `finwait explain {group.rule}` says why and what ends them"
                )
                news["ConnectionsNotClosing", group.rule, group.called] = group.count, text
        self._recent = [at for at in self._recent if now_s - at < AGAIN_S]
        due = [key for key in news if now_s - self._told.get(key, float("-inf")) >= AGAIN_S]
        due.sort(key=lambda key: (self._told.get(key, float("-inf")), -news[key][0], key))
        kinds = _kinds(names)
        chosen = [key for key in due if key[2] in kinds][: max(0, MOST - len(self._recent))]
        for key in chosen:
            self._told.pop(key, None)
            self._told[key] = now_s
            if key[0] == "ConnectionsCleared":
                del self._cleared[key[1], key[2]]
        while len(self._cleared) > _KEPT_MOST:
            del self._cleared[next(iter(self._cleared))]
        while len(self._told) > _KEPT_MOST:
            del self._told[next(iter(self._told))]
        self._recent += [now_s] * len(chosen)
        return [
            ClusterEvent(
                news=reason,
                namespace=workload.partition("/")[0],
                kind=kinds[workload][0],
                uid=kinds[workload][1],
                name=workload.partition("/")[2],
                rule=rule,
                message=news[reason, rule, workload][1],
            )
            for reason, rule, workload in chosen
        ]


def _kinds(names: ClusterNames) -> dict[str, tuple[str, str]]:
    """Return of each workload its kind and uid; nothing of a name that two have, such as a Deployment and a Job."""
    kinds: dict[str, dict[str, str]] = {}
    for pod in names.pods:
        kind, uid = (pod.kind, pod.owner_uid) if pod.kind else ("Pod", pod.uid)
        kinds.setdefault(pod.workload, {})[kind] = uid
    return {workload: of.popitem() for workload, of in kinds.items() if len(of) == 1}


def _span(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"
