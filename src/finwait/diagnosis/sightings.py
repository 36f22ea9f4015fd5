"""One connection seen in several places: before and behind a translator, in two namespaces, on two interfaces.

Theory of operation. A translator changes addresses and ports, and nothing else of a segment that has an ACK: the
sequence numbers, the ACK and the time stamp stay. Two connections that share such a segment are one. Where the
capture knows the entries of connection tracking, they say it too, also of forms that share no packet because none
got through.

What was seen in one place and not in the other did not get from one to the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from finwait.diagnosis.closing import Closing, Kind, Side

__all__ = ["Also", "Sighting", "key", "sightings"]

_FINS: Final = (Kind.FIN, Kind.FIN_AGAIN)


class Also(Struct, frozen=True):
    """The same connection in another place."""

    closing: Closing
    """Its ends in the order of the first."""
    alike: bool
    """It closed there by the same packets."""
    tracked: bool
    """Connection tracking says that it is the same; otherwise its sequence numbers do."""


class Sighting(Struct, frozen=True):
    """One connection, and where else it was seen."""

    closing: Closing
    also: tuple[Also, ...] = ()


def sightings(
    closings: Sequence[Closing], tracked: Iterable[Iterable[tuple[object, ...]]] = ()
) -> list[Sighting]:
    """Join what is one connection; the order is that of the first sighting of each.

    Args:
        closings: as they were told.
        tracked: groups of `key`, each of them the forms that connection tracking gives one connection.
    """
    group = list(range(len(closings)))

    def head(k: int) -> int:
        while group[k] != k:
            group[k] = group[group[k]]
            k = group[k]
        return k

    by_mark: dict[tuple[int, ...], int] = {}
    for number, closing in enumerate(closings):
        for mark in closing.marks:
            other = by_mark.setdefault(mark[1:], number)
            if not _same_place(closings[other], closing):
                group[max(head(other), head(number))] = min(head(other), head(number))
    by_form = {key: k for k, keys in enumerate(tracked) for key in keys}
    first: dict[int, int] = {}
    for number, closing in enumerate(closings):
        form = by_form.get(key(closing))
        if form is not None:
            other = first.setdefault(form, number)
            group[max(head(other), head(number))] = min(head(other), head(number))
    joined: dict[int, list[int]] = {}
    for number in range(len(closings)):
        joined.setdefault(head(number), []).append(number)
    return [_sighting([closings[k] for k in numbers], by_form) for numbers in joined.values()]


def key(closing: Closing) -> tuple[object, ...]:
    """Return what a connection is known by in one place."""
    return (closing.place, closing.scope, *sorted((closing.a.end, closing.b.end)))


def _same_place(closing: Closing, other: Closing) -> bool:
    return key(closing) == key(other)


def _sighting(closings: list[Closing], by_form: dict[tuple[object, ...], int]) -> Sighting:
    first = closings[0]
    if len(closings) == 1:
        return Sighting(first)
    also = []
    for other in closings[1:]:
        other = _turned(first, other)
        form = by_form.get(key(other))
        tracked = form is not None and form == by_form.get(key(first))
        alike = _story(first) == _story(other)
        if alike:
            first = replace(first, a=_with_kernel(first.a, other.a), b=_with_kernel(first.b, other.b))
        also.append(Also(other, alike, tracked))
    return Sighting(first, tuple(also))


def _turned(first: Closing, other: Closing) -> Closing:
    """Return the other with the ends in the order of the first."""
    ways = {mark[1:]: mark[0] for mark in first.marks}
    shared = next((mark for mark in other.marks if mark[1:] in ways), None)
    if shared is None or shared[0] == ways[shared[1:]]:
        return other
    return replace(
        other,
        a=other.b,
        b=other.a,
        a_first=None if other.a_first is None else not other.a_first,
        reset=None if other.reset is None else replace(other.reset, from_a=not other.reset.from_a),
        ignored=tuple(replace(reset, from_a=not reset.from_a) for reset in other.ignored),
        missing=tuple(replace(missing, from_a=not missing.from_a) for missing in other.missing),
        steps=tuple(replace(step, from_a=not step.from_a) for step in other.steps),
        opened=False,
    )


def _story(closing: Closing) -> tuple[object, ...]:
    """Return what closed the connection, without times and without how its data was cut into packets."""
    steps = [
        (s.from_a, s.kind, s.flags, s.count if s.kind in _FINS else 0, s.acks_fin, s.standing)
        for s in closing.steps
    ]
    return closing.outcome, tuple(steps), closing.left_out


def _with_kernel(side: Side, other: Side) -> Side:
    """Return an end with what its kernel said in the other place, if it was not asked here."""
    if side.kernel or not other.kernel:
        return side
    return replace(side, kernel=other.kernel, began=other.began, states=other.states, facts=other.facts)
