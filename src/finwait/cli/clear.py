"""``finwait clear``: end connections that do not finish closing, safely. Shows a plan unless told to act."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from finwait.cli import options

if TYPE_CHECKING:
    from finwait.acting import Outcome
    from finwait.remedy.guards import Limits
    from finwait.remedy.plan import Plan

__all__ = ["add_parser", "make_plan", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "clear",
        help="end connections that do not finish closing; shows a plan unless told to act",
        description="Make a plan that ends, by the gentlest means that really does, the connections that a diagnosis "
        "calls problems (or those that a FILTER or a rule names). Nothing is done without --yes or an answer at "
        "the terminal. Every act is journaled before it is done; its identity is the cookie.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    options.add_output(parser, ("text", "json"))
    act = parser.add_argument_group("acting")
    act.add_argument(
        "--yes", action="store_true", help="do it; without it (and without a terminal) only the plan is shown"
    )
    act.add_argument("--dry-run", action="store_true", help="show the plan and do not even ask")
    act.add_argument(
        "--plan", dest="plan_file", metavar="FILE", help="apply a plan that `-o json` printed; `-` for stdin"
    )
    act.add_argument(
        "--with",
        dest="means",
        choices=("fin", "keepalive", "user-timeout", "destroy"),
        help="use this means for all",
    )
    act.add_argument(
        "--max", type=int, default=100, metavar="N", help="refuse a plan for more connections (default 100)"
    )
    act.add_argument(
        "--share",
        type=float,
        default=0.9,
        metavar="X",
        help="refuse a plan for more than this share of a process's connections (default 0.9)",
    )
    act.add_argument(
        "--min-age",
        type=options.duration_ms,
        default=10_000,
        metavar="DURATION",
        help="leave connections alone that are in their state for less (default 10s)",
    )
    act.add_argument(
        "--rate",
        type=float,
        default=0.0,
        metavar="N",
        help="destroy at most so many a second (default: no limit)",
    )
    act.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="GUARD",
        help="overrule a guard by name (repeatable): minisocket, silent-orphan, moving, min-age, established, "
        "protected, max, share",
    )
    act.add_argument(
        "--user-timeout",
        type=options.duration_ms,
        default=30_000,
        metavar="DURATION",
        help="for the means user-timeout (default 30s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from finwait.errors import FinwaitError
    from finwait.remedy import plan as plans

    if args.recording and not args.dry_run:
        error = FinwaitError("a recording cannot be acted upon")
        error.hint = "`--dry-run` shows what would be planned"
        raise error
    gaps: tuple[object, ...] = ()
    if args.plan_file:
        plan = plans.decode(_read(args.plan_file))
    else:
        plan, gaps = make_plan(args)
    if args.output == "json" and not args.yes:
        sys.stdout.write(plans.encode(plan).decode())
        return options.status(gaps)
    if args.output == "text":
        options.write(plan_lines(plan))
    if not plan.steps or args.dry_run or not _agreed(args, plan):
        return 4 if plan.left and not plan.steps else options.status(gaps)
    return _act(args, plan)


def _read(name: str) -> bytes:
    from finwait.errors import FinwaitError

    try:
        if name == "-":
            return sys.stdin.buffer.read(64 << 20)
        with open(name, "rb") as file:
            return file.read(64 << 20)
    except OSError as error:
        raise FinwaitError(f"could not read the plan `{name}`: {error.strerror}") from None


def make_plan(args: argparse.Namespace) -> tuple[Plan, tuple[object, ...]]:
    """Look, diagnose and plan, as the options say.

    Raises:
        Refused: the plan is larger than allowed.
        FinwaitError: the filter or the look failed.
    """
    import numpy as np

    from finwait import session
    from finwait.diagnosis import catalogue
    from finwait.remedy import plan as plans

    words = args.filter
    if len(words) == 1 and words[0] in catalogue.NAMES:
        words = ["rule", "=", words[0]]
    found = options.parse_filter(words)
    look = options.how(args)
    if not look.watch_ms:
        from dataclasses import replace

        look = replace(look, watch_ms=500)  # two looks: what moves is left alone
    diagnosis = session.diagnose(options.machine(args), how=look)
    view, facts = diagnosis.view, diagnosis.snapshot.observation.facts
    if words:
        rows = options.mask_of(found, diagnosis.snapshot, diagnosis.findings)
    else:
        rows = np.zeros(len(view), np.bool_)
        for f in diagnosis.problems:
            rows[f.rows] = True
    limits = _limits(args, _names_established(found, words))
    plan = plans.make(
        view,
        diagnosis.findings,
        rows,
        limits,
        force=args.means,
        now_unix_ns=facts.unix_ns,
        boot_id=facts.boot_id,
    )
    return plan, diagnosis.gaps


def _names_established(found: object, words: list[str]) -> bool:
    from finwait.table.filter import Filter
    from finwait.uapi import tcp

    assert isinstance(found, Filter)
    named = found.says_states and bool(found.states >> tcp.ESTABLISHED & 1)
    return named or bool({"cookie", "inode"} & found.columns) or "rule" in words


def _limits(args: argparse.Namespace, established: bool) -> Limits:
    import os

    from finwait.errors import FinwaitError
    from finwait.remedy.guards import GUARDS, Limits

    for name in args.override:
        if name not in GUARDS or name == "listener":
            error = FinwaitError(
                f"there is no guard `{name}`"
                if name not in GUARDS
                else "the guard `listener` cannot be overridden"
            )
            error.hint = "guards: " + ", ".join(g for g in GUARDS if g != "listener")
            raise error
    return Limits(args.max, args.share, args.min_age, established, frozenset(args.override), os.getpid())


def plan_lines(plan: Plan) -> list[str]:
    """Return a plan as lines for a person."""
    from collections import Counter

    lines = [f"{len(plan.steps)} connections to end, {len(plan.left)} left alone.\n"]
    for k, step in enumerate(plan.steps, 1):
        who = ", ".join(f"{comm}({pid}:{fd})" for pid, fd, comm in step.holders[:2]) or "-"
        lines.append(
            f"{k:>3}. {step.means} [{step.kind}]  {step.src}:{step.sport} → {step.dst}:{step.dport} {step.state}"
            f"  {who}\n     {step.rule or 'no rule'}; the peer is told: {step.peer_told}\n"
        )
        if step.stays:
            lines.append(f"     {step.stays}\n")
    for (guard, reason), n in Counter((one.guard, one.reason) for one in plan.left).most_common(12):
        lines.append(f"  left alone ×{n} [{guard}]: {reason}\n")
    lines += [f"  advice: {text}\n" for text in plan.advice]
    return lines


def _agreed(args: argparse.Namespace, plan: Plan) -> bool:
    if args.yes:
        return True
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        sys.stderr.write("finwait: nothing was done; `--yes` does it\n")
        return False
    sys.stdout.flush()
    sys.stderr.write(f"Do this to {len(plan.steps)} connections? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _act(args: argparse.Namespace, plan: Plan) -> int:
    from finwait import acting
    from finwait.kernel import procfs
    from finwait.kernel.journal import SqliteJournal

    with SqliteJournal() as journal:
        outcomes = acting.apply(
            plan,
            journal,
            boot_id=procfs.facts().boot_id,
            rate=args.rate,
            user_timeout_ms=args.user_timeout,
            say=options.progress() or (lambda _: None),
        )
    return tell(args, outcomes)


def tell(args: argparse.Namespace, outcomes: list[Outcome]) -> int:
    """Print what came of each step; 1 when something failed."""
    from collections import Counter

    import msgspec

    if args.output == "json":
        items = [
            {"step": o.step, "result": o.result, "detail": o.detail, "act": o.act_id or None}
            for o in outcomes
        ]
        out = {"apiVersion": "finwait/v1", "kind": "OutcomeList", "items": items}
        sys.stdout.write(msgspec.json.encode(out).decode() + "\n")
    else:
        counted = Counter(o.result for o in outcomes)
        sys.stdout.write("\n" + ", ".join(f"{n} {result}" for result, n in counted.most_common()) + "\n")
        for o in outcomes:
            if o.result not in ("ended", "set") or len(outcomes) <= 20:
                act = f"  (act {o.act_id})" if o.act_id else ""
                where = f"{o.step.src}:{o.step.sport} → {o.step.dst}:{o.step.dport}"
                sys.stdout.write(f"  {o.result}: {where}  {o.detail}{act}\n")
    return 1 if any(o.result in ("failed", "still there") for o in outcomes) else 0
