"""``finwait check``: one line and a Nagios status, for monitoring.

Whatever goes wrong, the answer is one line on standard output and status 3: to what runs plugins, 1 and 2 are alarms.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finwait.cli import options
from finwait.selecting import parse_filter

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from finwait.diagnosis.finding import Finding
    from finwait.report.nagios import Threshold
    from finwait.session import Diagnosis
    from finwait.table.schema import Mask

__all__ = ["add_parser", "run", "unknown"]

_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_WARNING, _CRITICAL = "1", "100"


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "check",
        help="one line and a Nagios status: are there too many connections that do not finish closing?",
        description="Count connections that do not finish closing and compare with thresholds. The exit status "
        "is that of a Nagios plugin: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, also for wrong "
        "arguments. A threshold is N (N or more) or a range as in the plugins' convention: `10:` "
        "alerts below 10, `10:20` outside, `@5:10` inside, `~:5` above 5. If one look cannot tell a "
        "stuck connection from one that is still in use, it looks a second time, 3.5 s later. "
        "Connections in a state that no rule explains are named, and make the answer UNKNOWN if "
        "nothing worse is found. Changes nothing.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    parser.add_argument(
        "-w",
        "--warning",
        type=_threshold,
        default=_WARNING,
        metavar="RANGE",
        help=f"WARNING at N or more, or by a range (default {_WARNING})",
    )
    parser.add_argument(
        "-c",
        "--critical",
        type=_threshold,
        default=_CRITICAL,
        metavar="RANGE",
        help=f"CRITICAL at N or more, or by a range (default {_CRITICAL})",
    )
    parser.add_argument(
        "--min-age",
        type=options.duration_ms,
        default=0,
        metavar="DURATION",
        help="count only connections that have certainly been in their state this long",
    )
    parser.add_argument(
        "--severity",
        choices=("problem", "notice"),
        default="problem",
        help="with `notice`, count notices too (default: problems only)",
    )
    parser.set_defaults(run=run)


def _threshold(text: str) -> Threshold:
    from finwait.report.nagios import Threshold

    try:
        return Threshold.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _undecided(finding: Finding, wanted: tuple[str, ...]) -> bool:
    """Return whether a second look may tell that a finding does not count, or does: monitoring must not cry wolf."""
    from finwait.diagnosis import catalogue

    worst = catalogue.rule(finding.rule).severity  # what is a notice at first may be a problem once it stays
    counts = finding.severity in wanted or worst in wanted
    return finding.primary and counts and finding.confidence.look_again


def unknown(reason: str) -> int:
    """Print that nothing can be said, and why; return the status of that."""
    from finwait.table.units import printable

    print(printable(f"FINWAIT UNKNOWN - {' '.join(reason.split())}"), flush=True)
    return 3


def run(args: argparse.Namespace) -> int:
    """Run the command; it raises for nothing but the end of the process, and a closed standard output."""
    import traceback

    from finwait.errors import FilterError, FinwaitError

    try:
        warning, critical = args.warning.maximum, args.critical.maximum
        if warning is not None and critical is not None and warning > critical:
            default = " (the default)" if args.critical.text == _CRITICAL else ""
            return unknown(
                f"wrong arguments: `--warning {args.warning.text}` is above `--critical {args.critical.text}`"
                f"{default}, so that WARNING could never be said"
            )
        return _answer(args, _look(args))
    except BrokenPipeError:
        raise
    except FilterError as error:
        return unknown(f"wrong arguments: FILTER `{error.text}`: {error.message}")
    except FinwaitError as error:
        first = str(error).splitlines()[0]
        return unknown(f"{first}; {error.hint}" if error.hint else first)
    except OSError as error:
        where = f"`{error.filename}`: " if error.filename else ""
        return unknown(f"{where}{error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - a fault of ours must not look like a WARNING, which is status 1
        traceback.print_exc()
        return unknown(f"finwait itself failed ({type(error).__name__}: {error}); the traceback is on stderr")


def _look(args: argparse.Namespace) -> Diagnosis:
    from finwait.diagnosis.rules import RECENT_MS

    diagnosis = options.diagnose(args)
    wanted = _severities(args)
    again = (
        any(_undecided(f, wanted) for f in diagnosis.findings)
        or any(_ageless(args, diagnosis))
        or bool(_passing(diagnosis)[_rows(diagnosis, wanted)].any())
    )
    if not args.watch and not args.recording and again:
        args.watch = RECENT_MS + 500
        diagnosis = options.diagnose(args)
    return diagnosis


def _rows(diagnosis: Diagnosis, wanted: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the rows of all findings that would count."""
    import numpy as np

    rows = [f.rows for f in diagnosis.findings if f.primary and f.severity in wanted]
    return np.concatenate(rows) if rows else np.empty(0, np.int64)


