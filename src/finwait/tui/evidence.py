"""What the pane beside the list says: the evidence of a group, a connection, a setting or an act, as lines with roles.

The words are those of `finwait explain`, `finwait tune` and `finwait journal`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Final

import numpy as np

from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import View
from finwait.report.board import MARKS, Group, Judged
from finwait.report.connection import connection
from finwait.report.detail import detail
from finwait.report.journal import ActLine
from finwait.report.painted import Line
from finwait.report.style import Style, wrap
from finwait.report.text import not_judged
from finwait.report.tune import InForce, in_force_lines
from finwait.session import Diagnosis, findings_of
from finwait.table.units import printable
from finwait.tui.pages import fold
from finwait.uapi import tcp

__all__ = ["of_act", "of_connection", "of_group", "of_setting", "page"]

_LABEL: Final = re.compile(r"  \S.{11}(?=\S)|  \S.{0,10}$")
"""A label in its column, as `finwait.report.style.wrap` writes it."""
_HEAD: Final = re.compile(r"(PROBLEM|NOTICE|HEALTHY)  ")
"""How a finding begins within a page."""
_ROLES: Final = {"problem": "problem", "notice": "notice", "healthy": "healthy", None: "bold"}
_WIDE: Final = Style(width=1000)
_CONNECTIONS: Final = 8
"""Of a group, that are listed."""


def _painted(lines: Iterable[str], role: str = "bold", heads: int = 1) -> list[Line]:
    """Return lines with roles: the first ones stand out, labels and commands do so less."""
    out: list[Line] = []
    for k, text in enumerate(lines):
        clean = printable(text)
        if k < heads:
            out.append([(clean, role)])
            continue
        if heading := _HEAD.match(clean):
            out.append([(clean, heading[1].lower())])
            continue
        label = _LABEL.match(clean)
        at = label.end() if label and clean[13:14] in (" ", "") else 0
        spans: Line = [(clean[:at], "accent")] if at else []
        for n, part in enumerate(re.split(r"(`[^`]*`)", clean[at:])):
            if part:
                spans.append((part, "bold" if n % 2 else ""))
        out.append(spans or [("", "")])
    return out


def of_group(diagnosis: Diagnosis, group: Group, verdicts: Judged, width: int) -> list[Line]:
    """Return what is known of a group: its finding in full, or the causes of what is in it."""
    view = diagnosis.view
    gaps = _gaps(diagnosis, width)
    if group.finding is not None:
        return [*_finding(view, group.finding, width), *gaps]
    head = f"{group.mark} {group.title}: {group.count:,} connection{'' if group.count == 1 else 's'}"
    heads = textwrap.wrap(head, width) or [head]
    out = _painted(heads, _ROLES[group.severity], len(heads))
    causes, counts = np.unique(verdicts.cause[group.rows], return_counts=True)
    order = sorted(
        zip(causes.tolist(), counts.tolist(), strict=True), key=lambda pair: (pair[0] < 0, -pair[1])
    )
    for cause, count in order:
        if cause < 0:
            text = f"{MARKS[None]} {count:,} × no finding: no rule suspects {'it' if count == 1 else 'them'}"
            out += [[(line, "")] for line in textwrap.wrap(text, width, subsequent_indent="  ")]
        else:
            finding = diagnosis.findings[cause]
            text = f"{MARKS[finding.severity]} {count:,} × {finding.rule}: {finding.headline}"
            wrapped = textwrap.wrap(text, width, subsequent_indent="  ")
            out += [[(line, _ROLES[finding.severity] if k == 0 else "")] for k, line in enumerate(wrapped)]
    numbers, counted = np.unique(view.sockets.state[group.rows], return_counts=True)
    states = ", ".join(
        f"{n:,} × {tcp.state_name(s)}" for s, n in zip(numbers.tolist(), counted.tolist(), strict=True)
    )
    out += _painted(["", *wrap("states", states or "-", width)], heads=0)
    worst = next((diagnosis.findings[c] for c, _ in order if c >= 0), None)
    if worst is not None and worst.severity != "healthy":
        out += [[("", "")], *_finding(view, worst, width)]
    return [*out, *gaps]


def _finding(view: View, finding: Finding, width: int) -> list[Line]:
    """Return a finding in full; its first line, which may not be cut, takes as many as it needs."""
    head, *rest = (
        line for text in detail(view, finding, _WIDE, _CONNECTIONS)[:1] for line in text.split("\n")
    )
    heads = textwrap.wrap(
        f"{MARKS[finding.severity]} {' '.join(head.split())}", width, subsequent_indent="  "
    )
    body = [
        line
        for text in detail(view, finding, Style(width=width), _CONNECTIONS, means_first=True)[1:]
        for line in text.split("\n")
    ]
    return _painted([*heads, *rest, *body], _ROLES[finding.severity], len(heads))


def _gaps(diagnosis: Diagnosis, width: int) -> list[Line]:
    """Return what a FILTER could not judge, and what could not be seen."""
    out: list[Line] = []
    narrow = diagnosis.narrowed
    if narrow is not None and narrow.unjudged:
        lines = "\n".join(not_judged(diagnosis.view, narrow, Style(width=width)))
        out += [[("", "")], *_painted(fold(lines, width).split("\n"), "notice")]
    if narrow is not None and narrow.undecided is not None:
        out += [
            [("", "")],
            *([(text, "notice")] for text in textwrap.wrap(printable(str(narrow.undecided)), width)),
        ]
    if not diagnosis.gaps:
        return out
    texts = [
        line
        for gap in diagnosis.gaps
        for line in textwrap.wrap(printable(str(gap)), width, initial_indent="  ", subsequent_indent="    ")
    ]
    return [*out, [("", "")], [("Not seen:", "notice")], *([(text, "")] for text in texts)]


def of_connection(diagnosis: Diagnosis, row: int, width: int) -> list[Line]:
    """Return what is known of a connection."""
    return _painted(page(diagnosis, row, width).splitlines(), heads=0)


def page(diagnosis: Diagnosis, row: int, width: int) -> str:
    """Return what the rules say of a connection, and what could not be seen, as `finwait explain` prints it."""
    pieces = list(connection(diagnosis.view, row, findings_of(diagnosis, row), Style(width=width)))
    if diagnosis.gaps:
        pieces += ["\nNot seen:\n", *(f"  {gap}\n" for gap in diagnosis.gaps)]
    return printable("".join(pieces), lines=True)


def of_setting(line: InForce, width: int) -> list[Line]:
    """Return what is to be said of a setting in force."""
    return _painted(in_force_lines(line, width))


def of_act(act: ActLine, width: int) -> list[Line]:
    """Return what is known of an act, and what taking it back would do."""
    facts = (
        ("when", act.when),
        ("who", act.user),
        ("to", act.whom),
        ("why", act.why),
        ("result", act.result),
    )
    lines = [f"act {act.id}: {act.kind}"]
    for label, text in facts:
        lines += wrap(label, text, width)
    lines += ["", f"`finwait undo {act.id}` would do:", *(f"  {line}" for line in act.undo)]
    return _painted(fold("\n".join(lines), width).split("\n"), "problem" if act.failed else "bold")
