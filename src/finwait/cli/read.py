"""``finwait read``: the same diagnosis from pasted text."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from finwait.cli import options, texts
from finwait.cli.printing import keep_numbers, show

if TYPE_CHECKING:
    from finwait.session import Diagnosis

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "read",
        help="diagnose from pasted text: what ss, netstat, /proc/net/tcp and other tools printed",
        description="Read what people copy from a terminal (the output of ss, netstat, /proc/net/tcp, sysctl and "
        "others, mixed, with prompts, colours and log prefixes) and say what `finwait diagnose` would say of it. What "
        "the text does not tell is unknown; the report names the command that would tell it. Every command that "
        "takes `--from` takes the same files.",
    )
    parser.add_argument(
        "texts",
        nargs="+",
        type=str,
        action=options.Words,
        metavar="FILE",
        help="text files; `-` is standard input",
    )
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--at",
        action="append",
        type=texts.moment_ns,
        default=[],
        metavar="WHEN",
        help="when FILE was made, for a text that does not show it, as `date -Is` prints it (repeatable, in the order "
        "of the files)",
    )
    group.add_argument(
        "--show-lines",
        action="store_true",
        help="print every line with what it was read as, and diagnose nothing",
    )
    options.add_thresholds(group)
    options.add_output(parser, options.DIAGNOSIS_FORMATS)
    parser.add_argument(
        "--all", action="store_true", help="show every connection of each finding, not only five"
    )
    parser.add_argument("--detail", action="store_true", help="show every group in full, not only three")
    parser.set_defaults(
        run=run, recording=None, filter=[], netns=[], watch=0, established="auto", no_owners=False, not_holder=[],
        kube_names=None, agent_socket="none",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.show_lines:
        return _show_lines(args)
    args.recording = args.texts[0]
    diagnosis = options.diagnose(args)
    show(args, diagnosis)
    _tell_notes(args, diagnosis)
    if args.output in ("text", "wide") and args.texts != ["-"]:
        keep_numbers(args, diagnosis)
    return options.status(diagnosis.gaps)


def _tell_notes(args: argparse.Namespace, diagnosis: Diagnosis) -> None:
    """Print what the text says that is about no connection of the diagnosis."""
    from finwait.pasted import PastedMachine

    machine = diagnosis.snapshot.machine
    if args.output in ("text", "wide") and isinstance(machine, PastedMachine) and machine.reading.notes:
        options.write(["\nAlso in the text:\n", *(f"  · {note}\n" for note in machine.reading.notes)])


def _show_lines(args: argparse.Namespace) -> int:
    """Print every line with the recogniser that knew it; return 1 where none knew any."""
    from finwait.pasted import read_texts

    reading = read_texts(args.texts, args.at)
    for text in reading.texts:
        if len(reading.texts) > 1:
            options.write([f"{text.name}:\n"])
        labels = reading.labels[text.name]
        width = len(str(len(text.lines)))
        options.write(
            f"{number:>{width}}  {labels.get(number, '-'):<16}  {line}\n"
            for number, line in enumerate(text.lines, 1)
            if line or number < len(text.lines)
        )
    known = ", ".join(f"{n} {name}" for name, n in reading.recognised.most_common()) or "none"
    sys.stdout.flush()
    options.write_error([f"finwait: lines recognised: {known}\n"])
    return 0 if reading.recognised else 1