def _passing(diagnosis: Diagnosis) -> Mask:
    """Return which connections may just pass through their state: a busy server always has such.

    After one look those that are not known to have been in it for some seconds; after two those that the first did
    not see at all.
    """
    from finwait.diagnosis.rules import RECENT_MS

    view = diagnosis.view
    if view.lone_before is None:
        return view.at_least_ms < RECENT_MS
    return (view.queue_before < 0) & (view.at_least_ms < RECENT_MS)


def _severities(args: argparse.Namespace) -> tuple[str, ...]:
    return ("problem", "notice") if args.severity == "notice" else ("problem",)


@dataclass(frozen=True, slots=True)
class _Counted:
    """What is compared with the thresholds, and what stands beside it."""

    by_rule: dict[str, int]
    """Without the rules that found nothing, the most frequent first."""
    ageless: tuple[str, ...]
    """What `--min-age` leaves out although nothing ever tells since when it is so."""
    not_seen: tuple[str, ...]
    """What more could be wrong, and why it was not seen."""
    passed_over: int
    """How many ESTABLISHED connections were left out because that was asked for."""
    unexplained: int = 0
    """Connections in a state that no rule explains, and which `--severity` does not count."""
    unowned: bool = False
    """Whether rules were not judged because owners were not looked for."""
    selects_nothing: bool = False
    """Whether the FILTER selects nothing at all, so that nothing could be wrong with it."""

    @property
    def total(self) -> int:
        return sum(self.by_rule.values())


def _ageless(args: argparse.Namespace, diagnosis: Diagnosis) -> tuple[int, int]:
    """Return of how many connections and descriptors that would count nothing ever tells how old they are.

    A listener, a FIN behind unsent data, a descriptor without a connection: however long one waits, they do not come to
    be older than `--min-age`, and leaving them out would be to say for ever that all is well.
    """
    from finwait.diagnosis.assemble import ages

    connections = descriptors = 0
    if args.min_age:
        wanted = _severities(args)
        unknown = ages(diagnosis.view.sockets)[0] < 0
        unknown &= diagnosis.view.at_least_ms < args.min_age
        for f in diagnosis.findings:
            if f.primary and f.severity in wanted:
                connections += int(unknown[f.rows].sum())
                descriptors += 0 if len(f.rows) else f.count
    return connections, descriptors


def _counted(args: argparse.Namespace, diagnosis: Diagnosis) -> _Counted:
    from collections import Counter

    from finwait.diagnosis import select

    wanted = _severities(args)
    # One look, of a recording: nothing tells more, and all of it counts.
    twice = diagnosis.view.lone_before is not None
    passing = _passing(diagnosis) & twice
    counts: Counter[str] = Counter()
    for f in diagnosis.findings:
        if not f.primary or f.severity not in wanted:
            continue
        if not args.min_age:
            counts[f.rule] += f.count - int(passing[f.rows].sum())
        elif len(f.rows):
            old = diagnosis.view.at_least_ms[f.rows] >= args.min_age
            counts[f.rule] += int((old & ~passing[f.rows]).sum())
    connections, descriptors = _ageless(args, diagnosis)
    ageless = tuple(
        text
        for n, text in (
            (connections, f"{connections} connections"),
            (descriptors, f"{descriptors} descriptors of connections that are gone"),
        )
        if n
    )
    not_seen = [str(gap) for gap in diagnosis.gaps]
    skipped = _established_skipped(args, diagnosis)
    if skipped and args.established == "auto":
        not_seen.append(
            f"about {skipped} sockets in namespaces too large to look at ESTABLISHED ones "
            "(`--established always` does, `never` leaves them out)"
        )
    if diagnosis.narrowed is not None:
        open_: Counter[str] = Counter()
        for f in diagnosis.narrowed.unjudged:
            open_[f.rule] += f.count if f.severity in wanted else 0
        not_seen += [f"whether the FILTER selects {n} {rule}" for rule, n in open_.items() if n]
    not_seen += select.unowned(parse_filter(args.filter), diagnosis.view)
    return _Counted(
        {rule: n for rule, n in counts.most_common() if n},
        ageless,
        tuple(not_seen),
        skipped if args.established == "never" else 0,
        _unexplained(args, diagnosis),
        not diagnosis.view.holders.searched,
        diagnosis.narrowed is not None and not diagnosis.narrowed.rows.any() and not diagnosis.findings,
    )


