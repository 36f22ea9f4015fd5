"""Screens of `finwait top --agent`, of an agent of values.

python -m tests.tui.agent_pictures      writes them anew
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from finwait.errors import FinwaitError
from finwait.report.agent_moment import AgentMoment
from finwait.report.agent_page import AgentPage, GroupDetail
from finwait.selecting import parse_filter
from finwait.tui.agent_view import AgentTop
from tests.tui.pictures import SNAPSHOTS, shot_of
from tests.unit.web import documents

__all__ = ["GONE", "MOMENT", "NOW", "SHOTS", "SNAPSHOTS", "Answers", "S", "play", "shown", "with_rounds"]

S = 1_000_000_000
NOW = documents.AT_NS + 12 * S
MOMENT = AgentMoment(documents.page(), documents.counts(), "", "", NOW)
GONE = "no answer: the agent has ended; `finwait agent` starts one"


class Answers:
    """Gives moments, one after the other, and waits for the end after the last."""

    def __init__(self, *moments: AgentMoment) -> None:
        self.moments = list(moments)
        self.chosen: list[str] = []
        self.renewed = 0
        self.given = threading.Event()
        self.asked: list[str] = []
        self.fails = False
        self._wake = threading.Event()

    def next(self) -> AgentMoment | None:
        if not self.moments:
            self.given.set()
            self._wake.wait()
            self._wake.clear()
            return self.moments.pop(0) if self.moments else None
        return self.moments.pop(0)

    def more(self, moment: AgentMoment) -> None:
        self.given.clear()
        self.moments.append(moment)
        self._wake.set()

    def detail(self, name: str) -> GroupDetail | None:
        self.asked.append(name)
        if self.fails:
            raise FinwaitError(GONE)
        item = next((g for g in documents.page().groups if g.id == name), None)
        return documents.detail(item) if item is not None else None

    def choose(self, words: str) -> None:
        self.chosen.append(words)

    def renew(self) -> None:
        self.renewed += 1

    def end(self) -> None:
        self._wake.set()


def healthy() -> AgentPage:
    return documents.page(0, gaps=0)


SHOTS = {
    **{f"agent-{w}x{h}": (MOMENT, (), (w, h)) for w, h in ((40, 10), (80, 24), (120, 40), (200, 60))},
    "agent-gone-120x40": (replace(MOMENT, failed=GONE, now_ns=NOW + 3600 * S), (), (120, 40)),
    "agent-none-80x24": (AgentMoment(healthy(), documents.counts(0), "", "", NOW), (), (80, 24)),
    "agent-first-80x24": (
        AgentMoment(None, None, "the agent says: the first look is not finished", "", NOW),
        (),
        (80, 24),
    ),
    "agent-evidence-100x30": (MOMENT, ("enter", "escape", "enter"), (100, 30)),
    "agent-help-100x40": (MOMENT, ("question_mark",), (100, 40)),
}


async def shown(app: AgentTop, pilot: Any, feed: Answers) -> None:
    """Wait until all that was given is on the screen, and no question is out."""
    for _ in range(1000):
        if feed.given.is_set() and app.moment is not None and not app._asking:
            break
        await pilot.pause(0.01)
    await pilot.pause()


async def play(moment: AgentMoment, keys: tuple[str, ...], size: tuple[int, int]) -> str:
    """Press keys; return the screen as SVG."""
    feed = Answers(moment)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NO_COLOR", raising=False)
        app = AgentTop(feed, parse_filter)
    async with app.run_test(size=size) as pilot:
        await shown(app, pilot, feed)
        for key in keys:
            await pilot.press(key)
            await shown(app, pilot, feed)
        return app.export_screenshot(title="finwait top --agent")


def with_rounds(page: AgentPage, rounds: int) -> AgentPage:
    return msgspec.structs.replace(page, rounds=rounds)


if __name__ == "__main__":
    for name, scene in SHOTS.items():
        path = SNAPSHOTS / f"{name}.txt"
        shot = shot_of(asyncio.run(play(*scene)))
        if not path.exists() or path.read_text() != shot:
            path.write_text(shot)
            print(f"{path.name}: written")
