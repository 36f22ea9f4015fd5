"""The process that diagnoses: what it may do to the looker when it fails, and what crosses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finwait.agent import edge
from finwait.agent.diagnosing import DiagnosisProcess
from finwait.agent.episode_values import Cause, Diagnosed, Instant
from finwait.agent.leak import Used
from finwait.agent.verdict import (
    DiagnosedLook,
    DiagnosisRequest,
    Explained,
    decode_answer,
    decode_request,
    encode_answer,
    encode_failure,
    encode_request,
)
from finwait.errors import DecodeError, FinwaitError, Gap
from finwait.report.agent_page import SaidCause, SettingItem

LOOK = DiagnosedLook(
    said=Diagnosed(
        cookie=np.array([2**64 - 1, 7], np.uint64),
        state=np.array([5, 8], np.uint8),
        cause=np.array([0, 1], np.int64),
        causes=[Cause("fin-wait2-held", "problem", "certain", "holder", "w", "p(7)", 7, 5, ((8, 6),)), Cause()],
        other=np.array([7, 0], np.uint64),
        other_netns=np.array([4026531840, 0], np.uint32),
        other_holder=np.array([1, 0], np.int64),
        holders=["", "q(9)"],
        translated={7: ("10.0.0.1:1", "10.0.0.2:2")},
    ),
    limits=[Used("ports", "host to 10.0.0.1:80", 70, 100, workload="w")],
    gaps=(Gap.of_namespace(5, "enter it", "CAP_SYS_ADMIN", unentered=True),),
    at=Instant(1, 2),
    everything=False,
    selected={"rule": frozenset({(1, 2**64 - 1), (2, 7)}), "none": frozenset()},
    held={7: 2},
    texts=Explained(
        {
            ("fin-wait2-held", "w"): SaidCause(
                title="t", harm="leak", whose="holder", act="", confidence="certain", reason="r", evidence=[],
                ends_it=[], does_not=[], ends="", ends_why="", about=2, at="now",
            )
        },
        [
            SettingItem(
                key="k", title="t", value="60", default=60, unit="s", verdict="default", why="", instead="",
                on_stuck="", where=["host"], namespaces=1,
            )
        ],
        3,
        "now",
    ),
    doors={9: "w"},
)  # fmt: skip


def same(a: DiagnosedLook, b: DiagnosedLook) -> bool:
    columns = ("cookie", "state", "cause", "other", "other_netns", "other_holder")
    said = all(np.array_equal(getattr(a.said, name), getattr(b.said, name)) for name in columns)
    rest = ("limits", "gaps", "at", "everything", "selected", "held", "texts", "doors")
    said = said and a.said.translated == b.said.translated and list(a.said.causes) == list(b.said.causes)
    return said and all(getattr(a, name) == getattr(b, name) for name in rest)


def test_what_is_said_arrives_as_it_is() -> None:
    answer = decode_answer(encode_answer(LOOK, ([(5, 7, 3)], [(6, 7, 4)])))
    assert answer.ways == ([(5, 7, 3)], [(6, 7, 4)])
    assert answer.look is not None
    assert same(answer.look, LOOK)
    request = DiagnosisRequest(filters={"rule": (["state = CLOSE_WAIT"], [])}, ways=([(5, 7, 3)], []))
    assert decode_request(encode_request(request)) == request


def test_a_name_that_is_no_text_is_shown_as_far_as_it_can_be() -> None:
    from msgspec.structs import replace

    hostile = replace(LOOK, doors={9: "evil\udcff"})
    answer = decode_answer(encode_answer(hostile, ([], [])))
    assert answer.look is not None
    assert answer.look.doors[9].startswith("evil")
    assert same(replace(answer.look, doors={}), replace(LOOK, doors={}))
    assert decode_answer(encode_failure("no\udcff")).look is None


def broken() -> list[bytes]:
    from msgspec.structs import replace

    said = LOOK.said
    return [
        b"",
        b"\xff" * 50,
        encode_answer(LOOK, ([], []))[:-1],
        encode_answer(replace(LOOK, said=replace(said, cause=np.array([0, 2], np.int64))), ([], [])),
        encode_answer(replace(LOOK, said=replace(said, other_holder=np.array([0, -1], np.int64))), ([], [])),
        encode_answer(replace(LOOK, said=replace(said, state=np.array([5], np.uint8))), ([], [])),
    ]


@pytest.mark.parametrize("data", broken())
def test_what_does_not_belong_together_is_no_answer(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_answer(data)


def test_that_there_is_none_and_why_arrives_as_well() -> None:
    answer = decode_answer(encode_failure("could not look"))
    assert (answer.look, answer.error) == (None, "could not look")


# ── the process ──────────────────────────────────────────────────────────────────────────────────────────

Start = Callable[..., DiagnosisProcess]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Give what starts a program in place of the one that diagnoses."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(text: str, **more: Any) -> DiagnosisProcess:
        (tmp_path / "in_place.py").write_text(text)
        return DiagnosisProcess(DiagnosisRequest(), program="in_place", **more)

    return run


def outcome(process: DiagnosisProcess) -> DiagnosedLook:
    while (look := process.result()) is None:
        time.sleep(0.01)
    return look


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise SystemExit(3)", "status 3"),
        ("pass", "status 0"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os, sys; os.write(int(sys.argv[2]), b'what')", "answer of a diagnosis"),
        ("import os, sys; os.ftruncate(int(sys.argv[2]), 1 << 30)", "says too much"),
        ("import", "status 1"),
    ],
)
def test_one_that_fails_is_an_error_and_leaves_nothing(start: Start, text: str, why: str) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    process = start(text)
    with pytest.raises((FinwaitError, DecodeError), match=why):
        outcome(process)
    process.end()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_one_that_hangs_is_ended(start: Start) -> None:
    process = start("import time\nwhile True: time.sleep(60)", deadline_s=0.5)
    running = process._process
    assert running is not None
    with pytest.raises(FinwaitError, match="did not come to an end"):
        outcome(process)
    assert running.returncode == -9


def test_one_that_nobody_waits_for_any_more_is_ended(start: Start) -> None:
    process = start("import time\nwhile True: time.sleep(60)")
    running = process._process
    assert running is not None
    assert process.result() is None
    process.end()
    process.end()
    assert running.returncode == -9


def test_what_it_costs_is_the_lookers_and_what_others_cost_is_not(start: Start) -> None:
    import subprocess
    import sys

    busy = "import time\nwhile time.process_time() < 0.5: pass"
    running = edge.Running()
    before = running.cpu() - time.process_time()
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert running.cpu() - time.process_time() < before + 0.4
    process = start(busy, spent=running._spend)
    with pytest.raises(FinwaitError):
        outcome(process)
    assert running.cpu() - time.process_time() >= before + 0.4
