"""Connections that stay in a closing state: for how long, and who holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.diagnosis.ages import ages
from finwait.follow.actors import Actors
from finwait.follow.looks import Looks
from finwait.follow.places import Places, uid_known
from finwait.kernel.holders import Held
from finwait.table import transitions as tr
from finwait.table.filter import Filter
from finwait.table.schema import Mask
from finwait.table.sockets import SocketTable
from finwait.table.trace_filter import asks_for_holders, judge
from finwait.uapi import tcp

__all__ = ["Staying", "Stuck"]

_QUEUED = (tcp.ESTABLISHED, tcp.CLOSE_WAIT)
"""What a row without an inode may be in an accept queue in."""


class Stuck(Struct, frozen=True):
    """A connection that stays in a closing state longer than asked."""

    key: int
    """Its cookie, or the address of the socket while no look has given the cookie."""
    state: int
    netns: int | None
    src: tuple[int, int]
    dst: tuple[int, int]
    sport: int
    dport: int
    inode: int
    cgroup_id: int
    for_ns: int
    exact: bool
    """Whether we saw it enter the state; if not, it has been there at least so long."""
    held: Held | None
    """Its holders, by a search through all processes that began when it was stuck; None where nothing refers to it."""
    family: int
    ifindex: int


def _stuck(sockets: SocketTable, row: int, age_ns: int, exact: bool, held: Held | None) -> Stuck:
    return Stuck(
        int(sockets["cookie"][row]), int(sockets["state"][row]), int(sockets["netns"][row]),
        (int(sockets["src"][row, 0]), int(sockets["src"][row, 1])),
        (int(sockets["dst"][row, 0]), int(sockets["dst"][row, 1])),
        int(sockets["sport"][row]), int(sockets["dport"][row]), int(sockets["inode"][row]),
        int(sockets["cgroup_id"][row]), age_ns, exact, held, int(sockets["family"][row]), int(sockets["ifindex"][row]),
    )  # fmt: skip


class Staying:
    """Finds connections that a FILTER wants and that stay in a closing state.

    Args:
        wanted: which connections; None for all.
        looks: at all sockets.
        places: what is known of connections beyond their columns.
        actors: who holds them.
    """

    def __init__(self, row_filter: Filter | None, looks: Looks, places: Places, actors: Actors) -> None:
        self._wanted = row_filter
        self._looks = looks
        self._places = places
        self._actors = actors
        self._left_out: set[tuple[int, int]] = set()
        """(cookie, state) of what the FILTER could not judge, counted already."""
        self.unjudged = 0
        """Connections that were left out because nothing could tell whether the FILTER wants them."""

    def find(
        self,
        look: tr.SocketDump,
        moved: NDArray[Any],
        longer_than_s: float,
        skip: set[tuple[int, int]] | None,
        *,
        last: bool,
    ) -> list[Stuck]:
        """Return the sockets of a look that are in a closing state for longer than this.

        Minisockets are not among them: they go by themselves. The age is exact where the transition was seen, else a
        lower bound: the longer of "seen there for" and what the socket's own clocks say. A socket that somebody refers
        to comes when every process was inspected, so that all of its holders are told; it stays stuck meanwhile.

        Args:
            look: at everything.
            moved: lives of which it is known when they entered their state.
            longer_than_s: in seconds.
            skip: (key, state) of those that are known already; what is not stuck any more is taken out of it.
            last: do not wait for holders any longer.
        """
        rows, age_ns, exact = self._closing(look, moved)
        sockets = look.sockets
        keys = list(zip(sockets["cookie"][rows].tolist(), sockets["state"][rows].tolist(), strict=True))
        if skip is not None:
            skip.intersection_update(keys)
        self._left_out.intersection_update(keys)
        new = np.array([key not in (skip or ()) and key not in self._left_out for key in keys], np.bool_)
        new &= age_ns >= longer_than_s * 1e9
        rows, age_ns, exact = rows[new], age_ns[new], exact[new]
        yes, waits = self._wanted_of(sockets.select(rows), age_ns, exact)
        if last:
            self.unjudged += int(waits.sum())
        rows, age_ns, exact = rows[yes], age_ns[yes], exact[yes]
        held = self._actors.all_of(sockets["inode"][rows].tolist())
        stuck = []
        for row, age, sure in zip(rows.tolist(), age_ns.tolist(), exact.tolist(), strict=True):
            entry = held.get(int(sockets["inode"][row]))
            if entry is not None and not entry.whole and not last:
                continue
            stuck.append(_stuck(sockets, row, age, sure, entry))
        return stuck

    def _closing(
        self, look: tr.SocketDump, moved: NDArray[Any]
    ) -> tuple[NDArray[np.intp], NDArray[np.int64], Mask]:
        """Return the rows of a look that are in a closing state, for how long, and whether that is exact."""
        exact = {
            int(life["cookie"]): (int(life["state"]), int(life["since"])) for life in moved if life["cookie"]
        }
        sockets = look.sockets
        rows = np.flatnonzero(np.isin(sockets["cookie"], np.array(list(self._looks.seen), np.uint64)))
        rows = rows[sockets["timer"][rows] != 3]
        least_ms = ages(sockets)[0][rows].tolist()
        age_ns = np.zeros(len(rows), np.int64)
        sure = np.zeros(len(rows), np.bool_)
        for k, row in enumerate(rows.tolist()):
            cookie = int(sockets["cookie"][row])
            known = exact.get(cookie)
            if known is not None and known[0] == int(sockets["state"][row]):
                age_ns[k], sure[k] = look.ended_ns - known[1], True
            else:
                age_ns[k] = max(look.ended_ns - self._looks.seen[cookie][1], least_ms[k] * 1_000_000)
        return rows, age_ns, sure

    def _wanted_of(self, sockets: SocketTable, age_ns: NDArray[np.int64], exact: Mask) -> tuple[Mask, Mask]:
        """Return which sockets of a look the FILTER wants, and of which only their holders can tell."""
        row_filter = self._wanted
        n = len(sockets)
        waits = np.zeros(n, np.bool_)
        if row_filter is None or not n:
            return np.ones(n, np.bool_), waits
        least = age_ns / 1e9
        most = np.where(exact, least, np.nan)
        around: dict[str, Any] = {
            **self._places.around(sockets, row_filter.needs),
            "age_at_least_s": least,
            "age_at_most_s": most,
        }
        uid = uid_known(sockets)
        pids: list[tuple[object, ...]] = [()] * n
        comms = list(pids)
        whole = np.zeros(n, np.bool_)
        known = {"uid": uid, "pid": whole, "comm": whole}
        yes, no = judge(row_filter, sockets, known, {**around, "pid": pids, "comm": comms})
        if asks_for_holders(row_filter) and (open_ := np.flatnonzero(~yes & ~no)).size:
            inodes = sockets["inode"][open_].tolist()
            held = self._actors.all_of(inodes)
            for k, inode, state in zip(open_.tolist(), inodes, sockets["state"][open_].tolist(), strict=True):
                entry = held.get(inode, Held((), True))
                nobody = (
                    not inode and state not in _QUEUED
                )  # else whoever holds its listener, which is not known here
                whole[k] = entry.whole and (
                    bool(entry.owners) or nobody or (inode and not self._actors.blind)
                )
                waits[k] = not entry.whole
                pids[k] = tuple(owner.pid for owner in entry.owners)
                comms[k] = tuple(owner.comm for owner in entry.owners)
            yes, no = judge(row_filter, sockets, known, {**around, "pid": pids, "comm": comms})
        waits &= ~yes & ~no
        lacking = ~yes & ~no & ~waits
        if lacking.any() and not exact.all():  # what is undecided for its age alone is asked again: ages grow
            around["age_at_most_s"] = least
            as_if_yes, as_if_no = judge(row_filter, sockets, known, {**around, "pid": pids, "comm": comms})
            lacking &= ~as_if_yes & ~as_if_no
        self.unjudged += int(lacking.sum())
        cookies, states = sockets["cookie"].tolist(), sockets["state"].tolist()
        self._left_out.update((cookies[k], states[k]) for k in np.flatnonzero(lacking).tolist())
        return yes, waits
