"""``finwait diagnose``: which connections do not finish closing, and why."""

from __future__ import annotations

import argparse

from finwait.cli import options
from finwait.cli.printing import keep_numbers, show

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
    options.add_watch(parser)
    options.add_output(parser, options.DIAGNOSIS_FORMATS)
    parser.add_argument(
        "--all", action="store_true", help="show every connection of each finding, not only five"
    )
    parser.add_argument("--detail", action="store_true", help="show every group in full, not only three")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command, once or again and again."""
    return options.repeated(args, _once)


def _once(args: argparse.Namespace) -> int:
    from msgspec.structs import replace

    diagnosis = options.diagnose(args)
    narrowed = diagnosis.narrowed
    unjudged = (narrowed.undecided,) if narrowed is not None and narrowed.undecided is not None else ()
    gaps = (*unjudged, *diagnosis.gaps)
    show(args, replace(diagnosis, gaps=gaps) if args.output in ("json", "jsonl") else diagnosis)
    if args.output in ("text", "wide"):
        keep_numbers(args, diagnosis)
    options.tell_gaps(unjudged)
    return options.status(gaps, narrowed)
