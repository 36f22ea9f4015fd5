"""``finwait top --agent``: the groups, ages and past of a running agent, which looks anyway.

Nothing here looks at the machine, and nobody looks for it: a thread asks an `AgentFeed`, and what is shown is what the
agent saw last, with its age. What only a look of its own could show (the state diagram with rates, each connection,
settings, plans) is left out, and the last line says so. Where the agent is gone its last picture stays, marked as old.
"""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Iterator, Sequence
from math import isnan
from typing import ClassVar, Final, Protocol

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Footer, Input, Static

from finwait.errors import FilterError, FinwaitError
from finwait.report.agent_moment import AgentMoment, levels, per_minute, resampled
from finwait.report.agent_page import AgentPage, GroupDetail, GroupItem
from finwait.report.board import MARKS
from finwait.report.painted import Line, plain
from finwait.report.sparkline import bar, graph, sparkline
from finwait.table.units import duration_text, printable
from finwait.tui import layout
from finwait.tui.driver import TerminalView
from finwait.tui.header import per_minute as rate_text
from finwait.tui.header import trend
from finwait.tui.pages import Page, Parse, fit_parts, fold, narrowed, wrong
from finwait.tui.paint import Painted, clean
from finwait.tui.rows import Cell, Listing, RowList, Titled

__all__ = ["AgentFeed", "AgentTop"]

_ROLES: Final = {"problem": "problem", "notice": "notice", "healthy": "healthy"}
_SORTS: Final = ("harm", "connections", "oldest", "growth", "name")
_PANE: Final = 120
_TALL: Final = 20
_LEFT_OUT: Final = (
    "asked of the agent: no rates, single connections or plans; `finwait top` alone looks itself"
)
_COLUMNS: Final = (
    Titled(""), Titled("count", right=True), Titled("share", 7), Titled("cause", least=22),
    Titled("workload", 1, least=12, tail=True), Titled("held by", 6, least=10), Titled("state", 8),
    Titled("oldest", 2, right=True), Titled("new/h", 3, right=True), Titled("whose move", 5, least=10),
    Titled("limit in", 4, right=True),
)  # fmt: skip
_HELP: Final = """\
What `finwait agent` saw last, and its history of the last hour. It looks
anyway; this view asks it, and costs the machine nothing more. The first line
says how old the look is. Hidden behind `?` and `·`: what is not known, and
time in which nobody looked.

  j  k    move; the pane on the right has the evidence
  enter   the evidence as a page, with some of the connections
  s  r    sort by the next column; reverse the order
  /       a FILTER, as on the command line; an empty one shows all
  d       ask again now
  space   pause or resume
  t       choose other colours
  q       quit

Not here, because only a look of its own could show it: the state diagram with
rates, each connection, processes and pods, settings, marks and plans.
`finwait top` without `--agent` has them. The journal: `finwait journal`.

Any key closes this page.
"""


class AgentFeed(Protocol):
    """What asks an agent. `next` and `detail` are called from threads; the rest from another."""

    def next(self) -> AgentMoment | None:
        """Return what it says now, after waiting for the time to ask; None at the end."""

    def detail(self, name: str, /) -> GroupDetail | None:
        """Return a group with its evidence; None where there is none now.

        Raises:
            FinwaitError: the agent does not answer.
        """

    def choose(self, words: str, /) -> None:
        """Want other connections from the next picture on."""

    def renew(self) -> None:
        """Ask for everything now."""

    def end(self) -> None:
        """Let `next` return soon."""


