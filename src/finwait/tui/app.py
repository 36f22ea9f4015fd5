"""``finwait top``: the state diagram with counts and flows, groups, connections, evidence, and a way to a plan.

The view holds no truth of its own: `finwait.tui.feed` looks, `finwait.tui.listing` sorts, `finwait clear` plans
and acts. It is drawn when there is a new picture or a key was pressed, and of the list only what is on the screen.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any, ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer, Input, Static

from finwait.errors import FilterError, FinwaitError
from finwait.report.state_diagram import diagram
from finwait.table.filter import Filter
from finwait.table.units import duration_text, printable
from finwait.tui.feed import Feed, Picture
from finwait.tui.lines import Lines
from finwait.tui.listing import Listing
from finwait.tui.screens import Clearing, Help, Page, PlanPage, told

__all__ = ["Top"]

_HELP = """\
The upper half is the TCP state diagram: how many connections are in each state now, and how many pass
each arrow a second. Where more comes in than goes out, connections pile up.

The lower half lists groups of connections, or the connections of one.

  up down pgup pgdn home end     move
  enter      the connections of the group; of a connection, all the evidence
  escape     back
  g  G       group by the next thing: cause, process, pod, peer, netns, state, port (of both
             ports the lower: nearly always the service's); G goes the other way
  a          all connections, not grouped
  s  S       sort by the next thing; the other way round. The arrow in the header shows it
  /          type a FILTER, as for every other command; an empty one shows everything
  p          pause, go on
  space m    mark a connection, or all of a group (* all, + some); u takes all marks off
  c          the plan to end what is marked: shown first, done only when you type yes,
             with the guards of `finwait clear`
  e          list ESTABLISHED connections too where there are so many that they are only counted
  r          look and diagnose again now
  left right one look back or on, in a recording (`--from`)
  d          hide or show the diagram
  q          quit

Ages: `≥` is what can be proved; `~` means that we saw it come into its state, between two looks.
Causes, holders and pods come from a diagnosis, which is made more rarely than the looks; the line
between the halves says how old it is.

`finwait trace` prints the transitions, `finwait explain` the evidence, `finwait clear` ends connections.
"""


class Top(App[int]):
    """The live view.

    Args:
        feed: what gives pictures.
        parse: text → FILTER; raises `FilterError`.
        clearing: makes and applies plans; None where nothing can be cleared.
        filter_text: the FILTER that is in force at the start.
    """

    CSS = """
    #diagram { height: 11; }
    #status { height: 1; text-style: reverse; }
    #header { height: 1; text-style: bold; }
    #wrong { height: auto; display: none; text-style: bold; }
    #filter { height: 1; border: none; padding: 0; display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("escape", "leave", "back"),
        Binding("g", "group(1)", "group"),
        Binding("G", "group(-1)", "group back", show=False),
        Binding("a", "all", "all", show=False),
        Binding("s", "sort", "sort"),
        Binding("S", "flip", "other way", show=False),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("p", "pause", "pause"),
        Binding("space,m", "mark", "mark", key_display="m"),
        Binding("u", "unmark", "unmark", show=False),
        Binding("c", "clear", "plan"),
        Binding("e", "established", "established", show=False),
        Binding("r", "now", "now", show=False),
        Binding("d", "diagram", "diagram", show=False),
        Binding("left", "step(-1)", "look back", show=False),
        Binding("right", "step(1)", "look on", show=False),
        Binding("ctrl+c", "quit", "quit", show=False, priority=True),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(
        self,
        feed: Feed,
        *,
        parse: Callable[[str], Filter],
        clearing: Clearing | None = None,
        filter_text: str = "",
    ) -> None:
        super().__init__()
        self._feed = feed
        self._parse = parse
        self._clearing = clearing
        self._filter_text = filter_text
        self.listing = Listing()
        self.picture: Picture | None = None
        self._paused = False
        self._established = False
        self._stop = False
        self._failed: FinwaitError | None = None

    @property
    def failed(self) -> FinwaitError | None:
        """Why the view ended by itself, if it did."""
        return self._failed

    def compose(self) -> ComposeResult:
        """Lay the view out."""
        yield Static(id="diagram", markup=False)
        yield Static("looking …", id="status", markup=False)
        yield Static(id="header", markup=False)
        yield Lines(self.listing.line, id="rows")
        yield Static(id="wrong", markup=False)
        yield Input(id="filter", compact=True, placeholder="FILTER, e.g. state close-wait and dport = :5432")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin."""
        self._lines.focus()
        self._feed.want_causes(True)
        # A closed terminal (SIGHUP) and SIGTERM end the view in an orderly way: its tracing instance goes too.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGHUP, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self.exit, 130)
            except (
                ValueError,
                RuntimeError,
                NotImplementedError,
            ):  # not in the main thread: then it is a test
                break
        self.run_worker(self._follow, thread=True, exclusive=True)

    def on_unmount(self) -> None:
        """End the thread with the next picture."""
        self._stop = True
        self._feed.end()

    @property
    def _lines(self) -> Lines:
        return self.screen_stack[0].query_one("#rows", Lines)

    def _static(self, name: str) -> Static:
        return self.screen_stack[0].query_one(name, Static)

    def _follow(self) -> None:
        while not self._stop:
            try:
                picture = self._feed.next()
            except FinwaitError as error:
                self._failed = error
                if self.is_running:
                    self.call_from_thread(self.exit, 1)
                return
            if self._stop or not self.is_running:
                return
            if not self._paused:
                self.call_from_thread(self.show, picture)

    # -- drawing -----------------------------------------------------------------------------------------

    def show(self, picture: Picture) -> None:
        """Draw a picture; the cursor stays on what it was on."""
        key = self.listing.key(self._lines.cursor)
        self.picture = picture
        self.listing.show(picture.rows)
        self._static("#diagram").update(
            "\n".join(diagram(picture.counts, picture.flows, picture.why_no_flows))
        )
        place = self.listing.place(key)
        self._draw(place if place >= 0 else self._lines.cursor)

    def _draw(self, cursor: int) -> None:
        lines = self._lines
        lines.show(self.listing.total, cursor)
        self._static("#header").update(" " + self.listing.header(lines.size.width)[1:])
        self._static("#status").update(self._status())

    def _status(self) -> str:
        picture, listing = self.picture, self.listing
        if picture is None:
            return "looking …"
        n = len(picture.rows)
        if listing.everything:
            what = f"all {listing.total:,} connections"
        elif listing.opened is not None:
            what = f"{listing.total:,} of {listing.by} {printable(listing.title)}"
        else:
            what = f"{listing.total:,} groups by {listing.by}"
        parts = ["PAUSED"] if self._paused else []
        if picture.where:
            parts.append(picture.where)
        parts += [f"{n:,} connections", what]
        if listing.marked:
            parts.append(f"{len(listing.marked):,} marked")
        if self._filter_text:
            parts.append(f"filter: {self._filter_text}")
        if picture.only_counted:
            parts.append(f"{picture.only_counted:,} ESTABLISHED only counted (e)")
        if picture.rows_age_s >= 2:
            parts.append(f"rows {duration_text(int(picture.rows_age_s * 1000))} old")
        if self._feed.live and listing.needs_diagnosis:
            age = picture.causes_age_s
            parts.append("diagnosing …" if age is None else f"causes {duration_text(int(age * 1000))} old")
        if picture.notes:
            parts.append(f"{len(picture.notes)} notes (?)" if len(picture.notes) > 1 else "1 note (?)")
        return printable("; ".join(parts))

    def on_resize(self) -> None:
        """Draw for the new size."""
        self.call_after_refresh(self._redraw)

    def _redraw(self) -> None:
        if self.picture is not None:
            self._draw(self._lines.cursor)

    # -- keys --------------------------------------------------------------------------------------------

    def on_lines_selected(self, event: Lines.Selected) -> None:
        """Open a group, or the evidence of a connection."""
        if not self.listing.connections:
            self.listing.open(event.place)
            self._draw(0)
            return
        cookie = self.listing.key(event.place)
        if cookie is None:
            return
        width = max(72, min(self.size.width - 2, 140))
        title = f"Evidence: `finwait explain {cookie:#x}` prints the same"
        self.push_screen(Page(title, lambda: self._feed.evidence(cookie, width)))

    def action_leave(self) -> None:
        """Leave the FILTER's line, or the group."""
        if self.query_one("#filter", Input).display:
            self._close_filter()
            return
        key: Any = self.listing.opened
        self.listing.leave()
        self._draw(max(self.listing.place(key), 0))

    def action_group(self, step: int) -> None:
        """Group by the next thing."""
        self.listing.group_by(step)
        self._draw(0)

    def action_all(self) -> None:
        """List all connections."""
        self.listing.open_all()
        self._draw(0)

    def action_sort(self) -> None:
        """Sort by the next thing."""
        self.listing.next_sort()
        self._draw(0)

    def action_flip(self) -> None:
        """Turn the order round."""
        self.listing.flip()
        self._draw(0)

    def action_pause(self) -> None:
        """Stop drawing, or go on."""
        self._paused = not self._paused
        self._draw(self._lines.cursor)

    def action_mark(self) -> None:
        """Mark what the cursor is on, and go on to the next."""
        place = self._lines.cursor
        self.listing.mark(place)
        self._draw(min(place + 1, self.listing.total - 1))

    def action_unmark(self) -> None:
        """Take all marks off."""
        self.listing.marked.clear()
        self._draw(self._lines.cursor)

    def action_clear(self) -> None:
        """Show the plan for what is marked."""
        self.listing.forget_gone()
        if not self.listing.marked:
            self.push_screen(
                Page("Nothing is marked", None, "Mark connections (or groups) with m, then press c.")
            )
        elif self._clearing is None:
            self.push_screen(Page("There is nothing to clear here", None, "This view only shows."))
        else:
            self.push_screen(PlanPage(self._clearing, sorted(self.listing.marked), self._feed.now))

    def action_established(self) -> None:
        """List ESTABLISHED connections too, or not."""
        self._established = not self._established
        self._feed.list_established(self._established)

    def action_now(self) -> None:
        """Look now."""
        self._feed.now()

    def action_step(self, by: int) -> None:
        """Go to another look of the recording."""
        self._paused = False
        self._feed.step(by)

    def action_diagram(self) -> None:
        """Hide or show the diagram."""
        picture = self._static("#diagram")
        picture.display = not picture.display
        self.call_after_refresh(self._redraw)

    def action_help(self) -> None:
        """Show the keys, and what is not right with the picture."""
        text = _HELP
        picture = self.picture
        if picture is not None:
            if picture.flows is not None:
                text += "\nFlows are traced in a private tracefs instance.\n"
            elif picture.why_no_flows:
                text += f"\nNo flows: {picture.why_no_flows}.\n"
            if picture.notes:
                text += "\nNot seen, or not right:\n" + "".join(f"  {note}\n" for note in picture.notes)
        self.push_screen(Help("finwait top: keys", None, printable(text, lines=True)))

    # -- the FILTER's line -------------------------------------------------------------------------------

    def action_filter(self) -> None:
        """Open the line in which a FILTER is typed."""
        line = self.query_one("#filter", Input)
        line.value = self._filter_text
        line.display = True
        line.cursor_position = len(line.value)
        line.focus()

    def _close_filter(self) -> None:
        self._static("#wrong").display = False
        self.query_one("#filter", Input).display = False
        self._lines.focus()
        self.call_after_refresh(self._redraw)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Filter by what was typed; a mistake is pointed at and the line stays open."""
        typed = event.value.strip()
        try:
            wanted = self._parse(typed) if typed else None
        except FilterError as error:
            wrong = self._static("#wrong")
            wrong.update(told(error))
            wrong.display = True
            self.query_one("#filter", Input).cursor_position = error.column
            self.call_after_refresh(self._redraw)
            return
        self._filter_text = typed
        self._paused = False
        self.listing.leave()
        self._close_filter()
        self._static("#status").update("looking …")
        self._feed.want(wanted)
