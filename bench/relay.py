"""Benchmarks of the relay beside HAProxy, nginx, Envoy, Go and a direct connection, all sides in one run.

``python -m bench relay`` measures all and writes its section of RESULTS.md; ``python -m bench.relay [--rounds 5]
[--seconds 1.5]`` prints parts. Everything runs in a network namespace of its own over
loopback. Load and server are pinned to the first processor, the relay alone to the second; on a machine with one they
share it.
Rounds are interleaved and ratios are taken within a round, so that a neighbour's burst hits all sides alike.

Each peer runs with one worker, with splice where it has it (HAProxy: forced, with 1 MiB pipes) and the features that
it would have in production on our side: keepalive, user timeout, admin socket and counters.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import machine, put
from bench.relay_matrix import missing, version
from finwait.lab.topology import Lab, LabError, Netns

HERE = Path(__file__).parent
BACKEND = 7100
TICKS = os.sysconf("SC_CLK_TCK")


class Side:
    """One way from client to server."""

    def __init__(
        self, name: str, port: int, argv: list[str], netns: Netns, cpu: int | None, cwd: Path
    ) -> None:
        self.name = name
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        if not argv:
            return
        pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
        self.process = netns.call(
            lambda: subprocess.Popen(
                [*pin, *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=cwd,
            )
        )

    def pids(self) -> list[int]:
        if self.process is None:
            return []
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def cpu(self) -> float:
        """Processor seconds so far, children included."""
        total = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def memory(self) -> int:
        """Proportional set size of all its processes, bytes."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.send_signal(signal.SIGTERM)
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def commands(folder: Path, workers: int) -> dict[str, list[str]]:
    """Name → command line, of those that are installed."""
    from tests.kernel.relay_behaviour import envoy_binary

    found: dict[str, list[str]] = {"direct": []}
    found["finwait"] = [
        *(
            sys.executable,
            "-m",
            "finwait.relay",
            "run",
            "--listen",
            "127.0.0.1:7101",
            "--to",
            f"127.0.0.1:{BACKEND}",
        ),
        *(
            "--admin",
            str(folder / "admin.sock"),
            "--workers",
            str(workers),
            "--max-connections",
            str(9000 * workers),
        ),
    ]
    if shutil.which("haproxy") or Path("/usr/sbin/haproxy").exists():
        for name, port, extra in (
            ("haproxy", 7102, ""),
            ("haproxy-splice", 7103, " option splice-request\n option splice-response\n"),
        ):
            (folder / f"{name}.cfg").write_text(
                f"global\n maxconn 8000\n maxpipes 128\n nbthread {workers}\n tune.pipesize 1048576\n"
                f"defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n{extra}"
                f"listen t\n bind 127.0.0.1:{port}\n server s 127.0.0.1:{BACKEND}\n"
            )
            found[name] = [
                shutil.which("haproxy") or "/usr/sbin/haproxy",
                "-db",
                "-f",
                str(folder / f"{name}.cfg"),
            ]
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    if module.exists():
        (folder / "nginx.conf").write_text(
            f"load_module {module};\ndaemon off; worker_processes {workers}; pid {folder}/pid;\n"
            "error_log stderr crit; user root;\n"
            "events { worker_connections 9000; }\nstream { server { listen 127.0.0.1:7104; "
            f"proxy_pass 127.0.0.1:{BACKEND}; proxy_half_close on; tcp_nodelay on; }} }}\n"
        )
        found["nginx"] = [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(folder / "nginx.conf")]
    if (envoy := envoy_binary()) is not None:
        (folder / "envoy.yaml").write_text(_ENVOY)
        found["envoy"] = [envoy, "-c", str(folder / "envoy.yaml"), "--concurrency", str(workers), "-l", "off"]
    if (binary := go_relay(folder)) is not None:
        found["go"] = [str(binary), "127.0.0.1:7106", f"127.0.0.1:{BACKEND}", str(workers)]
    return found


def go_relay(folder: Path) -> Path | None:
    """Build the Go relay; None where there is no Go."""
    if not shutil.which("go"):
        return None
    binary = folder / "relay_kube"
    env = os.environ | {"GOCACHE": str(folder / "cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", str(binary), str(HERE / "relay_kube.go")], check=True, env=env)
    return binary


