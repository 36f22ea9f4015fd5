"""The rules there are, in the order of the cause taxonomy (docs/reference/causes.md)."""

from __future__ import annotations

import importlib
import inspect
from functools import cache

from finwait.diagnosis.rule import Rule

__all__ = ["NAMES", "by_owners", "indispensable", "page", "rule", "rules", "variants"]

NAMES = (
    "fin-wait2-held",
    "fin-wait2-streaming",
    "fin-wait2-shut-both",
    "fin-wait2-orphan",
    "fin-wait2-orphan-long",
    "relay-pair",
    "close-wait-eof-read",
    "close-wait-eof-unread",
    "never-accepted",
    "accept-queue-full",
    "inherited-descriptor",
    "holder-not-found",
    "established-unread",
    "half-open",
    "idle-unprobed",
    "data-unanswered",
    "fin-unanswered-orphan",
    "fin-unanswered-held",
    "zero-window",
    "egress-blocked",
    "nat-entry-gone",
    "nat-zombie",
    "time-wait",
    "time-wait-flood",
    "hidden-leak",
    "mptcp-half-close",
    "mptcp-no-subflow",
    "syn-unanswered",
    "handshake",
    "closing-in-progress",
    "not-told",
    "unexplained",
)


def _module_name(name: str) -> str:
    return f"finwait.diagnosis.rules.{name.replace('-', '_')}"


@cache
def rule(name: str) -> Rule:
    """Return a rule by name.

    Raises:
        KeyError: there is none of that name.
    """
    if name not in NAMES:
        raise KeyError(name)
    definition: Rule = importlib.import_module(_module_name(name)).RULE
    assert definition.name == name
    return definition


def indispensable() -> tuple[Rule, ...]:
    """Return the rules that no diagnosis goes without: healthy patterns, and what takes the rows that none explains."""
    return tuple(rule for rule in rules() if rule.severity == "healthy" or rule.rest)


def rules() -> tuple[Rule, ...]:
    """Return all rules."""
    return tuple(rule(name) for name in NAMES)


def by_owners() -> tuple[str, ...]:
    """Return the names of the rules that cannot judge where nobody looked who holds what."""
    return tuple(rule.name for rule in rules() if rule.owners)


def variants() -> dict[str, int]:
    """Return how many variants each rule has."""
    return {rule.name: len(rule.cases) for rule in rules()}


def page(name: str) -> str:
    """Return the page of a rule: its docstring.

    Raises:
        KeyError: there is none of that name.
    """
    rule(name)
    return inspect.cleandoc(importlib.import_module(_module_name(name)).__doc__ or "")
