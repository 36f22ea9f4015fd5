"""What a diagnosis says: findings, their evidence, and what would end them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Advice", "Certainty", "Confidence", "Evidence", "Finding", "Remedy", "RemedyClass", "Severity"]

Severity = Literal["problem", "notice", "healthy"]
Certainty = Literal["certain", "likely", "possible"]
RemedyClass = Literal["read-only", "reversible", "destructive", "advice"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One observed value and what it says."""

    column: str
    value: str
    read_from: str
    says: str


@dataclass(frozen=True, slots=True)
class Confidence:
    """How sure, and why."""

    level: Certainty
    reason: str
    look_again: bool = False
    """Whether it may be healthy for all that one look can tell, and a second look some seconds later settles it."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something that really ends the connection."""

    text: str
    kind: RemedyClass = "advice"
    command: str = ""
    """A command to type, where there is one."""
    proofs: tuple[str, ...] = ()
    """Demonstrations that show it, by their names (`finwait lab prove NAME`)."""

    @property
    def clears(self) -> bool:
        """Whether its command is `finwait clear`."""
        return self.command.split()[:2] == ["finwait", "clear"]


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that people try although it does nothing here (or harm), and why."""

    text: str
    reason: str
    proofs: tuple[str, ...] = ()
    """As of `Remedy`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A group of connections that share a cause, a namespace and a holder.

    ``rows`` index the sockets of the view; ``primary`` is False where a more specific finding names the
    cause of all of these rows.
    """

    rule: str
    title: str
    severity: Severity
    primary: bool
    confidence: Confidence
    netns: int
    pids: tuple[int, ...]
    rows: NDArray[np.int64]
    evidence: tuple[Evidence, ...]
    ends_it: tuple[Remedy, ...]
    does_not: tuple[Advice, ...]
    subject: str = ""
    """What it is about when it is not about rows (a process with dead descriptors, a namespace)."""
    count: int = 0
    """How many connections (or descriptors) it is about."""
    variant: int = 0
    """Which of the rule's cases it is, from 1 on; 0 for none of them."""
    select: str = ""
    """A FILTER that selects exactly these connections; empty where there are none, or nothing tells them apart."""
    listing: str = ""
    """The command that lists them."""
    cells: Mapping[str, int] = field(default_factory=dict)
    """Columns that are known of what has no rows."""
    counted: bool = False
    """Whether the number is all there is to tell of them; see `Rule.counted`."""