_ENVOY = f"""
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: 7105 }} }}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          cluster: s
  clusters:
  - name: s
    connect_timeout: 5s
    type: STATIC
    circuit_breakers: {{ thresholds: [{{ max_connections: 20000, max_pending_requests: 20000 }}] }}
    load_assignment:
      cluster_name: s
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {BACKEND} }} }} }}
"""
PORTS = {
    "direct": BACKEND,
    "finwait": 7101,
    "haproxy": 7102,
    "haproxy-splice": 7103,
    "nginx": 7104,
    "envoy": 7105,
    "go": 7106,
}
Rows = dict[tuple[str, str], list[tuple[float, float, float, float]]]
"""(load, side) → for each round: rate, p50, p99, processor time for the unit."""
LOADS = (("echo", 64), ("conn", 32), ("bulk", 1), ("bulk", 16))


def build(folder: Path) -> Path:
    binary = folder / "relay_load"
    subprocess.run(["gcc", "-O2", "-o", str(binary), str(HERE / "relay_load.c")], check=True)
    return binary


def wait_for(netns: Netns, ports: list[int]) -> None:
    deadline = time.monotonic() + 20
    for port in ports:
        while f":{port}" not in netns.run("ss", "-Htln"):
            assert time.monotonic() < deadline, f"nothing listens on {port}"
            time.sleep(0.05)


def run(rounds: int, seconds: float, workers: int, only: list[str] | None) -> Rows:
    """Measure every side in turn, round by round."""
    cpus = sorted(os.sched_getaffinity(0))
    load_cpu, relay_cpu = cpus[0], cpus[-1] if workers == 1 else None
    results: Rows = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        netns = stack.enter_context(Lab()).netns("bench")
        netns.sysctl("net.ipv4.ip_local_port_range", "10000 65000")
        netns.sysctl("net.ipv4.tcp_tw_reuse", 1)
        binary = build(folder)
        server = Side("server", BACKEND, [str(binary), "server", str(BACKEND)], netns, load_cpu, folder)
        stack.callback(server.stop)
        sides = []
        for name, argv in commands(folder, workers).items():
            if only and name not in only:
                continue
            side = Side(name, PORTS[name], argv, netns, relay_cpu, folder)
            stack.callback(side.stop)
            sides.append(side)
        wait_for(netns, [BACKEND, *(side.port for side in sides)])
        for number in range(rounds):
            for load, count in LOADS:
                for side in sides:
                    before, began = side.cpu(), time.monotonic()
                    pin = ("taskset", "-c", str(load_cpu)) if workers == 1 else ()
                    asked = (str(binary), load, "127.0.0.1", str(side.port), str(count), str(seconds))
                    try:
                        said = netns.run(*pin, *asked).split()
                    except LabError as error:  # the others are measured all the same
                        sys.stderr.write(f"{side.name}: {load} {count}: {error}\n")
                        said = []
                    results.setdefault((f"{load} {count}", side.name), []).append(
                        row_of(said, load, time.monotonic() - began, side.cpu() - before)
                    )
            sys.stderr.write(f"round {number + 1} of {rounds}\n")
    return results


def row_of(said: list[str], load: str, seconds: float, cpu: float) -> tuple[float, float, float, float]:
    """Return rate, p50, p99 and cost of what the load said; a side that served nothing cost infinitely much."""
    rate, p50, p99 = (float(word) for word in said[:3]) if len(said) >= 3 else (0.0, 0.0, 0.0)
    work = rate * seconds / (1e9 if load == "bulk" else 1e6)
    return rate, p50, p99, cpu / work if work else float("inf")


