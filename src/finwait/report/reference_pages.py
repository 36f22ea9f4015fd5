"""The reference pages that are made from data: settings, ledger and proofs.

``docs/reference/settings.md``, ``docs/reference/ledger.md`` and ``docs/reference/proofs.md`` are what these functions
return; a test compares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.diagnosis.catalogue import NAMES
from finwait.remedy.knowledge import VERDICTS
from finwait.remedy.settings.model import Band, Effect, Setting, Verdict
from finwait.report.tune import in_pods

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from finwait.diagnosis.finding import Advice, Remedy
    from finwait.diagnosis.rule import Rule
    from finwait.remedy.knowledge import Knowledge

__all__ = ["ledger_page", "proofs_page", "settings_page"]

_VERDICT = {
    Verdict.HELPS: "helps",
    Verdict.ONLY_WHEN: "only when",
    Verdict.NO_EFFECT: "no effect",
    Verdict.HARMFUL: "**harmful**",
}
_MADE = "<!-- Made from the sources by `make docs`; edit those. -->"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _values(band: Band) -> str:
    if band.below_current:
        return "below the current value"
    if band.low is not None and band.low == band.high:
        return str(band.low)
    if band.low is None and band.high is None:
        return "anything else"
    if band.low is None:
        return f"≤ {band.high}"
    return f"{band.low} to {band.high}" if band.high is not None else f"≥ {band.low}"


def _links(ids: Sequence[str]) -> str:
    return ", ".join(f"[{name}](ledger.md#{name.lower()})" for name in ids)


def settings_page(settings: Sequence[Setting], knowledge: Knowledge) -> str:
    """Return the reference page of the settings that bear on closing, in Markdown."""
    out = [
        _MADE,
        "",
        "# Settings that affect closing",
        "",
        (
            "What each sysctl does, what it acts on, and what it does not do. `finwait tune explain KEY` "
            "prints the same with the"
        ),
        "numbers of this machine. Ranges, defaults and scopes were read on Linux 6.18 in a fresh network namespace.",
        "",
        "| Effect on what a rule has found | Meaning |",
        "|---|---|",
        "| ends | shortens the life of the connections that exist now |",
        "| bounds-new | does nothing for those; limits or prevents later ones |",
        "| harmful | makes this pattern worse or more frequent |",
        "",
        "A setting does not affect a rule that it does not name.",
        "",
    ]
    for setting in settings:
        out += _setting(setting, in_pods(setting, knowledge))
    return "\n".join(out).rstrip() + "\n"


def _setting(setting: Setting, pods: str) -> list[str]:
    default = str(setting.default) if not setting.by_memory else "computed from the machine's memory"
    out = [
        f"## `{setting.key}`",
        "",
        f"{setting.title[0].upper()}{setting.title[1:]}.",
        "",
        "| | |",
        "|---|---|",
        f"| Scope | {setting.scope} |",
        f"| Default | {default} |",
        f"| Range | {setting.low} to {setting.high} {setting.unit} |",
        f"| Acts on | {_cell(setting.acts_on)} |",
        f"| In pods | {_cell(pods)} |",
    ]
    if setting.since:
        out.append(f"| Kernels | {setting.since} |")
    out += [f"| Source | {_cell(setting.source)} |", f"| Ledger | {_links(setting.ledger)} |", ""]
    out += [f"- {trap[0].upper()}{trap[1:]}." for trap in setting.traps]
    out += ["", "| Value | Verdict | Why | Ledger |", "|---|---|---|---|"]
    out += [
        f"| {_values(band)} | {_VERDICT[band.verdict]} | {_cell(band.why)} | {_links(band.ledger)} |"
        for band in setting.bands
    ]
    effects = [
        known
        for rule in NAMES
        if {(known := setting.effect(rule)).effect, known.raised} - {Effect.NO_EFFECT, None}
    ]
    if effects:
        out += ["", "| Rule | Effect | Why |", "|---|---|---|"]
        for known in effects:
            lowered = "" if known.raised is None else "lowered: "
            out.append(f"| `{known.rule}` | {lowered}{known.effect} | {_cell(known.why)} |")
            if known.raised is not None:
                out.append(f"| | raised: {known.raised} | {_cell(known.raised_why)} |")
    else:
        out += ["", "It does not end, limit or worsen anything that a rule finds."]
    out.append("")
    return out


def ledger_page(knowledge: Knowledge) -> str:
    """Return the reference page of the ledger, in Markdown."""
    out = [
        _MADE,
        "",
        "# The ledger of claims",
        "",
        (
            "Claims about connections that do not finish closing, and what is true of them. S01 to S41 are the "
            "claims of the"
        ),
        "article that finwait started from, *Debugging persistent FIN_WAIT2 connections in Kubernetes kube-proxy*;",
        "those from X01 on are further claims that experts ask about.",
        "",
        "| Verdict | Meaning |",
        "|---|---|",
        *[f"| {verdict} | {meaning} |" for verdict, meaning in VERDICTS.items()],
        "",
        "*Measured*: tried on Linux 6.18 in private network namespaces. *Source*: read in the kernel's or the",
        "program's source or documentation. *Reported*: taken from the threads named, not tried here. A demonstration",
        "is run by `finwait lab prove ID`.",
        "",
    ]
    heading = ""
    for claim in knowledge.claims.values():
        section = "The article" if claim.id.startswith("S") else "Further claims"
        if section != heading:
            heading = section
            out += [f"## {heading}", ""]
        verdict = claim.verdict + (f", {claim.also}" if claim.also else "")
        out += [
            f"### {claim.id}",
            "",
            f"> {claim.claim.replace('<', '&lt;')}",
            "",
            f"**{verdict}**. {claim.reason}",
            "",
        ]
        if claim.observed:
            out.append(f"- Observed: {claim.observed}.")
        if claim.instead:
            out.append(f"- Instead: {claim.instead}")
        out += [f"- Source ({claim.evidence}): {claim.source}."]
        if claim.demo:
            out.append(f"- Demonstration: `finwait lab prove {claim.id}` ({claim.demo}).")
        out.append("")
    return "\n".join(out).rstrip() + "\n"


def proofs_page(rules: Sequence[Rule], claims: Mapping[str, Sequence[str]]) -> str:
    """Return the page of what rules say and which demonstration shows it, in Markdown.

    Args:
        rules: all rules.
        claims: name of a demonstration → the claims of the ledger that it bears on.
    """
    out = [
        _MADE,
        "",
        "# What rules say, and what shows it",
        "",
        (
            "Each finding says what ends it and what does not. This page lists every such statement of every "
            "rule, with the"
        ),
        "demonstration that measures it: `finwait lab prove NAME`. A statement without one rests on the sources that",
        "the rule and the [ledger](ledger.md) name, or is plain advice.",
        "",
    ]
    for rule in rules:
        statements = _statements(rule)
        shown = sum(1 for _, statement in statements if statement.proofs)
        out += [
            f"## [`{rule.name}`](rules/{rule.name}.md)",
            "",
            f"{shown} of {len(statements)} shown.",
            "",
            "| | Statement | Shown by |",
            "|---|---|---|",
        ]
        out += [
            f"| {kind} | {_cell(statement.text)} | {_shown(statement.proofs, claims)} |"
            for kind, statement in statements
        ]
        out.append("")
    return "\n".join(out).rstrip() + "\n"


def _statements(rule: Rule) -> list[tuple[str, Advice | Remedy]]:
    """Return what a rule and its cases say, each statement once."""
    statements: dict[tuple[str, str], Advice | Remedy] = {}
    for ends, does_not in ((words.ends, words.does_not) for words in rule.tellings):
        for kind, group in (("ends it", ends), ("does not", does_not)):
            for statement in group:
                statements.setdefault((kind, statement.text), statement)
    return [(kind, statement) for (kind, _), statement in statements.items()]


def _shown(proofs: Sequence[str], claims: Mapping[str, Sequence[str]]) -> str:
    cells = []
    for name in proofs:
        links = _links(claims[name])
        cells.append(f"`{name}`" + (f" ({links})" if links else ""))
    return ", ".join(cells) or "—"
