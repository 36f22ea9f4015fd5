"""What the lower half of the live view lists: connections, in groups or one by one, in some order.

Everything is columns; a line of text is made only for what is on the screen, so that 216,000 rows cost what
some sorting of numbers costs. What a row is *because of* (cause, holder, pod) comes from a diagnosis, which is
slower than a look: a row that the last diagnosis did not see in its present state says so.

This module touches neither a terminal nor the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.assemble import ages
from finwait.table.sockets import SocketTable, address_text, endpoint_text
from finwait.table.units import duration_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.session import Diagnosis

__all__ = [
    "CONNECTION_SORTS",
    "GROUPINGS",
    "GROUP_SORTS",
    "Known",
    "Listing",
    "Rows",
    "plain_rows",
]

GROUPINGS: Final = ("cause", "process", "pod", "peer", "netns", "state", "port")
"""What connections can be grouped by."""
NEED_DIAGNOSIS: Final = frozenset({"cause", "process", "pod"})
"""Groupings that a look alone cannot give."""
GROUP_SORTS: Final = ("connections", "oldest", "bytes", "name")
CONNECTION_SORTS: Final = ("age", "bytes", "queues", "state", "peer", "local", "netns", "process", "cause")

_UNKNOWN: Final = -1
_NOT_YET: Final = "not yet diagnosed"

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Known:
    """What a diagnosis says about connections, by cookie (in its order)."""

    cookie: NDArray[np.uint64]
    state: NDArray[np.uint8]
    cause: I64
    process: I64
    pod: I64
    causes: tuple[str, ...] = ()
    """“rule (severity)”."""
    processes: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()

    @classmethod
    def nothing(cls) -> Known:
        """Return what is known before there is a diagnosis."""
        none = np.empty(0, np.int64)
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint8), none, none, none)

    @classmethod
    def of(cls, diagnosis: Diagnosis) -> Known:
        """Return what a diagnosis says about each connection."""
        view = diagnosis.view
        n = len(view)
        causes: dict[str, int] = {"no cause: nothing to say": 0}
        cause = np.zeros(n, np.int64)
        for finding in diagnosis.findings:
            if finding.primary and len(finding.rows):
                label = f"{finding.rule} ({finding.severity})"
                cause[finding.rows] = causes.setdefault(label, len(causes))
        pid, which = np.unique(view.holders.first_pid(), return_inverse=True)
        missing = (
            "nobody was found" if view.holders.complete else "not found; not every process could be seen"
        )
        processes = tuple(
            missing if p < 0 else f"{view.processes[p].comm if p in view.processes else '?'}[{p}]"
            for p in pid.tolist()
        )
        pods = ("no pod, container or unit", *(_workload(w) for w in view.workload_names))
        order = np.argsort(view.sockets.cookie, kind="stable")
        return cls(
            view.sockets.cookie[order],
            view.sockets.state[order],
            cause[order],
            which.reshape(-1)[order].astype(np.int64),
            view.workload[order].astype(np.int64) + 1,
            tuple(causes),
            processes,
            pods,
        )

    def places(self, sockets: SocketTable) -> I64:
        """Return where each connection is in here, in the state that it is in; −1 for nowhere."""
        if not len(self.cookie):
            return np.full(len(sockets), -1, np.int64)
        at = np.minimum(np.searchsorted(self.cookie, sockets.cookie), len(self.cookie) - 1)
        same = (self.cookie[at] == sockets.cookie) & (self.state[at] == sockets.state)
        return np.where(same, at, -1).astype(np.int64)


def _workload(found: Any) -> str:  # noqa: ANN401 - attribution.container.Workload
    if found.pod_uid:
        return f"pod {found.pod_uid}"
    if found.container_id:
        return f"container {found.container_id[:12]}"
    return found.unit or "no pod, container or unit"


@dataclass(frozen=True, slots=True)
class Rows:
    """Connections, and for each what is known beside its columns."""

    sockets: SocketTable
    """No listeners."""
    least_ms: I64
    """In its state for at least so long; −1 unknown."""
    seen_coming: NDArray[np.bool_]
    """Whether we saw it arrive there: then the age is right up to the time between two looks."""
    cause: I64
    process: I64
    pod: I64
    causes: Sequence[str] = (_NOT_YET,)
    processes: Sequence[str] = (_NOT_YET,)
    pods: Sequence[str] = (_NOT_YET,)
    names: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Namespace → what people call it."""

    def __len__(self) -> int:
        return len(self.sockets)


