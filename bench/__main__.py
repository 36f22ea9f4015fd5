"""``python -m bench [NAME…]``: the benchmarks, each beside what it is compared with, in one run.

Names: snapshot, whole, stuck, floor, million, namespaces, start, destroy, audit, plan, top, trace, relay, agent, kube.
All if none is given, and that takes half an hour: ``ss -tanp`` alone is half a minute a time. Needs root, gcc, iproute2
and util-linux.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# As the command does, and before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from bench import audit, destroy, floor, plan
from bench.load import Load
from bench.measure import (
    FINWAIT,
    RESULTS,
    Line,
    command_seconds,
    environment,
    processor_seconds,
    rounds,
    seconds,
    write,
)
from bench.spaces import Namespaces
from bench.timewait import TimeWait
from finwait import session
from finwait.diagnosis import catalogue, engine
from finwait.kernel.observe import LookPlan, RunningMachine
from finwait.table import decode
from finwait.table.sockets import SocketTable
from finwait.uapi import inet_diag, tcp

SOCK_DIAG = "4"
PROCESSES, PAIRS = 12, 9000
ROWS = 2 * PROCESSES * PAIRS


class Reader:
    """The C program that only receives, compiled for this run."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="finwait-bench-")
        self.path = str(Path(self._directory.name) / "reader")
        source = Path(__file__).with_name("reader.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-o", self.path, str(source)], check=True)

    def seconds(self, load: Load, extensions: int) -> float:
        """Return how long one dump of the load's namespace takes to receive (without the program's start)."""
        request = inet_diag.dump_both_families(tcp.ALL_STATES, extensions).hex()
        done = subprocess.run(
            load.inside(self.path, SOCK_DIAG, "1", request), capture_output=True, text=True, check=True
        )
        return float(done.stdout.split()[0])

    def close(self) -> None:
        """Remove the program."""
        self._directory.cleanup()


def ss(load: Load, *arguments: str) -> Callable[[], float]:
    """Return a measurement of `ss` in the load's namespace, from start to end."""
    return lambda: command_seconds(load.inside("ss", *arguments))


def finwait(*arguments: str) -> Callable[[], float]:
    """Return a measurement of the command as a whole process."""
    return lambda: command_seconds([FINWAIT, *arguments])


def snapshot(load: Load, reader: Reader) -> None:
    """In process: receiving, and every attribute, beside the C reader and ss."""
    plain = inet_diag.extension_mask()
    info = inet_diag.extension_mask(inet_diag.INFO)

    def plan(extensions: int) -> LookPlan:
        return LookPlan(
            extensions=extensions,
            only=frozenset({load.netns}),
            mptcp=False,
            conntrack=False,
            files=False,
            descriptors=False,
            established_limit=None,
        )

    def lazy(extensions: int) -> Callable[[], float]:
        return lambda: seconds(lambda: decode.sockets(RunningMachine().observe(plan(extensions))))

    def every() -> float:
        def work() -> SocketTable:
            table = decode.sockets(RunningMachine().observe(plan(inet_diag.EXT_ALL)))
            table.load()
            assert len(table) >= ROWS
            assert all(len(table.column(name)) == len(table) for name in table.schema.names)
            return table

        return seconds(work)

    def received() -> float:
        return seconds(lambda: RunningMachine().observe(plan(inet_diag.EXT_ALL)))

    got = rounds(
        7,
        lambda: reader.seconds(load, inet_diag.EXT_ALL),
        received,
        lazy(inet_diag.EXT_ALL),
        every,
        lambda: reader.seconds(load, info),
        lazy(info),
        lambda: reader.seconds(load, plain),
        lazy(plain),
        ss(load, "-tanoei"),
        ss(load, "-tan"),
    )
    (
        reader_all,
        only_received,
        lazily,
        all_read,
        reader_info,
        with_info,
        reader_plain,
        without,
        ss_all,
        ss_tan,
    ) = got
    write(
        "snapshot",
        f"{ROWS:,} rows of one namespace, half of them half-closed, looked at in process.",
        f"""
*Received* finds the namespaces, enters the one and lays its dump into memory. *Decoded lazily* adds finding and
checking the layout of every row, after which a column is read when it is asked for. *Every column read* adds
all {len(SocketTable.schema)} columns of the schema, addresses and texts included, as arrays.
The reader receives the same dump (the same request) with recv() into one buffer and looks at nothing.
Not included on our side: the start of Python and the import of numpy, descriptors, files of /proc, other
namespaces. `ss` is its whole process.
""",
        [
            Line("received, all extensions", only_received, "reader", reader_all),
            Line("decoded lazily, all extensions", lazily, "reader", reader_all, 1.5),
            Line("every column read, all extensions", all_read, "reader", reader_all, 1.5),
            Line("decoded lazily, tcp_info only", with_info, "reader, tcp_info", reader_info, 1.5),
            Line("decoded lazily, no extension", without, "reader, none", reader_plain, 1.5),
            Line("decoded lazily, all extensions", lazily, "`ss -tanoei`", ss_all, 1 / 3),
            Line("every column read, all extensions", all_read, "`ss -tanoei`", ss_all, 1 / 3),
            Line("decoded lazily, no extension", without, "`ss -tan`", ss_tan),
        ],
    )


