"""Files of /proc → what a process is called, whose it is and how old; and the counters of a namespace.

A file that does not parse is treated as one that could not be read: a process that ends while it is being
read can leave half a file behind, and must not cost the diagnosis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from finwait.errors import DecodeError
from finwait.table.units import printable
from finwait.uapi import conntrack, proc
from finwait.uapi.observation import Facts, ProcessFiles

__all__ = ["ProcessView", "counters", "process", "processes"]


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One process, as far as it could be read."""

    pid: int
    comm: str = "?"
    cmdline: str = ""
    exe: str = ""
    uid: int = -1
    """Real user; −1 unknown."""
    ppid: int = 0
    age_ms: int = -1
    """Time since it was forked (exec does not count); −1 unknown."""
    cgroup: str = ""
    """Path in the cgroup v2 hierarchy, or the first of v1."""
    netns: int | None = None
    state: str = ""
    """One letter of proc(5), ``S`` or ``T``, of its main thread; empty for unknown."""
    threads: int = 0
    """How many it has; 0 for unknown."""
    argv: tuple[str, ...] = ()
    """Its arguments, or one word: the title that it has written over them."""
    stack: int = 0
    """Where its stack begins: the same of what was forked without running a program; 0 for unknown."""


def process(pid: int, files: ProcessFiles, facts: Facts) -> ProcessView:
    """Return what the files of a process say; names that it chose itself are made printable."""
    comm, ppid, age_ms, uid, cgroup, state, threads, stack = "?", 0, -1, -1, "", "", 0, 0
    try:
        if files.stat is not None:
            stat = proc.parse_stat(files.stat)
            comm, ppid, state = stat.comm, stat.ppid, stat.state
            threads, stack = stat.threads, stat.start_stack
            # The end of the look, so that slow looks make processes older and never younger than they were.
            now_ms = max(facts.boottime_ns, facts.boottime_end_ns) // 1_000_000
            age_ms = now_ms - stat.start_ticks * 1000 // max(facts.clock_ticks, 1)
        if files.status is not None:
            uid = proc.parse_status(files.status).uid
        if files.cgroup is not None:
            lines = proc.parse_cgroup(files.cgroup)
            # Containers are named in whichever hierarchy the runtime manages: the longest path tells most.
            cgroup = max((line.path for line in lines), key=len, default="")
    except DecodeError:
        pass
    words = proc.parse_cmdline(files.cmdline) if files.cmdline else ()
    exe = files.exe.decode("utf-8", "replace") if files.exe else ""
    return ProcessView(
        pid,
        printable(comm),
        printable(" ".join(words)),
        printable(exe),
        uid,
        ppid,
        max(age_ms, -1),
        printable(cgroup),
        files.netns,
        printable(state),
        max(threads, 0),
        words,
        stack,
    )


def processes(files: Mapping[int, ProcessFiles], facts: Facts) -> dict[int, ProcessView]:
    """Return what the files of each process say, by pid."""
    return {pid: process(pid, one, facts) for pid, one in files.items()}


class _Counters(Mapping[str, int]):
    """Counters parsed when one is first asked for: most namespaces are never asked, and there may be 500."""

    __slots__ = ("_files", "_parsed")

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self._parsed: dict[str, int] | None = None

    def _all(self) -> dict[str, int]:
        if self._parsed is None:
            self._parsed = _parse_counters(self._files)
        return self._parsed

    def __getitem__(self, name: str) -> int:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())


def counters(files: Mapping[str, bytes]) -> Mapping[str, int]:
    """Return the counters of a namespace: ``TcpExt.…``, ``sockstat.TCP.inuse``, ``conntrack.invalid`` …."""
    return _Counters(files)


def _parse_counters(files: Mapping[str, bytes]) -> dict[str, int]:
    result: dict[str, int] = {}
    for name in ("net/netstat", "net/snmp"):
        try:
            result |= proc.parse_snmp(files.get(name, b""))
        except DecodeError:
            continue
    for name in ("sockstat", "sockstat6"):
        try:
            found = proc.parse_sockstat(files.get(f"net/{name}", b""))
        except DecodeError:
            continue
        result |= {f"{name}.{key}": value for key, value in found.items()}
    try:
        cpus = proc.parse_conntrack_stat(files.get("net/stat/nf_conntrack", b""))
        if cpus:
            result |= {f"conntrack.{k}": v for k, v in conntrack.total_over_cpus(cpus).items()}
    except DecodeError:
        pass
    return result
