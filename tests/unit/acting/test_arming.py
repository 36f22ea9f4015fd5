"""Connections are armed one by one, and an interruption leaves the others as they are."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from finwait.acting import probe
from finwait.errors import FinwaitError, TargetGone
from finwait.kernel.interruption import noted
from finwait.remedy.outcome import Probe
from finwait.remedy.plan import Step
from finwait.remedy.steps import step_of
from tests.unit.diagnosis.test_rules import HELD
from tests.unit.diagnosis.views import view

V = view(*(HELD | {"inode": 7 + k, "cookie": 1 + k, "sport": 4000 + k} for k in range(3)))
STEPS = {k: step_of(V, k, "", "keepalive") for k in range(3)}
KEEPALIVE = (2, 1, 3)


class Rig:
    """Takes the place of the kernel: which connections were armed, and which were watched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.armed: list[int] = []
        self.options: list[dict[str, int]] = []
        self.watched: dict[int, float] = {}
        self.said: list[str] = []
        self.errors: dict[int, FinwaitError] = {}
        self.interrupts_after = -1
        monkeypatch.setattr(probe, "borrow", self.borrow)
        monkeypatch.setattr(
            "finwait.kernel.pidfd.set_options", lambda _, options: self.options.append(options)
        )
        monkeypatch.setattr(probe, "not_gone", lambda *_: {})
        monkeypatch.setattr(probe, "watch", self.watch)

    @contextmanager
    def borrow(self, step: Step) -> Iterator[None]:
        if step.sport in self.errors:
            raise self.errors[step.sport]
        self.armed.append(step.sport)
        yield
        if step.sport == self.interrupts_after:
            os.kill(os.getpid(), signal.SIGINT)

    def watch(self, steps: dict[int, Step], first: dict[int, float], *_: Any) -> None:
        self.said.append("watched")
        assert steps.keys() == first.keys()
        self.watched |= first

    def run(self) -> dict[int, Probe]:
        probes: dict[int, Probe] = {}
        probe.put_to_them(STEPS, probes, KEEPALIVE, self.said.append, self.said.append)
        return probes


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def test_all_are_armed_before_any_is_watched(rig: Rig) -> None:
    assert rig.run() == {}
    assert rig.armed == [4000, 4001, 4002]
    asked = {"keepidle": 2, "keepintvl": 1, "keepcnt": 3, "user_timeout_ms": 0, "keepalive": 1}
    assert rig.options == [asked] * 3
    assert rig.said == ["armed", "probing 3 connections for up to 6 s", "watched"]
    assert list(rig.watched) == [0, 1, 2]


def test_after_an_interruption_no_other_connection_is_armed(rig: Rig) -> None:
    rig.interrupts_after = 4000
    with pytest.raises(KeyboardInterrupt), noted():
        rig.run()
    assert rig.armed == [4000]
    assert rig.said == []


def test_what_cannot_be_armed_is_not_watched_and_the_others_are(rig: Rig) -> None:
    rig.errors = {4000: TargetGone(1), 4001: FinwaitError("its program runs as somebody else")}
    found = rig.run()
    assert {k: one.verdict for k, one in found.items()} == {0: "gone", 1: "not judged"}
    assert "somebody else" in found[1].detail
    assert list(rig.watched) == [2]
    assert "probing 1 connection for up to 6 s" in rig.said
