"""Transitions as characters: a line each, a story for each connection, a histogram for each state.

One surprise is told rather than printed as the kernel words it: ``FIN_WAIT2→CLOSE`` of an orphan is "became
a minisocket", and ``FIN_WAIT2→FIN_WAIT2`` is the owner's close() of what was shut down before. What is not
known stays out of the line.

This module knows no clock and no process: names are handed in (`TransitionNames`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from finwait.report.json import addresses
from finwait.report.shape import IDENTITY, MORE, connection, owner
from finwait.table import histogram, units
from finwait.table import transitions as tr
from finwait.table.transitions import TransitionTable
from finwait.table.units import csv_text
from finwait.uapi import tcp
from finwait.uapi.inet_diag import IPPROTO_TCP
from finwait.uapi.sets import distinct

__all__ = [
    "CSV_COLUMNS",
    "Mover",
    "Stories",
    "Summary",
    "TransitionNames",
    "csv_line",
    "duration",
    "encode",
    "endpoint",
    "flat_names",
    "flows",
    "header",
    "line",
    "lines",
    "records",
]

_KINDS: Final = {
    tr.TRANSITION: "transition",
    tr.DESTROY: "destroyed",
    tr.RECEIVE_RESET: "reset-received",
    tr.SEND_RESET: "reset-sent",
    tr.RETRANSMIT: "retransmission",
    tr.POLLED: "polled",
}
CSV_COLUMNS: Final = (
    "time", "kind", "netns", "src", "sport", "dst", "dport", "old", "new", "in_old_us", "owner", "pod_uid",
    "moved_by", "cookie", "inode", "became", "became_seen", "expires_ms", "reset", "reason", "note", "last_owner",
    "ifindex",
)  # fmt: skip


class Mover(Struct, frozen=True):
    """The task that moved a connection: a thread of a process, or one of the kernel's own."""

    tid: int
    thread: str = ""
    pid: int | None = None
    """Its process; None where that is not known."""
    comm: str = ""
    """Name of the process."""
    kernel: bool = False

    def __str__(self) -> str:
        if self.pid is not None and not self.kernel:
            return f"{self.comm or 'pid'}[{self.pid}]"
        return f"{self.thread or 'thread'} (thread {self.tid})"


class TransitionNames(Struct, frozen=True):
    """What the caller knows beyond the columns; all optional."""

    wall_offset_ns: int = 0
    """Unix time minus CLOCK_MONOTONIC."""
    utc_offset_s: int = 0
    """Of the time zone to print lines in; records are always UTC."""
    netns: Mapping[int, Sequence[str]] = field(default_factory=dict)
    owners: Mapping[int, Sequence[tuple[int, str]]] = field(default_factory=dict)
    """Inode → (pid, name) of each holder."""
    pods: Mapping[int, str] = field(default_factory=dict)
    """cgroup id → pod uid."""
    last: Mapping[int, Sequence[tuple[int, str]]] = field(default_factory=dict)
    """Life → (pid, name) of who held it, of connections that are over."""
    movers: Mapping[int, Mover] = field(default_factory=dict)
    """Number of a task → what is known of it."""
    reasons: Mapping[int, str] = field(default_factory=dict)
    """enum sk_rst_reason → word."""
    looked_up: bool = True
    """Whether each row was looked up; if not, that no minisocket was seen says nothing."""


def duration(ns: int) -> str:
    """Return a time span in at most eight characters: ``12us``, ``3.4ms``, ``41s``, ``2h05m``."""
    if ns < 1_000_000:
        return f"{ns // 1000}us"
    if ns < 10_000_000_000:
        return f"{ns / 1e6:.1f}ms" if ns < 100_000_000 else (f"{ns / 1e9:.2f}s")
    seconds = ns // 1_000_000_000
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 7200:
        return f"{seconds // 60}m{seconds % 60:02}s"
    if seconds < 172_800:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
    return f"{seconds // 86_400}d{seconds % 86_400 // 3600:02}h"


