"""``finwait record``: what was read, into a file that every command can read instead of the kernel."""

from __future__ import annotations

import argparse
import sys

from finwait.cli import kube_names, options, streams
from finwait.selecting import namespaces

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "record",
        help="save what was read to a file, for later or for a bug report",
        description="Record everything that a diagnosis reads, datagrams and files, unchanged. Every command "
        "that looks can read the file with `--from FILE`. Changes nothing.",
    )
    parser.add_argument(
        "file", metavar="FILE", help="where to write; `.finwait` is the usual ending (`-`: standard output)"
    )
    parser.add_argument(
        "--redact",
        action="store_true",
        help="replace addresses and names by stable pseudonyms and drop command lines, so that the file "
        "can be attached to a public bug report",
    )
    parser.add_argument(
        "--keep-name", action="append", default=[], metavar="COMM", help="a process name that --redact keeps"
    )
    parser.add_argument(
        "--looks",
        type=options.whole(1, 1000),
        default=2,
        metavar="N",
        help="number of looks, 1 to 1000 (default 2, to tell stuck from streaming)",
    )
    parser.add_argument(
        "--interval",
        type=options.duration_ms,
        default=1000,
        metavar="DURATION",
        help="time between looks (default 1s)",
    )
    options.add_netns(parser, "record only this network namespace", many=True)
    kube_names.add(parser)
    parser.set_defaults(agent_socket=None, recording=None)
    parser.add_argument("--note", metavar="TEXT", help="a line for the person who reads it")
    parser.add_argument(
        "-o",
        "--output",
        choices=("text", "json"),
        default="text",
        help="how to report what was recorded (default text, on standard error)",
    )
    parser.set_defaults(run=run, wrong=parser.error)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import os

    from finwait import session
    from finwait.recording import STANDARD, Replay, record
    from finwait.report.shape import document, encoded
    from finwait.table.units import printable
    from finwait.uapi.observation import LookPlan

    if args.file == STANDARD and args.output == "json":
        args.wrong("standard output is for the recording: name a FILE to have a report beside it")
    only = namespaces(args.netns, live=True) if args.netns else None
    recorded = record(
        session.live_machine(),
        args.file,
        looks=args.looks,
        interval_ms=args.interval,
        only=only,
        redact=args.redact,
        keep_names=frozenset(args.keep_name),
        note=args.note or "",
        cluster=kube_names.asking(args),
        progress=streams.progress(),
    )
    done = (
        f"finwait: recorded {recorded.rows} connections in {args.looks} look{'s' if args.looks != 1 else ''}"
    )
    size = 0
    if args.file == STANDARD:
        sys.stderr.write(f"{done}\n")
    else:
        size, file = os.stat(args.file).st_size, printable(args.file)
        sys.stderr.write(
            f"{done} ({size / 1000:.0f} kB) into `{file}`; read it with `finwait --from {file}`\n"
        )
    # What each look could not see, and what a command that reads the file will say of the last one.
    shot = session.look(Replay([recorded.last]), session.Look(plan=LookPlan(only=only)))
    gaps = sorted({*recorded.gaps, *shot.gaps})
    if args.output == "json":
        members = {
            "file": args.file,
            "looks": args.looks,
            "connections": recorded.rows,
            "bytes": size,
            "redacted": args.redact,
        }
        options.write([encoded(document("RecordingMade", members, gaps))])
    options.tell_gaps(gaps)
    return options.status(gaps)
