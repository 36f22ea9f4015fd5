"""Reads line-based text: sysctl.conf, shell scripts, Markdown and program sources.

A shell is not emulated: variables stay unknown, and a value that is no literal number is not judged. What is
looked for is what people paste: ``sysctl -w``, assignments in here-documents, ``echo … > /proc/sys/…``,
kube-proxy command lines, and the commands that the knowledge base has a regex for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finwait.remedy.audit.kube import kube_proxy_flags

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from finwait.remedy.audit.finding import Judge

__all__ = ["FENCED_YAML", "Logical", "logical_lines", "markdown_code", "scan_code", "scan_conf"]

_ASSIGN = re.compile(
    r"""(?<![\w/.$-])["']?(net[./](?:ipv4|ipv6|core|netfilter|nf_conntrack_max|mptcp|tcp)[\w./-]*)["']?"""
    r"""\s*=(?![=~])\s*["']?([^\s"'`;|&)#,<>]*)"""
)
_PROC_WRITE = re.compile(
    r"""\b(?:echo|printf)\s+(?:-\w+\s+)?["']?(-?\d+)(?:\\n)?["']?\s*"""
    r"""(?:>{1,2}|\|\s*(?:sudo\s+)?tee\s+(?:-a\s+)?)\s*["']?(/proc/sys/net/[\w./-]+)"""
)
_PROC_NAME = re.compile(r"/proc/sys/(net/[\w./-]+)")
_SYSCTL_READ = re.compile(r"\bsysctl\s+(?:-\w+\s+)*(net\.[\w.-]+)(?![\w.-]*\s*=)")
_KUBE_PROXY = re.compile(r"""(?:^|[\s/"'`=])kube-proxy["']?\s+(-.*)""")
_ARGS_VARIABLE = re.compile(r"""\bKUBE_PROXY_\w*ARGS["']?\s*[=:]\s*["']?([^"'\n]*)""")
_OTHER_COMMAND = re.compile(r"\b(?:kubectl|helm|docker|crictl|systemctl|journalctl|grep|oc|ps|pgrep)\b")
_WORD = re.compile(r"\S+")
_LONGEST = 2000
"""Characters of one logical line that are looked at; no command a person pasted is longer."""
_MOST_JOINED = 60

_WORTH = re.compile(
    r"net[./]|/proc/|kube-proxy|KUBE_PROXY|conntrack|linger|iptables|ss\b|reset|kill|tcp", re.IGNORECASE
)

FENCED_YAML = ("yaml", "yml", "json")


@dataclass(frozen=True, slots=True)
class Logical:
    """A line of code with its continuations joined to it."""

    text: str
    starts: tuple[tuple[int, int], ...]
    """For each part: where it starts in ``text``, and the number of its line."""

    def line(self, offset: int) -> int:
        """Return the number of the line that the character at ``offset`` stands on."""
        return next(number for start, number in reversed(self.starts) if start <= offset)


def logical_lines(rows: Iterable[tuple[int, str]]) -> Iterator[Logical]:
    """Join lines that end in a backslash, up to 60 of them and 2000 characters."""
    text = ""
    starts: list[tuple[int, int]] = []
    for number, row in rows:
        starts.append((len(text), number))
        joined = row.rstrip()
        if joined.endswith("\\") and len(starts) < _MOST_JOINED and len(text) < _LONGEST:
            text += joined[:-1] + " "
            continue
        yield Logical((text + row)[:_LONGEST], tuple(starts))
        text, starts = "", []
    if starts:
        yield Logical(text[:_LONGEST], tuple(starts))


def scan_code(judge: Judge, rows: list[tuple[int, str]], *, comments: bool = True) -> None:
    """Look through lines of code, each with its number, and report what is recognised.

    Args:
        judge: takes the findings.
        rows: the lines, numbered as in the file.
        comments: whether a line that starts with ``#`` is a comment, to be left alone.
    """
    kept = [(n, t) for n, t in rows if not (comments and t.lstrip().startswith("#"))]
    if not kept:
        return
    for logical in logical_lines(kept):
        if _WORTH.search(logical.text):
            _one(judge, logical)
    _patterns(judge, kept)


