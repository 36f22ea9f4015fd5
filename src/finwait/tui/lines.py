"""A list of very many lines of which only those on the screen are made.

Textual's own table keeps a cell object for each cell: three seconds for 20,000 rows. Here a line is asked for
by its number when it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

__all__ = ["Lines"]


class Lines(ScrollView, can_focus=True):
    """Numbered lines with a cursor; the cursor's line begins with ``>`` and is reversed.

    Args:
        line: number and width → text; the first column is the cursor's.
        id: of the widget.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("down,j", "move(1)", "down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
        Binding("home", "jump(0)", "first", show=False),
        Binding("end", "jump(-1)", "last", show=False),
        Binding("enter", "select", "open"),
    ]
    DEFAULT_CSS = "Lines { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; }"

    class Selected(Message):
        """Enter, or a second click, on a line."""

        def __init__(self, place: int) -> None:
            super().__init__()
            self.place = place

    def __init__(self, line: Callable[[int, int], str], *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._line = line
        self.count = 0
        self.cursor = 0

    def show(self, count: int, cursor: int) -> None:
        """Show so many lines, with the cursor on one of them.

        Args:
            count: lines there are.
            cursor: number of the line; put into the range.
        """
        # Where the cursor is on the screen stays as it is when lines come and go above it.
        top = round(self.scroll_offset.y) + (cursor - self.cursor)
        self.count = count
        self.cursor = max(0, min(cursor, count - 1))
        self.virtual_size = Size(self.size.width, count)
        self.scroll_to(y=max(0, top), animate=False, force=True)
        self._follow()
        self.refresh()

    def _follow(self) -> None:
        """Scroll so that the cursor is seen."""
        height = max(self.scrollable_content_region.height, 1)
        top = round(self.scroll_target_y)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, force=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, force=True)

    def on_resize(self, _: events.Resize) -> None:
        """Keep the cursor on the screen."""
        self.virtual_size = Size(self.size.width, self.count)
        self.call_after_refresh(self._follow)

    def render_line(self, y: int) -> Strip:
        """Make one line of the screen."""
        width = self.scrollable_content_region.width
        place = y + round(self.scroll_offset.y)
        if place >= self.count:
            return Strip.blank(width, self.rich_style)
        here = place == self.cursor
        text = (">" if here else " ") + self._line(place, width)
        style = self.rich_style + Style(reverse=True) if here else self.rich_style
        return Strip([Segment(set_cell_size(text, width), style)], width)

    def _go(self, place: int) -> None:
        self.cursor = max(0, min(place, self.count - 1))
        self._follow()
        self.refresh()

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self._go(self.cursor + by)

    def action_page(self, by: int) -> None:
        """Move the cursor by a screenful."""
        self._go(self.cursor + by * max(self.scrollable_content_region.height - 1, 1))

    def action_jump(self, place: int) -> None:
        """Go to the first or last line."""
        self._go(place if place >= 0 else self.count - 1)

    def action_select(self) -> None:
        """Tell that the line under the cursor was chosen."""
        if self.count:
            self.post_message(self.Selected(self.cursor))

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on the line; choose it when it was there."""
        place = event.y + round(self.scroll_offset.y)
        if place < self.count:
            if place == self.cursor:
                self.action_select()
            else:
                self._go(place)
