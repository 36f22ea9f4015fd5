"""``finwait agent``: look all the time, remember, and tell Prometheus."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

from finwait.agent.option_texts import CONFIG, SOCKET, TEXTS, AgentValue
from finwait.cli import options

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "agent",
        help="look all the time: since when, how it ended, metrics",
        description="Look at this machine all the time, within a share of one processor: since when each connection "
        "has not been closing, how it ended, and whether it gets worse. Keeps a history (`finwait history`) and "
        "serves metrics. Changes nothing on the machine, unless a policy of mode `act` says so (`--policy`). "
        f"Every option can be in a file (`--config`, default `{CONFIG}` if it is there); the command line wins.",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"take options from this TOML file (default `{CONFIG}` if it is there; `none` for no file). Read again at "
        "SIGHUP. Refused if others may have written the file",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only say whether configuration and policy are right, what would be in force and where it comes from "
        "(status 1 if they are wrong)",
    )
    _add_options(parser)
    parser.set_defaults(run=run)
    children = parser.add_subparsers(dest="agent_command", metavar="COMMAND")
    status = children.add_parser(
        "status", help="how the running agent is", description="Ask the running agent how it is."
    )
    status.add_argument(
        "--socket",
        default=argparse.SUPPRESS,  # else one that stands before the command would be lost
        metavar="PATH",
        help=f"ask the agent at this Unix socket (default `{SOCKET}`)",
    )
    status.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="format (default text)"
    )
    status.set_defaults(run=_status)
    _add_serve(children)
    options.add_schema(children, "the agent's configuration file", _schema)


def _add_serve(children: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``finwait agent serve``."""
    serve = children.add_parser(
        "serve",
        help="serve the page of an agent that runs in another container",
        description="Serve the page, its API, `/metrics` and `/healthz` of an agent that was started with "
        "`--serve-socket PATH`. Needs no right, and gives up those that it has. For two containers of one pod; "
        "elsewhere `finwait agent --listen` starts that process itself. Waits for an agent that is not there yet, or "
        "is started again. Reads its files once: start it again after a change of token or certificate.",
    )
    for name, more in _SERVED.items():
        serve.add_argument(
            "--" + name.replace("_", "-"),
            default=argparse.SUPPRESS,  # else one that stands before the command would be lost
            help=_SERVE_TEXTS.get(name, TEXTS[name]).replace("%", "%%"),
            **more,
        )
    serve.set_defaults(run=_serve)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the file may say, too."""
    _add(parser, "state_dir", metavar="DIR")
    _add(parser, "socket", metavar="PATH")
    _add(parser, "listen", type=_place, metavar="ADDRESS")
    _add(parser, "token_file", metavar="FILE")
    _add(parser, "tls_cert", metavar="FILE")
    _add(parser, "tls_key", metavar="FILE")
    _add(parser, "serve_socket", metavar="PATH")
    _add(parser, "share", type=_share, metavar="PERCENT")
    _add(parser, "interval", type=_interval, metavar="DURATION")
    _add(parser, "textfile", metavar="DIR")
    _add(parser, "policy", metavar="FILE")
    _add(parser, "no_act", action="store_true")
    _add(parser, "kill_switch", metavar="PATH")
    _add(parser, "once", action="store_true")
    _add(parser, "record_states", action=argparse.BooleanOptionalAction)
    _add(parser, "record_rate", type=options.at_least_one, metavar="N")
    _add(parser, "packets", action="append", type=_space, metavar="NETNS")
    _add(parser, "kubernetes", type=_kubernetes, metavar="auto|off|URL")
    _add(parser, "kube_token_file", metavar="FILE")
    _add(parser, "kube_ca_file", metavar="FILE")
    _add(parser, "node_name", type=_node, metavar="NAME")
    _add(parser, "kube_events", action="store_true")


def _add(parser: argparse.ArgumentParser, name: str, **more: Any) -> None:  # noqa: ANN401 - what argparse takes
    """Add an option that the file may have, too: nothing is given unless the command line says it."""
    text = TEXTS[name].replace("%", "%%")
    parser.add_argument("--" + name.replace("_", "-"), default=None, help=text, **more)


def _text_type(read: Callable[[str], object], text: str) -> str:
    """Return the text, if it can be read.

    Raises:
        ArgumentTypeError: it cannot.
    """
    try:
        read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _place(text: str) -> str:
    """Take an address with a port, or ``unix:`` and a path (argparse type)."""
    from finwait.agent.configured import listen_address

    return _text_type(listen_address, text)


def _share(text: str) -> str:
    """Take ``1%``, ``0.5%`` or ``1`` (argparse type)."""
    from finwait.agent.config_file import share_of

    return _text_type(share_of, text)


def _space(text: str) -> str:
    """Take ``self``, a name or an inode of a network namespace (argparse type)."""
    from finwait.agent.config_file import space_of

    return _text_type(space_of, text)


def _kubernetes(text: str) -> str:
    """Take ``auto``, ``off`` or the URL of an API server (argparse type)."""
    from finwait.agent.config_file import kubernetes_of

    return _text_type(kubernetes_of, text)


def _node(text: str) -> str:
    """Take the name of a node (argparse type)."""
    from finwait.agent.config_file import node_of

    return _text_type(node_of, text)


def _interval(text: str) -> str:
    """Take a duration from a second to five minutes (argparse type)."""
    from finwait.agent.config_file import interval_ms_of

    return _text_type(interval_ms_of, text)


def _given(args: argparse.Namespace) -> dict[str, AgentValue]:
    """Return what the command line says, by key of the file."""
    values = {name: getattr(args, name) for name in TEXTS}
    return {
        name: tuple(dict.fromkeys(value)) if isinstance(value, list) else value
        for name, value in values.items()
        if value is not None
    }


def run(args: argparse.Namespace) -> int:
    """Look until a signal ends it."""
    from finwait.agent.configured import Configured

    if args.check:
        return _check(args)
    from finwait.agent import service

    configured = Configured(args.config, _given(args))
    return service.run(service.options_of(configured))


def _check(args: argparse.Namespace) -> int:
    """Say whether configuration and policy are right, and what would be in force."""
    import sys

    from finwait.agent.configured import Configured, check_places
    from finwait.errors import FinwaitError
    from finwait.table.units import printable

    try:
        configured = Configured(args.config, _given(args))
        check_places(configured.settings)
        policy = _policy(configured.settings.policy)
    except FinwaitError as error:
        sys.stderr.write(printable(f"finwait: {error}\n", lines=True))
        if error.hint:
            sys.stderr.write(printable(f"hint: {error.hint}\n", lines=True))
        return 1
    settings = configured.settings
    rows = [(name, _shown(value), settings.sources[name]) for name, value in settings.items()]
    wide = max(len(value) for _, value, _ in rows)
    lines = [f"{name:<12}  {value:<{wide}}  {source}" for name, value, source in rows]
    file = f"`{configured.file}` is right" if configured.file else "right; no configuration file"
    lines = [file, *lines, *policy]
    options.write([printable(f"{line.rstrip()}\n", lines=True) for line in lines])
    return 0


def _shown(value: AgentValue) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(value) if isinstance(value, tuple) else str(value)) or "-"


def _policy(path: str) -> list[str]:
    """Return what a policy says, in a line.

    Raises:
        FinwaitError: it is wrong, or may not be used.
    """
    if not path:
        return []
    from finwait.agent.hands import read_policy
    from finwait.agent.policy_file import parse_policy

    policy = parse_policy(read_policy(path), path)
    rules = ", ".join(rule.name for rule in policy.rules) or "none"
    return [f"`{path}` is right: policy `{policy.name}`, mode {policy.mode}, rules: {rules}"]


def _schema(args: argparse.Namespace) -> int:  # noqa: ARG001 - as every command is run
    """Print the JSON Schema."""
    import json

    from finwait.agent.config_file import json_schema

    options.write([json.dumps(json_schema(), indent=2) + "\n"])
    return 0


_SERVED: Final[dict[str, dict[str, Any]]] = {
    "serve_socket": {"metavar": "PATH"},
    "listen": {"type": _place, "metavar": "ADDRESS"},
    "token_file": {"metavar": "FILE"},
    "tls_cert": {"metavar": "FILE"},
    "tls_key": {"metavar": "FILE"},
    "interval": {"type": _interval, "metavar": "DURATION"},
}
"""Options of ``finwait agent serve``."""
_SERVE_TEXTS: Final = {
    "serve_socket": "ask the agent at this Unix socket, of root or of your own user; it may come and go",
    "listen": "serve there, at an address or at `unix:` and a path",
    "tls_cert": "serve with TLS (1.2 or later) and this certificate: PEM, the server's own first",
    "interval": "the agent's own `--interval`: `/healthz` fails when no look has succeeded for two minutes, or for "
    "four of these (default 15s)",
}


def _serve(args: argparse.Namespace) -> int:
    """Become the process that faces the network."""
    from finwait.agent.config_file import interval_ms_of
    from finwait.agent.configured import NO_CONFIG, Configured
    from finwait.agent.facing import become_face
    from finwait.errors import UsageError

    typed = _given(args)
    for name in ("serve_socket", "listen"):
        if name not in typed:
            raise UsageError(f"`finwait agent serve` needs `--{name.replace('_', '-')}`")
    configured = Configured(NO_CONFIG, {name: typed[name] for name in _SERVED if name in typed})
    settings, secrets = configured.settings, configured.secrets
    if settings.serve_socket.isdecimal():
        raise UsageError("`--serve-socket` is a path", hint="write an absolute path")
    become_face(
        settings.serve_socket,
        settings.listen,
        secrets.token,
        interval_ms_of(settings.interval) / 1000,
        secrets.tls,
    )


def _status(args: argparse.Namespace) -> int:
    """Say how the running agent is."""
    from finwait.agent import client, protocol
    from finwait.errors import FinwaitError

    path = args.socket or SOCKET
    try:
        answer = client.ask(protocol.AskStatus(), path)
    except ValueError as error:
        raise FinwaitError(f"the agent at `{path}` does not answer as one: {error}") from None
    if answer.status is None:
        raise FinwaitError(f"the agent at `{path}` says: {answer.error or 'nothing'}")
    status = answer.status
    if args.output == "json":
        import msgspec

        from finwait.report.shape import document, encoded

        members = msgspec.to_builtins(status)
        members["boot_id"], members["unseen"] = members.pop("boot"), members.pop("gaps")
        options.write([encoded(document("AgentStatus", members))])
        return 3 if status.gaps else 0
    from finwait.agent.telling import status_lines

    options.write(status_lines(status))
    return 3 if status.gaps else 0
