"""`finwait top --agent`: what an agent said is on the screen with its age, and an agent that goes away is no end."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from math import isnan
from pathlib import Path

import pytest
from msgspec.structs import replace

pytest.importorskip("textual")

from rich.cells import cell_len
from textual.widgets import Static

from finwait.agent import protocol
from finwait.agent.watched import AgentPictures
from finwait.errors import FinwaitError
from finwait.report.agent_moment import AgentMoment, levels, per_minute, resampled
from finwait.report.painted import plain
from finwait.selecting import parse_filter
from finwait.tui.agent_view import AgentTop, _header
from finwait.tui.paint import Painted
from tests.tui.agent_pictures import GONE, MOMENT, NOW, SHOTS, SNAPSHOTS, Answers, S, play, shown, with_rounds
from tests.tui.pictures import shot_of
from tests.unit.agent.test_metrics import PICTURE
from tests.unit.web import documents


@pytest.mark.parametrize("name", SHOTS)
def test_a_screen_shows_what_the_agent_said(name: str) -> None:
    made = shot_of(asyncio.run(play(*SHOTS[name])))
    assert made == (SNAPSHOTS / f"{name}.txt").read_text(), "`python -m tests.tui.agent_pictures` draws it"


@pytest.mark.parametrize("width", [*range(20, 200, 7)])
def test_the_first_line_fits_and_says_how_old_the_look_is(width: int) -> None:
    for moment in (MOMENT, replace(MOMENT, failed=GONE, now_ns=NOW + 900 * S)):
        line = plain(_header(moment, width))
        assert cell_len(line) <= width or width < 30
        assert ("15 min ago" if moment.failed else "12 s ago") in line


def test_a_time_in_which_nobody_looked_is_not_zero() -> None:
    numbers = levels(documents.counts())
    assert all(map(isnan, numbers[20:26]))
    assert numbers[0] == 55
    cells = resampled(numbers, 20)
    assert len(cells) == 20
    assert isnan(cells[7] or 0.0)
    assert per_minute(documents.counts()) == 0.9  # nine more in the last ten minutes
    assert per_minute(None) is None
    assert levels(None) == []


def test_an_agent_that_goes_away_and_comes_back_is_shown_as_that() -> None:
    async def scene() -> None:
        feed = Answers(MOMENT)
        app = AgentTop(feed, parse_filter)
        async with app.run_test(size=(140, 30)) as pilot:
            await shown(app, pilot, feed)

            def status() -> str:
                return str(app.query_one("#status", Static).render())

            assert "no answer" not in status()
            feed.more(replace(MOMENT, failed=GONE, now_ns=NOW + 60 * S))
            await shown(app, pilot, feed)
            assert status().startswith("no answer: the agent has ended")
            assert app._groups() == MOMENT.page.groups  # type: ignore[union-attr]
            page = with_rounds(documents.page(1), 9)
            feed.more(AgentMoment(page, documents.counts(), "", "", NOW + 70 * S))
            await shown(app, pilot, feed)
            assert "no answer" not in status()
            assert status().startswith("1 groups")

    asyncio.run(scene())


def test_keys_sort_pause_and_take_a_filter_and_refuse_one_that_is_none() -> None:
    async def scene() -> None:
        feed = Answers(MOMENT)
        app = AgentTop(feed, parse_filter)
        async with app.run_test(size=(140, 30)) as pilot:
            await shown(app, pilot, feed)
            await pilot.press("s")
            assert [g.count for g in app._groups()] == [1000, 999, 998]
            await pilot.press("r")
            assert [g.count for g in app._groups()] == [998, 999, 1000]
            await pilot.press("d", "slash", *"state nonsense", "enter")
            assert (feed.renewed, feed.chosen) == (1, [])
            assert "nonsense" in str(app.query_one("#wrong", Static).render())
            await pilot.press(*["backspace"] * 8, *"close-wait", "enter")
            assert feed.chosen == ["state close-wait"]
            await pilot.press("space")
            feed.more(replace(MOMENT, failed=GONE))
            await shown(app, pilot, feed)
            assert app.moment is MOMENT
            await pilot.press("q")
        assert app.return_code == 0

    asyncio.run(scene())


def test_evidence_that_the_agent_does_not_give_is_said() -> None:
    async def scene() -> None:
        feed = Answers(MOMENT)
        feed.fails = True
        app = AgentTop(feed, parse_filter)
        async with app.run_test(size=(140, 30)) as pilot:
            await shown(app, pilot, feed)
            assert "no answer: the agent has" in app.query_one("#evidence", Painted).text
            feed.fails = False
            feed.more(replace(MOMENT, failed=GONE))
            await shown(app, pilot, feed)
            feed.more(MOMENT)
            await shown(app, pilot, feed)
            await shown(app, pilot, feed)
            assert "certain: r" in app.query_one("#evidence", Painted).text

    asyncio.run(scene())


class Agent:
    """Answers at a Unix socket as an agent does, until it is ended."""

    def __init__(self, path: Path, rounds: int = 7) -> None:
        self.questions: list[protocol.Question] = []
        self.page = with_rounds(documents.page(), rounds)
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as file:
                question = protocol.decode_question(file.readline() or b'{"ask":"gaps"}')
                self.questions.append(question)
                client.sendall(protocol.encode(documents.answer_to(question, PICTURE, self.page)))

    def end(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@pytest.fixture
def agent(path: Path) -> Iterator[Agent]:
    made = Agent(path)
    yield made
    made.end()


def given(feed: AgentPictures) -> AgentMoment:
    moment = feed.next()
    assert moment is not None
    return moment


def test_the_feed_asks_only_for_what_is_new(agent: Agent, path: Path) -> None:
    feed = AgentPictures(str(path), refresh=0.0)
    first, second = given(feed), given(feed)
    assert first.page == second.page == agent.page
    assert first.counts is not None
    assert first.failed == second.failed == ""
    asked = [q for q in agent.questions if isinstance(q, protocol.AskPage)]
    assert [q.known for q in asked] == [-1, agent.page.rounds]
    assert sum(isinstance(q, protocol.AskCounts) for q in agent.questions) == 1
    assert second.now_ns >= first.now_ns
    detail = feed.detail(agent.page.groups[0].id)
    assert detail is not None
    assert detail.more == 2
    assert feed.detail("f" * 16) is None


def test_the_feed_keeps_what_an_agent_said_and_finds_the_next_one(path: Path) -> None:
    first = Agent(path)
    feed = AgentPictures(str(path), refresh=0.0)
    assert given(feed).failed == ""
    first.end()
    moment = given(feed)
    assert moment.page == first.page
    assert moment.failed == "no answer: no agent runs here; `finwait agent` starts one"
    with pytest.raises(FinwaitError, match="no agent runs here"):
        feed.detail("0" * 16)
    second = Agent(path)  # another one, by chance at the same round
    try:
        second.page = documents.page(1, rounds=first.page.rounds)
        moment = given(feed)
        assert (moment.failed, moment.page) == ("", second.page)
        feed.choose("(")
        moment = given(feed)
        assert moment.page is None  # what another FILTER selected is not shown for this one
        assert moment.failed == "the agent says: it does not parse a hint"
    finally:
        second.end()
    feed.end()
    assert feed.next() is None
