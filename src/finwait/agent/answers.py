"""What the looker answers to questions beside the picture: groups, history, counts, settings, the journal, gaps.

Nothing here looks at the machine: what is answered was seen by rounds, or written down. A question costs processor time
all the same, so each is bounded: rows of the history that are read, points of a curve, acts, gaps.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from finwait.agent import page, protocol, rollup_counts, telling
from finwait.agent.curve import curve, table_and_step
from finwait.agent.episodes import Episode, Instant
from finwait.agent.store import Store
from finwait.errors import FilterError, FinwaitError, Gap
from finwait.report.agent_page import (
    ActsDocument,
    AgentPage,
    GapItem,
    GapsDocument,
    JournalItem,
    LimitItem,
    SettingsDocument,
)

if TYPE_CHECKING:
    from finwait.agent.loop import Looker
    from finwait.table.filter import Filter
    from finwait.uapi.cluster import ClusterNames

__all__ = ["answer"]

_PATIENCE_S: Final = 4.0
_READ_MOST: Final = 20_000
"""Episodes that one question reads."""
_GAPS_MOST: Final = 500
_LIMITS_MOST: Final = 50
_NAMES_MOST: Final = protocol.ANSWER_MOST // 2
"""Bytes of names in one answer; what is beside them has room as well."""
_ENCODER: Final = msgspec.json.Encoder()


def answer(looker: Looker, question: protocol.Question) -> protocol.AgentAnswer:
    """Return the answer to a question.

    Raises:
        FinwaitError: what it needs cannot be read.
    """
    try:
        return _answer(looker, question)
    except FilterError as error:
        return protocol.AgentAnswer(refused=f"{error.message}"[:500], error=error.hint[:500] or None)
    except TimeoutError:
        return protocol.AgentAnswer(error="a look is going on; ask again")


def _answer(looker: Looker, question: protocol.Question) -> protocol.AgentAnswer:
    if isinstance(question, protocol.AskPage):
        return _page(looker, question)
    if isinstance(question, protocol.AskGroup):
        with looker.source(_parsed(question.filter), _PATIENCE_S) as source:
            detail = page.group_detail(source, question.id)
        return protocol.AgentAnswer(group=detail)
    if isinstance(question, protocol.AskSettings):
        made = looker.explained
        return protocol.AgentAnswer(
            settings=SettingsDocument(
                at=made.at or None, items=list(made.settings), dropped=made.settings_dropped
            )
        )
    if isinstance(question, protocol.AskJournal):
        return protocol.AgentAnswer(acts=_acts(question.limit))
    if isinstance(question, protocol.AskGaps):
        every = looker.every_gap()
        items = [_gap(gap) for gap in every[:_GAPS_MOST]]
        return protocol.AgentAnswer(gaps=GapsDocument(items=items, dropped=len(every) - len(items)))
    if isinstance(question, protocol.AskStories):
        return _stories(looker, question)
    if isinstance(question, protocol.AskNames):
        return _names(looker, question)
    return _of_history(looker, question)


def _names(looker: Looker, question: protocol.AskNames) -> protocol.AgentAnswer:
    cluster = looker.cluster
    if cluster is None:
        return protocol.AgentAnswer()
    names = cluster.names.about(question.addresses)
    if not question.pods:
        names = msgspec.structs.replace(names, pods=())
    piece, end = _piece(names, question.begin)
    gaps = [] if question.begin else [_gap(gap) for gap in cluster.gaps[:_GAPS_MOST]]
    return protocol.AgentAnswer(names=protocol.NamesOfCluster(names=piece, next=end, gaps=gaps))


def _piece(names: ClusterNames, begin: int) -> tuple[ClusterNames, int]:
    """Return as many names from one on as an answer has room for, and where the next piece begins; 0 for none."""
    every = (*names.pods, *names.services, *names.endpoints)
    end, used = begin, 0
    for item in itertools.islice(every, begin, None):
        used += len(_ENCODER.encode(item)) + 1
        if used > _NAMES_MOST and end > begin:
            break
        end += 1
    parts: dict[str, tuple[object, ...]] = {}
    first = 0
    for name in ("pods", "services", "endpoints"):
        part: tuple[object, ...] = getattr(names, name)
        parts[name] = part[max(0, begin - first) : max(0, end - first)]
        first += len(part)
    return msgspec.structs.replace(names, **parts), end if end < len(every) else 0


def _stories(looker: Looker, question: protocol.AskStories) -> protocol.AgentAnswer:
    now = Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())
    with contextlib.ExitStack() as stack:
        path = looker.history
        store = stack.enter_context(Store(path, read_only=True)) if path is not None else None
        stories = looker.stories.told(question.connections, store, looker.boot, now)
    return protocol.AgentAnswer(stories=stories, recorder=looker.stories.status())


def _parsed(text: str) -> Filter | None:
    from finwait.selecting import parse_filter

    return parse_filter([text]) if text.strip() else None


def _page(looker: Looker, question: protocol.AskPage) -> protocol.AgentAnswer:
    picture, status = looker.picture, looker.status
    if picture is None or status is None:
        return protocol.AgentAnswer(error="the first look is not finished")
    if question.known == picture.rounds:
        return protocol.AgentAnswer(unchanged=True)
    with looker.source(_parsed(question.filter), _PATIENCE_S) as source:
        groups, dropped, stuck, problems, undiagnosed = page.page_groups(source)
        limits = page.by_urgency(source.limits)[:_LIMITS_MOST]
    made = AgentPage(
        at=telling.when_text(picture.at_ns),
        at_ns=picture.at_ns,
        look_at_ns=picture.look_at_ns,
        rounds=picture.rounds,
        boot_id=picture.boot,
        version=picture.version,
        interval_s=looker.interval_s,
        filter=question.filter,
        stuck=stuck,
        problems=problems,
        undiagnosed=undiagnosed if source.row_filter is not None else picture.undiagnosed,
        groups=groups,
        groups_dropped=dropped,
        sockets=picture.sockets,
        limits=[
            LimitItem(
                limit=limit.limit, workload=limit.called, subject=limit.subject, used=limit.used,
                most=limit.most, reached_s=limit.reached_s,
            )
            for limit in limits
        ],
        gaps=sum(picture.gaps.values()),
        namespaces=picture.namespaces,
        unseen_s=picture.unseen_s,
        untracked=picture.untracked,
        store_said=status.store_said,
        diagnosed_at=looker.explained.at or None,
    )  # fmt: skip
    return protocol.AgentAnswer(page=made)


def _gap(gap: Gap) -> GapItem:
    return GapItem(
        where=gap.where, doing=gap.doing, needs=gap.needs, netns=gap.netns or None, pid=gap.pid or None
    )


def _acts(limit: int) -> ActsDocument:
    """Return the last acts of the journal; where there is no journal, nothing was done."""
    from finwait.kernel.journal import SqliteJournal, state_directory
    from finwait.report.journal import act_line

    try:
        if not (state_directory() / "journal.sqlite").exists():
            return ActsDocument(items=[], error="")
        with SqliteJournal(read_only=True) as journal:
            entries = journal.entries(limit=limit)
            lines = [
                (entry, act_line(entry, cut=entry.result is None and not journal.is_running(entry)))
                for entry in entries
            ]
    except (FinwaitError, OSError) as error:
        return ActsDocument(items=[], error=str(error)[:500])
    items = [
        JournalItem(
            id=line.id, at=telling.when_text(entry.started_ns), user=line.user, kind=line.kind,
            whom=line.whom[:500], why=line.why[:500], result=line.result[:500], failed=line.failed,
        )
        for entry, line in lines
    ]  # fmt: skip
    return ActsDocument(items=items, error="")


# ── the history ──────────────────────────────────────────────────────────────────────────────────────────


def _of_history(looker: Looker, question: protocol.Question) -> protocol.AgentAnswer:
    path = looker.history
    if path is None:
        return protocol.AgentAnswer(error="there is no history: it could not be opened")
    with Store(path, read_only=True) as store:
        if isinstance(question, protocol.AskCounts):
            return _counts(store, question)
        if isinstance(question, protocol.AskAges):
            now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            hits = list(store.ages(looker.boot, question.cookies).values())
            return protocol.AgentAnswer(episodes=[telling.episode_json(e, now, looker.boot) for e in hits])
        assert isinstance(question, protocol.AskHistory), question
        return _episodes(looker, store, question)


def _episodes(looker: Looker, store: Store, question: protocol.AskHistory) -> protocol.AgentAnswer:
    now, boot = Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns()), looker.boot
    batches: Iterator[Sequence[Episode]] = iter(
        store.batches(question.since_ns, open_of=boot if question.open else "", size=500)
    )
    row_filter, gaps = _parsed(question.filter), list[Gap]()
    if row_filter is None:
        every = itertools.islice(itertools.chain.from_iterable(batches), question.limit + 1)
        hits, truncated = list(every), False
    else:
        read = _Read(batches)
        hits, gaps = telling.picked(
            row_filter, read, now.boot_ns, boot, seen_ns=-1, names=store.names(), most=question.limit + 1
        )
        gaps = [gap for gap in gaps if gap.netns]  # that there are more is said by a member of its own
        truncated = read.more
    chosen = hits[: question.limit]
    stories = store.stories((e.boot, e.cookie, e.state, e.first.boot_ns) for e in chosen)
    items = [telling.episode_json(e, now.boot_ns, boot, stories=stories) for e in chosen]
    return protocol.AgentAnswer(
        episodes=items,
        truncated=truncated or len(hits) > question.limit,
        gaps=GapsDocument(items=[_gap(gap) for gap in gaps], dropped=0),
    )


class _Read:
    """Gives batches until enough was read.

    Attributes:
        more: whether some were left out.
    """

    def __init__(self, batches: Iterable[Sequence[Episode]]) -> None:
        self._batches = batches
        self.more = False

    def __iter__(self) -> Iterator[Sequence[Episode]]:
        total = 0
        for batch in self._batches:
            if total >= _READ_MOST:
                self.more = True
                return
            total += len(batch)
            yield batch


def _counts(store: Store, question: protocol.AskCounts) -> protocol.AgentAnswer:
    now_s = int(time.time())
    table, step_s = table_and_step(question.since_s, now_s)
    numbers = None
    row_filter = _parsed(question.filter)
    if row_filter is not None:
        numbers = telling.series_of(row_filter, store.read(rollup_counts.series))
    since_s = max(question.since_s, now_s - 90 * 86400) // step_s * step_s
    rows, looked = store.read(
        lambda db: rollup_counts.counts(db, table, since_s, step_s, question.by, numbers)
    )
    return protocol.AgentAnswer(counts=curve(rows, looked, question.by, since_s, now_s, step_s))
