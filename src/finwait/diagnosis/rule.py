"""What a rule is: a module with a page (its docstring), a `RULE`, and `match`.

The engine asks each module for its mask, gives each socket its primary cause (the gravest; of equally grave ones that
of the lowest `rank`, the more specific rule), and summarises the columns that the rule names as its evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Harm, Remedy, Severity, Turn, headline
from finwait.diagnosis.view import View
from finwait.errors import Gap

__all__ = ["Case", "Clue", "Match", "Means", "Rule"]

Means = Literal["fin", "keepalive", "user-timeout", "reset", "destroy"]
"""What `finwait clear` can do to a connection."""


class Clue(Struct, frozen=True):
    """A column that separates this cause from others, and what its value says."""

    column: str
    says: str


class Case(Struct, frozen=True):
    """Rows of a rule that are the same pattern and are told in other words, because other means end them.

    A row is of the first case that has it, and of none where it is as the rule itself says. Rows of different
    cases are different findings.
    """

    title: str
    rows: Callable[[View], NDArray[np.bool_]]
    clues: tuple[Clue, ...]
    ends: tuple[Remedy, ...]
    does_not: tuple[Advice, ...]
    severity: Severity | None = None
    """What `Rule.grade` gives its rows, where that is always the same and not the rule's."""
    turn: Turn | None = None
    """Whose move it is, where that is not the rule's."""


class Match(Struct, frozen=True):
    """What a rule matched: rows, or subjects that have no rows (processes, namespaces)."""

    rows: NDArray[np.int64]
    netns: int = 0
    pid: int = 0
    subject: str = ""
    count: int = 0
    cells: Mapping[str, int] = field(default_factory=dict)
    """Columns that are the same of all that it is about, where that has no rows: a FILTER may ask for them."""
    ports: tuple[int, ...] = ()
    """The local ports of all that it is about, each once, where that has no rows; none where not all are known."""
    evidence: tuple[Evidence, ...] = ()
    confidence: Confidence | None = None
    """Its own, where that is not the rule's."""


class Rule(Struct, frozen=True):
    """One cause.

    ``match`` returns the mask of rows it explains. A rule about something without rows gives ``matches``
    instead. ``confidence`` and ``observe`` look at a group of matched rows.
    """

    name: str
    title: str
    severity: Severity
    rank: int
    harm: Harm
    """What it costs while it lasts; of equally grave findings the most harmful comes first."""
    turn: Turn
    means: Means | Literal["by-state"] | None
    """What ends a connection that a process holds, beside a FIN from its other end; None where nothing should.

    ``by-state``: a FIN in CLOSE_WAIT, else SOCK_DESTROY, which also ends what nobody holds, by whatever rule.
    """
    beyond_sysctls: str
    """Why a setting that says nothing of this rule does not reach its connections."""
    claims: tuple[str, ...]
    clues: tuple[Clue, ...]
    ends: tuple[Remedy, ...]
    does_not: tuple[Advice, ...]
    confidence: Callable[[View, NDArray[np.int64]], Confidence]
    match: Callable[[View], NDArray[np.bool_]] | None = None
    matches: Callable[[View], list[Match]] | None = None
    observe: Callable[[View, NDArray[np.int64]], tuple[Evidence, ...]] | None = None
    """Evidence beyond columns of the row itself: the other end, the listener, counters."""
    grade: Callable[[View, NDArray[np.int64]], Severity] | None = None
    """Severity by what was seen, where it differs from `severity`."""
    proven: Callable[[View, NDArray[np.int64]], NDArray[Any]] | None = None
    """Which of some rows are proven (or how much each shows), where `grade` or `confidence` depends on that: rows that
    differ in it are different findings, so that one row never makes others worse, or better, than they are."""
    remedies: Callable[[View, NDArray[np.int64]], tuple[Remedy, ...]] | None = None
    """What ends a group, where that depends on what was seen; `ends` is all that there is to say of the rule."""
    unjudged: Callable[[View], list[Gap]] | None = None
    """What it could not judge, for this kernel (or this look) lacks what it needs to know."""
    owners: bool = False
    """Whether it cannot judge, or not to its end, where nobody looked who holds what (`--no-owners`)."""
    flags: bool = False
    """Whether it tells of `View.close_on_exec`, which is read of the descriptors of its findings only."""
    softens: tuple[str, ...] = ()
    """Rules whose rows it explains with what makes them less grave: on its own rows they are no primary cause, even
    where its `grade` is lower than theirs. Of all others the gravest is the primary cause."""
    rest: bool = False
    """Whether it takes only those of its rows that no other rule explains."""
    counted: bool = False
    """Whether its rows are told by their number alone: healthy ones, often very many, each like the other."""
    untold: bool = False
    """Whether it is about rows that lack what decides, of which no other rule concludes anything
    (`View.undecided`)."""
    path_lost: bool = False
    """Whether nothing that is sent from here reaches the other end any more."""
    waited: bool = False
    """Whether it matters who in the program waits: rows with different answers are different findings."""
    cases: tuple[Case, ...] = ()
    """Rows that are told in other words than `title`, `clues`, `ends` and `does_not`."""

    @property
    def headline(self) -> str:
        """The title, and that it is healthy where it is."""
        return headline(self.title, self.severity)

    @property
    def tellings(self) -> tuple[Rule | Case, ...]:
        """The rule's own words and those of its cases."""
        return (self, *self.cases)
