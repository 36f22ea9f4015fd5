"""Pods that nobody had named when they were diagnosed, and are known by name since. Pure.

An agent that has just started diagnoses before the API server has answered, and one whose API server is away names no
new pod. The next diagnosis may be ten minutes away: what is open, its texts and limits get their names before. What has
ended keeps the name of then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

if TYPE_CHECKING:
    from finwait.agent.leak import Used
    from finwait.agent.verdict import CauseKey, Explained
    from finwait.report.agent_page import SaidCause
    from finwait.uapi.cluster import ClusterNames

__all__ = ["renamed_texts", "renamed_uses", "renamer"]

_UNNAMED = "pod/"


def renamer(names: ClusterNames) -> Callable[[str], str]:
    """Return what gives a workload its name, where it is a pod without one that a cluster knows."""

    def called(workload: str) -> str:
        if not workload.startswith(_UNNAMED):
            return workload
        pod = names.pod(workload.removeprefix(_UNNAMED))
        return pod.workload if pod is not None else workload

    return called


def renamed_texts(made: Explained, called: Callable[[str], str]) -> Explained:
    """Return what a diagnosis said, by the names of now; the very same where none has changed."""
    if all(called(workload) == workload for _, workload in made.causes):
        return made
    causes: dict[CauseKey, SaidCause] = {}
    for (
        rule,
        workload,
    ), cause in made.causes.items():  # of several pods of a workload the largest group speaks
        key = rule, called(workload)
        if key not in causes or cause.about > causes[key].about:
            causes[key] = cause
    return replace(made, causes=causes)


def renamed_uses(several: Sequence[Used], called: Callable[[str], str]) -> tuple[Used, ...]:
    """Return limits, by the names of now."""
    return tuple(
        used if (name := called(used.workload)) == used.workload else replace(used, workload=name)
        for used in several
    )
