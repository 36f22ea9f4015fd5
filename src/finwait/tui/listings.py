"""What the lists of the live view show: groups, connections, settings, acts.

A `Listing` makes the cells of the lines that are on the screen, no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import View
from finwait.report.board import MARKS, Group, Judged
from finwait.report.columns import Cells
from finwait.report.groups import Grouping
from finwait.report.history import History
from finwait.report.journal import ActLine
from finwait.report.overview import ends, held_by, moves_of, place
from finwait.report.sparkline import bar, sparkline
from finwait.report.tune import InForce
from finwait.session import Diagnosis
from finwait.table.units import duration_text
from finwait.tui.header import per_minute
from finwait.tui.rows import Cell, Listing, Titled
from finwait.uapi import tcp

__all__ = ["ROW_SORTS", "acts", "connections", "group_list", "settings", "sorted_rows"]

_BAR: Final = 8
_SPARK: Final = 12
_ROLES: Final = {"problem": "problem", "notice": "notice", "healthy": "healthy", None: "dim"}

_CAUSES: Final = (
    Titled(""), Titled("count", right=True), Titled("share", 7), Titled("cause", least=19, cut=2, middle=True),
    Titled("held by", 3, least=10, cut=1), Titled("where", 8, least=8), Titled("state", 9),
    Titled("oldest", 4, right=True), Titled("ends", 2), Titled("whose move", 1, least=14),
    Titled("new/min", 5, right=True), Titled("last minutes", 6),
)  # fmt: skip
_OTHERS: Final = (
    Titled(""), Titled("count", right=True), Titled("share", 6), Titled("stuck", 1, right=True),
    Titled("name", least=26), Titled("worst cause", 2, least=20), Titled("oldest", 3, right=True),
    Titled("new/min", 4, right=True), Titled("last minutes", 5), Titled("states", 7, least=16),
)  # fmt: skip


def group_list(
    diagnosis: Diagnosis,
    shown: Sequence[Group],
    by: Grouping,
    *,
    new: Mapping[str, float | None],
    rates: History,
    span_s: float,
) -> Listing:
    """Return groups in this order as a list, with the rates at which connections come to them (by key)."""
    view = diagnosis.view
    most = max((group.count for group in shown), default=0)
    places = {group.key: k for k, group in enumerate(shown)}
    ill = [f for group in shown if (f := group.finding) is not None and f.severity != "healthy"]
    holders = dict(zip(map(id, ill), held_by(view, ill), strict=True)) if by == "cause" else {}

    def cells(begin: int, end: int) -> list[list[Cell]]:
        lines: list[list[Cell]] = []
        for group in shown[begin:end]:
            role, finding = _ROLES[group.severity], group.finding
            oldest = duration_text(group.oldest_ms) if group.oldest_ms >= 0 else "?"
            head: list[Cell] = [(group.mark, role), f"{group.count:,}", (bar(group.count, most, _BAR), role)]
            if by != "cause":
                stuck: Cell = (f"{group.stuck:,}", "problem") if group.stuck else ("0", "dim")
                lines.append(
                    [
                        *head,
                        stuck,
                        group.title,
                        group.cause or "-",
                        oldest,
                        *_rate(group, new, rates, span_s),
                        _states(diagnosis, group),
                    ]
                )
                continue
            state = _state(diagnosis, group)
            about = _about(view, finding, holders.get(id(finding)))
            cause: Cell = (group.title, role)
            lines.append(
                [*head, cause, *about[:2], state, oldest, *about[2:], *_rate(group, new, rates, span_s)]
            )
        return lines

    columns = _CAUSES if by == "cause" else (*_OTHERS[:4], Titled(by, least=26), *_OTHERS[5:])
    return Listing(
        columns,
        len(shown),
        cells,
        lambda n: shown[n].key if n < len(shown) else None,
        lambda key: places.get(str(key)),
    )


def _about(
    view: View, finding: Finding | None, forms: tuple[str, ...] | None
) -> tuple[Cell, Cell, Cell, Cell]:
    """Return who holds what a finding is about, where, when it ends, and whose move it is; dashes if healthy."""
    if finding is None or forms is None:
        return "-", "-", "-", "-"
    (moves,) = moves_of(view, [finding])
    return (forms[0], "", forms[-1]), place(view, finding), ends(view, finding), (moves[0], "", moves[2])


def _rate(group: Group, new: Mapping[str, float | None], rates: History, span_s: float) -> tuple[Cell, Cell]:
    """Return how many connections came to a group, in a minute, and at the looks before."""
    per_min = new.get(group.key)
    line = sparkline(rates.levels(group.key, _SPARK, span_s), _SPARK)
    role = "dim" if not per_min else "problem" if group.severity == "problem" else "accent"
    return ("?" if per_min is None else per_minute(per_min) if per_min else "0", role), (line, role)


def _counted(diagnosis: Diagnosis, group: Group) -> list[tuple[int, int]]:
    """Return the states of a group with how many are in each, most first."""
    numbers, counts = np.unique(diagnosis.view.sockets.state[group.rows], return_counts=True)
    pairs = zip(numbers.tolist(), counts.tolist(), strict=True)
    return sorted(pairs, key=lambda pair: -pair[1])


def _state(diagnosis: Diagnosis, group: Group) -> str:
    states = _counted(diagnosis, group)
    if not states:
        return "-"
    name = tcp.state_name(states[0][0])
    return name if len(states) == 1 else f"{name} +{len(states) - 1}"


def _states(diagnosis: Diagnosis, group: Group) -> str:
    return ", ".join(f"{tcp.state_name(state)} {count:,}" for state, count in _counted(diagnosis, group))


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────

_CELLS: Final = {
    "state": ("state_name", 0), "local": ("local", 3), "peer": ("peer", 1), "age": ("age", 2), "owner": ("owner", 5),
    "cause": ("rule", 4), "netns": ("netns_name", 6),
}  # fmt: skip
"""Title → column, and how soon it is left out; ages are shown as the time that is sure, `explain` has both bounds."""
_ADDRESS: Final = len("255.255.255.255:65535")
"""What is longer is cut where there is no room: without one of its ends, connections look alike."""
_COUNTERS: Final = {
    "recv-q": "rqueue",
    "send-q": "wqueue",
    "received": "bytes_received",
    "acked": "bytes_acked",
}
ROW_SORTS: Final = ("age", "harm", "state", "local", "peer", "netns", "owner", *_COUNTERS)
"""What connections can be sorted by; the oldest, or the most, first. A counter is then a column, too."""


def _titles(sort: str) -> dict[str, tuple[str, int]]:
    """Return title → column and rank: what is sorted by is never left out."""
    if sort in ("age", "harm", "state", "local", "peer"):
        return dict(_CELLS)
    first = {name: _CELLS[name] for name in ("state", "local", "peer", "age")}
    return {
        **first,
        sort: (_COUNTERS.get(sort) or _CELLS[sort][0], 0),
        **{k: v for k, v in _CELLS.items() if k != sort},
    }


def sorted_rows(
    diagnosis: Diagnosis, verdicts: Judged, rows: NDArray[np.int64], sort: str
) -> NDArray[np.int64]:
    """Return rows in an order of `ROW_SORTS`."""
    view = diagnosis.view
    s = view.sockets
    longest = -view.at_least_ms[rows]
    keys: tuple[NDArray[np.int64], ...] = (longest,)
    if sort == "harm":
        keys = (longest, -verdicts.rank[rows].astype(np.int64))
    elif sort == "state":
        keys = (longest, s.state[rows])
    elif sort == "peer":
        keys = (s.dport[rows], s.dst[rows, 1], s.dst[rows, 0])
    elif sort == "local":
        keys = (s.sport[rows], s.src[rows, 1], s.src[rows, 0])
    elif sort == "netns":
        keys = (longest, s.netns[rows])
    elif sort == "owner":
        keys = (longest, view.holders.first_pid()[rows])
    elif sort != "age":
        keys = (longest, -s.column(_COUNTERS[sort])[rows].astype(np.int64))
    return rows[np.lexsort(keys)]


def connections(diagnosis: Diagnosis, verdicts: Judged, rows: NDArray[np.int64], sort: str) -> Listing:
    """Return connections as a list, in this order."""
    s = diagnosis.view.sockets
    netns, cookie = s.netns[rows], s.column("cookie")[rows]
    titles = _titles(sort)

    def cells(begin: int, end: int) -> list[list[Cell]]:
        shown = rows[begin:end]
        table = Cells(diagnosis.view, shown, diagnosis.findings)
        columns: list[list[Cell]] = [
            ["-" if v in (None, "") else str(v) for v in table.column(name)] for name, _ in titles.values()
        ]
        least = diagnosis.view.at_least_ms[shown].tolist()
        columns[list(titles).index("age")] = [duration_text(ms) if ms >= 0 else "?" for ms in least]
        severities = [verdicts.severity(shown[k : k + 1]) for k in range(len(shown))]
        marks: list[Cell] = [(MARKS[severity], _ROLES[severity]) for severity in severities]
        return [list(row) for row in zip(marks, *columns, strict=True)]

    def key(n: int) -> tuple[int, int] | None:
        return (int(netns[n]), int(cookie[n])) if n < len(rows) else None

    def place_of(key: object) -> int | None:
        if not isinstance(key, tuple):
            return None
        where = np.flatnonzero((netns == key[0]) & (cookie == key[1]))
        return int(where[0]) if len(where) else None

    columns = tuple(
        Titled(
            title,
            rank,
            right=title in ("age", *_COUNTERS),
            least=12
            if title in ("owner", "netns", "cause")
            else _ADDRESS
            if title in ("local", "peer")
            else 0,
            tail=title in ("local", "peer"),
        )
        for title, (_, rank) in titles.items()
    )
    return Listing((Titled(""), *columns), len(rows), cells, key, place_of)


# ── settings and acts ────────────────────────────────────────────────────────────────────────────────────

_SETTINGS: Final = (
    Titled(""), Titled("setting", least=20, middle=True), Titled("value", right=True), Titled("default", 2, right=True),
    Titled("verdict", 1), Titled("where", 3, least=16), Titled("on what is stuck now", 4, least=26),
    Titled("why", 5, least=40),
)  # fmt: skip
_VERDICTS: Final = {"HARMFUL": "problem", "only when": "notice", "helps": "healthy"}


def settings(lines: Sequence[InForce]) -> Listing:
    """Return settings in force as a list."""

    def cells(begin: int, end: int) -> list[list[Cell]]:
        out: list[list[Cell]] = []
        for line in lines[begin:end]:
            role = _VERDICTS.get(line.verdict_text, "dim")
            mark = {"problem": "✗", "notice": "▲", "healthy": "✓"}.get(role, "·")
            default = str(line.default) if line.default is not None else "by memory"
            name = line.setting.key.removeprefix("net.")
            out.append(
                [
                    (mark, role),
                    name,
                    line.value,
                    (default, "dim"),
                    (line.verdict_text, role),
                    line.where,
                    line.on_stuck or "-",
                    line.why or "-",
                ]
            )
        return out

    return Listing(
        _SETTINGS, len(lines), cells, lambda n: ("setting", n) if n < len(lines) else None,
        lambda key: key[1] if isinstance(key, tuple) and key[0] == "setting" and key[1] < len(lines) else None,
    )  # fmt: skip


_ACTS: Final = (
    Titled(""), Titled("act", right=True), Titled("when", 1), Titled("who", 5), Titled("kind"), Titled("to", least=12),
    Titled("why", 4, least=10), Titled("result", 2, least=10),
)  # fmt: skip


def acts(lines: Sequence[ActLine]) -> Listing:
    """Return acts of the journal as a list."""

    def cells(begin: int, end: int) -> list[list[Cell]]:
        return [
            [
                ("✗", "problem") if line.failed else ("✓", "healthy"), str(line.id), line.when, line.user, line.kind,
                line.whom, line.why, (line.result, "problem" if line.failed else ""),
            ]
            for line in lines[begin:end]
        ]  # fmt: skip

    places = {line.id: k for k, line in enumerate(lines)}
    return Listing(
        _ACTS, len(lines), cells, lambda n: ("act", lines[n].id) if n < len(lines) else None,
        lambda key: places.get(key[1]) if isinstance(key, tuple) and key[0] == "act" else None,
    )  # fmt: skip
