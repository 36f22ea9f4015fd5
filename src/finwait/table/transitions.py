"""State transitions as columns: the tracepoint's records decoded, and what differs between two looks.

``sock:inet_sock_set_state`` names a socket by its address in the kernel and knows neither namespace nor owner; the
columns that say those are missing until a look (a sock_diag dump of all namespaces) or one of the other events has
told them. That join, and the time that a connection spent in a state, are `finwait.table.lives`. Where nothing can
be traced, `changes` compares one look with the next: fewer transitions, and times between two looks.

This module touches bytes and columns only; the ring buffer's pages are taken apart by `finwait.uapi.tracepoint`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.errors import DecodeError
from finwait.table.schema import Column, Mask, Schema
from finwait.table.sockets import MAPPED, SocketTable
from finwait.uapi import tracepoint

__all__ = [
    "DESTROY",
    "LOOKED_UP",
    "POLLED",
    "RECEIVE_RESET",
    "RETRANSMIT",
    "SCHEMA",
    "SEND_RESET",
    "STACK",
    "TRANSITION",
    "USER_STACK",
    "SocketDump",
    "TransitionTable",
    "changes",
    "decode",
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

SCHEMA: Final = Schema(
    [
        Column("kind", np.uint8, "the event", "0 transition, 1 destroyed, 2 reset received, 3 reset sent, "
               "4 retransmission, 7 seen by polling."),
        Column("time_ns", np.int64, "the ring buffer", "CLOCK_MONOTONIC of the event (or of the look)."),
        Column("after_ns", np.int64, "the look before", "Polled rows: it happened after this time.", (1,)),
        Column("cpu", np.int64, "per_cpu/cpuN", "CPU on which it happened."),
        Column("sk", np.uint64, "skaddr", ("Address of the socket in the kernel; reused after the socket "
                                          "ends.")),
        Column("life", np.int64, "finwait", ("Number of the socket's life since the start; -1 without a "
                                            "socket.")),
        Column("oldstate", np.uint8, "oldstate", "State before; 0 when the socket did not exist."),
        Column("newstate", np.uint8, "newstate", "State after; 0 when the socket no longer exists."),
        Column("family", np.uint16, "family", "2 for IPv4, 10 for IPv6 (IPv4-mapped included)."),
        Column("sport", np.uint16, "sport", "Local port; 0 while the kernel has not chosen one."),
        Column("dport", np.uint16, "dport", "Remote port."),
        Column("src", np.uint64, "saddr_v6", "Local address, high and low 64 bits.", None, 0, 2),
        Column("dst", np.uint64, "daddr_v6", "Remote address, high and low 64 bits.", None, 0, 2),
        Column("pid", np.int32, "common_pid", ("Task on the CPU; it caused the event only if `interrupt` is "
                                              "0.")),
        Column("interrupt", np.bool_, "common_flags", ("Whether the event happened in an interrupt that "
                                                      "merely borrowed the task.")),
        Column("reason", np.int32, "reason", "Why a reset was sent (enum sk_rst_reason).", (1,)),
        Column("in_old_ns", np.int64, "finwait", "Time spent in the old state, ns.", (1,)),
        Column("since_ns", np.int64, "finwait", "When the old state began, CLOCK_MONOTONIC.", (1,)),
        Column("netns", np.uint32, "the look", "Inode of the network namespace.", (1,)),
        Column("cookie", np.uint64, "the look or sock_cookie", "Identity of the socket.", (1,)),
        Column("inode", np.uint32, "the look", "Inode of the struct socket while one referred to it.", (1,)),
        Column("uid", np.uint32, "the look", "User that created the socket.", (1,)),
        Column("cgroup_id", np.uint64, "the look", "Cgroup in which it was created.", (1,)),
        Column("ifindex", np.uint32, "the look", "Interface that it is bound to; 0 for any.", (1,)),
        Column("over", np.bool_, "finwait", "Whether the connection had ended when the row was handed out."),
        Column("became", np.uint8, "the look",
               ("State of the minisocket that took over, as the look found it; the peer's FIN may have come "
               "since."),
               (1,)),
        Column("became_seen_ns", np.int64, "the look", "When it was looked at, on the clock of `time_ns`.", (1,)),
        Column("expires_ms", np.uint32, "the look", "Time left for that minisocket, counted from the row.", (1,)),
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
            values = columns.get(column.name)
            if values is None:
                cells[column.name] = column.empty(n)
                masks[column.name] = np.full(n, not column.nullable, np.bool_)
            else:
                array = np.asarray(values, dtype=column.dtype)
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
        batch = records if mask.all() else records.where(mask)
        if len(batch):
            table, cookie = _decode_event(batch, cpu_of_page, form, kind, byteorder)
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


class SocketDump(Struct, frozen=True):
    """One dump of all namespaces, and when it began and ended (CLOCK_MONOTONIC, ns)."""

    sockets: SocketTable
    begun_ns: int
    ended_ns: int


def changes(before: SocketDump, after: SocketDump) -> TransitionTable:
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
    old_state = np.zeros(len(new_cookie), np.uint8)
    old_state[match] = old["state"][partner[match]]
    # A minisocket keeps the cookie of the socket that it took over from (which our first look gave it).
    changed = np.flatnonzero(old_state != new["state"])
    shrunk = np.flatnonzero((old_state == new["state"]) & match & (new["timer"] == 3))
    if len(shrunk):
        shrunk = shrunk[old["timer"][partner[shrunk]] != 3]
    rows = np.concatenate([changed, shrunk])
    tables = []
    for sockets, index, states in (
        (new, rows, (old_state[rows], new["state"][rows])),
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
    columns["became_seen_ns"] = columns["time_ns"]
    present = {
        "became": mini,
        "became_seen_ns": mini,
        "expires_ms": mini,
        "inode": sockets["inode"][index] != 0,
        "uid": sockets["inode"][index] != 0,
        "cgroup_id": sockets.present("cgroup_id")[index],
    }
    return TransitionTable.from_columns(columns, present)
