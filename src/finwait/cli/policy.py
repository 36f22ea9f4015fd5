"""``finwait policy``: check a policy of the agent, and try it on the recorded history."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from finwait.cli import options

if TYPE_CHECKING:
    from finwait.agent.policy_file import Policy

__all__ = ["add_parser", "check", "run_trial", "schema"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "policy",
        help="check what the agent may end by itself, and try it on the history",
        description="A policy says which connections `finwait agent --policy FILE` may end by itself, how, and how "
        "many. These commands change nothing.",
    )
    children = parser.add_subparsers(dest="policy_command", metavar="COMMAND", required=True)
    checks = children.add_parser(
        "check",
        help="say whether a policy is right",
        description="Read a policy and say whether it is right; exit status 2, with the line, if it is not.",
    )
    _add_file(checks)
    _add_output(checks)
    checks.set_defaults(run=check)
    tries = children.add_parser(
        "try",
        help="what a policy would have done over the recorded history",
        description="Say what a policy would have done over the history of `finwait agent`, which budget stopped it, "
        "and what the history cannot tell. Changes nothing, whatever the mode of the policy.",
    )
    _add_file(tries)
    tries.add_argument(
        "--since",
        type=options.duration_ms,
        default=86_400_000,
        metavar="DURATION",
        help="from then on (default 24h)",
    )
    tries.add_argument(
        "--state-dir",
        metavar="DIR",
        help="where the agent keeps its history (default `/var/lib/finwait` for root)",
    )
    _add_output(tries)
    tries.set_defaults(run=run_trial)
    options.add_schema(children, "a policy file", schema)


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the policy, a TOML file")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="format (default text)"
    )


def _read(path: str) -> Policy:
    """Return the policy of a file.

    Raises:
        PolicyError: it is wrong.
        FinwaitError: it cannot be read.
    """
    from finwait import files
    from finwait.agent.policy_file import FILE_MOST, parse_policy
    from finwait.errors import FinwaitError

    try:
        data = files.read(path, FILE_MOST, pipes=True)
    except OSError as error:
        raise FinwaitError(f"could not read the policy `{path}`: the kernel said {error.strerror}") from None
    return parse_policy(data, path)


def check(args: argparse.Namespace) -> int:
    """Say whether a policy is right."""
    from finwait.table.units import printable

    policy = _read(args.file)
    if args.output == "json":
        from finwait.report.shape import document, encoded

        names = [rule.name for rule in policy.rules]
        members = {"policy": policy.name, "mode": policy.mode, "rules": names}
        options.write([encoded(document("PolicyCheck", members))])
        return 0
    rules = ", ".join(rule.name for rule in policy.rules) or "none"
    options.write(
        [
            printable(
                f"`{args.file}` is right: policy `{policy.name}`, mode {policy.mode}, rules: {rules}\n",
                lines=True,
            )
        ]
    )
    return 0


def run_trial(args: argparse.Namespace) -> int:
    """Say what a policy would have done."""
    import time

    from finwait.agent import policy_trial, telling
    from finwait.agent.episodes import Instant
    from finwait.agent.store import Store, agent_runs, store_path
    from finwait.kernel import procfs
    from finwait.report.shape import document, encoded

    policy = _read(args.file)
    now = Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())
    since_ns = now.wall_ns - int(args.since * 1_000_000)
    boot, path = procfs.facts().boot_id, store_path(args.state_dir)
    with Store(path, read_only=True) as store:
        last, looker = store.meta("round"), store.meta("looker")
        findings = frozenset[str]().union(*(rule.findings for rule in policy.rules))
        batches = store.batches(since_ns, rules=findings, open_first=True)
        about = policy_trial.selected(policy, batches, store.names())
    until_ns = min(now.wall_ns, int(last["wall_ns"])) if last is not None else now.wall_ns
    result = policy_trial.trial(policy, about, since_ns=since_ns, until_ns=max(since_ns, until_ns))
    nobody = telling.nobody_since(last, looker, now, boot, runs=agent_runs(path.parent))
    gaps = [*((nobody,) if nobody is not None else ()), *telling.looker_gaps(looker), *result.gaps]
    if args.output == "json":
        options.write([encoded(document("PolicyTrial", policy_trial.trial_json(result), gaps))])
        return options.status(gaps)
    options.tell_gaps(gaps)
    options.write(policy_trial.trial_lines(result))
    return options.status(gaps)


def schema(args: argparse.Namespace) -> int:  # noqa: ARG001 - as every command is run
    """Print the JSON Schema."""
    import json

    from finwait.agent.policy_file import json_schema

    options.write([json.dumps(json_schema(), indent=2) + "\n"])
    return 0
