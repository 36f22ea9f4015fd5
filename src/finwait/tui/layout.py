"""How the live view is laid out, which keys it has, and the numbers that its upper part shows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

import numpy as np
from textual.binding import Binding, BindingType

from finwait.report.board import Group, Judged
from finwait.report.groups import Grouping
from finwait.report.state_diagram import Numbers
from finwait.session import Diagnosis
from finwait.table.trace_filter import may_be_in
from finwait.tui.note import compared
from finwait.tui.paint import THEME
from finwait.tui.tabs import TABS
from finwait.uapi import tcp
from finwait.watching import Picture

__all__ = [
    "BESIDE",
    "COMMANDS",
    "CSS",
    "FORESEEN",
    "GRAPH",
    "KEYS",
    "KEY_ACTIONS",
    "LIST",
    "TALL",
    "marked_groups",
    "numbers_of",
    "other_problems",
    "place_of",
    "row_of",
    "spaces_of",
    "stuck_shares",
]

CSS: Final = (
    THEME
    + """
Screen { layout: vertical; }
#head, #tabs, #status { height: 1; }
#head, #tabs { background: $panel; }
#status { background: $surface; color: $text-muted; }
#diagram, #past { height: auto; }
#body { height: 1fr; }
#rows { width: 1fr; height: 100%; padding: 0 1 0 0; }
#side { display: none; height: 100%; border-left: solid $primary; padding: 0 0 0 1; scrollbar-size-vertical: 1; }
#side.open { display: block; }
#side:focus { border-left: heavy $accent; }
#evidence { height: auto; }
#ask { height: auto; display: none; }
#ask.open { display: block; }
#wrong { height: auto; color: $text-error; }
Input { border: none; height: 1; padding: 0; }
Page { background: $background; }
#page { overflow: auto; }
#text { width: auto; }
.tiny #head, .tiny #tabs { display: none; }
"""
)
KEYS: Final[tuple[BindingType, ...]] = (
    Binding("q", "quit", "quit"),
    Binding("question_mark", "help", "help", key_display="?"),
    Binding("g", "group(1)", "group"),
    Binding("G", "group(-1)", show=False),
    Binding("colon", "command_palette", show=False),
    Binding("s", "sort", "sort"),
    Binding("r", "reverse", show=False),
    Binding("slash", "ask", "filter"),
    Binding("m", "mark", "mark"),
    Binding("u", "unmark", show=False),
    Binding("c", "clear", "clear"),
    Binding("i", "inform", show=False),
    Binding("d", "renew", show=False),
    Binding("n", "turn(1)", show=False),
    Binding("p", "turn(-1)", show=False),
    Binding("space", "pause", "pause"),
    Binding("escape", "leave", "back"),
    Binding("e", "established", show=False),
    Binding("t", "change_theme", "theme"),
    *(Binding(str(k), f"view({k - 1})", show=False) for k in range(1, 7)),
)

KEY_ACTIONS: Final = {str(binding.key): binding.action for binding in KEYS if isinstance(binding, Binding)}
COMMANDS: Final = (
    ("Theme", "other colours", "t"),
    *((name, about, str(k)) for k, (name, about) in enumerate(TABS, 1)),
    ("Filter", "show only some connections", "slash"),
    ("Pause", "stop drawing, or go on", "space"),
    ("Clear", "plan to clear what is marked", "c"),
    ("Help", "the keys", "question_mark"),
    ("Quit", "leave", "q"),
)
"""What the command palette offers: name, what it does, and the key that does the same. None of it writes a file."""

FORESEEN: Final = 40
"""Groups whose end is worked out before they are shown."""
BESIDE: Final = 100
TALL: Final = 48
GRAPH: Final = 5
"""Columns and lines from which on there are graphs of the past, and the lines of these."""
LIST: Final = 12
"""Lines that the rest needs where the diagram is shown: a list of some lines, and what says what it is."""


def other_problems(diagnosis: Diagnosis) -> int:
    """Return how many problems are not about connections: a full accept queue, descriptors of what is gone."""
    connections = diagnosis.view.sockets.state != tcp.LISTEN
    return sum(not connections[f.rows].any() for f in diagnosis.problems)


def stuck_shares(picture: Picture, judgements: Judged | None) -> dict[int, float | None] | None:
    """Return how much of each state is stuck, by the newest diagnosis; None before the first."""
    diagnosis = picture.diagnosis
    if diagnosis is None or judgements is None:
        return None
    state = diagnosis.view.sockets.state
    rows = picture.rows
    if picture.circumstances.row_filter is None:
        rows = np.arange(len(state))
    problem = judgements.rank[rows] == 3
    every = np.bincount(state[rows], minlength=256)
    bad = np.bincount(state[rows][problem], minlength=256)
    shares: dict[int, float | None] = {s: float(bad[s] / every[s]) for s in np.flatnonzero(bad).tolist()}
    if diagnosis.view.established_skipped:  # of those that were only counted nothing is known
        total = max(picture.counts.get(tcp.ESTABLISHED, 0), 1)
        least = float(bad[tcp.ESTABLISHED]) / total
        shares[tcp.ESTABLISHED] = min(least, 1.0) if least else None
    return shares


def spaces_of(picture: Picture, diagnosis: Diagnosis) -> frozenset[int]:
    """Return the namespaces that a FILTER is about: where it selects something, or else may; all without a FILTER."""
    row_filter, view = picture.circumstances.row_filter, diagnosis.view
    if row_filter is None:
        return frozenset(view.namespaces)
    inodes = {f.netns for f in diagnosis.findings if f.primary} | set(
        view.sockets.netns[picture.rows].tolist()
    )
    inodes &= view.namespaces.keys()
    if not inodes:
        inodes = {
            n for n, space in view.namespaces.items() if may_be_in(row_filter, n, (*space.names, str(n)))
        }
    return frozenset(inodes)


def marked_groups(
    diagnosis: Diagnosis, groups: Sequence[Group], marked: Collection[tuple[int, int]]
) -> tuple[set[str], set[str]]:
    """Return the keys of groups of which all connections are marked, and of those of which some are."""
    if not marked:
        return set(), set()
    s = diagnosis.view.sockets
    spaces, cookies = (np.array(part) for part in zip(*marked, strict=True))
    pairs = s.column("cookie").astype(np.uint64) + (s.netns.astype(np.uint64) << np.uint64(40))
    chosen = np.isin(pairs, cookies.astype(np.uint64) + (spaces.astype(np.uint64) << np.uint64(40)))
    wholly = {group.key for group in groups if len(group.rows) and chosen[group.rows].all()}
    return wholly, {group.key for group in groups if chosen[group.rows].any()} - wholly


def numbers_of(
    picture: Picture | None, judgements: Judged | None, levels: Callable[[int, int], Sequence[float | None]]
) -> Numbers:
    """Return what the diagram shows of a picture; before the first one nothing is known."""
    if picture is None:
        return Numbers({}, None, "nothing was counted yet", known=False)
    stuck, why = stuck_shares(picture, judgements), picture.circumstances.why_no_flows
    return Numbers(picture.counts, picture.flows, why, stuck, compared(picture), levels=levels)


def row_of(diagnosis: Diagnosis, key: object) -> int | None:
    """Return the row of a connection's key."""
    if not isinstance(key, tuple):
        return None
    s = diagnosis.view.sockets
    where = np.flatnonzero((s.netns == key[0]) & (s.column("cookie") == key[1]))
    return int(where[0]) if len(where) else None


def place_of(by: Grouping, diagnosis: Diagnosis | None) -> Grouping:
    """Return what a place is: a pod, and where it is pods already, or there are none, a network namespace."""
    if by in ("pod", "netns"):
        return "netns" if by == "pod" else "pod"
    pods = diagnosis is not None and any(w.pod_uid or w.container_id for w in diagnosis.view.workload_names)
    return "pod" if pods else "netns"
