"""The first line of the live view: which machine, how many connections, how many are stuck, and where that goes."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from typing import Final

from rich.cells import cell_len, set_cell_size

from finwait.report.history import History
from finwait.report.painted import Line, plain
from finwait.report.sparkline import graph, sparkline
from finwait.table.units import printable
from finwait.tui.past import connections_of
from finwait.uapi import tcp
from finwait.watching import Picture

__all__ = ["header", "past", "per_minute", "trend", "waiting"]

_BETWEEN: Final = ("  ", "")


def per_minute(rate: float) -> str:
    """Return a rate a minute in a few characters."""
    size = abs(rate)
    return f"{size:.1f}" if 0 < size < 9.95 else f"{size:,.0f}"


def trend(rate: float | None) -> tuple[str, str, str]:
    """Return an arrow, a word and a role for a number that is better small; empty where its trend is not known."""
    if rate is None:
        return "", "", ""
    if abs(rate) < 0.05:
        return "=", "steady", "dim"
    return ("▲", "rising", "problem") if rate > 0 else ("▼", "falling", "healthy")


def header(
    picture: Picture, stuck: int | None, numbers: History, problems: History, width: int, others: int = 0
) -> Line:
    """Return the line; what fits least is left out first.

    Args:
        picture: what is shown.
        stuck: connections that are problems; None before the first diagnosis.
        numbers: by ``connections``, how many there were.
        problems: by ``stuck``, of each diagnosis.
        width: cells.
        others: problems that are not about connections.
    """
    for line in _forms(picture, stuck, numbers, problems, width, others):
        if cell_len(plain(line)) <= width:
            break
    return line


def _forms(
    picture: Picture, stuck: int | None, numbers: History, problems: History, width: int, others: int
) -> Iterator[Line]:
    """Yield the line in full, then with less and less."""
    diagnosis = picture.diagnosis
    host = printable(diagnosis.snapshot.observation.facts.hostname) if diagnosis is not None else ""
    total, doors = connections_of(picture.counts), picture.counts.get(tcp.LISTEN, 0)
    partly = _partly(picture)
    span = picture.circumstances.span_s
    arrow, word, role = trend(problems.per_minute("stuck"))
    rate = problems.per_minute("stuck") or 0.0

    def line(logo: bool, sparks: tuple[int, int], words: bool, name: int, *, listeners: bool = False) -> Line:
        out: Line = [(" finwait ", "active"), _BETWEEN] if logo else []
        if host and name:
            out += [
                (host if cell_len(host) <= name else set_cell_size(host, name - 1) + "…", "bold"),
                _BETWEEN,
            ]
        # As `finwait` counts: a listener is no connection.
        out.append((f"{total:,} connection{'' if total == 1 else 's'}", ""))
        if listeners and doors:
            out.append((f", {doors:,} listener{'' if doors == 1 else 's'}", "dim"))
        if (counted := picture.circumstances.counted_s_ago) is not None:
            out.append((_age(counted, words), "dim"))
        if sparks[0]:
            out += [
                (" ", ""),
                (sparkline(numbers.levels("connections", sparks[0], span), sparks[0]), "accent"),
            ]
        old = picture.circumstances.diagnosed_s_ago
        out += [_BETWEEN, _stuck(stuck, others, partly, words)]
        if stuck is not None and old is not None:  # the number of sockets may be newer
            out.append((_age(old, words), "dim"))
        if sparks[1]:
            role_of = "problem" if stuck else "dim"
            out += [(" ", ""), (sparkline(problems.levels("stuck", sparks[1], span), sparks[1]), role_of)]
        if arrow:
            text = f"{arrow} {word} {per_minute(rate)}/min" if words else f"{arrow}{per_minute(rate)}/min"
            if arrow == "=":
                text = f"{arrow} {word}" if words else arrow
            out += [_BETWEEN if words else (" ", ""), (text, role)]
        if words and diagnosis is not None and (gaps := len(diagnosis.gaps)):
            out += [_BETWEEN, (f"{gaps} part{'' if gaps == 1 else 's'} not seen", "notice")]
        return out

    for listeners in (True, False):
        most = max((width - cell_len(plain(line(True, (1, 1), True, 40, listeners=listeners)))) // 2 + 1, 0)
        for cells in (60, 40, 30, 20, 12):
            if cells <= most:
                yield line(True, (min(cells, 30), cells), True, 40, listeners=listeners)
    yield line(True, (8, 8), True, 40)
    yield line(False, (0, 12), True, 30)
    yield line(False, (0, 8), True, 20)
    yield line(False, (0, 6), False, 20)
    for name in (20, 12, 8, 6, 0):
        yield line(False, (0, 0), False, name)


def _partly(picture: Picture) -> bool:
    """Return whether something may be stuck that was not seen, or not judged."""
    diagnosis = picture.diagnosis
    if diagnosis is None:
        return picture.circumstances.row_filter is not None
    if diagnosis.gaps or diagnosis.view.established_skipped:
        return True
    if picture.circumstances.row_filter is None:
        return False
    narrow = diagnosis.narrowed
    return narrow is None or bool(narrow.unjudged) or narrow.undecided is not None or not narrow.rows.any()


def waiting(doing: str, seconds: float, width: int) -> Line:
    """Return the first line before the first picture: what it waits for, and for how long."""
    text = f"{doing or 'beginning'} … {seconds:.0f} s"
    long: Line = [(" finwait ", "active"), _BETWEEN, (text, "")]
    return long if cell_len(plain(long)) <= width else [(text, "")]


def _age(seconds: float, words: bool) -> str:
    return f" {seconds:.0f} s ago" if words else f" {seconds:.0f}s ago"


def _stuck(stuck: int | None, others: int, partly: bool, words: bool) -> tuple[str, str]:
    if stuck is None:
        return ("? stuck: diagnosing …" if words else "? stuck"), "dim"
    if stuck:
        return f"✗ {stuck:,} stuck{f' +{others}' if others else ''}", "problem"
    if others:
        return f"✗ {others} problem{'' if others == 1 else 's'}", "problem"
    # What could not be seen may be stuck: no all-clear.
    return ("? none seen stuck", "notice") if partly else ("✓ 0 stuck", "healthy")


def past(numbers: History, problems: History, span_s: float, width: int, height: int) -> list[Line]:
    """Return the connections and those that are stuck over the past, as two graphs beside each other.

    Args:
        numbers: as of `header`.
        problems: … and these.
        span_s: how much of the past.
        width: cells.
        height: lines of the graphs; a line above says what they show.
    """
    each = (width - 2) // 2
    minutes = f"{span_s / 60:.0f} min" if span_s >= 120 else f"{span_s:.0f} s"
    sides: list[list[tuple[str, str]]] = []
    for ring, name, role in ((numbers, "connections", "accent"), (problems, "stuck", "problem")):
        levels = ring.levels(name, each, span_s)
        known = [number for number in levels if number is not None and not isnan(number)]
        bounds = f"{min(known):,.0f} to {max(known):,.0f}" if known else "not known yet"
        title = f"─ {name}: {bounds}, last {minutes} "[:each].ljust(each, "─")
        sides.append([(title, "dim"), *((text, role) for text in graph(levels, each, height))])
    return [[left, _BETWEEN, right] for left, right in zip(*sides, strict=True)]