def endpoint(address: str, port: int) -> str:
    """Return ``10.0.0.1:80``, ``[2001:db8::1]:80``; an unknown port is ``*``."""
    return units.endpoint(address, port or "*")


def header() -> str:
    """Return the line above the lines."""
    return f"{'TIME':12} {'NETNS':7} {'LOCAL > PEER':32} {'OLD→NEW':22} {'IN OLD':>6} OWNER"


def records(table: TransitionTable, names: TransitionNames) -> Iterator[dict[str, Any]]:
    """Yield each row as an object of plain values; what is not known is None."""
    src, dst = addresses(table.src), addresses(table.dst)
    present = {
        name: table.present(name).tolist()
        for name in ("in_old_ns", "netns", "cookie", "inode", "cgroup_id", "became", "became_seen_ns", "expires_ms",
                     "reset", "reason", "after_ns", "ifindex")
    }  # fmt: skip
    cells = {name: table[name].tolist() for name in tr.SCHEMA.names if name not in ("src", "dst")}

    def value(name: str, k: int) -> Any:  # noqa: ANN401 - a cell
        return cells[name][k] if present[name][k] else None

    for k in range(len(table)):
        kind = cells["kind"][k]
        inode = cells["inode"][k]
        mover: Mover | None = None
        if kind != tr.POLLED and not cells["interrupt"][k] and (pid := cells["pid"][k]):
            mover = names.movers.get(pid) or Mover(pid)
        in_old = value("in_old_ns", k)
        reset = value("reset", k)
        became, seen, reason = value("became", k), value("became_seen_ns", k), value("reason", k)
        over = cells["over"][k]
        holders = names.owners.get(inode) if inode and not over else None
        before = names.last.get(cells["life"][k]) if over else None
        record: dict[str, Any] = {
            "time": _utc(cells["time_ns"][k] + names.wall_offset_ns),
            "kind": _KINDS.get(kind, str(kind)),
            "netns": value("netns", k),
            "netns_name": next(iter(names.netns.get(cells["netns"][k], ())), None),
            "family": cells["family"][k],
            "src": src[k],
            "sport": cells["sport"][k],
            "dst": dst[k],
            "dport": cells["dport"][k],
            "old": _state(cells["oldstate"][k]),
            "new": _state(cells["newstate"][k]),
            "in_old_us": None if in_old is None else in_old // 1000,
            "owners": _owners(holders),
            "last_owners": _owners(before),
            "pod_uid": names.pods.get(cells["cgroup_id"][k]) or None,
            "moved_by": None if mover is None else _mover(mover),
            "ifindex": value("ifindex", k),
            "cookie": value("cookie", k),
            "inode": value("inode", k),
            "became": None if became is None else tcp.state_name(became),
            "became_seen": None if seen is None else _utc(seen + names.wall_offset_ns),
            "expires_ms": value("expires_ms", k),
            "reset": {2: "received", 3: "sent"}.get(reset or 0),
            "reason": None if reason is None else names.reasons.get(reason, str(reason)),
        }
        if kind == tr.POLLED:
            record["after"] = _utc(cells["after_ns"][k] + names.wall_offset_ns)
        later = 0 if seen is None else seen - cells["time_ns"][k]
        old, new = cells["oldstate"][k], cells["newstate"][k]
        note = _note(kind, old, new, record, mover, later, looked_up=names.looked_up)
        if mover is not None and mover.kernel:
            note += ("; " if note else "") + f"caused by {mover} of the kernel"
        record["note"] = note
        yield record


def _owners(holders: Sequence[tuple[int, str]] | None) -> list[dict[str, Any]] | None:
    return None if holders is None else [{"pid": pid, "comm": comm} for pid, comm in holders]


def _mover(mover: Mover) -> dict[str, Any]:
    """Return a task as an object: ``pid`` and ``comm`` are its process's, which a thread of the kernel has none of."""
    pid = None if mover.kernel else mover.pid
    return {
        "pid": pid, "comm": mover.comm if pid is not None else "", "tid": mover.tid, "thread": mover.thread,
        "kernel": mover.kernel,
    }  # fmt: skip