def whole(load: Load) -> None:
    """Whole processes that name owners, beside ss that names owners (once: it takes half a minute)."""
    ours = rounds(
        5, finwait("-o", "json"), finwait("list"), finwait(), finwait("list", "--no-owners", "-o", "csv")
    )
    clock = resource.getrusage(resource.RUSAGE_CHILDREN)
    with_owners = ss(load, "-tanp")()
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    their_time = spent.ru_utime + spent.ru_stime - clock.ru_utime - clock.ru_stime
    our_time = statistics.median(processor_seconds([FINWAIT, "-o", "json"]) for _ in range(3))
    everything = ss(load, "-tanoeip")()
    again = [finwait("-o", "json")(), finwait("list")()]
    as_json, as_list, as_text, as_csv = ours
    write(
        "whole",
        f"{ROWS:,} rows and as many descriptors, half of the connections half-closed: whole processes.",
        f"""
Ours looks into *every* namespace of the machine, ss into the one. `finwait -o json` includes owners, other ends,
diagnosis and every stuck connection as an object. ss was run once each, between our rounds; one more round
of ours after it took {again[0]:.3f} s (json) and {again[1]:.3f} s (list). The descriptors are listed twice
where a socket in a closing state, anywhere on the machine, was made while they were being listed.
""",
        [
            Line("`finwait -o json`", as_json, "`ss -tanp`, once", with_owners, 1 / 12),
            Line("`finwait -o json`, processor time", our_time, "`ss -tanp`, once", their_time, 1 / 12),
            Line("`finwait list`", as_list, "`ss -tanoeip`, once", everything, 1 / 8),
            Line("`finwait` (text)", as_text, "`ss -tanp`, once", with_owners),
            Line("`finwait list --no-owners -o csv`", as_csv),
        ],
    )


