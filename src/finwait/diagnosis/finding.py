"""What a diagnosis says: findings, their evidence, and what would end them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

__all__ = [
    "Advice",
    "Certainty",
    "Confidence",
    "Evidence",
    "Finding",
    "Harm",
    "Remedy",
    "RemedyClass",
    "Severity",
    "Turn",
    "Whose",
    "headline",
]

Severity = Literal["problem", "notice", "healthy"]
Harm = Literal["outage", "stall", "leak", "residue"]
"""What it costs meanwhile: clients are turned away or get no answer; data waits; descriptors and memory pile up;
nothing that anybody would miss."""
Whose = Literal["holder", "peer", "far", "path", "kernel", "you", "unknown"]
"""Who can end it in order: a program here that holds it; the program at the other end; that one or the network, which
cannot be told apart; something between the two (a firewall, a queue, address translation); the kernel, by a timer;
whoever reads this, because no program will; nobody knows."""
Certainty = Literal["certain", "likely", "possible"]
RemedyClass = Literal["read-only", "reversible", "destructive", "advice"]


class Evidence(Struct, frozen=True):
    """One observed value and what it says."""

    column: str
    value: str
    read_from: str
    says: str


class Confidence(Struct, frozen=True):
    """How sure, and why."""

    level: Certainty
    reason: str
    look_again: bool = False
    """Whether it may be healthy for all that one look can tell, and a second look some seconds later settles it."""


class Turn(Struct, frozen=True):
    """Whose move it is, and what the move would be."""

    whose: Whose
    act: str = ""
    """For people: ``close()``; empty where nothing is to be done."""


class Remedy(Struct, frozen=True):
    """Something that really ends the connection."""

    text: str
    kind: RemedyClass = "advice"
    command: str = ""
    """A command to type, where there is one."""
    proofs: tuple[str, ...] = ()
    """Demonstrations that show it, by their names (`finwait lab prove NAME`)."""
    select: str = ""
    """The FILTER that the command is for, where it is for more than the connections of the finding."""
    descriptor: bool = False
    """Whether it acts through a descriptor: there is none of a connection that no process holds."""
    unheld: str = ""
    """The text of it where no process holds any of the connections; empty for the same."""

    @property
    def clears(self) -> bool:
        """Whether its command is `finwait clear`."""
        return self.command.split()[:2] == ["finwait", "clear"]


class Advice(Struct, frozen=True):
    """Something that people try although it does nothing here (or harm), and why."""

    text: str
    reason: str
    proofs: tuple[str, ...] = ()
    """As of `Remedy`."""


def headline(title: str, severity: Severity) -> str:
    """Return a title that says by itself when what it tells of is healthy."""
    return f"{title}: healthy" if severity == "healthy" else title


class Finding(Struct, frozen=True):
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
    turn: Turn = Turn("unknown")
    harm: Harm = "residue"
    variant: int = 0
    """Which of the rule's cases it is, from 1 on; 0 for none of them."""
    select: str = ""
    """A FILTER that selects exactly these connections; empty where there are none, or nothing tells them apart."""
    listing: str = ""
    """The command that lists them."""
    cells: Mapping[str, int] = field(default_factory=dict)
    """Columns that are known of what has no rows."""
    ports: tuple[int, ...] = ()
    """As of `finwait.diagnosis.rule.Match`."""
    counted: bool = False
    """Whether the number is all there is to tell of them; see `Rule.counted`."""

    @property
    def headline(self) -> str:
        """The title, and that it is healthy where it is."""
        return headline(self.title, self.severity)
