"""Acts that took another one back and were cut short: they belong to that one.

Half of its options or settings may be as it made them, half as they were before. Only the act that is taken back knows
what was before all of it; what the second one found is in the middle of it, or what the first had left. So there is one
thing to do with both of them: to finish the taking back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finwait.errors import Refused
from finwait.remedy.journal import check_undo

if TYPE_CHECKING:
    from finwait.acting.identity import ActJournal

__all__ = ["open_ones", "origin", "over_since"]


def origin(entry: Any, journal: ActJournal) -> Any:  # noqa: ANN401 - a JournalEntry
    """Return the act whose old values are to be put back: this one, or the one that it was to take back.

    Raises:
        ValueError: that is not in the journal.
    """
    while entry.result is None and entry.undoes is not None and entry.undoes < entry.id:
        entry = journal.get(entry.undoes)
    return entry


def open_ones(entry: Any, journal: ActJournal, reason: str, *, besides: int = 0) -> dict[int, dict[str, Any]]:  # noqa: ANN401
    """Return results for an act that was cut short, and for those that were to take it back and were cut short too.

    Args:
        entry: the act.
        journal: where they are.
        reason: what became of them.
        besides: the act that takes it back now.
    """
    results: dict[int, dict[str, Any]] = {}
    if entry.result is None:
        results[entry.id] = {"result": f"interrupted; {reason}"}
    begun = list(journal.open_undos(entry.id))
    while begun:
        undo = begun.pop()
        if undo.id not in (besides, *results) and not journal.is_running(undo):
            results[undo.id] = {"error": f"interrupted; {reason}", "restored": True}
            begun += journal.open_undos(undo.id)
    return results


def over_since(asked: Any, entry: Any, journal: ActJournal) -> str:  # noqa: ANN401
    """Settle an act that was to take back another, which was taken back since; return what to say, if it is so.

    Args:
        asked: the act that is to be taken back.
        entry: its `origin`.
        journal: where they are.

    Raises:
        Refused: the act cannot be taken back (`finwait.remedy.journal.check_undo`).
    """
    try:
        check_undo(entry)
    except Refused as error:
        if asked.id == entry.id or error.guard not in ("undone", "restored"):
            raise
        journal.complete_many({asked.id: {"error": f"interrupted; {error.reason}", "restored": True}})
        return f"interrupted; {error.reason}"
    return ""
