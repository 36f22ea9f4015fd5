"""The policy file: what may be written, and which line of it is wrong."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime

import jsonschema
import pytest

from finwait.agent.policy_file import ActBudget, PolicyError, TimeWindow, json_schema, keys, parse_policy

RULE = '[[rule]]\nname = "leak"\nfindings = ["fin-wait2-held"]\n'


def test_an_empty_file_observes_and_has_no_rules() -> None:
    policy = parse_policy(b"", "p.toml")
    assert (policy.name, policy.mode, policy.rules) == ("default", "observe", ())
    assert policy.budget == ActBudget(look=10, ten_minutes=20, day=100, process=20, workload=50)


def test_what_a_rule_does_not_say_is_strict() -> None:
    (rule,) = parse_policy(RULE.encode(), "p.toml").rules
    assert (rule.min_age_s, rule.looks, rule.share, rule.cool_down_s) == (3600, 3, 0.5, 600)
    assert rule.means == ("fin", "keepalive")
    assert rule.budget == ActBudget(10, 20, 100, 20, 50)


def test_filters_are_read_and_exceptions_turned_round() -> None:
    text = 'except = "comm = nginx"\n' + RULE + 'where = "dport = :8080"\nexcept = "sport = :22"\n'
    (rule,) = parse_policy(text.encode(), "p.toml").rules
    assert [f.text for f in rule.filters] == ["dport = :8080", "not ( comm = nginx )", "not ( sport = :22 )"]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("mode = ", 1, "Invalid value"),
        ("\n\nmode = 'shoot'", 3, "invalid enum value 'shoot' (`mode`)"),
        ("name = 'A b'", 1, "(`name`)"),
        ('name = "a\\n"', 1, "a name is one line"),
        ("[budgt]\n", 1, "this key does not exist here (`budgt`)"),
        ("[budget]\nday = -1", 2, "(`budget.day`)"),
        ("[budget]\nday = 5001", 2, "(`budget.day`)"),
        ("[budget]\nday = true", 2, "(`budget.day`)"),
        ('[[rule]]\nname = "x"\n', 1, "`findings` is missing (`rule[0]`)"),
        ('[[rule]]\nname = "x"\nfindings = []', 3, "(`rule[0].findings`)"),
        (RULE.replace("held", "hold"), 3, "there is no rule `fin-wait2-hold`"),
        (RULE.replace("fin-wait2-held", "time-wait"), 3, "never ends connections because of `time-wait`"),
        (RULE + 'min_age = "9m"', 4, "`9m` is less than 10m"),
        (RULE + 'min_age = "soon"', 4, "(`rule[0].min_age`)"),
        (RULE + 'min_age = "400d"', 4, "longer than a year"),
        (RULE + "looks = 2", 4, "(`rule[0].looks`)"),
        (RULE + "share = 0.6", 4, "(`rule[0].share`)"),
        (RULE + "share = 0.0", 4, "(`rule[0].share`)"),
        (RULE + "share = nan", 4, "(`rule[0].share`)"),
        (RULE + 'cool_down = "1s"', 4, "`1s` is less than 1m"),
        (RULE + 'where = "sport >> 1"', 4, "(`rule[0].where`)"),
        (RULE + 'where = "rule = nosuch"', 4, "(`rule[0].where`)"),
        (RULE + 'except = "("', 4, "(`rule[0].except`)"),
        (RULE + 'with = ["destroy", "fin"]', 4, "the gentlest means comes first"),
        (RULE + 'with = ["fin", "fin"]', 4, "the gentlest means comes first"),
        (RULE + 'with = ["restart"]', 4, "(`rule[0].with[0]`)"),
        (RULE + "with = []", 4, "(`rule[0].with`)"),
        (RULE + 'override = ["established"]', 4, "this key does not exist here"),
        (RULE + 'windows = ["25:00-26:00"]', 4, "is not a time window"),
        (RULE + 'windows = ["02:00-02:00"]', 4, "has no length"),
        (RULE + 'windows = ["02:00-24:01"]', 4, "ends after 24:00"),
        (RULE + 'windows = ["02:00-03:00 CET"]', 4, "is not a time window"),
        (RULE + "[rule.stop_if]\nopening_factor = 1.0", 5, "(`rule[0].stop_if.opening_factor`)"),
        (RULE + "\n" + RULE, 6, "two rules are called `leak`"),
        ("a = " + "[" * 5000, 1, ""),
        ("x = " + "1" * 5000, 1, ""),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text.encode(), "p.toml")
    assert str(caught.value).startswith(f"p.toml:{line}: ")
    assert problem in str(caught.value)
    assert caught.value.hint


def test_bytes_that_are_no_text_are_named_with_their_line() -> None:
    with pytest.raises(PolicyError, match=r"p.toml:3: not UTF-8 at byte 2"):
        parse_policy(b"\n\n\xff", "p.toml")


def test_a_misspelt_key_is_answered_by_the_one_that_was_meant() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy((RULE + 'min_agee = "1h"').encode(), "p.toml")
    assert caught.value.hint == "did you mean `min_age`?"


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000_000


def window(text: str) -> TimeWindow:
    (rule,) = parse_policy((RULE + f'windows = ["{text}"]').encode(), "p").rules
    return rule.windows[0]


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ('name = "Node"', "`Node` has characters or a length that are not allowed", "it must be 1 to 63 lower case"),
        (RULE + "share = 2", "`2` is more than 0.5", "it must be a number, more than 0 and at most 0.5"),
        (RULE + "share = 0", "`0` is not more than 0", "it must be a number, more than 0 and at most 0.5"),
        (RULE + "looks = -1", "`-1` is less than 3", "it must be a whole number, at least 3 and at most 1000"),
        ("[budget]\nlook = -1", "`-1` is less than 0", "it must be a whole number, at least 0 and at most 500"),
        ('[[rule]]\nname = "x"\nfindings = []', "the list has too few entries: at least 1", "text, 1 or more"),
    ],
)  # fmt: skip
def test_a_limit_is_said_with_the_value_and_what_would_be_right(text: str, problem: str, hint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text.encode(), "p.toml")
    assert problem in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("02:00-05:00", ["2026-11-29T02:00", "2026-11-29T04:59:59"], ["2026-11-29T05:00", "2026-11-29T01:59"]),
        ("22:00-06:00", ["2026-11-29T23:00", "2026-11-29T05:59", "2026-11-29T00:00"], ["2026-11-29T06:00"]),
        ("sat 22:00-02:00", ["2026-11-28T22:00", "2026-11-29T01:59"], ["2026-11-28T01:00", "2026-11-29T22:00"]),
        ("sun 22:00-02:00", ["2026-11-29T22:00", "2026-11-30T00:30"], ["2026-11-29T01:00"]),
        ("fri-sun 00:00-24:00", ["2026-11-27T00:00", "2026-11-29T23:59"], ["2026-11-30T00:00", "2026-11-26T23:59"]),
        ("sat-mon 12:00-13:00", ["2026-11-28T12:00", "2026-11-30T12:59"], ["2026-12-01T12:00"]),
        # Where clocks are set back or forward (Berlin: 25 October, 29 March), UTC has no hour twice and misses none.
        ("00:30-01:30", ["2026-10-25T00:30", "2026-10-25T01:29", "2026-03-29T01:00"], ["2026-10-25T01:30"]),
    ],
)  # fmt: skip
def test_windows_are_in_utc_and_may_cross_midnight(text: str, inside: list[str], outside: list[str]) -> None:
    made = window(text)
    assert [when for when in inside if not made.has(at(when))] == []
    assert [when for when in outside if made.has(at(when))] == []


def test_a_window_says_the_same_wherever_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert window("02:00-05:00").has(at("2026-11-29T03:00"))
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_schema_takes_what_the_reader_takes_and_refuses_unknown_keys() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    text = RULE + 'with = ["fin"]\nmin_age = "2h"\n[rule.budget]\nday = 3\n'
    jsonschema.validate(json.loads(json.dumps(tomllib.loads(text))), schema)
    for wrong in ({"mod": "act"}, {"budget": {"week": 1}}, {"rule": [{"name": "x"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_every_key_says_what_it_is_for() -> None:
    assert [path for path, _, _, text in keys() if not text.endswith(".")] == []
    kinds = {path: kind for path, kind, *_ in keys()}
    assert [kinds[path] for path in ("mode", "rule.with", "budget.look", "rule.share", "budget", "rule")] == [
        "text", "list of text", "whole number", "number", "table", "tables",
    ]  # fmt: skip
    assert {"mode", "budget.look", "rule.with", "rule.except", "rule.stop_if.opening_factor"} <= {
        path for path, *_ in keys()
    }
