"""The TCP state diagram in box-drawing characters: how many are in each state, how many pass, how many are stuck.

The picture that says where things pile up: a state whose inflow is larger than its outflow grows. It reads from left
to right, from opening to gone; where we close first it goes along the upper row, where the peer does along the lower
one. From 110 columns on states are boxes, from 80 on they are two lines each. Where there is less room, `states` says
the same without the picture.

How much of a state is stuck is shown by a mark that fills (○ ◔ ◑ ◕ ●) and by a colour, which says nothing more. What
leaves FIN_WAIT2 and CLOSING is counted on their arrow to TIME_WAIT, although some of it is simply gone: the kernel
reports one change, to CLOSE, for both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct, field

from finwait.report.painted import Canvas, Line, plain
from finwait.report.sparkline import sparkline
from finwait.uapi import tcp

__all__ = [
    "HEIGHT",
    "MARKS",
    "WIDTH",
    "Numbers",
    "diagram",
    "height_of",
    "mark_of",
    "role_of",
    "state_at",
    "states",
]

WIDTH, HEIGHT = 80, 9
"""What the diagram needs at least, in characters."""
_BOXED: Final = 110
"""Columns from which on states are boxes."""
MARKS: Final = "○◔◑◕●"
"""None is stuck, some are, about half, most, all."""


def _no_history(_state: int, _cells: int) -> Sequence[float | None]:
    return ()


class Numbers(Struct, frozen=True):
    """What the diagram shows."""

    counts: Mapping[int, int]
    """State → connections in it."""
    flows: Mapping[tuple[int, int], float] | None = None
    """(old, new) → transitions a second; None when they are not known."""
    why_no_flows: str = ""
    """Said in place of them."""
    stuck: Mapping[int, float | None] | None = None
    """State → how much of it is stuck, from 0 to 1, None where that is not known; None before a diagnosis."""
    note: str = ""
    """How the flows were come by, and what is not in them."""
    known: bool = True
    """Whether anything was counted yet."""
    levels: Callable[[int, int], Sequence[float | None]] = field(default=_no_history)
    """(State, number of cells) → what its number was, the newest last; see `finwait.report.history`."""

    def count(self, state: int) -> int:
        """Return how many are in a state."""
        return self.counts.get(state, 0)

    def rate(self, *edges: tuple[int, int]) -> str:
        """Return how many pass some edges a second, in at most 5 characters; empty where none do."""
        rate = sum((self.flows or {}).get(edge, 0.0) for edge in edges)
        return f"{_three(rate)}/s" if rate else ""


def _share(numbers: Numbers, state: int) -> float | None:
    return None if numbers.stuck is None else numbers.stuck.get(state, 0.0)


def mark_of(numbers: Numbers, state: int) -> str:
    """Return how much of a state is stuck as one character; ``?`` where that is not known."""
    if not numbers.known:
        return "?"
    if not numbers.count(state):
        return MARKS[0]
    share = _share(numbers, state)
    if share is None:
        return "?"
    if share <= 0 or share >= 1:
        return MARKS[-1] if share >= 1 else MARKS[0]
    return MARKS[1] if share < 0.375 else MARKS[2] if share < 0.625 else MARKS[3]


def role_of(numbers: Numbers, state: int) -> str:
    """Return the role (see `finwait.report.painted`) of a state: what its mark says, in colour."""
    if not numbers.count(state):
        return "dim"
    share = _share(numbers, state)
    if share is None:
        return ""
    return "problem" if share >= 0.375 else "notice" if share > 0 else "healthy"


def _short(rate: float) -> str:
    """Return a rate in at most 4 characters up to a billion; what is not 0 is never "0"."""
    if rate < 9.95:
        return f"{max(rate, 0.1):.1f}" if rate > 0 else "0"
    power = 0
    while rate >= 999.5 and power < 3:
        rate /= 1000
        power += 1
    return f"{rate:.0f}{('', 'k', 'M', 'G')[power]}"


def _three(rate: float) -> str:
    """Return a rate as `_short` does, in at most 3 characters up to 100 million."""
    return f"{rate / 1e6:.1f}M".removeprefix("0") if 99_500 <= rate < 950_000 else _short(rate)


def _count(number: int, room: int) -> str:
    """Return a number, rounded where it has no room otherwise."""
    text = f"{number:,}"
    return text if len(text) <= room else _three(number)


def _counted(numbers: Numbers, state: int, room: int) -> str:
    return _count(numbers.count(state), room) if numbers.known else "?"


_E, _W1, _W2, _TW, _CL = tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.TIME_WAIT, tcp.CLOSE
_CW, _LA, _CG, _SR, _SS, _LI = (
    tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING, tcp.SYN_RECV, tcp.SYN_SENT, tcp.LISTEN,
)  # fmt: skip
_PLACES: Final = {
    _SR: (0, 0), _SS: (0, 2), _E: (1, 1), _W1: (2, 0), _CW: (2, 2), _W2: (3, 0), _CG: (3, 1), _LA: (3, 2), _TW: (4, 0),
}  # fmt: skip
"""State → column and row."""
_RESET: Final = ((_E, _CL), (_W1, _CL), (_CW, _CL), (_SS, _CL), (_SR, _CL))


def height_of(width: int) -> int:
    """Return how many lines the diagram has at a width of 80 or more."""
    return HEIGHT + (width >= _BOXED)


class _Drawing:
    """A diagram while it is drawn."""

    def __init__(self, numbers: Numbers, width: int) -> None:
        self.numbers = numbers
        self.boxed = width >= _BOXED
        self.canvas = Canvas(width, height_of(width))
        self.widths, self.gaps = _divided(width, self.boxed)
        self.left = [sum(self.widths[:k]) + sum(self.gaps[:k]) for k in range(5)]

    def join(self, row: int) -> int:
        """Return the line on which arrows meet the states of a row."""
        return 3 * row + self.boxed

    def node(self, state: int) -> None:
        """Draw a state."""
        column, row = _PLACES[state]
        x, y, width, canvas, numbers = (
            self.left[column],
            3 * row,
            self.widths[column],
            self.canvas,
            self.numbers,
        )
        role, title = role_of(numbers, state), f"{mark_of(numbers, state)} {tcp.state_name(state)}"
        # Beside a number without a box is what passes an arrow.
        count = _counted(numbers, state, 12 if self.boxed else 3 if column == 0 else 6)
        text = role if role in ("problem", "notice") else "dim" if role == "dim" else "bold"
        if self.boxed:
            canvas.put(x, y, "╭─" + "─" * (width - 3) + "╮", role)
            canvas.put(x + 1, y, f" {title} ", text)
            canvas.put(x, y + 1, f"│{'':{width - 2}}│", role)
            canvas.put(x, y + 2, "╰" + "─" * (width - 2) + "╯", role)
            x, y, width = x + 2, y + 1, width - 4
        else:
            canvas.put(x, y, title, text)
            x, y, width = x + 2, y + 1, width - 2
        canvas.put(x, y, count, text)
        cells = width - max(len(count), 5 if self.boxed else 0) - 1
        if not self.boxed:  # there is what passes its arrow
            cells, width = (
                (0, width) if column == 0 else (cells - 3, width - 3) if column == 3 else (cells, width)
            )
        levels = numbers.levels(state, cells) if cells > 0 else ()
        line = sparkline(levels, cells) if numbers.count(state) or any(levels) else ""
        canvas.put(x + width - len(line), y, line, role)

    def edge(self, state: int) -> int:
        """Return where an arrow out of a state begins."""
        column, _ = _PLACES[state]
        if self.boxed:
            return self.left[column] + self.widths[column]
        return self.left[column] + 3 + len(tcp.state_name(state))

    def arrow(
        self, begin: int, end: int, y: int, rate: str, head: str = "▶", at: tuple[int, int] = (-5, 1)
    ) -> None:
        """Draw an arrow from a column to a column, its head included, with what passes it a second.

        Between boxes the number stands on the arrow. Elsewhere it stands beside it: ``at`` columns from its end (below
        0) or its beginning, and lines below.
        """
        role = "" if rate else "dim"
        self.canvas.put(begin, y, "─" * (end - begin) + head, role)
        room = end - begin + 1
        if rate and not self.boxed:
            x = end + 1 + at[0] if at[0] < 0 else begin + at[0]
            self.canvas.put(x if at[0] >= 0 else x + 5 - len(rate), y + at[1], rate, "accent")
        elif rate:
            self.canvas.put(begin + max((room - 1 - len(rate)) // 2, 0), y, rate, "accent")


def _divided(width: int, boxed: bool) -> tuple[list[int], list[int]]:
    """Return the widths of the five columns of states, and of the four gaps between them."""
    widths = [14, 17, 16, 15, 15] if boxed else [10, 13, 12, 11, 11]
    spare = width - sum(widths)
    gap = min(spare // 4, 12)
    if boxed:  # what the arrows do not need is for longer sparklines
        more = min((spare - 4 * gap) // 5, 16)
        widths = [w + more for w in widths]
    gaps = [gap] * 4
    for k in range(min(width - sum(widths) - 4 * gap, 4 if gap < 12 else 0)):
        gaps[3 - k] += 1
    return widths, gaps


def diagram(numbers: Numbers, width: int = WIDTH) -> list[Line]:
    """Return the diagram as lines of at most ``width`` characters, which must be 80 or more."""
    drawing = _Drawing(numbers, width)
    _opening(drawing)
    _closing(drawing)
    for state in _PLACES:
        drawing.node(state)
    _below(drawing, width)
    return drawing.canvas.lines()


def _opening(d: _Drawing) -> None:
    """Draw what leads to ESTABLISHED."""
    n, canvas = d.numbers, d.canvas
    end = d.left[1] - 1 - (not d.boxed)
    trunk = end - 2
    canvas.down(trunk, d.join(0), d.join(2), "dim")
    for state, corner in ((_SR, "╮"), (_SS, "╯")):
        d.arrow(d.edge(state), trunk, d.join(_PLACES[state][1]), n.rate((state, _E)), corner, (-6, 1))
    canvas.put(trunk, d.join(1), "├─▶", "" if n.rate((_SR, _E), (_SS, _E)) else "dim")
    opened, connects = n.rate((_LI, _SR)), n.rate((_CL, _SS))
    listeners = (
        f"{tcp.state_name(_LI)} {_counted(n, _LI, 9 if d.boxed else 3)}",
        "bold" if n.count(_LI) else "dim",
    )
    texts = [
        (f"▲ {opened}", "accent" if opened else "dim"),
        listeners,
        (f"▼ connect {connects}", "accent" if connects else "dim"),
    ]
    if not d.boxed:
        texts[2:] = [("(connect)", "dim"), (f"▼ {connects}", "accent" if connects else "dim")]
    for y, (text, role) in enumerate(texts, 3 if d.boxed else 2):
        canvas.put(2, y, text, role)


_WE_FIRST: Final = ("▲ we close first", "▲ we close")
_PEER_FIRST: Final = ("▼ the peer closes first", "▼ the peer first", "▼ peer closes")


def _closing(d: _Drawing) -> None:
    """Draw what leads from ESTABLISHED on."""
    n, canvas = d.numbers, d.canvas
    back = not d.boxed
    begin = d.edge(_E)
    trunk = begin + 1
    first, peer = n.rate((_E, _W1)), n.rate((_E, _CW))
    canvas.down(trunk, d.join(0), d.join(2), "dim")
    canvas.put(begin, d.join(1), "─┤", "" if first or peer else "dim")
    for row, corner, rate in ((0, "╭", first), (2, "╰", peer)):
        d.arrow(trunk + 1, d.left[2] - 1 - back, d.join(row), rate, at=(0, 2) if row == 0 else (-3, 1))
        canvas.put(trunk, d.join(row), corner, "" if rate else "dim")
    room = d.widths[2] + 1
    for y, texts in ((3, _WE_FIRST), (5, _PEER_FIRST)):
        canvas.put(d.left[2], y, next(text for text in texts if len(text) <= room), "dim")

    fork = max(d.edge(_W1), d.left[2] + d.widths[2]) + 1
    canvas.down(fork, d.join(0), d.join(1), "dim")
    onward, across = n.rate((_W1, _W2)), n.rate((_W1, _CG))
    d.arrow(d.edge(_W1), fork, d.join(0), "", "┬")
    d.arrow(fork + 1, d.left[3] - 1 - back, d.join(0), onward, at=(0, 1))
    if onward or across:
        canvas.put(d.edge(_W1), d.join(0), "─" * (fork - d.edge(_W1)) + "┬")
    d.arrow(fork + 1, d.left[3] - 1 - back, d.join(1), across, at=(0, 1))
    canvas.put(fork, d.join(1), "╰", "" if across else "dim")
    d.arrow(d.edge(_CW), d.left[3] - 1 - back, d.join(2), n.rate((_CW, _LA)), at=(-4, 1))

    into = d.left[4] - 2 - back
    canvas.down(into, d.join(0), d.join(1), "dim")
    d.arrow(d.edge(_W2), into, d.join(0), n.rate((_W2, _CL)), "┴", (-6, 1))
    canvas.put(into + 1, d.join(0), "▶", "" if n.rate((_W2, _CL), (_CG, _CL)) else "dim")
    d.arrow(d.edge(_CG), into, d.join(1), n.rate((_CG, _CL)), "╯", (-6, 1))
    d.arrow(d.edge(_LA), d.left[4] - 1 - back, d.join(2), n.rate((_LA, _CL)))
    x = d.left[4] + 2
    canvas.down(x, 3 - back, 5, "dim")
    canvas.put(x, 6 - back, "▼", "dim")
    canvas.put(x - 2 * back, d.join(2), "(closed)", "dim")


_LEGEND: Final = "stuck: ○ none ◔ some ◑ half ◕ most ● all"


def _below(d: _Drawing, width: int) -> None:
    """Write the last line: what leaves the diagram, what is not in it, and what its marks mean."""
    n = d.numbers
    others = [s for s in sorted(n.counts) if s not in _PLACES and s != _LI and n.counts[s]]
    parts = [f"also {', '.join(f'{tcp.state_name(s)} {n.counts[s]:,}' for s in others)}"] if others else []
    if n.flows is None:
        parts.append(f"no flows: {n.why_no_flows or 'not known'}")
    elif rate := n.rate(*_RESET):
        parts.append(f"reset or destroyed {rate}")
    if n.note and n.flows is not None:
        parts.append(n.note)
    text = "; ".join(parts)
    y = height_of(width) - 1
    if len(text) > width:
        text = text[: width - 1] + "…"
    d.canvas.put(0, y, text, "dim" if n.flows is None else "")
    if len(text) + 3 + len(_LEGEND) <= width:
        d.canvas.put(width - len(_LEGEND), y, _LEGEND, "dim")


_ORDER = (
    _E, _W1, _W2, _CW, _LA, _CG, _TW, _SS, _SR, _LI,
)  # fmt: skip


_WITH_RATES: Final = 60
"""Columns from which on the states have their rates: below, another state is worth more."""


def states(numbers: Numbers, *, width: int, most: int) -> list[Line]:
    """Return the states that are in use, with what comes in and goes out, as few lines of a narrow screen.

    Those with the most that is stuck come first, for what does not fit is only counted.

    Args:
        numbers: what is shown.
        width: characters of a line.
        most: lines.
    """
    if not numbers.known:
        return [[("connections are not counted yet"[:width], "dim")]]
    flows = numbers.flows
    unknown = sorted(set(numbers.counts) - set(tcp.STATES))  # a newer kernel's
    also = [s for s in sorted(tcp.STATES) if s not in _ORDER]
    cells: list[tuple[float, Line]] = []
    for state in (*_ORDER, *also, *unknown):
        into = sum(n for (old, new), n in (flows or {}).items() if new == state != old)
        out = sum(n for (old, new), n in (flows or {}).items() if old == state != new)
        if state in also and not numbers.count(state):
            continue
        if numbers.count(state) or into or out:
            role = role_of(numbers, state)
            cell = [(f"{mark_of(numbers, state)}{tcp.state_name(state)} {numbers.count(state):,}", role)]
            if flows is not None and (into or out) and width >= _WITH_RATES:
                cell.append((f" +{_short(into)} -{_short(out)}/s", "accent"))
            stuck = (_share(numbers, state) or 0.0) * numbers.count(state)
            cells.append((-stuck, cell))
    cells.sort(key=lambda cell: cell[0])
    return _flowed([cell for _, cell in cells] or [[("no connections", "dim")]], width, most)


_NAME: Final = re.compile(r"[A-Z][A-Z_0-9]{5,}")
_NAMES: Final = frozenset(tcp.state_name(state) for state in (*_PLACES, *_ORDER) if state != _LI)


def state_at(lines: Sequence[str], x: int, y: int) -> str:
    """Return the name of the state at a place of the diagram, or of `states`: its name, its number, or its box.

    Empty where there is none, and for listeners, which are no connections.
    """
    for back in range(3):
        line = lines[y - back] if 0 <= y - back < len(lines) else ""
        for match in _NAME.finditer(line):
            if match[0] in _NAMES and match.start() - 4 <= x <= match.end() + (
                2 if back or "╭" in line else 0
            ):
                return match[0]
    return ""


def _flowed(cells: Sequence[Line], width: int, most: int) -> list[Line]:
    """Return cells in lines, none of them broken; how many there is no room for is said at the end."""
    lines: list[Line] = [[]]
    for k, cell in enumerate(cells):
        last = len(lines) == most
        more = f" +{len(cells) - k - 1}…" if last and k + 1 < len(cells) else ""
        used = len(plain(lines[-1]))
        lead: Line = [("  ", "")] if lines[-1] else []
        if used + 2 * bool(lead) + len(plain(cell)) + len(more) <= width:
            lines[-1] += [*lead, *cell]
        elif not last and lines[-1] and len(plain(cell)) <= width:
            lines.append(list(cell))
        else:
            omitted = f" +{len(cells) - k - (not lines[-1])}…"
            shown = lines[-1] or cell
            if len(plain(shown)) + len(omitted) > width:
                shown = [(plain(shown)[: max(width - len(omitted), 0)], shown[0][1])]
            lines[-1] = [*shown, (omitted[-width:], "dim")]
            break
    return lines
