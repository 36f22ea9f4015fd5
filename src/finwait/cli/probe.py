"""``finwait probe``: ask idle connections whether their peers live, and leave everything as it was."""

from __future__ import annotations

import argparse
import sys

from finwait.cli import options

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "probe",
        help="ask idle connections whether their peers live",
        description="Arm a short keepalive on idle connections through a borrowed descriptor, watch what comes of it, "
        "and put every option back exactly as it was. A live peer answers and nothing else happens; a connection "
        "whose peer is gone ends, which is the point. Tells for each: alive, reset, dead, or not judged.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    options.add_output(parser, ("text", "json"))
    parser.add_argument(
        "--keepalive",
        type=options.keepalive,
        default=(1, 1, 3),
        metavar="IDLE/INTERVAL/COUNT",
        help="default 1/1/3: up to 4 s",
    )
    parser.add_argument(
        "--max",
        type=options.at_least_one,
        default=1000,
        metavar="N",
        help="refuse more than N connections (default 1000)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from finwait.acting.probe import probe
    from finwait.kernel.journal import opened
    from finwait.report.probe import probe_json, probe_lines, unrestored_lines

    if not args.recording:
        options.tell_unfinished()
    selected = options.chosen(args, "probe")
    steps, gaps = selected.steps, selected.gaps
    if not steps:
        return options.status(gaps)
    unrestored: dict[int, str] = {}
    try:
        with opened() as journal:
            found = probe(
                steps,
                journal,
                keepalive=args.keepalive,
                say=options.progress() or (lambda _: None),
                unrestored=unrestored,
            )
    except KeyboardInterrupt:
        if not unrestored:
            sys.stderr.write("finwait: interrupted; every option is as it was before\n")
        else:
            options.write_error(unrestored_lines(steps, unrestored))
        raise
    if args.output == "json":
        sys.stdout.write(probe_json(found, selected.left))
    else:
        options.write(probe_lines(found))
    if unrestored:
        options.write_error(unrestored_lines(steps, unrestored))
        return 1
    unjudged = any(one.verdict == "not judged" for one in found)
    return 3 if unjudged else options.status(gaps)
