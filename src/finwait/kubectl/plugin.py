"""``kubectl finwait``: the command line.

Without a command it shows what does not finish closing on all nodes, as one table; ``list`` shows connections. What
acts or draws (``explain``, ``clear``, ``top``) goes to the agent of one node as it is typed, with that node's guards
and journal.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import msgspec

from finwait.errors import FilterError, FinwaitError, Gap, UsageError
from finwait.kubectl import merging
from finwait.kubectl.agents import NO_AGENT, AgentPod, Agents
from finwait.kubectl.selection import filter_words, pod_of, scope
from finwait.selecting import parse_filter
from finwait.table.units import printable
from finwait.version import __version__

__all__ = ["build_parser", "main"]

COMMANDS: Final = ("diagnose", "list", "explain", "clear", "top", "page", "record", "debug", "audit")
_UNSEEN: Final = 3
_WRONG: Final = (UsageError, FilterError)
"""What is wrong in the command line."""
_LONGEST_S: Final = 86_400.0


def _seconds(text: str) -> float:
    """Return a time in seconds.

    Raises:
        argparse.ArgumentTypeError: it is none that can be waited for.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST_S:
        raise argparse.ArgumentTypeError(f"write seconds, more than 0 and at most {_LONGEST_S:g}")
    return seconds


def _port(text: str) -> int:
    """Return a port.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError("write a port from 1 to 65535")
    return int(text)


def _which(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("cluster")
    group.add_argument("--context", metavar="NAME", help="context of the kubeconfig")
    group.add_argument("--kubeconfig", metavar="FILE", help="the kubeconfig")
    return group


def _common(parser: argparse.ArgumentParser) -> None:
    group = _which(parser)
    group.add_argument(
        "--agents", metavar="NS", default="", help="namespace of the agents (default: the one that has them)"
    )
    group.add_argument(
        "--timeout", type=_seconds, default=30.0, metavar="SECONDS", help="for each node (default 30)"
    )


def _selecting(parser: argparse.ArgumentParser, *, one_node: bool) -> None:
    group = parser.add_argument_group("which connections")
    group.add_argument(
        "-n", "--namespace", metavar="NS", help="of pods in this namespace (default: the context's)"
    )
    group.add_argument(
        "-A", "--all-namespaces", action="store_true", help="of all pods, and of what is in no pod"
    )
    group.add_argument("-l", "--selector", metavar="SELECTOR", default="", help="of pods with these labels")
    group.add_argument(
        "--node", metavar="NODE", required=one_node, help="on this node" + ("" if one_node else " only")
    )


def _of_one_node(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register what is asked of one node, and of none."""
    explain = commands.add_parser(
        "explain", help="why the connections of a pod do not close", allow_abbrev=False
    )
    explain.add_argument("pod", metavar="pod/NAME")
    explain.add_argument("-n", "--namespace", metavar="NS", help="of the pod (default: the context's)")
    explain.add_argument("filter", nargs="*", metavar="FILTER", help="only these of its connections")
    _common(explain)
    clear = commands.add_parser(
        "clear", help="end connections on a node: shows a plan unless --yes is given", allow_abbrev=False
    )
    _selecting(clear, one_node=True)
    clear.add_argument("--yes", action="store_true", help="do it")
    clear.add_argument("filter", nargs="*", metavar="FILTER", help="which")
    _common(clear)
    top = commands.add_parser("top", help="the live view of a node", allow_abbrev=False)
    top.add_argument("--node", metavar="NODE", required=True)
    _common(top)
    page = commands.add_parser("page", help="forward the page of a node to this machine", allow_abbrev=False)
    page.add_argument("--node", metavar="NODE", required=True)
    page.add_argument(
        "--port", type=_port, default=9944, metavar="PORT", help="on this machine (default 9944)"
    )
    _common(page)
    record = commands.add_parser(
        "record", help="save what the agent of a node reads to a file here", allow_abbrev=False
    )
    record.add_argument("--node", metavar="NODE", required=True)
    record.add_argument("file", metavar="FILE", help="where to write; `finwait --from FILE` reads it")
    record.add_argument("--redact", action="store_true", help="with pseudonyms, for a public bug report")
    _common(record)
    debug = commands.add_parser("debug", help="look once on a node without an agent", allow_abbrev=False)
    debug.add_argument("node", metavar="NODE")
    debug.add_argument("--image", required=True, metavar="IMAGE", help="that has finwait")
    debug.add_argument("-o", "--output", choices=("text", "json"), default="text", help="format")
    debug.add_argument("filter", nargs="*", metavar="FILTER", help="which connections")
    _common(debug)
    audit = commands.add_parser(
        "audit",
        help="judge the settings that the cluster runs: kube-proxy, pods, proxies",
        allow_abbrev=False,
    )
    audit.add_argument("-o", "--output", choices=("text", "json", "sarif"), default="text", help="format")
    audit.add_argument("--all", action="store_true", help="in text, also show what is right")
    _which(audit)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="kubectl finwait",
        description="TCP connections that do not finish closing, on all nodes of a cluster: asks the agents of the "
        "DaemonSet by kubectl. Without a command: `diagnose`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kubectl-finwait {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, about in (
        ("diagnose", "what is wrong, with its cause, workload and whose move it is"),
        ("list", "the connections themselves"),
    ):
        command = commands.add_parser(name, help=about, description=f"Show {about}.", allow_abbrev=False)
        _selecting(command, one_node=False)
        _common(command)
        command.add_argument("-o", "--output", choices=("text", "json"), default="text", help="format")
        command.add_argument(
            "-w",
            "--watch",
            type=_seconds,
            nargs="?",
            const=5.0,
            metavar="SECONDS",
            help="again and again (default 5 s)",
        )
        command.add_argument("filter", nargs="*", metavar="FILTER", help="as of `finwait list`")
    _of_one_node(commands)
    return parser


