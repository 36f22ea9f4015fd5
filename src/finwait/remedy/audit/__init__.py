"""Reads sysctl files, scripts, notes, manifests and proxy configurations, and judges the advice in them.

`audit` takes the bytes of a file and gives an `AuditReport`: findings, each with its line, verdict, reason,
source and what to do instead; settings whose value the file does not say; and problems for the places that could
not be understood. A file in which nothing was recognised is no good file: its report says just that. Whatever the
bytes are, it never raises for them.

Pure: the caller reads the file. What is recognised and what is said of it is data
(`finwait.remedy.knowledge`).
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from finwait.remedy.audit.finding import SEVERITY, AuditFinding, AuditReport, Judge, Problem, Unjudged
from finwait.remedy.audit.kube import Node, YamlUnreadableError, is_word, parse_yaml, scan_tree
from finwait.remedy.audit.lines import FENCED_YAML, heredocs, markdown_code, scan_code, scan_conf, scan_words
from finwait.remedy.audit.prose import scan_prose
from finwait.remedy.audit.proxies import scan_haproxy, scan_nginx
from finwait.remedy.audit.template import UNKNOWN, is_template, without_actions
from finwait.remedy.settings.catalogue import CATALOGUE

if TYPE_CHECKING:
    from finwait.remedy.knowledge import Knowledge

__all__ = [
    "KINDS",
    "SEVERITY",
    "AuditFinding",
    "AuditReport",
    "Problem",
    "Unjudged",
    "audit",
    "detect",
]

KINDS: tuple[str, ...] = ("sysctl", "shell", "markdown", "text", "yaml", "haproxy", "nginx", "code")
"""How a file can be read."""

_BY_SUFFIX = {
    **dict.fromkeys(("md", "markdown", "mdx"), "markdown"),
    **dict.fromkeys(("txt", "rst", "adoc", "asciidoc", "org", "wiki"), "text"),
    **dict.fromkeys(("yaml", "yml", "json", "sls"), "yaml"),
    **dict.fromkeys(("sh", "bash", "service", "env", "mk"), "shell"),
    **dict.fromkeys(
        (
            "go",
            "py",
            "c",
            "h",
            "cc",
            "cpp",
            "rs",
            "java",
            "js",
            "ts",
            "rb",
            "pp",
            "tf",
            "tfvars",
            "hcl",
            "toml",
        ),
        "code",
    ),
}
_TEMPLATES = frozenset(("j2", "jinja", "jinja2", "tmpl", "tpl", "gotmpl", "template", "erb"))
# Before a word, white space of its own line only: what ran on over empty lines would begin anew at each of them.
_HAPROXY = re.compile(r"^[^\S\n]*(?:frontend|backend|listen|defaults)\b(?!\s*[:={])", re.MULTILINE)
_HAPROXY_INSIDE = re.compile(
    r"^[^\S\n]+(?:timeout|bind|server|mode|option|default_backend|balance)\s", re.MULTILINE
)
_NGINX = re.compile(r"^[^\S\n]*(?:http|stream|server|events|upstream\s+[\w.-]+)\s*\{", re.MULTILINE)
_YAML = re.compile(
    r"^(?:---\s*$|apiVersion:|kind:|static_resources:|- hosts:|#cloud-config|runcmd:|write_files:|services:|\{\s*$)",
    re.MULTILINE,
)
_CONF = re.compile(rf"\s*-?(?:(?:net|kernel|fs|vm|dev|user|abi)[./][\w./*-]+|{UNKNOWN})\s*=")
_SHEBANG = re.compile(r"#!.*\b(?:ba|da|k|z|a)?sh\b")
_DEEPEST_TEXT = 3
_HEAD = 200_000
_MOST_MENTIONS = 1000
_NAMED = re.compile(
    r"\b(?:"
    + "|".join(sorted({re.escape(s.key.rpartition(".")[2]) for s in CATALOGUE}, key=len, reverse=True))
    + r")\b"
)


def detect(name: str, text: str) -> str:
    """Return how a file is to be read, by its name and by what is in it: one of `KINDS`."""
    base = name.rpartition("/")[2].lower()
    head = text[:_HEAD]
    if _SHEBANG.match(head):
        return "shell"
    while base.rpartition(".")[2] in _TEMPLATES and "." in base:
        base = base.rpartition(".")[0]
    suffix = base.rpartition(".")[2] if "." in base else ""
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if "sysctl" in base or "/sysctl.d/" in name:
        return "sysctl"
    return _by_content(without_actions(head))


def _by_content(head: str) -> str:
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


_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    **{b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)},
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}
"""How files of archives and compressors begin. A small one need not have a NUL byte to give it away."""


def _decoded(data: bytes) -> str | None:
    """Return the text of a file; None for what is no text."""
    if b"\0" not in data:
        return data.decode("utf-8", errors="replace").removeprefix("\ufeff")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as some editors save notes
        text = data.decode("utf-16", errors="replace")
        return text if "\0" not in text else None
    return None


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
    packed = next((packing for magic, packing in _PACKED.items() if data.startswith(magic)), None)
    if packed is not None:
        judge.problem(1, f"not read: it is packed ({packed}); unpack it")
        return AuditReport(name, "", 0, (), tuple(judge.problems))
    text = _decoded(data)
    if text is None:
        judge.problem(1, "not a text file: it has NUL bytes")
        return AuditReport(name, "", 0, (), tuple(judge.problems))
    form = kind or detect(name, text)
    plain = text if form in ("code", "markdown", "yaml") else without_actions(text)
    _scan(judge, form, plain, 1, 0, certain=kind is not None or detect(name, "") == form)
    findings = sorted(judge.findings, key=lambda f: (f.line, SEVERITY.index(f.verdict), f.rule))
    lines = text.count("\n") + (not text.endswith("\n") and bool(text))
    problems = {Problem(name, min(p.line, max(lines, 1)), p.reason) for p in judge.problems}
    return AuditReport(
        name,
        form,
        lines,
        tuple(findings),
        tuple(sorted(problems)),
        len(judge.statements),
        tuple(sorted(set(judge.unjudged))),
        _mentions(judge, text),
    )


def _mentions(judge: Judge, text: str) -> tuple[int, ...]:
    """Return the lines that name a setting and of which nothing was recognised."""
    known = {line for line, _ in judge.statements}
    lines: list[int] = []
    line, at = 1, 0
    for match in _NAMED.finditer(text):
        line += text.count("\n", at, match.start())
        at = match.start()
        if line not in known and lines[-1:] != [line]:
            lines.append(line)
            if len(lines) == _MOST_MENTIONS:
                break
    return tuple(lines)


def _scan(judge: Judge, kind: str, text: str, first_line: int, depth: int, *, certain: bool = False) -> None:
    if kind == "nginx":
        scan_nginx(judge, text)
        return
    rows = list(enumerate(text.split("\n"), first_line))
    if kind == "sysctl":
        scan_conf(judge, rows)
    elif kind == "haproxy":
        scan_haproxy(judge, rows)
    elif kind == "markdown":
        _markdown(judge, rows, depth)
    elif kind == "yaml":
        _yaml(judge, text, first_line, depth, certain=certain)
    elif kind == "text":
        scan_prose(judge, rows)
        _script(judge, [row for row in rows if _COMMAND_LINE.match(row[1])], depth, comments=False)
    else:
        _script(judge, rows, depth, comments=kind == "shell", commands=kind == "shell")


_COMMAND_LINE = re.compile(
    r"\s{0,40}(?:[$#>]\s|sudo\b|sysctl\b|echo\b|printf\b|cat\b|ss\b|conntrack\b|ip6?tables\b|kubectl\b|kube-proxy\b|perf\b|"
    r"systemctl\b|tcpkill\b|ls\b|grep\b|docker\b|ansible\b|salt\b|--|-?net[./]\w)"
)
"""A line of a text that is a command, or a setting, rather than a sentence."""


def _markdown(judge: Judge, rows: list[tuple[int, str]], depth: int) -> None:
    coded: set[int] = set()
    for language, block in markdown_code(rows):
        if language != "inline":
            coded.update(number for number, _ in block)
        if language in FENCED_YAML and block and depth < _DEEPEST_TEXT:
            _yaml(judge, "\n".join(line for _, line in block), block[0][0], depth + 1, certain=False)
        else:
            commands = language not in ("go", "c", "python", "java", "js", "rust")
            _script(judge, block, depth, comments=language not in ("go", "c", "inline"), commands=commands)
    scan_prose(judge, [row for row in rows if row[0] not in coded])


def _script(
    judge: Judge, rows: list[tuple[int, str]], depth: int, *, comments: bool = True, commands: bool = True
) -> None:
    """Look through lines of code, and through the here-documents among them as what they are."""
    left_out: set[int] = set()
    if commands and depth < _DEEPEST_TEXT:
        for taken, body in heredocs(rows):
            inside = "\n".join(line for _, line in body)
            if not taken:
                left_out.update(number for number, _ in body)
            elif body and (_YAML.search(inside) or is_template(inside)):
                left_out.update(number for number, _ in body)
                _yaml(judge, inside, body[0][0], depth + 1, certain=False)
    scan_code(judge, [row for row in rows if row[0] not in left_out], comments=comments, commands=commands)


def _yaml(judge: Judge, text: str, first_line: int, depth: int, *, certain: bool) -> None:
    """Look through YAML; where it is none, through its lines, which is told where the file's name says YAML."""
    plain = without_actions(text)
    try:
        documents = parse_yaml(plain, first_line=first_line)
    except YamlUnreadableError as error:
        if certain:
            template = "not read as a whole: without its template's actions it is " if plain != text else ""
            judge.problem(error.line, f"{template}{error.reason}")
        documents = error.documents
        _script(judge, list(enumerate(plain.split("\n"), first_line)), depth + 1)

    def nested(node: Node, path: tuple[str, ...]) -> None:
        _inside(judge, node, path, depth)

    def command(words: list[Node]) -> None:
        scan_words(judge, [(word.line, word.text or "") for word in words if is_word(word.text or "")])

    scan_tree(judge, documents, nested, command)


