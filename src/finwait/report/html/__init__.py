"""A diagnosis as one HTML file that needs nothing beside it: to attach to a mail, to print, to keep.

The page loads nothing and runs nothing: its policy (Content-Security-Policy, in a ``meta`` element) allows one style
sheet, by its hash. What was read is escaped by the one function that makes elements (`finwait.report.html.element`).
It is at most a megabyte whatever was found: groups beyond that have only their line, and the page says how many.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Final

from finwait.report.account import Account, GroupShown, group_shown
from finwait.report.html import sections
from finwait.report.html.element import Child, Element, el, page_of, prose, style_sheet
from finwait.report.html.sheet import CSS

if TYPE_CHECKING:
    from finwait.diagnosis.view import View
    from finwait.report.past import AgentPast

__all__ = ["CSS", "MOST_BYTES", "page"]

MOST_BYTES: Final = 1_000_000
"""A page is not larger."""
_RESERVE: Final = 40_000
"""What is kept for the head, the style sheet and the end."""
POLICY: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-"
    f"{base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()}'"
)


def page(view: View, account: Account, past: AgentPast | None = None) -> str:
    """Return the page.

    Args:
        view: the sockets, for the connections of groups.
        account: what is said of the diagnosis.
        past: what an agent has seen before, where that is asked for.
    """
    parts = (
        sections.history(past) if past is not None else None,
        sections.remarks(account),
        sections.settings(account.settings),
        sections.gaps(account.gaps),
        sections.versions(account.versions),
    )
    rest = [part for part in parts if part is not None]
    states = sections.states(account)
    # With links the overview is longer than this one, but never twice as long.
    lines = sections.overview(account, 0) if account.groups else None
    fixed = [states, *rest, *([lines, lines] if lines else [])]
    groups = _groups(view, account, MOST_BYTES - _RESERVE - sum(len(part.markup.encode()) for part in fixed))
    if account.groups:
        lines = sections.overview(account, len(groups))
    end = el(
        "p", prose("Made by `finwait report`. This file loads nothing from elsewhere and runs no script.")
    )
    body = el(
        "body",
        el("header", _top(account), _contents(account, has_details=bool(groups), has_past=past is not None)),
        el("main", lines, states, _details(groups, len(account.groups) - len(groups)), rest),
        el("footer", end),
    )
    return page_of(_head(account), body)


def _head(account: Account) -> list[Element]:
    return [
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name_="color-scheme", content="light dark"),
        el("meta", name_="referrer", content="no-referrer"),
        el("meta", name_="robots", content="noindex"),
        el("meta", name_="generator", content=f"finwait {dict(account.versions)['finwait']}"),
        el("title", f"finwait: {account.host}"),
        style_sheet(CSS),
    ]


def _details(groups: list[Element], missing: int) -> Child:
    """Return the section with the groups in full, and how many of the overview are not among them."""
    if not groups:
        return None
    amount = "1 more group has" if missing == 1 else f"{missing:,} more groups have"
    note = f"{amount} only a line above, to keep this file below 1 MB: `finwait explain NUMBER` shows one."
    return el(
        "section",
        el("h2", "In full", id="details-title"),
        groups,
        el("p", prose(note), class_="muted") if missing else None,
        id="details",
        aria_labelledby="details-title",
    )


def _groups(view: View, account: Account, room: int) -> list[Element]:
    """Return the groups in full, as many as there is room for."""
    advised: set[tuple[object, ...]] = set()
    made: list[Element] = []
    for number, finding in enumerate(account.groups, 1):
        shown: GroupShown = group_shown(view, finding, number, advised)
        element = sections.group(shown)
        room -= len(element.markup.encode())
        if room < 0:
            break
        made.append(element)
    return made


def _top(account: Account) -> list[Child]:
    entries = [el("div", el("dt", label), el("dd", text)) for label, text in account.about]
    return [
        el("p", "finwait report", class_="eyebrow"),
        el("h1", sections.sign(account.sign), account.headline),
        el("dl", entries, class_="about"),
    ]


def _contents(account: Account, *, has_details: bool, has_past: bool) -> Element:
    places = [("groups", "Groups")] if account.groups else []
    places.append(("states", "States"))
    if has_details:
        places.append(("details", "In full"))
    if has_past:
        places.append(("history", "History"))
    if account.remarks or account.unjudged:
        places.append(("also", "Also seen"))
    places.append(("settings", "Settings"))
    amount = f" ({len(account.gaps)})" if account.gaps else ""
    places += [("not-seen", f"Not seen{amount}"), ("versions", "Versions")]
    return el(
        "nav",
        el("ul", [el("li", el("a", title, href=f"#{place}")) for place, title in places]),
        aria_label="Contents",
    )
