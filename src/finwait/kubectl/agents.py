"""Asks agents by the user's own ``kubectl``: which there are, and one command in many of them at once.

Whoever may ask is decided by the API server, as for any ``kubectl exec``. One that does not answer keeps nobody
waiting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import msgspec

from finwait.errors import FinwaitError, Gap
from finwait.kube.kubectl import Done, Kubectl
from finwait.kubectl.merging import NodeAnswer
from finwait.report.shape import API_VERSION

__all__ = ["SELECTOR", "AgentPod", "Agents"]

SELECTOR: Final = "app.kubernetes.io/name=finwait"
"""Labels of the pods of the chart's DaemonSet."""
_AT_ONCE: Final = 16
_LOOKER: Final = "looker"
"""The container that looks, where a pod has one of that name."""


class _Meta(msgspec.Struct):
    name: str = ""
    namespace: str = ""


class _Container(msgspec.Struct):
    name: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    node_name: str = ""
    containers: list[_Container] = []


class _PodStatus(msgspec.Struct):
    phase: str = ""


class _Object(msgspec.Struct):
    metadata: _Meta
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _ObjectList(msgspec.Struct):
    items: list[_Object] = []


@dataclass(frozen=True, slots=True)
class AgentPod:
    """A pod in which an agent runs."""

    node: str
    namespace: str
    name: str
    container: str


class Agents(Kubectl):
    """The agents of a cluster, asked by kubectl."""

    def agents(self, namespace: str = "") -> list[AgentPod]:
        """Return the agents that run, one a node.

        Args:
            namespace: in which they are; empty for all.

        Raises:
            FinwaitError: kubectl failed.
        """
        place = ("-n", namespace) if namespace else ("-A",)
        pods = self.decoded(_ObjectList, "get", "pods", *place, "-l", SELECTOR)
        by_node: dict[str, AgentPod] = {}
        for pod in pods.items:
            if pod.status.phase != "Running" or not pod.spec.node_name:
                continue
            names = [container.name for container in pod.spec.containers] or [""]
            container = _LOOKER if _LOOKER in names else names[0]
            by_node.setdefault(
                pod.spec.node_name,
                AgentPod(pod.spec.node_name, pod.metadata.namespace, pod.metadata.name, container),
            )
        return [by_node[node] for node in sorted(by_node)]

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
        node = str(self.decoded(_Object, "get", "pod", pod, *place).spec.node_name)
        if not node:
            raise FinwaitError(f"pod `{pod}` is on no node yet")
        return node

    def exec_words(self, agent: AgentPod, *words: str, typing: bool = False) -> list[str]:
        """Return the command line that runs finwait beside an agent."""
        options = ("-i", "-t") if typing else ()
        place = ("-n", agent.namespace, agent.name, "-c", agent.container)
        return self.command("exec", *options, *place, "--", "finwait", *words)

    def ask(self, agent: AgentPod, *words: str) -> NodeAnswer:
        """Return what finwait prints beside an agent, as JSON."""
        done = self.run(
            "exec", "-n", agent.namespace, agent.name, "-c", agent.container, "--", "finwait", *words
        )
        return _answer(agent.node, done)

    def ask_all(self, agents: Sequence[AgentPod], *words: str) -> list[NodeAnswer]:
        """Ask several agents at once."""
        with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(agents)))) as pool:
            return list(pool.map(lambda agent: self.ask(agent, *words), agents))

    def debug(self, node: str, image: str, *words: str) -> NodeAnswer:
        """Look once on a node without an agent, in a pod that is removed afterwards.

        Args:
            node: which.
            image: that has finwait.
            words: arguments of finwait.
        """
        before = self._debuggers(node)
        done = self.run(
            "debug",
            f"node/{node}",
            "--image",
            image,
            "--profile=sysadmin",
            "--attach",
            "--quiet",
            "--",
            "finwait",
            *words,
        )
        gaps = []
        for place, name in sorted(self._debuggers(node) - before):
            gone = self.run("delete", "pod", "-n", place, name, "--wait=false")
            if gone.status != 0:
                gaps.append(Gap(f"pod {place}/{name}", f"remove it: {gone.said}", "the right to delete pods"))
        answer = _answer(node, done)
        return NodeAnswer(answer.node, answer.document, answer.failure, tuple(gaps))

    def _debuggers(self, node: str) -> set[tuple[str, str]]:
        """Return the pods that ``kubectl debug`` has made for a node."""
        with contextlib.suppress(FinwaitError):
            pods = self.decoded(_ObjectList, "get", "pods")
            return {
                (pod.metadata.namespace, pod.metadata.name)
                for pod in pods.items
                if pod.metadata.name.startswith(f"node-debugger-{node}-") and pod.spec.node_name in ("", node)
            }
        return set()


def _answer(node: str, done: Done) -> NodeAnswer:
    try:
        document = msgspec.json.decode(done.out)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    if isinstance(document, dict) and document.get("apiVersion") == API_VERSION:
        return NodeAnswer(node, document)
    return NodeAnswer(node, None, done.said or f"kubectl ended with status {done.status}")
