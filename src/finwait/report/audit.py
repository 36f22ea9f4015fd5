"""An audit's findings as text and as JSON.

Text is for a person: the verdict and the place first, then why, then what to do instead. JSON is the same values with
their names (``kind: Audit``). Opening files and choosing what to show is the command's.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

from finwait.remedy.audit.finding import SEVERITY
from finwait.table.units import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from finwait.remedy.audit.finding import AuditFinding, AuditReport

__all__ = ["audit_json", "audit_text", "summary"]

_WIDTH = 98
_SHOWN = {
    "harmful": "HARMFUL", "false": "false", "no-effect": "no effect", "conditional": "only when", "misread": "misread",
    "true": "ok",
}  # fmt: skip


def audit_text(reports: Sequence[AuditReport], *, show_true: bool = False) -> Iterator[str]:
    """Yield the lines of a report for a person, below 100 columns.

    Args:
        reports: one for each file.
        show_true: also show what is right.
    """
    for report in reports:
        for finding in report.findings:
            if finding.verdict != "true" or show_true:
                yield from map(printable, _finding(finding))
    yield summary(reports)


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


def summary(reports: Sequence[AuditReport]) -> str:
    """Return one line that counts what was read and found."""
    counts = Counter(finding.verdict for report in reports for finding in report.findings)
    lines = sum(report.lines for report in reports)
    read = f"{len(reports)} file{'s' * (len(reports) != 1)}, {lines} lines"
    if not counts:
        return f"{read}: nothing in them bears on closing"
    told = ", ".join(f"{counts[verdict]} {_SHOWN[verdict]}" for verdict in SEVERITY if counts[verdict])
    return f"{read}: {told}"


def audit_json(reports: Sequence[AuditReport]) -> dict[str, Any]:
    """Return the report as JSON's types."""
    return {
        "apiVersion": "finwait/v1",
        "kind": "Audit",
        "files": [{"file": r.file, "readAs": r.kind, "lines": r.lines} for r in reports],
        "findings": [
            {
                "file": f.file,
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
        "problems": [
            {"file": p.file, "line": p.line, "reason": p.reason}
            for report in reports
            for p in report.problems
        ],
    }
