"""Which sockets of one process are the two legs of a relayed connection: as pairs where one way fits, else as sets.

A relay that passed on a FIN holds a CLOSE_WAIT socket and a FIN_WAIT2 socket; it accepted one of them and opened the
other. Nothing in the kernel says which belongs to which. Three things tell: what else the process holds, the ages
(a FIN is passed on at once), and the bytes (what came in on one leg went out on the other). Where several legs fit as
well, the set of legs is known and how many pairs are in it, and not the partner of each: that is never guessed.
The order of descriptors is a hint, and no proof: a relay may open several connections before it accepts the next one.

*How ages decide.* Legs are matched in order of their ages. Two neighbours of that matching are told apart unless each
of them fits the other's partner too; what is not told apart is one set. Legs that fit and find no partner make a
set *loose*: it has more legs on one side than on the other. Some of its legs have lost their partner, and which ones,
nothing tells: of no leg of such a set is anything said that holds only if it is one of a pair.

*What bytes add.* Ages that agree by chance are not rare, byte counts that do are. Where counts are known and do not
agree, either the relay changes what it passes on (TLS, a header of its own) or the legs have nothing to do with each
other (`RelaySet.fits`): then no partner is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.uapi import tcp
from finwait.uapi.sets import distinct

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = ["TOLERANCE_MS", "By", "RelayLegs", "RelaySet", "relay_legs"]

I64 = NDArray[np.int64]
By = Literal["age", "bytes", "only"]
"""What decided which legs belong together: their ages; the bytes that both have counted as well; or that the process
holds no others."""

TOLERANCE_MS: Final = 250
"""A relay passes a FIN on at once; the ACK of that FIN may come up to 40 ms later (delayed ACK)."""
_KEEPALIVE: Final = 2
"""``idiag_timer``: keepalive, whose answers set last_ack_recv anew."""
_SLACK: Final = 1
"""Bytes: so much may a SYN or a FIN make of a difference that nobody sent."""


class RelaySet(Struct, frozen=True):
    """Legs of one process among which pairs are: two legs of a known pair, or more."""

    wait: I64
    """Rows in CLOSE_WAIT."""
    half: I64
    """Rows in FIN_WAIT2."""
    pid: int
    by: By
    aged: bool
    """Whether the ages of the legs are known, and agree."""
    fits: bool | None = None
    """Whether the bytes that the legs have counted allow so many pairs; None where they are not known."""

    @property
    def pairs(self) -> int:
        """How many pairs there are among the legs; of a loose set how many at most."""
        return min(len(self.wait), len(self.half))

    @property
    def loose(self) -> bool:
        """Whether one side has more legs: which of them are without a partner is not known."""
        return len(self.wait) != len(self.half)

    @property
    def known(self) -> bool:
        """Whether each leg's partner is known."""
        return len(self.wait) == len(self.half) == 1 and self.fits is not False

    @property
    def rows(self) -> I64:
        """All of its legs, in order."""
        return np.sort(np.concatenate([self.wait, self.half]))


class RelayLegs(Struct, frozen=True, dict=True):
    """The legs of all relays of a view."""

    sets: tuple[RelaySet, ...]
    set_of: I64
    """For each row of the view the place of its set in `sets`; −1 for none."""

    @cached_property
    def legs(self) -> NDArray[np.bool_]:
        """Which rows are legs of a pair, or may be."""
        return self.set_of >= 0

    @cached_property
    def loose(self) -> NDArray[np.bool_]:
        """Which rows are of a set with more legs on one side, so that some of them have no partner."""
        return self._of_sets(lambda legs: legs.loose)

    @cached_property
    def unfit(self) -> NDArray[np.bool_]:
        """Which rows are of a set whose byte counts are known and do not fit."""
        return self._of_sets(lambda legs: legs.fits is False)

    def _of_sets(self, like: Callable[[RelaySet], bool]) -> NDArray[np.bool_]:
        alike = np.array([*map(like, self.sets), False], np.bool_)
        return alike[self.set_of]  # −1: the last

    def of(self, row: int) -> RelaySet | None:
        """Return the set that a row is a leg of, or None."""
        k = int(self.set_of[row])
        return self.sets[k] if k >= 0 else None

    def touched(self, rows: I64) -> list[RelaySet]:
        """Return the sets that some of the rows are legs of."""
        places = self.set_of[rows]
        return [self.sets[k] for k in distinct(places[places >= 0]).tolist()]

    def candidates(self, row: int) -> I64:
        """Return the rows that may be the other leg of a row: one where it is known, none where it is no leg."""
        legs = self.of(row)
        if legs is None:
            return np.empty(0, np.int64)
        return legs.half if bool((legs.wait == row).any()) else legs.wait