def plain_rows(
    sockets: SocketTable,
    known: Known,
    names: Mapping[int, Sequence[str]],
    *,
    least_ms: I64 | None = None,
    seen_coming: NDArray[np.bool_] | None = None,
) -> Rows:
    """Join the connections of a look with what a diagnosis (of another moment) said.

    Args:
        sockets: connections.
        known: of the last diagnosis.
        names: namespace → what people call it.
        least_ms: ages, where more is known than the sockets themselves say.
        seen_coming: see `Rows`.
    """
    n = len(sockets)
    at = known.places(sockets)
    there = at >= 0
    at = np.maximum(at, 0)

    def pick(column: I64) -> I64:
        if not len(column):
            return np.zeros(n, np.int64)
        return np.where(there, column[at] + 1, 0)

    process = pick(known.process)
    # Whose a socket without a descriptor is needs no diagnosis: nobody's.
    closed = sockets.inode == 0
    waiting = np.isin(sockets.state, (tcp.ESTABLISHED, tcp.CLOSE_WAIT, tcp.SYN_RECV, tcp.NEW_SYN_RECV))
    first = 1 + len(known.processes)
    process = np.where(closed, np.where(waiting, first + 1, first), process)
    return Rows(
        sockets,
        ages(sockets)[0] if least_ms is None else least_ms,
        np.zeros(n, np.bool_) if seen_coming is None else seen_coming,
        pick(known.cause),
        process,
        pick(known.pod),
        (_NOT_YET, *known.causes),
        (_NOT_YET, *known.processes, "nobody: closed, an orphan", "nobody yet: not accepted"),
        (_NOT_YET, *known.pods),
        names,
    )


@dataclass(frozen=True, slots=True)
class _Groups:
    """The groups of one picture: of each its key, label, rows and sums."""

    keys: list[Any]
    label: Callable[[int], str]
    which: I64
    """Group of each row."""
    count: I64
    states: NDArray[np.int64]
    oldest_ms: I64
    bytes: I64


