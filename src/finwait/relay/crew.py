"""The workers of a supervisor: started, told, asked, replaced, and at the end let go.

Each has a `ControlLine`, over which it gets its configuration and its listening sockets. A worker that dies is
replaced, with the same sockets: connections of others are not touched, and new ones wait in the kernel's queue
meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from finwait.relay.child import end_of
from finwait.relay.line import ControlLine
from finwait.relay.notice import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from finwait.relay.config.model import Config
    from finwait.relay.listeners import Bound
    from finwait.relay.resolve import Row
    from finwait.relay.tasks import Tasks

__all__ = ["Crew", "CrewStanding"]

_GRACE: Final = 5.0
"""Seconds a worker may take beyond its drain time before it is killed."""
_FDS: Final = 200
"""Descriptors in one order; SCM_MAX_FD is 253, and a long range of ports goes in several."""


class CrewStanding(Struct, frozen=True):
    """How things stand, as a worker is told."""

    config: Config
    bound: Mapping[str, Bound]
    backends: Mapping[str, list[Row]]
    """Of each service that is configured."""
    down: list[list[str]]
    """(service, backend) of those that checks call down."""
    log_fd: int
    """-1: there is no access log."""


class Crew:
    """The workers.

    Args:
        standing: returns how things stand, whenever a worker is to be told.
        tasks: for what is done beside.

    Attributes:
        restarts: workers that ended unasked, so far.
        gone: set when all have ended after they were told to leave.
    """

    def __init__(self, standing: Callable[[], CrewStanding], tasks: Tasks) -> None:
        self.restarts = 0
        self.gone = asyncio.Event()
        self._standing = standing
        self._tasks = tasks
        self._lines: list[ControlLine] = []
        self._leaving = False

    async def start(self, count: int) -> None:
        """Start workers, and wait until they have taken what they were told."""
        for index in range(count):
            self._start(index)
        await asyncio.gather(*(line.ask({"do": "stats"}, 30) for line in self._lines))

    def configure(self) -> None:
        """Tell every worker how things stand."""
        for line in self._lines:
            self._configure(line)

    def tell(self, order: dict[str, Any]) -> None:
        """Send an order to every worker."""
        for line in self._lines:
            line.tell(order)

    async def ask(self, order: dict[str, Any]) -> tuple[list[Any], list[int]]:
        """Ask every worker; return the answers, and the pids of those that did not answer."""
        return await self._ask((line, order) for line in self._lines)

    async def ask_by_number(self, do: str, numbers: Mapping[int, list[int]]) -> tuple[list[Any], list[int]]:
        """Ask workers about connections of theirs, by the worker's index; answers as in `ask`."""
        return await self._ask(
            (line, {"do": do, "numbers": numbers[line.index]})
            for line in self._lines
            if line.index in numbers
        )

    def leave(self, order: dict[str, Any], seconds: float) -> None:
        """Tell every worker to end; who has not within so many seconds (and a few more) is killed."""
        self._leaving = True
        self.tell(order)
        self._tasks.spawn(self._kill_late(seconds))
        self.look_whether_gone()

    def look_whether_gone(self) -> None:
        """Set ``gone`` when nobody is left."""
        if not self._lines:
            self.gone.set()

    def close(self) -> None:
        """End who is left."""
        for line in self._lines:
            line.close()
            if line.process.poll() is None:
                line.process.kill()
            line.process.wait()

    def _start(self, index: int) -> None:
        line = ControlLine(index)
        self._lines.append(line)
        self._configure(line)
        self._tasks.spawn(self._watch(line))

    def _configure(self, line: ControlLine) -> None:
        """Give a worker the configuration, the listeners it lacks, and the backends."""
        now = self._standing()
        services = {key: listener.service for key, listener in now.bound.items()}
        new = [key for key in services if key not in line.known]
        fds = [now.bound[key].of(line.index).fileno() for key in new]
        with_log = now.log_fd >= 0
        # With the configuration, not after it: a listener must never have a service that knows no backend yet.
        backends, down = now.backends, now.down
        while True:
            part, new = new[:_FDS], new[_FDS:]
            known = line.known | set(part)
            line.tell(
                {
                    "do": "apply",
                    "config": msgspec.to_builtins(now.config),
                    "index": line.index,
                    "listeners": {key: name for key, name in services.items() if key in known},
                    "new": part,
                    "backends": backends,
                    "down": down,
                    "log": with_log,
                },
                fds[: len(part)] + ([now.log_fd] if with_log else []),
            )
            fds = fds[len(part) :]
            line.known = known & set(services)
            with_log, backends, down = False, {}, []
            if not new:
                break

    async def _watch(self, line: ControlLine) -> None:
        """Wait for a worker's end; replace it unless it was told to go."""
        await end_of(line.process)
        status = line.process.wait()
        line.close()
        if line in self._lines:
            self._lines.remove(line)
        if self._leaving:
            self.look_whether_gone()
            return
        outcome = f"signal {-status}" if status < 0 else f"status {status}"
        subject = f"worker {line.index} (pid {line.process.pid})"
        say(f"{subject} ended with {outcome}; its connections are lost; starting another worker")
        self.restarts += 1
        if time.monotonic() - line.started < 2:
            await asyncio.sleep(1)
        if not self._leaving:
            self._start(line.index)

    async def _kill_late(self, seconds: float) -> None:
        await asyncio.sleep(seconds + _GRACE)
        for line in self._lines:
            say(f"worker {line.index} (pid {line.process.pid}) did not end in time and was killed")
            line.process.kill()

    async def _ask(self, orders: Iterable[tuple[ControlLine, dict[str, Any]]]) -> tuple[list[Any], list[int]]:
        asked = list(orders)
        answers = await asyncio.gather(*(line.ask(order) for line, order in asked))
        silent = [
            line.process.pid
            for (line, _), answer in zip(asked, answers, strict=True)
            if answer is None and line in self._lines
        ]
        return [answer for answer in answers if answer is not None], silent
