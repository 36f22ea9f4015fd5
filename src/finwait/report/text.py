"""A diagnosis for a person at 3 a.m.: what is wrong, who holds it, what ends it, what does not.

First a headline, then an overview of one line a group, the most harmful first, then the first groups in full. At most
100 columns wide, readable without colour. Healthy patterns are counted in a line; what could not be seen is at the
end, always.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import catalogue
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.rules import established_unread
from finwait.report.detail import blocks, detail, states_text, where
from finwait.report.overview import overview
from finwait.report.style import PLAIN, Style, wrap
from finwait.table.units import duration_text
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

if TYPE_CHECKING:
    from finwait.diagnosis.numbered import Numbered
    from finwait.diagnosis.select import Narrowed
    from finwait.diagnosis.view import View
    from finwait.errors import Gap

__all__ = [
    "NOT_JUDGED",
    "diagnosis",
    "group",
    "headline",
    "not_judged",
    "not_seen",
    "partly_seen",
    "remarks",
    "shown_groups",
    "unjudged_hint",
    "unjudged_texts",
    "unowned",
]


def _extent(view: View, narrowed: Narrowed | None) -> tuple[int, str]:
    """Return how many connections are being told about, and where."""
    mask = view.sockets.state != tcp.LISTEN
    if narrowed is not None:
        mask = mask & narrowed.rows
    n = int(mask.sum())
    spaces = len(view.namespaces if narrowed is None else distinct(view.sockets.netns[mask]))
    where = "one network namespace" if spaces == 1 else f"{spaces} network namespaces"
    amount = f"{n} connection{'' if n == 1 else 's'}"
    if narrowed is None:
        return n, f"{amount} in {where}"
    return n, f"{amount} that the FILTER selects, in {where},"


def partly_seen(view: View, gaps: Sequence[Gap], narrowed: Narrowed | None) -> bool:
    """Return whether something was not seen or not judged, so that nothing vouches for all of it."""
    partly = bool(gaps) or _partly_judged(narrowed) or view.established_skipped > 0
    return partly or not view.holders.searched or _unread_so_far(view, narrowed) > 0


def unowned() -> str:
    """Return what a look without owners leaves out."""
    rules = ", ".join(catalogue.by_owners())
    return f"owners were not looked for (`--no-owners`): rules {rules} not judged, or only in part"


def headline(
    view: View,
    findings: Sequence[Finding],
    host: str,
    gaps: Sequence[Gap] = (),
    narrowed: Narrowed | None = None,
) -> str:
    """Return the sentence that everything else explains; with gaps it vouches only for what was seen.

    What one look cannot tell of data that keeps coming is said in a sentence of its own.
    """
    sentence = _headline(view, findings, host, gaps, narrowed)
    if not (coming := _unread_so_far(view, narrowed)):
        return sentence
    lies = "data is not read yet, and more passed a moment ago: `--for 5s` tells whether it is"
    return f"{sentence} On {coming} {'connection' if coming == 1 else 'connections'} {lies}."


def _headline(
    view: View, findings: Sequence[Finding], host: str, gaps: Sequence[Gap], narrowed: Narrowed | None
) -> str:
    shown = [f for f in findings if f.primary]
    problems = [f for f in shown if f.severity == "problem"]
    rows = [f.rows for f in problems if len(f.rows)]
    states = view.sockets.state[np.concatenate(rows)] if rows else np.empty(0, np.uint8)
    stuck = _stuck(states)
    lost = sum(f.count for f in problems if not len(f.rows))
    notices = sum(f.count for f in shown if f.severity == "notice")
    further = []
    if doors := int((states == tcp.LISTEN).sum()):
        further.append(
            f"{doors} {'listener has a full accept queue' if doors == 1 else 'listeners have full accept queues'}"
        )
    if lost:
        word = "descriptor" if lost == 1 else "descriptors"
        further.append(f"{lost} {word} of connections that are gone, and still open")
    more = "; ".join(further)
    n, seen = _extent(view, narrowed)
    if not n and not shown and narrowed is not None:
        _, all_of_it = _extent(view, None)
        open_ = "; it could not judge everything" if _partly_judged(narrowed) else ""
        return f"{host}: the FILTER selects no connection. Looked at: {all_of_it}{open_}."
    if stuck:
        bad = int((states != tcp.LISTEN).sum())
        summary = f"{bad} of {seen} {stuck[0] if bad == 1 else stuck[1]}"
        return f"{host}: {summary}; {more}." if more else f"{host}: {summary}."
    seen = seen.rstrip(",")
    if more:
        among = f" No stuck connection was found among {seen}." if n else ""
        return f"{host}: {more}.{among}"
    partly = partly_seen(view, gaps, narrowed)
    if untold := sum(f.count for f in shown if f.rule == "not-told"):
        rest = f"; {notices - untold} {'deserves' if notices - untold == 1 else 'deserve'} a look"
        return (
            f"{host}: what was read does not say whether {untold} of {seen} "
            f"{'is' if untold == 1 else 'are'} stuck{rest if notices > untold else ''}."
        )
    if notices:
        nothing = "nothing stuck was seen" if partly else "nothing is stuck"
        return (
            f"{host}: {nothing} among {seen}; {notices} {'deserves' if notices == 1 else 'deserve'} a look."
        )
    if gaps:
        return f"{host}: nothing wrong was seen in {seen}, but not everything could be seen."
    if _partly_judged(narrowed):
        return f"{host}: nothing wrong was seen in {seen}, but the FILTER could not judge everything."
    if view.established_skipped:
        return f"{host}: nothing wrong was seen in {seen}; ESTABLISHED ones were not looked at."
    if not view.holders.searched:
        return f"{host}: nothing wrong was seen in {seen}; owners were not looked for."
    if _unread_so_far(view, narrowed):
        return f"{host}: nothing wrong was seen in {seen}."
    return f"{host}: nothing is wrong. {seen[0].upper() + seen[1:]}; none fails to finish closing."


def _unread_so_far(view: View, narrowed: Narrowed | None) -> int:
    """Return on how many connections one look cannot tell whether their program reads what keeps coming."""
    rows = established_unread.undecided(view)
    return int((rows if narrowed is None else rows & narrowed.rows).sum())


def _partly_judged(narrowed: Narrowed | None) -> bool:
    return narrowed is not None and (bool(narrowed.unjudged) or narrowed.undecided is not None)


def _stuck(states: NDArray[np.uint8]) -> tuple[str, str] | None:
    """Return what is wrong with connections in some states, of one and of several; None where there are none.

    A listener is no connection, and one that is open has nothing to finish.
    """
    is_open = states == tcp.ESTABLISHED
    if not (states != tcp.LISTEN).any():
        return None
    if not is_open.any():
        return "does not finish closing", "do not finish closing"
    if (is_open | (states == tcp.LISTEN)).all():
        return "is open and stuck", "are open and stuck"
    return "", "do not finish closing, or are open and stuck"


def diagnosis(
    view: View,
    findings: Sequence[Finding],
    gaps: Sequence[Gap],
    machine: str,
    *,
    style: Style = PLAIN,
    limit: int = 5,
    details: int = 3,
    narrowed: Narrowed | None = None,
) -> Iterator[str]:
    """Return the lines of a diagnosis, in pieces.

    Args:
        view: the sockets.
        findings: what was found.
        gaps: what could not be seen.
        machine: the machine, for the headline.
        style: width and colour.
        limit: connections to show of each finding; 0 for all.
        details: groups to show in full; 0 for all.
        narrowed: the FILTER that the findings were narrowed by.
    """
    first = headline(view, findings, machine, gaps, narrowed)
    for line in textwrap.wrap(first, style.width, break_long_words=False, break_on_hyphens=False):
        yield style.paint(line, "bold") + "\n"
    groups = shown_groups(view, findings)
    if groups:
        yield "\n" + "\n".join(overview(view, groups, style)) + "\n"
    full = groups if details <= 0 else groups[:details]
    for text in _in_full(view, full, style, limit):
        yield "\n" + "\n".join(text) + "\n"
    if len(groups) > len(full):
        yield "\n" + "\n".join(_not_in_full(len(full) + 1, len(groups), style)) + "\n"
    tail = _tail(view, findings, style)
    if tail:
        yield "\n" + "\n".join(tail) + "\n"
    if narrowed is not None and narrowed.unjudged:
        yield "\n" + "\n".join(not_judged(view, narrowed, style)) + "\n"
    if gaps:
        yield from not_seen(gaps, style)


def not_seen(gaps: Iterable[Gap], style: Style, title: str = "Not seen:") -> Iterator[str]:
    """Return the lines that say what could not be seen."""
    yield "\n" + style.paint(title, "notice") + "\n"
    for gap in gaps:
        lines = textwrap.wrap(str(gap), style.width - 2, initial_indent="  ", subsequent_indent="    ")
        yield "\n".join(lines) + "\n"


def _in_full(
    view: View, groups: Iterable[Finding], style: Style, limit: int, *, numbered: bool = True
) -> Iterator[list[str]]:
    """Return the lines of each group; what would end it, and what would not, once for all that share it."""
    before: set[tuple[object, ...]] = set()
    for number, finding in enumerate(groups, 1):
        means = tuple((remedy.text, remedy.kind) for remedy in finding.ends_it)
        advice = (finding.rule, means, finding.does_not)
        yield detail(view, finding, style, limit, number=number if numbered else 0, again=advice in before)
        before.add(advice)


def group(
    view: View,
    findings: Sequence[Finding],
    kept: Numbered,
    age_s: float,
    style: Style = PLAIN,
    *,
    partly: bool = False,
) -> Iterator[str]:
    """Return the lines of a group of an earlier overview: what has changed since, and what is said of it now.

    Args:
        view: the sockets, now.
        findings: what is said of the group's connections now.
        kept: the group, as it was.
        age_s: how long ago that was.
        style: width and colour.
        partly: whether some of it could not be looked for: then what was not found need not have ended.
    """
    main = [f for f in findings if f.primary]
    count = sum(f.count for f in main)
    when = duration_text(round(1000 * age_s))
    head = f"Group {kept.number}, {when} ago: {kept.count} × {kept.rule}."
    if not count:
        head += (
            " None of it was found, but not everything was looked at."
            if partly
            else " Nothing of it is left."
        )
    elif not kept.cookies:
        head += "" if count == kept.count else f" Now {count}: which of them are the same is not known."
    elif count != kept.count:
        seen = "was found" if partly else "is still there"
        several = "were found" if partly else "are still there"
        head += f" {count} of them {seen if count == 1 else several}."
    head += _causes_now(main, kept)
    yield (
        "\n".join(
            style.paint(line, "bold") for line in textwrap.wrap(head, style.width, break_on_hyphens=False)
        )
        + "\n"
    )
    for lines in _in_full(view, blocks(view, main), style, 20, numbered=False):
        yield "\n" + "\n".join(lines) + "\n"
    also = Counter(f.rule for f in findings if not f.primary)
    if also:
        yield (
            "\n"
            + "\n".join(wrap("Also", f"matching as a secondary cause: {', '.join(also)}", style.width))
            + "\n"
        )
    for rule in dict.fromkeys(f.rule for f in main):
        yield f"\n`finwait explain {rule}` has the page of this cause.\n"


def _causes_now(findings: Sequence[Finding], kept: Numbered) -> str:
    """Return what is said of a group whose connections have other causes than it had: each cause, with its count."""
    causes: Counter[str] = Counter()
    for f in findings:
        causes[f.rule] += f.count
    if not causes.keys() - {kept.rule}:
        return ""
    if len(causes) == 1:
        return f" The cause is now {next(iter(causes))}."
    counts = [f"{rule} ({n})" for rule, n in causes.most_common()]
    return f" The causes are now {', '.join(counts[:-1])} and {counts[-1]}."


def shown_groups(view: View, findings: Sequence[Finding]) -> list[Finding]:
    """Return the groups that a diagnosis shows; a group's number is its place here, from 1 on."""
    return blocks(view, (f for f in findings if f.primary and f.severity != "healthy"))


