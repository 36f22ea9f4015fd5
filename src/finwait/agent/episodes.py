"""Episodes: from the first sight of a connection in a closing state until it has left that state.

Theory of operation. An episode is named by (boot id, cookie, state). The kernel gives every socket a cookie that it
never uses twice on a boot, and a minisocket keeps that of its socket, so neither a restart of ours nor the turn into a
minisocket ends an episode. None of the closing states can be entered twice by one connection; a socket that was
disconnected and connected again keeps its cookie, but then its addresses or ports tell, or the kernel's clocks: it says
that the state is younger than what we have seen (`_again`).

Rows come from two kinds of looks. A *walk* lists all rows of a namespace: it finds what is new. A row that is missing
from a walk proves nothing, for it may have changed its state meanwhile: it is asked for by name first. An *answer*
tells exactly what became of one connection. Where neither could be had, nothing ends and nothing is concluded.

Ages are two numbers on CLOCK_BOOTTIME that only ever come closer to each other: the state was entered by
``since_latest_ns`` for sure, and not before ``since_earliest_ns``. The kernel's clocks, which later segments reset, and
our own looks each only narrow them. The wall clock is kept to be shown, and decides nothing.

A connection that closes as it should passes these states too: an episode opens only when it has lasted for a grace.

The surprise: this is one structured array and no object for each connection, for there may be a hundred thousand.
Objects (`Episode`) are made of what changed, for the store and for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.agent.episode_values import (
    UNDIAGNOSED,
    Cause,
    Diagnosed,
    Episode,
    How,
    Instant,
    Other,
    Place,
    once,
)  # fmt: skip
from finwait.agent.pairing import paired
from finwait.diagnosis.ages import ages
from finwait.table.sockets import SocketTable, endpoint_text
from finwait.uapi import inet_diag, tcp
from finwait.uapi.sets import among, distinct

__all__ = [
    "GRACE_NS", "MOST", "UNDIAGNOSED", "VERDICT_NS", "Book", "Cause", "Diagnosed", "Episode", "How", "Instant", "Other",
    "once", "place_of",
]  # fmt: skip

GRACE_NS: Final = 15_000_000_000
"""What lasts for less is no episode."""
VERDICT_NS: Final = 100_000_000_000
"""A verdict counts once in this time, however often one is given: a little less than between two diagnoses."""
MOST: Final = 200_000
"""Connections that are kept at a time; what is beyond is counted (`Book.untracked`)."""
_UNKNOWN: Final = -1
_RECALLED_NS: Final = 600_000_000_000
"""For so long what a diagnosis said is kept for rows that it may have seen before we did."""
_AGAIN_NS: Final = GRACE_NS
"""By so much the kernel's clocks must contradict us: a walk takes time, and they count in jiffies."""
_CLOCKS_WRAP_NS: Final = 49 * 86_400 * 1_000_000_000
"""They have 32 bits of milliseconds: on a machine that runs for longer, a small age may be a large one."""

_LATER: Final[Mapping[int, frozenset[int]]] = {
    tcp.FIN_WAIT1: frozenset({tcp.FIN_WAIT2, tcp.CLOSING, tcp.TIME_WAIT}),
    tcp.FIN_WAIT2: frozenset({tcp.TIME_WAIT}),
    tcp.CLOSING: frozenset({tcp.TIME_WAIT}),
    tcp.CLOSE_WAIT: frozenset({tcp.LAST_ACK}),
    tcp.LAST_ACK: frozenset(),
}
"""State → the states that follow it while a connection closes (RFC 9293, section 3.3.2)."""