def ratios_of(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ratios within a round, of the rounds in which both served something."""
    return [a / b for a, b in zip(ours, theirs, strict=False) if b and math.isfinite(a) and math.isfinite(b)]


def tables(results: Rows) -> str:
    """Return a Markdown table for each load."""
    out = []
    for load in dict.fromkeys(load for load, _ in results):
        unit = "GB/s" if load.startswith("bulk") else "1/s"
        cost = "CPU s/GB" if load.startswith("bulk") else "CPU us each"
        out.append(
            f"| {load} | {unit} | p50 us | p99 us | {cost} | ratio | CPU ratio |\n|---|---|---|---|---|---|---|"
        )
        ours = results.get((load, "finwait"), [])
        for (of, name), rows in results.items():
            if of != load:
                continue
            rate, p50, p99, spent = (statistics.median(column) for column in zip(*rows, strict=True))
            shown = f"{rate / 1e9:.2f}" if unit == "GB/s" else f"{rate:,.0f}"
            ratios = ratios_of([a[0] for a in ours], [b[0] for b in rows])
            costs = ratios_of([a[3] for a in ours], [b[3] for b in rows])
            times = f"{p50:g} | {p99:g}" if p50 else " | "
            mine = " | " if name == "finwait" else f"{_spread(ratios)} | {_spread(costs)}"
            out.append(f"| {name} | {shown} | {times} | {spent:.3g} | {mine} |")
        out.append("")
    return "\n".join(out)


def targets(results: Rows) -> list[str]:
    """Return what was aimed at, and whether it was reached: medians of ratios within a round."""

    def column(load: str, side: str, place: int) -> list[float]:
        return [row[place] for row in results.get((load, side), [])]

    def against(load: str, place: int, others: list[str], best: Callable[..., str]) -> float:
        """Return the median ratio to the one that has the best median: the best of each round would be its luck."""
        served = [other for other in others if any(column(load, other, 0))]
        there = {other: column(load, other, place) for other in served}
        if not there:
            return math.nan
        rival = best(there, key=lambda other: statistics.median(there[other]))
        ratios = ratios_of(column(load, "finwait", place), there[rival])
        return statistics.median(ratios) if ratios else math.nan

    peers = [side for side in PORTS if side not in ("direct", "finwait")]
    proxies = ["haproxy", "haproxy-splice"]
    lines = []
    wanted = [
        ("bulk, 1 stream: rate, of the best peer's", against("bulk 1", 0, peers, max), 1.0, True),
        ("bulk, 16 streams: rate, of the best peer's", against("bulk 16", 0, peers, max), 1.0, True),
        ("bulk, 1 stream: CPU a GB, of the best peer's", against("bulk 1", 3, peers, min), 1.0, False),
        ("bulk, 16 streams: CPU a GB, of the best peer's", against("bulk 16", 3, peers, min), 1.0, False),
        ("echo: requests/s, of HAProxy's", against("echo 64", 0, ["haproxy"], max), 0.95, True),
        ("echo: p99, of HAProxy's", against("echo 64", 2, ["haproxy"], min), 1.1, False),
        ("connections/s, of HAProxy's better", against("conn 32", 0, proxies, max), 0.9, True),
    ]
    if ("conn 32", "envoy") in results:
        wanted.append(("connections/s, of Envoy's", against("conn 32", 0, ["envoy"], max), 1.0, True))
    if ("conn 32", "go") in results:
        wanted.append(("connections/s, of Go's", against("conn 32", 0, ["go"], max), 1.0, True))
    for what, value, aim, is_least in wanted:
        met = value >= aim if is_least else value <= aim
        sign = "≥" if is_least else "≤"
        lines.append(f"| {what} | {value:.2f} | {sign} {aim:g} | {'met' if met else '**not met**'} |")
    return lines


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]" if ratios else "-"


@dataclass(frozen=True)
class Idle:
    """What idle connections cost."""

    count: int
    megabytes: float
    descriptors: float
    """For each connection."""
    share: float
    """Of one processor."""
    freed: float
    """Seconds from the last one's deadline until none of the half-closed ones was left."""


def idle(count: int, half_closed: int = 9000) -> Idle:
    """Measure idle connections, and how fast half-closed ones go at a deadline."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        netns = stack.enter_context(Lab()).netns("bench")
        netns.sysctl("net.ipv4.ip_local_port_range", "10000 65000")
        binary = build(folder)
        server = Side("server", BACKEND, [str(binary), "server", str(BACKEND)], netns, None, folder)
        stack.callback(server.stop)
        argv = commands(folder, 1)["finwait"]
        argv[argv.index("--max-connections") + 1] = str(max(count, half_closed) + 100)
        relay = Side("finwait", 7101, argv, netns, None, folder)
        stack.callback(relay.stop)
        wait_for(netns, [BACKEND, 7101])
        time.sleep(1)
        before, fds = relay.memory(), _fds(relay)
        socks = netns.call(lambda: [socket.create_connection(("127.0.0.1", 7101)) for _ in range(count)])
        stack.callback(close_all, socks)
        for sock in socks:
            sock.sendall(b"E" * 64)
        for sock in socks:
            assert len(sock.recv(64)) == 64
        time.sleep(3)  # past their first second
        used, descriptors = relay.memory() - before, _fds(relay) - fds
        cpu, began = relay.cpu(), time.monotonic()
        time.sleep(20)
        share = (relay.cpu() - cpu) / (time.monotonic() - began)
        close_all(socks)
    return Idle(count, used / 1e6, descriptors / count, share, _freed(half_closed))


def _freed(count: int, cap: float = 8.0) -> float:
    """Return how long after the last deadline the last of so many half-closed connections was freed."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        netns = stack.enter_context(Lab()).netns("bench")
        door = netns.call(lambda: socket.create_server(("127.0.0.1", BACKEND), backlog=4096))
        stack.callback(door.close)
        argv = commands(folder, 1)["finwait"]
        argv[argv.index("--max-connections") + 1] = str(count + 100)
        relay = Side("finwait", 7101, [*argv, "--half-close", f"{cap}"], netns, None, folder)
        stack.callback(relay.stop)
        wait_for(netns, [7101])
        held: list[socket.socket] = []
        stack.callback(close_all, held)
        for _ in range(count):
            # The client's end and the server's, which never closes: 18,000 descriptors are here.
            held.append(netns.call(lambda: socket.create_connection(("127.0.0.1", 7101))))
            held.append(door.accept()[0])
        for sock in held[::2]:
            sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + cap
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(folder / "admin.sock"))
            answers = admin.makefile("rb")

            def now() -> int:
                admin.sendall(b'{"do": "stats"}\n')
                workers = json.loads(answers.readline())["ok"]["workers"]
                return sum(worker["services"]["relay"]["now"] for worker in workers)

            assert now() == count, now()
            time.sleep(max(0.0, deadline - time.monotonic()))
            while now():
                assert time.monotonic() < deadline + 30
                time.sleep(0.02)
        return time.monotonic() - deadline