class AgentTop(TerminalView):
    """The view of an agent.

    Args:
        feed: what asks it.
        parse: makes a FILTER of words, to refuse one that is none before the agent is asked.
        filter_words: the words of the FILTER to begin with.
        theme: the name of a theme of Textual's; None for its default.
    """

    CSS = layout.CSS
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("s", "sort", "sort"),
        Binding("r", "reverse", show=False),
        Binding("slash", "ask", "filter"),
        Binding("d", "renew", show=False),
        Binding("space", "pause", "pause"),
        Binding("escape", "leave", "back"),
        Binding("t", "change_theme", "theme"),
    ]
    TITLE = "finwait top --agent"

    def __init__(
        self, feed: AgentFeed, parse: Parse, *, filter_words: Sequence[str] = (), theme: str | None = None
    ) -> None:
        super().__init__(theme)
        self._feed = feed
        self._parse = parse
        self._words = " ".join(filter_words)
        self._moment: AgentMoment | None = None
        self._sort = 0
        self._reverse = False
        self._paused = False
        self._stop = False
        self._details: dict[str, tuple[int, GroupDetail | str | None]] = {}
        """Group → round, and what the agent said of it; a text is why it did not."""
        self._asking: set[str] = set()
        self._listed: object = None

    @property
    def moment(self) -> AgentMoment | None:
        """What is shown; None before the first."""
        return self._moment

    @property
    def failed(self) -> FinwaitError | None:
        """Why the view ended by itself: an agent that does not answer is no reason."""
        return None

    def compose(self) -> ComposeResult:
        """Lay the view out."""
        yield Painted(id="head")
        yield Painted(id="past")
        with Horizontal(id="body"):
            yield RowList(id="rows")
            with VerticalScroll(id="side"):
                yield Painted(id="evidence")
        with VerticalScroll(id="ask"):
            yield Static(id="wrong", markup=False)
            yield Input(placeholder="FILTER, e.g. state close-wait age > 10m; empty: all", id="filter")
        yield Static("asking the agent …", id="status", markup=False)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin."""
        self._begun = True
        self.query_one("#rows", RowList).focus()
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
            moment = self._feed.next()
            if moment is None:
                continue
            taken = threading.Event()  # not `call_from_thread`: it waits for a loop that may have ended
            self.call_later(self._take, moment, taken)
            while not taken.wait(0.1):
                if self._stop:
                    return

    def _take(self, moment: AgentMoment, taken: threading.Event) -> None:
        try:
            if not self._paused:
                if self._moment is not None and self._moment.failed and not moment.failed:
                    self._details.clear()  # what was said of its silence
                self._moment = moment
                self._draw()
        finally:
            taken.set()

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────

    def on_resize(self) -> None:
        """Draw for another size, once it is ours."""
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        moment = self._moment
        if moment is None:
            return
        width, height = self.size
        screen = self.screen_stack[0]
        screen.set_class(height < 8, "tiny")
        screen.query_one("#head", Painted).show([_header(moment, width)])
        screen.query_one("#past", Painted).show(_past(moment, width) if height >= _TALL else [])
        groups = self._groups()
        listed = (id(moment.page), self._sort, self._reverse)
        if listed != self._listed:
            self._listed = listed
            screen.query_one("#rows", RowList).put(_listing(groups))
        order = f", sorted by {_SORTS[self._sort]}{', reversed' if self._reverse else ''}"
        shown = f"{len(groups)} groups{order}" if moment.page is not None else "no picture yet"
        parts = [
            "PAUSED" if self._paused else "",
            moment.failed,
            *narrowed(shown, order, 0, self._words, width),
            *(_lacks(moment.page) if moment.page is not None else ()),
        ]
        parts = [clean(part) for part in parts if part]
        room = width - cell_len("; ".join(parts)) - 2
        parts.append(next((text for text in _LEFT_OUT if cell_len(text) <= room), _LEFT_OUT[-1]))
        screen.query_one("#status", Static).update(fit_parts(parts, width))
        self._inform()

    def _groups(self) -> list[GroupItem]:
        page = self._moment.page if self._moment is not None else None
        groups = list(page.groups) if page is not None else []  # by harm, then age
        keys = {
            "connections": lambda g: (-g.count,),
            "oldest": lambda g: (-g.oldest_s,),
            "growth": lambda g: (-g.rate,),
            "name": lambda g: (g.rule, g.workload),
        }
        sort = _SORTS[self._sort]
        if sort in keys:
            groups.sort(key=keys[sort])
        return groups[::-1] if self._reverse else groups

    def _inform(self) -> None:
        """Show the evidence of the group under the cursor, where there is room beside the list."""
        screen, (width, _) = self.screen_stack[0], self.size
        side = screen.query_one("#side")
        side.set_class(width >= _PANE, "open")
        room = max(46, min(width // 3, 90))
        side.styles.width = room
        group = self._chosen()
        lines = self._evidence(group, room - 4) if group is not None and width >= _PANE else []
        screen.query_one("#evidence", Painted).show(lines)

    def _chosen(self) -> GroupItem | None:
        chosen = self.screen_stack[0].query_one("#rows", RowList).chosen
        return next((group for group in self._groups() if group.id == chosen), None)

    def _evidence(self, group: GroupItem, width: int) -> list[Line]:
        """Return what the agent says of a group; what it has not said yet it is asked for."""
        page = self._moment.page if self._moment is not None else None
        rounds = page.rounds if page is not None else -1
        known = self._details.get(group.id)
        if (known is None or known[0] != rounds) and group.id not in self._asking:
            self._asking.add(group.id)
            self.run_worker(lambda: self._ask_for(group.id, rounds), thread=True)
        return _evidence(group, known[1] if known is not None else "asking the agent …", width)

    def _ask_for(self, name: str, rounds: int) -> None:
        detail: GroupDetail | str | None
        try:
            detail = self._feed.detail(name)
        except FinwaitError as error:
            detail = str(error)
        self.call_later(self._put_detail, name, rounds, detail)

    def _put_detail(self, name: str, rounds: int, detail: GroupDetail | str | None) -> None:
        self._asking.discard(name)
        self._details = {name: (rounds, detail)}
        self._inform()

    # ── going about ──────────────────────────────────────────────────────────────────────────────────────

    def on_row_list_moved(self) -> None:
        """Tell of another line."""
        self._inform()

    def on_row_list_opened(self) -> None:
        """Open the evidence of a group as a page."""
        group = self._chosen()
        if group is None:
            return
        lines = self._evidence(group, max(min(self.size.width - 2, 120), 40))
        self.push_screen(Page("\n".join(plain(line).rstrip() for line in lines) + "\n"))

    def action_sort(self) -> None:
        """Sort by the next thing."""
        self._sort = (self._sort + 1) % len(_SORTS)
        self._draw()

    def action_reverse(self) -> None:
        """Turn the order around."""
        self._reverse = not self._reverse
        self._draw()

    def action_pause(self) -> None:
        """Stop drawing, or go on."""
        self._paused = not self._paused
        self._draw()

    def action_renew(self) -> None:
        """Ask again now."""
        self._feed.renew()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Page(_HELP))

    def action_leave(self) -> None:
        """Close the FILTER line."""
        self.query_one("#ask").remove_class("open")
        self.query_one("#rows", RowList).focus()

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
            if words:
                self._parse([words])
        except FilterError as error:
            self.query_one("#wrong", Static).update(wrong(error, self.size.width - 2))
            return
        self._words = words
        self._feed.choose(words)
        self.action_leave()


# ── what is drawn ────────────────────────────────────────────────────────────────────────────────────────


def _header(moment: AgentMoment, width: int) -> Line:
    """Return the first line; what fits least is left out first."""
    for line in _forms(moment):
        if cell_len(plain(line)) <= width:
            break
    return line


def _forms(moment: AgentMoment) -> Iterator[Line]:
    page = moment.page
    if page is None:
        yield [(" finwait ", "active"), ("  from the agent: no picture yet", "dim")]
        return
    age = f"{duration_text(int(1000 * moment.age_s))} ago" if page.look_at_ns else "never looked"
    old = bool(moment.failed) or moment.age_s > 4 * page.interval_s
    numbers = levels(moment.counts)
    rate = per_minute(moment.counts)
    arrow, word, role = trend(rate)
    partly = bool(page.gaps or page.untracked or page.undiagnosed or moment.words)
    if page.problems:
        stuck = f"✗ {page.problems:,} stuck", "problem"
    else:  # what could not be seen may be stuck: no all-clear
        stuck = ("? none seen stuck", "notice") if partly or old else ("✓ 0 stuck", "healthy")
    for cells, whole, words in (
        (60, True, True),
        (30, True, True),
        (12, True, True),
        (12, False, True),
        (12, False, False),
        (0, False, False),
    ):
        line: Line = [(" finwait ", "active"), ("  ", "")] if whole else []
        line += [(f"{'from the agent' if words else 'agent'}, {age}", "problem" if old else "dim")]
        line += [("  ", ""), stuck]
        if whole:
            line.append((f" of {page.stuck:,} not closing", ""))
        if cells:
            spark = sparkline(resampled(numbers, cells), cells)
            line += [("  ", ""), (spark, "problem" if page.problems else "dim")]
        if arrow:
            text = f"{arrow} {word}" if arrow == "=" else f"{arrow} {word} {rate_text(rate or 0.0)}/min"
            line += [("  ", ""), (text if words else arrow, role)]
        if whole and page.gaps:
            line += [("  ", ""), (f"{page.gaps} part{'' if page.gaps == 1 else 's'} not seen", "notice")]
        yield line
    yield [stuck, (f" {age}", "problem" if old else "dim")]


def _past(moment: AgentMoment, width: int) -> list[Line]:
    """Return the last hour of the agent's history as a graph."""
    numbers = levels(moment.counts)
    known = [number for number in numbers if not isnan(number)]
    bounds = f"{min(known):,.0f} to {max(known):,.0f}" if known else "not known"
    title = f"─ not closing, by the agent's history: {bounds}, last 60 min "[:width].ljust(width, "─")
    lines = graph(resampled(numbers, width), width, layout.GRAPH)
    return [[(title, "dim")], *([(text, "problem")] for text in lines)]


