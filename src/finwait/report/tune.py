"""Settings, plans and explanations of settings as text and as JSON."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from finwait.remedy.settings import RULES, Effect, Setting, Verdict
from finwait.remedy.tuning import HereEffect, Plan, PlanLine, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from finwait.remedy.knowledge import Knowledge

__all__ = ["explain_json", "explain_text", "plan_json", "plan_text", "show_json", "show_text"]

_WIDTH = 98
_VERDICT = {
    Verdict.HELPS: "helps",
    Verdict.ONLY_WHEN: "only when",
    Verdict.NO_EFFECT: "no effect here",
    Verdict.HARMFUL: "HARMFUL",
}
_STATE = {
    State.ABSENT: "not there",
    State.REFUSED: "refused",
    State.UNKNOWN: "not known",
}


def _wrap(text: str, indent: int, first: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=" " * (indent - len(first)) + first if first else " " * indent,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _here(effects: Sequence[HereEffect]) -> str:
    """Say in one sentence what a change would do for what is stuck now."""
    if not effects:
        return ""
    parts = []
    for effect, words in (
        (Effect.ENDS, "would end or shorten"),
        (Effect.BOUNDS_NEW, "nothing for, but bounds later ones like,"),
        (Effect.HARMFUL, "can make worse"),
        (Effect.NO_EFFECT, "nothing for"),
    ):
        found = [f"{e.count} {e.rule}" for e in effects if e.effect is effect]
        if found:
            parts.append(f"{words} {', '.join(found)}")
    return "; ".join(parts)


def plan_text(plan: Plan, where: str, *, counted: bool) -> Iterator[str]:
    """Yield the lines of a plan for a person, below 100 columns.

    Args:
        plan: the plan.
        where: the namespace, in words.
        counted: whether a diagnosis gave the numbers of what is stuck now.
    """
    yield f"{plan.profile.name}: {plan.profile.title}"
    yield f"for {where}"
    yield ""
    for line in plan.lines:
        yield from _plan_line(line)
    for remark in plan.remarks:
        yield from _wrap(f"{_VERDICT[remark.verdict]}: {remark.text}", 4, "  * ")
    if plan.remarks:
        yield ""
    changes = len(plan.changes)
    same = sum(line.state is State.SAME for line in plan.lines)
    told = [f"{changes} to change", f"{same} already so"]
    if plan.harmful:
        told.append(f"{len(plan.harmful)} HARMFUL")
    if plan.blocked:
        told.append(f"{len(plan.blocked)} that cannot be set here")
    yield ", ".join(told)
    if not counted:
        yield "what is stuck now was not looked at, so nothing is said about it"
    elif not any(line.here for line in plan.lines):
        yield "the diagnosis found nothing stuck here that a change could be measured against"


def _plan_line(line: PlanLine) -> Iterator[str]:
    now = line.current if line.current is not None else "-"
    change = f"{now} -> {line.wanted}" if line.state is not State.SAME else f"{now} (as it is)"
    word = _VERDICT[line.verdict]
    if line.state in _STATE:
        word = f"{_STATE[line.state]}, {word}" if line.verdict is Verdict.HARMFUL else _STATE[line.state]
    cited = f"  [{' '.join(line.ledger)}]" if line.ledger else ""
    yield f"{line.key}  {change}  {word}{cited}"
    yield from _wrap(line.why, 4)
    here = _here(line.here)
    if here:
        yield from _wrap(f"stuck now: {here}", 4)
    if line.instead and line.state is State.CHANGE and line.verdict is not Verdict.HELPS:
        yield from _wrap(f"instead: {line.instead}", 4)
    yield ""


def plan_json(plan: Plan, where: Mapping[str, Any], *, counted: bool) -> dict[str, Any]:
    """Return a plan as JSON's types (``kind: TunePlan``)."""
    return {
        "apiVersion": "finwait/v1",
        "kind": "TunePlan",
        "profile": {"name": plan.profile.name, "title": plan.profile.title, "source": plan.profile.source},
        "netns": dict(where),
        "diagnosed": counted,
        "lines": [
            {
                "key": line.key,
                "wanted": line.wanted,
                "current": line.current,
                "state": str(line.state),
                "verdict": str(line.verdict),
                "why": line.why,
                "instead": line.instead,
                "ledger": list(line.ledger),
                "source": line.source,
                "stuckNow": [
                    {"rule": e.rule, "count": e.count, "effect": str(e.effect), "why": e.why}
                    for e in line.here
                ],
            }
            for line in plan.lines
        ],
        "remarks": [
            {"verdict": str(r.verdict), "keys": list(r.keys), "text": r.text, "ledger": list(r.ledger)}
            for r in plan.remarks
        ],
    }


