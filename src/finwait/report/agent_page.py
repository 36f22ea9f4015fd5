"""The documents of the agent's JSON API: one type each, from which ``openapi.json`` is generated.

The looker fills in the parts, the face puts them into documents, the page reads them. ``null`` is *not known*,
never 0; where nobody looked a count is ``null``. Times are UTC in RFC 3339. All text may be hostile: processes choose
their names.

Types only. Who fills them is `finwait.agent`, who serves them is `finwait.web`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

__all__ = [
    "ENDS_MOST", "GROUPS_MOST", "AboutDocument", "ActsDocument", "AgeSpan", "AgentPage", "ApiError", "CountSeries",
    "CountsDocument", "EpisodeItem", "EpisodesDocument", "GapItem", "GapsDocument", "GroupDetail", "GroupDocument",
    "GroupItem", "GroupsDocument", "JournalItem", "LimitItem", "OtherEndItem", "PageEnd", "PictureDocument",
    "SaidAdvice", "SaidCause", "SaidEvidence", "SaidRemedy", "SettingItem", "SettingsDocument", "StoryStep",
    "TranslatedEnds",
]  # fmt: skip

GROUPS_MOST: Final = 1000
"""Groups of one picture; the others are counted."""
ENDS_MOST: Final = 20
"""Connections that a group names, the oldest first."""

Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a document."""


class SaidEvidence(_Value, frozen=True, kw_only=True):
    """One observed value and what it says."""

    column: str
    value: str
    read_from: str
    says: str


class SaidRemedy(_Value, frozen=True, kw_only=True):
    """Something that really ends such a connection."""

    text: str
    kind: str
    """``read-only``, ``reversible``, ``destructive`` or ``advice``."""
    command: str
    """To be typed; empty where there is none."""


class SaidAdvice(_Value, frozen=True, kw_only=True):
    """Something that people try although it does nothing here, and why."""

    text: str
    reason: str


class SaidCause(_Value, frozen=True, kw_only=True):
    """What the last diagnosis said of the connections of a group."""

    title: str
    harm: str
    whose: str
    act: str
    """The move, for people; empty where nothing is to be done."""
    confidence: str
    reason: str
    evidence: list[SaidEvidence]
    ends_it: list[SaidRemedy]
    does_not: list[SaidAdvice]
    ends: str
    """By what it ends if nobody acts: ``program``, ``timer``, ``never`` …; empty where that is not known."""
    ends_why: str
    about: Natural
    """Ends of the workload that it is about: of one process and network namespace, where there are several."""
    at: str
    """When the diagnosis was made."""
    others: Natural = 0
    """Further findings of the same cause and workload, about fewer ends each, which may say something else."""


class AgeSpan(_Value, frozen=True, kw_only=True):
    """How long something has lasted, in seconds."""

    at_least: float
    at_most: float | None


class OtherEndItem(_Value, frozen=True, kw_only=True):
    """The other end of a connection, on this machine."""

    cookie: str
    netns: Natural
    holder: str
    state: str | None = None
    """None where that is not known, and where it is in no closing state."""


class TranslatedEnds(_Value, frozen=True, kw_only=True):
    """Both addresses as behind address translation."""

    local: str
    peer: str


class PageEnd(_Value, frozen=True, kw_only=True):
    """One end of a connection that does not finish closing."""

    state: str
    local: str
    peer: str
    netns: Natural
    netns_names: list[str]
    cookie: str
    holder: str | None
    """``comm(pid)``; empty for nobody, None for unknown."""
    first_seen: str
    age_s: AgeSpan
    other_end: OtherEndItem | None
    translated: TranslatedEnds | None


