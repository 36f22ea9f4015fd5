"""``finwait probe``: ask idle connections whether their peers live, and leave everything as it was."""

from __future__ import annotations

import argparse
import re
import sys

from finwait.cli import options

__all__ = ["add_parser", "keepalive", "run"]


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


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "probe",
        help="ask idle connections whether their peers live",
        description="Arm a short keepalive on idle connections through a borrowed descriptor, watch what comes of it, "
        "and put every option back exactly as it was. A live peer answers and nothing else happens; a connection "
        "whose peer is gone ends, which is the point. Tells for each: alive, reset, dead, or not judged.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    options.add_output(parser, ("text", "json"))
    parser.add_argument(
        "--keepalive",
        type=keepalive,
        default=(1, 1, 3),
        metavar="IDLE/INTERVAL/COUNT",
        help="default 1/1/3: up to 4 s",
    )
    parser.add_argument(
        "--max",
        type=options.count,
        default=1000,
        metavar="N",
        help="refuse more than N connections (default 1000)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from collections import Counter

    import msgspec

    from finwait import acting
    from finwait.cli.arm import chosen
    from finwait.cli.clear import where
    from finwait.cli.journal import opened, tell_unfinished

    if not args.recording:
        tell_unfinished()
    steps, gaps = chosen(args, "probe")
    options.tell_gaps(gaps)
    try:
        with opened() as journal:
            found = acting.probe(
                steps, journal, keepalive=args.keepalive, say=options.progress() or (lambda _: None)
            )
    except KeyboardInterrupt:
        sys.stderr.write("finwait: interrupted; every option is as it was before\n")
        raise
    if args.output == "json":
        items = [{"step": p.step, "verdict": p.verdict, "detail": p.detail} for p in found]
        out = {"apiVersion": "finwait/v1", "kind": "ProbeList", "items": items}
        sys.stdout.write(msgspec.json.encode(out).decode() + "\n")
    else:
        counted = Counter(p.verdict for p in found)
        options.write([", ".join(f"{n} {verdict}" for verdict, n in counted.most_common()) + "\n"])
        for p in found:
            who = ", ".join(f"{comm}({pid}:{fd})" for pid, fd, comm in p.step.holders[:1]) or "-"
            src, dst = where(p.step)
            options.write([f"\n{p.verdict}  {src} → {dst}  {p.step.state}  {who}\n", f"  {p.detail}\n"])
    return options.status(gaps)
