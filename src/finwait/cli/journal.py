"""``finwait journal`` and ``finwait undo``: what was done to this machine, and taking it back."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from finwait.cli import options
from finwait.cli.streams import acts_told

if TYPE_CHECKING:
    from finwait.errors import FinwaitError
    from finwait.kernel.journal import JournalEntry, SqliteJournal

__all__ = ["add_parser", "run", "undo"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register both commands."""
    parser = sub.add_parser(
        "journal",
        help="what finwait did to this machine, newest first",
        description="List every act: when, who, what, to which connection or setting, and the result. Acts that "
        "were interrupted (crash or kill) are marked.",
    )
    parser.add_argument(
        "--limit",
        type=options.at_least_one,
        default=50,
        metavar="N",
        help="acts to list (default 50)",
    )
    parser.add_argument("--incomplete", action="store_true", help="only acts that were interrupted")
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="format (default text)"
    )
    parser.set_defaults(run=run)
    back = sub.add_parser(
        "undo",
        help="revert an act in the journal, if possible",
        description="Revert what an act changed: socket options, sysctls. A FIN or RST that was sent cannot be "
        "reverted. Shows what it would do, and asks. Exit status 4 if nothing was reverted because "
        "nobody agreed.",
    )
    back.add_argument(
        "acts",
        nargs="*",
        type=_numbers,
        metavar="ID|FIRST-LAST",
        help="number of an act, or a range of them; see `finwait journal`",
    )
    back.add_argument(
        "--incomplete", action="store_true", help="every act that was interrupted (crash or kill)"
    )
    back.add_argument(
        "--yes", action="store_true", help="do it; without this, finwait only shows what would be done"
    )
    back.add_argument(
        "--force",
        action="store_true",
        help="even if somebody has changed options, values or the sysctl.d file since, or holds the socket's lock",
    )
    back.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="format (default text)"
    )
    back.set_defaults(run=undo)


def _numbers(text: str) -> range:
    """Read ``7`` or ``7-12`` (argparse type)."""
    first, _, last = text.partition("-")
    if not (
        text.isascii()
        and len(text) < 40
        and first.isdecimal()
        and (last or first).isdecimal()
        and int(first) <= int(last or first) < (1 << 63) - 1
    ):
        raise argparse.ArgumentTypeError(f"`{text[:60]}`: write the number of an act, or FIRST-LAST")
    return range(int(first), int(last or first) + 1)


