"""The live view: the picture that it draws, its groups, and its keys, driven by Textual's pilot."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("textual")

from rich.cells import cell_len
from textual.events import Key
from textual.widgets import Static

from finwait import session
from finwait.errors import FilterError, KernelError, Refused
from finwait.recording import open_recording
from finwait.report.groups import GROUPINGS, SORTS, Grouping, groups
from finwait.report.painted import Line, plain
from finwait.report.state_diagram import Numbers, diagram, height_of, mark_of, role_of, states
from finwait.selecting import parse_filter
from finwait.tui.app import Top
from finwait.tui.pages import fit, fold, wrong
from finwait.tui.rows import Listing, RowList, Titled
from finwait.uapi import tcp
from finwait.watching import RecordedPictures
from tests.tui.pictures import CAPTURES, FOLDER, ROOT, SCENES, play, settle, text_of

COUNTS = {8: 3, 5: 1, 1: 2, 10: 4}
FLOWS = {(1, 8): 2.5, (8, 9): 0.5}
KUBE = str(CAPTURES / "kube-proxy-userspace.finwait")


def text(lines: Sequence[Line]) -> list[str]:
    return [plain(line).rstrip() for line in lines]


BUSY = Numbers(
    dict.fromkeys(range(1, 14), 1_234_567),
    {(a, b): 123_456.0 for a in range(13) for b in range(13) if a != b},
    stuck={tcp.CLOSE_WAIT: 1.0, tcp.FIN_WAIT2: 0.5, tcp.ESTABLISHED: 0.001, tcp.LAST_ACK: 0.9},
    levels=lambda _, cells: [1.0] * cells,
)


@pytest.mark.parametrize("width", [*range(80, 130), 200, 300])
def test_the_diagram_fits_its_width_and_draws_nothing_over_a_number(width: int) -> None:
    for numbers in (BUSY, Numbers(COUNTS, FLOWS)):
        lines = text(diagram(numbers, width))
        assert len(lines) == height_of(width)
        assert max(map(len, lines)) <= width
        for state in (1, 2, 3, 4, 5, 6, 8, 9, 10, 11):
            assert re.search(rf"{tcp.state_name(state)}\b", "\n".join(lines)), state
        drawn = "\n".join(lines[:-1])
        if (
            numbers is BUSY
        ):  # the last line has what it has no place for, and is cut where there is much of that
            assert len(re.findall(r"(?<![.\d])(?:1,234,567|1M)\b", drawn)) == 10
            assert drawn.count(".1M/s") == 12
        else:
            assert drawn.count("/s") == 2


def test_the_diagram_says_counts_and_rates_and_how_much_is_stuck() -> None:
    shown = "\n".join(text(diagram(Numbers(COUNTS, FLOWS, stuck={8: 2 / 3}), 120)))
    assert re.search(r"◕ CLOSE_WAIT.*\n.*│ 3 ", shown)
    assert "2.5/s" in shown
    assert "0.5/s" in shown
    assert "○ FIN_WAIT2" in shown
    assert "? FIN_WAIT2" in "\n".join(text(diagram(Numbers(COUNTS, FLOWS), 120))), "not known is not none"
    marks = {0.0: "○", 0.001: "◔", 0.4: "◑", 0.6: "◑", 0.7: "◕", 0.999: "◕", 1.0: "●"}
    for share, mark in marks.items():
        assert mark_of(Numbers(COUNTS, stuck={8: share}), 8) == mark
    roles = {0.0: "healthy", 0.001: "notice", 0.4: "problem", 1.0: "problem"}
    assert mark_of(Numbers(COUNTS, stuck={8: None}), 8) == "?"
    assert role_of(Numbers(COUNTS, stuck={8: None}), 8) == ""
    for share, role in roles.items():
        assert role_of(Numbers(COUNTS, stuck={8: share}), 8) == role


@pytest.mark.parametrize("width", [80, 120])
def test_without_flows_no_number_is_invented(width: int) -> None:
    assert "/s" not in "\n".join(text(diagram(Numbers(COUNTS, None, "because"), width)))
    assert "no flows: because" in "\n".join(text(diagram(Numbers(COUNTS, None, "because"), width)))


def test_states_that_the_diagram_has_no_place_for_are_told() -> None:
    assert "also CLOSE 2, 14 3" in "\n".join(text(diagram(Numbers({1: 1, 7: 2, 14: 3}), 120)))


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def diagnosis() -> session.Diagnosis:
    return session.diagnose(open_recording(KUBE))


def connections(diagnosis: session.Diagnosis) -> Any:
    return np.flatnonzero(diagnosis.view.sockets.state != tcp.LISTEN)


@pytest.mark.parametrize("by", GROUPINGS)
def test_groups_hold_every_connection_once(diagnosis: session.Diagnosis, by: Grouping) -> None:
    rows = connections(diagnosis)
    found = groups(diagnosis.view, diagnosis.findings, rows, by)
    assert found.counts.sum() == len(rows)
    assert (found.states.sum(axis=1) == found.counts).all()
    assert sorted(np.concatenate([found.members(label) for label in found.labels]).tolist()) == rows.tolist()
    for sort in SORTS:
        assert sorted(found.order(sort).tolist()) == list(range(len(found)))
    assert (np.diff(found.counts[found.order("connections")]) <= 0).all()
    assert (np.diff(found.oldest_ms[found.order("oldest", reverse=True)]) >= 0).all()


def test_groups_are_named(diagnosis: session.Diagnosis) -> None:
    def labels(by: Grouping) -> set[str]:
        return set(groups(diagnosis.view, diagnosis.findings, connections(diagnosis), by).labels)

    assert {"relay-pair [problem]", "fin-wait2-orphan [healthy]", "no finding"} <= labels("cause")
    assert {"kube-proxy (23568)", "nobody: closed, or not accepted yet"} <= labels("process")
    assert any(label.startswith("pod ") for label in labels("pod"))
    assert {"FIN_WAIT2", "CLOSE_WAIT", "ESTABLISHED"} == labels("state")
    none = groups(diagnosis.view, diagnosis.findings, np.empty(0, np.int64), "peer")
    assert len(none) == 0
    with pytest.raises(ValueError, match="cannot be grouped by colour"):
        groups(diagnosis.view, diagnosis.findings, connections(diagnosis), "colour")  # type: ignore[arg-type]


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SCENES)
def test_a_screen_shows_what_its_picture_shows(name: str) -> None:
    picture = text_of((FOLDER / f"{name}.svg").read_text())
    shown = text_of(asyncio.run(play(SCENES[name], until=picture)))
    assert shown == picture, "`python -m tests.tui.pictures` draws it"


def test_a_picture_fits_its_terminal() -> None:
    for name, scene in SCENES.items():
        lines = text_of((FOLDER / f"{name}.svg").read_text()).splitlines()
        assert len(lines) <= scene.size[1]
        assert max(map(len, lines)) <= scene.size[0]


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────


async def until(pilot: Any, condition: Any, tries: int = 500) -> None:
    """Wait for what a thread does; a FILTER may bring no new picture."""
    for _ in range(tries):
        if condition():
            return
        await pilot.pause(0.01)


class Driver:
    """The view on a recording, with what the status line said after each key."""

    def __init__(self, path: Any = KUBE, clearing: Any = None, size: tuple[int, int] = (160, 40)) -> None:
        feed = RecordedPictures(open_recording(path), None, refresh=0.01)
        self.app = Top(feed, parse_filter, clearing=clearing)
        self.size = size
        self.said: list[str] = []

    def press(self, *keys: str) -> list[str]:
        async def go() -> None:
            async with self.app.run_test(size=self.size) as pilot:
                await settle(pilot, self.app)
                for key in keys:
                    before = self.app.newest
                    await pilot.press(key)
                    await pilot.pause()
                    if key in "pn":
                        await until(pilot, lambda old=before: self.app.newest is not old)
                    if key == "enter" and self.app.query_one("#rows").has_focus:
                        await until(pilot, lambda old=before: self.app.newest is not old, 20)
                    await pilot.pause()
                    base = self.app.screen_stack[0]
                    self.said.append(str(base.query_one("#status", Static).render()))
                    self.seen = self.screen()
                self.rows = self.app.screen_stack[0].query_one("#rows", RowList)

        asyncio.run(go())
        return self.said

    def screen(self) -> str:
        return text_of(self.app.export_screenshot())


def test_groups_open_and_close_and_the_cursor_returns() -> None:
    driver = Driver()
    said = driver.press("g", "down", "enter", "escape")
    assert "by process" in said[0]
    assert "of backend (23569)" in said[2]
    assert "by process" in said[3]
    assert driver.rows.cursor == 1


def test_lists_are_sorted_and_turned_around() -> None:
    said = Driver().press("h", "s", "s", "s", "s", "r", "enter", "s", "s", "r")
    assert "sorted by harm" in said[0]
    assert "sorted by connections" in said[1]
    assert "sorted by oldest" in said[2]
    assert "sorted by new" in said[3]
    assert "sorted by name" in said[4]
    assert "sorted by name, reversed" in said[5]
    assert "sorted by age" in said[6]
    assert "sorted by harm" in said[7]
    assert "sorted by state" in said[8]
    assert "sorted by state, reversed" in said[9]


def test_a_pause_holds_the_picture() -> None:
    said = Driver().press("space", "p", "h", "h", "space")
    assert said[0].startswith("PAUSED")
    assert said[3].startswith("PAUSED")
    assert "look 2 of 2" in said[3]
    assert "look 1 of 2" in said[4]


def test_a_recording_is_turned_and_stays() -> None:
    said = Driver().press("p", "h", "h", "h", "n", "h", "h", "h")
    assert "look 1 of 2" in said[3]
    assert "look 2 of 2" in said[7]


def test_marks_are_counted_on_connections_and_groups_and_taken_back() -> None:
    said = Driver().press("enter", "m", "m", "up", "m", "escape", "m", "u")
    assert "1 marked" in said[1]
    assert "2 marked" in said[2]
    assert "1 marked" in said[4]
    assert "14 marked" in said[6]  # relay-pair: one of them was marked before
    assert "marked" not in said[7]


def test_a_filter_is_taken_and_a_wrong_one_is_told_with_its_place() -> None:
    driver = Driver()
    said = driver.press("slash", *"held", "space", *"agee", "enter")
    assert "FILTER" not in said[-1]
    assert "^" in driver.seen
    good = Driver()
    said = good.press("slash", *"held", "enter", "space", "space")
    assert "FILTER held" in said[-1]
    assert "orphan" not in good.seen


@pytest.mark.parametrize("size", [(160, 40), (80, 24)])
def test_a_filter_that_names_what_is_not_here_is_no_all_clear(size: tuple[int, int]) -> None:
    driver = Driver(size=size)
    said = driver.press("slash", *"netns = 7", "enter", "space", "space")
    why = "matches nothing: there is no network namespace 7 among the inspected ones"
    assert said[-1].startswith(why)
    assert "the inspected ones" in driver.seen
    there = Driver(size=size).press("slash", *"state last-ack", "enter", "space", "space")
    assert "FILTER state last-ack" in there[-1]
    assert "matches nothing" not in there[-1]


def test_the_evidence_of_a_connection_is_that_of_explain() -> None:
    driver = Driver()
    driver.press("enter", "enter")
    assert "│ FIN_WAIT2" in driver.seen
    assert "relay-pair" in driver.seen


def test_the_help_opens_and_any_key_closes_it() -> None:
    driver = Driver()
    said = driver.press("question_mark", "x", "g")
    assert "by process" in said[2]


def typed(screens: int, *keys: str) -> int:
    """Return how many screens are left after keys that came at once, as they do from a terminal that was slow."""
    driver, left = Driver(), list[int]()

    async def go() -> None:
        async with driver.app.run_test(size=driver.size) as pilot:
            await settle(pilot, driver.app)
            await pilot.press(keys[0])
            await until(pilot, lambda: len(driver.app.screen_stack) == 2)
            for key in keys[1:]:
                driver.app.post_message(Key(key, key if len(key) == 1 else None))
            await pilot.pause(
                0.2
            )  # as many screens as expected may be there before the first of them is handled
            await until(pilot, lambda: not driver.app.is_running or len(driver.app.screen_stack) == screens)
            await pilot.pause(0.05)
            left.append(len(driver.app.screen_stack) if driver.app.is_running else 0)

    asyncio.run(go())
    assert not driver.app.return_code
    return left[-1]


@pytest.mark.parametrize(
    ("keys", "screens"),
    [
        (("question_mark", "x", "x"), 1),
        (("question_mark", "q"), 1),
        (("question_mark", "x", "q"), 0),
        (("question_mark", "x", "question_mark"), 2),
        (("c", "escape", "escape"), 1),
        (("c", "q", "escape", "enter"), 1),
    ],
    ids=str,
)
def test_keys_that_come_at_once_close_a_page_once(keys: tuple[str, ...], screens: int) -> None:
    assert typed(screens, *keys) == screens


def test_escape_sequences_of_others_do_nothing() -> None:
    driver = Driver()
    assert "\x1b" not in (driver.press("g"), driver.seen)[1]


# ── marks and the plan ───────────────────────────────────────────────────────────────────────────────────


class Clearing:
    """Remembers what was asked of it."""

    def __init__(self, refuse: bool = False) -> None:
        self.keys: Sequence[tuple[int, int]] = ()
        self.acted = 0
        self.shown = 0
        self.stopped = False
        self.refuse = refuse

    def plan(self, keys: Sequence[tuple[int, int]]) -> tuple[str, Callable[[], str] | None]:
        if self.refuse:
            raise Refused("max", "200 connections are more than 100", override="fewer marks")
        self.keys = keys
        return f"{len(keys)} connections to end\n", self.act

    def act(self) -> str:
        self.acted += 1
        return f"{len(self.keys)} ended\n"

    def told(self) -> None:
        self.shown += 1

    def stop(self) -> None:
        self.stopped = True


class Slow(Clearing):
    """Acts, or plans, until it is let go."""

    def __init__(self, planning: bool = False) -> None:
        super().__init__()
        self.planning = planning
        self.let_go = threading.Event()
        self.over = threading.Event()

    def plan(self, keys: Sequence[tuple[int, int]]) -> tuple[str, Callable[[], str] | None]:
        if self.planning:
            self.let_go.wait(60)
            self.over.set()
        return super().plan(keys)

    def act(self) -> str:
        if not self.planning:
            self.let_go.wait(60)
            self.over.set()
        return super().act()

    def stop(self) -> None:
        super().stop()
        self.let_go.set()


def test_nothing_is_done_before_the_plan_was_agreed_to() -> None:
    clearing = Clearing()
    driver = Driver(clearing=clearing)
    driver.press("m", "c", "escape")
    assert len(clearing.keys) == 14
    assert clearing.acted == 0


def test_a_plan_is_carried_out_once() -> None:
    clearing = Clearing()
    driver = Driver(clearing=clearing)
    driver.press("m", "c", "h", "y", "h", "y")
    assert clearing.acted == 1
    assert "14 ended" in driver.seen


def test_a_refusal_is_told_and_cannot_be_agreed_to() -> None:
    clearing = Clearing(refuse=True)
    driver = Driver(clearing=clearing)
    driver.press("m", "c", "h", "y", "h")
    assert clearing.acted == 0
    assert "200 connections are more than 100" in driver.seen
    assert "fewer marks" in driver.seen


def test_the_page_stays_while_something_acts() -> None:
    clearing = Slow()
    driver = Driver(clearing=clearing)

    async def go() -> None:
        async with driver.app.run_test(size=driver.size) as pilot:
            await settle(pilot, driver.app)
            await pilot.press("m", "c")
            await until(pilot, lambda: "`y` does this" in driver.screen())
            for key in ("y", "escape", "q", "enter", "c", "y"):
                await pilot.press(key)
                await pilot.pause()
                assert "doing it" in driver.screen(), key
            assert driver.app.is_running
            clearing.let_go.set()
            await until(pilot, lambda: "14 ended" in driver.screen())
            assert (clearing.acted, clearing.shown, clearing.stopped) == (1, 1, False)
            await pilot.press("escape")
            await pilot.pause()
            assert len(driver.app.screen_stack) == 1

    asyncio.run(go())


def test_to_quit_stops_what_acts_and_the_result_counts_as_not_shown() -> None:
    clearing = Slow()
    driver = Driver(clearing=clearing)

    async def go() -> None:
        async with driver.app.run_test(size=driver.size) as pilot:
            await settle(pilot, driver.app)
            await pilot.press("m", "c")
            await until(pilot, lambda: "`y` does this" in driver.screen())
            await pilot.press("y", "ctrl+q")

    asyncio.run(go())
    assert clearing.stopped
    assert clearing.over.wait(30)
    assert clearing.shown == 0


def test_a_plan_whose_page_was_left_is_dropped() -> None:
    clearing = Slow(planning=True)
    driver = Driver(clearing=clearing)

    async def go() -> None:
        async with driver.app.run_test(size=driver.size) as pilot:
            await settle(pilot, driver.app)
            await pilot.press("m", "c")
            await until(pilot, lambda: len(driver.app.screen_stack) == 2)
            await pilot.press("escape")
            await until(pilot, lambda: len(driver.app.screen_stack) == 1)
            clearing.let_go.set()
            assert clearing.over.wait(30)
            for _ in range(10):
                await pilot.pause(0.01)
            assert driver.app.is_running
            await pilot.press("y")

    asyncio.run(go())
    assert not driver.app.return_code
    assert clearing.acted == 0


def test_without_marks_there_is_no_plan() -> None:
    driver = Driver(clearing=Clearing())
    driver.press("c")
    assert "Nothing is marked" in driver.seen


# ── a long list ──────────────────────────────────────────────────────────────────────────────────────────


def test_only_the_lines_on_the_screen_are_made() -> None:
    from textual.app import App, ComposeResult

    made: list[tuple[int, int]] = []

    def cells(begin: int, end: int) -> list[tuple[str, str]]:
        made.append((begin, end))
        return [(str(n), f"line {n}") for n in range(begin, end)]

    class One(App[None]):
        def compose(self) -> ComposeResult:
            yield RowList(id="rows")

    async def go() -> str:
        app = One()
        async with app.run_test(size=(80, 24)) as pilot:
            rows = app.query_one(RowList)
            rows.focus()
            rows.put(
                Listing(
                    (Titled("n"), Titled("what")),
                    1_000_000,
                    cells,
                    lambda n: n,
                    lambda k: k if isinstance(k, int) else None,
                )
            )
            await pilot.pause()
            await pilot.press("end")
            await pilot.pause()
            last = text_of(app.export_screenshot())
            assert rows.cursor == 999_999
            await pilot.press("home", "pagedown", "down")
            await pilot.pause()
            assert rows.chosen == 23
            await pilot.resize_terminal(40, 10)
            await pilot.pause()
            return last

    last = asyncio.run(go())
    assert "line 999999" in last
    assert sum(end - begin for begin, end in made) < 1000


def test_the_cursor_stays_with_its_line() -> None:
    driver = Driver()
    driver.press("down", "p")
    assert str(driver.rows.chosen).startswith("close-wait-eof-read/problem/")


def test_the_example_is_a_picture() -> None:
    text = (ROOT / "examples/top_example.txt").read_text()
    shown = text_of((FOLDER / "top-causes.svg").read_text()).rstrip()
    assert "".join(f"    {line}".rstrip() + "\n" for line in shown.splitlines()) in text


def test_the_evidence_is_to_the_letter_what_explain_prints(capsys: pytest.CaptureFixture[str]) -> None:
    from finwait.cli import main
    from finwait.tui.pages import Page

    recording = str(CAPTURES / "relay-pair.finwait")

    async def go() -> tuple[int, str]:
        feed = RecordedPictures(open_recording(recording), None, refresh=0.01, path=recording)
        app = Top(feed, parse_filter)
        async with app.run_test(size=(102, 30)) as pilot:
            await settle(pilot, app)
            await pilot.press("enter")
            await pilot.pause()
            chosen = app.query_one("#rows", RowList).chosen
            assert isinstance(chosen, tuple)
            await pilot.press("enter")
            await pilot.pause()
            assert isinstance(app.screen, Page)
            return int(chosen[1]), app.screen.text

    cookie, shown = asyncio.run(go())
    main(["explain", hex(cookie), "--from", recording])
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("sort", ["netns", "owner", "recv-q", "send-q", "received", "acked"])
def test_what_connections_are_sorted_by_is_a_column_at_80_columns(sort: str) -> None:
    driver = Driver(size=(80, 24))
    presses = [
        "age",
        "harm",
        "state",
        "local",
        "peer",
        "netns",
        "owner",
        "recv-q",
        "send-q",
        "received",
        "acked",
    ]
    said = driver.press("enter", *["s"] * presses.index(sort))
    assert f"sorted by {sort}" in said[-1]
    titles = next(line for line in driver.seen.splitlines() if re.match(r"[ ›]+state +local", line))
    assert sort in titles.split()


def test_a_feed_that_fails_ends_the_view_and_says_why() -> None:
    class Failing(RecordedPictures):
        def next(self) -> None:
            raise KernelError(1, "open a sock_diag socket")

    async def go() -> Top:
        feed = Failing(open_recording(str(CAPTURES / "relay-pair.finwait")), None, refresh=0.01)
        app = Top(feed, parse_filter)
        async with app.run_test() as pilot:
            for _ in range(500):
                if app.failed is not None:
                    break
                await pilot.pause(0.01)
        return app

    assert isinstance(asyncio.run(go()).failed, KernelError)


# ── small terminals ──────────────────────────────────────────────────────────────────────────────────────

SIZES = ((40, 10), (60, 15), (79, 24), (80, 21), (80, 24), (20, 5))
PLACES = {
    "groups": (), "connections": ("enter",), "evidence": ("enter", "enter"), "help": ("question_mark",),
    "filter": ("slash", *"held agee", "enter"), "plan": ("m", "c"), "processes": ("g",), "states": ("G",),
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_wraps_on_a_small_terminal(size: tuple[int, int], place: str) -> None:
    width, height = size
    driver = Driver(clearing=Clearing(), size=size)
    driver.press(*(PLACES[place] or ("h",)))
    lines = driver.seen.splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    if place in ("groups", "connections", "processes", "states"):
        status = next(k for k, line in enumerate(lines) if re.match(r"\d+ (groups?|of) ", line))
        assert "…" not in lines[status] or width < 40
        if height >= 8:
            assert re.search(r"\d+ connections? .*✗ \d+ stuck", lines[0])
            tabs = next(k for k, line in enumerate(lines) if re.match(r" 1\b.* 6\b", line))
            above = [line.strip() for line in lines[1:tabs]]
            if width >= 80 and height >= 21:
                assert len(above) == height_of(width)
            else:  # whole names of states and their numbers
                assert len(above) <= max(height // 8, 1)
                for cell in (cell for line in above for cell in line.split("  ")):
                    assert re.fullmatch(r"[○◔◑◕●][A-Z_0-9]+ [\d,]+( \+[\d.]+ -[\d.]+/s)?( \+\d+…)?", cell), (
                        cell
                    )
            assert sum(bool(line.strip()) for line in lines[tabs + 2 : status]) >= 3
    elif place in ("evidence", "help", "plan"):
        for line in (line for line in lines if set("│┌└") & set(line)):
            assert line.startswith(("  │", "  ┌", "  └", "    │")), line
    elif place == "filter" and height >= 10:
        text = next(k for k, line in enumerate(lines) if line.startswith("  held agee"))
        assert lines[text + 1].index("^") == lines[text].index("agee")


def test_a_terminal_that_shrinks_and_grows_shows_what_a_new_one_of_its_size_does() -> None:
    async def go(*sizes: tuple[int, int]) -> str:
        feed = RecordedPictures(open_recording(KUBE), None, refresh=0.01)
        app = Top(feed, parse_filter)
        async with app.run_test(size=sizes[0]) as pilot:
            await settle(pilot, app)
            for size in sizes[1:]:
                await pilot.resize_terminal(*size)
                await pilot.pause()
            await pilot.pause()
            return text_of(app.export_screenshot())

    small, large = asyncio.run(go((40, 10))), asyncio.run(go((80, 24)))
    assert asyncio.run(go((80, 24), (40, 10))) == small
    assert asyncio.run(go((40, 10), (80, 24))) == large


def test_the_states_of_a_small_screen_say_counts_and_rates() -> None:
    none: dict[int, float] = {}
    assert text(states(Numbers(COUNTS, stuck=none), width=40, most=2)) == [
        "○ESTABLISHED 2  ○FIN_WAIT2 1", "○CLOSE_WAIT 3  ○LISTEN 4",
    ]  # fmt: skip
    assert text(states(Numbers(COUNTS, FLOWS, stuck={8: 1.0}), width=60, most=2)) == [
        "●CLOSE_WAIT 3 +2.5 -0.5/s  ○ESTABLISHED 2 +0 -2.5/s",
        "○FIN_WAIT2 1  ○LAST_ACK 0 +0.5 -0/s  ○LISTEN 4",
    ]
    assert text(states(Numbers({}), width=40, most=1)) == ["no connections"]
    assert text(states(Numbers({1: 2, 14: 3, 200: 1}, stuck=none), width=40, most=1)) == [
        "○ESTABLISHED 2  ○14 3  ○200 1"
    ]
    for width in range(10, 80):
        for most in range(1, 5):
            lines = text(states(Numbers(dict.fromkeys(range(1, 12), 123), FLOWS), width=width, most=most))
            assert len(lines) <= most
            assert max(map(len, lines)) <= width


def test_folded_lines_hang_and_drawings_stay() -> None:
    text = "  g  G    group by the next or the previous: cause, process, pod\n  ┌────────────────────────────────────┐"
    assert fold(text, 30).splitlines() == [
        "  g  G    group by the next or",
        "          the previous: cause,",
        "          process, pod",
        "  ┌────────────────────────────────────┐",
    ]
    assert fold("x" * 50, 20) == "x" * 50

    assert fit("abcdef", 4) == "abc…"
    assert fit("abcd", 4) == "abcd"


def test_lines_are_folded_by_cells_and_not_by_characters() -> None:
    lines = fold("  step 1   SOCK_DESTROY frees it at 漢字漢字漢字 and frees it for good", 40).splitlines()
    assert all(cell_len(line) <= 40 for line in lines)
    assert " ".join(" ".join(lines).split()) == (
        "step 1 SOCK_DESTROY frees it at 漢字漢字漢字 and frees it for good"
    )


def test_a_mistake_far_in_a_long_filter_is_shown_with_its_place() -> None:
    error = FilterError(
        "sport = :1 or " * 20 + "agee > 1", 14 * 20, "`agee` is not a predicate", hint="did you mean `age`?"
    )
    lines = wrong(error, 40).splitlines()
    assert max(map(len, lines)) <= 40
    (caret,) = [k for k, line in enumerate(lines) if line.strip() == "^"]
    assert lines[caret - 1][lines[caret].index("^") :].startswith("agee")
