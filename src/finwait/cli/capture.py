"""``finwait capture FILTER|CONNECTION``: the packets that prove it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from finwait.cli import options
from finwait.selecting import mask_of, parse_filter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finwait.capturing import Chosen, Recorder, Writer
    from finwait.kernel.netns import NetNamespace
    from finwait.session import Snapshot

__all__ = ["add_parser", "run"]

_MOST = 200
_SMALL = 20_000
"""With so many sockets on the machine a whole diagnosis takes a second, and its causes go into the file."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "capture",
        help="capture the packets of chosen connections, and draw how they close",
        description="Capture the packets of connections that exist now, in their network namespaces and in every "
        "form that address translation gives them. Draw how each one closed: who sent a FIN, which ACK answered it, "
        "what never came. With --write, save the packets as pcapng, with comments on each connection.",
    )
    parser.add_argument(
        "what",
        nargs="+",
        type=str,
        action=options.Words,
        metavar="FILTER|CONNECTION",
        help="a FILTER, LOCAL:PORT, LOCAL:PORT PEER:PORT, or a cookie (0x…)",
    )
    parser.add_argument("-w", "--write", metavar="FILE", help="write pcapng to this file")
    parser.add_argument("--until-closed", action="store_true", help="stop when every connection has ended")
    parser.add_argument(
        "--for",
        dest="duration",
        type=options.while_ms,
        metavar="DURATION",
        help="stop after this time (e.g. 30s)",
    )
    parser.add_argument(
        "--ring-mb",
        type=options.above_zero,
        default=0,
        metavar="MB",
        help="start a new file every MB megabytes, and keep the last --files",
    )
    parser.add_argument(
        "--files",
        type=options.at_least_one,
        default=5,
        metavar="N",
        help="files to keep (default: 5)",
    )
    parser.add_argument(
        "--snaplen",
        type=options.whole(64, 65535),
        default=65535,
        metavar="BYTES",
        help="bytes kept per packet, 64 to 65535 (default: 65535)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="do not print changes of state")
    parser.set_defaults(run=run, wrong=parser.error)


def _learn(shot: Snapshot, chosen: Sequence[Chosen]) -> dict[Chosen, str]:
    """Return what is known about the connections: who holds them and, on a small machine, the causes."""
    import numpy as np

    from finwait import session
    from finwait.attribution.owners import holders
    from finwait.diagnosis import catalogue, engine
    from finwait.kernel import procfs
    from finwait.table.units import printable
    from finwait.uapi.proc import parse_sockstat

    notes: dict[Chosen, list[str]] = {one: [] for one in chosen}
    counts = [parse_sockstat(f) for n in shot.observation.namespaces if (f := n.files.get("net/sockstat"))]
    if sum(c.get("TCP.inuse", 0) for c in counts) <= _SMALL:
        whole = session.snapshot()
        findings = engine.diagnose(whole.view, catalogue.rules())
        where = {int(c): k for k, c in enumerate(whole.sockets.cookie.tolist())}
        for one in chosen:
            row = where.get(one.cookie, -1)
            rules = sorted({f.rule for f in findings if row >= 0 and row in f.rows.tolist()})
            if rules:
                notes[one].append("rule " + ", ".join(rules))
    descriptors, _ = procfs.descriptors(threads=True)
    found = holders(np.array([one.inode for one in chosen], np.uint64), descriptors)
    for k, one in enumerate(chosen):
        names = []
        for pid in sorted({pid for pid, _ in found.of(k)}):
            comm = (procfs.read(f"/proc/{pid}/comm") or b"?").removesuffix(b"\n")
            names.append(f"{printable(comm.decode('utf-8', 'surrogateescape'))}[{pid}]")
        if names:
            notes[one].append("held by " + ", ".join(names))
        elif not one.inode:
            notes[one].append("held by nobody (an orphan, or not yet accepted)")
        elif not found.complete:
            notes[one].append("held by: unknown (not every process can be inspected)")
        else:
            notes[one].append("held by no process that was found")
    return {one: "; ".join(parts) for one, parts in notes.items() if parts}


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status.

    Raises:
        FinwaitError: the filter is wrong, nothing or too much matches, or capturing is not possible.
    """
    import time

    from finwait import capturing
    from finwait.errors import FinwaitError

    _check(args)
    shot, rows = _select(args)
    chosen, spaces = _named(capturing.choose(shot.sockets, rows, shot.flows))
    _announce(chosen)
    recorder = capturing.Recorder()
    writer = _writer(args, chosen)
    begun = time.monotonic()
    rounds = capturing.follow(
        chosen,
        recorder,
        writer=writer,
        deadline=None if args.duration is None else begun + args.duration / 1000,
        until_closed=args.until_closed,
        said=lambda text: None if args.quiet else print(text, file=sys.stderr),
        snaplen=args.snaplen,
        spaces=spaces,
        learn=lambda: _learn(shot, chosen),
    )
    try:
        status = _follow(rounds, writer)
    except ValueError as failed:
        error = FinwaitError(str(failed))
        error.hint = "select fewer: the kernel limits the filter's length"
        raise error from None
    _draw(recorder)
    # Which connections were captured was said by name; what the look before could not see was said, too.
    return _account(recorder, writer, status)


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if args.ring_mb and not args.write:
        args.wrong("--ring-mb needs a file: name it with --write")
    if args.write == "-":
        args.wrong("standard output is for the drawing: name a file with --write")


def _select(args: argparse.Namespace) -> tuple[Snapshot, list[int]]:
    """Look, say what could not be seen, and return the rows that the FILTER selects."""
    import numpy as np

    from finwait import session
    from finwait.diagnosis import catalogue, engine
    from finwait.errors import FinwaitError
    from finwait.uapi import tcp

    found = parse_filter(options.connection_filter(args.what))
    whole = found.asks_rules
    # Who holds a socket takes seconds on a busy machine. Packets do not wait: it is found out afterwards,
    # unless the FILTER asks for it.
    asked = whole or bool(found.needs & {"pid", "comm"})
    for owners in (asked, True):
        shot = session.snapshot(
            states=tcp.ALL_STATES if whole else found.states,
            bytecode=b"" if whole else found.bytecode(),
            descriptors=owners,
        )
        findings = engine.diagnose(shot.view, catalogue.rules()) if whole else None
        mask = mask_of(found, shot, findings) & (shot.sockets.state != tcp.LISTEN)
        rows = np.flatnonzero(mask & (shot.sockets.dport != 0)).tolist()
        if owners == asked:
            gaps = shot.gaps
        if rows or owners:  # else it may be in a namespace that nothing but a descriptor leads to
            break
    gaps = gaps if rows else shot.gaps
    options.tell_gaps(gaps)
    if not rows:
        error = FinwaitError(f"no connection is `{' '.join(args.what)}`")
        error.hint = "`finwait list` shows the connections; connections that begin later are not captured"
        raise error
    if len(rows) > _MOST:
        error = FinwaitError(f"`{' '.join(args.what)}` is {len(rows)} connections, more than {_MOST}")
        error.hint = "select fewer: the kernel limits the filter's length"
        raise error
    return shot, rows


def _named(chosen: list[Chosen]) -> tuple[list[Chosen], dict[int, NetNamespace]]:
    """Return the connections with the names of their interfaces, and their namespaces."""
    from dataclasses import replace

    from finwait.kernel.capture import space_of
    from finwait.kernel.lookup import interfaces

    spaces = {inode: space_of(inode) for inode in {one.netns for one in chosen}}
    names = interfaces([spaces[one.netns] for one in chosen if one.ifindex])
    named = [replace(one, device=names.get(one.netns, {}).get(one.ifindex, "")) for one in chosen]
    return named, spaces


def _announce(chosen: Sequence[Chosen]) -> None:
    from finwait.capturing.chosen import tuple_text
    from finwait.uapi import tcp

    for one in chosen:
        print(f"capturing {one} in netns {one.netns}: {tcp.state_name(one.state)}", file=sys.stderr)
        for form in one.forms[1:]:
            print(f"  translated to {tuple_text(form, one.scope)} (conntrack)", file=sys.stderr)


def _writer(args: argparse.Namespace, chosen: Sequence[Chosen]) -> Writer | None:
    from finwait import capturing
    from finwait.errors import FinwaitError

    if not args.write:
        return None
    writer = capturing.Writer(
        args.write,
        limit=int(args.ring_mb * 1e6),
        files=args.files,
        comment="\n".join(f"connection {one} in netns {one.netns}" for one in chosen),
    )
    try:
        writer.open()
    except OSError as failed:
        error = FinwaitError(f"could not write `{args.write}`: {failed.strerror}")
        error.hint = "choose another place with `--write`"
        raise error from None
    return writer


def _follow(rounds: object, writer: Writer | None) -> int:
    """Capture until it ends or a signal ends it; returns the exit status."""
    import contextlib
    import signal
    from collections.abc import Generator

    assert isinstance(rounds, Generator)
    # A closed terminal or a SIGTERM ends the capture as Ctrl-C does: the file is closed, the closing drawn.
    ending = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, signal.default_int_handler) for number in ending]
    told = ""
    try:
        with contextlib.closing(rounds):
            for _ in rounds:
                if writer is not None and writer.failed and not told:
                    told = writer.failed
                    print(f"finwait: writing stopped: {told}; the drawing goes on", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    finally:
        for number, handler in zip(ending, previous, strict=True):
            signal.signal(number, handler)
        if writer is not None:
            writer.close()
    return 0


def _draw(recorder: Recorder) -> None:
    from finwait.capturing.chosen import tuple_text
    from finwait.diagnosis.sightings import key, sightings
    from finwait.report.closing import drawing

    forms: list[tuple[Chosen, list[tuple[object, ...]]]] = [
        (one, [(one.place, one.scope, *sorted(((a, p), (b, q)))) for a, p, b, q in one.forms])
        for one in recorder.chosen
    ]
    found = sightings(recorder.book.told(recorder.until_ns), [keys for _, keys in forms])
    for number, sighting in enumerate(found):
        if number:
            print()
        for one, keys in forms:
            if key(sighting.closing) in keys[1:]:
                form = one.forms[keys.index(key(sighting.closing))]
                print(f"{one} is translated: on the wire it is {tuple_text(form, one.scope)} (conntrack)")
        for line in drawing(sighting, until_ns=recorder.until_ns, lost=recorder.dropped):
            print(line)


def _account(recorder: Recorder, writer: Writer | None, status: int) -> int:
    where = ""
    if writer is not None:
        where = f" to {', '.join(f'`{path}`' for path in writer.paths)}"
    print(f"{recorder.packets} packets{where}", file=sys.stderr)
    gaps = recorder.gaps()
    options.tell_gaps(gaps)
    if writer is not None and writer.failed:
        print(f"finwait: error: the file is incomplete: {writer.failed}", file=sys.stderr)
        print("hint: free some space and capture again", file=sys.stderr)
        return 1
    return status or options.status(gaps)
