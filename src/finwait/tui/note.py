"""What the live view says about a picture beside its numbers."""

from __future__ import annotations

import time

from finwait.watching import Picture

__all__ = ["compared", "note", "nothing"]


def nothing(picture: Picture) -> str:
    """Return why the FILTER matches nothing, where it names what is not here: zeros alone look like an all-clear."""
    why = picture.circumstances.not_here
    return f"matches nothing: {'; '.join(why)}" if why else ""


def note(picture: Picture) -> str:
    """Return how a picture was come by, how old its diagnosis is, and what it lacks; empty where all is as usual."""
    seen = picture.circumstances
    parts = [f"{seen.lost:,} events lost; flows are too low"] if seen.lost else []
    if seen.unjudged:
        parts.append(f"the FILTER could not judge {seen.unjudged:,} events; flows are too low")
    if picture.diagnosis is None and seen.look is None:
        return "; ".join([*parts, "diagnosing …"])
    narrow = picture.diagnosis.narrowed if picture.diagnosis is not None else None
    if narrow is not None and narrow.unjudged:
        parts.append(f"the FILTER could not judge {sum(f.count for f in narrow.unjudged):,} more")
    if seen.look is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seen.unix_ns / 1e9))
        return "; ".join([*parts, f"look {seen.look} of {seen.looks}, {when} UTC"])
    verbs: dict[str, list[str]] = {}
    for verb, age in (("counted", seen.counted_s_ago), ("diagnosed", seen.diagnosed_s_ago)):
        if age is not None:
            verbs.setdefault(f"{age:.0f} s ago", []).append(verb)
    parts += [f"{' and '.join(together)} {ago}" for ago, together in verbs.items()]
    if picture.diagnosis is not None and (skipped := picture.diagnosis.view.established_skipped):
        parts.append(f"{skipped:,} sockets in namespaces where ESTABLISHED is only counted (e lists them)")
    return "; ".join(parts)


def compared(picture: Picture) -> str:
    """Return how rates were come by that no trace gave, and what is not in them; empty where one did."""
    seen = picture.circumstances
    if seen.compared_s is None:
        return ""
    text = f"rates: looks {seen.compared_s:.1f} s apart, without what came and went in between"
    return f"{text}; {max(seen.unplaced, 0.1):.1f}/s gone, closed or reset" if seen.unplaced else text
