"""Any bytes, read as every kind of file: the audit must answer, never raise."""

from finwait.remedy.audit import KINDS, SEVERITY, audit
from finwait.shipped import knowledge

_KINDS = (None, *KINDS)


def one_input(data: bytes) -> None:
    if not data:
        return
    kind = _KINDS[data[0] % len(_KINDS)]
    text = data[1:]
    lines = text.decode("utf-8", "replace").count("\n") + 1
    report = audit("fuzz", text, knowledge(), kind=kind)
    for finding in report.findings:
        assert 1 <= finding.line <= lines
        assert finding.verdict in SEVERITY
    for problem in report.problems:
        assert 1 <= problem.line <= lines + 1