def _keys(rows: Rows, by: str) -> tuple[list[Any], Callable[[int], str], I64]:
    """Return the key of each group (equal in the next picture), how it is called, and the group of each row."""
    s = rows.sockets
    if by in ("cause", "process", "pod"):
        column, labels = {
            "cause": (rows.cause, rows.causes),
            "process": (rows.process, rows.processes),
            "pod": (rows.pod, rows.pods),
        }[by]
        values, which = np.unique(column, return_inverse=True)
        words = [labels[v] for v in values.tolist()]
        return list(words), words.__getitem__, which.reshape(-1)
    if by == "peer":
        low, which = np.unique(s.dst[:, 1], return_inverse=True)
        which = which.reshape(-1)
        high = s.dst[:, 0]
        pairs = [(0, v) for v in low.tolist()]
        if high.any():  # IPv6: by both words
            highs, of_high = np.unique(high, return_inverse=True)
            both, which = np.unique(of_high.reshape(-1) * len(low) + which, return_inverse=True)
            which = which.reshape(-1)
            lows, tops = low.tolist(), highs.tolist()
            pairs = [(tops[v // len(lows)], lows[v % len(lows)]) for v in both.tolist()]
        return list(pairs), lambda k: address_text(*pairs[k]), which
    if by == "port":
        values, which = np.unique(np.minimum(s.sport, s.dport), return_inverse=True)
        ports = values.tolist()
        return ports, lambda k: f":{ports[k]}", which.reshape(-1)
    if by == "netns":
        values, which = np.unique(s.netns, return_inverse=True)
        spaces = values.tolist()
        return spaces, lambda k: _space(rows.names, spaces[k]), which.reshape(-1)
    if by == "state":
        values, which = np.unique(s.state, return_inverse=True)
        states = values.tolist()
        return states, lambda k: tcp.STATES.get(states[k], str(states[k])), which.reshape(-1)
    raise ValueError(f"connections cannot be grouped by {by}")


def _space(names: Mapping[int, Sequence[str]], netns: int) -> str:
    return next(iter(names.get(netns, ())), str(netns))


def _moved(s: SocketTable) -> I64:
    return (s.bytes_received + s.bytes_acked).astype(np.int64)


def _group(rows: Rows, by: str) -> _Groups:
    keys, label, which = _keys(rows, by)
    n = len(keys)
    state = rows.sockets.state.astype(np.int64) & 15
    oldest = np.full(n, -1, np.int64)
    np.maximum.at(oldest, which, rows.least_ms)
    return _Groups(
        keys,
        label,
        which.astype(np.int64),
        np.bincount(which, minlength=n),
        np.bincount(which * 16 + state, minlength=n * 16).reshape(-1, 16),
        oldest,
        np.bincount(which, weights=_moved(rows.sockets), minlength=n).astype(np.int64),
    )


@dataclass(slots=True)
class Listing:
    """What is listed: groups, or the connections of one; holds what the person chose.

    Marks are cookies and outlive pictures; so do the group that is open and the cursor's place on a key.
    """

    by: str = "cause"
    opened: Any = None
    """Key of the group whose connections are listed; None for the groups."""
    everything: bool = False
    """List all connections, whatever their group."""
    group_sort: str = "connections"
    connection_sort: str = "age"
    reverse: bool = False
    marked: set[int] = field(default_factory=set)
    _rows: Rows | None = None
    _groups: _Groups | None = None
    _order: I64 = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def connections(self) -> bool:
        """Whether connections are listed and not groups."""
        return self.everything or self.opened is not None

    @property
    def sort(self) -> str:
        """What it is sorted by."""
        return self.connection_sort if self.connections else self.group_sort

    @property
    def total(self) -> int:
        """Number of groups, or of connections listed."""
        return len(self._order)

    @property
    def needs_diagnosis(self) -> bool:
        """Whether what is shown rests on a diagnosis."""
        return self.by in NEED_DIAGNOSIS or self.connections

    def show(self, rows: Rows) -> None:
        """Take another picture."""
        self._rows = rows
        self._arrange()

    def _arrange(self) -> None:
        rows = self._rows
        if rows is None:
            return
        if self.everything:
            self._groups = None
            self._order = self._sorted(rows, np.arange(len(rows)))
            return
        groups = self._groups = _group(rows, self.by)
        if self.opened is None:
            keys = {
                "connections": -groups.count,
                "oldest": -groups.oldest_ms,
                "bytes": -groups.bytes,
                "name": np.arange(len(groups.keys)),
            }[self.group_sort]
            order = np.argsort(keys, kind="stable")
            self._order = order[::-1] if self.reverse else order
        else:
            try:
                place = groups.keys.index(self.opened)
            except ValueError:  # its last connection ended
                place = -1
            self._order = self._sorted(rows, np.flatnonzero(groups.which == place))

    def _sorted(self, rows: Rows, index: I64) -> I64:
        s = rows.sockets
        chosen: dict[str, Callable[[], tuple[NDArray[Any], ...]]] = {
            "age": lambda: (-rows.least_ms[index],),
            "bytes": lambda: (-_moved(s)[index],),
            "queues": lambda: (-(s.rqueue.astype(np.int64) + s.wqueue)[index],),
            "state": lambda: (-rows.least_ms[index], s.state[index]),
            "peer": lambda: (s.dport[index], s.dst[index, 1], s.dst[index, 0]),
            "local": lambda: (s.sport[index], s.src[index, 1], s.src[index, 0]),
            "netns": lambda: (-rows.least_ms[index], s.netns[index]),
            "process": lambda: (-rows.least_ms[index], rows.process[index]),
            "cause": lambda: (-rows.least_ms[index], rows.cause[index]),
        }
        keys = chosen[self.connection_sort]()
        order = index[np.lexsort(keys)]
        return order[::-1] if self.reverse else order

    # -- what the person does ----------------------------------------------------------------------------

    def next_sort(self) -> None:
        """Sort by the next thing."""
        if self.connections:
            place = CONNECTION_SORTS.index(self.connection_sort)
            self.connection_sort = CONNECTION_SORTS[(place + 1) % len(CONNECTION_SORTS)]
        else:
            place = GROUP_SORTS.index(self.group_sort)
            self.group_sort = GROUP_SORTS[(place + 1) % len(GROUP_SORTS)]
        self.reverse = False
        self._arrange()

    def flip(self) -> None:
        """Turn the order round."""
        self.reverse = not self.reverse
        self._arrange()

    def group_by(self, step: int) -> None:
        """Group by the next thing, or the one before."""
        self.by = GROUPINGS[(GROUPINGS.index(self.by) + step) % len(GROUPINGS)]
        self.leave()

    def open(self, place: int) -> None:
        """List the connections of a group."""
        if self._groups is not None and not self.connections and 0 <= place < self.total:
            self.opened = self._groups.keys[int(self._order[place])]
            self.reverse = False
            self._arrange()

    def open_all(self) -> None:
        """List all connections."""
        self.everything, self.opened, self.reverse = True, None, False
        self._arrange()

    def leave(self) -> None:
        """List the groups again."""
        self.everything, self.opened, self.reverse = False, None, False
        self._arrange()

    def mark(self, place: int) -> None:
        """Mark a connection, or all of a group; or take the marks off when all of them have one."""
        rows, groups = self._rows, self._groups
        if rows is None or not 0 <= place < self.total:
            return
        row = int(self._order[place])
        if self.connections:
            self.marked ^= {int(rows.sockets.cookie[row])}
            return
        assert groups is not None, "groups are listed"
        cookies = set(rows.sockets.cookie[groups.which == row].tolist())
        if cookies <= self.marked:
            self.marked -= cookies
        else:
            self.marked |= cookies

    def forget_gone(self) -> None:
        """Take marks off connections that are not there any more."""
        if self._rows is not None:
            self.marked &= set(self._rows.sockets.cookie.tolist())

    # -- what is where -----------------------------------------------------------------------------------

    def key(self, place: int) -> Any:  # noqa: ANN401 - the key of a group, or a cookie
        """Return what is at a place, in a form that finds it again in the next picture."""
        if self._rows is None or not 0 <= place < self.total:
            return None
        row = int(self._order[place])
        if self.connections:
            return int(self._rows.sockets.cookie[row])
        assert self._groups is not None, "groups are listed"
        return self._groups.keys[row]

    def place(self, key: Any) -> int:  # noqa: ANN401 - what `key` gave
        """Return where something is now; −1 when it is gone."""
        if self._rows is None or key is None:
            return -1
        if self.connections:
            found = np.flatnonzero(self._rows.sockets.cookie[self._order] == np.uint64(key))
            return int(found[0]) if len(found) else -1
        assert self._groups is not None, "groups are listed"
        if key not in self._groups.keys:
            return -1
        return int(np.flatnonzero(self._order == self._groups.keys.index(key))[0])

    @property
    def title(self) -> str:
        """Name of the group that is open."""
        if self._groups is None or self.opened is None:
            return ""
        if self.opened in self._groups.keys:
            return self._groups.label(self._groups.keys.index(self.opened))
        return "(gone)"

    # -- text --------------------------------------------------------------------------------------------

    def header(self, width: int) -> str:
        """Return the titles of the columns; what it is sorted by has an arrow."""
        arrow = "↑" if self.reverse else "↓"
        if not self.connections:
            wide, moved = self._group_widths(width)
            titles = {name: name.upper() + (arrow if name == self.group_sort else "") for name in GROUP_SORTS}
            titles["name"] = self.by.upper() + (arrow if self.group_sort == "name" else "")
            titles["connections"] = titles["connections"].replace("CONNECTIONS", "CONNS")
            last = f" {titles['bytes']:>7}" if moved else ""
            return (
                f"   {titles['name']:<{wide}} {titles['connections']:>9} {titles['oldest']:>8}{last}  STATES"
            )
        parts = []
        for name, size in self._columns(width):
            title = _TITLES[name] + (arrow if name == self.connection_sort else "")
            parts.append(f"{title:<{size}}" if name not in _RIGHT else f"{title:>{size}}")
        return "   " + " ".join(parts)

    def line(self, place: int, width: int) -> str:
        """Return one line: a mark, then the cells."""
        rows = self._rows
        if rows is None or not 0 <= place < self.total:
            return ""
        row = int(self._order[place])
        if self.connections:
            mark = "*" if int(rows.sockets.cookie[row]) in self.marked else " "
            return f"{mark} " + self._connection(rows, row, width)
        groups = self._groups
        assert groups is not None, "groups are listed"
        wide, moved = self._group_widths(width)
        states = groups.states[row]
        some = sorted(np.flatnonzero(states).tolist(), key=lambda s: -int(states[s]))
        words = ", ".join(f"{tcp.STATES.get(s, str(s))} {int(states[s]):,}" for s in some)
        oldest = int(groups.oldest_ms[row])
        mark = self._mark_of(rows, groups, row)
        return (
            f"{mark} {_cut(groups.label(row), wide):<{wide}} {int(groups.count[row]):>9,} "
            f"{duration_text(oldest) if oldest >= 0 else '?':>8}"
            + (f" {_size(int(groups.bytes[row])):>7}" if moved else "")
            + f"  {words}"
        )

    def _group_widths(self, width: int) -> tuple[int, bool]:
        """Return the width of names, and whether there is room for bytes (or they are what it is sorted by)."""
        moved = width >= 100 or self.group_sort == "bytes"
        return max(20, min(width - 48 - 8 * moved, 60)), moved

    def _mark_of(self, rows: Rows, groups: _Groups, row: int) -> str:
        if not self.marked:
            return " "
        mine = rows.sockets.cookie[groups.which == row]
        n = int(np.isin(mine, np.fromiter(self.marked, np.uint64, len(self.marked))).sum())
        return " " if not n else "*" if n == len(mine) else "+"

    def _columns(self, width: int) -> list[tuple[str, int]]:
        """Return the columns that fit, and their widths: what it is sorted by is always among them."""
        chosen = ["age", "state", "local", "peer"]
        if self.connection_sort not in chosen:
            chosen.append(self.connection_sort)
        used = sum(_WIDTHS[name] + 1 for name in chosen) + 2
        for name in ("process", "cause", "netns", "queues", "bytes"):
            if name not in chosen and used + _WIDTHS[name] + 1 <= width:
                chosen.append(name)
                used += _WIDTHS[name] + 1
        sizes = {name: _WIDTHS[name] for name in chosen}
        spare = max(width - used, 0)
        for name, most in (("process", 24), ("local", 46), ("peer", 46), ("cause", 40)):
            if name in sizes:
                more = (
                    min(spare, most - sizes[name]) if name != "local" else min(spare // 2, most - sizes[name])
                )
                sizes[name] += more
                spare -= more
        return list(sizes.items())

    def _connection(self, rows: Rows, row: int, width: int) -> str:
        parts = []
        for name, size in self._columns(width):
            text = _cut(_CELLS[name](rows, row), size)
            parts.append(f"{text:>{size}}" if name in _RIGHT else f"{text:<{size}}")
        return " ".join(parts)


def _cut(text: str, width: int) -> str:
    """Shorten in the middle: of an address and of a name both ends tell."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"


def _size(number: int) -> str:
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 9.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.0f} TB"


def _age(rows: Rows, row: int) -> str:
    ms = int(rows.least_ms[row])
    if ms < 0:
        return "?"
    return ("~ " if rows.seen_coming[row] else "≥ ") + duration_text(ms)


def _end(words: NDArray[np.uint64], port: int) -> str:
    return endpoint_text(int(words[0]), int(words[1]), port)


_TITLES: Final = {
    "age": "AGE", "state": "STATE", "local": "LOCAL", "peer": "PEER", "process": "HELD BY", "cause": "CAUSE",
    "netns": "NETNS", "queues": "IN/OUT QUEUE", "bytes": "BYTES IN/OUT",
}  # fmt: skip
_WIDTHS: Final = {
    "age": 9, "state": 11, "local": 21, "peer": 21, "process": 10, "cause": 26, "netns": 12, "queues": 13,
    "bytes": 15,
}  # fmt: skip
_RIGHT: Final = frozenset({"age", "queues", "bytes"})
_CELLS: Final[Mapping[str, Callable[[Rows, int], str]]] = {
    "age": _age,
    "state": lambda r, k: tcp.STATES.get(int(r.sockets.state[k]), "?"),
    "local": lambda r, k: _end(r.sockets.src[k], int(r.sockets.sport[k])),
    "peer": lambda r, k: _end(r.sockets.dst[k], int(r.sockets.dport[k])),
    "process": lambda r, k: r.processes[int(r.process[k])],
    "cause": lambda r, k: r.causes[int(r.cause[k])],
    "netns": lambda r, k: _space(r.names, int(r.sockets.netns[k])),
    "queues": lambda r, k: f"{int(r.sockets.rqueue[k])}/{int(r.sockets.wqueue[k])}",
    "bytes": lambda r, k: f"{_size(int(r.sockets.bytes_received[k]))}/{_size(int(r.sockets.bytes_acked[k]))}",
}
