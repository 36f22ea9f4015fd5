"""Asks agents by the user's own ``kubectl``: which there are, and one command in many of them at once.

Whoever may ask is decided by the API server, as for any ``kubectl exec``; finwait keeps no credentials and reads no
kubeconfig. What a node answers is bounded in length and time, and one that does not answer keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Final

import msgspec

from finwait.errors import FinwaitError, Gap
from finwait.kubectl.merging import NodeAnswer
from finwait.report.shape import API_VERSION
from finwait.table.units import printable

__all__ = ["SELECTOR", "AgentPod", "Kubectl"]

SELECTOR: Final = "app.kubernetes.io/name=finwait"
"""Labels of the pods of the chart's DaemonSet."""
_AT_ONCE: Final = 16
_ANSWER_MOST: Final = 256 << 20
_SAID_MOST: Final = 4096
_SAID_LINES: Final = 4
"""An error of ours has three: what, in which FILTER, a hint."""
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


@dataclass(frozen=True, slots=True)
class _Done:
    status: int
    out: bytes
    said: str


class _Reader(threading.Thread):
    """Reads what a process writes, and ends one that writes too much."""

    def __init__(self, process: subprocess.Popen[bytes], stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._process, self._stream = process, stream
        self.data = bytearray()
        self.too_much = False
        self.start()

    def run(self) -> None:
        while more := os.read(self._stream.fileno(), 1 << 16):
            self.data += more
            if len(self.data) > _ANSWER_MOST:
                self.too_much = True
                self._process.kill()
                return


class Kubectl:
    """The user's kubectl.

    Args:
        options: for each call: ``--context`` and the like.
        timeout_s: for each call.
    """

    def __init__(self, options: Sequence[str] = (), timeout_s: float = 30.0) -> None:
        self._options = tuple(options)
        self._timeout_s = timeout_s

    def command(self, *words: str) -> list[str]:
        """Return a command line.

        Raises:
            FinwaitError: there is no kubectl.
        """
        program = shutil.which("kubectl")
        if program is None:
            failure = FinwaitError("there is no `kubectl` in the search path")
            failure.hint = "https://kubernetes.io/docs/tasks/tools/ says how to get it"
            raise failure
        return [program, *words[:1], *self._options, *words[1:]]

    def _run(self, *words: str) -> _Done:
        """Run it; what it writes is bounded."""
        with subprocess.Popen(
            self.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            out, errors = _Reader(process, process.stdout), _Reader(process, process.stderr)
            try:
                status = process.wait(self._timeout_s)
            except subprocess.TimeoutExpired:
                return _Done(-1, b"", f"no answer within {self._timeout_s:g} s")
            finally:
                process.kill()  # nothing happens to one that has ended
            for reader in (out, errors):
                reader.join(self._timeout_s)
        if out.too_much:
            return _Done(-1, b"", f"the answer is longer than {_ANSWER_MOST >> 20} MiB")
        text = bytes(errors.data[-_SAID_MOST:]).decode("utf-8", "replace")
        return _Done(status, bytes(out.data), printable(_last_lines(text)))

    def _decoded(self, kind: type[Any], *words: str) -> Any:  # noqa: ANN401 - of that type
        done = self._run(*words, "-o", "json")
        if done.status != 0:
            raise FinwaitError(f"`kubectl {' '.join(words)}` failed: {done.said or f'status {done.status}'}")
        try:
            return msgspec.json.decode(done.out, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FinwaitError(
                f"`kubectl {words[0]} {words[1]}` did not print what it should: {error}"
            ) from None

    def agents(self, namespace: str = "") -> list[AgentPod]:
        """Return the agents that run, one a node.

        Args:
            namespace: in which they are; empty for all.

        Raises:
            FinwaitError: kubectl failed.
        """
        place = ("-n", namespace) if namespace else ("-A",)
        pods = self._decoded(_ObjectList, "get", "pods", *place, "-l", SELECTOR)
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
            nodes = self._decoded(_ObjectList, "get", "nodes")
        except FinwaitError as error:
            return [], (Gap("the cluster", f"list its nodes: {error}", "the right to list nodes"),)
        return sorted(node.metadata.name for node in nodes.items), ()

    def node_of(self, pod: str, namespace: str) -> str:
        """Return the node of a pod.

        Raises:
            FinwaitError: there is no such pod, or it runs nowhere yet.
        """
        place = ("-n", namespace) if namespace else ()
        node = str(self._decoded(_Object, "get", "pod", pod, *place).spec.node_name)
        if not node:
            raise FinwaitError(f"pod `{pod}` is on no node yet")
        return node

    def namespace(self) -> str:
        """Return the namespace of the user's context."""
        done = self._run("config", "view", "--minify", "-o", "jsonpath={..namespace}")
        return (
            done.out.decode("utf-8", "replace").strip()
            if done.status == 0 and done.out.strip()
            else "default"
        )

    def exec_words(self, agent: AgentPod, *words: str, typing: bool = False) -> list[str]:
        """Return the command line that runs finwait beside an agent."""
        options = ("-i", "-t") if typing else ()
        place = ("-n", agent.namespace, agent.name, "-c", agent.container)
        return self.command("exec", *options, *place, "--", "finwait", *words)

    def ask(self, agent: AgentPod, *words: str) -> NodeAnswer:
        """Return what finwait prints beside an agent, as JSON."""
        done = self._run(
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
        done = self._run(
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
            gone = self._run("delete", "pod", "-n", place, name, "--wait=false")
            if gone.status != 0:
                gaps.append(Gap(f"pod {place}/{name}", f"remove it: {gone.said}", "the right to delete pods"))
        answer = _answer(node, done)
        return NodeAnswer(answer.node, answer.document, answer.failure, tuple(gaps))

    def _debuggers(self, node: str) -> set[tuple[str, str]]:
        """Return the pods that ``kubectl debug`` has made for a node."""
        with contextlib.suppress(FinwaitError):
            pods = self._decoded(_ObjectList, "get", "pods")
            return {
                (pod.metadata.namespace, pod.metadata.name)
                for pod in pods.items
                if pod.metadata.name.startswith(f"node-debugger-{node}-") and pod.spec.node_name in ("", node)
            }
        return set()


def _answer(node: str, done: _Done) -> NodeAnswer:
    try:
        document = msgspec.json.decode(done.out)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    if isinstance(document, dict) and document.get("apiVersion") == API_VERSION:
        return NodeAnswer(node, document)
    return NodeAnswer(node, None, done.said or f"kubectl ended with status {done.status}")


def _last_lines(text: str) -> str:
    """Return the last lines: what is wrong and where, a hint, and what kubectl adds about the exit status."""
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
    return "; ".join(lines[-_SAID_LINES:])[:500]
