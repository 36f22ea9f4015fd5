"""A list of any length, of which only the lines that are on the screen are ever made.

Textual's own table keeps every cell; with 200,000 connections that is half a minute and a gigabyte. Here a line
is asked for when it is drawn, so that the length of the list costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

__all__ = ["Listing", "Rows"]

_GAP = "  "
_PLAIN = Style.null()


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list shows."""

    titles: tuple[str, ...]
    count: int
    cells: Callable[[int, int], Sequence[Sequence[str]]]
    """The cells of the lines from … to (not included)."""
    key: Callable[[int], object]
    """What a line is, so that the cursor and the marks stay with it when the list changes."""
    place: Callable[[object], int | None]
    """Where a key is now; None when it is gone."""


_EMPTY = Listing((), 0, lambda _a, _b: (), lambda _: None, lambda _: None)


class Rows(ScrollView, can_focus=True):
    """The list: a line of titles, a cursor, marks."""

    DEFAULT_CSS = "Rows { overflow-x: hidden; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "to(0)", show=False),
        Binding("end", "to(-1)", show=False),
        Binding("enter", "choose", "open"),
    ]

    class Chosen(Message):
        """A line was opened."""

        def __init__(self, key: object) -> None:
            super().__init__()
            self.key = key

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._listing = _EMPTY
        self._marked: Container[object] = ()
        self._cursor = 0
        self._widths: list[int] = []
        self._block: tuple[int, Sequence[Sequence[str]]] = (0, ())

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

    def put(self, listing: Listing, marked: Container[object] = (), *, top: bool = False) -> None:
        """Show another list; the cursor stays on its line if that is still there.

        Args:
            listing: the list.
            marked: the keys that are marked.
            top: put the cursor on the first line.
        """
        place = None if top else listing.place(self.chosen)
        if self._listing.titles != listing.titles:
            self._widths = []
        self._listing, self._marked = listing, marked
        self._block = (0, ())
        self._cursor = 0 if top else min(self._cursor if place is None else place, max(listing.count - 1, 0))
        self.virtual_size = Size(self.size.width, listing.count + 1)
        self._see()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return one line of the screen."""
        width = self.size.width
        if y == 0:
            self._fetch()
            return self._strip("  ", self._listing.titles, Style(bold=True, underline=True), width)
        line = self.scroll_offset.y + y - 1
        if line >= self._listing.count:
            return Strip.blank(width, _PLAIN)
        first, block = self._fetch()
        if not first <= line < first + len(block):
            return Strip.blank(width, _PLAIN)
        marked = self._listing.key(line) in self._marked
        style = Style(reverse=True) if line == self._cursor else Style(bold=True) if marked else _PLAIN
        return self._strip("* " if marked else "  ", block[line - first], style, width)

    def _fetch(self) -> tuple[int, Sequence[Sequence[str]]]:
        """Make the lines that are on the screen, once for all of them."""
        first = self.scroll_offset.y
        last = min(first + max(self.size.height - 1, 1), self._listing.count)
        if self._block[0] != first or len(self._block[1]) < last - first:
            block = self._listing.cells(first, last)
            self._block = (first, block)
            seen = [max(map(len, column)) for column in zip(self._listing.titles, *block, strict=True)]
            # Columns only grow while the list stays the same kind: text that jumps cannot be read.
            old = self._widths or [0] * len(seen)
            self._widths = [max(a, b) for a, b in zip(old, seen, strict=True)]
        return self._block

    def _strip(self, lead: str, cells: Sequence[str], style: Style, width: int) -> Strip:
        parts = [set_cell_size(text, w) for text, w in zip(cells, self._widths, strict=False)]
        text = lead + _GAP.join(parts)
        return Strip([Segment(set_cell_size(text, width), style)], width)

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
        if self._listing.count:
            self.post_message(self.Chosen(self.chosen))

    def on_click(self, event: Click) -> None:
        """Put the cursor where the mouse was; on the cursor's own line, open it."""
        line = self.scroll_offset.y + event.y - 1
        if event.y > 0 and line < self._listing.count:
            if line == self._cursor:
                self.action_choose()
            self._to(line)
