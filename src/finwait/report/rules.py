"""A rule as JSON's types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finwait.diagnosis import catalogue

if TYPE_CHECKING:
    from finwait.diagnosis.rule import Rule

__all__ = ["rule_json"]


def rule_json(rule: Rule) -> dict[str, Any]:
    """Return what is known of a rule, its page among it."""
    return {
        "name": rule.name,
        "title": rule.headline,
        "severity": rule.severity,
        "harm": rule.harm,
        "move": {"whose": rule.turn.whose, "act": rule.turn.act},
        "claims": rule.claims,
        "page": catalogue.page(rule.name),
    }
