"""``finwait relay``: the options, made from `finwait.relay.config`, and what each subcommand does.

Each option of the configuration is an option of ``run``, so there is one list of them. The parser of ``run`` fills
itself when it is used: the list needs msgspec, and the other commands of finwait should not wait for it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from finwait.arguments import Duration
from finwait.errors import FinwaitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from finwait.relay.config.model import Config

__all__ = [
    "DEFAULT_ADMIN",
    "RunParser",
    "add_parser",
    "build_config",
    "default_text",
    "duration",
    "flag_of",
    "main",
    "not_empty",
    "option_of",
]

DEFAULT_ADMIN = "/run/finwait-relay.sock"
_SINGLE = (
    "service.listen",
    "service.backend.address",
    "service.backend.weight",
    "service.backend.max_connections",
)
"""Options that have a form of their own on the command line."""
_FLAGS = {
    "service.timeouts.connect": "connect-timeout",
    "service.max_connections": "service-max-connections",
}


def flag_of(path: str) -> str:
    """Return the option of ``run`` for a path of the configuration, for example ``--half-close``."""
    if path in _FLAGS:
        return f"--{_FLAGS[path]}"
    name = path.removeprefix("service.").removeprefix("timeouts.")
    return "--" + name.replace(".", "-").replace("_", "-")


def option_of(path: str) -> str:
    """Return the option of ``run`` that sets a path, ``service[0].listen`` too; ``--to`` for all of a backend's."""
    plain = re.sub(r"\[\d*\]", "", path)
    if plain == "service.listen":
        return "--listen"
    return "--to" if plain.startswith("service.backend") else flag_of(plain)


def not_empty(text: str) -> str:
    """Refuse an empty value (argparse type): a script's unset variable, which would be taken for "not given"."""
    if not text.strip():
        raise argparse.ArgumentTypeError("empty: is a variable of your script not set?")
    return text


def _seconds(text: str) -> float:
    from finwait.relay.config.model import parse_duration

    return parse_duration(text)


duration = Duration(_seconds)
"""Seconds, or a duration with a unit (argparse type)."""

NEGATIVE = re.compile(r"-\.?[0-9]")
"""Words that argparse takes for values rather than options: else `--for -1s` were `--for` without its argument."""


