"""``finwait clear``: end connections that do not finish closing, safely. Shows a plan unless told to act."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from finwait.cli import options, streams, texts

if TYPE_CHECKING:
    from finwait.planning import Planned
    from finwait.remedy.outcome import Outcome
    from finwait.remedy.plan import Plan

__all__ = ["add_parser", "chosen_words", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "clear",
        help="end connections that do not finish closing; shows a plan unless told to act",
        description="Plan how to end the connections that a diagnosis calls problems (or those that a FILTER or "
        "a rule names), each by the gentlest means that really ends it. Nothing is done without "
        "--yes or an answer at the terminal. Every act is journaled before it is done; the cookie "
        "identifies the connection.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    options.add_output(parser, ("text", "json"))
    act = parser.add_argument_group("acting")
    _add_act(act)
    _add_limits(act)
    parser.set_defaults(run=run)


def _add_act(act: argparse._ArgumentGroup) -> None:
    """Add what says whether, by which plan and by which means to act."""
    act.add_argument(
        "--yes", action="store_true", help="do it; without it (and without a terminal) only the plan is shown"
    )
    act.add_argument("--dry-run", action="store_true", help="show the plan and do not ask")
    act.add_argument(
        "--all", action="store_true", help="show every connection of the plan, not only some of each group"
    )
    act.add_argument(
        "--plan",
        dest="plan_file",
        metavar="FILE",
        help=(
            "apply a plan that `-o json` printed; `-` for stdin. Refused if others may have written the file"
        ),
    )
    act.add_argument(
        "--with",
        dest="means",
        choices=("fin", "keepalive", "user-timeout", "reset", "destroy"),
        help="use this means for all connections, at the end that was selected; `reset` sends a RST "
        "through the borrowed descriptor, where SOCK_DESTROY (`destroy`) is unavailable",
    )


def _add_limits(act: argparse._ArgumentGroup) -> None:
    """Add what a plan may touch, how fast, and which guards are overruled."""
    act.add_argument(
        "--max",
        type=options.at_least_one,
        default=100,
        metavar="N",
        help="refuse plans for more than N connections (default 100)",
    )
    act.add_argument(
        "--share",
        type=options.above_zero,
        default=0.9,
        metavar="X",
        help="refuse plans for more than this share of a process's connections (default 0.9)",
    )
    act.add_argument(
        "--min-age",
        type=options.duration_ms,
        metavar="DURATION",
        help="leave connections alone that have been in their state for less than this (default 10s; half-closed ones, "
        "to which an answer may still come, until nothing has passed for 10m)",
    )
    act.add_argument(
        "--rate",
        type=options.above_zero,
        default=0.0,
        metavar="N",
        help="destroy at most N per second (default: no limit)",
    )
    act.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="GUARD",
        help="overrule a guard by name (repeatable): accept-queue, minisocket, silent-orphan, moving, slow-reader, "
        "paused, min-age, answer, handed-over, established, unread, healthy, holder-unknown, protected, harmed-orphan, "
        "pair, max, share",
    )
    act.add_argument(
        "--user-timeout",
        type=options.set_user_timeout_ms,
        default=30_000,
        metavar="DURATION",
        help="for the means user-timeout: drop a connection whose data stays unacknowledged this long (default 30s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from finwait.errors import UsageError
    from finwait.remedy import plan as plans
    from finwait.report.plan import WIDTH, left_lines, plan_json, plan_lines

    if args.recording and not args.dry_run:
        raise UsageError(
            "`--from`: cannot act on a recording", hint="`--dry-run` shows what would be planned"
        )
    if args.recording:
        texts.refuse_text(args.recording)
    else:
        options.tell_unfinished()
    if args.plan_file and (args.filter or args.means or args.netns):
        raise UsageError(
            "`--plan` applies a whole plan; FILTER, `--with` and `--netns` cannot be combined with it",
            hint="use them when you make the plan: `finwait clear FILTER -o json`",
        )
    planned = _planned(args)
    plan, gaps = planned.plan, planned.gaps
    if args.output == "json" and (args.dry_run or not args.yes):
        sys.stdout.write(plan_json(plan, gaps).decode())
        options.tell_gaps(gaps)
        _tell_refused(plan)
        return options.status(gaps)
    options.tell_gaps(gaps)
    acting = bool(plan.steps) and args.yes and not args.dry_run
    if args.output == "text":
        width = min(options.width(), WIDTH)
        options.write(
            left_lines(plan, width=width) if acting else plan_lines(plan, whole=args.all, width=width)
        )
    if args.dry_run:
        _tell_refused(plan)
        return 4 if plan.left and not plan.steps else options.status(gaps)
    plans.permit(plan)
    if not plan.steps or not _agreed(args, plan):
        if args.output == "json":
            options.tell_outcomes(args, [], gaps)
        return 4 if plan.left and not plan.steps else options.status(gaps)
    return _act(args, planned)


def _planned(args: argparse.Namespace) -> Planned:
    """Look and plan as the options say; with `--plan`, what the file says.

    Raises:
        Refused: the plan in the file is of another boot, or names a listener.
        FinwaitError: the FILTER, the file or the look failed.
    """
    from finwait import planning
    from finwait.remedy import plan_file
    from finwait.selecting import parse_filter

    allowed = planning.limits(
        most=args.max, share=args.share, min_age_ms=args.min_age, override=args.override
    )
    machine, look = options.machine(args), options.how(args)
    if args.plan_file:
        plan = plan_file.decode(_read(args.plan_file), args.plan_file)
        return planning.plan_again(plan, machine, look, allowed)
    words = chosen_words(args.filter)
    row_filter = parse_filter(words) if words else None
    return planning.make_plan(machine, look, row_filter, allowed, means=args.means)


def chosen_words(words: list[str]) -> list[str]:
    """Return a FILTER; a rule alone stands for the connections whose primary cause it is."""
    from finwait.diagnosis import catalogue

    return ["rule", "=", words[0]] if len(words) == 1 and words[0] in catalogue.NAMES else words


def _tell_refused(plan: Plan) -> None:
    for refusal in plan.refused:
        warning = f"finwait: guard `{refusal.guard}` would refuse this: {refusal.reason}\n"
        options.write_error([warning, f"hint: override with {refusal.override}\n"])


_MOST_BYTES = 64 << 20
"""Of a plan; one of 60,000 steps has some 40 MB."""


def _read(name: str) -> bytes:
    from finwait import files
    from finwait.errors import FileRefused, FinwaitError

    try:
        if name != "-":
            hint = f"read it; if you agree to it, pass it on: `--plan - < {name}`"
            return files.read(name, _MOST_BYTES, pipes=True, own=hint)
        data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    except OSError as error:
        raise FinwaitError(f"could not read the plan `{name}`: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise FileRefused("standard input", f"it is larger than {_MOST_BYTES >> 20} MiB")
    return data


def _agreed(args: argparse.Namespace, plan: Plan) -> bool:
    from finwait.report.plan import connections_text

    if args.yes or options.agreed(f"Do this to {connections_text(len(plan.steps))}?"):
        return True
    sys.stderr.write("finwait: nothing was done; add `--yes` to do it\n")
    return False


def _act(args: argparse.Namespace, planned: Planned) -> int:
    from finwait.acting.apply import apply
    from finwait.kernel import procfs
    from finwait.kernel.journal import opened

    outcomes: dict[int, Outcome] = {}
    with opened() as journal:
        try:
            apply(
                planned.plan,
                journal,
                boot_id=procfs.facts().boot_id,
                rate=args.rate,
                user_timeout_ms=args.user_timeout,
                say=streams.progress() or (lambda _: None),
                into=outcomes,
            )
        except BaseException:
            options.tell_cut_short(args, outcomes, journal)
            raise
        return options.tell_outcomes(args, [outcomes[k] for k in sorted(outcomes)], planned.gaps)
