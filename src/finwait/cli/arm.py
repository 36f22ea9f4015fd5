"""``finwait arm``: give live sockets of a running program the options that its author forgot."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from finwait.cli import options
from finwait.cli.probe import keepalive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finwait.remedy.plan import Step

__all__ = ["add_parser", "chosen", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "arm",
        help="set keepalive and user timeout on live connections of a running program",
        description="Set SO_KEEPALIVE with its times and TCP_USER_TIMEOUT on connections, through a borrowed "
        "descriptor, "
        "without restarting anything. The old values are journaled; `finwait undo` puts them back.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    options.add_output(parser, ("text", "json"))
    parser.add_argument(
        "--keepalive",
        type=keepalive,
        metavar="IDLE/INTERVAL/COUNT",
        help="e.g. 60/15/5: seconds, seconds, probes",
    )
    parser.add_argument(
        "--user-timeout",
        type=options.duration_ms,
        metavar="DURATION",
        help="drop a connection whose data stays unacknowledged this long",
    )
    parser.add_argument(
        "--yes", action="store_true", help="do it; without it the connections are only listed"
    )
    parser.add_argument(
        "--max",
        type=options.count,
        default=1000,
        metavar="N",
        help="refuse more than N connections (default 1000)",
    )
    parser.set_defaults(run=run)


def chosen(args: argparse.Namespace, verb: str) -> tuple[list[Step], tuple[object, ...]]:
    """Return the held connections that the FILTER selects, as steps; listeners and minisockets are none.

    Raises:
        FinwaitError: no FILTER, a recording, or nothing that it selects.
        Refused: more than ``--max``.
    """
    import numpy as np

    from finwait import session
    from finwait.errors import FinwaitError, Refused, UsageError
    from finwait.remedy.plan import step_of
    from finwait.uapi import tcp

    if args.recording:
        raise UsageError("`--from`: a recording cannot be acted upon")
    if not args.filter:
        raise UsageError(
            f"`finwait {verb}` needs a FILTER: which connections?",
            hint="for example `rule = idle-unprobed`, `pid = 812`, `dport = :5432`",
        )
    found = options.parse_filter(args.filter)
    diagnosis = session.diagnose(options.machine(args), how=options.how(args))
    view = diagnosis.view
    mask = options.mask_of(found, diagnosis.snapshot, diagnosis.findings)
    mask &= (view.sockets.state != tcp.LISTEN) & view.holder_found & (view.sockets.protocol == 6)
    rows = np.flatnonzero(mask)
    if not len(rows):
        error = FinwaitError(f"`{found.text}` selects no connection that a process holds")
        error.hint = f"`finwait list {found.text}` shows what it selects"
        raise error
    if len(rows) > args.max:
        raise Refused("max", f"{len(rows)} connections, more than {args.max}", override=f"--max {len(rows)}")
    return [step_of(view, row, "", "keepalive") for row in rows.tolist()], diagnosis.gaps


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import msgspec

    from finwait import acting
    from finwait.cli.clear import tell
    from finwait.cli.journal import opened, tell_unfinished
    from finwait.errors import UsageError

    values: dict[str, int] = {}
    if args.keepalive:
        values = dict(zip(("keepidle", "keepintvl", "keepcnt"), args.keepalive, strict=True)) | {
            "keepalive": 1
        }
    if args.user_timeout is not None:
        values["user_timeout_ms"] = args.user_timeout
    if not values:
        raise UsageError(
            "nothing to set: neither `--keepalive` nor `--user-timeout`",
            hint="`--keepalive 60/15/5`, `--user-timeout 30s`, or both",
        )
    if not args.recording:
        tell_unfinished()
    steps, gaps = chosen(args, "arm")
    options.tell_gaps(gaps)
    if not args.yes:
        if args.output == "json":
            plan = {"apiVersion": "finwait/v1", "kind": "ArmPlan", "options": values, "steps": steps}
            sys.stdout.write(msgspec.json.encode(plan).decode() + "\n")
        else:
            options.write(_plan(steps, values))
        sys.stderr.write("finwait: nothing was done; `--yes` does it\n")
        return options.status(gaps)
    with opened() as journal:
        outcomes = acting.arm(steps, journal, values, say=options.progress() or (lambda _: None))
    return tell(args, outcomes) or options.status(gaps)


def _plan(steps: list[Step], values: dict[str, int]) -> Iterator[str]:
    from itertools import groupby

    from finwait.cli.clear import where

    yield f"Would set, on {len(steps)} connection{'s' if len(steps) != 1 else ''} [reversible]:\n"
    if "keepalive" in values:
        idle, interval, count = values["keepidle"], values["keepintvl"], values["keepcnt"]
        yield (
            f"  keepalive on: first probe after {idle} s of silence, then every {interval} s, {count} in all:\n"
            f"    a peer that is gone is noticed after {idle + interval * count} s\n"
        )
    if "user_timeout_ms" in values:
        ms = values["user_timeout_ms"]
        yield f"  user timeout: what is not acknowledged for {ms / 1000:g} s is given up\n"
    by = sorted(steps, key=lambda s: s.holders[0])
    for (pid, comm), group in groupby(by, key=lambda s: (s.holders[0][0], s.holders[0][2])):
        members = list(group)
        yield f"\nin {comm} (pid {pid}), {len(members)}:\n"
        for step in members[:20]:
            src, dst = where(step)
            yield f"  fd {step.holders[0][1]:<5} {src} → {dst}  {step.state}\n"
        if len(members) > 20:
            yield f"  … and {len(members) - 20} more\n"
