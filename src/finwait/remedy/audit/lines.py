"""Reads line-based text: sysctl.conf, shell scripts, Markdown and program sources.

A shell is not emulated: variables stay unknown, and a value that is no literal number is not judged. What is
looked for is what people paste: ``sysctl -w``, assignments in here-documents, ``echo … > /proc/sys/…``,
kube-proxy command lines, and the commands that the knowledge base has a regex for.
"""

from __future__ import annotations

import bisect
import re
from typing import TYPE_CHECKING

from msgspec import Struct

from finwait.remedy.audit.finding import Within
from finwait.remedy.audit.flags import allowed_unsafe, kube_proxy_flags
from finwait.remedy.audit.shell import goes_on, spoken
from finwait.remedy.audit.template import UNKNOWN
from finwait.remedy.settings.catalogue import by_letters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from finwait.remedy.audit.finding import Judge

__all__ = [
    "FENCED_YAML",
    "Logical",
    "heredocs",
    "logical_lines",
    "markdown_code",
    "quoted_lines",
    "scan_code",
    "scan_conf",
    "scan_words",
]

_ASSIGN = re.compile(
    r"""(?<![\w/.$-])["']?(net[./](?:ipv4|ipv6|core|netfilter|nf_conntrack_max|mptcp|tcp)[\w./-]*)["']?"""
    r"""\s*=(?![=~])\s*["']?([^\s"'`;|&)#,<>]*)"""
)
_PROC_WRITE = re.compile(
    r"""\b(?:echo|printf)\s+(?:-\w+\s+)*["']?(?P<a>-?[\w${}]+)(?:\\n)?\s{0,9}["']?\s*"""
    r"""(?:>{1,2}|\|\s*(?:sudo\s+)?tee\s+(?:-a\s+|--append\s+)?)\s*["']?(?P<b>/proc/sys/net/[\w./-]+)"""
    r"""|\btee\s+(?:-a\s+)?["']?(?P<c>/proc/sys/net/[\w./-]+)["']?\s*<<<\s*["']?(?P<d>-?[\w${}]+)"""
)
_NAME_VALUE = re.compile(
    r"""\bname=["']?(net[./][\w./-]{3,80})["']?\s{1,9}(?:\w{1,20}=\S{0,80}\s{1,9}){0,6}?value=["']?([^\s"',]{1,80})"""
)
_SED = re.compile(r"(?<=[/|#@,\\])(net\.[\w.]{3,80})\s{0,9}=\s{0,9}(-?\d{1,12})(?=[/|#@,\s\"'])")
"""What ``sed -i`` puts into a file: a name behind the separator."""
_SALT_CALL = re.compile(
    r"\bsysctl\.(?:assign|persist)\s{1,9}(net[./][\w./-]{3,80})\s{1,9}[\"']?([^\s\"',;]{1,40})"
)
_TERRAFORM = re.compile(
    r"^\s{0,80}(net_(?:ipv4|ipv6|core|netfilter)_\w{3,60})\s{0,40}=\s{0,40}[\"']?([^\s\"'#]{1,40})"
)
_PROXY_FLAG = re.compile(
    r"""(?<![\w-])--?((?:conntrack-tcp-timeout-(?:close-wait|established)|ipvs-tcp(?:fin)?-timeout))(?:=|\s)\s{0,9}["']?"""
    r"""([^\s"',;]{1,40})"""
)
_PROXY_ARG = re.compile(r"""--kube-proxy-arg[=\s]\s{0,9}["']?(?:--)?([\w-]{1,60})=([^\s"',;]{1,60})""")
_UNSAFE_FLAG = re.compile(r"--allowed-unsafe-sysctls(?:=|\s)\s{0,9}[\"']?([\w.,*-]{1,400})")
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


class Logical(Struct, frozen=True):
    """A line of code with its continuations joined to it."""

    text: str
    starts: tuple[tuple[int, int], ...]
    """For each part: where it starts in ``text``, and the number of its line."""

    def line(self, offset: int) -> int:
        """Return the number of the line that the character at ``offset`` stands on."""
        return next(number for start, number in reversed(self.starts) if start <= offset)


def logical_lines(rows: Iterable[tuple[int, str]]) -> Iterator[Logical]:
    """Join lines that end in a backslash, up to 60 of them and 2000 characters; as in a shell, with nothing between."""
    text = ""
    starts: list[tuple[int, int]] = []
    for number, row in rows:
        starts.append((len(text), number))
        joined = row.rstrip()
        if joined.endswith("\\") and len(starts) < _MOST_JOINED and len(text) < _LONGEST:
            text += joined[:-1]
            continue
        yield Logical((text + row)[:_LONGEST], tuple(starts))
        text, starts = "", []
    if starts:
        yield Logical(text[:_LONGEST], tuple(starts))


