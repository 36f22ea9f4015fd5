"""The live view, driven by its pilot at 80 × 24, and the picture that it draws."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from finwait.report.state_diagram import GROUPINGS, diagram, groups
from finwait.table.sockets import SocketTable, pack_address
from finwait.tui.feed import Picture

textual = pytest.importorskip("textual")

SOCKETS = SocketTable.from_columns(
    {
        "family": [2] * 6, "protocol": [6] * 6, "state": [8, 8, 8, 5, 1, 1], "netns": [7, 7, 7, 7, 9, 9],
        "sport": [80, 80, 80, 4000, 22, 443], "dport": [1, 2, 3, 80, 5, 6], "cookie": range(1, 7),
        "src": [pack_address("10.0.0.2")] * 6,
        "dst": [pack_address("10.0.0.1")] * 4 + [pack_address("10.0.0.9")] * 2,
        "last_ack_recv_ms": [1000, 3_600_000, 2000, 50, 0, 0],
    }
)  # fmt: skip
COUNTS = {8: 3, 5: 1, 1: 2, 10: 4}
PICTURE = Picture(SOCKETS, COUNTS, {(1, 8): 2.5, (8, 9): 0.5}, {7: ("shop",)}, {}, "tracing")


def test_the_diagram_fits_80_columns_and_says_counts_and_flows():
    lines = diagram(
        dict.fromkeys(range(1, 12), 1234567), {(a, b): 123_456.0 for a in range(13) for b in range(13)}
    )
    assert max(map(len, lines)) <= 79
    text = "\n".join(diagram(COUNTS, PICTURE.flows))
    assert "CLOSE_WAIT 3" in text
    assert "2.5/s" in text
    assert "we close too 0.5/s" in text


def test_without_flows_no_number_is_invented():
    assert "/s" not in "\n".join(diagram(COUNTS, None))


@pytest.mark.parametrize("by", GROUPINGS)
def test_groups_hold_every_connection_once(by):
    found = groups(SOCKETS, by, {7: ("shop",)}, {})
    assert sum(count for _, count, _ in found) == 6
    assert all(sum(states.values()) == count for _, count, states in found)
    assert [count for _, count, _ in found] == sorted((count for _, count, _ in found), reverse=True)


def test_groups_are_named():
    assert groups(SOCKETS, "peer", {}, {})[0] == ("10.0.0.1", 4, {5: 1, 8: 3})
    assert groups(SOCKETS, "netns", {7: ("shop",)}, {})[0][0] == "shop"
    assert groups(SocketTable.empty(), "peer", {}, {}) == []


class Fixed:
    """A feed that gives one picture, and then waits until it is told to end."""

    def __init__(self) -> None:
        self.given = 0
        self.end = threading.Event()

    def next(self) -> Picture:
        if self.given:
            self.end.wait(20)
        self.given += 1
        return PICTURE


def drive(*steps: Any) -> list[str]:
    """Press keys one after the other; return the status line after each."""
    from textual.widgets import Static

    from finwait.tui.app import Top

    feed = Fixed()
    said: list[str] = []

    async def go() -> None:
        app = Top(feed)
        async with app.run_test(size=(80, 24)) as pilot:
            for _ in range(200):
                if app._picture is not None:
                    break
                await pilot.pause(0.02)
            for key in steps:
                await pilot.press(key)
                await pilot.pause()
                said.append(str(app.screen_stack[0].query_one("#status", Static).render()))
            feed.end.set()

    try:
        asyncio.run(go())
    finally:
        feed.end.set()
    return said


def test_keys_group_open_and_leave_a_group_and_pause():
    said = drive("g", "enter", "escape", "g", "space", "space")
    assert "2 groups by peer" in said[0]
    assert "4 connections of peer 10.0.0.1" in said[1]
    assert "2 groups by peer" in said[2]
    assert "groups by local port" in said[3]
    assert said[4].startswith("PAUSED")
    assert not said[5].startswith("PAUSED")


def test_the_help_opens_and_any_key_closes_it():
    said = drive("question_mark", "x", "g")
    assert "groups by peer" in said[2]
