"""``finwait top``: the state diagram with counts and flows, groups, the connections of one, the evidence of one.

Nothing here looks at the machine: a thread takes pictures from a `Feed`, and what is shown is drawn from the newest.
"""

from __future__ import annotations

import re
import textwrap
import threading
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import ScrollableContainer, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Static

from finwait.errors import FilterError, FinwaitError
from finwait.report.columns import Cells
from finwait.report.groups import GROUPINGS, SORTS, Groups, groups
from finwait.report.state_diagram import HEIGHT, WIDTH, diagram, states
from finwait.report.text import Style, connection
from finwait.session import Diagnosis, findings_of
from finwait.table.filter import Filter
from finwait.table.units import duration_text, printable
from finwait.tui.note import note, nothing
from finwait.tui.rows import Listing, Rows
from finwait.watching import Feed, Picture

__all__ = ["Clearing", "Parse", "Top"]

_COLUMNS = {
    "state": "state_name",
    "local": "local",
    "peer": "peer",
    "age": "age",
    "owner": "owner",
    "cause": "rule",
    "netns": "netns_name",
}
"""Title → column of the list of connections; ages are shown as the time that is sure, `explain` has both bounds."""
_COUNTERS = {
    "recv-q": "rqueue",
    "send-q": "wqueue",
    "received": "bytes_received",
    "acked": "bytes_acked",
}
_ROW_SORTS = ("age", "state", "local", "peer", "netns", "owner", *_COUNTERS)
"""What connections can be sorted by; the oldest, or the most, first. A counter is then a column, too."""


def _columns(sort: str) -> dict[str, str]:
    """Return title → column: what is sorted by comes before what may not fit."""
    if sort in ("age", "state", "local", "peer"):
        return _COLUMNS
    first = {name: _COLUMNS[name] for name in ("state", "local", "peer", "age")}
    return {**first, sort: _COUNTERS.get(sort) or _COLUMNS[sort], **_COLUMNS}


_HELP = """\
Above: the TCP state diagram, with the number of sockets in each state and how
many pass each arrow a second. Where more comes in than goes out, connections
pile up. On a small screen: the states in use, with +in and -out a second.

Below: the connections, grouped by cause or by something else.

  g  G    group by the next, the one before: cause, process, pod, peer, port,
          netns, state
  enter   open a group; then the evidence of one connection
  escape  back
  s  r    sort by something else; reverse the order
  /       a FILTER, as on the command line (`held age > 10m`,
          `dport = :5432`); empty for all
  m       mark a connection, or all of a group
  u       unmark all
  c       show the plan that would clear what is marked, and what the peers see
  d       diagnose again now
  e       list ESTABLISHED connections too, where there are so many that they
          are only counted
  n  p    the next look of a recording, the one before
  space   pause, and go on
  q       quit

Ages are what can be proved: at least that long. Where there are very many
sockets the numbers are newer than the groups: listing descriptors takes longer
than counting.

Any key closes this page; arrow keys scroll other pages, also to the side.
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

    def plan(self, keys: Sequence[tuple[int, int]]) -> tuple[str, bool]:
        """Return a plan as text for (namespace, cookie) each, and whether there is anything to do.

        Raises:
            FinwaitError: it was refused, or nothing could be looked at.
        """

    def act(self) -> str:
        """Carry out the plan that was made last; return what came of it.

        Raises:
            FinwaitError: it could not be done.
        """


_DRAWN = frozenset("│┌┐└┘├┤┬┴┼─")


def fit(text: str, width: int) -> str:
    """Return one line of at most ``width`` cells; what is cut off is marked."""
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)).rstrip() + "…"


def fold(text: str, width: int) -> str:
    """Return text in lines of at most ``width`` characters.

    Drawings and words that are longer stay as they are: a page can be scrolled to the side. What a line says behind two
    blanks stays under its beginning.
    """
    out: list[str] = []
    for line in text.split("\n"):
        if len(line) <= width or not _DRAWN.isdisjoint(line):
            out.append(line)
            continue
        gaps = [gap.end() for gap in re.finditer(r"^\s+|\s{2,}", line) if gap.end() <= width // 2]
        hang = gaps[-1] if gaps else 0
        out += textwrap.wrap(
            line, max(width, hang + 10), subsequent_indent=" " * hang, break_long_words=False,
            break_on_hyphens=False, replace_whitespace=False,
        )  # fmt: skip
    return "\n".join(out)


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
        self.query_one("#text", Static).update(fold(text, max(self.size.width - 2, 20)))

    def action_leave(self) -> None:
        """Go back."""
        self.dismiss()

    def action_scroll(self, where: str) -> None:
        """Scroll by a line or a page."""
        getattr(self.query_one("#page"), f"scroll_{where}")(animate=False)


class Help(Page):
    """The page of keys; any key closes it."""

    def __init__(self) -> None:
        super().__init__(_HELP)

    def on_key(self) -> None:
        """Close it."""
        self.dismiss()


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
        self._ready = False

    def on_mount(self) -> None:
        """Make the plan."""
        self.run_worker(self._plan, thread=True)

    def _plan(self) -> None:
        try:
            text, ready = self._clearing.plan(self._keys)
        except FinwaitError as error:
            text, ready = _told(error), False
        question = (
            "\n`y` does this; `escape` leaves everything as it is.\n" if ready else "\nNothing to do.\n"
        )
        self.app.call_later(self._say, text + question, ready)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Offer `y` only where there is something to agree to."""
        return self._ready if action == "act" else True

    def _say(self, text: str, ready: bool) -> None:
        self._ready = ready
        self.refresh_bindings()
        self.show(text)

    def action_act(self) -> None:
        """Carry the plan out, once."""
        if self._ready:
            self._say("doing it …", False)
            self.run_worker(self._act, thread=True)

    def _act(self) -> None:
        try:
            text = self._clearing.act()
        except FinwaitError as error:
            text = _told(error)
        self.app.call_later(self._say, text, False)
        self.app.call_later(self._acted)


