"""How full accept queues are, as of the last time that anybody listed the listeners of a namespace.

Walks list them, and ticks where something has changed: so a program that accepts nothing is seen whether or not
anything is closing. Who holds a listener is known from the last diagnosis; a full queue whose holder is not known wants
one. What was listed too long ago is told no more: nothing is better than an old number.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from finwait.agent.causes import MOST_LIMITS, fullest
from finwait.agent.leak import Used
from finwait.table.sockets import endpoint_text

if TYPE_CHECKING:
    from finwait.kernel.listening import ListenerQueue

__all__ = ["FRESH_S", "Queues"]

FRESH_S: Final = 600.0
"""What was listed so long ago is told no more."""


class Queues:
    """The accept queues of the machine in which somebody waits."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[float, tuple[ListenerQueue, ...]]] = {}
        self._workloads: Mapping[int, str] = {}
        self._asked: set[int] = set()

    def listed(self, netns: int, doors: Sequence[ListenerQueue], now: float) -> None:
        """Enter all listeners of a namespace.

        Args:
            netns: which.
            doors: its listeners.
            now: seconds, of a clock that does not go back.
        """
        waiting = tuple(door for door in doors if door.waiting)
        if waiting:
            self._waiting[netns] = now, waiting
        else:
            self._waiting.pop(netns, None)

    def keep(self, alive: Collection[int]) -> None:
        """Forget namespaces that are not there any more."""
        self._waiting = {netns: entry for netns, entry in self._waiting.items() if netns in alive}

    def diagnosed(self, workloads: Mapping[int, str]) -> None:
        """Enter what a diagnosis says of listeners: cookie → workload of the holder."""
        self._workloads = workloads
        self._asked = {door.cookie for _, doors in self._waiting.values() for door in doors if door.full}

    def rename(self, called: Callable[[str], str]) -> None:
        """Let workloads have the names that they are called by now."""
        self._workloads = {cookie: called(workload) for cookie, workload in self._workloads.items()}

    @property
    def unnamed(self) -> bool:
        """Whether a queue is full of which no diagnosis has been asked who holds it."""
        return any(
            door.full and door.cookie not in self._workloads and door.cookie not in self._asked
            for _, doors in self._waiting.values()
            for door in doors
        )

    def used(self, now: float, names: Mapping[int, str]) -> list[Used]:
        """Return how full they are, the fullest first.

        Args:
            now: seconds.
            names: namespace → what people call it.
        """
        result = []
        for netns, (at, doors) in self._waiting.items():
            if now - at > FRESH_S:
                continue
            label = names.get(netns, f"netns {netns}")
            result += [
                Used(
                    "accept-queue", f"{label} {endpoint_text(*door.address, door.port)}", door.waiting,
                    door.backlog + 1, workload=self._workloads.get(door.cookie, ""),
                )
                for door in doors
            ]  # fmt: skip
        return fullest(result, MOST_LIMITS)
