"""A leak becomes an alert, and the alert ends with it: a real agent, Debian's Prometheus and Alertmanager, a webhook.

All of them in a network namespace of their own, on loopback. Takes a minute or two and needs packages that start
services where they are installed, so only `make check-metrics` runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kernel import needs
from tests.kernel.test_agent import ADDRESS, Scene, tell, until
from tests.prometheus import CHECK_METRICS, UNPACKED, filled, queries, tool

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

RULES = Path(__file__).parents[2] / "deploy/prometheus/rules.yml"
STUCK = "FinwaitConnectionsStuck"

RECEIVER = """
import http.server, sys
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[1], "ab") as file:
            file.write(body.strip() + b"\\n")
        self.send_response(200); self.end_headers()
    def log_message(self, *words): pass
server = http.server.HTTPServer(("127.0.0.1", 9095), Hook)
print("ready", flush=True)
server.serve_forever()
"""

ASKER = """
import json, sys, urllib.parse, urllib.request
answers = []
for expression in sys.argv[1:]:
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"http://127.0.0.1:9090/api/v1/query?{query}", timeout=10) as answer:
        answers.append(json.load(answer))
print(json.dumps(answers))
"""


def shortened(text: str) -> str:
    """Return the rules, where the alert about stuck connections needs seconds instead of half an hour."""
    rules: dict[str, Any] = yaml.safe_load(text)
    (alert,) = [rule for group in rules["groups"] for rule in group["rules"] if rule.get("alert") == STUCK]
    for old, new in (("[30m]", "[5s]"), ("> 1800", "> 5")):
        assert alert["expr"].count(old) == 2
        alert["expr"] = alert["expr"].replace(old, new)
    alert["for"] = "2s"
    return yaml.safe_dump(rules)


class Monitoring:
    """Prometheus, Alertmanager and a webhook in the scene."""

    def __init__(self, scene: Scene, prometheus: str, alertmanager: str) -> None:
        self.posted = scene.folder / "posted"
        self.posted.touch()
        self.scene = scene
        self._write("rules.yml", shortened(RULES.read_text()))
        self._write(
            "prometheus.yml",
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": ["rules.yml"],
                "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]},
                "scrape_configs": [{"job_name": "finwait", "static_configs": [{"targets": [ADDRESS]}]}],
            },
        )
        self._write(
            "alertmanager.yml",
            {
                "route": {
                    "receiver": "hook", "group_by": ["alertname", "instance", "workload"],
                    "group_wait": "1s", "group_interval": "1s", "repeat_interval": "1h",
                },
                "receivers": [
                    {
                        "name": "hook",
                        "webhook_configs": [{"url": "http://127.0.0.1:9095/", "send_resolved": True}],
                    }
                ],
            },
        )  # fmt: skip
        share = UNPACKED.parent / "share"
        if share.is_dir():  # Alertmanager reads a template of its package at a fixed path
            scene.do("mount", "-t", "overlay", "-o", f"lowerdir={share}:/usr/share", "none", "/usr/share")
        hook = scene.start(sys.executable, "-c", RECEIVER, str(self.posted))
        assert hook.stdout is not None
        assert hook.stdout.readline() == "ready\n"
        self._start(
            alertmanager, "--config.file", "alertmanager.yml", "--storage.path", "alertmanager",
            "--web.listen-address", "127.0.0.1:9093", "--cluster.listen-address", "",
        )  # fmt: skip
        self._start(
            prometheus, "--config.file", "prometheus.yml", "--storage.tsdb.path", "prometheus",
            "--web.listen-address", "127.0.0.1:9090",
        )  # fmt: skip

    def _write(self, name: str, content: str | dict[str, Any]) -> None:
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (self.scene.folder / name).write_text(text)

    def _start(self, *command: str) -> None:
        log = self.scene.folder / f"{Path(command[0]).name}.log"
        script = 'cd "$1" && log=$2 && shift 2 && exec "$@" >"$log" 2>&1'
        self.scene.start("sh", "-c", script, "sh", str(self.scene.folder), str(log), *command)

    def ask(self, expressions: list[str]) -> list[dict[str, Any]]:
        """What Prometheus answers to each expression."""
        done = self.scene.do(sys.executable, "-c", ASKER, *expressions)
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers

    def notices(self) -> list[dict[str, Any]]:
        """What has come to the webhook: one entry an alert, in order."""
        lines = self.posted.read_text().splitlines()
        return [alert for line in lines for alert in json.loads(line)["alerts"]]

    def said(self) -> list[tuple[str, str]]:
        """Names and states, in order, repeated ones once."""
        names = [(alert["labels"]["alertname"], alert["status"]) for alert in self.notices()]
        return list(dict.fromkeys(names))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    if os.environ.get(CHECK_METRICS) != "1":
        pytest.skip(f"`make check-metrics` runs it ({CHECK_METRICS}=1)")
    needs.root_and("unshare", "nsenter", "ip")
    made = Scene(tmp_path)
    try:
        yield made
    finally:
        made.end()


def test_a_leak_becomes_an_alert_at_a_webhook_and_the_alert_ends_with_it(scene: Scene) -> None:
    pytest.importorskip("prometheus_client")
    prometheus, alertmanager = tool("prometheus"), tool("prometheus-alertmanager")
    assert prometheus is not None
    assert alertmanager is not None
    program = scene.leaking()
    scene.agent("--listen", ADDRESS)
    monitoring = Monitoring(scene, prometheus, alertmanager)
    until("Prometheus reads the agent", lambda: scene.get("/healthz")[0] == 200)

    tell(program, "9")
    until("nine are seen", lambda: scene.metric("finwait_stuck_connections") == 9)
    until("they are old enough", lambda: scene.metric("finwait_stuck_connections_oldest_seconds") > 12)
    assert monitoring.said() == [], "nine are below the threshold, and nothing else is wrong"

    tell(program, "3")
    until("the alert is at the webhook", lambda: monitoring.said() == [(STUCK, "firing")], 120)
    (alert, *_) = monitoring.notices()
    workload, rule = alert["labels"]["workload"], alert["labels"]["rule"]
    assert alert["labels"]["severity"] == "warning"
    assert alert["labels"]["instance"] == ADDRESS
    assert alert["annotations"]["summary"] == f"{ADDRESS}: 12 connections of {workload} are stuck ({rule})"
    command = f"sudo finwait rule = {rule}"
    assert f"type `{command}`" in alert["annotations"]["runbook"]
    # What the alert says to type shows these connections.
    listed = scene.do(*scene.finwait(*command.split()[2:], "-o", "json"), check=False)
    assert sum(finding["count"] for finding in json.loads(listed.stdout)["findings"]) >= 12

    promtool = tool("promtool")
    assert promtool is not None
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=scene.get("/metrics")[1], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    answers = monitoring.ask([filled(expression) for _, expression in queries()])
    assert {answer["status"] for answer in answers} == {"success"}
    (stuck,) = answers[0]["data"]["result"]
    assert stuck["value"][1] == "12", "the first number of the dashboard"

    tell(program, "close")
    until("it is resolved", lambda: monitoring.said() == [(STUCK, "firing"), (STUCK, "resolved")], 120)
