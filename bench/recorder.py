"""What the agent's flight recorder costs: to itself, and to the programs whose connections it records.

    python -m bench.recorder [SECONDS]

A program in a network namespace of its own opens and closes connections to itself at a fixed rate: both ends are
here, so each is six events. The recorder runs in this process, without anything else of the agent. What else closes on
this machine meanwhile is read, too, and is in the numbers of events.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from bench.measure import Line, write
from finwait.agent.tracing import TraceRecorder

PROGRAM = """
import os, socket, sys, time
rate = int(sys.argv[1])
server = socket.create_server(("127.0.0.1", 0), backlog=512)
begun, n = time.monotonic(), 0
while os.getppid() != 1:
    one = socket.create_connection(server.getsockname())
    other = server.accept()[0]
    one.close()
    other.recv(1)
    other.close()
    n += 1
    rest = begun + n / rate - time.monotonic()
    if rest > 0:
        time.sleep(rest)
    if n % rate == 0:
        print(time.process_time(), n, flush=True)
"""


class Closing:
    """The program above."""

    def __init__(self, rate: int) -> None:
        inside = f'ip link set lo up && exec "{sys.executable}" -c "$0" {rate}'
        command = ["unshare", "--net", "sh", "-c", inside, PROGRAM]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.sample()

    def sample(self) -> tuple[float, int]:
        """Processor time and connections so far, at the end of a second's worth."""
        assert self._process.stdout is not None
        cpu, n = self._process.stdout.readline().split()
        return float(cpu), int(n)

    def each_s(self, seconds: int) -> float:
        """Processor time of a connection, over as many seconds' worth."""
        cpu, n = self.sample()
        for _ in range(seconds):
            after = self.sample()
        return (after[0] - cpu) / (after[1] - n)

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def at_rate(rate: int, seconds: int) -> list[Line]:
    """Measure at a rate of connections a second."""
    program = Closing(rate)
    try:
        without = program.each_s(seconds)
        with TraceRecorder(share=1.0, rate=1e6) as source:
            program.sample()
            before, cpu, begun = source.status(0, 0), time.process_time(), time.monotonic()
            recorded = program.each_s(seconds)
            passed = time.monotonic() - begun
            spent, after = (time.process_time() - cpu) / passed, source.status(0, 0)
    finally:
        program.end()
    events = (after.events - before.events) / passed
    name = f"{rate:,} closings a second"
    return [
        Line(f"{name}: the recorder, processor time a minute (1 %: 0.6 s)", 60 * spent, at_most=0.6),
        Line(f"{name}: … of an event, in millionths", 1e6 * spent / events, unit="µs"),
        Line(f"{name}: events a second", events, unit="/s"),
        Line(f"{name}: lost", float(after.lost - before.lost), at_most=0, unit="records"),
        Line(f"{name}: memory of the ring", after.kept_bytes / 1e6, at_most=7, unit="MB"),
        Line(
            f"{name}: a connection of the program, beside one that is not recorded",
            recorded,
            "without",
            without,
        ),
    ]


def main() -> int:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    lines = [line for rate in (10, 100, 1000) for line in at_rate(rate, seconds)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write(
        "recorder",
        f"The flight recorder of `finwait agent` for {seconds} s at each rate, both ends of each connection here.",
        "The recorder alone, without the rest of the agent. It switches itself off above 8,000 events a second, or\n"
        f"where it takes more than its part of the agent's share. The whole process took {peak:.0f} MB at most. What\n"
        "others closed on the machine meanwhile is among the events.",
        lines,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