class GroupItem(_Value, frozen=True, kw_only=True):
    """Connections that do not finish closing, of one cause and one workload."""

    id: str
    """Made of rule and workload: the same after a restart."""
    rule: str
    severity: str
    workload: str
    """``pod/UID``, a systemd unit, or a program; empty where it is not known."""
    count: Natural
    """Connections; both ends of one count once."""
    oldest_s: float
    rate: float
    """Connections older than ten minutes that a second adds; 0 while they do not grow."""
    reached_s: float | None
    """Seconds until a limit of the workload is reached at that rate."""
    limit: str
    """Which limit; empty for none."""
    states: dict[str, Natural]
    """State → ends in it."""
    holders: list[str]
    """Some of the processes that hold them."""
    title: str
    harm: str
    confidence: str
    whose: str
    act: str
    ends_it: str
    """The first remedy."""
    command: str
    """Its command; empty where there is none."""
    confidences: dict[str, Natural] = {}
    """How sure the last diagnosis is → of how many connections, the surest first. `confidence` is that of the largest
    part."""


class GroupDetail(_Value, frozen=True, kw_only=True):
    """A group with its evidence and some of its connections."""

    group: GroupItem
    cause: SaidCause | None
    """None while no diagnosis has seen it since the agent started."""
    ends: list[PageEnd]
    """The oldest first."""
    more: Natural
    """Ends that are not named."""


class LimitItem(_Value, frozen=True, kw_only=True):
    """How full something is."""

    limit: str
    workload: str
    subject: str
    used: Natural
    most: Natural
    reached_s: float | None


class AgentPage(_Value, frozen=True, kw_only=True):
    """What was stuck at the end of the last look."""

    at: str
    at_ns: int
    """Wall clock at the end of the round, in nanoseconds since 1970."""
    look_at_ns: int
    """Wall clock at the last look that succeeded; 0 before the first."""
    rounds: Natural
    boot_id: str
    version: str
    interval_s: float
    filter: str
    stuck: Natural
    """Connections in all groups."""
    problems: Natural
    """… in those whose severity is ``problem``."""
    undiagnosed: Natural
    groups: list[GroupItem]
    """By harm, then age."""
    groups_dropped: Natural
    sockets: dict[str, Natural]
    """State → sockets of the machine; a FILTER does not narrow them."""
    limits: list[LimitItem]
    gaps: Natural
    namespaces: Natural
    unseen_s: float
    """The longest that a network namespace has not been looked at."""
    untracked: Natural
    store_said: str
    """Why the history cannot be written; empty where it can."""
    diagnosed_at: str | None


class StoryStep(_Value, frozen=True, kw_only=True):
    """One step of how a connection got into its state, or left it: a change of state, or the header of a packet."""

    at: str
    """UTC, by the wall clock as it was when the connection was first seen."""
    ago_s: Annotated[float, msgspec.Meta(ge=0)] | None
    """How long ago; None where it was before the machine was started."""
    late_s: Annotated[float, msgspec.Meta(ge=0)]
    """It may have been later by this: the machine slept meanwhile."""
    old: str | None
    new: str | None
    """States; None of a packet. Both the same: the program closed what it had shut down before."""
    reset: Literal["received", "sent"] | None
    """Whether a reset made the change, and whose."""
    reason: str | None
    """The kernel's word for why this end sent that reset."""
    pid: Natural | None
    """Who made the change, where no packet and no timer can have: the process, or without a name the task."""
    comm: str | None
    packet: str | None
    """Flags of its TCP header: ``SYN``, ``FIN``, ``RST``, ``ACK``."""
    outgoing: bool | None
    meaning: str
    source: str
    """What told it: the tracepoints, or a packet socket."""


class EpisodeItem(_Value, frozen=True, kw_only=True):
    """One connection in one closing state, from first sight to its end."""

    netns: Natural
    protocol: str | None
    family: str | None
    src: str
    sport: Natural
    dst: str
    dport: Natural
    state: str | None
    cookie: str
    ifindex: Natural
    boot_id: str
    rule: str | None
    severity: str | None
    confidence: str | None
    workload: str | None
    holder: str | None
    first_seen: str
    last_seen: str
    age_s: AgeSpan
    ended: str | None
    how: str | None
    other_end: OtherEndItem | None
    translated: TranslatedEnds | None
    story: list[StoryStep] | None
    """How it got there, and what ended it, as the flight recorder saw it; None where it saw nothing of it."""


class CountSeries(_Value, frozen=True, kw_only=True):
    """How many connections of one cause or workload were stuck."""

    name: str
    values: list[Natural | None]
    """One for each time; None where nobody looked."""


