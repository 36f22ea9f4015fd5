"""What the loop asks of the machine, and the running machine that answers.

`AgentMachine` is the seam: with the one in the tests a day passes in a second. It only looks. The one thing that is
read beside the kernel is the journal, which says what finwait itself has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import asdict

from finwait.agent.cluster_told import about_pods
from finwait.agent.diagnosing import DiagnosisProcess
from finwait.agent.episode_values import Instant
from finwait.agent.leak import Used
from finwait.agent.verdict import DiagnosisRequest
from finwait.errors import DecodeError, FinwaitError
from finwait.kernel import closing, lookup, netns, pidfd, procfs
from finwait.uapi.proc import parse_limits, parse_stat

if TYPE_CHECKING:
    from finwait.agent.diagnosing import Diagnosing
    from finwait.agent.verdict import Answered, Filters, Way
    from finwait.diagnosis.view import Options
    from finwait.errors import Gap
    from finwait.kernel.closing import ClosingWalk, Counters, CountersFirst
    from finwait.kernel.lookup import Question
    from finwait.kernel.netns import NetNamespace
    from finwait.kernel.observe import RunningMachine
    from finwait.table.sockets import SocketTable
    from finwait.uapi.cluster import ClusterNames

__all__ = ["AgentMachine", "Running", "of_machine"]


class AgentMachine(Protocol):
    """What the loop asks."""

    def boot(self) -> str:
        """Return the id of the boot."""

    def now(self) -> Instant:
        """Return the time."""

    def monotonic(self) -> float:
        """Return seconds that never go back, for paces."""

    def asleep_ns(self) -> int:
        """Return how long the machine has slept since it was started."""

    def cpu(self) -> float:
        """Return the processor time that this process, and children that looked for it, have used, in seconds."""

    def namespaces(self) -> tuple[Sequence[NetNamespace], list[Gap]]:
        """Find every network namespace."""

    def counters(
        self, namespaces: Sequence[NetNamespace], listeners: CountersFirst, *, limits: bool = False
    ) -> tuple[Mapping[int, Counters], list[Gap]]:
        """Read the counters of namespaces; count the listeners where a function says so once it knows them."""

    def walk(self, namespaces: Sequence[NetNamespace]) -> tuple[Mapping[int, ClosingWalk], list[Gap]]:
        """List the rows in closing states."""

    def ask(
        self, questions: Mapping[int, Sequence[Question]], namespaces: Sequence[NetNamespace]
    ) -> tuple[SocketTable, list[Gap]]:
        """Ask for single connections, by namespace."""

    def start_diagnosis(
        self, filters: Filters | None = None, cluster: ClusterNames | None = None
    ) -> Diagnosing:
        """Begin to look at everything, to say why it does not close, and what FILTERs let pass.

        Args:
            filters: name → FILTERs.
            cluster: what is known of the cluster that is followed; None where none is.

        Raises:
            OSError: it cannot be begun.
        """

    def give_back(self) -> None:
        """Return free memory to the kernel."""

    def alive(self, pid: int, started_ms: int) -> bool | None:
        """Return whether a process is there still; None where that cannot be told."""

    def cleared(self) -> Collection[tuple[int, int]]:
        """Return ``(netns, cookie)`` of connections that finwait has ended on this boot."""

    def descriptors(self, holders: Mapping[int, str]) -> list[Used]:
        """Return how many descriptors processes use (pid → workload), of as many as they may."""


class Running:
    """The running machine.

    Args:
        options: of the diagnoses.
    """

    def __init__(self, options: Options | None = None) -> None:
        self._machine: RunningMachine | None = None
        self._options: dict[str, int] = {} if options is None else asdict(options)
        self._ways: tuple[list[Way], list[Way]] = ([], [])
        self._boot = procfs.facts().boot_id
        self._lookers_s = 0.0

    def boot(self) -> str:
        """Return the id of the boot."""
        return self._boot

    def now(self) -> Instant:
        """Return the time."""
        return Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()

    def asleep_ns(self) -> int:
        """Return how long the machine has slept since it was started."""
        awake = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        return max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - awake)

    def cpu(self) -> float:
        """Return the processor time of this process and of those that diagnosed, in seconds.

        Other children, such as the process that faces the network, do not look.
        """
        return time.process_time() + self._lookers_s

    def namespaces(self) -> tuple[list[NetNamespace], list[Gap]]:
        """Find every network namespace."""
        descriptors, sockets = self._ways
        return netns.discover(filter(_leads, descriptors), filter(_socket_leads, sockets))

    def counters(
        self, namespaces: Sequence[NetNamespace], listeners: CountersFirst, *, limits: bool = False
    ) -> tuple[dict[int, Counters], list[Gap]]:
        """Read the counters of namespaces."""
        return closing.counters(namespaces, listeners, limits=limits)

    def walk(self, namespaces: Sequence[NetNamespace]) -> tuple[dict[int, ClosingWalk], list[Gap]]:
        """List the rows in closing states."""
        return closing.walk(namespaces)

    def ask(
        self, questions: Mapping[int, Sequence[Question]], namespaces: Sequence[NetNamespace]
    ) -> tuple[SocketTable, list[Gap]]:
        """Ask for single connections."""
        return lookup.ask_each(questions, namespaces)

    @property
    def looked_at(self) -> RunningMachine:
        """What a policy looks with: as it is made, all of the machine comes into the memory of this process."""
        from finwait.kernel.observe import RunningMachine

        if self._machine is None:
            self._machine = RunningMachine()
        return self._machine

    def start_diagnosis(
        self, filters: Filters | None = None, cluster: ClusterNames | None = None
    ) -> DiagnosisProcess:
        """Begin to look at everything, in a process of its own.

        Args:
            filters: name → FILTERs; what all of one name let pass is told.
            cluster: what is known of the cluster that is followed; None where none is.

        Raises:
            OSError: it cannot be started.
        """
        spelled = None
        if cluster is not None:
            several = filters.values() if filters is not None else ()
            asked = {name for where, spared in several for f in (*where, *spared) for name in f.needs}
            cluster = about_pods(cluster, services="service" in asked)
        if filters is not None:
            spelled = {name: (list(map(str, a)), list(map(str, b))) for name, (a, b) in filters.items()}
        request = DiagnosisRequest(options=self._options, filters=spelled, ways=self._ways, cluster=cluster)
        return DiagnosisProcess(request, answered=self._learn, spent=self._spend)

    def _learn(self, answer: Answered) -> None:
        self._ways = answer.ways

    def _spend(self, seconds: float) -> None:
        self._lookers_s += seconds

    def give_back(self) -> None:
        """Return free memory to the kernel: a large look needs far more than what lasts."""
        with contextlib.suppress(AttributeError, OSError):  # not every C library has it
            ctypes.CDLL(None).malloc_trim(0)

    def alive(self, pid: int, started_ms: int) -> bool | None:
        """Return whether a process is there still, by its pid and when it began."""
        data = procfs.read(f"/proc/{pid}/stat")
        if data is None:
            return False if procfs.sees_all_processes() else None
        try:
            stat = parse_stat(data)
        except DecodeError:
            return None
        if started_ms < 0:
            return None
        began = stat.start_ticks * 1000 // max(os.sysconf("SC_CLK_TCK"), 1)
        return began == started_ms and stat.state not in ("Z", "X", "x")

    def cleared(self) -> set[tuple[int, int]]:
        """Return what the journal says that finwait ended on this boot."""
        from finwait.kernel.journal import SqliteJournal, state_directory

        hits: set[tuple[int, int]] = set()
        with contextlib.suppress(FinwaitError, OSError):
            if not (state_directory() / "journal.sqlite").exists():
                return hits
            with SqliteJournal(read_only=True) as journal:
                acts = [
                    *journal.entries(kind="destroy", limit=5000),
                    *journal.entries(kind="shutdown", limit=5000),
                ]
            for act in acts:
                if act.boot_id != self._boot or act.result is None or act.result.get("error"):
                    continue
                with contextlib.suppress(ValueError):
                    hits.add((int(str(act.target.get("netns")), 0), int(str(act.target.get("cookie")), 0)))
        return hits

    def descriptors(self, holders: Mapping[int, str]) -> list[Used]:
        """Return how many descriptors processes use, of as many as their soft limit allows."""
        result = []
        for pid, workload in holders.items():
            data = procfs.read(f"/proc/{pid}/limits")
            try:
                used = len(os.listdir(f"/proc/{pid}/fd"))
                limit = parse_limits(data)["Max open files"].soft if data is not None else None
            except (OSError, DecodeError, KeyError):
                continue  # it ended, or may not be looked into, which the diagnosis says
            if limit is not None:
                result.append(Used("nofile", f"pid {pid}", used, limit, workload=workload))
        return result


def _leads(way: tuple[int, int, int]) -> bool:
    """Return whether a descriptor that led to a namespace (inode, pid, fd) still does: numbers are given anew."""
    inode, pid, fd = way
    with contextlib.suppress(OSError):
        status = os.stat(f"/proc/{pid}/fd/{fd}")
        return status.st_ino == inode and status.st_dev == os.stat("/proc/thread-self/ns/net").st_dev
    return False


def _socket_leads(way: tuple[int, int, int]) -> bool:
    """Return whether the socket of a descriptor (inode, pid, fd) is still of that namespace."""
    inode, pid, fd = way
    with contextlib.suppress(OSError):
        os.close(pidfd.namespace_of(pid, fd, inode))
        return True
    return False


def of_machine(counters: Mapping[int, Counters], names: Mapping[int, str]) -> Iterable[Used]:
    """Return how full the limits of the machine and of its namespaces are.

    Args:
        counters: read with their settings.
        names: namespace → what people call it.
    """
    for inode, entry in counters.items():
        settings = entry.settings or {}
        label = names.get(inode, f"netns {inode}")
        if settings.get("conntrack_max") and settings.get("conntrack_count"):
            yield Used("conntrack", label, settings["conntrack_count"], settings["conntrack_max"])
        if settings.get("max_tw_buckets") and entry.timewait:
            yield Used("tw-buckets", label, entry.timewait, settings["max_tw_buckets"])
    for entry in counters.values():
        settings = entry.settings or {}
        if "max_orphans" in settings and "max_pages" in settings:  # the first one; a container's is another
            yield Used("orphans", "", entry.orphans, settings["max_orphans"])
            yield Used("tcp-mem", "", entry.pages, settings["max_pages"])
            return
