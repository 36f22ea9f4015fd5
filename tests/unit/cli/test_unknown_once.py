"""What keeps an act from some connections is said once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from finwait import planning
from finwait.cli import build_parser, options
from finwait.errors import Gap

WHY = Gap("1 connection", "judge `pid = 1` without knowing every holder", "CAP_SYS_PTRACE")
OTHER = Gap("pid 812", "list its descriptors", "CAP_SYS_PTRACE")


@pytest.mark.parametrize("gaps", [(WHY,), (OTHER,)])
def test_an_unknown_that_is_a_gap_too_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gaps: tuple[Gap, ...]
) -> None:
    found: Any = SimpleNamespace(
        left={}, gaps=gaps, unknown=str(WHY), hint="", of_unknown=WHY if WHY in gaps else None, steps=[]
    )
    monkeypatch.setattr(planning, "chosen", lambda *_: found)
    options.chosen(build_parser().parse_args(["probe", "pid = 1"]), "probe")
    said = " ".join(capsys.readouterr().err.split())
    assert said.count(str(WHY)) == 1
    assert (str(OTHER) in said) == (OTHER in gaps)