def measure(rounds: int = 5, seconds: float = 0.8) -> None:
    """Measure all, and write the section of RESULTS.md."""
    one = run(rounds, seconds, 1, None)
    two = run(rounds, seconds, 2, None)
    resting = idle(9000)
    scale = 10_000 / resting.count
    memory = resting.megabytes * scale
    lines = [
        "What the relay was to reach, with all features on. Ratios are medians of the ratio within a round.\n",
        "| what | measured | target | |",
        "|---|---|---|---|",
        *targets(one),
        _verdict(
            f"{resting.count:,} idle connections: memory beyond the start, as of 10,000", memory, "MB", 12
        ),
        _verdict("descriptors of the relay for each", resting.descriptors, "", 2),
        _verdict("share of a processor while they are idle", resting.share * 100, "%", 0.5),
        _verdict("9,000 half-closed ones freed after their deadline", resting.freed, "s", 1),
        "| two workers, of one worker's rate | | ≥ 1.7 where two cores are free | not measurable here: see below |",
        "",
        "### One worker\n",
        tables(one),
        "### Two workers, nothing pinned\n",
        tables(two),
    ]
    text = "\n".join(lines)
    print(text)
    versions = sorted(version(kind) for kind in ("haproxy", "nginx", "envoy") if not missing(kind))
    notes = (
        f"{rounds} rounds of {seconds:g} s, sides in turn. With one worker the load and the server are pinned to one\n"
        "processor and the relay alone to the other. With two workers relay, load and server share the two\n"
        "processors of this machine, so doubling cannot show. *haproxy-splice* has `option splice-request`,\n"
        "`splice-response` and pipes of 1 MiB; *go* is the algorithm of kube-proxy's userspace mode\n"
        "(bench/relay_kube.go). The spreads in brackets say how quiet the machine was.\n"
        f"{'; '.join(versions)}.\n"
    )
    put(
        "relay",
        f"`finwait relay` beside other relays, over loopback in a namespace.\n\n{machine()}\n\n{text}\n{notes}",
    )


def _verdict(what: str, value: float, unit: str, most: float) -> str:
    met = "met" if value <= most else "**not met**"
    return f"| {what} | {value:.3g} {unit}".rstrip() + f" | ≤ {most:g} {unit}".rstrip() + f" | {met} |"


def close_all(socks: list[socket.socket]) -> None:
    for sock in socks:
        sock.close()


def _fds(side: Side) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in side.pids())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--only", action="append", help="direct, finwait, haproxy, haproxy-splice, nginx, envoy, go"
    )
    parser.add_argument("--idle", type=int, metavar="N", help="measure N idle connections instead")
    args = parser.parse_args()
    if args.idle:
        print(idle(args.idle))
    else:
        print(tables(run(args.rounds, args.seconds, args.workers, args.only)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