_ROW: Final = np.dtype(
    [
        ("cookie", "u8"), ("state", "u1"), ("netns", "u4"),
        ("src", "u8", (2,)), ("dst", "u8", (2,)), ("sport", "u2"), ("dport", "u2"), ("ifindex", "u4"),
        ("held", "?"), ("opened", "?"), ("missing", "?"), ("restored", "?"), ("diagnosed", "?"),
        ("dirty", "?"), ("counted", "?"), ("storied", "?"), ("verdicts", "u2"), ("verdict_at", "i8"),
        ("first_boot", "i8"), ("first_wall", "i8"), ("last_boot", "i8"), ("last_wall", "i8"),
        ("latest", "i8"), ("earliest", "i8"), ("cause", "i4"),
        ("other", "u8"), ("other_netns", "u4"), ("other_holder", "i4"),
    ]
)  # fmt: skip


Judge = Callable[[int, int, Cause], How]
"""Says how a connection that is gone ended, by its cookie, its network namespace and its cause."""


def _rows_of(sockets: SocketTable, now: Instant, asleep_ns: int) -> NDArray[Any]:
    """Return rows of a table as rows of the book, by cookie; of a socket that is in it twice the last.

    The kernel's clocks stand still while the machine sleeps: by that time a state can be older than they say.
    """
    n = len(sockets)
    rows = np.zeros(n, _ROW)
    if not n:
        return rows
    for name in ("cookie", "state", "netns", "src", "dst", "sport", "dport", "ifindex"):
        rows[name] = sockets.column(name)
    rows["held"] = sockets.inode != 0
    least, most, _ = ages(sockets)
    rows["latest"] = now.boot_ns - np.maximum(least, 0) * 1_000_000
    earliest = np.maximum(now.boot_ns - asleep_ns - most * 1_000_000, _UNKNOWN)
    rows["earliest"] = np.where(most >= 0, earliest, _UNKNOWN)
    rows["first_boot"] = rows["last_boot"] = now.boot_ns
    rows["first_wall"] = rows["last_wall"] = now.wall_ns
    return _once([rows[(sockets.protocol == inet_diag.IPPROTO_TCP) & (rows["cookie"] != 0)]])


