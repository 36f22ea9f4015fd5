"""Reads sysctl files, scripts, notes, manifests and proxy configurations, and judges the advice in them.

`audit` takes the bytes of a file and gives an `AuditReport`: findings, each with its line, verdict, reason,
source and what to do instead, and problems for the places that could not be understood. Whatever the bytes
are, it never raises for them.

Pure: the caller reads the file. What is recognised and what is said of it is data
(`finwait.remedy.knowledge`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from finwait.remedy.audit.finding import SEVERITY, AuditFinding, AuditReport, Judge, Problem
from finwait.remedy.audit.kube import Node, YamlUnreadableError, parse_yaml, scan_tree
from finwait.remedy.audit.lines import FENCED_YAML, markdown_code, scan_code, scan_conf
from finwait.remedy.audit.proxies import scan_haproxy, scan_nginx

if TYPE_CHECKING:
    from finwait.remedy.knowledge import Knowledge

__all__ = ["KINDS", "SEVERITY", "AuditFinding", "AuditReport", "Problem", "audit", "detect"]

KINDS: tuple[str, ...] = ("sysctl", "shell", "markdown", "yaml", "haproxy", "nginx", "code")
"""How a file can be read."""

_BY_SUFFIX = {
    **dict.fromkeys(("md", "markdown", "mdx"), "markdown"),
    **dict.fromkeys(("yaml", "yml", "json"), "yaml"),
    **dict.fromkeys(("sh", "bash", "service", "env"), "shell"),
    **dict.fromkeys(("go", "py", "c", "h", "cc", "cpp", "rs", "java", "js", "ts", "rb"), "code"),
}
_HAPROXY = re.compile(r"^\s*(?:frontend|backend|listen|defaults)\b(?!\s*[:={])", re.MULTILINE)
_HAPROXY_INSIDE = re.compile(
    r"^\s+(?:timeout|bind|server|mode|option|default_backend|balance)\s", re.MULTILINE
)
_NGINX = re.compile(r"^\s*(?:http|stream|server|events|upstream\s+[\w.-]+)\s*\{", re.MULTILINE)
_YAML = re.compile(r"^(?:---\s*$|apiVersion:|kind:|static_resources:|- hosts:|\{\s*$)", re.MULTILINE)
_CONF = re.compile(r"\s*-?(?:net|kernel|fs|vm|dev|user|abi)[./][\w./*-]+\s*=")
_SHEBANG = re.compile(r"#!.*\b(?:ba|da|k|z|a)?sh\b")
_DEEPEST_TEXT = 3
_HEAD = 200_000


def detect(name: str, text: str) -> str:
    """Return how a file is to be read, by its name and by what is in it: one of `KINDS`."""
    base = name.rpartition("/")[2].lower()
    head = text[:_HEAD]
    if _SHEBANG.match(head):
        return "shell"
    suffix = base.rpartition(".")[2] if "." in base else ""
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if "sysctl" in base or "/sysctl.d/" in name:
        return "sysctl"
    if _NGINX.search(head) and ";" in head:
        return "nginx"
    if _HAPROXY.search(head) and _HAPROXY_INSIDE.search(head):
        return "haproxy"
    if "```" in head or "~~~" in head:
        return "markdown"
    lines = [line for line in head.splitlines() if line.strip() and line.strip()[0] not in "#;"]
    if lines and sum(bool(_CONF.match(line)) for line in lines) * 2 > len(lines):
        return "sysctl"
    if _YAML.search(head):
        return "yaml"
    if head.count("`") > 1 and re.search(r"^#{1,6} ", head, re.MULTILINE):
        return "markdown"
    return "shell"


def audit(name: str, data: bytes, knowledge: Knowledge, *, kind: str | None = None) -> AuditReport:
    """Judge the advice in one file.

    Args:
        name: how to call the file in the report.
        data: what is in it.
        knowledge: what is known.
        kind: one of `KINDS`, or None to find out.

    Raises:
        ValueError: ``kind`` is none of `KINDS`. Never for the content.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"no kind of file is called {kind!r}; there are {', '.join(KINDS)}")
    judge = Judge(name, knowledge)
    if b"\0" in data[:65536]:
        judge.problem(1, "not a text file: it has NUL bytes")
        return AuditReport(name, kind or "shell", 0, (), tuple(judge.problems))
    text = data.decode("utf-8", errors="replace").removeprefix("\ufeff")
    found = kind or detect(name, text)
    _scan(judge, found, text, 1, 0)
    findings = sorted(judge.findings, key=lambda f: (f.line, SEVERITY.index(f.verdict), f.rule))
    return AuditReport(name, found, text.count("\n") + 1, tuple(findings), tuple(sorted(judge.problems)))


def _scan(judge: Judge, kind: str, text: str, first_line: int, depth: int) -> None:
    if kind == "nginx":
        scan_nginx(judge, text)
        return
    rows = list(enumerate(text.split("\n"), first_line))
    if kind == "sysctl":
        scan_conf(judge, rows)
    elif kind == "haproxy":
        scan_haproxy(judge, rows)
    elif kind == "markdown":
        for language, block in markdown_code(rows):
            if language in FENCED_YAML and block and depth < _DEEPEST_TEXT:
                _yaml(judge, "\n".join(line for _, line in block), block[0][0], depth + 1, strict=False)
            else:
                scan_code(judge, block, comments=language not in ("go", "c", "inline"))
    elif kind == "yaml":
        _yaml(judge, text, first_line, depth, strict=True)
    else:
        scan_code(judge, rows, comments=kind == "shell")


def _yaml(judge: Judge, text: str, first_line: int, depth: int, *, strict: bool) -> None:
    try:
        documents = parse_yaml(text, first_line=first_line)
    except YamlUnreadableError as error:
        if strict and "{{" not in text:
            judge.problem(error.line, error.reason)
        # A template, or a fragment in a note: its lines can still be looked at.
        scan_code(judge, list(enumerate(text.split("\n"), first_line)))
        return

    def nested(node: Node) -> None:
        inside = node.text or ""
        line = node.line + (1 if node.block else 0)
        if "\n" in inside and depth < _DEEPEST_TEXT:
            kind = "yaml" if re.search(r"^(?:apiVersion|kind):", inside, re.MULTILINE) else detect("", inside)
            if kind == "yaml":
                _yaml(judge, inside, line, depth + 1, strict=False)
                return
            if kind in ("haproxy", "sysctl"):
                _scan(judge, kind, inside, line, depth + 1)
                return
        scan_code(judge, list(enumerate(inside.split("\n"), line)))

    scan_tree(judge, documents, nested)
