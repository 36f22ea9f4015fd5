"""An audit's findings in SARIF 2.1.0, the format that code hosts show beside the lines of a change.

One rule for each ledger entry or advice that was met, one result for each finding. ``harmful`` and ``false`` are
errors, ``no-effect`` is a warning, the rest are notes; what is right is no result. Places that could not be understood
are notifications of the invocation, which then counts as not successful. A file that was read and in which nothing was
recognised, and a setting whose value the file does not say, are notifications of level ``note``. What became of each
file is a property of its artifact.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from finwait.remedy.audit.finding import AuditFinding, AuditReport, Problem
    from finwait.remedy.knowledge import Knowledge

__all__ = ["sarif"]

_LEVEL = {
    "harmful": "error",
    "false": "error",
    "no-effect": "warning",
    "conditional": "note",
    "misread": "note",
}
_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(
    reports: Sequence[AuditReport], knowledge: Knowledge, version: str, unread: Sequence[Problem] = ()
) -> dict[str, Any]:
    """Return a SARIF log with one run.

    Args:
        reports: one for each file.
        knowledge: what the findings cite.
        version: finwait's.
        unread: files that could not be read at all.
    """
    findings = [f for report in reports for f in report.findings if f.verdict in _LEVEL]
    names = list(dict.fromkeys(finding.rule for finding in findings))
    index = {name: number for number, name in enumerate(names)}
    problems = [*unread, *(problem for report in reports for problem in report.problems)]
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "finwait",
                        "semanticVersion": version,
                        "rules": [_rule(name, knowledge) for name in names],
                    }
                },
                "invocations": [
                    {
                        "executionSuccessful": not problems,
                        "toolExecutionNotifications": [
                            *(_notification("error", p.file, p.line, p.reason) for p in problems),
                            *_notes(reports),
                        ],
                    }
                ],
                "artifacts": list({report.file: _artifact(report) for report in reports}.values()),
                "columnKind": "unicodeCodePoints",
                "results": [_result(finding, index[finding.rule]) for finding in findings],
            }
        ],
    }


def _notification(level: str, file: str, line: int, text: str) -> dict[str, Any]:
    return {"level": level, "message": {"text": text}, "locations": [_location(file, line)]}


def _notes(reports: Sequence[AuditReport]) -> Iterator[dict[str, Any]]:
    for report in reports:
        if report.status == "nothing":
            yield _notification("note", report.file, 1, "read, and nothing in it was recognised")
        for entry in report.unjudged:
            yield _notification("note", entry.file, entry.line, f"{entry.claim}: not judged: {entry.reason}")
        for line in report.mentions:
            yield _notification(
                "note", report.file, line, "a setting is named, and nothing about it was understood"
            )


def _artifact(report: AuditReport) -> dict[str, Any]:
    return {
        "location": {"uri": _uri(report.file)},
        "properties": {"status": report.status, "statements": report.statements, "readAs": report.kind},
    }


def _rule(name: str, knowledge: Knowledge) -> dict[str, Any]:
    claim = knowledge.claims.get(name)
    advice = knowledge.advice.get(name)
    if claim is not None:
        title, text = claim.claim, claim.reason
    elif advice is not None:
        title, text = advice.title, advice.reason
    else:
        title, text = name, "A setting of the catalogue."
    return {
        "id": name,
        "name": "".join(part.capitalize() for part in re.split(r"[^A-Za-z0-9]+", name) if part) or "Rule",
        "shortDescription": {"text": title},
        "fullDescription": {"text": text},
    }


def _result(finding: AuditFinding, number: int) -> dict[str, Any]:
    text = f"{finding.claim}: {finding.reason}"
    if finding.instead:
        text += f" Instead: {finding.instead}"
    return {
        "ruleId": finding.rule,
        "ruleIndex": number,
        "level": _LEVEL[finding.verdict],
        "message": {"text": f"{text} (source: {finding.source})"},
        "locations": [_location(finding.file, finding.line)],
        "properties": {"verdict": finding.verdict, "ledger": list(finding.ledger)},
    }


_SAFE_IN_URI = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/")


def _uri(file: str) -> str:
    uri = "stdin" if file == "-" else "".join(
        c if c in _SAFE_IN_URI else "".join(f"%{b:02X}" for b in c.encode("utf-8", "surrogateescape")) for c in file
    )  # fmt: skip
    return f"file://{uri}" if uri.startswith("/") else uri


def _location(file: str, line: int) -> dict[str, Any]:
    return {"physicalLocation": {"artifactLocation": {"uri": _uri(file)}, "region": {"startLine": line}}}
