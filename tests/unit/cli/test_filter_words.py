"""What a FILTER on the command line may not mean in silence: a command, a variant that no rule has, `autobound`."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from finwait.cli import _ALSO_COLUMNS, COMMANDS, _with_command, build_parser, main
from finwait.cli.options import Words, connection_filter
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
            assert "no rule has variant" in told.out + told.err
            if command != "check":
                assert all(f"{one.name} 1" in told.err for one in catalogue.rules() if one.cases)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rule = egress-blocked and variant = 2", "rule egress-blocked has no variant 2"),
        ("variant = 2 rule = egress-blocked", "rule egress-blocked has no variant 2"),
        ("dport = 80 or ( rule = egress-blocked variant = 02 )", "rule egress-blocked has no variant 2"),
        ("rule = egress-* and ( variant = 1 or variant = 3 )", "rule egress-blocked has no variant 3"),
        (
            "( rule = egress-blocked or rule = time-wait ) variant = 2",
            "rules egress-blocked, time-wait have no",
        ),
    ],
)
@pytest.mark.parametrize("command", ["diagnose", "list", "check", "clear", "explain", "arm", "probe"])
def test_a_variant_that_this_rule_does_not_have_is_refused_with_its_own(
    command: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert catalogue.variants()["egress-blocked"] == 1
    look = [] if command in ("arm", "probe") else LOOK
    more = {"clear": ["--dry-run"], "arm": ["--keepalive", "60/15/5"]}.get(command, [])
    assert main([command, *look, *more, text]) == (3 if command == "check" else 2)
    told = capsys.readouterr()
    assert said in told.out + told.err
    if command != "check":
        assert "variants: 0 (none); egress-blocked 1" in told.err
        place = told.err.splitlines()
        caret = next(k for k, line in enumerate(place) if line.strip() == "^")
        assert place[caret - 1][place[caret].index("^")] in "23"


@pytest.mark.parametrize(
    "text",
    [
        "rule = egress-blocked variant = 1", "rule = egress-blocked variant = 0", "rule != egress-blocked variant = 2",
        "rule = egress-blocked and not variant = 2", "rule = egress-blocked or variant = 2",
        "( rule = egress-blocked or rule = zero-window ) variant = 2", "also = egress-blocked variant = 2",
    ],
)  # fmt: skip
def test_a_variant_that_one_of_the_rules_has_is_taken(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *LOOK, text]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["variant = 0", "variant = 01", "variant != 1", "variant = 1"])
def test_a_variant_that_some_rule_has_is_taken(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *LOOK, *text.split()]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["diagnose", "list", "check", "clear"])
def test_autobound_is_refused_with_the_reason(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([command, *LOOK, *(["--dry-run"] * (command == "clear")), "autobound"])
    told = capsys.readouterr()
    assert status == (3 if command == "check" else 2)
    assert "the kernel does not report whether it chose a port" in told.out + told.err
    assert "sport >= :" in told.out + told.err


def _status(words: list[str]) -> object:
    try:
        return main(words)
    except SystemExit as end:
        return end.code


BLANK = ("", " ", "\t\n", "\u00a0")
"""What an unset variable of a script leaves behind, and what looks like it."""


def _takers() -> list[tuple[str, argparse.Action]]:
    found: list[tuple[str, argparse.Action]] = []

    def walk(parser: argparse.ArgumentParser, path: str) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    walk(child, f"{path} {name}".strip())
            elif {"FILTER", "CONNECTION"} & {*str(action.metavar).split("|")} and not action.option_strings:
                found.append((path, action))

    walk(build_parser(), "")
    return found


TAKERS = _takers()


def test_every_command_that_takes_a_filter_is_known_here() -> None:
    assert {command for command, _ in TAKERS} == {
        "diagnose", "list", "explain", "check", "trace", "capture", "top", "clear", "probe", "arm", "conntrack",
        "history", "report", "compare",
    }  # fmt: skip
    assert all(isinstance(action, Words) for _, action in TAKERS)


@pytest.mark.parametrize("blank", BLANK)
@pytest.mark.parametrize("command", [command for command, _ in TAKERS])
def test_a_blank_word_of_a_filter_is_wrong_usage_and_never_everything(
    command: str, blank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`clear --yes "$WHICH"` with WHICH unset would end every connection that does not finish closing."""
    needed = {"arm": ["--keepalive", "60/15/5"], "clear": ["--yes"], "conntrack": ["--delete", "--yes"]}
    some = ["netns", "=", "x"]
    for words in (
        [blank],
        [blank, blank],
        [blank, *some],
        [*some, blank],
        ["state", blank, *some],
        ["--", blank],
    ):
        assert _status([command, *needed.get(command, []), *words]) == (3 if command == "check" else 2), words
        told = capsys.readouterr()
        assert "empty: is a variable of your script not set?" in told.out + told.err


def test_a_blank_word_alone_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert _status([""]) == 2
    assert "FILTER: empty: is a variable" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["10.0.0.1:80", "→"],
        ["→", "10.0.0.1:80"],
        ["-", "10.0.0.1:80"],
        ["10.0.0.1:80", "→", "→", "10.0.0.2:9"],
    ],
)
@pytest.mark.parametrize("command", ["explain", "capture"])
def test_an_arrow_without_an_end_on_both_sides_is_refused(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *words]) == 2
    assert "stands between two ends" in capsys.readouterr().err


@pytest.mark.parametrize("arrow", [["->"], ["→"], ["-"], []])
def test_an_arrow_between_two_ends_says_nothing_more(arrow: list[str]) -> None:
    expected = ["src", "=", "10.0.0.1:80", "and", "dst", "=", "10.0.0.2:9"]
    assert connection_filter(["10.0.0.1:80", *arrow, "10.0.0.2:9"]) == expected
