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

    def put(self, thing: T, at: float, now: float) -> None:
        """Have something visited at or shortly after a time; what lies in the wheel already is moved."""
        if at > now + _FARTHEST:
            at = now + _FARTHEST
        slot = int(at / GRAIN) + 1
        if slot <= self._turned:
            slot = self._turned + 1
        if slot == thing.slot:
            return
        if thing.slot:
            self.remove(thing)
        slots = self._slots
        thing.slot = slot
        there = slots.get(slot)
        if there is None:
            slots[slot] = {thing}
        else:
            there.add(thing)

    def remove(self, thing: T) -> None:
        """Forget something; what is not in the wheel is no mistake."""
        there = self._slots.get(thing.slot)
        if there is not None:
            there.discard(thing)
        thing.slot = 0

    def due(self, now: float) -> Sequence[T]:
        """Take out everything whose time has come."""
        at = int(now / GRAIN)
        if at <= self._turned:
            return ()
        found: list[T] = []
        for slot in range(self._turned + 1, at + 1):
            found += self._slots.pop(slot, ())
        for thing in found:
            thing.slot = 0
        self._turned = at
        return found
