"""Options that several commands share, and what they mean to a look.

Imports of the package happen inside the functions: `finwait --help` must not load numpy.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from finwait.selecting import context, namespaces, parse_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from finwait.diagnosis.hint import Asked
    from finwait.diagnosis.rule import Means
    from finwait.diagnosis.select import Narrowed
    from finwait.kernel.journal import SqliteJournal
    from finwait.planning import Chosen
    from finwait.remedy.outcome import Outcome
    from finwait.report.text import Style
    from finwait.session import Diagnosis, Look, Machine

__all__ = [
    "DIAGNOSIS_FORMATS",
    "Words",
    "above_zero",
    "add_filter",
    "add_look",
    "add_output",
    "agreed",
    "asked",
    "at_least_one",
    "chosen",
    "connection_filter",
    "diagnose",
    "duration_ms",
    "how",
    "keepalive",
    "machine",
    "pause_ms",
    "pid",
    "positive",
    "progress",
    "set_user_timeout_ms",
    "status",
    "style",
    "tell_cut_short",
    "tell_gaps",
    "tell_outcomes",
    "tell_unfinished",
    "user_timeout_ms",
    "while_ms",
    "whole",
    "write",
    "write_error",
]

IDLE_MS, FLOOD = 600_000, 10_000
"""What counts as long silence, and as very many TIME_WAIT, where nothing else is said."""

DIAGNOSIS_FORMATS = ("text", "wide", "json", "jsonl", "csv", "parquet", "arrow")


def duration_ms(text: str) -> int:
    """Return milliseconds of a duration on the command line (argparse type)."""
    from finwait.table.units import parse_duration_ms

    try:
        return parse_duration_ms(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def while_ms(text: str) -> int:
    """Return milliseconds of a duration that is not 0 (argparse type): none at all would count as not given."""
    ms = duration_ms(text)
    if ms < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is no time at all: write 1ms or more")
    return ms


def user_timeout_ms(text: str) -> int:
    """Read a TCP_USER_TIMEOUT (argparse type): what an ``int`` of milliseconds holds, or 0 for none."""
    most = 2**31 - 1
    value = duration_ms(text)
    if value > most:
        raise argparse.ArgumentTypeError(
            f"`{text}`: TCP_USER_TIMEOUT takes at most {most} ms (24 days, 20 hours)"
        )
    if value == 0 and any(c in "123456789" for c in text):
        raise argparse.ArgumentTypeError(
            f"`{text}` is less than 1 ms, the least that TCP_USER_TIMEOUT counts; 0 would switch it off"
        )
    return value


def set_user_timeout_ms(text: str) -> int:
    """Read a TCP_USER_TIMEOUT that limits something (argparse type)."""
    value = user_timeout_ms(text)
    if not value:
        raise argparse.ArgumentTypeError(
            f"`{text}` would set no limit, so nothing would end: write 1ms or more; `finwait arm --user-timeout 0` "
            "removes the timeout of connections"
        )
    return value


_SHORTEST_PAUSE_MS = 10


def pause_ms(text: str) -> int:
    """Return milliseconds between two looks (argparse type): without a pause one look would chase the next."""
    ms = duration_ms(text)
    if ms < _SHORTEST_PAUSE_MS:
        raise argparse.ArgumentTypeError(f"`{text}` is too short: write {_SHORTEST_PAUSE_MS}ms or more")
    return ms


_MOST = 10**12 - 1


def whole(low: int, high: int = _MOST) -> Callable[[str], int]:
    """Return what reads a whole number within bounds (argparse type)."""
    bounds = f"{low} or more" if high == _MOST else f"{low} to {high}"

    def read(text: str) -> int:
        if text.isascii() and text.isdecimal() and len(text) < 20 and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"`{text[:60]}`: write a whole number, {bounds}")

    return read


at_least_one = whole(1)
"""A number of things that cannot be none (argparse type)."""

pid = whole(1, 1 << 22)
"""A process (argparse type): PID_MAX_LIMIT of include/linux/threads.h."""


def positive(text: str) -> float:
    """Read a number that is 0 or more (argparse type)."""
    import math
    import re

    value = float(text) if re.fullmatch(r"[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15}", text) else math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"`{text[:60]}`: write a number, 0 or more")
    return value


def above_zero(text: str) -> float:
    """Read a number above 0 (argparse type), where 0 would count as not given, or let nothing through."""
    try:
        value = positive(text)
    except argparse.ArgumentTypeError:
        value = 0.0
    if not value:
        raise argparse.ArgumentTypeError(f"`{text[:60]}`: write a number above 0")
    return value


_IN_SECONDS = re.compile(r"[0-9]{1,5}")


def keepalive(text: str) -> tuple[int, int, int]:
    """Read ``IDLE/INTERVAL/COUNT`` (argparse type): seconds, seconds, probes."""
    words = text.split("/")
    if (
        len(words) != 3
        or not all(_IN_SECONDS.fullmatch(w) and 1 <= int(w) <= 32767 for w in words)
        or int(words[2]) > 127
    ):
        raise argparse.ArgumentTypeError(
            f"`{text[:60]}`: write IDLE/INTERVAL/COUNT, e.g. 1/1/3 (seconds, seconds, at most 127)"
        )
    return int(words[0]), int(words[1]), int(words[2])


_ENDPOINT = re.compile(r"^(\[[0-9a-fA-F:.]+(?:%[^\]\s]+)?\]|[0-9.]+(?:%[^:\s]+)?|\*):(\d+|\*)$")
_SCOPE = re.compile(r"%([^\]:]+)")


def connection_filter(words: list[str]) -> list[str]:
    """Return the FILTER for a connection that is named by its ends or its cookie; other words as they are."""
    if len(words) == 1 and re.fullmatch(r"0x[0-9a-fA-F]+", words[0]):
        return ["cookie", "=", words[0]]
    ends = [w for w in words if w not in ("->", "→", "-")]
    if 1 <= len(ends) <= 2 and all(_ENDPOINT.match(w) for w in ends):
        plain = [_SCOPE.sub("", end) for end in ends]
        devices = dict.fromkeys(found[1] for end in ends if (found := _SCOPE.search(end)))
        text = ["src", "=", plain[0]]
        if len(ends) > 1:
            text += ["and", "dst", "=", plain[1]]
        return text + [word for device in devices for word in ("and", "dev", "=", device)]
    return words


class Words(argparse.Action):
    """Store words; blank ones, which an unset variable of a script leaves behind, are none."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - the form of an action
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401 - the form of an action
        option_string: str | None = None,  # noqa: ARG002 - the form of an action
    ) -> None:
        """Store the words that say something."""
        words = [word for word in values if word.strip()]
        if not words and self.nargs == "+":
            raise argparse.ArgumentError(self, "empty: is a variable of your script not set?")
        setattr(namespace, self.dest, words)