def stuck() -> None:
    """Few stuck among very many ESTABLISHED: what the few should cost."""
    with Load(PROCESSES, PAIRS + 2, 23) as load:
        plan = LookPlan()
        quick = LookPlan(descriptors=False)
        only = LookPlan(
            descriptors=False, only=frozenset({load.netns}), conntrack=False, mptcp=False, files=False
        )

        def look(plan: LookPlan) -> Callable[[], float]:
            def work() -> None:
                shot = session.look(RunningMachine(), session.Look(plan=plan))
                found = engine.diagnose(shot.view, catalogue.rules())
                assert sum(f.count for f in found if f.primary) >= 46

            return lambda: seconds(work)

        theirs, text, unowned, in_process, without, dumped = rounds(
            7,
            ss(load, "-tn", "state", "fin-wait-2"),
            finwait(),
            finwait("--no-owners"),
            look(plan),
            look(quick),
            lambda: seconds(lambda: decode.sockets(RunningMachine().observe(only))),
        )
    name = "`ss -tn state fin-wait-2`"
    write(
        "stuck",
        f"{2 * PROCESSES * (PAIRS + 2) - 46:,} ESTABLISHED rows and 23 half-closed connections (46 rows).",
        """
`finwait` leaves ESTABLISHED out by itself in a namespace of more than 50,000 sockets. What remains is the start
of Python and numpy, and the list of *all* descriptors: that a descriptor does not refer to one of the 46
sockets is known only after reading its link, and a holder that is not found would be wrong advice. The last
two rows are the part that does depend on the stuck ones: the dump that leaves ESTABLISHED out (the kernel still
walks its table), in all namespaces with their files and with the diagnosis, and in the one alone.
""",
        [
            Line("`finwait`, whole process", text, name, theirs, 2),
            Line("`finwait --no-owners`, whole process", unowned, name, theirs, 2),
            Line("look and diagnosis with owners, in process", in_process, name, theirs, 2),
            Line("look and diagnosis without owners, in process", without, name, theirs, 2),
            Line("dump and decoding alone, in process", dumped, name, theirs, 2),
        ],
    )


def million() -> None:
    """A million rows: linear, and below a gigabyte."""
    sizes = (250_000, 500_000, 1_000_000)
    medians: dict[int, list[float]] = {}
    runs: dict[int, list[list[float]]] = {size: [] for size in sizes}
    for _ in range(3):
        for size in sizes:
            done = subprocess.run(
                [sys.executable, "-m", "bench.crowd", str(size)],
                capture_output=True,
                text=True,
                check=True,
                env=environment(),
                cwd=Path(__file__).parent.parent,
            )
            runs[size].append([float(word) for word in done.stdout.split()[1:5]])
    for size in sizes:
        medians[size] = [statistics.median(column) for column in zip(*runs[size], strict=True)]
    with TimeWait(15) as load:
        only = frozenset({load.netns})
        begun = time.perf_counter()
        shot = session.look(RunningMachine(), session.Look(plan=LookPlan(only=only)))
        real = time.perf_counter() - begun
        rows = len(shot)
        once = command_seconds([FINWAIT, "--netns", str(load.netns)])
        theirs = command_seconds(["nsenter", f"--net=/proc/{load.pid}/ns/net", "ss", "-tan"])
    lines = []
    for size in sizes:
        decoded, diagnosed, printed, peak = medians[size]
        lines += [
            Line(f"{size:,} rows: layouts found", decoded),
            Line(f"{size:,} rows: joined and diagnosed", diagnosed),
            Line(f"{size:,} rows: text", printed),
            Line(
                f"{size:,} rows: peak memory", peak, at_most=1000 if size == sizes[-1] else None, unit="MiB"
            ),
        ]
    small, large = (sum(medians[size][:3]) for size in (sizes[0], sizes[-1]))
    lines += [
        Line("four times the rows: all three steps", large, "a quarter", small, 4 * 1.25),
        Line(f"real: {rows:,} TIME_WAIT, look in process, once", real),
        Line(f"real: `finwait --netns`, {rows:,} TIME_WAIT, once", once, "`ss -tan`, once", theirs),
    ]
    write(
        "million",
        "A million rows: 60 % TIME_WAIT, 20 % orphans in FIN_WAIT2, 20 % held, in datagrams of mixed rows.",
        """
Messages of a real kernel, multiplied with a tuple, cookie and inode each (`bench/synthetic.py`), go through all
that follows the receiving; each size in a process of its own, three times in turn. Memory is the process's peak,
the datagrams included. The real ones are what two processes could make within 15 s.
"Linear" is taken as at most a quarter more than four times the time.
""",
        lines,
    )


