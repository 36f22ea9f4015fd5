"""Over the whole tree of parsers: durations and namespaces are read by one type each."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import pytest

from finwait.arguments import Duration, netns_name
from finwait.cli import build_parser


def leaves(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield path, parser.fill() if hasattr(parser, "fill") else parser
    for action in below:
        for name, choice in action.choices.items():
            yield from leaves(choice, f"{path} {name}".strip())


CONFIGURED = {("agent serve", "interval")}
"""What a configuration file may say as well, with bounds of its own (tests/unit/agent/test_config_file.py)."""
ACTIONS = [
    pytest.param(action, id=f"{path} {action.option_strings[0] if action.option_strings else action.dest}")
    for path, parser in leaves(build_parser())
    for action in parser._actions
    if action.nargs != 0 and (path, action.dest) not in CONFIGURED
]
TIME = re.compile(r"DURATION|TIME|SECONDS?|MINUTES?|HOURS?|\bMS\b|\bPERIOD\b")


def test_there_are_durations_and_namespaces() -> None:
    actions = [param.values[0] for param in ACTIONS]
    assert sum(isinstance(a.type, Duration) for a in actions) > 30  # type: ignore[attr-defined]
    assert sum(a.type is netns_name for a in actions) > 10  # type: ignore[attr-defined]


@pytest.mark.parametrize("action", ACTIONS)
def test_a_duration_goes_through_the_one_type_and_says_so(action: argparse.Action) -> None:
    shown = str(action.metavar or action.dest.upper())
    if TIME.search(shown):
        assert shown == "DURATION"
    assert isinstance(action.type, Duration) == (shown == "DURATION")
    if isinstance(action.type, Duration):
        assert action.type("7d") == action.type("168h") > action.type("500ms")
        for wrong in ("", "x", "-1s", "5 parsecs", "1s1s", "nan", "9" * 30):
            with pytest.raises(argparse.ArgumentTypeError):
                action.type(wrong)


@pytest.mark.parametrize("action", ACTIONS)
def test_a_namespace_goes_through_the_one_type_and_says_so(action: argparse.Action) -> None:
    netns = "netns" in action.dest or any("netns" in name for name in action.option_strings)
    assert (action.type is netns_name) == (action.metavar == "NETNS") == netns


def test_a_wrong_namespace_is_refused_in_the_same_words_by_every_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = set()
    commands = [path for path, parser in leaves(build_parser()) for a in parser._actions if a.dest == "netns"]
    assert len(commands) > 10
    for path in commands:
        with pytest.raises(SystemExit) as end:
            build_parser().parse_args([*path.split(), "--netns", "pid:x"])
        assert end.value.code == 2
        line = next(line for line in capsys.readouterr().err.splitlines() if "--netns: " in line)
        said.add(line.partition("--netns: ")[2])
    assert said == {
        "`pid:x` names no network namespace: write a name of `ip netns`, `host`, an inode, a pid or a path"
    }


# ── what is wrong on the command line is status 2, of every parser that there is ─────────────────────────

PARSER = build_parser()


def parsers(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    yield path, parser.fill() if hasattr(parser, "fill") else parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, choice in action.choices.items():
                yield from parsers(choice, (*path, name))


TREE = [pytest.param(path, parser, id=" ".join(path) or "finwait") for path, parser in parsers(PARSER)]


def status(words: list[str]) -> object:
    try:
        PARSER.parse_args(words)
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize(("path", "parser"), TREE)
def test_what_no_command_takes_is_status_2(path: tuple[str, ...], parser: argparse.ArgumentParser) -> None:
    wrong: list[list[str]] = [[*path, "--no-such-option"]]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            wrong.append([*path, "no-such-command"])
            if action.required:
                wrong.append(list(path))
        elif action.option_strings and action.nargs is None:
            wrong.append([*path, action.option_strings[-1]])  # its value is missing
            wrong.append([*path, f"{action.option_strings[-1]}="])
            if action.choices is not None:
                wrong.append([*path, f"{action.option_strings[-1]}=no-such-choice"])
        elif action.option_strings and action.nargs == 0 and action.option_strings[-1].startswith("--"):
            wrong.append([*path, f"{action.option_strings[-1]}=value"])  # a switch takes none
        elif not action.option_strings and action.nargs in (None, "+"):
            wrong.append(list(path))  # an argument is missing
    assert [words for words in wrong if status(words) != 2] == []
