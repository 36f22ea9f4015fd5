"""Options that several commands share, and what they mean to a look.

Imports of the package happen inside the functions: `finwait --help` must not load numpy.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from finwait.diagnosis.finding import Finding
    from finwait.diagnosis.hint import Asked
    from finwait.diagnosis.select import Narrowed
    from finwait.report.text import Style
    from finwait.session import Diagnosis, Look, Machine, Snapshot
    from finwait.table.filter import Filter

__all__ = [
    "DIAGNOSIS_FORMATS",
    "Words",
    "above_zero",
    "add_filter",
    "add_look",
    "add_output",
    "asked",
    "at_least_one",
    "context",
    "diagnose",
    "duration_ms",
    "how",
    "machine",
    "mask_of",
    "namespaces",
    "parse_filter",
    "pause_ms",
    "pid",
    "positive",
    "progress",
    "set_user_timeout_ms",
    "status",
    "style",
    "tell_gaps",
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
        help="look twice, DURATION apart, to tell streaming from stuck; of a recording, the first and the last look "
        "are always compared",
    )
    group.add_argument(
        "--established",
        choices=("auto", "always", "never"),
        default="auto",
        help="look at ESTABLISHED connections too: `auto` where a namespace has at most 50,000 sockets",
    )
    group.add_argument(
        "--no-owners",
        action="store_true",
        help="do not list descriptors: faster, but owners are not shown",
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


def parse_filter(words: Iterable[str]) -> Filter:
    """Return the FILTER of a command line.

    Raises:
        FilterError: it does not parse.
    """
    from finwait.diagnosis import catalogue
    from finwait.table.filter import parse

    return parse(list(words), rules=catalogue.NAMES, variants=catalogue.variants)


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


def namespaces(wanted: list[str], *, live: bool) -> frozenset[int]:
    """Return the inodes of namespaces that are named by name, inode or pid.

    Raises:
        FinwaitError: there is none of that name.
    """
    from finwait.errors import FinwaitError
    from finwait.kernel import netns, procfs

    found, _ = netns.discover() if live else ([], [])
    everywhere = False
    result = set()
    for text in wanted:
        matching = _called(found, text)
        if not matching and live and not everywhere:  # it may be one that only an open descriptor keeps
            everywhere = True
            found, _ = netns.discover(procfs.descriptors()[1])
            matching = _called(found, text)
        if not matching and _is_number(text):
            inode = netns.inode_of_pid(int(text)) if live else int(text)
            matching = [] if inode is None else [inode]
        if not matching:
            error = FinwaitError(f"there is no network namespace `{text}`")
            error.hint = "`finwait netns` lists them"
            raise error
        result.update(matching)
    return frozenset(result)


def _called(found: Iterable[Any], text: str) -> list[int]:
    return [n.inode for n in found if text in n.names or text == str(n.inode) or _has_pid(n, text)]


def _has_pid(namespace: Any, text: str) -> bool:  # noqa: ANN401 - kernel.netns.NetNamespace, imported lazily
    return _is_number(text) and int(text) in namespace.pids


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


def context(shot: Snapshot, findings: Iterable[Finding] | None = None) -> Any:  # noqa: ANN401
    """Return what a FILTER may ask about rows beyond their columns."""
    from finwait.diagnosis.context import ViewContext

    return ViewContext(shot.view, findings, users(shot), shot.machine.devices)


def users(shot: Snapshot) -> dict[int, str] | None:
    """Return the names of users that can be listed or made sockets; None where they are those of another machine."""
    import pwd

    from finwait.kernel import procfs

    boot = shot.observation.facts.boot_id
    if not shot.machine.live and not (boot and boot == procfs.facts().boot_id):
        return None
    names = {p.pw_uid: p.pw_name for p in pwd.getpwall()}
    for uid in set(shot.sockets.uid.tolist()):
        try:
            names[uid] = pwd.getpwuid(uid).pw_name
        except (KeyError, OverflowError):
            names[uid] = str(uid)
    return names


def mask_of(found: Filter, shot: Snapshot, findings: Iterable[Finding] | None = None) -> Any:  # noqa: ANN401
    """Return the mask of rows that a FILTER selects.

    Raises:
        FilterError: the filter asks for something that is not known here.
    """
    from finwait.errors import FilterError

    try:
        return found.mask(shot.sockets, context(shot, findings))
    except ValueError as error:
        raise FilterError(found.text, 0, str(error)) from None


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
