"""Tracing: how fast records are decoded, and what watching costs a connect/close workload.

``python -m bench.trace [decode|slowdown]``. The second runs the same workload (a process that connects,
accepts and closes over loopback in a namespace of its own) unwatched, watched by finwait, by the raw tracing
instance without a reader, and by bpftrace where it is installed; rounds are interleaved, ratios are per round.
bpftrace needs tracefs mounted: it runs in a mount namespace of its own. bcc's tcpstates needs kernel headers
and is left out where it cannot start, which is said.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

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


def decode() -> None:
    """Bytes of pages → columns → lives and times, in batches of a tenth of a second at 200,000 a second."""
    from tests import ring_pages as rp

    from finwait.table import transitions as tr
    from finwait.uapi import tracepoint as tp

    layout = tp.PageLayout()
    formats = {f.id: f for f in (tp.parse_format(rp.SET_STATE),)}
    batch = 20_000
    buffer, starts, lengths = pages_of(batch)
    walked: list[float] = []
    columns: list[float] = []
    joined: list[float] = []
    follower = tr.Follower()
    for k in range(12):
        begun = time.process_time()
        records = tp.walk(buffer, starts, lengths, layout)
        walked.append(time.process_time() - begun)
        begun = time.process_time()
        table, cookies = tr.decode(records, np.zeros(len(starts), np.int64), formats, byteorder="little")
        columns.append(time.process_time() - begun)
        table = table.replace("time_ns", table.time_ns + k * 200_000_000)
        begun = time.process_time()
        follower.feed(table, cookies, 1 << 62, missed=records.missed)
        follower.take(1 << 62)
        joined.append(time.process_time() - begun)
    for name, times in (("walk", walked), ("columns", columns), ("lives and times", joined)):
        print(f"  {name:16} {batch / statistics.median(times) / 1e6:8.2f} million records a second")
    total = statistics.median([a + b + c for a, b, c in zip(walked, columns, joined, strict=True)])
    print(f"  all              {batch / total / 1e6:8.2f} million records a second")
    print(f"  at 200,000 a second: {200_000 / (batch / total):.0%} of one core")


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


def by_finwait(*options: str) -> Callable[[], object]:
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


def by_bpftrace() -> object:
    script = "tracepoint:sock:inet_sock_set_state { @[args->oldstate, args->newstate] = count(); }"

    def wait(process: subprocess.Popen[str]) -> None:
        time.sleep(4)  # it says that it is ready on standard output, and then only with the map
        if process.poll() is not None:
            raise RuntimeError("bpftrace did not start")

    mounted = f"mount -t tracefs nodev /sys/kernel/tracing && exec bpftrace -e '{script}'"
    return program("unshare", "-m", "bash", "-c", mounted, ready=wait)


def slowdown(connections: int = 3000, rounds: int = 5) -> None:
    watchers: dict[str, Callable[[], object]] = {
        "unwatched": unwatched,
        "tracepoint alone": by_the_tracepoint_alone,
        "finwait trace": by_finwait(),
        "… --no-lookup": by_finwait("--no-lookup"),
        "… --summary": by_finwait("--summary"),
    }
    if shutil.which("bpftrace"):
        watchers["bpftrace count()"] = by_bpftrace
    else:
        print("  bpftrace is not installed")
    if not os.path.isdir(f"/lib/modules/{os.uname().release}/build"):
        print("  bcc's tcpstates needs kernel headers, which are not here: left out")
    times: dict[str, list[float]] = {name: [] for name in watchers}
    with subprocess.Popen(
        [sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as work:
        assert work.stdin is not None
        assert work.stdout is not None
        assert work.stdout.readline() == "ready\n"

        def once() -> float:
            work.stdin.write(f"{connections}\n")  # type: ignore[union-attr]
            work.stdin.flush()  # type: ignore[union-attr]
            return float(work.stdout.readline())  # type: ignore[union-attr]

        once()
        for _ in range(rounds):
            for name, watcher in watchers.items():
                with watcher():  # type: ignore[attr-defined]
                    times[name].append(once())
        work.stdin.close()
    base = times["unwatched"]
    for name, values in times.items():
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        rate = connections / statistics.median(values)
        print(f"  {name:18} {rate:8.0f} connections a second, {ratio:5.2f} × the time")


def main(which: str = "") -> None:
    print(f"Linux {os.uname().release}, {os.cpu_count()} cores, Python {sys.version.split()[0]}")
    if which in ("", "decode"):
        print("decoding")
        decode()
    if which in ("", "slowdown"):
        print("connect, accept, close over loopback")
        slowdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
