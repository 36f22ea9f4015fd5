"""Alert rules and dashboard: each expression is PromQL over metrics that there are, each alert says what to do."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finwait.agent.metrics import METRICS
from finwait.cli import _with_command, build_parser
from tests.prometheus import CHECK_METRICS, DASHBOARD, labels_of, metrics_of, parse, queries, tool

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/rules.yml"
TESTS = DEPLOY / "prometheus/tests.yml"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
EXAMPLES = {"rule": "fin-wait2-held", "instance": "n1"}
"""Labels that a command to type may hold: nobody else chooses their values, as with the name of a program."""


def promtool_or_skip() -> str:
    if (program := tool("promtool")) is None:
        pytest.skip("`promtool` is not installed (apt: prometheus); `make check-metrics` fetches it")
    return program


def promtool(*words: str | Path) -> None:
    program = promtool_or_skip()
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def rendered() -> dict[str, set[str]]:
    """Return every series name that the agent can show, with its labels."""
    names: dict[str, set[str]] = {}
    for metric in METRICS:
        if metric.kind == "histogram":
            names[f"{metric.name}_bucket"] = {*metric.labels, "le"}
            names[f"{metric.name}_sum"] = names[f"{metric.name}_count"] = set(metric.labels)
        else:
            names[metric.name] = set(metric.labels)
    return names


EXPRESSIONS = [pytest.param(rule["expr"], id=rule["alert"]) for rule in ALERTS]
EXPRESSIONS += [pytest.param(expression, id=title) for title, expression in queries()]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_is_one_over_metrics_and_labels_that_there_are(expression: str) -> None:
    parse(expression)
    series = rendered()
    named = metrics_of(expression)
    assert named
    assert named - set(series) <= {"up", "ALERTS"}
    known = {"job", "instance"}.union(*(series.get(name, ()) for name in named))
    if "ALERTS" in named:
        known |= {"alertname", "alertstate"}
    assert labels_of(expression) <= known


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_an_alert_has_a_severity_and_says_what_it_is_and_what_to_type(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith("Finwait")
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    assert all(text.strip() for text in rule["annotations"].values())
    assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
    assert re.search(r"type .*`sudo finwait", rule["annotations"]["runbook"])


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_the_commands_of_an_alert_are_ones_that_finwait_takes(rule: dict[str, Any]) -> None:
    commands = re.findall(r"`(?:sudo )?(finwait(?: [^`]*)?)`", rule["annotations"]["runbook"])
    assert commands
    for command in commands:
        assert set(re.findall(r"\$labels\.(\w+)", command)) <= EXAMPLES.keys()
        line = re.sub(r"{{ \$labels\.(\w+) }}", lambda m: EXAMPLES[m[1]], command)
        build_parser().parse_args(_with_command(shlex.split(line)[1:]))


def test_each_alert_is_tested_where_it_fires_and_where_it_nearly_does() -> None:
    fires, silent = Counter[str](), Counter[str]()
    for case in yaml.safe_load(TESTS.read_text())["tests"]:
        alone = {
            alert["alertname"]: not any(
                other["exp_alerts"]
                for other in case["alert_rule_test"]
                if other["alertname"] == alert["alertname"]
            )
            for alert in case["alert_rule_test"]
        }
        for name, never in alone.items():
            (silent if never else fires)[name] += 1
    assert {rule["alert"] for rule in ALERTS} == set(fires) == set(silent)


def test_promtool_takes_the_rules() -> None:
    promtool("check", "rules", RULES)


def test_promtool_agrees_when_alerts_fire_and_when_not() -> None:
    promtool("test", "rules", TESTS)


# What keeps an alert from firing, and what is written in its place: a near miss must notice each of these.
LOOSER = """
            and finwait_limit_ratio > 0.2
→
            and deriv(finwait_limit_ratio[30m]) > 0
