"""What the flight recorder saw is kept with episodes: what led to one when it opens, what ended it when it ends.

The ring forgets; the history keeps. So a story is looked for once when an episode opens, and once more when it ends,
and both are put together: an agent that was started anew meanwhile has only seen the end. An end that the records
prove replaces *vanished* (and *unknown*, of what ended while no agent looked), and a reset also *owner-gone*: a program
that ends by what its peer did was not what ended the connection.

The records name no namespace, and at any time a connection with the same addresses and ports may be in another one. So
a story is found by the time that the episode's clocks give, and where a second connection fits, there is none.

What cannot be written yet waits, as many as fit. Without a recorder all of this does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.agent.episode_rows import signed
from finwait.agent.episodes import Book, Episode, Instant, place_of
from finwait.agent.history_file import StoreError
from finwait.agent.protocol import RecorderStatus, StoryOf, ToldStory
from finwait.agent.recorder import Found, StoryQuery, verdict
from finwait.agent.stories import RecordedStep, cell_of, merged, step_items
from finwait.errors import Gap
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.agent.history_rows import HistoryRows
    from finwait.agent.store import Store

__all__ = ["StoryKeeper", "StorySource"]

_PENDING_MOST: Final = 5000
_UNPROVEN: Final = frozenset({"vanished", "unknown"})
_NOT_BY_RESET: Final = _UNPROVEN | {"owner-gone"}
_PUT: Final = (
    "INSERT INTO stories (id, steps) SELECT id, ? FROM episodes"
    " WHERE boot = ? AND cookie = ? AND state = ? AND first_boot = ?"
    " ON CONFLICT (id) DO UPDATE SET steps = excluded.steps"
)

_Key = tuple[str, int, int, int]
"""Boot, cookie, state and first sight: an episode."""


class StorySource(Protocol):
    """What records."""

    @property
    def resets(self) -> bool:
        """Whether resets are recorded, so that a missing one says something."""

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What it could not record."""

    def catch_up(self) -> None:
        """Take in what has happened up to now."""

    def known(self, ports: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return for which pairs of ports (ours in the high half) there is anything."""

    def find(self, queries: Sequence[StoryQuery]) -> list[Found]:
        """Return what there is of connections."""

    def steps(self, story: Found) -> tuple[RecordedStep, ...]:
        """Return it as steps."""

    def status(self, stories: int, ambiguous: int) -> RecorderStatus:
        """Return how it is."""


class StoryKeeper:
    """Keeps stories with episodes.

    Args:
        source: what records; None for nothing.
    """

    def __init__(self, source: StorySource | None = None) -> None:
        self._source = source
        self._pending: dict[_Key, tuple[RecordedStep, ...]] = {}
        self._unclear: dict[_Key, None] = {}
        """Episodes for which more than one socket fitted."""
        self._kept = 0
        self._ambiguous = 0

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What could not be recorded."""
        return self._source.gaps if self._source is not None else ()

    def status(self) -> RecorderStatus | None:
        """Return how the recorder is; None where there is none."""
        return self._source.status(self._kept, self._ambiguous) if self._source is not None else None

    def judged(self, ended: list[Episode], book: Book) -> list[Episode]:
        """Return episodes that ended, with how they did where the records prove it; their stories wait to be written.

        Args:
            ended: which.
            book: what is open.
        """
        source = self._source
        places = [
            k
            for k, e in enumerate(ended)
            if e.boot == book.boot and e.ended is not None and e.ended != e.last
        ]
        if source is None or not places:
            return ended
        source.catch_up()
        ports = np.array([ended[k].words[4] << 16 | ended[k].words[5] for k in places], np.uint32)
        places = [k for k, known in zip(places, source.known(ports).tolist(), strict=True) if known]
        spaces = book.spaces_of([ended[k].place for k in places])
        for k in places:
            spaces.setdefault(ended[k].place, set()).add(ended[k].netns)
        places = [k for k in places if len(spaces[ended[k].place]) == 1]
        result = list(ended)
        for k, story in zip(places, source.find([_query_of(ended[k]) for k in places]), strict=True):
            e = ended[k]
            if steps := source.steps(story):
                self._wait((e.boot, e.cookie, e.state, e.first.boot_ns), steps)
            how = verdict(story.rows, e.state, held=e.held, seen_ns=e.last.boot_ns, resets=source.resets)
            if how is not None and e.how in (_UNPROVEN if how == "closed" else _NOT_BY_RESET):
                result[k] = replace(e, how=how)
        return result

    def keep(self, book: Book, store: Store | None) -> None:
        """Look for the stories of what has opened, and write down what waits."""
        source = self._source
        if source is None:
            return
        rows = book.unstoried()
        if len(rows):
            source.catch_up()
            rows = rows[source.known(rows["sport"].astype(np.uint32) << np.uint32(16) | rows["dport"])]
        if len(rows):
            self._open(book, rows, source)
        if self._pending and store is not None and not store.failing:
            self._write(store)

    def _open(self, book: Book, rows: NDArray[Any], source: StorySource) -> None:
        spaces = book.spaces_of([place_of(row) for row in rows])
        for row, story in zip(rows, source.find([_query(r) for r in rows]), strict=True):
            key = book.boot, int(row["cookie"]), int(row["state"]), int(row["first_boot"])
            if len(spaces[place_of(row)]) > 1 or story.ambiguous:
                self._ambiguous += 1
                self._unclear[key] = None
                if len(self._unclear) > _PENDING_MOST:
                    del self._unclear[next(iter(self._unclear))]
            elif steps := source.steps(story):
                self._kept += 1
                self._wait(key, steps)

    def _wait(self, key: _Key, steps: tuple[RecordedStep, ...]) -> None:
        self._pending[key] = merged(self._pending.pop(key, ()), steps)
        while len(self._pending) > _PENDING_MOST:
            del self._pending[next(iter(self._pending))]

    def _write(self, store: Store) -> None:
        try:
            before = store.stories(self._pending)
        except (
            StoreError
        ):  # it is written later, or the next look at the file finds out what is wrong with it
            return
        rows = [
            (cell_of(merged(before.get(key, ()), steps)), key[0], signed(key[1]), key[2], key[3])
            for key, steps in self._pending.items()
        ]
        if store.put(_PUT, rows):
            self._pending.clear()

    def told(
        self, asked: Iterable[StoryOf], history: HistoryRows | None, boot: str, now: Instant
    ) -> list[ToldStory]:
        """Return the stories of connections: those that are kept with their episodes, or wait to be.

        Args:
            asked: which.
            history: where stories are kept; None for nowhere.
            boot: id of this boot.
            now: the time.
        """
        connections = list(asked)
        cookies = [c.cookie for c in connections]
        kept = {} if history is None else history.stories_by_cookie(boot, cookies)
        waiting = {key[1:3]: steps for key, steps in list(self._pending.items()) if key[0] == boot}
        unclear = {key[1:3] for key in list(self._unclear) if key[0] == boot}
        result = []
        for c in connections:
            key = c.cookie, c.state
            steps = merged(kept.get(key, ()), waiting.get(key, ()))
            result.append(
                ToldStory(
                    netns=c.netns,
                    cookie=f"{c.cookie:#x}",
                    state=tcp.state_name(c.state),
                    steps=step_items(steps, now, now.boot_ns),
                    ambiguous=not steps and key in unclear,
                )
            )
        return result


def _query(row: Any) -> StoryQuery:  # noqa: ANN401 - a row of the book
    w = (*row["src"].tolist(), *row["dst"].tolist(), int(row["sport"]), int(row["dport"]))
    return StoryQuery(
        words=w,
        netns=int(row["netns"]),
        state=int(row["state"]),
        earliest_ns=int(row["earliest"]),
        latest_ns=int(row["latest"]),
        seen_ns=int(row["last_boot"]),
    )


def _query_of(e: Episode) -> StoryQuery:
    assert e.ended is not None
    return StoryQuery(
        words=e.words[:6],
        netns=e.netns,
        state=e.state,
        earliest_ns=e.earliest_ns,
        latest_ns=e.latest_ns,
        seen_ns=e.last.boot_ns,
        ended_ns=e.ended.boot_ns,
    )
