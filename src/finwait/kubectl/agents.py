"""Asks agents by the user's own ``kubectl``: which there are, and one command in many of them at once.

Whoever may ask is decided by the API server, as for any ``kubectl exec``. One that does not answer keeps nobody
waiting.

The surprise: a label alone makes no agent. Anybody who may make a pod somewhere could give it that label, and then
silence a node, or get what `clear` was meant for. So a pod counts only where a DaemonSet with that label controls it,
which is in one namespace, and has what an agent cannot do without and only who owns the nodes may ask for
(``hostPID``). Where several namespaces have such a DaemonSet, the user says which.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from finwait.errors import FinwaitError, Gap
from finwait.kube.kubectl import Done, Kubectl
from finwait.kubectl.answers import KINDS, check
from finwait.kubectl.merging import NodeAnswer

__all__ = [
    "NO_AGENT",
    "SELECTOR",
    "AgentPod",
    "AgentPods",
    "Agents",
    "LabelledObject",
    "answer_of",
    "pods_of_agents",
]

SELECTOR: Final = "finwait.io/agent=true"
"""The label of the chart's DaemonSet and of its pods, which no value of the chart changes."""
NO_AGENT: Final = "install the chart there, or look once: `kubectl finwait debug NODE --image IMAGE`"
"""What helps where none runs."""
_ANSWERED: Final = (0, 3)
"""How finwait ends when it has answered; with 3 something could not be seen."""
_AT_ONCE: Final = 16
_AGAIN_S: Final = 0.5
_PAGE: Final = "metrics"
"""The port at which the page is served, too."""
_LOOKER: Final = "looker"
"""The container that looks."""


class _Owner(msgspec.Struct):
    kind: str = ""
    uid: str = ""
    controller: bool | None = None


class _Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    deletion_timestamp: str | None = None
    owner_references: list[_Owner] | None = None


class _Port(msgspec.Struct, rename="camel"):
    name: str = ""
    container_port: int = 0


class _Get(msgspec.Struct):
    scheme: str = "HTTP"


class _Probe(msgspec.Struct, rename="camel"):
    http_get: _Get | None = None


class _Container(msgspec.Struct, rename="camel"):
    name: str = ""
    ports: list[_Port] | None = None
    readiness_probe: _Probe | None = None


class _PodSpec(msgspec.Struct):
    host_pid: bool | None = msgspec.field(default=None, name="hostPID")
    containers: list[_Container] = []


class _Template(msgspec.Struct):
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)


class _Spec(_PodSpec, rename="camel"):
    """Of a pod, or of a DaemonSet, which has a template."""

    node_name: str = ""
    template: _Template | None = None


class _Terminated(msgspec.Struct, rename="camel"):
    exit_code: int = -1


class _Waiting(msgspec.Struct):
    reason: str = ""


class _State(msgspec.Struct):
    terminated: _Terminated | None = None
    waiting: _Waiting | None = None


class _ContainerStatus(msgspec.Struct):
    state: _State = msgspec.field(default_factory=_State)


class _PodStatus(msgspec.Struct, rename="camel"):
    phase: str = ""
    container_statuses: list[_ContainerStatus] | None = None


class LabelledObject(msgspec.Struct):
    """A DaemonSet or a pod, as far as it counts here."""

    metadata: _Meta
    kind: str = ""
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _ObjectList(msgspec.Struct):
    items: list[LabelledObject]


class AgentPod(Struct, frozen=True):
    """A pod in which an agent runs."""

    node: str
    namespace: str
    name: str
    container: str
    port: int = 0
    """At which its page is served; 0 for none."""
    tls: bool = False

    @property
    def path(self) -> str:
        """``NAMESPACE/NAME``."""
        return f"{self.namespace}/{self.name}"