def _unexplained(args: argparse.Namespace, diagnosis: Diagnosis) -> int:
    """Return how many connections nobody can call well: they are not counted, and no rule explains their state."""
    wanted, view = _severities(args), diagnosis.view
    total = 0
    for f in diagnosis.findings:
        if f.rule == "unexplained" and f.primary and f.severity not in wanted:
            young = (view.at_most_ms[f.rows] >= 0) & (view.at_most_ms[f.rows] < args.min_age)
            total += int((~young).sum())
    return total


def _established_skipped(args: argparse.Namespace, diagnosis: Diagnosis) -> int:
    """Return how many ESTABLISHED sockets were left out that the FILTER may ask for."""
    from finwait.uapi import tcp

    asked = parse_filter(args.filter).states >> tcp.ESTABLISHED & 1
    return diagnosis.view.established_skipped if asked else 0


def _level(args: argparse.Namespace, counted: _Counted) -> int:
    """Return the status: what was not seen can only add to the count, and never makes a good answer."""
    total = counted.total
    if not (counted.not_seen or counted.ageless or counted.unexplained):
        return 2 if args.critical.alerts(total) else 1 if args.warning.alerts(total) else 0
    return 2 if args.critical.alerts_from(total) else 1 if args.warning.alerts_from(total) else 3


def _answer(args: argparse.Namespace, diagnosis: Diagnosis) -> int:
    from finwait.report.nagios import perfdata
    from finwait.table.units import printable

    counted = _counted(args, diagnosis)
    level = _level(args, counted)
    performance = [
        perfdata("stuck", counted.total, args.warning, args.critical),
        *(perfdata(rule, n) for rule, n in sorted(counted.by_rule.items())),
    ]
    # `|` ends the text for what reads it.
    text = _text(counted).replace("|", "/")
    print(printable(f"FINWAIT {_WORDS[level]} - {text} | {' '.join(performance)}"), flush=True)
    return level


def _text(counted: _Counted) -> str:
    from finwait.report.text import unowned

    partly = (
        counted.not_seen or counted.ageless or counted.passed_over or counted.unexplained or counted.unowned
    )
    nothing = f"nothing {'that was seen ' if partly else ''}fails to finish closing"
    if counted.selects_nothing:
        nothing = f"the FILTER selects no connection{' that was seen' if partly else ''}"
    parts = [", ".join(f"{n} {rule}" for rule, n in counted.by_rule.items()) or nothing]
    if counted.unexplained:
        parts.append(f"{counted.unexplained} unexplained")
    if counted.unowned:
        parts.append(unowned())
    if counted.passed_over:
        parts.append(f"about {counted.passed_over} sockets not looked at (`--established never`)")
    if counted.ageless:
        parts.append(f"left out, of unknown age: {', '.join(counted.ageless)}")
    parts += _not_seen(counted.not_seen)
    return "; ".join(parts)


def _not_seen(gaps: Sequence[str]) -> list[str]:
    if not gaps:
        return []
    more = f" and {len(gaps) - 1} more" if len(gaps) > 1 else ""
    return [f"not seen: {gaps[0]}{more}"]
