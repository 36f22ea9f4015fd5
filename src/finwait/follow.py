"""Following connections as they change state: where the tracing edge and the joining core meet.

Theory of operation. `Following.step` is one round: sleep until something happens, look at the sockets, take
the trace, join, hand out rows. The look comes *before* the trace is read, so that the trace says which
sockets lived through the look and which were already gone. A look costs what it costs (milliseconds, or a
second at a million sockets); rounds are spaced so that looking takes at most a tenth of one CPU.

Without tracefs (not there, locked down, not permitted) the same rounds compare one look with the next.
`Following.mode` and `Following.cannot_see` say which of the two it is and what that misses.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.assemble import ages
from finwait.errors import FinwaitError, Gap, KernelError
from finwait.kernel import cgroup, netns, procfs
from finwait.kernel.destroy_events import DestroyEvents
from finwait.kernel.lookup import Question, ask
from finwait.kernel.observe import Machine, Plan
from finwait.kernel.tracefs import Statistics, Tracing
from finwait.table import decode
from finwait.table import transitions as tr
from finwait.table.filter import Filter
from finwait.table.schema import Mask
from finwait.table.sockets import SocketTable
from finwait.table.trace_filter import kernel_filter, only_ports_and_hosts
from finwait.table.units import printable
from finwait.uapi import inet_diag, tcp, tracepoint
from finwait.uapi.observation import Namespace

__all__ = ["Following", "Owner", "Round", "Stuck", "pod_uid"]

STATE_EVENT: Final = "sock/inet_sock_set_state"
_DESTROY_EVENT: Final = "tcp/tcp_destroy_sock"
_RESET_EVENTS: Final = ("tcp/tcp_send_reset", "tcp/tcp_receive_reset")
_RETRANSMIT_EVENT: Final = "tcp/tcp_retransmit_skb"
_GATHER_S: Final = 0.05  # after the first record: let more come, so that a burst costs one round
_SHARE: Final = 10  # a look may take one tenth of the time
_LIST_S: Final = 0.2
_QUESTIONS: Final = 4000  # so many single questions cost about what a dump of a usual machine costs

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
class Owner:
    """A process that holds a socket."""

    pid: int
    comm: str

    def __str__(self) -> str:
        return f"{self.comm}[{self.pid}]"


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


@dataclass(frozen=True, slots=True)
class Round:
    """What one round brought."""

    rows: tr.TransitionTable
    stacks: dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """(cpu, time_ns) of a row → kernel and user stack."""
    lost: int = 0
    """Records lost since the round before, as far as the kernel gave a number."""
    gaps: tuple[Gap, ...] = ()


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
    ) -> None:
        self._wanted = wanted
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
        self._seen: dict[int, tuple[int, int]] = {}
        self._owners: dict[int, tuple[Owner, ...]] = {}
        self._owners_at = 0.0
        self._unlisted: list[int] = []
        self._cgroups: dict[int, str] = {}
        self._lost_told = 0
        self.follower = tr.Follower()
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
        return Round(self._select(rows), gaps=gaps)

    def _trace(self, tracing: Tracing, timeout: float) -> Round:
        if not self._lookup:
            if not tracing.wait(timeout):
                return Round(tr.TransitionTable.empty())
            time.sleep(min(_GATHER_S, max(timeout, 0)))
            return self._hand_out(tracing)
        if not self.follower.waiting:
            if not tracing.wait(timeout):
                return Round(tr.TransitionTable.empty())
            time.sleep(min(_GATHER_S, max(timeout, 0)))
            self._take(tracing)  # these rows wait for the look of the next round
            return Round(tr.TransitionTable.empty(), lost=self._newly_lost())
        pause = self._next_look - time.monotonic()
        if pause > 0:  # too early for a look: only empty the ring buffer, so that nothing is lost
            time.sleep(min(pause, _GATHER_S, max(timeout, 0)))
            self._take(tracing)
            return Round(tr.TransitionTable.empty(), lost=self._newly_lost())
        return self._join(tracing)

    def _join(self, tracing: Tracing) -> Round:
        """Look, then read the trace, then join: the trace says who lived through the look."""
        look, gaps = self._look_for(self.follower.questions())
        self._take(tracing)
        self.follower.look(look)
        if self._destroys is not None:
            self.follower.destroyed(self._destroys.drain())
        return self._rows(look.begun_ns, gaps)

    def _hand_out(self, tracing: Tracing) -> Round:
        """Without looking up, a row is known as well as it ever will be when it is in order."""
        self._take(tracing)
        return self._rows(time.clock_gettime_ns(time.CLOCK_MONOTONIC), ())

    def _rows(self, until_ns: int, gaps: tuple[Gap, ...]) -> Round:
        rows = self.follower.take(until_ns)
        oldest = self.follower.oldest_ns
        stacks = self._held
        if stacks:
            self._held = {} if oldest is None else {k: v for k, v in stacks.items() if k[1] >= oldest}
        return Round(self._select(rows), stacks, self._newly_lost(), gaps)

    def finish(self) -> Round:
        """Take what is left after the last round, looked up once more."""
        if self._tracing is None:
            return Round(tr.TransitionTable.empty())
        self._take(self._tracing)
        return self._join(self._tracing) if self._lookup else self._hand_out(self._tracing)

    def _take(self, tracing: Tracing) -> None:
        drained = tracing.drain()
        records = tracepoint.walk(drained.buffer, drained.starts, drained.lengths, tracing.layout)
        order: tracepoint.ByteOrder = "little" if sys.byteorder == "little" else "big"
        table, cookies = tr.decode(records, drained.cpu, tracing.formats, byteorder=order)
        self.follower.feed(table, cookies, drained.horizon, missed=records.missed)
        if self._want_stacks:
            self._held |= tr.stacks(records, drained.cpu, tracing.formats, byteorder=order)

    def _newly_lost(self) -> int:
        new = self.follower.lost - self._lost_told
        self._lost_told = self.follower.lost
        return new

    def _select(self, rows: tr.TransitionTable) -> tr.TransitionTable:
        """Keep the rows whose old or new state makes them match, and the kinds that were asked for."""
        if not len(rows):
            return rows
        mask = np.isin(rows.kind, sorted(self._show))
        wanted = self._wanted
        if wanted is not None and mask.any():
            some = np.flatnonzero(mask)
            table = rows.select(some)
            context = self._context(table) if wanted.needs else None
            match = wanted.mask(table.as_sockets("oldstate"), context)
            match |= wanted.mask(table.as_sockets("newstate"), context)
            # A port that was never told (a connection refused at once) matches nothing by chance.
            mask[some[~match]] = False
        return rows if mask.all() else rows.select(mask)

    def _context(self, table: tr.TransitionTable) -> dict[str, list[object]]:
        """Return what a FILTER may ask beyond columns: holders and pods, as far as we know them."""
        owners = self.owners(table.inode.tolist())
        holders = [owners.get(i) for i in table.inode.tolist()]
        paths = self.cgroups(table.cgroup_id.tolist())
        names = self.netns_names()
        cgroups: list[str | None] = [paths.get(i) for i in table.cgroup_id.tolist()]
        n = len(table)
        age = np.where(table.present("in_old_ns"), table.in_old_ns / 1e9, np.nan).tolist()
        nothing: list[object] = [None] * n
        return {
            "pid": [None if h is None else tuple(o.pid for o in h) for h in holders],
            "comm": [None if h is None else tuple(o.comm for o in h) for h in holders],
            "cgroup": list(cgroups),
            "pod": [None if c is None else tuple(filter(None, (pod_uid(c),))) for c in cgroups],
            "netns": [names.get(i) for i in table.netns.tolist()],
            "age_at_least_s": age,
            "age_at_most_s": age,
            "autobound": nothing, "container": nothing, "dev": nothing, "rule": nothing,
            "severity": nothing, "user": nothing, "also": nothing, "variant": nothing,
        }  # fmt: skip

    # -- looking -----------------------------------------------------------------------------------------

    def _look_for(self, lives: NDArray[Any]) -> tuple[tr.Look, tuple[Gap, ...]]:
        """Look for some connections: one by one when they are few, else by looking at everything."""
        now = time.monotonic()
        if now >= self._spaces_until:
            self._spaces, _ = netns.discover()
            self._spaces_until = now + max(1.0, _SHARE * (time.monotonic() - now))
            self._names = _names(self._spaces)
            if self._destroys is not None:
                with suppress(KernelError):
                    self._destroys.learn(self._spaces)
        if len(lives) * len(self._spaces) > _QUESTIONS:
            return self._look()
        questions: list[Question] = [
            ((int(o["s0"]), int(o["s1"])), (int(o["d0"]), int(o["d1"])), int(o["sport"]), int(o["dport"]))
            for o in lives
        ]
        begun_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        sockets, gaps = ask(questions, self._spaces) if questions else (SocketTable.empty(), [])
        ended_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        cost = (ended_ns - begun_ns) / 1e9
        self._next_look = time.monotonic() + max(self._interval, _SHARE * cost)
        self.looks += 1
        return tr.Look(sockets, begun_ns, ended_ns), self._fresh(gaps)

    def _fresh(self, gaps: Iterable[Gap]) -> tuple[Gap, ...]:
        """Return the gaps that were not told before."""
        fresh = tuple(gap for gap in gaps if gap not in self._gap_seen)
        self._gap_seen.update(fresh)
        return fresh

    def _look(self) -> tuple[tr.Look, tuple[Gap, ...]]:
        wanted = self._wanted
        bytecode = wanted.bytecode() if wanted is not None and only_ports_and_hosts(wanted.root) else b""
        plan = Plan(
            states=tcp.ALL_STATES,
            extensions=inet_diag.extension_mask(inet_diag.INFO),
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
        self._names = _names(observation.namespaces)
        self.looks += 1
        look = self.last_look = tr.Look(sockets, begun, ended)
        self._first_seen(look)
        return look, self._fresh(observation.gaps)

    def look_now(self) -> None:
        """Look at the sockets if it is time for it, although nothing was traced (ages go on)."""
        if time.monotonic() >= self._next_look:
            look, _ = self._look()
            if self._tracing is not None:
                self._take(self._tracing)
                self.follower.look(look)

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

    def stuck(self, longer_than_s: float) -> list[Stuck]:
        """Return the sockets of the last look that are in a closing state for longer than this.

        Minisockets are not among them: they go by themselves. The age is exact where the transition was
        seen, else a lower bound: the longer of "seen there for" and what the socket's own clocks say.
        """
        look = self.last_look
        if look is None:
            return []
        exact = {
            int(life["cookie"]): (int(life["state"]), int(life["since"]))
            for life in self.follower.staying(look.ended_ns, 0)
            if life["cookie"]
        }
        sockets = look.sockets
        index = np.flatnonzero(np.isin(sockets["cookie"], np.array(list(self._seen), np.uint64)))
        index = index[sockets["timer"][index] != 3]
        least_ms = ages(sockets)[0]
        found = []
        for row in index.tolist():
            cookie, state = int(sockets["cookie"][row]), int(sockets["state"][row])
            known = exact.get(cookie)
            if known is not None and known[0] == state:
                age, sure = look.ended_ns - known[1], True
            else:
                since = self._seen[cookie][1]
                age, sure = max(look.ended_ns - since, int(least_ms[row]) * 1_000_000), False
            if age < longer_than_s * 1e9:
                continue
            found.append(
                Stuck(
                    cookie, state, int(sockets["netns"][row]),
                    (int(sockets["src"][row, 0]), int(sockets["src"][row, 1])),
                    (int(sockets["dst"][row, 0]), int(sockets["dst"][row, 1])),
                    int(sockets["sport"][row]), int(sockets["dport"][row]),
                    int(sockets["inode"][row]), int(sockets["cgroup_id"][row]), age, sure,
                )
            )  # fmt: skip
        if self._wanted is None or not found:
            return found
        table = sockets.select(index)
        keep = set(table["cookie"][self.matching(table)].tolist())
        return [one for one in found if one.key in keep]

    def matching(self, sockets: SocketTable) -> Mask:
        """Return which sockets of a look are wanted."""
        if self._wanted is None:
            return np.ones(len(sockets), np.bool_)
        context = None
        if self._wanted.needs:
            names = ("netns", "inode", "cgroup_id")
            context = self._context(tr.TransitionTable.from_columns({name: sockets[name] for name in names}))
        return self._wanted.mask(sockets, context)

    # -- names -------------------------------------------------------------------------------------------

    def netns_names(self) -> dict[int, tuple[str, ...]]:
        """Return what people call the namespaces of the last look."""
        return self._names

    def owners(self, inodes: Iterable[int], likely: Iterable[int] = ()) -> dict[int, tuple[Owner, ...]]:
        """Return who holds the sockets, by inode; an inode whose holder is not known (yet) is not in it.

        The descriptors of likely processes are listed first, those of all others a fifth of a second at a
        time: with hundreds of thousands of descriptors that takes seconds, and transitions do not wait.

        Args:
            inodes: of the sockets; 0 is nobody's.
            likely: processes that probably hold them, such as those that moved them.
        """
        wanted = {i for i in inodes if i}
        if wanted - self._owners.keys():
            self._list_descriptors(set(likely))
        now = time.monotonic()
        if wanted - self._owners.keys() and (self._unlisted or now >= self._owners_at):
            if not self._unlisted:
                self._unlisted = procfs.pids()
                self._owners_at = now + 1.0
                if len(self._owners) > 100_000:  # most of them were closed long ago
                    self._owners = {}
            while self._unlisted and time.monotonic() < now + _LIST_S:
                self._list_descriptors([self._unlisted.pop(0)])
            # As much time for everything else as for this, and much more when it is done.
            self._owners_at = time.monotonic() + _SHARE * (time.monotonic() - now)
        return {i: self._owners[i] for i in wanted if i in self._owners}

    @property
    def listing(self) -> bool:
        """Whether there are processes that `owners` has not looked into yet."""
        return bool(self._unlisted)

    def _list_descriptors(self, pids: Iterable[int]) -> None:
        found, _ = procfs.descriptors(pids)
        names: dict[int, str] = {}
        for inode, pid in zip(found.inode.tolist(), found.pid.tolist(), strict=True):
            known = self._owners.get(inode, ())
            if all(owner.pid != pid for owner in known):
                name = names[pid] if pid in names else names.setdefault(pid, _comm(pid))
                self._owners[inode] = (*known, Owner(pid, name))

    def cgroups(self, ids: Iterable[int]) -> dict[int, str]:
        """Return the paths of cgroups by id; what was found once stays known after the cgroup is gone."""
        wanted = {i for i in ids if i}
        new = wanted - self._cgroups.keys()
        if new:
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

    def task_names(self, pids: Iterable[int]) -> dict[int, str]:
        """Return names of tasks: of living ones from /proc, of others what tracefs remembers."""
        wanted = set(pids)
        found = {pid: name for pid in wanted if (name := _comm(pid))}
        if self._tracing is not None and wanted - found.keys():
            named = self._tracing.task_names(wanted - found.keys())
            found |= {pid: printable(name) for pid, name in named.items()}
        return found


_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")


def pod_uid(path: str) -> str:
    """Return the pod's uid that a cgroup path names (cgroupfs or systemd spelling); empty for none."""
    match = _POD.search(path)
    return match[1].replace("_", "-") if match else ""


def _names(spaces: Iterable[netns.NetNamespace | Namespace]) -> dict[int, tuple[str, ...]]:
    return {space.inode: tuple(map(printable, space.names)) for space in spaces}


def _comm(pid: int) -> str:
    data = procfs.read(f"/proc/{pid}/comm")
    return "" if data is None else printable(data.removesuffix(b"\n").decode("utf-8", "surrogateescape"))
