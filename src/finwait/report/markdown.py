"""A diagnosis as GitHub Markdown, to paste into an issue tracker.

Names of processes, pods and namespaces are chosen by others. What is a value stands in a code span, where nothing is a
mention, a link or markup; what would end the span or the cell is replaced (``|`` by ``¦``, a backtick by ``ˋ``). In
sentences what begins markup is escaped, and what GitHub turns into a mention or a reference by itself (``@``, ``#``) is
followed by a character without width. Commands stand in fences that are longer than any in them: they stay as
they have to be typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from finwait.report.account import LONGEST_COMMAND, Account, GroupShown, group_shown
from finwait.table.units import printable

if TYPE_CHECKING:
    from finwait.diagnosis.view import View
    from finwait.report.past import AgentPast

__all__ = ["markdown"]

_SIGNS: Final = {"problem": "❌", "notice": "⚠️", "fine": "✅", "healthy": "✅", "unsure": "❔"}
_MARKUP: Final = re.compile(r"([\\`*_\[\]<>&~#@$])")
"""What begins markup within a line."""
_ADDRESS: Final = re.compile(r"((?<![a-z0-9])www(?=\.)|(?=://))(.)", re.IGNORECASE)
"""What GitHub makes a link of by itself, in two parts that a backslash separates."""
_NO_WIDTH: Final = "\u200b"
GROUPS: Final = 30
"""Groups in full: an issue takes 65,536 characters."""
_LINES: Final = 100
_NAMED: Final = 5
"""Connections that a group names."""
_MOST: Final = 60_000
"""Characters: beyond that, groups have only their line."""


def _code(text: str) -> str:
    """Return a value as a code span."""
    inner = printable(text).replace("`", "ˋ").replace("|", "¦").strip()
    return f"`{inner}`" if inner else ""


def _plain(text: str) -> str:
    """Return text in which nothing is markup, a link or a mention; it does not begin a line."""
    escaped = _MARKUP.sub(r"\\\1", printable(text).replace("|", "¦"))
    return _ADDRESS.sub(r"\1\\\2", escaped).replace("@", f"@{_NO_WIDTH}").replace("#", f"#{_NO_WIDTH}")


def _prose(text: str) -> str:
    """Return a sentence; what stands in backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return _plain(text)
    return "".join(_code(part) if k % 2 else _plain(part) for k, part in enumerate(parts))


def _fence(command: str) -> list[str]:
    """Return a command as it has to be typed; one that names very many connections is only begun."""
    if len(command) > LONGEST_COMMAND:
        begin = " ".join(command.split(" ")[:2])
        return [_prose(f"`{begin} …` names each connection by its cookie; `finwait -o json` has it")]
    line = printable(command)
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}sh", line, fence]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(cell or ' ' for cell in row)} |"


def markdown(view: View, account: Account, past: AgentPast | None = None) -> str:
    """Return the document.

    Args:
        view: the sockets, for the connections of groups.
        account: what is said of the diagnosis.
        past: what an agent has seen before, where that is asked for.
    """
    head = [f"### {_SIGNS[account.sign]} {_plain(account.headline)}", ""]
    head += [" · ".join(f"{label} {_code(text)}" for label, text in account.about), ""]
    tail = [*_past(past), *_rest(account), *_gaps(account), *_versions(account)]
    if account.groups:
        head += [*_overview(account), ""]
    used = sum(map(len, head)) + sum(map(len, tail))
    groups: list[str] = []
    advised: set[tuple[object, ...]] = set()
    full = 0
    for number, finding in enumerate(account.groups[:GROUPS], 1):
        lines = list(_group(group_shown(view, finding, number, advised, _NAMED)))
        used += sum(len(line) + 1 for line in lines)
        if used > _MOST:
            break
        groups += lines
        full = number
    if missing := len(account.groups) - full:
        groups += [
            _prose(
                f"{missing:,} more of the groups are not shown in full; `finwait explain NUMBER` shows count."
            ),
            "",
        ]
    return "\n".join([*head, *groups, *tail]) + "\n"


def _overview(account: Account) -> Iterator[str]:
    shown = min(len(account.groups), _LINES)
    rows = [
        [
            f"{k + 1}",
            f"{_SIGNS[account.groups[k].severity]} {account.groups[k].severity}",
            *(_code(column.texts[k]) for column in account.overview),
        ]
        for k in range(shown)
    ]
    yield from _table(["", "severity", *(column.title for column in account.overview)], rows)
    if more := len(account.groups) - shown:
        yield ""
        yield f"{more:,} more groups are not listed."


