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
    """Plans for marked connections: made by `finwait clear` itself, with its defaults and its guards.

    Args:
        options: of `finwait clear`, in place of its defaults.
    """

    def __init__(self, *options: str) -> None:
        self._options = options
        self._plan: Plan | None = None

    def _args(self, words: str) -> argparse.Namespace:
        from finwait.cli import build_parser

        return build_parser().parse_args(["clear", *self._options, words])

    def plan(self, keys: Sequence[tuple[int, int]]) -> tuple[str, bool]:
        """Look again, twice, and plan for the marked connections that are still there.

        Raises:
            Refused: more than may be ended at once.
            FinwaitError: the look failed.
        """
        from finwait.cli import clear
        from finwait.table.units import printable

        words = [f"cookie = {cookie:#x}" for _, cookie in keys]
        self._plan, gaps = clear.make_plan(self._args(" or ".join(words)))
        lines = clear.plan_lines(self._plan)
        if gone := _gone(keys):
            lines.append(f"\n{gone} of the marked are gone meanwhile\n")
        if gaps:
            lines += ["\nNot seen:\n", *(f"  {gap}\n" for gap in gaps)]
        more = " or …" if len(words) > 3 else ""
        lines.append(f"\nThe same: `finwait clear '{' or '.join(words[:3])}{more}'`\n")
        return printable("".join(lines), lines=True), bool(self._plan.steps)

    def act(self) -> str:
        """Carry out the plan that was made last, journaled, by cookie.

        Raises:
            FinwaitError: the journal cannot be written.
        """
        from finwait import acting
        from finwait.cli import clear
        from finwait.kernel import procfs
        from finwait.kernel.journal import SqliteJournal
        from finwait.table.units import printable

        plan, self._plan = self._plan, None
        if plan is None or not plan.steps:
            return "nothing was planned\n"
        args = self._args("")
        # A thread of its own, which a closed terminal does not cut short: what was begun is finished and journaled.
        with SqliteJournal() as journal:
            outcomes = acting.apply(
                plan,
                journal,
                boot_id=procfs.facts().boot_id,
                rate=args.rate,
                user_timeout_ms=args.user_timeout,
            )
        text = "".join(clear.outcome_lines(outcomes)).lstrip("\n")
        return printable(text, lines=True) + "\n`finwait journal` has them.\n"


def _gone(keys: Sequence[tuple[int, int]]) -> int:
    """Return how many connections are in no dump any more."""
    from finwait.kernel.observe import Machine
    from finwait.kernel.observe import Plan as What
    from finwait.table import decode

    what = What(
        extensions=0, conntrack=False, files=False, established_limit=None,
        only=frozenset(netns for netns, _ in keys),
    )  # fmt: skip
    return len({cookie for _, cookie in keys} - set(decode.sockets(Machine().observe(what)).cookie.tolist()))


def choose(wanted: Filter, diagnosis: Diagnosis) -> Any:  # noqa: ANN401 - a mask
    """Return which rows of a diagnosis a FILTER selects."""
    return options.mask_of(wanted, diagnosis.snapshot, diagnosis.findings)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status.

    Raises:
        FinwaitError: the filter is wrong, the sockets cannot be looked at, or Textual is not installed.
    """
    import contextlib
    import os
    import signal
    import sys

    from finwait.errors import FinwaitError

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        error = FinwaitError("`finwait top` needs a terminal")
        error.hint = "`finwait trace` and `finwait list` print lines"
        raise error
    for name in (
        "COLUMNS",
        "LINES",
    ):  # exported (`docker exec -e COLUMNS`) they would hide every later resize
        os.environ.pop(name, None)
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
            app = Top(feed, options.parse_filter, clearing=clearing, wanted=args.filter)
            app.run()
            if app.failed is not None:
                raise app.failed
    except KeyboardInterrupt:
        return 130
    finally:
        for number, handler in zip(ending, previous, strict=True):
            signal.signal(number, handler)
    return 0
