"""Options that several commands share, and what they mean to a look.

Imports of the package happen inside the functions: `finwait --help` must not load numpy.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import termios
import time
from typing import TYPE_CHECKING, Any, Final

from finwait.arguments import Duration, duration_ms, netns_name
from finwait.cli import kube_names
from finwait.cli.streams import acts_told, progress
from finwait.selecting import namespaces, parse_filter
from finwait.table.units import parse_duration_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from finwait.diagnosis.hint import Asked
    from finwait.diagnosis.rule import Means
    from finwait.diagnosis.select import Narrowed
    from finwait.errors import Gap
    from finwait.kernel.journal import SqliteJournal
    from finwait.planning import OptionTargets
    from finwait.remedy.outcome import Outcome
    from finwait.report.style import Style
    from finwait.session import Diagnosis, Look, Machine
__all__ = [
    "DIAGNOSIS_FORMATS",
    "Words",
    "above_zero",
    "add_filter",
    "add_look",
    "add_netns",
    "add_output",
    "add_schema",
    "add_thresholds",
    "agreed",
    "asked",
    "at_least_one",
    "between_arrows",
    "chosen",
    "connection_filter",
    "diagnose",
    "duration_ms",
    "how",
    "interval_ms",
    "keepalive",
    "machine",
    "narrowed",
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


def _some_time(text: str, ms: int) -> str:
    return "" if ms >= 1 else f"`{text}` is not a time above 0: write 1ms or more"


while_ms = Duration(parse_duration_ms, _some_time)
"""Milliseconds of a duration that is not 0 (argparse type): none at all would count as not given."""

_USER_TIMEOUT_MAX = 2**31 - 1
"""What an ``int`` of milliseconds holds."""


def _user_timeout(text: str, ms: int) -> str:
    if ms > _USER_TIMEOUT_MAX:
        return f"`{text}`: TCP_USER_TIMEOUT takes at most {_USER_TIMEOUT_MAX} ms (24 days, 20 hours)"
    if ms == 0 and any(c in "123456789" for c in text):
        return f"`{text}` is less than 1 ms, the smallest TCP_USER_TIMEOUT; 0 would turn it off"
    return ""


user_timeout_ms = Duration(parse_duration_ms, _user_timeout)
"""A TCP_USER_TIMEOUT (argparse type), or 0 for none."""


def _set_user_timeout(text: str, ms: int) -> str:
    if wrong := _user_timeout(text, ms):
        return wrong
    if not ms:
        return (
            f"`{text}` would set no limit, so nothing would end: write 1ms or more; `finwait arm --user-timeout 0` "
            "removes the timeout of connections"
        )
    return ""


set_user_timeout_ms = Duration(parse_duration_ms, _set_user_timeout)
"""A TCP_USER_TIMEOUT that limits something (argparse type)."""

_SHORTEST_PAUSE_MS = 10


def _pause(text: str, ms: int) -> str:
    return "" if ms >= _SHORTEST_PAUSE_MS else f"`{text}` is too short: write {_SHORTEST_PAUSE_MS}ms or more"


pause_ms = Duration(parse_duration_ms, _pause)
"""Milliseconds between two looks (argparse type): without a pause one look would chase the next."""


def _interval(text: str, ms: int) -> str:
    return "" if 1000 <= ms <= 300_000 else f"`{text[:60]}` is too short or too long: write 1s to 5m"


interval_ms = Duration(parse_duration_ms, _interval)
"""Milliseconds from a second to five minutes (argparse type)."""


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
ARROWS = ("->", "→", "-")
"""What may stand between the two ends of a connection."""
_SCOPE = re.compile(r"%([^\]:]+)")


def between_arrows(words: list[str], arrows: tuple[str, ...] = ARROWS) -> list[str]:
    """Return the words without an arrow between two ends of a connection.

    Raises:
        FilterError: an arrow has no end on one of its sides: a variable of a script may not be set.
    """
    from finwait.errors import FilterError

    if len(words) == 3 and words[1] in arrows and not {words[0], words[2]} & {*arrows}:
        return [words[0], words[2]]
    if lone := [k for k, word in enumerate(words) if word in arrows]:
        place = sum(len(word) + 1 for word in words[: lone[0]])
        raise FilterError(
            " ".join(words), place, f"`{words[lone[0]]}` stands between two ends: LOCAL:PORT → PEER:PORT"
        )
    return words


def connection_filter(words: list[str]) -> list[str]:
    """Return the FILTER for a connection that is named by its ends or its cookie; other words as they are.

    Raises:
        FilterError: an arrow has no end on one of its sides, and would select more than it says.
    """
    if len(words) == 1 and re.fullmatch(r"0x[0-9a-fA-F]+", words[0]):
        return ["cookie", "=", words[0]]
    if 1 <= len([w for w in words if w not in ARROWS]) <= 2 and all(
        w in ARROWS or _ENDPOINT.match(w) for w in words
    ):
        ends = between_arrows(words)
        plain = [_SCOPE.sub("", end) for end in ends]
        devices = dict.fromkeys(match[1] for end in ends if (match := _SCOPE.search(end)))
        text = ["src", "=", plain[0]]
        if len(ends) > 1:
            text += ["and", "dst", "=", plain[1]]
        return text + [word for device in devices for word in ("and", "dev", "=", device)]
    return words


class Words(argparse.Action):
    """Store words. A blank one, which an unset variable of a script leaves behind, is an error and never "all"."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - the form of an action
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401 - the form of an action
        option_string: str | None = None,  # noqa: ARG002 - the form of an action
    ) -> None:
        """Store the words.

        Raises:
            ArgumentError: one of them is blank.
        """
        words = list(values)
        blank = next((k for k, word in enumerate(words, 1) if not word.strip()), 0)
        if blank:
            position = "" if len(words) == 1 else f"word {blank} of {len(words)} is "
            raise argparse.ArgumentError(self, f"{position}empty: is a variable of your script not set?")
        setattr(namespace, self.dest, words)


