"""``finwait capture FILTER|CONNECTION``: the packets that prove it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from finwait.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from finwait.capturing import Chosen
    from finwait.session import Snapshot
    from finwait.uapi.pcap import Segment

__all__ = ["add_parser", "explain_file", "run"]

_MOST = 200
_SMALL = 20_000
"""With so many sockets on the machine a whole diagnosis takes a second, and its causes go into the file."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "capture",
        help="the packets of chosen connections, and a picture of how they close",
        description="Capture the packets of connections that are there now, in their network namespaces and in "
        "every form that address translation gives them. Writes pcapng with what is known about each connection as "
        "comments, and draws how it closed: who sent FIN, which ACK answered, what never came.",
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
        type=options.duration_ms,
        metavar="TIME",
        help="stop after this time (e.g. 30s)",
    )
    parser.add_argument(
        "--ring-mb", type=float, default=0, metavar="MB", help="begin another file after so many MB"
    )
    parser.add_argument(
        "--files", type=int, default=5, metavar="N", help="keep so many files of the ring (default: 5)"
    )
    parser.add_argument(
        "--snaplen",
        type=int,
        default=65535,
        metavar="BYTES",
        help="keep so much of each packet (default: all)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="do not tell of changes while capturing")
    parser.set_defaults(run=run)


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
    descriptors, _ = procfs.descriptors()
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
    return {one: "; ".join(parts) for one, parts in notes.items() if parts}


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status.

    Raises:
        FinwaitError: the filter is wrong, nothing or too much matches, or capturing is not possible.
    """
    import signal
    import time

    import numpy as np

    from finwait import capturing, session
    from finwait.cli.explain import connection_filter
    from finwait.diagnosis import catalogue, engine
    from finwait.errors import FinwaitError
    from finwait.uapi import tcp

    found = options.parse_filter(connection_filter(args.what))
    whole = bool(found.needs & {"rule", "severity"})
    # Who holds a socket takes seconds on a busy machine. Packets do not wait: it is found out afterwards,
    # unless the FILTER asks for it.
    for owners in (whole or bool(found.needs & {"pid", "comm"}), True):
        shot = session.snapshot(
            states=tcp.ALL_STATES if whole else found.states,
            bytecode=b"" if whole else found.bytecode(),
            descriptors=owners,
        )
        findings = engine.diagnose(shot.view, catalogue.rules()) if whole else None
        mask = options.mask_of(found, shot, findings) & (shot.sockets.state != tcp.LISTEN)
        rows = np.flatnonzero(mask & (shot.sockets.dport != 0)).tolist()
        if rows or owners:  # else it may be in a namespace that nothing but a descriptor leads to
            break
    if not rows:
        error = FinwaitError(f"no connection is `{' '.join(args.what)}`")
        error.hint = "`finwait list` shows what is there; connections that begin later are not captured"
        raise error
    if len(rows) > _MOST:
        error = FinwaitError(f"`{' '.join(args.what)}` is {len(rows)} connections, more than {_MOST}")
        error.hint = "name fewer: the kernel takes only so long a filter"
        raise error
    chosen = capturing.choose(shot.sockets, rows, shot.flows)
    for one in chosen:
        more = f", also as {len(one.forms) - 1} translated form(s)" if len(one.forms) > 1 else ""
        print(f"capturing {one} in netns {one.netns}: {tcp.STATES[one.state]}{more}", file=sys.stderr)
    writer = None
    if args.write:
        writer = capturing.Writer(
            args.write,
            limit=int(args.ring_mb * 1e6),
            files=max(args.files, 1),
            comment="\n".join(f"{one} in netns {one.netns}: {tcp.STATES[one.state]}" for one in chosen),
        )
        try:
            writer.open()
        except OSError as failed:
            error = FinwaitError(f"could not write `{args.write}`: {failed.strerror}")
            error.hint = "choose another place with `--write`"
            raise error from None
    recorder = capturing.Recorder()
    status = 0
    begun = time.monotonic()
    # A closed terminal or a SIGTERM ends the capture as Ctrl-C does: the file is closed, the closing drawn.
    ending = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, signal.default_int_handler) for number in ending]
    told = ""
    try:
        for recorder in capturing.follow(  # noqa: B007 - the last one is what is drawn
            chosen,
            writer=writer,
            deadline=None if args.duration is None else begun + args.duration / 1000,
            until_closed=args.until_closed,
            said=lambda text: None if args.quiet else print(text, file=sys.stderr),
            snaplen=args.snaplen,
            learn=lambda: _learn(shot, chosen),
        ):
            if writer is not None and writer.failed and not told:
                told = writer.failed
                print(f"could not write on: {told}; the diagram goes on", file=sys.stderr)
    except ValueError as failed:
        error = FinwaitError(str(failed))
        error.hint = "name fewer connections"
        raise error from None
    except KeyboardInterrupt:
        status = 130
    finally:
        for number, handler in zip(ending, previous, strict=True):
            signal.signal(number, handler)
        if writer is not None:
            writer.close()
    _draw(recorder.segments, time.time_ns())
    return _account(recorder, writer, status)


def _account(recorder: object, writer: object, status: int) -> int:
    from finwait.capturing import Recorder, Writer

    assert isinstance(recorder, Recorder)
    where = ""
    if isinstance(writer, Writer):
        where = f" to {', '.join(f'`{path}`' for path in writer.paths)}"
    print(f"{recorder.packets} packets{where}", file=sys.stderr)
    if recorder.dropped:
        print(f"{recorder.dropped} packets were dropped: no block of the ring was free", file=sys.stderr)
    if isinstance(writer, Writer) and writer.failed:
        print(
            f"the file is not whole: {writer.failed}\nhint: free some space and capture again",
            file=sys.stderr,
        )
        return 1
    return status or (3 if recorder.dropped else 0)


def _draw(segments: Iterable[Segment], until_ns: int) -> None:
    from finwait.diagnosis.closing import closings, diagram

    for number, closing in enumerate(closings(segments)):
        if number:
            print()
        for line in diagram(closing, until_ns=until_ns):
            print(line)


def explain_file(path: str, wanted: list[str]) -> int:
    """Draw the closings that a capture file holds (``finwait explain --pcap FILE``).

    Args:
        path: pcap or pcapng, gzip or not.
        wanted: ``ADDRESS:PORT`` of one end or of both; empty for all.

    Raises:
        FinwaitError: the file cannot be read at all.
    """
    from finwait.capturing import read_file
    from finwait.diagnosis.closing import closings, diagram
    from finwait.errors import DecodeError, FinwaitError
    from finwait.uapi import pcap

    try:
        data = read_file(path)
    except (OSError, ValueError) as failed:
        error = FinwaitError(f"could not read `{path}`: {getattr(failed, 'strerror', None) or failed}")
        error.hint = "a pcap or pcapng file, also gzip-compressed, is wanted"
        raise error from None
    segments = []
    packets = others = last_ns = 0
    broken: DecodeError | None = None
    try:
        for frame in pcap.read(data):
            packets += 1
            last_ns = max(last_ns, frame.time_ns)
            segment = pcap.parse_segment(frame)
            if segment is None:
                others += 1
            else:
                segments.append(segment)
    except DecodeError as failed:
        if not packets:
            failed.hint = "a pcap or pcapng file, also gzip-compressed, is wanted"
            raise
        broken = failed
    segments.sort(key=lambda s: s.time_ns)
    shown = 0
    for closing in closings(segments):
        lines = diagram(closing, until_ns=last_ns)
        if wanted and not all(any(_is(end, word) for end in (closing.a, closing.b)) for word in wanted):
            continue
        if shown:
            print()
        shown += 1
        for line in lines:
            print(line)
    print(f"{packets} packets, {others} of them not TCP, {shown} connections shown", file=sys.stderr)
    if broken is not None:
        print(f"the file ends badly: {broken}", file=sys.stderr)
    return 3 if broken is not None else 0


def _is(end: tuple[tuple[int, int], int], word: str) -> bool:
    from finwait.table.sockets import endpoint_text

    address, port = end
    return endpoint_text(*address, port) == word