def show_text(settings: Sequence[Setting], values: Mapping[str, str], where: str) -> Iterator[str]:
    """Yield the values of a namespace, those that differ from the default marked and judged."""
    yield where
    for setting in settings:
        value = values.get(setting.key)
        if value is None:
            continue
        default = str(setting.default) if setting.default is not None else "by memory"
        mark, note = " ", ""
        if value.lstrip("-").isdigit():
            band = setting.band(int(value), int(value))
            if band.verdict is Verdict.HARMFUL:
                mark, note = "!", f"harmful [{' '.join(band.ledger)}]"
            elif setting.default is not None and int(value) != setting.default:
                mark, note = "*", _VERDICT[band.verdict]
        yield f"{mark} {setting.key:<54} {value:>10}  default {default:<9} {note}".rstrip()


def show_json(
    settings: Sequence[Setting], values: Mapping[str, str], where: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values of a namespace as JSON's types."""
    return {
        "netns": dict(where),
        "settings": [
            {
                "key": s.key,
                "value": values[s.key],
                "default": s.default,
                "unit": s.unit,
                "scope": str(s.scope),
                "verdict": str(s.band(int(values[s.key]), int(values[s.key])).verdict)
                if values[s.key].lstrip("-").isdigit()
                else None,
            }
            for s in settings
            if s.key in values
        ],
    }


def explain_text(setting: Setting, knowledge: Knowledge, here: Sequence[HereEffect]) -> Iterator[str]:
    """Yield all that is known of one setting."""
    yield f"{setting.key}: {setting.title}"
    yield ""
    default = setting.default if setting.default is not None else "computed from the machine's memory"
    yield f"    scope     {setting.scope}"
    yield f"    default   {default}"
    yield f"    range     {setting.low} to {setting.high} {setting.unit}"
    yield from _wrap(setting.acts_on, 14, "acts on   ")
    if setting.since:
        yield f"    kernels   {setting.since}"
    yield from _wrap(setting.source, 14, "source    ")
    yield ""
    yield "Traps"
    for trap in setting.traps:
        yield from _wrap(trap, 6, "- ")
    yield ""
    yield "Values"
    for band in setting.bands:
        yield from _wrap(
            f"{_range(band.low, band.high, band.below_current)}: {_VERDICT[band.verdict]}; {band.why}",
            6,
            "- ",
        )
    yield ""
    yield "What a change does for what a rule has found"
    told = {rule: setting.effect(rule) for rule in RULES}
    for effect in (Effect.ENDS, Effect.BOUNDS_NEW, Effect.HARMFUL):
        for rule, known in told.items():
            if known.effect is effect:
                yield from _wrap(f"{rule}: {effect}; {known.why}", 6, "- ")
    rest = [rule for rule, known in told.items() if known.effect is Effect.NO_EFFECT]
    yield from _wrap(f"no effect: {', '.join(rest)}", 6, "- ")
    if here:
        yield ""
        yield from _wrap(f"Stuck here now: {_here(here)}", 4, "")
    yield ""
    yield "Ledger"
    for claim in knowledge.cited(setting.ledger):
        yield from _wrap(f"{claim.id} ({claim.verdict}) {claim.claim} {claim.reason}", 6, "- ")


def _range(low: int | None, high: int | None, below_current: bool) -> str:
    if below_current:
        return "below the value in force"
    if low is not None and low == high:
        return str(low)
    if low is None and high is None:
        return "anything else"
    if low is None:
        return f"{high} and less"
    return f"{low} to {high}" if high is not None else f"{low} and more"


def explain_json(setting: Setting, here: Sequence[HereEffect]) -> dict[str, Any]:
    """Return what is known of one setting as JSON's types (``kind: Setting``)."""
    return {
        "apiVersion": "finwait/v1",
        "kind": "Setting",
        "key": setting.key,
        "title": setting.title,
        "scope": str(setting.scope),
        "default": setting.default,
        "unit": setting.unit,
        "range": [setting.low, setting.high],
        "actsOn": setting.acts_on,
        "traps": list(setting.traps),
        "source": setting.source,
        "ledger": list(setting.ledger),
        "values": [
            {
                "low": b.low,
                "high": b.high,
                "belowCurrent": b.below_current,
                "verdict": str(b.verdict),
                "why": b.why,
            }
            for b in setting.bands
        ],
        "rules": {rule: str(setting.effect(rule).effect) for rule in RULES},
        "stuckNow": [{"rule": e.rule, "count": e.count, "effect": str(e.effect)} for e in here],
    }
