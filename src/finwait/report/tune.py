"""Settings, plans and explanations of settings as text and as JSON."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from finwait.diagnosis.catalogue import NAMES
from finwait.remedy.settings.model import Effect, RuleEffect, Setting, Verdict
from finwait.remedy.tuning import Facts, HereEffect, Plan, PlanLine, State, default_of, in_force

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
    """Say in one sentence what a change would do to what is stuck now."""
    if not effects:
        return ""
    parts = []
    for effect, words in (
        (Effect.ENDS, "would end or shorten"),
        (Effect.BOUNDS_NEW, "no effect on, but limits future ones like,"),
        (Effect.HARMFUL, "can make worse"),
        (Effect.NO_EFFECT, "no effect on"),
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
        yield "did not look for stuck connections (`--no-diagnosis`, or the look failed)"
    elif not any(line.here for line in plan.lines):
        yield "the diagnosis found no stuck connection here that a change would affect"


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
        yield from _wrap(f"on what is stuck now: {here}", 4)
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


def show_text(
    settings: Sequence[Setting], values: Mapping[str, str], where: str, facts: Facts
) -> Iterator[str]:
    """Yield the values of a namespace, those that differ from the default marked and judged.

    Args:
        settings: which to show.
        values: those in force, by key.
        where: the namespace, in words.
        facts: what it says beside its settings.
    """
    yield where
    for setting in settings:
        value = values.get(setting.key)
        if value is None:
            continue
        default = default_of(setting, facts)
        mark, note = " ", ""
        if value.lstrip("-").isdigit():
            band = in_force(setting, int(value), facts)
            cited = f" [{' '.join(band.ledger)}]"
            if band.verdict is Verdict.HARMFUL:
                mark, note = "!", f"harmful{cited}"
            elif default is not None and int(value) != default:
                mark, note = "*", _VERDICT[band.verdict]
        shown = str(default) if default is not None else "by memory"
        yield f"{mark} {setting.key:<54} {value:>10}  default {shown:<9} {note}".rstrip()
        for line in _evidence(setting, value, facts):
            yield from _wrap(line, 6)


def _evidence(setting: Setting, value: str, facts: Facts) -> Iterator[str]:
    """Say what was seen here that decides what a setting in force does."""
    if setting.key.endswith("tcp_max_orphans") and facts.orphans is not None and value.lstrip("-").isdigit():
        limit = int(value)
        near = ": at the limit" if facts.orphans >= limit else ""
        if not near and 4 * facts.orphans >= limit:
            near = ": close enough that orphans of silent peers may be reset"
        yield f"orphans now: {facts.orphans} of {value}{near}"
        if facts.aborted:
            yield (
                f"TCPAbortOnMemory of this namespace: {facts.aborted} connections were reset at this "
                "limit or for lack of memory (`too many orphaned sockets` or `out of memory` in the "
                "kernel's log)"
            )
    if value.lstrip("-").isdigit() and setting.band(int(value), int(value)).tracking:
        band = setting.band(int(value), int(value))
        if band.verdict is Verdict.HARMFUL:
            translates = {
                True: f"it matters here: {facts.tracked_by}",
                False: f"nothing here translates addresses or filters by connection state: {facts.tracked_by}",
                None: f"it is unknown whether addresses are translated here: {facts.tracked_by}",
            }
            yield translates[facts.translates]


def show_json(
    settings: Sequence[Setting], values: Mapping[str, str], where: Mapping[str, Any], facts: Facts
) -> dict[str, Any]:
    """Return the values of a namespace as JSON's types."""
    return {
        "netns": dict(where),
        "evidence": _facts_json(facts),
        "settings": [
            {
                "key": s.key,
                "value": values[s.key],
                "default": default_of(s, facts),
                "defaultByMemory": s.by_memory,
                "unit": s.unit,
                "scope": str(s.scope),
                "verdict": str(in_force(s, int(values[s.key]), facts).verdict)
                if values[s.key].lstrip("-").isdigit()
                else None,
            }
            for s in settings
            if s.key in values
        ],
    }


def _facts_json(facts: Facts) -> dict[str, Any]:
    return {
        "trackingMatters": facts.translates,
        "trackingSeen": facts.tracked_by,
        "orphans": facts.orphans,
        "abortedOnMemory": facts.aborted,
    }


def explain_text(
    setting: Setting,
    knowledge: Knowledge,
    here: Sequence[HereEffect],
    facts: Facts,
    value: str | None = None,
) -> Iterator[str]:
    """Yield all that is known of one setting.

    Args:
        setting: which.
        knowledge: what is cited.
        here: what a change would do to what is stuck now.
        facts: what the namespace says beside its settings.
        value: what is in force; None where the setting is absent.
    """
    yield f"{setting.key}: {setting.title}"
    yield ""
    computed = default_of(setting, facts)
    default = "computed from the machine's memory" if computed is None else str(computed)
    if setting.by_memory and computed is not None:
        default += " on this machine, computed from its memory"
    yield f"    scope     {setting.scope}"
    yield f"    default   {default}"
    if value is not None:
        yield f"    in force  {value}"
        for line in _evidence(setting, value, facts):
            yield from _wrap(line, 14)
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
    yield "How a change affects what a rule has found"
    told = [setting.effect(rule) for rule in NAMES]
    for effect in (Effect.ENDS, Effect.BOUNDS_NEW, Effect.HARMFUL):
        for known in told:
            if effect in (known.effect, known.raised):
                yield from _wrap(_effect_text(known), 6, "- ")
    rest = [known.rule for known in told if {known.effect, known.raised} <= {Effect.NO_EFFECT, None}]
    yield from _wrap(f"no effect: {', '.join(rest)}", 6, "- ")
    if here:
        yield ""
        yield from _wrap(f"On what is stuck here now: {_here(here)}", 4, "")
    yield ""
    yield "Ledger"
    for claim in knowledge.cited(setting.ledger):
        yield from _wrap(f"{claim.id} ({claim.verdict}) {claim.claim} {claim.reason}", 6, "- ")


def _effect_text(known: RuleEffect) -> str:
    if known.raised is None:
        return f"{known.rule}: {known.effect}; {known.why}"
    return f"{known.rule}: lowered: {known.effect}; {known.why}; raised: {known.raised}; {known.raised_why}"


def _range(low: int | None, high: int | None, below_current: bool) -> str:
    if below_current:
        return "below the current value"
    if low is not None and low == high:
        return str(low)
    if low is None and high is None:
        return "anything else"
    if low is None:
        return f"{high} and less"
    return f"{low} to {high}" if high is not None else f"{low} and more"


def explain_json(
    setting: Setting, here: Sequence[HereEffect], facts: Facts, value: str | None = None
) -> dict[str, Any]:
    """Return what is known of one setting as JSON's types (``kind: Setting``)."""
    told = [setting.effect(rule) for rule in NAMES]
    return {
        "apiVersion": "finwait/v1",
        "kind": "Setting",
        "key": setting.key,
        "title": setting.title,
        "scope": str(setting.scope),
        "default": default_of(setting, facts),
        "defaultByMemory": setting.by_memory,
        "inForce": value,
        "evidence": _facts_json(facts),
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
        "rules": {known.rule: str(known.effect) for known in told},
        "rulesWhenRaised": {known.rule: str(known.raised) for known in told if known.raised is not None},
        "stuckNow": [{"rule": e.rule, "count": e.count, "effect": str(e.effect)} for e in here],
    }
