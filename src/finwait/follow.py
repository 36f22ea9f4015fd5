"""Following connections as they change state: where the tracing edge and the joining core meet.

Theory of operation. `Following.step` is one round: sleep until something happens, look at the sockets, take
the trace, join, hand out rows. The look comes *before* the trace is read, so that the trace says which
sockets lived through the look and which were already gone. A look costs what it costs (milliseconds, or a
second at a million sockets); rounds are spaced so that looking takes at most a tenth of one CPU.

Rows go through the FILTER when they are handed out. A row that only its holder decides waits until the holder is
found, or every process was looked into (`finwait.kernel.holders`); the rows behind it wait with it, so that rows stay
in the order of time. A row that nothing can decide any more is left out and counted (`Following.unjudged`).

Without tracefs (not there, locked down, not permitted) the same rounds compare one look with the next.
`Following.mode` and `Following.cannot_see` say which of the two it is and what that misses.

It may run for days, so lives (`finwait.table.lives.Follower`), rows that wait, and what is remembered about
processes and namespaces have a limit; `Following.bounded` says what was cut off by it.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.container import workload_of_path
from finwait.diagnosis.assemble import ages
from finwait.errors import FinwaitError, Gap, KernelError
from finwait.kernel import cgroup, netns, procfs
from finwait.kernel.destroy_events import DestroyEvents
from finwait.kernel.holders import Held, Holders, Owner, Task, task
from finwait.kernel.lookup import Question, ask, check, interfaces
from finwait.kernel.observe import Machine, Plan
from finwait.kernel.tracefs import Statistics, Tracing
from finwait.table import decode
from finwait.table import transitions as tr
from finwait.table.filter import Filter
from finwait.table.lives import Follower
from finwait.table.predicates import uid_unknown
from finwait.table.schema import Mask
from finwait.table.sockets import SCHEMA as SOCKETS
from finwait.table.sockets import SocketTable
from finwait.table.trace_filter import asks_for_holders, judge, kernel_filter, only_ports_and_hosts
from finwait.table.units import printable
from finwait.uapi import inet_diag, tcp, tracepoint
from finwait.uapi.observation import Namespace

__all__ = ["Following", "Owner", "Round", "Stuck", "Who", "pod_uid"]

STATE_EVENT: Final = "sock/inet_sock_set_state"
_DESTROY_EVENT: Final = "tcp/tcp_destroy_sock"
_RESET_EVENTS: Final = ("tcp/tcp_send_reset", "tcp/tcp_receive_reset")
_RETRANSMIT_EVENT: Final = "tcp/tcp_retransmit_skb"
_GATHER_S: Final = 0.05  # after the first record: let more come, so that a burst costs one round
_SHARE: Final = 10  # a look may take one tenth of the time
_LIST_S: Final = 0.2
_QUESTIONS: Final = 4000  # so many single questions cost about what a dump of a usual machine costs
_MOST_WAITING: Final = 400_000  # rows that wait for a look; more are handed out without
_MOST_HELD_BACK: Final = 100_000  # rows that wait for a holder, or behind one that does
_HOLDER_S: Final = 60.0  # a row waits no longer for its holder
_LAST_S: Final = 5.0  # at the end the holders of waiting rows are looked for, no longer than this
_MOST_REMEMBERED: Final = 100_000  # lives, tasks, cgroups, namespaces: of each
_TASK_S: Final = 1.0  # what a task is called is asked again after this time: it may execute another program

_PLAIN: Final = frozenset(c.name for c in SOCKETS if c.path in (None, (), (inet_diag.INFO,)))
"""Columns that every row of a look has anyway."""
_BY_DESCRIPTOR: Final = frozenset(
    {
        (tcp.CLOSE, tcp.SYN_SENT), (tcp.ESTABLISHED, tcp.FIN_WAIT1), (tcp.SYN_RECV, tcp.FIN_WAIT1),
        (tcp.CLOSE_WAIT, tcp.LAST_ACK), (tcp.FIN_WAIT2, tcp.FIN_WAIT2),
    }
)  # fmt: skip
"""Changes that no packet makes and SOCK_DESTROY does not: connect(), shutdown(), close(), by who has a descriptor."""

_SEES_NOT_TRACING: Final = (
    "the end of a minisocket (TIME_WAIT, orphaned FIN_WAIT2): no tracepoint fires when it expires",
    "namespace and owner of a connection that came and went between two looks at the sockets",
)
_SEES_NOT_WITHOUT_LOOKS: Final = (
    "namespaces, owners, and whether a closed socket lives on as a minisocket: nothing is looked up"
)
_SEES_NOT_POLLING: Final = (
    "states that came and went between two looks",
    "the exact time of a change: it lies between the two looks",
    "who changed it",
)


@dataclass(frozen=True, slots=True)
class Who:
    """Who had to do with rows that are handed out."""

    owners: dict[int, tuple[Owner, ...]]
    """Inode → who holds it now, none if nobody does; a socket whose holder is not known is not in it."""
    last: dict[int, tuple[Owner, ...]]
    """Life → who held it, of connections that are over."""
    tasks: dict[int, Task]
    """Task number → the thread that moved a connection and its process; what is not known is not in it."""
    threads: dict[int, str]
    """Task number → name of a thread of which no more is known."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """A connection that stays in a closing state longer than asked."""

    key: int
    """Its cookie, or the address of the socket while no look has given the cookie."""
    state: int
    netns: int | None
    src: tuple[int, int]
    dst: tuple[int, int]
    sport: int
    dport: int
    inode: int
    cgroup_id: int
    for_ns: int
    exact: bool
    """Whether we saw it enter the state; if not, it has been there at least so long."""
    held: Held | None = None
    """Its holders, by a search through all processes that began when it was stuck; None where nothing refers to it."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round brought."""

    rows: tr.TransitionTable
    stacks: dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """(cpu, time_ns) of a row → kernel and user stack."""
    lost: int = 0
    """Records lost since the round before, as far as the kernel gave a number."""
    gaps: tuple[Gap, ...] = ()
    unjudged: int = 0
    """Rows left out since the round before because nothing could tell whether the FILTER wants them."""


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
        not_holders: processes that cannot be looked into and of which the caller knows that they hold nothing.

    What a change of state does not tell, a FILTER must not ask (`finwait.table.trace_filter.refusal`).
    """

    def __init__(
        self,
        wanted: Filter | None = None,
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
        self._wanted = wanted
        self._left_only = left_only
        self._hand_rows = rows
        self._not_holders = not_holders
        self._lookup = lookup
        events = [STATE_EVENT]
        if lookup:
            events += [_DESTROY_EVENT, *_RESET_EVENTS]
        elif resets:
            events += _RESET_EVENTS
        if retransmits:
            events.append(_RETRANSMIT_EVENT)
        self._events = events
        self._show = {tr.TRANSITION, tr.POLLED}
        if resets:
            self._show |= {tr.RECEIVE_RESET, tr.SEND_RESET}
        if retransmits:
            self._show.add(tr.RETRANSMIT)
        self._want_stacks = stacks
        self._try_tracing = tracing
        self._interval = interval
        self._buffer_kb = buffer_kb
        self._stack = ExitStack()
        self._tracing: Tracing | None = None
        self._destroys: DestroyEvents | None = None
        self._machine = Machine()
        self._held: dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        self._spaces: list[netns.NetNamespace] = []
        self._spaces_until = 0.0
        self._next_look = 0.0
        self._gap_seen: set[Gap] = set()
        self._devices: dict[tuple[int, int], str | None] = {}
        asked = frozenset() if wanted is None else wanted.columns
        # Ages need the clocks of `tcp_info`; what else a FILTER asks for comes with the rest.
        self._extensions = inet_diag.EXT_ALL if asked - _PLAIN else inet_diag.extension_mask(inet_diag.INFO)
        self._seen: dict[int, tuple[int, int]] = {}
        self._holders = Holders()
        self._lived: dict[int, dict[int, str]] = {}
        self._tasks: dict[int, tuple[Task, float]] = {}
        self._tasks_named = procfs.sees_all_processes()
        self._back = tr.TransitionTable.empty()
        """Rows that wait for their holder, and rows that wait behind one."""
        self._back_yes = np.zeros(0, np.bool_)
        """Which of them are wanted, whoever holds the others."""
        self._judged_at = -1
        self._cgroups: dict[int, str] = {}
        self._users: dict[int, str] = {}
        self._lost_told = 0
        self._unjudged_told = 0
        self._unjudged_stuck: set[tuple[int, int]] = set()
        self._rushed = 0
        self.unjudged = 0
        """Rows that were left out because nothing could tell whether the FILTER wants them."""
        self.follower = Follower()
        self.mode = "polling"
        self.why_polling = ""
        """Why it is not tracing; empty when it is, or when polling was asked for."""
        self.notes: list[str] = []
        self.looks = 0
        self.last_look: tr.Look | None = None

    # -- opening and closing -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start following; falls back to polling, and says so in `mode` and `why_polling`.

        Raises:
            KernelError: neither tracing nor looking at sockets is possible.
        """
        if self._try_tracing:
            ports = kernel_filter(self._wanted)
            filters = {STATE_EVENT: ports}
            if ports != "protocol == 6":
                # No field `protocol` there, and no need: these events are TCP's.
                filters[_RETRANSMIT_EVENT] = ports.removeprefix("protocol == 6 && ")
            try:
                self._tracing = self._stack.enter_context(
                    Tracing(
                        self._events, filters=filters, buffer_kb=self._buffer_kb, stacks=self._want_stacks
                    )
                )
                self.mode = "tracing"
            except FinwaitError as error:
                self.why_polling = f"{error}" + (f" ({error.hint})" if error.hint else "")
        if self._tracing is not None:
            self._check_lookups()
            if self._lookup:
                self._open_destroys()
            for event in self._tracing.missing:
                self.notes.append(f"this kernel has no tracepoint `{event}`")
            if self._tracing.removed:
                self.notes.append(f"removed what a killed finwait left: {', '.join(self._tracing.removed)}")
            if self._want_stacks and not self._tracing.user_stacks:
                self.notes.append("this kernel cannot record user stacks in a private instance")
            return self
        try:
            self._look()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

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
        self._destroys = destroys
        try:
            destroys.learn(netns.discover()[0])
        except KernelError:
            return

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

    def statistics(self) -> Statistics | None:
        """Return the ring buffer's own account; None when polling."""
        return None if self._tracing is None else self._tracing.statistics()

    # -- rounds ------------------------------------------------------------------------------------------

    def step(self, timeout: float) -> Round:
        """Follow for one round of at most ``timeout`` seconds (and the time that a look takes).

        Raises:
            KernelError: the trace was taken away from us.
            DecodeError: the kernel sent what it does not.
        """
        return self._poll(timeout) if self._tracing is None else self._trace(self._tracing, timeout)

    def _poll(self, timeout: float) -> Round:
        pause = self._next_look - time.monotonic()
        if pause > timeout:
            time.sleep(max(timeout, 0))
            return Round(tr.TransitionTable.empty())
        if pause > 0:
            time.sleep(pause)
        before = self.last_look
        look, gaps = self._look()
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
            if tracing.wait(min(timeout, _LIST_S) if len(self._back) else timeout):
                time.sleep(min(_GATHER_S, max(timeout, 0)))
                self._take(tracing)  # these rows wait for the look of the next round
            return self._round(tr.TransitionTable.empty())
        pause = self._next_look - time.monotonic()
        if pause > 0:  # too early for a look: only empty the ring buffer, so that nothing is lost
            time.sleep(min(pause, _GATHER_S, max(timeout, 0)))
            self._take(tracing)
            return self._round(tr.TransitionTable.empty())
        return self._join(tracing)

    def _join(self, tracing: Tracing) -> Round:
        """Look, then read the trace, then join: the trace says who lived through the look."""
        look, gaps = self._look_for(self.follower.questions())
        self._take(tracing)
        self.follower.look(look)
        if self._destroys is not None:
            self.follower.destroyed(self._destroys.drain())
        return self._round(self.follower.take(look.begun_ns), gaps)

    def _hand_out(self, tracing: Tracing) -> Round:
        """Without looking up, a row is known as well as it ever will be when it is in order."""
        self._take(tracing)
        return self._round(self.follower.take(time.clock_gettime_ns(time.CLOCK_MONOTONIC)))

    def _round(self, rows: tr.TransitionTable, gaps: tuple[Gap, ...] = (), *, last: bool = False) -> Round:
        """Let rows through the FILTER; return what came out of it, with all that was lost meanwhile."""
        chosen = self._sift(rows, last=last)
        waiting = [self.follower.oldest_ns, int(self._back.time_ns[0]) if len(self._back) else None]
        oldest = min((t for t in waiting if t is not None), default=None)
        stacks = self._held
        if stacks:
            self._held = {} if oldest is None else {k: v for k, v in stacks.items() if k[1] >= oldest}
        unjudged, self._unjudged_told = self.unjudged - self._unjudged_told, self.unjudged
        return Round(chosen, stacks, self._newly_lost(), gaps, unjudged)

    @property
    def waiting(self) -> int:
        """How many rows were traced and not handed out yet."""
        return self.follower.waiting + len(self._back)

    @property
    def bounded(self) -> list[str]:
        """What was cut off because it grew too large, one sentence each."""
        said = []
        if self.follower.forgotten:
            said.append(
                f"{self.follower.forgotten} connections were too many to remember: "
                "how long they had been in their state is not given"
            )
        if self._rushed:
            said.append(
                f"{self._rushed} rows came too fast to be looked up: namespace and owner are not given"
            )
        return said

    def finish(self) -> Round:
        """Take what is left after the last round, looked up once more."""
        if self._tracing is None:
            return self._round(tr.TransitionTable.empty(), last=True)
        self._take(self._tracing)
        found = self._join(self._tracing) if self._lookup else self._hand_out(self._tracing)
        rounds = [found]
        until = time.monotonic() + _LAST_S
        while len(self._back) and time.monotonic() < until:
            self._holders.search(self._back.inode.tolist(), _LIST_S, hurry=True)
            rounds.append(self._round(tr.TransitionTable.empty()))
        rounds.append(self._round(tr.TransitionTable.empty(), last=True))
        return Round(
            tr.TransitionTable.concatenate([r.rows for r in rounds]),
            {k: v for r in rounds for k, v in r.stacks.items()},
            sum(r.lost for r in rounds),
            found.gaps,
            sum(r.unjudged for r in rounds),
        )

    def _take(self, tracing: Tracing) -> None:
        drained = tracing.drain()
        records = tracepoint.walk(drained.buffer, drained.starts, drained.lengths, tracing.layout)
        order: tracepoint.ByteOrder = "little" if sys.byteorder == "little" else "big"
        table, cookies = tr.decode(records, drained.cpu, tracing.formats, byteorder=order)
        if (
            self._lookup
        ):  # at once: a program that only connects and leaves is gone when its row is handed out
            self._meet(table)
        self.follower.feed(table, cookies, drained.horizon, missed=records.missed)
        if self._want_stacks:
            self._held |= tr.stacks(records, drained.cpu, tracing.formats, byteorder=order)

    def _newly_lost(self) -> int:
        new = self.follower.lost - self._lost_told
        self._lost_told = self.follower.lost
        return new

    # -- the FILTER --------------------------------------------------------------------------------------

    def _sift(self, rows: tr.TransitionTable, *, last: bool = False) -> tr.TransitionTable:
        """Keep the kinds that were asked for and the rows that the FILTER wants; hold back what may yet be judged."""
        if not self._hand_rows:
            return tr.TransitionTable.empty()
        if len(rows):
            rows = rows.select(np.isin(rows.kind, sorted(self._show)))
            self._remember_actors(rows)
        if self._wanted is None:
            return rows
        yes, waits = self._verdict(rows) if len(rows) else (np.zeros(0, np.bool_),) * 2
        if len(self._back):
            old_yes, old_waits = self._again(last=last)
            rows = tr.TransitionTable.concatenate([self._back, rows])
            yes, waits = np.concatenate([old_yes, yes]), np.concatenate([old_waits, waits])
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        first, behind = self._behind(yes, waits, last | (rows.time_ns < now - int(_HOLDER_S * 1e9)))
        self._back, self._back_yes = rows.select(behind), yes[behind]
        return rows.select(np.flatnonzero(yes[:first]))

    def _again(self, *, last: bool) -> tuple[Mask, Mask]:
        """Judge the rows that were held back, if the search for their holders has got on."""
        yes = self._back_yes
        open_ = np.flatnonzero(~yes)
        self._holders.search(self._back.inode[open_].tolist(), _LIST_S)
        waits = ~yes
        if last or self._holders.steps != self._judged_at:
            self._judged_at = self._holders.steps
            yes, waits = yes.copy(), np.zeros(len(yes), np.bool_)
            yes[open_], waits[open_] = self._verdict(self._back.select(open_))
        return yes, waits

    def _behind(self, yes: Mask, waits: Mask, late: Mask) -> tuple[int, NDArray[np.intp]]:
        """Return up to which row rows can be handed out, and which are held back; count what waited in vain."""
        vain = waits & late
        self.unjudged += int(vain.sum())
        waits &= ~vain
        first = int(np.argmax(waits)) if waits.any() else len(waits)
        behind = np.flatnonzero(yes | waits)
        behind = behind[behind >= first]
        over = len(behind) - _MOST_HELD_BACK
        if over > 0:
            self.unjudged += int(waits[behind[:over]].sum())
            first, behind = int(behind[over]), behind[over:]
        return first, behind

    def _verdict(self, rows: tr.TransitionTable) -> tuple[Mask, Mask]:
        """Return which rows the FILTER wants and which wait for their holder; count what is beyond judging."""
        nobody = np.zeros(len(rows), np.bool_)
        holders = asks_for_holders(self._wanted)
        around = self._around(rows)
        nothing: list[tuple[object, ...]] = [()] * len(rows)
        yes, no = self._judge(rows, {**around, "pid": nothing, "comm": nothing}, nobody)
        waits = np.zeros(len(rows), np.bool_)
        if holders and (open_ := np.flatnonzero(~yes & ~no)).size:
            some = rows.select(open_)
            seen, whole, later = self._processes(some)
            part = {name: [values[k] for k in open_.tolist()] for name, values in around.items()}
            part["pid"] = [tuple(one) for one in seen]
            part["comm"] = [tuple(one.values()) for one in seen]
            yes[open_], no[open_] = self._judge(some, part, whole)
            waits[open_] = ~yes[open_] & ~no[open_] & later
        lacking = ~yes & ~no & ~waits
        if kernel_filter(self._wanted) != kernel_filter(None):
            # The kernel passes the first event of every connection, for it has no port yet; had it been the right one,
            # the next event had passed too.
            lacking &= (rows.sport != 0) & _peer_known(rows)
        self.unjudged += int(lacking.sum())
        return yes, waits

    def _judge(
        self, rows: tr.TransitionTable, around: Mapping[str, list[Any]], whole: Mask
    ) -> tuple[Mask, Mask]:
        """Judge rows by the state that they left, and by the one that they entered."""
        assert self._wanted is not None
        known: dict[str, Mask] = {name: rows.present(name) for name in tr.LOOKED_UP}
        known |= {"pid": whole, "comm": whole}
        chosen, peer = rows.sport != 0, _peer_known(rows)
        known |= {"sport": chosen, "src": chosen, "dport": peer, "dst": peer}
        spent = np.where(rows.present("in_old_ns"), rows.in_old_ns / 1e9, np.nan)
        left = {**around, "age_at_least_s": spent, "age_at_most_s": spent}
        yes, no = judge(self._wanted, rows.as_sockets("oldstate"), known, left)
        if self._left_only:
            return yes, no
        least = np.zeros(len(rows))
        most = np.where(rows.present("after_ns"), (rows.time_ns - rows.after_ns) / 1e9, 0.0)
        entered = {**around, "age_at_least_s": least, "age_at_most_s": most}
        then_yes, then_no = judge(self._wanted, rows.as_sockets("newstate"), known, entered)
        return yes | then_yes, no & then_no

    def _around(self, rows: tr.TransitionTable | SocketTable) -> dict[str, list[Any]]:
        """Return what is known of rows beyond columns and processes; None where it is not."""
        wanted = self._wanted
        needs = frozenset() if wanted is None else wanted.needs
        result: dict[str, list[Any]] = {}
        if "netns" in needs:
            known = rows.present("netns").tolist()
            result["netns"] = [
                (*self._names.get(n, ()), str(n)) if k else None
                for n, k in zip(rows.netns.tolist(), known, strict=True)
            ]
        if needs & {"cgroup", "pod", "container"}:
            paths = self.cgroups(rows.cgroup_id.tolist())
            known = rows.present("cgroup_id").tolist()
            found = [paths.get(n) if k else None for n, k in zip(rows.cgroup_id.tolist(), known, strict=True)]
            result["cgroup"] = list(found)
            places = [None if path is None else workload_of_path(path) for path in found]
            result["pod"] = [None if w is None else (w.pod_uid,) if w.pod_uid else () for w in places]
            result["container"] = [
                None if w is None else (w.container_id,) if w.container_id else () for w in places
            ]
        if "user" in needs:
            known = self._uid_known(rows).tolist()
            result["user"] = [
                self._user(uid) if k else None for uid, k in zip(rows.uid.tolist(), known, strict=True)
            ]
        if "dev" in needs:
            known = rows.present("ifindex").tolist()
            places_of = zip(rows.netns.tolist(), rows.ifindex.tolist(), known, strict=True)
            result["dev"] = [self._device(n, i) if k else None for n, i, k in places_of]
        return result

    @staticmethod
    def _uid_known(rows: tr.TransitionTable | SocketTable) -> Mask:
        if isinstance(rows, tr.TransitionTable):
            return rows.present("uid")
        return ~uid_unknown(rows, np.arange(len(rows)))

    def _user(self, uid: int) -> str:
        name = self._users.get(uid)
        if name is None:
            try:
                name = pwd.getpwuid(uid).pw_name
            except (KeyError, OverflowError):
                name = str(uid)
            self._users[uid] = name
        return name

    def _device(self, inode: int, ifindex: int) -> str | None:
        if not ifindex:
            return ""
        if (inode, ifindex) not in self._devices:
            space = [one for one in self._spaces if one.inode == inode]
            for where, names in interfaces(space).items():
                self._devices |= {(where, index): name for index, name in names.items()}
            self._devices.setdefault((inode, ifindex), None)
        return self._devices[inode, ifindex]

    # -- processes ---------------------------------------------------------------------------------------

    def _processes(self, rows: tr.TransitionTable) -> tuple[list[dict[int, str]], Mask, Mask]:
        """Return the processes that held each row's connection, whether those are all, and which may yet be found."""
        inodes, lives = rows.inode.tolist(), rows.life.tolist()
        over = rows.over.tolist()
        open_ = [i for i, o in zip(inodes, over, strict=True) if i and not o]
        held = self._holders.held(open_, self._movers(rows))
        if lacking := [i for i, one in held.items() if not one.whole]:
            self._holders.search(lacking, _LIST_S)
            held |= self._holders.held(lacking)
        seen: list[dict[int, str]] = []
        whole = np.zeros(len(rows), np.bool_)
        later = np.zeros(len(rows), np.bool_)
        for k, (inode, life, gone) in enumerate(zip(inodes, lives, over, strict=True)):
            one = held.get(inode)
            holding = {} if one is None else {owner.pid: owner.comm for owner in one.owners}
            self._live(life, holding)
            seen.append({**self._lived.get(life, {}), **holding})
            # Where nobody is known it may be over by now: that nobody holds it says nothing of who did.
            whole[k] = bool(seen[k]) and (gone or (one is not None and one.whole))
            later[k] = one is not None and not one.whole
        return seen, whole, later

    @property
    def _blind(self) -> bool:
        """Whether somebody may hold a socket whom we cannot see."""
        return bool(set(self._holders.unreadable) - self._not_holders)

    @property
    def blind_gaps(self) -> tuple[Gap, ...]:
        """Processes that may hold sockets and cannot be looked into."""
        hidden = sorted(set(self._holders.unreadable) - self._not_holders)
        gaps = []
        if 0 in hidden:
            needs = "the initial pid namespace: run on the host, or with hostPID"
            gaps.append(
                Gap("pid 0", "see processes outside this pid namespace (or hidden by hidepid)", needs)
            )
        if known := [pid for pid in hidden if pid]:
            one = len(known) == 1
            who, doing = (f"pid {known[0]}", "its") if one else (f"{len(known)} processes", "their")
            needs = "CAP_SYS_PTRACE, or a policy that allows it; `--not-holder PID` leaves a process out"
            gaps.append(Gap(who, f"list {doing} sockets", needs))
        return tuple(gaps)

    def _live(self, life: int, processes: dict[int, str]) -> None:
        if life < 0 or not processes:
            return
        known = self._lived.pop(life, {})  # the one that was met last stands last
        if len(known) < 64:
            known |= processes
        self._lived[life] = known
        if len(self._lived) > _MOST_REMEMBERED:
            for old in list(self._lived)[: _MOST_REMEMBERED // 8]:
                del self._lived[old]

    def _movers(self, rows: tr.TransitionTable) -> set[int]:
        """Return the tasks that moved rows in a system call of theirs, processes of their own."""
        if not self._tasks_named:
            return set()
        return set(rows.pid[~rows.interrupt & (rows.pid > 0) & (rows.kind != tr.POLLED)].tolist())

    def _meet(self, rows: tr.TransitionTable) -> None:
        """Learn what the tasks are that moved rows, before they end."""
        now = time.monotonic()
        for tid in self._movers(rows):
            met = self._tasks.get(tid)
            if met is not None and now - met[1] < _TASK_S:
                continue
            one = task(tid)
            if one is not None:
                self._tasks.pop(tid, None)
                self._tasks[tid] = one, now
        if len(self._tasks) > _MOST_REMEMBERED:
            for old in list(self._tasks)[: _MOST_REMEMBERED // 8]:
                del self._tasks[old]

    def _known_tasks(self, rows: tr.TransitionTable) -> dict[int, Task]:
        """Return the tasks that moved rows, but for those that are somebody else by now."""
        if not self._tasks_named:
            return {}
        some = ~rows.interrupt & (rows.pid > 0) & (rows.kind != tr.POLLED)
        first: dict[int, int] = {}
        for tid, at in zip(rows.pid[some].tolist(), rows.time_ns[some].tolist(), strict=True):
            first[tid] = min(at, first.get(tid, at))
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        return {
            tid: met[0]
            for tid, at in first.items()
            if (met := self._tasks.get(tid)) is not None and met[0].start_ticks * tick <= at + boot + tick
        }

    def _remember_actors(self, rows: tr.TransitionTable) -> None:
        """Remember which processes moved a connection through a descriptor of theirs."""
        if not self._lookup or not len(rows):
            return
        pairs = rows.oldstate.astype(np.int64) << 8 | rows.newstate.astype(np.int64)
        acts = np.isin(pairs, [old << 8 | new for old, new in _BY_DESCRIPTOR])
        some = rows.select(acts & ~rows.interrupt & (rows.kind == tr.TRANSITION) & (rows.life >= 0))
        tasks = self._known_tasks(some)
        for life, tid in dict.fromkeys(zip(some.life.tolist(), some.pid.tolist(), strict=True)):
            one = tasks.get(tid)
            if one is not None and not one.kernel:
                self._live(life, {one.pid: one.comm})

    def who(self, rows: tr.TransitionTable) -> Who:
        """Return who had to do with rows that are about to be told."""
        if not self._lookup:
            self._meet(rows)
        tasks = self._known_tasks(rows)
        gone = set(rows.life[rows.over].tolist())
        owners = self.owners(
            rows.inode[~rows.over].tolist(), [t for t, one in tasks.items() if not one.kernel]
        )
        for inode, life, over in zip(
            rows.inode.tolist(), rows.life.tolist(), rows.over.tolist(), strict=True
        ):
            if not over and inode in owners:
                self._live(life, {one.pid: one.comm for one in owners[inode]})
        last: dict[int, tuple[Owner, ...]] = {}
        for life in gone:
            if known := self._lived.get(life):
                pid = next(reversed(known))
                last[life] = (Owner(pid, known[pid]),)
        unknown = set(rows.pid[~rows.interrupt & (rows.pid > 0)].tolist()) - tasks.keys()
        return Who(owners, last, tasks, self._thread_names(unknown))

    def owners(self, inodes: Iterable[int], likely: Iterable[int] = ()) -> dict[int, tuple[Owner, ...]]:
        """Return who holds sockets now, by inode: no process for one that nobody holds.

        A socket whose holder is not known (yet) is not in it. Likely tasks are looked into first, all processes a
        fifth of a second at a time: with hundreds of thousands of descriptors that takes seconds, and transitions do
        not wait.

        Args:
            inodes: of the sockets; 0 is nobody's.
            likely: tasks that probably hold them, such as those that moved them.
        """
        held = self._holders.held(inodes, likely)
        if lacking := [i for i, one in held.items() if not one.owners and not one.whole]:
            self._holders.search(lacking, _LIST_S)
            held |= self._holders.held(lacking)
        blind = self._blind
        return {i: one.owners for i, one in held.items() if one.owners or (one.whole and not blind)}

    def _thread_names(self, tids: set[int]) -> dict[int, str]:
        """Return what tracefs remembers of the names of threads that are gone."""
        if self._tracing is None or not tids:
            return {}
        return {tid: printable(name) for tid, name in self._tracing.task_names(tids).items()}

    # -- looking -----------------------------------------------------------------------------------------

    def _look_for(self, lives: NDArray[Any]) -> tuple[tr.Look, tuple[Gap, ...]]:
        """Look for some connections: one by one when they are few, else by looking at everything."""
        now = time.monotonic()
        if now >= self._spaces_until:
            self._spaces, _ = netns.discover(self._holders.spaces)
            self._spaces_until = now + max(1.0, _SHARE * (time.monotonic() - now))
            self._name(self._spaces)
            if self._destroys is not None:
                with suppress(KernelError):
                    self._destroys.learn(self._spaces)
        if len(lives) * len(self._spaces) > _QUESTIONS:
            return self._look()
        questions = [
            Question(
                (int(o["s0"]), int(o["s1"])), (int(o["d0"]), int(o["d1"])), int(o["sport"]), int(o["dport"]),
                int(o["ifindex"]) if o["seen"] else None,
            )
            for o in lives
        ]  # fmt: skip
        begun_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        sockets, gaps = ask(questions, self._spaces) if questions else (SocketTable.empty(), [])
        ended_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        cost = (ended_ns - begun_ns) / 1e9
        self._next_look = time.monotonic() + max(self._interval, _SHARE * cost)
        self.looks += 1
        return tr.Look(sockets, begun_ns, ended_ns), self._fresh(gaps)

    def _name(self, spaces: Iterable[netns.NetNamespace | Namespace]) -> None:
        """Remember what namespaces are called; the rows of one that is gone meanwhile want its name, too."""
        if len(self._names) > _MOST_REMEMBERED:
            self._names = {}
        self._names = {**self._names, **{one.inode: tuple(map(printable, one.names)) for one in spaces}}

    def _fresh(self, gaps: Iterable[Gap]) -> tuple[Gap, ...]:
        """Return the gaps that were not told before."""
        if len(self._gap_seen) > _MOST_REMEMBERED:
            self._gap_seen = set()
        left_out = {f"pid {pid}" for pid in self._not_holders}
        fresh = tuple(gap for gap in gaps if gap not in self._gap_seen and gap.where not in left_out)
        self._gap_seen.update(fresh)
        return fresh

    def _look(self) -> tuple[tr.Look, tuple[Gap, ...]]:
        wanted = self._wanted
        bytecode = wanted.bytecode() if wanted is not None and only_ports_and_hosts(wanted.root) else b""
        plan = Plan(
            states=tcp.ALL_STATES,
            extensions=self._extensions,
            bytecode=bytecode,
            mptcp=False,
            conntrack=False,
            files=False,
            descriptors=False,
            established_limit=None,
        )
        begun = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        observation = self._machine.observe(plan)
        sockets = decode.sockets(observation)
        ended = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._next_look = time.monotonic() + max(self._interval, _SHARE * (ended - begun) / 1e9)
        self._name(observation.namespaces)
        self.looks += 1
        look = self.last_look = tr.Look(sockets, begun, ended)
        self._first_seen(look)
        return look, self._fresh(observation.gaps)

    def look_now(self) -> tuple[Gap, ...]:
        """Look at the sockets if it is time for it, although nothing was traced (ages go on).

        Returns:
            What could not be seen and was not told before.
        """
        if time.monotonic() < self._next_look:
            return ()
        look, gaps = self._look()
        if self._tracing is not None:
            self._take(self._tracing)
            self.follower.look(look)
        return gaps

    def _first_seen(self, look: tr.Look) -> None:
        """Remember since when each socket is known to be in its closing state, by cookie."""
        sockets = look.sockets
        state = sockets["state"].astype(np.int64)
        closing = ((tcp.CLOSING_STATES >> state) & 1 == 1) & (sockets["timer"] != 3)
        seen: dict[int, tuple[int, int]] = {}
        rows = np.flatnonzero(closing)
        for cookie, now in zip(sockets["cookie"][rows].tolist(), state[rows].tolist(), strict=True):
            before = self._seen.get(cookie)
            seen[cookie] = before if before is not None and before[0] == now else (now, look.begun_ns)
        self._seen = seen

    def stuck(
        self, longer_than_s: float, skip: set[tuple[int, int]] | None = None, *, last: bool = False
    ) -> list[Stuck]:
        """Return the sockets of the last look that are in a closing state for longer than this.

        Minisockets are not among them: they go by themselves. The age is exact where the transition was seen, else a
        lower bound: the longer of "seen there for" and what the socket's own clocks say. A socket that somebody refers
        to comes when every process was looked into, so that all of its holders are told; it stays stuck meanwhile.

        Args:
            longer_than_s: in seconds.
            skip: (key, state) of those that are known already; what is not stuck any more is taken out of it.
            last: do not wait for holders any longer.
        """
        look = self.last_look
        if look is None:
            return []
        rows, age_ns, exact = self._closing(look)
        sockets = look.sockets
        keys = list(zip(sockets["cookie"][rows].tolist(), sockets["state"][rows].tolist(), strict=True))
        if skip is not None:
            skip.intersection_update(keys)
        self._unjudged_stuck.intersection_update(keys)
        new = np.array(
            [key not in (skip or ()) and key not in self._unjudged_stuck for key in keys], np.bool_
        )
        new &= age_ns >= longer_than_s * 1e9
        rows, age_ns, exact = rows[new], age_ns[new], exact[new]
        yes, waits = self._wanted_of(sockets.select(rows), age_ns, exact)
        if last:
            self.unjudged += int(waits.sum())
        rows, age_ns, exact = rows[yes], age_ns[yes], exact[yes]
        held = self._all_holders(sockets["inode"][rows].tolist())
        found = []
        for row, age, sure in zip(rows.tolist(), age_ns.tolist(), exact.tolist(), strict=True):
            inode = int(sockets["inode"][row])
            one = held.get(inode)
            if one is not None and not one.whole and not last:
                continue
            found.append(
                Stuck(
                    int(sockets["cookie"][row]), int(sockets["state"][row]), int(sockets["netns"][row]),
                    (int(sockets["src"][row, 0]), int(sockets["src"][row, 1])),
                    (int(sockets["dst"][row, 0]), int(sockets["dst"][row, 1])),
                    int(sockets["sport"][row]), int(sockets["dport"][row]), inode,
                    int(sockets["cgroup_id"][row]), int(age), bool(sure), one,
                )
            )  # fmt: skip
        return found

    def _closing(self, look: tr.Look) -> tuple[NDArray[np.intp], NDArray[np.int64], Mask]:
        """Return the rows of a look that are in a closing state, for how long, and whether that is exact."""
        exact = {
            int(life["cookie"]): (int(life["state"]), int(life["since"]))
            for life in self.follower.staying(look.ended_ns, 0)
            if life["cookie"]
        }
        sockets = look.sockets
        rows = np.flatnonzero(np.isin(sockets["cookie"], np.array(list(self._seen), np.uint64)))
        rows = rows[sockets["timer"][rows] != 3]
        least_ms = ages(sockets)[0][rows].tolist()
        age_ns = np.zeros(len(rows), np.int64)
        sure = np.zeros(len(rows), np.bool_)
        for k, row in enumerate(rows.tolist()):
            cookie = int(sockets["cookie"][row])
            known = exact.get(cookie)
            if known is not None and known[0] == int(sockets["state"][row]):
                age_ns[k], sure[k] = look.ended_ns - known[1], True
            else:
                age_ns[k] = max(look.ended_ns - self._seen[cookie][1], least_ms[k] * 1_000_000)
        return rows, age_ns, sure

    def _all_holders(self, inodes: Iterable[int]) -> dict[int, Held]:
        """Return the holders of sockets, and go on looking for all of them."""
        held = self._holders.held(inodes)
        if lacking := [i for i, one in held.items() if not one.whole]:
            self._holders.search(lacking, _LIST_S)
            held |= self._holders.held(lacking)
        return held

    def _wanted_of(self, sockets: SocketTable, age_ns: NDArray[np.int64], exact: Mask) -> tuple[Mask, Mask]:
        """Return which sockets of a look the FILTER wants, and of which only their holders can tell."""
        wanted = self._wanted
        n = len(sockets)
        waits = np.zeros(n, np.bool_)
        if wanted is None or not n:
            return np.ones(n, np.bool_), waits
        least = age_ns / 1e9
        most = np.where(exact, least, np.nan)
        around: dict[str, Any] = {**self._around(sockets), "age_at_least_s": least, "age_at_most_s": most}
        uid = self._uid_known(sockets)
        pids: list[tuple[object, ...]] = [()] * n
        comms = list(pids)
        whole = np.zeros(n, np.bool_)
        known = {"uid": uid, "pid": whole, "comm": whole}
        yes, no = judge(wanted, sockets, known, {**around, "pid": pids, "comm": comms})
        if asks_for_holders(wanted) and (open_ := np.flatnonzero(~yes & ~no)).size:
            inodes = sockets["inode"][open_].tolist()
            held = self._all_holders(inodes)
            for k, inode in zip(open_.tolist(), inodes, strict=True):
                one = held.get(inode, Held((), True))
                whole[k] = one.whole and (bool(one.owners) or not inode or not self._blind)
                waits[k] = not one.whole
                pids[k] = tuple(owner.pid for owner in one.owners)
                comms[k] = tuple(owner.comm for owner in one.owners)
            yes, no = judge(wanted, sockets, known, {**around, "pid": pids, "comm": comms})
        waits &= ~yes & ~no
        lacking = ~yes & ~no & ~waits
        if lacking.any() and not exact.all():  # what is undecided for its age alone is asked again: ages grow
            around["age_at_most_s"] = least
            as_if_yes, as_if_no = judge(wanted, sockets, known, {**around, "pid": pids, "comm": comms})
            lacking &= ~as_if_yes & ~as_if_no
        self.unjudged += int(lacking.sum())
        cookies, states = sockets["cookie"].tolist(), sockets["state"].tolist()
        self._unjudged_stuck.update((cookies[k], states[k]) for k in np.flatnonzero(lacking).tolist())
        return yes, waits

    # -- names -------------------------------------------------------------------------------------------

    def netns_names(self) -> dict[int, tuple[str, ...]]:
        """Return what people call the namespaces that were looked into."""
        return self._names

    def cgroups(self, ids: Iterable[int]) -> dict[int, str]:
        """Return the paths of cgroups by id; what was found once stays known after the cgroup is gone."""
        wanted = {i for i in ids if i}
        new = wanted - self._cgroups.keys()
        if new:
            if len(self._cgroups) > _MOST_REMEMBERED:
                self._cgroups = {}
            self._cgroups |= cgroup.paths(new)
        return {i: self._cgroups[i] for i in wanted if i in self._cgroups}

    def reasons(self) -> dict[int, str]:
        """Return the kernel's words for why a reset is sent, from the event's own format file."""
        if self._tracing is None:
            return {}
        for found in self._tracing.formats.values():
            if "reason" in found.symbols:
                return found.symbols["reason"]
        return {}


def _peer_known(rows: tr.TransitionTable) -> Mask:
    """Return which rows tell of the other end: a listener has none, and a new connection's is filled in later."""
    cloned = (rows.oldstate == tcp.LISTEN) & (rows.newstate == tcp.SYN_RECV)
    listening = (rows.oldstate == tcp.LISTEN) | (rows.newstate == tcp.LISTEN)
    return (rows.dport != 0) | (listening & ~cloned)


_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")


def pod_uid(path: str) -> str:
    """Return the pod's uid that a cgroup path names (cgroupfs or systemd spelling); empty for none."""
    match = _POD.search(path)
    return match[1].replace("_", "-") if match else ""


def _names(spaces: Iterable[netns.NetNamespace | Namespace]) -> dict[int, tuple[str, ...]]:
    return {space.inode: tuple(map(printable, space.names)) for space in spaces}
