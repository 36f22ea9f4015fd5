"""The parts of a report: the overview, the states, each group, settings, what was not seen, versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from finwait.diagnosis.finding import Evidence, Remedy
from finwait.errors import Gap
from finwait.remedy.settings.model import Verdict
from finwait.report.account import LISTED, LONGEST_COMMAND, Account, ConnectionShown, GroupShown, when
from finwait.report.agent_page import CountsDocument
from finwait.report.html.element import Child, Element, el, prose
from finwait.report.html.figures import MOST_LINES, Series, diagram, others, over_time, wire
from finwait.report.past import AgentPast, PastEpisode
from finwait.report.tune import InForce
from finwait.report.two_ends import EndShown, TwoEnds
from finwait.table.states_then import StatesThen
from finwait.table.units import duration_text
from finwait.uapi import tcp

__all__ = ["gaps", "group", "history", "overview", "remarks", "settings", "sign", "states", "versions"]

SIGNS: Final = {"problem": "✗", "notice": "▲", "fine": "✓", "healthy": "✓", "unsure": "?"}
"""What stands before a severity, so that its colour says nothing alone."""
SETTINGS_MOST: Final = 100
"""Settings with one verdict that are shown, and things that a FILTER could not judge."""


def sign(severity: str) -> Element:
    """Return the sign of a severity, for who sees it."""
    return el("span", SIGNS[severity], class_=f"sign {severity}", aria_hidden="true")


def table(
    caption: Child,
    heads: Sequence[str],
    rows: Iterable[Sequence[Child]],
    *,
    right: Sequence[int] = (),
    kind: str = "",
    cards: bool = True,
) -> Element:
    """Return a table whose rows become cards on a narrow screen.

    Args:
        caption: what it is.
        heads: titles of the columns.
        rows: cells; the first of each names the row.
        right: columns of numbers.
        kind: of which table it is, for the style sheet.
        cards: whether rows become cards where there is no room for columns.
    """
    made = []
    for row in rows:
        cells = []
        for k, (head, cell) in enumerate(zip(heads, row, strict=True)):
            align = "num" if k in right else None
            if k == 0:
                cells.append(
                    el("th", el("span", cell), scope="row", role="rowheader", class_=align, data_label=head)
                )
            else:
                cells.append(el("td", el("span", cell), role="cell", class_=align, data_label=head))
        made.append(el("tr", cells, role="row"))
    head_cells = [
        el("th", head, scope="col", role="columnheader", class_="num" if k in right else None)
        for k, head in enumerate(heads)
    ]
    return el(
        "table",
        el("caption", caption),
        el("thead", el("tr", head_cells, role="row"), role="rowgroup"),
        el("tbody", made, role="rowgroup"),
        role="table",
        class_=f"{'cards' if cards else ''} {kind}".strip() or None,
    )


def overview(account: Account, full: int) -> Element:
    """Return the section with a line for each group.

    Args:
        account: what is said.
        full: groups that are shown in full below.
    """
    shown = min(len(account.groups), LISTED)
    rows = []
    for k, finding in enumerate(account.groups[:shown]):
        number: Child = el("a", f"{k + 1}", href=f"#group-{k + 1}") if k < full else f"{k + 1}"
        severity: Child = [sign(finding.severity), el("span", finding.severity, class_=finding.severity)]
        cells = (el("code", c.texts[k]) if c.code else c.texts[k] for c in account.overview)
        rows.append([number, severity, *cells])
    heads = ["group", "severity", *(column.title for column in account.overview)]
    right = [k for k, column in enumerate(account.overview, 2) if column.right]
    more = len(account.groups) - shown
    return _section(
        "groups",
        "Groups",
        el(
            "div",
            table(
                "Connections of one cause, holder and place, the most harmful first",
                heads,
                rows,
                right=right,
                kind="overview",
            ),
            el(
                "p",
                prose(
                    f"{more:,} more groups are not in this file; `finwait diagnose -o json` has all of them."
                ),
                class_="muted",
            )
            if more
            else None,
            class_="panel",
        ),
    )


def _section(place: str, title: str, *children: Child) -> Element:
    return el(
        "section", el("h2", title, id=f"{place}-title"), children, id=place, aria_labelledby=f"{place}-title"
    )


# ── states ───────────────────────────────────────────────────────────────────────────────────────────────


def states(account: Account) -> Element:
    """Return the section with the diagram of the states, and counts over time where there are any."""
    course = _course(account.moments)
    rest = others(account.states)
    figure = el(
        "figure",
        el(
            "div",
            diagram(account.states),
            class_="scroll",
            tabindex=0,
            role="region",
            aria_label="Diagram of the states",
        ),
        el("figcaption", account.states_note, f" Also {rest}." if rest else None),
        class_=None if course else "alone",
    )
    return _section("states", "States", el("div", el("div", figure, course, class_="split"), class_="panel"))


def _course(moments: Sequence[StatesThen]) -> Element | None:
    """Return how the counts changed from look to look; None of one look."""
    if len(moments) < 2:
        return None
    first, last = moments[0].counts, moments[-1].counts
    present = [s for s in tcp.STATES if s != tcp.LISTEN and any(m.counts.get(s) for m in moments)]
    present.sort(key=lambda s: -max(m.counts.get(s, 0) for m in moments))
    seconds = (moments[-1].unix_ns - moments[0].unix_ns) / 1e9
    rows: list[list[Child]] = []
    for state in present:
        change = last.get(state, 0) - first.get(state, 0)
        sign_ = f"{change:+,}".replace("-", "−") if change else "0"
        rows.append(
            [el("code", tcp.state_name(state)), f"{first.get(state, 0):,}", f"{last.get(state, 0):,}", sign_]
        )
    caption = f"{len(moments)} looks, {seconds:.1f} s from the first to the last"
    counted = table(caption, ["state", "first", "last", "change"], rows, right=(1, 2, 3), cards=False)
    series = [Series(tcp.state_name(s), [m.counts.get(s, 0) for m in moments]) for s in present[:MOST_LINES]]
    times = [m.unix_ns / 1e9 for m in moments]
    ends = ("first look", f"+{seconds:.1f} s")
    shown = len(moments) > 2 and series
    chart = over_time("looks", "Sockets in each state over time", times, series, ends) if shown else None
    return el("div", el("h3", "Over time"), chart, counted)


# ── a group ──────────────────────────────────────────────────────────────────────────────────────────────


def group(shown: GroupShown) -> Element:
    """Return a group in full."""
    f, place = shown.finding, f"group-{shown.number}"
    title = f.headline[0].upper() + f.headline[1:] + "."
    return el(
        "article",
        el(
            "p",
            sign(f.severity),
            el("span", f.severity, class_=f.severity),
            f" · group {shown.number} · in {shown.where}",
            class_="eyebrow",
        ),
        el("h2", f"{shown.states} ", el("code", f.rule), id=f"{place}-title"),
        el("p", prose(title), class_="lead"),
        el("dl", [(el("dt", label), el("dd", prose(text))) for label, text in shown.facts], class_="facts"),
        _pictures(shown.pictures),
        _evidence(f.evidence),
        _means(shown),
        _connections(shown),
        _by_hand(shown),
        class_=f"group is-{f.severity}",
        id=place,
        aria_labelledby=f"{place}-title",
    )


def _pictures(pictures: Sequence[TwoEnds]) -> Child:
    if not pictures:
        return None
    return [el("h3", "Both ends"), el("div", [_picture(picture) for picture in pictures], class_="pictures")]


def _picture(picture: TwoEnds) -> Element:
    caption = (
        None
        if picture.count == picture.of
        else el("figcaption", f"{picture.count:,} of {picture.of:,} connections")
    )
    return el(
        "figure",
        caption,
        el(
            "div",
            _end(picture.here),
            el(
                "div",
                el("div", wire(picture.ours), el("p", picture.ours.label)),
                el("div", wire(picture.theirs, back=True), el("p", picture.theirs.label)),
                class_="between",
            ),
            _end(picture.there),
            class_="two",
        ),
    )


def _end(end: EndShown) -> Element:
    return el(
        "div",
        el("h4", end.title, el("span", " · its move", class_="move") if end.moves else None),
        el("p", end.state or "state not known", class_="state"),
        el("dl", [(el("dt", label), el("dd", text)) for label, text in end.lines]),
        class_="end moves" if end.moves else "end",
    )


def _evidence(evidence: Sequence[Evidence]) -> Child:
    if not evidence:
        return None
    rows: list[list[Child]] = [
        [el("code", e.column), e.value, el("span", prose(e.says)), e.read_from] for e in evidence
    ]
    return [
        el("h3", "Evidence"),
        table(
            "What was read, and what it says",
            ["column", "value", "which says", "read from"],
            rows,
            kind="evidence",
        ),
    ]


def command(text: str) -> Element:
    """Return a command as it has to be typed; one that names very many connections is only begun."""
    if len(text) <= LONGEST_COMMAND:
        words = text.split(" ")  # a line ends between two words, not at a hyphen of one
        parts = [
            (el("span", word, class_="w"), " " if k < len(words) else None) for k, word in enumerate(words, 1)
        ]
        return el("code", parts, class_="command")
    begin = " ".join(text.split(" ")[:2])
    return el(
        "p",
        el("code", f"{begin} …"),
        ": it names each connection by its cookie; `finwait -o json` has it",
        class_="muted",
    )


def _means(shown: GroupShown) -> Child:
    parts: list[Child] = []
    if shown.ends_it:
        parts += [
            el("h3", "What ends it"),
            el("ul", [_remedy(remedy) for remedy in shown.ends_it], class_="means"),
        ]
    if shown.does_not:
        advice = [(el("dt", prose(a.text)), el("dd", prose(a.reason))) for a in shown.does_not]
        parts += [el("h3", "What does not help"), el("dl", advice, class_="not")]
    elif shown.as_before and shown.finding.does_not:
        parts += [el("p", "What does not help: as for the group of this cause above.", class_="muted")]
    return parts


def _remedy(remedy: Remedy) -> Element:
    severity = {"destructive": "problem", "reversible": "notice"}.get(remedy.kind, "")
    chip = el("span", remedy.kind, class_=f"chip {severity}".rstrip()) if remedy.kind != "advice" else None
    return el("li", el("p", prose(remedy.text), chip), command(remedy.command) if remedy.command else None)


def _connections(shown: GroupShown) -> Child:
    if not shown.connections and not shown.more:
        return None
    parts: list[Child] = [el("h3", "Connections")]
    if shown.connections:
        heads = ["local", "peer", "state", "in this state", "held by", "other end"]
        rows = [_connection(c) for c in shown.connections]
        total = len(rows) + shown.more
        caption = f"All {total:,}" if not shown.more else f"{len(rows):,} of {total:,}"
        parts.append(table(caption, heads, rows))
    if shown.more:
        parts.append(
            el(
                "p",
                f"{shown.more:,} more are not in this file." + (" This lists them:" if shown.listing else ""),
                class_="muted",
            )
        )
        parts.append(command(shown.listing) if shown.listing else None)
    return parts


def _connection(c: ConnectionShown) -> list[Child]:
    texts = (c.state, c.age, c.held_by, c.other_end)
    return [el("code", c.local), el("code", c.peer), *(text or "–" for text in texts)]


def _by_hand(shown: GroupShown) -> Child:
    if not shown.by_hand:
        return None
    items = [el("li", el("p", prose(each.shows)), command(each.command)) for each in shown.by_hand]
    page = el("li", el("p", "the page of this cause"), command(f"finwait explain {shown.finding.rule}"))
    return [el("h3", "Check it by hand"), el("ul", items, page, class_="means")]


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────────────


def history(past: AgentPast) -> Element:
    """Return what an agent has seen since some moment."""
    parts: list[Child] = []
    counts = past.counts
    if counts is not None and len(counts.at) > 1 and counts.series:
        series = [Series(count.name, count.values) for count in counts.series[:MOST_LINES]]
        ends = (when(counts.at[0] * 1_000_000_000), when(counts.at[-1] * 1_000_000_000))
        title = "Connections that did not finish closing over time, by cause"
        parts += [
            el("div", over_time("past", title, counts.at, series, ends), class_="wide"),
            _counted(counts),
        ]
    parts.append(el("p", past.counts_note or None, class_="muted") if past.counts_note else None)
    if past.episodes:
        heads = ["first seen", "lasted", "ended", "state", "local", "peer", "cause", "held by"]
        rows = [_episode(episode) for episode in past.episodes]
        caption = f"The latest {len(rows):,} of {len(rows) + past.more:,} episodes"
        parts.append(table(caption if past.more else "Episodes, the latest first", heads, rows))
    else:
        nothing = "The agent saw no connection that did not finish closing"
        parts.append(el("p", f"{nothing}, as far as it looked." if past.gaps else f"{nothing}."))
    if past.gaps:
        rows_of_gaps = [[gap.where, gap.doing, gap.needs or "–"] for gap in past.gaps[:LISTED]]
        parts.append(table("Not seen in that time", ["where", "could not", "needs"], rows_of_gaps))
    return _section("history", f"Since {past.since}", el("div", parts, class_="panel"))


def _counted(counts: CountsDocument) -> Element:
    """Return the curve as a table; a time in which nobody looked is said."""
    rows: list[list[Child]] = []
    for count in counts.series:
        known = [n for n in count.values if n is not None]
        numbers = (known[0], max(known), known[-1]) if known else ()
        rows.append(
            [el("code", count.name), *(f"{n:,}" for n in numbers), *["not known"] * (3 - len(numbers))]
        )
    unseen = sum(gaps is None for gaps in counts.gaps)
    blind = f"; nobody looked in {unseen:,} of {len(counts.at):,} steps" if unseen else ""
    caption = f"Most at once in steps of {duration_text(counts.step_s * 1000)}{blind}"
    return table(caption, ["cause", "first", "most", "last"], rows, right=(1, 2, 3), cards=False)


def _episode(e: PastEpisode) -> list[Child]:
    return [
        e.first_seen,
        e.lasted,
        e.ended,
        el("code", e.state),
        el("code", e.local),
        el("code", e.peer),
        e.rule,
        e.holder,
    ]


def settings(lines: Sequence[InForce]) -> Element:
    """Return the settings with what is to be said of their values: those with a verdict first, the others folded."""
    heads = ["setting", "value", "default", "verdict", "where", "why"]
    judged = [line for line in lines if line.verdict is not None]
    usual = [line for line in lines if line.verdict is None]
    parts: list[Child] = []
    if judged:
        rows = [_setting(line) for line in judged[:SETTINGS_MOST]]
        more = len(judged) - len(rows)
        caption = "Changed or harmful" + (f"; {more:,} more are not in this file" if more else "")
        parts.append(table(caption, heads, rows, right=(1, 2)))
    elif lines:
        parts.append(el("p", "The settings that were read have their defaults, and none is harmful here."))
    else:
        parts.append(el("p", "No setting was read."))
    if usual:
        rows = [_setting(line)[:5] for line in usual[:SETTINGS_MOST]]
        folded = table("Settings with their default", heads[:5], rows, right=(1, 2))
        amount = f"{len(usual)} setting{'' if len(usual) == 1 else 's'} with the default"
        parts.append(el("details", el("summary", amount), folded))
    parts.append(el("p", prose("`finwait tune show` reads more of them."), class_="muted"))
    return _section("settings", "Settings", el("div", parts, class_="panel"))


def _setting(line: InForce) -> list[Child]:
    default = str(line.default) if line.default is not None else "by memory"
    harmful = line.verdict is Verdict.HARMFUL
    verdict = [sign("problem"), el("span", "harmful", class_="problem")] if harmful else line.verdict_text
    why: list[Child] = [prose(line.why)]
    if line.instead:
        why += [el("p", "Instead: ", prose(line.instead))]
    if line.on_stuck:
        why += [el("p", "On what is stuck now: ", prose(line.on_stuck))]
    return [el("code", line.setting.key), line.value, default, verdict, line.where, why]


def remarks(account: Account) -> Element | None:
    """Return what is said beside the groups, and what the FILTER could not judge."""
    lines: list[Child] = [(el("dt", label), el("dd", prose(text))) for label, text in account.remarks]
    if account.unjudged:
        lines += [(el("dt", "Not judged"), el("dd", text)) for text in account.unjudged[:SETTINGS_MOST]]
        if (more := len(account.unjudged) - SETTINGS_MOST) > 0:
            lines.append((el("dt", "Not judged"), el("dd", f"{more:,} more")))
        lines.append((el("dt", "How to see it"), el("dd", prose(account.unjudged_hint))))
    if not lines:
        return None
    return _section("also", "Also seen", el("div", el("dl", lines, class_="facts"), class_="panel"))


def gaps(entries: Sequence[Gap]) -> Element:
    """Return what could not be seen."""
    if not entries:
        body: Child = el("p", "Everything that was asked for could be seen.")
    else:
        rows = [[gap.where, gap.doing, gap.needs or "nothing would have helped"] for gap in entries[:LISTED]]
        body = table("Parts of the machine that were not seen", ["where", "could not", "needs"], rows)
        if more := len(entries) - len(rows):
            body = [body, el("p", f"{more:,} more parts were not seen.", class_="muted")]
    return _section("not-seen", "Not seen", el("div", body, class_="panel"))


def versions(lines: Sequence[tuple[str, str]]) -> Element:
    """Return the versions."""
    entries = [(el("dt", label), el("dd", text)) for label, text in lines]
    return _section("versions", "Versions", el("div", el("dl", entries, class_="facts"), class_="panel"))
