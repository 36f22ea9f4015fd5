"""What a policy would have done over a history: rows, totals, which budget stopped it, and what cannot be told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from finwait.agent import policy_trial
from finwait.agent.episodes import Cause, Episode, Instant
from finwait.agent.policy_file import parse_policy
from finwait.agent.policy_trial import TRIAL_GAPS, PolicyTrial, selected, trial, trial_json, trial_lines
from finwait.agent.store import Store
from finwait.cli import main
from finwait.kernel import procfs
from finwait.uapi import tcp
from tests.output import mistakes

S = 1_000_000_000
T0 = 1_764_400_000 * S
RULE = '[[rule]]\nname = "leak"\nfindings = ["fin-wait2-held"]\nmin_age = "10m"\n'
CAUSE = Cause("fin-wait2-held", "problem", "certain", "holder", "relay.service", "relay(7)", 7, 5)


def episode(cookie: int, first_s: float = 0.0, ended_s: float | None = None, **more: Any) -> Episode:
    first = Instant(int((1000 + first_s) * S), T0 + int(first_s * S))
    ended = None if ended_s is None else Instant(int((1000 + ended_s) * S), T0 + int(ended_s * S))
    made = Episode(
        boot="b", cookie=cookie, state=tcp.FIN_WAIT2, netns=1, local=f"10.0.0.1:{5000 + cookie}", peer="10.0.0.2:80",
        first=first, last=ended or first, latest_ns=first.boot_ns, earliest_ns=-1, held=True, cause=CAUSE, ended=ended,
        how=None if ended is None else "closed", words=(0, 0xFFFF0A000001, 0, 0xFFFF0A000002, 5000 + cookie, 80, 0),
    )  # fmt: skip
    return replace(made, **more)


def tried(text: str, *episodes: Episode, hours: float = 2) -> PolicyTrial:
    policy = parse_policy(text.encode(), "p.toml")
    return trial(policy, selected(policy, [episodes]), since_ns=T0, until_ns=T0 + int(hours * 3600 * S))


def test_it_acts_when_something_is_old_enough_and_within_its_budgets() -> None:
    result = tried(RULE + "[rule.budget]\nlook = 2\nday = 3\n", *(episode(n) for n in range(1, 9)))
    whens = [(act.wall_ns - T0) / S for act in result.acts]
    assert len(whens) == 3
    assert whens[0] == whens[1] == 600
    assert whens[2] >= whens[1] + 600, "the cool-down passed"
    assert result.spared["leak"] == {"day": 5}
    assert result.stopped["leak"]["day"] > 10
    assert result.looks == 61


def test_what_ends_before_it_is_old_enough_is_not_acted_on() -> None:
    result = tried(RULE, episode(1, ended_s=500), episode(2, first_s=3600))
    assert [act.episode.cookie for act in result.acts] == [2]
    assert result.acts[0].wall_ns == T0 + 4200 * S
    assert result.acts[0].age_s >= 600


def test_the_age_that_was_known_at_the_first_sight_counts() -> None:
    early = episode(1, latest_ns=(1000 - 3600) * S)
    (act,) = tried(RULE, early).acts
    assert (act.wall_ns, act.age_s) == (T0, 3600)


@pytest.mark.parametrize(
    ("more", "by"),
    [
        ({"cause": replace(CAUSE, confidence="likely")}, {"not-certain": 1}),
        ({"cause": replace(CAUSE, holder="?", pid=0)}, {"holder-unknown": 1}),
        ({"cause": replace(CAUSE, rule="zero-window")}, {}),
    ],
)
def test_what_a_policy_leaves_alone_is_counted(more: dict[str, Any], by: dict[str, int]) -> None:
    result = tried(RULE, episode(1, **more))
    assert (result.acts, result.spared["leak"]) == ((), by)


def test_filters_are_judged_by_what_the_history_keeps() -> None:
    both = episode(1), episode(2, cause=replace(CAUSE, holder="web(8)", pid=8))
    assert [a.episode.cookie for a in tried(RULE + 'where = "comm = relay"\n', *both).acts] == [1]
    assert [a.episode.cookie for a in tried(RULE + 'except = "comm = relay"\n', *both).acts] == [2]
    result = tried(RULE + 'where = "rqueue > 0"\n', *both)
    assert result.acts == ()
    assert [gap.where for gap in result.gaps] == ["rule leak", *(gap.where for gap in TRIAL_GAPS)]


def test_a_rule_that_the_history_cannot_judge_is_not_said_to_have_done_nothing() -> None:
    made = tried(RULE + 'where = "rqueue >= 0"\n', episode(1), episode(2))
    assert (made.untried, made.acts) == (("leak",), ())
    text = "".join(trial_lines(made))
    assert "whether it would have acted is unknown: rule leak could not be judged" in text
    assert "acted on 0" not in text
    assert trial_json(made)["rules"][0]["unjudged"] is None


def test_two_boots_with_one_cookie_are_two_connections() -> None:
    result = tried(RULE, episode(1, ended_s=1000), episode(1, first_s=3600, boot="c"))
    assert len(result.acts) == 2


def test_the_text_says_the_totals_and_what_stopped_it() -> None:
    text = "".join(trial_lines(tried(RULE + "[rule.budget]\nday = 1\n", episode(1), episode(2))))
    assert "policy `default` would have acted on 1 connection in 61 looks" in text
    assert "rule leak: 1 acted on; left alone at the end, budget of a day: 1" in text
    assert "relay.service" in text
    assert "".join(trial_lines(tried(RULE))).startswith("policy `default` would have acted on 0 connections")


OTHERS = replace(CAUSE, workload="bulk.service", holder="bulk(8)", pid=8)


def test_older_connections_that_a_rule_does_not_select_take_nobodys_place() -> None:
    many = [episode(n, cause=OTHERS, latest_ns=0) for n in range(100, 2600)]
    few = [episode(n) for n in range(1, 21)]
    result = tried(RULE + 'where = "comm = relay"\n[rule.budget]\nlook = 50\nten_minutes = 50\n', *many, *few)
    assert len(result.acts) == 20
    assert result.unjudged == {}
    assert [gap.where for gap in result.gaps] == [gap.where for gap in TRIAL_GAPS]


def test_older_connections_of_one_cause_do_not_hide_those_of_another() -> None:
    many = [episode(n, cause=OTHERS, latest_ns=0) for n in range(100, 2600)]
    few = [episode(n) for n in range(1, 21)]
    budget = "[rule.budget]\nlook = 50\nten_minutes = 50\nday = 500\nprocess = 30\n"
    result = tried(RULE + 'cool_down = "1m"\n' + budget, *many, *few)
    assert sum(act.episode.cause == CAUSE for act in result.acts) == 20
    assert result.unjudged["leak"] > 400


def test_what_is_too_much_to_be_judged_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_trial, "_STANDING_MOST", 5)
    result = tried(RULE + "[budget]\nlook = 0\n", *(episode(n) for n in range(1, 9)))
    text = "".join(trial_lines(result))
    assert text.startswith(
        "policy `default`: whether it would have acted is unknown: 3 connections were not judged"
    )
    assert trial_json(result)["rules"][0]["unjudged"] == 3
    assert result.gaps[0].doing.startswith("judge in each look all that it selects: 3 connections")
    acted = "".join(trial_lines(tried(RULE + "[budget]\nday = 2\n", *(episode(n) for n in range(1, 9)))))
    assert (
        "acted on 2 connections in 61 looks, among those that were judged; 3 connections were not judged in some looks"
        in acted
    )


def test_what_plainly_speaks_against_an_act_is_counted_and_not_unjudged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy_trial, "_STANDING_MOST", 2)
    likely = replace(CAUSE, confidence="likely")
    result = tried(RULE, *(episode(n, cause=likely) for n in range(1, 9)))
    assert (result.unjudged, result.spared["leak"]) == ({}, {"not-certain": 8})


def test_of_too_many_episodes_those_that_last_are_judged_first(
    history: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selected, "__kwdefaults__", {"most": 2})
    ended = [episode(n, first_s=3000, ended_s=3100) for n in range(10, 15)]
    main([*history(RULE, *ended, episode(1), episode(2, cause=OTHERS)), "-o", "json"])
    document = json.loads(capsys.readouterr().out)
    assert [item["local"] for item in document["items"]] == ["10.0.0.1:5001", "10.0.0.1:5002"]
    assert document["rules"][0]["unjudged"] == 5
    assert any(gap["doing"].startswith("judge in each look") for gap in document["gaps"])


@pytest.fixture
def history(tmp_path: Path) -> Callable[..., list[str]]:
    """Return the words of `finwait policy try` over a history of some episodes."""
    import time

    def made(text: str, *episodes: Episode) -> list[str]:
        path = tmp_path / "policy.toml"
        path.write_text(text)
        now = Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())
        back = now.wall_ns - T0 - 7200 * S
        boot = procfs.facts().boot_id
        with Store(tmp_path / "state" / "history.sqlite") as store:
            moved = [
                replace(
                    e,
                    boot=boot,
                    first=e.first._replace(wall_ns=e.first.wall_ns + back),
                    last=e.last._replace(wall_ns=e.last.wall_ns + back),
                    ended=None if e.ended is None else e.ended._replace(wall_ns=e.ended.wall_ns + back),
                )
                for e in episodes
            ]
            meta = {
                "boot": boot,
                "boot_ns": now.boot_ns,
                "wall_ns": now.wall_ns,
                "pid": 1,
                "started_ns": T0,
            }
            assert store.round([], moved, now, meta={"round": meta})
        return ["policy", "try", "--state-dir", str(tmp_path / "state"), str(path)]

    return made


def test_the_command_says_what_would_have_been_done_and_that_it_does_not_know_all(
    history: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = history(RULE, *(episode(n) for n in range(1, 4)))
    assert main([*words, "-o", "json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert mistakes(document, "PolicyTrial") == []
    assert len(document["items"]) == 3
    assert len(document["gaps"]) >= len(TRIAL_GAPS)
    assert main([*words, "--since", "5m"]) == 3
    shown = capsys.readouterr()
    assert "would have acted on 3 connections" in shown.out
    assert "not seen: the history: could not ask the guards" in shown.err


def test_without_a_history_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "try", "--state-dir", str(tmp_path / "none"), os.devnull]) == 1
    assert "`/dev/null` was left alone" in capsys.readouterr().err
    path = tmp_path / "p.toml"
    path.write_text(RULE)
    assert main(["policy", "try", "--state-dir", str(tmp_path / "none"), str(path)]) == 1
    assert "`finwait agent` writes it" in capsys.readouterr().err


def test_check_says_what_is_right_and_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.toml"
    path.write_text(RULE)
    assert main(["policy", "check", str(path)]) == 0
    assert capsys.readouterr().out == f"`{path}` is right: policy `default`, mode observe, rules: leak\n"
    path.write_text(RULE + "min_agee = '1h'\n")
    assert main(["policy", "check", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path}:5: this key does not exist here (`rule[0].min_agee`)" in error
    assert "hint: did you mean `min_age`?" in error
    assert main(["policy", "check", str(tmp_path / "none")]) == 1
    assert main(["policy", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "finwait policy"