def quoted_lines(lines: Iterable[Logical]) -> Iterator[Logical]:
    """Join lines of a script between which a quoted argument of ``echo``, ``sysctl`` and the like goes on.

    A quote that is not closed within as many lines as are joined at most is none.
    """
    rest = list(lines)
    at = 0
    while at < len(rest):
        first = rest[at]
        after = _closed_after(rest, at) if any(quote in first.text for quote in "\"'") else at + 1
        text, starts = first.text, [*first.starts]
        for line in rest[at + 1 : after]:
            starts += [(len(text) + 1 + start, number) for start, number in line.starts]
            text += "\n" + line.text
        yield Logical(text, tuple(starts)) if after > at + 1 else first
        at = after


def _closed_after(lines: list[Logical], at: int) -> int:
    """Return behind which line the quote is closed that is open at the end of this one; the next one where none is."""
    text = lines[at].text
    if not goes_on(text):
        return at + 1
    for after in range(at + 1, min(len(lines), at + _MOST_JOINED)):
        text += "\n" + lines[after].text
        if len(text) > _LONGEST:
            break
        if not goes_on(text):
            return after + 1
    return at + 1


def scan_words(judge: Judge, words: list[tuple[int, str]]) -> None:
    """Look through the words of a command that is written as a list, each with its line."""
    text, starts = "", []
    for number, word in words:
        starts.append((len(text), number))
        text += (word if " " not in word else f"'{word}'") + " "
    logical = Logical(text[:_LONGEST], tuple(starts))
    _judge_line(judge, logical, commands=True)
    _of_line(judge, logical)


def scan_code(
    judge: Judge, rows: list[tuple[int, str]], *, comments: bool = True, commands: bool = True
) -> None:
    """Look through lines of code, each with its number, and report what is recognised.

    Args:
        judge: takes the findings.
        rows: the lines, numbered as in the file.
        comments: whether a line that starts with ``#`` is a comment, to be left alone.
        commands: whether its lines may be commands, some of which only say something.
    """
    kept = [(n, t) for n, t in rows if not (comments and t.lstrip().startswith("#"))]
    if not kept:
        return
    nomad = _of_nomad(kept)
    lines = logical_lines(kept)
    for logical in quoted_lines(lines) if commands else lines:
        if _WORTH.search(logical.text):
            _judge_line(judge, logical, commands=commands, nomad=logical.starts[0][1] in nomad)
    _over_lines(judge, kept)
    _patterns(judge, kept)


_NOMAD_DRIVER = re.compile(r"""^\s{0,80}driver\s{0,9}=\s{0,9}"(?:docker|podman|containerd-driver)\"""")
_NOMAD_SYSCTL = re.compile(r"^\s{0,80}sysctl\s{0,9}=?\s{0,9}\{")


def _of_nomad(rows: list[tuple[int, str]]) -> frozenset[int]:
    """Return the lines inside of ``sysctl { … }`` of a Nomad task that runs a container."""
    if not any("driver" in text and _NOMAD_DRIVER.match(text) for _, text in rows):
        return frozenset()
    numbers: set[int] = set()
    inside = False
    for number, text in rows:
        inside = inside or ("sysctl" in text and _NOMAD_SYSCTL.match(text) is not None)
        if inside:
            numbers.add(number)
            inside = "}" not in text
    return frozenset(numbers)


def _judge_line(judge: Judge, logical: Logical, *, commands: bool, nomad: bool = False) -> None:
    # A line break that `echo -e` or printf writes parts words.
    text = logical.text.replace("\\n", "  ").replace("\\t", "  ")
    if commands:
        text = spoken(text)
    written = set()
    for match in _PROC_WRITE.finditer(text):
        key, value = ("b", "a") if match["b"] else ("c", "d")
        written.add(match[key])
        judge.sysctl(logical.line(match.start(key)), match[key].rstrip("."), match[value], match[0])
    for match in _ASSIGN.finditer(text):
        within = Within.CONTAINER if nomad else _within(text, match.start())
        judge.sysctl(logical.line(match.start(1)), match[1], match[2] or None, match[0], within=within)
    for pattern in (_NAME_VALUE, _SALT_CALL, _TERRAFORM):
        for match in pattern.finditer(text):
            name = by_letters(match[1]) or match[1]
            judge.sysctl(logical.line(match.start(1)), name, match[2], match[0])
    for match in _UNSAFE_FLAG.finditer(text):
        allowed_unsafe(judge, logical.line(match.start(1)), match[1])
    if "sed" in text:
        for match in _SED.finditer(text):
            judge.sysctl(logical.line(match.start(1)), match[1], match[2], match[0])
    for pattern in (_PROXY_FLAG, _PROXY_ARG):
        for match in pattern.finditer(text):
            kube_proxy_flags(judge, [(logical.line(match.start(1)), f"--{match[1]}={match[2]}")])
    for match in _PROC_NAME.finditer(text):
        if match[0] not in written:
            judge.sysctl(logical.line(match.start()), match[1].rstrip("."), None, match[0])
    for match in _SYSCTL_READ.finditer(text):
        judge.sysctl(logical.line(match.start(1)), match[1].rstrip("."), None, match[0])
    if (proxy_match := _KUBE_PROXY.search(text)) and not _OTHER_COMMAND.search(
        text, 0, proxy_match.start() + 1
    ):
        kube_proxy_flags(judge, _words(logical, proxy_match.start(1), proxy_match.end(1)))
    for match in _ARGS_VARIABLE.finditer(text):
        kube_proxy_flags(judge, _words(logical, match.start(1), match.end(1)))