def relay_legs(view: View) -> RelayLegs:
    """Find the legs of relays: CLOSE_WAIT and FIN_WAIT2 rows that one process holds.

    A leg is of one set only, also where several processes hold it: a pair that a child inherited counts once, and the
    process with the fewest legs says most.

    Where keepalive runs on a leg its last_ack_recv is that of the last answered probe and says nothing about its age;
    such legs, and those of which the kernel gives no clock, are put together by process and bytes.
    """
    sets: list[RelaySet] = []
    clocks = _Clocks.of(view)
    set_of = np.full(len(view), -1, np.int64)
    for pid, wait, half in _candidates(view):
        a, b = wait[set_of[wait] < 0], half[set_of[half] < 0]
        # The two ends of one connection, which further processes may hold as well, are no relay.
        a, b = a[~np.isin(view.other[a], b)], b[~np.isin(view.other[b], a)]
        for legs in _sets(view, clocks, a, b, pid):
            set_of[legs.wait] = set_of[legs.half] = len(sets)
            sets.append(legs)
    return RelayLegs(tuple(sets), set_of)


def _candidates(view: View) -> Iterator[tuple[int, I64, I64]]:
    """Give processes with what may be legs in them: CLOSE_WAIT rows and FIN_WAIT2 rows, one side of them accepted."""
    s = view.sockets
    wait = view.in_state(tcp.CLOSE_WAIT) & view.holder_found & (s.rqueue == 0) & ~view.sent
    half = view.in_state(tcp.FIN_WAIT2) & view.holder_found & ~view.moved & ~view.read
    half &= (s.shutdown == 2) | ~s.present("shutdown")
    half &= s.rqueue == 0  # what the far side said is there: it is the relay that does not go on
    if not wait.any() or not half.any():
        return
    first = view.holders.first_pid()
    # The two ends of one connection in one process are no relay.
    other = view.other
    own = (other >= 0) & (first[np.maximum(other, 0)] == first)
    # One leg was accepted (a listener has its port), the other one the relay opened itself.
    accepted = view.accepted
    for wait_mask, half_mask in (
        (wait & ~own & accepted, half & ~own & ~accepted),
        (wait & ~own & ~accepted, half & ~own & accepted),
    ):
        by_wait, by_half = view.pid_rows(wait_mask), view.pid_rows(half_mask)
        both = by_wait.keys() & by_half.keys()
        for pid in sorted(both, key=lambda pid: (len(by_wait[pid]) + len(by_half[pid]), pid)):
            yield pid, by_wait[pid], by_half[pid]


class _Clocks(Struct, frozen=True):
    """What the legs' clocks tell, of each row."""

    quiet: I64
    """last_ack_recv, in ms."""
    known: NDArray[np.bool_]
    blind: NDArray[np.bool_]
    """Whether it is not the age of the state: keepalive sets it anew, or there is none."""

    @classmethod
    def of(cls, view: View) -> _Clocks:
        s = view.sockets
        known = s.present("last_ack_recv_ms")
        return cls(s.last_ack_recv_ms.astype(np.int64), known, (s.timer == _KEEPALIVE) | ~known)


def _sets(view: View, clocks: _Clocks, a: I64, b: I64, pid: int) -> Iterator[RelaySet]:
    """Put the legs of one process together: by age what has one, then the rest."""
    blind = clocks.blind
    used: list[I64] = [np.empty(0, np.int64)]
    for i, j in _by_age(clocks, a[~blind[a]], b[~blind[b]]):
        used += [i, j]
        yield from _refined(view, clocks, i, j, pid, by="age", aged=True)
    taken = np.concatenate(used)
    i, j = a[~np.isin(a, taken)], b[~np.isin(b, taken)]
    # Legs whose ages are known and differ are no pair: one of the two has to be without.
    if blind[i].any() and blind[j].any():
        i, j = (i, j) if blind[i].all() or blind[j].all() else (i[blind[i]], j[blind[j]])
    else:
        i, j = (i[blind[i]], j) if blind[i].any() else (i, j[blind[j]])
    if len(i) and len(j) and not (len(i) == len(j) == 1 and _younger(clocks, int(i[0]), int(j[0]))):
        yield from _refined(view, clocks, i, j, pid, by="only", aged=False)


