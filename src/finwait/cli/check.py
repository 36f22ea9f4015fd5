"""``finwait check``: one line and a Nagios status, for monitoring."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from finwait.cli import options

if TYPE_CHECKING:
    from finwait.diagnosis.finding import Finding

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "check",
        help="one line and a Nagios status: are there too many connections that do not finish closing?",
        description="Count connections that do not finish closing and compare with thresholds. Exit status as of a "
        "Nagios plugin: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. Where one look cannot tell a stuck connection from one "
        "that is still in use, it looks a second time, 3.5 s later. Changes nothing.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    parser.add_argument(
        "-w", "--warning", type=int, default=1, metavar="N", help="WARNING from so many on (default 1)"
    )
    parser.add_argument(
        "-c", "--critical", type=int, default=100, metavar="N", help="CRITICAL from so many on (default 100)"
    )
    parser.add_argument(
        "--min-age",
        type=options.duration_ms,
        default=0,
        metavar="DURATION",
        help="count only connections that are certainly in their state for at least so long",
    )
    parser.add_argument(
        "--severity",
        choices=("problem", "notice"),
        default="problem",
        help="count notices too (default: problems only)",
    )
    parser.set_defaults(run=run)


def _undecided(finding: Finding, wanted: tuple[str, ...]) -> bool:
    """Return whether a second look may tell that a finding does not count, or does: monitoring must not cry wolf."""
    from finwait.diagnosis import catalogue

    worst = catalogue.rule(finding.rule).severity  # what is a notice at first may be a problem once it stays
    counts = finding.severity in wanted or worst in wanted
    return finding.primary and counts and finding.confidence.look_again


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from collections import Counter

    from finwait.diagnosis.rules import RECENT_MS
    from finwait.errors import FinwaitError
    from finwait.table.units import printable

    wanted = ("problem", "notice") if args.severity == "notice" else ("problem",)
    try:
        diagnosis = options.diagnose(args)
        if not args.watch and not args.recording and any(_undecided(f, wanted) for f in diagnosis.findings):
            args.watch = RECENT_MS + 500
            diagnosis = options.diagnose(args)
    except FinwaitError as error:
        print(f"FINWAIT UNKNOWN - {str(error).splitlines()[0]}")
        return 3
    counts: Counter[str] = Counter()
    descriptors = 0
    for f in diagnosis.findings:
        if f.primary and f.severity in wanted:
            n = f.count
            if not len(f.rows):
                descriptors += n
                n = 0 if args.min_age else n  # of what is no connection any more nobody knows since when
            elif args.min_age:
                n = int((diagnosis.view.at_least_ms[f.rows] >= args.min_age).sum())
            if n:
                counts[f.rule] += n
    total = sum(counts.values())
    partly = diagnosis.gaps or diagnosis.view.established_skipped
    nothing = f"nothing {'that was seen ' if partly else ''}fails to finish closing"
    said = ", ".join(f"{n} {rule}" for rule, n in counts.most_common()) or nothing
    if descriptors and args.min_age:
        said += f"; left out, of unknown age: {descriptors} descriptors of connections that are gone"
    # What was seen can be too much whatever was not seen; only a good answer needs the whole picture.
    level = 2 if total >= args.critical else 1 if total >= args.warning else 3 if diagnosis.gaps else 0
    word = ("OK", "WARNING", "CRITICAL", "UNKNOWN")[level]
    if diagnosis.gaps:
        said += f"; not seen: {diagnosis.gaps[0]}" + (
            f" and {len(diagnosis.gaps) - 1} more" if len(diagnosis.gaps) > 1 else ""
        )
    perf = " ".join(f"'{rule}'={n}" for rule, n in sorted(counts.items()))
    line = f"FINWAIT {word} - {said} | stuck={total};{args.warning};{args.critical};0 {perf}"
    print(printable(line).rstrip())
    return level