def _once(several: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return all rows, by cookie; of a socket that is among them twice the last."""
    if not several:
        return np.zeros(0, _ROW)
    rows = np.concatenate(several) if len(several) > 1 else several[0]
    order = np.argsort(rows["cookie"], kind="stable")
    rows = rows[order]
    last = np.append(rows["cookie"][1:] != rows["cookie"][:-1], True)[: len(rows)]
    return rows[last]


def _again(
    earliest: NDArray[np.int64], latest: NDArray[np.int64] | np.int64, now: Instant
) -> NDArray[np.bool_]:
    """Return which connections are others than those we know, for they entered the state later than those had."""
    if now.boot_ns >= _CLOCKS_WRAP_NS:
        return np.zeros(np.shape(earliest), np.bool_)
    result: NDArray[np.bool_] = np.asarray(earliest > latest + _AGAIN_NS)
    return result


def place_of(row: Any) -> Place:  # noqa: ANN401 - one row of `_ROW`
    """Return what the kernel's trace tells of a connection: addresses, ports and state, and no namespace."""
    return (
        *row["src"].tolist(),
        *row["dst"].tolist(),
        int(row["sport"]),
        int(row["dport"]),
        int(row["state"]),
    )


def _same(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows are the same connection."""
    equal = (a["netns"] == b["netns"]) & (a["sport"] == b["sport"]) & (a["dport"] == b["dport"])
    return equal & (a["src"] == b["src"]).all(axis=1) & (a["dst"] == b["dst"]).all(axis=1)


_CLOSING: Final = np.array([s for s in tcp.STATES if tcp.CLOSING_STATES >> s & 1], np.uint8)


class Book:
    """Every connection in a closing state that is known, and what became of those that left.

    Args:
        boot: id of the boot.
        grace_ns: what lasts for less is no episode.
        most: how many are kept.
        verdict_ns: a verdict counts once in this time.

    Attributes:
        boot: that id.
        asleep_ns: how long the machine has slept since it was started.
    """

    def __init__(
        self, boot: str, *, grace_ns: int = GRACE_NS, most: int = MOST, verdict_ns: int = VERDICT_NS
    ) -> None:
        self.boot = boot
        self.asleep_ns = 0
        self._untracked: dict[int, int] = {}
        self._grace = grace_ns
        self._most = most
        self._verdict_ns = verdict_ns
        self._rows: NDArray[Any] = np.zeros(0, _ROW)
        self._causes: list[Cause] = [UNDIAGNOSED]
        self._number: dict[Cause, int] = {UNDIAGNOSED: 0}
        self._names: list[str] = [""]
        self._name_number: dict[str, int] = {"": 0}
        self._translated: dict[int, tuple[str, str]] = {}
        self._walked: dict[int, int] = {}
        self._ended: list[Episode] = []
        self._late: Counter[tuple[str, str]] = Counter()
        self._statement: tuple[Diagnosed, Instant] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def untracked(self) -> int:
        """How many the last walk of each namespace found that there was no room for."""
        return sum(self._untracked.values())

    @property
    def open(self) -> int:
        """How many episodes are open."""
        return int(self._rows["opened"].sum())

    def columns(self, *names: str) -> tuple[NDArray[Any], ...]:
        """Return columns of the open episodes, in the order of their cookies; ``cause`` indexes `causes`.

        ``other`` is also that of rows that no diagnosis has seen, where addresses tell it.
        """
        rows = self._rows[self._rows["opened"]]
        return tuple(paired(rows) if name == "other" else rows[name] for name in names)

    def at(self, places: NDArray[np.int64]) -> list[Episode]:
        """Return open episodes by their places in what `columns` gives."""
        opened = np.flatnonzero(self._rows["opened"])
        return [self._episode(self._rows[k]) for k in opened[places].tolist()]

    def state_of(self, cookie: int) -> int | None:
        """Return the state in which a connection was last seen; None where it is not known here."""
        k = int(np.searchsorted(self._rows["cookie"], np.uint64(cookie)))
        if k < len(self._rows) and int(self._rows["cookie"][k]) == cookie:
            return int(self._rows["state"][k])
        return None

    def speaking(
        self, severities: Collection[str]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int64]]:
        """Return cookie, cause and the time since when for sure, one row for each connection.

        Args:
            severities: of causes that are left out.
        """
        cookie, cause, other, latest = self.columns("cookie", "cause", "other", "latest")
        kept = np.array([entry.severity not in severities for entry in self._causes], np.bool_)[cause]
        if not kept.all():
            cookie, cause, other, latest = cookie[kept], cause[kept], other[kept], latest[kept]
        speaks = once(cookie, other, np.array([entry.rank for entry in self._causes], np.int8)[cause])
        return cookie[speaks], cause[speaks], latest[speaks]

    @property
    def causes(self) -> Sequence[Cause]:
        """What the column ``cause`` refers to."""
        return self._causes

    def holders(self) -> Counter[tuple[int, int, str]]:
        """Return who holds the open episodes (pid, beginning in ms since boot, workload), and how many."""
        counts: Counter[tuple[int, int, str]] = Counter()
        numbers, n = np.unique(self._rows["cause"][self._rows["opened"]], return_counts=True)
        for number, several in zip(numbers.tolist(), n.tolist(), strict=True):
            cause = self._causes[number]
            if cause.pid:
                counts[cause.pid, cause.started_ms, cause.workload] += several
        return counts

    @property
    def undiagnosed(self) -> int:
        """How many open episodes no diagnosis has seen as they are."""
        rows = self._rows
        return int((rows["opened"] & ~rows["diagnosed"]).sum())

    def unripe(self, until_ns: int) -> int:
        """Return how many rows of a first sight until then have neither opened nor gone: no age is proven yet."""
        rows = self._rows
        return int((~rows["opened"] & (rows["first_boot"] <= until_ns)).sum())

    def take(self) -> list[Episode]:
        """Return what ended since this was asked last."""
        ended, self._ended = self._ended, []
        return ended

    def changed(self) -> Iterator[Episode]:
        """Return the open episodes that opened or changed since `clean`, one by one: there may be very many."""
        rows = self._rows
        for k in np.flatnonzero(rows["opened"] & rows["dirty"]).tolist():
            yield self._episode(rows[k])

    def clean(self) -> None:
        """Say that what `changed` gave is written."""
        self._rows["dirty"] &= ~self._rows["opened"]

    @property
    def dirty(self) -> bool:
        """Whether `changed` has anything."""
        return bool((self._rows["opened"] & self._rows["dirty"]).any())

    def touch(self) -> None:
        """Let every open episode be written again: it was seen again."""
        self._rows["dirty"] |= self._rows["opened"]

    def unstoried(self) -> NDArray[Any]:
        """Return a copy of the rows that opened since this was asked last."""
        due = self._rows["opened"] & ~self._rows["storied"]
        self._rows["storied"] |= due
        rows: NDArray[Any] = self._rows[due]
        return rows

    def spaces_of(self, places: Collection[Place]) -> dict[Place, set[int]]:
        """Return the namespaces of the rows that have some addresses, ports and states."""
        sought = {*places}
        ports = np.array([p[4] << 16 | p[5] for p in sought], np.int64)
        own = self._rows[np.isin(self._rows["sport"].astype(np.int64) << 16 | self._rows["dport"], ports)]
        spaces: dict[Place, set[int]] = {}
        for row in own:
            if (place := place_of(row)) in sought:
                spaces.setdefault(place, set()).add(int(row["netns"]))
        return spaces

    def count_opened(self) -> Counter[tuple[str, str]]:
        """Return how many episodes have opened by (rule, workload), each once: once its cause is known, or it ended."""
        counts, self._late = self._late, Counter()
        rows = self._rows
        fresh = rows["opened"] & ~rows["counted"] & (rows["cause"] != 0)
        numbers, n = np.unique(rows["cause"][fresh], return_counts=True)
        for number, several in zip(numbers.tolist(), n.tolist(), strict=True):
            cause = self._causes[number]
            counts[cause.rule, cause.workload] += several
        rows["counted"] |= fresh
        return counts

    # ── what comes in ────────────────────────────────────────────────────────────────────────────────────

    def restore(self, episodes: Iterable[Episode], now: Instant) -> None:
        """Take up what was open when the agent ended; what is of another boot ended, nobody knows when or how.

        What is known already, because the history could be read late only, goes on with its earlier beginning.
        """
        hits = []
        place = {int(cookie): k for k, cookie in enumerate(self._rows["cookie"].tolist())}
        for e in episodes:
            if e.boot != self.boot:
                self._ended.append(_over(e, e.last, "unknown"))
                continue
            if (k := place.get(e.cookie)) is not None:
                self._join(k, e, now)
                continue
            row = np.zeros((), _ROW)
            src, dst = e.words[0:2], e.words[2:4]
            row["src"], row["dst"] = src, dst
            row["sport"], row["dport"], row["ifindex"] = e.words[4:7]
            row["cookie"], row["state"], row["netns"], row["held"] = e.cookie, e.state, e.netns, e.held
            row["first_boot"], row["first_wall"] = e.first
            row["last_boot"], row["last_wall"] = e.last
            row["latest"], row["earliest"] = e.latest_ns, e.earliest_ns
            row["opened"] = row["restored"] = row["missing"] = row["counted"] = row["storied"] = True
            row["cause"], row["other"], row["other_netns"] = (
                self._cause(e.cause),
                e.other.cookie,
                e.other.netns,
            )
            row["other_holder"] = self._name(e.other.holder)
            if e.other.translated is not None:
                self._translated[e.cookie] = e.other.translated
            hits.append(row)
        if hits:
            self._insert(np.array(hits, _ROW))

    def _join(self, k: int, e: Episode, now: Instant) -> None:
        """Let a row that was found anew go on where a stored episode was; another state or connection ended it."""
        row = self._rows[k]
        current = self._episode(row)
        known = (current.state, current.netns, current.words[:6]) == (e.state, e.netns, e.words[:6])
        if not known or bool(_again(row["earliest"], np.int64(e.latest_ns), now)):
            self._ended.append(_over(e, now, "unknown"))
            return
        row["first_boot"], row["first_wall"] = e.first
        row["latest"] = min(int(row["latest"]), e.latest_ns)
        row["earliest"] = min(max(int(row["earliest"]), e.earliest_ns), int(row["latest"]))
        row["opened"] = row["dirty"] = row["counted"] = True

    def walked(self, sockets: Sequence[SocketTable], spaces: Iterable[int], now: Instant) -> None:
        """Enter what a walk found.

        Args:
            sockets: all rows in closing states of these namespaces, in one table or several.
            spaces: the namespaces of which every row is there.
            now: when the walk began.
        """
        rows = _once([_rows_of(table, now, self.asleep_ns) for table in sockets])
        rows = rows[among(rows["state"], _CLOSING)]
        whole = np.array(sorted(spaces), np.uint32)
        # What was not there at the walk before began after that.
        before = np.array([self._walked.get(int(n), _UNKNOWN) for n in rows["netns"].tolist()], np.int64)
        known = self._seen(rows, now)
        own_rows = self._rows
        absent = among(own_rows["netns"], whole)
        if len(rows) and len(own_rows):
            absent &= ~among(own_rows["cookie"], rows["cookie"])
        own_rows["missing"] |= absent
        fresh = rows[~known]
        fresh["earliest"] = np.minimum(np.maximum(fresh["earliest"], before[~known]), fresh["latest"])
        beyond = Counter[int](self._add(fresh)["netns"].tolist())
        for space in {*whole.tolist(), *distinct(rows["netns"]).tolist()}:
            self._untracked.pop(space, None)
        self._untracked |= beyond
        for space in whole.tolist():
            if space in beyond:  # what is found later may have been there
                self._walked.pop(space, None)
            else:
                self._walked[space] = now.boot_ns
        self._open()
        self._recall(now)

    def answered(
        self,
        asked: NDArray[np.uint64],
        answers: SocketTable,
        unanswered: Iterable[int],
        now: Instant,
        judge: Judge,
    ) -> None:
        """Enter what exact questions were answered with.

        Args:
            asked: cookies of the connections that were asked for.
            answers: every socket and minisocket that has their addresses and ports, whatever its state.
            unanswered: namespaces that could not be asked.
            now: when.
            judge: says how those ended that are gone.
        """
        rows = _rows_of(answers, now, self.asleep_ns)
        known = self._seen(rows, now)
        fresh = rows[~known & among(rows["state"], _CLOSING)]
        own_rows = self._rows
        gone = among(own_rows["cookie"], asked) & ~among(own_rows["cookie"], rows["cookie"])
        gone &= ~among(own_rows["netns"], np.array(sorted(unanswered), np.uint32))
        self._end(gone, now, judge)
        self._add(fresh[~among(fresh["cookie"], self._rows["cookie"])])
        self._open()
        self._recall(now)

    def diagnosed(self, statement: Diagnosed, now: Instant, *, everything: bool) -> None:
        """Enter what a diagnosis says; of the other end what was said first, for later less of it is known.

        Args:
            statement: of the connections that it saw.
            now: when it began.
            everything: whether it saw every connection: then what it did not speak of is over, and needs no other
                diagnosis.
        """
        judged = self._enter(statement, now, np.ones(len(self._rows), np.bool_))
        self._statement = statement, now
        own_rows = self._rows
        if everything:
            own_rows["verdicts"][~judged] = 0
            own_rows["diagnosed"] |= own_rows["first_boot"] < now.boot_ns
        self._compact()

    def _enter(self, statement: Diagnosed, now: Instant, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Enter what a diagnosis says of some rows; return of which it speaks."""
        own_rows = self._rows
        judged = np.zeros(len(own_rows), np.bool_)
        order = np.argsort(statement.cookie, kind="stable")
        cookie = statement.cookie[order]
        if len(cookie) and len(own_rows):
            at = np.minimum(np.searchsorted(cookie, own_rows["cookie"]), len(cookie) - 1)
            hit = (
                (cookie[at] == own_rows["cookie"])
                & (statement.state[order][at] == own_rows["state"])
                & chosen
            )
            k, of = np.flatnonzero(hit), order[at[hit]]
            numbers = np.array([self._cause(cause) for cause in statement.causes], np.int32)[
                statement.cause[of]
            ]
            same = own_rows["diagnosed"][k] & (own_rows["cause"][k] == numbers)
            counts = own_rows["verdicts"][k]
            due = ~same | (counts == 0) | (now.boot_ns - own_rows["verdict_at"][k] >= self._verdict_ns)
            own_rows["verdicts"][k] = np.where(same, np.minimum(counts, 60_000) + due, 1)
            own_rows["verdict_at"][k] = np.where(due, now.boot_ns, own_rows["verdict_at"][k])
            judged[k] = True
            own_rows["dirty"][k] |= own_rows["cause"][k] != numbers
            own_rows["cause"][k] = numbers
            own_rows["diagnosed"][k] = True
            first = (own_rows["other"][k] == 0) & (statement.other[of] != 0)
            # What was said of one that is gone, of a connection that was there before this one, is said anew.
            gone = ~among(own_rows["other"][k], own_rows["cookie"])
            first |= gone & among(statement.other[of], own_rows["cookie"])
            first &= own_rows["other"][k] != statement.other[of]
            k, of = k[first], of[first]
            names = np.array([self._name(name) for name in statement.holders] or [0], np.int32)
            own_rows["other"][k], own_rows["other_netns"][k] = statement.other[of], statement.other_netns[of]
            own_rows["other_holder"][k] = names[statement.other_holder[of]]
            own_rows["dirty"][k] = True
        if statement.translated:
            new = {c: ends for c, ends in statement.translated.items() if c not in self._translated}
            known = among(own_rows["cookie"], np.array(sorted(new), np.uint64))
            own_rows["dirty"] |= known
            self._translated |= {c: new[c] for c in own_rows["cookie"][known].tolist()}
        return judged

    def _recall(self, now: Instant) -> None:
        """Let the last diagnosis speak of what was first seen after it began: it may have seen them.

        It has where they were in their state by then for sure, and are held as they were.
        """
        if self._statement is None:
            return
        statement, at = self._statement
        if now.boot_ns - at.boot_ns > _RECALLED_NS:
            self._statement = None
            return
        rows = self._rows
        later = rows["opened"] & rows["held"] & ~rows["diagnosed"] & (rows["cause"] == 0)
        later &= (rows["first_boot"] >= at.boot_ns) & (rows["latest"] < at.boot_ns)
        if later.any():
            self._enter(statement, at, later)

    @property
    def namespaces(self) -> set[int]:
        """Network namespaces that open episodes are in."""
        return set(distinct(self._rows["netns"][self._rows["opened"]]).tolist())

    def forget_namespaces(self, kept: Collection[int]) -> None:
        """End what was in namespaces that cannot be found any more, at its last sight: nobody knows how.

        That nothing leads to a namespace does not prove that its sockets are gone.

        Args:
            kept: namespaces that are there, or are searched for still.
        """
        own_rows = self._rows
        gone = ~among(own_rows["netns"], np.array(sorted(kept), np.uint32))
        self._end(gone, None, lambda *_: "unknown")
        self._walked = {n: at for n, at in self._walked.items() if n in kept}
        self._untracked = {n: several for n, several in self._untracked.items() if n in kept}

    def emptied(self, spaces: Iterable[int]) -> None:
        """Say that counters prove these namespaces to hold nothing: what there was no room for is gone."""
        for space in spaces:
            self._untracked.pop(space, None)

    # ── what is to be asked ──────────────────────────────────────────────────────────────────────────────

    def questions(self, most: int, seen_before_ns: int) -> NDArray[Any]:
        """Return rows to ask for: those that a walk missed, then what was seen longest ago.

        Args:
            most: how many.
            seen_before_ns: what was seen at this time of CLOCK_BOOTTIME or later need not be asked for.
        """
        rows = self._rows
        due = np.flatnonzero(rows["missing"] | (rows["last_boot"] < seen_before_ns))
        order = np.lexsort((rows["last_boot"][due], ~rows["missing"][due]))
        chosen: NDArray[Any] = rows[due[order[:most]]]
        return chosen

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────

    def _seen(self, rows: NDArray[Any], now: Instant) -> NDArray[np.bool_]:
        """Enter rows that are known already; end what turned into something else; return which were known."""
        own_rows = self._rows
        known = np.zeros(len(rows), np.bool_)
        if not len(own_rows) or not len(rows):
            return known
        at = np.minimum(np.searchsorted(own_rows["cookie"], rows["cookie"]), len(own_rows) - 1)
        hit = np.flatnonzero(own_rows["cookie"][at] == rows["cookie"])
        at, hits = at[hit], rows[hit]
        same = _same(own_rows[at], hits)
        stays = same & (own_rows["state"][at] == hits["state"])
        stays &= ~_again(hits["earliest"], own_rows["latest"][at], now)
        k, new = at[stays], hits[stays]
        own_rows["last_boot"][k], own_rows["last_wall"][k] = now
        own_rows["latest"][k] = np.minimum(own_rows["latest"][k], new["latest"])
        own_rows["earliest"][k] = np.maximum(own_rows["earliest"][k], new["earliest"])
        own_rows["earliest"][k] = np.minimum(own_rows["earliest"][k], own_rows["latest"][k])
        own_rows["missing"][k] = own_rows["restored"][k] = False
        own_rows["diagnosed"][k] &= own_rows["held"][k] == new["held"]
        own_rows["dirty"][k] |= own_rows["held"][k] != new["held"]
        own_rows["held"][k] = new["held"]
        known[hit[stays]] = True
        turned = ~stays
        if turned.any():
            old, new = at[turned], hits[turned]
            later = np.array(
                [
                    bool(ok) and int(b) in _LATER.get(int(a), frozenset())
                    for ok, a, b in zip(same[turned], own_rows["state"][old], new["state"], strict=True)
                ]
            )
            gone = np.zeros(len(own_rows), np.bool_)
            gone[old] = True
            closed = frozenset(own_rows["cookie"][old[later]].tolist())
            self._end(gone, now, lambda cookie, *_: "closed" if cookie in closed else "vanished")
        return known

    def _end(self, gone: NDArray[np.bool_], now: Instant | None, judge: Judge) -> None:
        """End rows now, or at the last sight of each."""
        if not gone.any():
            return
        for row in self._rows[gone & self._rows["opened"]]:
            cause = self._causes[int(row["cause"])]
            how = judge(int(row["cookie"]), int(row["netns"]), cause)
            if row["restored"] and how not in ("closed", "cleared"):
                how = "unknown"  # it may have ended while nobody looked
            episode = self._episode(row)
            self._ended.append(_over(episode, now or episode.last, how))
            if not row["counted"]:
                self._late[cause.rule, cause.workload] += 1
        if self._translated:
            for cookie in self._rows["cookie"][gone].tolist():
                self._translated.pop(cookie, None)
        self._rows = self._rows[~gone]

    def _add(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Take rows; return those that there is no room for."""
        room = max(0, self._most - len(self._rows))
        self._insert(rows[:room])
        return rows[room:]

    def _insert(self, rows: NDArray[Any]) -> None:
        if len(rows):
            together = np.concatenate([self._rows, rows])
            self._rows = together[np.argsort(together["cookie"], kind="stable")]

    def _open(self) -> None:
        """Open what has lasted for the grace."""
        rows = self._rows
        ripe = ~rows["opened"] & ~rows["missing"] & (rows["last_boot"] - rows["latest"] >= self._grace)
        if not ripe.any():
            return
        rows["opened"] |= ripe
        rows["dirty"] |= ripe

    def _cause(self, cause: Cause) -> int:
        number = self._number.get(cause)
        if number is None:
            number = self._number[cause] = len(self._causes)
            self._causes.append(cause)
        return number

    def rename(self, called: Callable[[str], str]) -> None:
        """Let pods that had no name when they were diagnosed have the one that is known now; verdicts stay.

        Args:
            called: the name of a workload → what it is called now.
        """
        numbers = np.arange(len(self._causes), dtype=np.int32)
        for k, cause in enumerate(list(self._causes)):
            if cause.pod and (name := called(cause.workload)) != cause.workload:
                numbers[k] = self._cause(replace(cause, workload=name))
        new = numbers[self._rows["cause"]]
        self._rows["dirty"] |= self._rows["cause"] != new
        self._rows["cause"] = new

    def _name(self, name: str) -> int:
        number = self._name_number.get(name)
        if number is None:
            number = self._name_number[name] = len(self._names)
            self._names.append(name)
        return number

    def _compact(self) -> None:
        """Forget causes that nothing refers to: holders come and go."""
        used = distinct(self._rows["other_holder"])
        if len(self._names) > 2 * len(used) + 64:
            names = ["", *(self._names[k] for k in used.tolist() if k)]
            self._name_number = {name: k for k, name in enumerate(names)}
            renumbered = np.array([self._name_number.get(name, 0) for name in self._names], np.int32)
            self._rows["other_holder"] = renumbered[self._rows["other_holder"]]
            self._names = names
        used = distinct(self._rows["cause"])
        if len(self._causes) <= 2 * len(used) + 64:
            return
        kept = [UNDIAGNOSED, *(self._causes[k] for k in used.tolist() if k)]
        self._number = {cause: k for k, cause in enumerate(kept)}
        renumbered = np.array([self._number.get(cause, 0) for cause in self._causes], np.int32)
        self._rows["cause"] = renumbered[self._rows["cause"]]
        self._causes = kept

    def _episode(self, row: Any) -> Episode:  # noqa: ANN401 - one row of `_ROW`
        (src_high, src_low), (dst_high, dst_low) = row["src"].tolist(), row["dst"].tolist()
        sport, dport, cookie = int(row["sport"]), int(row["dport"]), int(row["cookie"])
        return Episode(
            boot=self.boot,
            cookie=cookie,
            state=int(row["state"]),
            netns=int(row["netns"]),
            local=endpoint_text(src_high, src_low, sport),
            peer=endpoint_text(dst_high, dst_low, dport),
            first=Instant(int(row["first_boot"]), int(row["first_wall"])),
            last=Instant(int(row["last_boot"]), int(row["last_wall"])),
            latest_ns=int(row["latest"]),
            earliest_ns=int(row["earliest"]),
            held=bool(row["held"]),
            cause=self._causes[int(row["cause"])],
            other=Other(
                int(row["other"]),
                int(row["other_netns"]),
                self._names[int(row["other_holder"])],
                self._translated.get(cookie),
            ),
            words=(src_high, src_low, dst_high, dst_low, sport, dport, int(row["ifindex"])),
        )


def _over(episode: Episode, now: Instant, how: How) -> Episode:
    return replace(episode, ended=now, how=how)
