"""Whether connections are still as a plan says, asked right before an act: of the kernel, or of a borrowed descriptor.

A plan may be minutes old. Between the first look at its connections and an act on them lies a journal that may have to
be waited for, or a rate that somebody asked for. On a connection that was stuck then, an answer may be under way now.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from finwait.acting.identity import NOT_ENTERED, key_of, reread, rows_by_cookie
from finwait.errors import TargetGone
from finwait.kernel import netns as ns_edge
from finwait.kernel import pidfd
from finwait.remedy.outcome import Outcome
from finwait.remedy.plan import Step
from finwait.uapi import tcp
from finwait.uapi.inet_diag import IPPROTO_TCP

__all__ = ["changed_at", "kept_whole", "unfit"]


def unfit(
    steps: Mapping[int, Step], spaces: Sequence[ns_edge.NetNamespace] | None = None
) -> dict[int, Outcome]:
    """Read connections again by cookie; return what to say of those that are not as the plan says, by index.

    Args:
        steps: the connections.
        spaces: their namespaces, where those are known already.
    """
    now, closed = reread(steps.values(), spaces)
    rows = rows_by_cookie(now)
    states, inodes = now.state.tolist(), now.inode.tolist()
    known = now.present("bytes_received").tolist()
    moved = list(zip(now.bytes_received.tolist(), now.bytes_acked.tolist(), strict=True))
    outcomes = {}
    for k, step in steps.items():
        row = rows.get(key_of(step))
        if row is None and step.netns in closed:
            outcomes[k] = Outcome(step, "failed", NOT_ENTERED)
        elif row is None:
            outcomes[k] = Outcome(step, "left before", "it was gone when it was read again")
        elif change := _change(step, states[row], inodes[row], moved[row] if known[row] else None):
            outcomes[k] = Outcome(step, "changed meanwhile", change)
    return outcomes


def kept_whole(steps: Mapping[int, Step], bad: Mapping[int, Outcome]) -> dict[int, Outcome]:
    """Return what to say of further connections that are left alone, for what belongs to them is not as planned.

    Args:
        steps: the connections, by index.
        bad: those that are not as the plan says.
    """
    broken: dict[int, Outcome] = {}
    for outcome in bad.values():
        if outcome.step.pair:
            broken.setdefault(outcome.step.pair, outcome)
    return {
        k: Outcome(step, "changed meanwhile", f"left alone with its other leg: {broken[step.pair].detail}")
        for k, step in steps.items()
        if step.pair in broken and k not in bad
    }


def changed_at(step: Step, sock: socket.socket) -> Outcome | None:
    """Ask a borrowed descriptor; return what to say of a connection that is not as the plan says.

    Raises:
        TargetGone: it has ended.
    """
    progress = pidfd.progress(sock) if step.protocol == IPPROTO_TCP else None
    if progress is None:
        return unfit({0: step}).get(0)
    state, *moved = progress
    if state == tcp.CLOSE:
        raise TargetGone(int(step.cookie, 16), "it ended by itself meanwhile")
    change = _change(step, state, step.inode, (moved[0], moved[1]))
    return Outcome(step, "changed meanwhile", change) if change else None


def _change(step: Step, number: int, inode: int, moved: tuple[int, int] | None) -> str:
    """Return what has changed since the plan was made; empty for nothing."""
    state = tcp.state_name(number)
    if state == "LISTEN":
        return "it is a listener"
    if state != step.state:
        return f"it is in {state} now, not in {step.state}"
    if step.inode and not inode:
        return (
            "its last descriptor has been closed since: it is now an orphan, which the kernel ends by itself"
        )
    if inode != step.inode and not step.inode:
        return "a program has accepted it since"
    if inode != step.inode:
        return f"its inode is {inode}, and not {step.inode}, as the plan says"
    if moved is not None and moved != (step.bytes_received, step.bytes_acked):
        return "bytes moved since the plan was made"
    return ""
