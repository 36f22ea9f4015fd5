"""The lives of sockets: events, looks and destroy messages joined into the story of each connection.

Theory of operation. ``sock:inet_sock_set_state`` names a socket by its address in the kernel, knows neither
namespace nor owner, and ends the story of an orphan too early: it says ``FIN_WAIT2→CLOSE`` the moment a
socket shrinks to a minisocket, while the connection stays in FIN_WAIT2 for another minute. So three sources
are joined:

* the tracepoint gives every transition and its time, by socket address;
* a *look* (a sock_diag dump of all namespaces) gives namespace, cookie, inode, cgroup and, for a connection
  that has left the tracepoint's view, the minisocket and its expiry;
* ``tcp:tcp_destroy_sock`` and the destroy multicast tie a socket address to a cookie and the cookie to a
  namespace, for connections that come and go between two looks.

Addresses of sockets are used again at once, so rows are numbered by *life*: a life begins with a transition
from CLOSE (or LISTEN→SYN_RECV) and ends with one to CLOSE. A look may only name a life that began before the
look did and had not ended when the look ended; a minisocket only one that ended before it. A row waits for
the first look after it (`Follower.take`), so every row that is printed was looked up once.

Implementation. `Lives` is one row per life and the index from a socket's address to its latest life; `_Runs` puts
the events of one address next to each other; functions of both say who begins, how long it lasted, and what a look
adds. `Follower` is what others use: it holds the rows that wait, and the order of the steps.

What this cannot see: the end of a minisocket (no tracepoint fires: only its row disappears), which of two
namespaces a connection is in when both hold the same four numbers, and any age across lost records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.table.schema import Mask
from finwait.table.sockets import SocketTable
from finwait.table.transitions import RECEIVE_RESET, SEND_RESET, TRANSITION, SocketDump, TransitionTable
from finwait.uapi import tcp

__all__ = ["NEVER", "Follower", "Lives"]

NEVER: Final = (1 << 63) - 1
"""When a life ends that has not."""
_RESET_ENDS_NS: Final = 100_000_000  # the two are in one call chain; a preempted task may be late

_LIFE: Final = np.dtype(
    [
        ("sk", "u8"), ("born", "i8"), ("died", "i8"), ("since", "i8"), ("state", "u1"), ("before", "u1"),
        ("s0", "u8"), ("s1", "u8"), ("d0", "u8"), ("d1", "u8"), ("sport", "u2"), ("dport", "u2"),
        ("named", "?"), ("ambiguous", "?"), ("netns", "u4"), ("cookie", "u8"), ("inode", "u4"), ("uid", "u4"),
        ("ifindex", "u4"), ("seen", "?"),
        ("cgroup", "u8"), ("has_cgroup", "?"), ("looked", "?"), ("became", "u1"), ("became_ns", "i8"),
        ("expires", "u4"), ("reset", "u1"), ("reset_ns", "i8"), ("number", "i8"),
    ]
)  # fmt: skip


class _Runs(Struct, frozen=True):
    """Events in runs of one socket address, those of a run in the order of time."""

    order: NDArray[np.int64]
    """Which event stands at each place."""
    sk: NDArray[np.uint64]
    kind: NDArray[np.uint8]
    old: NDArray[np.uint8]
    new: NDArray[np.uint8]
    time_ns: NDArray[np.int64]
    first: Mask
    """Where a run begins."""
    transition: Mask
    birth: Mask
    """Out of CLOSE, or cloned from a listener."""

    @classmethod
    def of(cls, events: TransitionTable) -> _Runs:
        order = np.argsort(events.sk, kind="stable")
        sk, kind = events.sk[order], events.kind[order]
        old, new = events.oldstate[order], events.newstate[order]
        first = np.ones(len(order), np.bool_)
        first[1:] = sk[1:] != sk[:-1]
        transition = (kind == TRANSITION) & (sk != 0)
        birth = transition & ((old == tcp.CLOSE) | ((old == tcp.LISTEN) & (new == tcp.SYN_RECV)))
        return cls(order, sk, kind, old, new, events.time_ns[order], first, transition, birth)

    @property
    def last(self) -> Mask:
        """Where a run ends."""
        last = np.ones(len(self.sk), np.bool_)
        last[:-1] = self.sk[1:] != self.sk[:-1]
        return last

    def lives(self, carried: NDArray[np.int64], start: int) -> tuple[NDArray[np.int64], Mask]:
        """Return the life of each event, and which events begin one.

        A life's first transition that is no birth was born before we looked; so was one whose address we do not know.

        Args:
            carried: the life that the address had before, −1 for none.
            start: number of the first life that begins here.
        """
        # In runs of one address: a new life at each birth, and at the first transition if none is carried.
        run = np.cumsum(self.first) - 1
        before: NDArray[np.int64] = np.cumsum(self.transition) - self.transition
        opening = self.transition & (before == before[self.first][run])
        begins = self.birth | (opening & (carried < 0))
        made = np.cumsum(begins)
        made_before_run: NDArray[np.int64] = (made - begins)[self.first][run]
        life = np.where(made > made_before_run, start + made - 1, carried)
        life[self.sk == 0] = -1
        return life, begins


class Lives:
    """One row per life, by number, and the latest life at each socket address."""

    def __init__(self) -> None:
        self.rows = np.zeros(0, _LIFE)
        self.first = 0
        """The number of row 0; it changes when memory is given back (the column ``number`` does not)."""
        self._made = 0
        self.addresses = np.empty(0, np.uint64)
        """Socket addresses, sorted, …"""
        self._latest = np.empty(0, np.int64)
        """… and the latest life of each."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def end(self) -> int:
        """The number that the next life gets."""
        return self.first + len(self.rows)

    def at(self, sk: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the latest life at each of some addresses, −1 where none is known."""
        life = np.full(len(sk), -1, np.int64)
        if len(self.addresses):
            place = np.searchsorted(self.addresses, sk)
            place[place == len(self.addresses)] = 0
            hit = self.addresses[place] == sk
            life[hit] = self._latest[place[hit]]
        return life

    def begin(self, sk: NDArray[np.uint64], born_ns: NDArray[np.int64]) -> None:
        """Add lives; born at 0 are those that began before we looked."""
        rows = np.zeros(len(sk), _LIFE)
        rows["sk"], rows["born"], rows["died"] = sk, born_ns, NEVER
        rows["number"] = self._made + np.arange(len(rows))
        self._made += len(rows)
        self.rows = np.concatenate([self.rows, rows])

    def remember(self, sk: NDArray[np.uint64], life: NDArray[np.int64]) -> None:
        """Write down the latest life at each of some addresses."""
        if len(self.addresses):
            keep = ~np.isin(self.addresses, sk)
            sk = np.concatenate([self.addresses[keep], sk])
            life = np.concatenate([self._latest[keep], life])
        order = np.argsort(sk, kind="stable")
        self.addresses, self._latest = sk[order], life[order]

    def lose_track(self) -> None:
        """Forget since when lives are in their state, and whose an address is: what happened meanwhile is not known."""
        self.rows["since"] = 0
        self.addresses, self._latest = self.addresses[:0], self._latest[:0]

    def drop_before(self, lead: int) -> None:
        """Give back the memory of the first rows; the numbers of the others stay."""
        self.first += lead
        self.rows = self.rows[lead:].copy()
        known = self._latest >= self.first
        self.addresses, self._latest = self.addresses[known], self._latest[known]

    def renumber(self, keep: Mask) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
        """Keep some rows under new numbers; return what turns old numbers into new ones."""
        new = np.cumsum(keep) - 1 + self.first + len(keep)
        old_first = self.first
        self.first += len(keep)

        def moved(life: NDArray[np.int64]) -> NDArray[np.int64]:
            known = life >= old_first
            out = life.copy()
            out[known] = new[life[known] - old_first]
            return out

        kept = keep[self._latest - old_first]
        self.addresses, self._latest = self.addresses[kept], moved(self._latest[kept])
        self.rows = self.rows[keep]
        return moved


# -- what events tell ------------------------------------------------------------------------------------


def _entered(
    runs: _Runs, t: NDArray[np.int64], life: NDArray[np.int64], lives: Lives
) -> tuple[NDArray[np.int64], Mask]:
    """Return when the life of each transition entered the state that it leaves, and where that is known.

    That is the time of the transition of the same life that entered it. close() of a socket that had shut down before
    is told as FIN_WAIT2→FIN_WAIT2 (tcp_close_state): it enters nothing.
    """
    of, time_ns, old, new = life[t], runs.time_ns[t], runs.old[t], runs.new[t]
    rows = of - lives.first
    index = np.arange(len(t))
    lead = np.ones(len(t), np.bool_)
    lead[1:] = of[1:] != of[:-1]
    run = np.maximum.accumulate(np.where(lead, index, 0)) if len(t) else index
    entered = np.full(len(t), -1, np.int64)
    if len(t) > 1:
        entered[1:] = np.maximum.accumulate(np.where(old != new, index, -1))[:-1]
    since = np.where(entered >= run, time_ns[entered], lives.rows["since"][rows])
    # The state before must be the state that we remember, or something was missed.
    remembered = np.where(lead, lives.rows["state"][rows], np.roll(new, 1))
    return since, (since > 0) & (remembered == old)


def _move(
    rows: NDArray[Any], where: NDArray[np.int64], runs: _Runs, t: NDArray[np.int64], events: TransitionTable
) -> None:
    """Write the last transition of each life down (numpy keeps the last of equal indices)."""
    old, new, time_ns = runs.old[t], runs.new[t], runs.time_ns[t]
    enters = old != new
    rows["since"][where[enters]] = time_ns[enters]
    rows["state"][where] = new
    rows["before"][where] = old
    closed = new == tcp.CLOSE
    rows["died"][where[closed]] = time_ns[closed]
    source = runs.order[t]
    # The first events of a connection lack what the kernel had not filled in yet.
    full = (events.sport[source] != 0) & ((events.dport[source] != 0) | (new == tcp.LISTEN))
    where, source = where[full], source[full]
    rows["s0"][where], rows["s1"][where] = events.src[source, 0], events.src[source, 1]
    rows["d0"][where], rows["d1"][where] = events.dst[source, 0], events.dst[source, 1]
    rows["sport"][where], rows["dport"][where] = events.sport[source], events.dport[source]


def _note(rows: NDArray[Any], row: NDArray[np.int64], runs: _Runs, cookies: NDArray[np.uint64]) -> None:
    """Write cookies and resets down."""
    identified = (cookies != 0) & (row >= 0)
    rows["cookie"][row[identified]] = cookies[identified]
    for kind in (RECEIVE_RESET, SEND_RESET):
        resets = (runs.kind == kind) & (row >= 0)
        rows["reset"][row[resets]] = kind
        rows["reset_ns"][row[resets]] = runs.time_ns[resets]


def _replace(
    lives: Lives, runs: _Runs, life: NDArray[np.int64], begins: Mask, carried: NDArray[np.int64]
) -> None:
    """End the lives whose address began another: their own end was filtered out, or never told."""
    at = np.flatnonzero(begins)
    if not len(at):
        return
    before = np.where((at > 0) & (runs.sk[at] == runs.sk[at - 1]), life[at - 1], carried[at])
    known = before >= 0
    row = before[known] - lives.first
    open_ = lives.rows["died"][row] == NEVER
    lives.rows["died"][row[open_]] = runs.time_ns[at[known]][open_]
    lives.rows["looked"][row[open_]] = True


def _live(lives: Lives, runs: _Runs, events: TransitionTable, cookies: NDArray[np.uint64]) -> TransitionTable:
    """Let events begin, move and end lives; give every event the number of its life and the time in its old state."""
    n = len(events)
    carried = lives.at(runs.sk)
    life, begins = runs.lives(carried, lives.end)
    at = np.flatnonzero(begins)
    lives.begin(runs.sk[at], np.where(runs.birth[at], runs.time_ns[at], 0))
    row = life - lives.first
    t = np.flatnonzero(runs.transition)
    since, known = _entered(runs, t, life, lives)
    _move(lives.rows, row[t], runs, t, events)
    _note(lives.rows, row, runs, cookies[runs.order])
    _replace(lives, runs, life, begins, carried)
    # An event of a socket that we have not met tells nothing of the next one there.
    latest = runs.last & (life >= 0)
    lives.remember(runs.sk[latest], life[latest])
    lives_of = np.empty(n, np.int64)
    lives_of[runs.order] = life
    in_old, begun, begun_known = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.bool_)
    place = runs.order[t]
    in_old[place] = np.where(known, runs.time_ns[t] - since, 0)
    begun[place] = np.where(known, since, 0)
    begun_known[place] = known
    events = events.replace("life", lives_of)
    return events.replace("in_old_ns", in_old, begun_known).replace("since_ns", begun, begun_known)


# -- what looks and destroy messages tell ----------------------------------------------------------------


def _name_by_look(rows: NDArray[Any], look: SocketDump) -> None:
    """Let one look name the lives that it covers, and find the minisockets of those that ended."""
    if not len(rows) or not len(look.sockets):
        rows["looked"][rows["died"] < look.begun_ns] = True
        return
    # A socket in the accept queue has no inode yet: it is asked for again.
    alive = (
        ~(rows["named"] & (rows["inode"] != 0))
        & (rows["born"] <= look.begun_ns)
        & (rows["died"] >= look.ended_ns)
    )
    ended = ~rows["looked"] & (rows["died"] < look.begun_ns)
    rows["looked"][ended] = True
    ask = np.flatnonzero((alive | ended) & (rows["sport"] != 0))
    if not len(ask):
        return
    candidates = rows[ask]
    sockets = look.sockets
    match, count = _find(candidates, sockets)
    mini = (sockets["timer"] == 3) & (sockets["inode"] == 0)
    hit = (match >= 0) & (mini[match] == ended[ask])
    # A minisocket takes the cookie along if there was one when it took over: one that a look has seen.
    # One that tcp_destroy_sock made afterwards is not the minisocket's.
    hit &= ~candidates["named"] | (candidates["cookie"] == sockets["cookie"][match])
    rows["ambiguous"][ask[count > 1]] = True
    index, at = ask[hit], match[hit]
    _write_names(rows, index, sockets, at, full=~mini[at])
    over = index[ended[index]]
    at = at[ended[index]]
    rows["became"][over] = sockets["state"][at]
    rows["became_ns"][over] = look.begun_ns
    since = (look.begun_ns - rows["died"][over]) // 1_000_000
    rows["expires"][over] = sockets["expires_ms"][at] + since


def _write_names(
    rows: NDArray[Any], index: NDArray[np.int64], sockets: SocketTable, at: NDArray[np.int64], full: Mask
) -> None:
    """Write down what sockets of a look are called; only those that are ``full`` tell of inode and owner."""
    rows["netns"][index] = sockets["netns"][at]
    unknown = rows["cookie"][index] == 0
    rows["cookie"][index[unknown]] = sockets["cookie"][at[unknown]]
    rows["named"][index] = True
    rows["ifindex"][index] = sockets["ifindex"][at]
    rows["seen"][index] = True
    index, at = index[full], at[full]
    rows["inode"][index] = sockets["inode"][at]
    rows["uid"][index] = sockets["uid"][at]
    rows["cgroup"][index] = sockets["cgroup_id"][at]
    rows["has_cgroup"][index] = sockets.present("cgroup_id")[at]


def _name_by_destroys(rows: NDArray[Any], sockets: SocketTable) -> None:
    """Let destroy messages (as sockets) give a cookie that an event named its namespace."""
    ask = np.flatnonzero((rows["cookie"] != 0) & ~rows["named"])
    if not len(ask) or not len(sockets):
        return
    cookie = sockets["cookie"].astype(np.uint64)
    order = np.argsort(cookie, kind="stable")
    place = np.searchsorted(cookie[order], rows["cookie"][ask])
    place[place == len(order)] = 0
    at = order[place]
    hit = cookie[at] == rows["cookie"][ask]
    rows["netns"][ask[hit]] = sockets["netns"][at[hit]]
    rows["named"][ask[hit]] = True


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def _connection_key(
    src: NDArray[np.uint64], dst: NDArray[np.uint64], sport: NDArray[Any], dport: NDArray[Any]
) -> NDArray[np.uint64]:
    """Return 64 bits that stand for both addresses and ports, our end first (a hash: compare after it)."""
    ports = (sport.astype(np.uint64) << np.uint64(16)) | dport.astype(np.uint64)
    h = _mix(ports + np.uint64(0x9E3779B97F4A7C15))
    for word in (src[:, 0], src[:, 1], dst[:, 0], dst[:, 1]):
        h = _mix(h ^ word)
    return h


def _find(rows: NDArray[Any], sockets: SocketTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each life the one socket with its addresses and ports (-1: not one), and how many have."""
    key = _connection_key(sockets["src"], sockets["dst"], sockets["sport"], sockets["dport"])
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    src = np.stack([rows["s0"], rows["s1"]], axis=1)
    dst = np.stack([rows["d0"], rows["d1"]], axis=1)
    asked = _connection_key(src, dst, rows["sport"], rows["dport"])
    low = np.searchsorted(sorted_key, asked, side="left")
    count = np.searchsorted(sorted_key, asked, side="right") - low
    at = order[np.minimum(low, len(order) - 1)]
    same = (
        (sockets["src"][at] == src).all(axis=1)
        & (sockets["dst"][at] == dst).all(axis=1)
        & (sockets["sport"][at] == rows["sport"])
        & (sockets["dport"][at] == rows["dport"])
    )
    return np.where((count == 1) & same, at, -1), count


# -- rows ------------------------------------------------------------------------------------------------


def _with_names(table: TransitionTable, tracked: Mask, rows: NDArray[Any]) -> TransitionTable:
    """Return events with what looks and other events told of their lives."""
    named = tracked & rows["named"]
    for name, cells, mask in (
        ("netns", rows["netns"], named),
        ("cookie", rows["cookie"], tracked & (rows["cookie"] != 0)),
        ("inode", rows["inode"], named & (rows["inode"] != 0)),
        ("uid", rows["uid"], named & (rows["inode"] != 0)),
        ("cgroup_id", rows["cgroup"], named & rows["has_cgroup"]),
        ("ifindex", rows["ifindex"], tracked & rows["seen"]),
    ):
        table = table.replace(name, np.where(mask, cells, 0), mask)
    # What the kernel had not filled in yet, from a later event of the same life.
    early = tracked & (rows["sport"] != 0) & ((table.sport == 0) | (table.dport == 0))
    if early.any():
        table = table.replace("sport", np.where(early, rows["sport"], table.sport))
        table = table.replace("dport", np.where(early, rows["dport"], table.dport))
        for name, high, low in (("src", "s0", "s1"), ("dst", "d0", "d1")):
            words = np.stack([rows[high], rows[low]], axis=1)
            table = table.replace(name, np.where(early[:, None], words, table[name]))
    return table


def _with_ends(table: TransitionTable, tracked: Mask, rows: NDArray[Any]) -> TransitionTable:
    """Return events with what became of the lives that they end."""
    last = (table.kind == TRANSITION) & (table.newstate == tcp.CLOSE) & tracked
    became = last & (rows["became"] != 0)
    table = table.replace("became", np.where(became, rows["became"], 0), became)
    table = table.replace("became_seen_ns", np.where(became, rows["became_ns"], 0), became)
    table = table.replace("expires_ms", np.where(became, rows["expires"], 0), became)
    # A reset that did not end the life (an answer to a stray segment) lies further back.
    reset = last & (rows["reset"] != 0) & (rows["died"] - rows["reset_ns"] <= _RESET_ENDS_NS)
    return table.replace("reset", np.where(reset, rows["reset"], 0), reset)


class Follower:
    """Joins events, looks and destroy messages; hands out rows when all that can be known is known.

    Feed it events up to a horizon, then looks; `take` gives the rows that no later look can add to. All
    times are arguments (CLOCK_MONOTONIC, ns).

    What it remembers is bounded, whatever comes: ended lives go once their rows are out, a life ends at the
    latest when its address is used again, and of the living at most ``most`` are kept.

    Args:
        most: lives to remember; beyond it the one longest in its state goes, and its next age is not known.
        spare: how many lives may pile up before ended ones are looked for.
    """

    def __init__(self, *, most: int = 1 << 20, spare: int = 4096) -> None:
        self._most = most
        self._spare = spare
        self._rest = TransitionTable.empty()
        self._rest_cookies = np.empty(0, np.uint64)
        self._queue: list[TransitionTable] = []
        self._lives = Lives()
        self.lost = 0
        """Records known to be lost; `lost_unknown` says whether there were more."""
        self.lost_unknown = False
        self.forgotten = 0
        """Lives that were forgotten although they may go on: more than ``most`` were alive at once."""
        self.counts: dict[tuple[int, int], int] = {}
        """(old, new) → transitions seen."""

    def feed(
        self,
        events: TransitionTable,
        cookies: NDArray[np.uint64],
        horizon_ns: int,
        *,
        missed: NDArray[np.int64] | None = None,
    ) -> int:
        """Take events in; those after the horizon are kept back until the next call.

        Args:
            events: in the order of time, as `finwait.table.transitions.decode` returns them.
            cookies: ``sock_cookie`` of each, 0 where there is none.
            horizon_ns: no event with a smaller time is still to come.
            missed: by page, records lost before it; -1 for an unknown number.

        Returns:
            How many events are now in the story.
        """
        if missed is not None and (missed != 0).any():
            self.lost += int(missed[missed > 0].sum())
            self.lost_unknown = self.lost_unknown or bool((missed < 0).any())
            # What happened in the gap is not known: no state of any socket can be timed across it.
            self._lives.lose_track()
        if len(self._rest):
            events = TransitionTable.concatenate([self._rest, events])
            cookies = np.concatenate([self._rest_cookies, cookies])
            order = np.argsort(events.time_ns, kind="stable")
            events, cookies = events.select(order), cookies[order]
        cut = int(np.searchsorted(events.time_ns, horizon_ns, side="right")) if len(events) else 0
        self._rest, self._rest_cookies = events.select(np.arange(cut, len(events))), cookies[cut:]
        if not cut:
            return 0
        now = events.select(np.arange(cut)) if cut < len(events) else events
        runs = _Runs.of(now)
        self._queue.append(_live(self._lives, runs, now, cookies[:cut]))
        self._count(runs)
        return cut

    def _count(self, runs: _Runs) -> None:
        pairs = runs.old[runs.transition].astype(np.int64) << 8 | runs.new[runs.transition]
        for pair, number in zip(*(x.tolist() for x in np.unique(pairs, return_counts=True)), strict=True):
            states = pair >> 8, pair & 255
            self.counts[states] = self.counts.get(states, 0) + number

    def look(self, look: SocketDump) -> None:
        """Let one look name the lives that it covers, and find the minisockets of those that ended."""
        _name_by_look(self._lives.rows, look)

    def destroyed(self, sockets: SocketTable) -> None:
        """Take destroy messages in (as sockets): a cookie that an event named gets its namespace."""
        _name_by_destroys(self._lives.rows, sockets)

    def questions(self) -> NDArray[Any]:
        """Return the lives that a look could still tell us something about (see `staying` for the fields).

        Listeners are not among them: they have no other end, and are found by a dump only. What has ended is there only
        as a minisocket, and only FIN_WAIT2 and CLOSING leave one (tcp_time_wait).
        """
        rows = self._lives.rows
        shrinks = (rows["before"] == tcp.FIN_WAIT2) | (rows["before"] == tcp.CLOSING)
        ended = (rows["died"] != NEVER) & ~rows["looked"] & shrinks
        unnamed = (rows["died"] == NEVER) & ~(rows["named"] & (rows["inode"] != 0))
        # Alive and asked for before: only the rows that wait now are worth another question.
        waiting = np.zeros(len(rows), np.bool_)
        for table in self._queue:
            row = table.life - self._lives.first
            waiting[row[row >= 0]] = True
        return rows[(ended | (unnamed & waiting)) & (rows["sport"] != 0) & (rows["dport"] != 0)]

    def staying(self, now_ns: int, longer_than_ns: int, states: int = tcp.CLOSING_STATES) -> NDArray[Any]:
        """Return the lives that are in one of ``states`` (a mask) for longer than this, known for sure.

        A structured array with ``sk since state netns cookie inode s0 s1 d0 d1 sport dport named``.
        """
        rows = self._lives.rows
        mask = (rows["died"] == NEVER) & (rows["since"] > 0) & (rows["since"] <= now_ns - longer_than_ns)
        mask &= (states >> rows["state"].astype(np.int64)) & 1 == 1
        return rows[mask]

    @property
    def waiting(self) -> int:
        """How many rows wait for a look."""
        return sum(len(t) for t in self._queue)

    @property
    def oldest_ns(self) -> int | None:
        """Time of the oldest row that waits."""
        return int(self._queue[0].time_ns[0]) if self._queue else None

    def take(self, until_ns: int) -> TransitionTable:
        """Return the rows up to a time (that of the beginning of the last look), with all that was joined."""
        out = []
        rest = []
        for table in self._queue:
            cut = int(np.searchsorted(table.time_ns, until_ns, side="right"))
            if cut:
                out.append(table.select(np.arange(cut)))
            if cut < len(table):
                rest.append(table.select(np.arange(cut, len(table))))
        self._queue = rest
        if not out:
            return TransitionTable.empty()
        result = self._enriched(TransitionTable.concatenate(out))
        self._forget()
        return result

    def _enriched(self, table: TransitionTable) -> TransitionTable:
        row = table.life - self._lives.first
        tracked = row >= 0
        known = self._lives.rows
        rows = known[np.where(tracked, row, 0)] if len(known) else np.zeros(len(table), _LIFE)
        # Inside, lives are renumbered when memory is given back; outside, a number stays.
        table = table.replace("life", np.where(tracked, rows["number"], -1))
        table = table.replace("over", tracked & (rows["died"] != NEVER))
        return _with_ends(_with_names(table, tracked, rows), tracked, rows)

    def _forget(self) -> None:
        """Drop lives that ended and that no waiting row refers to, and the oldest of too many."""
        rows = self._lives.rows
        if len(rows) < self._spare:
            return
        oldest = min(
            (int(t.life[t.life >= 0].min()) for t in self._queue if (t.life >= 0).any()), default=NEVER
        )
        waited = self._lives.first + np.arange(len(rows)) >= oldest
        alive = (rows["died"] == NEVER) & (rows["since"] > 0)
        if int((alive & ~waited).sum()) > self._most:
            surplus = np.flatnonzero(alive & ~waited)
            surplus = surplus[np.argsort(rows["since"][surplus], kind="stable")]
            surplus = surplus[: len(surplus) - self._most + self._most // 8]  # not again with the next event
            alive[surplus] = False
            self.forgotten += len(surplus)
        keep = alive | waited
        if len(keep) - int(keep.sum()) < max(self._spare // 2, len(keep) // 4):
            return  # too little to be worth a copy of all the others
        # Lives are found by number: a leading run just goes; when others would pile up, all are renumbered.
        lead = int(np.argmax(keep)) if keep.any() else len(keep)
        if lead < len(keep) // 2:
            self._renumber(keep)
        else:
            self._lives.drop_before(lead)

    def _renumber(self, keep: Mask) -> None:
        moved = self._lives.renumber(keep)
        self._queue = [t.replace("life", moved(t.life)) for t in self._queue]
