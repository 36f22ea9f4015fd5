"""What the looker tells, and how it is asked: one line of JSON each way, of bounded length, by types.

The looker holds the rights; whoever asks needs none. So there is nothing here that acts, or that makes it look: a
question gets the last finished picture, or rows of the history. What does not decode as one of `Question` is refused.

The surprise: the answers are typed, too. Who asks for pictures believes nothing that is not one.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from finwait.agent.cluster_told import ClusterStatus
from finwait.agent.policy_told import PolicyActions, PolicyBudget, PolicyStatus
from finwait.report.agent_page import (
    ActsDocument,
    AgentPage,
    CountsDocument,
    GapItem,
    GapsDocument,
    GroupDetail,
    SettingsDocument,
    StoryStep,
)
from finwait.uapi.cluster import ClusterNames

__all__ = [
    "ANSWER_MOST",
    "DURATIONS_S",
    "LOOKS_S",
    "QUESTION_MOST",
    "AgentAnswer",
    "AskAges",
    "AskCounts",
    "AskGaps",
    "AskGroup",
    "AskHistory",
    "AskJournal",
    "AskNames",
    "AskPage",
    "AskPicture",
    "AskSettings",
    "AskStatus",
    "AskStories",
    "ConfigStatus",
    "Counted",
    "EndedCount",
    "Histogram",
    "LimitUse",
    "NamesOfCluster",
    "Question",
    "RecorderStatus",
    "RoundPicture",
    "Status",
    "StoryOf",
    "StuckGroup",
    "ToldStory",
    "decode_answer",
    "decode_question",
    "encode",
]

QUESTION_MOST: Final = 64 << 10
ANSWER_MOST: Final = 16 << 20
"""Bytes of a line, its end included."""
DURATIONS_S: Final = (1, 5, 15, 60, 300, 900, 3600, 14400, 86400)
LOOKS_S: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0)

_Natural = Annotated[int, msgspec.Meta(ge=0)]
_Moment = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Cookie = _Natural
"""64 bits; what has more is refused by `decode_question`, for a bound of msgspec has 63."""


_Filter = Annotated[str, msgspec.Meta(max_length=2000)]


class _Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of an answer."""


def _called(namespace: str, workload: str) -> str:
    return f"{namespace}/{workload}" if namespace else workload


class StuckGroup(_Value, frozen=True, kw_only=True):
    """Connections that do not finish closing, of one cause and one workload."""

    rule: str
    severity: str
    namespace: str
    """The Kubernetes namespace; empty where it is not known."""
    workload: str
    """Without that."""
    count: _Natural
    """Connections; both ends of one count once."""
    oldest_s: float
    rate: float = 0.0
    """Survivors that a second adds; 0 while they do not grow."""

    @property
    def called(self) -> str:
        """The workload with its namespace."""
        return _called(self.namespace, self.workload)


class Counted(_Value, frozen=True, kw_only=True):
    """How many episodes of one kind have opened since the agent started."""

    rule: str
    namespace: str
    workload: str
    total: _Natural


class EndedCount(_Value, frozen=True, kw_only=True):
    """How many episodes have ended, and how."""

    rule: str
    how: str
    total: _Natural


class Histogram(_Value, frozen=True, kw_only=True):
    """Durations: how many were at most as long as each bound, and longer than the one before."""

    label: str
    counts: list[_Natural]
    """One for each bound, and one for what is longer."""
    sum_s: float


class LimitUse(_Value, frozen=True, kw_only=True):
    """How full something is."""

    limit: str
    namespace: str
    workload: str
    subject: str
    """The fullest of its kind and workload."""
    used: _Natural
    most: _Natural
    reached_s: float | None = None
    """Seconds until the first of its kind and workload is reached; None while nothing grows."""
    reached_subject: str = ""
    """That one; it need not be the fullest."""

    @property
    def called(self) -> str:
        """The workload with its namespace."""
        return _called(self.namespace, self.workload)


class RoundPicture(_Value, frozen=True, kw_only=True):
    """The last finished round of the looker."""

    version: str
    boot: str
    pid: _Natural
    rounds: _Natural
    at_ns: int
    """Wall clock at its end, in nanoseconds since 1970."""
    sockets: dict[str, _Natural]
    """State → sockets, as each namespace was last looked at."""
    groups: list[StuckGroup]
    opened: list[Counted]
    ended: list[EndedCount]
    durations: list[Histogram]
    looks: list[Histogram]
    limits: list[LimitUse]
    cpu_s: float
    look_at_ns: int
    """Wall clock at the last look that succeeded; 0 before the first."""
    gaps: dict[str, _Natural]
    """What would have let us look → parts of the machine that could not be looked at."""
    series_dropped: _Natural
    untracked: _Natural
    """Connections in closing states that there was no room for."""
    namespaces: _Natural
    unseen_s: float
    """The longest that a namespace has not been looked at."""
    store_errors: _Natural
    undiagnosed: _Natural
    policy_actions: list[PolicyActions] = []
    policy_budgets: list[PolicyBudget] = []
    config_right: bool = True
    """Whether the configuration that was read last is in force."""
    names_age_s: float | None = None
    """How old the oldest of the names of a cluster are; None where none is followed, or nothing was listed yet."""


