"""``finwait top``: the live view."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finwait.cli import options

if TYPE_CHECKING:
    from finwait.table.filter import Filter
    from finwait.tui.screens import Proposal

__all__ = ["Clear", "add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "top",
        help="a live picture: where connections pile up",
        description="Show the TCP state diagram with the number of connections in each state and how many pass each "
        "arrow a second, and the connections in groups: by cause, process, pod, peer, namespace, state, port. `?` "
        "lists the keys. Changes nothing, unless you mark connections, read the plan and type yes.",
    )
    options.add_filter(parser)
    parser.add_argument(
        "--from", dest="recording", metavar="FILE", help="show the looks of a recording, one after the other"
    )
    parser.add_argument(
        "--refresh",
        type=options.duration_ms,
        default=2000,
        metavar="TIME",
        help="time between pictures (default: 2s)",
    )
    parser.set_defaults(run=run)


class Clear:
    """Plans of `finwait clear` for marked connections, with its defaults and guards.

    Args:
        recording: the file that is shown in place of this machine, or None.
    """

    def __init__(self, recording: str | None = None) -> None:
        self._recording = recording

    def _args(self, cookies: Sequence[int]) -> argparse.Namespace:
        from finwait.cli import build_parser

        words = " or ".join(f"cookie = {cookie:#x}" for cookie in cookies)
        more = ["--from", self._recording, "--dry-run"] if self._recording else []
        return build_parser().parse_args(["clear", *more, words])

    def propose(self, cookies: Sequence[int]) -> Proposal:
        """Make a plan for some connections; changes nothing.

        Raises:
            FinwaitError: a guard refuses the plan as a whole, or the look failed.
        """
        from finwait.cli import clear
        from finwait.tui.screens import Proposal

        args = self._args(cookies)
        plan, gaps = clear.make_plan(args)
        lines = clear.plan_lines(plan)
        if gaps:
            lines += ["\nNot seen:\n", *(f"  {gap}\n" for gap in gaps)]
        some = " or ".join(f"cookie = {cookie:#x}" for cookie in cookies[:3])
        more = " or …" if len(cookies) > 3 else ""
        why_not = "A recording cannot be acted upon: this is only what would be planned."
        return Proposal(
            lines,
            len(plan.steps),
            f"finwait clear '{some}{more}'",
            plan,
            why_not if self._recording else "",
        )

    def apply(self, proposal: Proposal) -> Sequence[str]:
        """Do what was proposed; everything that it rests on is read again first.

        Raises:
            FinwaitError: nothing was done: the journal cannot be written, or this is another boot.
        """
        from collections import Counter

        from finwait import acting
        from finwait.errors import FinwaitError
        from finwait.kernel import procfs
        from finwait.kernel.journal import SqliteJournal

        if self._recording:
            raise FinwaitError("a recording cannot be acted upon")
        args = self._args([0])
        with SqliteJournal() as journal:
            outcomes = acting.apply(
                proposal.plan,
                journal,
                boot_id=procfs.facts().boot_id,
                rate=args.rate,
                user_timeout_ms=args.user_timeout,
            )
        counted = Counter(o.result for o in outcomes)
        lines = [", ".join(f"{n} {result}" for result, n in counted.most_common()) + "\n\n"]
        for o in outcomes:
            act = f"  (act {o.act_id})" if o.act_id else ""
            where = f"{o.step.src}:{o.step.sport} → {o.step.dst}:{o.step.dport}"
            lines.append(f"{o.result}: {where}  {o.detail}{act}\n")
        return lines


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status.

    Raises:
        FinwaitError: the filter is wrong, the sockets or the recording cannot be looked at, or Textual is not
            installed.
    """
    import signal
    import sys

    from finwait.errors import FinwaitError

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        error = FinwaitError("`finwait top` needs a terminal")
        error.hint = "`finwait trace` and `finwait list` print lines"
        raise error
    try:
        import textual  # noqa: F401 - asked for here so that its absence has a message
    except ImportError:
        error = FinwaitError("the package `textual` is not installed")
        error.hint = "pip install 'finwait[tui]'"
        raise error from None
    wanted = options.parse_filter(args.filter) if args.filter else None
    # A closed terminal or a SIGTERM must not leave the tracing instance behind, also before the view is up.
    ending = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, signal.default_int_handler) for number in ending]
    try:
        return _show(args, wanted)
    except KeyboardInterrupt:
        return 130
    finally:
        for number, handler in zip(ending, previous, strict=True):
            signal.signal(number, handler)


def _show(args: argparse.Namespace, wanted: Filter | None) -> int:
    from contextlib import ExitStack

    from finwait.tui.app import Top
    from finwait.tui.feed import Feed, Live
    from finwait.tui.replay import Recorded

    refresh = max(args.refresh, 100) / 1000
    with ExitStack() as stack:
        feed: Feed
        if args.recording:
            from finwait.recording import read

            feed = Recorded(read(args.recording)[1], wanted, refresh=refresh)
        else:
            feed = stack.enter_context(Live(wanted, refresh=refresh))
        app = Top(
            feed,
            parse=lambda typed: options.parse_filter([typed]),
            clearing=Clear(args.recording),
            filter_text=" ".join(args.filter),
        )
        status = app.run()
        if app.failed is not None:
            raise app.failed
        return status or 0
