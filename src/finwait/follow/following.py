"""Following connections as they change state: where the tracing edge and the joining core meet.

Theory of operation. `Following.step` is one round: sleep until something happens, look at the sockets, take
the trace, join, hand out rows. The look comes *before* the trace is read, so that the trace says which
sockets lived through the look and which were already gone.

This module opens the trace and orders the rounds. What they are made of has modules of its own: `looks` at the
sockets, the `places` that they belong to, the `actors` that hold and move them, the `sieve` of the FILTER, and what is
`staying` in a closing state.

Without tracefs (not there, locked down, not permitted) the same rounds compare one look with the next.
`Following.mode` and `Following.cannot_see` say which of the two it is and what that misses.

It may run for days, so lives (`finwait.table.lives.Follower`), rows that wait, and what is remembered about
processes and namespaces have a limit; `Following.bounded` says what was cut off by it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

import numpy as np
from msgspec import Struct, field

from finwait.errors import FinwaitError, Gap, KernelError
from finwait.follow.actors import Actors, Who
from finwait.follow.bounds import LIST_S
from finwait.follow.looks import Looks
from finwait.follow.places import Places
from finwait.follow.sieve import Sieve
from finwait.follow.staying import Staying, Stuck
from finwait.kernel import netns
from finwait.kernel.destroy_events import DestroyEvents
from finwait.kernel.holders import Owner
from finwait.kernel.lookup import check
from finwait.kernel.tracefs import RingStatistics, Tracing
from finwait.table import transitions as tr
from finwait.table.filter import Filter
from finwait.table.lives import Follower
from finwait.table.trace_filter import kernel_filter
from finwait.uapi import tracepoint

__all__ = ["Following", "Round"]

STATE_EVENT: Final = "sock/inet_sock_set_state"
_DESTROY_EVENT: Final = "tcp/tcp_destroy_sock"
_RESET_EVENTS: Final = ("tcp/tcp_send_reset", "tcp/tcp_receive_reset")
_RETRANSMIT_EVENT: Final = "tcp/tcp_retransmit_skb"
_GATHER_S: Final = 0.05  # after the first record: let more come, so that a burst costs one round
_MOST_WAITING: Final = 400_000  # rows that wait for a look; more are handed out without
_LAST_S: Final = 5.0  # at the end the holders of waiting rows are looked for, no longer than this

_SEES_NOT_TRACING: Final = (
    "the end of a minisocket (TIME_WAIT, orphaned FIN_WAIT2): no tracepoint fires when it expires",
    "namespace and owner of a connection that began and ended between two looks at the sockets",
)
_SEES_NOT_WITHOUT_LOOKS: Final = (
    "namespaces, owners, and whether a closed socket continues as a minisocket, because nothing is looked up"
)
_SEES_NOT_POLLING: Final = (
    "states that began and ended between two looks",
    "the exact time of a change, which lies between two looks",
    "who changed it",
)


class Round(Struct, frozen=True):
    """What one round brought."""

    rows: tr.TransitionTable
    stacks: dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """(cpu, time_ns) of a row → kernel and user stack."""
    lost: int = 0
    """Records lost since the round before, as far as the kernel gave a number."""
    gaps: tuple[Gap, ...] = ()
    unjudged: int = 0
    """Rows left out since the round before because nothing could tell whether the FILTER wants them."""


def _events(*, lookup: bool, resets: bool, retransmits: bool) -> list[str]:
    """Return which tracepoints are needed for what was asked for."""
    events = [STATE_EVENT]
    if lookup:
        events += [_DESTROY_EVENT, *_RESET_EVENTS]
    elif resets:
        events += _RESET_EVENTS
    if retransmits:
        events.append(_RETRANSMIT_EVENT)
    return events


def _kinds(*, resets: bool, retransmits: bool) -> set[int]:
    """Return which kinds of rows are handed out."""
    kinds = {tr.TRANSITION, tr.POLLED}
    if resets:
        kinds |= {tr.RECEIVE_RESET, tr.SEND_RESET}
    if retransmits:
        kinds.add(tr.RETRANSMIT)
    return kinds


class Following:
    """Follows transitions; a context manager.

    Args:
        wanted: which connections; None for all.
        resets: also record resets sent and received.
        retransmits: also record retransmissions.
        stacks: also record who did it (kernel and user stack).
        tracing: False to poll although tracing would be possible.
        lookup: False not to look traced connections up: namespace, owner and minisockets stay unknown, and
            watching costs less.
        interval: seconds between looks when polling, and the longest that a row waits for its look.
        buffer_kb: ring buffer of each CPU in KiB.
        left_only: a FILTER looks at the state that is left, not at the one that is entered.
        rows: False to hand out no rows, for who wants `stuck` alone: its FILTER may ask for more than a row can tell.
        not_holders: processes that cannot be inspected and of which the caller knows that they hold nothing.

    What a change of state does not tell, a FILTER must not ask (`finwait.table.trace_filter.refusal`).
    """

    def __init__(
        self,
        row_filter: Filter | None = None,
        *,
        resets: bool = False,
        retransmits: bool = False,
        stacks: bool = False,
        tracing: bool = True,
        lookup: bool = True,
        interval: float = 0.25,
        buffer_kb: int | None = None,
        left_only: bool = False,
        rows: bool = True,
        not_holders: frozenset[int] = frozenset(),
    ) -> None:
        self._wanted = row_filter
        self._hand_rows = rows
        self._lookup = lookup
        self._events = _events(lookup=lookup, resets=resets, retransmits=retransmits)
        self._show = sorted(_kinds(resets=resets, retransmits=retransmits))
        self._want_stacks = stacks
        self._try_tracing = tracing
        self._buffer_kb = buffer_kb
        self._stack = ExitStack()
        self._tracing: Tracing | None = None
        self._held: dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._places = Places()
        self._actors = Actors(not_holders)
        self._looks = Looks(row_filter, self._places, interval=interval, left_out=not_holders)
        self._sieve = Sieve(row_filter, self._places, self._actors, left_only=left_only)
        self._staying = Staying(row_filter, self._looks, self._places, self._actors)
        self._lost_told = 0
        self._unjudged_told = 0
        self._rushed = 0
        self.follower = Follower()
        self.mode = "polling"
        self.why_polling = ""
        """Why it is not tracing; empty when it is, or when polling was asked for."""
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        """Start following; falls back to polling, and says so in `mode` and `why_polling`.

        Raises:
            KernelError: neither tracing nor looking at sockets is possible.
        """
        if self._try_tracing:
            self._open_trace()
        if self._tracing is not None:
            self._check_lookups()
            if self._lookup:
                self._open_destroys()
            self._note_missing(self._tracing)
            return self
        try:
            self._looks.look()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open_trace(self) -> None:
        filters = {STATE_EVENT: kernel_filter(self._wanted)}
        if filters[STATE_EVENT] != kernel_filter(None):
            # No field `protocol` there, and no need: these events are TCP's.
            filters[_RETRANSMIT_EVENT] = filters[STATE_EVENT].removeprefix(f"{kernel_filter(None)} && ")
        try:
            self._tracing = self._stack.enter_context(
                Tracing(self._events, filters=filters, buffer_kb=self._buffer_kb, stacks=self._want_stacks)
            )
            self.mode = "tracing"
        except FinwaitError as error:
            self.why_polling = f"{error}" + (f" ({error.hint})" if error.hint else "")

    def _note_missing(self, tracing: Tracing) -> None:
        """Note what this kernel cannot trace, and what was removed."""
        self.notes += [f"this kernel has no tracepoint `{event}`" for event in tracing.missing]
        if tracing.removed:
            self.notes.append(f"removed what a killed finwait left behind: {', '.join(tracing.removed)}")
        if self._want_stacks and not tracing.user_stacks:
            self.notes.append("this kernel cannot record user stacks in a private instance")

    def _check_lookups(self) -> None:
        """Do without looking up where the kernel answers no question about a socket, and say so."""
        if not self._lookup:
            return
        try:
            check()
        except KernelError as error:
            self._lookup = False
            self.notes.append(f"{error}: nothing is looked up" + (f"; {error.hint}" if error.hint else ""))

    def _open_destroys(self) -> None:
        try:
            destroys = self._stack.enter_context(DestroyEvents())
        except KernelError as error:
            self.notes.append(f"{error}; short connections may stay without a namespace")
            return
        self._looks.destroys = destroys
        try:
            destroys.learn(netns.discover()[0])
        except KernelError:
            return

    @property
    def looks(self) -> int:
        """How many looks there were."""
        return self._looks.count

    @property
    def last_look(self) -> tr.SocketDump | None:
        """The last look at all sockets."""
        return self._looks.last

    @property
    def unjudged(self) -> int:
        """Rows, or stuck connections, that were left out: nothing could tell whether the FILTER wants them."""
        return self._sieve.unjudged + self._staying.unjudged

    @property
    def looks_up(self) -> bool:
        """Whether every row that is handed out was looked up in the sockets that were there after it."""
        return self.mode != "tracing" or self._lookup

    @property
    def cannot_see(self) -> tuple[str, ...]:
        """What the mode misses, one sentence each."""
        if self.mode != "tracing":
            return _SEES_NOT_POLLING
        return _SEES_NOT_TRACING if self._lookup else (*_SEES_NOT_TRACING[:1], _SEES_NOT_WITHOUT_LOOKS)

    def statistics(self) -> RingStatistics | None:
        """Return the ring buffer's own account; None when polling."""
        return None if self._tracing is None else self._tracing.statistics()

    def step(self, timeout: float) -> Round:
        """Follow for one round of at most ``timeout`` seconds (and the time that a look takes).

        Raises:
            KernelError: the trace was taken away from us.
            DecodeError: the kernel sent what it does not.
        """
        return self._poll(timeout) if self._tracing is None else self._trace(self._tracing, timeout)

    def _poll(self, timeout: float) -> Round:
        pause = self._looks.pause
        if pause > timeout:
            time.sleep(max(timeout, 0))
            return Round(tr.TransitionTable.empty())
        if pause > 0:
            time.sleep(pause)
        before = self._looks.last
        look, gaps = self._looks.look()
        rows = tr.changes(before, look) if before is not None else tr.TransitionTable.empty()
        return self._round(rows, gaps)

    def _trace(self, tracing: Tracing, timeout: float) -> Round:
        if not self._lookup:
            if not tracing.wait(timeout):
                return Round(tr.TransitionTable.empty())
            time.sleep(min(_GATHER_S, max(timeout, 0)))
            return self._hand_out(tracing)
        if self.follower.waiting > _MOST_WAITING:
            self._rushed += self.follower.waiting
            return self._hand_out(tracing)
        if not self.follower.waiting:
            if tracing.wait(min(timeout, LIST_S) if len(self._sieve.back) else timeout):
                time.sleep(min(_GATHER_S, max(timeout, 0)))
                self._take(tracing)  # these rows wait for the look of the next round
            return self._round(tr.TransitionTable.empty())
        pause = self._looks.pause
        if pause > 0:  # too early for a look: only empty the ring buffer, so that nothing is lost
            time.sleep(min(pause, _GATHER_S, max(timeout, 0)))
            self._take(tracing)
            return self._round(tr.TransitionTable.empty())
        return self._join(tracing)

    def _join(self, tracing: Tracing) -> Round:
        """Look, then read the trace, then join: the trace says who lived through the look."""
        look, gaps = self._looks.look_for(self.follower.questions(), self._actors.holders.spaces)
        self._take(tracing)
        self.follower.look(look)
        if self._looks.destroys is not None:
            self.follower.destroyed(self._looks.destroys.drain())
        return self._round(self.follower.take(look.begun_ns), gaps)

    def _hand_out(self, tracing: Tracing) -> Round:
        """Without looking up, a row is known as well as it ever will be when it is in order."""
        self._take(tracing)
        return self._round(self.follower.take(time.clock_gettime_ns(time.CLOCK_MONOTONIC)))

    def _round(self, rows: tr.TransitionTable, gaps: tuple[Gap, ...] = (), *, last: bool = False) -> Round:
        """Let rows through the FILTER; return what came out of it, with all that was lost meanwhile."""
        chosen = tr.TransitionTable.empty()
        if self._hand_rows:
            rows = rows.select(np.isin(rows.kind, self._show)) if len(rows) else rows
            if self._lookup:
                self._actors.remember(rows)
            chosen = self._sieve.sift(rows, last=last)
        waiting = [
            self.follower.oldest_ns,
            int(self._sieve.back.time_ns[0]) if len(self._sieve.back) else None,
        ]
        oldest = min((t for t in waiting if t is not None), default=None)
        stacks = self._held
        if stacks:
            self._held = {} if oldest is None else {k: v for k, v in stacks.items() if k[1] >= oldest}
        unjudged, self._unjudged_told = self.unjudged - self._unjudged_told, self.unjudged
        return Round(chosen, stacks, self._newly_lost(), gaps, unjudged)

    @property
    def waiting(self) -> int:
        """How many rows were traced and not handed out yet."""
        return self.follower.waiting + len(self._sieve.back)

    @property
    def bounded(self) -> list[str]:
        """What was cut off because it grew too large, one sentence each."""
        sentences = []
        if self.follower.forgotten:
            sentences.append(
                f"{self.follower.forgotten} connections could not be remembered, because there were too "
                "many; the time in their previous state is not shown"
            )
        if self._rushed:
            sentences.append(
                f"{self._rushed} rows came too fast to look up; their namespace and owner are not shown"
            )
        return sentences

    def finish(self) -> Round:
        """Take what is left after the last round, looked up once more."""
        if self._tracing is None:
            return self._round(tr.TransitionTable.empty(), last=True)
        self._take(self._tracing)
        joined = self._join(self._tracing) if self._lookup else self._hand_out(self._tracing)
        rounds = [joined]
        until = time.monotonic() + _LAST_S
        while len(self._sieve.back) and time.monotonic() < until:
            self._actors.holders.search(self._sieve.back.inode.tolist(), LIST_S, hurry=True)
            rounds.append(self._round(tr.TransitionTable.empty()))
        rounds.append(self._round(tr.TransitionTable.empty(), last=True))
        return Round(
            tr.TransitionTable.concatenate([r.rows for r in rounds]),
            {k: v for r in rounds for k, v in r.stacks.items()},
            sum(r.lost for r in rounds),
            joined.gaps,
            sum(r.unjudged for r in rounds),
        )

    def _take(self, tracing: Tracing) -> None:
        drained = tracing.drain()
        records = tracepoint.walk(drained.buffer, drained.starts, drained.lengths, tracing.layout)
        order: tracepoint.ByteOrder = "little" if sys.byteorder == "little" else "big"
        table, cookies = tr.decode(records, drained.cpu, tracing.formats, byteorder=order)
        if self._lookup:
            # At once: a program that only connects and leaves is gone when its row is handed out.
            self._actors.meet(table)
        self.follower.feed(table, cookies, drained.horizon, missed=records.missed)
        if self._want_stacks:
            self._held |= tr.stacks(records, drained.cpu, tracing.formats, byteorder=order)

    def _newly_lost(self) -> int:
        new = self.follower.lost - self._lost_told
        self._lost_told = self.follower.lost
        return new

    def who(self, rows: tr.TransitionTable) -> Who:
        """Return who had to do with rows that are about to be told."""
        if not self._lookup:
            self._actors.meet(rows)
        return self._actors.who(rows, self._tracing.task_names if self._tracing is not None else lambda _: {})

    def owners(self, inodes: Iterable[int], likely: Iterable[int] = ()) -> dict[int, tuple[Owner, ...]]:
        """Return who holds sockets now, by inode (`Actors.owners`)."""
        return self._actors.owners(inodes, likely)

    @property
    def blind_gaps(self) -> tuple[Gap, ...]:
        """Processes that may hold sockets and cannot be inspected."""
        return self._actors.blind_gaps

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What the last look could not see, told before or not."""
        return self._looks.gaps

    def look_now(self) -> tuple[Gap, ...]:
        """Look at the sockets if it is time for it, although nothing was traced (ages go on).

        Returns:
            What could not be seen and was not told before.
        """
        if self._looks.pause > 0:
            return ()
        look, gaps = self._looks.look()
        if self._tracing is not None:
            self._take(self._tracing)
            self.follower.look(look)
        return gaps

    def stuck(
        self, longer_than_s: float, skip: set[tuple[int, int]] | None = None, *, last: bool = False
    ) -> list[Stuck]:
        """Return the sockets of the last look that are in a closing state for longer than this (`Staying.find`)."""
        look = self._looks.last
        if look is None:
            return []
        moved = self.follower.staying(look.ended_ns, 0)
        return self._staying.find(look, moved, longer_than_s, skip, last=last)

    def netns_names(self) -> dict[int, tuple[str, ...]]:
        """Return what people call the namespaces that were inspected."""
        return self._places.netns

    def cgroups(self, ids: Iterable[int]) -> dict[int, str]:
        """Return the paths of cgroups by id; what was found once stays known after the cgroup is gone."""
        return self._places.cgroups(ids)

    def reasons(self) -> dict[int, str]:
        """Return the kernel's words for why a reset is sent, from the event's own format file."""
        if self._tracing is None:
            return {}
        for event_format in self._tracing.formats.values():
            if "reason" in event_format.symbols:
                return event_format.symbols["reason"]
        return {}
