"""``finwait trace --leaks [FILTER]``: which code opened the connections that are still there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from finwait.cli import options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["check", "run_leaks"]

_ROUND_S: Final = 0.5
_TOUCHES: Final = """\
sampling accept, connect, shutdown, socket, dup, and what shares descriptors, on the whole machine by perf events, with
the top 16 KiB of each caller's stack; at the end /proc/PID/maps, mapped files, some instructions and
/tmp/perf-PID.map are read. Nothing is stopped or written. Not seen: connections opened by io_uring or by 32-bit
programs, and how descriptors are inherited or passed (their connections are counted, and no code is named)
"""
_OTHERS: Final = (
    "stuck",
    "follow_connection",
    "summary",
    "resets",
    "retransmits",
    "stack",
    "no_lookup",
    "poll",
    "count",
)


def check(args: argparse.Namespace) -> None:
    """Refuse options that do not go with ``--leaks``."""
    for name in _OTHERS:
        if getattr(args, name) not in (None, False):
            args.wrong(f"--leaks and --{name.replace('_', '-')} cannot be combined")
    if args.output not in ("text", "json"):
        args.wrong(f"--leaks prints text or json, not {args.output}")


def run_leaks(
    args: argparse.Namespace,
    begin: Callable[[], None],
    remaining: Callable[[], float],
    interrupted: Callable[[], bool],
) -> int:
    """Sample until the time is over, then print; returns the exit status.

    Args:
        args: of the command line.
        begin: is called when it samples; the time counts from then.
        remaining: seconds to go; 0 when it is over.
        interrupted: whether a signal ended it.

    Raises:
        FinwaitError: the FILTER is wrong, or perf events or a look at the sockets cannot be had.
    """
    from finwait.follow.leaking import Leaking
    from finwait.report.leaks import leak_document, leak_lines
    from finwait.report.shape import encoded
    from finwait.report.style import Style
    from finwait.selecting import parse_filter

    row_filter = parse_filter(args.filter) if args.filter else None
    with Leaking(row_filter, not_holders=frozenset(args.not_holder), buffer_kb=args.buffer_kb) as leaking:
        if not args.quiet:
            options.write_error([_TOUCHES])
        sys.stderr.flush()
        begin()
        while (time_left := remaining()) > 0:
            leaking.step(min(_ROUND_S, time_left))
        leaks = leaking.finish()
    common = {
        "for_ns": leaks.for_ns,
        "window_ns": leaks.window_ns,
        "ended_ns": leaks.ended_ns,
        "unheld": leaks.unheld,
    }
    if args.output == "json":
        answer = leak_document(
            leaks.groups, leaks.matching, leaks.snapshot.view, leaks.gaps, **common,
            calls=leaks.calls,
        )  # fmt: skip
        options.write([encoded(answer)])
    else:
        style = Style(options.width())
        lines = leak_lines(leaks.groups, leaks.matching, leaks.snapshot.view, style=style, **common)
        options.write(f"{line}\n" for line in lines)
    options.tell_gaps(leaks.gaps)
    return 130 if interrupted() else options.status(leaks.gaps)
