"""The machine watched, one picture at a time: what the live view shows, and whatever else watches.

Two things are looked at, each at its own pace. The numbers of the diagram come from a dump without attributes, and
where there are very many ESTABLISHED sockets without those, which are then counted by the kernel's own counter: a
sixth of a second with 216,000 sockets. The groups, connections and causes come from a whole diagnosis, which
lists descriptors and costs some times as much; it is renewed as often as a hundredth of one CPU allows. Both
paces are kept by what the last look cost (`Pace`): with the picture as a whole at most a tenth of one CPU.

A picture is values; what is said about it is for those who show it. Only `Live` and `Recorded` wait and read a clock.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from finwait import session
from finwait.diagnosis.hint import Asked
from finwait.errors import DecodeError, FinwaitError
from finwait.follow import Following, Round
from finwait.kernel.observe import Machine
from finwait.recording.replay import Replay
from finwait.selecting import mask_of, users
from finwait.table import decode
from finwait.table.filter import Filter
from finwait.table.sockets import SocketTable
from finwait.table.trace_filter import beyond_the_event, by_the_event, only_ports_and_hosts
from finwait.table.transitions import TransitionTable
from finwait.uapi import tcp
from finwait.uapi.observation import Namespace, Observation, Plan
from finwait.uapi.proc import parse_snmp

__all__ = ["Circumstances", "Feed", "Live", "Pace", "Passed", "Picture", "Recorded", "chosen"]

Choose = Callable[[Filter, session.Diagnosis], NDArray[np.bool_]]
"""Which rows of a diagnosis a FILTER selects."""


def chosen(wanted: Filter, diagnosis: session.Diagnosis) -> NDArray[np.bool_]:
    """Return which rows of a diagnosis a FILTER selects.

    Raises:
        FilterError: the filter asks for something that is not known here.
    """
    return mask_of(wanted, diagnosis.snapshot, diagnosis.findings)


COUNT_SHARE: Final = 0.075
DIAGNOSE_SHARE: Final = 0.01
"""Of one CPU, at most: for the numbers of the diagram, and for the diagnosis."""
ESTABLISHED_LIMIT: Final = 2_000
"""Above this many sockets in a namespace its ESTABLISHED ones are counted and not dumped."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How a picture was come by, and what it lacks."""

    lost: int = 0
    """Events that the trace lost so far: flows are too low."""
    unjudged: int = 0
    """Events so far of which the FILTER could not tell whether it wants them: flows are too low."""
    diagnosed_s_ago: float | None = None
    """Age of the diagnosis; None where it is hardly older than the numbers."""
    look: int | None = None
    """Of a recording: which look is shown, from 1."""
    looks: int = 0
    """… of how many."""
    unix_ns: int = 0
    """… and when it was taken."""
    why_no_flows: str = ""
    """Said where no flows are known."""
    not_here: tuple[str, ...] = ()
    """What the FILTER names that is not here, as sentences, where it matches nothing for that reason."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One moment."""

    counts: Mapping[int, int]
    """State → sockets that the FILTER wants, listeners included."""
    flows: Mapping[tuple[int, int], float] | None
    """(old, new) → a second, of what the FILTER wants; None when they are not known."""
    diagnosis: session.Diagnosis | None
    """The newest diagnosis, which may be older than the numbers; None before the first."""
    rows: NDArray[np.int64]
    """Its rows that the FILTER wants, no listeners; the same array as before where they are the same rows."""
    circumstances: Circumstances


_NONE: Final = np.empty(0, np.int64)


@dataclass(slots=True)
class Pace:
    """When something is due that may take no more than a share of one CPU."""

    refresh: float
    """Seconds between two times, at least."""
    share: float
    due: float = 0.0

    def done(self, begun: float, cost: float) -> None:
        """Say when it was begun, and how many seconds of a CPU it cost."""
        self.due = begun + max(self.refresh, cost / self.share)

    def at_once(self) -> None:
        """Let it be due now."""
        self.due = 0.0


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

    def next(self) -> Picture | None:
        """Return the next picture, after waiting for it; None when there is nothing new."""

    def choose(self, wanted: Filter | None) -> None:
        """Want other connections from the next picture on."""

    def renew(self) -> None:
        """Diagnose again now."""

    def turn(self, by: int) -> None:
        """Go to another look of a recording."""

    def list_established(self, wanted: bool) -> None:
        """List ESTABLISHED connections too, where they are so many that they are only counted."""

    def end(self) -> None:
        """Let `next` return soon."""


