"""A plan as lines for a person: what would be done to which connections, and what is left alone and why."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from finwait.table.units import duration_text, endpoint, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finwait.remedy.plan import Left, Plan, Step

__all__ = ["left_lines", "plan_lines", "where", "wrapped"]

EACH = 20
"""So many connections of a group are shown one by one; `--all` shows them all, and `-o json` has everything."""

_GROUPS = 30
"""… and so many groups."""


def plan_lines(plan: Plan, *, overrule: bool = True, whole: bool = False) -> list[str]:
    """Return a plan as lines for a person: steps of one kind, reason and program together.

    Args:
        plan: the plan.
        overrule: whether the reader has `--override` at hand.
        whole: whether to show every connection of it.
    """
    here = [step for step in plan.steps if not step.gone]
    classes = Counter(step.kind for step in here)
    how = ", ".join(f"{n} {kind}" for kind, n in classes.most_common())
    lines = [f"{connections_text(len(here))} to end" + (f" ({how})" if how else "")]
    lines[0] += f", {len(plan.left)} left alone.\n"
    if gone := len(plan.steps) - len(here):
        lines.append(
            f"{connections_text(gone)} of the plan {'has' if gone == 1 else 'have'} ended since it "
            "was made.\n"
        )
    groups: dict[tuple[object, ...], list[Step]] = {}
    for step in here:
        who = step.holders[0][2] if step.holders else (step.holders_known, not step.inode)
        key = (step.means, step.rule, step.state, step.sees, who, bool(step.selected), step.note)
        groups.setdefault(key, []).append(step)
    shown = list(groups.values()) if whole else list(groups.values())[:_GROUPS]
    for steps in shown:
        lines += _group(steps, len(steps) if whole else EACH)
    if len(groups) > len(shown):
        rest = len(here) - sum(map(len, shown))
        lines.append(
            f"\n… and {connections_text(rest)} in {len(groups) - len(shown)} more groups; `--all` shows them\n"
        )
    return lines + left_lines(plan, overrule=overrule) + _advice(plan)


def _group(steps: list[Step], most: int) -> list[str]:
    one = steps[0]
    lines = [
        f"\n{one.means} [{one.kind}] ×{len(steps)}: {one.rule or 'no rule'}, {one.state}, {_held(steps)}\n"
    ]
    if one.selected:
        lines += wrapped("done at the other end of the selected connection: its FIN closes both ends")
    if one.note:
        lines += wrapped(one.note)
    lines += wrapped(f"peer sees: {one.peer_told}")
    if one.stays:
        said = "the descriptor stays open" if one.holders else one.stays
        lines += wrapped(said if len(steps) == 1 else said.replace("descriptor stays", "descriptors stay"))
    for step in steps[:most]:
        at = ", ".join(f"{pid}:{fd}" for pid, fd, _ in step.holders[:3])
        lines += connection_lines(step, f"pid:fd {at}" if at else "")
    if len(steps) > most:
        lines.append(f"    … and {len(steps) - most} more; `--all` shows them\n")
    return lines


def _held(steps: list[Step]) -> str:
    """Say who holds connections of one group; that nobody does only where that is known."""
    one = steps[0]
    if one.holders:
        pids = {step.holders[0][0] for step in steps}
        who = f"pid {one.holders[0][0]}" if len(pids) == 1 else f"{len(pids)} processes"
        return f"held by {printable(one.holders[0][2])} ({who})"
    if not one.inode:
        return "held by no process"
    if one.holders_known:
        return "held by no process (all were inspected)"
    return "holder unknown"


def left_lines(plan: Plan, *, overrule: bool = True) -> list[str]:
    """Return what a plan leaves alone, and why, as lines for a person."""
    lines = []
    guards: dict[str, list[Left]] = {}
    for one in plan.left:
        guards.setdefault(one.guard, []).append(one)
    for guard, members in guards.items():
        lines.append(f"\nleft alone ×{len(members)} by guard `{guard}`:\n")
        counted = Counter(one.reason for one in members)
        for reason, n in counted.most_common(3):
            lines += wrapped(printable(reason) + (f" (×{n})" if len(counted) > 1 else ""))
        if len(counted) > 3:
            lines.append(f"  … and {len(counted) - 3} more reasons; `-o json` lists them\n")
        lines += [f"    {printable(one.connection)}\n" for one in members[:3]]
        if len(members) > 3:
            lines.append(f"    … and {len(members) - 3} more\n")
        lines += _old_enough(guard, members)
    if overrule and plan.left and not plan.steps:
        names = sorted({one.guard for one in plan.left} - {"listener", "means", "plan", "unseen"})
        if names:
            lines.append("\n" + "".join(f"`--override {name}` overrules that guard.\n" for name in names))
    return lines


def _old_enough(guard: str, members: Sequence[Left]) -> list[str]:
    """Return when waiting is enough for a guard that looks at the age."""
    if guard != "min-age":
        return []
    waits = [one.wait_ms for one in members if one.wait_ms]
    known = (
        "it is"
        if len(members) == 1
        else "all are"
        if len(waits) == len(members)
        else "those of known age are"
    )
    lines = []
    if waits:
        when = duration_text(-(-max(waits) // 1000) * 1000)
        lines += wrapped(f"{known} old enough in {when}: run the same command again then")
    if len(waits) < len(members):
        lines += wrapped(
            "the age of some is not known: `--for` with the duration of `--min-age` looks twice and finds out"
        )
    return lines


def _advice(plan: Plan) -> list[str]:

    advice = plan.advice[:EACH]
    lines = [line for text in advice for line in ("\n", *wrapped(f"advice: {printable(text)}", indent=""))]
    if len(plan.advice) > len(advice):
        lines.append(
            f"\n… and {len(plan.advice) - len(advice)} more processes keep descriptors; `-o json` "
            "lists them\n"
        )
    return lines


def connections_text(n: int) -> str:
    return "1 connection" if n == 1 else f"{n} connections"


def wrapped(text: str, indent: str = "  ") -> list[str]:
    """Return a sentence as lines of at most 98 columns."""
    return [line + "\n" for line in textwrap.wrap(text, 98, initial_indent=indent, subsequent_indent=indent)]


def where(step: Step) -> tuple[str, str]:
    """Return both addresses of a step, with their ports."""
    return endpoint(step.src, step.sport), endpoint(step.dst, step.dport)


def connection_lines(step: Step, tail: str) -> list[str]:
    src, dst = where(step)
    line = f"    {src} → {dst}"
    if len(line) + len(tail) + 2 <= 98:
        return [f"{line}  {tail}".rstrip() + "\n"]
    return [f"    {src}\n", f"      → {dst}  {tail}".rstrip() + "\n"]