_OPTION = re.compile(r"""--sysctl(?:\s{1,9}|=)["']?\Z|^\s{0,9}Sysctl\s{0,9}=\s{0,9}["']?\Z""")
"""What precedes a setting of `docker run`, `podman create` and the like, and in a quadlet of Podman."""
_HOST_NETWORK = re.compile(r"--net(?:work)?(?:\s{1,9}|=)[\"']?host\b")


def _within(text: str, at: int) -> Within:
    """Return what the setting that stands there is for."""
    if not _OPTION.search(text, max(0, at - 40), at):
        return Within.MACHINE
    return Within.HOST_CONTAINER if _HOST_NETWORK.search(text) else Within.CONTAINER


def _words(logical: Logical, start: int, end: int) -> list[tuple[int, str]]:
    return [(logical.line(m.start()), m[0]) for m in _WORD.finditer(logical.text, start, end)]


_HEREDOC = re.compile(r"""<<-?\s{0,4}(["']?)(\w{1,40})\1""")
_WRITES = re.compile(r">|\|\s*\w|\b(?:sysctl|kubectl|ssh|bash|sh|tee|python3?|ansible|docker)\b")


def heredocs(rows: list[tuple[int, str]]) -> Iterator[tuple[bool, list[tuple[int, str]]]]:
    """Yield the here-documents of a script: whether something takes them, and their lines.

    What ``cat <<EOF`` alone prints is a hint to whoever reads it.
    """
    at = 0
    where: dict[str, list[int]] = {}
    for index, (_, text) in enumerate(rows):
        if len(text) < 100:
            where.setdefault(text.strip(), []).append(index)
    for index, (_, text) in enumerate(rows):
        opening = text[:_LONGEST]
        if index < at or "<<" not in opening or "<<<" in opening or opening.lstrip().startswith("#"):
            continue
        match = _HEREDOC.search(opening)
        ends = where.get(match[2], []) if match is not None else []
        after = bisect.bisect_right(ends, index)
        if match is None or after == len(ends):
            continue
        around = opening[: match.start()] + opening[match.end() :]
        yield _WRITES.search(around) is not None, rows[index + 1 : ends[after]]
        at = ends[after] + 1


_BLOCK = re.compile(
    r"""\bsysctl(?:::value|_param|::configuration)?\s{0,9}\{?\s{0,9}["'](net[./][\w./-]{3,80})["']\s{0,9}(?::|do\b)"""
    r"""[^}]{0,200}?\bvalue\s{0,20}(?:=>|=)?\s{0,9}["']?([^\s"',}]{1,40})"""
)
"""Puppet's and Chef's resources, which go over some lines."""
_PAIR = re.compile(
    r"""(?:^|[\s{,\[-])["']?(?:name|key|sysctl)["']?\s{0,9}:\s{0,9}["']?(net[./][\w./-]{3,80})["']?[\s,-]{1,200}?"""
    r"""["']?value["']?\s{0,9}:\s{0,9}["']?([^\s"',}]{1,40})"""
)
_KEYED = re.compile(
    r"""^[\s{-]{0,80}["']?(net[./](?:ipv4|ipv6|core|netfilter)[./][\w./-]{1,80})["']?\s{0,20}:\s{1,20}["']?([^\s"',}#]{1,40})"""
)
_WINDOW = 5


def _over_lines(judge: Judge, rows: list[tuple[int, str]]) -> None:
    """Look for name and value that stand apart: resources of Puppet and Chef, YAML that does not parse."""
    for index, (number, text) in enumerate(rows):
        if "net" not in text:
            continue
        if match := _KEYED.match(text[:_LONGEST]):
            judge.sysctl(number, match[1], match[2], match[0])
        if "name" in text or "key" in text or "sysctl" in text:
            window = "\n".join(t[:_LONGEST] for _, t in rows[index : index + _WINDOW])
            for pattern in (_PAIR, _BLOCK):
                match = pattern.search(window)
                if match and "\n" not in window[: match.start(1)]:
                    judge.sysctl(number, match[1], match[2], match[0])


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
                _matched(judge, item.id, line, pattern)


def _matched(judge: Judge, name: str, line: Logical, pattern: re.Pattern[str]) -> None:
    match = pattern.search(line.text)
    if match:
        judge.advice(line.line(match.start()), name, line.text)


def _of_line(judge: Judge, line: Logical) -> None:
    lowered = line.text.lower()
    for item, pattern in judge.knowledge.patterns:
        if item.lines == 1 and item.needle.lower() in lowered:
            _matched(judge, item.id, line, pattern)


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
            if line.startswith("-") or line == UNKNOWN:
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
