"""The machine watched, one picture at a time: what the live view shows, and whatever else watches.

Two things are looked at, each at its own pace. The numbers of the diagram come from a dump without attributes, and
where there are very many ESTABLISHED sockets without those, which are then counted by the kernel's own counter: a
sixth of a second with 216,000 sockets. The groups, connections and causes come from a whole diagnosis, which
lists descriptors and costs some times as much; it is renewed as often as a hundredth of one CPU allows. Both
paces are kept by what the last look cost (`Pace`): with the picture as a whole at most a tenth of one CPU. The second
diagnosis comes sooner, because what is new can be told only from two.

The numbers come first, before anything is traced or any descriptor listed. With a FILTER the diagnosis is narrowed as
`finwait diagnose FILTER` narrows it, with what is about no row. Where a FILTER asks for what no change of state tells,
such as a namespace, the rates are those of `finwait.table.comparing`: one count against the next, by cookie.

A picture is values; what is said about it is for those who show it. Only `Live` and `RecordedPictures` wait and read a
clock.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait import session
from finwait.diagnosis.hint import Asked
from finwait.errors import DecodeError, FinwaitError
from finwait.follow import Following, Round
from finwait.kernel import netns
from finwait.kernel.observe import RunningMachine
from finwait.pace import Pace
from finwait.recording.replay import Replay
from finwait.selecting import narrowed, users
from finwait.table import comparing, decode
from finwait.table.filter import Filter
from finwait.table.sockets import SocketTable
from finwait.table.trace_filter import (
    asks_for_namespaces,
    beyond_the_event,
    by_the_event,
    in_every_dump,
    may_be_in,
)
from finwait.table.transitions import TransitionTable
from finwait.uapi import tcp
from finwait.uapi.observation import LookPlan, Namespace, Observation
from finwait.uapi.proc import parse_snmp

__all__ = ["Circumstances", "Feed", "Live", "Passed", "Picture", "RecordedPictures", "left_by"]

Narrow = Callable[[Filter, session.Diagnosis], session.Diagnosis]
"""What a FILTER leaves of a diagnosis."""


def left_by(row_filter: Filter, diagnosis: session.Diagnosis) -> session.Diagnosis:
    """Return what a FILTER leaves of a diagnosis: what `finwait diagnose FILTER` shows, also if that is nothing.

    Raises:
        FilterError: the filter asks for something that is not known here.
    """
    return narrowed(diagnosis, row_filter, refuse=False)


COUNT_SHARE: Final = 0.075
DIAGNOSE_SHARE: Final = 0.01
"""Of one CPU, at most: for the numbers of the diagram, and for the diagnosis."""
SECOND_SHARE: Final = 0.1
"""… and for the diagnosis that is the second of its FILTER: without two of them nothing is known of what is new."""
ESTABLISHED_LIMIT: Final = 2_000
"""Above this many sockets in a namespace its ESTABLISHED ones are counted and not dumped."""
MINUTES_S: Final = 300.0
"""Of the past, that a view shows."""


class Circumstances(Struct, frozen=True):
    """How a picture was come by, and what it lacks."""

    lost: int = 0
    """Events that the trace lost so far: flows are too low."""
    unjudged: int = 0
    """Events so far of which the FILTER could not tell whether it wants them: flows are too low."""
    diagnosed_s_ago: float | None = None
    """Age of the diagnosis; None where it is hardly older than the numbers."""
    counted_s_ago: float | None = None
    """Age of the numbers of the diagram; None where they are hardly older than the picture."""
    late: bool = False
    """Whether nothing was counted since the picture before: the numbers are the same ones, and no new point."""
    look: int | None = None
    """Of a recording: which look is shown, from 1."""
    looks: int = 0
    """… of how many."""
    unix_ns: int = 0
    """… and when it was taken."""
    why_no_flows: str = ""
    """Said where no flows are known."""
    compared_s: float | None = None
    """Time between the two looks whose difference the flows are; None where they were traced. What came and went in
    between is not in them."""
    unplaced: float = 0.0
    """Connections a second that left a state between two looks by a way that is not known."""
    diagnosis_in_s: float | None = None
    """When the next diagnosis is due; None of a recording."""
    not_here: tuple[str, ...] = ()
    """What the FILTER names that is not here, as sentences, where it matches nothing for that reason."""
    taken_s: float = 0.0
    """When the look was begun, in seconds of a clock that never goes back."""
    span_s: float = MINUTES_S
    """How much of the past is worth showing: some minutes, or all of a shorter recording."""
    failed: str = ""
    """Why this look failed, and the numbers are those of the one before it; empty where it did not."""
    row_filter: Filter | None = None
    """What the picture is narrowed to."""


class Picture(Struct, frozen=True):
    """One moment."""

    counts: Mapping[int, int]
    """State → sockets that the FILTER wants, listeners included."""
    flows: Mapping[tuple[int, int], float] | None
    """(old, new) → a second, of what the FILTER wants; None when they are not known."""
    diagnosis: session.Diagnosis | None
    """The newest diagnosis, narrowed to what the FILTER wants; it may be older than the numbers. None before the first.
    """
    rows: NDArray[np.int64]
    """Its rows that the FILTER wants, no listeners; the same array as before where they are the same rows."""
    circumstances: Circumstances


_NONE: Final = np.empty(0, np.int64)


class Passed:
    """Changes of state, counted until somebody asks how many there were a second."""

    def __init__(self, now: float) -> None:
        self._number: Counter[tuple[int, int]] = Counter()
        self.since = now
        """Since when it counts."""

    def add(self, rows: TransitionTable) -> None:
        """Count changes of state."""
        if len(rows):
            pairs = rows.oldstate.astype(np.int64) << 8 | rows.newstate.astype(np.int64)
            for pair, number in zip(*(x.tolist() for x in np.unique(pairs, return_counts=True)), strict=True):
                self._number[pair >> 8, pair & 255] += number

    def rates(self, now: float) -> dict[tuple[int, int], float]:
        """Return (old, new) → a second, and begin anew."""
        span = max(now - self.since, 1e-3)
        rates = {edge: number / span for edge, number in self._number.items()}
        self._number, self.since = Counter(), now
        return rates


class Feed(Protocol):
    """What gives pictures. `next` is called from a thread; the rest from another."""

    @property
    def doing(self) -> str:
        """What `next` is at, as `listing descriptors`; empty while it only waits for the next look to be due."""

    def next(self) -> Picture | None:
        """Return the next picture, after waiting for it; None when there is nothing new."""

    def choose(self, row_filter: Filter | None) -> None:
        """Want other connections from the next picture on."""

    def renew(self) -> None:
        """Diagnose again now."""

    def turn(self, by: int) -> None:
        """Go to another look of a recording."""

    def list_established(self, listed: bool) -> None:
        """List ESTABLISHED connections too, where they are so many that they are only counted."""

    def end(self) -> None:
        """Let `next` return soon."""


class _Wanted(Struct, frozen=True):
    """What is wanted of a diagnosis."""

    of: session.Diagnosis
    row_filter: Filter | None
    diagnosis: session.Diagnosis
    """Narrowed."""
    sockets: NDArray[np.int64]
    """Its rows, with listeners."""
    rows: NDArray[np.int64]
    """… and without."""
    not_here: tuple[str, ...]
    """What a FILTER that matches nothing names that is not here; a later diagnosis may find it."""


def _wanted(diagnosis: session.Diagnosis, row_filter: Filter | None, narrow: Narrow) -> _Wanted:
    narrow_diagnosis = diagnosis if row_filter is None else narrow(row_filter, diagnosis)
    every = np.ones(len(narrow_diagnosis.view), np.bool_)
    mask = every if narrow_diagnosis.narrowed is None else narrow_diagnosis.narrowed.rows
    rows = np.flatnonzero(mask & (narrow_diagnosis.view.sockets.state != tcp.LISTEN))
    why: tuple[str, ...] = ()
    if row_filter is not None and not mask.any() and not narrow_diagnosis.findings:
        why = session.impossible(row_filter, diagnosis.snapshot, users(diagnosis.snapshot))
    return _Wanted(diagnosis, row_filter, narrow_diagnosis, np.flatnonzero(mask), rows, why)


class Live:
    """Pictures of the running machine; a context manager.

    Args:
        wanted: which connections; None for all.
        narrow: applies a FILTER to a diagnosis; as `left_by` does.
        refresh: seconds between two pictures, where the machine allows it.
    """

    def __init__(self, row_filter: Filter | None, narrow: Narrow = left_by, *, refresh: float) -> None:
        self._wanted = row_filter
        self._narrow = narrow
        self._refresh = refresh
        self._doing = ""
        self._machine = RunningMachine()
        self._following: Following | None = None
        self._traced: tuple[Filter | None] | None = None
        """The FILTER of the trace; None before there was any."""
        self._looked: tuple[float, Filter, comparing.Looked] | None = None
        """The count before, where rates come from comparing."""
        self._compared: tuple[dict[tuple[int, int], float], float, float] | None = None
        """(old, new) → a second, those that are not placed, and the time between the two looks."""
        self._passed = Passed(0.0)
        self._begun = False
        self._wake = threading.Event()
        self._counting = Pace(refresh, COUNT_SHARE)
        self._diagnosing = Pace(refresh, DIAGNOSE_SHARE)
        self._diagnosis: session.Diagnosis | None = None
        self._diagnosed_at = 0.0
        self._counted_at = 0.0
        """When the newest numbers of the diagram were counted."""
        self._diagnosis_cost = 0.0
        self._chosen: _Wanted | None = None
        self._ended = False
        self._every = False
        self._lost = 0
        self._trace_ended = ""
        self._last: Picture | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if self._following is not None:
            self._following.__exit__(kind, error, trace)
            self._following = None

    def _follow(self) -> None:
        """Trace what is wanted; polling, where that is not permitted, gives no flows.

        Nothing is looked up, which would cost more than the picture may. So flows are of a FILTER that the events
        themselves decide; of any other there are none (`_why_no_flows`).
        """
        if self._following is not None:
            self._following.__exit__(None, None, None)
        self._doing = "starting the trace"
        self._traced = (self._wanted,)
        self._following = None
        self._compared = None
        if by_the_event(self._traced[0]):
            self._following = Following(self._traced[0], lookup=False, interval=3600.0)
            self._following.__enter__()
        self._passed = Passed(time.monotonic())
        self._lost = 0
        self._trace_ended = ""

    def choose(self, row_filter: Filter | None) -> None:
        """Want other connections from the next picture on."""
        self._wanted = row_filter
        if self._diagnosis is not None:
            soon = self._diagnosed_at + max(self._refresh, self._diagnosis_cost / SECOND_SHARE)
            self._diagnosing.due = min(self._diagnosing.due, soon)
        self._counting.at_once()
        self._wake.set()

    @property
    def doing(self) -> str:
        """What `next` is at."""
        return self._doing

    def _say(self, doing: str) -> None:
        self._doing = doing

    def renew(self) -> None:
        """Diagnose again now."""
        self._diagnosing.at_once()
        self._counting.at_once()
        self._wake.set()

    def turn(self, by: int) -> None:
        """Do nothing: the present has one look."""

    def list_established(self, listed: bool) -> None:
        """List ESTABLISHED connections too, where they are so many that they are only counted."""
        self._every = listed
        self.renew()

    def end(self) -> None:
        """Let `next` return soon."""
        self._ended = True
        self._wake.set()

    def next(self) -> Picture | None:
        """Return the next picture; where the look fails, the one before it, which then says so.

        Raises:
            FinwaitError: the look failed, and none of this FILTER has succeeded.
        """
        self._wait()
        if self._ended:
            return None
        row_filter = self._wanted
        if self._begun and (self._traced is None or self._traced[0] is not row_filter):
            self._follow()
        begun = time.monotonic(), time.process_time()
        try:
            self._last = self._look(row_filter, begun)
        except FinwaitError as error:
            last = self._last
            if last is None or last.circumstances.row_filter is not row_filter:
                raise
            self._counting.done(begun[0], time.process_time() - begun[1])
            self._compared = None
            seen = replace(self._circumstances(begun[0], row_filter), failed=str(error), late=True)
            return replace(last, flows=self._flows(), circumstances=seen)
        finally:
            self._doing = ""
        return self._last

    def _look(self, row_filter: Filter | None, begun: tuple[float, float]) -> Picture:
        counts = self._counts(row_filter)
        cost = time.process_time() - begun[1]
        before = self._diagnosis
        # The first picture has no causes yet; but one without numbers would show zeros that nobody counted.
        if (self._begun or counts is None) and time.monotonic() >= self._diagnosing.due:
            self._diagnose()
        self._counting.done(begun[0], cost)
        if not self._begun:  # the first picture comes at once, the second with the causes
            self._counting.at_once()
            self._begun = True
        chosen = self._choose(row_filter)
        late = counts is None and self._diagnosis is before
        if counts is None:
            counts = _states_of(chosen.sockets, chosen.diagnosis) if chosen is not None else {}
            self._counted_at = self._diagnosed_at
        else:
            self._counted_at = begun[0]
        seen = replace(self._circumstances(begun[0], row_filter), late=late)
        if chosen is None:
            return Picture(counts, self._flows(), None, _NONE, seen)
        return Picture(
            counts, self._flows(), chosen.diagnosis, chosen.rows, replace(seen, not_here=chosen.not_here)
        )

    def _choose(self, row_filter: Filter | None) -> _Wanted | None:
        """Return what is wanted of the diagnosis; the same as before where nothing changed."""
        newest, known = self._diagnosis, self._chosen
        if newest is None or (known is not None and known.of is newest and known.row_filter is row_filter):
            return known
        begun = time.process_time()
        if row_filter is not None:
            self._say("applying the FILTER to the diagnosis")
        self._chosen = _wanted(newest, row_filter, self._narrow)
        self._diagnosing.due += (time.process_time() - begun) / DIAGNOSE_SHARE
        return self._chosen

    def _wait(self) -> None:
        following = self._following
        while not self._ended and (remaining := self._counting.due - time.monotonic()) > 0:
            if following is not None and following.mode == "tracing" and not self._wake.is_set():
                try:
                    self._count(following.step(min(remaining, 0.25)))
                except (FinwaitError, DecodeError) as error:  # somebody removed the instance
                    following.__exit__(None, None, None)
                    following = self._following = None
                    self._trace_ended = f"the trace was removed: {error}"
            elif self._wake.wait(remaining):
                break
            if self._wake.is_set():
                break
        self._wake.clear()

    def _counts(self, row_filter: Filter | None) -> dict[int, int] | None:
        """Return state → sockets; None where only a diagnosis knows what the FILTER asks for."""
        if row_filter is not None and not in_every_dump(row_filter):
            return None
        self._say("counting connections by state")
        spaces = None if row_filter is None else self._spaces(row_filter)
        if self._diagnosis is None and spaces is not None and not spaces:
            return None  # only a list of descriptors leads to some namespaces
        plan = LookPlan(
            states=tcp.ALL_STATES,
            only=spaces,
            extensions=0,
            bytecode=b"" if row_filter is None else row_filter.bytecode(),
            mptcp=False,
            conntrack=False,
            files=False,
            descriptors=False,
            established_limit=ESTABLISHED_LIMIT if row_filter is None else None,
        )
        observation = self._machine.observe(plan)
        self._refuse_partial(observation)
        sockets = decode.sockets(observation)
        if row_filter is not None:
            names = {space.inode: (*space.names, str(space.inode)) for space in observation.namespaces}
            context = (
                {"netns": [names[inode] for inode in sockets.netns.tolist()]} if row_filter.needs else None
            )
            mask = row_filter.mask(sockets, context)
            self._compare(row_filter, sockets, mask)
            sockets = sockets.select(mask)
        totals = np.bincount(sockets.state, minlength=16)
        for space in observation.namespaces:
            if space.established_skipped:
                totals[tcp.ESTABLISHED] += _not_dumped(space, sockets)
        return {s: int(n) for s, n in enumerate(totals.tolist()) if n}

    def _compare(self, row_filter: Filter, sockets: SocketTable, mask: NDArray[np.bool_]) -> None:
        """Compare a count with the one before it, where no trace tells what the FILTER asks for."""
        if by_the_event(row_filter):
            return
        before, now = self._looked, time.monotonic()
        self._looked = now, row_filter, comparing.looked(sockets, mask)
        self._compared = None
        if before is not None and before[1] is row_filter:
            difference, span = comparing.changes(before[2], self._looked[2]), max(now - before[0], 1e-3)
            rates = {edge: number / span for edge, number in difference.passed.items()}
            self._compared = rates, difference.unplaced / span, span

    def _refuse_partial(self, observation: Observation) -> None:
        """Let a count fail that lacks a namespace which the diagnosis could read: too few is no count.

        Raises:
            FinwaitError: a dump failed.
        """
        known = {gap.netns for gap in self._diagnosis.gaps} if self._diagnosis is not None else set[int]()
        for gap in observation.gaps if self._diagnosis is not None else ():
            if gap.netns and not gap.unentered and gap.netns not in known:
                raise FinwaitError(str(gap))

    def _spaces(self, row_filter: Filter) -> frozenset[int] | None:
        """Return the namespaces in which the FILTER may select something; None where it does not ask for any."""
        if not asks_for_namespaces(row_filter):
            return None
        spaces, _ = netns.discover(*self._machine.ways)
        names = {space.inode: (*space.names, str(space.inode)) for space in spaces}
        return frozenset(inode for inode in names if may_be_in(row_filter, inode, names[inode]))

    def _diagnose(self) -> None:
        begun = time.monotonic(), time.process_time()
        plan = LookPlan(established_limit=None) if self._every else LookPlan()
        share = SECOND_SHARE if self._diagnosis is None else DIAGNOSE_SHARE
        try:
            self._diagnosis = session.diagnose(self._machine, how=session.Look(plan=plan, progress=self._say))
            self._diagnosed_at = time.monotonic()
        finally:  # what fails costs, too
            self._diagnosis_cost = time.process_time() - begun[1]
            self._diagnosing.done(begun[0], self._diagnosis_cost * DIAGNOSE_SHARE / share)

    def _flows(self) -> dict[tuple[int, int], float] | None:
        following = self._following
        if following is None and self._compared is not None:
            return self._compared[0]
        if following is None or following.mode != "tracing":
            return None
        return self._passed.rates(time.monotonic())

    def _count(self, changes: Round) -> None:
        """Count the changes of state that the FILTER wants."""
        self._lost += changes.lost
        self._passed.add(changes.rows)

    def _circumstances(self, taken_s: float, row_filter: Filter | None) -> Circumstances:
        following = self._following
        now = time.monotonic()
        old, counted = now - self._diagnosed_at, now - self._counted_at
        return Circumstances(
            lost=self._lost,
            unjudged=following.unjudged if following is not None else 0,
            diagnosed_s_ago=old if self._diagnosis is not None and old >= 2 * self._refresh else None,
            counted_s_ago=counted if self._counted_at and counted >= 2 * self._refresh else None,
            why_no_flows=self._why_no_flows(),
            compared_s=self._compared[2] if self._compared is not None else None,
            unplaced=self._compared[1] if self._compared is not None else 0.0,
            diagnosis_in_s=max(self._diagnosing.due - now, 0.0),
            taken_s=taken_s,
            row_filter=row_filter,
        )

    def _why_no_flows(self) -> str:
        following = self._following
        if self._traced is None:
            return "the trace is not started yet"
        if following is None and not self._trace_ended:
            row_filter = self._traced[0]
            if self._compared is not None:
                return ""
            if self._looked is not None:
                return "rates come with the second count"
            names = beyond_the_event(row_filter) if row_filter is not None else ()
            return f"no rates: a change of state does not include {', '.join(names)}"
        if following is None:
            return self._trace_ended
        return "" if following.mode == "tracing" else f"not tracing: {following.why_polling}"


def _states_of(rows: NDArray[np.int64], diagnosis: session.Diagnosis | None) -> dict[int, int]:
    """Return state → rows of a diagnosis."""
    state = diagnosis.view.sockets.state[rows] if diagnosis is not None else np.empty(0, np.uint8)
    return {s: int(n) for s, n in enumerate(np.bincount(state, minlength=16).tolist()) if n}


def _not_dumped(space: Namespace, sockets: SocketTable) -> int:
    """Return how many ESTABLISHED connections of a namespace were left out, by the kernel's own count.

    CurrEstab is ESTABLISHED and CLOSE_WAIT together (tcp_set_state, net/ipv4/tcp.c), and the latter were dumped.
    """
    data = space.files.get("net/snmp")
    if data is None:
        return 0
    try:
        both = parse_snmp(data).get("Tcp.CurrEstab", 0)
    except DecodeError:
        return 0
    waiting = (sockets.netns == space.inode) & (sockets.state == tcp.CLOSE_WAIT)
    return max(both - int(waiting.sum()), 0)


class RecordedPictures:
    """The looks of a recording as pictures, at the pace of the refresh; the last one stays.

    Args:
        recording: an open recording.
        wanted: which connections; None for all.
        narrow: applies a FILTER to a diagnosis; as `left_by` does.
        refresh: seconds between two looks.
        path: where the recording is, for the commands that findings suggest.
    """

    def __init__(
        self,
        recording: Replay,
        row_filter: Filter | None,
        narrow: Narrow = left_by,
        *,
        refresh: float,
        path: str = "",
    ) -> None:
        self._asked = Asked(options=("--from", path) if path else (), recorded=True)
        self._looks = recording.looks
        self._wanted = row_filter
        self._narrow = narrow
        self._refresh = refresh
        self._at = -1
        self._turn: int | None = None
        self._stay = False
        self._again = False
        self._ended = False
        self._wake = threading.Event()
        self._diagnosis: session.Diagnosis | None = None
        self._doing = ""

    @property
    def doing(self) -> str:
        """What `next` is at."""
        return self._doing

    def choose(self, row_filter: Filter | None) -> None:
        """Want other connections from the next picture on."""
        self._wanted = row_filter
        self.renew()

    def list_established(self, listed: bool) -> None:
        """Do nothing: a recording lists what was recorded."""

    def renew(self) -> None:
        """Show the same look again."""
        self._again = True
        self._wake.set()

    def turn(self, by: int) -> None:
        """Go to another look, and stay there."""
        self._turn = by
        self._stay = True
        self._wake.set()

    def end(self) -> None:
        """Let `next` return soon."""
        self._ended = True
        self._wake.set()

    def next(self) -> Picture | None:
        """Return the next picture; None when the last look is being shown already."""
        if self._at >= 0:
            stays = self._stay or self._at == len(self._looks) - 1
            self._wake.wait(None if stays else self._refresh)
        if self._ended:
            return None
        self._wake.clear()
        by = self._turn if self._turn is not None else 0 if self._again else 1
        self._turn, self._again = None, False
        at = max(0, min(self._at + by, len(self._looks) - 1))
        if at != self._at or self._diagnosis is None:
            self._at = at
            looks = Replay(self._looks[max(at - 1, 0) : at + 1])
            self._doing = f"diagnosing look {at + 1} of the recording"
            self._diagnosis = session.diagnose(looks, how=_BOTH, asked=self._asked)
        chosen = _wanted(self._diagnosis, self._wanted, self._narrow)
        self._doing = ""
        seen = replace(self._circumstances(self._looks[at], chosen.row_filter), not_here=chosen.not_here)
        counts = _states_of(chosen.sockets, chosen.diagnosis)
        return Picture(counts, None, chosen.diagnosis, chosen.rows, seen)

    def _circumstances(self, look: Observation, row_filter: Filter | None) -> Circumstances:
        length_s = (self._looks[-1].facts.boottime_ns - self._looks[0].facts.boottime_ns) / 1e9
        return Circumstances(
            look=self._at + 1,
            looks=len(self._looks),
            unix_ns=look.facts.unix_ns,
            why_no_flows=_NO_FLOWS,
            taken_s=look.facts.boottime_ns / 1e9,
            span_s=min(max(length_s, _LEAST_SPAN_S), MINUTES_S),
            row_filter=row_filter,
        )


_LEAST_SPAN_S: Final = 10.0
_NO_FLOWS: Final = "a recording contains looks, not what happened between them"
_BOTH: Final = replace(session.Look(), watch_ms=1)
"""Of a recording: compare a look with the one before it."""
