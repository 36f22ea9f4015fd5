"""The overview of a diagnosis: a line a group, numbered, the most harmful first.

Each line answers what somebody on call asks first: how many connections in which state and why, who holds them, since
when, whether they end by themselves, and whose move it is. What does not fit is cut, never wrapped; the details have
it in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from finwait.attribution.services import name_of
from finwait.diagnosis import outlook
from finwait.diagnosis.finding import Finding, Severity, Whose
from finwait.diagnosis.moves import inside
from finwait.report.cells import cut, padded, widest
from finwait.report.detail import comms, turn_text, whose_text
from finwait.report.style import Style
from finwait.table.units import duration_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = ["WholeColumn", "ends", "held_by", "holder", "moves_of", "overview", "place", "program", "table"]

_MOST: Final = 18
"""Groups that have a line; with headline, titles and what follows that is a screen of 24 lines."""

_Forms = tuple[str, ...]
"""What a column says of a group: in full first, then shorter where there is no room for that."""


class _Column(Struct, frozen=True):
    """A column of the overview."""

    name: str
    forms: Callable[[View, Sequence[Finding]], list[_Forms]]
    """What it says of each group."""
    short: str = ""
    """Its title where the whole one is wider than what is below it."""
    right: bool = False
    code: bool = False
    """Whether it holds words of the kernel, or of ours."""


def overview(view: View, groups: Sequence[Finding], style: Style) -> Iterator[str]:
    """Return the lines of the overview; the first group has number 1.

    Args:
        view: the sockets.
        groups: what is shown, in this order.
        style: width and colour.
    """
    shown = groups[:_MOST]
    digits = len(str(len(shown)))
    columns = {c.name: c for c in _COLUMNS if c.name != "where" or _spread(view, groups)}
    cells = _fitted(view, shown, columns, style.width - digits - 2)
    widths = {title: widest(texts) for title, texts in cells.items()}
    for k in range(len(shown) + 1):
        line = [padded(texts[k], widths[title], right=columns[title].right) for title, texts in cells.items()]
        if k:
            line[0] = style.paint(line[0], shown[k - 1].severity)
            yield f"{k:>{digits}}  {'  '.join(line)}".rstrip()
        else:
            yield style.paint(f"{'':>{digits}}  {'  '.join(line)}".rstrip(), "dim")
    if more := len(groups) - len(shown):
        yield f"… and {more} more group{'' if more == 1 else 's'}: `--detail` shows them all"


class WholeColumn(Struct, frozen=True):
    """A column of the overview in full, where there is room for everything."""

    title: str
    texts: Sequence[str]
    right: bool
    code: bool
    """Whether it holds words of the kernel, or of ours."""


def table(view: View, groups: Sequence[Finding]) -> list[WholeColumn]:
    """Return the columns of the overview in full; the severity, which has no title, is not among them."""
    columns = [c for c in _COLUMNS if c.name and (c.name != "where" or _spread(view, groups))]
    return [
        WholeColumn(c.name, [forms[0] for forms in c.forms(view, groups)], c.right, c.code) for c in columns
    ]


def _spread(view: View, groups: Sequence[Finding]) -> bool:
    """Return whether there is more than one place, so that it is worth a column."""
    return len({place(view, group) for group in groups}) > 1


class _Layout:
    """Columns that are made narrower; each cell has the longest of its forms for which its column has room."""

    def __init__(self, columns: Iterable[_Column], forms: Mapping[str, list[_Forms]]) -> None:
        self._columns = {column.name: column for column in columns}
        self._forms = forms
        self._limits: dict[str, int] = {}
        self.short_titles = False

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def cells(self, name: str) -> list[str]:
        """Return a column, its title first."""
        column, limit = self._columns[name], self._limits.get(name)
        if limit is None:
            texts = [forms[0] for forms in self._forms[name]]
        else:
            texts = [
                next((text for text in forms if widest([text]) <= limit), cut(forms[-1], limit))
                for forms in self._forms[name]
            ]
        title = name
        if self.short_titles and column.short and widest(texts) < widest([name]):
            title = column.short
        return [title if limit is None else cut(title, limit), *texts]

    def width(self) -> int:
        """Return how wide all columns are together."""
        return sum(widest(self.cells(name)) for name in self._columns) + 2 * (len(self._columns) - 1)

    def narrow(self, name: str, form: int, least: int, room: int) -> None:
        """Make a column as narrow as is needed, and not narrower than one of its forms, or than a width."""
        if name not in self._columns or (too_wide := self.width() - room) <= 0:
            return
        shortest = widest([forms[min(form, len(forms) - 1)] for forms in self._forms[name]])
        floor = min(least, shortest) if least else shortest
        self._limits[name] = max(floor, widest(self.cells(name)) - too_wide, 1)

    def widen(self, name: str, room: int) -> None:
        """Give a column back what room is left."""
        if name in self._limits and name in self._columns and (spare := room - self.width()) > 0:
            self._limits[name] = widest(self.cells(name)) + spare

    def leave_out(self, name: str) -> None:
        """Take a column away."""
        self._columns.pop(name, None)

    def all(self) -> dict[str, list[str]]:
        """Return all columns."""
        return {name: self.cells(name) for name in self._columns}


def _fitted(
    view: View, groups: Sequence[Finding], columns: Mapping[str, _Column], room: int
) -> dict[str, list[str]]:
    """Return columns that fit, title first: what is least needed is shortened, then cut, and at last left out.

    What tells the groups of one program apart (pid, and what its threads do) outlasts what many groups share. A letter
    of the severity always stays: a notice must not look like a problem.
    """
    layout = _Layout(columns.values(), {c.name: c.forms(view, groups) for c in columns.values()})
    for step in _STEPS:
        if layout.width() <= room:
            break
        if step is None:
            layout.short_titles = True
        elif isinstance(step, str):
            layout.leave_out(step)
        else:
            layout.narrow(*step, room)
    for name in _GIVEN_BACK:
        layout.widen(name, room)
    return layout.all()


_STEPS: Final[tuple[tuple[str, int, int] | str | None, ...]] = (
    None,
    ("", 1, 0),
    ("where", 0, 8),
    ("whose move", 1, 0),
    ("held by", 1, 0),
    "state",
    "oldest",
    "where",
    ("", 2, 0),
    ("whose move", 2, 0),
    "ends",
    ("whose move", 3, 0),
    ("held by", 1, 10),
    "held by",
    ("cause", 0, 4),
    ("whose move", 3, 1),
    ("cause", 0, 1),
)
"""What is done while there is no room, in this order: short titles (None), a column made narrower (its name, which of
its forms must fit, and a width below which it is not cut; 0: it is not cut), a column left out (its name)."""
_GIVEN_BACK: Final = ("whose move", "held by", "where", "cause", "")
"""A later step may have made more room than was needed."""


def _state(view: View, group: Finding) -> str:
    """Return the most frequent state of a group, and how many others there are."""
    if not len(group.rows):
        return "descriptor"
    numbers, counts = np.unique(view.sockets.state[group.rows], return_counts=True)
    name = tcp.state_name(int(numbers[np.argmax(counts)]))
    return name if len(numbers) == 1 else f"{name} +{len(numbers) - 1}"


def holder(view: View, group: Finding) -> str:
    """Return who holds a group, by name: a program with its pid, or the workers of one service."""
    name = program(view, group)
    if not group.pids:
        pid, doubt = _closer(view, group)[1:]
        return f"{name.removesuffix(doubt)} ({pid}){doubt}" if pid else name
    return f"{name} ({group.pids[0]})" if len(group.pids) == 1 else f"{name} ×{len(group.pids)}"


def program(view: View, group: Finding) -> str:
    """Return the name of the program that holds a group; what is known of its holder where there is none."""
    if group.pids:
        names = comms(view, group.pids)
        return name_of(names) if len(set(names)) == 1 else f"{names[0]}, …"
    if not len(group.rows):
        return ""
    held = group.rows[view.held[group.rows]]
    if view.held_untold[group.rows].any():
        return "unknown"
    if not len(held):
        queued = view.queued[group.rows].any()
        return "not accepted" if queued else "nobody"
    if not view.holders.searched:
        return "not looked for"
    if name := _closer(view, group)[0]:
        return name
    return "unknown" if view.holder_unknown[held].any() else "no process"


def _closer(view: View, group: Finding) -> tuple[str, int, str]:
    """Return the process whose threads are closing a group: name (with the doubt), pid, and `?` where in doubt.

    Nothing where that is no single process. A thread waits for one socket at a time.
    """
    held = group.rows[view.held[group.rows]]
    if not len(held) or not view.releasing or not view.holder_unknown[held].all():
        return "", 0, ""
    threads = view.releasers(int(held[0]))
    if len({thread.pid for thread in threads}) != 1:
        return "", 0, ""
    first = threads[0]
    sure = view.nearby(first, int(held[0])) and (first.exiting or len(held) <= len(threads))
    process = view.processes.get(first.pid)
    doubt = "" if sure else "?"
    return f"{process.comm if process and len(threads) > 1 else first.name}{doubt}", first.pid, doubt


def place(view: View, group: Finding) -> str:
    """Return where a group is: pod, container or unit of its holder, and else its network namespace."""
    work = next((w for row in group.rows[:1].tolist() if (w := view.workloads[row])), None)
    pod = next((p for row in group.rows[:1].tolist() if (p := view.row_names.pod[row])), None)
    if pod is not None:
        return pod.path
    if work is not None and work.pod_uid:
        return f"pod {work.pod_uid[:8]}"
    if work is not None and work.container_id:
        return f"container {work.container_id[:12]}"
    space = view.namespaces.get(group.netns)
    return space.names[0] if space is not None and space.names else str(group.netns)


def _oldest(view: View, group: Finding) -> str:
    known = view.at_least_ms[group.rows]
    known = known[known >= 0]
    return duration_text(int(known.max())) if len(known) else "?"


def ends(view: View, group: Finding) -> str:
    """Return when the last of a group ends by itself, in a word or two."""
    end = outlook.of_finding(view, group.rows)
    return "never" if end is None else outlook.brief(end)


def _each(*forms: Callable[[View, Finding], str]) -> Callable[[View, Sequence[Finding]], list[_Forms]]:
    """Return what gives the forms of each group, where each is a matter of that group alone."""
    return lambda view, groups: [tuple(form(view, group) for form in forms) for group in groups]


def held_by(view: View, groups: Sequence[Finding]) -> list[_Forms]:
    """Return who holds each group; the pids stay in the short form where programs of one name hold several."""
    names = [program(view, group) for group in groups]
    sharing: dict[str, set[tuple[int, ...]]] = {}
    for name, group in zip(names, groups, strict=True):
        sharing.setdefault(name, set()).add(group.pids)
    result: list[_Forms] = []
    for name, group in zip(names, groups, strict=True):
        full = holder(view, group)
        if not group.pids or len(sharing[name]) == 1:
            result.append((full, name))
            continue
        if len(group.pids) > 1:
            full += f" ({min(group.pids)}…{max(group.pids)})"
        result.append((full, f"{cut(name, _SHORT_NAME)}{full.removeprefix(name)}"))
    return result


_SHORT_NAME: Final = 8


def moves_of(view: View, groups: Sequence[Finding]) -> list[_Forms]:
    """Return whose move each group is, with what the program does instead where it is that of its holder."""
    result: list[_Forms] = []
    for group in groups:
        full, actor = turn_text(view, group), whose_text(view, group)
        bare = _BARE.get(group.turn.whose, actor)
        instead = inside(view, group.rows) if group.turn.whose == "holder" and len(group.rows) else ""
        if instead:
            brief = cut(instead, _SHORT_CALL)
            result.append((f"{full} ({instead})", f"{actor} ({instead})", f"{actor} ({brief})", bare))
        else:
            result.append((full, actor, actor, bare))
    return result


_SHORT_CALL: Final = 11
_BARE: Final[dict[Whose, str]] = {"peer": "peer", "far": "peer/net", "kernel": "timer"}
"""Whose move it is, in a word, where its name is longer."""


_COLUMNS: Final = (
    _Column(
        "",  # severity needs no title
        _each(
            lambda _view, group: group.severity.upper(),
            lambda _view, group: _SEVERITY[group.severity],
            lambda _view, group: group.severity[0].upper(),
        ),
    ),
    _Column("count", _each(lambda _view, group: f"{group.count:,}"), "#", right=True),
    _Column("state", _each(_state), code=True),
    _Column("cause", _each(lambda _view, group: group.rule), code=True),
    _Column("held by", held_by, "held"),
    _Column("where", _each(place)),
    _Column("oldest", _each(_oldest), "age", right=True),
    _Column("ends", _each(ends)),
    _Column("whose move", moves_of, "whose"),
)
_SEVERITY: Final[dict[Severity, str]] = {"problem": "PROB", "notice": "NOTE", "healthy": "OK"}
