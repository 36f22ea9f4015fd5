"""Plans, made from a look at the machine, or from a file and made anew: values in, values out.

Commands, the live view and the agent plan through this. What may be done to a connection is decided by
`finwait.remedy.plan` and `finwait.remedy.guards`; here is the order of things: look twice, diagnose, select, find out
what can be done here, plan. Nothing is printed, and nothing is done to any connection.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from finwait import session
from finwait.acting.identity import vanished
from finwait.acting.options import options_of
from finwait.acting.rights import abilities
from finwait.diagnosis import forecast, peer_gone
from finwait.errors import FinwaitError, Gap, Refused, UsageError
from finwait.remedy import making
from finwait.remedy.guards import GUARDS, Abilities, Limits
from finwait.remedy.plan import MEANS, End, Left, Plan
from finwait.remedy.steps import step_of
from finwait.remedy.units import other_legs
from finwait.selecting import mask_of, undecided, users
from finwait.uapi import tcp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from finwait.diagnosis.rule import Means
    from finwait.diagnosis.view import View
    from finwait.remedy.plan import Step
    from finwait.session import Diagnosis, Look, Machine
    from finwait.table.filter import Filter
    from finwait.table.schema import Mask

__all__ = [
    "ANSWER_MS",
    "MIN_AGE_MS",
    "MOST",
    "SHARE",
    "OptionTargets",
    "Planned",
    "Predicted",
    "chosen",
    "limits",
    "make_plan",
    "plan_again",
    "plan_chosen",
    "predicted",
]

MOST: Final = 100
"""So many connections at once, unless more is allowed."""
SHARE: Final = 0.9
"""… of the connections of a process at most this share."""
MIN_AGE_MS: Final = 10_000
"""… and none that is in its state for less."""
ANSWER_MS: Final = 600_000
"""… and no half-close on which something has passed since, unless an age was given: an answer takes its time."""
_TWO_LOOKS_MS: Final = 500


class Planned(Struct, frozen=True):
    """A plan, and what could not be seen when it was made."""

    plan: Plan
    gaps: tuple[Gap, ...]


def limits(
    *,
    most: int = MOST,
    share: float = SHARE,
    min_age_ms: int | None = None,
    override: Iterable[str] = (),
) -> Limits:
    """Return what the caller allows; ``min_age_ms`` None: what is used where nobody says.

    Raises:
        UsageError: there is no such guard to overrule.
    """
    names = frozenset(override)
    for name in sorted(names):
        if name not in GUARDS or name == "listener":
            raise UsageError(
                f"`--override`: there is no guard `{name}`"
                if name not in GUARDS
                else "`--override`: the guard `listener` cannot be overridden",
                hint="guards: " + ", ".join(g for g in GUARDS if g != "listener"),
            )
    age, answer = (MIN_AGE_MS, ANSWER_MS) if min_age_ms is None else (min_age_ms, 0)
    return Limits(most, share, age, answer, override=names, own_pid=os.getpid())


def make_plan(
    machine: Machine, look: Look, row_filter: Filter | None, allowed: Limits, *, means: Means | None = None
) -> Planned:
    """Look twice, diagnose and plan.

    Args:
        machine: where to look; of a recording nothing is found out about what can be done.
        look: how; a second look is added where it asks for one only, for what moves is left alone.
        row_filter: which connections; None for those of every problem that `finwait clear` would end well.
        allowed: what the caller allows (`limits`).
        means: use this for all of them.

    Raises:
        FinwaitError: the look failed, or the FILTER can match nothing.
    """
    if not look.watch_ms:
        look = replace(look, watch_ms=_TWO_LOOKS_MS)
    if _may_be_open(row_filter) and look.plan.established_limit:  # what is left alone is to be counted, too
        look = replace(look, plan=replace(look.plan, established_limit=None))
    diagnosis = session.diagnose(machine, how=look)
    view, facts = diagnosis.view, diagnosis.snapshot.observation.facts
    unjudged = None
    if row_filter is not None:
        rows = mask_of(row_filter, diagnosis.snapshot, diagnosis.findings)
        unjudged = undecided(row_filter, diagnosis.snapshot, diagnosis.findings, rows)
        if not rows.any() and unjudged is None:
            session.refuse_impossible(row_filter, diagnosis.snapshot, users(diagnosis.snapshot))
    else:
        rows = np.zeros(len(view), np.bool_)
        for finding in diagnosis.problems:  # what nobody can explain is not among them
            rows[finding.rows] = any(remedy.clears for remedy in finding.ends_it)
    plan = making.make(
        view,
        diagnosis.findings,
        rows,
        replace(allowed, established_named=row_filter is not None and row_filter.asks_for(tcp.ESTABLISHED)),
        force=means,
        can=abilities(view, _with_other_legs(view, rows, allowed, means)) if machine.live else None,
        now_unix_ns=facts.unix_ns,
        boot_id=facts.boot_id,
    )
    gaps = [gap for gap in (unjudged, _open_ones(view, row_filter)) if gap is not None]
    return Planned(plan, (*gaps, *diagnosis.gaps))


def _may_be_open(row_filter: Filter | None) -> bool:
    """Return whether a FILTER may select open connections although it names no rule."""
    return (
        row_filter is not None
        and not row_filter.asks_rules
        and bool(row_filter.states >> tcp.ESTABLISHED & 1)
    )


def _open_ones(view: View, row_filter: Filter | None) -> Gap | None:
    """Return that open connections were not looked at, of which a FILTER without a rule may select some."""
    if not _may_be_open(row_filter) or not view.established_skipped:
        return None
    return Gap(
        f"about {view.established_skipped} sockets",
        "say which open connections the FILTER selects, and leave them alone by a guard",
        "`--established always`",
    )


def plan_chosen(
    machine: Machine,
    look: Look,
    wishes: Callable[[Diagnosis], Mapping[int, Sequence[Means]]],
    admit: Callable[[Sequence[Sequence[Step]]], Sequence[Step]],
    allowed: Limits,
) -> Planned:
    """Look twice, diagnose, and plan for chosen connections, each by the gentlest of its means that can be used.

    A step is only made for what was chosen: where a FIN has to come from the other end, that end was; both legs of a
    relay pair were, or none has a step.

    Args:
        machine: where to look.
        look: how; a second look is added.
        wishes: gives rows, and the means that are allowed for each.
        admit: takes steps, in groups that belong together, and returns those that are within a budget.
        allowed: what the caller allows of the whole.

    Raises:
        FinwaitError: the look failed.
    """
    if not look.watch_ms:
        look = replace(look, watch_ms=_TWO_LOOKS_MS)
    diagnosis = session.diagnose(machine, how=look)
    view, facts = diagnosis.view, diagnosis.snapshot.observation.facts
    chosen_rows = dict(wishes(diagnosis))
    can = abilities(view, sorted({*chosen_rows, *other_legs(view, chosen_rows, allowed, None)}))
    units, spared = _chosen_units(diagnosis, chosen_rows, allowed, can)
    whole = Plan(facts.unix_ns, facts.boot_id, (), spared)
    return Planned(making.narrowed(whole, view, admit(units), allowed), diagnosis.gaps)


def _chosen_units(
    diagnosis: Diagnosis, chosen_rows: Mapping[int, Sequence[Means]], allowed: Limits, can: Abilities
) -> tuple[list[list[Step]], tuple[Left, ...]]:
    """Return steps in groups that belong together, and what guards say of those that have none."""
    view = diagnosis.view
    s = view.sockets
    keys = {(int(s.netns[row]), int(s.cookie[row])): row for row in chosen_rows}
    units: list[list[Step]] = []
    remaining = set(chosen_rows)
    why: dict[tuple[int, int], Left] = {}
    numbered = 0
    for means in MEANS:
        rows = np.zeros(len(view), np.bool_)
        rows[[row for row in remaining if means in chosen_rows[row]]] = True
        if not rows.any():
            continue
        force = (
            None if means == "fin" else means
        )  # a FIN may have to come from the other end, which only this finds
        part = making.make(view, diagnosis.findings, rows, allowed, force=force, can=can)
        why |= {(entry.end.netns, int(entry.end.cookie, 16)): entry for entry in part.left}
        for unit in _step_units(part.steps):
            own_rows = [keys.get(_subject(step), -1) for step in unit]
            if not all(
                row in remaining and (step.means in chosen_rows[row] if step.pair else step.means == means)
                for step, row in zip(unit, own_rows, strict=True)
            ):
                continue
            numbered += bool(unit[0].pair)
            units.append([msgspec.structs.replace(step, pair=numbered if step.pair else 0) for step in unit])
            touched = {
                _key(end) for step in unit for end in (step, step.other, step.selected) if end is not None
            }
            remaining -= {
                keys[key] for key in touched & keys.keys()
            }  # the other end of it, too: one act is for both
    return units, tuple(why[key] for key, row in keys.items() if row in remaining and key in why)


def _subject(step: Step) -> tuple[int, int]:
    """Return namespace and cookie of what a step is for: the end that was chosen, where it is done at the other."""
    return _key(step.selected or step)


def _key(end: Step | End) -> tuple[int, int]:
    return end.netns, int(end.cookie, 16)


def _step_units(steps: Sequence[Step]) -> list[list[Step]]:
    """Return steps in groups that are done as a whole, in their order."""
    groups: dict[tuple[int, int], list[Step]] = {}
    for k, step in enumerate(steps):
        groups.setdefault((step.pair, 0) if step.pair else (0, k + 1), []).append(step)
    return list(groups.values())


def _with_other_legs(view: View, rows: Mask, allowed: Limits, means: Means | None) -> list[int]:
    selected: list[int] = np.flatnonzero(rows).tolist()
    return sorted({*selected, *other_legs(view, selected, allowed, means)})


def plan_again(plan: Plan, machine: Machine, look: Look, allowed: Limits) -> Planned:
    """Make a plan, perhaps an old one or a stranger's, anew from a look at its connections.

    Raises:
        Refused: it is of another boot, or names a listener.
        FinwaitError: the look failed.
    """
    spaces = frozenset(end.netns for step in plan.steps for end in (step, step.other) if end is not None)
    # As for a direct plan: two looks, at every namespace, since its translation may be in another than the connection.
    two_looks = replace(
        look, plan=replace(look.plan, established_limit=None), watch_ms=look.watch_ms or _TWO_LOOKS_MS
    )
    diagnosis = session.diagnose(machine, how=two_looks)
    shot = diagnosis.snapshot
    if plan.boot_id != shot.observation.facts.boot_id:
        raise Refused("boot", "the plan was made before this machine was started: its connections are gone")
    cookies = np.array([int(step.cookie, 16) for step in plan.steps], np.uint64)
    rows = np.flatnonzero(np.isin(shot.sockets.cookie, cookies)).tolist()
    can = abilities(shot.view, rows) if machine.live else Abilities()
    unseen = spaces - {ns.inode for ns in shot.observation.namespaces} - vanished(spaces)
    fresh = making.again(plan, shot.view, diagnosis.findings, allowed, can=can, unseen=unseen)
    return Planned(fresh, diagnosis.gaps)


# ── options of sockets ───────────────────────────────────────────────────────────────────────────────────


class OptionTargets(Struct, frozen=True):
    """The connections that a FILTER selects for an act on their options."""

    steps: list[Step]
    gaps: tuple[Gap, ...]
    unknown: str
    """What kept us from finding connections that it may select, or their holders; empty when nothing did."""
    hint: str
    """What to do about that."""
    of_unknown: Gap | None
    """It among the gaps, where it is one of them."""
    limits: dict[int, forecast.NamespaceLimits]
    """What decides how long unacknowledged data is sent again, by namespace."""
    left: dict[str, int]
    """Why others that the FILTER selects are not among them, and how many."""
    view: View
    rows: list[int]
    """Of the steps, in it."""


def chosen(
    machine: Machine, look: Look, row_filter: Filter, most: int, means: Means = "keepalive"
) -> OptionTargets:
    """Return the held connections that a FILTER selects, as steps; listeners and minisockets are none.

    There may be no steps where holders are unknown: `OptionTargets.unknown` says so.

    Raises:
        FinwaitError: it selects nothing that a process holds, or the look failed.
        Refused: more than ``most``.
    """
    diagnosis = session.diagnose(machine, how=look)
    view = diagnosis.view
    mask = mask_of(row_filter, diagnosis.snapshot, diagnosis.findings)
    mask &= view.sockets.state != tcp.LISTEN
    left_out = _left_out(view, mask)
    mask &= view.sockets.protocol == 6
    rows = np.flatnonzero(mask & view.holder_found)
    unfound = int(np.count_nonzero(mask & view.holder_unknown))
    gaps = diagnosis.gaps
    why = undecided(row_filter, diagnosis.snapshot, diagnosis.findings, mask)
    unknown = "" if why is None else str(why)
    if unfound:
        amount = "1 connection" if unfound == 1 else f"{unfound} connections"
        missing = view.holders.missing or f"it {view.holder_doubt}"
        unknown = f"the holder of {amount} that it selects is unknown: {missing}"
        why = Gap(f"{amount} of the FILTER", "find a holder", view.holders.wanting)
    if why is not None:
        gaps = gaps or (why,)
    if not len(rows) and not unknown:
        reasons = "".join(f"; left out, {n}: {reason}" for reason, n in left_out.items())
        if diagnosis.gaps:
            parts = "1 part" if len(diagnosis.gaps) == 1 else f"{len(diagnosis.gaps)} parts"
            reasons += f"; {parts} of this machine could not be seen, such as {diagnosis.gaps[0]}"
        error = FinwaitError(f"`{row_filter.text}` selects no connection that a process holds{reasons}")
        error.hint = f"`finwait list {row_filter.text}` shows what it selects"
        raise error
    if len(rows) > most:
        raise Refused("max", f"{len(rows)} connections, more than {most}", override=f"--max {len(rows)}")
    governing = {n: forecast.NamespaceLimits.of(space.sysctls) for n, space in view.namespaces.items()}
    steps = [step_of(view, row, "", means) for row in rows.tolist()]
    hint = view.holders.hint if unknown else ""
    of_unknown = why if why in gaps else None
    return OptionTargets(steps, gaps, unknown, hint, of_unknown, governing, left_out, view, rows.tolist())


def _left_out(view: View, selected: Mask) -> dict[str, int]:
    """Return why connections that were selected have no descriptor through which options can be set."""
    mptcp = selected & (view.sockets.protocol != 6)
    rest = selected & ~mptcp
    reasons = {
        "MPTCP, whose options are those of the whole connection": mptcp,
        "no process holds them (orphans, minisockets, connections not accepted yet)": rest & ~view.held,
        "no process has a descriptor for them": rest & view.holder_missing,
    }
    return {reason: int(rows.sum()) for reason, rows in reasons.items() if rows.any()}


class Predicted(Struct, frozen=True):
    """What options will do to connections, by index."""

    ends: dict[int, peer_gone.PeerGone]
    """What ends each if its peer is gone."""
    waiting: dict[int, forecast.UnderWay]
    """What becomes of what waits already to be acknowledged, or for room at the peer."""
    unread: dict[int, FinwaitError]
    """Why options cannot be read."""


def predicted(selected: OptionTargets, values: Mapping[str, int]) -> Predicted:
    """Return what options will do to each connection.

    Args:
        selected: the connections.
        values: the options that each is to get, by names of `finwait.kernel.pidfd.KEEPALIVE_OPTIONS`.
    """
    read, unread = options_of(selected.steps)
    ends, waiting = {}, {}
    for k, now in read.items():
        options = now | dict(values)
        governing = selected.limits.get(selected.steps[k].netns, forecast.DEFAULTS)
        ends[k] = peer_gone.peer_gone(options, governing)
        if "user_timeout_ms" in values:
            under_way = forecast.under_way(selected.view, selected.rows[k], options["user_timeout_ms"])
            if under_way is not None:
                waiting[k] = under_way
    return Predicted(ends, waiting, unread)