class _Parser(argparse.ArgumentParser):
    """A parser that ends with a hint, and takes no empty value."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - whatever argparse takes
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = NEGATIVE
        self.register("type", None, not_empty)  # of every option and argument that names no other type

    def add_subparsers(self, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever argparse takes and returns
        """Let the parser of each subcommand judge its own words: all of them go through this one's type first."""
        subparsers = super().add_subparsers(**kwargs)
        subparsers.type = str
        return subparsers

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, with a hint."""
        from finwait.table.units import printable

        usage = f"finwait relay: error: {message}\nhint: `{self.prog} --help` lists the options\n"
        sys.stderr.write(printable(usage, lines=True))
        raise SystemExit(2)


class RunParser(_Parser):
    """The parser of ``run``, which fills itself when it is first used."""

    _filled = False

    def fill(self) -> RunParser:
        """Add the options; safe to call again."""
        if self._filled:
            return self
        self._filled = True
        import msgspec

        from finwait.relay.config.reference import options

        self.add_argument("--config", metavar="FILE", help="TOML file; the options below override it")
        self.add_argument("--check", action="store_true", help="check the configuration and exit")
        self.add_argument("--explain", action="store_true", help="print what each option is for and exit")
        self.add_argument(
            "--listen",
            action="append",
            metavar="ADDRESS",
            help="where clients connect, e.g. 0.0.0.0:80, *:80, unix:/path",
        )
        self.add_argument(
            "--to",
            action="append",
            metavar="ADDRESS[,weight=N][,max=N]",
            help="a backend, e.g. 10.0.0.5:80, dns:app.example:80, unix:/path, file:/etc/backends; may be repeated",
        )
        for path, kind, default, text in options():
            if path in _SINGLE:
                continue
            keywords: dict[str, Any] = {"dest": path, "default": None, "help": text.replace("%", "%%")}
            if default is not msgspec.NODEFAULT and default not in ("", (), None):
                keywords["help"] += f" (default {_shown(default)})"
            if kind is bool:
                keywords["action"] = argparse.BooleanOptionalAction
            elif kind is tuple:
                keywords |= {"action": "append", "metavar": "NETWORK"}
            elif getattr(kind, "__args__", None):
                keywords["choices"] = [choice for choice in kind.__args__ if choice]
            elif kind == "duration":
                keywords |= {"type": duration, "metavar": "DURATION"}
            elif kind in (int, float):
                keywords |= {"type": kind, "metavar": "N"}
            else:
                keywords["metavar"] = "TEXT" if kind is str else "N"
            self.add_argument(flag_of(path), **keywords)
        return self

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401
        """Fill, then parse."""
        return self.fill()._parse(args, namespace)

    def _parse(self, args: Any, namespace: Any) -> Any:  # noqa: ANN401
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """Fill, then format."""
        self.fill()
        return super().format_help()


def default_text(value: object, kind: str) -> str:
    """Return what an option is set to, as `--explain` and the reference page show it."""
    import msgspec

    if value is msgspec.NODEFAULT:
        return "(must be given)"
    if kind == "duration":
        return "0 (off)" if value == 0 else f"{_shown(value)} s"
    return _shown(value)


def _shown(default: object) -> str:
    if isinstance(default, (list, tuple)):
        return ", ".join(map(_shown, default)) or "none"
    if default == "":
        return "none"
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)


def add_parser(sub: argparse._SubParsersAction[Any]) -> None:
    """Register ``relay`` and its subcommands."""
    parser = sub.add_parser(
        "relay",
        help="a TCP relay that closes correctly: run it, see its connections, end them",
        description="A TCP relay that passes on FIN as FIN and RST as RST, holds a half-closed connection as "
        "long as both peers are alive, and frees it when one is gone.",
    )
    add_commands(parser)


def _output(parser: argparse.ArgumentParser, *forms: str, text: str = "") -> None:
    forms = forms or ("text", "json")
    parser.add_argument(
        "-o", "--output", choices=forms, default=forms[0], help=text or f"format (default {forms[0]})"
    )


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to a parser."""
    commands = parser.add_subparsers(dest="relay", metavar="COMMAND", required=True, parser_class=_Parser)
    # add_parser() makes parsers of one class; `run` needs its own.
    commands._parser_class = RunParser
    commands.add_parser(
        "run",
        help="run a relay",
        description="Run a relay in the foreground. Every option is also a key of the configuration file.",
        epilog="A duration is a number of seconds or has a unit: 300ms, 5s, 10m, 1h. 0 means no limit.",
    ).set_defaults(run=_run)
    commands._parser_class = _Parser
    schema = commands.add_parser("schema", help="print the JSON Schema of the configuration")
    _output(schema, "json")
    schema.set_defaults(run=_schema)
    table = commands.add_parser("transitions", help="print the table of states and events")
    _output(table)
    table.set_defaults(run=_transitions)
    ls = commands.add_parser("ls", help="list the connections of a running relay")
    ls.add_argument(
        "--half-closed", action="store_true", help="only connections on which one side has sent its FIN"
    )
    ls.add_argument("--service", help="only connections of this service")
    _output(ls, "text", "json", "jsonl", text="format (default text); jsonl: one object per line")
    ls.set_defaults(run=_ls)
    show = commands.add_parser("show", help="print everything about connections, as JSON")
    _output(show, "json", "jsonl")
    show.add_argument("ids", nargs="+", type=_id, metavar="ID", help="as `ls` shows it, for example 0-42")
    show.set_defaults(run=_show)
    close = commands.add_parser("close", help="end connections by RST on both sides")
    close.add_argument("ids", nargs="+", type=_id, metavar="ID", help="as `ls` shows it")
    _output(close)
    close.set_defaults(run=_close)
    drain = commands.add_parser("drain", help="stop accepting, let connections end, then exit")
    drain.add_argument(
        "--seconds",
        type=duration,
        metavar="DURATION",
        help="reset what is left after this long; 0 resets at once (default: as configured). While the "
        "relay drains, only a shorter time takes effect",
    )
    _output(drain)
    drain.set_defaults(run=_drain)
    stats = commands.add_parser("stats", help="print the metrics")
    _output(stats, "prometheus", "json")
    stats.set_defaults(run=_stats)
    for command in (ls, show, close, drain, stats):
        command.add_argument(
            "--admin",
            metavar="PATH",
            default=DEFAULT_ADMIN,
            help=f"admin socket of the relay (default {DEFAULT_ADMIN})",
        )


