"""Advice in running text: sentences that tell one to set a setting, and settings on lines of their own.

A sentence counts when it has a verb of setting, the name and a number (``lower tcp_fin_timeout to 10``), or an
assignment (``net.ipv4.tcp_fin_timeout = 10``), and nothing that turns it round (*do not*, *never*, *instead of*). An
assignment to a short name (``tcp_fin_timeout=10``) counts with a verb or on a line of its own only: texts that tell
what happened are full of them. What a sentence says beyond that is not understood, and a setting that is merely named
is no advice.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from finwait.remedy.settings.catalogue import canonical_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from finwait.remedy.audit.finding import Judge

__all__ = ["scan_prose"]

_LONGEST = 4000
_MOST_LINES = 40
_NAME = r"[`\"'*_]{0,3}(?P<name>(?:net[./][\w./-]{3,80}|(?:tcp|nf_conntrack)_[a-z0-9_]{3,60}))[`\"'*_]{0,3}"
_VERB = (
    r"\b(?:set|setting|lower(?:ing)?|rais(?:e|ing)|increas(?:e|ing)|decreas(?:e|ing)|reduc(?:e|ing)|chang(?:e|ing)|bump"
    r"(?:ing)?|tun(?:e|ing)|drop(?:ping)?|cut(?:ting)?|shorten(?:ing)?|adjust(?:ing)?|put(?:ting)?|turn(?:ing)?|use|using|add(?:ing)?)\b"
)
_VALUE = r"[`\"'*]{0,3}(?P<value>-?\d{1,12})\b(?:\s{0,2}(?P<unit>ms|milliseconds?|min|minutes?|h|hours?|d|days?)\b)?"
_TOLD = re.compile(
    _VERB + r"[^.;:!?]{0,60}?" + _NAME + r"[^.;!?]{0,40}?(?:\b(?:to|at|as|of)\b|=)\s{0,2}" + _VALUE,
    re.IGNORECASE,
)
_ASSIGNED = re.compile(_NAME + r"\s{0,9}=\s{0,9}" + _VALUE)
_TURNED = re.compile(
    r"\b(?:not|never|no longer|don'?t|doesn'?t|cannot|can'?t|won'?t|avoid|instead of|rather than|without|stop|nobody|"
    r"wrong to|myth|useless|pointless|refrain)\b",
    re.IGNORECASE,
)
_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,3}[.)])\s")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s")


def _paragraphs(rows: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    part: list[tuple[int, str]] = []
    for number, text in rows:
        apart = (
            not text.strip()
            or _ITEM.match(text)
            or _HEADING.match(text)
            or text.lstrip().startswith(("|", ">"))
        )
        gap = part and number != part[-1][0] + 1
        if part and (apart or gap or len(part) >= _MOST_LINES):
            yield part
            part = []
        if text.strip():
            part.append((number, text[:_LONGEST]))
    if part:
        yield part


def scan_prose(judge: Judge, rows: Iterable[tuple[int, str]]) -> None:
    """Look through the lines of running text, each with its number."""
    for part in _paragraphs(rows):
        text = "\n".join(line for _, line in part)
        lowered = text.lower()
        if "net" not in lowered and "tcp_" not in lowered and "conntrack" not in lowered:
            continue
        for sentence in _sentences(text):
            _judge_sentence(judge, part, text, sentence)


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """Cut at a full stop, semicolon or the like that a blank follows: dots of names are none."""
    start = 0
    for match in re.finditer(r"[.!?;](?=[\s)]|$)", text):
        yield start, text[start : match.end()]
        start = match.end()
    yield start, text[start:]


def _judge_sentence(judge: Judge, part: list[tuple[int, str]], text: str, sentence: tuple[int, str]) -> None:
    start, words = sentence
    flat = words.replace("\n", " ")
    for pattern in (_ASSIGNED, _TOLD):
        for match in pattern.finditer(flat):
            clause = max(flat.rfind(c, 0, match.start()) for c in ",:(")
            if _TURNED.search(flat, max(clause, 0), match.start("value")):
                continue
            if not _said_to_set(judge, flat, match):
                continue
            number = part[min(text.count("\n", 0, start + match.start("name")), len(part) - 1)][0]
            judge.sysctl(number, match["name"].rstrip("._-/"), _number(match), match[0])


def _said_to_set(judge: Judge, flat: str, match: re.Match[str]) -> bool:
    """Return whether a short name is one of a setting, and is told to be set."""
    if match["name"].startswith("net"):
        return True
    if canonical_key(match["name"].rstrip("._-/")) not in judge.knowledge.names.sysctls:
        return False
    alone = not re.search(r"\w", flat[: match.start()]) and not flat.lstrip().startswith("|")
    return match.re is _TOLD or alone or re.search(_VERB, flat[: match.start()], re.IGNORECASE) is not None


def _number(match: re.Match[str]) -> str:
    """Return the number in seconds where a unit stands behind it."""
    unit = match["unit"]
    if unit is None:
        return match["value"]
    if unit.lower().startswith(("ms", "mil")):
        return match["value"] + unit  # which is no number: it is told as not judged
    return str(int(match["value"]) * _SECONDS[unit[0].lower()])
