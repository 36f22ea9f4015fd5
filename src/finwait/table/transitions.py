"""State transitions as columns, and the joins that make the story right where the tracepoint is not.

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

What this cannot see: the end of a minisocket (no tracepoint fires: only its row disappears), which of two
namespaces a connection is in when both hold the same four numbers, and any age across lost records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.errors import DecodeError
from finwait.table.schema import Column, Mask, Schema
from finwait.table.sockets import MAPPED, SocketTable
from finwait.uapi import tcp, tracepoint

__all__ = [
    "DESTROY",
    "FINE",
    "LOOKED_UP",
    "NEVER",
    "POLLED",
    "RECEIVE_RESET",
    "RETRANSMIT",
    "SCHEMA",
    "SEND_RESET",
    "STACK",
    "TRANSITION",
    "USER_STACK",
    "Follower",
    "Look",
    "TransitionTable",
    "changes",
    "coarse",
    "connection_key",
    "decode",
    "fine_histogram",
    "fine_median_ns",
    "stacks",
]

TRANSITION, DESTROY, RECEIVE_RESET, SEND_RESET, RETRANSMIT, STACK, USER_STACK, POLLED = range(8)
"""What a row tells of: the column ``kind``."""

_EVENTS: Final = {
    "inet_sock_set_state": TRANSITION,
    "tcp_destroy_sock": DESTROY,
    "tcp_receive_reset": RECEIVE_RESET,
    "tcp_send_reset": SEND_RESET,
    "tcp_retransmit_skb": RETRANSMIT,
    "kernel_stack": STACK,
    "user_stack": USER_STACK,
}
_IN_INTERRUPT: Final = 0x08 | 0x10 | 0x40  # TRACE_FLAG_HARDIRQ, _SOFTIRQ, _NMI of linux/trace_events.h
_AF_INET: Final = 2
_AF_INET6: Final = 10
NEVER: Final = (1 << 63) - 1
"""When a life ends that has not."""
_RESET_ENDS_NS: Final = 100_000_000  # the two are in one call chain; a preempted task may be late

SCHEMA: Final = Schema(
    [
        Column("kind", np.uint8, "the event", "0 transition, 1 destroyed, 2 reset received, 3 reset sent, "
               "4 retransmission, 7 seen by polling."),
        Column("time_ns", np.int64, "the ring buffer", "CLOCK_MONOTONIC of the event (or of the look)."),
        Column("after_ns", np.int64, "the look before", "Polled rows: it happened after this time.", (1,)),
        Column("cpu", np.int64, "per_cpu/cpuN", "CPU that it happened on."),
        Column("sk", np.uint64, "skaddr", "Address of the socket in the kernel; used again after its end."),
        Column("life", np.int64, "finwait", "Number of the socket's life since the start; -1 of no socket."),
        Column("oldstate", np.uint8, "oldstate", "State before; 0 when it was not there."),
        Column("newstate", np.uint8, "newstate", "State after; 0 when it is not there any more."),
        Column("family", np.uint16, "family", "2 for IPv4, 10 for IPv6 (IPv4-mapped included)."),
        Column("sport", np.uint16, "sport", "Local port; 0 while the kernel has not chosen one."),
        Column("dport", np.uint16, "dport", "Remote port."),
        Column("src", np.uint64, "saddr_v6", "Local address, high and low 64 bits.", None, 0, 2),
        Column("dst", np.uint64, "daddr_v6", "Remote address, high and low 64 bits.", None, 0, 2),
        Column("pid", np.int32, "common_pid", "Task on the CPU; whose doing this was only if `interrupt` is 0."),
        Column("interrupt", np.bool_, "common_flags", "Whether an interrupt merely borrowed the task."),
        Column("reason", np.int32, "reason", "Why a reset was sent (enum sk_rst_reason).", (1,)),
        Column("in_old_ns", np.int64, "finwait", "Time spent in the old state, ns.", (1,)),
        Column("since_ns", np.int64, "finwait", "When the old state began, CLOCK_MONOTONIC.", (1,)),
        Column("netns", np.uint32, "the look", "Inode of the network namespace.", (1,)),
        Column("cookie", np.uint64, "the look or sock_cookie", "Identity of the socket.", (1,)),
        Column("inode", np.uint32, "the look", "Inode of the struct socket while one referred to it.", (1,)),
        Column("uid", np.uint32, "the look", "User that made the socket.", (1,)),
        Column("cgroup_id", np.uint64, "the look", "Cgroup that it was made in.", (1,)),
        Column("ifindex", np.uint32, "the look", "Interface that it is bound to; 0 for any.", (1,)),
        Column("over", np.bool_, "finwait", "Whether the connection had ended when the row was handed out."),
        Column("became", np.uint8, "the look", "State of the minisocket that took over.", (1,)),
        Column("expires_ms", np.uint32, "the look", "Time left to that minisocket, counted from the row.", (1,)),
        Column("reset", np.uint8, "tcp_receive_reset, tcp_send_reset",
               "2 when a reset from the peer ended this life, 3 when one of ours did.", (1,)),
    ]
)  # fmt: skip


LOOKED_UP: Final = ("netns", "cookie", "inode", "uid", "cgroup_id", "ifindex")
"""Columns that a look adds to what the event tells."""


class TransitionTable:
    """Transitions as columns; immutable, and missing is a mask as in `SocketTable`."""

    __slots__ = ("_cells", "_length", "_present")
    schema = SCHEMA

    def __init__(self, cells: dict[str, NDArray[Any]], present: dict[str, Mask], length: int) -> None:
        self._cells = cells
        self._present = present
        self._length = length

    @classmethod
    def from_columns(
        cls, columns: Mapping[str, Sequence[Any] | NDArray[Any]], present: Mapping[str, Mask] | None = None
    ) -> TransitionTable:
        """Build a table; a nullable column that is not given is missing in every row.

        Raises:
            ValueError: an unknown column, or columns of unequal length.
        """
        lengths = {len(v) for v in columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"columns differ in length: {sorted(lengths)}")
        unknown = set(columns) - set(SCHEMA.names)
        if unknown:
            raise ValueError(f"no such column: {', '.join(sorted(unknown))}")
        n = lengths.pop() if lengths else 0
        cells: dict[str, NDArray[Any]] = {}
        masks: dict[str, Mask] = {}
        for column in SCHEMA:
            given = columns.get(column.name)
            if given is None:
                cells[column.name] = column.empty(n)
                masks[column.name] = np.full(n, not column.nullable, np.bool_)
            else:
                array = np.asarray(given, dtype=column.dtype)
                cells[column.name] = array.reshape(n, column.width) if column.width > 1 else array
                mask = None if present is None else present.get(column.name)
                masks[column.name] = np.ones(n, np.bool_) if mask is None else mask
        return cls(cells, masks, n)

    @classmethod
    def empty(cls) -> TransitionTable:
        """Return a table without rows."""
        return cls.from_columns({})

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._cells[name]

    def __getattr__(self, name: str) -> NDArray[Any]:
        if name.startswith("_") or name not in SCHEMA:
            raise AttributeError(name)
        return self._cells[name]

    def __repr__(self) -> str:
        return f"TransitionTable({self._length} rows)"

    def present(self, name: str) -> Mask:
        """Return which rows have a value in a column."""
        return self._present[name]

    def select(self, index: NDArray[Any]) -> TransitionTable:
        """Return the rows that a mask or an index array names, as a new table."""
        index = np.asarray(index)
        if index.dtype == np.bool_:
            index = np.flatnonzero(index)
        return TransitionTable(
            {k: v[index] for k, v in self._cells.items()},
            {k: v[index] for k, v in self._present.items()},
            len(index),
        )

    def replace(self, name: str, cells: NDArray[Any], present: Mask | None = None) -> TransitionTable:
        """Return this table with another column in place of one."""
        column = SCHEMA[name]
        mask = np.ones(self._length, np.bool_) if present is None else present
        return TransitionTable(
            {**self._cells, name: np.asarray(cells, column.dtype)},
            {**self._present, name: mask},
            self._length,
        )

    def as_sockets(self, state: str) -> SocketTable:
        """Return the rows as sockets in their ``oldstate`` or ``newstate``, for a FILTER to judge."""
        names = ("family", "sport", "dport", "src", "dst", *LOOKED_UP)
        columns = {name: self._cells[name] for name in names}
        columns["family"] = columns["family"].astype(np.uint8)
        columns["state"] = self._cells[state]
        columns["protocol"] = np.full(self._length, 6, np.uint16)
        return SocketTable.from_columns(columns)

    @staticmethod
    def concatenate(tables: Sequence[TransitionTable]) -> TransitionTable:
        """Return one table with the rows of all, in that order."""
        tables = [t for t in tables if len(t)]
        if not tables:
            return TransitionTable.empty()
        if len(tables) == 1:
            return tables[0]
        return TransitionTable(
            {n: np.concatenate([t[n] for t in tables]) for n in SCHEMA.names},
            {n: np.concatenate([t.present(n) for t in tables]) for n in SCHEMA.names},
            sum(len(t) for t in tables),
        )


def decode(
    records: tracepoint.Records,
    cpu_of_page: NDArray[np.int64],
    formats: Mapping[int, tracepoint.EventFormat],
    *,
    byteorder: tracepoint.ByteOrder,
) -> tuple[TransitionTable, NDArray[np.uint64]]:
    """Turn records into rows, in the order of time; records of events not in ``formats`` are left out.

    Returns:
        The rows, and ``sock_cookie`` of each (0 where the event carries none).

    Raises:
        DecodeError: a record is shorter than its own format says, or a format lacks a needed field.
    """
    if not len(records):
        return TransitionTable.empty(), np.empty(0, np.uint64)
    common = next(iter(formats.values())).fields["common_type"] if formats else None
    if common is None:
        return TransitionTable.empty(), np.empty(0, np.uint64)
    type_of = tracepoint.column(records, common, byteorder=byteorder)
    tables = []
    cookies = []
    for number, form in formats.items():
        kind = _EVENTS.get(form.name)
        if kind is None or kind in (STACK, USER_STACK):
            continue
        mask = type_of == number
        some = records if mask.all() else records.where(mask)
        if len(some):
            table, cookie = _decode_event(some, cpu_of_page, form, kind, byteorder)
            tables.append(table)
            cookies.append(cookie)
    if not tables:
        return TransitionTable.empty(), np.empty(0, np.uint64)
    whole = TransitionTable.concatenate(tables)
    cookie = np.concatenate(cookies)
    order = np.argsort(whole.time_ns, kind="stable")
    return whole.select(order), cookie[order]


def stacks(
    records: tracepoint.Records,
    cpu_of_page: NDArray[np.int64],
    formats: Mapping[int, tracepoint.EventFormat],
    *,
    byteorder: tracepoint.ByteOrder,
) -> dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the kernel and user stack of events: (cpu, time of the event) → addresses, innermost first.

    The kernel writes a stack behind the event that it belongs to, on the same CPU.

    Raises:
        DecodeError: a record is shorter than its own format says.
    """
    if not len(records) or not formats:
        return {}
    common = next(iter(formats.values())).fields["common_type"]
    type_of = tracepoint.column(records, common, byteorder=byteorder).tolist()
    word = np.dtype("<u8" if byteorder == "little" else ">u8")
    latest: dict[int, tuple[int, int]] = {}
    result: dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for k, number in enumerate(type_of):
        form = formats.get(number)
        kind = None if form is None else _EVENTS.get(form.name)
        if form is None or kind is None:
            continue
        cpu = int(cpu_of_page[records.page[k]])
        if kind not in (STACK, USER_STACK):
            latest[cpu] = (cpu, int(records.time[k]))
            continue
        if cpu not in latest or "caller" not in form.fields:
            continue
        begin = int(records.offset[k]) + form.fields["caller"].offset
        end = int(records.offset[k]) + int(records.length[k])
        raw = records.buffer[begin : begin + max(end - begin, 0) // 8 * 8].tobytes()
        addresses = [a for a in np.frombuffer(raw, word).tolist() if a not in (0, (1 << 64) - 1)]
        kernel, user = result.get(latest[cpu], ((), ()))
        result[latest[cpu]] = (tuple(addresses), user) if kind == STACK else (kernel, tuple(addresses))
    return result


def _decode_event(
    records: tracepoint.Records,
    cpu_of_page: NDArray[np.int64],
    form: tracepoint.EventFormat,
    kind: int,
    byteorder: tracepoint.ByteOrder,
) -> tuple[TransitionTable, NDArray[np.uint64]]:
    n = len(records)

    def get(name: str, default: int | None = None) -> NDArray[Any]:
        field = form.fields.get(name)
        if field is None:
            if default is None:
                raise DecodeError(f"event {form.name}", 0, b"", f"its format has no field `{name}`")
            return np.full(n, default)
        return tracepoint.column(records, field, byteorder=byteorder)

    sk = get("skaddr")
    columns: dict[str, NDArray[Any]] = {
        "kind": np.full(n, kind, np.uint8),
        "time_ns": records.time.astype(np.int64),
        "cpu": cpu_of_page[records.page],
        "sk": sk,
        "life": np.full(n, -1, np.int64),
        "pid": get("common_pid"),
        "interrupt": (get("common_flags") & _IN_INTERRUPT) != 0,
    }
    present: dict[str, Mask] = {}
    if kind == TRANSITION:
        columns["oldstate"], columns["newstate"] = get("oldstate"), get("newstate")
    elif "state" in form.fields:
        columns["oldstate"] = columns["newstate"] = get("state")
    if "reason" in form.fields:
        columns["reason"] = get("reason")
    if kind == SEND_RESET and form.fields["saddr"].count == 28:  # struct sockaddr_in or _in6
        for side, port in (("src", "sport"), ("dst", "dport")):
            raw = get(f"{side[0]}addr")
            # 6.18 fills them from the packet that is answered or from the socket: always our end first.
            family = raw[:, 0:2].copy().view("<u2" if byteorder == "little" else ">u2")[:, 0]
            columns["family"] = family
            columns[port] = raw[:, 2:4].copy().view(">u2")[:, 0].astype(np.uint16)
            columns[side] = _addresses(family, raw[:, 4:8], raw[:, 8:24])
    else:
        v4 = {side: get(f"{side[0]}addr") for side in ("src", "dst")}
        v6 = {side: get(f"{side[0]}addr_v6") for side in ("src", "dst") if f"{side[0]}addr_v6" in form.fields}
        columns["family"] = get("family") if "family" in form.fields else _family(n, v6)
        columns["sport"], columns["dport"] = get("sport"), get("dport")
        for side, address in v4.items():
            columns[side] = _addresses(columns["family"], address, v6.get(side))
    cookie = get("sock_cookie", 0).astype(np.uint64)
    return TransitionTable.from_columns(columns, present), cookie


def _family(n: int, v6: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint16]:
    """Return the family of events that do not tell it: before Linux 5.14 all of TCP's but the change of state.

    An IPv6 socket has 127.0.0.6 for an IPv4 address (LOOPBACK4_IPV6), an IPv4 one is mapped in ``saddr_v6``
    (``TP_STORE_ADDRS`` of include/trace/events/tcp.h).
    """
    if len(v6) < 2:
        return np.full(n, _AF_INET, np.uint16)
    mapped = np.array([0] * 10 + [0xFF] * 2, np.uint8)
    both = (v6["src"][:, :12] == mapped).all(axis=1) & (v6["dst"][:, :12] == mapped).all(axis=1)
    return np.where(both, _AF_INET, _AF_INET6).astype(np.uint16)


def _addresses(
    family: NDArray[Any], v4: NDArray[np.uint8], v6: NDArray[np.uint8] | None
) -> NDArray[np.uint64]:
    out = np.zeros((len(family), 2), np.uint64)
    low = np.ascontiguousarray(v4).view(">u4")[:, 0].astype(np.uint64) | np.uint64(MAPPED)
    if v6 is None:
        out[:, 1] = low
        return out
    words = np.ascontiguousarray(v6).view(">u8").astype(np.uint64)
    is4 = family == _AF_INET
    out[:, 0] = np.where(is4, np.uint64(0), words[:, 0])
    out[:, 1] = np.where(is4, low, words[:, 1])
    return out


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def connection_key(
    src: NDArray[np.uint64], dst: NDArray[np.uint64], sport: NDArray[Any], dport: NDArray[Any]
) -> NDArray[np.uint64]:
    """Return 64 bits that stand for both addresses and ports, our end first (a hash: compare after it)."""
    ports = (sport.astype(np.uint64) << np.uint64(16)) | dport.astype(np.uint64)
    h = _mix(ports + np.uint64(0x9E3779B97F4A7C15))
    for word in (src[:, 0], src[:, 1], dst[:, 0], dst[:, 1]):
        h = _mix(h ^ word)
    return h


@dataclass(frozen=True, slots=True)
class Look:
    """One dump of all namespaces, and when it began and ended (CLOCK_MONOTONIC, ns)."""

    sockets: SocketTable
    begun_ns: int
    ended_ns: int


def changes(before: Look, after: Look) -> TransitionTable:
    """Return what polling alone can tell: the sockets whose state differs between two looks, by cookie.

    A socket that passed through several states in between shows the first and the last; one that came and
    went shows nothing.
    """
    old, new = before.sockets, after.sockets
    old_cookie, new_cookie = old["cookie"].astype(np.uint64), new["cookie"].astype(np.uint64)
    order = np.argsort(old_cookie, kind="stable")
    place = np.searchsorted(old_cookie[order], new_cookie)
    place[place == len(order)] = 0
    match = np.zeros(len(new_cookie), np.bool_) if not len(order) else old_cookie[order][place] == new_cookie
    partner = order[place] if len(order) else np.zeros(len(new_cookie), np.int64)
    gone = np.ones(len(old_cookie), np.bool_)
    gone[partner[match]] = False
    was = np.zeros(len(new_cookie), np.uint8)
    was[match] = old["state"][partner[match]]
    # A minisocket keeps the cookie of the socket that it took over from (which our first look gave it).
    changed = np.flatnonzero(was != new["state"])
    shrunk = np.flatnonzero((was == new["state"]) & match & (new["timer"] == 3))
    if len(shrunk):
        shrunk = shrunk[old["timer"][partner[shrunk]] != 3]
    rows = np.concatenate([changed, shrunk])
    tables = []
    for sockets, index, states in (
        (new, rows, (was[rows], new["state"][rows])),
        (old, np.flatnonzero(gone), (old["state"][gone], np.zeros(int(gone.sum()), np.uint8))),
    ):
        if len(index):
            tables.append(_polled(sockets, index, states, before.begun_ns, after.ended_ns))
    return TransitionTable.concatenate(tables)


def _polled(
    sockets: SocketTable,
    index: NDArray[np.int64],
    states: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    after_ns: int,
    time_ns: int,
) -> TransitionTable:
    n = len(index)
    names = ("family", "sport", "dport", "src", "dst", *LOOKED_UP)
    columns: dict[str, NDArray[Any]] = {name: sockets[name][index] for name in names}
    columns |= {
        "kind": np.full(n, POLLED, np.uint8),
        "time_ns": np.full(n, time_ns),
        "after_ns": np.full(n, after_ns),
        "life": np.full(n, -1),
        "oldstate": states[0],
        "newstate": states[1],
        "interrupt": np.ones(n, np.bool_),
        "over": states[1] == 0,
    }
    mini = (sockets["timer"][index] == 3) & (states[1] != 0)
    columns["became"] = np.where(mini, sockets["state"][index], 0)
    columns["expires_ms"] = sockets["expires_ms"][index]
    present = {
        "became": mini,
        "expires_ms": mini,
        "inode": sockets["inode"][index] != 0,
        "uid": sockets["inode"][index] != 0,
        "cgroup_id": sockets.present("cgroup_id")[index],
    }
    return TransitionTable.from_columns(columns, present)


_LIFE: Final = np.dtype(
    [
        ("sk", "u8"), ("born", "i8"), ("died", "i8"), ("since", "i8"), ("state", "u1"), ("before", "u1"),
        ("s0", "u8"), ("s1", "u8"), ("d0", "u8"), ("d1", "u8"), ("sport", "u2"), ("dport", "u2"),
        ("named", "?"), ("ambiguous", "?"), ("netns", "u4"), ("cookie", "u8"), ("inode", "u4"), ("uid", "u4"),
        ("ifindex", "u4"), ("seen", "?"),
        ("cgroup", "u8"), ("has_cgroup", "?"), ("looked", "?"), ("became", "u1"), ("expires", "u4"),
        ("reset", "u1"), ("reset_ns", "i8"), ("number", "i8"),
    ]
)  # fmt: skip


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
        self._lives = np.zeros(0, _LIFE)
        self._first = 0  # what the column `life` of the queue says for row 0
        self._made = 0
        self._sk = np.empty(0, np.uint64)  # sorted: the latest life of each socket address
        self._sk_life = np.empty(0, np.int64)
        self.lost = 0
        """Records known to be lost; `lost_unknown` says whether there were more."""
        self.lost_unknown = False
        self.forgotten = 0
        """Lives that were forgotten although they may go on: more than ``most`` were alive at once."""
        self.counts: dict[tuple[int, int], int] = {}
        """(old, new) → transitions seen."""

    # -- events ------------------------------------------------------------------------------------------

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
            events: in the order of time, as `decode` returns them.
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
            self._lives["since"] = 0
            self._sk, self._sk_life = self._sk[:0], self._sk_life[:0]
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
        self._queue.append(self._number(now, cookies[:cut]))
        return cut

    def _number(self, events: TransitionTable, cookies: NDArray[np.uint64]) -> TransitionTable:
        """Give every row the number of its life and the time in its old state; update the lives."""
        n = len(events)
        sk, kind = events.sk, events.kind
        order = np.argsort(sk, kind="stable")
        s_sk, s_kind = sk[order], kind[order]
        s_old, s_new = events.oldstate[order], events.newstate[order]
        s_time = events.time_ns[order]
        transition = (s_kind == TRANSITION) & (s_sk != 0)
        first = np.ones(n, np.bool_)
        first[1:] = s_sk[1:] != s_sk[:-1]

        carried = np.full(n, -1, np.int64)
        if len(self._sk):
            place = np.searchsorted(self._sk, s_sk)
            place[place == len(self._sk)] = 0
            hit = self._sk[place] == s_sk
            carried[hit] = self._sk_life[place[hit]]
        # A birth: out of CLOSE, or cloned from a listener. A life's first transition that is neither was
        # born before we looked; so was one whose address we do not know.
        birth = transition & ((s_old == tcp.CLOSE) | ((s_old == tcp.LISTEN) & (s_new == tcp.SYN_RECV)))
        # In runs of one address: a new life at each birth, and at the first transition if none is carried.
        group = np.cumsum(first) - 1
        before = np.cumsum(transition) - transition
        opening = transition & (before == before[first][group])
        fresh = birth | (opening & (carried < 0))
        start = self._first + len(self._lives)
        made = np.cumsum(fresh)
        made_before_group = (made - fresh)[first][group]
        life = np.where(made > made_before_group, start + made - 1, carried)
        life[s_sk == 0] = -1

        born = np.zeros(int(made[-1]) if n else 0, _LIFE)
        at = np.flatnonzero(fresh)
        born["sk"] = s_sk[at]
        born["born"] = np.where(birth[at], s_time[at], 0)
        born["died"] = NEVER
        born["number"] = self._made + np.arange(len(born))
        self._made += len(born)
        self._lives = np.concatenate([self._lives, born])
        row = life - self._first

        # Time in the old state: since the transition of the same life that entered it. close() of a socket
        # that had shut down before is told as FIN_WAIT2→FIN_WAIT2 (tcp_close_state): it enters nothing.
        t = np.flatnonzero(transition)
        t_life, t_time, t_new = life[t], s_time[t], s_new[t]
        index = np.arange(len(t))
        lead = np.ones(len(t), np.bool_)
        lead[1:] = t_life[1:] != t_life[:-1]
        run = np.maximum.accumulate(np.where(lead, index, 0)) if len(t) else index
        enters = s_old[t] != t_new
        entered = np.full(len(t), -1, np.int64)
        if len(t) > 1:
            entered[1:] = np.maximum.accumulate(np.where(enters, index, -1))[:-1]
        here = entered >= run
        since = np.where(here, t_time[entered], self._lives["since"][row[t]])
        # The state before must be the state that we remember, or something was missed.
        remembered = np.where(lead, self._lives["state"][row[t]], np.roll(t_new, 1))
        known = (since > 0) & (remembered == s_old[t])

        self._update(row, t, s_old, s_new, s_time, order, events)
        self._note(row, s_kind, s_time, cookies[order])
        self._replaced(carried, fresh, life, s_sk, s_time)
        if self._sk.size or n:
            latest = np.ones(n, np.bool_)
            latest[:-1] = s_sk[1:] != s_sk[:-1]
            latest &= (
                life >= 0
            )  # an event of a socket that we have not met tells nothing of the next one there
            self._remember(s_sk[latest], life[latest])
        pairs, count = np.unique(
            s_old[t].astype(np.int64) << 8 | s_new[t].astype(np.int64), return_counts=True
        )
        for pair, number in zip(pairs.tolist(), count.tolist(), strict=True):
            states = pair >> 8, pair & 255
            self.counts[states] = self.counts.get(states, 0) + number

        lives = np.empty(n, np.int64)
        lives[order] = life
        in_old = np.zeros(n, np.int64)
        begun = np.zeros(n, np.int64)
        have = np.zeros(n, np.bool_)
        in_old[order[t]] = np.where(known, t_time - since, 0)
        begun[order[t]] = np.where(known, since, 0)
        have[order[t]] = known
        return (
            events.replace("life", lives).replace("in_old_ns", in_old, have).replace("since_ns", begun, have)
        )

    def _replaced(
        self,
        carried: NDArray[np.int64],
        fresh: Mask,
        life: NDArray[np.int64],
        sk: NDArray[np.uint64],
        time_ns: NDArray[np.int64],
    ) -> None:
        """End the lives whose address began another: their own end was filtered out, or never told."""
        at = np.flatnonzero(fresh)
        if not len(at):
            return
        before = np.where((at > 0) & (sk[at] == sk[at - 1]), life[at - 1], carried[at])
        some = before >= 0
        row = before[some] - self._first
        open_ = self._lives["died"][row] == NEVER
        self._lives["died"][row[open_]] = time_ns[at[some]][open_]
        self._lives["looked"][row[open_]] = True

    def _update(
        self,
        row: NDArray[np.int64],
        t: NDArray[np.int64],
        s_old: NDArray[np.uint8],
        s_new: NDArray[np.uint8],
        s_time: NDArray[np.int64],
        order: NDArray[np.int64],
        events: TransitionTable,
    ) -> None:
        """Write the last transition of each life into `_lives` (numpy keeps the last of equal indices)."""
        lives, where = self._lives, row[t]
        enters = s_old[t] != s_new[t]
        lives["since"][where[enters]] = s_time[t][enters]
        lives["state"][where] = s_new[t]
        lives["before"][where] = s_old[t]
        closed = s_new[t] == tcp.CLOSE
        lives["died"][where[closed]] = s_time[t][closed]
        source = order[t]
        # The first events of a connection lack what the kernel had not filled in yet.
        full = (events.sport[source] != 0) & ((events.dport[source] != 0) | (s_new[t] == tcp.LISTEN))
        where, source = where[full], source[full]
        lives["s0"][where], lives["s1"][where] = events.src[source, 0], events.src[source, 1]
        lives["d0"][where], lives["d1"][where] = events.dst[source, 0], events.dst[source, 1]
        lives["sport"][where], lives["dport"][where] = events.sport[source], events.dport[source]

    def _note(
        self,
        row: NDArray[np.int64],
        kind: NDArray[np.uint8],
        time_ns: NDArray[np.int64],
        cookies: NDArray[np.uint64],
    ) -> None:
        lives = self._lives
        told = (cookies != 0) & (row >= 0)
        lives["cookie"][row[told]] = cookies[told]
        for which in (RECEIVE_RESET, SEND_RESET):
            some = (kind == which) & (row >= 0)
            lives["reset"][row[some]] = which
            lives["reset_ns"][row[some]] = time_ns[some]

    def _remember(self, sk: NDArray[np.uint64], life: NDArray[np.int64]) -> None:
        if len(self._sk):
            keep = ~np.isin(self._sk, sk)
            sk, life = np.concatenate([self._sk[keep], sk]), np.concatenate([self._sk_life[keep], life])
        order = np.argsort(sk, kind="stable")
        self._sk, self._sk_life = sk[order], life[order]

    # -- looks -------------------------------------------------------------------------------------------

    def look(self, look: Look) -> None:
        """Let one look name the lives that it covers, and find the minisockets of those that ended."""
        lives = self._lives
        if not len(lives) or not len(look.sockets):
            lives["looked"][lives["died"] < look.begun_ns] = True
            return
        # A socket in the accept queue has no inode yet: it is asked for again.
        alive = (
            ~(lives["named"] & (lives["inode"] != 0))
            & (lives["born"] <= look.begun_ns)
            & (lives["died"] >= look.ended_ns)
        )
        ended = ~lives["looked"] & (lives["died"] < look.begun_ns)
        lives["looked"][ended] = True
        ask = np.flatnonzero((alive | ended) & (lives["sport"] != 0))
        if not len(ask):
            return
        some = lives[ask]
        sockets = look.sockets
        found, count = _find(some, sockets)
        mini = (sockets["timer"] == 3) & (sockets["inode"] == 0)
        hit = (found >= 0) & (mini[found] == ended[ask])
        # A minisocket takes the cookie along if there was one when it took over: one that a look has seen.
        # One that tcp_destroy_sock made afterwards is not the minisocket's.
        known = some["named"]
        hit &= ~known | (some["cookie"] == sockets["cookie"][found])
        lives["ambiguous"][ask[count > 1]] = True
        rows, at = ask[hit], found[hit]
        self._name(rows, sockets, at, full=~mini[at])
        over = rows[ended[rows]]
        at = at[ended[rows]]
        lives["became"][over] = sockets["state"][at]
        since = (look.begun_ns - lives["died"][over]) // 1_000_000
        lives["expires"][over] = sockets["expires_ms"][at] + since

    def questions(self) -> NDArray[Any]:
        """Return the lives that a look could still tell us something about (see `staying` for the fields).

        Listeners are not among them: they have no other end, and are found by a dump only. What has ended is there only
        as a minisocket, and only FIN_WAIT2 and CLOSING leave one (tcp_time_wait).
        """
        lives = self._lives
        shrinks = (lives["before"] == tcp.FIN_WAIT2) | (lives["before"] == tcp.CLOSING)
        ended = (lives["died"] != NEVER) & ~lives["looked"] & shrinks
        unnamed = (lives["died"] == NEVER) & ~(lives["named"] & (lives["inode"] != 0))
        # Alive and asked for before: only the rows that wait now are worth another question.
        waiting = np.zeros(len(lives), np.bool_)
        for table in self._queue:
            row = table.life - self._first
            waiting[row[row >= 0]] = True
        return lives[(ended | (unnamed & waiting)) & (lives["sport"] != 0) & (lives["dport"] != 0)]

    def _name(self, rows: NDArray[np.int64], sockets: SocketTable, at: NDArray[np.int64], full: Mask) -> None:
        lives = self._lives
        lives["netns"][rows] = sockets["netns"][at]
        unknown = lives["cookie"][rows] == 0
        lives["cookie"][rows[unknown]] = sockets["cookie"][at[unknown]]
        lives["named"][rows] = True
        lives["ifindex"][rows] = sockets["ifindex"][at]
        lives["seen"][rows] = True
        rows, at = rows[full], at[full]
        lives["inode"][rows] = sockets["inode"][at]
        lives["uid"][rows] = sockets["uid"][at]
        lives["cgroup"][rows] = sockets["cgroup_id"][at]
        lives["has_cgroup"][rows] = sockets.present("cgroup_id")[at]

    def destroyed(self, sockets: SocketTable) -> None:
        """Take destroy messages in (as sockets): a cookie that an event named gets its namespace."""
        lives = self._lives
        ask = np.flatnonzero((lives["cookie"] != 0) & ~lives["named"])
        if not len(ask) or not len(sockets):
            return
        cookie = sockets["cookie"].astype(np.uint64)
        order = np.argsort(cookie, kind="stable")
        place = np.searchsorted(cookie[order], lives["cookie"][ask])
        place[place == len(order)] = 0
        at = order[place]
        hit = cookie[at] == lives["cookie"][ask]
        lives["netns"][ask[hit]] = sockets["netns"][at[hit]]
        lives["named"][ask[hit]] = True

    # -- rows --------------------------------------------------------------------------------------------

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
        result = self._enrich(TransitionTable.concatenate(out))
        self._forget()
        return result

    def _enrich(self, table: TransitionTable) -> TransitionTable:
        row = table.life - self._first
        there = row >= 0
        lives = self._lives[np.where(there, row, 0)] if len(self._lives) else np.zeros(len(table), _LIFE)
        # Inside, lives are renumbered when memory is given back; outside, a number stays.
        table = table.replace("life", np.where(there, lives["number"], -1))
        table = table.replace("over", there & (lives["died"] != NEVER))
        named = there & lives["named"]
        for name, cells, mask in (
            ("netns", lives["netns"], named),
            ("cookie", lives["cookie"], there & (lives["cookie"] != 0)),
            ("inode", lives["inode"], named & (lives["inode"] != 0)),
            ("uid", lives["uid"], named & (lives["inode"] != 0)),
            ("cgroup_id", lives["cgroup"], named & lives["has_cgroup"]),
            ("ifindex", lives["ifindex"], there & lives["seen"]),
        ):
            table = table.replace(name, np.where(mask, cells, 0), mask)
        # What the kernel had not filled in yet, from a later event of the same life.
        early = there & (lives["sport"] != 0) & ((table.sport == 0) | (table.dport == 0))
        if early.any():
            table = table.replace("sport", np.where(early, lives["sport"], table.sport))
            table = table.replace("dport", np.where(early, lives["dport"], table.dport))
            for name, high, low in (("src", "s0", "s1"), ("dst", "d0", "d1")):
                words = np.stack([lives[high], lives[low]], axis=1)
                table = table.replace(name, np.where(early[:, None], words, table[name]))
        last = (table.kind == TRANSITION) & (table.newstate == tcp.CLOSE) & there
        became = last & (lives["became"] != 0)
        table = table.replace("became", np.where(became, lives["became"], 0), became)
        table = table.replace("expires_ms", np.where(became, lives["expires"], 0), became)
        # A reset that did not end the life (an answer to a stray segment) lies further back.
        reset = last & (lives["reset"] != 0) & (lives["died"] - lives["reset_ns"] <= _RESET_ENDS_NS)
        return table.replace("reset", np.where(reset, lives["reset"], 0), reset)

    def _forget(self) -> None:
        """Drop lives that ended and that no waiting row refers to, and the oldest of too many."""
        lives = self._lives
        if len(lives) < self._spare:
            return
        oldest = min(
            (int(t.life[t.life >= 0].min()) for t in self._queue if (t.life >= 0).any()), default=NEVER
        )
        waited = self._first + np.arange(len(lives)) >= oldest
        alive = (lives["died"] == NEVER) & (lives["since"] > 0)
        if int((alive & ~waited).sum()) > self._most:
            some = np.flatnonzero(alive & ~waited)
            some = some[np.argsort(lives["since"][some], kind="stable")]
            some = some[: len(some) - self._most + self._most // 8]  # not again with the next event
            alive[some] = False
            self.forgotten += len(some)
        keep = alive | waited
        if len(keep) - int(keep.sum()) < max(self._spare // 2, len(keep) // 4):
            return  # too little to be worth a copy of all the others
        # Lives are found by number: a leading run just goes; when others would pile up, all are renumbered.
        lead = int(np.argmax(keep)) if keep.any() else len(keep)
        if lead < len(keep) // 2:
            self._renumber(keep)
            return
        self._first += lead
        self._lives = lives[lead:].copy()
        known = self._sk_life >= self._first
        self._sk, self._sk_life = self._sk[known], self._sk_life[known]

    def _renumber(self, keep: Mask) -> None:
        new = np.cumsum(keep) - 1 + self._first + len(keep)
        old_first = self._first
        self._first += len(keep)

        def moved(life: NDArray[np.int64]) -> NDArray[np.int64]:
            known = life >= old_first
            out = life.copy()
            out[known] = new[life[known] - old_first]
            return out

        kept = keep[self._sk_life - old_first]
        self._sk, self._sk_life = self._sk[kept], moved(self._sk_life[kept])
        self._queue = [t.replace("life", moved(t.life)) for t in self._queue]
        self._lives = self._lives[keep]

    def staying(self, now_ns: int, longer_than_ns: int, states: int = tcp.CLOSING_STATES) -> NDArray[Any]:
        """Return the lives that are in one of ``states`` (a mask) for longer than this, known for sure.

        A structured array with ``sk since state netns cookie inode s0 s1 d0 d1 sport dport named``.
        """
        lives = self._lives
        mask = (lives["died"] == NEVER) & (lives["since"] > 0) & (lives["since"] <= now_ns - longer_than_ns)
        mask &= (states >> lives["state"].astype(np.int64)) & 1 == 1
        return lives[mask]


def _find(lives: NDArray[Any], sockets: SocketTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each life the one socket with its addresses and ports (-1: not one), and how many have."""
    key = connection_key(sockets["src"], sockets["dst"], sockets["sport"], sockets["dport"])
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    src = np.stack([lives["s0"], lives["s1"]], axis=1)
    dst = np.stack([lives["d0"], lives["d1"]], axis=1)
    wanted = connection_key(src, dst, lives["sport"], lives["dport"])
    low = np.searchsorted(sorted_key, wanted, side="left")
    count = np.searchsorted(sorted_key, wanted, side="right") - low
    at = order[np.minimum(low, len(order) - 1)]
    same = (
        (sockets["src"][at] == src).all(axis=1)
        & (sockets["dst"][at] == dst).all(axis=1)
        & (sockets["sport"][at] == lives["sport"])
        & (sockets["dport"][at] == lives["dport"])
    )
    return np.where((count == 1) & same, at, -1), count


FINE: Final = 128
"""Parts of each power of two in `fine_histogram`: a time is known to within one part in 128."""
_POWERS: Final = 54  # of microseconds: the largest is 285 years


def fine_histogram(in_old_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count durations by parts of powers of two of microseconds; always of the same length.

    Cell 0 is below one microsecond; cell ``1 + FINE * k + j`` begins at ``2**k * (1 + j / FINE)`` microseconds.
    """
    us = np.maximum(in_old_ns, 0) / 1000
    fraction, power = np.frexp(us)  # us = fraction * 2**power, 0.5 <= fraction < 1
    part = ((fraction * 2 - 1) * FINE).astype(np.int64)
    cell = np.where(us < 1, 0, 1 + FINE * (np.minimum(power.astype(np.int64), _POWERS) - 1) + part)
    return np.bincount(cell, minlength=1 + FINE * _POWERS).astype(np.int64)


def coarse(fine: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a fine histogram by whole powers of two: lower bounds in microseconds (0, 1, 2, 4 …), and counts."""
    counts = np.concatenate([fine[:1], fine[1:].reshape(-1, FINE).sum(axis=1)])
    return np.concatenate([[0], 1 << np.arange(_POWERS, dtype=np.int64)]), counts


def fine_median_ns(fine: NDArray[np.int64]) -> int:
    """Return the median of a fine histogram, to within one part in 256."""
    total = int(fine.sum())
    cell = int(np.searchsorted(np.cumsum(fine), total // 2, side="right"))
    if cell == 0:
        return 0
    power, part = divmod(cell - 1, FINE)
    return int(2**power * (1 + (part + 0.5) / FINE) * 1000)
