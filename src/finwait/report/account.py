"""A diagnosis as what a document says of it, in the words of the text report: what HTML and Markdown are made of.

Texts may hold names that others chose; whoever writes them into a format escapes them there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from msgspec import Struct

from finwait.diagnosis import outlook
from finwait.diagnosis.finding import Advice, Finding, Remedy
from finwait.report import text
from finwait.report.by_hand import ByHand, by_hand
from finwait.report.cells import cut
from finwait.report.columns import Cells
from finwait.report.detail import age_text, holders_text, states_text, turn_text, where
from finwait.report.overview import WholeColumn, table
from finwait.report.tune import InForce, settings_in_force
from finwait.report.two_ends import TwoEnds, two_ends
from finwait.table.states_then import StatesThen
from finwait.uapi import tcp
from finwait.version import __version__

if TYPE_CHECKING:
    from finwait.diagnosis.select import Narrowed
    from finwait.diagnosis.view import View
    from finwait.errors import Gap
    from finwait.uapi.observation import Facts

__all__ = [
    "Account",
    "ConnectionShown",
    "GroupShown",
    "StateShown",
    "StatesThen",
    "account",
    "group_shown",
    "when",
]

LISTED: Final = 500
"""Groups that have a line in the overview; the others are counted."""
CONNECTIONS: Final = 20
"""Connections that a group names; the others are counted."""
_LONGEST_FILTER: Final = 2000
LONGEST_COMMAND: Final = 400
"""Characters of a command that is shown; a longer one names very many connections one by one."""

Sign = Literal["problem", "notice", "fine", "unsure"]


class StateShown(Struct, frozen=True):
    """A state of TCP: how many sockets are in it, and how many of them problems and notices are about."""

    state: int
    count: int
    problems: int
    notices: int
    at_least: bool = False
    """Whether there are more that were not looked at."""


class ConnectionShown(Struct, frozen=True):
    """A connection of a group."""

    local: str
    peer: str
    state: str
    age: str
    held_by: str
    other_end: str


class GroupShown(Struct, frozen=True):
    """A group, in full."""

    number: int
    finding: Finding
    states: str
    where: str
    facts: tuple[tuple[str, str], ...]
    pictures: tuple[TwoEnds, ...]
    ends_it: tuple[Remedy, ...]
    does_not: tuple[Advice, ...]
    as_before: bool
    """Whether what ends it, and what does not, was said of an earlier group."""
    connections: tuple[ConnectionShown, ...]
    more: int
    listing: str
    by_hand: tuple[ByHand, ...]


class Account(Struct, frozen=True):
    """Everything that a document says of a diagnosis."""

    host: str
    headline: str
    sign: Sign
    about: tuple[tuple[str, str], ...]
    """When, where and how was looked: label and text."""
    overview: tuple[WholeColumn, ...]
    """Of the first `LISTED` groups."""
    groups: tuple[Finding, ...]
    """Everything that is shown, the most harmful first."""
    states: tuple[StateShown, ...]
    states_note: str
    moments: tuple[StatesThen, ...]
    remarks: tuple[tuple[str, str], ...]
    unjudged: tuple[str, ...]
    unjudged_hint: str
    settings: tuple[InForce, ...]
    gaps: tuple[Gap, ...]
    versions: tuple[tuple[str, str], ...]


def account(
    view: View,
    findings: Sequence[Finding],
    gaps: Sequence[Gap],
    facts: Facts,
    *,
    narrowed: Narrowed | None = None,
    moments: Sequence[StatesThen] = (),
    source: str = "",
    redacted: bool = False,
) -> Account:
    """Return what a document says of a diagnosis.

    Args:
        view: the sockets.
        findings: what was found.
        gaps: what could not be seen.
        facts: the machine, and when.
        narrowed: the FILTER that the findings were narrowed by.
        moments: all looks, where there were several.
        source: what was looked at instead of a running machine; empty for that.
        redacted: whether names and addresses are pseudonyms.
    """
    host = f"{facts.hostname or 'this machine'} (Linux {facts.kernel})"
    shown = text.shown_groups(view, findings)
    return Account(
        host=facts.hostname or "this machine",
        headline=text.headline(view, findings, host, gaps, narrowed),
        sign=_sign(view, shown, gaps, narrowed),
        about=tuple(_about(view, facts, narrowed, moments, source, redacted)),
        overview=tuple(table(view, shown[:LISTED])) if shown else (),
        groups=tuple(shown),
        states=tuple(_states(view, findings)),
        states_note=_states_note(view, narrowed),
        moments=tuple(moments),
        remarks=tuple(text.remarks(view, findings)),
        unjudged=tuple(text.unjudged_texts(view, narrowed)) if narrowed and narrowed.unjudged else (),
        unjudged_hint=text.unjudged_hint(narrowed) if narrowed and narrowed.unjudged else "",
        settings=tuple(settings_in_force(view, findings, together=True)),
        gaps=tuple(gaps),
        versions=tuple(_versions(facts)),
    )


def _sign(view: View, shown: Sequence[Finding], gaps: Sequence[Gap], narrowed: Narrowed | None) -> Sign:
    severities = {group.severity for group in shown}
    if "problem" in severities:
        return "problem"
    if "notice" in severities:
        return "notice"
    nothing_selected = narrowed is not None and not narrowed.rows.any()
    return "unsure" if nothing_selected or text.partly_seen(view, gaps, narrowed) else "fine"


def when(unix_ns: int) -> str:
    """Return a moment in UTC, to the second; what is not known is said."""
    if unix_ns <= 0:
        return "not known"
    return datetime.fromtimestamp(unix_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _about(
    view: View,
    facts: Facts,
    narrowed: Narrowed | None,
    moments: Sequence[StatesThen],
    source: str,
    redacted: bool,
) -> Iterator[tuple[str, str]]:
    yield "looked at", when(facts.unix_ns)
    if source:
        yield "read from", source
    if len(moments) > 1:
        span = max(0, moments[-1].unix_ns - moments[0].unix_ns) / 1e9
        yield "looks", f"{len(moments)}, {span:.1f} s from the first to the last"
    spaces = len(view.namespaces)
    n = int((view.sockets.state != tcp.LISTEN).sum())
    yield "seen", f"{n:,} connections in {spaces:,} network namespace{'' if spaces == 1 else 's'}"
    if narrowed is not None:
        yield "FILTER", cut(str(narrowed.filter), _LONGEST_FILTER)
    if redacted:
        yield "redacted", "names and addresses are pseudonyms; the same one stands for the same name"


def _versions(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "finwait", __version__
    yield "kernel", f"Linux {facts.kernel}"
    yield "machine", facts.hostname or "not known"
    yield "boot", facts.boot_id or "not known"


def _states(view: View, findings: Sequence[Finding]) -> Iterator[StateShown]:
    states = view.sockets.state
    counts = np.bincount(states, minlength=256)
    of = {severity: np.zeros(len(view), np.bool_) for severity in ("problem", "notice", "healthy")}
    for finding in findings:
        if finding.primary:
            of[finding.severity][finding.rows] = True
    problems = np.bincount(states[of["problem"]], minlength=256)
    notices = np.bincount(states[of["notice"] & ~of["problem"]], minlength=256)
    for state in sorted({*np.flatnonzero(counts).tolist(), *tcp.STATES}):
        at_least = state == tcp.ESTABLISHED and view.established_skipped > 0
        yield StateShown(state, int(counts[state]), int(problems[state]), int(notices[state]), at_least)


def _states_note(view: View, narrowed: Narrowed | None) -> str:
    parts = ["All sockets that were looked at"]
    if narrowed is not None:
        parts[0] += ", also those that the FILTER does not select; stuck are only such as it selects"
    if view.established_skipped:
        parts.append(
            f"about {view.established_skipped:,} sockets are in namespaces whose ESTABLISHED ones were left out"
        )
    return "; ".join(parts) + "."


def group_shown(
    view: View, finding: Finding, number: int, advised: set[tuple[object, ...]], most: int = CONNECTIONS
) -> GroupShown:
    """Return a group in full.

    Args:
        view: the sockets.
        finding: the group.
        number: its number in the overview.
        advised: what was said of earlier groups to end them; what is said of this one is added.
        most: connections to name.
    """
    means = tuple((remedy.text, remedy.kind) for remedy in finding.ends_it)
    advice = (finding.rule, means, finding.does_not)
    again = advice in advised
    advised.add(advice)
    rows = finding.rows[:0] if finding.counted else finding.rows[:most]
    cells = Cells(view, rows)
    names = ("local", "peer", "state_name", "age", "owner", "other_end")
    columns = [["" if v is None else str(v) for v in cells.column(name)] for name in names]
    return GroupShown(
        number=number,
        finding=finding,
        states=states_text(view, finding),
        where=where(view, finding),
        facts=tuple(_facts(view, finding)),
        pictures=tuple(two_ends(view, finding)),
        ends_it=finding.ends_it,
        does_not=() if again else finding.does_not,
        as_before=again,
        connections=tuple(ConnectionShown(*row) for row in zip(*columns, strict=True)),
        more=len(finding.rows) - len(rows),
        listing=finding.listing,
        by_hand=tuple(by_hand(view, finding)),
    )


def _facts(view: View, finding: Finding) -> Iterator[tuple[str, str]]:
    if finding.subject:
        yield "who", finding.subject
    elif holders := holders_text(view, finding):
        yield "held by", holders
    if age := age_text(view, finding):
        yield "age", age
    if (ends := outlook.of_finding(view, finding.rows)) is not None:
        yield "ends", outlook.text(ends)
    yield "whose move", turn_text(view, finding)
    yield "harm", _HARMS[finding.harm]
    yield "confidence", f"{finding.confidence.level}: {finding.confidence.reason}"


_HARMS: Final = {
    "outage": "clients are turned away or get no answer",
    "stall": "data waits",
    "leak": "descriptors and memory pile up",
    "residue": "nothing that anybody would miss",
}
