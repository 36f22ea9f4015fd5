"""A timer wheel: what is to be visited, by the turn in which that is due.

Most deadlines of a relay move later with every byte and are never reached. So a thing lies in one coarse slot, and a
visit that comes too early puts it back; moving bytes costs the wheel nothing. What is put in is visited at its time
or up to two turns later, never before.

Clocks are arguments, as in `finwait.relay.machine`; nothing here does I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GRAIN", "Timed", "Wheel"]

GRAIN: Final = 0.25
"""Seconds between turns of the wheel."""
_FARTHEST: Final = 3600.0
"""Seconds; what is due later is visited then, and put in again."""


class Timed(Protocol):
    """What may lie in a wheel."""

    slot: int
    """The wheel's; 0 outside."""


T = TypeVar("T", bound=Timed)


class Wheel(Generic[T]):
    """Things to be visited."""

    def __init__(self, now: float) -> None:
        self._slots: dict[int, set[T]] = {}
        self._turned = int(now / GRAIN)

    def put(self, item: T, at: float, now: float) -> None:
        """Have something visited at or shortly after a time; what lies in the wheel already is moved."""
        if at > now + _FARTHEST:
            at = now + _FARTHEST
        slot = int(at / GRAIN) + 1
        if slot <= self._turned:
            slot = self._turned + 1
        if slot == item.slot:
            return
        if item.slot:
            self.remove(item)
        slots = self._slots
        item.slot = slot
        entries = slots.get(slot)
        if entries is None:
            slots[slot] = {item}
        else:
            entries.add(item)

    def remove(self, item: T) -> None:
        """Forget something; what is not in the wheel is no mistake."""
        entries = self._slots.get(item.slot)
        if entries is not None:
            entries.discard(item)
        item.slot = 0

    def due(self, now: float) -> Sequence[T]:
        """Take out everything whose time has come."""
        at = int(now / GRAIN)
        if at <= self._turned:
            return ()
        items: list[T] = []
        for slot in range(self._turned + 1, at + 1):
            items += self._slots.pop(slot, ())
        for item in items:
            item.slot = 0
        self._turned = at
        return items
