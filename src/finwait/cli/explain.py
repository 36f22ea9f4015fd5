"""``finwait explain``: the whole evidence chain of one connection, or the page of a rule."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING

from finwait.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finwait.capturing import FileRead
    from finwait.capturing.chosen import End
    from finwait.diagnosis.sightings import Sighting
    from finwait.errors import Gap
from finwait.selecting import mask_of, parse_filter

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "explain",
        help="everything about one connection, or the page of a rule",
        description="Explain one connection with all its evidence and a picture of both ends, or print the page "
        "of a rule. Name a connection by LOCAL:PORT, by LOCAL:PORT PEER:PORT, by its cookie (0x…), "
        "or by a FILTER.",
    )
    parser.add_argument(
        "what",
        nargs="*",
        type=str,
        action=options.Words,
        metavar="CONNECTION|RULE",
        help="what to explain",
    )
    parser.add_argument(
        "--pcap",
        metavar="FILE",
        help=(
            "draw how connections closed, from a capture file (pcap, pcapng, also gzipped; - is standard "
            "input)"
        ),
    )
    options.add_look(parser)
    options.add_output(parser, ("text", "json"))
    parser.set_defaults(run=run, wrong=parser.error)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from finwait.diagnosis import catalogue

    if args.pcap:
        return _explain_capture(args)
    if not args.what:
        from finwait.errors import UsageError

        raise UsageError(
            "nothing to explain: no CONNECTION and no RULE",
            hint="name a connection, a rule, or a capture file with `--pcap`",
        )
    if len(args.what) == 1 and args.what[0] in catalogue.NAMES:
        print(catalogue.page(args.what[0]))
        return 0
    if len(args.what) == 1 and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", args.what[0]):
        import difflib

        from finwait.errors import UsageError

        near = difflib.get_close_matches(args.what[0], catalogue.NAMES, 1)
        hint = f"did you mean `{near[0]}`?" if near else "`finwait rules` lists them"
        raise UsageError(f"there is no rule `{args.what[0]}`", hint=hint)
    return _explain(args)


def _explain_capture(args: argparse.Namespace) -> int:
    from finwait.capturing.chosen import parse_end

    if args.output != "text":
        args.wrong("--pcap draws: it cannot go with --output")
    if args.recording or args.netns:
        args.wrong("--pcap reads a capture: it cannot go with --from or --netns")
    ends = []
    for word in args.what:
        if word in (">", "->", "→", "-"):
            continue
        end = parse_end(word)
        if end is None:
            args.wrong(f"`{word}` is not ADDRESS:PORT, by which --pcap selects connections")
        assert end is not None
        ends.append(end)
    return _explain_file(args.pcap, ends)


def _explain(args: argparse.Namespace) -> int:
    import numpy as np

    from finwait import session
    from finwait.errors import FinwaitError
    from finwait.report import json, text
    from finwait.uapi import tcp

    found = parse_filter(options.connection_filter(args.what))
    diagnosis = session.diagnose(options.machine(args), how=options.how(args), asked=options.asked(args))
    mask = mask_of(found, diagnosis.snapshot, diagnosis.findings)
    rows = np.flatnonzero(mask & (diagnosis.view.sockets.state != tcp.LISTEN))
    if not len(rows):
        error = FinwaitError(f"no connection is `{' '.join(args.what)}`")
        error.hint = "`finwait list` shows the connections; a destroyed or reset socket is in no list"
        raise error
    if len(rows) > 20:
        error = FinwaitError(f"`{' '.join(args.what)}` is {len(rows)} connections")
        error.hint = "name one by LOCAL:PORT PEER:PORT or by its cookie, or use `finwait diagnose FILTER`"
        raise error
    if args.output == "json":
        body = ",".join(json.connections(diagnosis.view, rows))
        options.write(['{"apiVersion":"finwait/v1","kind":"ConnectionList","items":[', body, "]}\n"])
        options.tell_gaps(diagnosis.gaps)
        return options.status(diagnosis.gaps)
    style = options.style(args)
    for k, row in enumerate(rows.tolist()):
        if k:
            options.write(["\n" + "─" * style.width + "\n"])
        mine = session.findings_of(diagnosis, row)
        options.write(text.connection(diagnosis.view, row, mine, style))
    if diagnosis.gaps:
        options.write(["\nNot seen:\n", *(f"  {gap}\n" for gap in diagnosis.gaps)])
    return options.status(diagnosis.gaps)


_DRAWN = 50
"""Connections that are drawn of a capture file unless some are named; first those that did not close in order."""


def _explain_file(path: str, wanted: Sequence[End]) -> int:
    """Draw the closings that a capture file holds (``finwait explain --pcap FILE``).

    Args:
        path: pcap or pcapng, gzip or not; ``-`` for standard input.
        wanted: one end or both (`finwait.capturing.chosen.parse_end`); empty for all.

    Raises:
        FinwaitError: the file cannot be read at all, or what is wanted is not in it.
    """
    from finwait.capturing import read_closings
    from finwait.capturing.chosen import end_text
    from finwait.diagnosis.sightings import sightings
    from finwait.errors import DecodeError, FinwaitError
    from finwait.report.closing import drawing

    try:
        found = read_closings(path, wanted)
    except OSError as failed:
        error = FinwaitError(f"could not read `{path}`: {failed.strerror or failed}")
        error.hint = "name a pcap or pcapng file; gzip is unpacked"
        raise error from None
    except DecodeError as failed:
        failed.hint = "name a pcap or pcapng file; gzip is unpacked"
        raise
    joined = sightings(found.book.told(found.until_ns))
    drawn = _chosen_to_draw(joined, all_of_them=bool(wanted))
    for number, sighting in enumerate(drawn):
        if number:
            print()
        for line in drawing(sighting, until_ns=found.until_ns, lost=found.dropped):
            print(line)
    gaps = found.gaps(path)
    _tell_read(found, joined, drawn, gaps)
    if wanted and not joined:
        error = FinwaitError(
            f"no connection of {' and '.join(end_text(*end) for end in wanted)} is in `{path}`"
        )
        error.hint = "leave the addresses out to see every connection of the file"
        raise error
    return options.status(gaps)


def _chosen_to_draw(joined: list[Sighting], *, all_of_them: bool) -> list[Sighting]:
    """Return what to draw: of many, first what did not close in order, in the order of the file."""
    from finwait.diagnosis.closing import Outcome

    if all_of_them or len(joined) <= _DRAWN:
        return joined
    plain = (Outcome.IN_ORDER, Outcome.OPEN, Outcome.UNSEEN, Outcome.NOT_OPENED)
    order = sorted(range(len(joined)), key=lambda k: (joined[k].closing.outcome in plain, k))
    return [joined[k] for k in sorted(order[:_DRAWN])]


def _tell_read(found: FileRead, joined: list[Sighting], drawn: list[Sighting], gaps: list[Gap]) -> None:
    """Say on standard error what was read, and what could not be."""
    from collections import Counter

    from finwait.uapi.segment import Unread

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    others = found.unread[Unread.OTHER] + found.unread[Unread.FRAGMENT]
    say(f"{found.packets} packets, {others} of them not TCP, {len(joined)} connections")
    if len(drawn) < len(joined):
        counts = Counter(one.closing.outcome.value for one in joined)
        say("  " + ", ".join(f"{count} × {name}" for name, count in counts.most_common()))
        say(f"{len(drawn)} of {len(joined)} are drawn\nhint: name one by ADDRESS:PORT to see it")
    if found.late:
        say(f"{found.late} packets have time stamps far out of order")
    options.tell_gaps(gaps)
    if found.links:
        say("hint: Ethernet, Linux cooked, raw IP, PPP and loopback captures can be read")
