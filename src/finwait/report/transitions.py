"""Transitions as characters: a line each, a story for each connection, a histogram for each state.

One surprise is told rather than printed as the kernel words it: ``FIN_WAIT2→CLOSE`` of an orphan is "became
a minisocket", and ``FIN_WAIT2→FIN_WAIT2`` is the owner's close() of what was shut down before. What is not
known stays out of the line.

This module knows no clock and no process: names are handed in (`Names`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from finwait.report.json import addresses
from finwait.table import transitions as tr
from finwait.table.transitions import TransitionTable
from finwait.table.units import csv_text
from finwait.uapi import tcp

__all__ = [
    "CSV_COLUMNS",
    "Names",
    "Stories",
    "csv_line",
    "duration",
    "encode",
    "endpoint",
    "flows",
    "header",
    "line",
    "lines",
    "records",
    "summary",
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
    "moved_by", "cookie", "inode", "became", "expires_ms", "reset", "reason", "note",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Names:
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
    tasks: Mapping[int, str] = field(default_factory=dict)
    """pid → name of tasks that moved a connection."""
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
    shown = str(port) if port else "*"
    return f"[{address}]:{shown}" if ":" in address else f"{address}:{shown}"


def header() -> str:
    """Return the line above the lines."""
    return f"{'TIME':12} {'NETNS':7} {'LOCAL > PEER':32} {'OLD→NEW':22} {'IN OLD':>6} OWNER"


def records(table: TransitionTable, names: Names) -> Iterator[dict[str, Any]]:
    """Yield each row as an object of plain values; what is not known is None."""
    src, dst = addresses(table.src), addresses(table.dst)
    have = {
        name: table.present(name).tolist()
        for name in ("in_old_ns", "netns", "cookie", "inode", "cgroup_id", "became", "expires_ms", "reset",
                     "reason", "after_ns")
    }  # fmt: skip
    cells = {name: table[name].tolist() for name in tr.SCHEMA.names if name not in ("src", "dst")}

    def value(name: str, k: int) -> Any:  # noqa: ANN401 - a cell
        return cells[name][k] if have[name][k] else None

    for k in range(len(table)):
        kind = cells["kind"][k]
        inode = cells["inode"][k]
        pid = cells["pid"][k]
        mover = None
        if kind != tr.POLLED and not cells["interrupt"][k] and pid:
            mover = {"pid": pid, "comm": names.tasks.get(pid, "")}
        in_old = value("in_old_ns", k)
        reset = value("reset", k)
        became = value("became", k)
        reason = value("reason", k)
        holders = names.owners.get(inode) if inode else None
        record: dict[str, Any] = {
            "time": _utc(cells["time_ns"][k] + names.wall_offset_ns),
            "kind": _KINDS.get(kind, str(kind)),
            "netns": value("netns", k),
            "netns_name": next(iter(names.netns.get(cells["netns"][k], ())), None),
            "src": src[k],
            "sport": cells["sport"][k],
            "dst": dst[k],
            "dport": cells["dport"][k],
            "old": tcp.STATES.get(cells["oldstate"][k]),
            "new": tcp.STATES.get(cells["newstate"][k]),
            "in_old_us": None if in_old is None else in_old // 1000,
            "owners": None if holders is None else [{"pid": p, "comm": c} for p, c in holders],
            "pod_uid": names.pods.get(cells["cgroup_id"][k]) or None,
            "moved_by": mover,
            "cookie": value("cookie", k),
            "inode": value("inode", k),
            "became": None if became is None else tcp.STATES.get(became),
            "expires_ms": value("expires_ms", k),
            "reset": {2: "received", 3: "sent"}.get(reset or 0),
            "reason": None if reason is None else names.reasons.get(reason, str(reason)),
        }
        if kind == tr.POLLED:
            record["after"] = _utc(cells["after_ns"][k] + names.wall_offset_ns)
        record["note"] = _note(
            kind, cells["oldstate"][k], cells["newstate"][k], record, looked_up=names.looked_up
        )
        yield record


def _note(kind: int, old: int, new: int, record: dict[str, Any], *, looked_up: bool) -> str:
    """Return what the row means where the two states do not say it."""
    if kind in (tr.RECEIVE_RESET, tr.SEND_RESET, tr.RETRANSMIT):
        said = {
            tr.RECEIVE_RESET: "reset received",
            tr.SEND_RESET: "reset sent",
            tr.RETRANSMIT: "retransmission",
        }
        return said[kind] + (f" ({record['reason']})" if record["reason"] else "")
    if record["became"] == "FIN_WAIT2":
        left = record["expires_ms"] / 1000
        return f"became a minisocket, still FIN_WAIT2; gone by itself in {left:.1f} s"
    if record["became"] == "TIME_WAIT":
        return f"became a minisocket in TIME_WAIT; gone in {record['expires_ms'] / 1000:.1f} s"
    if kind == tr.POLLED:
        return {True: "gone", False: "first seen" if old == 0 else ""}[new == 0]
    if new == tcp.CLOSE and record["reset"]:
        return f"ended by a reset that was {record['reset']}"
    if old == new:
        mover = record["moved_by"]
        return "closed by its owner" + (f", {mover['comm'] or 'pid'}[{mover['pid']}]" if mover else "")
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
        return "no minisocket was seen after it: destroyed, timed out, or over before we looked"
    return ""


def _utc(ns: int) -> str:
    seconds, rest = divmod(ns, 1_000_000_000)
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06}Z"


def _owner(record: dict[str, Any]) -> str:
    holders = record["owners"]
    if not holders:
        return "-"
    first = f"{holders[0]['comm']}[{holders[0]['pid']}]"
    return first + (f"+{len(holders) - 1}" if len(holders) > 1 else "")


_WIDTH: Final = 100
_HANG: Final = 21  # under the addresses


def line(record: dict[str, Any], names: Names, *, wide: bool = False) -> str:
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
    if owner == "-" and record["moved_by"]:
        mover = record["moved_by"]
        owner = f"by {mover['comm'] or 'pid'}[{mover['pid']}]"
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


def lines(table: TransitionTable, names: Names, *, wide: bool = False) -> Iterator[str]:
    """Yield one line a row."""
    for record in records(table, names):
        yield line(record, names, wide=wide)


def csv_line(record: dict[str, Any]) -> str:
    """Return a record as a line of CSV (RFC 4180 quoting, without the line end)."""
    flat = dict(record)
    flat["owner"] = " ".join(f"{o['comm']}[{o['pid']}]" for o in record["owners"] or ())
    mover = record["moved_by"]
    flat["moved_by"] = f"{mover['comm']}[{mover['pid']}]" if mover else ""
    return ",".join(_cell(flat.get(name)) for name in CSV_COLUMNS)


def _cell(value: object) -> str:
    text = "" if value is None else csv_text(value) if isinstance(value, str) else str(value)
    if any(c in text for c in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def encode(record: dict[str, Any]) -> str:
    """Return a record as one line of JSON."""
    return msgspec.json.encode(record).decode()


class Stories:
    """Both ends of one connection as one story, told when the last known end is over.

    The ends are joined by their addresses and ports; what a translator rewrites in between stays two
    stories. A connection is over when every end that was seen has gone to CLOSE (or disappeared).
    """

    def __init__(self) -> None:
        self._open: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        self._live: dict[tuple[Any, ...], set[tuple[str, int]]] = {}
        self.told = 0

    def add(self, table: TransitionTable, names: Names) -> Iterator[list[str]]:
        """Take rows in; yield the lines of each story that they finish."""
        for record in records(table, names):
            if not record["sport"] or not record["dport"]:
                continue
            me, peer = (record["src"], record["sport"]), (record["dst"], record["dport"])
            key = self._key(me, peer, record["netns"])
            self._open.setdefault(key, []).append(record)
            live = self._live.setdefault(key, set())
            if record["new"] in ("CLOSE", None) and record["kind"] in ("transition", "polled"):
                live.discard(me)
                if not live:
                    del self._live[key]
                    yield self._tell(self._open.pop(key))
            else:
                live.add(me)

    def _key(self, me: tuple[str, int], peer: tuple[str, int], netns: int | None) -> tuple[Any, ...]:
        """Return the story that a row belongs to; loopback addresses are one namespace's own.

        An end whose namespace is not known joins the only open story with these numbers, if there is one.
        """
        first, second = sorted((me, peer))
        if not (me[0].startswith("127.") or me[0] == "::1"):
            return (first, second, None)
        if netns is not None:
            exact = (first, second, netns)
            return (
                exact
                if exact in self._open or (first, second, None) not in self._open
                else (first, second, None)
            )
        same = [key for key in self._open if key[:2] == (first, second)]
        return same[0] if len(same) == 1 else (first, second, None)

    def rest(self) -> Iterator[list[str]]:
        """Yield what is not over yet."""
        for story in list(self._open.values()):
            yield self._tell(story, over=False)
        self._open.clear()
        self._live.clear()

    def _tell(self, story: list[dict[str, Any]], *, over: bool = True) -> list[str]:
        self.told += 1
        first = min(story, key=lambda r: r["time"])
        opener = next((r for r in story if r["new"] == "SYN_SENT"), first)
        client = (opener["src"], opener["sport"])
        title = f"{endpoint(*client)} > {endpoint(opener['dst'], opener['dport'])}"
        known = opener["new"] == "SYN_SENT"
        out = [f"connection {title}" + ("" if over else "  (not over yet)")]
        start = _parse(first["time"])
        for record in sorted(story, key=lambda r: r["time"]):
            mine = (record["src"], record["sport"]) == client
            side = ("client" if mine else "server") if known else ("A" if mine else "B")
            ms = (_parse(record["time"]) - start) / 1000
            spent = record["in_old_us"]
            after = "" if spent is None else f" after {duration(spent * 1000)}"
            owner = _owner(record)
            who = f"  {owner}" if owner != "-" else ""
            change = f"{record['old'] or '-'}→{record['new'] or '-'}"
            text = f"  {ms:>10.3f} ms  {side:6} {change}{after}{who}"
            if record["note"] and len(text) + 2 + len(record["note"]) <= _WIDTH:
                text += f"  {record['note']}"
            elif record["note"]:
                text += f"\n{' ' * 24}{record['note']}"
            out.append(text)
        return out


def _parse(text: str) -> int:
    """Return microseconds since 1970 of a time that `_utc` wrote."""
    moment = dt.datetime.fromisoformat(text)
    return int((moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) / dt.timedelta(microseconds=1))


def summary(rows: TransitionTable, *, width: int = 40) -> list[str]:
    """Return histograms of the time spent in each state, one block a state, in powers of two."""
    known = rows.present("in_old_ns") & (rows.oldstate != rows.newstate) & (rows.kind == tr.TRANSITION)
    out: list[str] = []
    for state in sorted(
        set(rows.oldstate[known].tolist()), key=lambda s: -int((rows.oldstate[known] == s).sum())
    ):
        spent = rows.in_old_ns[known & (rows.oldstate == state)]
        bounds, counts = tr.histogram(spent)
        median = int(np.sort(spent)[len(spent) // 2])
        out.append(f"{tcp.STATES.get(state, state)}: {len(spent)} times, median {duration(median)}")
        seen = np.flatnonzero(counts)
        most = int(counts.max())
        for k in range(int(seen[0]), int(seen[-1]) + 1):
            low = int(bounds[k])
            high = int(bounds[k + 1]) if k + 1 < len(bounds) else 2 * low if low else 1
            bar = "#" * max(round(width * int(counts[k]) / most), 1 if counts[k] else 0)
            label = f"{duration(low * 1000)} … {duration(high * 1000)}"
            out.append(f"  {label:>17} {int(counts[k]):>8} |{bar}")
    return out


def flows(counts: Mapping[tuple[int, int], int]) -> Iterable[str]:
    """Yield ``old→new  number`` of every edge of the state diagram that was used, most first."""
    for (old, new), number in sorted(counts.items(), key=lambda item: -item[1]):
        yield f"{tcp.STATES.get(old, '-')}→{tcp.STATES.get(new, '-'):12} {number:>9}"
