"""Episodes for people and programs, and which a FILTER selects."""

from __future__ import annotations

import csv
import io

import pytest

from finwait.agent.episodes import Instant
from finwait.agent.telling import COLUMNS, chosen, csv_lines, episode_json, text_lines
from finwait.errors import FilterError
from finwait.selecting import parse_filter
from finwait.uapi import tcp
from tests.unit.agent.test_store import CAUSE, S, ended, episode

NOW = 1000 * S
ALL = [
    episode(1),
    ended(2, state=tcp.CLOSE_WAIT, words=(0, 0xFFFF0A000001, 0, 0xFFFF0A000002, 80, 50000, 0)),
    episode(3, boot="before", cause=CAUSE, ended=Instant(5 * S, 5), how="unknown"),
]


def select(text: str) -> list[int]:
    return [e.cookie for e in chosen(parse_filter(text.split()), ALL, NOW, "b")]


@pytest.mark.parametrize(
    ("text", "cookies"),
    [
        ("state close-wait", [2]),
        ("dport = :80", [1, 3]),
        ("src = 10.0.0.1", [1, 2, 3]),
        ("cookie = 0x2", [2]),
        ("rule = fin-wait2-held", [1, 2, 3]),
        ("age > 10m", [1]),
        ("age > 30s", [1]),
        ("pid = 7", [1, 2, 3]),
        ("comm = web", [1, 2, 3]),
        ("comm = other", []),
        ("netns = 1 and not state close-wait", [1, 3]),
    ],
)
def test_a_filter_means_what_it_means_over_a_look(text: str, cookies: list[int]) -> None:
    assert select(text) == cookies


@pytest.mark.parametrize("text", ["rqueue > 0", "user = root", "timer = keepalive", "waited = nobody"])
def test_what_an_episode_does_not_know_is_an_error_and_not_an_empty_answer(text: str) -> None:
    with pytest.raises(FilterError, match="history does not keep"):
        select(text)


def test_ages_go_on_only_on_the_same_boot() -> None:
    lasting, over, before = (episode_json(e, NOW, "b") for e in ALL)
    assert lasting["age_s"] == {"at_least": 901.0, "at_most": None}
    assert over["age_s"]["at_least"] == 16.0
    assert before["age_s"] == {"at_least": 16.0, "at_most": None}
    assert (over["how"], over["ended"]) == ("closed", "2023-11-14T22:16:40Z")


def test_csv_has_a_cell_for_each_column_and_no_formula() -> None:
    hostile = episode(4, cause=CAUSE.__class__("r", "problem", "", "", "=cmd()", "=x(1)", 1))
    rows = list(csv.reader(io.StringIO("".join(csv_lines([hostile], NOW, "b")))))
    assert rows[0] == list(COLUMNS)
    assert len(rows[1]) == len(COLUMNS)
    assert not any(cell.startswith("=") for cell in rows[1])


def test_the_table_is_aligned_and_escapes_names() -> None:
    hostile = episode(4, cause=CAUSE.__class__("r", "problem", "", "", "w", "\x1b[2J(1)", 1))
    lines = list(text_lines([*ALL, hostile], NOW, "b"))
    assert lines[0].startswith("FIRST SEEN")
    assert "at least 15 min  lasts  " in lines[1]
    assert not any("\x1b" in line for line in lines)


def test_nobody_knows_how_long_at_most_what_a_reboot_ended_had_lasted() -> None:
    """Also of one whose end was stored with the clock of the boot after it, as an earlier version did."""
    before = episode(1, boot="before", earliest_ns=90 * S)
    assert episode_json(before, NOW, "b")["age_s"]["at_most"] is None
    for end in (5, 100, 5000):
        over = episode(1, boot="before", earliest_ns=90 * S, ended=Instant(end * S, 5), how="unknown")
        assert episode_json(over, NOW, "b")["age_s"]["at_most"] is None
    closed = ended(1, boot="before", earliest_ns=90 * S)
    assert episode_json(closed, NOW, "b")["age_s"]["at_most"] == 110
