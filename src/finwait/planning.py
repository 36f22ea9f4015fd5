"""Plans, made from a look at the machine, or from a file and made anew: values in, values out.

Commands, the live view and the agent plan through this. What may be done to a connection is decided by
`finwait.remedy.plan` and `finwait.remedy.guards`; here is the order of things: look twice, diagnose, select, find out
what can be done here, plan. Nothing is printed, and nothing is done to any connection.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from finwait import session
from finwait.acting.identity import vanished
from finwait.acting.options import options_of
from finwait.acting.rights import abilities
from finwait.diagnosis import forecast, select
from finwait.errors import FinwaitError, Refused, UsageError
from finwait.remedy import plan as plans
from finwait.remedy.guards import GUARDS, Abilities, Limits
from finwait.selecting import mask_of, users
from finwait.uapi import tcp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from finwait.diagnosis.rule import Means
    from finwait.diagnosis.view import View
    from finwait.remedy.plan import Plan, Step
    from finwait.session import Look, Machine
    from finwait.table.filter import Filter
    from finwait.table.schema import Mask

__all__ = [
    "MIN_AGE_MS",
    "MOST",
    "SHARE",
    "Chosen",
    "Planned",
    "Predicted",
    "chosen",
    "limits",
    "make_plan",
    "plan_again",
    "predicted",
]

MOST: Final = 100
"""So many connections at once, unless more is allowed."""
SHARE: Final = 0.9
"""… of the connections of a process at most this share."""
MIN_AGE_MS: Final = 10_000
"""… and none that is in its state for less."""
_TWO_LOOKS_MS: Final = 500


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what could not be seen when it was made."""

    plan: Plan
    gaps: tuple[object, ...]