def _group(shown: GroupShown) -> Iterator[str]:
    f = shown.finding
    yield "<details>"
    yield f"<summary>{shown.number}: {_html(shown.states)} <code>{_html(f.rule)}</code></summary>"
    yield ""
    yield _prose(f.headline[0].upper() + f.headline[1:] + ".")
    yield ""
    yield f"- in: {_code(shown.where)}"
    for label, text in shown.facts:
        yield f"- {label}: {_prose(text)}"
    if f.evidence:
        yield ""
        rows = [[_code(e.column), _code(e.value), _prose(e.says), _code(e.read_from)] for e in f.evidence]
        yield from _table(["evidence", "value", "which says", "read from"], rows)
    yield ""
    yield from _means(shown)
    if shown.connections:
        yield ""
        rows = [
            [*map(_code, (c.local, c.peer, c.state, c.age, c.held_by, c.other_end))]
            for c in shown.connections
        ]
        yield from _table(["local", "peer", "state", "in this state", "held by", "other end"], rows)
    if shown.more:
        yield ""
        yield f"{shown.more:,} more connections are not listed."
    for each in shown.by_hand:
        yield ""
        yield f"By hand: {_prose(each.shows)}"
        yield from _fence(each.command)
    yield ""
    yield "</details>"
    yield ""


def _means(shown: GroupShown) -> Iterator[str]:
    if shown.ends_it:
        yield "**What ends it**"
        yield ""
    for remedy in shown.ends_it:
        kind = "" if remedy.kind == "advice" else f" _{remedy.kind}_"
        yield f"- {_prose(remedy.text)}{kind}"
        if remedy.command:
            yield from (f"  {line}" for line in _fence(remedy.command))
    if shown.does_not:
        yield ""
        yield "**What does not help**"
        yield ""
        for advice in shown.does_not:
            yield f"- {_prose(advice.text)}: {_prose(advice.reason)}"


def _html(text: str) -> str:
    """Return a text of ours for a summary, which is HTML; Markdown is not read there."""
    return re.sub(r"[^\w ,×+-]", lambda match: f"&#{ord(match[0])};", printable(text))


def _past(past: AgentPast | None) -> Iterator[str]:
    if past is None:
        return
    yield f"**Since {_plain(past.since)}**"
    yield ""
    if past.counts_note:
        yield _prose(past.counts_note)
        yield ""
    if past.counts is not None and past.counts.series:
        rows = []
        for count in past.counts.series:
            known = [n for n in count.values if n is not None]
            cells = [f"{known[0]:,}", f"{max(known):,}", f"{known[-1]:,}"] if known else ["not known"] * 3
            rows.append([_code(count.name), *cells])
        yield from _table(["cause", "first", "most", "last"], rows)
        yield ""
    if past.episodes:
        heads = ["first seen", "lasted", "ended", "state", "local", "peer", "cause", "held by"]
        texts = (
            (e.first_seen, e.lasted, e.ended, e.state, e.local, e.peer, e.rule, e.holder)
            for e in past.episodes
        )
        yield from _table(heads, ([*map(_code, row)] for row in texts))
        yield ""
        if past.more:
            yield f"{past.more:,} more episodes are not listed."
    else:
        yield "The agent saw no connection that did not finish closing, as far as it looked."
    yield ""
    for gap in past.gaps[:_LINES]:
        yield f"- not seen: {_code(str(gap))}"
    yield ""


def _rest(account: Account) -> Iterator[str]:
    for label, text in account.remarks:
        yield f"- {label}: {_prose(text)}"
    for text in account.unjudged:
        yield f"- not judged: {_code(text)}"
    if account.unjudged_hint:
        yield f"- {_prose(account.unjudged_hint)}"
    harmful = [line for line in account.settings if line.verdict is not None]
    for line in harmful:
        yield f"- setting {_code(f'{line.setting.key} = {line.value}')} ({line.verdict_text}): {_prose(line.why)}"
    yield ""


def _gaps(account: Account) -> Iterator[str]:
    if not account.gaps:
        yield "Everything that was asked for could be seen."
        yield ""
        return
    yield "**Not seen**"
    yield ""
    for gap in account.gaps[:_LINES]:
        yield f"- {_code(str(gap))}"
    if (more := len(account.gaps) - _LINES) > 0:
        yield f"- and {more:,} more parts"
    yield ""


def _versions(account: Account) -> Iterator[str]:
    yield ", ".join(f"{label} {_code(text)}" for label, text in account.versions)
