"""Tracing: how fast records are decoded, and what watching costs a connect/close workload.

The second runs the same workload (a process that connects, accepts and closes over loopback in a namespace of
its own) unwatched, watched by finwait, by the raw tracing instance without a reader, by bpftrace where it is
installed and by bcc's tcpstates where it can start.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np

from bench.measure import Line, write

RATE = 200_000
ROOT = Path(__file__).parent.parent
WORK = """
import ctypes, socket, subprocess, sys, time
if ctypes.CDLL(None).unshare(0x40000000): raise SystemExit(77)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = socket.create_server(("127.0.0.1", 0), backlog=128)
address = server.getsockname()
print("ready", flush=True)
for line in sys.stdin:
    begun = time.perf_counter()
    for _ in range(int(line)):
        client = socket.create_connection(address)
        accepted, _ = server.accept()
        client.close()
        accepted.recv(1)
        accepted.close()
    print(time.perf_counter() - begun, flush=True)
"""


def pages_of(transitions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pages as a busy kernel fills them, 50 records each: ten transitions a connection."""
    from tests import ring_pages as rp

    from finwait.uapi.tracepoint import PageLayout

    steps = [(7, 2), (2, 1), (10, 3), (3, 1), (1, 4), (1, 8), (4, 5), (8, 9), (5, 7), (9, 7)]
    pages = []
    now = 1_000_000
    page = rp.PageWriter(PageLayout(), now)
    for k in range(transitions):
        old, new = steps[k % 10]
        client = k % 10 in (0, 1, 4, 6, 8)
        sk = 0xFFFF888000000000 + (k // 10 * 2 + client) % 20_000 * 0x900
        now += 5000
        page.data(rp.set_state(old, new, sk=sk, sport=30_000 + k // 10 % 30_000, dport=80), now - page.now)
        if page.room() < 100:
            pages.append(page.page())
            page = rp.PageWriter(PageLayout(), now)
    pages.append(page.page())
    starts = np.arange(len(pages), dtype=np.int64) * 4096
    return np.frombuffer(b"".join(pages), np.uint8), starts, np.full(len(pages), 4096, np.int64)


def decoding() -> dict[str, float]:
    """Return seconds for 200,000 records of ring pages, by step, in batches of a tenth of a second at that rate."""
    from tests import ring_pages as rp

    from finwait.table import transitions as tr
    from finwait.table.lives import Follower
    from finwait.uapi import tracepoint as tp

    layout = tp.PageLayout()
    formats = {f.id: f for f in (tp.parse_format(rp.SET_STATE),)}
    batch = 20_000
    buffer, starts, lengths = pages_of(batch)
    taken: dict[str, list[float]] = {"pages walked": [], "columns": [], "lives and times": []}
    follower = Follower()
    for k in range(12):
        begun = time.process_time()
        records = tp.walk(buffer, starts, lengths, layout)
        walked = time.process_time()
        table, cookies = tr.decode(records, np.zeros(len(starts), np.int64), formats, byteorder="little")
        decoded = time.process_time()
        table = table.replace("time_ns", table.time_ns + k * 200_000_000)
        again = time.process_time()
        follower.feed(table, cookies, 1 << 62, missed=records.missed)
        follower.take(1 << 62)
        for name, value in zip(
            taken, (walked - begun, decoded - walked, time.process_time() - again), strict=True
        ):
            taken[name].append(value)
    assert follower.lost == 0
    return {name: statistics.median(values) * RATE / batch for name, values in taken.items()}


def live(seconds: float = 6.0) -> tuple[float, float, int]:
    """Follow what two processes of connects.c do; return transitions a second, our share of a core, and lost."""
    from finwait.follow import Following

    with tempfile.TemporaryDirectory(prefix="finwait-bench-") as directory:
        path = str(Path(directory) / "connects")
        source = str(Path(__file__).with_name("connects.c"))
        subprocess.run(["gcc", "-O2", "-Wall", "-o", path, source], check=True)
        with Following(lookup=False) as following, ExitStack() as stack:
            assert following.mode == "tracing", following.why_polling
            works = [
                stack.enter_context(
                    subprocess.Popen(
                        [path, str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                    )
                )
                for _ in range(2)
            ]
            for work in works:
                assert work.stdin is not None
                assert work.stdout is not None
                assert work.stdout.readline() == "ready\n"
                work.stdin.write("go\n")
                work.stdin.flush()
            seen = lost = 0
            spent, begun = time.process_time(), time.monotonic()
            while any(work.poll() is None for work in works):
                found = following.step(0.2)
                seen, lost = seen + len(found.rows), lost + found.lost
            span = time.monotonic() - begun
            share = (time.process_time() - spent) / span
            rest = following.finish()
            statistics_ = following.statistics()
            assert statistics_ is not None
            done = sum(int(work.stdout.read().split()[0]) for work in works if work.stdout is not None)
        seen += len(rest.rows)
        lost = max(lost + rest.lost, statistics_.lost)
        assert seen + lost >= 10 * done, (seen, lost, done)
        return seen / span, share, lost


@contextmanager
def unwatched() -> Iterator[None]:
    yield


@contextmanager
def program(*command: str, ready: Callable[[subprocess.Popen[str]], None]) -> Iterator[None]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        ready(process)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=20)


def by_finwait(*options: str) -> Callable[[], AbstractContextManager[None]]:
    def wait(process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("tracing"), line

    return lambda: program(sys.executable, "-m", "finwait", "trace", *options, ready=wait)


@contextmanager
def by_the_tracepoint_alone() -> Iterator[None]:
    from finwait.kernel.tracefs import Tracing

    with Tracing(["sock/inet_sock_set_state"], filters={"sock/inet_sock_set_state": "protocol == 6"}):
        yield


COUNTING = "tracepoint:sock:inet_sock_set_state { @[args->oldstate, args->newstate] = count(); }"
PRINTING = (
    "tracepoint:sock:inet_sock_set_state "
    '{ printf("%d %d %d %d\\n", args->sport, args->dport, args->oldstate, args->newstate); }'
)


def by_bpftrace(script: str) -> AbstractContextManager[None]:
    """bpftrace, in a mount namespace of its own in which tracefs is mounted."""

    def wait(process: subprocess.Popen[str]) -> None:
        time.sleep(4)  # it says that it is ready on standard output, which nobody reads here
        if process.poll() is not None:
            raise RuntimeError("bpftrace did not start")

    mounted = f"mount -t tracefs nodev /sys/kernel/tracing && exec bpftrace -e '{script}'"
    return program("unshare", "-m", "bash", "-c", mounted, ready=wait)


def by_tcpstates() -> AbstractContextManager[None]:
    """Bcc's tcpstates, which compiles its program first."""

    def wait(process: subprocess.Popen[str]) -> None:
        time.sleep(8)
        if process.poll() is not None:
            raise RuntimeError("tcpstates did not start")

    return program("tcpstates-bpfcc", ready=wait)


def slowdown(connections: int = 20_000, rounds: int = 3) -> tuple[dict[str, float], list[str]]:
    """Return the time of the workload under each watcher, the median of rounds, and who could not take part."""
    watchers: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "unwatched": unwatched,
        "the tracepoint alone, nobody reads": by_the_tracepoint_alone,
        "`finwait trace`": by_finwait(),
        "`finwait trace --no-lookup`": by_finwait("--no-lookup"),
        "`finwait trace --summary`": by_finwait("--summary"),
    }
    absent = []
    if shutil.which("bpftrace"):
        watchers["`bpftrace`, counting in a map"] = lambda: by_bpftrace(COUNTING)
        watchers["`bpftrace`, printing each"] = lambda: by_bpftrace(PRINTING)
    else:
        absent.append("`bpftrace` is not installed.")
    if not shutil.which("tcpstates-bpfcc"):
        absent.append("bcc's `tcpstates` is not installed.")
    elif not os.path.isdir(f"/lib/modules/{os.uname().release}/build"):
        absent.append(
            "bcc's `tcpstates` is installed and does not start: it compiles against kernel headers."
        )
    else:
        watchers["bcc's `tcpstates`"] = by_tcpstates
    times: dict[str, list[float]] = {name: [] for name in watchers}
    with subprocess.Popen(
        [sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as work:
        assert work.stdin is not None
        assert work.stdout is not None
        assert work.stdout.readline() == "ready\n"

        def once() -> float:
            assert work.stdin is not None
            assert work.stdout is not None
            work.stdin.write(f"{connections}\n")
            work.stdin.flush()
            return float(work.stdout.readline())

        once()
        for _ in range(rounds):
            for name, watcher in watchers.items():
                with watcher():
                    times[name].append(once())
        work.stdin.close()
    return {name: statistics.median(values) for name, values in times.items()}, absent


def measure() -> None:
    """Measure decoding, following live, and the slow-down of a workload; write the section."""
    steps = decoding()
    rate, share, lost = live()
    times, absent = slowdown()
    base = times.pop("unwatched")
    write(
        "trace",
        f"Transitions: {RATE:,} a second from ring pages; as many as two processes here make; and what watching costs.",
        f"""
*From ring pages*: processor time for {RATE:,} records as a busy kernel lays them out, ten a connection, until lives and
times are known; 100 % is one core. *Live*: two processes connect and close over loopback as fast as they can on the two
cores that they share with us; followed as `--no-lookup` and `--summary` do, counted to the record and compared
with what they say they did. *Slow-down*: the time of 20,000 connections (connect, accept, close, in Python, one
process) under each watcher, medians of three rounds in turn. {" ".join(absent)}
""",
        [
            *(Line(f"from ring pages: {name}", 100 * value, unit="%") for name, value in steps.items()),
            Line("from ring pages: all", 100 * sum(steps.values()), at_most=50, unit="%"),
            Line("live: transitions a second", rate, unit="/s"),
            Line("live: records lost", lost, at_most=0, unit="records"),
            Line("live: processor time, share of one core", 100 * share, unit="%"),
            Line(f"live: the same for {RATE:,} a second", 100 * share * RATE / rate, at_most=50, unit="%"),
            Line("workload unwatched", base),
            *(Line(f"workload beside {name}", value, "unwatched", base) for name, value in times.items()),
        ],
    )
