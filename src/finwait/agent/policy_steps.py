"""The steps of a plan of a policy: what each is for and takes from budgets, and what is done as a whole. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from finwait.agent.policy import Charge, Chosen, SocketKey
from finwait.remedy.plan import Plan, Step

__all__ = ["charge_of", "in_portions", "in_units", "only", "subject_of"]

_PORTION: Final = 10


def subject_of(step: Step) -> SocketKey:
    """Return what a step is for: the end that was chosen, where it is done at the other one."""
    end = step.selected or step
    return end.netns, int(end.cookie, 16)


def charge_of(step: Step, choice: Chosen, began: Mapping[int, tuple[int, tuple[str, ...]]]) -> Charge:
    """Return what a step takes from budgets: also of who holds the end where it is done."""
    own = choice.standing
    others = {pid: comm for pid, _, comm in step.holders if pid not in dict(own.processes)}
    known = {pid: began.get(pid, (-1, ())) for pid in sorted(others)}
    more = tuple((pid, started_ms) for pid, (started_ms, _) in known.items())
    reached = {name for pid, (_, names) in known.items() for name in names or (others[pid],)}
    reached -= {own.workload, f"pod/{own.pod}"}
    return Charge(
        choice.rule.name, own.workload, (*own.processes, *more), tuple(sorted(reached)), pod=own.pod
    )


def in_portions(steps: Sequence[Step]) -> list[list[Step]]:
    """Return steps in portions; what is done as a whole is in one."""
    portions: list[list[Step]] = []
    for unit in in_units(sorted(steps, key=lambda step: step.pair)):
        if portions and len(portions[-1]) < _PORTION:
            portions[-1] += unit
        else:
            portions.append(unit)
    return portions


def in_units(steps: Iterable[Step]) -> list[list[Step]]:
    """Return what is done as a whole, and the others one by one."""
    units: list[list[Step]] = []
    for step in steps:
        if units and step.pair and step.pair == units[-1][-1].pair:
            units[-1].append(step)
        else:
            units.append([step])
    return units


def only(plan: Plan, steps: Sequence[Step]) -> Plan:
    """Return a plan of which only these steps remain."""
    return msgspec.structs.replace(plan, steps=tuple(steps))
