"""``finwait probe``: probe idle connections, and leave everything as it was."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from finwait.cli import options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finwait.remedy.outcome import Probe

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "probe",
        help="probe idle connections to find out whether their peers are alive",
        description="Set a short keepalive on idle connections through a borrowed descriptor, watch the result, "
        "and restore every option exactly as it was. A live peer answers and nothing else happens; a "
        "connection whose peer is gone ends, which is the point. Says for each: alive, reset, dead, "
        "or not judged.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    options.add_output(parser, ("text", "json"))
    parser.add_argument(
        "--keepalive",
        type=options.keepalive,
        default=(1, 1, 3),
        metavar="IDLE/INTERVAL/COUNT",
        help="seconds, seconds, probes (default 1/1/3, which takes up to 4 s)",
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
    from finwait.report.probe import interrupted_lines, unrestored_lines

    if not args.recording:
        options.tell_unfinished()
    selected = options.chosen(args, "probe")
    steps, gaps = selected.steps, selected.gaps
    if not steps:
        return options.status(gaps)
    found: dict[int, Probe] = {}
    interrupted = False
    with opened() as journal:
        try:
            probe(
                steps,
                journal,
                keepalive=args.keepalive,
                say=options.progress() or (lambda _: None),
                into=found,
            )
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            unrestored = {k: found[k].unrestored for k in sorted(found) if found[k].unrestored}
            if not interrupted:
                _tell(args, [found[k] for k in sorted(found)], selected.left)
            if unrestored:
                options.write_error(unrestored_lines(steps, unrestored))
            elif interrupted and (unknown := options.left_open(journal)):
                sys.stderr.write(f"finwait: interrupted; {unknown}\n")
            elif interrupted:
                options.write_error(interrupted_lines([found[k] for k in sorted(found)]))
            elif len(found) == len(steps) and sys.exc_info()[0] is not None:
                sys.stderr.write("finwait: every option is as it was before\n")
    if unrestored:
        return 1
    unjudged = any(one.verdict == "not judged" for one in found.values())
    return 3 if unjudged else options.status(gaps)


def _tell(args: argparse.Namespace, found: list[Probe], left: Mapping[str, int]) -> None:
    from finwait.report.probe import probe_json, probe_lines

    if not found:
        return
    if args.output == "json":
        sys.stdout.write(probe_json(found, left))
    else:
        options.write(probe_lines(found))