def _not_in_full(first: int, last: int, style: Style) -> list[str]:
    """Say how to see the groups of which only the overview tells."""
    groups = f"Group {first} has" if first == last else f"Groups {first} to {last} have"
    how = f"`finwait explain {first}` shows one in full, `--detail` shows all"
    return textwrap.wrap(f"{groups} a line above; {how}.", style.width, break_on_hyphens=False)


def not_judged(view: View, narrowed: Narrowed, style: Style) -> list[str]:
    """Return what a FILTER could not judge, a line each, and how to see it."""
    lines = [style.paint(f"{NOT_JUDGED}:", "notice")]
    lines += [
        line for text in unjudged_texts(view, narrowed) for line in wrap("", text, style.width, indent=2)
    ]
    return lines + wrap("", unjudged_hint(narrowed), style.width, indent=2)


NOT_JUDGED: Final = "Not judged, because the FILTER uses values that are not known for them"


def unjudged_texts(view: View, narrowed: Narrowed) -> list[str]:
    """Return what a FILTER could not judge, a text each."""
    counted: Counter[str] = Counter()
    for f in narrowed.unjudged:
        subject = f.subject or f"in {where(view, f)}"
        counted[f"{states_text(view, f)}  {f.rule}  {subject}"] += 1
    return [text + (f" (×{n})" if n > 1 else "") for text, n in counted.most_common()]


