"""What came of acts, as lines for a person and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from finwait.report.plan import EACH, connection_lines, wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finwait.remedy.outcome import Outcome

__all__ = ["outcome_json", "outcome_lines"]


def outcome_json(outcomes: Sequence[Outcome]) -> str:
    """Return what came of each step as one JSON document."""
    items = [
        {
            "step": o.step,
            "result": o.result,
            "detail": o.detail,
            "act": o.act_id or None,
            "other": o.other or None,
            "stays_open": o.stays_open,
        }
        for o in outcomes
    ]
    out = {"apiVersion": "finwait/v1", "kind": "OutcomeList", "items": items}
    return msgspec.json.encode(out).decode() + "\n"


def outcome_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what came of each step as lines for a person."""
    counted = Counter(o.result for o in outcomes)
    lines = ["\n" + ", ".join(f"{n} {result}" for result, n in counted.most_common()) + ".\n"]
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
    still = Counter((pid, comm) for o in outcomes if o.result == "ended" for pid, _, comm in o.stays_open)
    for (pid, comm), n in still.most_common():
        one = n == 1
        lines += [
            "\n",
            *wrapped(
                f"{'1 descriptor is' if one else f'{n} descriptors are'} still open in {comm} (pid "
                f"{pid}): only its close(), or a restart of the program, frees "
                f"{'it' if one else 'them'}.",
                indent="",
            ),
        ]
    return lines
