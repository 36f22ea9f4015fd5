"""``finwait compare``: what changed between two recordings, and whether anything got worse."""

from __future__ import annotations

import argparse
import os

from finwait.cli import options

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "compare",
        help="two recordings: what appeared, vanished, grew; status 1 if something got worse",
        description="Diagnose two recordings (before and after, or of two machines) and say which groups appeared, "
        "vanished, grew or shrank. A group is known again by its cause, its program and its place, never by a pid. "
        "Exit status 1: a problem has more connections in B than in A; 3: not everything could be seen, so whether "
        "something got worse is not known; 0: nothing got worse. Changes nothing.",
    )
    parser.add_argument("a", metavar="A", help="a recording, or a pasted text: before")
    parser.add_argument("b", metavar="B", help="a recording, or a pasted text: after")
    options.add_filter(parser)
    group = parser.add_argument_group("looking")
    options.add_reach(group)
    options.add_thresholds(group)
    options.add_output(parser, ("text", "json"))
    parser.set_defaults(run=run, recording=None, netns=[], watch=0, kube_names=None, agent_socket="none")


STATUS = {"worse": 1, "unknown": 3, "not worse": 0}
"""Verdict → exit status; that not everything was seen is never 0."""


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from finwait.comparing import compare
    from finwait.report.compare import comparison_json, comparison_text
    from finwait.report.shape import encoded
    from finwait.selecting import parse_filter

    row_filter = parse_filter(args.filter)
    labels = [os.path.basename(path) or path for path in (args.a, args.b)]
    compared = compare(
        (labels[0], options.machine(argparse.Namespace(recording=args.a))),
        (labels[1], options.machine(argparse.Namespace(recording=args.b))),
        options.how(args),
        row_filter if args.filter else None,
    )
    if args.output == "json":
        options.write([encoded(comparison_json(compared))])
    else:
        options.write(comparison_text(compared, options.style(args)))
    return STATUS[compared.verdict]
