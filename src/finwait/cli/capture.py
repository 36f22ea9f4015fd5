"""``finwait capture FILTER|CONNECTION``: the packets that prove it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from finwait.cli import options
from finwait.selecting import mask_of, parse_filter, undecided

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finwait.capturing import CaptureTarget, Recorder, Writer
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
    parser.add_argument(
        "-o",
        "--output",
        choices=("text", "json"),
        default="text",
        help="format (default text); json is one document at the end, instead of the drawing",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="do not print changes of state")
    parser.set_defaults(run=run, wrong=parser.error)


def _learn(shot: Snapshot, chosen: Sequence[CaptureTarget]) -> dict[CaptureTarget, str]:
    """Return what is known about the connections: who holds them and, on a small machine, the causes."""
    import numpy as np

    from finwait import session
    from finwait.attribution.owners import holders
    from finwait.diagnosis import catalogue, engine
    from finwait.kernel import procfs
    from finwait.table.units import printable
    from finwait.uapi.proc import parse_sockstat

    notes: dict[CaptureTarget, list[str]] = {target: [] for target in chosen}
    counts = [parse_sockstat(f) for n in shot.observation.namespaces if (f := n.files.get("net/sockstat"))]
    if sum(c.get("TCP.inuse", 0) for c in counts) <= _SMALL:
        whole = session.snapshot()
        findings = engine.diagnose(whole.view, catalogue.rules())
        where = {int(c): k for k, c in enumerate(whole.sockets.cookie.tolist())}
        for target in chosen:
            row = where.get(target.cookie, -1)
            rules = sorted({f.rule for f in findings if row >= 0 and row in f.rows.tolist()})
            if rules:
                notes[target].append("rule " + ", ".join(rules))
    descriptors, _ = procfs.descriptors(threads=True)
    owners = holders(np.array([target.inode for target in chosen], np.uint64), descriptors)
    for k, target in enumerate(chosen):
        names = []
        for pid in sorted({pid for pid, _ in owners.of(k)}):
            comm = (procfs.read(f"/proc/{pid}/comm") or b"?").removesuffix(b"\n")
            names.append(f"{printable(comm.decode('utf-8', 'surrogateescape'))}[{pid}]")
        if names:
            notes[target].append("held by " + ", ".join(names))
        elif not target.inode:
            notes[target].append("held by nobody (an orphan, or not yet accepted)")
        elif not owners.complete:
            notes[target].append("held by: unknown (not every process can be inspected)")
        else:
            notes[target].append("held by no process that was found")
    return {target: "; ".join(parts) for target, parts in notes.items() if parts}


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
        say=lambda text: None if args.quiet else print(text, file=sys.stderr),
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
    if args.output == "json":
        _json(recorder, writer)
    else:
        _draw(recorder)
    # Which connections were captured was said by name; what the look before could not see was said, too.
    return _account(recorder, writer, status)


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if args.ring_mb and not args.write:
        args.wrong("--ring-mb needs a file: name it with --write")
    if args.write == "-":
        form = "drawing" if args.output == "text" else "report"
        args.wrong(f"standard output is for the {form}: name a file with --write")


def _select(args: argparse.Namespace) -> tuple[Snapshot, list[int]]:
    """Look, say what could not be seen, and return the rows that the FILTER selects."""
    import numpy as np

    from finwait import session
    from finwait.diagnosis import catalogue, engine
    from finwait.errors import FinwaitError
    from finwait.uapi import tcp

    row_filter = parse_filter(options.connection_filter(args.what))
    whole = row_filter.asks_rules
    # Who holds a socket takes seconds on a busy machine. Packets do not wait: it is found out afterwards,
    # unless the FILTER asks for it.
    asked = whole or bool(row_filter.needs & {"pid", "comm"})
    for owners in (asked, True):
        shot = session.snapshot(
            states=tcp.ALL_STATES if whole else row_filter.states,
            bytecode=b"" if whole else row_filter.bytecode(),
            descriptors=owners,
        )
        findings = engine.diagnose(shot.view, catalogue.rules()) if whole else None
        selected = mask_of(row_filter, shot, findings)
        mask = selected & (shot.sockets.state != tcp.LISTEN)
        rows = np.flatnonzero(mask & (shot.sockets.dport != 0)).tolist()
        if owners == asked:
            gaps = shot.gaps
        if rows or owners:  # else it may be in a namespace that nothing but a descriptor leads to
            break
    gaps = gaps if rows else shot.gaps
    why = undecided(row_filter, shot, findings, selected) if shot.view.holders.searched else None
    options.tell_gaps((why, *gaps) if why is not None else gaps)
    if not rows:
        error = FinwaitError(f"no connection matches `{' '.join(args.what)}`")
        error.hint = "`finwait list` shows the connections; connections that begin later are not captured"
        raise error
    if len(rows) > _MOST:
        error = FinwaitError(f"`{' '.join(args.what)}` matches {len(rows)} connections, more than {_MOST}")
        error.hint = "select fewer: the kernel limits the filter's length"
        raise error
    return shot, rows


def _named(chosen: list[CaptureTarget]) -> tuple[list[CaptureTarget], dict[int, NetNamespace]]:
    """Return the connections with the names of their interfaces, and their namespaces."""
    from msgspec.structs import replace

    from finwait.kernel.capture import space_of
    from finwait.kernel.lookup import interfaces

    spaces = {inode: space_of(inode) for inode in {target.netns for target in chosen}}
    names = interfaces([spaces[target.netns] for target in chosen if target.ifindex])
    named = [replace(target, device=names.get(target.netns, {}).get(target.ifindex, "")) for target in chosen]
    return named, spaces


def _announce(chosen: Sequence[CaptureTarget]) -> None:
    from finwait.capturing.chosen import tuple_text
    from finwait.uapi import tcp

    for target in chosen:
        print(f"capturing {target} in netns {target.netns}: {tcp.state_name(target.state)}", file=sys.stderr)
        for form in target.forms[1:]:
            print(f"  translated to {tuple_text(form, target.scope)} (conntrack)", file=sys.stderr)


def _writer(args: argparse.Namespace, chosen: Sequence[CaptureTarget]) -> Writer | None:
    from finwait import capturing
    from finwait.errors import FinwaitError

    if not args.write:
        return None
    writer = capturing.Writer(
        args.write,
        limit=int(args.ring_mb * 1e6),
        files=args.files,
        comment="\n".join(f"connection {target} in netns {target.netns}" for target in chosen),
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
    failure = ""
    try:
        with contextlib.closing(rounds):
            for _ in rounds:
                if writer is not None and writer.failed and not failure:
                    failure = writer.failed
                    print(f"finwait: writing stopped: {failure}; the drawing goes on", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    finally:
        for number, handler in zip(ending, previous, strict=True):
            signal.signal(number, handler)
        if writer is not None:
            writer.close()
    return 0


def _forms(recorder: Recorder) -> list[tuple[CaptureTarget, list[tuple[object, ...]]]]:
    """Return each connection with the keys of all its forms."""
    return [
        (target, [(target.place, target.scope, *sorted(((a, p), (b, q)))) for a, p, b, q in target.forms])
        for target in recorder.chosen
    ]


def _json(recorder: Recorder, writer: Writer | None) -> None:
    """Print what was captured, and how the connections closed, as one document."""
    from finwait.diagnosis.sightings import sightings
    from finwait.report.closing import sighting_json
    from finwait.report.shape import document, encoded

    results = sightings(recorder.book.told(recorder.until_ns), [keys for _, keys in _forms(recorder)])
    members = {
        "connections": [_chosen_json(target) for target in recorder.chosen],
        "closings": [
            sighting_json(sighting, until_ns=recorder.until_ns, lost=recorder.dropped) for sighting in results
        ],
        "packets": recorder.packets,
        "lost": recorder.dropped,
        "files": [] if writer is None else [str(path) for path in writer.paths],
        "incomplete": writer.failed if writer is not None and writer.failed else None,
    }
    options.write([encoded(document("Capture", members, recorder.gaps()))])


def _chosen_json(target: CaptureTarget) -> dict[str, Any]:
    """Return a connection that was captured; its state is that of the look before."""
    from finwait.report.shape import connection
    from finwait.table.sockets import address_text
    from finwait.uapi import tcp
    from finwait.uapi.inet_diag import IPPROTO_TCP

    ways = [
        {"src": address_text(*src), "sport": sport, "dst": address_text(*dst), "dport": dport}
        for src, sport, dst, dport in target.forms or (target.ends,)
    ]
    src, sport, dst, dport = target.ends
    end = connection(
        netns=target.netns, protocol=IPPROTO_TCP, family=target.family, src=address_text(*src), sport=sport,
        dst=address_text(*dst), dport=dport, state=tcp.state_name(target.state), cookie=target.cookie,
        ifindex=target.ifindex, inode=target.inode,
    )  # fmt: skip
    return end | {"device": target.device or None, "translated": ways[1:]}


def _draw(recorder: Recorder) -> None:
    from finwait.capturing.chosen import tuple_text
    from finwait.diagnosis.sightings import key, sightings
    from finwait.report.closing import drawing

    forms = _forms(recorder)
    results = sightings(recorder.book.told(recorder.until_ns), [keys for _, keys in forms])
    for number, sighting in enumerate(results):
        if number:
            print()
        for target, keys in forms:
            if key(sighting.closing) in keys[1:]:
                form = target.forms[keys.index(key(sighting.closing))]
                print(
                    f"{target} is translated: on the wire it is {tuple_text(form, target.scope)} (conntrack)"
                )
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
