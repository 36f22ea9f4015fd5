"""Which of the connections that a diagnosis calls stuck still move: they are looked at once more, and only they.

One look cannot tell a half-close on which an answer still streams from one that is stuck. `finwait --for` looks at
everything twice; that costs an agent twice as much, on a machine of many namespaces a minute of its share. So the
candidates alone are asked for by name (`finwait.kernel.lookup`, 6 µs each), or where one namespace has very many, by a
dump of its closing states. Whatever arrived, was acknowledged, read or written in between moves. Then the rules are
applied again, to the look as it was, with what has moved.

Of a connection that has gone meanwhile, or could not be asked for, nothing more is known than one look tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from finwait.attribution.join import matches, unique_match
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.assemble import movement
from finwait.diagnosis.rules import RECENT_MS
from finwait.kernel import closing, lookup
from finwait.kernel.lookup import Question
from finwait.table.sockets import SocketTable
from finwait.uapi import inet_diag, tcp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finwait.kernel.netns import NetNamespace
    from finwait.session import Diagnosis

__all__ = ["PAUSE_MS", "Asking", "candidates", "looked_again", "with_movement"]

PAUSE_MS: Final = RECENT_MS + 2000
"""Between the look and the second one: `finwait --for 5s` waits as long."""
_ONE_BY_ONE: Final = 3000
"""Above so many in one namespace a dump of its closing states costs less than questions."""

_COMPARED: Final = ("bytes_received", "bytes_acked", "ulp", "shutdown")
"""What `movement` reads beside what a walk has."""

Asking = Callable[[Mapping[int, Sequence[Question]], Sequence[int]], SocketTable]
"""Gives the connections that questions name, by namespace, and all in closing states of further namespaces."""


def candidates(made: Diagnosis) -> NDArray[np.int64]:
    """Return the rows in closing states that are not healthy by one look, and their other ends here."""
    view = made.view
    worth = np.zeros(len(view), np.bool_)
    for finding in made.findings:
        if finding.primary and finding.severity != "healthy":
            worth[finding.rows] = True
    s = view.sockets
    worth &= (tcp.CLOSING_STATES >> s.state.astype(np.int64) & 1).astype(np.bool_)
    others = view.other[worth]
    worth[others[others >= 0]] = True
    worth &= (s.protocol == inet_diag.IPPROTO_TCP) & (s.cookie != 0)
    return np.flatnonzero(worth)


def looked_again(
    made: Diagnosis,
    ask: Asking,
    *,
    clock_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    sleep: Callable[[float], None] = time.sleep,
) -> Diagnosis:
    """Return what is said once the candidates have been looked at again; the same where there are none.

    Args:
        made: of one look.
        ask: looks again.
        clock_ns: CLOCK_BOOTTIME.
        sleep: waits, in seconds.

    Raises:
        DecodeError: an answer is not what the kernel sends.
    """
    rows = candidates(made)
    if not len(rows):
        return made
    facts = made.snapshot.observation.facts
    seen_ns = max(facts.boottime_ns, facts.boottime_end_ns)
    sleep(max(0.0, (seen_ns + PAUSE_MS * 1_000_000 - clock_ns()) / 1e9))
    asked_ns = clock_ns()
    questions, dumped = _questions(made.view.sockets, rows)
    later = ask(questions, dumped)
    if not len(later):
        return made
    took_ms = (clock_ns() - asked_ns) // 1_000_000
    least_ms = max(0, (asked_ns - seen_ns) // 1_000_000)
    most_ms = (asked_ns - facts.boottime_ns) // 1_000_000 + took_ms
    return with_movement(made, later, least_ms, most_ms)


def _questions(sockets: SocketTable, rows: NDArray[np.int64]) -> tuple[dict[int, list[Question]], list[int]]:
    """Return questions about rows by namespace, and the namespaces of which there are too many."""
    counts = np.unique(sockets.netns[rows], return_counts=True)
    dumped = {n for n, several in zip(*(c.tolist() for c in counts), strict=True) if several > _ONE_BY_ONE}
    questions: dict[int, list[Question]] = {}
    columns = (sockets.column(name)[rows] for name in ("netns", "src", "dst", "sport", "dport", "ifindex"))
    for netns, src, dst, sport, dport, ifindex in zip(*(c.tolist() for c in columns), strict=True):
        if netns not in dumped:
            question = Question((src[0], src[1]), (dst[0], dst[1]), sport, dport, ifindex)
            questions.setdefault(netns, []).append(question)
    return questions, sorted(dumped)


def with_movement(made: Diagnosis, later: SocketTable, least_ms: int, most_ms: int) -> Diagnosis:
    """Return what the rules say of a look where some of its connections were seen again.

    Args:
        made: of one look.
        later: connections as they were seen again.
        least_ms: the time between the two sights of each, at least.
        most_ms: … at most.
    """
    view = made.view
    change = movement(later, view.sockets, most_ms, max(0, most_ms - least_ms))
    i, j = matches((later.cookie, later.protocol), (view.sockets.cookie, view.sockets.protocol))
    before, _ = unique_match(len(later), i, j)
    at = before[before >= 0]

    def spread(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        result = np.zeros(len(view), np.bool_)
        result[at] = mask[before >= 0]
        return result

    again = replace(
        view,
        moved=spread(change.received),
        sent=spread(change.acknowledged),
        wrote=spread(change.wrote),
        read=spread(change.read),
        moved_known=spread(change.known),
        watched_ms=least_ms,
    )
    chosen = catalogue.rules()
    findings = engine.diagnose(again, chosen, None, made.asked)
    shot = replace(made.snapshot, view=again)
    if descriptors := engine.flags_wanted(again, chosen, findings):
        again = replace(again, close_on_exec=shot.machine.close_on_exec(descriptors))
        shot, findings = replace(shot, view=again), engine.with_flags(again, chosen, findings, made.asked)
    gaps = tuple(sorted({*shot.gaps, *engine.gaps(again, chosen)}))
    return replace(made, snapshot=shot, findings=findings, gaps=gaps)


def asking(namespaces: Sequence[NetNamespace]) -> Asking:
    """Return what looks again in namespaces of the running machine."""

    def ask(questions: Mapping[int, Sequence[Question]], dumped: Sequence[int]) -> SocketTable:
        spaces = [ns for ns in namespaces if ns.inode in questions]
        answers, _ = lookup.ask_each(questions, spaces, extensions=inet_diag.extension_mask(inet_diag.INFO))
        walks, _ = closing.walk([ns for ns in namespaces if ns.inode in dumped], _COMPARED)
        return SocketTable.concatenate([answers, *(walk.sockets for walk in walks.values())])

    return ask
