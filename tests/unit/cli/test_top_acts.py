"""What acts for `finwait top`: one thing at a time, exactly the plan that was shown, and no result is lost."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from finwait import planning, session
from finwait.acting import apply
from finwait.cli import top
from finwait.errors import FinwaitError
from finwait.kernel import interruption
from finwait.report import plan as shown

pytest.importorskip("textual")


class Gate:
    """An act that goes on until it is let go, and remembers the plans that were carried out."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self.plans: list[Any] = []
        self.error = error

    def __call__(self, plan: Any, *_: Any, **__: Any) -> None:
        self.plans.append(plan)
        self.begun.set()
        self.let_go.wait(60)
        if self.error is not None:
            raise self.error


class OneStep:
    """A plan, as far as it matters here."""

    steps = (1,)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Gate:
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path))
    found = Gate()
    monkeypatch.setattr(apply, "apply", found)
    return found


@pytest.fixture
def clearing(monkeypatch: pytest.MonkeyPatch) -> top.Clear:
    """Plans of one step each, all different."""
    monkeypatch.setattr(session, "live_machine", lambda: None)
    monkeypatch.setattr(planning, "make_plan", lambda *_: planning.Planned(OneStep(), ()))  # type: ignore[arg-type]
    monkeypatch.setattr("finwait.remedy.plan.permit", lambda _: None)
    monkeypatch.setattr(shown, "plan_lines", lambda _: ["a plan\n"])
    monkeypatch.setattr(top, "_gone", lambda _: 0)
    return top.Clear()


def act_of(clearing: top.Clear) -> Callable[[], str]:
    act = clearing.plan([(1, 2)])[1]
    assert act is not None
    return act


def test_a_second_act_is_refused_and_the_first_goes_on(gate: Gate, clearing: top.Clear) -> None:
    first, second = act_of(clearing), act_of(clearing)
    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert gate.begun.wait(30)
        with pytest.raises(FinwaitError, match="still being carried out"):
            second()
        with pytest.raises(FinwaitError, match="still being carried out"):
            clearing.plan([(1, 2)])
        waiting = threading.Thread(target=clearing.wait)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
    finally:
        gate.let_go.set()
        thread.join(30)
    waiting.join(30)
    assert not waiting.is_alive()
    assert second() == ""


def test_what_is_carried_out_is_the_plan_that_was_shown(gate: Gate, clearing: top.Clear) -> None:
    """A plan that was asked for later, or took longer, does not take its place."""
    gate.let_go.set()
    first, second = act_of(clearing), act_of(clearing)
    first()
    second()
    assert gate.plans[0] is not gate.plans[1]
    assert gate.plans == [first.args[0], second.args[0]]  # type: ignore[attr-defined]


def test_a_result_that_no_screen_has_shown_is_written_once(
    gate: Gate, clearing: top.Clear, capfd: pytest.CaptureFixture[str]
) -> None:
    gate.let_go.set()
    gate.error = FinwaitError("the disk is full")
    act_of(clearing)()
    clearing.told()
    clearing.tell()
    assert capfd.readouterr().err == ""
    act_of(clearing)()
    clearing.tell(30)
    clearing.tell()
    assert capfd.readouterr().err == "finwait: the disk is full\n"


def test_a_crash_of_an_act_is_told_and_it_is_idle(
    gate: Gate, clearing: top.Clear, capfd: pytest.CaptureFixture[str]
) -> None:
    gate.let_go.set()
    gate.error = ValueError("no number")
    with pytest.raises(ValueError, match="no number"):
        act_of(clearing)()
    clearing.wait()
    clearing.tell()
    assert "failed: ValueError('no number')" in capfd.readouterr().err


def test_two_threads_never_act_at_once() -> None:
    with (
        interruption.stopped_by(interruption.Stop()),
        pytest.raises(FinwaitError, match="already acting"),
        interruption.stopped_by(interruption.Stop()),
    ):
        pass
    assert not interruption.interrupted()


class View:
    """A view that ends as it is told to."""

    failed = None
    begun = is_running = True
    return_code = 0

    def __init__(self, *_: Any, clearing: top.Clear, **__: Any) -> None:
        self.clearing = clearing

    def run(self) -> None:
        pass

    def end(self) -> None:
        pass


def run(monkeypatch: pytest.MonkeyPatch, view: type[View]) -> int:
    monkeypatch.setattr(top, "_terminal", lambda: sys.__stderr__)
    monkeypatch.setattr(top, "_view", lambda: view)
    monkeypatch.setattr(top, "_feed", lambda *_: None)
    return top.run(
        argparse.Namespace(
            agent=False, agent_socket=None, min_age=None, filter=[], recording=None, refresh=1000
        )
    )


def test_a_view_that_crashed_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Crashed(View):
        return_code = 1

    assert run(monkeypatch, View) == 0
    assert run(monkeypatch, Crashed) == 1
    assert "report it" in capsys.readouterr().err


def test_signals_behind_the_view_do_not_cut_short_what_acts(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, clearing: top.Clear, capfd: pytest.CaptureFixture[str]
) -> None:
    """The view is over, the act is not: its result is waited for and written, whatever comes."""
    gate.error = KeyboardInterrupt()
    act = act_of(clearing)

    class Over(View):
        is_running = False

        def run(self) -> None:
            threading.Thread(target=act).start()
            assert gate.begun.wait(30)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            threading.Timer(0.2, gate.let_go.set).start()

    monkeypatch.setattr(top, "Clear", lambda _: clearing)
    assert run(monkeypatch, Over) == 128 + signal.SIGTERM
    assert "interrupted; nothing was done" in capfd.readouterr().err


LEAVES = """
import contextlib, threading, time
from finwait.cli import top
clearing = top.Clear()
clearing._untold = "1 ended\\n"
top._leave(contextlib.ExitStack(), 15, clearing)
"""


def test_the_result_is_written_also_where_the_view_does_not_end() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "finwait: 1 ended\n")
