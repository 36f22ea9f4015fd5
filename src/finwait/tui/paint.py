"""Lines with roles on the screen, in the colours of the theme.

Text is drawn as it is: nothing in it is markup, whatever a program calls itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.events import Click
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from finwait.report.painted import Line, plain
from finwait.table.units import printable

__all__ = ["COMPONENTS", "ROLES", "THEME", "Painted", "Roles", "clean", "cut"]

ROLES = ("problem", "notice", "healthy", "dim", "accent", "bold", "title", "cursor", "active")


def clean(text: str) -> str:
    """Return text without control characters, which a terminal would obey."""
    return text if text.isprintable() else printable(text)


def cut(line: Line, width: int) -> Line:
    """Return a line of exactly ``width`` cells; what is cut off is marked."""
    out: Line = []
    room = width
    for text, role in line:
        size = Segment(text).cell_length
        if size > room:
            if room > 0:
                out.append((set_cell_size(text, room - 1) + "…", role))
            return out
        out.append((text, role))
        room -= size
    if room:
        out.append((" " * room, ""))
    return out


COMPONENTS: Final = frozenset(f"role--{role}" for role in ROLES)
"""The component classes of what draws spans."""

THEME: Final = """
.role--problem { color: $text-error; text-style: bold; }
.role--notice { color: $text-warning; }
.role--healthy { color: $text-success; }
.role--dim { text-style: dim; }
.role--accent { color: $text-primary; }
App:ansi .role--accent { color: ansi_cyan; }
.role--bold { text-style: bold; }
.role--title { text-style: bold underline; }
.role--cursor { color: $block-cursor-foreground; background: $block-cursor-background; text-style: bold; }
.role--active { color: $block-cursor-foreground; background: $block-cursor-background; text-style: bold; }
"""
"""The roles in the colours of a theme, as CSS of the application."""


class Roles(Widget):
    """What draws spans: knows the style of each role in the present theme."""

    COMPONENT_CLASSES: ClassVar[set[str]] = set(COMPONENTS)

    def style_of(self, role: str) -> Style:
        """Return the style of a role; without colours what only they would say is said by reversing."""
        if not role:
            return Style.null()
        style = self.get_component_rich_style(f"role--{role}", partial=True)
        if self.app.no_color and role in ("cursor", "active"):
            return Style(bold=True, reverse=True)
        return style

    def segments(self, line: Iterable[tuple[str, str]], over: Style | None = None) -> list[Segment]:
        """Return spans as segments; ``over`` hides their roles, as the cursor does."""
        base = self.rich_style
        return [
            Segment(text, base + (over if over is not None else self.style_of(role))) for text, role in line
        ]


class Painted(Roles):
    """Some lines, each of them cut at the width."""

    class Clicked(Message):
        """The mouse was on a place of the lines."""

        def __init__(self, widget: Painted, x: int, y: int) -> None:
            super().__init__()
            self.widget = widget
            self.x = x
            self.y = y

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._lines: list[Line] = []

    @property
    def text(self) -> str:
        """What it says, without roles."""
        return "\n".join(plain(line).rstrip() for line in self._lines)

    def show(self, lines: Sequence[Line]) -> None:
        """Draw other lines, if they are."""
        lines = [[(clean(text), role) for text, role in line] for line in lines]
        if lines == self._lines:
            return
        taller = len(lines) != len(self._lines)
        self._lines = lines
        self.refresh(layout=taller)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002 - Textual's form
        """Return how many lines there are."""
        return len(self._lines)

    def get_content_width(self, container: Size, viewport: Size) -> int:  # noqa: ARG002 - Textual's form
        """Return how wide the widest line is."""
        return max((Segment(plain(line)).cell_length for line in self._lines), default=0)

    def render_line(self, y: int) -> Strip:
        """Return one line of the screen."""
        width = self.size.width
        if y >= len(self._lines):
            return Strip.blank(width, self.rich_style)
        return Strip(self.segments(cut(self._lines[y], width)), width)

    def on_click(self, event: Click) -> None:
        """Tell where the mouse was."""
        self.post_message(self.Clicked(self, event.x, event.y))
