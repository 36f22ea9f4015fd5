"""``finwait explain``: the whole evidence chain of one connection, or the page of a rule."""

from __future__ import annotations

import argparse
import re

from finwait.cli import options

__all__ = ["add_parser", "connection_filter", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "explain",
        help="everything about one connection, or the page of a rule",
        description="Explain one connection with all its evidence and a picture of both ends, or print the page of "
        "a rule. A connection is named by LOCAL:PORT, by LOCAL:PORT PEER:PORT, by its cookie (0x…), or by a FILTER.",
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
        help="draw how connections closed, from a capture (pcap, pcapng, also packed with gzip; - is standard input)",
    )
    options.add_look(parser)
    options.add_output(parser, ("text", "json"))
    parser.set_defaults(run=run, wrong=parser.error)


_ENDPOINT = re.compile(r"^(\[[0-9a-fA-F:.]+(?:%[^\]\s]+)?\]|[0-9.]+(?:%[^:\s]+)?|\*):(\d+|\*)$")
_SCOPE = re.compile(r"%([^\]:]+)")


def connection_filter(words: list[str]) -> list[str]:
    """Return the FILTER for a connection that is named by its ends or its cookie; other words as they are."""
    if len(words) == 1 and re.fullmatch(r"0x[0-9a-fA-F]+", words[0]):
        return ["cookie", "=", words[0]]
    ends = [w for w in words if w not in ("->", "→", "-")]
    if 1 <= len(ends) <= 2 and all(_ENDPOINT.match(w) for w in ends):
        plain = [_SCOPE.sub("", end) for end in ends]
        devices = dict.fromkeys(found[1] for end in ends if (found := _SCOPE.search(end)))
        text = ["src", "=", plain[0]]
        if len(ends) > 1:
            text += ["and", "dst", "=", plain[1]]
        return text + [word for device in devices for word in ("and", "dev", "=", device)]
    return words


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
    from finwait.cli.capture import explain_file

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
    return explain_file(args.pcap, ends)


def _explain(args: argparse.Namespace) -> int:
    import numpy as np

    from finwait import session
    from finwait.errors import FinwaitError
    from finwait.report import json, text
    from finwait.uapi import tcp

    found = options.parse_filter(connection_filter(args.what))
    diagnosis = session.diagnose(options.machine(args), how=options.how(args))
    mask = options.mask_of(found, diagnosis.snapshot, diagnosis.findings)
    rows = np.flatnonzero(mask & (diagnosis.view.sockets.state != tcp.LISTEN))
    if not len(rows):
        error = FinwaitError(f"no connection is `{' '.join(args.what)}`")
        error.hint = "`finwait list` shows what is there; a destroyed or reset socket is in no list"
        raise error
    if len(rows) > 20:
        error = FinwaitError(f"`{' '.join(args.what)}` is {len(rows)} connections")
        error.hint = "name one by LOCAL:PORT PEER:PORT or by its cookie, or use `finwait diagnose FILTER`"
        raise error
    if args.output == "json":
        body = ",".join(json.connections(diagnosis.view, rows))
        options.write(['{"apiVersion":"finwait/v1","kind":"ConnectionList","items":[', body, "]}\n"])
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
