"""The looker: rounds of looking, each within what its share of a processor pays for.

A round: counters of every namespace (each `TICK_S`); walks of the namespaces whose turn it is; exact questions about
what is open and no walk has just seen; a diagnosis where something is open that none has seen; then all that changed
goes to the store in one transaction, and a picture is published, whole. Whoever asks for pictures never makes anybody
look.

A look that fails is a gap: nothing ends by it, nothing is concluded, and the picture says what could not be seen. What
the disk refuses is counted, and looking goes on.

This decides nothing that `schedule`, `episodes`, `leak` and `tally` decide; it knows no clock but that of its machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from finwait.agent import edge
from finwait.agent.asking import Asking
from finwait.agent.cluster_events import EventPace
from finwait.agent.counting import Counting
from finwait.agent.episodes import Book, Episode, Instant
from finwait.agent.leak import Used
from finwait.agent.page import PageSource
from finwait.agent.protocol import RoundPicture, Status
from finwait.agent.renaming import renamed_texts, renamed_uses, renamer
from finwait.agent.schedule import TICK_S, Purse, Turns
from finwait.agent.store import LOOKED, Rollup, Store, StoreError
from finwait.agent.story_keeper import StoryKeeper
from finwait.agent.tally import Tally, by_state, counted_rows
from finwait.agent.telling import shortened
from finwait.agent.verdict import Explained
from finwait.errors import DecodeError, FinwaitError, Gap
from finwait.pace import Pace
from finwait.version import __version__

if TYPE_CHECKING:
    from finwait.agent.cluster_told import ClusterStatus
    from finwait.agent.diagnosing import Diagnosing
    from finwait.agent.policing import Policing
    from finwait.agent.verdict import DiagnosedLook
    from finwait.table.filter import Filter
    from finwait.uapi.cluster import ClusterEvent, ClusterNames

__all__ = ["ClusterSource", "Looker"]

_DIAGNOSE_SHARE: Final = 0.5
_DIAGNOSE_S: Final = 600.0
_AGAIN_S: Final = 30.0
"""After a diagnosis that failed; twice as long after each further one."""
_LIMITS_FRESH_S: Final = 1800.0
"""How long it is told what only a diagnosis sees of limits."""
_POLL_S: Final = 0.5
"""How often it is asked whether a diagnosis is finished."""
_WALK_MOST: Final = 64
"""Namespaces in one round: between rounds it can be told to end."""
_RETRY_S: Final = 60.0
_KEPT_MOST: Final = 5000
"""Open episodes whose last sight is written every ten minutes."""
_GAPS_MOST: Final = 50
_HOLDERS_MOST: Final = 50
"""Processes whose descriptors are counted."""
_MANY: Final = 20_000
"""Rows whose memory is given back at once."""


class ClusterSource(Protocol):
    """Follows the names of a cluster."""

    @property
    def names(self) -> ClusterNames:
        """What is known now."""

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What is not, and why."""

    @property
    def cpu_s(self) -> float:
        """Processor time that it took outside of this process, in seconds."""

    @property
    def age_s(self) -> float | None:
        """How old the oldest of what was listed is, in seconds; None before anything was."""

    @property
    def status(self) -> ClusterStatus:
        """How it is."""

    def tell(self, events: Sequence[ClusterEvent]) -> None:
        """Let it tell Events, if it can."""