def _younger(clocks: _Clocks, wait: int, half: int) -> bool:
    """Say whether of two legs that of known age is younger than the other one is at least."""
    quiet, known = clocks.quiet, clocks.known
    for leg, other in ((wait, half), (half, wait)):
        reach = TOLERANCE_MS + quiet[leg] // 1000
        if not clocks.blind[leg] and known[other] and quiet[other] > quiet[leg] + reach:
            return True
    return False


def _refined(
    view: View, clocks: _Clocks, wait: I64, half: I64, pid: int, *, by: By, aged: bool
) -> Iterator[RelaySet]:
    """Give a set, or the smaller ones that the bytes make of it."""
    fits = _bytes_fit(view, wait, half)
    if not aged and fits is False and (len(wait) != len(half) or len(wait) == 1):
        return  # all that spoke for it is that the process holds no others
    if len(wait) == len(half) == 1:
        yield RelaySet(wait, half, pid, by, aged, fits)
        return
    parts = _by_bytes(view, wait, half) if len(wait) == len(half) else None
    if parts is None:
        yield RelaySet(wait, half, pid, by, aged, fits)
        return
    for i, j in parts:
        finer = list(_by_age(clocks, i, j)) if aged and len(i) + len(j) > 2 else []
        whole = sum(min(len(p), len(q)) for p, q in finer) == min(len(i), len(j))
        for p, q in finer if whole else [(i, j)]:
            yield RelaySet(p, q, pid, "bytes", aged, fits=True)


def _by_bytes(view: View, wait: I64, half: I64) -> list[tuple[I64, I64]] | None:
    """Tell legs apart by the bytes that both legs of a pair have counted; None where that tells nothing.

    What came in on the CLOSE_WAIT leg went out on the other and was acknowledged; what came back was written to the
    first. A relay that changes what it passes on (TLS, a header of its own) makes the counts differ: unless every leg
    finds an equal, none is told by them. Where one side has more legs, an equal may be another connection's.
    """
    group = _by_counts(view, wait, half)
    if group is None:
        return None
    n, of = len(wait), int(group.max()) + 1
    waits, halves = np.bincount(group[:n], minlength=of), np.bincount(group[n:], minlength=of)
    if of == 1 or (waits != halves).any():
        return None
    parts = zip(_members(wait, group[:n], waits), _members(half, group[n:], halves), strict=True)
    return [(i, j) for i, j in parts if len(i) and len(j)]


def _bytes_fit(view: View, wait: I64, half: I64) -> bool | None:
    """Return whether so many pairs of legs as there can be have counted the same bytes; None where not known."""
    group = _by_counts(view, wait, half)
    if group is None:
        return None
    n, of = len(wait), int(group.max()) + 1
    alike = np.minimum(np.bincount(group[:n], minlength=of), np.bincount(group[n:], minlength=of))
    return int(alike.sum()) == min(n, len(half))


def _by_counts(view: View, wait: I64, half: I64) -> I64 | None:
    """Return the group of each leg, first those in CLOSE_WAIT, by the bytes that were counted; None: not known."""
    s = view.sockets
    rows = np.concatenate([wait, half])
    if not (s.present("bytes_received")[rows] & s.present("bytes_acked")[rows]).all():
        return None
    received, acked = s.bytes_received[rows].astype(np.int64), s.bytes_acked[rows].astype(np.int64)
    acked -= ~view.accepted[rows]  # whoever opened a connection counts its SYN as acknowledged
    n = len(wait)
    onward = np.concatenate([received[:n], acked[n:]])  # the FIN is counted in both
    back = np.concatenate([acked[:n] + s.wqueue[wait].astype(np.int64), received[n:]])
    return _near(_near(np.zeros(len(rows), np.int64), onward), back)


