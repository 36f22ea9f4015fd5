"""The command: one module a subcommand, imported for its options, heavy things only when it runs.

``finwait`` alone, or followed by a FILTER, is ``finwait diagnose``.

What the exit status says is in `EXIT_STATUS`; ``finwait check`` has that of a Nagios plugin instead.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from finwait.cli import habits
from finwait.cli.streams import standard_streams, write_no_more
from finwait.errors import DecodeError, FilterError, FinwaitError, Refused, UsageError
from finwait.kernel import interruption
from finwait.relay.command import NEGATIVE, not_empty
from finwait.version import __version__

__all__ = ["COMMANDS", "EXIT_STATUS", "build_parser", "main"]

COMMANDS = {
    "diagnose": "diagnose",
    "list": "list_",
    "explain": "explain",
    "netns": "netns",
    "rules": "rules",
    "check": "check",
    "trace": "trace",
    "capture": "capture",
    "top": "top",
    "clear": "clear",
    "probe": "probe",
    "arm": "arm",
    "conntrack": "conntrack",
    "journal": "journal",
    "undo": "journal",
    "tune": "tune",
    "audit": "audit",
    "relay": "relay",
    "record": "record",
    "report": "report",
    "compare": "compare",
    "read": "read",
    "lab": "lab",
    "agent": "agent",
    "history": "history",
    "policy": "policy",
}
"""Command → module of this package."""

_ALSO_COLUMNS = frozenset({"netns"})
"""Commands that a FILTER may begin with as well: an operator behind them says which."""
_OPERATOR = re.compile(r"[=!<>]|(?:eq|neq?|[lg](?:t|eq?))$", re.IGNORECASE)

EXIT_STATUS = {
    0: "done; everything that was asked for could be seen",
    1: "failed: the message says what was tried and what the kernel said; of compare also: something got worse",
    2: "wrong usage: an option, an argument or a FILTER that does not parse",
    3: (
        "done, but something could not be seen, or the FILTER could not judge it; the output lists it, "
        "with what would help"
    ),
    4: "refused by a guard, or nothing was as planned any more: nothing was changed",
    130: "interrupted: by Ctrl-C; by SIGTERM or a hang-up while it asks or acts (top: 128 + its number)",
}
"""Exit status → meaning, of every command but `check`."""


class _WrongArguments(SystemExit):
    """The arguments do not parse; it was said on standard error."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - whatever argparse takes
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = NEGATIVE
        self.register("type", None, not_empty)  # of every option and argument that names no other type

    def add_subparsers(self, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever argparse takes and returns
        subparsers = super().add_subparsers(**kwargs)
        subparsers.type = str  # all the words behind it go through its type, FILTERs among them
        return subparsers

    def error(self, message: str) -> NoReturn:
        from finwait.table.units import printable

        self.print_usage(sys.stderr)
        usage = f"finwait: error: {message}\nhint: see `{self.prog} --help`\n"
        sys.stderr.write(printable(usage, lines=True))
        raise _WrongArguments(message)


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands; man page, completions and the documentation tests read it too.

    Args:
        command: one of `COMMANDS`, where only what is behind it is to be parsed: the modules of the others are then not
            imported.
    """
    parser = _Parser(
        prog="finwait",
        description="Say why TCP connections on this machine do not finish closing, and what would end them.",
        epilog="`finwait` alone, or followed by a FILTER, is `finwait diagnose`. See finwait(8).",
    )
    parser.add_argument("--version", action="version", version=f"finwait {__version__}")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for module in dict.fromkeys(COMMANDS.values() if command is None else (COMMANDS[command],)):
        importlib.import_module(f"finwait.cli.{module}").add_parser(sub)
    return parser


def _with_command(argv: Sequence[str]) -> list[str]:
    """Put `diagnose` in front where no command is named, and join `--sort` with what it sorts by."""
    argv = list(argv)
    for k in range(len(argv) - 1, 0, -1):
        if argv[k - 1] == "--sort" and argv[k].startswith("-"):  # argparse would take it for an option
            argv[k - 1 : k + 1] = [f"--sort={argv[k]}"]
    if len(argv) > 1 and argv[0] in _ALSO_COLUMNS and _OPERATOR.match(argv[1]):
        return ["diagnose", *argv]
    if argv and (argv[0] in COMMANDS or argv[0] in ("-h", "--help", "--version")):
        return list(argv)
    return ["diagnose", *argv]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    # numpy's OpenBLAS starts a thread for each processor when it is imported; nothing here multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What a command makes by the hundred thousand (steps of a plan, lines) it keeps until it ends: looking through
    # all of it for cycles, again and again, finds none.
    gc.set_threshold(100_000, 20, 100)
    typed = sys.argv[1:] if argv is None else list(argv)
    if argv is not None:
        return _status(typed)
    interruption.ends_when_interrupted()
    status = 1
    try:
        status = _status(typed)
    finally:
        # Once it was interrupted, no signal may replace the status that says so.
        if status > 128 or interruption.Interruptions.over:
            interruption.sealed()
    return status


def _status(typed: Sequence[str]) -> int:
    """Run the words of a command line, and say what went wrong; return the exit status."""
    words = _with_command(typed)
    if words[0] == "check":
        return _check(words)
    if not standard_streams():
        return _complain(FinwaitError(_NO_OUTPUT), 1)
    args = argparse.Namespace()
    try:
        if typed and (answer := habits.command(typed[0])):
            raise answer
        args = _parsed(habits.translated(words))
        status: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough (`finwait list | head`).
        write_no_more()
        status = 0
    except KeyboardInterrupt:
        # Another signal must not cut short what is still to be written, nor come in here: a call might let it.
        interruption.Interruptions.over = interruption.Interruptions.ends
        interruption.over()
        status = 130
    except FilterError as error:
        meant = habits.misspelt(typed[0], COMMANDS) if words != [*typed] else None
        status = _complain(meant or error, 2)
    except UsageError as error:
        status = _complain(error, 2)
    except Refused as error:
        status = _complain(error, 4)
    except DecodeError as error:
        status = _complain(error, 1, getattr(args, "recording", None))
    except FinwaitError as error:
        status = _complain(error, 1)
    except MemoryError as error:
        sys.stderr.write(f"finwait: error: out of memory: {error}\n")
        status = 1
    except OSError as error:
        status = _complain(_unforeseen(error), 1)
    _last_flush()
    # What goes wrong in an act that was interrupted, as a journal that cannot be written, is said; the status is one.
    return 130 if interruption.Interruptions.over else status


def _last_flush() -> None:
    """Write what an error left in the buffers, and a view in stderr's; that this fails, too, changes nothing."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            write_no_more(stream)


_NO_WRITERS = (
    "finwait.acting",
    "finwait.attribution",
    "finwait.diagnosis",
    "finwait.kernel",
    "finwait.session",
)
"""Packages that write no output: an error from there is not one of the output."""


def _unforeseen(error: OSError) -> FinwaitError:
    """Return an error for one of the system's that nobody expected: mostly one of the output."""
    reason = error.strerror or str(error)
    if error.filename:
        write_no_more()
        return FinwaitError(f"`{error.filename}`: {reason}")
    module, trace = "", error.__traceback__
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        module, trace = (name if name.startswith("finwait.") else module), trace.tb_next
    if not module.startswith(_NO_WRITERS):
        write_no_more()
        return FinwaitError(f"the output could not be written: {reason}")
    failure = FinwaitError(f"a system call in `{module}` failed: {reason}")
    failure.hint = (
        "this is a bug in finwait, please report it; `finwait journal` shows whether anything was done"
    )
    return failure


_NO_OUTPUT = "standard output is closed, so there is nowhere to write the answer"


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return what the words of a command line say.

    Raises:
        UsageError: a word holds what no shell can pass on.
        SystemExit: they are wrong, or ask for help.
    """
    for word in words:
        if "\0" in word:
            raise UsageError(f"`{word[:60]}`: an argument cannot contain a NUL byte")
        if word.startswith("--") and word.endswith(
            "=--"
        ):  # argparse of Python 3.11 would take it for no value at all
            raise UsageError(f"`{word[:60]}`: `--` is not a value")
    try:
        return build_parser(words[0] if words[0] in COMMANDS else None).parse_args(words)
    except SystemExit:
        sys.stdout.flush()  # a help that could not be written is an error
        raise


def _check(words: Sequence[str]) -> int:
    """Run ``finwait check``, whose status is a plugin's whatever happens: 3 also for wrong arguments."""
    if not standard_streams():
        _complain(FinwaitError(_NO_OUTPUT), 3)
        return 3
    try:
        return _checked(words)
    except OSError:  # nobody takes the line, or there is no room for it
        write_no_more()
        return 3


def _checked(words: Sequence[str]) -> int:
    from finwait.cli import check

    form = "json" if _asks_json(words) else "text"
    try:
        args = _parsed(words)
        status: int = args.run(args)
        return status
    except _WrongArguments as wrong:
        return check.unknown(f"wrong arguments: {wrong.message}", form)
    except UsageError as error:
        return check.unknown(f"wrong arguments: {error}", form)
    except KeyboardInterrupt:
        return check.unknown("interrupted", form)


def _asks_json(words: Sequence[str]) -> bool:
    """Return whether words that may not parse ask for JSON: then what says so is JSON, too."""
    pairs = itertools.pairwise(words)
    joined = any(word in ("-ojson", "-o=json", "--output=json") for word in words)
    return joined or any(option in ("-o", "--output") and value == "json" for option, value in pairs)


def _complain(error: FinwaitError, status: int, recording: str | None = None) -> int:
    from finwait.table.units import printable

    hint, where = error.hint, ""
    if recording:
        where = f"in the recording `{recording}`: "
        hint = hint or (
            "the file is complete, but no kernel would answer like this; was it made by `finwait record`?"
        )
    if not hint and isinstance(error, FilterError):
        hint = "a FILTER uses the grammar of `ss` and further predicates; see finwait(8)"
    sys.stderr.write(printable(f"finwait: error: {where}{error}\n", lines=True))
    if hint:
        sys.stderr.write(printable(f"hint: {hint}\n", lines=True))
    return status
