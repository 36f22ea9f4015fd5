"""Pictures of a report as inline SVG: the diagram of the states, counts over time, what passed between two ends.

Each has a title and a description that say the same in words, and nothing in them is said by a colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from finwait.report.account import StateShown
from finwait.report.html.element import Child, Element, el
from finwait.report.two_ends import FinShown
from finwait.uapi import tcp

__all__ = ["MOST_LINES", "Series", "diagram", "others", "over_time", "wire"]

_WIDTH, _HEIGHT = 136, 48
_PLACES: Final[dict[int, tuple[int, int]]] = {
    tcp.SYN_SENT: (4, 4),
    tcp.SYN_RECV: (4, 184),
    tcp.ESTABLISHED: (4, 94),
    tcp.FIN_WAIT1: (186, 4),
    tcp.FIN_WAIT2: (362, 4),
    tcp.CLOSING: (362, 94),
    tcp.CLOSE_WAIT: (186, 184),
    tcp.LAST_ACK: (362, 184),
    tcp.TIME_WAIT: (538, 4),
}
_ARROWS: Final = (
    "M72 52V90", "M72 184V146", "M140 112H163V28H182", "M140 126H163V208H182", "M322 28H358", "M322 42H341V118H358",
    "M498 28H534", "M498 118H606V56", "M322 208H358", "M498 208H606V164",
)  # fmt: skip
_HEADS: Final = (
    (72, 94, "d"), (72, 142, "u"), (186, 28, "r"), (186, 208, "r"), (362, 28, "r"), (362, 118, "r"), (538, 28, "r"),
    (606, 52, "u"), (362, 208, "r"), (606, 160, "u"),
)  # fmt: skip
_NOTES: Final = (
    (168, 70, "we close first"),
    (168, 172, "the peer first"),
    (586, 153, "closed"),
)
MOST_LINES: Final = 8
"""More lines cannot be told apart."""


def _head(x: int, y: int, way: str) -> Element:
    """Return the head of an arrow that ends at a place."""
    shapes = {
        "r": f"M{x} {y}l-7 -4v8z",
        "u": f"M{x} {y}l-4 7h8z",
        "d": f"M{x} {y}l-4 -7h8z",
        "l": f"M{x} {y}l7 -4v8z",
    }
    return el("path", d=shapes[way], class_="head")


def diagram(states: Sequence[StateShown]) -> Element:
    """Return how TCP closes, with how many sockets are in each state, and how many of them are stuck."""
    shown = {state.state: state for state in states}
    sentence = ", ".join(_said(shown[s]) for s in _PLACES if s in shown)
    return el(
        "svg",
        el("title", "The states of TCP, from opening on the left to closed on the right", id="diagram-title"),
        el("desc", sentence, id="diagram-said"),
        [el("path", d=path, class_="arrow") for path in _ARROWS],
        [_head(*place) for place in _HEADS],
        [el("text", text, x=x, y=y, class_="note") for x, y, text in _NOTES],
        [_box(shown[state], *place) for state, place in _PLACES.items() if state in shown],
        viewBox="0 0 680 238",
        class_="diagram",
        role="img",
        aria_labelledby="diagram-title diagram-said",
    )


def _said(state: StateShown) -> str:
    parts = [f"{tcp.state_name(state.state)} {_count(state)}"]
    if state.problems:
        parts.append(f"{state.problems:,} stuck")
    if state.notices:
        parts.append(f"{state.notices:,} to look at")
    return " of which ".join((parts[0], " and ".join(parts[1:]))) if len(parts) > 1 else parts[0]


def _count(state: StateShown) -> str:
    return f"{state.count:,} or more" if state.at_least else f"{state.count:,}"


def _box(state: StateShown, x: int, y: int) -> Element:
    kind = " is-problem" if state.problems else " is-notice" if state.notices else ""
    mark = (
        f"✗ {state.problems:,} stuck" if state.problems else f"▲ {state.notices:,}" if state.notices else ""
    )
    return el(
        "g",
        el("rect", x=x, y=y, width=_WIDTH, height=_HEIGHT, rx=6),
        el("text", tcp.state_name(state.state), x=x + 10, y=y + 18, class_="name"),
        el(
            "text",
            f"≥ {state.count:,}" if state.at_least else f"{state.count:,}",
            x=x + 10,
            y=y + 38,
            class_="count",
        ),
        el("text", mark, x=x + _WIDTH - 9, y=y + 37, class_="stuck") if mark else None,
        class_=f"box{kind}{'' if state.count else ' empty'}",
    )


def others(states: Sequence[StateShown]) -> str:
    """Return the states that are not in the diagram, with their counts; empty where there are none."""
    rest = [s for s in states if s.state not in _PLACES and s.count]
    return ", ".join(f"{tcp.state_name(s.state)} {s.count:,}" for s in rest)


def wire(fin: FinShown, *, back: bool = False) -> Element:
    """Return an arrow for what passed from one end to the other: solid, dashed or dotted."""
    tip = "M4 7l8 -5v10z" if back else "M196 7l-8 -5v10z"
    kind = {"acknowledged": "", "open": " open", "none": " none"}[fin.passed]
    return el(
        "svg",
        el("line", x1=10 if back else 4, y1=7, x2=196 if back else 190, y2=7, class_=f"wire{kind}"),
        el("path", d=tip, class_=f"tip{kind if fin.passed == 'none' else ''}"),
        viewBox="0 0 200 14",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


# ── counts over time ─────────────────────────────────────────────────────────────────────────────────────

_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 220, 50, 170, 10, 28


class Series(Struct, frozen=True):
    """Numbers over time, and what they are called."""

    name: str
    values: Sequence[int | None]
    """One for each time; None where nobody counted."""


def over_time(
    name: str, title: str, times: Sequence[float], series: Sequence[Series], ends: tuple[str, str]
) -> Element:
    """Return numbers over time as lines, broken where nobody counted.

    Args:
        name: of the picture, for its ids.
        title: what it shows.
        times: at least two.
        series: at most `MOST_LINES`.
        ends: what is written at the beginning and the end of the time.
    """
    highest = max((n for line in series for n in line.values if n is not None), default=0) or 1
    span = max(times[-1] - times[0], 1e-9)
    xs = [round(_LEFT + (_W - _LEFT - _RIGHT) * max(0.0, at - times[0]) / span, 1) for at in times]
    levels = tuple(dict.fromkeys((0, highest // 2, highest)))
    return el(
        "svg",
        el("title", title, id=f"{name}-title"),
        el("desc", "; ".join(map(_course, series)), id=f"{name}-said"),
        [
            (
                el(
                    "line",
                    x1=_LEFT,
                    x2=_W - _RIGHT,
                    y1=_y(level, highest),
                    y2=_y(level, highest),
                    class_="grid",
                ),
                el("text", f"{level:,}", x=_LEFT - 6, y=_y(level, highest) + 4, class_="tick end"),
            )
            for level in levels
        ],
        el("text", ends[0], x=_LEFT, y=_H - 8, class_="tick"),
        el("text", ends[1], x=_W - _RIGHT, y=_H - 8, class_="tick end"),
        [_line(line, k, xs, highest) for k, line in enumerate(series)],
        _labels({line.name: _y(_last(line), highest) for line in series}),
        viewBox=f"0 0 {_W} {_H}",
        class_="chart",
        role="img",
        aria_labelledby=f"{name}-title {name}-said",
    )


def _y(count: float, highest: int) -> float:
    return round(_H - _BOTTOM - (_H - _TOP - _BOTTOM) * count / highest, 1)


def _last(series: Series) -> int:
    return next((n for n in reversed(series.values) if n is not None), 0)


def _course(series: Series) -> str:
    known = [n for n in series.values if n is not None]
    if not known:
        return f"{series.name} not counted"
    return f"{series.name} from {known[0]:,} to {known[-1]:,}, at most {max(known):,}"


def _line(series: Series, k: int, xs: Sequence[float], highest: int) -> Element | None:
    """Return a line with a gap wherever nobody counted; a number between two gaps is a short stroke."""
    parts: list[list[str]] = [[]]
    for x, n in zip(xs, series.values, strict=True):
        if n is None:
            parts.append([])
        else:
            parts[-1].append(f"{x} {_y(n, highest)}")
    drawn = [part if len(part) > 1 else [part[0], "h1.5"] for part in parts if part]
    if not drawn:
        return None
    path = "".join("M" + "L".join(part).replace("Lh", "h") for part in drawn)
    return el("path", d=path, class_=f"line s{k % MOST_LINES}")


def _labels(places: Mapping[str, float]) -> list[Child]:
    """Return the names of the lines at their ends, moved apart where they would lie on each other."""
    labels: list[Child] = []
    last = _H - _BOTTOM + 15.0
    for name, place in sorted(places.items(), key=lambda entry: -entry[1]):
        last = min(place + 4, last - 13)
        labels.append(el("text", name, x=_W - _RIGHT + 8, y=round(last, 1), class_="label"))
    return labels