class AgentPods(Struct, frozen=True):
    """The agents of a cluster."""

    one_a_node: tuple[AgentPod, ...] = ()
    """By the name of the node."""
    several: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Node → paths of its agents, where it is not known which one counts."""
    alike: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Node → paths of pods that have the label of an agent, and are none."""

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The nodes that are not asked, because several agents are on them."""
        return tuple(
            Gap(f"node {node}", f"ask its agent: several are there: {', '.join(paths)}", "one of them")
            for node, paths in sorted(self.several.items())
        )

    def on(self, node: str, *, named: bool) -> AgentPod:
        """Return the agent of a node, which is to do something.

        Args:
            node: which.
            named: whether the user said in which namespace the agents are.

        Raises:
            FinwaitError: there is none, or it is not beyond doubt which one that is.
        """
        if paths := self.several.get(node):
            raise FinwaitError(f"several agents run on node `{node}`: {', '.join(paths)}")
        agent = next((agent for agent in self.one_a_node if agent.node == node), None)
        if agent is None:
            failure = FinwaitError(f"no agent runs on node `{node}`")
            failure.hint = NO_AGENT
            raise failure
        if not named and (paths := self.alike.get(node)):
            refusal = FinwaitError(
                f"besides the agent {agent.path}, other pods on node `{node}` have its label: {', '.join(paths[:5])}"
            )
            refusal.hint = f"if {agent.path} is yours, name its namespace: `--agents {agent.namespace}`"
            raise refusal
        return agent


def _has_an_agent(spec: _PodSpec) -> bool:
    return bool(spec.host_pid) and any(container.name == _LOOKER for container in spec.containers)


def _page(spec: _PodSpec) -> tuple[int, bool]:
    """Return the port at which a pod serves the page, 0 for none, and whether by TLS."""
    for container in spec.containers:
        for port in container.ports or ():
            if port.name == _PAGE:
                probe = container.readiness_probe
                return port.container_port, bool(
                    probe and probe.http_get and probe.http_get.scheme == "HTTPS"
                )
    return 0, False


def pods_of_agents(objects: Iterable[LabelledObject]) -> AgentPods:
    """Return which pods are agents.

    Args:
        objects: DaemonSets and pods that have the label.

    Raises:
        FinwaitError: several namespaces have a DaemonSet of agents.
    """
    pods, sets = [], {}
    for item in objects:
        about = item.metadata
        if item.kind == "Pod" and item.status.phase == "Running" and item.spec.node_name:
            pods.append(item)
        template = item.spec.template
        if item.kind == "DaemonSet" and about.uid and template is not None and _has_an_agent(template.spec):
            sets[about.namespace, about.uid] = f"{about.namespace}/{about.name}"
    if len({namespace for namespace, _ in sets}) > 1:
        refusal = FinwaitError(
            f"several namespaces have agents: DaemonSets {', '.join(sorted(sets.values())[:10])}"
        )
        refusal.hint = "say in which namespace those are that you trust: `--agents NS`"
        raise refusal
    agents: dict[str, list[AgentPod]] = {}
    alike: dict[str, list[str]] = {}
    for pod in pods:
        about, node = pod.metadata, pod.spec.node_name
        owners = {
            (about.namespace, owner.uid)
            for owner in about.owner_references or ()
            if owner.controller and owner.kind == "DaemonSet"
        }
        port, tls = _page(pod.spec)
        agent = AgentPod(node, about.namespace, about.name, _LOOKER, port, tls)
        if not owners & sets.keys() or not _has_an_agent(pod.spec):
            alike.setdefault(node, []).append(agent.path)
        elif about.deletion_timestamp is None:  # else the next one of its DaemonSet is about to start
            agents.setdefault(node, []).append(agent)
    return AgentPods(
        tuple(agents[node][0] for node in sorted(agents) if len(agents[node]) == 1),
        {node: tuple(sorted(a.path for a in of)) for node, of in agents.items() if len(of) > 1},
        {node: tuple(sorted(paths)) for node, paths in alike.items()},
    )


class Agents(Kubectl):
    """The agents of a cluster, asked by kubectl."""

    def agents(self, namespace: str = "") -> AgentPods:
        """Return the agents that run.

        Args:
            namespace: in which they are; empty for the one that has a DaemonSet of them.

        Raises:
            FinwaitError: kubectl failed, or several namespaces have one.
        """
        place = ("-n", namespace) if namespace else ("-A",)
        try:
            listing = self.decoded(_ObjectList, "get", "daemonsets.apps,pods", *place, "-l", SELECTOR)
        except FinwaitError as error:
            if not namespace:
                error.hint = (
                    "if you may not list those of all namespaces, name that of the agents: `--agents NS`"
                )
            raise
        return pods_of_agents(listing.items)

    def nodes(self) -> tuple[list[str], tuple[Gap, ...]]:
        """Return the nodes of the cluster, and what says that they may not be listed."""
        try:
            nodes = self.decoded(_ObjectList, "get", "nodes")
        except FinwaitError as error:
            return [], (Gap("the cluster", f"list its nodes: {error}", "the right to list nodes"),)
        return sorted(node.metadata.name for node in nodes.items), ()

    def node_of(self, pod: str, namespace: str) -> str:
        """Return the node of a pod.

        Raises:
            FinwaitError: there is no such pod, or it runs nowhere yet.
        """
        place = ("-n", namespace) if namespace else ()
        node = str(self.decoded(LabelledObject, "get", "pod", pod, *place).spec.node_name)
        if not node:
            raise FinwaitError(f"pod `{pod}` is on no node yet")
        return node

    def exec_words(self, agent: AgentPod, *words: str, typing: bool = False) -> list[str]:
        """Return the command line that runs finwait beside an agent."""
        options = ("-i", "-t") if typing else ()
        place = ("-n", agent.namespace, agent.name, "-c", agent.container)
        return self.command("exec", *options, *place, "--", "finwait", *words)

    def ask(self, agent: AgentPod, *words: str) -> NodeAnswer:
        """Return what finwait prints beside an agent, as JSON: a command of `KINDS`, and its arguments."""
        done = self.run(
            "exec", "-n", agent.namespace, agent.name, "-c", agent.container, "--", "finwait", *words
        )
        return answer_of(agent.node, KINDS[words[0]], done)

    def record(self, agent: AgentPod, *words: str) -> Done:
        """Return what ``finwait record`` writes to its standard output beside an agent.

        Args:
            agent: which.
            words: options of the command.

        Raises:
            FinwaitError: it failed.
        """
        place = ("-n", agent.namespace, agent.name, "-c", agent.container)
        done = self.run("exec", *place, "--", "finwait", "record", *words, "-")
        if done.status not in _ANSWERED:
            raise FinwaitError(f"no recording of node `{agent.node}`: {done.said or f'status {done.status}'}")
        return done

    def ask_all(self, agents: Sequence[AgentPod], *words: str) -> list[NodeAnswer]:
        """Ask several agents at once."""
        with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(agents)))) as pool:
            return list(pool.map(lambda agent: self.ask(agent, *words), agents))

    def debug(self, node: str, image: str, *words: str) -> NodeAnswer:
        """Look once on a node without an agent, in a pod that is removed afterwards.

        The pod has a name that nobody else can have, so that no other one is ever removed in its place.

        Args:
            node: which.
            image: that has finwait.
            words: a command of `KINDS`, and its arguments.

        Raises:
            FinwaitError: it is not known in which namespace; nothing was made.
        """
        namespace = self.namespace()
        name = f"finwait-look-{secrets.token_hex(8)}"
        overrides = json.dumps(_look(node, image, words, int(self.timeout_s) + 60))
        place = ("-n", namespace)
        try:
            done = self.run(
                "run",
                name,
                *place,
                "--image",
                image,
                "--restart=Never",
                "--overrides",
                overrides,
                "-o",
                "name",
            )
            if done.status == 0:
                done = self._ended(name, place)
            answer = answer_of(node, KINDS[words[0]], done)
        finally:
            # Also where it is not known whether it was made: a call that took too long may have come through.
            gone = self.run("delete", "pod", name, *place, "--ignore-not-found", "--wait=false")
        if gone.status == 0:
            return answer
        gap = Gap(
            f"pod {namespace}/{name}",
            f"remove it: {gone.said}",
            f"`kubectl delete pod -n {namespace} {name}`",
        )
        return NodeAnswer(answer.node, answer.document, answer.failure, (gap,))

    def _ended(self, name: str, place: tuple[str, str]) -> Done:
        """Wait for the end of a pod, and return what it printed and how it ended."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                status = self.decoded(LabelledObject, "get", "pod", name, *place).status
            except FinwaitError as error:
                return Done(-1, b"", str(error))
            state = status.container_statuses[0].state if status.container_statuses else _State()
            if status.phase in ("Succeeded", "Failed"):
                break
            if time.monotonic() >= deadline:
                why = f": {state.waiting.reason}" if state.waiting is not None else ""
                return Done(-1, b"", f"its pod did not end within {self.timeout_s:g} s{why}")
            time.sleep(_AGAIN_S)
        logs = self.run("logs", name, *place)
        if logs.status != 0 or state.terminated is None:
            return Done(logs.status or -1, b"", logs.said or f"its pod ended as {status.phase}")
        return Done(state.terminated.exit_code, logs.out, logs.said)


def _look(node: str, image: str, words: Sequence[str], seconds: int) -> dict[str, Any]:
    """Return what makes a pod look at its node: all rights, as a debugging pod of the profile ``sysadmin`` has."""
    container = {
        "name": _LOOKER,
        "image": image,
        "command": ["finwait", *words],
        "securityContext": {"privileged": True, "runAsUser": 0},
    }
    spec = {
        "nodeName": node,
        "hostPID": True,
        "hostNetwork": True,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": seconds,
        "automountServiceAccountToken": False,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
    }
    return {"apiVersion": "v1", "spec": spec}


def answer_of(node: str, kind: str, done: Done) -> NodeAnswer:
    """Return what a finwait printed, if that is what was asked for.

    Args:
        node: where it ran.
        kind: of the document that was asked for.
        done: what the call came to.
    """
    if done.status not in _ANSWERED:
        return NodeAnswer(node, None, done.said or f"kubectl ended with status {done.status}")
    try:
        document = msgspec.json.decode(done.out, type=dict[str, Any])
        check(kind, document)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError) as error:
        tail = f"; it said: {done.said}" if done.said else ""
        return NodeAnswer(node, None, f"it did not print what this version reads: {error}{tail}")
    return NodeAnswer(node, document)
