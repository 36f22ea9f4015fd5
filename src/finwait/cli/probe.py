"""``finwait probe``: probe idle connections, and leave everything as it was."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from finwait.cli import options, streams
from finwait.cli.streams import acts_told

if TYPE_CHECKING:
    from finwait.planning import OptionTargets
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
    probes: dict[int, Probe] = {}
    interrupted = False
    with opened() as journal:
        try:
            probe(
                steps,
                journal,
                keepalive=args.keepalive,
                say=streams.progress() or (lambda _: None),
                into=probes,
            )
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            unrestored = {k: probes[k].unrestored for k in sorted(probes) if probes[k].unrestored}
            if unrestored:
                options.write_error(unrestored_lines(steps, unrestored))
            elif interrupted and (unknown := options.left_open(journal)):
                sys.stderr.write(f"finwait: interrupted; {unknown}\n")
            elif interrupted:
                options.write_error(interrupted_lines([probes[k] for k in sorted(probes)]))
            elif len(probes) == len(steps) and sys.exc_info()[0] is not None:
                sys.stderr.write("finwait: every option is as it was before\n")
            if not interrupted:
                _tell(args, [probes[k] for k in sorted(probes)], selected)
    if unrestored:
        return 1
    unjudged = any(answer.verdict == "not judged" for answer in probes.values())
    return 3 if unjudged else options.status(gaps)


def _tell(args: argparse.Namespace, probes: list[Probe], selected: OptionTargets) -> None:
    from finwait.report.probe import counted, probe_json, probe_lines

    if not probes:
        return
    with acts_told(lambda: counted(probes)):
        if args.output == "json":
            sys.stdout.write(probe_json(probes, selected.left, selected.gaps))
        else:
            options.write(probe_lines(probes))