def _members(rows: I64, group: I64, counts: I64) -> list[I64]:
    """Return the rows of each group."""
    return np.split(rows[np.argsort(group, kind="stable")], np.cumsum(counts)[:-1])


def _near(group: I64, value: I64) -> I64:
    """Divide groups where sorted values differ by more than `_SLACK`."""
    order = np.lexsort((value, group))
    apart = (np.diff(group[order]) != 0) | (np.diff(value[order]) > _SLACK)
    out = np.empty(len(value), np.int64)
    out[order] = np.concatenate([[0], np.cumsum(apart)])
    return out


def _by_age(clocks: _Clocks, wait: I64, half: I64) -> Iterator[tuple[I64, I64]]:
    """Put legs together whose ages agree; in what is given, those of the matching come first."""
    if not len(wait) or not len(half):
        return
    ages = clocks.quiet
    a, b = wait[np.argsort(ages[wait], kind="stable")], half[np.argsort(ages[half], kind="stable")]
    x, y = ages[a], ages[b]
    i, j = _nearest(x.tolist(), y.tolist())
    if not len(i):
        return
    alone_a, alone_b = np.delete(a, i), np.delete(b, j)
    x, y, a, b = x[i], y[j], a[i], b[j]
    reach = TOLERANCE_MS + x // 1000
    forth, back = np.abs(x[:-1] - y[1:]) <= reach[:-1], np.abs(x[1:] - y[:-1]) <= reach[1:]
    # Which pairs of the matching could have had a leg that got no partner.
    p = ages[alone_a]
    q = ages[alone_b]
    wide = TOLERANCE_MS + p // 1000
    begin_a, end_a = np.searchsorted(y, p - wide, "left"), np.searchsorted(y, p + wide, "right")
    begin_b, end_b = np.searchsorted(x + reach, q, "left"), np.searchsorted(x - reach, q, "right")
    loosely = (forth | back) | _covered(len(x) - 1, (begin_a, end_a - 1), (begin_b, end_b - 1))
    part = np.concatenate([[0], np.cumsum(~loosely)])
    loose = np.zeros(int(part[-1]) + 1, np.bool_)
    hit_a, hit_b = begin_a < end_a, begin_b < end_b
    part_a, part_b = part[begin_a[hit_a]], part[begin_b[hit_b]]
    loose[part_a] = loose[part_b] = True
    bounds = np.flatnonzero(~np.where(loose[part[:-1]], loosely, forth & back)) + 1
    for begin, end in zip([0, *bounds.tolist()], [*bounds.tolist(), len(x)], strict=True):
        k = int(part[begin])
        if loose[k]:
            more_a, more_b = alone_a[hit_a][part_a == k], alone_b[hit_b][part_b == k]
            yield np.concatenate([a[begin:end], more_a]), np.concatenate([b[begin:end], more_b])
        else:
            yield a[begin:end], b[begin:end]


def _covered(n: int, *ranges: tuple[I64, I64]) -> NDArray[np.bool_]:
    """Return which of n gaps between neighbours lie in one of the ranges (from a member to a later one)."""
    steps = np.zeros(max(n, 0) + 1, np.int64)
    for begins, ends in ranges:
        reaching = begins < ends
        np.add.at(steps, begins[reaching], 1)
        np.add.at(steps, ends[reaching], -1)
    return np.cumsum(steps)[: max(n, 0)] > 0


def _nearest(a: Iterable[int], b: Iterable[int]) -> tuple[I64, I64]:
    """Match two sorted lists of ages, each member once, where they differ by no more than the tolerance."""
    ages_a, ages_b = list(a), list(b)
    i = j = 0
    out_i: list[int] = []
    out_j: list[int] = []
    while i < len(ages_a) and j < len(ages_b):
        gap = ages_a[i] - ages_b[j]
        if abs(gap) <= TOLERANCE_MS + ages_a[i] // 1000:
            out_i.append(i)
            out_j.append(j)
            i += 1
            j += 1
        elif gap < 0:
            i += 1
        else:
            j += 1
    return np.array(out_i, np.int64), np.array(out_j, np.int64)
