"""Pages of ``finwait top`` that lie over its view: the help, and a plan of `clear` that one may agree to.

What is planned and done is not theirs: `Clearing` is handed to them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Protocol

from rich.cells import cell_len, set_cell_size
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import ScrollableContainer
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from finwait.errors import FilterError, FinwaitError
from finwait.table.filter import Filter
from finwait.table.units import printable

__all__ = [
    "Clearing",
    "Help",
    "Page",
    "Parse",
    "PlanPage",
    "error_text",
    "fit",
    "fit_parts",
    "fold",
    "narrowed",
    "unbroken",
    "wrong",
]

_HELP = """\
The first line names the machine: its connections, how many are stuck, and
whether they become more or fewer. Below it is the TCP state diagram: the number of
connections in each state, how much of it is stuck (○ none ◔ some ◑ half ◕ most
● all), and how many pass each arrow per second. Where more come in than go
out, connections pile up. A small screen shows the states in use, with +in and
-out per second.

Sparklines show the last five minutes; the lowest block is 0. × is a look that
failed, · is before the first look.

In the list, ✗ is a problem, ▲ a notice, ✓ healthy, · nothing was found. From
120 columns on, the pane on the right shows the evidence for the line under
the cursor.

  1       groups by cause: how many, who holds them, when they end, whose move
          it is, and how many new ones came per minute
  2       every connection
  3  4    groups by process; by pod or network namespace (4 again: the other)
  5       settings that affect closing, with a verdict on each
  6       the journal: what finwait did to this machine

  g  G    group by the next or the previous one of: cause, process, pod, peer,
          port, netns, state
  enter   open a group; then show the evidence of one connection
  escape  back
  i       show the evidence as a page
  tab     go to the pane on the right, which arrow keys then scroll
  ←  →    show other columns; ‹ and › say that there are more
  s  r    sort by the next column; reverse the order
  /       a FILTER, as on the command line (`held age > 10m`,
          `dport = :5432`); an empty one shows all
  m       mark a connection, or all connections of a group: * before the line,
          + where a part of the group is marked
  u       unmark all
  c       show the plan that would clear what is marked, and what the peers see
  d       diagnose again now
  e       also list ESTABLISHED connections where there are so many that they
          are only counted
  n  p    next or previous look of a recording
  t       choose other colours
  :       list all commands, to search them; ctrl+p does the same
  space   pause or resume
  q       quit

The mouse works on tabs, lines and keys; a click on a state shows only its
connections, another one all of them.

A problem that is about no connection (a full accept queue, descriptors of what
is gone) is a group, too, and `+1` in the first line. With a FILTER it is shown
if the FILTER selects it, as `finwait diagnose` does.

With a FILTER by namespace, process or age, rates come from comparing looks, as
far as they can be had: what came and went in between is not in them.

Ages are lower bounds: at least that long. With very many sockets, the numbers
are newer than the groups, because listing descriptors takes longer than
counting.

