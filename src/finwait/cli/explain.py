"""``finwait explain``: the whole evidence chain of one connection, or the page of a rule."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING

from finwait.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from finwait.agent.protocol import AgentAnswer
    from finwait.capturing import FileRead
    from finwait.capturing.chosen import End
    from finwait.diagnosis.sightings import Sighting
    from finwait.diagnosis.view import View
    from finwait.errors import Gap
    from finwait.report.style import Style
from finwait.selecting import mask_of, parse_filter, undecided, users

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "explain",
        help="everything about one connection, or the page of a rule",
        description="Explain one connection with all its evidence and a picture of both ends, or print the page "
        "of a rule. Name a connection by LOCAL:PORT, by LOCAL:PORT PEER:PORT, by its cookie (0x…), "
        "or by a FILTER; a group by its number in the overview that `finwait` printed last.",
    )
    parser.add_argument(
        "what",
        nargs="*",
        type=str,
        action=options.Words,
        metavar="CONNECTION|RULE|NUMBER",
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
    parser.add_argument(
        "--raw", action="store_true", help="also print every column that the kernel reported of a connection"
    )
    parser.add_argument(
        "--stacks",
        action="store_true",
        help=(
            "also print the user-space stacks of the programs that hold the connection, by py-spy, jcmd or gdb; that "
            "stops them for a moment"
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
        if args.output == "json":
            from finwait.report.rules import rule_json
            from finwait.report.shape import document, encoded

            options.write([encoded(document("Rule", rule_json(catalogue.rule(args.what[0]))))])
        else:
            print(catalogue.page(args.what[0]))
        return 0
    if len(args.what) == 1 and re.fullmatch(r"[1-9][0-9]{0,3}", args.what[0]):
        return _explain_group(args, int(args.what[0]))
    if len(args.what) == 1 and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", args.what[0]):
        import difflib

        from finwait.errors import UsageError

        near = difflib.get_close_matches(args.what[0], catalogue.NAMES, 1)
        hint = f"did you mean `{near[0]}`?" if near else "`finwait rules` lists them"
        raise UsageError(f"there is no rule `{args.what[0]}`", hint=hint)
    return _explain(args)


def _explain_capture(args: argparse.Namespace) -> int:
    from finwait.capturing.chosen import parse_end

    if args.recording or args.netns:
        args.wrong("--pcap reads a capture file, so it cannot be combined with --from or --netns")
    ends = []
    for word in options.between_arrows(args.what, (">", *options.ARROWS)):
        end = parse_end(word)
        if end is None:
            args.wrong(f"`{word}` is not ADDRESS:PORT, by which --pcap selects connections")
        assert end is not None
        ends.append(end)
    return _explain_file(args.pcap, ends, as_json=args.output == "json")


def _refuse_stacks(args: argparse.Namespace) -> None:
    """Refuse ``--stacks`` where there is no program to read, or no place to print them."""
    from finwait.errors import UsageError

    if args.stacks and args.recording:
        raise UsageError(
            "`--stacks` reads running programs", hint="a recording has who waits, without stacks"
        )
    if args.stacks and args.output == "json":
        raise UsageError(
            "`--stacks` prints text", hint="`-o json` has `waited_on`: threads, calls, event loops"
        )


def _stacks(view: View, row: int, style: Style) -> Iterator[str]:
    """Return the stacks of the programs that hold a connection."""
    from finwait.kernel.stacks import read
    from finwait.report.stacks import roles, stack_lines

    concerned = roles(view.waits.of(row)) if view.waits.asked[row] else {}
    pids = list(dict.fromkeys(pid for pid, _ in view.holders.of(row)))
    for pid in pids[:_MOST_PROGRAMS]:
        comm = view.processes[pid].comm if pid in view.processes else "?"
        yield "\n" + "\n".join(stack_lines(read(pid), comm, concerned, style)) + "\n"
    if not pids:
        yield _NO_HOLDER


_MOST_PROGRAMS = 4
_NO_HOLDER = "\n  stacks      no process is known to hold it\n"


def _explain(args: argparse.Namespace) -> int:
    import numpy as np

    from finwait import session
    from finwait.errors import FinwaitError, Gap
    from finwait.report import json
    from finwait.report.connection import connection
    from finwait.uapi import tcp

    _refuse_stacks(args)
    row_filter = parse_filter(options.connection_filter(args.what))
    diagnosis = session.diagnose(options.machine(args), how=options.how(args), asked=options.asked(args))
    mask = mask_of(row_filter, diagnosis.snapshot, diagnosis.findings)
    rows = np.flatnonzero(mask & (diagnosis.view.sockets.state != tcp.LISTEN))
    why = undecided(row_filter, diagnosis.snapshot, diagnosis.findings, mask)
    gaps = (*((why,) if why is not None else ()), *diagnosis.gaps)
    skipped = diagnosis.view.established_skipped if row_filter.states >> tcp.ESTABLISHED & 1 else 0
    if not len(rows) and skipped and args.established == "auto":
        args.established = "always"
        return _explain(args)
    if not len(rows) and skipped:
        gaps = (*gaps, Gap(f"about {skipped} sockets", "look at ESTABLISHED ones", "`--established always`"))
    if not len(rows):
        if gaps:
            options.write_error([f"finwait: no connection that was seen matches `{' '.join(args.what)}`\n"])
            options.tell_gaps(gaps)
            return options.status(gaps)
        session.refuse_impossible(row_filter, diagnosis.snapshot, users(diagnosis.snapshot))
        error = FinwaitError(f"no connection matches `{' '.join(args.what)}`")
        error.hint = "`finwait list` shows the connections; a destroyed or reset socket is in no list"
        raise error
    if len(rows) > 20:
        error = FinwaitError(f"`{' '.join(args.what)}` matches {len(rows)} connections")
        error.hint = "name one by LOCAL:PORT PEER:PORT or by its cookie, or use `finwait diagnose FILTER`"
        raise error
    diagnosis = session.who_waits(diagnosis, rows)
    answer: AgentAnswer | None = None
    if not args.recording:
        answer, untold = _told_stories(diagnosis.view, rows.tolist(), args.agent_socket)
        gaps = (*gaps, *untold)
    if args.output == "json":
        from finwait.report.columns import Cells

        options.write(json.connection_list(Cells(diagnosis.view, rows), gaps, _stories_json(answer)))
        options.tell_gaps(gaps)
        return options.status(gaps)
    style = options.style(args)
    for k, row in enumerate(rows.tolist()):
        if k:
            options.write(["\n" + "─" * style.width + "\n"])
        findings = session.findings_of(diagnosis, row)
        options.write(connection(diagnosis.view, row, findings, style, raw=args.raw))
        if answer is not None:
            options.write(_story(answer, diagnosis.view, row, style))
        if args.stacks:
            options.write(_stacks(diagnosis.view, row, style))
    if gaps:
        options.write(["\nNot seen:\n", *(f"  {gap}\n" for gap in gaps)])
    return options.status(gaps)


def _told_stories(
    view: View, rows: list[int], path: str | None
) -> tuple[AgentAnswer | None, tuple[Gap, ...]]:
    """Ask the agent how connections in closing states got there; None where there is no agent."""
    from finwait.agent import client, protocol
    from finwait.uapi import inet_diag, tcp

    s = view.sockets
    return client.stories(
        [
            protocol.StoryOf(
                netns=int(s.netns[k]),
                cookie=int(s.cookie[k]),
                state=int(s.state[k]),
                words=[*s.src[k].tolist(), *s.dst[k].tolist()],
                sport=int(s.sport[k]),
                dport=int(s.dport[k]),
            )
            for k in rows
            if tcp.CLOSING_STATES >> int(s.state[k]) & 1 and int(s.protocol[k]) == inet_diag.IPPROTO_TCP
        ],
        path,
    )


def _stories_json(answer: AgentAnswer | None) -> str:
    """Return the member of the document that holds stories; empty where no agent was asked."""
    if answer is None:
        return ""
    import msgspec

    return '"stories":' + msgspec.json.encode(answer.stories).decode()


def _story(answer: AgentAnswer, view: View, row: int, style: Style) -> Iterator[str]:
    """Return how a connection got into its state, as the agent recorded it, or why it did not."""
    from finwait.agent.stories import explained_story

    key = int(view.sockets.netns[row]), f"{int(view.sockets.cookie[row]):#x}"
    for story in answer.stories or ():
        if (story.netns, story.cookie) == key:
            yield from explained_story(story, answer.recorder, style.width)


def _explain_group(args: argparse.Namespace, number: int) -> int:
    """Explain a group of the last overview: what its connections are now, and what has changed."""
    import os
    import time

    from finwait import numbering, session
    from finwait.cli.printing import machine_head
    from finwait.diagnosis.numbered import rows_of, unseen
    from finwait.report import json, text

    _refuse_stacks(args)
    recorded = os.path.abspath(args.recording) if args.recording else ""
    machine = options.machine(args)
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    group, age_s = numbering.numbered(number, now_ns=now_ns, recorded=recorded)
    diagnosis = session.diagnose(machine, how=options.how(args), asked=options.asked(args))
    pids = () if group.cookies else group.pids
    same = session.regrouped(diagnosis, rows_of(diagnosis.view, group), group.rule, pids)
    missed = unseen(diagnosis.view, group)
    gaps = (*missed, *same.gaps)
    if args.output == "json":
        facts = diagnosis.snapshot.observation.facts
        options.write(json.diagnosis(same.view, same.findings, gaps, machine_head(facts)))
        return options.status(gaps)
    style = options.style(args)
    options.write(text.group(same.view, same.findings, group, age_s, style, partly=bool(missed)))
    if args.stacks:
        held = [
            row for f in same.findings if f.primary for row in f.rows.tolist() if same.view.holder_found[row]
        ]
        options.write(_stacks(same.view, held[0], style) if held else [_NO_HOLDER])
    if gaps:
        options.write(text.not_seen(gaps, style))
    return options.status(gaps)


_DRAWN = 50
"""Connections that are drawn of a capture file unless some are named; first those that did not close in order."""


def _explain_file(path: str, ends: Sequence[End], *, as_json: bool = False) -> int:
    """Draw the closings that a capture file holds (``finwait explain --pcap FILE``).

    Args:
        path: pcap or pcapng, gzip or not; ``-`` for standard input.
        ends: one end or both (`finwait.capturing.chosen.parse_end`); empty for all.
        as_json: print one document, of all of them, instead.

    Raises:
        FinwaitError: the file cannot be read at all, or what is wanted is not in it.
    """
    from finwait.capturing import read_closings
    from finwait.capturing.chosen import end_text
    from finwait.diagnosis.sightings import sightings
    from finwait.errors import DecodeError, FinwaitError
    from finwait.report.closing import drawing

    try:
        capture = read_closings(path, ends)
    except OSError as failed:
        error = FinwaitError(f"could not read `{path}`: {failed.strerror or failed}")
        error.hint = "name a pcap or pcapng file; gzip is unpacked"
        raise error from None
    except DecodeError as failed:
        failed.hint = "name a pcap or pcapng file; gzip is unpacked"
        raise
    joined = sightings(capture.book.told(capture.until_ns))
    drawn = _chosen_to_draw(joined, all_of_them=bool(ends) or as_json)
    gaps = capture.gaps(path)
    if as_json and (joined or not ends):
        _closings_json(capture, joined, gaps)
    for number, sighting in enumerate([] if as_json else drawn):
        if number:
            print()
        for line in drawing(sighting, until_ns=capture.until_ns, lost=capture.dropped):
            print(line)
    _tell_read(capture, joined, drawn, gaps)
    if ends and not joined:
        error = FinwaitError(
            f"no connection of {' and '.join(end_text(*end) for end in ends)} is in `{path}`"
        )
        error.hint = "leave the addresses out to see every connection of the file"
        raise error
    return options.status(gaps)


def _closings_json(capture: FileRead, joined: list[Sighting], gaps: list[Gap]) -> None:
    from finwait.report.closing import sighting_json
    from finwait.report.shape import document, encoded

    members = {
        "closings": [
            sighting_json(sighting, until_ns=capture.until_ns, lost=capture.dropped) for sighting in joined
        ],
        "packets": capture.packets,
        "lost": capture.dropped,
    }
    options.write([encoded(document("CaptureFile", members, gaps))])


def _chosen_to_draw(joined: list[Sighting], *, all_of_them: bool) -> list[Sighting]:
    """Return what to draw: of many, first what did not close in order, in the order of the file."""
    from finwait.diagnosis.closing import Ending

    if all_of_them or len(joined) <= _DRAWN:
        return joined
    plain = (Ending.IN_ORDER, Ending.OPEN, Ending.UNSEEN, Ending.NOT_OPENED)
    order = sorted(range(len(joined)), key=lambda k: (joined[k].closing.outcome in plain, k))
    return [joined[k] for k in sorted(order[:_DRAWN])]


def _tell_read(capture: FileRead, joined: list[Sighting], drawn: list[Sighting], gaps: list[Gap]) -> None:
    """Say on standard error what was read, and what could not be."""
    from collections import Counter

    from finwait.uapi.segment import Unread

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    others = capture.unread[Unread.OTHER] + capture.unread[Unread.FRAGMENT]
    say(f"{capture.packets} packets, {others} of them not TCP, {len(joined)} connections")
    if len(drawn) < len(joined):
        counts = Counter(sighting.closing.outcome.value for sighting in joined)
        say("  " + ", ".join(f"{count} × {name}" for name, count in counts.most_common()))
        say(f"{len(drawn)} of {len(joined)} are drawn\nhint: name one by ADDRESS:PORT to see it")
    if capture.late:
        say(f"{capture.late} packets have time stamps far out of order")
    options.tell_gaps(gaps)
    if capture.links:
        say("hint: Ethernet, Linux cooked, raw IP, PPP and loopback captures can be read")
