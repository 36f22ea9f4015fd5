"""What an agent has seen of the past, for a report: how many were stuck over time, and the latest episodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from finwait.errors import Gap
    from finwait.report.agent_page import CountsDocument

__all__ = ["AgentPast", "PastEpisode"]


class PastEpisode(Struct, frozen=True):
    """One connection in one closing state, from first sight to its end, as texts."""

    first_seen: str
    lasted: str
    ended: str
    state: str
    local: str
    peer: str
    rule: str
    holder: str


class AgentPast(Struct, frozen=True):
    """The history since some moment."""

    since: str
    counts: CountsDocument | None
    """None where `counts_note` says why."""
    counts_note: str
    episodes: tuple[PastEpisode, ...]
    """The latest first."""
    more: int
    """Episodes that are not among them."""
    gaps: tuple[Gap, ...]
    """What the agent could not see, and what the FILTER could not judge."""