def _connections(diagnosis: session.Diagnosis, wanted: Filter | None, choose: Choose) -> NDArray[np.int64]:
    mask = diagnosis.view.sockets.state != tcp.LISTEN
    if wanted is not None:
        mask = mask & choose(wanted, diagnosis)
    return np.flatnonzero(mask)


def _not_here(
    diagnosis: session.Diagnosis, wanted: Filter | None, rows: NDArray[np.int64]
) -> tuple[str, ...]:
    """Return what a FILTER without connections names that is not here; a later diagnosis may find it."""
    if wanted is None or len(rows):
        return ()
    shot = diagnosis.snapshot
    return session.impossible(wanted, shot, users(shot))


class Live:
    """Pictures of the running machine; a context manager.

    Args:
        wanted: which connections; None for all.
        choose: applies a FILTER to a diagnosis; as `chosen` does.
        refresh: seconds between two pictures, where the machine allows it.
    """

    def __init__(self, wanted: Filter | None, choose: Choose = chosen, *, refresh: float) -> None:
        self._wanted = wanted
        self._choose = choose
        self._refresh = refresh
        self._machine = Machine()
        self._following: Following | None = None
        self._traced: Filter | None = None
        self._passed = Passed(0.0)
        self._begun = False
        self._wake = threading.Event()
        self._counting = Pace(refresh, COUNT_SHARE)
        self._diagnosing = Pace(refresh, DIAGNOSE_SHARE)
        self._diagnosis: session.Diagnosis | None = None
        self._diagnosed_at = 0.0
        self._rows: tuple[session.Diagnosis | None, Filter | None, NDArray[np.int64]] = (None, None, _NONE)
        self._not_here: tuple[str, ...] = ()
        self._ended = False
        self._every = False
        self._lost = 0
        self._trace_ended = ""

    def __enter__(self) -> Self:
        """Begin to follow.

        Raises:
            KernelError: the sockets cannot be looked at.
        """
        self._follow()
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
        self._traced = self._wanted
        self._following = None
        if by_the_event(self._wanted):
            self._following = Following(self._wanted, lookup=False, interval=3600.0)
            self._following.__enter__()
        self._passed = Passed(time.monotonic())
        self._lost = 0
        self._trace_ended = ""

    def choose(self, wanted: Filter | None) -> None:
        """Want other connections from the next picture on."""
        self._wanted = wanted
        self._counting.at_once()
        self._wake.set()

    def renew(self) -> None:
        """Diagnose again now."""
        self._diagnosing.at_once()
        self._counting.at_once()
        self._wake.set()

    def turn(self, by: int) -> None:
        """Do nothing: the present has one look."""

    def list_established(self, wanted: bool) -> None:
        """List ESTABLISHED connections too, where they are so many that they are only counted."""
        self._every = wanted
        self.renew()

    def end(self) -> None:
        """Let `next` return soon."""
        self._ended = True
        self._wake.set()

    def next(self) -> Picture | None:
        """Return the next picture."""
        self._wait()
        if self._ended:
            return None
        if self._traced is not self._wanted:
            self._follow()
        wanted = self._wanted
        begun = time.monotonic(), time.process_time()
        counts = self._counts(wanted)
        cost = time.process_time() - begun[1]
        if self._begun and time.monotonic() >= self._diagnosing.due:
            self._diagnose()
        self._counting.done(begun[0], cost)
        if not self._begun:  # the first picture comes at once, the second with the causes
            self._counting.at_once()
            self._begun = True
        rows = self._chosen_rows(wanted)
        if counts is None:
            counts = _states_of(rows, self._diagnosis)
        return Picture(counts, self._flows(), self._diagnosis, rows, self._circumstances())

    def _chosen_rows(self, wanted: Filter | None) -> NDArray[np.int64]:
        """Return the rows of the diagnosis that are wanted; the same array as before where nothing changed."""
        newest = self._diagnosis
        if newest is not None and (newest is not self._rows[0] or wanted is not self._rows[1]):
            self._rows = newest, wanted, _connections(newest, wanted, self._choose)
            self._not_here = _not_here(newest, wanted, self._rows[2])
        return self._rows[2]

    def _wait(self) -> None:
        following = self._following
        while not self._ended and (left := self._counting.due - time.monotonic()) > 0:
            if following is not None and following.mode == "tracing" and not self._wake.is_set():
                try:
                    self._count(following.step(min(left, 0.25)))
                except (FinwaitError, DecodeError) as error:  # somebody removed the instance
                    following.__exit__(None, None, None)
                    following = self._following = None
                    self._trace_ended = f"the trace was removed: {error}"
            elif self._wake.wait(left):
                break
            if self._wake.is_set():
                break
        self._wake.clear()

    def _counts(self, wanted: Filter | None) -> dict[int, int] | None:
        """Return state → sockets; None where only a diagnosis knows what the FILTER asks for."""
        kernel = wanted is None or only_ports_and_hosts(wanted.root)
        if not kernel:
            return None
        plan = Plan(
            states=tcp.ALL_STATES,
            extensions=0,
            bytecode=b"" if wanted is None else wanted.bytecode(),
            mptcp=False,
            conntrack=False,
            files=False,
            descriptors=False,
            established_limit=ESTABLISHED_LIMIT if wanted is None else None,
        )
        observation = self._machine.observe(plan)
        sockets = decode.sockets(observation)
        if wanted is not None:
            sockets = sockets.select(wanted.mask(sockets, None))
        totals = np.bincount(sockets.state, minlength=16)
        for space in observation.namespaces:
            if space.established_skipped:
                totals[tcp.ESTABLISHED] += _not_dumped(space, sockets)
        return {s: int(n) for s, n in enumerate(totals.tolist()) if n}

    def _diagnose(self) -> None:
        begun = time.monotonic(), time.process_time()
        how = session.Look(plan=Plan(established_limit=None)) if self._every else None
        self._diagnosis = session.diagnose(self._machine, how=how)
        cost = time.process_time() - begun[1]
        self._diagnosed_at = time.monotonic()
        self._diagnosing.done(begun[0], cost)

    def _flows(self) -> dict[tuple[int, int], float] | None:
        following = self._following
        if following is None or following.mode != "tracing":
            return None
        return self._passed.rates(time.monotonic())

    def _count(self, told: Round) -> None:
        """Count the changes of state that the FILTER wants."""
        self._lost += told.lost
        self._passed.add(told.rows)

    def _circumstances(self) -> Circumstances:
        following = self._following
        old = time.monotonic() - self._diagnosed_at
        return Circumstances(
            lost=self._lost,
            unjudged=following.unjudged if following is not None else 0,
            diagnosed_s_ago=old if self._diagnosis is not None and old >= 2 * self._refresh else None,
            why_no_flows=self._why_no_flows(),
            not_here=self._not_here,
        )

    def _why_no_flows(self) -> str:
        following = self._following
        if following is None:
            names = beyond_the_event(self._traced) if self._traced is not None else ()
            return self._trace_ended or f"no rates: a change of state does not include {', '.join(names)}"
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


