"""A diagnosis that is not what a scenario expects is told with the program, the descriptor and the rule."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from finwait.cli import main
from finwait.lab import scenario as scenarios_module
from finwait.lab.differences import differences, summary
from finwait.lab.scenario import Situation, scenarios
from finwait.lab.topology import Lab, unmet
from tests.captures import make
from tests.kernel.needs import missing
from tests.kernel.test_rules import looked

pytestmark = pytest.mark.kernel
NAME = "fin-wait2-held"


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(scenarios()[NAME].needs):
        missing("; ".join(lacking))


def other_rule(situation: Situation) -> None:
    first, *rest = situation.expected
    situation.expected = (replace(first, rule="relay-pair"), *rest)


def healthy(situation: Situation) -> None:
    first, *rest = situation.expected
    situation.expected, situation.healthy = tuple(rest), (*situation.healthy, replace(first, rule=""))


def unnamed(situation: Situation) -> None:
    situation.expected = situation.expected[1:]


@pytest.mark.parametrize(
    ("alter", "says", "lacks"),
    [
        (other_rule, r"\w+ fd \d+ \(FIN_WAIT2 .* → .*\): expected relay-pair, found fin-wait2-held", True),
        (healthy, r"\w+ fd \d+ \(FIN_WAIT2 .* → .*\): expected no rule, found fin-wait2-held", False),
        (unnamed, r"FIN_WAIT2 .* → .*, which the scenario does not name: expected no rule, found ", False),
    ],
)
def test_each_row_that_differs_is_named(alter: Callable[[Situation], None], says: str, lacks: bool) -> None:
    with Lab() as lab:
        situation = scenarios()[NAME].build(lab).settle()
        seen = looked(situation, scenarios()[NAME])
        assert not differences(situation, seen)
        alter(situation)
        (one,) = differences(situation, seen)
        assert re.match(says, str(one)), one
        assert one.missing is lacks
        assert summary([one] * 5).endswith("; and 2 more")


def test_lab_run_says_in_one_line_what_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = scenarios()[NAME]

    def build(lab: Lab) -> Situation:
        situation = real.build(lab)
        unnamed(situation)
        return situation

    monkeypatch.setitem(scenarios_module._FOUND, NAME, replace(real, build=build))
    main(["lab", "run", NAME])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "differs" in line)
    assert line.startswith("finwait: the diagnosis differs from what the scenario expects: FIN_WAIT2 ")
    assert "which the scenario does not name" in line


def test_a_recording_takes_the_place_of_an_older_one_only_when_it_is_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make.make(NAME, tmp_path)
    made = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(made) == {f"{NAME}.finwait", f"{NAME}.json", f"{NAME}.txt"}
    assert make.summary(make.replay(path)) == json.loads(made[f"{NAME}.json"])
    real = scenarios()[NAME]

    def build(lab: Lab) -> Situation:
        situation = real.build(lab)
        other_rule(situation)
        return situation

    monkeypatch.setitem(scenarios_module._FOUND, NAME, replace(real, build=build))
    monkeypatch.setattr(make, "PATIENCE_S", 0)
    with pytest.raises(SystemExit) as caught:
        make.make(NAME, tmp_path)
    said = str(caught.value)
    assert f"{NAME}: relay-pair has 0 rows instead of 1 (-1)" in said
    assert re.search(
        r"^\w+ fd \d+ \(FIN_WAIT2 .*: expected relay-pair, found fin-wait2-held$", said, re.MULTILINE
    )
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == made
