"""What ``-n``, ``-A`` and ``-l`` of kubectl select, as a FILTER of finwait. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from finwait.errors import UsageError
from finwait.selecting import parse_filter

__all__ = ["filter_words", "label_words", "pod_of", "scope"]

_KEY: Final = r"[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?"
_VALUE: Final = r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
_LABEL: Final = re.compile(rf"(?P<not>!?)(?P<key>{_KEY})(?:(?P<op>==?|!=)(?P<value>{_VALUE}))?")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def label_words(selector: str) -> list[str]:
    """Return a label selector as predicates, all of which have to hold.

    Raises:
        UsageError: it is none, or one with sets (``in (…)``).
    """
    predicates = []
    for part in selector.split(","):
        match = _LABEL.fullmatch(part.strip())
        if match is None or (match["not"] and match["op"]):
            raise UsageError(
                f"`{part.strip()[:100]}` is no label selector that finwait can read",
                hint="write `key=value`, `key!=value`, `key` or `!key`, with commas between them",
            )
        operator = "!=" if match["not"] or match["op"] == "!=" else "="
        text = match["key"] if match["op"] is None else f"{match['key']}={match['value']}"
        predicates.append(f'label {operator} "{text}"')
    return predicates


def filter_words(namespace: str, selector: str, words: Sequence[str]) -> list[str]:
    """Return the FILTER for an agent.

    Args:
        namespace: of the pods; empty for all.
        selector: of labels; empty for none.
        words: a FILTER of the user.

    Raises:
        UsageError: the namespace or the selector is none.
        FilterError: the FILTER is none by itself; within parentheses of ours it could become one that means more.
    """
    if words:
        parse_filter(list(words))
    predicates = []
    if namespace:
        predicates.append(f'namespace = "{_named(namespace, "namespace")}"')
    if selector:
        predicates += label_words(selector)
    if not predicates:
        return list(words)
    chosen = " and ".join(predicates)
    return [f"( {chosen} ) and ( {' '.join(words)} )" if words else chosen]


def scope(namespace: str, selector: str, words: Sequence[str]) -> str:
    """Return what was asked about, as the end of a sentence; empty for everything."""
    parts = [f"in namespace {namespace}"] if namespace else []
    parts += [f"of pods with {selector}"] if selector else []
    parts += [f"that matches `{' '.join(words)}`"] if words else []
    return " ".join(parts)


def pod_of(text: str) -> str:
    """Return the name in ``pod/NAME`` or ``NAME``.

    Raises:
        UsageError: it is none.
    """
    kind, slash, name = text.partition("/")
    if slash and kind not in ("pod", "pods", "po"):
        raise UsageError(f"`{text[:100]}` is no pod", hint="write pod/NAME")
    return _named(name if slash else kind, "pod")


def _named(text: str, noun: str) -> str:
    if not _NAME.fullmatch(text):
        raise UsageError(f"`{text[:100]}` is no name of a {noun}")
    return text
