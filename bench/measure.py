"""Rounds, medians, ratios, and the page they are written to."""

from __future__ import annotations

import gc
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

__all__ = [
    "FINWAIT",
    "RESULTS",
    "Line",
    "command_seconds",
    "environment",
    "machine",
    "processor_seconds",
    "put",
    "rounds",
    "seconds",
    "write",
]

RESULTS = Path(__file__).with_name("RESULTS.md")
FINWAIT = str(Path(sys.executable).with_name("finwait"))
"""The installed command of the environment that runs the benchmark."""

HEAD = """\
# Results

Written by `make bench` (`python -m bench [NAME…]` renews some sections and leaves the others).
Both sides of every ratio were measured in one run, in turn, and are medians unless it says "once".
What each row includes is said beside it; a target that was not reached says so.
"""


@dataclass(frozen=True)
class Line:
    """One row of a section: what was measured, beside what, and what was aimed at."""

    what: str
    seconds: float
    beside: str = ""
    """What it is compared with; empty for a target in seconds."""
    beside_seconds: float = 0.0
    at_most: float | None = None
    """The ratio (or the seconds, or with ``unit`` something else) aimed at; None for a number to know."""
    unit: str = "s"

    @property
    def value(self) -> float:
        """The ratio, or the number itself."""
        return self.seconds / self.beside_seconds if self.beside else self.seconds

    @property
    def verdict(self) -> str:
        """Whether the target was reached."""
        if self.at_most is None:
            return ""
        return "met" if self.value <= self.at_most else "**not met**"

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        target = (
            "" if self.at_most is None else f"≤ {_target(self.at_most, self.unit if not self.beside else '')}"
        )
        return (
            self.what,
            _number(self.seconds, self.unit),
            f"{self.beside}: {_number(self.beside_seconds, self.unit)}" if self.beside else "",
            _ratio(self.value) if self.beside else "",
            target,
            self.verdict,
        )


def _number(value: float, unit: str) -> str:
    return f"{value:.3f} s" if unit == "s" else f"{value:,.0f} {unit}"


def _ratio(value: float) -> str:
    return f"1/{1 / value:.1f}" if 0 < value < 0.75 else f"{value:.2f} ×"


def _target(value: float, unit: str) -> str:
    if unit:
        return f"{value:g} {unit}"
    return f"1/{1 / value:.0f}" if value < 0.75 else f"{value:g} ×"


def environment() -> dict[str, str]:
    """Return the environment of commands: as installed, with bytecode, output not unbuffered."""
    dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONPATH")
    return {k: v for k, v in os.environ.items() if k not in dropped}


def seconds(work: Callable[[], object]) -> float:
    """Return how long some work took; what it returned is freed after the clock was read."""
    gc.collect()
    begun = time.perf_counter()
    result = work()
    taken = time.perf_counter() - begun
    del result
    return taken


def command_seconds(command: Sequence[str], *, statuses: tuple[int, ...] = (0, 3)) -> float:
    """Return how long a command took from start to end, its output thrown away by the kernel.

    Raises:
        RuntimeError: it failed.
    """
    env = environment()
    begun = time.perf_counter()
    done = subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    taken = time.perf_counter() - begun
    if done.returncode not in statuses:
        raise RuntimeError(f"`{' '.join(command)}` gave {done.returncode}: {done.stderr.decode()[-500:]}")
    return taken


def processor_seconds(command: Sequence[str]) -> float:
    """Return the processor time, user and kernel, of a command and its children: steadier on a busy machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command_seconds(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rounds(number: int, *sides: Callable[[], float]) -> list[float]:
    """Measure each side once a round, in turn, after one round that does not count; return the medians."""
    for side in sides:
        side()
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(number):
        for side, times in zip(sides, taken, strict=True):
            times.append(side())
    return [statistics.median(times) for times in taken]


def machine() -> str:
    """Return a line about machine, kernel and versions."""
    import numpy as np

    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
        if found:
            model = found[1]
    with open("/proc/meminfo", encoding="ascii") as file:
        memory = int(file.readline().split()[1]) / (1 << 20)
    iproute = ""
    if shutil.which("ss"):
        iproute = subprocess.run(["ss", "-V"], capture_output=True, text=True, check=True).stdout.strip()
    load = os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} × {model}, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}, {iproute}; load average {load:.1f} at the end"
    )


def write(name: str, title: str, notes: str, lines: Sequence[Line]) -> None:
    """Print a section and put it into RESULTS.md, in place of its earlier self."""
    heading = ("what", "measured", "beside", "ratio", "target", "")
    table = [heading, *(line.cells() for line in lines)]
    width = [max(len(row[k]) for row in table) for k in range(len(heading))]
    print(f"\n{name}: {title}")
    for row in table[1:]:
        print("  " + "  ".join(c.ljust(w) for c, w in zip(row, width, strict=True)).rstrip())
    rendered = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, width, strict=True)) + " |" for row in table
    ]
    rendered.insert(1, "|" + "|".join("-" * (w + 2) for w in width) + "|")
    put(name, f"{title}\n\n{machine()}\n\n" + "\n".join(rendered) + f"\n\n{notes.strip()}\n")


def put(name: str, text: str) -> None:
    """Put a section into RESULTS.md, in place of its earlier self."""
    section = f"## {name}\n\n{text}"
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else HEAD
    parts = re.split(r"(?m)^(?=## )", old)
    kept = {part.split("\n", 1)[0][3:].strip(): part.rstrip() + "\n" for part in parts[1:]}
    kept[name] = section
    RESULTS.write_text("\n".join([HEAD, *kept.values()]), encoding="utf-8")
