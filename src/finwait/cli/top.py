"""``finwait top``: the live view."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finwait.cli import options

if TYPE_CHECKING:
    from finwait.remedy.plan import Plan
    from finwait.session import Diagnosis
    from finwait.table.filter import Filter

__all__ = ["Clear", "add_parser", "choose", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "top",
        help="a live picture: where connections pile up",
        description="Show the TCP state diagram with the number of connections in each state and how many pass each "
        "arrow a second, the connections in groups, and the evidence of one. `?` lists the keys. Changes nothing, "
        "unless marked connections are sent to a plan and the plan is agreed to.",
    )
    options.add_filter(parser)
    parser.add_argument("--from", dest="recording", metavar="FILE", help="show the looks of a recording")
    parser.add_argument(
        "--refresh",
        type=options.duration_ms,
        default=2000,
        metavar="TIME",
        help="time between pictures (default: 2s)",
    )
    parser.set_defaults(run=run)


class Clear:
    """Plans for marked connections: those of `finwait clear`, behind the same guards.

    Args:
        min_age_ms: leave connections alone that are in their state for less.
    """

    def __init__(self, min_age_ms: int = 10_000) -> None:
        self._min_age_ms = min_age_ms
        self._plan: Plan | None = None

    def plan(self, keys: Sequence[tuple[int, int]]) -> tuple[str, bool]:
        """Look again, twice, and plan for the marked connections that are still there.

        Raises:
            Refused: more than may be ended at once.
            FinwaitError: the look failed.
        """
        import os

        import numpy as np

        from finwait import session
        from finwait.cli.clear import plan_lines
        from finwait.remedy import plan as plans
        from finwait.remedy.guards import Limits

        diagnosis = session.diagnose(how=session.Look(watch_ms=500))
        view, facts = diagnosis.view, diagnosis.snapshot.observation.facts
        marked = set(keys)
        s = view.sockets
        rows = np.array(
            [pair in marked for pair in zip(s.netns.tolist(), s.column("cookie").tolist(), strict=True)],
            np.bool_,
        )
        self._plan = plans.make(
            view,
            diagnosis.findings,
            rows,
            Limits(min_age_ms=self._min_age_ms, established_named=True, own_pid=os.getpid()),
            now_unix_ns=facts.unix_ns,
            boot_id=facts.boot_id,
        )
        gone = len(marked) - int(rows.sum())
        text = "".join(plan_lines(self._plan))
        return text + (f"  {gone} of the marked are gone meanwhile\n" if gone else ""), bool(self._plan.steps)

    def act(self) -> str:
        """Carry out the plan that was made last, journaled, by cookie.

        Raises:
            FinwaitError: the journal cannot be written.
        """
        from collections import Counter

        from finwait import acting
        from finwait.kernel import procfs
        from finwait.kernel.journal import SqliteJournal

        plan, self._plan = self._plan, None
        if plan is None or not plan.steps:
            return "nothing was planned\n"
        with SqliteJournal() as journal:
            outcomes = acting.apply(plan, journal, boot_id=procfs.facts().boot_id)
        counted = Counter(o.result for o in outcomes)
        lines = [", ".join(f"{n} {result}" for result, n in counted.most_common())]
        for o in outcomes:
            act = f"  (act {o.act_id})" if o.act_id else ""
            where = f"{o.step.src}:{o.step.sport} → {o.step.dst}:{o.step.dport}"
            lines.append(f"  {o.result}: {where}  {o.detail}{act}")
        return "\n".join(lines) + "\n\n`finwait journal` has them.\n"


def choose(wanted: Filter, diagnosis: Diagnosis) -> Any:  # noqa: ANN401 - a mask
    """Return which rows of a diagnosis a FILTER selects."""
    return options.mask_of(wanted, diagnosis.snapshot, diagnosis.findings)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status.

    Raises:
        FinwaitError: the filter is wrong, the sockets cannot be looked at, or Textual is not installed.
    """
    import contextlib
    import signal
    import sys

    from finwait.errors import FinwaitError

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        error = FinwaitError("`finwait top` needs a terminal")
        error.hint = "`finwait trace` and `finwait list` print lines"
        raise error
    try:
        from finwait.tui.app import Top
    except ImportError:
        error = FinwaitError("the package `textual` is not installed")
        error.hint = "pip install 'finwait[tui]'"
        raise error from None
    from finwait.tui.feed import Live, Recorded

    wanted = options.parse_filter(args.filter) if args.filter else None
    refresh = args.refresh / 1000
    # A closed terminal or a SIGTERM must not leave the tracing instance behind.
    ending = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, signal.default_int_handler) for number in ending]
    try:
        with contextlib.ExitStack() as stack:
            feed: Live | Recorded
            if args.recording:
                from finwait.recording.replay import open_recording

                feed = Recorded(open_recording(args.recording), wanted, choose, refresh=refresh)
            else:
                feed = stack.enter_context(Live(wanted, choose, refresh=refresh))
            clearing = None if args.recording else Clear()
            Top(feed, options.parse_filter, clearing=clearing, wanted=args.filter).run()
    except KeyboardInterrupt:
        return 130
    finally:
        for number, handler in zip(ending, previous, strict=True):
            signal.signal(number, handler)
    return 0
