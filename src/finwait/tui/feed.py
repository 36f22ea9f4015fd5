"""What the live view shows, one picture at a time.

Theory of operation. Three things have three paces. *Flows* come from the tracepoint and are summed up between
two pictures (`--refresh`). *Rows* come from a dump, which takes as long as there are rows in it: a dump may
take a twentieth of the time, so with very many rows it becomes rarer, and the picture says how old its rows
are. *Causes*, holders and pods come from a whole diagnosis, in a thread of its own, at a thirtieth of the time.

ESTABLISHED connections of a namespace with more than 50,000 sockets are not dumped but counted: CurrEstab of
/proc/net/snmp is ESTABLISHED and CLOSE_WAIT together (tcp_set_state, net/ipv4/tcp.c), and the second of the
two is dumped.

What this cannot see: flows where tracing is not possible; and then the picture says why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from finwait import session
from finwait.diagnosis.assemble import ages
from finwait.diagnosis.context import ViewContext
from finwait.errors import DecodeError, FinwaitError, TargetGone
from finwait.follow import Following
from finwait.kernel.observe import ESTABLISHED_LIMIT, Machine, Plan
from finwait.report import text
from finwait.table import decode
from finwait.table import transitions as tr
from finwait.table.filter import Filter
from finwait.table.sockets import SocketTable
from finwait.table.units import printable
from finwait.tui.listing import Known, Rows, plain_rows
from finwait.uapi import inet_diag, tcp
from finwait.uapi.observation import Observation
from finwait.uapi.proc import parse_snmp

__all__ = ["Feed", "Live", "Picture", "evidence"]

_LOOK_SHARE: Final = 20  # a look may take one twentieth of the time
_DIAGNOSIS_SHARE: Final = 30
_DIAGNOSIS_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Picture:
    """One moment."""

    rows: Rows
    """Connections that the FILTER wants; no listeners."""
    counts: Mapping[int, int]
    """State → connections, listeners included, and those that are only counted."""
    flows: Mapping[tuple[int, int], float] | None
    """(old, new) → a second; None when they are not known."""
    why_no_flows: str = ""
    only_counted: int = 0
    """ESTABLISHED connections that are in `counts` and not in `rows`."""
    rows_age_s: float = 0.0
    causes_age_s: float | None = None
    """None while there is no diagnosis."""
    notes: tuple[str, ...] = ()
    """What could not be seen, or is not right."""
    where: str = ""
    """Of a recording: which look this is."""


class Feed(Protocol):
    """What gives pictures, and evidence."""

    live: bool

    def next(self) -> Picture:
        """Return the next picture; may block for as long as the refresh interval and a look."""

    def want(self, wanted: Filter | None) -> None:
        """Show only what a FILTER selects, from the next picture on."""

    def want_causes(self, wanted: bool) -> None:
        """Diagnose now and then, or do not."""

    def list_established(self, wanted: bool) -> None:
        """Dump ESTABLISHED connections too, however many there are."""

    def now(self) -> None:
        """Look and diagnose again at once."""

    def step(self, by: int) -> None:
        """Go on or back so many looks, in a recording."""

    def evidence(self, cookie: int, width: int) -> str:
        """Return everything about one connection, as `finwait explain` prints it; may take as long as a look.

        Raises:
            FinwaitError: it is gone, or the look failed.
        """

    def end(self) -> None:
        """Make `next` return soon."""


def evidence(diagnosis: session.Diagnosis, cookie: int, width: int) -> str:
    """Return the evidence of a connection of a diagnosis, as `finwait explain` prints it.

    Raises:
        TargetGone: it has no such connection.
    """
    view = diagnosis.view
    rows = np.flatnonzero((view.sockets.cookie == np.uint64(cookie)) & (view.sockets.state != tcp.LISTEN))
    if not len(rows):
        raise TargetGone(cookie, "it is in no dump any more")
    row = int(rows[0])
    style = text.Style(width)
    pieces = list(text.connection(view, row, session.findings_of(diagnosis, row), style))
    if diagnosis.gaps:
        pieces += ["\nNot seen:\n", *(f"  {gap}\n" for gap in diagnosis.gaps)]
    return printable("".join(pieces), lines=True)


def selected(wanted: Filter, diagnosis: session.Diagnosis) -> NDArray[np.bool_]:
    """Return which rows of a diagnosis a FILTER selects; it may ask for owners, names, ages, causes."""
    import pwd

    users = {p.pw_uid: p.pw_name for p in pwd.getpwall()} if diagnosis.snapshot.machine.live else {}
    return wanted.mask(diagnosis.view.sockets, ViewContext(diagnosis.view, diagnosis.findings, users))


class _Seen:
    """Since when each connection has been in its state, as far as looks tell."""

    def __init__(self) -> None:
        self._cookie = np.empty(0, np.uint64)
        self._state = np.empty(0, np.uint8)
        self._since = np.empty(0, np.int64)
        self._came = np.empty(0, np.bool_)
        self._first = True

    def look(self, sockets: SocketTable, now_ms: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the least ages, ms, and which rows came into their states since the first look."""
        n = len(sockets)
        since, came = np.full(n, now_ms, np.int64), np.full(n, not self._first, np.bool_)
        if len(self._cookie):
            at = np.minimum(np.searchsorted(self._cookie, sockets.cookie), len(self._cookie) - 1)
            same = (self._cookie[at] == sockets.cookie) & (self._state[at] == sockets.state)
            since = np.where(same, self._since[at], since)
            came = np.where(same, self._came[at], came)
        order = np.argsort(sockets.cookie, kind="stable")
        self._cookie, self._state = sockets.cookie[order], sockets.state[order]
        self._since, self._came = since[order], came[order]
        self._first = False
        least = ages(sockets)[0]
        timewait = sockets.timer == 3  # its countdown says more than we saw
        return np.where(timewait, least, np.maximum(least, now_ms - since)), came & ~timewait