def add_filter(parser: argparse.ArgumentParser, subject: str = "connections") -> None:
    """Add FILTER."""
    parser.add_argument(
        "filter",
        nargs="*",
        type=str,
        action=Words,
        metavar="FILTER",
        help=f"which {subject}: the grammar of ss(8) and our own predicates, e.g. `state fin-wait-2 dport = :443`, "
        "`pid = 812 and age > 10m`, `rule = relay-pair`",
    )


def add_netns(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, subject: str, *, many: bool = False
) -> None:
    """Add ``--netns``, which names a network namespace in the same way for every command."""
    repeat: dict[str, Any] = {"action": "append", "default": []} if many else {}
    parser.add_argument(
        "--netns",
        type=netns_name,
        metavar="NETNS",
        help=f"{subject}{' (repeatable)' if many else ''}: a name of `ip netns`, `host`, an inode, a pid, or the path "
        "of its file",
        **repeat,
    )


def add_look(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where and how to look."""
    group = parser.add_argument_group("looking")
    _add_place(group)
    add_reach(group)
    _add_agent(group)
    add_thresholds(group)


def _add_place(group: argparse._ArgumentGroup) -> None:
    """Add what says which machine, which namespaces of it, and how often."""
    group.add_argument(
        "--from",
        dest="recording",
        metavar="FILE",
        help="look at a recording, or at a pasted text (see `finwait read`), instead of this machine",
    )
    add_netns(group, "look only into this network namespace", many=True)
    group.add_argument(
        "--for",
        dest="watch",
        type=while_ms,
        default=0,
        metavar="DURATION",
        help="look twice, DURATION apart, to tell streaming from stuck; in a recording, the first and the "
        "last look are always compared",
    )


def add_reach(group: argparse._ArgumentGroup) -> None:
    """Add what says how much is looked at: open connections, and who holds each."""
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


def _add_agent(group: argparse._ArgumentGroup) -> None:
    kube_names.add(group)
    group.add_argument(
        "--agent-socket",
        metavar="PATH",
        help="ask the agent at this Unix socket since when connections have been in their states (default: the one at "
        "`/run/finwait/agent.sock`, if it answers; `none`: ask none)",
    )


def add_thresholds(group: argparse._ArgumentGroup) -> None:
    """Add what counts as long, and as many."""
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


_SHORTEST_WATCH_MS: Final = 100


def add_watch(parser: argparse.ArgumentParser) -> None:
    """Add the option that prints again and again (see `repeated`)."""
    parser.add_argument(
        "-w",
        "--watch",
        dest="every",
        type=while_ms,
        metavar="DURATION",
        help="look and print again every DURATION, until Ctrl-C; `finwait top` is the live view",
    )


def repeated(args: argparse.Namespace, once: Callable[[argparse.Namespace], int]) -> int:
    """Run a command once, or again and again as `add_watch` says; return the last status.

    Raises:
        UsageError: a recording does not change.
    """
    from finwait.errors import UsageError

    if args.every is None:
        return once(args)
    if args.recording:
        raise UsageError("`--watch` looks at the running machine", hint="a recording always says the same")
    if args.every < _SHORTEST_WATCH_MS:
        raise UsageError("`--watch` needs at least 100ms", hint="`finwait trace` misses nothing in between")
    clear = sys.stdout.isatty() and args.output in ("text", "wide")
    while True:
        if clear:
            sys.stdout.write("\x1b[H\x1b[2J")
        begun = time.monotonic()
        once(args)
        sys.stdout.flush()
        time.sleep(max(0.0, args.every / 1000 - (time.monotonic() - begun)))


def add_schema(
    commands: argparse._SubParsersAction[Any], of: str, run: Callable[[argparse.Namespace], int]
) -> None:
    """Add a command that prints the JSON Schema of a file."""
    does = f"print the JSON Schema of {of}"
    parser = commands.add_parser(
        "schema", help=does, description=f"P{does[1:]}, for editors and other checkers."
    )
    formats = "format (a schema is always JSON)"
    parser.add_argument("-o", "--output", choices=("json",), default="json", help=formats)
    parser.set_defaults(run=run)


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
    from finwait.report.style import Style

    tty = sys.stdout.isatty()
    colored = {"always": True, "never": False, "auto": tty and not os.environ.get("NO_COLOR")}[args.color]
    return Style(width(), colored)


def width() -> int:
    """Return how wide a line on standard output may be."""
    return max(40, min(os.get_terminal_size().columns, 140)) if sys.stdout.isatty() else 100


def machine(args: argparse.Namespace) -> Machine:
    """Return the recording that was named, or the running machine."""
    from finwait import session

    if texts := getattr(args, "texts", None) or args.recording:
        from finwait.pasted import open_pasted, opened

        return opened(texts) if isinstance(texts, str) else open_pasted(texts, args.at)
    return session.live_machine()


def how(args: argparse.Namespace, states: int | None = None, bytecode: bytes = b"") -> Look:
    """Return how to look, from the options of `add_look`.

    Raises:
        FinwaitError: a namespace that is named does not exist.
    """
    from finwait.diagnosis.view import Options
    from finwait.kernel.observe import ESTABLISHED_LIMIT, LookPlan
    from finwait.session import Look
    from finwait.uapi import tcp

    mask = tcp.ALL_STATES if states is None else states
    plan = LookPlan(
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
        ages=kube_names.agent_ages(args),
        names=kube_names.asking(args),
    )


def asked(args: argparse.Namespace) -> Asked:
    """Return the options of `add_look` that were given, for the commands that a finding suggests."""
    from finwait.diagnosis.hint import Asked

    words: list[str] = []
    text = False
    if args.recording:
        from finwait.pasted import is_text

        text = is_text(args.recording)  # what a text suggests is to be done on the machine that it is of
    for name, values in (
        ("--from", [args.recording] if args.recording and not text else []),
        ("--netns", [] if text else args.netns),
        ("--kube-names", [] if args.kube_names is None else [args.kube_names]),
        ("--agent-socket", [] if args.agent_socket is None or text else [args.agent_socket]),
        ("--for", [_milliseconds(args.watch)] if args.watch else []),
        ("--established", [args.established] if args.established != "auto" else []),
        ("--not-holder", args.not_holder),
        ("--idle", [_milliseconds(args.idle)] if args.idle != IDLE_MS else []),
        ("--flood", [args.flood] if args.flood != FLOOD else []),
    ):
        for value in values:
            words += [name, str(value)]
    return Asked(options=tuple(words), recorded=bool(args.recording) and not text)


def _milliseconds(ms: int) -> str:
    return f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def diagnose(args: argparse.Namespace) -> Diagnosis:
    """Look and explain as the options say, and keep what the FILTER selects.

    Raises:
        FinwaitError: the filter, the recording or the look failed.
    """
    return narrowed(args, unnarrowed(args))


def unnarrowed(args: argparse.Namespace) -> Diagnosis:
    """Look and explain as the options say, whatever the FILTER selects; it is only checked.

    Raises:
        FinwaitError: the filter, the recording or the look failed.
    """
    from finwait import session

    parse_filter(args.filter)
    look = how(args)
    return session.diagnose(machine(args), how=look, asked=asked(args))


def narrowed(args: argparse.Namespace, diagnosis: Diagnosis) -> Diagnosis:
    """Keep what the FILTER selects of a diagnosis.

    Raises:
        FinwaitError: the filter can match nothing, or asks for what is not known here.
    """
    from finwait import selecting

    if not args.filter:
        return diagnosis
    return selecting.narrowed(diagnosis, parse_filter(args.filter))


def tell_unfinished() -> None:
    """Say on standard error which acts of the journal were interrupted, and what to do about each kind."""
    from finwait.kernel.journal import unfinished
    from finwait.report.journal import unfinished_lines

    sys.stderr.writelines(unfinished_lines(unfinished()))


def tell_outcomes(args: argparse.Namespace, outcomes: Sequence[Outcome], gaps: Iterable[Gap] = ()) -> int:
    """Print what came of each step; return 1 when something failed or is still there, 4 when all were left alone.

    Those that changed since the plan are left alone as those that a guard keeps.
    """
    from finwait.report.outcome import counted, outcome_json, outcome_lines

    with acts_told(lambda: counted(outcomes) or "there was nothing to do"):
        if args.output == "json":
            sys.stdout.write(outcome_json(outcomes, gaps))
        else:
            write(outcome_lines(outcomes))
    results = {o.result for o in outcomes}
    if results & {"failed", "still there"}:
        return 1
    return 4 if "changed meanwhile" in results and not results & {"ended", "set"} else 0


def tell_cut_short(args: argparse.Namespace, outcomes: Mapping[int, Outcome], journal: SqliteJournal) -> None:
    """Print what was done of an act that was interrupted, or whose results could not be written down.

    To be called where what ended the act is handled, and raised again.
    """
    import contextlib

    from finwait.kernel import interruption

    interrupted = isinstance(sys.exc_info()[1], KeyboardInterrupt) or interruption.interrupted()
    if not outcomes:
        if interrupted:
            sys.stderr.write(f"finwait: interrupted; {left_open(journal) or 'nothing was done'}\n")
        return
    if interrupted:
        sys.stderr.write(
            "finwait: interrupted; the acts done until then are these, also in `finwait journal`:\n"
        )
    with contextlib.suppress(OSError):  # which was said; what ended the act counts
        tell_outcomes(args, [outcomes[k] for k in sorted(outcomes)])


def left_open(journal: SqliteJournal) -> str:
    """Say that acts of this process have no result; empty if all have, so that what was not told was not done."""
    n = journal.left_open()
    return f"the result of {n} acts is unknown; `finwait undo --incomplete` reverts what it can" if n else ""


def chosen(args: argparse.Namespace, verb: str, means: Means = "keepalive") -> OptionTargets:
    """Return the held connections that the FILTER selects for an act on their options; say what is left out.

    Raises:
        FinwaitError: no FILTER, a recording, or nothing that it selects.
        Refused: more than ``--max``.
    """
    from finwait import planning
    from finwait.errors import UsageError
    from finwait.selecting import parse_filter

    if args.recording:
        raise UsageError("`--from`: cannot act on a recording, or on a text")
    if not args.filter:
        raise UsageError(
            f"`finwait {verb}` needs a FILTER: which connections?",
            hint="for example `rule = idle-unprobed`, `pid = 812`, `dport = :5432`",
        )
    selected = planning.chosen(machine(args), how(args), parse_filter(args.filter), args.max, means)
    write_error(f"finwait: left out, {n}: {reason}\n" for reason, n in selected.left.items())
    tell_gaps(gap for gap in selected.gaps if gap is not selected.of_unknown)
    if selected.unknown:
        write_error([f"finwait: {selected.unknown}; nothing is done there\n"])
        write_error([f"hint: {selected.hint}\n"] if selected.hint else [])
    return selected


def agreed(question: str) -> bool:
    """Ask, if somebody is there who sees what is asked about, and can answer.

    What was typed before is no answer: it is thrown away.

    Raises:
        KeyboardInterrupt: instead of an answer came Ctrl-C, a SIGTERM or a hang-up.
    """
    from finwait.kernel.interruption import interruptible

    if not (sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()):
        return False
    sys.stdout.flush()
    with interruptible():
        try:
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
        except termios.error:  # a terminal that is gone: nobody can answer
            return False
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
