"""Two looks, recordings or pastes → what changed between them: opens, diagnoses, compares.

Both are looked at alike: where one of them has a single look, only the last one of the other counts, for some causes
take two looks to tell (`finwait.diagnosis.rules`), and a group could appear or vanish by that alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait import selecting, session
from finwait.diagnosis.comparison import ComparedSide, Comparison, compared
from finwait.recording import Replay

if TYPE_CHECKING:
    from finwait.machine import Machine
    from finwait.session import Diagnosis, Look
    from finwait.table.filter import Filter

__all__ = ["compare"]


def compare(
    before: tuple[str, Machine],
    after: tuple[str, Machine],
    how: Look,
    row_filter: Filter | None = None,
) -> Comparison:
    """Diagnose two machines or recordings, and compare.

    Args:
        before: how the first is called, and what is looked at.
        after: the second.
        how: how to look at both.
        row_filter: compare only what it selects.

    Raises:
        FinwaitError: a look failed, or the FILTER asks for what is not known.
    """
    sides = []
    machines = _alike(before[1], after[1])
    for (label, _), machine in zip((before, after), machines, strict=True):
        made = session.diagnose(machine, how=how)
        if row_filter is not None and row_filter.text.strip():
            made = selecting.narrowed(made, row_filter, refuse=False)
        sides.append(_side(label, made))
    return compared(*sides)


def _alike(before: Machine, after: Machine) -> tuple[Machine, Machine]:
    """Return both, of recordings only the last look each where one of them has no other."""
    if isinstance(before, Replay) and isinstance(after, Replay) and min(len(before), len(after)) == 1:
        return _last(before), _last(after)
    return before, after


def _last(machine: Replay) -> Replay:
    return Replay(machine.looks[-1:], redacted=machine.redacted)


def _redacted(machine: Machine) -> bool:
    return isinstance(machine, Replay) and machine.redacted


def _side(label: str, made: Diagnosis) -> ComparedSide:
    facts, narrowed = made.snapshot.observation.facts, made.narrowed
    undecided = (narrowed.undecided,) if narrowed is not None and narrowed.undecided is not None else ()
    return ComparedSide(
        label=label,
        hostname=facts.hostname,
        kernel=facts.kernel,
        boot_id=facts.boot_id,
        unix_ns=facts.unix_ns,
        boottime_ns=facts.boottime_ns,
        view=made.view,
        findings=made.findings,
        gaps=(*undecided, *made.gaps),
        redacted=_redacted(made.snapshot.machine),
        unjudged=len(narrowed.unjudged) if narrowed is not None else 0,
    )
