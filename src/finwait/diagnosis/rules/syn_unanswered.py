"""syn-unanswered: connect() waits, and the peer answers no SYN.

Seen as       SYN_SENT on the retransmission timer, its SYN sent again at least twice.
Why it stays  Nobody answers: the host is gone, a filter drops the SYN or its answer, or the listener's accept queue is
              full, in which case its kernel drops SYNs. Where that listener is on this machine it is named.
Not this      A handshake in progress (handshake), also with one lost SYN. An old connection on the same ports at the
              other end, which takes no SYN (half-open). A closed port: its RST refuses the connection at once.
What ends it  An answer; or time: tcp_syn_retries (6: 127 s, or 131 s where tcp_syn_linear_timeouts is 4), after which
              connect() fails with ETIMEDOUT. A timeout of the program's own.
What does not Anything that is about closing; keepalive and tcp_retries2, which count in open connections.
Reproduce     finwait lab run syn-unanswered
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import forecast
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import certain, half_open, holder_names
from finwait.diagnosis.view import View
from finwait.table.units import duration_text
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

TRIES = 2
"""Of a SYN that was sent again so often not just one packet was lost."""
_SHOWN = 3
_ANY_IPV4 = (0, 0xFFFF << 32)


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    found: NDArray[np.bool_] = (
        (s.state == tcp.SYN_SENT) & (s.protocol == 6) & (s.timer == 1) & (s.retrans >= TRIES)
    )
    return found & ~half_open.match(view) if found.any() else found


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    low = int(view.sockets.retrans[rows].min())
    return certain(f"at least {low} SYNs were sent again without an answer")


def _full_listeners(view: View, rows: NDArray[np.int64]) -> dict[int, list[int]]:
    """Return for rows the listeners with a full queue that they may be meant for: their port, and an address of theirs.

    An address may be another machine's as well, or translated on the way; a row whose listener is not found has none.
    """
    s = view.sockets
    full = np.flatnonzero((s.state == tcp.LISTEN) & (s.protocol == 6) & (s.rqueue > s.wqueue))
    doors: dict[int, list[int]] = {}
    for door in full.tolist():
        doors.setdefault(int(s.sport[door]), []).append(door)
    found: dict[int, list[int]] = {}
    for row in rows[np.isin(s.dport[rows], [*doors])].tolist() if doors else ():
        target = tuple(s.dst[row].tolist())
        mine = [door for door in doors[int(s.dport[row])] if _listens(view, door, target, int(s.netns[row]))]
        if mine:
            found[row] = mine
    return found


def _listens(view: View, door: int, target: tuple[int, int], netns: int) -> bool:
    """Return whether a listener takes connections to an address, for one who connects in a namespace."""
    s = view.sockets
    bound, number = tuple(s.src[door].tolist()), int(s.netns[door])
    space = view.namespaces.get(number)
    here = space is not None and target in space.addresses and view.connected(netns, number)
    return (number == netns or here) and bound in ((0, 0), _ANY_IPV4, target)


def _at_full(view: View) -> NDArray[np.bool_]:
    """Return which rows meet a full queue of this machine."""
    out = np.zeros(len(view), np.bool_)
    out[[*_full_listeners(view, np.flatnonzero(match(view)))]] = True
    return out


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    spans = [forecast.opening_of(view, row) for row in rows.tolist()]
    since, left = max(one[0] for one in spans), max(one[1] for one in spans)
    result = [
        Evidence(
            "waits since", duration_text(since), "inet_diag_msg.idiag_retrans and idiag_expires",
            "the longest, from the first SYN on, by the times at which the kernel sends it again",
        ),
        Evidence(
            "gives up in", duration_text(left), "tcp_syn_retries and tcp_syn_linear_timeouts",
            "the last of them, unless the program set TCP_SYNCNT or TCP_USER_TIMEOUT; connect() then fails: ETIMEDOUT",
        ),
    ]  # fmt: skip
    doors = sorted({door for mine in _full_listeners(view, rows).values() for door in mine})
    for door in doors[:_SHOWN]:
        s = view.sockets
        number = int(s.netns[door])
        place = view.namespaces[number].label if number in view.namespaces else f"netns {number}"
        result.append(
            Evidence(
                "full listener",
                f"{view.ends(door)[0]} in {place}, {s.rqueue[door]} of {s.wqueue[door]} waiting",
                "sock_diag",
                f"of {holder_names(view, door)}: its kernel drops SYNs while its accept queue is full",
            )
        )
    return tuple(result)


_QUEUE = Remedy(
    "the program of the full listener accepting again: `finwait explain accept-queue-full` has what ends that",
    proofs=("syn-retries",),
)
_PATH = Remedy(
    "find out who drops the SYN, or its answer: the peer's host, its accept queue, a filter on either side",
)
_OWN = Remedy(
    "it ends by itself: connect() fails when tcp_syn_retries is spent; TCP_SYNCNT, TCP_USER_TIMEOUT or a timeout of "
    "the program's own make it sooner",
    proofs=("syn-retries",),
)

_CLUES = (
    Clue("state", "opening"),
    Clue("timer", "1: the SYN is being sent again"),
    Clue("retrans", "SYNs sent again without an answer"),
    Clue("expires_ms", "until the next"),
)
_DOES_NOT = (
    Advice("turn on keepalive", "it probes connections that are open; this one is not"),
    Advice(
        "lower `net.ipv4.tcp_retries2`",
        "it counts for connections that are open; for this one tcp_syn_retries does",
        proofs=("syn-retries",),
    ),
)

RULE = Rule(
    name="syn-unanswered",
    title="connect() waits: the peer answers no SYN",
    severity="notice",
    rank=80,
    means="by-state",
    beyond_sysctls="only tcp_syn_retries governs how long connect() tries",
    claims=("C19b", "X60"),
    clues=_CLUES,
    ends=(_PATH, _OWN),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    cases=(
        Case(
            title="connect() waits: the accept queue of the listener is full, and its kernel drops the SYNs",
            rows=_at_full,
            clues=_CLUES,
            ends=(_QUEUE, _OWN),
            does_not=_DOES_NOT,
        ),
    ),
)
