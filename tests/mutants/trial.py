"""Tries mutants in a copy of the tree: for each, its files of tests in turn until one fails.

Runs as the first process of namespaces of its own (a mutant may act on any socket or process): after each file of tests
everything else in them is killed, which reaches nothing outside. A file of tests runs in a fork of a process that has
imported pytest and numpy. It counts only if it passes on the unchanged code, and a test that needs the kernel may fail
beside a heavy load by itself: a kill by one is confirmed by the same file on the unchanged code.

What is known is kept as lines of JSON, with a digest of the files that it came from. An interrupted run goes on, and
after new tests only the survivors are tried again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.stateful
import numpy as np
import pytest

from tests.mutants.areas import AREAS, SOURCE, area_of
from tests.mutants.operators import Mutant, mutants_of

__all__ = ["KILLED", "Kept", "Result", "Trial", "all_mutants", "digest", "sample"]

assert hypothesis
assert np  # imported once, for all forks

OPTIONS = [
    "-q",
    "-x",
    "--no-header",
    "--tb=line",
    "--hypothesis-seed=0",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
]
# What was imported before the fork needs no rewriting.
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
AT_LEAST = 30.0  # seconds that any file of tests may take: a shared machine is slow at times
TIMES = 10  # and this many times what it took on the unchanged code
FIRST = 1800.0  # seconds that it may take there
KILLED = ("killed", "timeout")


def digest(*parts: bytes | str) -> str:
    made = hashlib.sha256()
    for part in parts:
        made.update(part.encode() if isinstance(part, str) else part)
        made.update(b"\0")
    return made.hexdigest()[:20]


def all_mutants(root: Path, paths: list[str]) -> list[Mutant]:
    """Return every mutant of some modules."""
    return [mutant for path in paths for mutant in mutants_of(path, (root / path).read_bytes())]


def sample(mutants: list[Mutant], seed: int, count: int) -> list[Mutant]:
    """Return `count` of them, drawn by name: a change of one module hardly changes what is drawn from the others."""
    return sorted(mutants, key=lambda m: digest(str(seed), m.name))[:count]


@dataclass(frozen=True, slots=True)
class Result:
    """What the tests say of a mutant."""

    mutant: Mutant
    outcome: str  # killed, timeout, survived
    killer: str | None = None


class Kept:
    """What is known of a tree already: a file that several processes append to."""

    def __init__(self, root: Path, file: Path) -> None:
        self.root, self.file = root, file
        source = sorted((root / SOURCE).rglob("*.py"))
        self.source = digest(*(path.read_bytes() for path in source))
        self.digests: dict[str, str] = {}

    def of(self, path: str) -> str:
        if path not in self.digests:
            self.digests[path] = digest((self.root / path).read_bytes())
        return self.digests[path]

    def tests(self, mutant: Mutant) -> list[str]:
        return AREAS[area_of(mutant.path)].files(self.root, mutant.path)

    def key(self, mutant: Mutant, killer: str | None) -> str:
        """What a result came from: the module, and the file that killed or else all that could have."""
        files = [killer] if killer else self.tests(mutant)
        return digest(self.of(mutant.path), *(self.of(file) for file in files))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def add(self, line: dict[str, Any]) -> None:
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")

    def add_result(self, result: Result) -> None:
        key = self.key(result.mutant, result.killer)
        self.add(
            {"mutant": result.mutant.name, "outcome": result.outcome, "killer": result.killer, "key": key}
        )

    def results(self, mutants: list[Mutant]) -> dict[str, Result]:
        """Return what is known of some mutants, by their names."""
        said = {line["mutant"]: line for line in self.lines() if "mutant" in line}
        known = {}
        for mutant in mutants:
            line = said.get(mutant.name)
            if line and line["key"] == self.key(mutant, line["killer"]):
                known[mutant.name] = Result(mutant, line["outcome"], line["killer"])
        return known

    def seconds(self, test: str) -> float | None:
        """How long a file of tests takes on the unchanged code, if it is known that it passes there."""
        key = digest(self.source, self.of(test))
        return next((line["seconds"] for line in self.lines() if line.get("passes") == key), None)

    def passes(self, test: str, seconds: float) -> None:
        self.add({"passes": digest(self.source, self.of(test)), "test": test, "seconds": round(seconds, 1)})


class Trial:
    """The copy of the tree that is the working directory, and the log of what pytest says."""

    def __init__(self, kept: Kept, log: Path) -> None:
        self.kept, self.log = kept, log

    def outcome(self, mutant: Mutant) -> Result:
        """Try the files of tests of a mutant in turn."""
        path = Path(mutant.path)
        unchanged, when = path.read_bytes(), path.stat().st_mtime
        for test in self.kept.tests(mutant):
            limit = AT_LEAST + TIMES * self.unchanged(test)
            try:
                path.write_bytes(mutant.apply(unchanged))
                os.utime(path, (when + 10, when + 10))  # no compiled file passes for it
                status = self.run(test, limit, first=path.stem, changed=True)
            finally:
                path.write_bytes(unchanged)
                os.utime(path, (when, when))
            if status is None:
                # Beside a heavy load anything is late: the unchanged code tells whose fault it is.
                if self.run(test, limit, first=path.stem) == 0:
                    return Result(mutant, "timeout", test)
                raise SystemExit(
                    f"{test} takes more than {limit:.0f} s on the unchanged code: try again beside less load"
                )
            if status != 0 and (
                not test.startswith("tests/kernel/") or self.run(test, FIRST, first=path.stem) == 0
            ):
                return Result(mutant, "killed", test)
        return Result(mutant, "survived")

    def unchanged(self, test: str) -> float:
        """Return how long a file of tests takes on the unchanged code, where it has to pass."""
        known = self.kept.seconds(test)
        if known is None:
            begun = time.monotonic()
            status = self.run(test, FIRST)
            known = time.monotonic() - begun
            if status != 0:
                raise SystemExit(f"{test} fails on the unchanged code ({status}):\n{self.log.read_text()}")
            self.kept.passes(test, known)
        return known

    def run(self, test: str, limit: float, *, first: str = "", changed: bool = False) -> int | None:
        """Return the exit status of pytest in a fork; None: it took too long."""
        child = os.fork()
        if child == 0:
            status = 70
            try:
                os.setsid()
                log = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(log, 1)
                os.dup2(log, 2)
                sys.dont_write_bytecode = changed
                status = int(pytest.main([*OPTIONS, test], plugins=[_First(first)]))
                sys.stdout.flush()
            except BaseException:  # noqa: BLE001 - a child of a fork goes no further than this
                traceback.print_exc()
            finally:
                os._exit(status)
        pidfd = os.pidfd_open(child)
        try:
            ready, _, _ = select.select([pidfd], [], [], limit)
        finally:
            os.close(pidfd)
            if not ready:
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            _end_all_others()
        return os.waitstatus_to_exitcode(status) if ready else None


class _First:
    """A plugin of pytest: the tests that have a word in their names come first."""

    def __init__(self, word: str) -> None:
        self.words = {word, word.replace("_", "-")}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: not any(word in item.nodeid for word in self.words))


def _end_all_others() -> None:
    """Kill and bury what a run left; only the first process of a namespace may say so."""
    if os.getpid() == 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0):
                pass
