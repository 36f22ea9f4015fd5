"""``finwait top``: the state diagram with counts and flows, groups, the connections of one, the evidence of one.

Nothing here looks at the machine: a thread takes pictures from a `Feed`, and what is shown is drawn from the newest.
What earlier pictures said is kept in rings (`finwait.tui.past`), for the sparklines. Before the first picture the frame
is there and says what it waits for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import ClassVar, Final

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from textual.app import ComposeResult, SystemCommand
from textual.binding import BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

from finwait.errors import FilterError, FinwaitError
from finwait.report.board import SORTS, Group, Judged, board, judged, sort_groups
from finwait.report.groups import GROUPINGS, Grouping
from finwait.report.journal import ActLine
from finwait.report.overview import ends
from finwait.report.painted import Line
from finwait.report.state_diagram import WIDTH, diagram, height_of, state_at, states
from finwait.report.tune import InForce, settings_in_force
from finwait.session import Diagnosis
from finwait.table.filter import Filter
from finwait.tui import evidence, layout, listings
from finwait.tui.driver import TERMINALS_OWN, TerminalView
from finwait.tui.header import header, past, waiting
from finwait.tui.listings import ROW_SORTS
from finwait.tui.note import compared, note, nothing
from finwait.tui.pages import Clearing, Help, Page, Parse, PlanPage, fit_parts, narrowed, wrong
from finwait.tui.paint import Painted, clean
from finwait.tui.past import Past
from finwait.tui.rows import NOTHING, RowList
from finwait.tui.tabs import tab_at, tab_line
from finwait.watching import Feed, Picture

__all__ = ["TERMINALS_OWN", "Acts", "Clearing", "Parse", "Top"]

Acts = Callable[[], Sequence[ActLine]]
"""What reads the journal of acts, the newest first; raises a FinwaitError where it cannot be read."""

_GROUPS, _CONNECTIONS, _PROCESSES, _PLACES, _SETTINGS, _JOURNAL = range(6)
_PANE: Final = 120
"""Columns from which on there is room for evidence beside the list."""
_TAB_OF: Final[dict[Grouping, int]] = {"process": _PROCESSES, "pod": _PLACES, "netns": _PLACES}


class Top(TerminalView):
    """The live view.

    Args:
        feed: what gives pictures.
        parse: makes a FILTER of words.
        clearing: makes plans and carries them out; None where nothing can be acted upon.
        acts: reads the journal; None where there is none, as of a recording.
        filter_words: the words of the FILTER to begin with.
        theme: the name of a theme of Textual's; None for its default.
    """

    CSS = layout.CSS
    BINDINGS: ClassVar[list[BindingType]] = [*layout.KEYS]
    TITLE = "finwait top"

    def __init__(
        self,
        feed: Feed,
        parse: Parse,
        *,
        clearing: Clearing | None = None,
        acts: Acts | None = None,
        filter_words: Sequence[str] = (),
        theme: str | None = None,
    ) -> None:
        super().__init__(theme)
        self._feed = feed
        self._parse = parse
        self._clearing = clearing
        self._acts = acts
        self._words = " ".join(filter_words)
        self._picture: Picture | None = None
        self._waiting: Picture | None = None
        self._view = _GROUPS
        self._by = 0
        self._sort = 0
        self._row_sort = 0
        self._reverse = False
        self._group: str | None = None
        self._title = ""
        self._marked: set[tuple[int, int]] = set()
        self._paused = False
        self._stop = False
        self._every = False
        self._failed: FinwaitError | None = None
        self._shown = "looking …"
        self._order = ""
        self._past = Past(self._said, self._groups)
        self._since = time.monotonic()
        """When what is waited for began."""
        self._too_early = ""
        """What is said of a key that can do nothing before the first diagnosis."""
        self._judged: tuple[tuple[Diagnosis, Judged], ...] = ()
        self._board: tuple[NDArray[np.int64], Grouping, list[Group]] | None = None
        self._listed: tuple[object, tuple[object, ...]] | None = None
        self._told: tuple[object, ...] = ()
        self._settings: tuple[Diagnosis, list[InForce]] | None = None
        self._journal: Sequence[ActLine] = ()
        self._journal_said = ""

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
        yield Painted(id="head")
        yield Painted(id="diagram")
        yield Painted(id="past")
        yield Painted(id="tabs")
        with Horizontal(id="body"):
            yield RowList(id="rows")
            with VerticalScroll(id="side"):
                yield Painted(id="evidence")
        with VerticalScroll(id="ask"):
            yield Static(id="wrong", markup=False)
            yield Input(placeholder="FILTER, e.g. state close-wait age > 10m; empty: all", id="filter")
        yield Static("looking …", id="status", markup=False)
        yield Footer(show_command_palette=False)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:  # noqa: ARG002 - Textual's form
        """Return what the command palette offers: nothing in it writes a file or acts on a connection."""
        for name, about, key in layout.COMMANDS:
            yield SystemCommand(
                name, f"{about} (key {key})", partial(self.run_action, layout.KEY_ACTIONS[key])
            )

    def on_mount(self) -> None:
        """Begin."""
        self._begun = True
        self.query_one("#rows", RowList).focus()
        self.set_interval(0.5, self._tick)
        self.run_worker(self._follow, thread=True, exclusive=True, exit_on_error=True)

    def _tick(self) -> None:
        """While a diagnosis is waited for, say what is being done and for how long."""
        if self._picture is None or self._picture.diagnosis is None:
            self._draw()

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
            self._foresee(picture)
            # Not `call_from_thread`: it waits for a loop that may have ended, and the interpreter then for it.
            taken = threading.Event()
            self.call_later(self._take, picture, taken)
            while not taken.wait(0.1):
                if self._stop:
                    return

    def _foresee(self, picture: Picture) -> None:
        """Work out what takes long with many sockets, in the thread that looks: how bad rows are, when groups end."""
        diagnosis = picture.diagnosis
        if diagnosis is None or any(of is diagnosis for of, _ in self._judged):
            return
        for finding in [f for f in diagnosis.findings if f.primary and f.severity != "healthy"][
            : layout.FORESEEN
        ]:
            ends(diagnosis.view, finding)  # the view keeps it
        self._said(diagnosis)

    def _take(self, picture: Picture, taken: threading.Event) -> None:
        try:
            self.take(picture)
        finally:
            taken.set()

    def take(self, picture: Picture) -> None:
        """Draw a picture, unless the view is paused; its numbers are remembered in any case."""
        self._past.remember(picture, self.newest, GROUPINGS[self._by])
        if self._paused:
            self._waiting = picture
            return
        self._picture, self._waiting = picture, None
        self._draw()

    # ── what is drawn ────────────────────────────────────────────────────────────────────────────────────

    def _said(self, diagnosis: Diagnosis) -> Judged:
        """Return what findings say of each row; of two diagnoses, for a paused view is not at the newest."""
        known = next((text for of, text in self._judged if of is diagnosis), None)
        if known is None:
            known = judged(diagnosis.view, diagnosis.findings)
            self._judged = (*self._judged[-1:], (diagnosis, known))
        return known

    def _groups(self, picture: Picture, diagnosis: Diagnosis, by: Grouping) -> list[Group]:
        """Return the groups of a picture, made once."""
        kept = self._board
        if kept is None or kept[0] is not picture.rows or kept[1] != by:
            made = board(diagnosis.view, diagnosis.findings, self._said(diagnosis), picture.rows, by)
            self._board = kept = picture.rows, by, made
        return kept[2]

    def _levels(self, state: int, cells: int) -> Sequence[float | None]:
        span = self._picture.circumstances.span_s if self._picture is not None else 60.0
        return self._past.levels(state, cells, span)

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────

    def _draw(self, *, top: bool = False) -> None:
        picture = self._picture
        width, height = self.size
        screen = self.screen_stack[0]
        screen.set_class(height < 8, "tiny")
        screen.query_one("#diagram", Painted).show(self._states(picture))
        screen.query_one("#tabs", Painted).show([tab_line(self._tab, width)])
        diagnosis = picture.diagnosis if picture is not None else None
        if diagnosis is None or picture is None:
            self._wait_for_it(picture)
            return
        self._too_early = ""
        self._list(picture, diagnosis, top)
        past_, seen = self._past, picture.circumstances
        stuck = self._said(diagnosis).stuck(picture.rows)
        others = layout.other_problems(diagnosis)
        screen.query_one("#head", Painted).show(
            [header(picture, stuck, past_.numbers, past_.problems, width, others)]
        )
        tall = width >= layout.BESIDE and height >= layout.TALL
        graphs = past(past_.numbers, past_.problems, seen.span_s, width, layout.GRAPH) if tall else []
        screen.query_one("#past", Painted).show(graphs)
        parts = [
            "PAUSED" if self._paused else "",
            f"the last look failed: {seen.failed}" if seen.failed else "",
            nothing(picture),  # before what may be cut off
            *narrowed(self._shown, self._order, len(self._marked), self._words, width),
            note(picture),
            self._not_known_yet(picture),
            # The diagram says it itself.
            (seen.why_no_flows or compared(picture)) if self._small else "",
        ]
        screen.query_one("#status", Static).update(fit_parts([clean(p) for p in parts if p], width))
        self._inform()

    def _not_known_yet(self, picture: Picture) -> str:
        """Return when it will be known how many are new in groups, where that is not known."""
        new, due = self._past.new(GROUPINGS[self._by]), picture.circumstances.diagnosis_in_s
        if self._view != _GROUPS or due is None or not new or any(n is not None for n in new.values()):
            return ""
        return f"new/min from the next diagnosis on, in about {max(due, 1):.0f} s"

    def _wait_for_it(self, picture: Picture | None) -> None:
        """Draw what is there before the first diagnosis: the numbers, or the frame alone, and what is waited for."""
        screen, width = self.screen_stack[0], self.size.width
        seconds = time.monotonic() - self._since
        doing = self._feed.doing or ("diagnosing" if picture is not None else "beginning")
        first = waiting(doing, seconds, width)
        if picture is not None:
            first = header(picture, None, self._past.numbers, self._past.problems, width)
        screen.query_one("#head", Painted).show([first])
        about = f"{doing} … {seconds:.0f} s"
        self._listed = None
        text = f"Groups by cause come with the first diagnosis. Now: {about}"
        screen.query_one("#rows", RowList).put(replace(NOTHING, empty=text))
        parts = [self._too_early, about, f"FILTER {self._words}" if self._words else ""]
        screen.query_one("#status", Static).update(fit_parts([clean(p) for p in parts if p], width))

    def _early(self, key: str) -> bool:
        """Return whether it is too early for a key, and say so."""
        if self._picture is not None and self._picture.diagnosis is not None:
            return False
        self._too_early = f"`{key}` works from the first diagnosis on"
        self._draw()
        return True

    def _states(self, picture: Picture | None) -> list[Line]:
        """Return the diagram, or where it does not fit the states alone: most of the screen is the list's."""
        width, height = self.size
        diagnosis = picture.diagnosis if picture is not None else None
        judgements = self._said(diagnosis) if diagnosis is not None else None
        numbers = layout.numbers_of(picture, judgements, self._levels)
        if not self._small:
            return diagram(numbers, width)
        return states(numbers, width=max(width, 10), most=max(min(height // 8, 4), 1))

    @property
    def _small(self) -> bool:
        """Whether the diagram does not fit."""
        return self.size.width < WIDTH or self.size.height < height_of(self.size.width) + layout.LIST

    @property
    def _tab(self) -> int:
        return _TAB_OF.get(GROUPINGS[self._by], _GROUPS) if self._view == _GROUPS else self._view

    def on_resize(self) -> None:
        """Draw for another size, once it is ours."""
        self.call_after_refresh(self._draw)

    def _list(self, picture: Picture, diagnosis: Diagnosis, top: bool) -> None:
        """Fill the list, if it is not what it shows already."""
        by = GROUPINGS[self._by]
        arrangement = (
            self._view, by, self._group, self._sort, self._row_sort, self._reverse, frozenset(self._marked),
            id(self._journal), self._journal_said, self._past.counted,
        )  # fmt: skip
        if (
            self._listed is not None
            and self._listed[0] is picture.rows
            and self._listed[1] == arrangement
            and not top
        ):
            return
        self._listed = picture.rows, arrangement
        rows = self.screen_stack[0].query_one("#rows", RowList)
        turned = ", reversed" if self._reverse else ""
        if self._view == _SETTINGS:
            rows.put(listings.settings(self._in_force(picture, diagnosis)), top=top)
            spaces = len(layout.spaces_of(picture, diagnosis))
            self._shown = (
                f"settings in {spaces} namespace{'' if spaces == 1 else 's'}, harmful ones first; "
                "`finwait tune show` reads more"
            )
        elif self._view == _JOURNAL:
            rows.put(listings.acts(self._journal), top=top)
            self._shown = self._journal_said
        elif self._view == _CONNECTIONS or self._group is not None:
            self._list_connections(picture, diagnosis, top)
        else:
            sort = SORTS[self._sort]
            made = self._groups(picture, diagnosis, by)
            new, rates = self._past.new(by), self._past.rates(by)
            shown = sort_groups(made, sort, new, reverse=self._reverse)
            span_s = picture.circumstances.span_s
            listing = listings.group_list(diagnosis, shown, by, new=new, rates=rates, span_s=span_s)
            rows.put(listing, *layout.marked_groups(diagnosis, made, self._marked), top=top)
            self._order = f", sorted by {sort}{turned}"
            self._shown = f"{len(made)} group{'' if len(made) == 1 else 's'} by {by}{self._order}"

    def _list_connections(self, picture: Picture, diagnosis: Diagnosis, top: bool) -> None:
        sort, turned = ROW_SORTS[self._row_sort], ", reversed" if self._reverse else ""
        members, subject = picture.rows, f"connection{'' if len(picture.rows) == 1 else 's'}"
        if self._group is not None:
            group = self._found(self._group)
            members = group.rows if group is not None else members[:0]
            subject = f"of {self._title}"
        text = self._said(diagnosis)
        rows = listings.sorted_rows(diagnosis, text, members, sort)
        rows = rows[::-1] if self._reverse else rows
        listing = listings.connections(diagnosis, text, rows, sort)
        self.screen_stack[0].query_one("#rows", RowList).put(listing, self._marked, top=top)
        self._order = f", sorted by {sort}{turned}"
        self._shown = f"{len(rows):,} {subject}{self._order}"

    def _found(self, key: str) -> Group | None:
        """Return the group of a key in the picture that is shown."""
        picture = self._picture
        if picture is None or picture.diagnosis is None:
            return None
        made = self._groups(picture, picture.diagnosis, GROUPINGS[self._by])
        return next((group for group in made if group.key == key), None)

    def _in_force(self, picture: Picture, diagnosis: Diagnosis) -> list[InForce]:
        if self._settings is None or self._settings[0] is not diagnosis:
            spaces = layout.spaces_of(picture, diagnosis)
            lines = settings_in_force(diagnosis.view, diagnosis.findings, spaces, together=True)
            self._settings = diagnosis, lines
        return self._settings[1]

    # ── evidence ─────────────────────────────────────────────────────────────────────────────────────────

    def _inform(self) -> None:
        """Show the evidence of what the cursor is on, where there is room beside the list."""
        screen, (width, _) = self.screen_stack[0], self.size
        side = screen.query_one("#side")
        side.set_class(width >= _PANE, "open")
        if width < _PANE:
            return
        room = max(46, min(width // 3, 90))
        side.styles.width = room
        picture, chosen = self._picture, screen.query_one("#rows", RowList).chosen
        diagnosis = picture.diagnosis if picture is not None else None
        now = (chosen, self._view, self._by, id(diagnosis), id(self._journal), room)
        if now == self._told:
            return
        if self._told[:3] != now[:3]:
            side.scroll_home(animate=False)
        self._told = now
        screen.query_one("#evidence", Painted).show(self._evidence(chosen, room - 4))

    def _evidence(self, chosen: object, width: int) -> list[Line]:
        """Return what there is to say of a line of the list."""
        picture = self._picture
        diagnosis = picture.diagnosis if picture is not None else None
        if picture is None or diagnosis is None or chosen is None:
            return []
        if isinstance(chosen, str):
            group = self._found(chosen)
            return (
                evidence.of_group(diagnosis, group, self._said(diagnosis), width) if group is not None else []
            )
        if isinstance(chosen, tuple) and chosen[0] == "setting":
            return evidence.of_setting(self._in_force(picture, diagnosis)[chosen[1]], width)
        if isinstance(chosen, tuple) and chosen[0] == "act":
            act = next((act for act in self._journal if act.id == chosen[1]), None)
            return evidence.of_act(act, width) if act is not None else []
        row = layout.row_of(diagnosis, chosen)
        return evidence.of_connection(diagnosis, row, width) if row is not None else []

    def on_row_list_moved(self) -> None:
        """Tell of another line."""
        self._inform()

    def action_inform(self) -> None:
        """Open the evidence of what the cursor is on as a page."""
        if self._early("i"):
            return
        chosen = self.query_one("#rows", RowList).chosen
        if isinstance(chosen, tuple) and isinstance(chosen[0], int):
            self._explain(chosen)
            return
        lines = self._evidence(chosen, max(min(self.size.width - 2, 120), 40))
        if lines:
            self.push_screen(
                Page("\n".join("".join(text for text, _ in line).rstrip() for line in lines) + "\n")
            )

    # ── going about ──────────────────────────────────────────────────────────────────────────────────────

    def on_row_list_opened(self, event: RowList.Opened) -> None:
        """Open a group, or the evidence of a connection."""
        key = event.key
        if self._early("enter"):
            return
        if isinstance(key, str):
            group = self._found(key)
            if group is not None and not len(group.rows):  # about descriptors, or a queue
                self.action_inform()
                return
            self._group, self._title = key, group.title if group is not None else ""
            self._reverse = False
            self._draw(top=True)
        elif isinstance(key, tuple) and isinstance(key[0], int):
            self._explain(key)
        else:
            self.action_inform()

    def _explain(self, key: tuple[int, ...]) -> None:
        diagnosis = self._picture.diagnosis if self._picture is not None else None
        row = layout.row_of(diagnosis, key) if diagnosis is not None else None
        if diagnosis is not None and row is not None:
            self.push_screen(Page(evidence.page(diagnosis, row, max(min(self.size.width - 2, 120), 40))))

    def on_painted_clicked(self, event: Painted.Clicked) -> None:
        """Go to the view whose tab the mouse is on, or show only the state that it is on; again shows all."""
        if event.widget.id == "tabs" and (tab := tab_at(event.x, self._tab, self.size.width)) is not None:
            self.action_view(tab)
        elif event.widget.id == "diagram" and (
            state := state_at(event.widget.text.split("\n"), event.x, event.y)
        ):
            words = f"state {state.lower().replace('_', '-')}"
            words = "" if self._words == words else words
            self._take_filter(words, self._parse([words]) if words else None)

    def action_view(self, view: int) -> None:
        """Go to another view: groups by cause, connections, processes, places, settings or the journal."""
        if self._early(str(view + 1)):
            return
        if view in (_PROCESSES, _PLACES):
            by = GROUPINGS[self._by] if self._view == _GROUPS else "cause"
            diagnosis = self._picture.diagnosis if self._picture is not None else None
            self._by = GROUPINGS.index("process" if view == _PROCESSES else layout.place_of(by, diagnosis))
        elif view == _GROUPS:
            self._by = 0
        self._view = view if view in (_CONNECTIONS, _SETTINGS, _JOURNAL) else _GROUPS
        self._group = None
        self._reverse = False
        if view == _CONNECTIONS:
            self._row_sort = ROW_SORTS.index("harm")
        if view == _JOURNAL:
            self._read_journal()
        self._past.begin(self._picture, GROUPINGS[self._by])
        self._draw(top=True)

    def _read_journal(self) -> None:
        self._journal_said = "a recording has no journal" if self._acts is None else "reading the journal …"
        if self._acts is not None:
            self.run_worker(self._read_acts, thread=True)

    def _read_acts(self) -> None:
        try:
            lines = self._acts() if self._acts is not None else ()
            text = f"{len(lines)} act{'' if len(lines) == 1 else 's'}, the newest first"
        except FinwaitError as error:
            lines, text = (), str(error)
        self.call_later(self._show_acts, lines, text)

    def _show_acts(self, lines: Sequence[ActLine], text: str) -> None:
        self._journal, self._journal_said = lines, text
        self._draw()

    def action_leave(self) -> None:
        """Close the FILTER line, or leave a group, or a view beside the groups."""
        ask, rows = self.query_one("#ask"), self.query_one("#rows", RowList)
        if ask.has_class("open"):
            ask.remove_class("open")
            rows.focus()
        elif not rows.has_focus:
            rows.focus()
        elif self._group is not None:
            key, self._group = self._group, None
            self._reverse = False
            self._draw(top=True)
            place = rows.place_of(key)
            if place is not None:
                rows.action_to(place)
        elif self._view != _GROUPS:
            self._view = _GROUPS
            self._draw(top=True)

    def action_group(self, by: int) -> None:
        """Group by the next thing."""
        if self._early("g"):
            return
        self._by = (self._by + by) % len(GROUPINGS)
        self._view = _GROUPS
        self._group = None
        self._past.begin(self._picture, GROUPINGS[self._by])
        self._draw(top=True)

    def action_sort(self) -> None:
        """Sort by the next thing."""
        if self._early("s"):
            return
        if self._group is None and self._view == _GROUPS:
            self._sort = (self._sort + 1) % len(SORTS)
        else:
            self._row_sort = (self._row_sort + 1) % len(ROW_SORTS)
        self._draw(top=True)

    def action_reverse(self) -> None:
        """Turn the order around."""
        if self._early("r"):
            return
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
        if self._early("d"):
            return
        self._feed.renew()
        if self._view == _JOURNAL:
            self._read_journal()

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
            row_filter = self._parse([words]) if words else None
        except FilterError as error:
            self.query_one("#wrong", Static).update(wrong(error, self.size.width - 2))
            return
        self._take_filter(words, row_filter)
        self.action_leave()

    def _take_filter(self, words: str, row_filter: Filter | None) -> None:
        self._words = words
        self._group = None
        self._feed.choose(row_filter)
        self._tick()

    # ── marks and the plan ───────────────────────────────────────────────────────────────────────────────

    def action_mark(self) -> None:
        """Mark the connection under the cursor, or all of the group under it; again unmarks."""
        if self._early("m"):
            return
        rows = self.query_one("#rows", RowList)
        chosen = rows.chosen
        diagnosis = self._picture.diagnosis if self._picture is not None else None
        if diagnosis is None or chosen is None:
            return
        keys: set[tuple[int, int]] = set()
        if isinstance(chosen, tuple) and isinstance(chosen[0], int):
            keys = {(int(chosen[0]), int(chosen[1]))}
        elif isinstance(chosen, str) and (group := self._found(chosen)) is not None:
            s = diagnosis.view.sockets
            keys = set(
                zip(s.netns[group.rows].tolist(), s.column("cookie")[group.rows].tolist(), strict=True)
            )
        if not keys:
            return
        self._marked = self._marked - keys if keys <= self._marked else self._marked | keys
        self._draw()
        rows.action_move(1)

    def action_unmark(self) -> None:
        """Unmark all."""
        self._marked = set()
        self._draw()

    async def action_quit(self) -> None:
        """Leave; what acts stops at its next safe point, and its result is written afterwards."""
        if self._clearing is not None:
            self._clearing.stop()
        await super().action_quit()

    def action_clear(self) -> None:
        """Show what clearing the marked connections would do."""
        if self._early("c"):
            return
        if not self._marked:
            self.push_screen(Page("Nothing is marked: `m` marks a connection, or all of a group.\n"))
        elif self._clearing is None:
            self.push_screen(Page("finwait cannot act on a recording.\n"))
        else:
            self.push_screen(PlanPage(self._clearing, sorted(self._marked), self._done))

    def _done(self) -> None:
        self.action_unmark()
        self._feed.renew()
