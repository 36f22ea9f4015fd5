"""What a FILTER on the command line may not mean in silence: a command, a variant that no rule has, `autobound`."""

from __future__ import annotations

from pathlib import Path

import pytest

from finwait.cli import _ALSO_COLUMNS, COMMANDS, _with_command, main
from finwait.diagnosis import catalogue
from finwait.table.sockets import SCHEMA
from finwait.table.vocabulary import KEYWORDS, PREDICATES, WORD_OPERATORS

RECORDING = str(Path(__file__).parents[2] / "captures/linux-6.18/relay-pair.finwait")
LOOK = ["--from", RECORDING, "--not-holder", "1"]


def test_the_commands_that_a_filter_may_begin_with_are_known() -> None:
    assert {*COMMANDS} & {*PREDICATES, *SCHEMA.names, *KEYWORDS} == _ALSO_COLUMNS


@pytest.mark.parametrize("op", ["=", "!=", "==", "=host", "!=host", "<", ">=", *WORD_OPERATORS, "EQ"])
@pytest.mark.parametrize("name", sorted(_ALSO_COLUMNS))
def test_a_filter_that_begins_with_the_name_of_a_command_is_a_filter(name: str, op: str) -> None:
    assert _with_command([name, op, "x"]) == ["diagnose", name, op, "x"]


@pytest.mark.parametrize("words", [["netns"], ["netns", "-o", "json"], ["netns", "--netns", "host"]])
def test_without_an_operator_it_is_the_command(words: list[str]) -> None:
    assert _with_command(words) == words


def test_such_a_filter_selects(capsys: pytest.CaptureFixture[str]) -> None:
    main(["netns", "!=", "nosuch", *LOOK])
    assert "relay-pair" in capsys.readouterr().out


def test_a_variant_that_no_rule_has_is_refused_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    most = max(catalogue.variants().values())
    for number in (str(most + 1), "77", "9" * 5000):
        for command in ("diagnose", "list", "check", "clear"):
            status = main([command, *LOOK, *(["--dry-run"] * (command == "clear")), f"variant = {number}"])
            told = capsys.readouterr()
            assert status == (3 if command == "check" else 2)
            assert "no rule has a variant" in told.out + told.err
            if command != "check":
                assert all(f"{one.name} 1" in told.err for one in catalogue.rules() if one.cases)


@pytest.mark.parametrize("text", ["variant = 0", "variant = 01", "variant != 1", "variant = 1"])
def test_a_variant_that_some_rule_has_is_taken(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *LOOK, *text.split()]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["diagnose", "list", "check", "clear"])
def test_autobound_is_refused_with_the_reason(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([command, *LOOK, *(["--dry-run"] * (command == "clear")), "autobound"])
    told = capsys.readouterr()
    assert status == (3 if command == "check" else 2)
    assert "no answer of the kernel tells whether it chose a port" in told.out + told.err
    assert "sport >= :" in told.out + told.err