def unjudged_hint(narrowed: Narrowed) -> str:
    """Return how to see what a FILTER could not judge."""
    return f"`finwait rule = {','.join(sorted({f.rule for f in narrowed.unjudged}))}` shows them."


def _tail(view: View, findings: Sequence[Finding], style: Style) -> list[str]:
    return [line for label, text in remarks(view, findings) for line in wrap(label, text, style.width)]


def remarks(view: View, findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """Return what is said beside the groups, each with its label: other causes, what is healthy, what was left out."""
    lines: list[tuple[str, str]] = []
    also: Counter[str] = Counter()
    for f in findings:
        if not f.primary:
            also[f.rule] += f.count
    if also:
        text = ", ".join(f"{rule} ({n})" for rule, n in also.most_common())
        lines.append(("Also", f"matching as a secondary cause: {text}"))
    healthy: Counter[tuple[str, str]] = Counter()
    for f in findings:
        if f.primary and f.severity == "healthy":
            healthy[f.rule, f.title] += f.count
    lines += [("Healthy", f"{n} × {rule}: {title}") for (rule, title), n in healthy.most_common()]
    if not view.holders.searched:
        lines.append(("Left out", unowned()))
    if view.established_skipped:
        text = (
            f"about {view.established_skipped} sockets in namespaces whose ESTABLISHED ones were left out; "
            "`--established always` includes them"
        )
        lines.append(("Left out", text))
    return lines
