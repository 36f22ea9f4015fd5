"""``finwait arm``: give live sockets of a running program the options that its author forgot."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING

from finwait.cli import options, streams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finwait.planning import OptionTargets, Predicted
    from finwait.remedy.outcome import Outcome

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "arm",
        help="set keepalive and user timeout on live connections of a running program",
        description="Set SO_KEEPALIVE with its times and TCP_USER_TIMEOUT on connections, through a borrowed "
        "descriptor, without restarting anything. The old values are journaled; `finwait undo` "
        "restores them.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    options.add_output(parser, ("text", "json"))
    parser.add_argument(
        "--keepalive",
        type=options.keepalive,
        metavar="IDLE/INTERVAL/COUNT",
        help="e.g. 60/15/5: seconds, seconds, probes",
    )
    parser.add_argument(
        "--user-timeout",
        type=options.user_timeout_ms,
        metavar="DURATION",
        help="drop a connection whose data stays unacknowledged this long; with keepalive it replaces "
        "COUNT, so give it at least IDLE + INTERVAL × (COUNT − 1), e.g. 130s with 60/15/5; 0 removes "
        "the timeout, and then COUNT and tcp_retries2 decide",
    )
    parser.add_argument(
        "--yes", action="store_true", help="do it; without it the connections are only listed"
    )
    parser.add_argument(
        "--max",
        type=options.at_least_one,
        default=1000,
        metavar="N",
        help="refuse more than N connections (default 1000)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from finwait import planning
    from finwait.acting.options import arm
    from finwait.errors import UsageError
    from finwait.kernel.journal import opened
    from finwait.report.options import warning_lines

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
            hint="`--keepalive 60/15/5`, `--user-timeout 130s`, or both",
        )
    if not args.recording:
        options.tell_unfinished()
    selected = options.chosen(args, "arm", "keepalive" if "keepalive" in values else "user-timeout")
    if not selected.steps:
        return options.status(selected.gaps)
    forecast = planning.predicted(selected, values)
    if not args.yes:
        _show(args, selected, values, forecast)
        return options.status(selected.gaps)
    waiting = [(selected.steps[k], progress) for k, progress in forecast.waiting.items()]
    options.write_error(warning_lines(list(forecast.ends.values()), values, waiting))
    outcomes: dict[int, Outcome] = {}
    with opened() as journal:
        try:
            arm(selected.steps, journal, values, say=streams.progress() or (lambda _: None), into=outcomes)
        except BaseException:
            options.tell_cut_short(args, outcomes, journal)
            raise
        status = options.tell_outcomes(args, [outcomes[k] for k in sorted(outcomes)], selected.gaps)
        return status or options.status(selected.gaps)


def _show(
    args: argparse.Namespace, selected: OptionTargets, values: Mapping[str, int], forecast: Predicted
) -> None:
    """Say what would be set, and what would follow."""
    from finwait.report.options import arm_json, armed_lines, follows_lines, waiting_lines

    if args.output == "json":
        sys.stdout.write(
            arm_json(selected.steps, values, forecast.ends, forecast.waiting, selected.left, selected.gaps)
        )
    else:
        options.write(armed_lines(selected.steps, values))
        options.write(
            waiting_lines([(selected.steps[k], progress) for k, progress in forecast.waiting.items()])
        )
        options.write(follows_lines(list(forecast.ends.values()), values))
    for text, n in Counter(map(str, forecast.unread.values())).most_common():
        options.write_error([f"finwait: cannot read the options of {n}: {text}\n"])
    sys.stderr.write("finwait: nothing was done; add `--yes` to do it\n")