class SettingItem(_Value, frozen=True, kw_only=True):
    """A setting that bears on closing, as the last diagnosis read it."""

    key: str
    title: str
    value: str
    default: int | None
    unit: str
    verdict: str
    """``HARMFUL``, ``helps``, ``only when``, ``no effect here`` or ``default``."""
    why: str
    instead: str
    on_stuck: str
    """What a change would do to what is stuck now."""
    where: list[str]
    """Some of the network namespaces that have this value."""
    namespaces: Natural


class JournalItem(_Value, frozen=True, kw_only=True):
    """Something that finwait did on this machine."""

    id: Natural
    at: str
    user: str
    kind: str
    whom: str
    why: str
    result: str
    failed: bool


class GapItem(_Value, frozen=True, kw_only=True):
    """A part of the machine that could not be seen, and what would let us."""

    where: str
    doing: str
    needs: str
    netns: Natural | None
    pid: Natural | None


class _Document(_Value, frozen=True, kw_only=True, rename={"api_version": "apiVersion"}):
    """A whole answer."""

    api_version: Literal["finwait/v1"] = "finwait/v1"
    kind: str
    looker: Literal["running", "slow", "gone"] = "running"
    """Whether the process that looks runs; where it is ``gone``, the answer is what it said last."""


class PictureDocument(_Document, frozen=True, kw_only=True):
    """What was stuck at the last look."""

    kind: Literal["AgentPicture"] = "AgentPicture"
    picture: AgentPage


class GroupsDocument(_Document, frozen=True, kw_only=True):
    """The groups of the last look, from an offset on."""

    kind: Literal["AgentGroupList"] = "AgentGroupList"
    at: str
    items: list[GroupItem]
    total: Natural
    offset: Natural


class GroupDocument(_Document, frozen=True, kw_only=True):
    """One group."""

    kind: Literal["AgentGroup"] = "AgentGroup"
    at: str
    item: GroupDetail


class EpisodesDocument(_Document, frozen=True, kw_only=True):
    """Episodes, the latest first; those that are open alone, the oldest first."""

    kind: Literal["AgentEpisodeList"] = "AgentEpisodeList"
    items: list[EpisodeItem]
    truncated: bool
    """Whether there are more than were asked for."""
    gaps: list[GapItem]
    """What the FILTER could not judge."""


class CountsDocument(_Document, frozen=True, kw_only=True):
    """How many connections were stuck over time; the largest series, the rest as ``other``."""

    kind: Literal["AgentCounts"] = "AgentCounts"
    by: Literal["rule", "workload"]
    step_s: Natural
    at: list[int]
    """The beginning of each step, in seconds since 1970."""
    series: list[CountSeries]
    gaps: list[Natural | None]
    """Parts of the machine that could not be seen; None where nobody looked."""


class SettingsDocument(_Document, frozen=True, kw_only=True):
    """Settings: harmful ones first, then those that were changed."""

    kind: Literal["AgentSettings"] = "AgentSettings"
    at: str | None
    """When they were read; None while no diagnosis has been made."""
    items: list[SettingItem]
    dropped: Natural


class ActsDocument(_Document, frozen=True, kw_only=True):
    """The journal, the latest first."""

    kind: Literal["AgentJournal"] = "AgentJournal"
    items: list[JournalItem]
    error: str
    """Why it could not be read; empty where it could."""


class GapsDocument(_Document, frozen=True, kw_only=True):
    """What could not be seen at the last looks."""

    kind: Literal["AgentGaps"] = "AgentGaps"
    items: list[GapItem]
    dropped: Natural


class AboutDocument(_Document, frozen=True, kw_only=True):
    """How the agent is."""

    kind: Literal["AgentAbout"] = "AgentAbout"
    version: str
    pid: Natural
    boot_id: str
    started: str
    at: str
    share: float
    cpu_s: float
    rounds: Natural
    open: Natural
    undiagnosed: Natural
    untracked: Natural
    namespaces: Natural
    unseen_s: float
    store: str
    store_bytes: Natural
    store_errors: Natural
    store_said: str


class ApiError(msgspec.Struct, frozen=True, kw_only=True):
    """Why there is no answer."""

    error: str
    hint: str = ""
