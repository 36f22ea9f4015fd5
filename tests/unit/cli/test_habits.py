"""What people type out of habit: taken where it means the same here, else answered with what to type."""

from __future__ import annotations

import argparse
import re

import pytest

from finwait.cli import COMMANDS, build_parser, habits, main
from finwait.cli.habits import translated
from finwait.errors import UsageError

RECORDING = "tests/captures/linux-6.18/fin-wait2-held.finwait"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("list -tanp", "list"),
        ("list -tanoe", "list -o wide"),
        ("list -t -a -n -p", "list"),
        ("list -tanpie state established", "list -o wide state established"),
        ("list -Htan", "list --no-headers"),
        ("diagnose -tanp", "diagnose"),
        ("explain -i 10.0.0.1:80", "explain 10.0.0.1:80"),
        ("list -A", "list"),
        ("list -A tcp state close-wait", "list state close-wait"),
        ("list --all-namespaces", "list"),
        ("list -n state close-wait", "list -n state close-wait".replace(" -n", "")),
        ("list -n established", "list established"),
        ("list -n sport = :80", "list sport = :80"),
        # ours stay as they are
        ("list -o json", "list -o json"),
        ("list -ojson", "list -ojson"),
        ("list --sort=-rqueue", "list --sort=-rqueue"),
        ("list -w 2", "list -w 2"),
        ("list -h", "list -h"),
        ("list -zq", "list -zq"),
        ("list -- -tanp", "list -- -tanp"),
        ("check -w 5", "check -w 5"),
        ("clear -tanp", "clear -tanp"),
        ("trace -q", "trace -q"),
        ("trace netns = blue", "trace netns = blue"),
        ("trace -- --netns", "trace -- --netns"),
    ],
)  # fmt: skip
def test_options_of_ss_and_kubectl_are_taken_where_they_mean_the_same(typed: str, meant: str) -> None:
    assert translated(typed.split()) == meant.split()


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("list -o yaml", "-o json"),
        ("list -tulpn", "ss -u"),
        ("list -xa", "ss -x"),
        ("list -tlnp", "finwait list state listening"),
        ("list -6", "finwait list family = inet6"),
        ("list -K", "finwait clear"),
        ("list -n default", "--netns NAME"),
        ("diagnose -n kube-system pid = 1", "--netns NAME"),
        ("trace --leaks --netns blue", "finwait trace netns = blue"),
        ("trace --netns=4026531840 -q", "finwait trace netns = 4026531840"),
        ("top --netns", "finwait top netns = NS"),
        ("capture --netns blue state close-wait", "finwait capture netns = blue"),
    ],
)
def test_what_means_something_else_is_answered_with_what_to_type(typed: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        translated(typed.split())
    assert told in caught.value.hint


def test_no_option_of_ours_is_taken_for_one_of_another_tool() -> None:
    (sub,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in sub.choices.items():
        for action in parser._actions:
            for option in action.option_strings:
                assert translated([name, option, "x"]) in ([name, option, "x"], ["list", "-A"]), (
                    name,
                    option,
                )


@pytest.mark.parametrize("word", sorted(habits._COMMANDS))
def test_a_command_of_another_tool_is_answered_and_does_nothing(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert word not in COMMANDS
    for more in ((), ("-9", "123"), ("pods", "-A")):
        assert main([word, *more]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert f"there is no command `{word}`" in err
        assert "hint: `finwait" in err
        for named in re.findall(r"`finwait ([a-z]+)", err):
            assert named in COMMANDS


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("lits", "list"),
        ("explian", "explain"),
        ("diagnos", "diagnose"),
        ("chek", "check"),
        ("recrod", "record"),
    ],
)
def test_a_misspelt_command_is_named(word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word, "--from", RECORDING]) == 2
    assert f"did you mean `finwait {near}`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["listening"], ["close-wait"], ["not", "established"], ["netns", "=", "1"]]
)
def test_a_filter_is_no_misspelt_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([*words, "--from", RECORDING])
    assert "there is no command" not in capsys.readouterr().err


def test_a_wrong_filter_is_told_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sprot", "=", ":80", "--from", RECORDING]) == 2
    assert "there is no command" not in capsys.readouterr().err


def test_watching_a_recording_or_without_a_pause_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--watch", "2", "--from", RECORDING]) == 2
    assert "running machine" in capsys.readouterr().err
    assert main(["--watch", "10ms"]) == 2
    assert "at least 100ms" in capsys.readouterr().err
