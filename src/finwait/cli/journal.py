"""``finwait journal`` and ``finwait undo``: what was done to this machine, and taking it back."""

from __future__ import annotations

import argparse
import sys

__all__ = ["add_parser", "run", "undo"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register both commands."""
    parser = sub.add_parser(
        "journal",
        help="what finwait did to this machine, newest first",
        description="List every act: when, who, what, to which connection or setting, and what came of it. Acts "
        "that were begun and never finished (a crash) are marked.",
    )
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="how many (default 50)")
    parser.add_argument(
        "--incomplete", action="store_true", help="only acts that were begun and never finished"
    )
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="format (default text)"
    )
    parser.set_defaults(run=run)
    back = sub.add_parser(
        "undo",
        help="take back an act of the journal, where that is possible",
        description="Put back what an act changed: socket options, sysctls. What was sent stays sent.",
    )
    back.add_argument("act", type=int, metavar="ID", help="number of the act; see `finwait journal`")
    back.set_defaults(run=undo)


def run(args: argparse.Namespace) -> int:
    """List the journal."""
    from datetime import UTC, datetime

    import msgspec

    from finwait.kernel.journal import SqliteJournal, state_directory

    if not (state_directory() / "journal.sqlite").exists() and not list(state_directory().glob("journal*")):
        if args.output == "json":
            sys.stdout.write('{"apiVersion":"finwait/v1","kind":"JournalEntryList","items":[]}\n')
        else:
            sys.stderr.write("finwait: the journal is empty: nothing was ever done here\n")
        return 0
    with SqliteJournal(read_only=True) as journal:
        cut = {e.id for e in journal.incomplete()}
        entries = journal.incomplete() if args.incomplete else journal.entries(limit=args.limit)
    if args.output == "json":
        out = {"apiVersion": "finwait/v1", "kind": "JournalEntryList", "items": entries}
        sys.stdout.write(msgspec.json.encode(out).decode() + "\n")
        return 0
    for e in entries:
        when = datetime.fromtimestamp(e.started_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        what = e.target.get("connection") or e.target.get("netns") or ""
        result = e.result or {}
        said = (
            result.get("error")
            or result.get("result")
            or ("cut short: `finwait undo`" if e.id in cut else "…")
        )
        undone = f"  (undone by {e.undone_by})" if e.undone_by else ""
        sys.stdout.write(f"{e.id:>5}  {when}  {e.user:<10} {e.kind:<10} {what}  {e.why}: {said}{undone}\n")
    return 0


def undo(args: argparse.Namespace) -> int:
    """Take back an act."""
    from finwait import acting
    from finwait.cli.tune import roll_back
    from finwait.errors import FinwaitError
    from finwait.kernel.journal import SqliteJournal

    with SqliteJournal() as journal:
        try:
            entry = journal.get(args.act)
            if entry.kind == "sysctl":
                roll_back(args.act, journal)
                sys.stdout.write(f"put back the settings of act {args.act}\n")
            else:
                sys.stdout.write(acting.restore(args.act, journal) + "\n")
        except ValueError as error:
            raise FinwaitError(str(error)) from None
    return 0