def run(args: argparse.Namespace) -> int:
    """List the journal."""
    from datetime import UTC, datetime

    from finwait.errors import FinwaitError, KernelError
    from finwait.kernel.journal import SqliteJournal, state_directory
    from finwait.report.journal import act_result, entry_json, whom
    from finwait.table.units import printable

    if state_directory().exists() and not state_directory().is_dir():
        error = FinwaitError(f"`{state_directory()}` is not a directory, so the journal cannot be kept in it")
        error.hint = "set FINWAIT_STATE_DIR to a directory"
        raise error
    if not (state_directory() / "journal.sqlite").exists() and not list(state_directory().glob("journal*")):
        return _empty(args)
    try:
        opened = SqliteJournal(read_only=True)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return _empty(args)  # the first act was cut short while the journal was made
    with opened as journal:
        cut = {e.id for e in journal.incomplete()}
        entries = journal.incomplete() if args.incomplete else journal.entries(limit=args.limit)
    if args.output == "json":
        _document("JournalEntryList", [entry_json(entry) for entry in entries])
        return 0
    for e in entries:
        when = datetime.fromtimestamp(e.started_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        target = whom(e)
        outcome = act_result(e, cut=e.id in cut)
        undone = f"  (undone by {e.undone_by})" if e.undone_by else ""
        sys.stdout.write(
            printable(
                f"{e.id:>5}  {when}  {e.user:<10} {e.kind:<10} {target}  {e.why}: {outcome}{undone}\n",
                lines=True,
            )
        )
    return 0


def _document(kind: str, items: Sequence[object]) -> None:
    from finwait.report.shape import document, encoded

    sys.stdout.write(encoded(document(kind, {"items": items})))


def _empty(args: argparse.Namespace) -> int:
    if args.output == "json":
        _document("JournalEntryList", [])
    else:
        sys.stderr.write("finwait: the journal is empty: nothing was ever done here\n")
    return 0


def undo(args: argparse.Namespace) -> int:
    """Take back acts, the last first; go on when one cannot be taken back, and say so."""
    from finwait.errors import UsageError
    from finwait.kernel.journal import opened
    from finwait.report.journal import would_do, would_json

    ids = sorted({number for part in args.acts for number in _bounded(part)}, reverse=True)
    if not ids and not args.incomplete:
        raise UsageError(
            "`finwait undo` needs the number of an act",
            hint="`finwait journal` lists them; `--incomplete` selects those that were interrupted",
        )
    with opened() as journal:
        if args.incomplete:
            ids = sorted({*ids, *(entry.id for entry in journal.incomplete())}, reverse=True)
            if not ids and args.output == "json":
                _document("UndoList", [])
                return 0
            if not ids:
                sys.stdout.write("no act was interrupted\n")
        entries, failed = _entries_of(ids, journal)
        if entries and not args.yes:
            if args.output == "json":
                _document("UndoPlan", [would_json(entry) for entry in entries])
            else:
                for entry in entries:
                    sys.stdout.writelines(f"{line}\n" for line in would_do(entry))
            sys.stdout.flush()
            subject = "this act" if len(entries) == 1 else f"these {len(entries)} acts"
            if args.output == "json" or not options.agreed(f"Revert {subject}?"):
                sys.stderr.write("finwait: nothing was done; add `--yes` to revert them\n")
                return _undo_status(failed) or 4  # not 0: who goes on after it would take them for taken back
        done: list[int] = []
        with acts_told(lambda: f"{len(done)} of {len(entries)} acts were reverted or checked"):
            if args.output == "json":
                failed += _undo_json(entries, journal, args.force, done)
            else:
                failed += _undo_each(entries, journal, args.force, _print_act, done)
    return _undo_status(failed)


def _undo_json(
    entries: Sequence[JournalEntry], journal: SqliteJournal, force: bool, done: list[int]
) -> list[FinwaitError]:
    from finwait.errors import FinwaitError
    from finwait.report.journal import undone_json

    items: list[dict[str, Any]] = []
    try:
        return _undo_each(
            entries, journal, force, lambda entry, text: items.append(undone_json(entry, text)), done
        )
    finally:
        if items or not isinstance(sys.exc_info()[1], FinwaitError):
            _document("UndoList", items)


def _print_act(entry: JournalEntry, text: str) -> None:
    from finwait.table.units import printable

    sys.stdout.write(printable(f"act {entry.id}: {text}\n", lines=True))


def _undo_each(
    entries: Sequence[JournalEntry],
    journal: SqliteJournal,
    force: bool,
    tell: Callable[[JournalEntry, str], None],
    done: list[int],
) -> list[FinwaitError]:
    """Take acts back and say what came of each; return the errors. Interrupted, it stops after the one under way.

    ``done`` takes the numbers of those that were, also where nobody reads it.
    """
    from finwait.errors import FinwaitError
    from finwait.kernel.interruption import check, interrupted
    from finwait.table.units import printable

    failed = []
    unwritten: OSError | None = None
    for k, entry in enumerate(entries):
        if interrupted():
            remaining = [entry.id for entry in entries[k:]]
            subject = (
                f"act {remaining[0]} was"
                if len(remaining) == 1
                else f"{len(remaining)} acts ({remaining[-1]} to {remaining[0]}) were"
            )
            sys.stderr.write(f"finwait: interrupted; {subject} not reverted\n")
            check()
        try:
            text = _undo_one(entry, journal, force)
        except FinwaitError as error:
            if len(entries) == 1:
                raise
            sys.stderr.write(printable(f"finwait: act {entry.id}: {error}\n", lines=True))
            failed.append(error)
        else:
            done.append(entry.id)
            if unwritten is not None:
                continue
            try:
                tell(entry, text)
            except (
                OSError
            ) as error:  # who reads it has gone (`| head -1`): no reason to leave the rest as it is
                unwritten = error
    if unwritten is not None and not failed:
        raise unwritten
    return failed


def _entries_of(ids: Sequence[int], journal: SqliteJournal) -> tuple[list[JournalEntry], list[FinwaitError]]:
    """Return the acts that could be finwait's, and say of the others what is wrong with them.

    In place of one that was to take another one back, and was cut short, that other one is returned, once.
    """
    from finwait.acting.cut_short import origin
    from finwait.errors import FinwaitError
    from finwait.remedy.journal import check_undo
    from finwait.remedy.recorded import check_act
    from finwait.table.units import printable

    entries: dict[int, JournalEntry] = {}
    failed = []
    for number in ids:
        try:
            try:
                entry = journal.get(number)
                first = origin(entry, journal)
            except ValueError as error:
                raise FinwaitError(str(error)) from None
            check_undo(entry)
            if first.undone_by is None:  # else there is only this one to settle
                entry = first
            check_act(entry)
            entries[entry.id] = entry
        except FinwaitError as error:
            if len(ids) == 1:
                raise
            sys.stderr.write(printable(f"finwait: act {number}: {error}\n", lines=True))
            failed.append(error)
    return list(entries.values()), failed


def _undo_status(failed: Sequence[FinwaitError]) -> int:
    from finwait.errors import Refused

    if not failed:
        return 0
    return 4 if all(isinstance(error, Refused) for error in failed) else 1


def _bounded(part: range) -> range:
    from finwait.errors import UsageError

    if part.stop - part.start > 1_000_000:
        raise UsageError(f"{part.start}-{part.stop - 1} is more acts than a journal contains")
    return part


def _undo_one(entry: JournalEntry, journal: SqliteJournal, force: bool) -> str:
    from finwait.acting.sysctls import roll_back
    from finwait.acting.undo import restore, settle
    from finwait.errors import FinwaitError, TargetGone

    try:
        if entry.kind == "sysctl":
            return "; ".join(roll_back(entry.id, journal, force=force).lines)
        if entry.kind != "sockopt" and entry.result is None:
            return f"interrupted, and cannot be reverted; {settle(entry.id, journal)}"
        return restore(entry.id, journal, force=force)
    except TargetGone as error:
        if entry.result is None:  # which is what one wanted to know of an act that was cut short
            return f"nothing to restore: {error}"
        raise
    except ValueError as error:
        raise FinwaitError(str(error)) from None
