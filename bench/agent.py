"""What `finwait agent` costs, both of its processes, beside doing without turns and questions.

    python -m bench.agent [SECONDS]

Runs in a pid and network namespace of its own, so that what else runs on the machine has no part in the rows (it has in
the hash table, and in the load). The small namespaces have no traffic, so that counters prove that nothing is new in
them; with traffic each needs a walk. Two crowds: 100,000 sockets in one of 15 namespaces, a few of them stuck; the same
in 216 namespaces; and all of them stuck, which is the dearest that an agent can meet.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from bench.load import Load
from bench.measure import FINWAIT, Line, write
from bench.spaces import Namespaces

INSIDE = "FINWAIT_BENCH_AGENT"
ADDRESS = "127.0.0.1:9944"
PROCESSES, PAIRS = 6, 8400
SCENES = (
    ("15 namespaces, 1,000 of the connections stuck", 14, 1_000),
    ("216 namespaces, 1,000 of the connections stuck", 215, 1_000),
    ("15 namespaces, all of the connections stuck", 14, PROCESSES * PAIRS),
)


class Process:
    """A process that is measured."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @property
    def cpu(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    @property
    def rss(self) -> float:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096 / 1e6

    @property
    def pss(self) -> float:
        """Memory, of which what is shared counts in parts."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def scrape() -> tuple[str, float]:
    begun = time.perf_counter()
    with urllib.request.urlopen(f"http://{ADDRESS}/metrics", timeout=20) as answer:
        return answer.read().decode(), time.perf_counter() - begun


def value(text: str, pattern: str) -> float:
    return sum(float(x) for x in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))


def wait_for_causes() -> None:
    """Wait until all that is stuck was looked at once: from then on it costs what it costs."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        time.sleep(3)
        try:
            text, _ = scrape()
        except OSError:
            continue
        if value(text, "finwait_stuck_connections{.*}") and not value(
            text, "finwait_undiagnosed_connections"
        ):
            return
    raise RuntimeError("the agent has not looked at everything within ten minutes")


def everything_again() -> float:
    """Processor time of a look at all closing states in all namespaces, as it would be taken without turns."""
    from finwait.kernel import closing, netns, procfs

    namespaces = netns.discover(procfs.descriptors()[1])[0]
    spent = time.process_time()
    closing.walk(namespaces)
    return time.process_time() - spent


def scene(name: str, more: int, stuck: int, seconds: float) -> list[Line]:
    with ExitStack() as stack:
        stack.enter_context(Load(PROCESSES, PAIRS, stuck))
        stack.enter_context(Namespaces(more))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        words = ["--state-dir", str(folder / "state"), "--socket", str(folder / "s"), "--listen", ADDRESS]
        agent = subprocess.Popen([FINWAIT, "agent", *words])
        stack.callback(agent.wait)
        stack.callback(agent.terminate)
        wait_for_causes()
        looker = Process(agent.pid)
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        face = Process(
            next(int(p) for p in children if b"agent.face" in Path(f"/proc/{p}/cmdline").read_bytes())
        )
        time.sleep(60)
        before, cpu, begun = scrape()[0], looker.cpu + face.cpu, time.monotonic()
        scrapes, rss, pss, unseen = [], 0.0, 0.0, 0.0
        while time.monotonic() - begun < seconds:
            time.sleep(15)
            text, took = scrape()
            scrapes.append(took)
            rss = max(rss, looker.rss + face.rss)
            pss = max(pss, looker.pss + face.pss)
            unseen = max(unseen, value(text, "finwait_namespace_unseen_seconds"))
        text, _ = scrape()
        spent = (looker.cpu + face.cpu - cpu) / (time.monotonic() - begun)
        kind = '{{kind="{}"}}'
        ticks = value(text, "finwait_look_duration_seconds_count" + re.escape(kind.format("tick")))
        ticks -= value(before, "finwait_look_duration_seconds_count" + re.escape(kind.format("tick")))
        tick = value(text, "finwait_look_duration_seconds_sum" + re.escape(kind.format("tick")))
        tick -= value(before, "finwait_look_duration_seconds_sum" + re.escape(kind.format("tick")))
        again = everything_again()
        return [
            Line(f"{name}: processor time a minute (1 %: 0.6 s)", 60 * spent, at_most=0.6),
            Line(f"{name}: … of a walk of everything every 15 s", 4 * again),
            Line(f"{name}: memory of both processes, at most", rss, at_most=80, unit="MB"),
            Line(f"{name}: … of which what is shared counts in parts (PSS)", pss, at_most=80, unit="MB"),
            Line(f"{name}: a tick, mean", tick / max(ticks, 1), at_most=0.005),
            Line(f"{name}: a scrape, median", sorted(scrapes)[len(scrapes) // 2], at_most=0.010),
            Line(f"{name}: the longest that a namespace was unseen", unseen, at_most=180),
        ]


def main() -> int:
    if not os.environ.get(INSIDE):
        words = ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc"]
        more = sys.argv[1:2] if sys.argv[0].endswith("agent.py") else []
        again = [*words, sys.executable, "-m", "bench.agent", *more]
        return subprocess.call(again, env={**os.environ, INSIDE: "1"})
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 180.0
    lines = [line for name, more, stuck in SCENES for line in scene(name, more, stuck, seconds)]
    write(
        "agent",
        f"`finwait agent` for {seconds:g} s beside {2 * PROCESSES * PAIRS:,} sockets, once everything was looked at.",
        "Both processes, with a scrape every 15 s. *A walk of everything every 15 s* is what finding new ones would\n"
        "cost without turns: counters and questions come on top of that. A scrape includes the program that asks.",
        lines,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
