"""How a diagnosis is printed in each format; no command of its own."""

from __future__ import annotations

import argparse
import sys

from finwait.cli import options

__all__ = ["export", "show"]


def show(args: argparse.Namespace, diagnosis: object) -> None:
    """Print a diagnosis in the format that was asked for."""
    from finwait.report import json, rows, text
    from finwait.report.columns import Cells
    from finwait.session import Diagnosis
    from finwait.table.units import printable

    assert isinstance(diagnosis, Diagnosis)
    view, findings = diagnosis.view, diagnosis.findings
    facts = diagnosis.snapshot.observation.facts
    if args.output in ("text", "wide"):
        who = printable(f"{facts.hostname or 'this machine'} (Linux {facts.kernel})")
        limit = 0 if args.all or args.output == "wide" else 5
        options.write(
            text.diagnosis(
                view,
                findings,
                diagnosis.gaps,
                who,
                style=options.style(args),
                limit=limit,
                narrowed=diagnosis.narrowed,
            )
        )
        return
    if args.output == "json":
        head = {
            "kernel": facts.kernel,
            "hostname": facts.hostname,
            "time": _when(facts.unix_ns),
            "boot_id": facts.boot_id,
        }
        options.write(json.diagnosis(view, findings, diagnosis.gaps, head, diagnosis.narrowed))
        return
    if args.output == "jsonl":
        options.write(json.diagnosis_lines(view, findings, diagnosis.gaps, diagnosis.narrowed))
        return
    import numpy as np

    primary = [f.rows for f in findings if f.primary and len(f.rows) and not f.counted]
    which = np.concatenate(primary) if primary else np.empty(0, np.int64)
    columns = ("rule", "also", *rows.WIDE[:-1], "age_at_least_s", "age_at_most_s")
    if args.output == "csv":
        options.write(rows.csv_lines(Cells(view, which, findings), columns))
    else:
        export(args.output, view, columns, which, findings)
    options.tell_gaps(diagnosis.gaps)  # rows have no place for them


def export(form: str, view: object, columns: object, which: object, findings: object) -> None:
    """Write Arrow or Parquet to standard output.

    Raises:
        FinwaitError: the ``export`` extra is not installed.
    """
    from finwait.errors import FinwaitError
    from finwait.report import arrow

    try:
        table = arrow.table(view, columns, which, findings)  # type: ignore[arg-type]
    except ImportError:
        error = FinwaitError(f"`-o {form}` needs arro3-core and arro3-io")
        error.hint = "pip install 'finwait[export]'"
        raise error from None
    (arrow.parquet if form == "parquet" else arrow.stream)(table, sys.stdout.buffer)


def _when(unix_ns: int) -> str:
    from datetime import UTC, datetime

    return (
        datetime.fromtimestamp(unix_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
