"""``finwait list``: rows of connections, like ``ss -tanoeip`` and better."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from finwait.cli import options
from finwait.selecting import mask_of, parse_filter, undecided, users

if TYPE_CHECKING:
    from collections.abc import Iterable

    from finwait.errors import Gap
    from finwait.report.columns import Cells

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
    options.add_watch(parser)
    options.add_output(parser, ("text", "wide", "json", "jsonl", "csv", "parquet", "arrow"))
    parser.add_argument(
        "--columns", metavar="A,B,…", help="columns to print, in order; `--columns help` lists all"
    )
    parser.add_argument("--no-headers", action="store_true", help="do not print the header line")
    parser.add_argument("--sort", metavar="COLUMN", help="sort by a column; `--sort=-COLUMN` for descending")
    parser.set_defaults(run=run, established_default="always")


_ASKED = frozenset(
    {"waited", "waiting", "keepalive", "user_timeout_ms", "linger", "linger2_s", "ends", "outlook"}
)
"""Columns for which programs are asked, beyond the kernel's tables."""


def run(args: argparse.Namespace) -> int:
    """Run the command, once or again and again."""
    return options.repeated(args, _once)


def _once(args: argparse.Namespace) -> int:
    import numpy as np
    from msgspec.structs import replace

    from finwait import session
    from finwait.diagnosis import catalogue, engine, select
    from finwait.report import columns as cols
    from finwait.report import rows

    if args.columns == "help":
        return _columns_help(args)
    chosen = _columns(args)
    row_filter = parse_filter(args.filter)
    if args.established == "auto":
        args.established = "always"
    # Rules and other ends look at rows that the filter leaves out: then the kernel must give them all.
    rules = row_filter.asks_rules or bool({"rule", "also"} & set(chosen))
    whole = rules or bool({"other_end", "other_state", "conntrack"} & set(chosen)) or bool(args.recording)
    look = options.how(args) if whole else options.how(args, row_filter.states, row_filter.bytecode())
    ask = bool(_ASKED & set(chosen)) or bool(row_filter.needs & {"waited", "thread", "ends"})
    unfinished = rules or (
        args.output in ("json", "jsonl") and not args.columns
    )  # `waited_on`, `options`, `forecast`
    look = replace(look, waits="everything" if ask else "unfinished" if unfinished else "nothing")
    shot = session.look(options.machine(args), look)
    findings: tuple[object, ...] = engine.diagnose(shot.view, catalogue.rules()) if rules else ()
    mask = mask_of(row_filter, shot, findings if rules else None)  # type: ignore[arg-type]
    selected = np.flatnonzero(mask)
    why = undecided(row_filter, shot, findings if rules else None, mask, listeners=True)  # type: ignore[arg-type]
    unjudged = (why,) if why is not None else ()
    if not len(selected) and why is None:
        session.refuse_impossible(row_filter, shot, users(shot))
    cells = cols.Cells(shot.view, selected, findings)  # type: ignore[arg-type]
    if args.sort:
        selected = selected[_order(cells, args.sort)]
        cells = cols.Cells(shot.view, selected, findings)  # type: ignore[arg-type]
    if args.output in ("text", "wide"):
        options.write(rows.text_lines(cells, chosen, headers=not args.no_headers))
    elif args.output == "csv":
        options.write(rows.csv_lines(cells, chosen, headers=not args.no_headers))
    elif args.output in ("json", "jsonl"):
        _json(args, cells, chosen, (*unjudged, *shot.gaps))
    else:
        from finwait.cli.printing import export

        export(args.output, shot.view, chosen, selected, findings)
    if not shot.view.holders.searched and {"rule", "also"} & set(chosen):
        options.tell_gaps(select.unjudged(catalogue.by_owners()))
    else:
        options.tell_gaps(unjudged)
    options.tell_gaps(shot.gaps)
    return options.status((*unjudged, *shot.gaps))


def _json(args: argparse.Namespace, cells: Cells, chosen: tuple[str, ...], gaps: Iterable[Gap]) -> None:
    """Print connections in the shape of every document; with `--columns` those columns and nothing else."""
    from finwait.report import json, rows
    from finwait.report.shape import API_VERSION, encoded, gap

    if not args.columns:
        options.write(
            json.connection_list(cells, gaps)
            if args.output == "json"
            else (f"{line}\n" for line in json.listed(cells))
        )
    elif args.output == "jsonl":
        options.write(rows.json_lines(cells, chosen))
    else:
        body = ",".join(line.rstrip("\n") for line in rows.json_lines(cells, chosen))
        tail = encoded([gap(entry) for entry in gaps]).rstrip("\n")
        options.write(
            [
                f'{{"apiVersion":"{API_VERSION}","kind":"ColumnsOfConnections","items":[',
                body,
                f'],"gaps":{tail}}}\n',
            ]
        )


def _columns_help(args: argparse.Namespace) -> int:
    """List the columns that there are."""
    from finwait.report.shape import document, encoded
    from finwait.table.derived import DERIVED
    from finwait.table.sockets import SCHEMA

    named = {name: column.doc for name, column in DERIVED.items()} | {
        column.name: column.doc for column in SCHEMA
    }
    if args.output in ("json", "jsonl"):
        items = [{"name": name, "doc": doc} for name, doc in named.items()]
        options.write([encoded(document("ColumnList", {"items": items}))])
    else:
        options.write(f"{name:20} {doc}\n" for name, doc in named.items())
    return 0


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