Any key closes this page. Arrow keys scroll other pages, sideways too.
"""


class Parse(Protocol):
    """What makes a FILTER of words."""

    def __call__(self, words: Sequence[str], /) -> Filter:
        """Parse.

        Raises:
            FilterError: it does not parse; says where.
        """


class Clearing(Protocol):
    """What makes a plan of marked connections and carries it out; each may take seconds."""

    def plan(self, keys: Sequence[tuple[int, int]]) -> tuple[str, Callable[[], str] | None]:
        """Return a plan as text for (namespace, cookie) each, and what carries out this plan; None: nothing to do.

        What is returned returns its result as text, and raises a FinwaitError where it could not be begun.

        Raises:
            FinwaitError: it was refused, or nothing could be looked at.
        """

    def told(self) -> None:
        """Take note that the newest result is on the screen."""

    def stop(self) -> None:
        """Let what acts end at its next safe point, and nothing else be begun: the view is being left."""


_DRAWN = frozenset("│┌┐└┘├┤┬┴┼─")


def fit(text: str, width: int) -> str:
    """Return one line of at most ``width`` cells; what is cut off is marked."""
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)).rstrip() + "…"


def fit_parts(parts: Sequence[str], width: int) -> str:
    """Return what fits of some parts on one line, in their order; only the first is ever cut."""
    shown = ""
    for part in parts:
        if not shown:
            shown = fit(part, width)
        elif cell_len(shown) + 2 + cell_len(part) <= width:
            shown += f"; {part}"
    return shown


def narrowed(shown: str, order: str, marked: int, filter_words: str, width: int) -> list[str]:
    """Return what is listed, marks and the FILTER; where not all of it fits, the order is what is left out."""
    marks = f"{marked:,} marked" if marked else ""
    words = f"FILTER {filter_words}" if filter_words else ""
    parts = [part for part in (shown, marks, words) if part]
    if cell_len("; ".join(parts)) > width and len(parts) > 1:
        parts[0] = parts[0].removesuffix(order)
        used = cell_len("; ".join(parts)) - cell_len(parts[-1])
        parts[-1] = fit(parts[-1], max(width - used, 8))
    return parts


def fold(text: str, width: int) -> str:
    """Return text in lines of at most ``width`` cells.

    Drawings and words that are longer stay as they are: a page can be scrolled to the side. What a line says behind two
    blanks stays under its beginning.
    """
    out: list[str] = []
    for line in map(_widened, text.split("\n")):
        if len(line) <= width or not _DRAWN.isdisjoint(line):
            out.append(line)
            continue
        gaps = [gap.end() for gap in re.finditer(r"^\s+|\s{2,}", line) if gap.end() <= width // 2]
        hang = gaps[-1] if gaps else 0
        out += textwrap.wrap(
            line, max(width, hang + 10), subsequent_indent=" " * hang, break_long_words=False,
            break_on_hyphens=False, replace_whitespace=False,
        )  # fmt: skip
    return "\n".join(out).replace(_FILLER, "")


def unbroken(text: str) -> str:
    """Return text with each paragraph, and each entry of a list, on one line.

    A line goes on with the one before it if it stands further in than entries of a list do, or, in a paragraph, if that
    one is not empty.
    """
    out: list[str] = []
    for line in text.split("\n"):
        inside = line.startswith(" " * _ENTRY)
        plain = bool(line) and not line.startswith(" ") and bool(out) and bool(out[-1]) and out[-1][0] != " "
        if out and (inside or plain):
            out[-1] += f" {line.strip()}"
        else:
            out.append(line)
    return "\n".join(out)


_ENTRY: Final = 10
"""Where the text of an entry of the help begins, behind its keys."""
_READABLE: Final = 80
"""Characters of a line of text; a longer one is hard to read."""
_FILLER: Final = "\0"
"""Behind a character of two cells, while lines are counted in characters; no text that is shown has it."""


def _widened(line: str) -> str:
    if line.isascii():
        return line
    return "".join(character + _FILLER * (cell_len(character) - 1) for character in line)


def wrong(error: FilterError, width: int) -> str:
    """Return a mistake in a FILTER with its place, however long the FILTER is."""
    room = max(width - 2, 8)
    start = max(0, error.column - room // 2) if len(error.text) > room else 0
    part = error.text[start : start + room]
    lines = [fold(error.message, width), f"  {part}", "  " + " " * (error.column - start) + "^"]
    if error.hint:
        lines.append(fold(f"hint: {error.hint}", width))
    return printable("\n".join(lines), lines=True)


class Page(ModalScreen[None]):
    """A text that can be scrolled; escape or q leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "leave", "back"),
        Binding("up,k", "scroll('up')", show=False),
        Binding("down,j", "scroll('down')", show=False),
        Binding("pageup", "scroll('page_up')", show=False),
        Binding("pagedown,space", "scroll('page_down')", show=False),
        Binding("left,h", "scroll('left')", show=False),
        Binding("right,l", "scroll('right')", show=False),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Show the text."""
        with ScrollableContainer(id="page"):
            yield Static(id="text", markup=False)
        yield Footer()

    @property
    def text(self) -> str:
        """What it says, before it is laid out."""
        return self._text

    def on_resize(self) -> None:
        """Lay the text out anew."""
        self.show(self._text)

    def show(self, text: str) -> None:
        """Show another text."""
        self._text = text
        self.query_one("#text", Static).update(self.laid_out(text, max(self.size.width - 2, 20)))

    def laid_out(self, text: str, width: int) -> str:
        """Return a text in lines of a width."""
        return fold(text, width)

    def action_leave(self) -> None:
        """Go back, once: a second key may have been typed before the page was gone."""
        if self.is_attached and self.app.screen is self:
            self.dismiss()

    def action_scroll(self, where: str) -> None:
        """Scroll by a line or a page."""
        getattr(self.query_one("#page"), f"scroll_{where}")(animate=False)


class Help(Page):
    """The page of keys; any key closes it."""

    def __init__(self) -> None:
        super().__init__(_HELP)

    def laid_out(self, text: str, width: int) -> str:
        """Return a text in lines of a width, however it was broken before."""
        return fold(unbroken(text), min(width, _READABLE))

    def on_key(self, event: Key) -> None:
        """Close it; a key that was typed before it was gone is for what was below."""
        event.stop()
        event.prevent_default()
        if self.app.screen is self:
            self.dismiss()
        else:
            self.app.post_message(Key(event.key, event.character))


class PlanPage(Page):
    """A plan, and the question whether to carry it out.

    Args:
        clearing: what plans and acts.
        keys: (namespace, cookie) of each marked connection.
        acted: called when something was done.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("y", "act", "do it")]

    def __init__(
        self, clearing: Clearing, keys: Sequence[tuple[int, int]], acted: Callable[[], None]
    ) -> None:
        super().__init__(f"looking at {len(keys)} connections again …")
        self._clearing = clearing
        self._keys = keys
        self._acted = acted
        self._act: Callable[[], str] | None = None
        self._acting = False

    def on_mount(self) -> None:
        """Make the plan."""
        self.run_worker(self._plan, thread=True)

    def _plan(self) -> None:
        try:
            text, act = self._clearing.plan(self._keys)
        except FinwaitError as error:
            text, act = error_text(error), None
        question = "\n`y` does this; `escape` leaves everything as it is.\n" if act else "\nNothing to do.\n"
        self.app.call_later(self._say, text + question, act)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Offer `y` only where there is something to agree to."""
        return self._act is not None if action == "act" else True

    def _say(self, text: str, act: Callable[[], str] | None = None) -> None:
        if not self.is_attached:  # it was left while the plan was made
            return
        self._act = act
        self.refresh_bindings()
        self.show(text)

    def action_act(self) -> None:
        """Carry the plan out, once."""
        if self._act is not None:
            act, self._acting = self._act, True
            self._say(_DOING)
            self.run_worker(lambda: self._carry_out(act), thread=True)

    def action_leave(self) -> None:
        """Go back; not before the result of what acts is here."""
        if not self._acting:
            super().action_leave()

    def _carry_out(self, act: Callable[[], str]) -> None:
        try:
            text = act()
        except FinwaitError as error:
            text = error_text(error)
        self.app.call_later(self._done, text)

    def _done(self, text: str) -> None:
        self._acting = False
        self._say(text)
        self._clearing.told()
        self._acted()


_DOING = """\
doing it …

This page stays until the result is here. `ctrl+q` stops at the next safe point and leaves.
"""


def error_text(error: FinwaitError) -> str:
    """Return an error with its hint, as a page shows it."""
    return printable(f"{error}\n" + (f"hint: {error.hint}\n" if error.hint else ""), lines=True)