def _lacks(page: AgentPage) -> Iterator[str]:
    """Yield what the picture lacks."""
    if page.undiagnosed:
        yield f"{page.undiagnosed:,} ends not diagnosed yet"
    if page.untracked:
        yield f"{page.untracked:,} connections more than the agent follows"
    if page.groups_dropped:
        yield f"{page.groups_dropped:,} groups more"
    if page.store_said:
        yield f"its history: {page.store_said}"


def _listing(groups: Sequence[GroupItem]) -> Listing:
    most = max((group.count for group in groups), default=0)
    places = {group.id: k for k, group in enumerate(groups)}

    def cells(begin: int, end: int) -> list[list[Cell]]:
        return [_row(group, most) for group in groups[begin:end]]

    return Listing(
        _COLUMNS,
        len(groups),
        cells,
        lambda n: groups[n].id if n < len(groups) else None,
        lambda key: places.get(str(key)),
    )


def _row(group: GroupItem, most: int) -> list[Cell]:
    role = _ROLES.get(group.severity, "dim")
    states = list(group.states)
    state = f"{states[0]}{f' +{len(states) - 1}' if len(states) > 1 else ''}" if states else "-"
    holder = f"{group.holders[0]}{' …' if len(group.holders) > 1 else ''}" if group.holders else "-"
    reached = duration_text(int(1000 * group.reached_s)) if group.reached_s is not None else "-"
    new: Cell = (f"{3600 * group.rate:,.0f}", "problem") if group.rate else ("0", "dim")
    return [
        (_mark(group), role), f"{group.count:,}", (bar(group.count, most, 8), role), (group.title or group.rule, role),
        group.workload or "?", holder, state, duration_text(int(1000 * group.oldest_s)), new,
        group.whose or "-", (reached, "problem" if group.reached_s is not None else "dim"),
    ]  # fmt: skip