def _note(  # noqa: PLR0913, RUF100 - a row
    kind: int, old: int, new: int, record: dict[str, Any], mover: Mover | None, later: int, *, looked_up: bool
) -> str:
    """Return what the row means where the two states do not say it; its minisocket was seen ``later`` ns after it."""
    if kind in (tr.RECEIVE_RESET, tr.SEND_RESET, tr.RETRANSMIT):
        phrases = {
            tr.RECEIVE_RESET: "reset received",
            tr.SEND_RESET: "reset sent",
            tr.RETRANSMIT: "retransmission",
        }
        return phrases[kind] + (f" ({record['reason']})" if record["reason"] else "")
    if record["became"] == "FIN_WAIT2":
        remaining_s = record["expires_ms"] / 1000
        return f"became a minisocket, still FIN_WAIT2; gone by itself in {remaining_s:.1f} s"
    if record["became"] == "TIME_WAIT":
        # In between it may have been one in FIN_WAIT2: the peer's FIN makes it TIME_WAIT, whenever that comes.
        when = f"seen {duration(later)} later" if later > 0 else "by now"
        return f"is a minisocket in TIME_WAIT ({when}); gone in {record['expires_ms'] / 1000:.1f} s"
    if kind == tr.POLLED:
        return {True: "gone", False: "first seen" if old == 0 else ""}[new == 0]
    if new == tcp.CLOSE and record["reset"]:
        return f"ended by a reset that was {record['reset']}"
    if old == new:
        return "closed by its owner" + (f", {mover}" if mover is not None and not mover.kernel else "")
    if (
        looked_up
        and new == tcp.CLOSE
        and old
        in (
            tcp.FIN_WAIT2,
            tcp.CLOSING,
            tcp.FIN_WAIT1,
            tcp.ESTABLISHED,
            tcp.CLOSE_WAIT,
        )
    ):
        return "no minisocket was seen after it: destroyed, timed out, or ended before the look"
    return ""


def _utc(ns: int) -> str:
    seconds, rest = divmod(ns, 1_000_000_000)
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06}Z"


def _owner(record: dict[str, Any]) -> str:
    """Return who holds it; else who moved it; else who held it."""
    if holder := _holder(record):
        return holder
    mover = record["moved_by"]
    if mover and (mover["pid"] is not None or not mover["kernel"]):
        return f"by {Mover(**mover)}"
    return "-" if record["owners"] is None else "nobody"


def _holder(record: dict[str, Any]) -> str:
    """Return who holds it; else who held it, where no process is known that moved it; empty for nobody."""
    holders, mover, before = record["owners"], record["moved_by"], record["last_owners"]
    if holders:
        more = f"+{len(holders) - 1}" if len(holders) > 1 else ""
        return f"{holders[0]['comm']}[{holders[0]['pid']}]{more}"
    if before and not (mover and mover["pid"] is not None):
        return f"was {before[0]['comm']}[{before[0]['pid']}]"
    return ""


_WIDTH: Final = 100
_HANG: Final = 21  # under the addresses


