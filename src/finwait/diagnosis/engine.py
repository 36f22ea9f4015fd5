"""Rules over a view → findings.

*Theory of operation.* Every rule marks the rows that it explains; a row may have several marks. Marked rows are
grouped by namespace, holding service (a process, or the workers of one server), case of the rule and what the rows
prove (`Rule.proven`), and each group is graded. The primary cause of a row is the gravest of its marks, and among
equally grave ones that of lowest rank: the most specific pattern (a relay's pair of legs before a half-close, an
expired NAT entry before both). A suspicion never hides a problem, however specific; a rule may only do so where it
names the rules of which it knows better (`Rule.softens`). What only the second of two looks saw is a suspicion too:
rows that may be on their way through their state are a group of their own, and no problem yet. A group of which some
rows have another primary cause is two findings, with evidence summarised from the columns that the rule names. Which
rows are asked for plays no part in that: a cause is the same in any FILTER.

*What this cannot see.* Whatever the view does not hold: the gaps of the look travel beside the findings and
are never turned into one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.diagnosis import moves
from finwait.diagnosis.finding import Evidence, Finding, Harm, Remedy, Severity
from finwait.diagnosis.hint import NOTHING_ASKED, Asked, aimed, command_of
from finwait.diagnosis.rule import Case, Clue, Match, Rule
from finwait.diagnosis.rules import just_seen, look_again
from finwait.diagnosis.view import View
from finwait.errors import Gap
from finwait.table.units import cell_text

__all__ = ["diagnose", "evidence", "flags_wanted", "gaps", "sorted_findings", "summarise", "with_flags"]

_SEVERITY = {"problem": 0, "notice": 1, "healthy": 2}


def diagnose(
    view: View,
    rules: Iterable[Rule],
    only: NDArray[np.bool_] | None = None,
    asked: Asked = NOTHING_ASKED,
) -> tuple[Finding, ...]:
    """Return what the rules find, the worst and newest first.

    Args:
        view: the sockets with all that was joined to them.
        rules: see `finwait.diagnosis.catalogue`.
        only: rows to report on; the others still serve as other ends, listeners and legs.
        asked: the FILTER that ``only`` comes from, and the options of the look, for the commands of remedies.
    """
    rules = tuple(rules)
    findings: list[Finding] = []
    marks: list[_Mark] = []
    best = np.full(len(view), _NONE, np.int64)
    # Those that take what is left over come last.
    ordered = sorted(enumerate(rules), key=lambda pair: (pair[1].rest, pair[0]))
    for rest in (False, True):
        new: list[_Mark] = []
        for order, rule in ordered:
            if rule.rest != rest:
                continue
            for rows, match in _marks(view, rule):
                kept = rows[best[rows] == _NONE] if rest else rows
                if len(kept):
                    new += _graded(view, rule, rule.rank * 1000 + order, kept, match)
                elif match is not None and not len(rows):
                    findings.append(_about(view, rule, match, rows, primary=True))
        _judge(new, best)
        marks += new
    for mark in marks:
        rows = mark.rows if only is None else mark.rows[only[mark.rows]]
        primary = best[rows] == mark.key
        parts = ((rows[primary], True), (rows[~primary], False))
        for part, is_it in parts:
            # What is healthy and another rule tells better needs no second word.
            if len(part) and (is_it or mark.severity != "healthy"):
                findings.append(_finding(view, mark, part, primary=is_it))
    return aimed(view, sorted_findings(view, findings), asked)


class _Mark(Struct, frozen=True):
    """Rows that a rule explains in the same words and with the same severity."""

    rule: Rule
    cause: int
    """The rule's place among all, by its rank."""
    severity: Severity
    rows: NDArray[np.int64]
    case: int = -1
    match: Match | None = None
    suspected: bool = False
    """Whether it would be a problem, but only the second of two looks saw its rows (`just_seen`)."""

    @property
    def key(self) -> int:
        """What decides between marks of a row: the lowest is its primary cause."""
        return _SEVERITY[self.severity] * _GRAVER + self.cause