class Looker:
    """Looks, and says what it saw.

    Args:
        machine: what is looked at.
        store: opens the history; raises `StoreError` where it cannot, which is tried again.
        share: of one processor, that all of it may take.
        tick_s: seconds between two looks at the counters.
        policing: what acts after a diagnosis; None for nothing.
        stories: keeps what a flight recorder saw.
        cluster: follows the names of a cluster; None for none.
        events: whether the cluster is told what does not close.
        fault: is told of a fault in what is only added up; raises it where the looking should end.

    Attributes:
        picture: the last finished round; None before the first. Replaced as a whole, so that any thread may read it.
        status: how the agent was then.
        explained: what the last diagnosis said to people.
        stories: what a flight recorder saw.
        cluster: what follows the names of a cluster; None for none.
    """

    def __init__(
        self,
        machine: edge.AgentMachine,
        store: Callable[[], Store],
        *,
        share: float = 0.01,
        tick_s: float = TICK_S,
        policing: Policing | None = None,
        stories: StoryKeeper | None = None,
        cluster: ClusterSource | None = None,
        events: bool = False,
        fault: Callable[[Exception], None] | None = None,
    ) -> None:
        self._machine = machine
        self._policing = policing
        self.stories = stories or StoryKeeper()
        self.cluster = cluster
        self._fault = fault or _raised
        self._open_store = store
        self._store: Store | None = None
        self._store_errors = 0
        self._store_said = ""
        self._store_note = ""
        self._renewed = 0
        self._store_retry = float("-inf")
        self._waiting: list[Episode] = []
        self._purse = Purse(share)
        self._share = share
        self._turns = Turns()
        self._book = Book(machine.boot())
        self._tally = Tally(tick_s)
        self._gaps: dict[str, tuple[Gap, ...]] = {}
        self._counting = Counting(
            machine, self._turns, self._book, self._tally, self._gaps, tick_s=tick_s, share=share
        )
        self._asking = Asking(machine, self._book, self._turns, self._gaps, self._tally, self._counting)
        self._ports: tuple[Used, ...] = ()
        self._ports_at = float("-inf")
        self._holders_dropped = 0
        self._tick_s = tick_s
        self._tick = Pace(tick_s, 1.0)
        self._diagnose = Pace(tick_s, share * _DIAGNOSE_SHARE)
        self._diagnosing: Diagnosing | None = None
        self._diagnosed_at = float("-inf")
        self._failures = 0
        self._minute = -1
        self._kept_at = float("-inf")
        self._rounds = 0
        self._unseen_s = 0.0
        self._cpu_before = machine.cpu()
        self._names_s = 0.0
        self._named_by: ClusterNames | None = None  # None: a diagnosis has said something since
        self._events = EventPace() if events else None
        self._started = machine.now()
        self._resumed = False
        self._more = False
        self._lock = threading.RLock()
        self.picture: RoundPicture | None = None
        self.status: Status | None = None
        self.explained = Explained()

    # ── one round ────────────────────────────────────────────────────────────────────────────────────────

    def round(self) -> float:
        """Look once as far as is due; return in how many seconds the next round is.

        Raises:
            NotSupported: this kernel cannot list TCP sockets.
        """
        with self._lock:
            return self._round()

    def _round(self) -> float:
        machine = self._machine
        mono = machine.monotonic()
        finished = self._collect()
        if self._diagnosing is not None and not self._more and mono < self._tick.due:
            return min(_POLL_S, self._tick.due - mono)
        self._purse.earn(mono)
        self._book.asleep_ns = machine.asleep_ns()
        self._resume()
        ticked = False
        if mono >= self._tick.due:
            self._counting.look(mono, self._diagnosed_at)
            self._tick.done(mono, 0.0)
            ticked = True
        self._walk(mono)
        if ticked:
            self._asking.follow(self._purse.left_s, int(self._tick_s * 0.8e9))
            # what a walk has just seen need not be asked for
        self._asking.ripen(self._purse.left_s)
        if finished is not None:
            self._judged(finished)
        self._diagnose_if_due(mono)
        self._name_pods()
        now = machine.now()
        if self._tally.mark_due(now.boot_ns / 1e9):
            with self._tolerating("sums", "add up what piles up and how full limits are"):
                self._mark(now)
        with self._tolerating("writing", "make the history of this round"):
            self._write(now)
        with self._tolerating("stories", "keep how connections got where they are"):
            self.stories.keep(self._book, self._store)
        self._rounds += 1
        with self._tolerating("picture", "make the picture of this round"):
            self._publish(now)
        self._tell_events()
        self._pay_for_names()
        spent = machine.cpu()
        self._purse.pay(spent - self._cpu_before)
        self._cpu_before = spent
        if self._more:
            return 0.05
        rest = min(self._tick.due - machine.monotonic(), self._asking.rest_s())
        return max(0.05, min(rest, _POLL_S) if self._diagnosing is not None else rest)

    def _name_pods(self) -> None:
        """Give pods that the last diagnosis could not name the names that are known now."""
        if self.cluster is None or self.cluster.names is self._named_by:
            return
        self._named_by = self.cluster.names
        called = renamer(self._named_by)
        self._book.rename(called)
        self._counting.queues.rename(called)
        self._ports = renamed_uses(self._ports, called)
        self.explained = renamed_texts(self.explained, called)

    def _tell_events(self) -> None:
        """Let the cluster know what does not close, and what a policy has ended."""
        cleared = self._policing.take_cleared() if self._policing is not None else {}
        if self.cluster is not None and self._events is not None and self.picture is not None:
            groups, names = self.picture.groups, self.cluster.names
            self.cluster.tell(self._events.due(groups, cleared, names, self._machine.monotonic()))

    def _pay_for_names(self) -> None:
        """Enter what following a cluster cost: it has a pace of its own, and the purse pays for it by and by."""
        if self.cluster is not None:
            spent = self.cluster.cpu_s
            self._purse.owe(spent - self._names_s)
            self._names_s = spent

    @contextlib.contextmanager
    def _tolerating(self, name: str, doing: str) -> Iterator[None]:
        """Make a fault of ours in what is only added up a gap: looking goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whoever made this looker decides whether it ends
            self._fault(error)
            self._gaps[name] = (Gap("the agent", f"{doing}, for a fault of its own", ""),)
        else:
            self._gaps.pop(name, None)

    def end(self) -> None:
        """Write down what is known, and close the history."""
        with self._lock:
            if self._diagnosing is not None:
                self._diagnosing.end()
                self._diagnosing = None
            self._end()

    def _end(self) -> None:
        if self._store is not None:
            now = self._machine.now()
            if len(self._book) <= _KEPT_MOST:
                self._book.touch()
            ended = self.stories.judged(self._book.take(), self._book)
            self._store.round(ended, self._book.changed(), now, meta=self._meta(now))
            self.stories.keep(self._book, self._store)
            self._store.close()
            self._store = None

    @contextlib.contextmanager
    def source(self, row_filter: Filter | None, patience_s: float) -> Iterator[PageSource]:
        """Give what the page's groups are made of, between two looks; nothing changes inside. For other threads.

        Args:
            row_filter: which connections; None for all.
            patience_s: how long to wait for a look that is going on.

        Raises:
            TimeoutError: it goes on.
        """
        if not self._lock.acquire(timeout=patience_s):
            raise TimeoutError("a look is going on")
        try:
            names = {(self.boot, inode): ns.names for inode, ns in self._counting.spaces.items()}
            yield PageSource(
                book=self._book,
                now=self._machine.now(),
                said=self.explained.causes,
                rates=self._tally.rates,
                limits=self._tally.limits,
                names=names,
                row_filter=row_filter,
            )
        finally:
            self._lock.release()

    def renew(self) -> None:
        """Look at everything again soon: namespaces, counters, a diagnosis."""
        for pace in (self._tick, self._diagnose):
            pace.at_once()
        self._counting.renew()
        self._diagnosed_at = float("-inf")

    # ── looks ────────────────────────────────────────────────────────────────────────────────────────────

    def _walk(self, mono: float) -> None:
        machine, spaces = self._machine, self._counting.spaces
        due = [
            n for n in self._turns.due(self._purse.left_s, mono, fresh_s=self._tick_s * 0.9) if n in spaces
        ]
        chosen, self._more = due[:_WALK_MOST], len(due) > _WALK_MOST
        if not chosen:
            return
        cpu, now = machine.cpu(), machine.now()
        try:
            walks, gaps = machine.walk([spaces[n] for n in chosen])
        except DecodeError as error:
            self._gaps["walks"] = (Gap("sockets", f"decode the answer of a dump: {error}", ""),)
            walks = {}
        else:
            self._gaps["walks"] = tuple(gaps)
        whole = [n for n, walk in walks.items() if walk.whole]
        done = {}
        for n, walk in walks.items():
            self._counting.walked(n, walk, mono)
            done[n] = walk.cost_s, counted_rows(walk.sockets)
        self._book.walked([walk.sockets for walk in walks.values()], whole, now)
        if sum(len(walk.sockets) for walk in walks.values()) > _MANY:
            walks = {}
            machine.give_back()
        spent = machine.cpu() - cpu
        rest = max(0.0, spent - sum(cost for cost, _ in done.values())) / len(chosen)
        for n in chosen:
            if n in done:
                self._turns.walked(n, mono, done[n][0] + rest, done[n][1])
            else:
                self._turns.failed(n, mono, rest)
        self._counting.discover_again([n for n in chosen if n not in done])
        self._tally.looked("walk", spent)

    def _diagnose_if_due(self, mono: float) -> None:
        policing, counting = self._policing, self._counting
        pause_s = (policing.diagnosis_s if policing is not None else None) or _DIAGNOSE_S
        waited = mono - self._diagnosed_at >= pause_s and (len(self._book) > 0 or self._diagnosed_at < 0)
        reason = self._book.undiagnosed or waited or counting.lost or counting.queues.unnamed
        if self._diagnosing is not None or not reason or mono < self._diagnose.due:
            return
        self._diagnosed_at = mono
        try:
            self._diagnosing = self._machine.start_diagnosis(
                None if policing is None else policing.filters,
                None if self.cluster is None else self.cluster.names,
            )
        except OSError as error:
            self._undiagnosed(f"start the process that diagnoses: {error.strerror}", 0.0)
            return
        if (finished := self._collect()) is not None:
            self._judged(finished)

    def _collect(self) -> DiagnosedLook | None:
        """Return what a diagnosis says that was begun, once it has come to its end."""
        if self._diagnosing is None:
            return None
        cpu = self._machine.cpu()
        try:
            verdict = self._diagnosing.result()
        except (DecodeError, FinwaitError) as error:
            self._diagnosing = None
            self._undiagnosed(f"diagnose: {error}", self._machine.cpu() - cpu)
            return None
        if verdict is None:
            return None
        self._diagnosing = None
        self._failures = 0
        self._paid(self._machine.cpu() - cpu)
        return verdict

    def _undiagnosed(self, statement: str, cost: float) -> None:
        """Note that a diagnosis failed; it is tried again, later each time."""
        self._gaps["diagnosis"] = (Gap("causes", statement, ""),)
        self._paid(cost)
        self._failures += 1
        pause = min(_DIAGNOSE_S, _AGAIN_S * 2 ** min(self._failures - 1, 10))
        self._diagnose.due = max(self._diagnose.due, self._machine.monotonic() + pause)

    def _paid(self, cost: float) -> None:
        """Enter what a diagnosis cost: it has a pace of its own, and half of the purse pays for it by and by."""
        self._diagnose.done(self._diagnosed_at, cost)
        self._tally.looked("diagnosis", cost)
        self._owe(cost)

    def _owe(self, cost: float) -> None:
        """Have half of the purse pay for it by and by: the looking goes on meanwhile."""
        self._purse.owe(cost)
        self._cpu_before += cost

    def _judged(self, verdict: DiagnosedLook) -> None:
        """Enter what a diagnosis says, and let the policy act on it."""
        machine = self._machine
        self._named_by = None
        self._book.diagnosed(verdict.said, verdict.at, everything=verdict.everything)
        self._ports, self._ports_at = tuple(verdict.limits), machine.monotonic()
        self._counting.queues.diagnosed(verdict.doors)
        self.explained = verdict.texts
        self._gaps["diagnosis"] = verdict.gaps
        if self._counting.lost:
            self._counting.find_soon()  # the look may have found other ways there
        if self._policing is not None:
            cpu = machine.cpu()
            self._policing.apply(self._book, verdict, self._store, machine.now())
            self._owe(machine.cpu() - cpu)

    def _mark(self, now: Instant) -> None:
        """Enter the end of a window."""
        counting = self._counting
        counters, _ = self._machine.counters(list(counting.spaces.values()), lambda *_: False, limits=True)
        descriptors = self._machine.descriptors(self._holders())
        fresh = self._machine.monotonic() - self._ports_at <= _LIMITS_FRESH_S
        limits = [*(self._ports if fresh else ()), *self._queues(), *descriptors]
        limits += edge.of_machine(counters, counting.names)
        self._tally.mark(self._book, now.boot_ns / 1e9, limits)
        if self._store is not None:
            self._store.put_marks(self._book.boot, self._tally.marks)

    def _queues(self) -> list[Used]:
        return self._counting.queues.used(self._machine.monotonic(), self._counting.names)

    def _holders(self) -> dict[int, str]:
        """Return whose descriptors are counted: living holders, of what piles up first, then of most episodes."""
        counts, leaking, chosen = self._book.holders(), self._tally.leaking, dict[int, str]()
        order = sorted(counts, key=lambda holder: (holder[2] not in leaking, -counts[holder], holder))
        passed = 0
        for pid, started_ms, workload in order:
            if len(chosen) == _HOLDERS_MOST:
                break
            passed += 1
            if self._machine.alive(pid, started_ms) is not False:
                chosen.setdefault(pid, workload)
        self._holders_dropped = len(order) - passed
        return chosen

    # ── the history ──────────────────────────────────────────────────────────────────────────────────────

    def _resume(self) -> None:
        """Open the history where it is not, and take up what it says was open."""
        if self._store is not None or self._machine.monotonic() < self._store_retry:
            return
        try:
            store = self._open_store()
        except (StoreError, OSError) as error:
            if isinstance(error, StoreError) and error.errno == errno.EINVAL and not self._rounds:
                raise  # of a newer version, or another program: nobody wants two histories
            self._store_failed(str(error))
            return
        self._store, self._store_said, self._renewed = store, "", store.renewed
        if store.set_aside is not None:
            self._store_errors += 1
            self._store_note = f"it was damaged and is now `{store.set_aside}`; a new one was begun"
        if self._resumed:
            return
        now = self._machine.now()
        try:
            open_ = list(store.open_episodes())
            marks = store.marks(self._book.boot)
        except StoreError as error:
            # Nothing is written either before what was open is known: it is opened and read again.
            self._store = None
            self._store_failed(str(error))
            with contextlib.suppress(StoreError):
                store.close()
            return
        self._resumed = True
        if self._policing is not None:
            self._policing.resume(store, now)
        self._book.restore(open_, now)
        self._tally.restore(marks)

    def _store_failed(self, statement: str) -> None:
        self._store_errors += 1
        self._store_said = statement
        self._store_retry = self._machine.monotonic() + _RETRY_S

    def _meta(self, now: Instant) -> dict[str, object]:
        return {
            "round": {
                "boot": self._book.boot, "boot_ns": now.boot_ns, "wall_ns": now.wall_ns, "pid": os.getpid(),
                "started_ns": self._started.wall_ns,
            }
        }  # fmt: skip

    def _write(self, now: Instant) -> None:
        book, ended = self._book, self.stories.judged(self._book.take(), self._book)
        counts = book.count_opened()
        self._tally.opened_more(counts)
        if self._policing is not None:
            self._policing.opened(counts, now)
        self._tally.ended_more(ended)
        minute = now.wall_ns // 60_000_000_000
        full = minute != self._minute
        if now.boot_ns / 1e9 - self._kept_at >= 600:
            self._kept_at = now.boot_ns / 1e9
            if len(book) <= _KEPT_MOST:
                book.touch()
        if self._store is None:
            self._waiting = [*self._waiting, *ended][-_KEPT_MOST:]
            return
        if self._store.renewed != self._renewed:
            self._renewed = self._store.renewed
            book.touch()
        ended, self._waiting = [*self._waiting, *ended], []
        rollups: list[Rollup] = []
        if full:
            self._minute = minute
            rollups = [
                ((g.rule, g.severity, g.called), g.count, int(g.oldest_s))
                for g in self._tally.groups(book, now.boot_ns)
            ]
            if self._counting.counters and now.wall_ns - self._counting.look_at_ns <= 3e9 * max(
                self._tick_s, 20.0
            ):
                rollups.append((LOOKED, len(self._all_gaps()), int(self._unseen_s)))
        elif not ended and not book.dirty:
            return
        if self._store.round(
            ended, book.changed(), now, rollups=rollups, meta=self._meta(now) if full else None
        ):
            book.clean()

    # ── what is told ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def _errors(self) -> int:
        return self._store_errors + (self._store.errors if self._store is not None else 0)

    def _publish(self, now: Instant) -> None:
        unseen = self._turns.unseen_s(self._machine.monotonic())
        self._unseen_s = max(unseen.values(), default=0.0)
        needs: dict[str, int] = {}
        for gap in self._all_gaps():
            name = gap.needs or "nothing"
            name = name if name in needs or len(needs) < _GAPS_MOST else "other"
            needs[name] = needs.get(name, 0) + 1
        self._tally.renew("accept-queue", self._queues())
        groups, limits, counting = (
            self._tally.groups(self._book, now.boot_ns),
            self._tally.limits,
            self._counting,
        )
        self.picture = RoundPicture(
            version=__version__,
            boot=self._book.boot,
            pid=os.getpid(),
            rounds=self._rounds,
            at_ns=now.wall_ns,
            sockets=by_state(counting.counters, counting.walked_states, counting.listeners),
            groups=groups,
            opened=self._tally.opened,
            ended=self._tally.ended,
            durations=self._tally.durations,
            looks=self._tally.looks,
            limits=limits,
            cpu_s=self._machine.cpu() + self._names_s,
            look_at_ns=counting.look_at_ns,
            gaps=needs,
            series_dropped=self._tally.dropped + self._tally.limits_dropped + self._holders_dropped,
            untracked=self._book.untracked,
            namespaces=len(counting.spaces),
            unseen_s=self._unseen_s,
            store_errors=self._errors,
            undiagnosed=self._book.undiagnosed,
            policy_actions=self._policing.actions if self._policing is not None else [],
            policy_budgets=self._policing.budgets(now) if self._policing is not None else [],
            names_age_s=self.cluster.age_s if self.cluster is not None else None,
        )
        self.status = self._as_status(self.picture, now)

    def _as_status(self, picture: RoundPicture, now: Instant) -> Status:
        store = self._store
        return Status(
            version=__version__,
            pid=picture.pid,
            boot=picture.boot,
            started_ns=self._started.wall_ns,
            at_ns=picture.at_ns,
            up_s=max(0, now.boot_ns - self._started.boot_ns) / 1e9,
            share=self._share,
            cpu_s=picture.cpu_s,
            rounds=picture.rounds,
            open=self._book.open,
            undiagnosed=picture.undiagnosed,
            untracked=picture.untracked,
            namespaces=picture.namespaces,
            unseen_s=picture.unseen_s,
            gaps=[str(gap) for gap in self.gaps],
            store=str(store.path) if store is not None else "",
            store_bytes=store.size if store is not None else 0,
            store_errors=picture.store_errors,
            store_said=self._about_store,
            policy=self._policing.status(now) if self._policing is not None else None,
            recorder=self.stories.status(),
            cluster=self.cluster.status if self.cluster is not None else None,
        )

    @property
    def _about_store(self) -> str:
        """What is wrong with the history, or what became of it; empty for nothing."""
        store = self._store
        if store is None or store.failing:
            why = self._store_said if store is None else store.said
            return f"it cannot be written: {why}" if why else ""
        return store.said or self._store_note

    @property
    def gaps(self) -> list[Gap]:
        """What could not be seen at the last looks; the first `_GAPS_MOST` of it, and how many more there are."""
        return shortened(self._all_gaps(), _GAPS_MOST)

    def note_gaps(self, name: str, gaps: tuple[Gap, ...]) -> None:
        """Say what somebody beside the looking could not do; none any more where there are none."""
        if gaps or name in self._gaps:
            self._gaps[name] = gaps

    def every_gap(self) -> list[Gap]:
        """Return all that could not be seen at the last looks."""
        return self._all_gaps()

    @property
    def interval_s(self) -> float:
        """Seconds between two looks at the counters."""
        return self._tick_s

    def _all_gaps(self) -> list[Gap]:
        """Return what could not be seen, each once."""
        cluster = self.cluster
        others = [self.stories.gaps, cluster.gaps if cluster is not None else ()]
        if self._policing is not None:
            others.append(self._policing.gaps(cluster.names if cluster is not None else None))
        return sorted({gap for gaps in [*self._gaps.values(), *others] for gap in gaps})

    @property
    def boot(self) -> str:
        """Id of this boot."""
        return self._book.boot

    @property
    def finished(self) -> bool:
        """Whether every namespace has been looked at, what was there has opened or is over, and has a cause."""
        seen = not self._turns.unseen and self._asking.ripened
        return seen and not self._book.undiagnosed and self._diagnosed_at > 0 and self._diagnosing is None

    @property
    def history(self) -> Path | None:
        """Where the history is; None where it could not be opened."""
        store = self._store
        return store.path if store is not None else None


def _raised(error: Exception) -> None:
    raise error