def _mark(group: GroupItem) -> str:
    return next((mark for severity, mark in MARKS.items() if severity == group.severity), "·")


def _evidence(group: GroupItem, detail: GroupDetail | str | None, width: int) -> list[Line]:
    """Return a group and what the agent says of it as lines."""
    role = _ROLES.get(group.severity, "bold")
    head = f"{_mark(group)} {group.title or group.rule}: {group.count:,} of {group.workload or '?'}"
    out: list[Line] = [[(text, role)] for text in textwrap.wrap(printable(head), width) or [head]]
    for label, text in _said(group, detail):
        wrapped = fold(f"  {label:<11}  {printable(text)}", width).split("\n")
        out += [[(line[:13], "accent"), (line[13:], "")] for line in wrapped]
    return out


def _said(group: GroupItem, detail: GroupDetail | str | None) -> Iterator[tuple[str, str]]:
    yield "harm", group.harm
    yield "oldest", duration_text(int(1000 * group.oldest_s))
    if group.limit and group.reached_s is not None:
        yield "limit", f"{group.limit} in {duration_text(int(1000 * group.reached_s))} at this rate"
    yield "whose move", f"{group.whose}: {group.act}" if group.act else group.whose
    if detail is None or isinstance(detail, str):
        yield "more", detail if isinstance(detail, str) else "the group is gone"
        return
    cause = detail.cause
    if cause is None:
        yield "cause", "not diagnosed since the agent started"
    else:
        yield "confidence", f"{cause.confidence}: {cause.reason}"
        for item in cause.evidence:
            yield "evidence", f"{item.column} {item.value}: {item.says}"
        for remedy in cause.ends_it:
            yield "ends it", f"{remedy.text}{f': `{remedy.command}`' if remedy.command else ''}"
        for advice in cause.does_not:
            yield "won't help", f"{advice.text}: {advice.reason}"
        yield "diagnosed", cause.at
    for end in detail.ends:
        holder = "unknown" if end.holder is None else end.holder or "nobody"
        age = duration_text(int(1000 * end.age_s.at_least))
        yield "connection", f"{end.state} {end.local} → {end.peer}, {age} or more, held by {holder}"
    if detail.more:
        yield "", f"and {detail.more:,} more ends"
