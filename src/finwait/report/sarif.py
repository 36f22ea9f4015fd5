"""An audit's findings in SARIF 2.1.0, the format that code hosts show beside the lines of a change.

One rule for each ledger entry or advice that was met, one result for each finding. ``harmful`` and ``false`` are
errors, ``no-effect`` is a warning, the rest are notes; what is right is no result. Places that could not be understood
are notifications of the invocation, which then counts as not successful.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    found = [f for report in reports for f in report.findings if f.verdict in _LEVEL]
    names = list(dict.fromkeys(finding.rule for finding in found))
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
                            {
                                "level": "error",
                                "message": {"text": problem.reason},
                                "locations": [_location(problem.file, problem.line)],
                            }
                            for problem in problems
                        ],
                    }
                ],
                "columnKind": "unicodeCodePoints",
                "results": [_result(finding, index[finding.rule]) for finding in found],
            }
        ],
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


def _location(file: str, line: int) -> dict[str, Any]:
    uri = "stdin" if file == "-" else "".join(
        c if c in _SAFE_IN_URI else "".join(f"%{b:02X}" for b in c.encode("utf-8", "surrogateescape")) for c in file
    )  # fmt: skip
    if uri.startswith("/"):
        uri = f"file://{uri}"
    return {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": line}}}
