"""What is tried on the real node, in this order; each returns what was seen."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kube_e2e import workloads
from tests.kube_e2e.cluster import NODE, Cluster, Failed, NotTried, until
from tests.kube_e2e.workloads import SHOP

__all__ = ["CHECKS", "World"]

_ROOT = Path(__file__).parents[2]
_CHART = _ROOT / "deploy/helm/finwait"
_TOKEN = "e2e-0123456789abcdef"
_PLACE = "finwait"
_DUE_S = 1500.0
"""Within which a policy of ten minutes has to find something."""
_METRIC = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


class World:
    """The cluster, and how finwait in it is asked.

    Args:
        cluster: which is up.
        image: the name of finwait's image in it.
        policy_s: how long to wait for what a policy would do.
    """

    def __init__(self, cluster: Cluster, image: str, policy_s: float) -> None:
        self.cluster, self.image, self.policy_s = cluster, image, policy_s
        self.plugin = str(Path(sys.executable).with_name("kubectl-finwait"))
        self.address = ""
        self.values = [
            "--set=agent.share=20%", "--set=agent.interval=5s", f"--set=serve.tokenSecret.name={_PLACE}-token"
        ]  # fmt: skip

    def helm(self, *words: str) -> str:
        """Return what helm prints."""
        return self.cluster.output(
            str(self.cluster.tools / "helm"), *words, "--namespace", _PLACE, seconds=240
        )

    def finwait(self, *words: str, allowed: tuple[int, ...] = (0, 3)) -> str:
        """Return what the user's `kubectl finwait` prints; 3 says that something could not be seen."""
        return self.cluster.output(self.plugin, *words, "--timeout=90", allowed=allowed)

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """Return connections as `kubectl finwait list` has them."""
        listed = json.loads(self.finwait("list", "-o", "json", *words))
        items: list[dict[str, Any]] = listed["items"]
        return items

    def agent_pod(self) -> dict[str, Any]:
        """Return the agent's pod."""
        pods = self.cluster.get("pods", "-n", _PLACE, "-l", "app.kubernetes.io/name=finwait")["items"]
        running = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        (pod,) = running
        made: dict[str, Any] = pod
        return made

    def web(self, path: str) -> str:
        """Return what the agent's port answers, asked from the node as a browser would: without the API server."""
        request = urllib.request.Request(
            f"http://{self.address}:9944{path}", headers={"Authorization": f"Bearer {_TOKEN}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text: str = answer.read().decode()
                return text
        except urllib.error.HTTPError as error:
            raise Failed(f"{path}: {error.code} {error.read()[:300]!r}") from None

    def metrics(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Return the series of a metric."""
        return [
            (dict(re.findall(r'(\w+)="([^"]*)"', labels or "")), float(value))
            for series, labels, value in _METRIC.findall(self.web("/metrics"))
            if series == name
        ]

    def groups(self) -> list[dict[str, Any]]:
        """Return the groups of the page."""
        items: list[dict[str, Any]] = json.loads(self.web("/api/v1/groups?limit=1000"))["items"]
        return items

    def gaps(self) -> list[str]:
        """Return what the page says that it cannot see."""
        return [json.dumps(item) for item in json.loads(self.web("/api/v1/gaps"))["items"]]

    def no_gap(self) -> bool:
        """Return whether the page has no gap about the API server.

        Raises:
            Failed: it has some.
        """
        found = [gap for gap in self.gaps() if "Kubernetes" in gap]
        if found:
            raise Failed(f"{found}")
        return True

    def names_age(self) -> float:
        """Return how old the names are."""
        ((_, age),) = self.metrics("finwait_names_age_seconds")
        return age

    def ready(self) -> dict[str, Any] | None:
        """Return the agent's pod if both containers are ready; note its address."""
        pod = self.agent_pod()
        statuses = pod["status"].get("containerStatuses", [])
        if len(statuses) != 2 or not all(status["ready"] for status in statuses):
            return None
        self.address = pod["status"]["podIP"]
        return pod


def node(world: World) -> str:
    """The node is Ready, and pods of ours run on it."""
    cluster = world.cluster
    cluster.apply(*workloads.objects(world.image))

    def running() -> bool | None:
        pods = cluster.get("pods", "-n", SHOP)["items"]
        return (len(pods) == 3 and all(pod["status"]["phase"] == "Running" for pod in pods)) or None

    until(180, "three pods of the shop are Running", running)
    info = cluster.get("node", NODE)["status"]["nodeInfo"]
    return (
        f"kubelet {info['kubeletVersion']}, {info['containerRuntimeVersion']}, kernel {info['kernelVersion']}"
    )


def server_dry_run(world: World) -> str:
    """The API server takes the plain manifest and the chart in its dry run."""
    cluster = world.cluster
    cluster.apply(workloads.namespace(_PLACE))
    manifest = (_ROOT / "deploy/kubernetes/finwait.yaml").read_text()
    said = ""
    if "appArmorProfile" in manifest:  # a field since 1.30; an annotation before, which the chart knows
        lines = [line for line in manifest.splitlines() if "appArmorProfile" not in line]
        manifest, said = "\n".join(lines), " without `appArmorProfile`, a field since 1.30"
    applied = cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=manifest).strip().splitlines()
    world.helm("install", "finwait", str(_CHART), "--dry-run=server", *world.values)
    return f"`kubectl apply --dry-run=server`: {len(applied)} objects{said}; `helm install --dry-run=server`: accepted"


def install(world: World) -> str:
    """Helm installs the chart, and the pod is Ready."""
    world.cluster.apply(workloads.namespace(_PLACE), workloads.secret(_PLACE, f"{_PLACE}-token", _TOKEN))
    world.helm("install", "finwait", str(_CHART), *world.values)
    began = time.monotonic()
    until(180, "the agent's pod is ready", world.ready)
    took = time.monotonic() - began
    daemons = world.cluster.get("ds", "finwait", "-n", _PLACE)["status"]
    if daemons["numberReady"] != daemons["desiredNumberScheduled"]:
        raise Failed(f"the DaemonSet says {daemons}")
    until(
        90,
        "a look that succeeded",
        lambda: world.metrics("finwait_look_last_success_timestamp_seconds") or None,
    )
    until(90, "no gap about the cluster", world.no_gap)
    counts = f"{daemons['numberReady']} of {daemons['desiredNumberScheduled']}"
    return f"{counts} Ready after {took:.0f} s, no gap about the cluster"


def _named(row: dict[str, Any]) -> dict[str, Any]:
    names: dict[str, Any] = row.get("kubernetes") or {}
    return names


def names(world: World) -> str:
    """A connection through a Service has pod, workload and Service, at both ends."""

    def both() -> tuple[dict[str, Any], dict[str, Any]] | None:
        rows = [_named(row) for row in world.rows("-n", SHOP, "state", "all")]
        clients = [
            row for row in rows if row.get("workload") == "shop/web" and row.get("service") == "shop/cart"
        ]
        servers = [
            row for row in rows if row.get("workload") == "shop/cart" and row.get("service") == "shop/cart"
        ]
        clients = [row for row in clients if (row.get("peer_pod") or "").startswith("shop/cart-")]
        servers = [row for row in servers if (row.get("peer_pod") or "").startswith("shop/web-")]
        return (clients[0], servers[0]) if clients and servers else None

    client, server = until(120, "a connection with all names", both)
    wanted = {"workload_kind": "Deployment", "node": NODE, "container": "main", "namespace": SHOP}
    for row in (client, server):
        if wrong := {key: row.get(key) for key, value in wanted.items() if row.get(key) != value}:
            raise Failed(f"wrong names: {wrong}")
    pods = {f"{SHOP}/{pod['metadata']['name']}" for pod in world.cluster.get("pods", "-n", SHOP)["items"]}
    if not {client["pod"], client["peer_pod"], server["pod"], server["peer_pod"]} <= pods:
        raise Failed(f"pods that are none: {client}, {server}")
    picked = world.rows("-n", SHOP, "service", "=", "shop/cart", "and", "workload", "=", "shop/web")
    labelled = world.rows("-A", "-l", "app=cart", "state", "=", "close-wait")
    if not picked or not labelled:
        raise Failed(f"FILTER: {len(picked)} by service and workload, {len(labelled)} by label")
    return f"`{client['pod']}` → Service `{client['service']}` → `{client['peer_pod']}`, both ends"


def leak(world: World) -> str:
    """The leak is its workload's in metrics and page."""

    def counted() -> dict[str, float] | None:
        found: dict[str, float] = {}
        for labels, value in world.metrics("finwait_stuck_connections"):
            if labels["namespace"] == SHOP and labels["rule"] not in ("undiagnosed", "unexplained"):
                found[f"{labels['workload']} {labels['rule']}"] = value
        return found if any(key.startswith("cart ") for key in found) else None

    series = until(180, "a series of shop/cart with a cause", counted)
    page = until(
        60, "a group of shop/cart on the page",
        lambda: [g for g in world.groups() if "shop/cart" in json.dumps(g)] or None,
    )  # fmt: skip
    told = ", ".join(f"`{name}` {count:.0f}" for name, count in sorted(series.items()))
    return f"metrics: {told}; page: {len(page)} groups of `shop/cart`"


def event(world: World) -> str:
    """The leak is told as an Event about its Deployment."""

    def told() -> dict[str, Any] | None:
        events = world.cluster.get("events", "-n", SHOP)["items"]
        found = [item for item in events if item["reason"] == "ConnectionsNotClosing"]
        return found[0] if found else None

    item = until(240, "an Event ConnectionsNotClosing", told)
    about = item["involvedObject"]
    if about["kind"] != "Deployment" or about["name"] not in ("cart", "web"):
        raise Failed(f"the Event is about {about}")
    shown = world.cluster.kubectl("events", "--for", f"deployment/{about['name']}", "-n", SHOP)
    if "ConnectionsNotClosing" not in shown:
        raise Failed("`kubectl events --for` does not show it")
    return f"on Deployment `{about['name']}`: {item['message']}"


def plugin(world: World) -> str:
    """`kubectl finwait`: diagnosis, list, explanation, plan."""
    table = world.finwait("-A")
    if "shop/cart" not in table:
        raise Failed(f"no shop/cart in: {table[:500]}")
    pods = world.cluster.get("pods", "-n", SHOP, "-l", "app=web")["items"]
    name = pods[0]["metadata"]["name"]
    explained = world.finwait("explain", f"pod/{name}", "-n", SHOP)
    plan = world.finwait(
        "clear", "--node", NODE, "-n", SHOP, "rule", "=", "fin-wait2-held", allowed=(0, 1, 3, 4)
    )
    left = len(world.rows("-n", SHOP, "state", "=", "fin-wait-2"))
    if not left:
        raise Failed("the dry run of `clear` ended connections")
    first = next((line for line in table.splitlines() if "shop/cart" in line), "")
    words = [" ".join(text.split())[:90] for text in (first, explained, plan)]
    return f"diagnose: `{words[0]}`; explain: `{words[1]}…`; clear: `{words[2]}…`; {left} in FIN_WAIT2 still there"


def stopped(world: World) -> str:
    """The API server away: names stay and their age is told; back again: they are right."""
    cluster = world.cluster
    cluster.stop("kube-apiserver", signal.SIGKILL)
    gap = until(
        120, "a gap about the cluster", lambda: [g for g in world.gaps() if "Kubernetes API" in g] or None
    )
    old = until(120, "names older than 80 s", lambda: age if (age := world.names_age()) > 80 else None)
    if not [group for group in world.groups() if "shop/cart" in json.dumps(group)]:
        raise Failed("the page has no names any more")
    cluster.start_apiserver()
    began = time.monotonic()
    until(120, "young names again", lambda: world.names_age() < 75 or None)
    until(
        120,
        "no gap about the cluster",
        world.no_gap,
    )
    took = time.monotonic() - began
    said = json.loads(gap[0])["doing"]
    return f"after {old:.0f} s: names shown, gap `{said}`; right {took:.0f} s after the server was back"


def _pod_names(world: World) -> set[str]:
    """Return the pods by which connections of the shop go now, as the node itself says."""
    rows = [_named(row) for row in world.rows("-n", SHOP, "state", "all")]
    return {row["pod"] for row in rows if row.get("pod")}


def compacted(world: World) -> str:
    """The watch history compacted while the API server is away: what changed meanwhile is known."""
    cluster = world.cluster
    cluster.stop("kube-apiserver", signal.SIGKILL)
    ranged = cluster.etcd("/v3/kv/range", {"key": base64.b64encode(b"\0").decode(), "count_only": True})
    revision = int(ranged["header"]["revision"])
    cluster.etcd("/v3/kv/compaction", {"revision": revision, "physical": True})
    cluster.start_apiserver()
    (old,) = cluster.get("pods", "-n", SHOP, "-l", "app=web")["items"]
    cluster.kubectl("delete", "pod", old["metadata"]["name"], "-n", SHOP, "--grace-period=0", "--force")
    before = f"{SHOP}/{old['metadata']['name']}"

    def new() -> str | None:
        found = {name for name in _pod_names(world) if name.startswith("shop/web-")} - {before}
        return found.pop() if len(found) == 1 else None

    name = until(180, "connections of the new pod by its name", new)
    return f"compacted at revision {revision}; `{before}` deleted, connections of `{name}` have its name"


def deleted(world: World) -> str:
    """A pod deleted while its connections are stuck: the other end keeps both names."""
    (old,) = world.cluster.get("pods", "-n", SHOP, "-l", "app=web")["items"]
    name = f"{SHOP}/{old['metadata']['name']}"

    def held() -> int | None:
        rows = [_named(row) for row in world.rows("-n", SHOP, "state", "=", "close-wait")]
        return len([row for row in rows if row.get("peer_pod") == name]) or None

    count = until(120, f"CLOSE_WAIT ends whose peer is {name}", held)
    world.cluster.kubectl("delete", "pod", old["metadata"]["name"], "-n", SHOP)
    left = until(60, f"CLOSE_WAIT ends that still name {name}", held)
    return f"{count} CLOSE_WAIT at `shop/cart` named `{name}` before, {left} after it was gone"


def rotated(world: World) -> str:
    """Tokens refused and renewed by the kubelet: names go on without a restart of the agent."""
    cluster = world.cluster
    before = world.agent_pod()
    for name in ("kube-controller-manager", "kubelet"):
        cluster.stop(name)
    cluster.stop("kube-apiserver", signal.SIGKILL)
    cluster.sa_key = "sa2"
    cluster.start_apiserver()
    gap = until(180, "a gap that says 401", lambda: [g for g in world.gaps() if "401" in g] or None)
    cluster.stop("kube-scheduler")
    cluster.start_controllers()
    cluster.start_kubelet()  # has no tokens in memory, and writes new ones
    began = time.monotonic()
    until(420, "no gap that says 401", world.no_gap)
    until(60, "young names", lambda: world.names_age() < 75 or None)
    took = time.monotonic() - began
    after = world.agent_pod()
    restarts = sum(status["restartCount"] for status in after["status"]["containerStatuses"])
    if after["metadata"]["uid"] != before["metadata"]["uid"] or restarts:
        raise Failed(f"the agent was restarted ({restarts} times)")
    return f"`{json.loads(gap[0])['doing']}`; right {took:.0f} s after the kubelet's start, no restart"


def policy(world: World) -> str:
    """A policy in dry run says what it would do, and does nothing."""
    text = (
        'name = "e2e"\nmode = "dry-run"\n[[rule]]\nname = "shop"\n'
        'findings = ["fin-wait2-held", "close-wait-eof-read", "close-wait-eof-unread"]\n'
        'where = "namespace = shop"\nwith = ["destroy"]\nmin_age = "10m"\n'
    )
    file = world.cluster.run / "policy.yaml"
    file.write_text(json.dumps({"policy": {"toml": text}}))
    old = world.agent_pod()["metadata"]["uid"]
    world.helm("upgrade", "finwait", str(_CHART), *world.values, "--values", str(file))
    until(
        120,
        "the pod with the policy is ready",
        lambda: ((p := world.ready()) and p["metadata"]["uid"] != old) or None,
    )
    before = len(world.rows("-n", SHOP, "state", "=", "close-wait"))

    def would() -> list[tuple[dict[str, str], float]] | None:
        return [
            s for s in world.metrics("finwait_policy_actions_total") if s[0]["outcome"] == "would"
        ] or None

    ((_, budget),) = until(60, "a budget", lambda: world.metrics("finwait_policy_budget_remaining") or None)
    done = None
    try:
        done = sum(value for _, value in until(world.policy_s, "acts that the policy would do", would))
        text = f"`would` {done:.0f}"
    except Failed:
        if world.policy_s >= _DUE_S:
            raise
        text = f"nothing was due within {world.policy_s:.0f} s (`min_age` is 10 minutes, in three looks)"
    if others := [s for s in world.metrics("finwait_policy_actions_total") if s[0]["outcome"] != "would"]:
        raise Failed(f"a dry run did something: {others}")
    after = len(world.rows("-n", SHOP, "state", "=", "close-wait"))
    if after < before:
        raise Failed(f"{before} connections before, {after} after a dry run")
    seen = f"in force, budget {budget:.0f}; {text}; {after} in CLOSE_WAIT, {before} before"
    if done is None:
        raise NotTried(seen)
    return seen


def userspace(world: World) -> str:
    """kube-proxy in userspace mode, with the clients that close their half."""
    cluster = world.cluster
    cluster.stop("kube-proxy")
    cluster.output(str(cluster.cache / "bin/kube-proxy"), "--cleanup", allowed=(0, 1))
    cluster.start_proxy("userspace")
    time.sleep(5)
    if (
        cluster.running["kube-proxy"].poll() is not None
    ):  # it raises RLIMIT_NOFILE, which not every machine allows
        log = max(cluster.logs.glob("kube-proxy-*.log"), key=lambda path: path.stat().st_mtime).read_text()
        raise NotTried(f"kube-proxy ended at its start: `{log.strip().splitlines()[-1].rpartition('] ')[2]}`")
    cluster.kubectl("rollout", "restart", "deployment/web", "deployment/cart", "-n", SHOP)
    cluster.kubectl("rollout", "status", "deployment/web", "-n", SHOP, "--timeout=120s")
    time.sleep(75)  # longer than an orphan of FIN_WAIT2 stays

    def seen() -> str | None:
        rows = world.rows("-A", "comm", "=", "kube-proxy", "or", "namespace", "=", SHOP)
        states: dict[str, int] = {}
        for row in rows:
            owners = row.get("owners") or []
            who = _named(row).get("workload") or (owners[0].get("comm") if owners else "no process")
            if row["state"] in ("FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "LAST_ACK", "CLOSING"):
                key = f"{who} {row['state']}"
                states[key] = states.get(key, 0) + 1
        return ", ".join(f"`{key}` {count}" for key, count in sorted(states.items())) or None

    text = until(60, "connections in closing states", seen)
    (cluster.logs / "userspace.txt").write_text(world.finwait("-A"))
    return text


def uninstall(world: World) -> str:
    """`helm uninstall` leaves nothing in the cluster."""
    world.helm("uninstall", "finwait", "--wait")
    cluster = world.cluster

    def gone() -> bool | None:
        return not cluster.get("pods", "-n", _PLACE)["items"] or None

    until(90, "the agent's pod is gone", gone)
    kinds = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    left = []
    for kind in kinds:
        if kind.partition(".")[0] in ("events", "componentstatuses"):
            continue
        for item in cluster.get(kind, "-A")["items"]:
            about = item["metadata"]
            if "finwait" in about["name"] and about["name"] not in (_PLACE, f"{_PLACE}-token"):
                left.append(f"{kind}/{about['name']}")
    if left:
        raise Failed(f"left: {left}")
    processes = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"finwait\0agent" in _content(path) and int(path.parent.name) != os.getpid()
    ]
    if processes:
        raise Failed(f"processes left: {processes}")
    files = sorted(path.name for path in Path("/var/lib/finwait").iterdir())
    run = sorted(path.name for path in Path("/run/finwait").iterdir())
    node_has = f"on the node /var/lib/finwait {files}, /run/finwait {run}"
    return f"{len(kinds)} kinds of objects searched, none left; {node_has}"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


CHECKS: tuple[Callable[[World], str], ...] = (
    node, server_dry_run, install, names, leak, event, plugin, stopped, compacted, deleted, rotated, policy,
    userspace, uninstall,
)  # fmt: skip
