"""The agent beside an API server: names of a pod's connections, also while that server is away and when it is back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finwait.lab.topology import Lab, unmet
from tests.kernel import needs
from tests.kernel.test_agent import ADDRESS, Scene, tell, until
from tests.kube import cluster

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

UID = "00000000-0000-4000-8000-000000000001"
"""That of the first object which the API server gets."""
POD_CGROUP = f"kubepods/burstable/pod{UID}"


class ClusterScene(Scene):
    """With an API server on its loopback, and a program in a cgroup named like a pod's."""

    api: subprocess.Popen[str]
    url: str

    def serve(self) -> None:
        root = str(Path(__file__).parents[2])
        self.api = self.start("env", f"PYTHONPATH={root}", sys.executable, "-m", "tests.kube.serving")
        assert self.api.stdout is not None
        self.url = json.loads(self.api.stdout.readline())

    def ask(self, command: object) -> Any:
        assert self.api.stdin is not None
        assert self.api.stdout is not None
        self.api.stdin.write(json.dumps(command) + "\n")
        self.api.stdin.flush()
        return json.loads(self.api.stdout.readline())

    def put(self, resource: str, item: dict[str, Any]) -> str:
        uid: str = self.ask({"put": resource, "item": item})
        return uid

    def leaking_in(self, cgroup: Path) -> subprocess.Popen[str]:
        program = str(Path(__file__).with_name("leaking_program.py"))
        words = f'echo $$ > {cgroup}/cgroup.procs && exec "$0" "$1"'
        made = self.start("sh", "-c", words, sys.executable, program)
        assert made.stdout is not None
        assert made.stdout.readline()
        return made

    def follow(self, *more: str) -> subprocess.Popen[str]:
        return self.agent("--kubernetes", self.url, "--node-name", cluster.NODE, "--listen", ADDRESS, *more)

    def followers(self) -> list[int]:
        """The pids, seen from here, of what follows the cluster."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
                inside = os.readlink(path.with_name("ns") / "pid") == os.readlink(f"/proc/{self.init}/ns/pid")
            except OSError:
                continue
            if b"finwait.agent.cluster_follower" in words and inside:
                found.append(int(path.parent.name))
        return found

    def groups(self) -> dict[str, int]:
        """Workload → connections, as the page shows it."""
        status, body = self.get("/api/v1/groups")
        counts: dict[str, int] = {}
        for item in json.loads(body)["items"] if status == 200 else ():
            counts[item["workload"]] = counts.get(item["workload"], 0) + item["count"]
        return counts

    def cluster_status(self) -> dict[str, Any]:
        status = self.status()
        return (status or {}).get("cluster") or {}


@pytest.fixture
def scene(tmp_path: Path, lab: Lab) -> Iterator[ClusterScene]:
    needs.root_and("unshare", "nsenter", "ip")
    assert lab, "a cgroup can be removed when the program in it has ended"
    made = ClusterScene(tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def lab() -> Iterator[Lab]:
    for reason in unmet(("cgroup2",)):
        needs.missing(reason)
    with Lab() as made:
        yield made


def test_a_leak_has_the_name_of_its_workload_while_the_api_server_comes_and_goes(
    scene: ClusterScene, lab: Lab
) -> None:
    scene.serve()
    assert scene.put("pods", cluster.pod()) == UID
    scene.put("namespaces", cluster.namespace())
    scene.put("services", cluster.service())
    program = scene.leaking_in(lab.cgroup(POD_CGROUP))
    tell(program, "4")
    agent = scene.follow()
    until("the page names the workload", lambda: scene.groups() == {"shop/cart": 4})
    _, metrics = scene.get("/metrics")
    assert 'namespace="shop"' in metrics
    assert 'workload="cart"' in metrics
    assert scene.metric("finwait_names_age_seconds") >= 0
    until("it is followed", lambda: scene.cluster_status().get("state") == "following")
    status = scene.cluster_status()
    assert (status["pods"], status["services"], status["node"]) == (1, 1, cluster.NODE)
    assert set(status["as_of"]) == {"pods", "services", "endpointslices", "namespaces"}

    # The process that reads what a network sends has no right to anything.
    (pid,) = scene.followers()
    about = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    (user,) = {about[name].split()[0] for name in ("Uid", "Gid")}
    assert 61184 <= int(user) <= 65519, "nothing else runs as that"
    assert all(int(about[name], 16) == 0 for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"))
    assert about["NoNewPrivs"].strip() == "1"

    # Commands get names from the agent by themselves.
    done = scene.do(
        *scene.finwait("list", "state", "fin-wait-2", "--agent-socket", scene.socket, "-o", "json"),
        check=False,
    )
    rows = json.loads(done.stdout)["items"]
    assert {row["kubernetes"]["workload"] for row in rows} == {"shop/cart"}, done.stderr

    # The history keeps the name, and FILTERs know it.
    until("it is written", lambda: len(scene.history("--open", "workload = shop/cart")) == 8)
    assert len(scene.history("--open", f"pod = {UID}")) == 8
    assert scene.history("--open", "namespace = other") == []

    scene.ask("stop")
    until("the gap is told", lambda: any("known as of" in gap for gap in (scene.status() or {})["unseen"]))
    tell(program, "2")
    until("what opens meanwhile has its name, too", lambda: scene.groups() == {"shop/cart": 6})
    scene.ask("start")
    until("no gap is left", lambda: not any("Kubernetes" in gap for gap in (scene.status() or {})["unseen"]))

    # The process is killed: names stay, and another one follows.
    os.kill(pid, signal.SIGKILL)
    until("it is started again", lambda: scene.cluster_status().get("restarts") == 1)
    assert set(scene.groups()) == {"shop/cart"}, "no connection has lost its name"
    until("all are counted", lambda: scene.groups() == {"shop/cart": 6})
    until("another one follows", lambda: scene.followers() not in ([], [pid]))
    until("it tells", lambda: scene.cluster_status().get("state") == "following")

    os.kill(scene.inner(agent), signal.SIGKILL)
    agent.wait()
    until("it ends with the looker", lambda: scene.followers() == [], seconds=5)


def test_an_agent_that_is_told_to_end_leaves_nothing_that_follows(scene: ClusterScene) -> None:
    scene.serve()
    agent = scene.follow()
    until("it runs", lambda: len(scene.followers()) == 1)
    os.kill(scene.inner(agent), signal.SIGTERM)
    assert agent.wait(30) == 0
    assert scene.followers() == []


def test_a_recording_made_on_such_a_node_has_its_names(scene: ClusterScene, lab: Lab) -> None:
    scene.do("mount", "-t", "tmpfs", "none", "/run")  # `finwait record` asks the agent at its usual socket
    scene.socket = "/run/finwait/agent.sock"
    scene.serve()
    scene.put("pods", cluster.pod())
    program = scene.leaking_in(lab.cgroup(POD_CGROUP))
    tell(program, "2")
    scene.follow()
    until("names are known", lambda: scene.cluster_status().get("pods") == 1)
    recording = str(scene.folder / "look.finwait")
    scene.do(*scene.finwait("record", recording, "--looks", "1"), check=False)
    done = scene.do(
        *scene.finwait("list", "state", "fin-wait-2", "--from", recording, "-o", "json"), check=False
    )
    rows = json.loads(done.stdout)["items"]
    assert [row["kubernetes"]["pod"] for row in rows] == ["shop/cart-7d9f-x2x"] * 2, done.stderr
    plain = scene.do(
        *scene.finwait("list", "workload = shop/cart", "state", "fin-wait-2", "-o", "json"), check=False
    )
    assert len(json.loads(plain.stdout)["items"]) == 2, plain.stderr
