"""What a plan ends as a whole or not at all: the legs of a relay pair.

Ending one leg of a pair leaves the other one, with a relay that nothing tells to give it up; the next diagnosis then
sees a leg without its partner. Where the partner of each leg is not known (`finwait.diagnosis.relay_legs`) the unit
is all legs that may belong together. A guard that keeps one leg keeps the others; a leg that was not selected is
taken in where the pair is known, and keeps the others where it is only one of several that fit.

Means that end nothing by themselves (keepalive, a user timeout) know no units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from msgspec import Struct

from finwait.diagnosis.rule import Means
from finwait.remedy.guards import GuardVerdict, Limits
from finwait.remedy.plan import CLASS, Step

if TYPE_CHECKING:
    from finwait.diagnosis.relay_legs import RelaySet
    from finwait.diagnosis.view import View

__all__ = ["TAKEN_IN", "Decided", "Unit", "as_units", "other_legs", "units_of"]

Decided = Step | GuardVerdict
"""What a plan does to a connection, or why it leaves it alone."""

_WHOLE: Final = "a relay pair is ended as a whole or not at all"
TAKEN_IN: Final = f"not selected, but the other leg of a connection that is: {_WHOLE}"
"""Why a plan has a step for a connection that nobody selected."""


class Unit(Struct, frozen=True):
    """Legs that are ended together."""

    members: tuple[int, ...]
    """Of what was decided, the legs; at least one."""
    legs: int = 0
    """How many legs there are in all; 0 for as many as members."""
    missing: str = ""
    """Why a member is left alone if some of the legs are none."""


def other_legs(view: View, rows: Iterable[int], limits: Limits, force: Means | None) -> list[int]:
    """Return the legs that known relay pairs of some rows have beside them, in order.

    Args:
        view: the sockets.
        rows: which.
        limits: what the caller allows.
        force: the means for all of them, where there is one.
    """
    if not _asked(limits, force):
        return []
    ordered = np.array(sorted(rows), np.int64)
    pairs = [legs.rows for legs in view.relay_legs.touched(ordered) if legs.known]
    return np.setdiff1d(np.concatenate(pairs), ordered).tolist() if pairs else []


def units_of(view: View, place: Mapping[int, int], *, named: bool = False) -> list[Unit]:
    """Return the units that connections belong to.

    Args:
        view: the sockets.
        place: row → its place in what was decided.
        named: whether a file names the connections, and not a FILTER.
    """
    touched = view.relay_legs.touched(np.array(sorted(place), np.int64))
    return [
        Unit(
            tuple(place[row] for row in legs.rows.tolist() if row in place),
            len(legs.rows),
            _missing(legs, named=named),
        )
        for legs in touched
    ]


def _missing(legs: RelaySet, *, named: bool) -> str:
    if legs.known:
        absent = "is not in the plan" if named else "is not selected"
        return f"a leg of a relay pair, and its other leg {absent}; {_WHOLE}"
    absent = "in the plan" if named else "selected"
    return (
        f"a leg of a relay pair, and not all {len(legs.rows)} legs that may belong together are {absent}; {_WHOLE} "
        "(`finwait explain` of it prints the command for all of them)"
    )


def as_units(decided: Mapping[int, Decided], units: Iterable[Unit], limits: Limits) -> dict[int, Decided]:
    """Return what was decided, with units kept whole: each step of one has its number, or none is left of it.

    Args:
        decided: by any numbers.
        units: legs that belong together; such as share a leg, or an act, are one.
        limits: what the caller allows: guard ``pair``.
    """
    result = dict(decided)
    if "pair" in limits.override:
        return result
    joined = _Joined()
    acts: dict[tuple[int, str], int] = {}
    whole: list[Unit] = []
    for unit in units:
        if any(_ends(decided[k]) for k in unit.members):
            whole.append(unit)
            for k in unit.members:
                joined.join(unit.members[0], k)
                if isinstance(step := decided[k], Step):
                    joined.join(k, acts.setdefault((step.netns, step.cookie), k))
    why: dict[int, str] = {}
    for unit in whole:
        if reason := _kept(unit, decided):
            why.setdefault(joined.root(unit.members[0]), reason)
    numbers: dict[int, int] = {}
    for k in sorted(k for unit in whole for k in unit.members):
        step, root = result[k], joined.root(k)
        if not isinstance(step, Step) or step.gone:
            continue
        if root in why:
            result[k] = GuardVerdict("pair", why[root])
        else:
            number = numbers.setdefault(root, len(numbers) + 1)
            result[k] = msgspec.structs.replace(step, pair=number)
    return result


def _asked(limits: Limits, force: Means | None) -> bool:
    return "pair" not in limits.override and (force is None or CLASS[force] == "destructive")


def _ends(decision: Decided) -> bool:
    return isinstance(decision, Step) and decision.kind == "destructive"


def _kept(unit: Unit, decided: Mapping[int, Decided]) -> str:
    """Return why no leg of a unit may be ended; empty where all may."""
    members = [decided[k] for k in unit.members]
    guards = sorted({member.guard for member in members if isinstance(member, GuardVerdict)})
    two = unit.legs <= 2
    if guards:
        names = ", ".join(f"`{name}`" for name in guards)
        n = sum(isinstance(member, GuardVerdict) for member in members)
        legs = "its other leg is" if two else f"of the {unit.legs} legs that may belong together {n} are"
        return f"a leg of a relay pair, and {legs} left alone by guard {names}; {_WHOLE}"
    if any(isinstance(member, Step) and member.gone for member in members):
        return f"a leg of a relay pair, of which another leg has ended since the plan was made; {_WHOLE}"
    if not all(map(_ends, members)):
        return f"a leg of a relay pair, and its other leg would only be asked, and not ended; {_WHOLE}"
    return unit.missing if len(unit.members) < unit.legs else ""


class _Joined:
    """Numbers in groups (union and find)."""

    def __init__(self) -> None:
        self._up: dict[int, int] = {}

    def root(self, k: int) -> int:
        while (up := self._up.get(k, k)) != k:
            self._up[k] = self._up.get(up, up)
            k = up
        return k

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self._up[max(a, b)] = min(a, b)
