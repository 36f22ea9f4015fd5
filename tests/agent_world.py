"""A machine of values with a clock of its own, which answers what the agent asks: a day passes in seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from msgspec.structs import replace

from finwait.agent.episodes import Cause, Diagnosed, Instant
from finwait.agent.leak import Used
from finwait.agent.verdict import DiagnosedLook, Filters
from finwait.errors import Gap, KernelError
from finwait.kernel.closing import ClosingWalk, Counters, CountersFirst
from finwait.kernel.listening import ListenerQueue
from finwait.kernel.lookup import Question
from finwait.kernel.netns import NetNamespace
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp
from finwait.uapi.cluster import ClusterNames

S = 1_000_000_000
WALL = 1_700_000_000 * S
MAPPED = 0xFFFF << 32


@dataclass
class Sock:
    """One socket or minisocket."""

    cookie: int
    state: int
    netns: int = 1
    sport: int = 40000
    dport: int = 80
    held: bool = True
    pid: int = 0
    others: tuple[int, ...] = ()
    """The other processes that hold it."""
    other: int = 0
    since_ns: int = 0
    """What the kernel's clock of the last ACK says; a later one resets it."""
    entered_ns: int = -1
    """When it really entered its state; −1 for the same."""
    clock: bool = True
    """Whether tcp_info tells since when: a minisocket has none."""
    confidence: str = "certain"
    """How sure a diagnosis is of it."""
    pod: str = ""
    """Uid of the pod that it is of."""
    waiting: int = 0
    """Of a listener: connections in its accept queue."""
    turned: bool = False
    """Whether it has the addresses of the others the other way round."""

    @property
    def door(self) -> ListenerQueue:
        """A listener, as it is listed."""
        return ListenerQueue(self.cookie, (0, MAPPED | 0x0A000001), self.sport, self.waiting, 128)


