"""``finwait check``: one line and a Nagios status, for monitoring.

Whatever goes wrong, the answer is one line on standard output and status 3: to what runs plugins, 1 and 2 are alarms.
"""

from __future__ import annotations

import argparse
from collections import Counter
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
_BY_VERDICT = frozenset({"rule", "also", "variant", "severity", "ends", "waited", "thread"})
"""What a FILTER may ask for that a second look may change."""


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "check",
        help="one line and a Nagios status: are there too many connections that do not finish closing?",
        description="Count connections that do not finish closing and compare with thresholds. The exit status "
        "is that of a Nagios plugin: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, also for wrong "
        "arguments. A threshold is N (N or more) or a range as in the plugins' convention: `10:` "
        "alerts below 10, `10:20` outside, `@5:10` inside, `~:5` above 5. If one look cannot tell a "
        "stuck connection from one that is still in use, it looks a second time, 3.5 s later. That cannot tell "
        "a peer that stopped reading from a slow one: a closed window counts once it is proven, at the latest "
        "after `--idle`. "
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
    parser.add_argument(
        "-o",
        "--output",
        choices=("text", "json"),
        default="text",
        help="format (default text, the line of a plugin); the exit status is the same",
    )
    parser.set_defaults(run=run)


def _threshold(text: str) -> Threshold:
    from finwait.report.nagios import Threshold

    try:
        return Threshold.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _undecided(finding: Finding, severities: tuple[str, ...]) -> bool:
    """Return whether a second look may tell that a finding does not count, or does: monitoring must not cry wolf."""
    from finwait.diagnosis import catalogue

    worst = catalogue.rule(finding.rule).severity  # what is a notice at first may be a problem once it stays
    counts = finding.severity in severities or worst in severities
    return finding.primary and counts and finding.confidence.look_again


def unknown(reason: str, form: str = "text") -> int:
    """Print that nothing can be said, and why; return the status of that."""
    from finwait.table.units import printable

    if form == "json":
        from finwait.report.shape import document, encoded

        members = {"status": _WORDS[3], "code": 3, "text": " ".join(reason.split()), "error": True}
        print(encoded(document("Check", members)), end="", flush=True)
        return 3
    print(printable(f"FINWAIT UNKNOWN - {' '.join(reason.split())}"), flush=True)
    return 3


def run(args: argparse.Namespace) -> int:
    """Run the command; it raises for nothing but the end of the process, and a closed standard output."""
    import traceback

    from finwait.errors import FilterError, FinwaitError

    form: str = args.output
    try:
        warning, critical = args.warning.maximum, args.critical.maximum
        if warning is not None and critical is not None and warning > critical:
            default = " (the default)" if args.critical.text == _CRITICAL else ""
            return unknown(
                f"wrong arguments: `--warning {args.warning.text}` is above `--critical {args.critical.text}`"
                f"{default}, so WARNING could never be reported",
                form,
            )
        return _answer(args, _look(args))
    except BrokenPipeError:
        raise
    except FilterError as error:
        return unknown(f"wrong arguments: FILTER `{error.text}`: {error.message}", form)
    except FinwaitError as error:
        first = str(error).splitlines()[0]
        return unknown(f"{first}; {error.hint}" if error.hint else first, form)
    except OSError as error:
        where = f"`{error.filename}`: " if error.filename else ""
        return unknown(f"{where}{error.strerror or error}", form)
    except Exception as error:  # noqa: BLE001 - a fault of ours must not look like a WARNING, which is status 1
        traceback.print_exc()
        return unknown(
            f"finwait itself failed ({type(error).__name__}: {error}); the traceback is on stderr", form
        )


def _look(args: argparse.Namespace) -> _Looks:
    from finwait.diagnosis.rules import RECENT_MS

    whole = options.unnarrowed(args)
    looks = _Looks(options.narrowed(args, whole), whole)
    if not args.watch and not args.recording and _worth_another(args, looks.undecided_in(args)):
        args.watch = RECENT_MS + 500
        whole = options.unnarrowed(args)
        looks = _Looks(options.narrowed(args, whole), whole)
    return looks