→
finwait_limit_reached_seconds < 4 * 3600
→ finwait_limit_reached_seconds < 5 * 3600
for: 10m ¶ labels: ¶ severity: critical
→ for: 5m ¶ labels: ¶ severity: critical
min_over_time(finwait_stuck_connections{severity="problem"}[30m]) >= 10
→ finwait_stuck_connections{severity="problem"} >= 10
{severity="problem"}[30m]) >= 10 ¶ and ignoring (severity) finwait_stuck_connections_oldest_seconds > 1800
→ {severity="problem"}[30m]) >= 10
{severity="problem"}[30m]) >= 10
→ {severity="problem"}[30m]) >= 9
{severity="problem"}[30m])
→ [30m])
{rule="never-accepted", severity="problem"}
→ {rule="never-accepted"}
and ignoring (severity) finwait_stuck_connections_oldest_seconds{rule="never-accepted"} > 600
→
finwait_limit_ratio{limit="accept-queue"} >= 1
→ finwait_limit_ratio >= 1
finwait_limit_ratio{limit="accept-queue"} >= 1
→ finwait_limit_ratio{limit="accept-queue"} >= 0.9
finwait_look_duration_seconds_count{kind="diagnosis"}[30m]) > 0
→ finwait_look_duration_seconds_count{kind="diagnosis"}[30m]) >= 0
finwait_look_duration_seconds_count{kind="diagnosis"}[30m]) > 0
→ finwait_look_duration_seconds_count[30m]) > 0
for: 30m ¶ labels: ¶ severity: critical
→ for: 18m ¶ labels: ¶ severity: critical
(finwait_policy_budget_remaining offset 1h > 0)
→ (finwait_policy_budget_remaining offset 1h)
>= on (job, instance, policy) (finwait_policy_budget_remaining offset
→ > on (job, instance, policy) 0 * (finwait_policy_budget_remaining offset
(finwait_policy_actions_total{outcome!="refused"})
→ (finwait_policy_actions_total)
for: 15m
→ for: 5m
{outcome=~"failed|still-there"}) ¶ - (
→ {outcome!="ended"}) ¶ - (
finwait_look_last_success_timestamp_seconds > 300 ¶ for: 5m
→ finwait_look_last_success_timestamp_seconds > 300
finwait_look_last_success_timestamp_seconds > 300
→ finwait_look_last_success_timestamp_seconds > 200
unless finwait_look_last_success_timestamp_seconds
→
up and on (job, instance) (
→ (
finwait_gaps > 0 ¶ for: 30m
→ finwait_gaps > 0 ¶ for: 20m
finwait_namespace_unseen_seconds > 900
→ finwait_namespace_unseen_seconds > 100
finwait_untracked_connections > 0 ¶ for: 10m
→ finwait_untracked_connections > 0 ¶ for: 5m
unless present_over_time(finwait_store_errors_total[1d] offset 15m)
→
present_over_time(finwait_store_errors_total[1d] offset 15m)
→ finwait_store_errors_total offset 15m
"""


def loosened() -> list[str]:
    """Return the rules, each time with one clause replaced."""
    text = RULES.read_text()
    lines = [line.strip() for line in LOOSER.strip().splitlines()]
    result = []
    for old, new in zip(lines[::2], lines[1::2], strict=True):
        assert new.startswith("→")
        pattern = re.escape(old).replace(r"\ ¶\ ", r"\n\s*")
        found = re.search(pattern, text)
        assert found, old
        parts = new[1:].strip().split(" ¶ ")
        indent = re.findall(r"\n\s*", found[0])
        replacement = "".join(part + space for part, space in zip(parts, [*indent, ""], strict=False))
        result.append(text[: found.start()] + replacement + text[found.end() :])
    return result


def test_a_rule_without_one_of_its_clauses_fails_a_near_miss(tmp_path: Path) -> None:
    """Takes a minute, so only `make check-metrics` asks for it."""
    if os.environ.get(CHECK_METRICS) != "1":
        pytest.skip(f"`make check-metrics` runs it ({CHECK_METRICS}=1)")
    program = promtool_or_skip()
    rules = [RULES.read_text(), *loosened()]
    assert len(rules) >= 28
    files = []
    for number, text in enumerate(rules):
        (tmp_path / f"rules-{number}.yml").write_text(text)
        files.append(tmp_path / f"tests-{number}.yml")
        files[-1].write_text(TESTS.read_text().replace("- rules.yml\n", f"- rules-{number}.yml\n"))
    done = subprocess.run(
        [program, "test", "rules", *map(str, files)], capture_output=True, text=True, timeout=240
    )
    assert "parse error" not in done.stdout + done.stderr
    said = re.findall(r"Unit Testing:  (\S+)\n  (\w+)", done.stdout + done.stderr)
    passed = [Path(name).stem for name, verdict in said if verdict == "SUCCESS"]
    assert passed == ["tests-0"], "the first has every clause"


# ── the dashboard ────────────────────────────────────────────────────────────────────────────────────────


def test_the_dashboard_asks_what_a_person_on_call_asks_in_that_order() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == [
        "Is it getting worse?", "Which workload?", "What is the cause?", "Since when?", "Which limits are near?",
        "What did the policy do?", "Is the agent well?",
    ]  # fmt: skip
    tops = [panel["gridPos"]["y"] for panel in DASHBOARD["panels"]]
    assert tops == sorted(tops)


def test_panels_of_the_dashboard_have_room_and_numbers_of_their_own() -> None:
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_dashboard_names_no_host_and_takes_its_data_source_from_a_variable() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables.keys() == {"datasource", "instance"}
    assert variables["datasource"]["type"] == "datasource"
    assert "finwait_build_info" in rendered()
    assert variables["instance"]["definition"] == "label_values(finwait_build_info, instance)"

    def sources(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == "datasource":
                    yield inner
                else:
                    yield from sources(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from sources(inner)

    found = list(sources(DASHBOARD))
    assert len(found) > 40
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in found)
    assert not re.search(r"https?://|localhost|\b\d+\.\d+\.\d+\.\d+\b", json.dumps(DASHBOARD))
    for title, expression in queries():
        assert 'instance=~"$instance"' in expression, title


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set[str]().union(*(metrics_of(expression) for _, expression in queries()))
    assert [m.name for m in METRICS if not {m.name, f"{m.name}_bucket"} & shown] == []


# ── the documentation ────────────────────────────────────────────────────────────────────────────────────


def test_the_page_names_every_alert_with_its_severity() -> None:
    page = (ROOT / "docs/how-to/alerts.md").read_text()
    rows = dict(re.findall(r"^\| `(Finwait\w+)` \| (\w+) \|", page, re.MULTILINE))
    assert rows == {rule["alert"]: rule["labels"]["severity"] for rule in ALERTS}
