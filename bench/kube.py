"""What following a Kubernetes API server costs: names of 250 pods and 5,000 Services.

    python -m bench.kube

The API server is that of the tests, in a process of its own; who follows it is a fresh process, so that all of its
memory is what this needs. Objects are as large as those of a real server (pods 6 kB, Services 0.7 kB, slices 1 kB).
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.kube import cluster
from tests.kube.api_server import ApiServer

from bench.measure import Line, environment, write

PODS, SERVICES, BEHIND = 250, 5_000, 3
CHANGES_A_SECOND = 20
SECONDS = 60


def padded(item: dict[str, Any], size: int) -> dict[str, Any]:
    """Return an object of a size, with what is not asked for, as `managedFields` are."""
    missing = size - len(json.dumps(item))
    item["metadata"]["managedFields"] = [{"manager": "x" * max(0, missing - 30)}]
    return item


def a_pod(number: int, address: str) -> dict[str, Any]:
    owner = f"cart-{number // 5:x}7d9f"
    labels = {"app": f"cart{number // 5}", "pod-template-hash": f"{number // 5:x}7d9f", "tier": "web"}
    return padded(
        cluster.pod(f"{owner}-{number}", ip=address, owner=("ReplicaSet", owner), labels=labels), 6_400
    )


def fill(server: ApiServer) -> None:
    for k in range(PODS):
        server.put("pods", a_pod(k, f"10.244.0.{k}"))
    server.put("namespaces", cluster.namespace("shop"))
    for k in range(SERVICES):
        server.put(
            "services",
            padded(cluster.service(f"s{k}", ip=f"10.{96 + k // 65536}.{k // 256 % 256}.{k % 256}"), 720),
        )
        reached = [(f"10.{1 + k // 250}.{n}.{k % 250}", f"cart-{k}-{n}") for n in range(BEHIND)]
        server.put("endpointslices", padded(cluster.endpoint_slice(f"s{k}-x", reached, of=f"s{k}"), 1_050))


def serve() -> None:
    """Print a URL, begin to change pods at a line, and end at the end of input."""
    with ApiServer(bookmark_s=60) as server:
        fill(server)
        server.compact()
        print(server.url, flush=True)
        sys.stdin.readline()
        ending = threading.Event()
        changing = threading.Thread(target=change, args=(server, ending))
        changing.start()
        sys.stdin.readline()
        ending.set()
        changing.join()


def change(server: ApiServer, ending: threading.Event) -> None:
    """Replace pods: each is deleted, created anew, and gets an address, as a rollout does."""
    chance, number = random.Random(1), PODS
    begun, done = time.monotonic(), 0
    while not ending.wait(max(0.0, begun + done / CHANGES_A_SECOND - time.monotonic())):
        done += 4
        name = chance.choice(sorted(server.objects["pods"]))[1]
        server.delete("pods", "shop", name)
        number += 1
        server.put("pods", a_pod(number, ""))
        server.put("pods", a_pod(number, f"10.244.{number // 250 % 256}.{number % 250}"))
        server.put("pods", a_pod(number, f"10.244.{number // 250 % 256}.{number % 250}"))


def megabytes(name: str) -> float:
    """Return a figure of the memory of this process (proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def follow(url: str) -> None:
    """Print the figures of one process that follows a server, one JSON object a line."""
    from finwait.kube.access import KubeAccess
    from finwait.kube.watch import KubePacing, Watcher

    bare = megabytes("VmRSS")
    begun = time.perf_counter()
    spent = cpu()
    with Watcher(KubeAccess(url, node=cluster.NODE), pacing=KubePacing(start_s=0.0)) as watcher:
        assert watcher.settled(60)
        names = watcher.names()
        filled = {"cpu": cpu() - spent, "wall": time.perf_counter() - begun}
        assert (len(names.pods), len(names.services), len(names.endpoints)) == (
            PODS,
            SERVICES,
            BEHIND * SERVICES,
        )
        spent = cpu()
        assert names.service_at("10.96.0.1", 5432) == "shop/s1"
        assert names.services_behind("10.1.0.1", 5432) == ("shop/s1",)
        assert names.pod_at("10.1.0.1") == "shop/cart-1-0"
        assert names.pod(names.pods[0].uid) is not None
        joined = cpu() - spent
        memory = {"rss": megabytes("VmRSS") - bare, "peak": megabytes("VmHWM") - bare}
        print(json.dumps({"filled": filled, "joined": joined, "memory": memory}), flush=True)
        sys.stdin.readline()
        spent, begun, events = cpu(), time.monotonic(), watcher.requests.events
        while time.monotonic() - begun < SECONDS:
            time.sleep(1)
            watcher.names().pod("x")
        share = (cpu() - spent) / (time.monotonic() - begun)
        rate = (watcher.requests.events - events) / (time.monotonic() - begun)
        print(json.dumps({"share": share, "rate": rate, "peak": megabytes("VmHWM") - bare}), flush=True)


def process(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.kube", *words]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )


def line_of(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    text = running.stdout.readline()
    if not text:
        raise RuntimeError("the process ended")
    return text.strip()


def tell(running: subprocess.Popen[str]) -> None:
    assert running.stdin is not None
    running.stdin.write("\n")
    running.stdin.flush()


def main() -> None:
    fills: list[dict[str, Any]] = []
    with process("serve") as server:
        url = line_of(server)
        for last in (False, False, False, False, True):
            with process("follow", url) as follower:
                fills.append(json.loads(line_of(follower)))
                if last:
                    tell(server)
                    tell(follower)
                    beside = json.loads(line_of(follower))
                else:
                    follower.kill()
        tell(server)
    fill_cpu = sorted(one["filled"]["cpu"] for one in fills)[len(fills) // 2]
    joined = sorted(one["joined"] for one in fills)[len(fills) // 2]
    peak = max(one["memory"]["peak"] for one in fills)
    kept = max(one["memory"]["rss"] for one in fills)
    write(
        "kube",
        f"Names of {PODS} pods and {SERVICES:,} Services with {BEHIND * SERVICES:,} endpoints, from an API server.",
        NOTES,
        [
            Line("lists to names, processor time", fill_cpu, at_most=0.2),
            Line("… joins by address, uid and port, once after a change", joined),
            Line("memory, at most", peak, at_most=60, unit="MB"),
            Line("… once they are there", kept, unit="MB"),
            Line(
                f"beside {beside['rate']:.0f} pod changes a second, processor time a minute (1 %: 0.6 s)",
                60 * beside["share"],
                at_most=0.6,
            ),
            Line(f"… memory after {SECONDS} s of that, at most", beside["peak"], unit="MB"),
        ],
    )


NOTES = f"""
Fills are medians of five fresh processes, memory is the largest of them, beyond that of the interpreter with the
modules loaded. The server is another process and not counted. Names are asked for once a second for {SECONDS} s beside
changes that replace pods; what is gone stays for ten minutes.
"""

if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            serve()
        case ["follow", place]:
            follow(place)
        case _:
            main()
