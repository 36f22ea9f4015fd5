"""The live view: the picture that it draws, its groups, and its keys, driven by Textual's pilot."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("textual")

from textual.widgets import Static

from finwait import session
from finwait.errors import FilterError, KernelError, Refused
from finwait.recording import open_recording
from finwait.report.groups import GROUPINGS, SORTS, groups
from finwait.report.state_diagram import diagram, states
from finwait.selecting import parse_filter
from finwait.tui.app import Top, fit, fold, wrong
from finwait.tui.rows import Rows
from finwait.uapi import tcp
from finwait.watching import Recorded
from tests.tui.pictures import CAPTURES, FOLDER, ROOT, SCENES, play, settle, text_of

COUNTS = {8: 3, 5: 1, 1: 2, 10: 4}
FLOWS = {(1, 8): 2.5, (8, 9): 0.5}
KUBE = str(CAPTURES / "kube-proxy-userspace.finwait")


def test_the_diagram_fits_80_columns_and_says_counts_and_flows() -> None:
    lines = diagram(
        dict.fromkeys(range(1, 12), 1234567), {(a, b): 123_456.0 for a in range(13) for b in range(13)}
    )
    assert max(map(len, lines)) <= 79
    text = "\n".join(diagram(COUNTS, FLOWS))
    assert "CLOSE_WAIT 3" in text
    assert "2.5/s" in text
    assert "we close too 0.5/s" in text


def test_without_flows_no_number_is_invented() -> None:
    assert "/s" not in "\n".join(diagram(COUNTS, None))


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def diagnosis() -> session.Diagnosis:
    return session.diagnose(open_recording(KUBE))


def connections(diagnosis: session.Diagnosis) -> Any:
    return np.flatnonzero(diagnosis.view.sockets.state != tcp.LISTEN)


@pytest.mark.parametrize("by", GROUPINGS)
def test_groups_hold_every_connection_once(diagnosis: session.Diagnosis, by: str) -> None:
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
    def labels(by: str) -> set[str]:
        return set(groups(diagnosis.view, diagnosis.findings, connections(diagnosis), by).labels)

    assert {"relay-pair [problem]", "fin-wait2-orphan [healthy]", "no finding"} <= labels("cause")
    assert {"kube-proxy (23568)", "nobody: closed, or not accepted yet"} <= labels("process")
    assert any(label.startswith("pod ") for label in labels("pod"))
    assert {"FIN_WAIT2", "CLOSE_WAIT", "ESTABLISHED"} == labels("state")
    none = groups(diagnosis.view, diagnosis.findings, np.empty(0, np.int64), "peer")
    assert len(none) == 0
    with pytest.raises(ValueError, match="cannot be grouped by colour"):
        groups(diagnosis.view, diagnosis.findings, connections(diagnosis), "colour")


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SCENES)
def test_a_screen_shows_what_its_picture_shows(name: str) -> None:
    shown = text_of(asyncio.run(play(SCENES[name])))
    assert shown == text_of((FOLDER / f"{name}.svg").read_text()), "`python -m tests.tui.pictures` draws it"


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
        feed = Recorded(open_recording(path), None, refresh=0.01)
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
                self.rows = self.app.screen_stack[0].query_one("#rows", Rows)

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
    said = Driver().press("s", "s", "r", "enter", "s", "r")
    assert "sorted by oldest" in said[0]
    assert "sorted by name" in said[1]
    assert "sorted by name, reversed" in said[2]
    assert "sorted by age" in said[3]
    assert "sorted by state" in said[4]
    assert "sorted by state, reversed" in said[5]


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


def test_escape_sequences_of_others_do_nothing() -> None:
    driver = Driver()
    assert "\x1b" not in (driver.press("g"), driver.seen)[1]


# ── marks and the plan ───────────────────────────────────────────────────────────────────────────────────


class Clearing:
    """Remembers what was asked of it."""

    def __init__(self, refuse: bool = False) -> None:
        self.keys: Sequence[tuple[int, int]] = ()
        self.acted = 0
        self.refuse = refuse

    def plan(self, keys: Sequence[tuple[int, int]]) -> tuple[str, bool]:
        if self.refuse:
            raise Refused("max", "200 connections are more than 100", override="fewer marks")
        self.keys = keys
        return f"{len(keys)} connections to end\n", True

    def act(self) -> str:
        self.acted += 1
        return f"{len(self.keys)} ended\n"


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


def test_without_marks_there_is_no_plan() -> None:
    driver = Driver(clearing=Clearing())
    driver.press("c")
    assert "Nothing is marked" in driver.seen


# ── a long list ──────────────────────────────────────────────────────────────────────────────────────────


def test_only_the_lines_on_the_screen_are_made() -> None:
    from textual.app import App, ComposeResult

    from finwait.tui.rows import Listing

    made: list[tuple[int, int]] = []

    def cells(begin: int, end: int) -> list[tuple[str, str]]:
        made.append((begin, end))
        return [(str(n), f"line {n}") for n in range(begin, end)]

    class One(App[None]):
        def compose(self) -> ComposeResult:
            yield Rows(id="rows")

    async def go() -> str:
        app = One()
        async with app.run_test(size=(80, 24)) as pilot:
            rows = app.query_one(Rows)
            rows.focus()
            rows.put(
                Listing(
                    ("n", "what"), 1_000_000, cells, lambda n: n, lambda k: k if isinstance(k, int) else None
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
    assert driver.rows.chosen == "close-wait-eof-read [problem]"


def test_the_example_is_a_picture() -> None:
    text = (ROOT / "examples/top_example.txt").read_text()
    shown = text_of((FOLDER / "top-causes.svg").read_text()).rstrip()
    assert "".join(f"    {line}".rstrip() + "\n" for line in shown.splitlines()) in text


def test_the_evidence_is_to_the_letter_what_explain_prints(capsys: pytest.CaptureFixture[str]) -> None:
    from finwait.cli import main
    from finwait.tui.app import Page

    recording = str(CAPTURES / "relay-pair.finwait")

    async def go() -> tuple[int, str]:
        feed = Recorded(open_recording(recording), None, refresh=0.01, path=recording)
        app = Top(feed, parse_filter)
        async with app.run_test(size=(102, 30)) as pilot:
            await settle(pilot, app)
            await pilot.press("enter")
            await pilot.pause()
            chosen = app.query_one("#rows", Rows).chosen
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
    presses = ["age", "state", "local", "peer", "netns", "owner", "recv-q", "send-q", "received", "acked"]
    said = driver.press("enter", *["s"] * presses.index(sort))
    assert f"sorted by {sort}" in said[-1]
    assert sort in driver.seen.splitlines()[12]


def test_a_feed_that_fails_ends_the_view_and_says_why() -> None:
    class Failing(Recorded):
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
    drawn = [line for line in lines if set("│┌└") & set(line)]
    for line in drawn:  # each begins where a box begins, or joins two
        assert line.startswith(("  │", "  ┌", "  └", "    │")), line
    if place in ("groups", "connections", "processes", "states"):
        # What is above the list: whole names of states and their numbers, then one line of status.
        status = next(k for k, line in enumerate(lines) if re.match(r"\d+ (groups|of) ", line))
        assert status <= (11 if width >= 80 and height >= 22 else max(height // 5, 1)) + 1
        if status < 11:
            for line in lines[:status]:
                for cell in line.split("  "):
                    assert cell.strip() in ("", "…") or cell.split()[0] in tcp.STATES.values(), line
        if height >= 10:
            assert sum(bool(line.strip()) for line in lines[status + 2 : -1]) >= 3
        assert "▏" not in driver.seen
    elif place == "filter" and height >= 10:
        text = next(k for k, line in enumerate(lines) if line.startswith("  held agee"))
        assert lines[text + 1].index("^") == lines[text].index("agee")


def test_a_terminal_that_shrinks_and_grows_shows_what_a_new_one_of_its_size_does() -> None:
    async def go(*sizes: tuple[int, int]) -> str:
        feed = Recorded(open_recording(KUBE), None, refresh=0.01)
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
    assert states(COUNTS, None, width=40, most=2) == ["ESTABLISHED 2  FIN_WAIT2 1  CLOSE_WAIT 3", "LISTEN 4"]
    assert states(COUNTS, FLOWS, width=60, most=3) == [
        "ESTABLISHED 2 +0 -2.5/s  FIN_WAIT2 1 +0 -0/s",
        "CLOSE_WAIT 3 +2.5 -0.5/s  LAST_ACK 0 +0.5 -0/s",
        "LISTEN 4 +0 -0/s",
    ]
    assert states({}, None, width=40, most=1) == ["no connections"]
    assert states({1: 2, 14: 3, 200: 1}, None, width=40, most=1) == ["ESTABLISHED 2  14 3  200 1"]
    for width in range(10, 80):
        for most in range(1, 5):
            lines = states(dict.fromkeys(range(1, 12), 123), FLOWS, width=width, most=most)
            assert len(lines) <= most
            assert max(map(len, lines)) <= width


def test_folded_lines_hang_and_drawings_stay() -> None:
    text = "  g  G    group by the next, the one before: cause, process, pod\n  ┌────────────────────────────────────┐"
    assert fold(text, 30).splitlines() == [
        "  g  G    group by the next,",
        "          the one before:",
        "          cause, process, pod",
        "  ┌────────────────────────────────────┐",
    ]
    assert fold("x" * 50, 20) == "x" * 50
    assert fit("abcdef", 4) == "abc…"
    assert fit("abcd", 4) == "abcd"


def test_a_mistake_far_in_a_long_filter_is_shown_with_its_place() -> None:
    error = FilterError(
        "sport = :1 or " * 20 + "agee > 1", 14 * 20, "`agee` is no predicate", hint="did you mean `age`?"
    )
    lines = wrong(error, 40).splitlines()
    assert max(map(len, lines)) <= 40
    (caret,) = [k for k, line in enumerate(lines) if line.strip() == "^"]
    assert lines[caret - 1][lines[caret].index("^") :].startswith("agee")
