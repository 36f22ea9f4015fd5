"""``finwait top``: the state diagram with counts and flows, groups, and the connections of one.

Rows are put into the table a window at a time: a table of all of 200,000 sockets would take half a minute.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Static

from finwait.diagnosis.assemble import ages
from finwait.report.json import addresses
from finwait.report.state_diagram import GROUPINGS, diagram, groups
from finwait.report.transitions import endpoint
from finwait.table.units import duration_text
from finwait.tui.feed import Feed, Picture
from finwait.uapi import tcp

__all__ = ["Top"]

_WINDOW = 200
_HELP = """\
The upper half is the TCP state diagram: how many connections are in each state now, and how many
pass each arrow a second. Where more comes in than goes out, connections pile up.

The lower half groups the connections.

  g        group by something else: state, peer, local port, network namespace, cgroup
  enter    the connections of the group, the longest in their state first
  escape   back to the groups
  space    pause and go on
  q        quit

Ages are what can be proved: at least so long. `finwait explain LOCAL:PORT PEER:PORT` shows the
evidence of one connection.

Any key closes this page.
"""


class Help(ModalScreen[None]):
    """The page of keys."""

    def compose(self) -> ComposeResult:
        """Show the page."""
        with VerticalScroll():
            yield Static(_HELP, markup=False)

    def on_key(self) -> None:
        """Close it."""
        self.dismiss()


class Top(App[None]):
    """The live view.

    Args:
        feed: what gives pictures.
    """

    CSS = "#diagram { height: 11; } #status { height: 1; text-style: reverse; } DataTable { height: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("g", "group", "group by"),
        Binding("space", "pause", "pause"),
        Binding("escape", "leave", "back"),
        Binding("question_mark", "help", "help"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed
        self._picture: Picture | None = None
        self._by = 0
        self._group: str | None = None
        self._paused = False
        self._stop = False

    def compose(self) -> ComposeResult:
        """Lay the view out."""
        yield Static(id="diagram", markup=False)
        yield Static("looking …", id="status", markup=False)
        yield DataTable(id="rows", cursor_type="row")
        yield Footer()

    def on_mount(self) -> None:
        """Begin."""
        self.query_one("#rows", DataTable).focus()
        self.run_worker(self._follow, thread=True, exclusive=True, exit_on_error=True)

    def on_unmount(self) -> None:
        """End the thread with the next picture."""
        self._stop = True

    def _follow(self) -> None:
        while not self._stop:
            picture = self._feed.next()
            if self._stop or not self.is_running:
                return
            if not self._paused:
                self.call_from_thread(self.show, picture)

    def show(self, picture: Picture) -> None:
        """Draw a picture."""
        self._picture = picture
        self.query_one("#diagram", Static).update("\n".join(diagram(picture.counts, picture.flows)))
        self._fill()

    def _fill(self) -> None:
        picture = self._picture
        if picture is None:
            return
        table = self.query_one("#rows", DataTable)
        place = table.cursor_row
        table.clear(columns=True)
        by = GROUPINGS[self._by]
        if self._group is None:
            rows = groups(picture.sockets, by, picture.names, picture.paths, most=_WINDOW)
            table.add_columns(by, "connections", "states")
            for label, count, states in rows:
                words = ", ".join(
                    f"{tcp.STATES[s]} {n:,}" for s, n in sorted(states.items(), key=lambda i: -i[1])
                )
                table.add_row(label, f"{count:,}", words, key=label)
            shown = f"{len(rows)} groups by {by}"
        else:
            shown = f"{self._connections(table, picture)} connections of {by} {self._group}"
        if table.row_count:
            table.move_cursor(row=min(place, table.row_count - 1))
        paused = "PAUSED  " if self._paused else ""
        self.query_one("#status", Static).update(
            f"{paused}{len(picture.sockets):,} connections, {shown}; {picture.note}"
        )

    def _connections(self, table: DataTable[str], picture: Picture) -> int:
        sockets = picture.sockets
        by = GROUPINGS[self._by]
        match = np.zeros(len(sockets), np.bool_)
        # Labels are made of a group's first row; the rows of a label are those whose own label it is.
        column = {
            "state": "state",
            "peer": "dst",
            "local port": "sport",
            "netns": "netns",
            "cgroup": "cgroup_id",
        }[by]
        keys = sockets[column]
        unique = np.unique(keys, axis=0, return_index=True)[1]
        for row in unique.tolist():
            (label, _, _), *_ = groups(sockets.select(np.array([row])), by, picture.names, picture.paths)
            if label == self._group:
                same = keys == keys[row]
                match |= same.all(axis=1) if same.ndim > 1 else same
        rows = np.flatnonzero(match)
        least = ages(sockets)[0][rows]
        rows = rows[np.argsort(-least, kind="stable")]
        least = np.sort(least)[::-1]
        window = rows[:_WINDOW]
        some = sockets.select(window)
        src, dst = addresses(some.src), addresses(some.dst)
        table.add_columns("local", "peer", "state", "at least", "netns")
        for k in range(len(some)):
            space = int(some.netns[k])
            table.add_row(
                endpoint(src[k], int(some.sport[k])),
                endpoint(dst[k], int(some.dport[k])),
                tcp.STATES[int(some.state[k])],
                duration_text(int(least[k])) if least[k] >= 0 else "?",
                next(iter(picture.names.get(space, ())), str(space)),
            )
        return len(rows)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open a group."""
        if self._group is None and event.row_key.value is not None:
            self._group = event.row_key.value
            self._fill()

    def action_leave(self) -> None:
        """Leave a group."""
        self._group = None
        self._fill()

    def action_group(self) -> None:
        """Group by the next thing."""
        self._by = (self._by + 1) % len(GROUPINGS)
        self._group = None
        self._fill()

    def action_pause(self) -> None:
        """Stop drawing, or go on."""
        self._paused = not self._paused
        self._fill()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())
