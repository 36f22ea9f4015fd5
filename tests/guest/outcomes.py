"""What pytest reports of kernel tests, as rows of what was measured: a plugin of pytest (``-p tests.guest.outcomes``).

One row for each module, written when its last test has ended, so that a guest that is ended early has still told
of the modules before; and one for each test that did not pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.guest.trying import emit

if TYPE_CHECKING:
    import pytest

__all__ = ["Tally", "module_of"]

Row = tuple[str, str, str, str]
"""Kind, name, verdict and detail."""


@dataclass(slots=True)
class Tally:
    """What came of the tests, module by module."""

    module: str = ""
    apart: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Of the tests that did not pass: outcome and reason."""
    over: set[str] = field(default_factory=set)

    def feed(self, module: str, test: str, outcome: str, reason: str = "") -> None:
        """Take one report: ``passed``, ``skipped`` or ``failed``; a test has several, and the worst of them counts."""
        self.module = module
        if outcome == "passed":
            self.over.add(test)
        elif self.apart.get(test, ("", ""))[0] != "differs":
            verdict = "not here" if outcome == "skipped" else "differs"
            self.apart[test] = (verdict, (reason.strip() or "failed").splitlines()[0][:200])

    def rows(self) -> Iterator[Row]:
        """Yield the rows of the module that is over, and begin anew."""
        if self.module:
            for test, (verdict, reason) in self.apart.items():
                yield "test", f"{self.module}::{test}", verdict, reason
            passed = len(self.over - set(self.apart))
            failed = any(verdict == "differs" for verdict, _ in self.apart.values())
            every = len(self.over | set(self.apart))
            yield "tests", self.module, "differs" if failed else "ok", f"{passed} of {every}"
        self.module, self.over, self.apart = "", set(), {}


_TALLY = Tally()
_BEGAN = [time.monotonic()]


def module_of(name: str) -> str:
    """Return the module of a test's name."""
    return name.partition("::")[0]


def _write() -> None:
    for kind, name, verdict, detail in _TALLY.rows():
        emit(kind, name, verdict, _BEGAN[0], detail)
    _BEGAN[0] = time.monotonic()


def _module(nodeid: str) -> str:
    return module_of(nodeid).rpartition("/")[2].removesuffix(".py")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count it; when another module begins, the one before is written."""
    module = _module(report.nodeid)
    if _TALLY.module not in ("", module):
        _write()
    reason = report.longrepr
    if isinstance(reason, tuple):  # of a skip: path, line, reason
        said = str(reason[2]).removeprefix("Skipped: ")
    else:
        crash = getattr(reason, "reprcrash", None)
        said = str(crash.message if crash else reason or "")
    _TALLY.feed(module, report.nodeid.partition("::")[2], report.outcome, said)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Write a module that cannot be loaded, and one that is skipped as a whole."""
    if report.outcome != "passed" and report.nodeid.endswith(".py"):
        reason = report.longrepr
        said = (
            reason[2].removeprefix("Skipped: ") if isinstance(reason, tuple) else str(reason).splitlines()[-1]
        )
        _TALLY.feed(_module(report.nodeid), "its module", report.outcome, said)
        _write()


def pytest_sessionfinish() -> None:
    """Write the last one."""
    _write()
