"""``bench/floor.c`` beside whole looks: how far from what no look can leave out.

The floor receives the dump that the command asks for and reads the link of every descriptor of the machine, in C and
in one thread. Both sides are measured in turn, in one run: wall time and processor time (the command's children
included, since it lists descriptors in several processes), each as the best of the rounds. Processor time is what
tells on a machine that does something else beside.
"""

from __future__ import annotations

import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from bench.load import Load
from bench.measure import FINWAIT, Line, command_seconds, write
from finwait.kernel import procfs
from finwait.kernel.observe import LookPlan
from finwait.uapi import inet_diag, tcp

__all__ = ["measure"]

PROCESSES, PAIRS = 12, 9000
FEW = 23
ROWS_IN_SECONDS = ((2_000, 0.15), (20_000, 0.25), (54_000, 0.35), (108_000, 0.6))
"""Rows of the machine, and the seconds that a whole process may take."""
CLOSING = tcp.ALL_STATES & ~(1 << tcp.ESTABLISHED)
"""What the command asks for in a namespace of more sockets than `LookPlan.established_limit`."""

Times = tuple[float, float]
"""Seconds by the wall clock, and of processor time."""


class Floor:
    """The C program, compiled for this run."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="finwait-bench-")
        self.path = str(Path(self._directory.name) / "floor")
        source = Path(__file__).with_name("floor.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-o", self.path, str(source)], check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    def parts(self, load: Load, states: int) -> tuple[Times, Times]:
        """Return the times of one dump of the load's namespace, and of one walk over all descriptors."""
        request = inet_diag.dump_both_families(states, LookPlan().extensions).hex()
        done = subprocess.run(load.inside(self.path, request), capture_output=True, text=True, check=True)
        dumped, walked = (line.split() for line in done.stdout.splitlines())
        return (float(dumped[0]), float(dumped[1])), (float(walked[0]), float(walked[1]))

    def both(self, load: Load, states: int) -> Callable[[], Times]:
        """Return a measurement of the two together."""

        def work() -> Times:
            dumped, walked = self.parts(load, states)
            return dumped[0] + walked[0], dumped[1] + walked[1]

        return work


def _spent() -> float:
    """Return the processor time of this process and of those of its children that have ended."""
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def _timed(work: Callable[[], object]) -> Times:
    spent, begun = _spent(), time.perf_counter()
    work()
    return time.perf_counter() - begun, _spent() - spent


def command(*arguments: str) -> Callable[[], Times]:
    """Return a measurement of the command as a whole process."""
    return lambda: _timed(lambda: command_seconds([FINWAIT, *arguments]))


def best(number: int, *sides: Callable[[], Times]) -> list[Times]:
    """Measure each side once a round, in turn, after one round that does not count; return the least of each."""
    taken: list[list[Times]] = [[side() for side in sides] for _ in range(number + 1)][1:]
    return [(min(t[0] for t in side), min(t[1] for t in side)) for side in zip(*taken, strict=True)]


def _beside(what: str, times: Times, name: str, floor: Times, at_most: float) -> list[Line]:
    return [
        Line(what, times[0], name, floor[0], at_most),
        Line(f"{what}, processor time", times[1], name, floor[1], at_most),
    ]


def measure(rounds: int = 5) -> None:
    """Measure everything beside the floor and write the section."""
    lines: list[Line] = []
    with Floor() as floor:
        with Load(PROCESSES, PAIRS, PROCESSES * PAIRS // 2) as load:
            closing, everything, walk, ours, text, as_json, listed, as_csv = best(
                rounds,
                floor.both(load, CLOSING),
                floor.both(load, tcp.ALL_STATES),
                lambda: floor.parts(load, CLOSING)[1],
                lambda: _timed(lambda: procfs.descriptors(processes=1)),
                command(),
                command("-o", "json"),
                command("list"),
                command("list", "-o", "csv"),
            )
        half, whole = "floor, no ESTABLISHED", "floor"
        lines += _beside(
            "descriptor walk, in process and in one process", ours, "floor, links only", walk, 1.3
        )
        lines += _beside("`finwait`", text, half, closing, 1.5)
        lines += _beside("`finwait -o json`", as_json, half, closing, 2)
        lines += _beside("`finwait list`", listed, whole, everything, 2)
        lines += _beside("`finwait list -o csv`", as_csv, whole, everything, 3)
        with Load(PROCESSES, PAIRS + 2, FEW) as load:
            closing, text = best(rounds, floor.both(load, CLOSING), command())
        lines += _beside(f"`finwait`, {FEW} stuck beside 216,000 ESTABLISHED", text, half, closing, 1.3)
        for rows, at_most in ROWS_IN_SECONDS:
            pairs = rows // 2 // PROCESSES
            with Load(PROCESSES, pairs, PROCESSES * pairs // 2) as load:
                least, text = best(rounds, floor.both(load, tcp.ALL_STATES), command())
            lines += [
                Line(f"`finwait`, {rows:,} rows", text[0], at_most=at_most),
                Line(f"`finwait`, {rows:,} rows, processor time", text[1], at_most=at_most),
                Line(f"floor, {rows:,} rows, processor time", least[1]),
            ]
    write(
        "floor",
        f"Whole processes beside what no look can leave out: {2 * PROCESSES * PAIRS:,} rows, as many descriptors.",
        f"""
The floor (`bench/floor.c`) receives the dump that the command asks for and reads the link of every descriptor of the
machine, in C and in one thread; it keeps, joins and says nothing. `finwait` leaves ESTABLISHED out in a namespace of
more than {LookPlan().established_limit:,} sockets, so it stands beside a floor that does so too; `list` does not.
The command lists descriptors in as many processes as there are processors: its processor time is that of all of them.
Half of the connections are half-closed, but for the row that says otherwise. Each is the best of {rounds} rounds, in
turn.
""",
        lines,
    )
