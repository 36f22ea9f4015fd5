"""What the agent tells of its policy, as typed values of its protocol. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["PolicyActions", "PolicyBudget", "PolicyRuleStatus", "PolicyStatus"]

_Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Told(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of an answer."""


class PolicyActions(_Told, frozen=True, kw_only=True):
    """How many acts of a rule had one outcome, since the agent started."""

    policy: str
    rule: str
    outcome: str
    """``ended``, ``still-there``, ``failed``, …; ``would`` in a dry run."""
    total: _Natural


class PolicyBudget(_Told, frozen=True, kw_only=True):
    """What is left of a budget."""

    policy: str
    remaining: _Natural
    """Connections that may be acted on now; 0 where no rule may act at this time of the day."""


class PolicyRuleStatus(_Told, frozen=True, kw_only=True):
    """How a rule stood at the last diagnosis."""

    name: str
    chosen: _Natural
    """Connections that it acted on or would have; where a plan was made, those that guards let pass."""
    spared: dict[str, _Natural]
    """Why others were left alone → how many."""
    guarded: dict[str, _Natural] = {}
    """At the last plan: guard → connections that it kept."""
    stopped: list[str]
    """Workloads for which it is stopped, because connections opened faster after an act."""


class PolicyStatus(_Told, frozen=True, kw_only=True):
    """How the policy is."""

    name: str
    file: str
    mode: str
    halted: str
    """What keeps it from acting: ``no-act``, ``kill-switch``, ``error`` (see `said`); empty for nothing."""
    said: str
    """What went wrong last: a new file that is wrong, a result that was not expected; empty for nothing."""
    remaining: _Natural
    rules: list[PolicyRuleStatus]
    recent: list[str]
    """The last acts, or what would have been done, the latest first."""
