"""``finwait top``: the live view."""

from __future__ import annotations

import argparse

from finwait.cli import options

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "top",
        help="a live picture: where connections pile up",
        description="Show the TCP state diagram with the number of connections in each state and how many pass each "
        "arrow a second, and the connections in groups. `?` lists the keys. Changes nothing.",
    )
    options.add_filter(parser)
    parser.add_argument(
        "--refresh",
        type=options.duration_ms,
        default=2000,
        metavar="TIME",
        help="time between pictures (default: 2s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status.

    Raises:
        FinwaitError: the filter is wrong, the sockets cannot be looked at, or Textual is not installed.
    """
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
    from finwait.tui.feed import Live

    wanted = options.parse_filter(args.filter) if args.filter else None
    # A closed terminal or a SIGTERM must not leave the tracing instance behind.
    ending = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, signal.default_int_handler) for number in ending]
    try:
        with Live(wanted, refresh=args.refresh / 1000) as feed:
            Top(feed).run()
    except KeyboardInterrupt:
        return 130
    finally:
        for number, handler in zip(ending, previous, strict=True):
            signal.signal(number, handler)
    return 0
