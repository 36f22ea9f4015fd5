"""The flight recorder: the last changes of state of connections that close, in bounded memory.

Theory of operation. ``sock:inet_sock_set_state`` fires at every change; a filter in the kernel lets through the
entries into closing states and the ends of what was in one (`FILTERS`). Nearly all of them are of connections that
close as they should, within milliseconds. `Ring.sift` drops those whose whole close lies in one batch, unless a
minisocket may be left of them: an episode takes fifteen seconds to open, so nobody will ask. What stays goes into one
array (`Ring.append`), and when that is full, first goes what was told, then what has been over for a while, then the
oldest.

The event names a socket by its address in the kernel, and knows neither namespace nor cookie. So the story of an
episode (`Ring.find`) is found by addresses and ports, by the state, and by the time at which the state was entered,
which must lie where the episode's own bounds say. If two sockets fit, no story is told: they are in two namespaces.

The surprise: who changed a state is known only where no packet can have done it (`BY_TASK`). In every other record the
task is whoever the processor was at when the packet came.

How an episode ended (`verdict`) is said only where one thing alone can have happened. A change to CLOSE without a
reset is no proof of an orderly close: a timer that gives up looks the same, but for a held socket in FIN_WAIT2, which
no timer ends without a reset.

This knows no clock: times are CLOCK_MONOTONIC, as the trace has them, and what the machine has slept is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.agent.episode_values import How
from finwait.table import transitions as tr
from finwait.uapi import tcp, tracepoint

__all__ = [
    "BY_TASK",
    "EVENTS",
    "FILTERS",
    "PACKET",
    "RESET_EVENTS",
    "ROW",
    "STATE_EVENT",
    "Found",
    "Governor",
    "Ring",
    "StoryQuery",
    "by_task",
    "decode",
    "packet_rows",
    "verdict",
]

STATE_EVENT: Final = "sock/inet_sock_set_state"
RESET_EVENTS: Final = ("tcp/tcp_receive_reset", "tcp/tcp_send_reset")
EVENTS: Final = (STATE_EVENT, *RESET_EVENTS)


def _closing(name: str) -> str:
    """Return a filter of the kernel's: that a state is one of a connection that closes (CLOSE is none)."""
    return f"{name} > 3 && {name} < 12 && {name} != 7 && {name} != 10"


FILTERS: Final[Mapping[str, str]] = {
    # FIN_WAIT1 … CLOSING of net/tcp_states.h without LISTEN; CLOSE only as the end of one of these.
    STATE_EVENT: f"protocol == 6 && (({_closing('newstate')}) || (newstate == 7 && {_closing('oldstate')}))",
    # A scan of ports is answered with resets of no socket. tcp_close() sets CLOSE before it sends one.
    "tcp/tcp_send_reset": "skaddr != 0 && state > 3 && state < 12 && state != 6 && state != 10",
}
"""Event → what the kernel hands out of it. A reset that is received names no state, and is not filtered."""

PACKET: Final = 16
"""``kind`` of a packet's header; the others are of `finwait.table.transitions`."""

ROW: Final = np.dtype(
    [
        ("time", "i8"), ("sk", "u8"), ("src", "u8", (2,)), ("dst", "u8", (2,)), ("sport", "u2"), ("dport", "u2"),
        ("kind", "u1"), ("old", "u1"), ("new", "u1"), ("reset", "u1"), ("by_task", "?"), ("told", "?"),
        ("reason", "i2"), ("pid", "i4"), ("who", "u4"), ("netns", "u4"), ("late_ms", "u4"), ("cookie", "u8"),
        ("asleep", "i8"),
    ]
)  # fmt: skip
"""One change of state, or one packet. ``time`` is CLOCK_MONOTONIC and ``asleep`` what CLOCK_BOOTTIME is ahead of it;
if the machine slept since the drain before, it may be later by ``late_ms``. ``who`` numbers the name of a task. Of a
packet ``old`` is its flags, and ``by_task`` says whether this host sent it; its sequence numbers are not kept, for
who knows them can end a connection."""

