"""How a diagnosis is printed in each format; no command of its own."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from finwait.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from finwait.session import Diagnosis
    from finwait.uapi.observation import Facts

__all__ = ["export", "export_lists", "keep_numbers", "machine_head", "show"]


def show(args: argparse.Namespace, diagnosis: object) -> None:
    """Print a diagnosis in the format that was asked for."""
    from finwait.session import Diagnosis

    assert isinstance(diagnosis, Diagnosis)
    view, findings = diagnosis.view, diagnosis.findings
    facts = diagnosis.snapshot.observation.facts
    if args.output in ("text", "wide"):
        from finwait.report import text
        from finwait.table.units import printable

        kernel = f" (Linux {facts.kernel})" if facts.kernel else ""  # a text need not name it
        host = printable(f"{facts.hostname or 'this machine'}{kernel}")
        limit = 0 if args.all or args.output == "wide" else 5
        options.write(
            text.diagnosis(
                view,
                findings,
                diagnosis.gaps,
                host,
                style=options.style(args),
                limit=limit,
                details=0 if args.detail or args.output == "wide" else 3,
                narrowed=diagnosis.narrowed,
            )
        )
        return
    from finwait.report import json, rows
    from finwait.report.columns import Cells

    if args.output == "json":
        head = machine_head(facts)
        options.write(json.diagnosis(view, findings, diagnosis.gaps, head, diagnosis.narrowed))
        return
    if args.output == "jsonl":
        options.write(json.diagnosis_lines(view, findings, diagnosis.gaps, diagnosis.narrowed))
        return
    import numpy as np

    primary = [f.rows for f in findings if f.primary and len(f.rows) and not f.counted]
    selected = np.concatenate(primary) if primary else np.empty(0, np.int64)
    columns = ("rule", "also", *rows.WIDE[:-1], "age_at_least_s", "age_at_most_s")
    if args.output == "csv":
        options.write(rows.csv_lines(Cells(view, selected, findings), columns))
    else:
        export(args.output, view, columns, selected, findings)
    options.tell_gaps(diagnosis.gaps)  # rows have no place for them


def machine_head(facts: Facts) -> dict[str, str | None]:
    """Return what a document of a diagnosis says of the machine and the time."""
    return {
        "kernel": facts.kernel,
        "hostname": facts.hostname,
        "time": _when(facts.unix_ns) if facts.unix_ns else None,  # a text need not say when it was made
        "boot_id": facts.boot_id,
    }


def export(form: str, view: object, columns: object, selected: object, findings: object) -> None:
    """Write Arrow or Parquet to standard output.

    Raises:
        FinwaitError: the ``export`` extra is not installed.
    """
    from finwait.report import arrow

    with _exporting(form):
        table = arrow.table(view, columns, selected, findings)  # type: ignore[arg-type]
    (arrow.parquet if form == "parquet" else arrow.stream)(table, sys.stdout.buffer)


def export_lists(columns: Mapping[str, tuple[Sequence[Any], str]]) -> None:
    """Write columns as Parquet to standard output; see `finwait.report.arrow.of_lists`.

    Raises:
        FinwaitError: the ``export`` extra is not installed.
    """
    from finwait.report import arrow

    with _exporting("parquet"):
        table = arrow.of_lists(columns)
        arrow.parquet(table, sys.stdout.buffer)


@contextlib.contextmanager
def _exporting(form: str) -> Iterator[None]:
    from finwait.errors import FinwaitError

    try:
        yield
    except ImportError:
        error = FinwaitError(f"`-o {form}` needs arro3-core and arro3-io")
        error.hint = "pip install 'finwait[export]'"
        raise error from None


def _when(unix_ns: int) -> str:
    from datetime import UTC, datetime

    return (
        datetime.fromtimestamp(unix_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def keep_numbers(args: argparse.Namespace, diagnosis: Diagnosis) -> None:
    """Keep what the numbers of the overview stand for, for ``finwait explain N``."""
    import os
    import time

    from finwait import numbering
    from finwait.report.text import shown_groups

    groups = shown_groups(diagnosis.view, diagnosis.findings)
    recorded = os.path.abspath(args.recording) if args.recording else ""
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    numbering.keep(diagnosis.view, groups, now_ns=now_ns, recorded=recorded)