class _Plugin:
    """One run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        options: list[str] = []
        for name in ("context", "kubeconfig"):
            if value := getattr(args, name):
                options += [f"--{name}", value]
        self.scope = ""
        """What is asked about; empty for everything."""
        self.kubectl = Agents(options, getattr(args, "timeout", 30.0))

    def _words(self) -> list[str]:
        """Return the FILTER, and note what it is about."""
        args = self.args
        namespace = "" if args.all_namespaces else args.namespace or self.kubectl.namespace()
        self.scope = scope(namespace, args.selector, args.filter)
        return filter_words(namespace, args.selector, args.filter)

    def _agent(self, node: str) -> AgentPod:
        """Return the agent of a node, where nothing else looks like one."""
        return self.kubectl.agents(self.args.agents).on(node, named=bool(self.args.agents))

    def _asked(self) -> tuple[list[AgentPod], list[Gap]]:
        """Return the agents to ask, and the nodes that have none, or several."""
        agents = self.kubectl.agents(self.args.agents)
        if self.args.node:
            return [agents.on(self.args.node, named=True)], []
        if not agents.one_a_node and not agents.several:
            failure = FinwaitError("no agent runs in this cluster, or none that you may see")
            failure.hint = NO_AGENT
            raise failure
        nodes, gaps = self.kubectl.nodes()
        present = {agent.node for agent in agents.one_a_node} | agents.several.keys()
        without = [
            Gap(f"node {node}", "ask its agent: none runs there", NO_AGENT)
            for node in nodes
            if node not in present
        ]
        return list(agents.one_a_node), [*gaps, *without, *agents.gaps]

    def look(self) -> int:
        """Ask all agents, and show one answer."""
        args = self.args
        listed = args.command == "list"
        words = self._words()
        agents, missing = self._asked()
        answers = self.kubectl.ask_all(agents, args.command, "-o", "json", "--", *words)
        gaps = [*missing, *merging.gaps_of(answers)]
        merged = merging.connections(answers, gaps) if listed else merging.diagnosis(answers, gaps)
        _print(args.output, merged, answers, listed=listed, scope=self.scope)
        _tell(gaps if args.output == "text" else ())
        if not any(answer.document is not None for answer in answers):
            return 1
        return _UNSEEN if gaps else 0

    def debug(self) -> int:
        """Look once where no agent runs."""
        args = self.args
        answers = [self.kubectl.debug(args.node, args.image, "diagnose", "-o", "json", "--", *args.filter)]
        gaps = merging.gaps_of(answers)
        about = scope("", "", args.filter)
        _print(args.output, merging.diagnosis(answers, gaps), answers, listed=False, scope=about)
        _tell(gaps if args.output == "text" else ())
        return 1 if answers[0].document is None else _UNSEEN if gaps else 0

    def explain(self) -> NoReturn:
        """Explain the connections of a pod, however many, where it is."""
        args = self.args
        namespace = args.namespace or self.kubectl.namespace()
        name = pod_of(args.pod)
        words = [f'pod = "{namespace}/{name}"']
        if args.filter:
            parse_filter(args.filter)  # by itself: within our parentheses it could come to mean more
            words = [f"( {words[0]} ) and ( {' '.join(args.filter)} )"]
        agent = self._agent(self.kubectl.node_of(name, namespace))
        _become(self.kubectl.exec_words(agent, "diagnose", "--detail", "--", *words))

    def clear(self) -> NoReturn:
        """End connections on one node: its plan, its guards, its journal."""
        if not self.args.filter:
            raise UsageError("`clear` needs a FILTER", hint="such as `rule = fin-wait2-held`")
        mode = ("--yes",) if self.args.yes else ("--dry-run",)
        _become(self.kubectl.exec_words(self._agent(self.args.node), "clear", *mode, "--", *self._words()))

    def record(self) -> int:
        """Save what is read on a node: a file that is not whole is not written."""
        from finwait.recording import STANDARD, received

        args = self.args
        if args.file == STANDARD:
            raise UsageError("`record` writes a file here", hint="name one, and send that on")
        agent = self._agent(args.node)
        done = self.kubectl.record(agent, *(("--redact",) if args.redact else ()))
        _, looks = received(done.out, args.file)
        file, gaps = printable(args.file), sorted({gap for look in looks for gap in look.gaps})
        sys.stderr.write(
            f"finwait: recorded node {printable(agent.node)} ({len(done.out) / 1000:.0f} kB) into `{file}`; "
            f"read it with `finwait --from {shlex.quote(file)}`\n"
        )
        _tell([gap.but(where=f"node {agent.node}, {gap.where}") for gap in gaps])
        return _UNSEEN if gaps or done.status == _UNSEEN else 0

    def audit(self) -> int:
        """Judge what the cluster runs: the command of finwait that does."""
        from finwait.cli import main as finwait

        args = self.args
        named = [(f"--{name}", value) for name in ("context", "kubeconfig") if (value := getattr(args, name))]
        options = [word for option in named for word in option]
        return finwait(["audit", "--cluster", *options, "-o", args.output, *(("--all",) if args.all else ())])

    def top(self) -> NoReturn:
        """Draw the live view."""
        _become(self.kubectl.exec_words(self._agent(self.args.node), "top", "--agent", typing=True))

    def page(self) -> NoReturn:
        """Forward the page."""
        agent = self._agent(self.args.node)
        if not agent.port:
            raise FinwaitError(f"the agent {agent.path} serves no page")
        scheme, port = "https" if agent.tls else "http", self.args.port
        sys.stderr.write(f"finwait: the page of {printable(agent.node)}: {scheme}://127.0.0.1:{port}/\n")
        sys.stderr.flush()
        place = ("-n", agent.namespace, f"pod/{agent.name}")
        _become(self.kubectl.command("port-forward", *place, f"{port}:{agent.port}"))


def _become(command: Sequence[str]) -> NoReturn:
    sys.stdout.flush()
    os.execv(command[0], list(command))  # noqa: S606 - no shell is meant


def _print(
    output: str, merged: dict[str, Any], answers: Sequence[merging.NodeAnswer], *, listed: bool, scope: str
) -> None:
    if output == "json":
        sys.stdout.write(msgspec.json.encode(merged).decode() + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in merging.table(answers, listed=listed, scope=scope)))
    sys.stdout.flush()


def _tell(gaps: Sequence[Gap]) -> None:
    for gap in gaps:
        sys.stderr.write(f"finwait: not seen: {gap}\n")


def _with_command(argv: Sequence[str]) -> list[str]:
    """Return the arguments with ``diagnose`` where no command is among them."""
    if argv[:1] and argv[0] in (*COMMANDS, "-h", "--help", "--version"):
        return list(argv)
    return ["diagnose", *argv]


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Return what the command line says; options may stand before, behind and within a FILTER."""
    parser = build_parser()
    args, rest = parser.parse_known_args(_with_command(argv))
    if rest and (not hasattr(args, "filter") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.filter = [*args.filter, *rest]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return the exit status: that of finwait, see finwait(8)."""
    args = _parsed(sys.argv[1:] if argv is None else argv)
    try:
        plugin = _Plugin(args)
        run: Callable[[], int] = (
            plugin.look if args.command in ("diagnose", "list") else getattr(plugin, args.command)
        )
        seconds = getattr(args, "watch", None)
        if seconds is None:
            return run()
        while True:
            _again(run)
            time.sleep(max(1.0, seconds))
            sys.stdout.write("\n")
    except FinwaitError as error:
        return _failed(error)
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130


def _again(run: Callable[[], int]) -> None:
    """Run once of many times; one that fails is told and ends nothing.

    Raises:
        UsageError: it would fail each time.
        FilterError: so would this.
    """
    try:
        run()
    except _WRONG:
        raise
    except FinwaitError as error:
        _failed(error)


def _failed(error: FinwaitError) -> int:
    """Tell an error; return the exit status."""
    # Of a FILTER the lines show where it is wrong; others may quote what a node said.
    text = printable(str(error), lines=isinstance(error, FilterError))
    sys.stderr.write(f"finwait: error: {text}\n")
    if hint := error.hint:
        sys.stderr.write(f"hint: {printable(hint)}\n")
    return 2 if isinstance(error, _WRONG) else 1
