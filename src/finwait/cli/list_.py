"""``finwait list``: rows of connections, like ``ss -tanoeip`` and better."""

from __future__ import annotations

import argparse

from finwait.cli import options
from finwait.selecting import mask_of, parse_filter, users

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "list",
        help="connections as rows, in all namespaces, with owners",
        description="List the TCP connections of every network namespace, one per line. Changes nothing.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    options.add_output(parser, ("text", "wide", "json", "jsonl", "csv", "parquet", "arrow"))
    parser.add_argument(
        "--columns", metavar="A,B,…", help="columns to print, in order; `--columns help` lists all"
    )
    parser.add_argument("--no-headers", action="store_true", help="do not print the header line")
    parser.add_argument("--sort", metavar="COLUMN", help="sort by a column; `--sort=-COLUMN` for descending")
    parser.set_defaults(run=run, established_default="always")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import numpy as np

    from finwait import session
    from finwait.diagnosis import catalogue, engine, select
    from finwait.report import columns as cols
    from finwait.report import rows

    if args.columns == "help":
        from finwait.table.sockets import SCHEMA

        for name, doc in cols.DERIVED.items():
            print(f"{name:20} {doc}")
        for column in SCHEMA:
            print(f"{column.name:20} {column.doc}")
        return 0
    chosen = _columns(args)
    found = parse_filter(args.filter)
    if args.established == "auto":
        args.established = "always"
    # Rules and other ends look at rows that the filter leaves out: then the kernel must give them all.
    rules = found.asks_rules or bool({"rule", "also"} & set(chosen))
    whole = rules or bool({"other_end", "other_state", "conntrack"} & set(chosen)) or bool(args.recording)
    how = options.how(args) if whole else options.how(args, found.states, found.bytecode())
    shot = session.look(options.machine(args), how)
    findings: tuple[object, ...] = engine.diagnose(shot.view, catalogue.rules()) if rules else ()
    which = np.flatnonzero(mask_of(found, shot, findings if rules else None))  # type: ignore[arg-type]
    if not len(which):
        session.refuse_impossible(found, shot, users(shot))
    cells = cols.Cells(shot.view, which, findings)  # type: ignore[arg-type]
    if args.sort:
        which = which[_order(cells, args.sort)]
        cells = cols.Cells(shot.view, which, findings)  # type: ignore[arg-type]
    if args.output in ("text", "wide"):
        options.write(rows.text_lines(cells, chosen, headers=not args.no_headers))
    elif args.output == "csv":
        options.write(rows.csv_lines(cells, chosen, headers=not args.no_headers))
    elif args.output == "jsonl":
        options.write(rows.json_lines(cells, chosen))
    elif args.output == "json":
        body = ",".join(line.rstrip("\n") for line in rows.json_lines(cells, chosen))
        options.write(['{"apiVersion":"finwait/v1","kind":"ConnectionList","items":[', body, "]}\n"])
    else:
        from finwait.cli.printing import export

        export(args.output, shot.view, chosen, which, findings)
    unowned = select.unowned(found, shot.view)
    if not shot.view.holders.searched and {"rule", "also"} & set(chosen):
        options.tell_gaps(select.unjudged(catalogue.by_owners()))
    else:
        options.tell_gaps(unowned)
    options.tell_gaps(shot.gaps)
    return options.status((*unowned, *shot.gaps))


def _columns(args: argparse.Namespace) -> tuple[str, ...]:
    from finwait.errors import UsageError
    from finwait.report import columns as cols
    from finwait.report import rows

    if not args.columns:
        return rows.DEFAULT if args.output == "text" else rows.WIDE[:-1]
    chosen = tuple(name.strip() for name in args.columns.split(",") if name.strip())
    for name in chosen:
        if name not in cols.NAMES:
            import difflib

            near = difflib.get_close_matches(name, cols.NAMES, 1)
            hint = f"did you mean `{near[0]}`?" if near else "`--columns help` lists all"
            raise UsageError(f"`--columns`: there is no column `{name}`", hint=hint)
    return chosen


def _order(cells: object, name: str) -> list[int]:
    from finwait.errors import UsageError
    from finwait.report.columns import NAMES, Cells

    assert isinstance(cells, Cells)
    descending = name.startswith("-")
    name = name.lstrip("-")
    if name not in NAMES:
        raise UsageError(f"`--sort`: there is no column `{name}`", hint="`--columns help` lists all")
    values = cells.column(name)
    return sorted(range(len(values)), key=lambda k: (values[k] is None, values[k]), reverse=descending)
