"""Which code opened the connections that are still there: system calls sampled, sockets looked at twice, and joined.

Theory of operation. `Leaking.step` empties the ring buffers and reads at once what each descriptor of a call refers to:
that ties a call to a socket, for a descriptor is used again. `Leaking.finish` looks at all connections, matches
(`finwait.diagnosis.leaks`), and unwinds and names the stacks of those that are matched, and of no others.

A machine that makes more than `MOST_A_SECOND` such calls is spared: for the rest of the second nothing is sampled, and
that time is a gap.

This needs perf events: changes of state (`finwait.follow.following`) do without them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from msgspec import Struct

from finwait import session
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.leaks import (
    CallName,
    Calls,
    CallStack,
    Holding,
    LeakGroup,
    Matching,
    Still,
    TracedCall,
    Unmatched,
    grouped,
    match,
)
from finwait.errors import Gap
from finwait.follow.beginnings import TCP, Beginnings, ends_in, number_in
from finwait.follow.call_stacks import named_stacks
from finwait.follow.program_names import ProgramNames
from finwait.follow.sharing import SharedTables
from finwait.kernel import procfs, tasks
from finwait.kernel.perf_events import Sampling, online
from finwait.kernel.user_symbols import UserSymbols
from finwait.selecting import mask_of, undecided
from finwait.table.filter import Filter
from finwait.table.sockets import SocketTable
from finwait.table.units import printable
from finwait.uapi import tcp
from finwait.uapi.code_history import CodeHistory
from finwait.uapi.inet_diag import SOCKET_NAMES
from finwait.uapi.observation import LookPlan
from finwait.uapi.perf_event import Ended, Executed, Forked, ProcessRecord, Renamed, Sample
from finwait.uapi.proc import parse_socket_link
from finwait.uapi.tracepoint import EventFormat

__all__ = ["MOST_A_SECOND", "Leaking", "Leaks"]

MOST_A_SECOND: Final = 5_000
"""System calls that are sampled in one second; of more only so many."""
_MOST_DESCRIPTORS: Final = 20_000
"""Descriptors whose last calls are remembered, with up to 16 KiB of stack each (compressed, if they are older)."""
_GATHER_S: Final = 0.005
"""After the first record more may come for so long; what a descriptor refers to is read then."""
_TAKING_S: Final = 0.05
_PROCESSES: Final = 500
"""After so many processes were looked at, what was sampled meanwhile is taken."""
_PAUSE_S: Final = 0.25
"""In a pause, what is told of processes is taken so often."""
_MSG_FASTOPEN: Final = 0x20000000
_STATE: Final = "sock/inet_sock_set_state"
_EVENTS: Final = {
    _STATE: f"oldstate == {tcp.CLOSE} && newstate == {tcp.SYN_SENT}",
    "syscalls/sys_exit_accept4": "ret >= 0",
    "syscalls/sys_exit_accept": "ret >= 0",
    "syscalls/sys_enter_shutdown": "how > 0",
}
"""With a stack."""
_PLAIN: Final = {
    _STATE: f"oldstate == {tcp.SYN_SENT}",
    "syscalls/sys_enter_connect": "",
    "syscalls/sys_exit_connect": "",
    "syscalls/sys_enter_sendto": f"flags & {_MSG_FASTOPEN}",
    "syscalls/sys_enter_sendmsg": f"flags & {_MSG_FASTOPEN}",
    "syscalls/sys_exit_socket": "ret >= 0",
    "task/task_newtask": "(clone_flags & 1024) && !(clone_flags & 65536)",  # CLONE_FILES, CLONE_THREAD
}
_DUPLICATIONS: Final = {
    "syscalls/sys_enter_dup2": "",
    "syscalls/sys_enter_dup3": "",
    "syscalls/sys_exit_dup": "ret >= 0",
    "syscalls/sys_exit_pidfd_getfd": "ret >= 0",
    "syscalls/sys_enter_fcntl": "cmd == 0 || cmd == 1030",  # F_DUPFD, F_DUPFD_CLOEXEC
}
"""What fills a descriptor with a socket that is there already; an architecture may lack some."""
_SHARINGS: Final = {
    "syscalls/sys_enter_unshare": "unshare_flags & 1024",  # CLONE_FILES
    "syscalls/sys_enter_close_range": "flags & 2",  # CLOSE_RANGE_UNSHARE
    "io_uring/io_uring_submit_req": "opcode == 13 || opcode == 45",  # IORING_OP_ACCEPT, IORING_OP_SOCKET
    "io_uring/io_uring_submit_sqe": "opcode == 13 || opcode == 45",
}
"""After these a descriptor of the process does not tell any more which call filled it; older kernels lack some."""
_SHARERS: Final = frozenset(event.rpartition("/")[2] for event in _SHARINGS)
_CALLS: Final[dict[str, tuple[CallName, str]]] = {
    "sys_exit_accept4": ("accept", "ret"),
    "sys_exit_accept": ("accept", "ret"),
    "sys_enter_shutdown": ("shutdown", "fd"),
}
"""Event → the call, and the field with its descriptor."""
_ENTRIES: Final[dict[str, CallName]] = {
    "sys_enter_connect": "connect",
    "sys_enter_sendto": "sendto",
    "sys_enter_sendmsg": "sendmsg",
}
_FILLS: Final = {
    "sys_exit_socket": "ret",
    "sys_enter_dup2": "newfd",
    "sys_enter_dup3": "newfd",
    "sys_exit_dup": "ret",
    "sys_exit_pidfd_getfd": "ret",
    "sys_enter_fcntl": "arg",
}
"""Event → the field with the descriptor that is filled; of fcntl() it is the lowest that it can be."""
_NOT_OPEN: Final = (tcp.LISTEN, tcp.TIME_WAIT, tcp.SYN_RECV)


class Leaks(Struct, frozen=True):
    """What a trace found."""

    groups: tuple[LeakGroup, ...]
    matching: Matching
    snapshot: session.Snapshot
    calls: dict[CallName, int]
    for_ns: int
    window_ns: int
    """From the beginning of the first look until the sockets were read at the end: nothing that is said to be opened
    during the trace was opened before or after. Looks take their time: it may be much longer than `for_ns`."""
    ended_ns: int
    """CLOCK_MONOTONIC, of the end of that time."""
    unheld: int
    """Connections in the FILTER without a struct socket of a program: closed, or not accepted yet."""
    gaps: tuple[Gap, ...]


class _Fill(Struct, frozen=True):
    """A process fills a descriptor with something else."""

    pid: int
    fd: int
    at_least: bool
    """Whether it is this descriptor or any above it."""
    time_ns: int


class Leaking:
    """Samples who opens and half-closes connections; a context manager.

    Args:
        row_filter: which connections; None for all.
        not_holders: processes that cannot be inspected and of which the caller knows that they hold nothing.
        buffer_kb: ring buffer of each CPU in KiB.
    """

    def __init__(
        self,
        row_filter: Filter | None = None,
        *,
        not_holders: frozenset[int] = frozenset(),
        buffer_kb: int | None = None,
    ) -> None:
        self._wanted = row_filter
        self._not_holders = not_holders
        self._machine = session.live_machine()
        self._sampling = Sampling(_EVENTS, _PLAIN | _DUPLICATIONS | _SHARINGS, buffer_kb=buffer_kb)
        self._stack = ExitStack()
        self._calls = Calls(_MOST_DESCRIPTORS)
        self._beginnings = Beginnings(self._calls)
        self._history = CodeHistory()
        self._names = ProgramNames()
        self._tables = SharedTables()
        self._tables_known = True
        """Whether the kernel tells which processes shared descriptors before."""
        self._shared = 0
        """Connections whose descriptors others may have filled."""
        self._processes_lost = 0
        self._before: frozenset[int] = frozenset()
        self._begun_ns = 0
        self._first_look_ns = 0
        """CLOCK_BOOTTIME, when the first look began."""
        self._second = (0, 0)
        self._round = 0
        """Calls of this round."""
        self._paused_until = 0.0
        self._paused_s = 0.0
        self._lost = 0
        self._unnamed = 0
        self._unread = 0

    def __enter__(self) -> Self:
        """Look at what is there already, and start sampling.

        Raises:
            KernelError: perf events, or a look at the sockets, cannot be had.
        """
        with self._sampling:  # whether it can be had at all is said before the look, which takes longer
            pass
        self._stack.enter_context(self._sampling)
        self._look_at_processes()
        with self._taking():
            how = session.Look(plan=_plan(descriptors=False), waits="nothing")
            first = session.look(self._machine, how)
        self._before = frozenset(first.sockets.cookie.tolist())
        self._first_look_ns = first.observation.facts.boottime_ns
        self._begun_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        return self

    def _look_at_processes(self) -> None:
        """Read what processes are called, and which share their descriptors: no record tells what was before."""
        pids = procfs.pids()
        for number, pid in enumerate(pids):
            if number % _PROCESSES == 0:
                self._take()
            if name := procfs.read(f"/proc/{pid}/comm"):
                self._names.read(pid, _shown(name), time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        sharing = tasks.sharing(pids)
        self._tables_known = sharing is not None
        self._tables.found(sharing or ())

    @contextmanager
    def _taking(self) -> Iterator[None]:
        """Take what is sampled while something else is done, which takes longer than a ring buffer holds."""
        over = threading.Event()
        wrong: list[BaseException] = []

        def take() -> None:
            try:
                while not over.is_set():
                    self.step(_TAKING_S)
            except BaseException as error:  # noqa: BLE001 - it is raised where it can be handled
                wrong.append(error)

        thread = threading.Thread(target=take, name="leaks")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if wrong:
            raise wrong[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def missing(self) -> tuple[str, ...]:
        """Tracepoints that are needed and that this kernel does not have."""
        return tuple(event for event in self._sampling.missing if event in _EVENTS or event in _PLAIN)

    def step(self, timeout: float) -> None:
        """Sample for one round of at most ``timeout`` seconds."""
        if (pause := self._paused_until - time.monotonic()) > 0:
            time.sleep(min(pause, max(timeout, 0), _PAUSE_S))
            self._take()
            return
        if self._paused_until:
            self._paused_until = 0.0
            self._calls.blind(Unmatched.PAUSED, time.clock_gettime_ns(time.CLOCK_MONOTONIC))
            self._sampling.enable()
        if self._sampling.wait(timeout):
            time.sleep(_GATHER_S)
        self._take()

    def _take(self) -> None:
        """Take what was sampled, and read which sockets it was about before descriptors are used again."""
        drawn = self._sampling.drain()
        for record in drawn.processes:
            if isinstance(record, Forked):
                self._tables.born(record)
        for sample in drawn.samples:
            self._apply(sample)
        for record in drawn.processes:
            self._follow(record)
        if drawn.processes_lost:
            now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            self._processes_lost += drawn.processes_lost
            self._history.lost(now_ns)
            self._names.lost(now_ns)
        if drawn.lost:
            self._lost += drawn.lost
            self._blind(Unmatched.RECORDS_LOST, time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        self._calls.confirm(drawn.horizon_ns)
        self._check()
        self._spare()

    def _follow(self, record: ProcessRecord) -> None:
        """Take what became of a process."""
        if isinstance(record, Executed | Renamed):
            self._names.named(record.pid, _shown(record.name), record.time_ns)
        if isinstance(record, Renamed):
            return
        self._history.add(record)
        if isinstance(record, Executed):
            self._calls.executed(record.pid, record.time_ns)
            self._tables.executed(record.pid, record.time_ns)
        elif isinstance(record, Forked):
            self._calls.born(record.pid, record.time_ns)
            self._names.born(record.pid, record.parent, record.time_ns)
        elif isinstance(record, Ended):
            self._beginnings.left(record.tid)

    def _blind(self, reason: Unmatched, time_ns: int) -> None:
        self._calls.blind(reason, time_ns)
        self._beginnings.blind(reason)

    def _check(self) -> None:
        """Read what the descriptors of new calls refer to."""
        for call in self._calls.unchecked():
            inode = _socket_of(call.pid, call.fd, call.sample.tid)
            self._calls.checked(call, inode, time.clock_gettime_ns(time.CLOCK_MONOTONIC))

    def _apply(self, sample: Sample) -> None:
        event_format = self._sampling.formats.get(int.from_bytes(sample.raw[:2], sys.byteorder))
        if event_format is None:
            return
        event = event_format.name
        if event == "inet_sock_set_state":
            self._state(event_format, sample)
            return
        if event == "task_newtask":
            child = number_in(event_format, sample, "pid")
            self._tables.cloned(sample.pid, sample.tid, child or sample.pid)
            return
        if event in _SHARERS:
            self._tables.found((sample.pid,))
            return
        self._round += event in _CALLS or event in _ENTRIES
        if sample.pid <= 0:
            self._unnamed += event in _CALLS or event in _ENTRIES
            return
        if event == "sys_exit_connect":
            self._beginnings.left(sample.tid)
            return
        name = _CALLS[event][1] if event in _CALLS else _FILLS.get(event, "fd")
        number = number_in(event_format, sample, name)
        if number is None:
            self._unread += 1
            return
        number &= 0xFFFFFFFF
        if event in _ENTRIES:
            self._beginnings.entered(_ENTRIES[event], number, sample)
        elif event in _CALLS:
            self._calls.add(TracedCall(_CALLS[event][0], sample.pid, number, sample))
        elif event == "sys_enter_fcntl":
            self._calls.filled_from(sample.pid, number, sample.time_ns)
        else:
            self._calls.filled(sample.pid, number, sample.time_ns)

    def _state(self, event_format: EventFormat, sample: Sample) -> None:
        """Take a change of state: to SYN_SENT within a call, or from it at any time."""
        numbers = [number_in(event_format, sample, name) for name in ("skaddr", "newstate")]
        socket, state = numbers
        if socket is None or state is None:
            self._unread += 1
        elif state != tcp.SYN_SENT:
            self._beginnings.went_on(socket, state, ends_in(event_format, sample))
        elif sample.pid > 0:
            call = self._beginnings.began(socket, ends_in(event_format, sample), sample)
            if call is not None:
                self._calls.add(call)

    def _spare(self) -> None:
        """Stop sampling for the rest of a second that brought too much."""
        second = int(time.monotonic())
        total = self._round + (self._second[1] if self._second[0] == second else 0)
        self._second, self._round = (second, total), 0
        if total > MOST_A_SECOND and not self._paused_until:
            self._sampling.disable()
            self._paused_until = second + 1.0
            self._paused_s += max(self._paused_until - time.monotonic(), 0.0)
            self._blind(Unmatched.PAUSED, time.clock_gettime_ns(time.CLOCK_MONOTONIC))

    def finish(self) -> Leaks:
        """Take what is left, look at the connections that are there now, and say which code opened them.

        Raises:
            FinwaitError: the look failed, or the FILTER asks for what is not known.
        """
        for_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - self._begun_ns
        how = session.Look(plan=_plan(descriptors=True), not_holders=self._not_holders, waits="nothing")
        with self._taking():  # what is opened while it is looked has a call too
            shot = session.look(self._machine, how)
        self._sampling.disable()
        self._take()
        self._calls.confirm(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        dumped_ns = shot.observation.facts.boottime_end_ns
        since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - dumped_ns
        ended_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - since_ns
        chosen, unjudged = self._chosen(shot)
        held = chosen & (shot.sockets.inode != 0)
        connections = [
            *self._holdings(shot, np.flatnonzero(held)),
            *(self._gone(shot) if self._wanted is None else ()),
        ]
        self._verify(connections, shot.sockets)
        matching = match(connections, self._calls)
        with UserSymbols(self._history) as symbols:
            named, gaps = named_stacks(matching.still, symbols)
        groups = self._groups(matching.still, named, shot)
        return Leaks(
            groups, matching, shot, dict(self._calls.counted), for_ns, dumped_ns - self._first_look_ns, ended_ns,
            int((chosen & ~held).sum()), (*self._gaps(matching), *gaps, *unjudged, *shot.gaps),
        )  # fmt: skip

    def _chosen(self, shot: session.Snapshot) -> tuple[Any, tuple[Gap, ...]]:
        """Return the mask of open connections that the FILTER selects, and what it cannot judge."""
        mask = ~np.isin(shot.sockets.state, _NOT_OPEN)
        if self._wanted is None:
            return mask, ()
        findings = engine.diagnose(shot.view, catalogue.rules()) if self._wanted.asks_rules else None
        selected = mask_of(self._wanted, shot, findings)
        why = undecided(self._wanted, shot, findings, selected)
        return mask & selected, (why,) if why is not None else ()

    def _holdings(self, shot: session.Snapshot, rows: Iterable[int]) -> Iterator[Holding]:
        sockets, holders = shot.sockets, shot.view.holders
        lived_ms = shot.view.lived
        traced_ms = (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - self._begun_ns) // 1_000_000 + 1
        for row in map(int, rows):
            before = int(sockets.cookie[row]) in self._before or int(lived_ms[row]) > traced_ms
            yield Holding(
                row, int(sockets.state[row]), int(sockets.inode[row]), tuple(holders.of(row)),
                before,
            )  # fmt: skip

    def _verify(self, connections: Iterable[Holding], sockets: SocketTable) -> None:
        """Doubt the calls that a descriptor alone ties to a connection, where that is not enough.

        A descriptor that others fill too may refer to what one of them opened. Of ``connect()`` both ends of the
        connection are known, which tells; of ``accept()`` they are not.
        """
        for connection in connections:
            unknown = False
            for pid, fd in connection.holders:
                answer = self._calls.of(pid, fd, connection.inode)
                if isinstance(answer, Unmatched):
                    continue
                opening = answer[0]
                ends = self._beginnings.ends_of(opening) if connection.row >= 0 else None
                same: bool | None = None
                if ends is not None and int(sockets.protocol[connection.row]) == TCP:
                    same = ends.of_row(sockets, connection.row)
                time_ns = opening.sample.time_ns
                if not same and self._tables.shared(pid, time_ns):
                    self._calls.doubted(pid, fd, time_ns, Unmatched.NOT_CHECKED)
                    unknown = True
                elif same is False:
                    self._calls.doubted(pid, fd, time_ns, Unmatched.OTHER_SOCKET)
            self._shared += unknown

    def _groups(
        self, still: Iterable[Still], named: dict[TracedCall, CallStack], shot: session.Snapshot
    ) -> tuple[LeakGroup, ...]:
        """Return the groups, each under the name that the program had when it made the call."""
        now = {pid: process.comm for pid, process in shot.view.processes.items()}
        by_name: dict[str, list[Still]] = {}
        for entry in still:
            opening = entry.opening
            pid, time_ns = opening.pid, opening.sample.time_ns
            same = not opening.replaced and self._history.known(pid, time_ns)
            name = now.get(pid, "") if same else self._names.of(pid, time_ns)
            by_name.setdefault(name or "?", []).append(entry)
        groups = [
            group
            for name, entries in by_name.items()
            for group in grouped(entries, named, {entry.opening.pid: name for entry in entries})
        ]
        groups.sort(key=lambda group: (-len(group.still), group.still[0].opening.sample.time_ns))
        return tuple(groups)

    def _gone(self, shot: session.Snapshot) -> Iterator[Holding]:
        """Yield descriptors that were opened and are still open, and whose connection is gone: a reset leaves such."""
        listed = set(shot.sockets.inode.tolist())
        open_ = [
            (pid, fd, inode)
            for pid, fd, inode in self._calls.descriptors()
            if inode not in listed and _socket_of(pid, fd, pid) == inode
        ]
        protocols = self._machine.socket_protocols(open_)
        lone = self._machine.lone_sockets(entry for entry in open_ if protocols.get(entry[2]) in SOCKET_NAMES)
        for pid, fd, inode in open_:
            if (answer := lone.get(inode)) is not None and answer.state == tcp.CLOSE and answer.used:
                yield Holding(-1, tcp.CLOSE, inode, ((pid, fd),), False)

    def _gaps(self, matching: Matching) -> Iterator[Gap]:
        """Yield what was not seen, and why."""
        if self._lost:
            yield Gap(
                f"at least {self._lost} records",
                "read them: a ring buffer was full",
                "a larger `--buffer-kb`",
            )
        if self._paused_s:
            doing = f"sample system calls: there were more than {MOST_A_SECOND} in a second"
            yield Gap(f"{self._paused_s:.1f} s of the trace", doing, "")
        if self._processes_lost:
            doing = "name the code of calls before: records of what processes mapped were lost"
            yield Gap(f"at least {self._processes_lost} records", doing, "")
        if self._unnamed:
            needs = "the initial pid namespace: run on the host, or with hostPID"
            yield Gap(f"{self._unnamed} calls", "name the process: it is outside this pid namespace", needs)
        if self._unread:
            yield Gap(
                f"{self._unread} calls", "read the descriptor: the kernel describes the event otherwise", ""
            )
        if self._calls.forgotten:
            doing = f"remember their last calls: there were more than {_MOST_DESCRIPTORS}"
            yield Gap(f"{self._calls.forgotten} descriptors", doing, "")
        for event in self.missing:
            yield Gap(f"`{event}`", "trace it", "a kernel with that tracepoint (CONFIG_FTRACE_SYSCALLS)")
        if new := set(online()) - set(self._sampling.cpus):
            yield Gap(f"{len(new)} CPUs", "sample what came up during the trace", "a new trace")
        if not self._tables_known:
            doing = "find processes that have shared descriptors since before the trace (kcmp)"
            yield Gap("this kernel", doing, "CONFIG_KCMP")
        for reason, count in matching.unmatched.items():
            shared = min(self._shared, count) if reason is Unmatched.NOT_CHECKED else 0
            if shared:
                yield Gap(_connections(shared), f"tell which code opened them: {_SHARED}", "")
            if count > shared:
                yield Gap(_connections(count - shared), f"tell which code opened them: {reason.value}", "")


_SHARED: Final = (
    "their process is not alone in filling its descriptors: it shares them with another process (clone() with "
    "CLONE_FILES and without CLONE_THREAD), a thread has descriptors of its own, or io_uring opens some"
)


def _shown(name: bytes) -> str:
    """Return the name of a process as it is shown."""
    return printable(name.rstrip(b"\n").decode(errors="backslashreplace"))


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"


def _plan(*, descriptors: bool) -> LookPlan:
    return LookPlan(
        established_limit=None, mptcp=descriptors, conntrack=False, files=descriptors, descriptors=descriptors
    )


def _socket_of(pid: int, fd: int, tid: int) -> int:
    """Return the inode of the socket that a descriptor refers to now; 0 where it is none, or gone.

    A main thread that has ended shows no descriptors; the thread that made the call may still run.
    """
    own = f"/proc/{pid}/task/{tid}/fd"  # it may have a table of its own
    path = f"{own}/{fd}" if os.path.exists(own) else f"/proc/{pid}/fd/{fd}"
    with suppress(OSError):
        return parse_socket_link(os.readlink(path.encode())) or 0
    return 0