def table(socks: Sequence[Sock], now_ns: int) -> SocketTable:
    """Return sockets as the kernel tells them at a time of CLOCK_BOOTTIME."""
    if not socks:
        return SocketTable.empty()
    ages = [max(0, (now_ns - s.since_ns) // 1_000_000) for s in socks]
    entered = [s.since_ns if s.entered_ns < 0 else s.entered_ns for s in socks]
    data = [max(0, (now_ns - at) // 1_000_000) + 1000 for at in entered]
    clocks = [s.clock and s.held for s in socks]
    return SocketTable.from_columns(
        {
            "netns": [s.netns for s in socks],
            "protocol": [6] * len(socks),
            "family": [2] * len(socks),
            "state": [s.state for s in socks],
            "timer": [0 if s.held or s.state == tcp.ESTABLISHED else 3 for s in socks],
            "src": [(0, MAPPED | 0x0A000002 - (not s.turned)) for s in socks],
            "dst": [(0, MAPPED | 0x0A000001 + (not s.turned)) for s in socks],
            "sport": [s.sport for s in socks],
            "dport": [s.dport for s in socks],
            "cookie": np.array([s.cookie for s in socks], np.uint64),
            "inode": [s.cookie % 2**32 if s.held else 0 for s in socks],
            "expires_ms": [30_000] * len(socks),
            "last_ack_recv_ms": ages,
            "last_data_recv_ms": data,
            "last_data_sent_ms": data,
        },
        dict.fromkeys(("last_ack_recv_ms", "last_data_recv_ms", "last_data_sent_ms"), clocks),
    )


@dataclass
class World:
    """The machine.

    Attributes:
        now_ns: CLOCK_BOOTTIME.
        wall_off_ns: what somebody has set the wall clock off by.
    """

    now_ns: int = 1000 * S
    wall_off_ns: int = 0
    slept_ns: int = 0
    """What the machine slept; its sockets' clocks stood still."""
    boot_id: str = "boot-1"
    socks: dict[int, Sock] = field(default_factory=dict)
    spaces: set[int] = field(default_factory=lambda: {1})
    dead: set[int] = field(default_factory=set)
    acted: set[tuple[int, int]] = field(default_factory=set)
    hidden: set[int] = field(default_factory=set)
    """Namespaces that only sockets keep: a diagnosis finds the way there."""
    unlisted: bool = False
    """Whether there is a process that cannot be looked at."""
    unenterable: set[int] = field(default_factory=set)
    cost_s: float = 0.0
    walk_cost_s: float = 0.0001
    walks: list[tuple[float, int]] = field(default_factory=list)
    segments: dict[int, int] = field(default_factory=dict)
    """Namespace → how many segments came and went; unknown where it is not in it."""
    diagnosis_s: float = 0.0
    """How long a diagnosis takes."""
    diagnosis_cost_s: float = 0.1
    counters_cost_s: float = 0.0
    """Of one namespace."""
    diagnoses: int = 0
    failing: bool = False
    cluster: ClusterNames | None = None
    """What the last diagnosis was told of a cluster."""
    selected_pids: set[int] = field(default_factory=set)
    """Whose connections every FILTER lets pass."""
    numbers: count[int] = field(default_factory=lambda: count(1))

    def add(self, state: int, **more: int | bool | str | tuple[int, ...]) -> Sock:
        """Let there be a socket; its cookie and port are new."""
        number = next(self.numbers)
        sock = Sock(number, state, sport=1024 + number % 60000, since_ns=self.now_ns)
        for name, value in more.items():
            setattr(sock, name, value)
        if sock.entered_ns < 0:
            sock.entered_ns = sock.since_ns
        self.socks[sock.cookie] = sock
        self.spaces.add(sock.netns)
        return sock

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self.now_ns += int(seconds * S)

    def sleep(self, seconds: float) -> None:
        """Let the machine sleep."""
        self.pass_(seconds)
        self.slept_ns += int(seconds * S)
        for sock in self.socks.values():
            sock.entered_ns = (sock.since_ns if sock.entered_ns < 0 else sock.entered_ns) + int(seconds * S)
            sock.since_ns += int(seconds * S)

    def _spend(self, seconds: float) -> None:
        self.cost_s += seconds

    # what the agent asks

    def boot(self) -> str:
        return self.boot_id

    def now(self) -> Instant:
        return Instant(self.now_ns, WALL + self.now_ns + self.wall_off_ns)

    def monotonic(self) -> float:
        return (self.now_ns - self.slept_ns) / S

    def asleep_ns(self) -> int:
        return self.slept_ns

    def cpu(self) -> float:
        return self.cost_s

    def namespaces(self) -> tuple[list[NetNamespace], list[Gap]]:
        self._spend(0.001)
        gaps = (
            [Gap("pid 1", "read its network namespace", "root", pid=1, unlisted=True)]
            if self.unlisted
            else []
        )
        return [NetNamespace(n) for n in sorted(self.spaces - self.hidden)], gaps

    def counters(
        self,
        namespaces: Sequence[NetNamespace],
        listeners: CountersFirst,
        *,
        limits: bool = False,
    ) -> tuple[dict[int, Counters], list[Gap]]:
        found = {}
        for ns in namespaces:
            if ns.inode not in self.spaces or ns.inode in self.unenterable:
                continue
            mine = [s for s in self.socks.values() if s.netns == ns.inode]
            full = [s for s in mine if s.held or s.state in (tcp.LAST_ACK, tcp.FIN_WAIT1)]
            curr = sum(s.state in (tcp.ESTABLISHED, tcp.CLOSE_WAIT) for s in full)
            settings = (
                {"max_tw_buckets": 1000, "conntrack_count": 1, "conntrack_max": 100} if limits else None
            )
            entry = Counters(
                len(full),
                curr,
                len(mine) - len(full),
                0,
                0,
                -1,
                settings,
                (),
                self.segments.get(ns.inode, -1),
            )
            if listeners(ns.inode, entry):
                doors = tuple(s.door for s in mine if s.state == tcp.LISTEN)
                entry = replace(entry, listeners=len(doors), doors=doors)
            found[ns.inode] = entry
        self._spend(0.0001 + self.counters_cost_s * len(namespaces))
        return found, []

    def walk(self, namespaces: Sequence[NetNamespace]) -> tuple[dict[int, ClosingWalk], list[Gap]]:
        found, gaps = {}, []
        for ns in namespaces:
            if ns.inode in self.unenterable:
                gaps.append(Gap.of_namespace(ns.inode, "enter it", "CAP_SYS_ADMIN", unentered=True))
                continue
            if ns.inode not in self.spaces:
                continue
            rows = [
                s for s in self.socks.values() if s.netns == ns.inode and tcp.CLOSING_STATES >> s.state & 1
            ]
            self._spend(self.walk_cost_s)
            self.walks.append((self.now_ns / S, ns.inode))
            doors = tuple(
                s.door for s in self.socks.values() if s.netns == ns.inode and s.state == tcp.LISTEN
            )
            found[ns.inode] = ClosingWalk(table(rows, self.now_ns), self.walk_cost_s, True, doors)
        return found, gaps

    def ask(
        self, questions: Mapping[int, Sequence[Question]], namespaces: Sequence[NetNamespace]
    ) -> tuple[SocketTable, list[Gap]]:
        there = {ns.inode for ns in namespaces} & self.spaces - self.unenterable
        by_name = {(s.netns, s.sport, s.dport): s for s in self.socks.values()}
        rows = []
        for netns, several in questions.items():
            if netns in there:
                rows += [s for q in several if (s := by_name.get((netns, q.sport, q.dport))) is not None]
        self._spend(0.00001 * sum(map(len, questions.values())))
        return table(rows, self.now_ns), [
            Gap.of_namespace(n, "enter it", "") for n in questions if n not in there
        ]

    def start_diagnosis(
        self, filters: Filters | None = None, cluster: ClusterNames | None = None
    ) -> Finished:
        self.cluster = cluster
        return Finished(self, filters)

    def diagnose(self, filters: Filters | None = None) -> DiagnosedLook:
        self.diagnoses += 1
        self.hidden.clear()
        self._spend(self.diagnosis_cost_s)
        if self.failing:
            raise KernelError(12, "look")
        rows = [s for s in self.socks.values() if tcp.CLOSING_STATES >> s.state & 1]
        causes = [cause_of(s) for s in rows]
        held = Counter(pid for s in self.socks.values() for pid in {s.pid, *s.others} if pid)
        doors = {s.cookie: f"program{s.pid}" for s in self.socks.values() if s.state == tcp.LISTEN and s.pid}
        passed = frozenset((s.netns, s.cookie) for s in rows if s.pid in self.selected_pids)
        selected = dict.fromkeys(filters or (), passed)
        return DiagnosedLook(said(rows, causes), [], (), self.now(), True, selected, held, doors=doors)

    def alive(self, pid: int, started_ms: int) -> bool | None:  # noqa: ARG002 - as it is asked
        return pid not in self.dead

    def give_back(self) -> None:
        pass

    def cleared(self) -> set[tuple[int, int]]:
        return self.acted

    def descriptors(self, holders: Mapping[int, str]) -> list[Used]:
        return [
            Used("nofile", f"pid {pid}", sum(s.pid == pid for s in self.socks.values()), 10_000, workload=w)
            for pid, w in holders.items()
        ]


@dataclass
class Finished:
    """A diagnosis that is made when it is asked for.

    Attributes:
        after_s: when it is finished, in seconds of the world's clock that does not go back.
    """

    world: World
    filters: Filters | None
    after_s: float = 0.0
    ended: bool = False

    def __post_init__(self) -> None:
        self.after_s = self.world.monotonic() + self.world.diagnosis_s

    def result(self) -> DiagnosedLook | None:
        if self.world.monotonic() < self.after_s:
            return None
        return self.world.diagnose(self.filters)

    def end(self) -> None:
        self.ended = True


def cause_of(sock: Sock) -> Cause:
    """Return what a diagnosis would say of a socket."""
    rule = {tcp.FIN_WAIT2: "fin-wait2-held", tcp.CLOSE_WAIT: "close-wait-eof-read"}.get(sock.state, "other")
    program = f"program{sock.pid}" if sock.pid else ""
    holder = f"{program}({sock.pid})" if sock.pid else ""
    others = tuple((pid, 5) for pid in sock.others)
    began = 5 if sock.pid else -1
    workload = f"pod/{sock.pod}" if sock.pod else program
    return Cause(
        rule, "problem", sock.confidence, "holder", workload, holder, sock.pid, began, others, sock.pod
    )


def said(rows: Sequence[Sock], causes: Sequence[Cause]) -> Diagnosed:
    """Return a diagnosis of some sockets."""
    n = len(rows)
    return Diagnosed(
        cookie=np.array([s.cookie for s in rows], np.uint64),
        state=np.array([s.state for s in rows], np.uint8),
        cause=np.arange(n, dtype=np.int64),
        causes=list(causes),
        other=np.array([s.other for s in rows], np.uint64),
        other_netns=np.array([s.netns if s.other else 0 for s in rows], np.uint32),
        other_holder=np.zeros(n, np.int64),
        holders=[""],
        translated={},
    )
