"""Settings, plans and explanations of settings as text and as JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from finwait.diagnosis.catalogue import NAMES
from finwait.remedy.settings.catalogue import CATALOGUE
from finwait.remedy.settings.model import Effect, RuleEffect, Scope, Setting, Verdict
from finwait.remedy.tuning import (
    HereEffect,
    LineState,
    PlanLine,
    ProfilePlan,
    TuningFacts,
    default_of,
    in_force,
    verdicts,
)
from finwait.report.style import wrap
from finwait.table.units import printable
from finwait.uapi.sets import distinct

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from finwait.diagnosis.finding import Finding
    from finwait.diagnosis.view import NamespaceView, View
    from finwait.remedy.knowledge import Knowledge

__all__ = [
    "InForce",
    "explain_json",
    "explain_text",
    "in_force_lines",
    "in_pods",
    "plan_json",
    "plan_text",
    "settings_in_force",
    "show_json",
    "show_text",
]

_WIDTH = 98
_VERDICT = {
    Verdict.HELPS: "helps",
    Verdict.ONLY_WHEN: "only when",
    Verdict.NO_EFFECT: "no effect here",
    Verdict.HARMFUL: "HARMFUL",
}
_STATE = {
    LineState.ABSENT: "not there",
    LineState.REFUSED: "refused",
    LineState.UNKNOWN: "not known",
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


def _effects_now(effects: Sequence[HereEffect]) -> str:
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
        counts = [f"{e.count} {e.rule}" for e in effects if e.effect is effect]
        if counts:
            parts.append(f"{words} {', '.join(counts)}")
    return "; ".join(parts)


def plan_text(plan: ProfilePlan, where: str, *, counted: bool) -> Iterator[str]:
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
    same = sum(line.state is LineState.SAME for line in plan.lines)
    parts = [f"{changes} to change", f"{same} already so"]
    if plan.harmful:
        parts.append(f"{len(plan.harmful)} HARMFUL")
    if plan.blocked:
        parts.append(f"{len(plan.blocked)} that cannot be set here")
    yield ", ".join(parts)
    if not counted:
        yield "did not look for stuck connections (`--no-diagnosis`, or the look failed)"
    elif not any(line.here for line in plan.lines):
        yield "the diagnosis found no stuck connection here that a change would affect"


def _plan_line(line: PlanLine) -> Iterator[str]:
    now = line.current if line.current is not None else "-"
    change = f"{now} -> {line.wanted}" if line.state is not LineState.SAME else f"{now} (as it is)"
    word = _VERDICT[line.verdict]
    if line.state in _STATE:
        word = f"{_STATE[line.state]}, {word}" if line.verdict is Verdict.HARMFUL else _STATE[line.state]
    cited = f"  [{' '.join(line.ledger)}]" if line.ledger else ""
    yield f"{line.key}  {change}  {word}{cited}"
    yield from _wrap(line.why, 4)
    effect_text = _effects_now(line.here)
    if effect_text:
        yield from _wrap(f"on what is stuck now: {effect_text}", 4)
    if line.instead and line.state is LineState.CHANGE and line.verdict is not Verdict.HELPS:
        yield from _wrap(f"instead: {line.instead}", 4)
    yield ""


def plan_json(plan: ProfilePlan, where: Mapping[str, Any], *, counted: bool) -> dict[str, Any]:
    """Return a plan as JSON's types (a document of kind ``TunePlan``)."""
    return {
        "profile": {"name": plan.profile.name, "title": plan.profile.title, "source": plan.profile.source},
        **_where_json(where),
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
                "stuck_now": [
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


def _where_json(where: Mapping[str, Any]) -> dict[str, Any]:
    """Return which network namespace it is about; its cookie is not that of a connection."""
    return {
        "netns": where["netns"],
        "netns_name": where["name"],
        "netns_cookie": f"{where['cookie']:#x}",
        "boot_id": where["boot_id"],
    }


def show_text(
    settings: Sequence[Setting], values: Mapping[str, str], where: str, facts: TuningFacts
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


class InForce(Struct, frozen=True):
    """A setting of a namespace, and what is to be said of the value that is in force."""

    where: str
    setting: Setting
    value: str
    default: int | None
    verdict: Verdict | None
    """None where the value is the default, or no number."""
    why: str
    instead: str
    on_stuck: str
    """What a change would do to what is stuck there now."""

    @property
    def verdict_text(self) -> str:
        """The verdict as a plan names it; ``default`` where there is none."""
        return _VERDICT[self.verdict] if self.verdict is not None else "default"


def settings_in_force(
    view: View, findings: Sequence[Finding], spaces: Collection[int] | None = None, *, together: bool = False
) -> list[InForce]:
    """Return the settings that a look has read, of each namespace: harmful ones first, then those that were changed.

    A look reads less than `finwait tune show`: some settings are left out, and so is whether rules translate addresses.

    Args:
        view: the sockets, with their namespaces.
        findings: what was found in it.
        spaces: the namespaces that are wanted; None for all.
        together: namespaces of which the same is to be said are one line.
    """
    counts: dict[int, Counter[str]] = {}
    for finding in findings:
        if finding.primary and finding.severity != "healthy":
            counts.setdefault(finding.netns, Counter())[finding.rule] += finding.count or len(finding.rows)
    translating = set(distinct(view.sockets.netns[view.flow_natted]).tolist())
    alike: dict[tuple[object, ...], tuple[int, int, InForce, list[int]]] = {}
    for inode, space in view.namespaces.items():
        if spaces is not None and inode not in spaces:
            continue
        for rank, place, line in _in_force(space, True if inode in translating else None):
            key = place, line.value, line.default, line.verdict, line.why, 0 if together else inode
            alike.setdefault(key, (rank, place, line, []))[3].append(inode)
    result = []
    for _, _, line, inodes in sorted(alike.values(), key=lambda same: (*same[:2], -len(same[3]))):
        stuck = sum((counts.get(inode, Counter()) for inode in inodes), Counter[str]())
        effects = verdicts((line.setting,), stuck)[line.setting.key]
        label = view.namespaces[inodes[0]].label
        where = label if len(inodes) == 1 else f"in {len(inodes):,} namespaces"
        result.append(replace(line, where=where, on_stuck=_effects_now(effects)))
    return result


def _in_force(space: NamespaceView, translates: bool | None) -> Iterator[tuple[int, int, InForce]]:
    """Yield each setting of a namespace: how bad its value is, its place in the catalogue, and what is said of it."""
    facts = TuningFacts(
        translates=translates,
        tracked_by="translated entries" if translates else "",
        orphans=space.counters.get("sockstat.TCP.orphan"),
        aborted=space.counters.get("TcpExt.TCPAbortOnMemory"),
    )
    for place, setting in enumerate(CATALOGUE):
        value = space.sysctls.get(setting.key.removeprefix("net.").replace(".", "/"))
        if value is None:
            continue
        default, verdict, why, instead = default_of(setting, facts), None, "", ""
        if value.lstrip("-").isdigit():
            band = in_force(setting, int(value), facts)
            changed = default is not None and int(value) != default
            why, instead = band.why, band.instead
            verdict = band.verdict if changed or band.verdict is Verdict.HARMFUL else None
        rank = 0 if verdict is Verdict.HARMFUL else 1 if verdict is not None else 2
        yield rank, place, InForce(space.label, setting, printable(value), default, verdict, why, instead, "")


def in_force_lines(line: InForce, width: int) -> Iterator[str]:
    """Yield what is to be said of a setting that is in force, in lines of a width."""
    setting = line.setting
    default = str(line.default) if line.default is not None else "by memory"
    yield f"{setting.key} = {line.value}  ({line.verdict_text})"
    yield from textwrap.wrap(setting.title, width)
    yield ""
    for label, text in (
        ("where", f"{line.where}; {setting.scope}"),
        ("default", f"{default}; unit: {setting.unit}"),
        ("acts on", setting.acts_on),
        ("value", line.why),
        ("instead", line.instead),
        ("stuck now", line.on_stuck),
        *(("trap", trap) for trap in setting.traps),
    ):
        if text:
            yield from wrap(label, text, width)
    yield ""
    yield from textwrap.wrap(
        f"`finwait tune explain {setting.key}` has everything.",
        width,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _evidence(setting: Setting, value: str, facts: TuningFacts) -> Iterator[str]:
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
    settings: Sequence[Setting], values: Mapping[str, str], where: Mapping[str, Any], facts: TuningFacts
) -> dict[str, Any]:
    """Return the values of a namespace as JSON's types."""
    return {
        **_where_json(where),
        "evidence": _facts_json(facts),
        "settings": [
            {
                "key": s.key,
                "value": values[s.key],
                "default": default_of(s, facts),
                "default_by_memory": s.by_memory,
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


def _facts_json(facts: TuningFacts) -> dict[str, Any]:
    return {
        "tracking_matters": facts.translates,
        "tracking_seen": facts.tracked_by,
        "orphans": facts.orphans,
        "aborted_on_memory": facts.aborted,
    }


def explain_text(
    setting: Setting,
    knowledge: Knowledge,
    here_effects: Sequence[HereEffect],
    facts: TuningFacts,
    value: str | None = None,
) -> Iterator[str]:
    """Yield all that is known of one setting.

    Args:
        setting: which.
        knowledge: what is cited.
        here_effects: what a change would do to what is stuck now.
        facts: what the namespace says beside its settings.
        value: what is in force; None where the setting is absent.
    """
    yield f"{setting.key}: {setting.title}"
    yield ""
    yield from _values_text(setting, facts, value, in_pods(setting, knowledge))
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
    yield from _effects_text(setting)
    if here_effects:
        yield ""
        yield from _wrap(f"On what is stuck here now: {_effects_now(here_effects)}", 4, "")
    yield ""
    yield "Ledger"
    for claim in knowledge.cited(setting.ledger):
        yield from _wrap(f"{claim.id} ({claim.verdict}) {claim.claim} {claim.reason}", 6, "- ")


def in_pods(setting: Setting, knowledge: Knowledge) -> str:
    """Return whether pods of Kubernetes may set it (`securityContext.sysctls`), as text."""
    if setting.scope is not Scope.NETNS:
        return "no: the node has one value for all"
    since = knowledge.names.pod_safe.get(setting.key)
    if since is None:
        return "unsafe: only where the kubelet's `--allowed-unsafe-sysctls` names it"
    any_pod = "any pod that has a network of its own (no `hostNetwork`) may set it"
    before = "; before, where the kubelet's `--allowed-unsafe-sysctls` names it"
    return f"safe: {any_pod}, since Kubernetes {since}{before}" if since else f"safe: {any_pod}"


def _values_text(setting: Setting, facts: TuningFacts, value: str | None, pods: str) -> Iterator[str]:
    """Yield what values a setting has: by default, now, and at most; and what reads it."""
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
    yield from _wrap(pods, 14, "in pods   ")
    if setting.since:
        yield f"    kernels   {setting.since}"
    yield from _wrap(setting.source, 14, "source    ")


def _effects_text(setting: Setting) -> Iterator[str]:
    """Yield what a change does to the connections of each rule."""
    yield "How a change affects what a rule has found"
    effects = [setting.effect(rule) for rule in NAMES]
    for effect in (Effect.ENDS, Effect.BOUNDS_NEW, Effect.HARMFUL):
        for known in effects:
            if effect in (known.effect, known.raised):
                yield from _wrap(_effect_text(known), 6, "- ")
    rest = [known.rule for known in effects if {known.effect, known.raised} <= {Effect.NO_EFFECT, None}]
    yield from _wrap(f"no effect: {', '.join(rest)}", 6, "- ")


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
    setting: Setting,
    knowledge: Knowledge,
    here_effects: Sequence[HereEffect],
    facts: TuningFacts,
    value: str | None = None,
) -> dict[str, Any]:
    """Return what is known of one setting as JSON's types (a document of kind ``Setting``)."""
    effects = [setting.effect(rule) for rule in NAMES]
    return {
        "key": setting.key,
        "title": setting.title,
        "scope": str(setting.scope),
        "default": default_of(setting, facts),
        "default_by_memory": setting.by_memory,
        "in_force": value,
        "evidence": _facts_json(facts),
        "unit": setting.unit,
        "range": [setting.low, setting.high],
        "acts_on": setting.acts_on,
        "pods": {
            "own_value": setting.scope is Scope.NETNS,
            "safe": setting.key in knowledge.names.pod_safe,
            "safe_since": knowledge.names.pod_safe.get(setting.key) or None,
        },
        "traps": list(setting.traps),
        "source": setting.source,
        "ledger": list(setting.ledger),
        "values": [
            {
                "low": b.low,
                "high": b.high,
                "below_current": b.below_current,
                "verdict": str(b.verdict),
                "why": b.why,
            }
            for b in setting.bands
        ],
        "rules": {known.rule: str(known.effect) for known in effects},
        "rules_when_raised": {known.rule: str(known.raised) for known in effects if known.raised is not None},
        "stuck_now": [{"rule": e.rule, "count": e.count, "effect": str(e.effect)} for e in here_effects],
    }
