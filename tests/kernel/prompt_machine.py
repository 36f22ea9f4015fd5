"""The running machine that diagnoses at once, in this process: pauses for a second look would take minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finwait.agent import diagnoser, edge, moving
from finwait.agent.verdict import DiagnosedLook, Filters
from finwait.diagnosis.view import Options
from finwait.uapi.cluster import ClusterNames

__all__ = ["Prompt"]


@dataclass
class Made:
    """A diagnosis that is finished."""

    look: DiagnosedLook

    def result(self) -> DiagnosedLook:
        return self.look

    def end(self) -> None:
        pass


class Prompt(edge.Running):
    """Diagnoses at once."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._prompt = options
        moving.PAUSE_MS = 0  # type: ignore[misc]

    def start_diagnosis(self, filters: Filters | None = None, cluster: ClusterNames | None = None) -> Any:
        return Made(diagnoser.verdict(self.looked_at, self._prompt, filters, cluster))
