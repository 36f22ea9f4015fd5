"""What came of acts, as lines for a person and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from finwait.report.plan import EACH, connection_lines, step_json, wrapped
from finwait.report.shape import document, encoded, owner

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from finwait.errors import Gap
    from finwait.remedy.outcome import EntryOutcome, Outcome

__all__ = ["counted", "entry_text", "outcome_json", "outcome_lines"]


def outcome_json(outcomes: Sequence[Outcome], gaps: Iterable[Gap] = ()) -> str:
    """Return what came of each step as one JSON document."""
    items = [
        {
            "step": step_json(o.step),
            "result": o.result,
            "detail": o.detail,
            "act": o.act_id or None,
            "this_end_gone": o.this_end_gone,
            "other_end_state": o.other or None,
            "stays_open": [owner(*holder) for holder in o.stays_open],
        }
        for o in outcomes
    ]
    return encoded(document("OutcomeList", {"items": items}, gaps))


def counted(outcomes: Iterable[Outcome]) -> str:
    """Return how many steps had which result; empty for none."""
    results = Counter(o.result for o in outcomes)
    return ", ".join(f"{n} {result}" for result, n in results.most_common())


def outcome_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what came of each step as lines for a person."""
    lines = [f"\n{counted(outcomes)}.\n"]
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for o in outcomes:
        groups.setdefault((o.step.means, o.result, o.detail), []).append(o)
    for (means, result, detail), members in groups.items():
        lines += ["\n", *wrapped(f"{means}, {result} ×{len(members)}: {detail}", indent="")]
        for o in members[:EACH]:
            lines += connection_lines(o.step, f"(act {o.act_id})" if o.act_id else "")
        if len(members) > EACH:
            first, last = members[EACH].act_id, members[-1].act_id
            lines.append(f"    … and {len(members) - EACH} more (acts {first} to {last})\n")
    still = Counter((pid, comm) for o in outcomes if o.this_end_gone for pid, _, comm in o.stays_open)
    for (pid, comm), n in still.most_common():
        single = n == 1
        lines += [
            "\n",
            *wrapped(
                f"{'1 descriptor is' if single else f'{n} descriptors are'} still open in {comm} (pid "
                f"{pid}): only its close(), or a restart of the program, frees "
                f"{'it' if single else 'them'}.",
                indent="",
            ),
        ]
    return lines


def entry_text(outcome: EntryOutcome) -> str:
    """Return what came of the deletion of a tracking entry, in words."""
    if outcome.result == "failed":
        return f"failed: {outcome.detail}"
    return "interrupted before it was done" if outcome.result == "interrupted" else outcome.result
