"""Files of /proc → what a process is called, whose it is and how old; and the counters of a namespace.

A file that does not parse is treated as one that could not be read: a process that ends while it is being
read can leave half a file behind, and must not cost the diagnosis.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, Literal

from msgspec import Struct

from finwait.errors import DecodeError
from finwait.table.units import printable
from finwait.uapi import conntrack, proc
from finwait.uapi.observation import Facts, ProcessFiles

__all__ = ["ProcessView", "Sigpipe", "counters", "process", "processes"]

Sigpipe = Literal["kills", "spares", "unknown"]
"""What SIGPIPE does to a process: its default action ends it, unless it ignores or catches it."""
_SIGPIPE: Final = 13


class ProcessView(Struct, frozen=True):
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
    sigpipe: Sigpipe = "unknown"
    """What a write to a connection that has ended does to it, by its dispositions of signals."""


def process(pid: int, files: ProcessFiles, facts: Facts) -> ProcessView:
    """Return what the files of a process say; names that it chose itself are made printable."""
    comm, ppid, age_ms, uid, cgroup, state, threads, stack = "?", 0, -1, -1, "", "", 0, 0
    sigpipe: Sigpipe = "unknown"
    with suppress(DecodeError):
        if files.stat is not None:
            stat = proc.parse_stat(files.stat)
            comm, ppid, state = stat.comm, stat.ppid, stat.state
            threads, stack = stat.threads, stat.start_stack
            # The end of the look, so that slow looks make processes older and never younger than they were.
            now_ms = max(facts.boottime_ns, facts.boottime_end_ns) // 1_000_000
            age_ms = now_ms - stat.start_ticks * 1000 // max(facts.clock_ticks, 1)
    if files.stat is None and files.comm is not None:
        comm = files.comm.decode("utf-8", "replace")
    with suppress(DecodeError):
        if files.status is not None:
            status = proc.parse_status(files.status)
            uid, sigpipe = status.uid, _sigpipe(status)
    with suppress(DecodeError):
        if files.cgroup is not None:
            lines = proc.parse_cgroup(files.cgroup)
            # Containers are named in whichever hierarchy the runtime manages: the longest path tells most.
            cgroup = max((line.path for line in lines), key=len, default="")
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
        sigpipe,
    )


def _sigpipe(status: proc.ProcessStatus) -> Sigpipe:
    """Return what SIGPIPE does; an init of a pid namespace is spared a default action (sig_task_ignored())."""
    if status.spared is None:
        return "unknown"
    init = status.ns_pids[-1:] == (1,) or status.tgid == 1
    return "spares" if init or status.spared >> _SIGPIPE - 1 & 1 else "kills"


def processes(files: Mapping[int, ProcessFiles], facts: Facts) -> dict[int, ProcessView]:
    """Return what the files of each process say, by pid."""
    return {pid: process(pid, process_files, facts) for pid, process_files in files.items()}


class _Counters(Mapping[str, int]):
    """Counters parsed when one is first asked for, a kind by itself: there may be 500 namespaces, most never asked."""

    __slots__ = ("_files", "_parsed")

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self._parsed: dict[str, Mapping[str, int]] = {}

    def _of(self, kind: str) -> Mapping[str, int]:
        if kind not in self._parsed:
            self._parsed[kind] = _KINDS[kind](self._files)
        return self._parsed[kind]

    def __getitem__(self, name: str) -> int:
        kind = name.partition(".")[0]
        return self._of(kind if kind in _KINDS else "")[name]

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(map(self._of, _KINDS))

    def __len__(self) -> int:
        return sum(len(self._of(kind)) for kind in _KINDS)

    def __repr__(self) -> str:
        return repr(dict(self))


def counters(files: Mapping[str, bytes]) -> Mapping[str, int]:
    """Return the counters of a namespace: ``TcpExt.…``, ``sockstat.TCP.inuse``, ``conntrack.invalid`` …."""
    return _Counters(files)


def _parse_protocols(files: Mapping[str, bytes]) -> dict[str, int]:
    result: dict[str, int] = {}
    for name in ("net/netstat", "net/snmp"):
        with suppress(DecodeError):
            result |= proc.parse_snmp(files.get(name, b""))
    return result


def _parse_sockstat(name: str, files: Mapping[str, bytes]) -> dict[str, int]:
    try:
        counters = proc.parse_sockstat(files.get(f"net/{name}", b""))
    except DecodeError:
        return {}
    return {f"{name}.{key}": value for key, value in counters.items()}


def _parse_conntrack(files: Mapping[str, bytes]) -> dict[str, int]:
    try:
        cpus = proc.parse_conntrack_stat(files.get("net/stat/nf_conntrack", b""))
        return {f"conntrack.{k}": v for k, v in conntrack.total_over_cpus(cpus).items()} if cpus else {}
    except DecodeError:
        return {}


_KINDS: Final[Mapping[str, Callable[[Mapping[str, bytes]], Mapping[str, int]]]] = {
    "": _parse_protocols,
    "sockstat": partial(_parse_sockstat, "sockstat"),
    "sockstat6": partial(_parse_sockstat, "sockstat6"),
    "conntrack": _parse_conntrack,
}
"""What a name begins with → who parses the file that counts it; "" of all others (``TcpExt``, ``Tcp`` …)."""
