"""The alert rules over what the agent shows in three hours of a machine of values: a leak, a step, a spike, deploys."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from finwait.agent.leak import Used
from finwait.agent.metrics import render
from finwait.uapi import tcp
from tests.agent_world import S, Sock, World
from tests.prometheus import tool
from tests.unit.agent.test_loop import Bench

RULES = Path(__file__).parents[3] / "deploy/prometheus/rules.yml"
MINUTES = 180
CLOSED_AT = 150
"""When the leak is closed, in minutes."""


class SmallWorld(World):
    """Each program may have 400 descriptors."""

    def descriptors(self, holders: Mapping[int, str]) -> list[Used]:
        return [
            Used("nofile", f"pid {pid}", sum(s.pid == pid for s in self.socks.values()), 400, workload=w)
            for pid, w in holders.items()
        ]


def live(world: World, minute: int) -> None:
    """Let a minute's connections come and go, by pid: 1 leaks, 2 steps, 3 deploys slowly, 4 is full, 5 has a spike."""

    def open_(pid: int, n: int) -> list[Sock]:
        return [world.add(tcp.CLOSE_WAIT, pid=pid) for _ in range(n)]

    def close(pid: int) -> None:
        for cookie in [c for c, s in world.socks.items() if s.pid == pid]:
            del world.socks[cookie]

    if minute < CLOSED_AT:
        open_(1, 2)
    elif minute == CLOSED_AT:
        close(1)
    if minute == 30:
        open_(2, 200)
        open_(5, 300)
    if minute == 33:
        close(5)
    if 30 <= minute < 50:
        open_(3, 10)
    if minute == 0:
        open_(4, 380)


def series(samples: list[dict[str, float]]) -> list[dict[str, str]]:
    """Return what promtool takes: each series with a value a minute, `_` where it was not there."""
    names = dict.fromkeys(name for sample in samples for name in sample)
    result = []
    for name in names:
        values = " ".join(repr(sample[name]) if name in sample else "_" for sample in samples)
        result.append({"series": name, "values": values})
    return result


def shown(text: str) -> dict[str, float]:
    """Return the series of one scrape."""
    from prometheus_client.parser import text_string_to_metric_families

    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {"job": "finwait", "instance": "n1", **{k: v for k, v in sample.labels.items() if v}}
            words = ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
            found[f"{sample.name}{{{words}}}"] = sample.value
    return found


def expect(expression: str, minute: int, *labels: str) -> dict[str, Any]:
    """Return a test of promtool: an expression has the value 1 for these labels, and for no others."""
    samples = [{"labels": entry, "value": 1} for entry in labels]
    return {"expr": expression, "eval_time": f"{minute}m", "exp_samples": samples}


def test_a_leak_near_its_limit_fires_and_a_step_a_spike_a_deploy_and_a_full_program_do_not(
    tmp_path: Path,
) -> None:
    pytest.importorskip("prometheus_client")
    if (promtool := tool("promtool")) is None:
        pytest.skip("`promtool` is not installed (apt: prometheus); `make check-metrics` fetches it")
    bench = Bench(tmp_path / "history.sqlite", share=0.5)
    bench.world = SmallWorld(now_ns=100_000 * S)
    bench.start()
    samples = []
    for minute in range(MINUTES):
        live(bench.world, minute)
        bench.run(60)
        assert bench.looker.picture is not None
        samples.append(shown(render(bench.looker.picture)[0].decode()))

    limit = 'ALERTS{alertname="FinwaitLimitNear",alertstate="firing"}'
    ever = f"group by (alertname, workload) (max_over_time(ALERTS{{alertstate='firing'}}[{MINUTES}m]))"
    case = {
        "interval": "1m",
        "input_series": series(samples),
        "promql_expr_test": [
            expect(f"group by (workload) ({limit})", CLOSED_AT - 1, '{workload="program1"}'),
            expect(f"group by (workload) ({limit})", CLOSED_AT + 10),
            expect(
                ever,
                MINUTES - 1,
                '{alertname="FinwaitLimitNear",workload="program1"}',
                # These have been stuck for half an hour: only the spike has not.
                *(f'{{alertname="FinwaitConnectionsStuck",workload="program{pid}"}}' for pid in (1, 2, 3, 4)),
            ),
        ],
    }
    tests = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [promtool, "test", "rules", str(tmp_path / "tests.yml")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