class ConfigStatus(_Value, frozen=True, kw_only=True):
    """How the configuration is."""

    file: str
    """Empty where there is none."""
    said: str
    """Why the file is not in force as it is now; empty where it is."""
    restart: list[str]
    """Options that differ in the file now, and are in force from the next start on."""


class RecorderStatus(_Value, frozen=True, kw_only=True):
    """How the flight recorder is."""

    state: Literal["on", "rate", "cost", "failed", "off"]
    """``rate``, ``cost``: it is off by itself, for there is too much. ``off``: nobody wants it."""
    said: str
    """Why it failed; empty otherwise."""
    rate: float
    """Events a second, as counted last."""
    rate_most: float
    events: _Natural
    """That were read since the start."""
    kept: _Natural
    """Rows in memory."""
    kept_bytes: _Natural
    passed: _Natural
    """Connections that closed at once."""
    lost: _Natural
    """Records that the kernel overwrote before they were read, as far as it counts them."""
    dropped: _Natural
    """Rows that went for want of room before anybody asked."""
    offs: _Natural
    """How often it switched itself off."""
    stories: _Natural
    """Episodes whose story was kept since the start."""
    ambiguous: _Natural
    """… for which more than one socket fitted, so that none was told."""
    cpu_s: float
    packets: list[str]
    """Network namespaces in which it sees headers of packets."""


class Status(_Value, frozen=True, kw_only=True):
    """How the agent is."""

    version: str
    pid: _Natural
    boot: str
    started_ns: int
    at_ns: int
    up_s: Annotated[float, msgspec.Meta(ge=0)]
    """How long it runs, by a clock that nobody sets; the two above are of the wall clock."""
    share: float
    cpu_s: float
    rounds: _Natural
    open: _Natural
    """Episodes that are open."""
    undiagnosed: _Natural
    untracked: _Natural
    namespaces: _Natural
    unseen_s: float
    gaps: list[str]
    store: str
    store_bytes: _Natural
    store_errors: _Natural
    store_said: str
    """What went wrong with the store last; empty for nothing."""
    policy: PolicyStatus | None = None
    """None where there is no policy."""
    config: ConfigStatus | None = None
    """None where neither a file nor a command line says anything that could be read again."""
    recorder: RecorderStatus | None = None
    cluster: ClusterStatus | None = None
    """None where no cluster is followed."""


class AskPicture(msgspec.Struct, tag="picture", tag_field="ask", forbid_unknown_fields=True):
    """The last finished round."""


class AskStatus(msgspec.Struct, tag="status", tag_field="ask", forbid_unknown_fields=True):
    """How the agent is."""


class AskHistory(msgspec.Struct, tag="history", tag_field="ask", forbid_unknown_fields=True):
    """Episodes that were open at some time since then, the latest first; or what is open, the oldest first."""

    since_ns: _Moment = 0
    open: bool = False
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    filter: _Filter = ""


class AskAges(msgspec.Struct, tag="ages", tag_field="ask", forbid_unknown_fields=True):
    """The open episodes of some connections, by cookie."""

    cookies: Annotated[list[_Cookie], msgspec.Meta(max_length=4000)]


class StoryOf(_Value, frozen=True, kw_only=True):
    """Which connection, in which state."""

    netns: _Natural
    cookie: _Natural
    state: Annotated[int, msgspec.Meta(ge=1, le=12)]
    words: Annotated[list[_Natural], msgspec.Meta(min_length=4, max_length=4)]
    """Both addresses, ours first, as two words of 64 bits each."""
    sport: _Port
    dport: _Port


class AskStories(msgspec.Struct, tag="stories", tag_field="ask", forbid_unknown_fields=True):
    """How connections got where they are, as far as the flight recorder saw it."""

    connections: Annotated[list[StoryOf], msgspec.Meta(max_length=100)]


class ToldStory(_Value, frozen=True, kw_only=True):
    """The story of one connection."""

    netns: _Natural
    cookie: str
    """As in every document: ``0x…``."""
    state: str
    steps: list[StoryStep]
    """Empty where nothing was recorded."""
    ambiguous: bool
    """Whether several sockets fitted, so that none is told."""


