"""What a diagnosis says to people, kept by cause and workload until the next one: evidence, remedies, settings.

The rules' sentences are made while the look is there. The agent keeps them beside its counts, for a page must be able
to say why without anybody looking again. Bounded: so many groups, and of each so many sentences of some length.

Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from finwait.agent.causes import pod_numbers
from finwait.agent.verdict import CauseKey, Explained
from finwait.agent.workload_names import workload_of
from finwait.diagnosis import outlook
from finwait.report.agent_page import (
    GROUPS_MOST,
    SaidAdvice,
    SaidCause,
    SaidEvidence,
    SaidRemedy,
    SettingItem,
)
from finwait.report.tune import settings_in_force

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finwait.diagnosis.finding import Finding
    from finwait.diagnosis.view import View
    from finwait.report.tune import InForce
    from finwait.uapi.cluster import Pod

__all__ = ["explained"]

_SENTENCES: Final = 12
_LONGEST: Final = 600
_SETTINGS: Final = 400
_PLACES: Final = 5


def explained(view: View, findings: Sequence[Finding], at: str) -> Explained:
    """Return what findings say.

    Args:
        view: what was seen.
        findings: what the rules make of it.
        at: when, as text.
    """
    causes: dict[CauseKey, tuple[int, SaidCause]] = {}
    numbered = pod_numbers(view)
    findings_of: Counter[CauseKey] = Counter()
    for finding in findings:
        if not finding.primary or finding.severity == "healthy" or not len(finding.rows):
            continue
        cause = _cause(view, finding, at)
        for workload, n in _workloads(view, finding, numbered).items():
            key = finding.rule, workload
            if key not in causes and len(causes) >= GROUPS_MOST:
                continue
            findings_of[key] += 1
            if key not in causes or n > causes[key][0]:  # of several findings the largest speaks
                causes[key] = n, msgspec.structs.replace(cause, about=n)
    items, dropped = _settings(view, findings)
    result = {
        key: msgspec.structs.replace(cause, others=findings_of[key] - 1) for key, (_, cause) in causes.items()
    }
    return Explained(result, items, dropped, at)


def _workloads(view: View, finding: Finding, numbered: tuple[NDArray[np.int64], list[Pod]]) -> dict[str, int]:
    """Return how many of a finding's rows each workload has."""
    first = view.holders.first_pid()
    number, pods = numbered
    rows = finding.rows
    pairs = np.column_stack([view.workload[rows], first[rows], number[rows]]).astype(np.int64)
    different, n = np.unique(pairs, axis=0, return_counts=True)
    counts: dict[str, int] = {}
    for (work, pid, pod), several in zip(different.tolist(), n.tolist(), strict=True):
        process = view.processes.get(pid)
        workload = workload_of(
            view.workload_names[work] if work >= 0 else None,
            process.comm if process is not None else "",
            pods[pod] if pod >= 0 else None,
        )
        counts[workload] = counts.get(workload, 0) + several
    return counts


def _cause(view: View, finding: Finding, at: str) -> SaidCause:
    prospect = outlook.of_finding(view, finding.rows)
    return SaidCause(
        title=_cut(finding.headline),
        harm=finding.harm,
        whose=finding.turn.whose,
        act=_cut(finding.turn.act),
        confidence=finding.confidence.level,
        reason=_cut(finding.confidence.reason),
        evidence=[
            SaidEvidence(column=e.column, value=_cut(e.value), read_from=e.read_from, says=_cut(e.says))
            for e in finding.evidence[:_SENTENCES]
        ],
        ends_it=[
            SaidRemedy(text=_cut(r.text), kind=r.kind, command=r.command if len(r.command) <= 2000 else "")
            for r in finding.ends_it[:_SENTENCES]
        ],
        does_not=[
            SaidAdvice(text=_cut(a.text), reason=_cut(a.reason)) for a in finding.does_not[:_SENTENCES]
        ],
        ends=prospect.ends if prospect is not None else "",
        ends_why=_cut(prospect.why) if prospect is not None else "",
        about=len(finding.rows),
        at=at,
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _settings(view: View, findings: Sequence[Finding]) -> tuple[list[SettingItem], int]:
    """Return the settings, those that several namespaces have alike once, and how many there was no room for."""
    places: dict[tuple[object, ...], list[str]] = {}
    lines: dict[tuple[object, ...], InForce] = {}
    for line in settings_in_force(view, findings):
        key = line.setting.key, line.value, line.verdict, line.on_stuck
        lines.setdefault(key, line)
        places.setdefault(key, []).append(line.where)
    items = [
        SettingItem(
            key=line.setting.key,
            title=line.setting.title,
            value=_cut(line.value),
            default=line.default,
            unit=line.setting.unit,
            verdict=line.verdict_text,
            why=line.why,
            instead=line.instead,
            on_stuck=_cut(line.on_stuck),
            where=places[key][:_PLACES],
            namespaces=len(places[key]),
        )
        for key, line in list(lines.items())[:_SETTINGS]
    ]
    return items, len(lines) - len(items)
