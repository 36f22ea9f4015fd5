"""``finwait probe``: ask idle connections whether their peers live, and leave everything as it was."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING

from finwait.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finwait.acting.probe import Probe
    from finwait.remedy.plan import Step

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
    import msgspec

    from finwait.acting.probe import probe
    from finwait.cli.arm import chosen, holder_unknown
    from finwait.cli.journal import opened, tell_unfinished

    if not args.recording:
        tell_unfinished()
    selected = chosen(args, "probe")
    steps, gaps = selected.steps, selected.gaps
    options.tell_gaps(gaps)
    options.write_error(holder_unknown(selected))
    if not steps:
        return options.status(gaps)
    unrestored: dict[int, str] = {}
    try:
        with opened() as journal:
            found = probe(
                steps,
                journal,
                keepalive=args.keepalive,
                say=options.progress() or (lambda _: None),
                unrestored=unrestored,
            )
    except KeyboardInterrupt:
        if not unrestored:
            sys.stderr.write("finwait: interrupted; every option is as it was before\n")
        else:
            options.write_error(_unrestored(steps, unrestored))
        raise
    if args.output == "json":
        items = [
            {
                "step": p.step,
                "verdict": p.verdict,
                "detail": p.detail,
                "unrestored": p.unrestored or None,
                "pinned": p.pinned,
            }
            for p in found
        ]
        out = {"apiVersion": "finwait/v1", "kind": "ProbeList", "items": items, "left": selected.left}
        sys.stdout.write(msgspec.json.encode(out).decode() + "\n")
    else:
        options.write(_lines(found))
    if unrestored:
        options.write_error(_unrestored(steps, unrestored))
        return 1
    return options.status(gaps)


def _lines(found: list[Probe]) -> Iterator[str]:
    from collections import Counter

    from finwait.cli.clear import where, wrapped

    counted = Counter(p.verdict for p in found)
    yield ", ".join(f"{n} {verdict}" for verdict, n in counted.most_common()) + "\n"
    for p in found:
        who = ", ".join(f"{comm}({pid}:{fd})" for pid, fd, comm in p.step.holders[:1]) or "-"
        src, dst = where(p.step)
        yield f"\n{p.verdict}  {src} → {dst}  {p.step.state}  {who}\n"
        yield from wrapped(p.detail)
    pinned = [
        p for p in found if p.pinned and not p.unrestored and p.verdict not in ("gone", "reset", "dead")
    ]
    if pinned:
        names = sorted({name for p in pinned for name in p.pinned})
        yield "\n"
        yield from wrapped(
            f"Their options read as before. Of {len(pinned)} connection{'s' if len(pinned) > 1 else ''} "
            f"{', '.join(names)} had the value of the sysctl: now it is the socket's own, and a later change of "
            "net.ipv4.tcp_keepalive_* does not reach it.",
            indent="",
        )


def _unrestored(steps: list[Step], why: dict[int, str]) -> Iterator[str]:
    from finwait.cli.clear import where

    for k, text in why.items():
        src, dst = where(steps[k])
        yield f"finwait: {src} → {dst}: {text}\n"
    yield "hint: `finwait journal` has the old values; `finwait undo ACT` tries again\n"