def line(record: dict[str, Any], names: TransitionNames, *, wide: bool = False) -> str:
    """Return a record as text: one line, or more where it would be wider than 100 columns.

    Args:
        record: of `records`.
        names: what things are called.
        wide: always one line, and no name shortened.
    """
    at = record["time"]
    hour = f"{at[11:23]}"
    if names.utc_offset_s:
        moment = dt.datetime.fromisoformat(at) + dt.timedelta(seconds=names.utc_offset_s)
        hour = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}"
    space = record["netns_name"] or ("-" if record["netns"] is None else str(record["netns"]))
    if not wide and len(space) > 7:
        space = "…" + space[-6:]
    ends = f"{endpoint(record['src'], record['sport'])} > {endpoint(record['dst'], record['dport'])}"
    old, new = record["old"] or "-", record["new"] or "-"
    change = f"{old}→{new}" if record["kind"] in ("transition", "polled") else old
    spent = record["in_old_us"]
    shown = "-" if spent is None else duration(spent * 1000)
    owner = _owner(record)
    pod = record["pod_uid"] or ""
    rest = [owner, f"pod={pod if wide else pod[:8]}" if pod else "", record["note"]]
    # Long addresses take their room from short states, so that the times stay in their column.
    both = f"{ends:32} {change}"
    out = [f"{hour:12} {space:7} {both:55} {shown:>6}"]
    for part, gap in zip(rest, (" ", " ", "  "), strict=True):
        if not part:
            continue
        if wide or len(out[-1]) + len(gap) + len(part) <= _WIDTH:
            out[-1] += gap + part
        else:
            out.append(" " * _HANG + part)
    return "\n".join(out)


def lines(table: TransitionTable, names: TransitionNames, *, wide: bool = False) -> Iterator[str]:
    """Yield one line a row."""
    for record in records(table, names):
        yield line(record, names, wide=wide)


def flat_names(record: dict[str, Any]) -> dict[str, str]:
    """Return the columns of a table that name processes."""
    mover = record["moved_by"]
    return {
        "owner": " ".join(f"{o['comm']}[{o['pid']}]" for o in record["owners"] or ()),
        "last_owner": " ".join(f"{o['comm']}[{o['pid']}]" for o in record["last_owners"] or ()),
        "moved_by": str(Mover(**mover)) if mover else "",
    }


def csv_line(record: dict[str, Any]) -> str:
    """Return a record as a line of CSV (RFC 4180 quoting, without the line end)."""
    flat = dict(record)
    flat |= flat_names(record)
    return ",".join(_cell(flat.get(name)) for name in CSV_COLUMNS)


