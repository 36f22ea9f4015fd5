"""``finwait clear``: end connections that do not finish closing, safely. Shows a plan unless told to act."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from finwait.cli import options

if TYPE_CHECKING:
    from finwait.acting.identity import Outcome
    from finwait.remedy.guards import Limits
    from finwait.remedy.plan import Left, Plan, Step

__all__ = [
    "add_parser",
    "chosen_words",
    "left_lines",
    "make_plan",
    "outcome_lines",
    "plan_lines",
    "run",
    "tell",
    "where",
    "wrapped",
]


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
        "--all", action="store_true", help="show every connection of the plan, not some of each group"
    )
    act.add_argument(
        "--plan",
        dest="plan_file",
        metavar="FILE",
        help="apply a plan that `-o json` printed; `-` for stdin",
    )
    act.add_argument(
        "--with",
        dest="means",
        choices=("fin", "keepalive", "user-timeout", "reset", "destroy"),
        help="use this means for all, at the end that was selected; `reset` is a RST through the borrowed "
        "descriptor, where SOCK_DESTROY (`destroy`) is unavailable",
    )
    act.add_argument(
        "--max",
        type=options.count,
        default=100,
        metavar="N",
        help="refuse plans for more than N connections (default 100)",
    )
    act.add_argument(
        "--share",
        type=options.positive,
        default=0.9,
        metavar="X",
        help="refuse plans for more than this share of a process's connections (default 0.9)",
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
        type=options.positive,
        default=0.0,
        metavar="N",
        help="destroy at most N per second (default: no limit)",
    )
    act.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="GUARD",
        help="overrule a guard by name (repeatable): accept-queue, minisocket, silent-orphan, moving, min-age, "
        "established, healthy, holder-unknown, protected, harmed-orphan, max, share",
    )
    act.add_argument(
        "--user-timeout",
        type=options.user_timeout_ms,
        default=30_000,
        metavar="DURATION",
        help="for the means user-timeout: drop a connection whose data stays unacknowledged this long (default 30s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from finwait.cli.journal import tell_unfinished
    from finwait.errors import UsageError
    from finwait.remedy import plan as plans

    if args.recording and not args.dry_run:
        raise UsageError(
            "`--from`: a recording cannot be acted upon", hint="`--dry-run` shows what would be planned"
        )
    if not args.recording:
        tell_unfinished()
    gaps: tuple[object, ...] = ()
    if args.plan_file:
        if args.filter or args.means or args.netns:
            raise UsageError(
                "`--plan` applies a whole plan: no FILTER, `--with` or `--netns` beside it",
                hint="make the plan with them: `finwait clear FILTER -o json`",
            )
        plan, gaps = _plan_again(args)
    else:
        plan, gaps = make_plan(args)
    if args.output == "json" and (args.dry_run or not args.yes):
        sys.stdout.write(plans.encode(plan).decode())
        _tell_refused(plan)
        return options.status(gaps)
    options.tell_gaps(gaps)
    acting = bool(plan.steps) and args.yes and not args.dry_run
    if args.output == "text":
        options.write(left_lines(plan) if acting else plan_lines(plan, whole=args.all))
    if args.dry_run:
        _tell_refused(plan)
        return 4 if plan.left and not plan.steps else options.status(gaps)
    plans.permit(plan)
    if not plan.steps or not _agreed(args, plan):
        if args.output == "json":
            tell(args, [])
        return 4 if plan.left and not plan.steps else options.status(gaps)
    return _act(args, plan)


def _tell_refused(plan: Plan) -> None:
    for one in plan.refused:
        said = f"finwait: to do this would be refused by guard `{one.guard}`: {one.reason}\n"
        options.write_error([said, f"hint: override with {one.override}\n"])


_MOST_BYTES = 64 << 20
"""Of a plan; one of 60,000 steps has some 40 MB."""


def _read(name: str) -> bytes:
    from finwait import files
    from finwait.errors import FileRefused, FinwaitError

    try:
        if name != "-":
            return files.read(name, _MOST_BYTES, pipes=True)
        data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    except OSError as error:
        raise FinwaitError(f"could not read the plan `{name}`: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise FileRefused("standard input", f"it is larger than {_MOST_BYTES >> 20} MiB")
    return data


def _plan_again(args: argparse.Namespace) -> tuple[Plan, tuple[object, ...]]:
    """Read a plan from a file, and make it anew from a look at its connections.

    Raises:
        Refused: it is of another boot, or names a listener.
        FinwaitError: it is none, or the look failed.
    """
    from dataclasses import replace

    import numpy as np

    from finwait import session
    from finwait.acting.identity import vanished
    from finwait.acting.rights import abilities
    from finwait.errors import Refused
    from finwait.remedy import plan as plans
    from finwait.remedy.guards import Abilities

    plan = plans.decode(_read(args.plan_file), args.plan_file)
    spaces = frozenset(end.netns for step in plan.steps for end in (step, step.other) if end is not None)
    look = options.how(args)
    what = replace(look.plan, only=spaces, established_limit=None, conntrack=False)
    shot = session.look(options.machine(args), replace(look, plan=what))
    if plan.boot_id != shot.observation.facts.boot_id:
        raise Refused("boot", "the plan was made before this machine was started: its connections are gone")
    cookies = np.array([int(step.cookie, 16) for step in plan.steps], np.uint64)
    rows = np.flatnonzero(np.isin(shot.sockets.cookie, cookies)).tolist()
    can = Abilities() if args.recording else abilities(shot.view, rows)
    unseen = spaces - {ns.inode for ns in shot.observation.namespaces} - vanished(spaces)
    limits = _limits(args, established=False)
    return plans.again(plan, shot.view, limits, can=can, unseen=unseen), shot.gaps


def chosen_words(words: list[str]) -> list[str]:
    """Return a FILTER; a rule alone stands for the connections whose primary cause it is."""
    from finwait.diagnosis import catalogue

    return ["rule", "=", words[0]] if len(words) == 1 and words[0] in catalogue.NAMES else words


def make_plan(args: argparse.Namespace) -> tuple[Plan, tuple[object, ...]]:
    """Look, diagnose and plan, as the options say.

    Raises:
        FinwaitError: the filter or the look failed.
    """
    import numpy as np

    from finwait import session
    from finwait.acting.rights import abilities
    from finwait.remedy import plan as plans
    from finwait.uapi import tcp

    words = chosen_words(args.filter)
    found = options.parse_filter(words)
    look = options.how(args)
    if not look.watch_ms:
        from dataclasses import replace

        look = replace(look, watch_ms=500)  # two looks: what moves is left alone
    diagnosis = session.diagnose(options.machine(args), how=look)
    view, facts = diagnosis.view, diagnosis.snapshot.observation.facts
    if words:
        rows = options.mask_of(found, diagnosis.snapshot, diagnosis.findings)
        if not rows.any():
            session.refuse_impossible(found, diagnosis.snapshot, options.users(diagnosis.snapshot))
    else:
        rows = np.zeros(len(view), np.bool_)
        for (
            f
        ) in diagnosis.problems:  # those that it would end well: what nobody can explain is not among them
            rows[f.rows] = any(r.command.startswith("finwait clear") for r in f.ends_it)
    limits = _limits(args, bool(words) and found.asks_for(tcp.ESTABLISHED))
    plan = plans.make(
        view,
        diagnosis.findings,
        rows,
        limits,
        force=args.means,
        can=None if args.recording else abilities(view, np.flatnonzero(rows).tolist()),
        now_unix_ns=facts.unix_ns,
        boot_id=facts.boot_id,
    )
    return plan, diagnosis.gaps


def _limits(args: argparse.Namespace, established: bool) -> Limits:
    import os

    from finwait.errors import UsageError
    from finwait.remedy.guards import GUARDS, Limits

    for name in args.override:
        if name not in GUARDS or name == "listener":
            raise UsageError(
                f"`--override`: there is no guard `{name}`"
                if name not in GUARDS
                else "`--override`: the guard `listener` cannot be overridden",
                hint="guards: " + ", ".join(g for g in GUARDS if g != "listener"),
            )
    return Limits(args.max, args.share, args.min_age, established, frozenset(args.override), os.getpid())


_EACH = 20
"""So many connections of a group are shown one by one; `--all` shows them all, and `-o json` has everything."""
_GROUPS = 30
"""… and so many groups."""


def plan_lines(plan: Plan, *, overrule: bool = True, whole: bool = False) -> list[str]:
    """Return a plan as lines for a person: steps of one kind, reason and program together.

    Args:
        plan: the plan.
        overrule: whether the reader has `--override` at hand.
        whole: whether to show every connection of it.
    """
    from collections import Counter

    here = [step for step in plan.steps if not step.gone]
    classes = Counter(step.kind for step in here)
    how = ", ".join(f"{n} {kind}" for kind, n in classes.most_common())
    lines = [f"{_connections(len(here))} to end" + (f" ({how})" if how else "")]
    lines[0] += f", {len(plan.left)} left alone.\n"
    if gone := len(plan.steps) - len(here):
        lines.append(
            f"{_connections(gone)} of the plan {'is' if gone == 1 else 'are'} gone since it was made.\n"
        )
    groups: dict[tuple[object, ...], list[Step]] = {}
    for step in here:
        who = step.holders[0][2] if step.holders else (step.holders_known, not step.inode)
        key = (step.means, step.rule, step.state, step.sees, who, bool(step.selected), step.note)
        groups.setdefault(key, []).append(step)
    shown = list(groups.values()) if whole else list(groups.values())[:_GROUPS]
    for steps in shown:
        lines += _group(steps, len(steps) if whole else _EACH)
    if len(groups) > len(shown):
        rest = len(here) - sum(map(len, shown))
        lines.append(
            f"\n… and {_connections(rest)} in {len(groups) - len(shown)} more groups; `--all` shows them\n"
        )
    return lines + left_lines(plan, overrule=overrule) + _advice(plan)


def _group(steps: list[Step], most: int) -> list[str]:
    one = steps[0]
    lines = [
        f"\n{one.means} [{one.kind}] ×{len(steps)}: {one.rule or 'no rule'}, {one.state}, {_held(steps)}\n"
    ]
    if one.selected:
        lines += wrapped("done at the other end of what was selected: its FIN finishes both ends")
    if one.note:
        lines += wrapped(one.note)
    lines += wrapped(f"peer sees: {one.peer_told}")
    if one.stays:
        said = "the descriptor stays open" if one.holders else one.stays
        lines += wrapped(said if len(steps) == 1 else said.replace("descriptor stays", "descriptors stay"))
    for step in steps[:most]:
        at = ", ".join(f"{pid}:{fd}" for pid, fd, _ in step.holders[:3])
        lines += _connection(step, f"pid:fd {at}" if at else "")
    if len(steps) > most:
        lines.append(f"    … and {len(steps) - most} more; `--all` shows them\n")
    return lines


def _held(steps: list[Step]) -> str:
    """Say who holds connections of one group; that nobody does only where that is known."""
    from finwait.table.units import printable

    one = steps[0]
    if one.holders:
        pids = {step.holders[0][0] for step in steps}
        who = f"pid {one.holders[0][0]}" if len(pids) == 1 else f"{len(pids)} processes"
        return f"held by {printable(one.holders[0][2])} ({who})"
    if not one.inode:
        return "held by no process"
    if one.holders_known:
        return "held by no process (all were looked into)"
    return "holder unknown"


def left_lines(plan: Plan, *, overrule: bool = True) -> list[str]:
    """Return what a plan leaves alone, and why, as lines for a person."""
    from collections import Counter

    from finwait.table.units import printable

    lines = []
    guards: dict[str, list[Left]] = {}
    for one in plan.left:
        guards.setdefault(one.guard, []).append(one)
    for guard, members in guards.items():
        lines.append(f"\nleft alone ×{len(members)} by guard `{guard}`:\n")
        counted = Counter(one.reason for one in members)
        for reason, n in counted.most_common(3):
            lines += wrapped(printable(reason) + (f" (×{n})" if len(counted) > 1 else ""))
        if len(counted) > 3:
            lines.append(f"  … and {len(counted) - 3} more reasons; `-o json` lists them\n")
        lines += [f"    {printable(one.connection)}\n" for one in members[:3]]
        if len(members) > 3:
            lines.append(f"    … and {len(members) - 3} more\n")
    if overrule and plan.left and not plan.steps:
        names = sorted({one.guard for one in plan.left} - {"listener", "means", "plan", "unseen"})
        if names:
            lines.append("\n" + "".join(f"`--override {name}` overrules that guard.\n" for name in names))
    return lines


def _advice(plan: Plan) -> list[str]:
    from finwait.table.units import printable

    advice = plan.advice[:_EACH]
    lines = [line for text in advice for line in ("\n", *wrapped(f"advice: {printable(text)}", indent=""))]
    if len(plan.advice) > len(advice):
        lines.append(
            f"\n… and {len(plan.advice) - len(advice)} more processes keep descriptors; `-o json` has them\n"
        )
    return lines


def _connections(n: int) -> str:
    return "1 connection" if n == 1 else f"{n} connections"


def wrapped(text: str, indent: str = "  ") -> list[str]:
    """Return a sentence as lines of at most 98 columns."""
    import textwrap

    return [line + "\n" for line in textwrap.wrap(text, 98, initial_indent=indent, subsequent_indent=indent)]


def where(step: Step) -> tuple[str, str]:
    """Return both addresses of a step, with their ports."""
    from finwait.table.sockets import endpoint

    return endpoint(step.src, step.sport), endpoint(step.dst, step.dport)


def _connection(step: Step, tail: str) -> list[str]:
    src, dst = where(step)
    line = f"    {src} → {dst}"
    if len(line) + len(tail) + 2 <= 98:
        return [f"{line}  {tail}".rstrip() + "\n"]
    return [f"    {src}\n", f"      → {dst}  {tail}".rstrip() + "\n"]


def _agreed(args: argparse.Namespace, plan: Plan) -> bool:
    if args.yes:
        return True
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        sys.stderr.write("finwait: nothing was done; `--yes` does it\n")
        return False
    sys.stdout.flush()
    sys.stderr.write(f"Do this to {_connections(len(plan.steps))}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _act(args: argparse.Namespace, plan: Plan) -> int:
    from finwait.acting.apply import apply
    from finwait.cli.journal import opened
    from finwait.kernel import procfs

    with opened() as journal:
        outcomes = apply(
            plan,
            journal,
            boot_id=procfs.facts().boot_id,
            rate=args.rate,
            user_timeout_ms=args.user_timeout,
            say=options.progress() or (lambda _: None),
        )
    return tell(args, outcomes)


def tell(args: argparse.Namespace, outcomes: list[Outcome]) -> int:
    """Print what came of each step; 1 when something failed or is still there."""
    import msgspec

    if args.output == "json":
        items = [
            {
                "step": o.step,
                "result": o.result,
                "detail": o.detail,
                "act": o.act_id or None,
                "other": o.other or None,
                "stays_open": o.stays_open,
            }
            for o in outcomes
        ]
        out = {"apiVersion": "finwait/v1", "kind": "OutcomeList", "items": items}
        sys.stdout.write(msgspec.json.encode(out).decode() + "\n")
    else:
        options.write(outcome_lines(outcomes))
    return 1 if any(o.result in ("failed", "still there") for o in outcomes) else 0


def outcome_lines(outcomes: list[Outcome]) -> list[str]:
    """Return what came of each step as lines for a person."""
    from collections import Counter

    counted = Counter(o.result for o in outcomes)
    lines = ["\n" + ", ".join(f"{n} {result}" for result, n in counted.most_common()) + ".\n"]
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for o in outcomes:
        groups.setdefault((o.step.means, o.result, o.detail), []).append(o)
    for (means, result, detail), members in groups.items():
        lines += ["\n", *wrapped(f"{means}, {result} ×{len(members)}: {detail}", indent="")]
        for o in members[:_EACH]:
            lines += _connection(o.step, f"(act {o.act_id})" if o.act_id else "")
        if len(members) > _EACH:
            first, last = members[_EACH].act_id, members[-1].act_id
            lines.append(f"    … and {len(members) - _EACH} more (acts {first} to {last})\n")
    still = Counter((pid, comm) for o in outcomes if o.result == "ended" for pid, _, comm in o.stays_open)
    for (pid, comm), n in still.most_common():
        one = n == 1
        lines += [
            "\n",
            *wrapped(
                f"{'1 descriptor is' if one else f'{n} descriptors are'} still open in {comm} (pid {pid}): only its "
                f"close(), or its restart, frees {'it' if one else 'them'}.",
                indent="",
            ),
        ]
    return lines