_BYTES: Final = np.dtype((np.void, ROW.itemsize))
_RESET: Final = np.dtype([("time", "i8"), ("sk", "u8"), ("kind", "u1"), ("reason", "i2"), ("cookie", "u8")])
_IN_INTERRUPT: Final = 0x08 | 0x10 | 0x40  # TRACE_FLAG_HARDIRQ, _SOFTIRQ, _NMI of linux/trace_events.h
_RESET_ENDS_NS: Final = 100_000_000
"""A reset and the end that it makes are in one call chain; a preempted task may be late."""
_SLACK_NS: Final = 1_000_000_000
"""By so much the times of episodes and of the trace may contradict each other: the kernel's clocks count in jiffies."""
_OVER_NS: Final = 300_000_000_000
"""What has been over for longer nobody asks for any more: a minisocket in FIN_WAIT2 lasts for a minute."""
_NONE: Final = -1

BY_TASK: Final = frozenset(
    {
        (tcp.ESTABLISHED, tcp.FIN_WAIT1), (tcp.SYN_RECV, tcp.FIN_WAIT1), (tcp.CLOSE_WAIT, tcp.LAST_ACK),
        (tcp.FIN_WAIT1, tcp.FIN_WAIT1), (tcp.FIN_WAIT2, tcp.FIN_WAIT2),
    }
)  # fmt: skip
"""Changes that no packet and no timer makes: close() or shutdown() by the task that the record names
(tcp_close_state)."""

_LATER: Final[Mapping[int, frozenset[int]]] = {
    tcp.FIN_WAIT1: frozenset({tcp.FIN_WAIT2, tcp.CLOSING, tcp.TIME_WAIT}),
    tcp.FIN_WAIT2: frozenset({tcp.TIME_WAIT}),
    tcp.CLOSING: frozenset({tcp.TIME_WAIT}),
    tcp.CLOSE_WAIT: frozenset({tcp.LAST_ACK}),
}


# ── records → rows ───────────────────────────────────────────────────────────────────────────────────────