def _cell(value: object) -> str:
    text = "" if value is None else csv_text(value) if isinstance(value, str) else str(value)
    if any(c in text for c in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def encode(record: dict[str, Any]) -> str:
    """Return a record as one line of JSON, the connection in the shape of every document."""
    return msgspec.json.encode(shaped(record)).decode()


def shaped(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of `records` in the shape of every document; its ``state`` is that after the change."""
    rest = {name: value for name, value in record.items() if name not in (*IDENTITY, *MORE)}
    first = {name: rest.pop(name) for name in ("time", "kind") if name in rest}
    end = connection(
        **{name: record.get(name) for name in IDENTITY if name not in ("protocol", "state")},  # type: ignore[arg-type]
        protocol=IPPROTO_TCP,  # the tracepoints and looks behind these rows are those of TCP alone
        state=record.get("state") or record.get("new"),
        inode=record["inode"],
        owners=_shaped_owners(record["owners"]),
        pod_uid=record["pod_uid"],
    )
    if "last_owners" in rest:
        rest["last_owners"] = _shaped_owners(rest["last_owners"])
    return first | end | rest


def _shaped_owners(owners: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return holders whose process is known, and not their descriptor."""
    return None if owners is None else [owner(holder["pid"], None, holder["comm"]) for holder in owners]


class _End(Struct):
    """One end of a connection: a socket, from its first row to its last."""

    me: tuple[str, int]
    records: list[dict[str, Any]] = field(default_factory=list)
    netns: int | None = None
    over: bool = False

    @property
    def local(self) -> bool:
        """Whether its addresses are those of one namespace alone."""
        return self.me[0].startswith("127.") or self.me[0] == "::1"

    def meets(self, other: _End) -> bool:
        """Whether it may be the other end, as far as namespace and time tell."""
        apart = None not in (self.netns, other.netns) and self.netns != other.netns
        if apart and (self.local or other.local):
            return False
        first, second = sorted((self, other), key=lambda end: str(end.records[0]["time"]))
        return _parse(second.records[0]["time"]) <= _parse(first.records[-1]["time"]) + _TOGETHER_US


_TOGETHER_US: Final = 1_000_000
"""The second end of a connection appears at the latest so long after the last row of the first."""


class Stories:
    """Both ends of one connection as one story, told when the last known end is over.

    Two sockets are the ends of one connection when their addresses and ports are each other's and no third socket's:
    namespaces that are not connected may use the same, so sockets of one namespace find each other first, and where
    more than one would fit each is told alone. What a translator rewrites in between stays two stories. A connection
    is over when every end that was seen has gone to CLOSE (or disappeared).

    Args:
        most: rows to keep; beyond it the oldest story is told as it stands.
    """

    def __init__(self, *, most: int = 200_000) -> None:
        self._open: dict[tuple[Any, ...], dict[tuple[Any, ...], _End]] = {}
        """Both endpoints → socket → its rows."""
        self._most = most
        self._kept = 0
        self.told = 0
        self.cut = 0
        """Stories told before they were over, for want of room."""

    def add(self, table: TransitionTable, names: TransitionNames) -> Iterator[list[str]]:
        """Take rows in; yield the lines of each story that they finish."""
        for record, life, over in zip(
            records(table, names), table.life.tolist(), table.over.tolist(), strict=True
        ):
            if not record["sport"] or not record["dport"]:
                continue
            source, peer = (record["src"], record["sport"]), (record["dst"], record["dport"])
            pair = tuple(sorted((source, peer)))
            changed = record["kind"] in ("transition", "polled")
            if not changed and over and pair not in self._open:
                continue  # a reset that came when its story had been told
            ends = self._open.setdefault(pair, {})
            # A socket is known by its life or its cookie; a polled row has no life.
            socket = (
                ("life", life, source) if life >= 0 else ("cookie", record["netns"], record["cookie"], source)
            )
            end = ends.setdefault(socket, _End(source))
            end.records.append(record)
            end.netns = record["netns"] if record["netns"] is not None else end.netns
            end.over = end.over or (changed and record["new"] in ("CLOSE", None))
            self._kept += 1
            if end.over and all(member.over for member in ends.values()):
                yield from self._finish(pair)
            while self._kept > self._most:
                self.cut += 1
                yield from self._finish(next(iter(self._open)), over=False)

    def rest(self) -> Iterator[list[str]]:
        """Yield what is not over yet."""
        for pair in list(self._open):
            yield from self._finish(pair, over=False)

    def _finish(self, pair: tuple[Any, ...], *, over: bool = True) -> Iterator[list[str]]:
        ends = list(self._open.pop(pair).values())
        self._kept -= sum(len(end.records) for end in ends)
        for both, alone in _connections(ends):
            rows = [record for end in both for record in end.records]
            yield self._tell(rows, _where(both), alone=alone, over=over)

    def _tell(self, story: list[dict[str, Any]], where: str, *, alone: bool, over: bool) -> list[str]:
        self.told += 1
        first = min(story, key=lambda r: r["time"])
        opener = next((r for r in story if r["new"] == "SYN_SENT"), first)
        client = (opener["src"], opener["sport"])
        title = f"{endpoint(*client)} > {endpoint(opener['dst'], opener['dport'])}"
        known = opener["new"] == "SYN_SENT"
        out = [f"connection {title}" + where + ("" if over else "  (not over yet)")]
        if alone:
            out.append(
                f"  {'':>10}     its other end is ambiguous: these addresses are in use more than once"
            )
        start = _parse(first["time"])
        for record in sorted(story, key=lambda r: r["time"]):
            from_client = (record["src"], record["sport"]) == client
            side = ("client" if from_client else "server") if known else ("A" if from_client else "B")
            ms = (_parse(record["time"]) - start) / 1000
            spent = record["in_old_us"]
            after = "" if spent is None else f" after {duration(spent * 1000)}"
            holder = _holder(record)
            holder_text = f"  {holder}" if holder else ""
            change = f"{record['old'] or '-'}→{record['new'] or '-'}"
            text = f"  {ms:>10.3f} ms  {side:6} {change}{after}{holder_text}"
            if record["note"] and len(text) + 2 + len(record["note"]) <= _WIDTH:
                text += f"  {record['note']}"
            elif record["note"]:
                text += f"\n{' ' * 24}{record['note']}"
            out.append(text)
        return out


def _connections(ends: list[_End]) -> list[tuple[list[_End], bool]]:
    """Return which of the ends with one pair of endpoints belong together, and whether more than one would fit."""
    doubtful: set[int] = set()
    partner: dict[int, int] = {}

    def join(fits: Callable[[_End, _End], bool]) -> None:
        free = [k for k in range(len(ends)) if k not in partner]
        candidates = {
            k: [
                j
                for j in free
                if ends[j].me != ends[k].me and ends[k].meets(ends[j]) and fits(ends[k], ends[j])
            ]
            for k in free
        }
        for k, others in candidates.items():
            if len(others) == 1 and candidates[others[0]] == [k]:
                partner[k] = others[0]
            elif others:
                doubtful.add(k)

    join(lambda a, b: a.netns is not None and a.netns == b.netns)
    doubtful.clear()
    join(lambda _a, _b: True)
    result = []
    for k, end in enumerate(ends):
        other = partner.get(k)
        if other is None:
            result.append(([end], k in doubtful))
        elif k < other:
            result.append(([end, ends[other]], False))
    return result


def _where(ends: list[_End]) -> str:
    """Return the namespaces of a connection, as far as they are known."""
    names: dict[int, str] = {}
    for end in ends:
        for record in end.records:
            if record["netns"] is not None:
                names[record["netns"]] = record["netns_name"] or str(record["netns"])
    return f"  netns {' and '.join(names.values())}" if names else ""


def _parse(text: str) -> int:
    """Return microseconds since 1970 of a time that `_utc` wrote."""
    moment = dt.datetime.fromisoformat(text)
    return int((moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) / dt.timedelta(microseconds=1))


def _state(number: int) -> str | None:
    """Return the name of a state that a row has; 0 is none."""
    return tcp.state_name(number) if number else None


class Summary:
    """Histograms of the time spent in each state, in powers of two; of any number of rows in the same little room."""

    def __init__(self) -> None:
        self._counts: dict[int, NDArray[np.int64]] = {}
        """State → how many times lay in each of `histogram.FINE` parts of each power of two."""

    def add(self, rows: TransitionTable) -> None:
        """Count rows."""
        known = rows.present("in_old_ns") & (rows.oldstate != rows.newstate) & (rows.kind == tr.TRANSITION)
        for state in distinct(rows.oldstate[known]).tolist():
            counts = histogram.fine_histogram(rows.in_old_ns[known & (rows.oldstate == state)])
            before = self._counts.get(state)
            self._counts[state] = counts if before is None else before + counts

    def lines(self, *, width: int = 40) -> list[str]:
        """Return one block of lines a state, the most frequent state first."""
        out: list[str] = []
        for state, fine in sorted(self._counts.items(), key=lambda item: -int(item[1].sum())):
            median = duration(histogram.fine_median_ns(fine))
            out.append(f"{tcp.state_name(state)}: {int(fine.sum())} times, median {median}")
            bounds, counts = histogram.coarse(fine)
            seen = np.flatnonzero(counts)
            most = int(counts.max())
            for k in range(int(seen[0]), int(seen[-1]) + 1):
                low = int(bounds[k])
                label = f"{duration(low * 1000)} … {duration((2 * low if low else 1) * 1000)}"
                bar = "#" * max(round(width * int(counts[k]) / most), 1 if counts[k] else 0)
                out.append(f"  {label:>17} {int(counts[k]):>8} |{bar}")
        return out


def flows(counts: Mapping[tuple[int, int], int]) -> Iterable[str]:
    """Yield ``old→new  number`` of every edge of the state diagram that was used, most first."""
    for (old, new), number in sorted(counts.items(), key=lambda item: -item[1]):
        yield f"{_state(old) or '-'}→{_state(new) or '-':12} {number:>9}"