def namespaces() -> None:
    """Five hundred namespaces that only descriptors keep."""
    with Namespaces(500):
        fds: list[set[str]] = []

        def look() -> float:
            before = set(os.listdir("/proc/self/fd"))

            def work() -> None:
                shot = session.look(RunningMachine(), session.Look())
                assert len(shot.observation.namespaces) >= 500

            taken = seconds(work)
            fds.append(set(os.listdir("/proc/self/fd")) - before)
            return taken

        text, in_process = rounds(5, finwait(), look)
        # The number of the descriptor that lists the directory may differ; a leak would be one a namespace.
        left = max(len(more) for more in fds)
    with Namespaces(500, stuck_every=1):
        (all_stuck,) = rounds(5, finwait())
    write(
        "namespaces",
        "500 network namespaces with a listener and two connections each, half-closed in every fiftieth.",
        """
No process is in them and nothing is mounted: one process holds a descriptor of each. Every look is a
`setns`, a dump of the namespace (the kernel walks the machine's one hash table each time), its addresses and its files.
""",
        [
            Line("`finwait`, whole process", text, at_most=0.5),
            Line("look, in process", in_process, at_most=1),
            Line("`finwait`, half-closed in every namespace: 1,000 findings", all_stuck),
            Line("descriptors left open", left, at_most=0, unit="descriptors"),
        ],
    )


def start() -> None:
    """What is paid before anything is looked at."""
    shown, text, bare, numpy = rounds(
        11,
        finwait("--help"),
        finwait(),
        lambda: command_seconds([sys.executable, "-I", "-c", "pass"]),
        lambda: command_seconds([sys.executable, "-I", "-c", "import numpy"]),
    )
    write(
        "start",
        "Whole processes on a machine with few sockets.",
        "As installed with bytecode. numpy was imported with OPENBLAS_NUM_THREADS=1, as `finwait` does.",
        [
            Line("`finwait --help`", shown, at_most=0.15),
            Line("`finwait`", text, at_most=0.4),
            Line("`python -c pass`", bare),
            Line("`python -c 'import numpy'`", numpy),
        ],
    )


NAMES = (
    "start", "namespaces", "snapshot", "whole", "stuck", "floor", "million", "destroy", "audit", "plan", "top",
    "trace", "relay", "agent", "kube",
)  # fmt: skip


def main(names: list[str]) -> int:
    unknown = set(names) - set(NAMES)
    if unknown:
        print(f"no such benchmark: {', '.join(sorted(unknown))}\nhint: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    missing = [program for program in ("gcc", "ss", "nsenter", "ip") if not shutil.which(program)]
    if missing or os.geteuid():
        print(f"needs root and {', '.join(missing) or 'nothing else'}", file=sys.stderr)
        return 1
    chosen = names or list(NAMES)
    if "start" in chosen:
        start()
    if "namespaces" in chosen:
        namespaces()
    if {"snapshot", "whole", "top"} & set(chosen):
        reader = Reader()
        try:
            with Load(PROCESSES, PAIRS, PROCESSES * PAIRS // 2) as load:
                if "snapshot" in chosen:
                    snapshot(load, reader)
                if "whole" in chosen:
                    whole(load)
                if "top" in chosen:
                    from bench import top

                    top.measure(load)
        finally:
            reader.close()
    if "stuck" in chosen:
        stuck()
    if "floor" in chosen:
        floor.measure()
    if "million" in chosen:
        million()
    if "destroy" in chosen:
        destroy.measure()
    if "audit" in chosen:
        audit.measure()
    if "plan" in chosen:
        plan.measure()
    if "relay" in chosen:
        from bench import relay

        relay.measure()
    if "trace" in chosen:
        from bench import trace

        trace.measure()
    if "agent" in chosen:
        from bench import agent

        agent.main()
    if "kube" in chosen:
        from bench import kube

        kube.main()
    print(f"\nwritten to {os.path.relpath(RESULTS)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
