"""A group of an earlier overview, and which of its connections are still there.

Its number alone would name another group as soon as one more appears; the cookies of its connections do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from finwait.errors import Gap

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = ["Numbered", "rows_of", "unseen"]


class Numbered(msgspec.Struct, frozen=True):
    """A group of an overview, as it was."""

    number: int
    rule: str
    count: int
    netns: int
    pids: tuple[int, ...]
    cookies: tuple[tuple[int, int], ...]
    """``(netns, cookie)`` of its connections; empty where it is about something that has no rows."""
    open: bool = False
    """Whether some of its connections were ESTABLISHED, which a look may leave out."""


def rows_of(view: View, group: Numbered) -> NDArray[np.bool_]:
    """Return which rows are the connections that a group had, as far as they are still there."""
    spaces = np.array([netns for netns, _ in group.cookies], np.int64)
    cookies = np.array([cookie for _, cookie in group.cookies], np.uint64)
    sockets = view.sockets
    rows: NDArray[np.bool_] = np.isin(sockets.cookie, cookies) & np.isin(sockets.netns, spaces)
    return rows


def unseen(view: View, group: Numbered) -> tuple[Gap, ...]:
    """Return what a look could not see of a group: what is not found in it need not have ended."""
    gaps = []
    spaces = {netns for netns, _ in group.cookies} or ({group.netns} if group.netns else set())
    doing = f"look for group {group.number} there"
    for netns in sorted(spaces):
        space = view.namespaces.get(netns)
        if space is None:
            gaps.append(Gap.of_namespace(netns, doing, "a look without `--netns`, or with that one"))
        elif group.open and not space.dumped:
            needs = "`--established always`"
            gaps.append(Gap.of_namespace(netns, f"{doing} among ESTABLISHED connections", needs))
    if not group.cookies and not view.hidden_known:
        needs = "a look at all namespaces and owners"
        gaps.append(Gap(f"group {group.number}", "look for descriptors without a connection", needs))
    return tuple(gaps)