@dataclass(frozen=True, slots=True)
class _Looks:
    """What was seen."""

    diagnosis: Diagnosis
    """Of what the FILTER selects."""
    whole: Diagnosis
    """Of everything."""

    def undecided_in(self, args: argparse.Namespace) -> Diagnosis:
        """Return where to look for what is undecided: a FILTER by verdicts does not select what has none yet."""
        return self.whole if parse_filter(args.filter).needs & _BY_VERDICT else self.diagnosis


def _worth_another(args: argparse.Namespace, diagnosis: Diagnosis) -> bool:
    """Return whether a second look may tell more."""
    severities = _severities(args)
    passing = _passing(diagnosis)
    return (
        bool(diagnosis.view.holder_in_question.any())
        or any(_undecided(f, severities) for f in diagnosis.findings)
        or bool(_coming(diagnosis).any())
        or any(_ageless(args, diagnosis))
        or bool((passing | _with_data(diagnosis))[_rows(diagnosis, severities)].any())
        or any(passing[f.rows].any() for f in (*_strange(args, diagnosis), *_unjudged(diagnosis, severities)))
    )


def _rows(diagnosis: Diagnosis, severities: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the rows of all findings that would count."""
    import numpy as np

    rows = [f.rows for f in diagnosis.findings if f.primary and f.severity in severities]
    return np.concatenate(rows) if rows else np.empty(0, np.int64)


def _with_data(diagnosis: Diagnosis) -> Mask:
    """Return, after one look, half-closed connections with data to read: somebody may be reading that."""
    from finwait.uapi import tcp

    view = diagnosis.view
    unread = view.sockets.rqueue > view.in_state(tcp.CLOSE_WAIT)  # an unread FIN counts 1
    waiting: Mask = view.in_state(tcp.CLOSE_WAIT, tcp.FIN_WAIT2) & view.held & unread
    return waiting & (view.lone_before is None)


def _passing(diagnosis: Diagnosis) -> Mask:
    """Return which connections may just pass through their state: a busy server always has such.

    After one look those that are not known to have been in it for some seconds; after two those that the first did
    not see at all.
    """
    from finwait.diagnosis.rules import RECENT_MS, just_seen

    view = diagnosis.view
    return view.at_least_ms < RECENT_MS if view.lone_before is None else just_seen(view)


def _strange(args: argparse.Namespace, diagnosis: Diagnosis) -> list[Finding]:
    """Return the findings of what no rule explains and `--severity` does not count."""
    severities = _severities(args)
    return [
        f
        for f in diagnosis.findings
        if f.rule == "unexplained" and f.primary and f.severity not in severities
    ]


def _unjudged(diagnosis: Diagnosis, severities: tuple[str, ...]) -> list[Finding]:
    """Return the findings that would count if the FILTER selects them, which it cannot tell."""
    unjudged = () if diagnosis.narrowed is None else diagnosis.narrowed.unjudged
    return [f for f in unjudged if f.severity in severities]


def _open(args: argparse.Namespace, diagnosis: Diagnosis) -> dict[str, int]:
    """Return by rule how many the FILTER could not judge; those that just pass through their state are left out."""
    passing = _settled(diagnosis)
    counts: Counter[str] = Counter()
    for f in _unjudged(diagnosis, _severities(args)):
        counts[f.rule] += f.count - int(passing[f.rows].sum())
    return {rule: n for rule, n in counts.items() if n > 0}


def _settled(diagnosis: Diagnosis) -> Mask:
    """Return which connections are left out of all counts; of one look, as of a recording, none: it tells no more."""
    return _passing(diagnosis) & (diagnosis.view.lone_before is not None)


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

    A listener, a FIN behind unsent data, a half-close whose keepalive probes are answered more often than that, a
    descriptor without a connection: however long one waits, they do not come to be older than `--min-age`, and leaving
    them out would be to say for ever that all is well.
    """
    import numpy as np

    connections = descriptors = 0
    if args.min_age:
        severities = _severities(args)
        view = diagnosis.view
        unknown = view.clock_shows(np.arange(len(view)), args.min_age) < 0
        unknown &= view.at_least_ms < args.min_age
        unknown &= (view.clock_ms < 0) | (view.at_most_ms < 0) | (view.at_most_ms >= args.min_age)
        for f in diagnosis.findings:
            if f.primary and f.severity in severities:
                connections += int(unknown[f.rows].sum())
                descriptors += 0 if len(f.rows) else f.count
    return connections, descriptors


def _counted(args: argparse.Namespace, looks: _Looks) -> _Counted:
    from finwait.diagnosis import select

    diagnosis = looks.diagnosis
    severities = _severities(args)
    passing = _settled(diagnosis)
    counts: Counter[str] = Counter()
    for f in diagnosis.findings:
        if not f.primary or f.severity not in severities:
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
            f"about {skipped} sockets in namespaces that are too large to look at ESTABLISHED ones "
            "(`--established always` does; `never` leaves them out)"
        )
    not_seen += [f"whether the FILTER selects {n} {rule}" for rule, n in _open(args, diagnosis).items()]
    not_seen += _too_short(looks.undecided_in(args), severities) if args.recording else []
    not_seen += map(str, select.unowned(parse_filter(args.filter), diagnosis.view))
    return _Counted(
        {rule: n for rule, n in counts.most_common() if n},
        ageless,
        tuple(not_seen),
        skipped if args.established == "never" else 0,
        _unexplained(args, diagnosis),
        not diagnosis.view.holders.searched,
        diagnosis.narrowed is not None and not diagnosis.narrowed.rows.any() and not diagnosis.findings,
    )