class Recorded:
    """The looks of a recording as pictures, at the pace of the refresh; the last one stays.

    Args:
        recording: an open recording.
        wanted: which connections; None for all.
        choose: applies a FILTER to a diagnosis; as `chosen` does.
        refresh: seconds between two looks.
        path: where the recording is, for the commands that findings suggest.
    """

    def __init__(
        self,
        recording: Replay,
        wanted: Filter | None,
        choose: Choose = chosen,
        *,
        refresh: float,
        path: str = "",
    ) -> None:
        self._asked = Asked(options=("--from", path) if path else (), recorded=True)
        self._looks = recording.looks
        self._wanted = wanted
        self._choose = choose
        self._refresh = refresh
        self._at = -1
        self._turn: int | None = None
        self._stay = False
        self._again = False
        self._ended = False
        self._wake = threading.Event()
        self._diagnosis: session.Diagnosis | None = None

    def choose(self, wanted: Filter | None) -> None:
        """Want other connections from the next picture on."""
        self._wanted = wanted
        self.renew()

    def list_established(self, wanted: bool) -> None:
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
            self._diagnosis = session.diagnose(looks, how=_BOTH, asked=self._asked)
        shown = self._diagnosis
        mask = (
            np.ones(len(shown.view), np.bool_) if self._wanted is None else self._choose(self._wanted, shown)
        )
        rows = _connections(shown, self._wanted, self._choose)
        seen = replace(self._circumstances(self._looks[at]), not_here=_not_here(shown, self._wanted, rows))
        return Picture(_states_of(np.flatnonzero(mask), shown), None, shown, rows, seen)

    def _circumstances(self, look: Observation) -> Circumstances:
        return Circumstances(
            look=self._at + 1, looks=len(self._looks), unix_ns=look.facts.unix_ns, why_no_flows=_NO_FLOWS
        )


_NO_FLOWS: Final = "a recording contains looks, not what happened between them"
_BOTH: Final = replace(session.Look(), watch_ms=1)
"""Of a recording: compare a look with the one before it."""
