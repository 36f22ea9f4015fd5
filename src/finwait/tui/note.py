"""What the live view says about a picture beside its numbers."""

from __future__ import annotations

import time

from finwait.watching import Picture

__all__ = ["note", "nothing"]


def nothing(picture: Picture) -> str:
    """Return why the FILTER matches nothing, where it names what is not here: zeros alone look like an all-clear."""
    why = picture.circumstances.not_here
    return f"matches nothing: {'; '.join(why)}" if why else ""


def note(picture: Picture) -> str:
    """Return how a picture was come by, how old its diagnosis is, and what it lacks; empty where all is as usual."""
    seen = picture.circumstances
    if seen.look is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seen.unix_ns / 1e9))
        return f"look {seen.look} of {seen.looks}, {when} UTC"
    parts = [f"{seen.lost:,} events lost, flows are too low"] if seen.lost else []
    if seen.unjudged:
        parts.append(f"{seen.unjudged:,} events the FILTER could not judge, flows are too low")
    if picture.diagnosis is None:
        return "; ".join([*parts, "diagnosing …"])
    if seen.diagnosed_s_ago is not None:
        parts.append(f"diagnosed {seen.diagnosed_s_ago:.0f} s ago")
    if left := picture.diagnosis.view.established_skipped:
        parts.append(f"ESTABLISHED only counted in namespaces of {left:,} sockets (e lists them)")
    return "; ".join(parts)