# ── run ──────────────────────────────────────────────────────────────────────────────────────────────────────


def build_config(args: argparse.Namespace) -> Config:
    """Return the configuration that file and options describe together.

    Raises:
        ConfigError: it cannot be; with file and line.
    """
    from pathlib import Path

    from finwait.relay.config.model import ConfigError
    from finwait.relay.config.parsing import parse
    from finwait.relay.config.reference import options
    from finwait.relay.config.toml import load

    overrides = {path: value for path, *_ in options() if (value := getattr(args, path, None)) is not None}
    if args.config:
        if not (overrides or args.listen or args.to):
            return load(Path(args.config))
        import msgspec

        data: dict[str, Any] = msgspec.to_builtins(load(Path(args.config)))
    else:
        if not args.listen or not args.to:
            raise ConfigError(
                "nothing to relay: give `--config`, or both `--listen` and `--to`",
                hint="for example `finwait relay run --listen 127.0.0.1:8080 --to 127.0.0.1:80`",
            )
        data = {"service": [{}]}
    if args.listen or args.to:
        if len(data["service"]) != 1:
            raise ConfigError(
                "`--listen` and `--to` are for a single service, and the file has several",
                hint="change the file, or leave out the options",
            )
        if args.listen:
            data["service"][0]["listen"] = args.listen
        if args.to:
            data["service"][0]["backend"] = [_backend(text) for text in args.to]
    for path, value in overrides.items():
        keys = path.split(".")
        for table in [data] if keys[0] != "service" else data["service"]:
            for key in keys[1 if keys[0] == "service" else 0 : -1]:
                table = table.setdefault(key, {})
            table[keys[-1]] = value
    return parse(data, name="command line", shown=option_of)


def _backend(text: str) -> dict[str, Any]:
    from finwait.relay.config.model import ConfigError

    address, *rest = text.split(",")
    backend: dict[str, Any] = {"address": address}
    for part in rest:
        key, _, value = part.partition("=")
        if key not in ("weight", "max") or not value.isdecimal():
            raise ConfigError(
                f"`--to {text}`: `{part}` is neither weight=N nor max=N", hint="e.g. 10.0.0.5:80,weight=2"
            )
        backend["max_connections" if key == "max" else key] = int(value)
    return backend


def _run(args: argparse.Namespace) -> int:
    if not args.config and (args.listen or args.to or not args.explain):
        _options_alone(args)
    if args.explain:
        return _explain(args)
    from finwait.relay import circles

    if args.check:
        from finwait.relay.privileges import user_entry

        config = build_config(args)
        circles.refuse(config, names=True)
        if config.user:
            user_entry(config.user)
        names = ", ".join(f"`{service.name}`" for service in config.service)
        sys.stdout.write(f"the configuration is valid: {names}, {config.workers} worker(s)\n")
        return 0
    from finwait.relay.signals import hold_signals
    from finwait.relay.supervisor import Supervisor

    hold_signals()

    def read() -> Config:
        config = build_config(args)
        circles.refuse(config)
        return config

    supervisor = Supervisor(read, [sys.executable, *sys.orig_argv[1:]])
    supervisor.bind()
    return supervisor.run()


def _options_alone(args: argparse.Namespace) -> None:
    """Check what options alone describe: what is wrong there is wrong on every machine."""
    from finwait.relay.config.model import ConfigError

    try:
        build_config(args)
    except ConfigError as error:
        raise UsageError(str(error), hint=error.hint) from None


