"""Findings → a plan: a step or a guard's reason for each connection, and what speaks against the whole of it.

A plan that was read from a file is made anew from a look (`again`). What ends one connection, and what the peer sees of
it, is `finwait.remedy.steps`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.diagnosis.rule import Means
from finwait.remedy.guards import Abilities, GuardVerdict, Limits, guard_destroy, guard_rows, guard_well
from finwait.remedy.plan import End, Left, Plan, Refusal, Step
from finwait.remedy.steps import StepColumns, guard_act, planned, step_of, why_not
from finwait.remedy.units import TAKEN_IN, Decided, Unit, as_units, other_legs, units_of
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.finding import Finding
    from finwait.diagnosis.view import View

__all__ = ["again", "make", "narrowed"]


def again(
    plan: Plan,
    view: View,
    findings: Sequence[Finding],
    limits: Limits,
    *,
    can: Abilities,
    unseen: Collection[int] = (),
) -> Plan:
    """Make a plan that was read from a file anew, from a look at its connections now.

    The rule, what the peer sees and every text are made anew, holders are those that are found now, and guards are
    asked again (``min-age`` is not: the file names each connection; ``established`` is, whatever was named when the
    plan was made). What the steps rest on, state and bytes, stays as the file has it, for the act to compare. A
    connection that is not there any more is marked.

    Args:
        plan: the plan.
        view: the sockets, looked at twice.
        findings: what was found among them.
        limits: what the caller allows now; who made the plan may have allowed more.
        can: what cannot be done here.
        unseen: namespaces that could not be inspected: what is in them is not called gone.
    """
    s = view.sockets
    step_keys = {(step.netns, int(step.cookie, 16)) for step in plan.steps}
    keys = zip(s.netns.tolist(), s.cookie.tolist(), strict=True)
    rows = {key: row for row, key in enumerate(keys) if key in step_keys}
    limits = replace(limits, min_age_ms=0, answer_ms=0, from_file=True)
    cells = StepColumns(view, np.array(sorted(rows.values()), np.int64))
    judged = _judged(findings)
    decided: dict[int, Decided] = {}
    ends: dict[int, End] = {}
    legs: dict[int, int] = {}
    for k, step in enumerate(plan.steps):
        ends[k] = _end_of(step)
        row = rows.get((step.netns, int(step.cookie, 16)))
        if row is None and step.netns in unseen:
            decided[k] = GuardVerdict("unseen", "its namespace could not be inspected")
        elif row is None:
            decided[k] = msgspec.structs.replace(step, gone=True, rule="", note="", stays="", selected=None)
        else:
            ends[k], decided[k] = cells.identity(row), _again(view, row, step, judged, limits, can, cells)
            legs[_subject(view, row, step)] = k
    decided = as_units(decided, units_of(view, legs, named=True) + _written(plan), limits)
    steps = tuple(choice for choice in decided.values() if isinstance(choice, Step))
    left_alone = _left(decided, ends)
    present = [step for step in steps if not step.gone]
    return msgspec.structs.replace(
        plan, steps=steps, left=left_alone, advice=_advice(present), refused=_whole(view, present, limits)
    )


def _left(decided: Mapping[int, Decided], ends: Mapping[int, End]) -> tuple[Left, ...]:
    """Return what is left alone, given which connection each decision is about."""
    return tuple(
        Left(ends[k], choice.guard, choice.reason, choice.wait_ms)
        for k, choice in decided.items()
        if isinstance(choice, GuardVerdict)
    )


def _again(
    view: View, row: int, step: Step, judged: _Judged, limits: Limits, can: Abilities, cells: StepColumns
) -> Step | GuardVerdict:
    if (verdict := guard_rows(view, row, limits)) is not None:
        return verdict
    subject = _subject(view, row, step)
    from_there = subject != row
    if from_there and (verdict := guard_rows(view, subject, limits)) is not None:
        return verdict
    if (verdict := guard_act(view, row, step.means, limits)) is not None:
        return verdict
    cause, well = judged
    if (
        subject not in cause
        and (verdict := guard_well(view, subject, limits, well.get(subject, ""))) is not None
    ):
        return verdict
    if step.means == "destroy" and (verdict := guard_destroy(view, row, limits, can)) is not None:
        return verdict
    if (
        why := why_not(view, row, step.means, Abilities())
    ) is not None:  # what we may do is asked of all at once
        return GuardVerdict("means", why)
    fresh = step_of(view, row, cause.get(subject, ""), step.means, cells=cells)
    names = ("family", "src", "sport", "dst", "dport", "ifindex", "protocol")
    if any(getattr(fresh, name) != getattr(step, name) for name in names):
        return GuardVerdict("plan", "in the plan, its cookie belongs to another connection")
    if fresh.sees != step.sees and (fresh.state, fresh.inode) == (step.state, step.inode):
        return GuardVerdict("plan", "the plan is wrong about what the peer of this connection sees")
    note = ""
    if step.means == "reset" and (why := can.no_destroy.get((step.netns, step.protocol))) is not None:
        note = f"{why}; the peer sees the same from a reset"
    selected = cells.identity(subject) if from_there else None
    return msgspec.structs.replace(
        fresh, note=note, selected=selected, state=step.state, inode=step.inode,
        bytes_received=step.bytes_received, bytes_acked=step.bytes_acked,
    )  # fmt: skip


def _subject(view: View, row: int, step: Step) -> int:
    """Return the row that a step is for: a FIN may finish the half-close of the other end, which was selected."""
    other = int(view.other[row])
    from_there = step.selected is not None and step.means == "fin" and other >= 0
    return other if from_there and view.sockets.state[other] == tcp.FIN_WAIT2 else row


def _written(plan: Plan) -> list[Unit]:
    """Return the units that a plan was made with: of legs that have changed since nothing else says so."""
    members: dict[int, list[int]] = {}
    for k, step in enumerate(plan.steps):
        if step.pair:
            members.setdefault(step.pair, []).append(k)
    return [Unit(tuple(places), len(places)) for places in members.values()]


_Judged = tuple[dict[int, str], dict[int, str]]
"""Rows that have a cause → its rule; rows that are healthy → the title that says so."""


def _judged(findings: Sequence[Finding]) -> _Judged:
    cause: dict[int, str] = {}
    well: dict[int, str] = {}
    for finding in findings:
        if finding.primary:
            known, label = (
                (well, finding.headline) if finding.severity == "healthy" else (cause, finding.rule)
            )
            for row in finding.rows.tolist():
                known.setdefault(row, label)
    return cause, well


def _end_of(step: Step) -> End:
    return End(**{name: getattr(step, name) for name in End.__struct_fields__})


def make(
    view: View,
    findings: Sequence[Finding],
    rows: NDArray[np.bool_],
    limits: Limits,
    *,
    force: Means | None = None,
    can: Abilities | None = None,
    now_unix_ns: int = 0,
    boot_id: str = "",
) -> Plan:
    """Make a plan that ends connections which findings call problems (or notices).

    Args:
        view: the sockets.
        findings: what was found.
        rows: which of them may be touched (the FILTER).
        limits: see `Limits`.
        force: use this means for all, at the end that was selected.
        can: what cannot be done here; None for no limits.
        now_unix_ns: when, for the reader of the file.
        boot_id: of the machine; cookies mean nothing on another boot.

    Returns:
        The plan. One that is too large as a whole (guards ``max`` and ``share``) says so, and is not `permit`-ted.
    """
    can = can or Abilities()
    chosen: list[int] = np.flatnonzero(rows).tolist()
    judged = _judged(findings)
    every = sorted({*chosen, *other_legs(view, chosen, limits, force)})
    cells = StepColumns(view, np.array(every, np.int64))
    decided = {row: _decided(view, row, judged, force, limits, can, cells) for row in chosen}
    acted_on = [row for row, choice in decided.items() if isinstance(choice, Step)]
    for row in other_legs(view, acted_on, limits, force):
        if row not in decided:
            choice = _decided(view, row, judged, force, limits, can, cells)
            decided[row] = _taken_in(choice) if isinstance(choice, Step) else choice
    decided = as_units(dict(sorted(decided.items())), units_of(view, {row: row for row in decided}), limits)
    acts: dict[tuple[int, str], Step] = {}
    for choice in decided.values():
        if isinstance(choice, Step) and (choice.pair or (choice.netns, choice.cookie) not in acts):
            acts[choice.netns, choice.cookie] = choice  # one act may end two that were selected
    steps = list(acts.values())
    left_alone = _left(decided, {row: cells.identity(row) for row in decided})
    return Plan(now_unix_ns, boot_id, tuple(steps), left_alone, _advice(steps), _whole(view, steps, limits))


def narrowed(plan: Plan, view: View, steps: Sequence[Step], limits: Limits) -> Plan:
    """Return a plan of which only these steps remain, with what speaks against the whole of them.

    Args:
        plan: what `make` returned for this view.
        view: the sockets.
        steps: some of its steps.
        limits: what the caller allows.
    """
    refused = _whole(view, steps, limits)
    return msgspec.structs.replace(plan, steps=tuple(steps), advice=_advice(steps), refused=refused)


def _decided(
    view: View,
    row: int,
    judged: _Judged,
    force: Means | None,
    limits: Limits,
    can: Abilities,
    cells: StepColumns,
) -> Decided:
    """Return what a plan does to a connection by itself."""
    cause, well = judged
    verdict = guard_rows(view, row, limits)
    if verdict is None and row not in cause:
        verdict = guard_well(view, row, limits, well.get(row, ""))
    whole = view.connection_of.get(row)
    # The program has the whole, and would lose it; where that is plain TCP, this row is all that it is.
    if verdict is None and whole is not None and whole not in cause and not view.fell_back[whole]:
        verdict = guard_well(view, whole, limits, well.get(whole, ""))
    return verdict or planned(view, row, cause.get(row, ""), force, limits, can, cells)


def _taken_in(step: Step) -> Step:
    return msgspec.structs.replace(step, note="; ".join(filter(None, (TAKEN_IN, step.note))))


def _whole(view: View, steps: Sequence[Step], limits: Limits) -> tuple[Refusal, ...]:
    """Return what speaks against carrying out all of the steps."""
    refusals = []
    if len(steps) > limits.max_connections and "max" not in limits.override:
        refusals.append(
            Refusal(
                "max", f"the plan touches {len(steps)} connections, more than {limits.max_connections}",
                f"--max {len(steps)} or --override max",
            )
        )  # fmt: skip
    if "share" in limits.override:
        return tuple(refusals)
    # Where some were not looked at, the share of those that were is the larger one: this errs towards refusing.
    seen = "" if view.every_connection else " that were looked at"
    touched = Counter(pid for step in steps for pid in {pid for pid, _, _ in step.holders})
    by_pid = view.pid_rows(view.held & (view.sockets.state != tcp.LISTEN)) if touched else {}
    for pid, n in touched.items():
        held = len(by_pid.get(pid, ()))
        if held >= 10 and n > limits.share * held:
            comm = view.processes[pid].comm if pid in view.processes else "?"
            refusals.append(
                Refusal(
                    "share", f"the plan touches {n} of the {held} connections of {comm} (pid {pid}){seen}",
                    "--share 1 or --override share",
                )
            )  # fmt: skip
    return tuple(refusals)


def _advice(steps: Sequence[Step]) -> tuple[str, ...]:
    leaky = Counter(
        (pid, comm)
        for step in steps
        if step.means in ("fin", "reset", "destroy")
        for pid, _, comm in step.holders
    )
    return tuple(
        f"{'1 descriptor stays' if n == 1 else f'{n} descriptors stay'} open in {comm} (pid {pid}): "
        f"only its close(), or its restart, frees {'it' if n == 1 else 'them'}"
        for (pid, comm), n in leaky.most_common()
    )
