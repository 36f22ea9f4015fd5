"""What `check` did not judge is said, and is no OK: unknown states, and rules that need owners; hints keep options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finwait import planning
from finwait.cli import main, options
from finwait.diagnosis import catalogue
from finwait.errors import FinwaitError
from finwait.recording import Replay, open_recording
from finwait.selecting import parse_filter
from finwait.session import Look, Machine
from finwait.uapi.observation import LookPlan
from tests.captures.altered import STATE, altered, rows

CAPTURES = Path(__file__).parents[2] / "captures/linux-6.18"
LIMITS = ["-w", "1000", "-c", "1000"]


def recording(name: str) -> list[str]:
    return ["--from", str(CAPTURES / f"{name}.finwait"), "--not-holder", "1"]


def test_connections_in_a_state_that_nobody_knows_are_unknown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = recording("fin-wait2-held")
    look = open_recording(where[1]).begin().observe(LookPlan())
    strange = altered(look, [{STATE: 14}] * len(rows(look)))

    def machine(_: object) -> Machine:
        return Replay([strange])

    monkeypatch.setattr(options, "machine", machine)
    assert main(["check", *where]) == 3
    said = capsys.readouterr().out
    assert said.startswith("FINWAIT UNKNOWN")
    assert f"{len(rows(look))} unexplained" in said
    assert main(["check", *where, "--severity", "notice"]) == 1
    assert f"{len(rows(look))} unexplained" in capsys.readouterr().out


@pytest.mark.parametrize("rule", catalogue.by_owners())
def test_a_rule_that_needs_owners_is_unknown_where_they_were_not_looked_for(
    rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = recording("time-wait")
    assert main(["check", *where, *LIMITS, "--no-owners", f"rule = {rule}"]) == 3
    assert rule in capsys.readouterr().out
    assert main(["check", *where, *LIMITS, "--no-owners", f"rule != {rule}"]) == 0


@pytest.mark.parametrize("command", ["list", "diagnose", "clear --dry-run"])
@pytest.mark.parametrize("words", ["rule = hidden-leak", "rule = *-leak", "also = hidden-leak"])
def test_rows_of_a_rule_that_was_not_judged_are_no_answer(
    command: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = recording("time-wait")
    assert main([*command.split(), *where, "--no-owners", words]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert " ".join(said.split()) == (
        "finwait: not seen: rule hidden-leak: could not judge, because owners were not looked for (needs a look "
        "without `--no-owners`)"
    )
    for other in ([words], ["--no-owners", "rule = time-wait"], ["--no-owners", "rule != hidden-leak"]):
        assert main([*command.split(), *where, *other]) in (0, 4), other
        assert capsys.readouterr().err == ""


def test_a_column_of_rules_without_owners_says_which_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    where = recording("time-wait")
    assert main(["list", *where, "--no-owners", "--columns", "local,rule"]) == 0
    said = capsys.readouterr().err
    assert all(rule in said for rule in catalogue.by_owners())
    assert main(["list", *where, "--no-owners", "--columns", "local"]) == 0
    assert capsys.readouterr().err == ""


def test_which_rules_did_not_judge_without_owners_is_said_everywhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = recording("time-wait")
    assert main(["check", *where, *LIMITS, "--no-owners"]) == 0
    said = capsys.readouterr().out
    assert all(rule in said for rule in catalogue.by_owners())
    main(["diagnose", *where, "--no-owners"])
    said = " ".join(capsys.readouterr().out.split())
    assert "owners were not looked for" in said
    assert "nothing is wrong" not in said
    main(["diagnose", *where, "--no-owners", "-o", "json"])
    assert json.loads(capsys.readouterr().out)["not_judged"] == list(catalogue.by_owners())
    main(["diagnose", *where, "-o", "json"])
    assert json.loads(capsys.readouterr().out)["not_judged"] == []


def test_the_commands_that_explain_suggests_have_the_options_that_it_was_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = recording("fin-wait2-held")
    main(["list", *where, "-o", "jsonl", "--columns", "cookie", "rule = fin-wait2-held"])
    cookie = json.loads(capsys.readouterr().out.splitlines()[0])["cookie"]
    main(["explain", *where, cookie])
    said = " ".join(capsys.readouterr().out.replace("\\\n", " ").split())
    assert "finwait clear" in said
    for command in said.split("finwait clear ")[1:]:
        assert command.startswith(" ".join(where))


@pytest.mark.parametrize("words", ["pid = 812", "comm = app", "rule = hidden-leak"])
@pytest.mark.parametrize("command", ["explain", "clear --dry-run"])
def test_a_filter_about_holders_that_nobody_looked_for_was_not_judged(
    command: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = recording("fin-wait2-held")
    assert main([*command.split(), *where, "--no-owners", words]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "--no-owners" in said
    assert ("could not judge `" in said) == ("rule" not in words)
    assert "no connection is" not in said
    main([*command.split(), *where, words])  # the nearest: everybody was looked for
    assert "judged" not in capsys.readouterr().err


@pytest.mark.parametrize("words", ["pid = 812", "comm = app"])
def test_an_act_on_what_a_filter_could_not_judge_says_so(words: str) -> None:
    shot = open_recording(recording("fin-wait2-held")[1])
    look = Look(plan=LookPlan(descriptors=False, established_limit=None))
    selected = planning.chosen(shot, look, parse_filter([words]), 1000)
    assert not selected.steps
    assert f"could not judge `{words}`" in selected.unknown
    assert selected.gaps
    assert selected.hint == "without `--no-owners` they are looked for"
    shot = open_recording(recording("fin-wait2-held")[1])
    whole = Look(not_holders=frozenset({1}))
    with pytest.raises(FinwaitError, match="selects no connection"):
        planning.chosen(shot, whole, parse_filter(["pid = 812"]), 1000)


@pytest.mark.parametrize("words", ["comm = app", "comm != app", "pid = 812"])
@pytest.mark.parametrize(
    "command", ["list", "list -o csv", "list -o json", "diagnose", "diagnose -o json", "conntrack"]
)
def test_what_is_shown_by_a_filter_about_holders_that_nobody_looked_for_is_not_all(
    command: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = recording("fin-wait2-held")
    assert main([*command.split(), *where, "--no-owners", words]) == 3
    done = capsys.readouterr()
    assert f"could not judge `{words}`" in " ".join(done.err.split())
    if "json" in command:
        assert any(f"judge `{words}`" in gap["doing"] for gap in json.loads(done.out)["gaps"])
    for near in (
        [words],
        ["--no-owners", "dport > 0"],
    ):  # everybody was looked for; the FILTER asks for nobody
        main([*command.split(), *where, *near])
        assert "judge" not in capsys.readouterr().err


def test_listeners_that_a_filter_about_holders_may_select_are_not_left_out_silently(
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = recording("accept-queue-full")
    assert main(["list", *where, "--no-owners", "state listening", "comm = app"]) == 3
    assert "could not judge" in capsys.readouterr().err


def test_a_recording_that_is_too_short_to_tell_is_no_all_clear(capsys: pytest.CaptureFixture[str]) -> None:
    """A running machine is looked at again, until it is known whether what closes goes on; a recording is not."""
    assert main(["check", *recording("egress-blocked")]) == 3
    assert "too short to tell" in capsys.readouterr().out