def add_filter(parser: argparse.ArgumentParser, what: str = "connections") -> None:
    """Add FILTER."""
    parser.add_argument(
        "filter",
        nargs="*",
        type=str,
        action=Words,
        metavar="FILTER",
        help=f"which {what}: the grammar of ss(8) and our own predicates, e.g. `state fin-wait-2 dport = :443`, "
        "`pid = 812 and age > 10m`, `rule = relay-pair`",
    )


def add_look(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where and how to look."""
    group = parser.add_argument_group("looking")
    group.add_argument(
        "--from",
        dest="recording",
        metavar="FILE",
        help="look at a recording instead of this machine",
    )
    group.add_argument(
        "--netns",
        action="append",
        default=[],
        metavar="NAME|INODE|PID",
        help="look only into this network namespace (repeatable): a name of `ip netns`, an inode, a pid, `host`",
    )
    group.add_argument(
        "--for",
        dest="watch",
        type=while_ms,
        default=0,
        metavar="DURATION",
        help="look twice, DURATION apart, to tell streaming from stuck; in a recording, the first and the "
        "last look are always compared",
    )
    group.add_argument(
        "--established",
        choices=("auto", "always", "never"),
        default="auto",
        help="look at ESTABLISHED connections too: `auto` does so in namespaces with at most 50,000 sockets",
    )
    group.add_argument(
        "--no-owners",
        action="store_true",
        help=(
            "do not list descriptors: faster, but owners are not shown, and rules that need owners are "
            "skipped; a FILTER that names one of those says so, and the status is not 0"
        ),
    )
    group.add_argument(
        "--not-holder",
        action="append",
        type=pid,
        default=[],
        metavar="PID",
        help="assume that PID, which cannot be inspected, holds none of the sockets (repeatable)",
    )
    group.add_argument(
        "--idle",
        type=duration_ms,
        default=IDLE_MS,
        metavar="DURATION",
        help="treat ESTABLISHED connections as idle after this long (default 10m)",
    )
    group.add_argument(
        "--flood",
        type=at_least_one,
        default=FLOOD,
        metavar="N",
        help="report TIME_WAIT from N sockets on (default 10000)",
    )


def add_output(parser: argparse.ArgumentParser, formats: tuple[str, ...]) -> None:
    """Add the options that say how to print."""
    group = parser.add_argument_group("printing")
    group.add_argument(
        "-o", "--output", choices=formats, default=formats[0], help=f"format (default {formats[0]})"
    )
    group.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="colour (default auto)"
    )


def style(args: argparse.Namespace) -> Style:
    """Return width and colour for standard output."""
    from finwait.report.text import Style

    tty = sys.stdout.isatty()
    wanted = {"always": True, "never": False, "auto": tty and not os.environ.get("NO_COLOR")}[args.color]
    width = 100
    if tty:
        width = max(72, min(os.get_terminal_size().columns, 140))
    return Style(width, wanted)


def machine(args: argparse.Namespace) -> Machine:
    """Return the recording that was named, or the running machine."""
    from finwait import session

    if args.recording:
        from finwait.recording import open_recording

        return open_recording(args.recording)
    return session.live_machine()


def progress() -> Callable[[str], None] | None:
    """Return what says on a terminal's stderr what takes more than a second."""
    if not sys.stderr.isatty():
        return None
    begun = time.monotonic()

    def say(what: str) -> None:
        if time.monotonic() - begun > 1:
            sys.stderr.write(f"finwait: {what} …\n")

    return say


def how(args: argparse.Namespace, states: int | None = None, bytecode: bytes = b"") -> Look:
    """Return how to look, from the options of `add_look`.

    Raises:
        FinwaitError: a namespace that is named does not exist.
    """
    from finwait.diagnosis.view import Options
    from finwait.kernel.observe import ESTABLISHED_LIMIT, Plan
    from finwait.session import Look
    from finwait.uapi import tcp

    mask = tcp.ALL_STATES if states is None else states
    plan = Plan(
        states=mask,
        bytecode=bytecode,
        only=namespaces(args.netns, live=not args.recording) if args.netns else None,
        descriptors=not args.no_owners,
        established_limit={"always": None, "never": 0}.get(args.established, ESTABLISHED_LIMIT),
    )
    return Look(
        plan=plan,
        options=Options(idle_ms=args.idle, flood=args.flood),
        watch_ms=args.watch or 0,
        not_holders=frozenset(args.not_holder),
        progress=progress(),
    )


def asked(args: argparse.Namespace) -> Asked:
    """Return the options of `add_look` that were given, for the commands that a finding suggests."""
    from finwait.diagnosis.hint import Asked

    words: list[str] = []
    for name, given in (
        ("--from", [args.recording] if args.recording else []),
        ("--netns", args.netns),
        ("--for", [_milliseconds(args.watch)] if args.watch else []),
        ("--established", [args.established] if args.established != "auto" else []),
        ("--not-holder", args.not_holder),
        ("--idle", [_milliseconds(args.idle)] if args.idle != IDLE_MS else []),
        ("--flood", [args.flood] if args.flood != FLOOD else []),
    ):
        for value in given:
            words += [name, str(value)]
    return Asked(options=tuple(words), recorded=bool(args.recording))


def _milliseconds(ms: int) -> str:
    return f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def diagnose(args: argparse.Namespace) -> Diagnosis:
    """Look and explain as the options say, and keep what the FILTER selects.

    Raises:
        FinwaitError: the filter, the recording or the look failed.
    """
    from finwait import session
    from finwait.errors import FilterError

    found = parse_filter(args.filter)
    look = how(args)
    diagnosis = session.diagnose(machine(args), how=look, asked=asked(args))
    if not args.filter:
        return diagnosis
    try:
        return session.narrow(diagnosis, found, context(diagnosis.snapshot, diagnosis.findings))
    except ValueError as error:
        raise FilterError(found.text, 0, str(error)) from None


def tell_unfinished() -> None:
    """Say on standard error which acts of the journal were interrupted, and what to do about each kind."""
    from finwait.kernel.journal import unfinished
    from finwait.report.journal import unfinished_lines

    sys.stderr.writelines(unfinished_lines(unfinished()))


def tell_outcomes(args: argparse.Namespace, outcomes: Sequence[Outcome]) -> int:
    """Print what came of each step; 1 when something failed or is still there."""
    from finwait.report.outcome import outcome_json, outcome_lines

    if args.output == "json":
        sys.stdout.write(outcome_json(outcomes))
    else:
        write(outcome_lines(outcomes))
    return 1 if any(o.result in ("failed", "still there") for o in outcomes) else 0


def tell_cut_short(args: argparse.Namespace, found: Mapping[int, Outcome], journal: SqliteJournal) -> None:
    """Print what was done of an act that was interrupted, or whose results could not be written down."""
    interrupted = isinstance(sys.exc_info()[1], KeyboardInterrupt)
    if not found:
        if interrupted:
            sys.stderr.write(f"finwait: interrupted; {left_open(journal) or 'nothing was done'}\n")
        return
    if interrupted:
        sys.stderr.write("finwait: interrupted; this was done until then, and `finwait journal` has it:\n")
    tell_outcomes(args, [found[k] for k in sorted(found)])


def left_open(journal: SqliteJournal) -> str:
    """Say that acts of this process have no result; empty if all have, so that what was not told was not done."""
    n = journal.left_open()
    return (
        f"what became of {n} acts is not known: `finwait undo --incomplete` puts back what can be"
        if n
        else ""
    )


def chosen(args: argparse.Namespace, verb: str, means: Means = "keepalive") -> Chosen:
    """Return the held connections that the FILTER selects for an act on their options; say what is left out.

    Raises:
        FinwaitError: no FILTER, a recording, or nothing that it selects.
        Refused: more than ``--max``.
    """
    from finwait import planning
    from finwait.errors import UsageError
    from finwait.selecting import parse_filter

    if args.recording:
        raise UsageError("`--from`: cannot act on a recording")
    if not args.filter:
        raise UsageError(
            f"`finwait {verb}` needs a FILTER: which connections?",
            hint="for example `rule = idle-unprobed`, `pid = 812`, `dport = :5432`",
        )
    selected = planning.chosen(machine(args), how(args), parse_filter(args.filter), args.max, means)
    write_error(f"finwait: left out, {n}: {reason}\n" for reason, n in selected.left.items())
    tell_gaps(selected.gaps)
    if selected.unknown:
        sys.stderr.write(
            f"finwait: {selected.unknown}; nothing is done there\nhint: run it as root, or give it "
            "CAP_SYS_PTRACE, so that it can inspect every process\n"
        )
    return selected


def agreed(question: str) -> bool:
    """Ask, if somebody is there who sees what is asked about, and can answer."""
    if not (sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()):
        return False
    sys.stdout.flush()
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def write(pieces: Iterable[str]) -> None:
    """Write text to standard output, see `finwait.table.units.printable`."""
    from finwait.table.units import printable

    out = sys.stdout
    for piece in pieces:
        out.write(printable(piece, lines=True))


def write_error(pieces: Iterable[str]) -> None:
    """Write text to standard error, see `finwait.table.units.printable`."""
    from finwait.table.units import printable

    for piece in pieces:
        sys.stderr.write(printable(piece, lines=True))


def tell_gaps(gaps: Iterable[object]) -> None:
    """Say on standard error what could not be seen."""
    import textwrap

    from finwait.table.units import printable

    for gap in gaps:
        text = printable(f"finwait: not seen: {gap}")
        sys.stderr.write(textwrap.fill(text, 99, subsequent_indent="    ", break_on_hyphens=False) + "\n")


def status(gaps: Iterable[object], narrowed: Narrowed | None = None) -> int:
    """Return 3 when something could not be seen, or the FILTER could not judge something, else 0."""
    unjudged = narrowed is not None and narrowed.unjudged
    return 3 if unjudged or any(True for _ in gaps) else 0