def limits(
    *, most: int = MOST, share: float = SHARE, min_age_ms: int = MIN_AGE_MS, override: Iterable[str] = ()
) -> Limits:
    """Return what the caller allows.

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
    return Limits(most, share, min_age_ms, override=names, own_pid=os.getpid())


def make_plan(
    machine: Machine, look: Look, wanted: Filter | None, allowed: Limits, *, means: Means | None = None
) -> Planned:
    """Look twice, diagnose and plan.

    Args:
        machine: where to look; of a recording nothing is found out about what can be done.
        look: how; a second look is added where it asks for one only, for what moves is left alone.
        wanted: which connections; None for those of every problem that `finwait clear` would end well.
        allowed: what the caller allows (`limits`).
        means: use this for all of them.

    Raises:
        FinwaitError: the look failed, or the FILTER can match nothing.
    """
    if not look.watch_ms:
        look = replace(look, watch_ms=_TWO_LOOKS_MS)
    diagnosis = session.diagnose(machine, how=look)
    view, facts = diagnosis.view, diagnosis.snapshot.observation.facts
    if wanted is not None:
        rows = mask_of(wanted, diagnosis.snapshot, diagnosis.findings)
        if not rows.any():
            session.refuse_impossible(wanted, diagnosis.snapshot, users(diagnosis.snapshot))
    else:
        rows = np.zeros(len(view), np.bool_)
        for finding in diagnosis.problems:  # what nobody can explain is not among them
            rows[finding.rows] = any(remedy.clears for remedy in finding.ends_it)
    plan = plans.make(
        view,
        diagnosis.findings,
        rows,
        replace(allowed, established_named=wanted is not None and wanted.asks_for(tcp.ESTABLISHED)),
        force=means,
        can=abilities(view, np.flatnonzero(rows).tolist()) if machine.live else None,
        now_unix_ns=facts.unix_ns,
        boot_id=facts.boot_id,
    )
    unowned = select.unowned(wanted, view) if wanted is not None else ()
    return Planned(plan, (*unowned, *diagnosis.gaps))


def plan_again(plan: Plan, machine: Machine, look: Look, allowed: Limits) -> Planned:
    """Make a plan, perhaps an old one or a stranger's, anew from a look at its connections.

    Raises:
        Refused: it is of another boot, or names a listener.
        FinwaitError: the look failed.
    """
    spaces = frozenset(end.netns for step in plan.steps for end in (step, step.other) if end is not None)
    # As for a direct plan: two looks, at every namespace, since its translation may be in another than the connection.
    how = replace(
        look, plan=replace(look.plan, established_limit=None), watch_ms=look.watch_ms or _TWO_LOOKS_MS
    )
    diagnosis = session.diagnose(machine, how=how)
    shot = diagnosis.snapshot
    if plan.boot_id != shot.observation.facts.boot_id:
        raise Refused("boot", "the plan was made before this machine was started: its connections are gone")
    cookies = np.array([int(step.cookie, 16) for step in plan.steps], np.uint64)
    rows = np.flatnonzero(np.isin(shot.sockets.cookie, cookies)).tolist()
    can = abilities(shot.view, rows) if machine.live else Abilities()
    unseen = spaces - {ns.inode for ns in shot.observation.namespaces} - vanished(spaces)
    fresh = plans.again(plan, shot.view, diagnosis.findings, allowed, can=can, unseen=unseen)
    return Planned(fresh, diagnosis.gaps)


# ── options of sockets ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Chosen:
    """The connections that a FILTER selects for an act on their options."""

    steps: list[Step]
    gaps: tuple[object, ...]
    unknown: str
    """What kept us from finding the holders of connections that it selects; empty when nothing did."""
    limits: dict[int, forecast.Limits]
    """What decides how long unacknowledged data is sent again, by namespace."""
    left: dict[str, int]
    """Why others that the FILTER selects are not among them, and how many."""
    view: View
    rows: list[int]
    """Of the steps, in it."""


def chosen(machine: Machine, look: Look, wanted: Filter, most: int, means: Means = "keepalive") -> Chosen:
    """Return the held connections that a FILTER selects, as steps; listeners and minisockets are none.

    There may be no steps where holders are unknown: `Chosen.unknown` says so.

    Raises:
        FinwaitError: it selects nothing that a process holds, or the look failed.
        Refused: more than ``most``.
    """
    diagnosis = session.diagnose(machine, how=look)
    view = diagnosis.view
    mask = mask_of(wanted, diagnosis.snapshot, diagnosis.findings)
    mask &= view.sockets.state != tcp.LISTEN
    left = _left_out(view, mask)
    mask &= view.sockets.protocol == 6
    rows = np.flatnonzero(mask & view.holder_found)
    unfound = int(np.count_nonzero(mask & view.held & ~view.holder_found))
    gaps: tuple[object, ...] = diagnosis.gaps
    unknown = ""
    if unfound and not view.holders.complete:
        which = "1 connection" if unfound == 1 else f"{unfound} connections"
        unknown = f"the holder of {which} that it selects is unknown: {view.holders.missing}"
        gaps = gaps or (unknown,)
    if not len(rows) and not unknown:
        reasons = "".join(f"; left out, {n}: {reason}" for reason, n in left.items())
        if diagnosis.gaps:
            parts = "1 part" if len(diagnosis.gaps) == 1 else f"{len(diagnosis.gaps)} parts"
            reasons += f"; {parts} of this machine could not be seen, such as {diagnosis.gaps[0]}"
        error = FinwaitError(f"`{wanted.text}` selects no connection that a process holds{reasons}")
        error.hint = f"`finwait list {wanted.text}` shows what it selects"
        raise error
    if len(rows) > most:
        raise Refused("max", f"{len(rows)} connections, more than {most}", override=f"--max {len(rows)}")
    governing = {n: forecast.Limits.of(space.sysctls) for n, space in view.namespaces.items()}
    steps = [plans.step_of(view, row, "", means) for row in rows.tolist()]
    return Chosen(steps, gaps, unknown, governing, left, view, rows.tolist())


def _left_out(view: View, selected: Mask) -> dict[str, int]:
    """Return why connections that were selected have no descriptor through which options can be set."""
    mptcp = selected & (view.sockets.protocol != 6)
    rest = selected & ~mptcp
    reasons = {
        "MPTCP, whose options are those of the whole connection": mptcp,
        "no process holds them (orphans, minisockets, connections not accepted yet)": rest & ~view.held,
        "no process has a descriptor of them": rest & view.holder_missing,
    }
    return {reason: int(rows.sum()) for reason, rows in reasons.items() if rows.any()}


@dataclass(frozen=True, slots=True)
class Predicted:
    """What options will do to connections, by index."""

    ends: dict[int, forecast.PeerGone]
    """What ends each if its peer is gone."""
    waiting: dict[int, forecast.UnderWay]
    """What becomes of what waits already to be acknowledged, or for room at the peer."""
    unread: dict[int, FinwaitError]
    """Why options cannot be read."""


def predicted(selected: Chosen, values: Mapping[str, int]) -> Predicted:
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
        ends[k] = forecast.peer_gone(options, governing)
        if "user_timeout_ms" in values:
            found = forecast.under_way(selected.view, selected.rows[k], options["user_timeout_ms"])
            if found is not None:
                waiting[k] = found
    return Predicted(ends, waiting, unread)