def _explain(args: argparse.Namespace) -> int:
    """Print each option, what it is set to, and what it protects from."""
    import textwrap

    import msgspec

    from finwait.relay.config.reference import options

    now: Any = msgspec.to_builtins(build_config(args)) if args.config or args.listen or args.to else None
    for path, kind, default, text in options():
        value = default if now is None else _value(now, path, default)
        shown = default_text(value, kind)
        body = textwrap.fill(text, 92, initial_indent="    ", subsequent_indent="    ")
        sys.stdout.write(f"{path} = {shown}    [{option_of(path)}]\n{body}\n\n")
    return 0


def _value(config: Any, path: str, default: object) -> Any:  # noqa: ANN401 - of a configuration as plain values
    """Return what an option is set to; of several services or backends, in the first."""
    for key in path.split("."):
        if isinstance(config, (list, tuple)):
            config = next(iter(config), None)
        if not isinstance(config, dict):
            return default
        config = config.get(key, default)
    return config


def _schema(_: argparse.Namespace) -> int:
    from finwait.relay.config.reference import json_schema

    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
    return 0


def _transitions(args: argparse.Namespace) -> int:
    from finwait.relay.machine import render_table, rows_of_table

    if args.output == "json":
        _document("RelayTransitionList", {"items": rows_of_table()})
    else:
        sys.stdout.write(render_table())
    return 0


def _document(kind: str, members: dict[str, Any], silent: Iterable[int] = ()) -> None:
    """Print a JSON document; workers that did not answer are its gaps."""
    from finwait.errors import Gap
    from finwait.report.shape import document, encoded

    gaps = [Gap(f"worker pid {pid} of the relay", "ask it", "", pid=pid) for pid in silent]
    sys.stdout.write(encoded(document(kind, members, gaps)))


# ── asking a running relay ───────────────────────────────────────────────────────────────────────────────────


