"""An audit's findings as text and as JSON.

Text is for a person: the verdict and the place first, then why, then what to do instead; at the end what became of each
file, for a file in which nothing was recognised is no good file. JSON is the same values with their names (``kind:
Audit``). Opening files and choosing what to show is the command's.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

from finwait.errors import Gap
from finwait.remedy.audit.finding import SEVERITY
from finwait.report.shape import document
from finwait.table.units import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from finwait.remedy.audit.finding import AuditFinding, AuditReport, Problem

__all__ = ["audit_json", "audit_text", "readable", "summary"]

_WIDTH = 98
_SHOWN = {
    "harmful": "HARMFUL", "false": "false", "no-effect": "no effect", "conditional": "only when", "misread": "misread",
    "true": "ok",
}  # fmt: skip


_MOST_NAMES = 20
_MOST_LINES = 8


def readable(name: str) -> str:
    """Return a file's name with the bytes that are no UTF-8 as escapes, as JSON can hold it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def audit_text(
    reports: Sequence[AuditReport], *, show_true: bool = False, unread: Sequence[Problem] = ()
) -> Iterator[str]:
    """Yield the lines of a report for a person, below 100 columns.

    Args:
        reports: one for each file.
        show_true: also show what is right.
        unread: files that could not be read at all.
    """
    for report in reports:
        for finding in report.findings:
            if finding.verdict != "true" or show_true:
                yield from map(printable, _finding(finding))
    yield summary(reports, len(unread))
    yield from map(printable, _files(reports, unread))


def _files(reports: Sequence[AuditReport], unread: Sequence[Problem]) -> Iterator[str]:
    """Say what became of each file: what was recognised, what was not, and what was not read."""
    recognised = [f"{r.file} ({_statements(r.statements)})" for r in reports if r.status == "recognised"]
    yield from _named("recognised in", recognised)
    for report in reports:
        for entry in report.unjudged[:_MOST_NAMES]:
            yield from _named("not judged", [str(entry)])
    yield from _named("nothing recognised in", [r.file for r in reports if r.status == "nothing"])
    for report in reports:
        if report.mentions:
            lines = ", ".join(map(str, report.mentions[:_MOST_LINES]))
            lines += " …" if len(report.mentions) > _MOST_LINES else ""
            plural = "s" * (len(report.mentions) != 1)
            sentence = (
                f"{report.file}, line{plural} {lines}: settings, but no statement about them was understood"
            )
            yield from _named("only named", [sentence])
    for problem in (*(p for r in reports for p in r.problems), *unread):
        yield from _named("NOT READ", [str(problem)])


def _statements(count: int) -> str:
    return f"{count} statement{'s' * (count != 1)}"


def _named(title: str, names: Sequence[str]) -> Iterator[str]:
    if not names:
        return
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    yield from textwrap.wrap(
        f"{title}: {', '.join(names[:_MOST_NAMES])}{more}",
        _WIDTH,
        subsequent_indent="    ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _finding(finding: AuditFinding) -> Iterator[str]:
    yield f"{finding.file}:{finding.line}: {_SHOWN[finding.verdict]}: {finding.claim}"
    if finding.text and finding.text != finding.claim:
        shown = finding.text if len(finding.text) <= _WIDTH - 13 else finding.text[: _WIDTH - 15] + " …"
        yield f"    text     {shown}"
    yield from _field("why", finding.reason)
    if finding.instead:
        yield from _field("instead", finding.instead)
    cited = f" [{', '.join(finding.ledger)}]" if finding.ledger else ""
    yield from _field("source", finding.source + cited)
    yield ""


def _field(name: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"    {name:<9}",
        subsequent_indent=" " * 13,
        break_on_hyphens=False,
        break_long_words=False,
    )


def summary(reports: Sequence[AuditReport], unread: int = 0) -> str:
    """Return one line that counts what was read and found.

    Args:
        reports: one for each file.
        unread: how many files could not be read at all.
    """
    counts = Counter(finding.verdict for report in reports for finding in report.findings)
    lines = sum(report.lines for report in reports)
    files = len(reports) + unread
    read = f"{files} file{'s' * (files != 1)}, {lines} line{'s' * (lines != 1)}"
    verdicts = ", ".join(f"{counts[verdict]} {_SHOWN[verdict]}" for verdict in SEVERITY if counts[verdict])
    if not verdicts and all(report.status == "not-read" for report in reports):
        return f"{read}: nothing was read"
    if not verdicts and any(report.status == "recognised" for report in reports):
        verdicts = "no advice about closing connections found"
    failed = unread + sum(bool(report.problems) for report in reports)
    lacking = f"; {failed} file{'s' * (failed != 1)} not read, or not completely" if failed else ""
    return f"{read}: {verdicts or 'nothing recognised'}{lacking}"


def _file_json(report: AuditReport) -> dict[str, Any]:
    return {
        "file": readable(report.file),
        "read_as": report.kind,
        "lines": report.lines,
        "status": report.status,
        "statements": report.statements,
        "mentions": list(report.mentions),
    }


def _unread_json(problem: Problem) -> dict[str, Any]:
    """Return the same of a file that could not be read at all."""
    return {
        "file": readable(problem.file),
        "read_as": "",
        "lines": 0,
        "status": "not-read",
        "statements": 0,
        "mentions": [],
    }


def audit_json(reports: Sequence[AuditReport], unread: Sequence[Problem] = ()) -> dict[str, Any]:
    """Return the report as JSON's types.

    Args:
        reports: one for each file.
        unread: files that could not be read at all.
    """
    problems = [*(p for report in reports for p in report.problems), *unread]
    members = {
        "files": [*map(_file_json, reports), *map(_unread_json, unread)],
        "findings": [
            {
                "file": readable(f.file),
                "line": f.line,
                "rule": f.rule,
                "claim": f.claim,
                "verdict": f.verdict,
                "reason": f.reason,
                "source": f.source,
                "instead": f.instead,
                "ledger": list(f.ledger),
                "text": f.text,
            }
            for report in reports
            for f in report.findings
        ],
        "unjudged": [
            {"file": readable(u.file), "line": u.line, "claim": u.claim, "reason": u.reason}
            for report in reports
            for u in report.unjudged
        ],
        "problems": [{"file": readable(p.file), "line": p.line, "reason": p.reason} for p in problems],
    }
    gaps = (Gap(f"{readable(p.file)}:{p.line}", f"read it: {p.cause or p.reason}", "") for p in problems)
    return document("Audit", members, gaps)
