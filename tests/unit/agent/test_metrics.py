"""Metrics: every declaration is shown, and what is shown is valid."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from finwait.agent import protocol
from finwait.agent.metrics import METRICS, render

PICTURE = protocol.RoundPicture(
    version="1.2.3", boot="b", pid=7, rounds=3, at_ns=10**18, sockets={"FIN_WAIT2": 4},
    groups=[
        protocol.StuckGroup(
            rule="fin-wait2-held", severity="problem", namespace="", workload='we"b\n\\', count=3, oldest_s=99.5,
            rate=0.25,
        )
    ],
    opened=[protocol.Counted(rule="r", namespace="", workload="w", total=5)],
    ended=[protocol.EndedCount(rule="r", how="closed", total=2)],
    durations=[protocol.Histogram(label="r", counts=[0, 1, 0, 2, 0, 0, 0, 0, 0, 4], sum_s=100_000.0)],
    looks=[protocol.Histogram(label="tick", counts=[5, 0, 0, 0, 0, 0, 0, 0], sum_s=0.002)],
    limits=[
        protocol.LimitUse(limit="nofile", namespace="", workload="w", subject="", used=50, most=100, reached_s=60.0),
        protocol.LimitUse(limit="orphans", namespace="", workload="", subject="", used=1, most=4),
    ],
    cpu_s=1.5, look_at_ns=10**18, gaps={"CAP_SYS_PTRACE": 2}, series_dropped=0, untracked=0, namespaces=2,
    unseen_s=12.0, store_errors=0, undiagnosed=1,
)  # fmt: skip


@pytest.fixture
def text() -> str:
    return render(PICTURE)[0].decode()


def test_every_metric_has_its_name_type_and_help(text: str) -> None:
    for metric in METRICS:
        assert f"# HELP {metric.name} " in text
        assert f"# TYPE {metric.name} {metric.kind}\n" in text


def test_values_and_labels(text: str) -> None:
    labels = 'namespace="",rule="fin-wait2-held",severity="problem",workload="we\\"b\\n\\\\"'
    assert f"finwait_stuck_connections{{{labels}}} 3.0\n" in text
    assert 'finwait_limit_ratio{limit="nofile",namespace="",workload="w"} 0.5\n' in text
    assert text.count("finwait_limit_reached_seconds{") == 1
    assert 'finwait_episode_duration_seconds_bucket{le="60.0",rule="r"} 3.0\n' in text
    assert 'finwait_episode_duration_seconds_bucket{le="+Inf",rule="r"} 7.0\n' in text
    assert 'finwait_episode_duration_seconds_count{rule="r"} 7.0\n' in text
    assert 'finwait_build_info{version="1.2.3"} 1.0\n' in text


def test_openmetrics_where_that_is_asked_for() -> None:
    body, kind = render(PICTURE, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "accept", ["", "application/openmetrics-text; version=1.0.0", "text/plain; version=0.0.4"]
)
def test_another_program_reads_it_as_it_writes_it(accept: str) -> None:
    pytest.importorskip("prometheus_client")
    from prometheus_client import parser
    from prometheus_client.openmetrics import parser as open_parser

    body, _ = render(PICTURE, accept)
    of_text = parser.text_string_to_metric_families
    read = open_parser.text_string_to_metric_families if "openmetrics" in accept else of_text
    families = {family.name: family for family in read(body.decode())}
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.doc)
        samples = {tuple(sorted(s.labels.items())): s.value for s in family.samples if s.name == metric.name}
        if metric.kind != "histogram":
            assert samples == {
                tuple(sorted(zip(metric.labels, labels, strict=True))): float(value)
                for labels, value in metric.samples(PICTURE)
            }


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/openmetrics-text;version=2.0.0", "text/plain"),
        ("application/openmetrics-text; version=x, text/plain", "text/plain"),
        ("application/openmetrics-text", "application/openmetrics-text"),
        ("text/plain;q=0.5,application/openmetrics-text;version=1.0.0;q=0.9", "application/openmetrics-text"),
        ("*/*", "text/plain"),
    ],
)
def test_who_asks_for_nothing_that_is_known_gets_plain_text(accept: str, kind: str) -> None:
    assert render(PICTURE, accept)[1].startswith(kind)


def test_names_are_those_of_prometheus() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"finwait(_[a-z0-9]+)+", metric.name)
        assert metric.name.endswith("_total") is (metric.kind == "counter")
        assert metric.doc.endswith(".")


def test_promtool_agrees(text: str) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed (apt: prometheus)")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