def _one(judge: Judge, logical: Logical) -> None:
    text = logical.text
    written = set()
    for match in _PROC_WRITE.finditer(text):
        written.add(match[2])
        judge.sysctl(logical.line(match.start(2)), match[2].rstrip("."), match[1], match[0])
    for match in _ASSIGN.finditer(text):
        judge.sysctl(logical.line(match.start(1)), match[1], match[2] or None, match[0])
    for match in _PROC_NAME.finditer(text):
        if match[0] not in written:
            judge.sysctl(logical.line(match.start()), match[1].rstrip("."), None, match[0])
    for match in _SYSCTL_READ.finditer(text):
        judge.sysctl(logical.line(match.start(1)), match[1].rstrip("."), None, match[0])
    found = _KUBE_PROXY.search(text)
    if found and not _OTHER_COMMAND.search(text, 0, found.start() + 1):
        kube_proxy_flags(judge, _words(logical, found.start(1), found.end(1)))
    for match in _ARGS_VARIABLE.finditer(text):
        kube_proxy_flags(judge, _words(logical, match.start(1), match.end(1)))


def _words(logical: Logical, start: int, end: int) -> list[tuple[int, str]]:
    return [(logical.line(m.start()), m[0]) for m in _WORD.finditer(logical.text, start, end)]


def _patterns(judge: Judge, rows: list[tuple[int, str]]) -> None:
    whole = "\n".join(text for _, text in rows).lower()
    logical: list[tuple[Logical, str]] = []
    for item, pattern in judge.knowledge.patterns:
        needle = item.needle.lower()
        if needle not in whole:
            continue
        if item.lines > 1:
            _windows(judge, rows, item.id, needle, item.lines, pattern)
            continue
        logical = logical or [(line, line.text.lower()) for line in logical_lines(rows)]
        for line, lowered in logical:
            if needle in lowered:
                match = pattern.search(line.text)
                if match:
                    judge.advice(line.line(match.start()), item.id, line.text)


def _windows(
    judge: Judge, rows: list[tuple[int, str]], name: str, needle: str, lines: int, pattern: re.Pattern[str]
) -> None:
    for index, (number, text) in enumerate(rows):
        if needle in text.lower():
            window = "\n".join(t[:_LONGEST] for _, t in rows[index : index + lines])
            match = pattern.search(window)
            if match:
                judge.advice(number, name, match[0])


def scan_conf(judge: Judge, rows: list[tuple[int, str]]) -> None:
    """Look through the lines of a sysctl.conf or a file of sysctl.d."""
    for number, raw in rows:
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        key, equals, value = line.removeprefix("-").partition("=")
        if not equals:
            if line.startswith("-"):
                continue  # sysctl.d(5): an exclusion from a glob
            judge.problem(number, f"not `key = value`: {line[:60]!r}")
            continue
        judge.sysctl(number, key.strip(), value.strip(), line)


_FENCE = re.compile(r"^ {0,3}(?:>\s?)*\s*(```+|~~~+)\s*([\w+-]*)")
_SPAN = re.compile(r"(`+)(.+?)\1")


def markdown_code(rows: list[tuple[int, str]]) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Yield the code of a Markdown text: fenced blocks with their language, spans as ``inline``."""
    inside: str | None = None
    language = ""
    block: list[tuple[int, str]] = []
    spans: list[tuple[int, str]] = []
    for number, text in rows:
        fence = _FENCE.match(text)
        if inside is None:
            if fence:
                inside, language, block = fence[1], fence[2].lower(), []
            elif text.startswith(("    ", "\t")):
                spans.append((number, text.strip()))
            else:
                spans.extend((number, match[2]) for match in _SPAN.finditer(text[:_LONGEST]))
        elif fence and not fence[2] and fence[1][0] == inside[0] and len(fence[1]) >= len(inside):
            yield language, block
            inside = None
        else:
            block.append((number, text))
    if inside is not None:
        yield language, block
    if spans:
        yield "inline", spans