def decode(
    records: tracepoint.Records,
    formats: Mapping[int, tracepoint.EventFormat],
    *,
    byteorder: tracepoint.ByteOrder,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Turn records of the trace into rows and resets, both in the order of time.

    Returns:
        Changes of state as rows of `ROW`, and resets (time, sk, kind, reason, cookie).

    Raises:
        DecodeError: a record is shorter than its own format says, or a format lacks a needed field.
    """
    rows, resets = np.zeros(0, ROW), np.zeros(0, _RESET)
    if not len(records) or not formats:
        return rows, resets
    kinds = {"inet_sock_set_state": tr.TRANSITION, "tcp_receive_reset": tr.RECEIVE_RESET,
             "tcp_send_reset": tr.SEND_RESET}  # fmt: skip
    common = next(iter(formats.values()))
    type_of = tracepoint.cells(records, common, ("common_type",), byteorder=byteorder)["common_type"]
    several = []
    for number, form in formats.items():
        mask = type_of == number
        if form.name not in kinds or not mask.any():
            continue
        batch = records if mask.all() else records.where(mask)
        if form.name == "inet_sock_set_state":
            rows = _transitions(batch, form, byteorder)
        else:
            several.append(_resets(batch, form, kinds[form.name], byteorder))
    if several:
        resets = np.concatenate(several)
    return (
        _taken(rows, np.argsort(rows["time"], kind="stable")),
        resets[np.argsort(resets["time"], kind="stable")],
    )


def _taken(rows: NDArray[Any], index: NDArray[Any]) -> NDArray[Any]:
    """Return rows by index or mask: bytes at once, for numpy copies structured rows field by field."""
    places = np.flatnonzero(index) if index.dtype == np.bool_ else index
    taken: NDArray[Any] = np.take(rows.view(_BYTES), places).view(ROW)
    return taken


def _transitions(
    records: tracepoint.Records, form: tracepoint.EventFormat, byteorder: tracepoint.ByteOrder
) -> NDArray[Any]:
    names = (
        "common_flags",
        "common_pid",
        "skaddr",
        "oldstate",
        "newstate",
        "sport",
        "dport",
        "saddr_v6",
        "daddr_v6",
    )
    cells = tracepoint.cells(records, form, names, byteorder=byteorder)
    rows = np.zeros(len(cells), ROW)
    rows["time"], rows["sk"] = records.time.astype(np.int64), cells["skaddr"]
    # Of an IPv4 socket these hold the mapped address (trace_inet_sock_set_state of include/trace/events/sock.h).
    for side, field in (("src", "saddr_v6"), ("dst", "daddr_v6")):
        rows[side] = np.ascontiguousarray(cells[field]).view(">u8").reshape(-1, 2)
    rows["sport"], rows["dport"] = cells["sport"], cells["dport"]
    rows["kind"], rows["old"], rows["new"] = tr.TRANSITION, cells["oldstate"], cells["newstate"]
    rows["by_task"] = (cells["common_flags"] & _IN_INTERRUPT) == 0
    rows["pid"], rows["reason"] = cells["common_pid"], _NONE
    return rows


def _resets(
    records: tracepoint.Records, form: tracepoint.EventFormat, kind: int, byteorder: tracepoint.ByteOrder
) -> NDArray[Any]:
    more = tuple(name for name in ("reason", "sock_cookie") if name in form.fields)
    cells = tracepoint.cells(records, form, ("skaddr", *more), byteorder=byteorder)
    resets = np.zeros(len(cells), _RESET)
    resets["time"], resets["sk"], resets["kind"] = records.time.astype(np.int64), cells["skaddr"], kind
    resets["reason"] = np.minimum(cells["reason"], 1000) if "reason" in more else _NONE
    if "sock_cookie" in more:
        resets["cookie"] = cells["sock_cookie"]
    return resets


def packet_rows(segments: Sequence[tuple[int, int, Any]]) -> NDArray[Any]:
    """Return headers of packets as rows, our end first.

    Args:
        segments: CLOCK_MONOTONIC, inode of the network namespace, and the `finwait.uapi.segment.Segment` of each.
    """
    rows = np.zeros(len(segments), ROW)
    for row, (time_ns, netns, segment) in zip(rows, segments, strict=True):
        ends = ((segment.src, segment.sport), (segment.dst, segment.dport))
        (src, sport), (dst, dport) = ends if segment.outgoing else ends[::-1]
        row["time"], row["netns"], row["kind"], row["old"] = time_ns, netns, PACKET, segment.flags & 0xFF
        row["src"], row["dst"], row["sport"], row["dport"] = src, dst, sport, dport
        row["by_task"], row["reason"] = bool(segment.outgoing), _NONE
    return rows


# ── the ring ─────────────────────────────────────────────────────────────────────────────────────────────


class StoryQuery(Struct, frozen=True):
    """Which connection in which state, and when it can have entered and left that; all times are CLOCK_BOOTTIME, ns."""

    words: tuple[int, int, int, int, int, int]
    """Both addresses as two words each, and both ports."""
    netns: int
    state: int
    earliest_ns: int
    """It was not in the state before; −1 where that is not known."""
    latest_ns: int
    """It was in the state by then."""
    seen_ns: int
    """It was in the state then, for the last time."""
    ended_ns: int = _NONE
    """By then it had left the state; −1 while it has not."""


class Found(Struct, frozen=True):
    """What the ring holds of a connection."""

    rows: NDArray[Any]
    """Of `ROW`, in the order of time; empty where nothing fits."""
    entered: bool = False
    """Whether the entry into the state is among them."""
    ambiguous: bool = False
    """Whether several sockets fit: then there are no rows."""


_NOTHING: Final = Found(np.zeros(0, ROW))


class Ring:
    """The last rows.

    Args:
        most: rows that are kept, of 92 bytes each.

    Attributes:
        passed: connections that closed within one batch, and were dropped.
        dropped: rows that were dropped for want of room, though their connection was not over and nobody had asked.
    """

    def __init__(self, most: int = 65_536) -> None:
        self._most = max(16, most)
        self._rows = np.zeros(0, ROW)
        self._n = 0
        self._held: tuple[NDArray[Any], NDArray[Any]] = np.zeros(0, ROW), np.zeros(0, _RESET)
        self.passed = 0
        self.dropped = 0

    def __len__(self) -> int:
        return self._n

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take."""
        return int(self._rows.nbytes)

    def sift(self, rows: NDArray[Any], resets: NDArray[Any], until_ns: int) -> NDArray[Any]:
        """Return those of some rows that are worth keeping, with the resets that ended them.

        Args:
            rows: of a drain, as `decode` returns them.
            resets: as well.
            until_ns: what is later than this is kept back until the next call: its reset may be still to come.
        """
        if len(self._held[0]):
            rows = np.concatenate([self._held[0].view(_BYTES), rows.view(_BYTES)]).view(ROW)
        if (np.diff(rows["time"]) < 0).any():
            rows = _taken(rows, np.argsort(rows["time"], kind="stable"))
        resets = np.concatenate([self._held[1], resets])
        early = int(np.searchsorted(rows["time"], until_ns, side="right"))
        early_resets = resets["time"] <= until_ns
        self._held = rows[early:].copy(), resets[~early_resets]
        rows, resets = rows[:early], resets[early_resets]
        if not early:
            return rows
        order = np.lexsort((rows["time"], rows["sk"]))
        _apply(rows, order[rows["new"][order] == tcp.CLOSE], resets)
        first = _begins(rows, order)
        begun, over = order[first], order[np.append(first[1:], True)]
        whole = ~_is_closing(rows["old"][begun]) & (rows["new"][over] == tcp.CLOSE)
        # Of FIN_WAIT2 a minisocket may stay in the same state for a minute.
        passed = whole & ((rows["old"][over] != tcp.FIN_WAIT2) | (rows["reset"][over] != 0))
        self.passed += int(passed.sum())
        return _taken(rows, np.sort(order[~passed[np.cumsum(first) - 1]]))

    def append(self, rows: NDArray[Any]) -> None:
        """Keep rows; where there is no room, what is least worth goes."""
        rows = rows[-self._most :]
        if self._n + len(rows) > self._most:
            self._make_room(len(rows), int(rows["time"][-1]))
        need = self._n + len(rows)
        if need > len(self._rows):
            grown = np.zeros(min(self._most, max(1024, 2 * need)), ROW)
            grown.view(_BYTES)[: self._n] = self._rows.view(_BYTES)[: self._n]
            self._rows = grown
        self._rows.view(_BYTES)[self._n : need] = rows.view(_BYTES)
        self._n = need

    def _make_room(self, coming: int, now_ns: int) -> None:
        """Let a quarter of the room be free: what was told goes, and what is long over, then the oldest."""
        rows = self._rows[: self._n]
        target = max(0, min(self._most - coming, self._most * 3 // 4))
        order = np.lexsort((rows["time"], rows["sk"]))
        first = _begins(rows, order)
        life = np.cumsum(first) - 1
        ends = order[np.append(first[1:], True)[: len(order)]]
        closed = rows["new"][ends] == tcp.CLOSE
        over = closed & (now_ns - rows["time"][ends] > _OVER_NS)
        spare = np.zeros(len(rows), np.bool_)
        spare[order] = over[life]
        spare |= rows["told"]
        ended = np.zeros(len(rows), np.bool_)
        ended[order] = closed[life]
        surplus = int((~spare).sum()) - target
        if surplus > 0:  # what is over first: only of a minisocket anybody may ask
            oldest = np.concatenate([np.flatnonzero(~spare & ended), np.flatnonzero(~spare & ~ended)])
            spare[oldest[:surplus]] = True
            self.dropped += surplus
        kept = _taken(rows, ~spare)
        self._rows.view(_BYTES)[: len(kept)] = kept.view(_BYTES)
        self._n = len(kept)

    def clear(self) -> None:
        """Forget everything."""
        self._rows, self._n = np.zeros(0, ROW), 0

    def known(self, ports: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return for which pairs of ports (ours in the high half) there are rows."""
        rows = self._rows[: self._n]
        mask: NDArray[np.bool_] = np.isin(ports, _ports(rows))
        return mask

    def find(self, queries: Sequence[StoryQuery]) -> list[Found]:
        """Return what there is of connections, one for each query; the rows count as told."""
        rows = self._rows[: self._n]
        asked = np.array([q.words[4] << 16 | q.words[5] for q in queries], np.uint32)
        ports = _ports(rows)
        beside = np.isin(ports, asked)
        # What else was at the address of a socket says where one life ends and another begins.
        near = np.flatnonzero(beside | np.isin(rows["sk"], np.unique(rows["sk"][beside])))
        few, few_ports = _taken(rows, near), ports[near]
        lives = _lives(few)
        result = []
        for query, number in zip(queries, asked, strict=True):
            w = query.words
            same = (
                (few_ports == number)
                & (few["src"] == w[0:2]).all(axis=1)
                & (few["dst"] == w[2:4]).all(axis=1)
            )
            at = np.flatnonzero(same)
            story, of = _found(_taken(few, at), lives[at], query) if len(at) else (_NOTHING, at)
            if len(of):
                rows["told"][near[at[of]]] = True
            result.append(story)
        return result


def _ports(rows: NDArray[Any]) -> NDArray[np.uint32]:
    pairs: NDArray[np.uint32] = rows["sport"].astype(np.uint32) << np.uint32(16) | rows["dport"]
    return pairs


def _is_closing(states: NDArray[Any]) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = (tcp.CLOSING_STATES >> states.astype(np.int64) & 1).astype(np.bool_)
    return mask


def _begins(rows: NDArray[Any], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return where another life begins, of rows by socket and then by time.

    The address of a socket is used again. So a life ends with CLOSE, and where the next state does not follow.

    Args:
        rows: of `ROW`.
        order: their places, by socket and then by time.
    """
    first = np.ones(len(order), np.bool_)
    old, new = rows["old"][order], rows["new"][order]
    first[1:] = (new[:-1] == tcp.CLOSE) | (new[:-1] != old[1:])
    columns = [rows[name] for name in ("sk", "sport", "dport", "kind")]
    columns += [rows[side][:, word] for side in ("src", "dst") for word in (0, 1)]
    for column in columns:
        ordered = column[order]
        first[1:] |= ordered[:-1] != ordered[1:]
    return first


def _apply(rows: NDArray[Any], ends: NDArray[np.int64], resets: NDArray[Any]) -> None:
    """Write down which ends a reset made.

    Args:
        rows: of `ROW`.
        ends: the places of changes to CLOSE, by socket and then by time.
        resets: as `decode` returns them.
    """
    if not len(resets) or not len(ends):
        return
    sk = rows["sk"][ends]
    resets = resets[np.isin(resets["sk"], sk)]
    low = np.searchsorted(sk, resets["sk"], side="left")
    high = np.searchsorted(sk, resets["sk"], side="right")
    for reset, begin, end in zip(resets, low.tolist(), high.tolist(), strict=True):
        times = rows["time"][ends[begin:end]]
        nearest = int(np.abs(times - reset["time"]).argmin())
        if abs(int(times[nearest]) - int(reset["time"])) <= _RESET_ENDS_NS:
            k = ends[begin + nearest]
            for name, field in (("reset", "kind"), ("reason", "reason"), ("cookie", "cookie")):
                rows[name][k] = reset[field]


# ── the story of one connection ──────────────────────────────────────────────────────────────────────────


def _lives(rows: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of the life that each row is of; −1 of a packet."""
    numbers = np.full(len(rows), _NONE, np.int64)
    trace = np.flatnonzero(rows["kind"] == tr.TRANSITION)
    order = trace[np.lexsort((rows["time"][trace], rows["sk"][trace]))]
    numbers[order] = np.cumsum(_begins(rows, order)) if len(order) else numbers[order]
    return numbers


def _found(
    rows: NDArray[Any], lives: NDArray[np.int64], query: StoryQuery
) -> tuple[Found, NDArray[np.int64]]:
    """Return what rows of the right addresses and ports tell, and which of them it is."""
    fits: list[tuple[NDArray[np.int64], bool]] = []
    for number in np.unique(lives[lives >= 0]).tolist():
        of = np.flatnonzero(lives == number)
        of = of[np.argsort(rows["time"][of], kind="stable")]
        entered = _fits(_taken(rows, of), query)
        if entered is not None:
            fits.append((of, entered))
    if len(fits) > 1:
        return Found(np.zeros(0, ROW), ambiguous=True), lives[:0]
    packets = np.flatnonzero((rows["kind"] == PACKET) & (rows["netns"] == query.netns))
    if not fits and not len(packets):
        return _NOTHING, lives[:0]
    of, entered = fits[0] if fits else (lives[:0], False)
    of = np.concatenate([of, packets])
    of = of[np.argsort(rows["time"][of], kind="stable")]
    return Found(rows[of].copy(), entered), of


def _fits(life: NDArray[Any], query: StoryQuery) -> bool | None:
    """Return whether a life holds the entry into the state of a query; None where it is another's."""
    early = life["time"] + life["asleep"]
    late = early + life["late_ms"].astype(np.int64) * 1_000_000
    enters = np.flatnonzero((life["new"] == query.state) & (life["old"] != query.state))
    leaves = np.flatnonzero((life["old"] == query.state) & (life["new"] != query.state))
    if not len(enters) and not len(leaves):
        return None
    if len(enters):
        k = enters[-1]
        if early[k] > query.latest_ns + _SLACK_NS:
            return None
        if query.earliest_ns >= 0 and late[k] < query.earliest_ns - _SLACK_NS:
            return None
    if len(leaves):
        k = leaves[0]
        lives_on = query.state == tcp.FIN_WAIT2 and life["new"][k] == tcp.CLOSE and not life["reset"][k]
        if late[k] < query.seen_ns - _SLACK_NS and not lives_on:
            return None
        if query.ended_ns >= 0 and early[k] > query.ended_ns + _SLACK_NS:
            return None
    return bool(len(enters))


def verdict(rows: NDArray[Any], state: int, *, held: bool, seen_ns: int, resets: bool) -> How | None:
    """Return how a connection left a state; None where the records do not prove it.

    Args:
        rows: what was found of it.
        state: the state.
        held: whether a program held it when it was seen last.
        seen_ns: CLOCK_BOOTTIME when it was seen in the state for the last time.
        resets: whether resets are recorded: only then does a missing one say something.
    """
    rows = rows[rows["kind"] == tr.TRANSITION]
    leaves = np.flatnonzero((rows["old"] == state) & (rows["new"] != state))
    if not len(leaves):
        return None
    row = rows[leaves[0]]
    if int(row["new"]) in _LATER.get(state, frozenset()):
        return "closed"
    if int(row["new"]) != tcp.CLOSE:
        return None
    if row["reset"]:
        return "reset"
    let_go = ((rows["old"] == tcp.FIN_WAIT2) & (rows["new"] == tcp.FIN_WAIT2)).any()
    later = int(row["time"]) + int(row["asleep"]) >= seen_ns - _SLACK_NS  # else a minisocket went on
    if state == tcp.FIN_WAIT2 and held and later and resets and not row["by_task"] and not let_go:
        return "closed"  # the peer's FIN: no timer ends a held one but with a reset
    return None


# ── when it may record ───────────────────────────────────────────────────────────────────────────────────


class Governor:
    """Says when recording costs too much, and when it may begin again. Times are seconds of any steady clock.

    Events and processor time are each paid from a bucket that five seconds at the limit empty: a burst passes, a storm
    does not. Once off, short probes count events; it goes on again after two in a row that are below half of the limit,
    and each that is not doubles the pause.

    Args:
        rate: events a second.
        share: of one processor that reading them may take.

    Attributes:
        off: why it is off: ``rate`` or ``cost``; empty while it is on.
        offs: how often it went off.
        rate: events a second, as of the last drain or probe.
    """

    BURST_S: Final = 5.0
    PAUSE_S: Final = 10.0
    PAUSE_MOST_S: Final = 60.0

    def __init__(self, rate: float, share: float) -> None:
        self._limit = rate
        self._share = share
        self._events = self.BURST_S * rate
        self._cpu_s = self.BURST_S * share + 0.05
        self._at: float | None = None
        self._each_s = 0.0
        self._counted, self._span_s = 0, 0.0
        self._calm = 0
        self._pause_s = self.PAUSE_S
        self._probe_at = float("-inf")
        self.off = ""
        self.offs = 0
        self.rate = 0.0

    def drained(self, now_s: float, events: int, cpu_s: float) -> bool:
        """Take in what a drain brought and cost; return whether to go on."""
        if self.off:
            return False
        passed = max(0.0, now_s - self._at) if self._at is not None else 0.0
        self._at = now_s
        self._counted, self._span_s = self._counted + events, self._span_s + passed
        if self._span_s >= 1.0:
            self.rate, self._counted, self._span_s = self._counted / self._span_s, 0, 0.0
        if events:
            self._each_s = 0.5 * self._each_s + 0.5 * cpu_s / events
        most = self.BURST_S * self._limit, self.BURST_S * self._share + 0.05
        self._events = min(most[0], self._events + passed * self._limit) - events
        self._cpu_s = min(most[1], self._cpu_s + passed * self._share) - cpu_s
        if self._events >= 0 and self._cpu_s >= 0:
            return True
        self.off = "rate" if self._events < 0 else "cost"
        self.rate = max(self.rate, events / max(passed, 1e-3))
        self.offs += 1
        self._calm, self._pause_s = 0, self.PAUSE_S
        self._probe_at = now_s + self._pause_s
        return False

    def probe_in_s(self, now_s: float) -> float:
        """Return in how many seconds the next probe is due."""
        return max(0.0, self._probe_at - now_s)

    def probed(self, now_s: float, events: int, lasted_s: float) -> bool:
        """Take in what a probe counted; return whether to record again."""
        self.rate = events / max(lasted_s, 1e-3)
        dear = self.off == "cost" and self.rate * self._each_s > self._share / 2
        if self.rate > self._limit / 2 or dear:
            self._calm, self._pause_s = 0, min(self.PAUSE_MOST_S, 2 * self._pause_s)
        else:
            self._calm, self._pause_s = self._calm + 1, self.PAUSE_S
        self._probe_at = now_s + self._pause_s
        if self._calm < 2:
            return False
        self.off, self._at = "", now_s
        self._events, self._cpu_s = self.BURST_S * self._limit, self.BURST_S * self._share + 0.05
        return True


def by_task(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which changes the task made that the record names."""
    pairs = rows["old"].astype(np.int64) << 8 | rows["new"]
    alone = np.isin(pairs, [old << 8 | new for old, new in BY_TASK])
    aborts = (rows["new"] == tcp.CLOSE) & (rows["reset"] == tr.SEND_RESET)
    mask: NDArray[np.bool_] = (rows["kind"] == tr.TRANSITION) & rows["by_task"] & (alone | aborts)
    return mask
