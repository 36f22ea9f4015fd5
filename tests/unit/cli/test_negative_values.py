"""An option with a negative value is told what is wrong with the value, not that it has none."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from finwait.cli import agent, build_parser, options
from finwait.relay import command


def takers(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.Action]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from takers(sub, (*words, name))
        elif action.option_strings and action.nargs is None and not action.choices:
            yield words, action


TAKERS = list(takers(build_parser()))


@pytest.mark.parametrize("value", ["-1s", "-1", "-.5", "-10m", "-3/s"])
def test_no_option_takes_a_negative_value_for_another_option(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, action in TAKERS:
        with pytest.raises(SystemExit):
            build_parser().parse_args([*words, action.option_strings[-1], value, "--no-such-option"])
        said = capsys.readouterr().err
        assert "expected one argument" not in said, (words, action.option_strings)
        if action.metavar == "DURATION":
            assert f"`{value}` is not a duration" in said, (words, said)


def test_every_duration_is_read_by_one_of_the_argparse_types_for_it() -> None:
    readers: set[object] = {options.duration_ms, options.while_ms, options.pause_ms, options.user_timeout_ms}
    readers |= {options.set_user_timeout_ms, options.interval_ms, command.duration, agent._interval}
    durations = [(words, action) for words, action in TAKERS if action.metavar == "DURATION"]
    assert durations
    assert [words for words, action in durations if action.type not in readers] == []