def _inside(judge: Judge, node: Node, path: tuple[str, ...], depth: int) -> None:
    """Look through a text that is a value: a script, a file of a ConfigMap or of `write_files`."""
    inside = node.text or ""
    line = node.line + (1 if node.block else 0)
    if node.encoded or inside.startswith("data:"):
        decoded = _base64(inside) if node.encoded else _data_url(inside)
        if decoded is None:
            judge.problem(node.line, "a file that is packed or encoded: its content was not read")
            return
        inside, line = decoded, node.line
        rows = [(node.line, text) for text in inside.split("\n")]
        (scan_conf if detect("", inside) == "sysctl" else scan_code)(judge, rows)
        return
    # Of ingress-nginx: in its ConfigMap, or an annotation of an Ingress.
    if path and path[-1].endswith("-snippet"):
        scan_nginx(judge, inside, line)
        return
    if "\n" in inside and depth < _DEEPEST_TEXT:
        by_name = detect(path[-1] if path else "", inside)
        kind = "yaml" if re.search(r"^(?:apiVersion|kind):", inside, re.MULTILINE) else by_name
        if kind in ("yaml", "haproxy", "sysctl", "markdown"):
            _scan(judge, kind, inside, line, depth + 1)
            return
    _script(judge, list(enumerate(inside.split("\n"), line)), depth + 1)


def _data_url(text: str) -> str | None:
    """Return the text that a ``data:`` URL holds, as Ignition writes files."""
    head, _, body = text.partition(",")
    return _base64(unquote(body)) if head.endswith(";base64") else unquote(body)


def _base64(text: str) -> str | None:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
    return _decoded(data)
