"""Go templates (Helm) and Jinja: what stands between the braces is not known, everything else is text.

`without_actions` gives a text of the same lines in which an action that has its lines to itself is gone and any other
is `UNKNOWN`, a character that no setting contains. So a literal value is judged, and a computed one is told as not
known. An ``if`` is not evaluated: what stands under it counts.
"""

from __future__ import annotations

import re

__all__ = ["UNKNOWN", "is_template", "without_actions"]

UNKNOWN = "\ue000"
"""Stands for what only the template's engine knows; of the private use area, which YAML allows."""

_OPEN = re.compile(r"\{\{|\{%|\{#")
_CLOSE = {"{{": "}}", "{%": "%}", "{#": "#}"}


def is_template(text: str) -> bool:
    """Return whether a text has actions of a template."""
    return ("{{" in text and "}}" in text) or ("{%" in text and "%}" in text)


def _actions(text: str) -> list[tuple[int, int]]:
    actions, at = [], 0
    missing: set[str] = set()
    for match in _OPEN.finditer(text):
        if match.start() < at or match[0] in missing:
            continue
        end = text.find(_CLOSE[match[0]], match.end())
        if end < 0:
            missing.add(match[0])  # it is looked for once, or hostile text would cost its square
            continue
        at = end + 2
        actions.append((match.start(), at))
    return actions


def without_actions(text: str) -> str:
    """Return the text with its actions taken out; the lines stay where they are."""
    if not is_template(text):
        return text
    spans = _actions(text)
    out: list[str] = []
    at, index = 0, 0
    while index < len(spans):
        start = spans[index][0]
        last = index
        # Actions with nothing but blanks between them are one.
        while last + 1 < len(spans) and not text[spans[last][1] : spans[last + 1][0]].strip(" \t"):
            last += 1
        end = spans[last][1]
        before = text[text.rfind("\n", 0, start) + 1 : start]
        newline = text.find("\n", end)
        after = text[end : newline if newline >= 0 else len(text)]
        alone = not before.strip() and (not after.strip() or after.lstrip().startswith("#"))
        out.append(text[at:start])
        out.append("" if alone else UNKNOWN)
        out.append("\n" * text.count("\n", start, end))
        at, index = end, last + 1
    out.append(text[at:])
    return "".join(out)
