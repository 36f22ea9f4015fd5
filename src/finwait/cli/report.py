"""``finwait report``: a diagnosis as one file to hand on: HTML, or Markdown for an issue tracker."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from finwait.cli import habits, options
from finwait.cli.printing import machine_head

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from finwait.diagnosis.hint import Asked
    from finwait.report.account import Account
    from finwait.report.past import AgentPast
    from finwait.session import Diagnosis, Machine
    from finwait.table.states_then import StatesThen

__all__ = ["add_parser", "run"]

_PSEUDONYMS = frozenset(
    {"pod", "container", "namespace", "workload", "service", "label", "comm", "cgroup", "thread"}
)
"""What a FILTER may ask by a name that redaction replaces."""


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "report",
        help="a diagnosis as one HTML file, or as Markdown, to hand on",
        description="Look as `finwait diagnose` does, and write what it says into one file that needs nothing beside "
        "it: groups, the diagram of the states, both ends of each group, evidence, what ends it, settings, what was "
        "not seen. An existing file is replaced. Changes nothing else.",
    )
    parser.add_argument(
        "filter",
        nargs="*",
        type=str,
        action=options.Words,
        metavar="FILE.html|FILTER",
        help="where to write: a first word that ends in `.html`, `.md` or `.json`, or has a `/`, or is `-` for "
        "standard output (the default); then which connections, as of `finwait diagnose`",
    )
    parser.add_argument(
        "--file", metavar="FILE", help=argparse.SUPPRESS
    )  # see `finwait.cli.habits.translated`
    options.add_look(parser)
    group = parser.add_argument_group("writing")
    group.add_argument(
        "-o",
        "--output",
        choices=("html", "md", "json"),
        help="format: a page, GitHub Markdown for an issue tracker, or what `finwait diagnose -o json` prints "
        "(default: by the ending of FILE, else html)",
    )
    group.add_argument(
        "--redact",
        action="store_true",
        help="replace addresses and names by stable pseudonyms, as `finwait record --redact` does",
    )
    group.add_argument(
        "--since",
        type=options.duration_ms,
        metavar="DURATION",
        help="add what `finwait agent` has seen since then: counts over time, and the latest episodes",
    )
    group.add_argument(
        "--state-dir",
        metavar="DIR",
        help="where the agent keeps its history (default `/var/lib/finwait` for root)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        UsageError: a page for a terminal, or a FILTER by what is redacted.
        FinwaitError: the look failed, or the file could not be written.
    """
    from msgspec.structs import replace

    from finwait.errors import UsageError
    from finwait.report.account import account

    file = _file(args)
    form = args.output or habits.REPORT_ENDINGS.get(os.path.splitext(file)[1].lower(), "html")
    if form == "html" and not file and sys.stdout.isatty():
        raise UsageError(
            "a page is not for a terminal", hint="name a file: `finwait report stuck.html`, or use `-o md`"
        )
    if args.since is not None and (args.redact or args.recording or form == "json"):
        raise UsageError(
            "`--since` is about this machine, under its own names: not with `--from`, `--redact` or `-o json`",
            hint="`finwait history -o json` has it as JSON",
        )
    if args.redact:
        _refuse_pseudonyms(args)
    _check_filter(args, file)
    past = _past(args)
    diagnosis = options.narrowed(args, _diagnosed(args))
    narrowed = diagnosis.narrowed
    unjudged = (narrowed.undecided,) if narrowed is not None and narrowed.undecided is not None else ()
    diagnosis = replace(diagnosis, gaps=(*unjudged, *diagnosis.gaps))
    summary = account(
        diagnosis.view,
        diagnosis.findings,
        diagnosis.gaps,
        diagnosis.snapshot.observation.facts,
        narrowed=narrowed,
        moments=_moments(diagnosis),
        source=_source(args),
        redacted=getattr(diagnosis.snapshot.machine, "redacted", False),
    )
    text = _text(form, diagnosis, summary, past)
    if file:
        _write(file, text, 0o644 if args.redact else 0o600)
        size = f"{len(text.encode()) / 1000:.0f} kB"
        options.write_error([f"finwait: wrote `{file}` ({size}): {summary.headline}\n"])
    else:
        sys.stdout.write(text)
    gaps = (*diagnosis.gaps, *(past.gaps if past is not None else ()))
    options.tell_gaps(gaps)
    return options.status(gaps, narrowed)


def _past(args: argparse.Namespace) -> AgentPast | None:
    """Return the agent's history, where it was asked for."""
    if args.since is None:
        return None
    from finwait.agent.past import read_past
    from finwait.selecting import parse_filter

    since_ms, words = args.since, args.filter
    return read_past(since_ms, parse_filter(words), filtered=bool(words), directory=args.state_dir)


def _text(form: str, diagnosis: Diagnosis, summary: Account, past: AgentPast | None) -> str:
    """Return the report in a format."""
    view = diagnosis.view
    if form == "html":
        from finwait.report.html import page

        return page(view, summary, past)
    if form == "md":
        from finwait.report.markdown import markdown

        return markdown(view, summary, past)
    from finwait.report import json

    head = machine_head(diagnosis.snapshot.observation.facts)
    return "".join(json.diagnosis(view, diagnosis.findings, diagnosis.gaps, head, diagnosis.narrowed))