def _coming(diagnosis: Diagnosis) -> Mask:
    """Return the connections that a FILTER selects on which data lies unread, and more came a moment ago."""
    from finwait.diagnosis.rules.established_unread import undecided

    rows = undecided(diagnosis.view)
    return rows if diagnosis.narrowed is None else rows & diagnosis.narrowed.rows


def _too_short(diagnosis: Diagnosis, severities: tuple[str, ...]) -> list[str]:
    """Return what would count if it stayed: of a recording nobody can look again, or for longer."""
    counts: Counter[str] = Counter()
    for f in diagnosis.findings:
        if _undecided(f, severities) and f.severity not in severities:
            counts[f.rule] += f.count
    if coming := int(_coming(diagnosis).sum()):
        counts["ESTABLISHED with unread data"] += coming
    return [
        f"whether {n} {rule} stay so: the recording is too short to tell (`finwait record --interval 5s`)"
        for rule, n in counts.items()
        if n
    ]


def _unexplained(args: argparse.Namespace, diagnosis: Diagnosis) -> int:
    """Return how many connections nobody can call well: they are not counted, and no rule explains their state."""
    most, passing = diagnosis.view.at_most_ms, _settled(diagnosis)
    young = (most >= 0) & (most < args.min_age)
    return sum(int((~young & ~passing)[f.rows].sum()) for f in _strange(args, diagnosis))


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


def _answer(args: argparse.Namespace, looks: _Looks) -> int:
    from finwait.report.nagios import perfdata
    from finwait.table.units import printable

    counted = _counted(args, looks)
    level = _level(args, counted)
    performance = [
        perfdata("stuck", counted.total, args.warning, args.critical),
        *(perfdata(rule, n) for rule, n in sorted(counted.by_rule.items())),
    ]
    # `|` ends the text for what reads it.
    text = _text(counted).replace("|", "/")
    if args.output == "json":
        _json(args, counted, level, looks.diagnosis)
        return level
    print(printable(f"FINWAIT {_WORDS[level]} - {text} | {' '.join(performance)}"), flush=True)
    return level


def _json(args: argparse.Namespace, counted: _Counted, level: int, diagnosis: Diagnosis) -> None:
    """Print the same as one document."""
    from finwait.diagnosis import select
    from finwait.report.shape import document, encoded

    members = {
        "status": _WORDS[level],
        "code": level,
        "text": _text(counted),
        "error": False,
        "stuck": counted.total,
        "by_rule": counted.by_rule,
        "warning": args.warning.text,
        "critical": args.critical.text,
        "unexplained": counted.unexplained,
        "unjudged": _open(args, diagnosis),
        "left_out": list(counted.ageless),
        "established_skipped": _established_skipped(args, diagnosis),
    }
    gaps = (*select.unowned(parse_filter(args.filter), diagnosis.view), *diagnosis.gaps)
    print(encoded(document("Check", members, gaps)), end="", flush=True)


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