def _told(error: FinwaitError) -> str:
    return printable(f"{error}\n" + (f"hint: {error.hint}\n" if error.hint else ""), lines=True)


class Top(App[None]):
    """The live view.

    Args:
        feed: what gives pictures.
        parse: makes a FILTER of words.
        clearing: makes plans and carries them out; None where nothing can be acted upon.
        wanted: the words of the FILTER to begin with.
    """

    CSS = """
    #diagram { height: auto; }
    #status { height: 1; text-style: reverse; }
    #rows { height: 1fr; }
    #ask { height: auto; display: none; }
    #ask.open { display: block; }
    #wrong { height: auto; }
    Input { border: none; height: 1; padding: 0; }
    Page { background: $background; }
    #page { overflow: auto; }
    #text { width: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("g", "group(1)", "group"),
        Binding("G", "group(-1)", show=False),
        Binding("s", "sort", "sort"),
        Binding("r", "reverse", show=False),
        Binding("slash", "ask", "filter"),
        Binding("m", "mark", "mark"),
        Binding("u", "unmark", show=False),
        Binding("c", "clear", "clear"),
        Binding("d", "renew", show=False),
        Binding("n", "turn(1)", show=False),
        Binding("p", "turn(-1)", show=False),
        Binding("space", "pause", "pause"),
        Binding("escape", "leave", "back"),
        Binding("e", "established", show=False),
    ]
    ENABLE_COMMAND_PALETTE = False
    TITLE = "finwait top"

    def __init__(
        self,
        feed: Feed,
        parse: Parse,
        *,
        clearing: Clearing | None = None,
        wanted: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._feed = feed
        self._parse = parse
        self._clearing = clearing
        self._words = " ".join(wanted)
        self._picture: Picture | None = None
        self._waiting: Picture | None = None
        self._by = 0
        self._sort = 0
        self._row_sort = 0
        self._reverse = False
        self._group: str | None = None
        self._marked: set[tuple[int, int]] = set()
        self._paused = False
        self._stop = False
        self._every = False
        self._failed: FinwaitError | None = None
        self._shown = "looking …"
        self._grouped: tuple[NDArray[np.int64], Groups] | None = None
        self._listed: tuple[NDArray[np.int64], tuple[object, ...]] | None = None

    @property
    def picture(self) -> Picture | None:
        """What is shown; None before the first."""
        return self._picture

    @property
    def failed(self) -> FinwaitError | None:
        """Why the view ended by itself, if it did."""
        return self._failed

    @property
    def newest(self) -> Picture | None:
        """The newest picture, which is not shown while the view is paused."""
        return self._waiting or self._picture

    def compose(self) -> ComposeResult:
        """Lay the view out."""
        yield Static(id="diagram", markup=False)
        yield Static("looking …", id="status", markup=False)
        yield Rows(id="rows")
        with VerticalScroll(id="ask"):
            yield Static(id="wrong", markup=False)
            yield Input(placeholder="FILTER, e.g. state close-wait age > 10m; empty: all", id="filter")
        yield Footer()

    def on_mount(self) -> None:
        """Begin."""
        self.query_one("#rows", Rows).focus()
        self.run_worker(self._follow, thread=True, exclusive=True, exit_on_error=True)

    def on_unmount(self) -> None:
        """End the thread."""
        self.end()

    def end(self) -> None:
        """Let the thread that follows end soon, whatever became of the view."""
        self._stop = True
        self._feed.end()

    def _follow(self) -> None:
        while not self._stop:
            try:
                picture = self._feed.next()
            except FinwaitError as error:
                self._failed = error
                self.call_later(self.exit)
                return
            if picture is None:
                continue
            # Not `call_from_thread`: it waits for a loop that may have ended, and the interpreter then for it.
            taken = threading.Event()
            self.call_later(self._take, picture, taken)
            while not taken.wait(0.1):
                if self._stop:
                    return

    def _take(self, picture: Picture, taken: threading.Event) -> None:
        try:
            self.take(picture)
        finally:
            taken.set()

    def take(self, picture: Picture) -> None:
        """Draw a picture, unless the view is paused."""
        if self._paused:
            self._waiting = picture
            return
        self._picture, self._waiting = picture, None
        self._draw()

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────

    def _draw(self, *, top: bool = False) -> None:
        picture = self._picture
        if picture is None:
            return
        self.query_one("#diagram", Static).update("\n".join(self._states(picture)))
        if picture.diagnosis is not None:
            self._list(picture, picture.diagnosis, top)
        parts = [
            "PAUSED" if self._paused else "",
            nothing(picture),  # before what may be cut off
            self._shown,
            f"{len(self._marked):,} marked" if self._marked else "",
            f"FILTER {self._words}" if self._words else "",
            note(picture),
            # The diagram says it itself.
            picture.circumstances.why_no_flows if self._small else "",
        ]
        self.query_one("#status", Static).update(fit("; ".join(p for p in parts if p), self.size.width))

    def _states(self, picture: Picture) -> list[str]:
        """Return the diagram, or where it does not fit the states alone: half of the screen is the list's."""
        width, height = self.size
        if not self._small:
            return diagram(picture.counts, picture.flows, picture.circumstances.why_no_flows)
        return states(picture.counts, picture.flows, width=max(width, 10), most=max(min(height // 5, 5), 1))

    @property
    def _small(self) -> bool:
        """Whether the diagram does not fit."""
        return self.size.width <= WIDTH or self.size.height < 2 * HEIGHT

    def on_resize(self) -> None:
        """Draw for another size, once it is ours."""
        self.call_after_refresh(self._draw)

    def _list(self, picture: Picture, found: Diagnosis, top: bool) -> None:
        """Fill the list, if it is not what it shows already."""
        by = GROUPINGS[self._by]
        how = (by, self._group, self._sort, self._row_sort, self._reverse, frozenset(self._marked))
        if self._listed is not None and self._listed[0] is picture.rows and self._listed[1] == how:
            return
        if self._grouped is None or self._grouped[0] is not picture.rows or self._grouped[1].by != by:
            self._grouped = picture.rows, groups(found.view, found.findings, picture.rows, by)
        self._listed = picture.rows, how
        made = self._grouped[1]
        turned = ", reversed" if self._reverse else ""
        if self._group is None:
            self._show_groups(made, top)
            self._shown = f"{len(made)} groups by {by}, sorted by {SORTS[self._sort]}{turned}"
        else:
            rows = self._sorted(found, made.members(self._group))
            self._show_connections(found, rows, top)
            self._shown = f"{len(rows):,} of {self._group}, sorted by {_ROW_SORTS[self._row_sort]}{turned}"

    def _show_groups(self, found: Groups, top: bool) -> None:
        order = found.order(SORTS[self._sort], reverse=self._reverse)
        places = {found.labels[k]: n for n, k in enumerate(order.tolist())}

        def cells(begin: int, end: int) -> list[tuple[str, ...]]:
            return [
                (
                    found.labels[k],
                    f"{int(found.counts[k]):,}",
                    duration_text(int(found.oldest_ms[k])) if found.oldest_ms[k] >= 0 else "?",
                    found.states_text(k),
                )
                for k in order[begin:end].tolist()
            ]

        titles = (found.by, "connections", "oldest", "states")
        listing = Listing(
            titles,
            len(order),
            cells,
            lambda n: found.labels[int(order[n])] if n < len(order) else None,
            lambda key: places.get(str(key)),
        )
        self.query_one("#rows", Rows).put(listing, top=top)

    def _sorted(self, found: Diagnosis, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        view, what = found.view, _ROW_SORTS[self._row_sort]
        s = view.sockets
        longest = -view.at_least_ms[rows]
        keys: tuple[NDArray[np.int64], ...] = (longest,)
        if what == "state":
            keys = (longest, s.state[rows])
        elif what == "peer":
            keys = (s.dport[rows], s.dst[rows, 1], s.dst[rows, 0])
        elif what == "local":
            keys = (s.sport[rows], s.src[rows, 1], s.src[rows, 0])
        elif what == "netns":
            keys = (longest, s.netns[rows])
        elif what == "owner":
            keys = (longest, view.holders.first_pid()[rows])
        elif what != "age":
            keys = (longest, -s.column(_COUNTERS[what])[rows].astype(np.int64))
        order = np.lexsort(keys)
        return rows[order[::-1] if self._reverse else order]

    def _show_connections(self, found: Diagnosis, rows: NDArray[np.int64], top: bool) -> None:
        s = found.view.sockets
        netns, cookie = s.netns[rows], s.column("cookie")[rows]
        titles = _columns(_ROW_SORTS[self._row_sort])

        def cells(begin: int, end: int) -> list[list[str]]:
            table = Cells(found.view, rows[begin:end], found.findings)
            columns = [
                ["-" if v in (None, "") else str(v) for v in table.column(name)] for name in titles.values()
            ]
            least = found.view.at_least_ms[rows[begin:end]].tolist()
            columns[list(titles).index("age")] = [duration_text(ms) if ms >= 0 else "?" for ms in least]
            return [list(row) for row in zip(*columns, strict=True)]

        def key(n: int) -> tuple[int, int] | None:
            return (int(netns[n]), int(cookie[n])) if n < len(rows) else None

        def place(wanted: object) -> int | None:
            if not isinstance(wanted, tuple):
                return None
            where = np.flatnonzero((netns == wanted[0]) & (cookie == wanted[1]))
            return int(where[0]) if len(where) else None

        listing = Listing(tuple(titles), len(rows), cells, key, place)
        self.query_one("#rows", Rows).put(listing, self._marked, top=top)

    # ── going about ──────────────────────────────────────────────────────────────────────────────────────

    def on_rows_chosen(self, event: Rows.Chosen) -> None:
        """Open a group, or the evidence of a connection."""
        if isinstance(event.key, str):
            self._group = event.key
            self._reverse = False
            self._draw(top=True)
        elif isinstance(event.key, tuple):
            self._explain(event.key)

    def _explain(self, key: tuple[int, ...]) -> None:
        found = self._picture.diagnosis if self._picture is not None else None
        if found is None:
            return
        s = found.view.sockets
        where = np.flatnonzero((s.netns == key[0]) & (s.column("cookie") == key[1]))
        if len(where):
            # As `finwait explain` prints it: what the rules say of this connection, and what could not be seen.
            row, style = int(where[0]), Style(width=max(min(self.size.width - 2, 120), 40))
            pieces = list(connection(found.view, row, findings_of(found, row), style))
            if found.gaps:
                pieces += ["\nNot seen:\n", *(f"  {gap}\n" for gap in found.gaps)]
            self.push_screen(Page(printable("".join(pieces), lines=True)))

    def action_leave(self) -> None:
        """Close the FILTER line, or leave a group."""
        ask = self.query_one("#ask")
        if ask.has_class("open"):
            ask.remove_class("open")
            self.query_one("#rows", Rows).focus()
        elif self._group is not None:
            label, self._group = self._group, None
            self._reverse = False
            self._draw(top=True)
            rows = self.query_one("#rows", Rows)
            place = rows.place_of(label)
            if place is not None:
                rows.action_to(place)

    def action_group(self, by: int) -> None:
        """Group by the next thing."""
        self._by = (self._by + by) % len(GROUPINGS)
        self._group = None
        self._draw(top=True)

    def action_sort(self) -> None:
        """Sort by the next thing."""
        if self._group is None:
            self._sort = (self._sort + 1) % len(SORTS)
        else:
            self._row_sort = (self._row_sort + 1) % len(_ROW_SORTS)
        self._draw(top=True)

    def action_reverse(self) -> None:
        """Turn the order around."""
        self._reverse = not self._reverse
        self._draw(top=True)

    def action_pause(self) -> None:
        """Stop drawing, or go on."""
        self._paused = not self._paused
        if not self._paused and self._waiting is not None:
            self._picture, self._waiting = self._waiting, None
        self._draw()

    def action_renew(self) -> None:
        """Diagnose again now."""
        self._feed.renew()

    def action_established(self) -> None:
        """List ESTABLISHED connections too, or not."""
        self._every = not self._every
        self._feed.list_established(self._every)

    def action_turn(self, by: int) -> None:
        """Go to another look of a recording."""
        self._feed.turn(by)

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    # ── the FILTER ───────────────────────────────────────────────────────────────────────────────────────

    def action_ask(self) -> None:
        """Open the line for a FILTER."""
        self.query_one("#ask").add_class("open")
        self.query_one("#wrong", Static).update("")
        line = self.query_one("#filter", Input)
        line.value = self._words
        line.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the FILTER, or say where it is wrong."""
        words = event.value.strip()
        try:
            wanted = self._parse([words]) if words else None
        except FilterError as error:
            self.query_one("#wrong", Static).update(wrong(error, self.size.width - 2))
            return
        self._words = words
        self._group = None
        self._feed.choose(wanted)
        self.action_leave()

    # ── marks and the plan ───────────────────────────────────────────────────────────────────────────────

    def action_mark(self) -> None:
        """Mark the connection under the cursor, or all of the group under it; again unmarks."""
        rows = self.query_one("#rows", Rows)
        chosen = rows.chosen
        found = self._picture.diagnosis if self._picture is not None else None
        if found is None or chosen is None:
            return
        keys: set[tuple[int, int]] = set()
        if isinstance(chosen, tuple):
            keys = {(int(chosen[0]), int(chosen[1]))}
        elif self._grouped is not None:
            mine = self._grouped[1].members(str(chosen))
            s = found.view.sockets
            keys = set(zip(s.netns[mine].tolist(), s.column("cookie")[mine].tolist(), strict=True))
        self._marked = self._marked - keys if keys <= self._marked else self._marked | keys
        self._draw()
        rows.action_move(1)

    def action_unmark(self) -> None:
        """Unmark all."""
        self._marked = set()
        self._draw()

    def action_clear(self) -> None:
        """Show what clearing the marked connections would do."""
        if not self._marked:
            self.push_screen(Page("Nothing is marked: `m` marks a connection, or all of a group.\n"))
        elif self._clearing is None:
            self.push_screen(Page("finwait cannot act on a recording.\n"))
        else:
            self.push_screen(PlanPage(self._clearing, sorted(self._marked), self._done))

    def _done(self) -> None:
        self.action_unmark()
        self._feed.renew()
