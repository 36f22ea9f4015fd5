"""The FILTER over rows that are about to be handed out, and those that wait until it can judge them.

A row that only its holder decides waits until the holder is found, or every process was inspected; the rows behind
it wait with it, so that rows stay in the order of time. A row that nothing can decide any more is left out and counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.follow.actors import Actors
from finwait.follow.bounds import LIST_S
from finwait.follow.places import Places
from finwait.table import transitions as tr
from finwait.table.filter import Filter
from finwait.table.schema import Mask
from finwait.table.trace_filter import asks_for_holders, judge, kernel_filter
from finwait.uapi import tcp

__all__ = ["Sieve"]

_MOST_HELD_BACK: Final = 100_000  # rows that wait for a holder, or behind one that does
_HOLDER_S: Final = 60.0  # a row waits no longer for its holder


def _peer_known(rows: tr.TransitionTable) -> Mask:
    """Return which rows tell of the other end: a listener has none, and a new connection's is filled in later."""
    cloned = (rows.oldstate == tcp.LISTEN) & (rows.newstate == tcp.SYN_RECV)
    listening = (rows.oldstate == tcp.LISTEN) | (rows.newstate == tcp.LISTEN)
    return (rows.dport != 0) | (listening & ~cloned)


class Sieve:
    """Lets rows through that a FILTER wants, in the order of time.

    Args:
        wanted: which connections; None for all.
        places: what is known of connections beyond their columns.
        actors: who holds them.
        left_only: look at the state that is left, not at the one that is entered.
    """

    def __init__(self, row_filter: Filter | None, places: Places, actors: Actors, *, left_only: bool) -> None:
        self._wanted = row_filter
        self._places = places
        self._actors = actors
        self._left_only = left_only
        self.back = tr.TransitionTable.empty()
        """Rows that wait for their holder, and rows that wait behind one."""
        self._back_yes = np.zeros(0, np.bool_)
        """Which of them are wanted, whoever holds the others."""
        self._judged_at = -1
        self.unjudged = 0
        """Rows that were left out because nothing could tell whether the FILTER wants them."""

    def sift(self, rows: tr.TransitionTable, *, last: bool = False) -> tr.TransitionTable:
        """Return the rows that the FILTER wants; hold back what may yet be judged."""
        if self._wanted is None:
            return rows
        yes, waits = self._verdict(rows) if len(rows) else (np.zeros(0, np.bool_),) * 2
        if len(self.back):
            old_yes, old_waits = self._again(last=last)
            rows = tr.TransitionTable.concatenate([self.back, rows])
            yes, waits = np.concatenate([old_yes, yes]), np.concatenate([old_waits, waits])
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        first, behind = self._behind(yes, waits, last | (rows.time_ns < now - int(_HOLDER_S * 1e9)))
        self.back, self._back_yes = rows.select(behind), yes[behind]
        return rows.select(np.flatnonzero(yes[:first]))

    def _again(self, *, last: bool) -> tuple[Mask, Mask]:
        """Judge the rows that were held back, if the search for their holders has got on."""
        yes = self._back_yes
        open_ = np.flatnonzero(~yes)
        self._actors.holders.search(self.back.inode[open_].tolist(), LIST_S)
        waits = ~yes
        if last or self._actors.holders.steps != self._judged_at:
            self._judged_at = self._actors.holders.steps
            yes, waits = yes.copy(), np.zeros(len(yes), np.bool_)
            yes[open_], waits[open_] = self._verdict(self.back.select(open_))
        return yes, waits

    def _behind(self, yes: Mask, waits: Mask, late: Mask) -> tuple[int, NDArray[np.intp]]:
        """Return up to which row rows can be handed out, and which are held back; count what waited in vain."""
        vain = waits & late
        self.unjudged += int(vain.sum())
        waits &= ~vain
        first = int(np.argmax(waits)) if waits.any() else len(waits)
        behind = np.flatnonzero(yes | waits)
        behind = behind[behind >= first]
        over = len(behind) - _MOST_HELD_BACK
        if over > 0:
            self.unjudged += int(waits[behind[:over]].sum())
            first, behind = int(behind[over]), behind[over:]
        return first, behind

    def _verdict(self, rows: tr.TransitionTable) -> tuple[Mask, Mask]:
        """Return which rows the FILTER wants and which wait for their holder; count what is beyond judging."""
        assert self._wanted is not None
        nobody = np.zeros(len(rows), np.bool_)
        holders = asks_for_holders(self._wanted)
        around = self._places.around(rows, self._wanted.needs)
        nothing: list[tuple[object, ...]] = [()] * len(rows)
        yes, no = self._judge(rows, {**around, "pid": nothing, "comm": nothing}, nobody)
        waits = np.zeros(len(rows), np.bool_)
        if holders and (open_ := np.flatnonzero(~yes & ~no)).size:
            undecided = rows.select(open_)
            seen, whole, later = self._actors.processes(undecided)
            part = {name: [values[k] for k in open_.tolist()] for name, values in around.items()}
            part["pid"] = [tuple(comms) for comms in seen]
            part["comm"] = [tuple(comms.values()) for comms in seen]
            yes[open_], no[open_] = self._judge(undecided, part, whole)
            waits[open_] = ~yes[open_] & ~no[open_] & later
        lacking = ~yes & ~no & ~waits
        if kernel_filter(self._wanted) != kernel_filter(None):
            # The kernel passes the first event of every connection, for it has no port yet; had it been the right one,
            # the next event had passed too.
            lacking &= (rows.sport != 0) & _peer_known(rows)
        self.unjudged += int(lacking.sum())
        return yes, waits

    def _judge(
        self, rows: tr.TransitionTable, around: Mapping[str, list[Any]], whole: Mask
    ) -> tuple[Mask, Mask]:
        """Judge rows by the state that they left, and by the one that they entered."""
        assert self._wanted is not None
        known: dict[str, Mask] = {name: rows.present(name) for name in tr.LOOKED_UP}
        known |= {"pid": whole, "comm": whole}
        chosen, peer = rows.sport != 0, _peer_known(rows)
        known |= {"sport": chosen, "src": chosen, "dport": peer, "dst": peer}
        spent = np.where(rows.present("in_old_ns"), rows.in_old_ns / 1e9, np.nan)
        facts = {**around, "age_at_least_s": spent, "age_at_most_s": spent}
        yes, no = judge(self._wanted, rows.as_sockets("oldstate"), known, facts)
        if self._left_only:
            return yes, no
        least = np.zeros(len(rows))
        most = np.where(rows.present("after_ns"), (rows.time_ns - rows.after_ns) / 1e9, 0.0)
        entered = {**around, "age_at_least_s": least, "age_at_most_s": most}
        then_yes, then_no = judge(self._wanted, rows.as_sockets("newstate"), known, entered)
        return yes | then_yes, no & then_no