def _file(args: argparse.Namespace) -> str:
    """Return where to write, and leave the FILTER in the arguments; empty for standard output."""
    first = args.file or ""
    if not first and args.filter and habits.names_report(args.filter[0]):
        first, args.filter = args.filter[0], args.filter[1:]
    return "" if first == "-" else first


def _check_filter(args: argparse.Namespace, file: str) -> None:
    """Parse the FILTER before anything is looked at.

    Raises:
        FilterError: it does not parse; a word that may be meant as a file gets an answer of its own.
    """
    from finwait.errors import FilterError
    from finwait.selecting import parse_filter

    try:
        parse_filter(args.filter)
    except FilterError as error:
        if len(args.filter) == 1 and not file and args.filter[0].isidentifier():
            error.hint = (
                f"if it is the file to write, give it an ending: `finwait report {args.filter[0]}.html`"
            )
        raise


def _source(args: argparse.Namespace) -> str:
    """Return what is said of a recording; of a redacted report not even its name."""
    if not args.recording:
        return ""
    return "a recording" if args.redact else f"the recording {os.path.basename(args.recording)}"


def _refuse_pseudonyms(args: argparse.Namespace) -> None:
    """Refuse a FILTER by what `--redact` replaces: it would match nothing, which says nothing about connections.

    Raises:
        UsageError: it is one.
    """
    from finwait.errors import UsageError
    from finwait.selecting import parse_filter

    row_filter = parse_filter(args.filter)
    named = sorted({*(row_filter.needs & _PSEUDONYMS), *(row_filter.columns & {"src", "dst"})})
    if args.filter and named:
        raise UsageError(
            f"`--redact` replaces what the FILTER asks for ({', '.join(named)})",
            hint="choose by state, port, pid, age or rule; or by the pseudonyms of `finwait record --redact`",
        )


def _diagnosed(args: argparse.Namespace) -> Diagnosis:
    """Look and explain; with `--redact` at what was read with everything that identifies replaced."""
    from msgspec.structs import replace

    from finwait import session

    if not args.redact:
        return options.unnarrowed(args)
    how = options.how(args)
    machine = _redacted(args, options.machine(args))
    return session.diagnose(machine, how=replace(how, names=None), asked=_asked(args))


def _redacted(args: argparse.Namespace, machine: Machine) -> Machine:
    from finwait.recording import Pseudonyms, Replay, observed, redact_look

    names = Pseudonyms()
    if isinstance(machine, Replay):
        return Replay([redact_look(look, names) for look in machine.looks], redacted=True)
    how = options.how(args)
    looks = observed(
        machine, how.plan, looks=2 if how.watch_ms else 1, interval_ms=how.watch_ms, cluster=how.names
    )
    return Replay([redact_look(look, names) for look in looks], redacted=True)


def _asked(args: argparse.Namespace) -> Asked:
    """Return the options that commands of a redacted report repeat: none that names a file or a namespace."""
    public = argparse.Namespace(**{**vars(args), "netns": [], "kube_names": None, "agent_socket": None})
    public.recording = "FILE" if args.recording else None
    return options.asked(public)


def _moments(diagnosis: Diagnosis) -> Sequence[StatesThen]:
    """Return how many sockets were in each state at each look, where there were several."""
    from msgspec.structs import replace

    from finwait.recording import Replay
    from finwait.table import decode
    from finwait.table.states_then import states_then

    shot = diagnosis.snapshot
    facts = shot.observation.facts
    if shot.first_states is None:
        return ()
    if not isinstance(shot.machine, Replay) or len(shot.machine) == 2:
        return [shot.first_states, states_then(facts.unix_ns, shot.sockets)]
    spaces = {ns.inode for ns in shot.observation.namespaces}
    looks = (
        replace(look, namespaces=tuple(ns for ns in look.namespaces if ns.inode in spaces))
        for look in shot.machine.looks
    )
    return [states_then(look.facts.unix_ns, decode.sockets(look)) for look in looks]


def _write(path: str, text: str, mode: int) -> None:
    """Write a file, whole or not at all; by no link of somebody else's (see `finwait.files`).

    Raises:
        FinwaitError: it cannot be written; nothing is left behind.
    """
    from finwait import files

    with _explained(path):
        new = files.new_file(path, mode)
    out = os.fdopen(new.fd, "w", encoding="utf-8")
    try:
        with _explained(path):
            out.write(text)
            out.flush()
            os.fsync(new.fd)
            new.publish()
    finally:  # an interrupt, too, leaves nothing behind
        with contextlib.suppress(OSError):
            out.close()
        new.discard()


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what the kernel says about the file into our error."""
    from finwait.errors import FileRefused, FinwaitError

    try:
        yield
    except FileRefused as error:
        failure = FinwaitError(f"could not write the report `{path}`: {error}")
        failure.hint = error.hint
        raise failure from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        failure = FinwaitError(f"could not write the report `{path}`: {reason}")
        failure.hint = "is there room on the disk, and may you write there?"
        raise failure from None