class AskNames(msgspec.Struct, tag="names", tag_field="ask", forbid_unknown_fields=True):
    """What the cluster calls the pods of this node, and what else concerns some addresses."""

    addresses: Annotated[list[Annotated[str, msgspec.Meta(max_length=45)]], msgspec.Meta(max_length=1000)]
    pods: bool = True
    """Without them only what concerns the addresses."""
    begin: _Natural = 0
    """From which pod, Service or endpoint on, as `NamesOfCluster.next` said."""


class NamesOfCluster(_Value, frozen=True, kw_only=True):
    """What is known of that."""

    names: ClusterNames
    next: _Natural = 0
    """Where the next piece begins; 0 for the last one. Pieces belong together if their `as_of` is the same."""
    gaps: list[GapItem]
    """What is not, and why."""


class AskPage(msgspec.Struct, tag="page", tag_field="ask", forbid_unknown_fields=True):
    """The groups of the last finished round, of the connections that a FILTER selects."""

    filter: _Filter = ""
    known: int = -1
    """The round that the asker has: it is told if there is none since."""


class AskGroup(msgspec.Struct, tag="group", tag_field="ask", forbid_unknown_fields=True):
    """One group with its evidence and some of its connections."""

    id: Annotated[str, msgspec.Meta(max_length=64)]
    filter: _Filter = ""


class AskCounts(msgspec.Struct, tag="counts", tag_field="ask", forbid_unknown_fields=True):
    """How many were stuck over time."""

    since_s: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    by: Literal["rule", "workload"] = "rule"
    filter: _Filter = ""


class AskSettings(msgspec.Struct, tag="settings", tag_field="ask", forbid_unknown_fields=True):
    """The settings that the last diagnosis read."""


class AskJournal(msgspec.Struct, tag="journal", tag_field="ask", forbid_unknown_fields=True):
    """The last acts of the journal."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100


class AskGaps(msgspec.Struct, tag="gaps", tag_field="ask", forbid_unknown_fields=True):
    """What could not be seen at the last looks."""


Question = (
    AskPicture
    | AskStatus
    | AskHistory
    | AskAges
    | AskNames
    | AskPage
    | AskGroup
    | AskCounts
    | AskSettings
    | AskJournal
    | AskGaps
    | AskStories
)


class AgentAnswer(_Value, frozen=True, kw_only=True):
    """One of these is given."""

    picture: RoundPicture | None = None
    status: Status | None = None
    episodes: list[dict[str, object]] | None = None
    truncated: bool = False
    """Whether there are more episodes than were asked for."""
    page: AgentPage | None = None
    unchanged: bool = False
    """Whether there is no round since that which the asker has."""
    group: GroupDetail | None = None
    counts: CountsDocument | None = None
    settings: SettingsDocument | None = None
    acts: ActsDocument | None = None
    gaps: GapsDocument | None = None
    stories: list[ToldStory] | None = None
    names: NamesOfCluster | None = None
    """None where the agent follows no cluster."""
    recorder: RecorderStatus | None = None
    """Beside stories: why there may be none."""
    error: str | None = None
    refused: str | None = None
    """Why the FILTER is none that can be answered; None where it is."""


_QUESTION: Final = msgspec.json.Decoder(Question)
_ANSWER: Final = msgspec.json.Decoder(AgentAnswer)
_ENCODER: Final = msgspec.json.Encoder()


def decode_question(line: bytes) -> Question:
    """Return a question.

    Raises:
        ValueError: it is none, or longer than `QUESTION_MOST`.
    """
    if len(line) > QUESTION_MOST:
        raise ValueError(f"a question is at most {QUESTION_MOST} bytes long")
    try:
        question = _QUESTION.decode(line)
    except (msgspec.DecodeError, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None
    if isinstance(question, AskAges) and any(cookie >= 1 << 64 for cookie in question.cookies):
        raise ValueError("a cookie has 64 bits")
    if isinstance(question, AskStories):
        numbers = [n for c in question.connections for n in (c.cookie, c.netns << 32, *c.words)]
        if any(number >= 1 << 64 for number in numbers):
            raise ValueError("a cookie and half an address have 64 bits, and an inode has 32")
    return question


def decode_answer(line: bytes) -> AgentAnswer:
    """Return an answer.

    Raises:
        ValueError: it is none, or longer than `ANSWER_MOST`.
    """
    if len(line) > ANSWER_MOST:
        raise ValueError(f"an answer is at most {ANSWER_MOST} bytes long")
    try:
        return _ANSWER.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def encode(value: Question | AgentAnswer) -> bytes:
    """Return a line."""
    return _ENCODER.encode(value) + b"\n"