def _ask(path: str, request: dict[str, Any]) -> tuple[Any, list[int]]:
    """Send one request to an admin socket; return the answer, and the pids of the workers that are missing from it."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(30)
        try:
            sock.connect(path)
            sock.sendall(json.dumps(request).encode() + b"\n")
            line = sock.makefile("rb").readline()
        except OSError as error:
            failed = FinwaitError(f"could not ask the relay at `{path}`: {error.strerror or error}")
            failed.hint = (
                "is it running with `--admin PATH`? Give the same path here, as its owner or as root"
            )
            raise failed from None
    try:
        answer = json.loads(line) if line else {"error": "nothing; it closed the connection"}
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not answer.keys() & {"ok", "error"}:
        raise FinwaitError(
            f"the relay at `{path}` said {line[:40]!r}, which is no answer of a relay of this version"
        )
    if "error" in answer:
        raise FinwaitError(f"the relay at `{path}` said: {answer['error']}")
    silent: list[int] = answer.get("silent", [])
    for pid in silent:
        sys.stderr.write(f"finwait relay: worker pid {pid} does not answer; its part is missing here\n")
    return answer["ok"], silent


def _status(silent: list[int]) -> int:
    return 3 if silent else 0


def _ls(args: argparse.Namespace) -> int:
    conns: list[dict[str, Any]]
    conns, silent = _ask(args.admin, {"do": "ls"})
    if args.service:
        conns = [conn for conn in conns if conn["service"] == args.service]
    if args.half_closed:
        conns = [conn for conn in conns if "half_closed_s" in conn]
    if args.output == "json":
        _document("RelayConnectionList", {"items": conns}, silent)
        return _status(silent)
    if args.output == "jsonl":
        sys.stdout.writelines(json.dumps(conn) + "\n" for conn in conns)
        return _status(silent)
    rows = [("ID", "SERVICE", "STATE", "AGE", "SILENT", "ENDS-IN", "UP", "DOWN", "CLIENT", "SERVER")]
    rows += [
        (
            conn["id"],
            conn["service"],
            conn["state"],
            _age(conn["age_s"]),
            _age(conn.get("silent_s")),
            _age(conn.get("deadline_s")),
            _bytes(conn["bytes_from_client"]),
            _bytes(conn["bytes_from_server"]),
            conn["client"].get("source") or conn["client"]["peer"],
            conn["server"]["peer"],
        )
        for conn in sorted(conns, key=lambda conn: -conn["age_s"])
    ]
    _columns(rows)
    return _status(silent)


def _columns(rows: Sequence[Sequence[str]]) -> None:
    from finwait.table.units import printable

    rows = [
        [printable(str(cell)) for cell in row] for row in rows
    ]  # names come from files and from the network
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    sys.stdout.writelines(
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    if seconds < 3600:
        return f"{int(seconds // 60)}m{int(seconds % 60):02d}s"
    return f"{int(seconds // 3600)}h{int(seconds % 3600 // 60):02d}m"


def _bytes(count: float) -> str:
    for unit in ("B", "K", "M", "G", "T"):
        if count < 1000 or unit == "T":
            break
        count /= 1024
    return f"{count:.0f}{unit}" if unit == "B" else f"{count:.1f}{unit}"


def _id(text: str) -> str:
    """Read ``0-17`` (argparse type)."""
    worker, dash, number = text.partition("-")
    if not (dash and worker.isdecimal() and number.isdecimal() and len(text) <= 40):
        raise argparse.ArgumentTypeError(f"`{text}` is not an ID; `finwait relay ls` shows IDs, such as 0-17")
    return text


def _show(args: argparse.Namespace) -> int:
    conns: list[dict[str, Any]]
    conns, silent = _ask(args.admin, {"do": "show", "ids": args.ids})
    if args.output == "jsonl":
        sys.stdout.writelines(json.dumps(conn) + "\n" for conn in conns)
    else:
        _document("RelayConnectionList", {"items": conns}, silent)
    return _status(silent) or _all_found(len(conns), args.ids)


def _close(args: argparse.Namespace) -> int:
    count: int
    count, silent = _ask(args.admin, {"do": "close", "ids": args.ids})
    if args.output == "json":
        _document("RelayClosed", {"asked": len(args.ids), "ended": count}, silent)
    else:
        sys.stdout.write(f"{count} of {len(args.ids)} ended by RST\n")
    return _status(silent) or _all_found(count, args.ids)


def _all_found(count: int, ids: Iterable[str]) -> int:
    if count == len(set(ids)):
        return 0
    sys.stderr.write("some do not exist (any more)\nhint: `finwait relay ls` lists those that exist\n")
    return 1


def _drain(args: argparse.Namespace) -> int:
    answer, silent = _ask(args.admin, {"do": "drain", "seconds": args.seconds})
    if args.output == "json":
        answer = answer or {"cut_in_s": None, "as_asked": True}
        _document("RelayDraining", {"cut_in_s": answer["cut_in_s"], "as_asked": answer["as_asked"]}, silent)
    else:
        sys.stdout.write("draining\n")
    if not answer or answer["as_asked"]:  # a relay that was started before an upgrade does not say
        return _status(silent)
    sys.stderr.write(
        f"finwait relay: it was already draining and resets what is left in {answer['cut_in_s']:.1f} s; "
        "`--seconds` can only shorten that\n"
    )
    return 1


def _stats(args: argparse.Namespace) -> int:
    if args.output == "prometheus":
        from finwait.table.units import printable

        text, silent = _ask(args.admin, {"do": "metrics"})
        sys.stdout.write("".join(f"{printable(line)}\n" for line in text.splitlines()))
    else:
        counts, silent = _ask(args.admin, {"do": "stats"})
        _document("RelayStats", counts, silent)
    return _status(silent)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m finwait.relay``."""
    parser = _Parser(prog="python -m finwait.relay", description="A TCP relay that closes correctly.")
    add_commands(parser)
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
        return status
    except KeyboardInterrupt:
        return 130
    except (FinwaitError, ValueError) as error:
        from finwait.table.units import printable

        hint = getattr(error, "hint", "")
        message = f"finwait relay: error: {error}\n" + (f"hint: {hint}\n" if hint else "")
        sys.stderr.write(printable(message, lines=True))
        return 2 if isinstance(error, UsageError) else 1
