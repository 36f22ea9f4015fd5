"""The views of `finwait top`: tabs, the pane of evidence, the mouse, themes, and what is said of the past."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

pytest.importorskip("textual")

from textual.pilot import Pilot
from textual.widgets import Static

from finwait.errors import KernelError
from finwait.recording import open_recording
from finwait.report.board import MARKS, Arrivals, board, judged, sort_groups
from finwait.report.history import History
from finwait.report.journal import ActLine
from finwait.report.painted import plain
from finwait.report.sparkline import FAILED
from finwait.report.state_diagram import Numbers, diagram, state_at
from finwait.report.tune import settings_in_force
from finwait.selecting import narrowed, parse_filter
from finwait.session import diagnose
from finwait.tui.app import TERMINALS_OWN, Top
from finwait.tui.header import header, trend
from finwait.tui.layout import stuck_shares
from finwait.tui.listings import connections
from finwait.tui.note import note
from finwait.tui.paint import Painted, cut
from finwait.tui.rows import Cell, Listing, RowList, Titled, fitting
from finwait.tui.tabs import TABS, tab_at, tab_line
from finwait.uapi import tcp
from finwait.watching import Circumstances, Picture, RecordedPictures
from tests.tui.pictures import CAPTURES, SHOTS, SNAPSHOTS, Leak, colours_of, play, settle, shot_of, text_of

KUBE = str(CAPTURES / "kube-proxy-userspace.finwait")
ACT = ActLine(
    7, "2026-05-01 12:00:00Z", "root", "shutdown", "tcp 10.0.0.1:80 10.0.0.2:99", "relay-pair", "failed: [b]gone[/b]",
    True, ("act 7, shutdown:", "  interrupted, and cannot be reverted"),
)  # fmt: skip


def drive(
    work: Callable[[Pilot[None], Top], Awaitable[None]],
    size: tuple[int, int] = (120, 40),
    feed: Any = None,
    **how: Any,
) -> Top:
    """Run the view on a recording, and do some work in it."""
    app = Top(feed or RecordedPictures(open_recording(KUBE), None, refresh=0.01), parse_filter, **how)

    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            await settle(pilot, app)
            await work(pilot, app)

    asyncio.run(go())
    return app


async def press(pilot: Pilot[None], *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
        await pilot.pause()


def status(app: Top) -> str:
    return str(app.screen_stack[0].query_one("#status", Static).render())


def pane(app: Top) -> str:
    return app.screen_stack[0].query_one("#evidence", Painted).text


# ── screens ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SHOTS)
def test_a_screen_is_as_it_was(name: str) -> None:
    svg = asyncio.run(play(SHOTS[name]))
    assert shot_of(svg) == (SNAPSHOTS / f"{name}.txt").read_text(), "`python -m tests.tui.pictures` draws it"
    width, height = SHOTS[name].size
    lines = text_of(svg).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("size", ["40x10", "80x24", "120x40", "200x60"])
def test_without_colours_a_screen_says_the_same(size: str) -> None:
    coloured, colourless = (
        (SNAPSHOTS / f"{kind}-{size}.txt").read_text() for kind in ("colours", "colourless")
    )
    words, hues = coloured.split("\n\ncolours:\n\n")
    assert words == colourless.split("\n\ncolours:\n\n")[0]
    assert len(set(hues) - {" ", "\n"}) > 4


def test_no_color_sends_no_colour() -> None:
    shades = colours_of(asyncio.run(play(dataclasses.replace(SHOTS["colourless-120x40"], leak=False))))
    assert len(set(shades) - {" ", "\n"}) <= 3  # as it is, dim, and reversed


def test_nothing_is_cut_on_the_smallest_screen() -> None:
    lines = text_of(asyncio.run(play(SHOTS["colours-40x10"]))).splitlines()
    assert all("…" not in line for line in lines[2:])
    assert lines[0].endswith("✗ 22 stuck ▲5.0/min")


# ── tabs, the pane, the mouse ────────────────────────────────────────────────────────────────────────────


def test_number_keys_go_to_the_views_and_escape_goes_back() -> None:
    said: list[str] = []

    async def work(pilot: Pilot[None], app: Top) -> None:
        for key in ("1", "2", "3", "4", "4", "5", "6", "escape", "enter", "escape"):
            await press(pilot, key)
            said.append(status(app))

    drive(work, acts=lambda: [ACT])
    starts = (
        "4 groups by cause", "34 connections, sorted by harm", "4 groups by process", "2 groups by pod",
        "3 groups by netns", "settings in 3 namespaces", "1 act, the newest first", "3 groups by netns", "", "3 groups",
    )  # fmt: skip
    for text, start in zip(said, starts, strict=True):
        assert text.startswith(start), (text, start)


def test_the_pane_follows_the_cursor_and_the_view() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        assert "✗ PROBLEM 7 × FIN_WAIT2, 7 × CLOSE_WAIT" in pane(app)
        await press(pilot, "down")
        assert "8 × CLOSE_WAIT" in pane(app)
        await press(pilot, "end")
        assert "no rule suspects them" in pane(app)
        await press(pilot, "3")
        assert "✗ 14 × relay-pair" in pane(app)
        assert "Not seen:" in pane(app)
        await press(pilot, "enter")
        assert "cookie" in pane(app)
        await press(pilot, "5")
        assert "net.ipv4.tcp_fin_timeout = 60  (default)" in pane(app)
        assert "no effect on 14 relay-pair" in pane(app)
        await press(pilot, "i")
        assert len(app.screen_stack) == 2
        await press(pilot, "escape", "6")
        await pilot.pause(0.1)
        assert "act 7: shutdown" in pane(app)
        assert "[b]gone[/b]" in pane(app)

    drive(work, acts=lambda: [ACT])


def test_there_is_no_pane_below_120_columns() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        assert not app.query_one("#side").display
        await pilot.resize_terminal(120, 30)
        await pilot.pause()
        await pilot.pause()
        assert app.query_one("#side").display
        assert "relay-pair" in pane(app)

    drive(work, size=(119, 30))


def test_the_mouse_goes_to_tabs_and_lines() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        await pilot.click("#tabs", offset=(35, 0))
        await pilot.pause()
        assert "groups by process" in status(app)
        await pilot.click("#rows", offset=(5, 2))
        await pilot.pause()
        assert app.query_one("#rows", RowList).cursor == 1
        assert "backend" in pane(app)
        await pilot.click("#rows", offset=(5, 2))
        await pilot.pause()
        assert "9 of backend (23569)" in status(app)
        await pilot.click("#tabs", offset=(110, 0))  # behind the last tab
        await pilot.pause()
        assert "9 of backend (23569)" in status(app)

    drive(work)


@pytest.mark.parametrize("width", [20, 40, 69, 70, 71, 120])
def test_every_tab_is_where_its_text_is(width: int) -> None:
    for active in range(len(TABS)):
        line = plain(tab_line(active, width))
        assert TABS[active][0] in line
        for k in range(len(TABS)):
            assert tab_at(line.index(str(k + 1)), active, width) == k
        assert tab_at(len(line), active, width) is None
    assert len(plain(tab_line(1, 40))) <= 40


def test_a_journal_that_cannot_be_read_is_told_and_a_recording_has_none() -> None:
    def broken() -> Sequence[ActLine]:
        raise KernelError(13, "open the journal")

    async def work(pilot: Pilot[None], app: Top) -> None:
        await press(pilot, "6")
        await pilot.pause(0.1)
        assert "open the journal" in status(app)

    drive(work, acts=broken)

    async def none(pilot: Pilot[None], app: Top) -> None:
        await press(pilot, "6")
        assert "a recording has no journal" in status(app)

    drive(none)


def test_themes_are_chosen_by_a_key_and_the_palette_writes_no_file() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        assert app.theme == TERMINALS_OWN
        names = {command.title for command in app.get_system_commands(app.screen)}
        assert "Theme" in names
        assert "Screenshot" not in names
        await press(pilot, "t")
        assert len(app.screen_stack) == 2
        await press(pilot, "escape")
        app.theme = "textual-light"
        await pilot.pause()
        assert "relay-pair" in text_of(app.export_screenshot())

    drive(work, theme=TERMINALS_OWN)


# ── hostile names ────────────────────────────────────────────────────────────────────────────────────────


def test_names_are_neither_markup_nor_control_characters() -> None:
    name = "[red]x[/] \x1b[2J[@click=app.quit]"
    diagnosis = diagnose(open_recording(KUBE))
    view = diagnosis.view
    processes = {pid: replace(process, comm=name) for pid, process in view.processes.items()}
    facts = replace(diagnosis.snapshot.observation.facts, hostname=name)
    observation = replace(diagnosis.snapshot.observation, facts=facts)
    snapshot = replace(diagnosis.snapshot, view=replace(view, processes=processes), observation=observation)
    hostile = replace(diagnosis, snapshot=snapshot)

    class Feed(RecordedPictures):
        def next(self) -> Picture | None:
            picture = super().next()
            return replace(picture, diagnosis=hostile) if picture is not None else None

    async def work(pilot: Pilot[None], app: Top) -> None:
        for keys in (("1",), ("2",), ("3",), ("enter",), ("enter",), ("escape", "1")):
            await press(pilot, *keys)
            svg = app.export_screenshot()
            assert "\x1b" not in svg
            assert app.is_running
        assert "[red]x[/]" in text_of(svg)

    drive(work, size=(200, 40), feed=Feed(open_recording(KUBE), None, refresh=0.01))


# ── the past ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_look_that_failed_is_told_and_drawn_as_a_gap() -> None:
    class Failing(Leak):
        FAILED = Leak.LOOKS - 1

    async def work(_: Pilot[None], app: Top) -> None:
        head = app.query_one("#head", Painted).text
        assert status(app).startswith("the last look failed: Connection reset by peer")
        assert FAILED in head
        assert "34 connections" in head
        assert "▲" not in head, "no trend without a look"

    drive(work, feed=Failing(KUBE))


@pytest.mark.parametrize(
    ("counted", "diagnosed", "ages"),
    [
        (None, 18.0, "diagnosed 18 s ago"),
        (18.0, 18.2, "counted and diagnosed 18 s ago"),
        (6.0, 18.0, "counted 6 s ago; diagnosed 18 s ago"),
    ],
)
def test_numbers_that_are_old_say_so(counted: float | None, diagnosed: float, ages: str) -> None:
    shot = diagnose(open_recording(KUBE))
    seen = Circumstances(counted_s_ago=counted, diagnosed_s_ago=diagnosed)
    old = Picture({1: 3099}, None, shot, np.empty(0, np.int64), seen)
    assert note(old) == ages
    first = plain(header(old, 98, History(), History(), 120))
    assert ("3,099 connections 18 s ago" in first) == (counted == 18.0)
    assert ("3,099 connections 6 s ago" in first) == (counted == 6.0)
    assert "98 stuck 18 s ago" in first
    assert "98 stuck 18s ago" in plain(header(old, 98, History(), History(), 60))


def test_what_nobody_counted_again_is_a_gap_and_has_its_age() -> None:
    """As of a FILTER that only a diagnosis knows: pictures come, and the numbers stay those of the last diagnosis."""

    class Rare(Leak):
        _last: Picture | None = None

        def next(self) -> Picture | None:
            picture = super().next()
            if picture is None or self._last is None or (self._number - 1) % 12 == 0:
                self._last = picture or self._last
                return picture
            ago = picture.circumstances.taken_s - self._last.circumstances.taken_s
            seen = replace(
                self._last.circumstances, taken_s=picture.circumstances.taken_s, failed="", counted_s_ago=ago,
                diagnosed_s_ago=ago, late=True, look=None,
            )  # fmt: skip
            return replace(self._last, circumstances=seen)

        LOOKS = Leak.LOOKS + 3

    async def work(_: Pilot[None], app: Top) -> None:
        first = app.query_one("#head", Painted).text
        assert "listeners 15 s ago" in first
        assert "stuck 15 s ago" in first
        assert "counted and diagnosed 15 s ago" in status(app)
        for name, ring in (("connections", app._past.numbers), ("stuck", app._past.problems)):
            levels = ring.levels(name, 30, 300.0)
            counted = [level for level in levels if level is not None and not math.isnan(level)]
            assert len(counted) == 5, "one point for each time that somebody counted"
            assert math.isnan(levels[-1] or 0.0)

    drive(work, size=(160, 40), feed=Rare(KUBE))


def test_another_filter_begins_another_past() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        assert len(app._past.numbers) == 2
        await press(pilot, "slash", *"held", "enter")
        for _ in range(200):
            if app.picture is not None and app.picture.circumstances.row_filter is not None:
                break
            await pilot.pause(0.01)
        assert len(app._past.numbers) == 1

    drive(work)


def test_what_is_remembered_goes_on_while_the_view_is_paused() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        await press(pilot, "space")
        held, before = app.picture, len(app._past.numbers)
        assert held is not None
        later = replace(
            held, circumstances=replace(held.circumstances, taken_s=held.circumstances.taken_s + 9)
        )
        app.take(later)
        assert app.picture is held
        assert len(app._past.numbers) == before + 1

    drive(work)


def test_trends_say_which_way_and_whether_that_is_known() -> None:
    assert trend(None) == ("", "", "")
    assert trend(0.0)[1] == "steady"
    assert trend(3.0) == ("▲", "rising", "problem")
    assert trend(-3.0) == ("▼", "falling", "healthy")


def test_a_header_gives_no_all_clear_for_what_was_not_seen() -> None:
    diagnosis = diagnose(open_recording(KUBE))
    assert diagnosis.gaps
    picture = Picture({1: 4}, None, diagnosis, np.empty(0, np.int64), Circumstances())
    none = History()
    for width in (40, 80, 120, 200):
        seen = plain(header(picture, 0, none, none, width))
        assert "none seen stuck" in seen
        assert "✓" not in seen
        assert len(seen) <= width
        whole = replace(picture, diagnosis=replace(diagnosis, gaps=()))
        assert "✓ 0 stuck" in plain(header(whole, 0, none, none, width))
        chosen = replace(whole, circumstances=Circumstances(row_filter=parse_filter(["held"])))
        assert "none seen stuck" in plain(header(chosen, 0, none, none, width))
        assert "✗ 2 problems" in plain(header(whole, 0, none, none, width, 2))
        assert "✗ 3 stuck +2" in plain(header(whole, 3, none, none, width, 2))
        assert "? stuck" in plain(header(replace(picture, diagnosis=None), None, none, none, width))
        old = replace(picture, circumstances=Circumstances(diagnosed_s_ago=40.0))
        assert ("3 stuck 40 s ago" in plain(header(old, 3, none, none, width))) == (width >= 80)


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────


def test_groups_by_cause_are_in_the_order_of_the_overview_and_hold_every_connection_once() -> None:
    for name in ("kube-proxy-userspace", "time-wait-flood", "accept-queue-full", "hidden-leak"):
        diagnosis = diagnose(open_recording(str(CAPTURES / f"{name}.finwait")))
        view, rows = diagnosis.view, np.flatnonzero(diagnosis.view.sockets.state != tcp.LISTEN)
        said = judged(view, diagnosis.findings)
        made = board(view, diagnosis.findings, said, rows, "cause")
        assert len({group.key for group in made}) == len(made)
        own = np.concatenate([g.rows for g in made])
        assert sorted(own[view.sockets.state[own] != tcp.LISTEN].tolist()) == rows.tolist()
        ranks = [list(MARKS).index(group.severity) for group in made]
        assert ranks == sorted(ranks)
        shown = [f.rule for f in diagnosis.findings if f.primary and f.severity != "healthy"]
        assert {g.title for g in made if g.severity in ("problem", "notice")} == set(shown), name
        assert sum(g.stuck for g in made) == said.stuck(rows)


def test_what_has_no_connection_is_a_group() -> None:
    diagnosis = diagnose(open_recording(str(CAPTURES / "hidden-leak.finwait")))
    view, rows = diagnosis.view, np.flatnonzero(diagnosis.view.sockets.state != tcp.LISTEN)
    said = judged(view, diagnosis.findings)
    assert board(view, diagnosis.findings, said, rows, "cause")[0].title == "hidden-leak"
    none = narrowed(diagnosis, parse_filter(["state close-wait"]), refuse=False)
    assert none.narrowed is not None
    left = np.flatnonzero(none.narrowed.rows)
    assert "hidden-leak" not in [g.title for g in board(view, none.findings, said, left, "cause")]


def test_arrivals_count_what_was_not_there_before() -> None:
    diagnosis = diagnose(open_recording(KUBE))
    view, rows = diagnosis.view, np.flatnonzero(diagnosis.view.sockets.state != tcp.LISTEN)
    said = judged(view, diagnosis.findings)
    arrivals = Arrivals()

    def look(when_s: float, wanted: Any) -> dict[str, float | None]:
        return arrivals.look(when_s, view, board(view, diagnosis.findings, said, wanted, "state"))

    assert set(look(0, rows[::2]).values()) == {None}
    arrivals.failed(15)
    came = look(30, rows)
    assert sum(rate or 0 for rate in came.values()) == 2 * len(rows[1::2])
    assert set(look(60, rows[::2]).values()) == {0.0}
    assert set(look(50, rows).values()) == {None}, "time went back"


def test_groups_are_sorted() -> None:
    diagnosis = diagnose(open_recording(KUBE))
    view, rows = diagnosis.view, np.flatnonzero(diagnosis.view.sockets.state != tcp.LISTEN)
    made = board(view, diagnosis.findings, judged(view, diagnosis.findings), rows, "process")
    assert [g.count for g in sort_groups(made, "connections", {})] == sorted(
        (g.count for g in made), reverse=True
    )
    assert sort_groups(made, "new", {made[2].key: 5.0})[0] is made[2]
    assert sort_groups(made, "harm", {}, reverse=True) == made[::-1]
    with pytest.raises(ValueError, match="cannot be sorted by colour"):
        sort_groups(made, "colour", {})


def test_settings_that_harm_come_first_and_say_why() -> None:
    diagnosis = diagnose(open_recording(KUBE))
    view = diagnosis.view
    inode, space = next(iter(view.namespaces.items()))
    changed = replace(
        space, sysctls={**space.sysctls, "ipv4/tcp_orphan_retries": "99", "ipv4/tcp_fin_timeout": "30"}
    )
    other = replace(view, namespaces={**view.namespaces, inode: changed})
    lines = settings_in_force(other, diagnosis.findings)
    verdicts = [line.verdict_text for line in lines]
    assert verdicts[-1] == "default"
    first = next(line for line in lines if line.setting.key.endswith("fin_timeout") and line.value == "30")
    assert first.verdict is not None
    assert verdicts == sorted(verdicts, key=lambda v: (v != "HARMFUL", v == "default"))


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────────

COLUMNS = (
    Titled("a"),
    Titled("b", 2, least=4),
    Titled("c", 3),
    Titled("d", 1),
    Titled("e", 4),
)


def test_columns_are_left_out_by_rank_and_cut_only_as_far_as_they_may_be() -> None:
    widths = [3, 10, 8, 5, 2]
    assert fitting(COLUMNS, widths, 36) == {0: 3, 1: 10, 2: 8, 3: 5, 4: 2}
    assert fitting(COLUMNS, widths, 35) == {0: 3, 1: 9, 2: 8, 3: 5, 4: 2}
    assert fitting(COLUMNS, widths, 28) == {0: 3, 1: 6, 2: 8, 3: 5}
    assert fitting(COLUMNS, widths, 22) == {0: 3, 1: 6, 3: 5, 4: 2}, (
        "a narrow one has room where a wide one had not"
    )
    assert fitting(COLUMNS, widths, 1) == {0: 3}
    for room in range(3, 40):
        kept = fitting(COLUMNS, widths, room)
        assert sum(kept.values()) + 2 * (len(kept) - 1) <= room


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_long_addresses_keep_what_tells_connections_apart(size: tuple[int, int]) -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        picture = app.picture
        assert picture is not None
        assert picture.diagnosis is not None
        known = connections(picture.diagnosis, app._said(picture.diagnosis), picture.rows, "harm")
        titles = [column.title for column in known.columns]

        def cells(begin: int, end: int) -> list[list[Cell]]:
            peer = "[2001:db8:1234:5678:9abc:def0:1234:5678]:443"
            of = {"state": "CLOSE_WAIT", "peer": peer, "age": "9 d 3 h"}
            return [
                [of.get(title, f"[2001:db8:1234:5678:9abc:def0:8765:4321]:4{k:04}" if title == "local" else "-")
                 for title in titles]
                for k in range(begin, end)
            ]  # fmt: skip

        app._feed.end()
        app.query_one("#rows", RowList).put(
            Listing(known.columns, 5, cells, lambda n: n, lambda _: None), top=True
        )
        await pilot.pause()
        shown = [line for line in text_of(app.export_screenshot()).splitlines() if "CLOSE_WAIT" in line]
        lines = [line for line in shown if "9 d 3 h" in line]
        assert len(lines) == 5
        assert all(f"]:4{k:04}" in line and "]:443" in line for k, line in enumerate(lines))

    drive(work, size=size)


def test_a_line_is_cut_by_cells() -> None:
    assert plain(cut([("ab", ""), ("漢字", "bold")], 5)) == "ab漢…"
    assert plain(cut([("ab", "")], 4)) == "ab  "


def test_another_grouping_leaves_the_arrivals_of_the_first_alone_and_begins_its_own() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        def shown() -> list[str]:
            lines = text_of(app.export_screenshot()).splitlines()
            at = next(k for k, line in enumerate(lines) if "new/min" in line)
            end = lines[at].index("new/min") + len("new/min")
            return [line[:end].split()[-1] for line in lines[at + 1 : at + 3]]

        before = shown()
        assert "?" not in before
        await press(pilot, "3")
        assert shown() == ["?", "?"]
        await press(pilot, "1")
        assert shown() == before
        held = app.picture
        assert held is not None
        assert held.diagnosis is not None
        await press(pilot, "3", "3")
        seen = replace(held.circumstances, taken_s=held.circumstances.taken_s + 60)
        app.take(replace(held, diagnosis=replace(held.diagnosis), circumstances=seen))
        await pilot.pause()
        assert shown() == ["0", "0"]

    drive(work, size=(200, 40))


def test_of_established_sockets_that_are_only_counted_it_is_not_said_that_none_is_stuck() -> None:
    async def work(_: Pilot[None], app: Top) -> None:
        picture = app.picture
        assert picture is not None
        assert picture.diagnosis is not None
        assert tcp.ESTABLISHED not in (stuck_shares(picture, app._said(picture.diagnosis)) or {})
        shot = picture.diagnosis.snapshot
        partly = replace(
            picture.diagnosis, snapshot=replace(shot, view=replace(shot.view, established_skipped=50_000))
        )
        app.take(replace(picture, diagnosis=partly))
        assert stuck_shares(replace(picture, diagnosis=partly), app._said(partly))[tcp.ESTABLISHED] is None  # type: ignore[index]
        assert "? ESTABLISHED" in app.query_one("#diagram", Painted).text

    drive(work)


def test_a_click_on_a_state_shows_only_its_connections_and_another_one_all() -> None:
    async def wait_for(pilot: Pilot[None], app: Top, words: str) -> None:
        for _ in range(300):
            await pilot.pause(0.01)
            picture = app.picture
            if picture is not None and (picture.circumstances.row_filter is not None) == bool(words):
                break
        assert app._words == words

    async def work(pilot: Pilot[None], app: Top) -> None:
        lines = app.query_one("#diagram", Painted).text.split("\n")
        y = next(k for k, line in enumerate(lines) if "CLOSE_WAIT" in line)
        x = lines[y].index("CLOSE_WAIT")
        await pilot.click("#diagram", offset=(x, y + 1))
        await wait_for(pilot, app, "state close-wait")
        assert app.picture is not None
        assert set(app.picture.counts) == {tcp.CLOSE_WAIT}
        await pilot.click("#diagram", offset=(x, y))
        await wait_for(pilot, app, "")
        assert tcp.ESTABLISHED in app.picture.counts
        await pilot.click("#diagram", offset=(lines[4].index("LISTEN"), 4))
        await wait_for(pilot, app, "")

    drive(work)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_state_of_the_diagram_is_where_it_is_drawn(width: int) -> None:
    lines = [plain(line) for line in diagram(Numbers({1: 3, 8: 4}), width)]
    for state in (1, 2, 3, 4, 5, 6, 8, 9, 11):
        name = tcp.state_name(state)
        y = next(k for k, line in enumerate(lines) if name in line)
        assert state_at(lines, lines[y].index(name), y) == name
        assert state_at(lines, lines[y].index(name), y + 1) == name
    assert state_at(lines, 2, 40) == ""
    assert state_at(["●CLOSE_WAIT 15  ◑FIN_WAIT2 15"], 18, 0) == "FIN_WAIT2"


def test_marks_and_a_filter_are_told_on_the_smallest_screen() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        assert status(app) == "4 groups by cause, sorted by harm"
        await press(pilot, "m")
        assert status(app) == "4 groups by cause; 14 marked"
        await press(pilot, "u", "slash", *"held age < 5h", "enter")
        for _ in range(200):
            if app.picture is not None and app.picture.circumstances.row_filter is not None:
                break
            await pilot.pause(0.01)
        assert status(app) == "2 groups by cause; FILTER held age < 5h"
        await press(pilot, "m")
        assert status(app) == "2 groups by cause; 8 marked; FILTER hel…"

    drive(work, size=(40, 10))


def test_a_scrollbar_hides_nothing() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        await press(pilot, "2")
        rows = app.query_one("#rows", RowList)
        assert rows.show_vertical_scrollbar
        for y in range(rows.size.height):
            assert rows.render_line(y).cell_length == rows.scrollable_content_region.width
        lines = [line for line in text_of(app.export_screenshot()).splitlines() if "CLOSE_WAIT  10." in line]
        assert all("close-wait-eof-read" in line or "relay-pair" in line or "…" in line for line in lines)

    drive(work, size=(80, 24))
