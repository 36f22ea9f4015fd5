"""``finwait diagnose``: which connections do not finish closing, and why."""

from __future__ import annotations

import argparse

from finwait.cli import options
from finwait.cli.printing import show
from finwait.selecting import parse_filter

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "diagnose",
        help="which connections do not finish closing, and why (the default)",
        description="Look at every TCP connection in every network namespace and say which do not finish "
        "closing, why, who holds them, and what would really end them. Changes nothing.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    options.add_output(parser, options.DIAGNOSIS_FORMATS)
    parser.add_argument(
        "--all", action="store_true", help="show every connection of each finding, not only five"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from finwait.diagnosis import select

    diagnosis = options.diagnose(args)
    show(args, diagnosis)
    unowned = select.unowned(parse_filter(args.filter), diagnosis.view)
    options.tell_gaps(unowned)
    return options.status((*unowned, *diagnosis.gaps), diagnosis.narrowed)