def _judge(marks: list[_Mark], best: NDArray[np.int64]) -> None:
    """Write the key of the primary cause of each row that has a mark."""
    softened: dict[str, NDArray[np.bool_]] = {}
    for mark in marks:
        for name in mark.rule.softens:
            softened.setdefault(name, np.zeros(len(best), np.bool_))[mark.rows] = True
    for mark in marks:
        rows = mark.rows
        if mark.rule.name in softened:
            rows = rows[~softened[mark.rule.name][rows]]
        best[rows] = np.minimum(best[rows], mark.key)


def sorted_findings(view: View, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings: the gravest first, of those the most harmful, of those the newest."""
    return tuple(
        sorted(
            findings,
            key=lambda f: (
                _SEVERITY[f.severity],
                not f.primary,
                _HARM.index(f.harm),
                _age(view, f),
                -f.count,
                f.rule,
            ),
        )
    )


_HARM: Final[tuple[Harm, ...]] = ("outage", "stall", "leak", "residue")


_GRAVER = 1 << 32
"""More than any rank: severity decides first."""
_NONE = 1 << 40


def _marks(view: View, rule: Rule) -> Iterator[tuple[NDArray[np.int64], Match | None]]:
    """Return the rows that a rule marks, with the match that they belong to where the rule gives such."""
    if rule.match is not None:
        mask = rule.match(view)
        yield np.flatnonzero(mask if rule.untold else mask & ~view.undecided), None
    if rule.matches is not None:
        for match in rule.matches(view):
            rows = match.rows[~view.undecided[match.rows]]
            if len(rows) or not len(match.rows):
                yield rows, match


def _about(view: View, rule: Rule, match: Match, rows: NDArray[np.int64], *, primary: bool) -> Finding:
    """Return the finding of a match: rows that belong together, or something that has none."""
    return Finding(
        rule.name,
        rule.title,
        rule.severity,
        primary=primary,
        confidence=match.confidence or rule.confidence(view, rows),
        netns=match.netns,
        pids=(match.pid,) if match.pid else (),
        rows=rows,
        evidence=(*match.evidence, *evidence(view, rule.clues, rows)),
        ends_it=rule.ends,
        does_not=rule.does_not,
        subject=match.subject,
        turn=rule.turn,
        harm=rule.harm,
        cells=match.cells,
        ports=match.ports,
        count=match.count if not len(match.rows) else len(rows),
        counted=rule.counted,
    )


def gaps(view: View, rules: Iterable[Rule]) -> tuple[Gap, ...]:
    """Return what rules could not judge although it was there: columns that this kernel does not have, and holders."""
    unjudged = {gap for rule in rules if rule.unjudged is not None for gap in rule.unjudged(view)}
    if view.threads_unseen:
        unjudged.add(
            Gap("some threads", "find out whether they are closing a socket: there are too many", "")
        )
    return tuple(sorted(unjudged))


def _age(view: View, finding: Finding) -> int:
    ages = view.at_least_ms[finding.rows]
    ages = ages[ages >= 0]
    return int(ages.min()) if len(ages) else 1 << 60


def _graded(
    view: View, rule: Rule, cause: int, rows: NDArray[np.int64], match: Match | None
) -> Iterator[_Mark]:
    """Return the groups of the rows that a rule marks, each with its severity."""
    if match is not None:
        yield _Mark(rule, cause, rule.severity, rows, match=match)
        return
    nobody = np.zeros(len(rows), np.int64)
    waited = view.moves[rows] if rule.waited else nobody
    fresh = just_seen(view)[rows] & (not rule.counted)
    keys: tuple[NDArray[Any], ...]
    if rule.counted:
        keys = (view.sockets.netns[rows], nobody, nobody, _cases(view, rule, rows), nobody, waited)
    else:
        holder = _services(view, rows)
        shown = nobody if rule.proven is None else rule.proven(view, rows).astype(np.int64)
        cases = _cases(view, rule, rows)
        keys = (view.sockets.netns[rows], holder, _holder_sets(view, rows), cases, shown, waited)
    keys = (*keys, fresh)
    order = np.lexsort(keys[::-1])  # by namespace, then by holder; stable, so rows stay in order
    changes = np.zeros(len(rows), np.bool_)
    for key in keys:
        changes[1:] |= key[order[1:]] != key[order[:-1]]
    for part in np.split(order, np.flatnonzero(changes)):
        group = rows[part]
        severity = rule.grade(view, group) if rule.grade else rule.severity
        suspected = severity == "problem" and bool(fresh[part].all())
        case = keys[3][part[0]].item()
        yield _Mark(rule, cause, "notice" if suspected else severity, group, case, suspected=suspected)


def _finding(view: View, mark: _Mark, rows: NDArray[np.int64], *, primary: bool) -> Finding:
    """Return the finding of some rows of a group."""
    rule = mark.rule
    if mark.match is not None:
        return _about(view, rule, mark.match, rows, primary=primary)
    words = rule if mark.case < 0 else rule.cases[mark.case]
    # Newest first, unknown last.
    age = view.at_least_ms[rows]
    rows = rows[np.argsort(np.where(age < 0, np.iinfo(np.int64).max, age), kind="stable")]
    seen, ends = _seen(view, rule, words, rows)
    confidence = rule.confidence(view, rows)
    if mark.suspected:
        confidence = look_again(
            f"only the second of two looks saw {'it' if len(rows) == 1 else 'them'}, so "
            f"{'it' if len(rows) == 1 else 'they'} may be gone in a moment; check again with `--for 5s`; "
            f"{confidence.reason}"
        )
    return Finding(
        rule.name,
        words.title,
        mark.severity,
        primary,
        confidence,
        int(view.sockets.netns[rows[0]]),
        () if rule.counted else tuple(view.holders.counted(rows)),
        rows,
        seen,
        ends,
        words.does_not,
        count=len(rows),
        turn=words.turn or rule.turn,
        harm=rule.harm,
        variant=mark.case + 1,
        counted=rule.counted,
    )


def _seen(
    view: View, rule: Rule, words: Rule | Case, group: NDArray[np.int64]
) -> tuple[tuple[Evidence, ...], tuple[Remedy, ...]]:
    """Return the evidence of a group, and what ends it."""
    more = rule.observe(view, group) if rule.observe else ()
    waits = moves.evidence(view, group) if rule.waited else moves.released(view, group)
    ends = _fitting(view, group, rule.remedies(view, group) if rule.remedies else words.ends)
    # What decides comes first: who waits, where it is known; a column says the same of every row of the rule.
    known = waits if view.moves[group[0]] != _UNKNOWN_MOVE else ()
    return (*known, *evidence(view, words.clues, group), *more, *(waits if not known else ())), ends


def _fitting(view: View, rows: NDArray[np.int64], remedies: tuple[Remedy, ...]) -> tuple[Remedy, ...]:
    """Return what can be done to rows: of those that no process holds there is no descriptor, and none stays open."""
    if not len(rows) or view.held[rows].any():
        return remedies
    return tuple(
        replace(remedy, text=remedy.unheld or remedy.text) for remedy in remedies if not remedy.descriptor
    )


_UNKNOWN_MOVE: Final = [*moves.Move].index(moves.Move.UNKNOWN)
_FLAGS = 1000
"""Of so many descriptors of a finding the flags are read: a file for each."""


def flags_wanted(
    view: View, rules: Iterable[Rule], findings: Iterable[Finding]
) -> tuple[tuple[int, int], ...]:
    """Return the descriptors, as (pid, fd), of which findings tell the close-on-exec flag when it is known."""
    names = {rule.name for rule in rules if rule.flags}
    descriptors: dict[tuple[int, int], None] = {}
    for finding in findings:
        if finding.rule in names:
            pairs = (pair for row in finding.rows.tolist() for pair in view.holders.of(row))
            descriptors |= dict.fromkeys(islice(pairs, _FLAGS))
    return tuple(descriptors)


def with_flags(
    view: View, rules: Iterable[Rule], findings: Iterable[Finding], asked: Asked = NOTHING_ASKED
) -> tuple[Finding, ...]:
    """Return findings as a view tells them that knows the flags of `flags_wanted`."""
    by_name = {rule.name: rule for rule in rules if rule.flags}
    result = []
    for finding in findings:
        rule = by_name.get(finding.rule)
        if rule is not None:
            case = int(_cases(view, rule, finding.rows[:1])[0])
            seen, ends = _seen(view, rule, rule if case < 0 else rule.cases[case], finding.rows)
            ends = tuple(command_of(r, rule.name, finding.select, asked) for r in ends)
            finding = replace(finding, evidence=seen, ends_it=ends)
        result.append(finding)
    return tuple(result)


def _services(view: View, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the service of the first holder of each row, by its lowest pid; −1 where none was found."""
    pids, inverse = np.unique(view.holders.first_pid()[rows], return_inverse=True)
    of = view.services
    return np.array([of.get(pid, pid) for pid in pids.tolist()], np.int64)[inverse.reshape(-1)]


def _holder_sets(view: View, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number for each set of services of several processes; 0 where at most one process holds the row."""
    result = np.zeros(len(rows), np.int64)
    known: dict[tuple[int, ...], int] = {}
    holders, of = view.holders, view.services
    for k in np.flatnonzero(holders.several_processes()[rows]).tolist():
        begin = int(holders.start[rows[k]])
        pids = holders.pid[begin : begin + int(holders.count[rows[k]])].tolist()
        result[k] = known.setdefault(tuple(sorted({of.get(pid, pid) for pid in pids})), len(known) + 1)
    return result


def _cases(view: View, rule: Rule, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which case of the rule each row is, −1 for none."""
    result = np.full(len(rows), -1, np.int64)
    for number, case in reversed(tuple(enumerate(rule.cases))):
        result[case.rows(view)[rows]] = number
    return result


def evidence(view: View, clues: Iterable[Clue], rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Summarise the columns that a rule names over some rows; a column that no row has is left out."""
    result = []
    for clue in clues:
        text = summarise(view, clue.column, rows)
        if text is None and clue.column == "inode" and len(rows) and view.held[rows].all():
            result.append(_held_by_text(view, rows))
        if text is not None:
            source = view.sockets.schema[clue.column].source
            result.append(Evidence(clue.column, text, source, clue.says))
    return tuple(result)


def _held_by_text(view: View, rows: NDArray[np.int64]) -> Evidence:
    """Say how it is known that sockets are held whose inodes are not told."""
    if view.holder_found[rows].all():
        says = "a process is named for it, so a descriptor still refers to it: it is no orphan"
        return Evidence("holder", "named", "the PID column", says)
    says = "in this state and place a program holds it, whatever is named"
    return Evidence("state", "held", "the state, and the listeners", says)


def summarise(view: View, column: str, rows: NDArray[np.int64]) -> str | None:
    """Return the values of a column over rows: one value, a few with their counts, or a range."""
    if not len(rows):
        return None
    present = view.sockets.present(column)[rows]
    if not present.any():
        return None
    cells = view.sockets.column(column)[rows[present]]
    if column == "inode" and cells.all():
        return "≠ 0"  # which numbers they are matters to nobody here; `explain` and `list` have them
    if cells.dtype.kind != "S" and (
        column.endswith(("_ms", "_us", "bytes")) or column in ("rqueue", "wqueue")
    ):
        low, high = cell_text(column, cells.min().item()), cell_text(column, cells.max().item())
        text = low if low == high else f"{low} … {high}"
    else:
        values, counts = np.unique(cells, return_counts=True)
        if len(values) == 1:
            text = cell_text(column, values[0].item())
        elif len(values) <= 4:
            text = ", ".join(
                f"{cell_text(column, v.item())} ×{n}" for v, n in zip(values, counts.tolist(), strict=True)
            )
        else:
            low, high = cell_text(column, values[0].item()), cell_text(column, values[-1].item())
            text = f"{low} … {high} ({len(values)} values)"
    return text if present.all() else f"{text} (of {int(present.sum())} of {len(rows)})"
