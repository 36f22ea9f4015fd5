"""Benchmarks of the relay beside HAProxy, nginx, Envoy and a direct connection, all sides in one run.

``python -m bench.relay [--rounds 5] [--seconds 1.5]``. Everything runs in a network namespace of its own over
loopback. Load and server are pinned to the first processor, the relay alone to the second; on a machine with one they
share it.
Rounds are interleaved and ratios are taken within a round, so that a neighbour's burst hits all sides alike.

Each peer runs with one worker, with splice where it has it (HAProxy: forced, with 1 MiB pipes) and the features that
it would have in production on our side: keepalive, user timeout, admin socket and counters.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from finwait.lab.topology import Lab, Netns

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
    return found


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
}
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


def run(rounds: int, seconds: float, workers: int, only: list[str] | None) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    load_cpu, relay_cpu = cpus[0], cpus[-1] if workers == 1 else None
    results: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
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
                    said = netns.run(
                        *("taskset", "-c", str(load_cpu)) if workers == 1 else (),
                        *(str(binary), load, "127.0.0.1", str(side.port), str(count), str(seconds)),
                    ).split()
                    rate = float(said[0])
                    work = rate * (time.monotonic() - began)
                    spent = (side.cpu() - before) / (work / 1e9 if load == "bulk" else work / 1e6)
                    results.setdefault((f"{load} {count}", side.name), []).append(
                        (rate, float(said[1]), float(said[2]), spent)
                    )
            sys.stderr.write(f"round {number + 1} of {rounds}\n")
    show(results, rounds, seconds, workers)


def show(
    results: dict[tuple[str, str], list[tuple[float, float, float, float]]],
    rounds: int,
    seconds: float,
    workers: int,
) -> None:
    print(
        f"# {platform.release()}, {os.cpu_count()} processors, Python {platform.python_version()}, "
        f"{rounds} rounds of {seconds:g} s, {workers} worker(s), {time.strftime('%Y-%m-%d')}; medians, "
        "ratio = finwait/other within a round [least-most]\n"
    )
    for load in dict.fromkeys(load for load, _ in results):
        unit = "GB/s" if load.startswith("bulk") else "1/s"
        cost = "CPU s/GB" if load.startswith("bulk") else "CPU us each"
        print(
            f"| {load} | {unit} | p50 us | p99 us | {cost} | ratio | CPU ratio |\n|---|---|---|---|---|---|---|"
        )
        ours = results.get((load, "finwait"), [])
        for (of, name), rows in results.items():
            if of != load:
                continue
            rate, p50, p99, spent = (statistics.median(column) for column in zip(*rows, strict=True))
            shown = f"{rate / 1e9:.2f}" if unit == "GB/s" else f"{rate:,.0f}"
            ratios = [a[0] / b[0] for a, b in zip(ours, rows, strict=False)]
            costs = [a[3] / b[3] for a, b in zip(ours, rows, strict=False) if b[3]]
            print(
                f"| {name} | {shown} | {p50:g} | {p99:g} | {spent:.3g} | {_spread(ratios)} | {_spread(costs)} |"
            )
        print()


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]" if ratios else "-"


def idle(count: int) -> None:
    """Memory, descriptors and processor of idle connections, and how fast half-closed ones go at a deadline."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        netns = stack.enter_context(Lab()).netns("bench")
        binary = build(folder)
        server = Side("server", BACKEND, [str(binary), "server", str(BACKEND)], netns, None, folder)
        stack.callback(server.stop)
        argv = commands(folder, 1)["finwait"]
        relay = Side("finwait", 7101, [*argv, "--half-close", "20"], netns, None, folder)
        stack.callback(relay.stop)
        wait_for(netns, [BACKEND, 7101])
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
        time.sleep(10)
        share = (relay.cpu() - cpu) / (time.monotonic() - began)
        print(
            f"{count} idle: {used / 1e6:.1f} MB ({used / 1e6 * 10000 / count:.1f} MB per 10,000), "
            f"{descriptors / count:.3f} descriptors each, {share * 100:.2f} % of a core"
        )


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
        "--only", action="append", help="direct, finwait, haproxy, haproxy-splice, nginx, envoy"
    )
    parser.add_argument("--idle", type=int, metavar="N", help="measure N idle connections instead")
    args = parser.parse_args()
    if args.idle:
        idle(args.idle)
    else:
        run(args.rounds, args.seconds, args.workers, args.only)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
