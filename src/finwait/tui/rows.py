"""A list of any length, of which only the lines that are on the screen are ever made.

Textual's own table keeps every cell; with 200,000 connections that is half a minute and a gigabyte. Here a line
is asked for when it is drawn, so that the length of the list costs nothing. Columns that do not fit are left out by
their priority, so that what is there can be read.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Container, Iterable, Sequence
from typing import ClassVar

from msgspec import Struct
from rich.cells import cell_len, set_cell_size
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from finwait.report.painted import Line, Span
from finwait.tui.paint import COMPONENTS, Roles, clean

__all__ = ["NOTHING", "Listing", "RowList", "Titled", "beyond", "fitting"]

_GAP = "  "
Cell = str | Span | tuple[str, str, str]
"""Text, or text with the role that it is drawn in, and what stands for it where it would be cut."""
Whole = tuple[str, str, str]


def _whole(cell: Cell) -> Whole:
    if isinstance(cell, str):
        return clean(cell), "", ""
    return clean(cell[0]), cell[1], clean(cell[2]) if len(cell) == 3 else ""


class Titled(Struct, frozen=True):
    """A column of a list."""

    title: str
    rank: int = 0
    """The column with the highest number is the first to be left out; those with 0 never are."""
    right: bool = False
    least: int = 0
    """It may be cut to so many cells, if not 0."""
    tail: bool = False
    """Whether its end is what tells one from another, so that it is cut at the beginning: addresses with a port."""
    middle: bool = False
    """Whether both its ends do, so that it is cut in the middle: names of causes."""
    cut: int = 0
    """Where some columns must be cut, those with a number are first, in this order; then the highest rank."""


class Listing(Struct, frozen=True):
    """What a list shows."""

    columns: tuple[Titled, ...]
    count: int
    cells: Callable[[int, int], Sequence[Sequence[Cell]]]
    """The cells of the lines from … to (not included)."""
    key: Callable[[int], object]
    """What a line is, so that the cursor and the marks stay with it when the list changes."""
    place: Callable[[object], int | None]
    """Where a key is now; None when it is gone."""
    empty: str = ""
    """What is said in place of lines where there are none."""


NOTHING = Listing((), 0, lambda _a, _b: (), lambda _: None, lambda _: None)
"""A list without lines."""


def _end(text: str, room: int) -> str:
    """Return the end of a text, at most so many cells of it."""
    while cell_len(text) > room and text:
        text = text[1:]
    return text


def fitting(columns: Sequence[Titled], widths: Sequence[int], room: int) -> dict[int, int]:
    """Return which columns fit, by their place, and how wide each of them is.

    What may be left out is, the highest rank first, until the rest fits when it is cut as far as it may be; then what
    may be cut is cut, also the highest rank first, no further than necessary.
    """
    kept = {k: width for k, width in enumerate(widths) if width}

    def least(k: int) -> int:
        return min(widths[k], columns[k].least) if columns[k].least else widths[k]

    def needed(of: Iterable[int]) -> int:
        every = list(of)
        return sum(map(least, every)) + len(_GAP) * (len(every) - 1)

    left_out = []
    for k in sorted((k for k in kept if columns[k].rank), key=lambda k: -columns[k].rank):
        if needed(kept) <= room:
            break
        left_out.append(k)
        del kept[k]
    for k in reversed(left_out):  # a wide one may have made room for a narrow one
        if needed([*kept, k]) <= room:
            kept[k] = widths[k]
    for k in sorted(kept, key=lambda k: (columns[k].cut or len(columns), -columns[k].rank)):
        too_wide = sum(kept.values()) + len(_GAP) * (len(kept) - 1) - room
        if too_wide > 0:
            kept[k] = max(least(k), kept[k] - too_wide)
    return {k: kept[k] for k in sorted(kept)}


def beyond(columns: Sequence[Titled], widths: Sequence[int], room: int, skipped: int) -> dict[int, int]:
    """Return which columns are shown, and how wide, where the list is moved to the side.

    Those that are never left out stay. Of the others the first ones are skipped, and the next ones are shown in their
    order at full width; what does not fit is left out. The first of them is cut if there is no room for it either.

    Args:
        columns: of the list.
        widths: of their texts.
        room: cells.
        skipped: how many of the columns that may be left out are not shown.
    """
    fixed = {k: columns[k].least or w for k, w in enumerate(widths) if w and not columns[k].rank}
    kept = {k: min(width, widths[k]) for k, width in fixed.items()}
    for k in [k for k, w in enumerate(widths) if w and columns[k].rank][skipped:]:
        rest = room - sum(kept.values()) - len(_GAP) * len(kept)
        if widths[k] > rest and kept.keys() - fixed.keys():
            break
        kept[k] = min(widths[k], max(rest, 1))
    return {k: kept[k] for k in sorted(kept)}


class RowList(ScrollView, Roles, can_focus=True):
    """The list: a line of titles, a cursor, marks."""

    COMPONENT_CLASSES: ClassVar[set[str]] = set(COMPONENTS)
    DEFAULT_CSS = "RowList { overflow-x: hidden; scrollbar-size-vertical: 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "to(0)", show=False),
        Binding("end", "to(-1)", show=False),
        Binding("left", "aside(-1)", show=False),
        Binding("right", "aside(1)", show=False),
        Binding("enter", "choose", "open"),
    ]

    class Opened(Message):
        """A line was opened; None where there is none."""

        def __init__(self, key: object) -> None:
            super().__init__()
            self.key = key

    class Moved(Message):
        """The cursor is on another line."""

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._listing = NOTHING
        self._marked: Container[object] = ()
        self._partly: Container[object] = ()
        self._cursor = 0
        self._aside = 0
        self._widths: list[int] = []
        self._kept: dict[int, int] = {}
        self._block: tuple[int, Sequence[Sequence[Whole]]] = (0, ())

    @property
    def cursor(self) -> int:
        """The line that the cursor is on."""
        return self._cursor

    @property
    def chosen(self) -> object:
        """The key under the cursor; None in an empty list."""
        return self._listing.key(self._cursor) if self._listing.count else None

    def place_of(self, key: object) -> int | None:
        """Return the line of a key; None when it is not in the list."""
        return self._listing.place(key)

    def put(
        self,
        listing: Listing,
        marked: Container[object] = (),
        partly: Container[object] = (),
        *,
        top: bool = False,
    ) -> None:
        """Show another list; the cursor stays on its line if that is still there.

        Args:
            listing: the list.
            marked: the keys that are marked.
            partly: … and those of which a part is.
            top: put the cursor on the first line.
        """
        place = None if top else listing.place(self.chosen)
        if [c.title for c in self._listing.columns] != [c.title for c in listing.columns] or top:
            self._widths, self._aside = [], 0
        self._listing, self._marked, self._partly = listing, marked, partly
        self._block = (0, ())
        self._cursor = 0 if top else min(self._cursor if place is None else place, max(listing.count - 1, 0))
        self.virtual_size = Size(self.size.width, listing.count + 1)
        self._see()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return one line of the screen."""
        width = self.scrollable_content_region.width  # a scrollbar would hide what is below it
        line = self.scroll_offset.y + y - 1
        first, block = self._fetch()
        if y == 0:
            titles = [(column.title, "title", "") for column in self._listing.columns]
            return self._strip((self._sides(), "accent"), titles, width, cursor=False)
        if not self._listing.count and self._listing.empty:
            texts = textwrap.wrap(self._listing.empty, max(width - 2, 10))
            text = texts[y - 1] if len(texts) >= y else ""
            return Strip(self.segments([("  ", ""), (text, "")])).adjust_cell_length(width, self.rich_style)
        if line >= self._listing.count or not first <= line < first + len(block):
            return Strip.blank(width, self.rich_style)
        key = self._listing.key(line)
        lead = ("  ", "")
        if key in self._marked or key in self._partly:
            lead = ("* " if key in self._marked else "+ ", "accent")
        return self._strip(lead, block[line - first], width, cursor=line == self._cursor)

    def _fetch(self) -> tuple[int, Sequence[Sequence[Whole]]]:
        """Make the lines that are on the screen, once for all of them."""
        first = self.scroll_offset.y
        last = min(first + max(self.size.height - 1, 1), self._listing.count)
        if self._block[0] != first or len(self._block[1]) < last - first:
            block = [[_whole(cell) for cell in line] for line in self._listing.cells(first, last)]
            self._block = (first, block)
            seen = [cell_len(column.title) for column in self._listing.columns]
            for line in block:
                seen = [max(width, cell_len(text)) for width, (text, _, _) in zip(seen, line, strict=True)]
            # Columns only grow while the list stays the same kind: text that jumps cannot be read.
            old = self._widths or [0] * len(seen)
            self._widths = [max(a, b) for a, b in zip(old, seen, strict=True)]
        room = self.scrollable_content_region.width - 2
        if self._aside:
            self._kept = beyond(self._listing.columns, self._widths, room, self._aside - 1)
        else:
            self._kept = fitting(self._listing.columns, self._widths, room)
        return self._block

    def _sides(self) -> str:
        """Return arrows to the sides where there are columns that are not shown."""
        shown = [k for k, width in enumerate(self._widths) if width]
        more = self._aside == 0 and len(self._kept) < len(shown)
        if self._aside and shown:
            more = shown[-1] not in self._kept
        return ("‹" if self._aside else " ") + ("›" if more else " ")

    def action_aside(self, by: int) -> None:
        """Show columns further to the right, or to the left; at the left end those that matter most."""
        if by > 0 and "›" not in self._sides():
            return
        self._aside = max(self._aside + by, 0)
        self._block = (0, ())
        self.refresh()

    def _strip(self, lead: Span, cells: Sequence[Whole], width: int, *, cursor: bool) -> Strip:
        line: Line = [lead]
        for k, room in self._kept.items():
            text, role, short = cells[k]
            if short and cell_len(text) > room:
                text = short
            size = cell_len(text)
            if size > room and self._listing.columns[k].tail:
                text = f"…{_end(text, room - 1)}"
            elif size > room and self._listing.columns[k].middle and room > 4:
                end = _end(text, (room - 1) // 2)
                text = set_cell_size(text, room - 1 - cell_len(end)) + "…" + end
            elif size > room:
                text = set_cell_size(text, max(room - 1, 0)).rstrip() + "…"
            size = cell_len(text)
            pad = " " * max(room - size, 0)
            line += [(pad, ""), (text, role)] if self._listing.columns[k].right else [(text, role), (pad, "")]
            line.append((_GAP, ""))
        strip = Strip(self.segments(line, self.style_of("cursor") if cursor else None))
        return strip.adjust_cell_length(width, self.rich_style + self.style_of("cursor" if cursor else ""))

    def _see(self) -> None:
        """Scroll so that the cursor is on the screen."""
        if self.size.height > 1:
            self.scroll_to_region(
                Region(0, self._cursor, 1, 2), animate=False, force=True, immediate=True, x_axis=False
            )

    def _to(self, line: int) -> None:
        self._cursor = max(0, min(line, self._listing.count - 1))
        self._see()
        self.refresh()
        self.post_message(self.Moved())

    def action_move(self, by: int) -> None:
        """Move the cursor by lines."""
        self._to(self._cursor + by)

    def action_page(self, by: int) -> None:
        """Move the cursor by screens."""
        self._to(self._cursor + by * max(self.size.height - 2, 1))

    def action_to(self, line: int) -> None:
        """Move the cursor to a line; −1 is the last."""
        self._to(self._listing.count - 1 if line < 0 else line)

    def action_choose(self) -> None:
        """Open the line under the cursor."""
        self.post_message(self.Opened(self.chosen))

    def on_click(self, event: Click) -> None:
        """Put the cursor where the mouse was; on the cursor's own line, open it."""
        line = self.scroll_offset.y + event.y - 1
        if event.y > 0 and line < self._listing.count:
            if line == self._cursor:
                self.action_choose()
            self._to(line)
