"""What came of acts, as values: of each step of a plan, each connection probed, each tracking entry deleted."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from finwait.remedy.plan import Step

__all__ = ["EntryOutcome", "EntryResult", "Outcome", "Probe", "Result", "Verdict"]

Result = Literal["ended", "left before", "changed meanwhile", "set", "still there", "failed"]


class Outcome(Struct, frozen=True):
    """What came of one step."""

    step: Step
    result: Result
    detail: str = ""
    act_id: int = 0
    other: str = ""
    """State of the other end afterwards, or ``gone``; empty when it is not on this machine."""
    stays_open: tuple[tuple[int, int, str], ...] = ()
    """(pid, fd, comm) of each descriptor that still refers to the socket."""
    this_end_gone: bool = False
    """Whether the end that was acted on has ended, also where the other one is still there."""


Verdict = Literal["alive", "reset", "dead", "not judged", "gone"]


class Probe(Struct, frozen=True):
    """What a probe of one connection found out."""

    step: Step
    verdict: Verdict
    detail: str = ""
    unrestored: str = ""
    """Why its options are not as they were; empty when they are."""
    kept: tuple[tuple[str, int], ...] = ()
    """Options that its program set meanwhile, and their values: those are left as it set them."""
    pinned: tuple[str, ...] = ()
    """Options that had the value of their sysctl, which the socket may have followed and follows no more."""


EntryResult = Literal["deleted", "gone before", "failed", "interrupted"]


class EntryOutcome(Struct, frozen=True):
    """What came of the deletion of one connection tracking entry."""

    result: EntryResult
    detail: str = ""
    """Why it failed."""

    @property
    def gone(self) -> bool:
        """Whether the entry is not there any more."""
        return self.result in ("deleted", "gone before")
