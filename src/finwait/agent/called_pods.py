"""What pods are called, as a policy's budgets must know it: a name that becomes known later refills none.

An act on a pod whose name nobody knew yet is charged to ``pod/UID``; once it is ``shop/cart`` the act counts there,
too, also when the pod is gone and its name with it. So names that were seen once are kept: in memory of all pods, in
the history of those that acts of the journal are about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from finwait.agent.policy import NamesOfPods, names_of_pods

if TYPE_CHECKING:
    from finwait.agent.episode_values import Cause
    from finwait.agent.policy import PastAct
    from finwait.agent.store import Store

__all__ = ["CalledPods"]

_META: Final = "policy_pods"
_MOST: Final = 5000
_NAMES_MOST: Final = 4
"""Of one pod: a pod keeps its name, but for what nobody knows yet."""


class CalledPods:
    """Names of pods, for the budgets of a policy.

    Attributes:
        names: ``pod/UID`` → what it is called.
    """

    def __init__(self) -> None:
        self.names: NamesOfPods = {}
        self._seen: dict[str, tuple[str, ...]] = {}
        """Uid → workloads, those that were learned last at the end."""
        self._kept: dict[str, list[str]] = {}

    def learn(self, causes: Iterable[Cause]) -> None:
        """Keep what a diagnosis calls pods."""
        for cause in causes:
            self._learn(cause.pod, cause.workload)

    def _learn(self, uid: str, workload: str) -> None:
        if not uid or not workload or workload == f"pod/{uid}":
            return
        names = self._seen.pop(uid, ())
        self._seen[uid] = names if workload in names else (*names, workload)[-_NAMES_MOST:]
        if len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]

    def restore(self, store: Store) -> None:
        """Take up what the history has."""
        for uid, names in (store.meta(_META) or {}).items():
            for name in names if isinstance(names, list) else ():
                self._learn(str(uid), str(name))

    def of(self, acts: Sequence[PastAct], store: Store | None, boot: str) -> NamesOfPods:
        """Return the names of pods, as of now; those that acts are about go into the history.

        Args:
            acts: former acts of policies.
            store: the history; None where there is none.
            boot: id of this boot.
        """
        pairs = [(uid, name) for uid, names in self._seen.items() for name in names]
        self.names = names_of_pods([*pairs, *((act.pod, act.workload) for act in acts)])
        touched = {
            name.removeprefix("pod/")
            for act in acts
            for name in (act.workload, *act.reached, f"pod/{act.pod}")
            if name.startswith("pod/")
        }
        kept = {uid: list(self._seen[uid]) for uid in sorted(touched & self._seen.keys())}
        if kept != self._kept and store is not None and store.remember({_META: kept}, boot, {}):
            self._kept = kept
        return self.names
