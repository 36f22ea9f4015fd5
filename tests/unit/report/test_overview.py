"""The overview: a line a group, the most harmful first, never wider than there is room."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from finwait import session
from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.context import ViewContext
from finwait.diagnosis.finding import Confidence, Finding, Turn
from finwait.diagnosis.moves import inside
from finwait.diagnosis.view import View
from finwait.recording import open_recording
from finwait.report.cells import columns
from finwait.report.columns import Cells
from finwait.report.overview import holder, overview, program
from finwait.report.style import Style
from finwait.report.text import diagnosis, shown_groups
from finwait.uapi import tcp
from finwait.uapi.observation import ProcessWaits, Releasing, ThreadWait
from tests.unit.diagnosis.views import socket, view

CAPTURES = Path(__file__).parents[2] / "captures/linux-6.18"
HELD = socket(
    state=tcp.CLOSE_WAIT, inode=7, shutdown=1, last_ack_recv_ms=60_000, last_data_recv_ms=60_000,
    last_data_sent_ms=60_000, bytes_received=10, bytes_acked=10, snd_wnd=65535, backoff=0, unacked=0,
)  # fmt: skip


def lines(v: View, groups: Sequence[Finding], width: int = 100) -> list[str]:
    return list(overview(v, groups, Style(width)))


def held(*rows: dict[str, Any]) -> View:
    """Return connections that one process holds."""
    return view(*rows, holders={row["inode"]: [500] for row in rows if row["inode"]})


def found(v: View) -> list[Finding]:
    return shown_groups(v, engine.diagnose(v, catalogue.rules()))


@pytest.mark.parametrize("width", [40, 60, 72, 80, 100, 140])
@pytest.mark.parametrize("recording", sorted(CAPTURES.glob("*.finwait")), ids=lambda path: path.stem)
def test_no_line_is_wider_than_there_is_room(recording: Path, width: int) -> None:
    told = session.diagnose(open_recording(str(recording)))
    groups = shown_groups(told.view, told.findings)
    shown = lines(told.view, groups, width)
    assert len(shown) == (1 + len(groups) if groups else 1)
    assert all(len(line) <= width for line in shown), shown
    marks = [re.match(r" *[0-9]+  (\w+) ", line) for line in shown[1:]]
    assert [mark[1][0] for mark in marks if mark] == [group.severity[0].upper() for group in groups]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_names_that_are_wide_or_narrow_on_a_terminal_keep_the_columns_aligned(width: int) -> None:
    names = ["plain", "\u4e2d\u6587\u5b57\u6587\u5b57", "\U0001f600" * 3, "e\u0301\u0301x\u0301"]
    rows = [HELD | {"inode": k + 1, "cookie": k + 1, "sport": 4000 + k} for k in range(4)]
    v = view(
        *rows, holders={k + 1: [500 + k] for k in range(4)},
        processes={500 + k: ProcessView(500 + k, name) for k, name in enumerate(names)},
    )  # fmt: skip
    groups = [replace(found(v)[0], rows=np.array([k]), pids=(500 + k,)) for k in range(4)]
    shown = lines(v, groups, width)
    starts = {columns(line[: line.index("never")]) for line in shown[1:] if "never" in line}
    assert len(starts) <= 1
    assert all(columns(line) <= width for line in shown)


@given(st.integers(1, 60), st.integers(40, 200), st.text(max_size=40), st.text(max_size=20))
def test_whatever_things_are_called_a_line_is_a_line(count: int, width: int, act: str, rule: str) -> None:
    v = held(*[HELD | {"inode": k + 1, "cookie": k + 1, "sport": 4000 + k} for k in range(count)])
    (group,) = [f for f in found(v) if f.rule == "close-wait-eof-read"]
    groups = [
        replace(group, rows=group.rows[:1], rule=rule or "x", turn=Turn("peer", act)) for _ in range(count)
    ]
    shown = lines(v, groups, width)
    assert len(shown) == 1 + min(count, 18) + (count > 18)
    assert all(len(line) <= width for line in shown[: 1 + min(count, 18)])


def test_a_service_that_accepts_nothing_comes_before_ten_thousand_that_cost_nothing() -> None:
    waiting = [
        {
            "state": tcp.ESTABLISHED,
            "inode": 0,
            "cookie": 50_000 + k,
            "sport": 80,
            "dport": 9000 + k,
            "rqueue": 5,
        }
        for k in range(129)
    ]
    listener = {"state": tcp.LISTEN, "inode": 9, "cookie": 1, "sport": 80, "rqueue": 129, "wqueue": 128}
    leaked = [
        HELD | {"inode": 100 + k, "cookie": 100 + k, "sport": 80, "dport": k + 1} for k in range(10_000)
    ]
    v = held(listener, *waiting, *leaked)
    rules = [f.rule for f in found(v)]
    assert set(rules[:-1]) <= {"accept-queue-full", "never-accepted"}
    assert rules[-1] == "close-wait-eof-read"


def test_numbers_of_the_overview_are_those_of_the_details() -> None:
    told = session.diagnose(open_recording(str(CAPTURES / "kube-proxy-userspace.finwait")))
    text = "".join(diagnosis(told.view, told.findings, (), "vm"))
    rows = re.findall(r"^(\d+)  \S+ +\d+  .*?((?:\w+-)+\w+)", text, re.MULTILINE)
    heads = re.findall(r"^(?:PROBLEM|NOTICE) +(\d+): .*?  ((?:\w+-)+\w+)  in", text, re.MULTILINE)
    assert heads == rows
    assert len(heads) == 2


def test_only_some_groups_are_told_in_full_and_the_others_are_named() -> None:
    rows = [HELD | {"inode": k, "cookie": k, "sport": 4000 + k, "netns": 4026531840 + k} for k in range(1, 6)]
    v = held(*rows)
    findings = engine.diagnose(v, catalogue.rules())
    text = "".join(diagnosis(v, findings, (), "vm"))
    assert len(re.findall(r"^PROBLEM", text, re.MULTILINE)) == 3
    assert "Groups 4 to 5 have a line above; `finwait explain 4` shows one in full" in text
    every = "".join(diagnosis(v, findings, (), "vm", details=0))
    assert len(re.findall(r"^PROBLEM", every, re.MULTILINE)) == 5
    assert "have a line above" not in every


def test_with_more_groups_than_lines_the_number_of_the_others_is_told() -> None:
    rows = [
        HELD | {"inode": k, "cookie": k, "sport": 4000 + k, "netns": 4026531840 + k} for k in range(1, 31)
    ]
    v = held(*rows)
    shown = lines(v, found(v))
    assert len(shown) == 20
    assert shown[-1] == "… and 12 more groups: `--detail` shows them all"


def test_the_program_at_the_other_end_is_named_where_the_move_is_its() -> None:
    told = session.diagnose(open_recording(str(CAPTURES / "fin-wait2-held.finwait")))
    group = next(f for f in shown_groups(told.view, told.findings) if f.rule == "fin-wait2-held")
    assert lines(told.view, [group], 140)[1].endswith("peer backend: close()")
    alone = replace(told.view, other=np.full(len(told.view), -1, np.int64))
    assert lines(alone, [group], 140)[1].endswith("peer: close()")


NEAR, FAR, ENDING = (
    Releasing(50, 51, "closer", netns, "dup2", ending)
    for netns, ending in ((1, False), (2, False), (0, True))
)


@pytest.mark.parametrize(
    ("count", "threads", "said", "owner", "pid"),
    [
        (1, (NEAR,), "closer (50)", "closer(50:closing)", 50),
        (1, (FAR,), "closer (50)?", "closer(50:closing?)", None),
        (1, (FAR, NEAR), "closer (50)", "closer(50:closing)", 50),
        (2, (NEAR,), "closer (50)?", "closer(50:closing)", 50),  # a thread waits for one at a time
        (2, (ENDING,), "closer (50)?", "closer(50:closing?)", None),  # it may be ending anywhere
        (2, (NEAR, replace(NEAR, tid=52)), "server (50)", "?", 50),
        (1, (NEAR, replace(NEAR, pid=60, tid=60)), "unknown", "?", None),
    ],
)
def test_a_thread_that_closes_a_group_is_named(
    count: int, threads: tuple[Releasing, ...], said: str, owner: str, pid: int | None
) -> None:
    rows = [{**HELD, "state": tcp.LAST_ACK, "inode": 7 + k, "cookie": 1 + k} for k in range(count)]
    v = replace(view(*rows, processes={50: ProcessView(50, "server")}), releasing=threads)
    group = Finding(
        "shut", "Shut.", "problem", True, Confidence("likely", ""), 1, (), np.arange(count), (), (), ()
    )
    assert holder(v, group) == said
    assert program(v, group) == said.replace(" (50)", "")
    assert Cells(v, np.arange(count)).column("owner") == [owner] * count
    assert ViewContext(v).values("pid") == [(pid,)] * count


def waiting_in(pid: int, call: str) -> ProcessWaits:
    return ProcessWaits((ThreadWait(pid, "app", "S", call, "other", (), steady=True),))


@pytest.mark.parametrize("width", [60, 80, 100])
def test_groups_of_one_program_are_told_apart_by_pid_and_by_what_its_threads_do_instead(width: int) -> None:
    pids = range(41_000, 41_030)
    rows = [HELD | {"inode": pid, "cookie": pid, "sport": pid} for pid in pids]
    calls = ["nanosleep", "futex", "epoll_wait"]
    v = view(
        *rows, holders={pid: [pid] for pid in pids},
        processes={pid: ProcessView(pid, "python3") for pid in pids},
        waits={pid: waiting_in(pid, calls[pid % 3]) for pid in pids},
    )  # fmt: skip
    groups = found(v)
    assert len(groups) == 30
    shown = lines(v, groups, width)
    assert all(len(line) <= width for line in shown)
    assert all(f"({group.pids[0]})" in line for group, line in zip(groups, shown[1:19], strict=False)), shown
    assert [line.split()[1][0] for line in shown[1:19]] == ["P"] * 18
    if width >= 80:
        assert all(
            f"(in {calls[group.pids[0] % 3]})" in line
            for group, line in zip(groups, shown[1:19], strict=False)
        )


def test_workers_of_one_name_in_several_groups_have_their_pids() -> None:
    rows = [HELD | {"inode": k, "cookie": k, "sport": k} for k in range(1, 5)]
    v = view(
        *rows, holders={k: [500 + k] for k in range(1, 5)},
        processes={500 + k: ProcessView(500 + k, "app") for k in range(1, 5)},
    )  # fmt: skip
    group = found(v)[0]
    groups = [replace(group, rows=np.array([k, k + 1]), pids=(501 + k, 502 + k)) for k in (0, 2)]
    shown = lines(v, groups, 120)
    assert "app ×2 (501…502)" in shown[1]
    assert "app ×2 (503…504)" in shown[2]


def test_what_a_program_does_instead_is_said_of_what_is_known_alone() -> None:
    rows = [HELD | {"inode": k, "cookie": k, "sport": k} for k in (1, 2)]
    waits = {501: waiting_in(501, "nanosleep"), 502: ProcessWaits((ThreadWait(502, "app", "R"),))}
    v = view(*rows, holders={1: [501], 2: [502]}, waits=waits)
    assert [inside(v, np.array([k])) for k in (0, 1)] == ["in nanosleep", ""]
    assert inside(v, np.array([0, 1])) == ""
