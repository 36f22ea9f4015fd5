"""What `finwait top` shows of what is there: the same problems as `finwait diagnose`, from the first moment on."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

pytest.importorskip("textual")

from textual.command import CommandPalette
from textual.pilot import Pilot

from finwait.cli import main
from finwait.recording import open_recording
from finwait.report.board import board, judged
from finwait.report.groups import GROUPINGS
from finwait.report.tune import settings_in_force
from finwait.selecting import narrowed, parse_filter
from finwait.session import Diagnosis, diagnose
from finwait.tui.app import Top
from finwait.tui.layout import marked_groups, other_problems
from finwait.tui.listings import settings
from finwait.tui.note import compared
from finwait.tui.pages import Help, unbroken
from finwait.tui.paint import Painted
from finwait.tui.rows import RowList, Titled, beyond
from finwait.uapi import tcp
from finwait.watching import Circumstances, Picture, RecordedPictures
from tests.tui.pictures import CAPTURES, SNAPSHOTS, settle, text_of
from tests.tui.test_views import KUBE, drive, pane, press, status


def screen(app: Top) -> str:
    return text_of(app.export_screenshot())


# ── a FILTER hides no problem ────────────────────────────────────────────────────────────────────────────


def of_diagnose(path: str, words: str, capsys: pytest.CaptureFixture[str]) -> Counter[tuple[str, str]]:
    main(["diagnose", "--from", path, "-o", "json", words])
    told = json.loads(capsys.readouterr().out)
    shown: Counter[tuple[str, str]] = Counter()
    for finding in told["findings"]:
        if finding["primary"] and finding["severity"] != "healthy":
            shown[finding["rule"], finding["severity"]] += finding["count"]
    return shown


@pytest.mark.parametrize(
    ("recording", "words"),
    [
        ("hidden-leak", "netns = {netns}"),
        ("hidden-leak", "pid = {pid}"),
        ("hidden-leak", "comm = {comm}"),
        ("hidden-leak", "rule = hidden-leak"),
        ("hidden-leak", "netns = {netns} dport = :1"),
        ("accept-queue-full", "netns = {netns}"),
        ("accept-queue-full", "state listen"),
        ("accept-queue-full", "severity = problem"),
        ("kube-proxy-userspace", "state close-wait"),
        ("kube-proxy-userspace", "comm = backend"),
    ],
)
def test_a_filter_shows_every_problem_that_diagnose_shows(
    recording: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(CAPTURES / f"{recording}.finwait")
    whole = diagnose(open_recording(path))
    worst = whole.problems[0]
    pid = min(worst.pids, default=1)
    comm = whole.view.processes[pid].comm if pid in whole.view.processes else "?"
    words = words.format(netns=worst.netns, pid=pid, comm=comm)
    expected = of_diagnose(path, words, capsys)

    async def work(_: Pilot[None], app: Top) -> None:
        picture = app.picture
        assert picture is not None
        assert picture.diagnosis is not None
        made = app._groups(picture, picture.diagnosis, "cause")
        shown: Counter[tuple[str, str]] = Counter()
        for group in made:
            if group.severity in ("problem", "notice"):
                shown[group.title, str(group.severity)] += group.count
        assert shown == expected
        stuck, others = app._said(picture.diagnosis).stuck(picture.rows), other_problems(picture.diagnosis)
        bad = {rule for rule, severity in expected if severity == "problem"}
        head = app.query_one("#head", Painted).text
        assert ("✗" in head) == bool(bad)
        assert bool(stuck or others) == bool(bad)

    feed = RecordedPictures(open_recording(path), parse_filter([words]), refresh=0.01)
    drive(work, feed=feed, filter_words=[words])


def test_what_a_filter_cannot_judge_is_said() -> None:
    path = str(CAPTURES / "hidden-leak.finwait")
    whole = diagnose(open_recording(path))
    words = f"pid = {min(whole.problems[0].pids)} and dport = :443"
    left = narrowed(whole, parse_filter([words]), refuse=False)
    assert left.narrowed is not None
    assert left.narrowed.unjudged

    async def work(_: Pilot[None], app: Top) -> None:
        assert "none seen stuck" in app.query_one("#head", Painted).text
        assert "the FILTER could not judge" in status(app)

    drive(work, feed=RecordedPictures(open_recording(path), parse_filter([words]), refresh=0.01))


# ── before the first diagnosis ───────────────────────────────────────────────────────────────────────────


class Waiting(RecordedPictures):
    """Gives nothing until it is let go; then, if it is to, the numbers alone."""

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        super().__init__(open_recording(KUBE), None, refresh=0.01)
        self.let_go = threading.Event()
        self._doing = "finding network namespaces"
        self._counts = counts

    def next(self) -> Picture | None:
        if self._counts is not None:
            counts, self._counts = self._counts, None
            return Picture(counts, None, None, np.empty(0, np.int64), Circumstances(taken_s=1.0))
        while not self.let_go.wait(0.05):
            if self._ended:
                return None
        return super().next()


def waiting(
    work: Callable[[Pilot[None], Top], Awaitable[None]], size: tuple[int, int], feed: Waiting
) -> None:
    app = Top(feed, parse_filter)

    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            for _ in range(200):
                await pilot.pause(0.01)
                drawn = app.query_one("#diagram", Painted).size.height
                if "finding network" in status(app) and drawn and "Groups by cause" in screen(app):
                    break
            await pilot.pause()
            await work(pilot, app)

    asyncio.run(go())


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (120, 40), (200, 60)])
def test_before_the_first_picture_there_is_a_frame_that_says_what_it_waits_for(size: tuple[int, int]) -> None:
    async def work(_: Pilot[None], app: Top) -> None:
        seen = screen(app)
        lines = seen.splitlines()
        assert re.search(r"finding network namespaces … \d+ s", lines[0])
        assert "1 Groups" in seen
        assert "Groups by cause come with" in seen
        assert re.search(r"finding network namespaces … \d+ s", status(app))
        assert max(map(len, lines)) <= size[0]
        if size[1] >= 24:
            assert "? CLOSE_WAIT" in seen, "a zero that nobody counted would be an all-clear"
            assert "no flows: nothing was counted yet" in seen
        else:
            assert "not counted yet" in seen

    waiting(work, size, Waiting())


@pytest.mark.parametrize("key", ["s", "r", "m", "c", "g", "i", "d", "enter", "2", "5"])
def test_a_key_that_cannot_work_yet_says_so_and_works_afterwards(key: str) -> None:
    feed = Waiting()

    async def work(pilot: Pilot[None], app: Top) -> None:
        await press(pilot, key)
        assert status(app).startswith(f"`{key}` works from the first diagnosis on")
        assert len(app.screen_stack) == 1
        feed.let_go.set()
        await settle(pilot, app)
        assert "4 groups by cause, sorted by harm" in status(app)
        assert "works from" not in status(app)

    waiting(work, (100, 30), feed)


def test_a_filter_and_the_help_can_be_asked_for_before_the_first_picture() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        await press(pilot, "slash", *"held", "enter")
        assert "FILTER held" in status(app)
        await press(pilot, "question_mark")
        assert isinstance(app.screen, Help)

    waiting(work, (100, 30), Waiting())


def test_numbers_are_there_before_owners_and_causes() -> None:
    async def work(_: Pilot[None], app: Top) -> None:
        head = app.query_one("#head", Painted).text
        assert head.startswith(" finwait   7 connections")
        assert "2 listeners" in head
        assert "? stuck" in head
        assert "? CLOSE_WAIT" in app.query_one("#diagram", Painted).text
        assert re.search(r"CLOSE_WAIT.*\n.* 7 ", app.query_one("#diagram", Painted).text)

    waiting(work, (120, 40), Waiting({tcp.CLOSE_WAIT: 7, tcp.LISTEN: 2}))


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", ["80x24", "120x40", "200x60"])
def test_whose_move_it_is_is_on_the_first_screen(size: str) -> None:
    for kind in ("colours", "colourless"):
        shown = (SNAPSHOTS / f"{kind}-{size}.txt").read_text()
        assert "whose move" in shown
        line = next(line for line in shown.splitlines() if re.match(r" +✗ +14 ", line))
        assert "peer backend" in line
        line = next(line for line in shown.splitlines() if re.match(r" +✗ +8 ", line))
        assert "holder" in line
        assert "never" in line


def test_arrow_keys_move_to_the_columns_that_have_no_room() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        rows = app.query_one("#rows", RowList)

        def titles() -> str:
            return "".join(segment.text for segment in rows.render_line(0)).rstrip()

        first = titles()
        assert first.startswith(" ›")
        met = {title for title in ("where", "state", "share", "last minutes") if title in first}
        seen = []
        for _ in range(12):
            await press(pilot, "right")
            seen.append(titles())
            met |= {title for title in ("where", "state", "share", "last minutes") if title in seen[-1]}
            assert "count" in seen[-1]
            assert "cause" in seen[-1]
            assert rows.cursor == 0
        assert met == {"where", "state", "share", "last minutes"}
        assert seen[-1] == seen[-2], "the last column is the end"
        assert seen[-1].startswith("‹ ")
        assert "last minutes" in seen[-1]
        for _ in range(12):
            await press(pilot, "left")
        assert titles() == first

    drive(work, size=(80, 24))


def test_columns_beside_those_that_stay_are_shown_in_their_order() -> None:
    columns = (Titled("a"), Titled("b", least=4), Titled("c", 3), Titled("d", 1), Titled("e", 2))
    widths = [3, 10, 8, 5, 30]
    assert beyond(columns, widths, 36, 1) == {0: 3, 1: 4, 3: 5}
    assert beyond(columns, widths, 36, 2) == {0: 3, 1: 4, 4: 25}, "cut, where it has no room alone"
    for room in range(12, 60):
        for skipped in range(3):
            kept = beyond(columns, widths, room, skipped)
            assert sum(kept.values()) + 2 * (len(kept) - 1) <= room


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────


def equals(diagnosis: Diagnosis) -> Diagnosis:
    """Return a diagnosis with eight groups of one cause and size, of different holders."""
    pattern = next(f for f in diagnosis.problems if len(f.rows) == 8)
    alike = tuple(replace(pattern, rows=pattern.rows[k : k + 1], count=1, pids=(1000 + k,)) for k in range(8))
    return replace(diagnosis, findings=alike)


def test_equal_groups_keep_their_places_from_look_to_look() -> None:
    whole = equals(diagnose(open_recording(KUBE)))
    view, rows = whole.view, np.flatnonzero(whole.view.sockets.state != tcp.LISTEN)
    shuffle = random.Random(11)
    for by in GROUPINGS:
        orders = set()
        for _ in range(5):
            findings = list(whole.findings)
            shuffle.shuffle(findings)
            made = board(view, findings, judged(view, findings), rows, by)
            orders.add(tuple(group.key for group in made))
        assert len(orders) == 1, by


def test_the_cursor_stays_with_its_group_when_the_order_changes() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        held = app.picture
        assert held is not None
        assert held.diagnosis is not None
        rows = app.query_one("#rows", RowList)
        await press(pilot, "down", "down")
        chosen = rows.chosen
        fewer = replace(held, diagnosis=replace(held.diagnosis), rows=held.rows[1:])
        app.take(fewer)
        await pilot.pause()
        assert rows.chosen == chosen

    drive(work)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────


def many_spaces(number: int) -> Diagnosis:
    """Return a diagnosis with many namespaces of the same settings, and one with another value."""
    diagnosis = diagnose(open_recording(KUBE))
    view = diagnosis.view
    spaces = dict(view.namespaces)
    one = next(iter(spaces.values()))
    for k in range(number - len(spaces)):
        spaces[9_000_000 + k] = replace(one, inode=9_000_000 + k, names=())
    other = replace(
        one, inode=8_000_000, names=("odd",), sysctls={**one.sysctls, "ipv4/tcp_fin_timeout": "30"}
    )
    shot = replace(diagnosis.snapshot, view=replace(view, namespaces={**spaces, 8_000_000: other}))
    return replace(diagnosis, snapshot=shot)


def test_a_setting_with_the_same_value_in_many_namespaces_is_one_line_and_exceptions_stand_alone() -> None:
    diagnosis = many_spaces(259)
    lines = settings_in_force(diagnosis.view, diagnosis.findings, together=True)
    mine = [line for line in lines if line.setting.key.endswith("tcp_fin_timeout")]
    assert [(line.value, line.where) for line in mine] == [("30", "odd"), ("60", "in 259 namespaces")]
    assert mine[1].on_stuck == "no effect on 14 relay-pair, 8 close-wait-eof-read", "of all of them together"
    assert len(lines) < 30
    apart = settings_in_force(diagnosis.view, diagnosis.findings)
    assert sum(line.setting.key.endswith("tcp_fin_timeout") for line in apart) == 260


def test_settings_obey_the_filter() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        await press(pilot, "5")
        assert status(app).startswith("settings in 1 namespace,")
        assert "in 1 namespaces" not in screen(app)
        assert "in 3 namespaces" not in screen(app)
        assert app._settings is not None
        assert {line.where for line in app._settings[1]} == {next(iter(app._settings[1])).where}

    feed = RecordedPictures(open_recording(KUBE), parse_filter(["comm = backend"]), refresh=0.01)
    drive(work, feed=feed, filter_words=["comm = backend"])
    assert settings([]).count == 0


# ── keys, marks, help, the pane, the counts ──────────────────────────────────────────────────────────────


def test_a_colon_opens_the_list_of_commands() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        await press(pilot, "colon")
        assert isinstance(app.screen, CommandPalette)

    drive(work)


@pytest.mark.parametrize("colour", [True, False])
def test_what_is_marked_has_a_sign_in_its_line(colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")

    async def work(pilot: Pilot[None], app: Top) -> None:
        def line(of: str) -> str:
            return next(line for line in screen(app).splitlines() if of in line and "count" not in line)

        await press(pilot, "m")
        assert line(" relay-pair ").startswith("* ")
        assert line("eof-read").startswith("  ")
        await press(pilot, "u", "home", "enter", "m")
        assert screen(app).count("\n* ") == 1
        await press(pilot, "escape")
        assert line(" relay-pair ").startswith("+ "), "a part of it"
        picture = app.picture
        assert picture is not None
        assert picture.diagnosis is not None
        made = app._groups(picture, picture.diagnosis, "cause")
        assert marked_groups(picture.diagnosis, made, app._marked)[0] == set()

    drive(work, size=(100, 30))


def test_the_help_is_broken_once_on_the_smallest_screen() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        await press(pilot, "question_mark")
        page = app.screen
        assert isinstance(page, Help)
        lines = page.laid_out(page.text, 38).split("\n")
        assert max(map(len, lines)) <= 38
        for line, after in pairwise(lines):  # what follows would not have fitted
            goes_on = after.startswith(" " * 10) if line.startswith(" ") else after[:1] not in ("", " ")
            if line and after and goes_on:
                assert len(line) + 1 + len(after.split()[0]) > 38, (line, after)
        wide = page.laid_out(page.text, 198).split("\n")
        assert max(map(len, wide)) <= 80

    drive(work, size=(40, 10))
    assert unbroken("  a       one\n          two\n  b       three\n\nfour\nfive") == (
        "  a       one two\n  b       three\n\nfour five"
    )


def test_the_pane_says_what_ends_it_before_the_evidence() -> None:
    async def work(_: Pilot[None], app: Top) -> None:
        text = pane(app)
        assert (
            text.index("whose move")
            < text.index("ends it")
            < text.index("confidence")
            < text.index("evidence")
        )
        shown = screen(app)
        assert "ends it" in shown
        assert "finwait clear --dry-run" in shown, "what to type is above the fold"

    drive(work, size=(120, 40))


def test_the_header_counts_what_finwait_counts(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--from", KUBE])
    said = re.search(r"(\d+) of (\d+) connections", capsys.readouterr().out)
    assert said is not None

    async def work(_: Pilot[None], app: Top) -> None:
        head = app.query_one("#head", Painted).text
        assert f"{said[2]} connections, 2 listeners" in head
        assert f"✗ {said[1]} stuck" in head

    drive(work)


def test_one_group_is_one_group() -> None:
    async def work(_: Pilot[None], app: Top) -> None:
        assert status(app).startswith("1 group by cause")

    feed = RecordedPictures(open_recording(KUBE), parse_filter(["state established"]), refresh=0.01)
    drive(work, feed=feed)


def test_rates_that_were_compared_say_what_is_not_in_them() -> None:
    def said(**how: Any) -> str:
        return compared(Picture({}, {}, None, np.empty(0, np.int64), Circumstances(**how)))

    assert said() == ""
    assert said(compared_s=2.04) == "rates: looks 2.0 s apart, without what came and went in between"
    assert said(compared_s=2.0, unplaced=0.5).endswith("; 0.5/s gone, closed or reset")


def test_when_new_ones_will_be_known_is_said() -> None:
    async def work(pilot: Pilot[None], app: Top) -> None:
        held = app.picture
        assert held is not None
        await press(pilot, "3")
        seen = replace(held.circumstances, diagnosis_in_s=41.7, look=None)
        app.take(replace(held, circumstances=seen))
        await pilot.pause()
        assert "new/min from the next diagnosis on, in about 42 s" in status(app)

    drive(work, size=(200, 60))