class _Ended(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Dumped:
    """The last look."""

    rows: SocketTable
    least_ms: NDArray[np.int64]
    came: NDArray[np.bool_]
    counts: Mapping[int, int]
    only_counted: int
    names: Mapping[int, tuple[str, ...]]
    at: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Diagnosed:
    """The last diagnosis: what it says of each connection, and which of them the FILTER selects."""

    known: Known
    selected: NDArray[np.uint64]
    wanted: Filter | None
    at: float


@dataclass(slots=True)
class _Wishes:
    """What the person wants; written by one thread and read by the others, under the lock."""

    filter: Filter | None
    causes: bool = False
    every_established: bool = False
    at_once: bool = False
    diagnose_at_once: bool = False
    ended: bool = False
    changed: bool = False
    lock: threading.Condition = field(default_factory=threading.Condition)


class Live:
    """Pictures of the running machine; a context manager.

    Args:
        wanted: the FILTER, or None.
        refresh: seconds between pictures.
    """

    live = True

    def __init__(self, wanted: Filter | None, *, refresh: float) -> None:
        self._wishes = _Wishes(wanted)
        self._wanted = wanted
        self._refresh = refresh
        self._stack = ExitStack()
        self._following: Following | None = None
        self._why_no_flows = ""
        self._moved = np.zeros((16, 16), np.int64)
        self._lost = 0
        self._at = 0.0
        self._next_look = 0.0
        self._dumped: _Dumped | None = None
        self._diagnosed: _Diagnosed | None = None
        self._diagnosis_failed = ""
        self._seen = _Seen()
        self._thread = threading.Thread(target=self._diagnose, name="finwait-diagnosis", daemon=True)

    def __enter__(self) -> Self:
        """Begin to follow and look once.

        Raises:
            KernelError: the sockets cannot be looked at.
        """
        self._follow()
        self._at = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._stack.close()
        if self._thread.is_alive():
            self._thread.join(5)

    # -- what the person wants ---------------------------------------------------------------------------

    def _wish(self, **what: object) -> None:
        with self._wishes.lock:
            for name, value in what.items():
                setattr(self._wishes, name, value)
            self._wishes.lock.notify_all()

    def want(self, wanted: Filter | None) -> None:
        """Show only what a FILTER selects, from the next picture on."""
        self._wish(filter=wanted, changed=True, at_once=True, diagnose_at_once=bool(wanted and wanted.needs))

    def want_causes(self, wanted: bool) -> None:
        """Diagnose now and then, or do not."""
        self._wish(causes=wanted)

    def list_established(self, wanted: bool) -> None:
        """Dump ESTABLISHED connections too, however many there are."""
        self._wish(every_established=wanted, at_once=True, diagnose_at_once=True)

    def now(self) -> None:
        """Look and diagnose again at once."""
        self._wish(at_once=True, diagnose_at_once=True)

    def step(self, by: int) -> None:
        """Do nothing: the present has no next look."""

    def end(self) -> None:
        """Make `next` return soon, and the diagnosis end."""
        self._wish(ended=True)

    def evidence(self, cookie: int, width: int) -> str:
        """Return everything about one connection, from a diagnosis made for it.

        Raises:
            FinwaitError: it is gone, or the look failed.
        """
        dumped = self._dumped
        limit: int | None = ESTABLISHED_LIMIT
        if dumped is not None:
            rows = np.flatnonzero(dumped.rows.cookie == np.uint64(cookie))
            if len(rows) and dumped.rows.state[rows[0]] == tcp.ESTABLISHED:
                limit = None
        plan = Plan(established_limit=limit, progress=self._unless_ended)
        try:
            return evidence(session.diagnose(how=session.Look(plan=plan)), cookie, width)
        except _Ended:
            raise TargetGone(cookie, "the view was closed") from None

    # -- pictures ----------------------------------------------------------------------------------------

    def next(self) -> Picture:
        """Return the next picture: of the flows since the one before, and of the last look.

        Raises:
            FinwaitError: the sockets cannot be looked at.
        """
        wishes = self._wishes
        if self._dumped is not None:
            self._wait(self._at + self._refresh)
        with wishes.lock:
            changed, at_once, wishes.changed, wishes.at_once = wishes.changed, wishes.at_once, False, False
            self._wanted = wishes.filter
        if changed:
            self._stack.close()
            self._follow()
            self._seen = _Seen()
        if at_once or self._dumped is None or time.monotonic() >= self._next_look:
            self._look()
        return self._picture()

    def _wait(self, until: float) -> None:
        wishes = self._wishes
        while (left := until - time.monotonic()) > 0 and not wishes.ended and not wishes.at_once:
            pause = min(left, 0.25)
            if self._following is None:
                with wishes.lock:
                    wishes.lock.wait(pause)
                continue
            try:
                found = self._following.step(pause)
            except (FinwaitError, DecodeError) as error:
                self._stack.close()
                self._following, self._why_no_flows = None, f"the trace ended: {error}"
                continue
            self._lost += found.lost
            rows = found.rows
            moves = rows.kind == tr.TRANSITION
            np.add.at(self._moved, (rows.oldstate[moves] & 15, rows.newstate[moves] & 15), 1)

    def _follow(self) -> None:
        """Start tracing what the FILTER wants, if that can be had."""
        self._following = None
        self._moved[:] = 0
        if self._wanted is not None and self._wanted.needs:
            self._why_no_flows = "the FILTER asks for more than addresses, ports and states"
            return
        following = self._stack.enter_context(Following(self._wanted, lookup=False))
        if following.mode == "tracing":
            self._following, self._why_no_flows = following, ""
        else:
            self._stack.close()
            self._why_no_flows = f"not tracing: {following.why_polling}"

    def _look(self) -> None:
        wanted, wishes = self._wanted, self._wishes
        by_itself = wanted is None or bool(wanted.needs)
        plan = Plan(
            states=tcp.ALL_STATES if wanted is None else wanted.states,
            extensions=inet_diag.extension_mask(inet_diag.INFO),
            bytecode=wanted.bytecode() if wanted is not None else b"",
            mptcp=False,
            conntrack=False,
            files=False,
            descriptors=False,
            established_limit=ESTABLISHED_LIMIT if by_itself and not wishes.every_established else None,
        )
        begun = time.monotonic()
        observation = Machine().observe(plan)
        sockets = decode.sockets(observation)
        if wanted is not None and not wanted.needs:
            sockets = sockets.select(wanted.mask(sockets))
        counts = np.bincount(sockets.state.astype(np.int64), minlength=16)
        rows = sockets.select(sockets.state != tcp.LISTEN)
        only_counted = _left_out(observation, rows) if wanted is None else 0
        counts[tcp.ESTABLISHED] += only_counted
        least, came = self._seen.look(rows, time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000_000)
        now = time.monotonic()
        self._next_look = now + max(self._refresh * 0.9 - (now - begun), (_LOOK_SHARE - 1) * (now - begun))
        self._dumped = _Dumped(
            rows,
            least,
            came,
            {state: n for state, n in enumerate(counts.tolist()) if n},
            only_counted,
            {ns.inode: tuple(map(printable, ns.names)) for ns in observation.namespaces},
            now,
            tuple(str(gap) for gap in observation.gaps if gap.needs),
        )

    def _picture(self) -> Picture:
        dumped, diagnosed = self._dumped, self._diagnosed
        assert dumped is not None, "the first call looks, and a look stays"
        now = time.monotonic()
        flows = None
        if self._following is not None:
            span = max(now - self._at, 1e-3)
            old, new = np.nonzero(self._moved)
            flows = {
                (int(a), int(b)): int(self._moved[a, b]) / span
                for a, b in zip(old.tolist(), new.tolist(), strict=True)
            }
            self._moved[:] = 0
        self._at = now
        notes = list(dumped.notes)
        if self._lost:
            notes.append(f"{self._lost} events were lost: flows are too low")
        if self._diagnosis_failed:
            notes.append(f"no diagnosis: {self._diagnosis_failed}")
        table, least, came, counts = dumped.rows, dumped.least_ms, dumped.came, dumped.counts
        wanted = self._wanted
        if wanted is not None and wanted.needs:
            if diagnosed is None or diagnosed.wanted != wanted:
                keep = np.zeros(len(table), np.bool_)
                notes.append("the FILTER waits for a diagnosis")
            else:
                keep = np.isin(table.cookie, diagnosed.selected)
            table, least, came = table.select(keep), least[keep], came[keep]
            found = np.bincount(table.state.astype(np.int64), minlength=16).tolist()
            counts = {state: n for state, n in enumerate(found) if n}
        known = Known.nothing() if diagnosed is None else diagnosed.known
        return Picture(
            plain_rows(table, known, dumped.names, least_ms=least, seen_coming=came),
            counts,
            flows,
            self._why_no_flows,
            dumped.only_counted,
            now - dumped.at,
            None if diagnosed is None else now - diagnosed.at,
            tuple(notes),
        )

    # -- the thread that diagnoses -----------------------------------------------------------------------

    def _unless_ended(self, _: str) -> None:
        if self._wishes.ended:
            raise _Ended

    def _diagnose(self) -> None:
        wishes = self._wishes
        due = 0.0
        while True:
            with wishes.lock:
                while not wishes.ended and not (
                    (wishes.causes or (wishes.filter is not None and wishes.filter.needs))
                    and (wishes.diagnose_at_once or time.monotonic() >= due)
                ):
                    wishes.lock.wait(max(due - time.monotonic(), 0.05) if wishes.causes else None)
                if wishes.ended:
                    return
                wishes.diagnose_at_once = False
                wanted, everything = wishes.filter, wishes.every_established
            begun = time.monotonic()
            try:
                found = self._diagnosis(wanted, everything)
            except _Ended:
                return
            except FinwaitError as error:
                self._diagnosis_failed = str(error)
            else:
                self._diagnosis_failed = ""
                first = self._diagnosed is None or self._diagnosed.wanted != wanted
                self._diagnosed = found
                if first:
                    self._wish(at_once=True)
            cost = time.monotonic() - begun
            due = time.monotonic() + max(_DIAGNOSIS_EVERY_S, _DIAGNOSIS_SHARE * cost)

    def _diagnosis(self, wanted: Filter | None, everything: bool) -> _Diagnosed:
        plan = Plan(established_limit=None if everything else ESTABLISHED_LIMIT, progress=self._unless_ended)
        diagnosis = session.diagnose(how=session.Look(plan=plan))
        at = time.monotonic()
        chosen = np.empty(0, np.uint64)
        if wanted is not None and wanted.needs:
            chosen = diagnosis.view.sockets.cookie[selected(wanted, diagnosis)]
        return _Diagnosed(Known.of(diagnosis), chosen, wanted, at)


def _left_out(observation: Observation, rows: SocketTable) -> int:
    """Return how many ESTABLISHED connections were not dumped, by the kernel's own count."""
    left = 0
    for ns in observation.namespaces:
        if ns.established_skipped and (data := ns.files.get("net/snmp")):
            try:
                both = parse_snmp(data).get("Tcp.CurrEstab", 0)
            except DecodeError:
                both = 0
            waiting = (rows.state == tcp.CLOSE_WAIT) & (rows.netns == ns.inode)
            left += max(both - int(waiting.sum()), 0)
    return left
