"""Transitions as lines, records, stories and histograms."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finwait.report import transitions as text
from finwait.table import transitions as tr
from finwait.table.sockets import pack_address
from finwait.table.transitions import TransitionTable

A, B = pack_address("10.0.0.1"), pack_address("10.0.0.2")
MOVERS = {
    812: text.Mover(812, "nginx", 812, "nginx"),
    815: text.Mover(815, "worker-3", 812, "nginx"),
    90: text.Mover(90, "kworker/0:1", 90, "kworker/0:1", kernel=True),
    77: text.Mover(77, "curl"),
}
NAMES = text.TransitionNames(
    wall_offset_ns=1_700_000_000_000_000_000, netns={7: ("host",)}, owners={5: [(812, "nginx")]},
    pods={9: "3f2a8c1e-0000-4000-8000-000000000001"}, movers=MOVERS, reasons={14: "TCP_STATE"},
)  # fmt: skip


def rows(*script: tuple[int, int, int], ours: bool = True, **columns: Any) -> TransitionTable:
    n = len(script)
    given: dict[str, Any] = {
        "kind": [tr.TRANSITION] * n, "time_ns": [t for t, _, _ in script], "oldstate": [o for _, o, _ in script],
        "newstate": [s for _, _, s in script], "family": [2] * n, "src": [A if ours else B] * n,
        "dst": [B if ours else A] * n, "sport": [40000 if ours else 80] * n, "dport": [80 if ours else 40000] * n,
        "interrupt": [True] * n, "life": [-1] * n,
    }  # fmt: skip
    given |= {name: [value] * n for name, value in columns.items()}
    return TransitionTable.from_columns(given)


def test_a_line_says_when_where_what_and_whose():
    table = rows((1_500_000_000, 1, 4), netns=7, inode=5, in_old_ns=12_000_000_000)
    (line,) = text.lines(table, NAMES)
    assert line == (
        "22:13:21.500 host    10.0.0.1:40000 > 10.0.0.2:80     ESTABLISHED→FIN_WAIT1     12s nginx[812]"
    )


def test_nothing_is_wider_than_100_columns_unless_wide_is_asked_for():
    table = rows(
        (0, 5, 7), inode=5, netns=4_026_532_247, cgroup_id=1, src=[[0x20010DB8 << 32, 1]], dst=[[1 << 60, 2]]
    )
    names = text.TransitionNames(owners={5: [(4_194_303, "a-name-of-15-ch")]}, pods={1: "1" * 36})
    (shown,) = text.lines(table, names)
    _, *more = shown.splitlines()
    assert len(more) >= 1
    assert max(map(len, more)) <= 100
    assert all(line.startswith(" " * 21) for line in more)
    assert "a-name-of-15-ch[4194303]" in shown
    (wide,) = text.lines(table, names, wide=True)
    assert len(wide.splitlines()) == 1


def test_what_is_not_known_is_a_dash():
    (line,) = text.lines(rows((0, 1, 4)), text.TransitionNames())
    assert line.split()[1] == "-"
    assert line.split()[-1] == "-"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            rows((0, 5, 7), became=5, expires_ms=59_900),
            "became a minisocket, still FIN_WAIT2; gone by itself in 59.9 s",
        ),
        (
            rows((0, 5, 7), became=6, became_seen_ns=80_000_000, expires_ms=60_000),
            "is a minisocket in TIME_WAIT (seen 80.0ms later); gone in 60.0 s",
        ),
        (rows((0, 1, 7), reset=2), "ended by a reset that was received"),
        (rows((0, 5, 5), interrupt=False, pid=812), "closed by its owner, nginx[812]"),
        (rows((0, 5, 7)), "no minisocket was seen after it: destroyed, timed out, or ended before the look"),
        (rows((0, 9, 7)), ""),
        (rows((0, 1, 1), kind=tr.SEND_RESET, reason=14), "reset sent (TCP_STATE)"),
        (rows((0, 0, 8), kind=tr.POLLED, after_ns=0), "first seen"),
        (rows((0, 8, 0), kind=tr.POLLED, after_ns=0), "gone"),
    ],
)
def test_the_note_says_what_the_states_do_not(table, said):
    (record,) = text.records(table, NAMES)
    assert record["note"] == said


def test_a_record_is_one_json_object_with_utc_time():
    (record,) = text.records(rows((1, 1, 4), cgroup_id=9, inode=5), NAMES)
    back = json.loads(text.encode(record))
    assert back["time"] == "2023-11-14T22:13:20.000000Z"
    assert back["owners"] == [{"pid": 812, "fd": None, "comm": "nginx"}]
    assert back["pod_uid"].startswith("3f2a8c1e")
    assert back["in_old_us"] is None


@pytest.mark.parametrize(
    ("pid", "shown", "told"),
    [
        (812, "by nginx[812]", (812, "nginx")),
        (815, "by nginx[812]", (812, "nginx")),
        (77, "by curl (thread 77)", (None, "")),
        (78, "by thread (thread 78)", (None, "")),
        (90, "-", (None, "")),
    ],
)
def test_who_moved_it_is_a_process_and_never_a_thread_of_it(pid, shown, told):
    table = rows((0, 1, 4), interrupt=False, pid=pid)
    (record,) = text.records(table, NAMES)
    assert record["owners"] is None
    assert (record["moved_by"]["pid"], record["moved_by"]["comm"]) == told
    assert record["moved_by"]["tid"] == pid
    (line,) = text.lines(table, NAMES)
    assert shown in line
    if pid == 90:
        assert line.rstrip().endswith("caused by kworker/0:1 (thread 90) of the kernel")
        assert " by kworker" not in line.replace("caused by kworker", "")


def test_who_held_what_is_over_is_told_as_the_past():
    names = text.TransitionNames(owners={5: [(812, "nginx")]}, last={3: [(900, "worker")]})
    over = rows((0, 9, 7), inode=5, life=3, over=True)
    (record,) = text.records(over, names)
    assert record["owners"] is None, "an inode of what is over may be another socket's"
    assert record["last_owners"] == [{"pid": 900, "comm": "worker"}]
    (line,) = text.lines(over, names)
    assert "was worker[900]" in line
    moved = rows((0, 1, 4), inode=5, life=3, over=True, interrupt=False, pid=77)
    past = text.TransitionNames(last={3: [(900, "worker")]}, movers=MOVERS)
    (line,) = text.lines(moved, past)
    assert "was worker[900]" in line, "a process says more than a thread of an unknown one"
    alive = rows((0, 1, 8), inode=6, life=3)
    (record,) = text.records(alive, names)
    assert record["last_owners"] is None
    (nobody,) = text.lines(alive, text.TransitionNames(owners={6: []}))
    assert nobody.rstrip().endswith("nobody")


def test_csv_quotes_what_needs_it():
    (record,) = text.records(rows((1, 5, 5), interrupt=False, pid=812), NAMES)
    line = text.csv_line(record)
    assert line.endswith('"closed by its owner, nginx[812]",,')
    assert len(text.CSV_COLUMNS) == line.replace("owner, n", "owner; n").count(",") + 1


def test_both_ends_of_a_connection_are_one_story():
    stories = text.Stories()
    client = rows((0, 7, 2), (1_000_000, 2, 1), (5_000_000, 1, 4), (7_000_000, 4, 5), (9_000_000, 5, 7))
    server = rows((1_100_000, 3, 1), (5_100_000, 1, 8), (8_000_000, 8, 9), (9_100_000, 9, 7), ours=False)
    assert list(stories.add(client.select([0, 1, 2]), NAMES)) == []  # type: ignore[arg-type]
    assert list(stories.add(server, NAMES)) == []
    (story,) = stories.add(client.select([3, 4]), NAMES)  # type: ignore[arg-type]
    assert story[0] == "connection 10.0.0.1:40000 > 10.0.0.2:80"
    assert [line.split()[2] for line in story[1:]] == ["client", "client", "server", "client", "server",
                                                       "client", "server", "client", "server"]  # fmt: skip
    assert story[-1].split() == ["9.100", "ms", "server", "LAST_ACK→CLOSE"]


def test_without_looking_up_nothing_is_said_of_minisockets():
    (record,) = text.records(rows((0, 5, 7)), text.TransitionNames(looked_up=False))
    assert record["note"] == ""


def test_an_end_whose_namespace_is_not_known_joins_the_only_story_with_its_numbers():
    local: dict[str, Any] = {"src": pack_address("127.0.0.1"), "dst": pack_address("127.0.0.1")}
    for known_first in (True, False):
        stories = text.Stories()
        known: dict[str, Any] = {"netns": 7}
        unknown: dict[str, Any] = {}
        first, second = (known, unknown) if known_first else (unknown, known)
        list(stories.add(rows((0, 7, 2), **local, **first), NAMES))
        list(stories.add(rows((1, 3, 1), ours=False, **local, **second), NAMES))
        assert len(list(stories.rest())) == 1
    stories = text.Stories()
    list(stories.add(rows((0, 7, 2), **local, netns=7, life=1), NAMES))
    list(stories.add(rows((0, 7, 2), **local, netns=8, life=2), NAMES))
    assert len(list(stories.rest())) == 2


def story_of(*parts: TransitionTable) -> list[list[str]]:
    stories = text.Stories()
    told = [story for part in parts for story in stories.add(part, NAMES)]
    return told + list(stories.rest())


CLIENT = ((0, 7, 2), (2, 2, 1), (4, 1, 4), (9, 4, 5), (20, 5, 7))
SERVER = ((1, 2, 3), (3, 3, 1), (5, 1, 8), (8, 8, 9), (10, 9, 7))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 1, 3), (2, 3, 0, 1)])
def test_the_same_numbers_in_two_namespaces_are_two_connections(order):
    ends = [
        rows(*CLIENT, netns=7, life=1),
        rows(*SERVER, netns=7, life=2, ours=False),
        rows(*CLIENT, netns=8, life=3),
        rows(*SERVER, netns=8, life=4, ours=False),
    ]
    opening = [ends[k].select([0]) for k in order]
    rest = [ends[k].select([1, 2, 3, 4]) for k in order]
    told = story_of(*opening, *rest)
    assert len(told) == 2
    assert sorted(story[0].rpartition("netns ")[2] for story in told) == ["8", "host"]
    for story in told:
        assert len(story) == 11
        assert {line.split()[2] for line in story[1:]} == {"client", "server"}


def test_an_end_that_fits_two_is_told_alone():
    """One server, and two clients of the same address in other namespaces: whose it is nobody knows."""
    told = story_of(
        rows(*CLIENT[:2], netns=7, life=1),
        rows(*SERVER[:2], netns=8, life=2, ours=False),
        rows(*CLIENT[:2], netns=9, life=3),
    )
    assert len(told) == 3
    assert all("in use more than once" in story[1] for story in told)


def test_two_namespaces_of_one_connection_are_one_story():
    (story,) = story_of(
        rows(*CLIENT[:1], netns=7, life=1), rows(*SERVER, netns=8, life=2, ours=False),
        rows(*CLIENT[1:], netns=7, life=1),
    )  # fmt: skip
    assert story[0].endswith("netns host and 8")


def test_the_same_ports_used_again_are_another_connection():
    later = [tuple((t + 10_000_000_000, old, new) for t, old, new in end) for end in (CLIENT, SERVER)]
    told = story_of(
        rows(*SERVER[:3], netns=7, life=2, ours=False), rows(*CLIENT, netns=7, life=1),
        rows(*later[0], netns=7, life=3), rows(*later[1], netns=7, life=4, ours=False),
        rows(*SERVER[3:], netns=7, life=2, ours=False),
    )  # fmt: skip
    assert [len(story) for story in told] == [11, 11]


def test_stories_are_bounded_and_what_was_cut_is_counted():
    stories = text.Stories(most=100)
    told = 0
    for k in range(200):
        told += len(list(stories.add(rows((k, 7, 2), sport=1000 + k, life=k), NAMES)))
    assert told == stories.cut == 100
    assert len(list(stories.rest())) == 100


def test_a_story_that_is_not_over_is_told_at_the_end():
    stories = text.Stories()
    list(stories.add(rows((0, 1, 4)), NAMES))
    (story,) = stories.rest()
    assert story[0].endswith("(not over yet)")


@pytest.mark.parametrize(
    ("ns", "shown"),
    [(0, "0us"), (999_999, "999us"), (1_500_000, "1.5ms"), (250_000_000, "0.25s"), (41_000_000_000, "41s"),
     (300_000_000_000, "5m00s"), (7_500_000_000_000, "2h05m"), (300_000_000_000_000, "3d11h")],
)  # fmt: skip
def test_a_duration_has_at_most_eight_characters(ns, shown):
    assert text.duration(ns) == shown
    assert len(shown) <= 8


def test_the_summary_is_a_histogram_for_each_state():
    table = rows((0, 1, 4), (0, 1, 4), (0, 4, 5), in_old_ns=3_000_000)
    summary = text.Summary()
    summary.add(table.select([0, 1]))  # type: ignore[arg-type]
    summary.add(table.select([2]))  # type: ignore[arg-type]
    lines = summary.lines()
    assert lines[0] == "ESTABLISHED: 2 times, median 3.0ms"
    assert lines[1].split("|")[0].split() == ["2.0ms", "…", "4.1ms", "2"]
    assert lines[2].startswith("FIN_WAIT1: 1 times")


def test_a_name_that_a_spreadsheet_would_compute_is_text_in_csv() -> None:
    assert text._cell("=1+cmd|x") == "'=1+cmd|x"
    assert text._cell('@a,"b"') == '"\'@a,""b"""'
    assert [text._cell(value) for value in (-5, "-5", None, "-")] == ["-5", "-5", "", "-"]
