"""relay-pair: a proxy passed on the FIN of one side and waits for ever for the other.

Seen as       One process holds a CLOSE_WAIT socket (all read) and a FIN_WAIT2 socket of about the same age,
              one of which it accepted on a port that it listens on, while it opened the other itself.
Why it stays  One side closed. The relay saw the end of file, passed it on with shutdown(SHUT_WR), and keeps
              both sockets open for the answer of the other side, which never comes. This is the leak of
              kube-proxy's userspace mode (kubernetes/kubernetes#17641) and of many relays since.
Not this      A pair on which the answer still passes: one look calls it "possible" where data moved in the last 3 s,
              and `--for 5s` tells. A program that talks to itself (the two sockets are each other's ends); CLOSE_WAIT
              sockets
              without their FIN_WAIT2 (close-wait-eof-read). A pair of `finwait relay` that probes both peers
              is only a notice: it holds a half-close while both live, and ends it when one is gone.
What ends it  Destroying both legs; the far server closing; a bounded half-close in the relay.
What does not tcp_fin_timeout (both are held); keepalive while the far server lives; one leg alone.
Reproduce     finwait lab run relay-pair
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import (
    NOT_FIN_TIMEOUT,
    NOT_KEEPALIVE_ALIVE,
    PREVENT_SILENCE,
    RECENT_MS,
    just_received,
    just_sent,
    likely,
    look_again,
    peer_missing,
    peer_unseen,
    possible,
    probe,
)
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match", "pairs"]

TOLERANCE_MS = 250
"""A relay passes a FIN on at once; the ACK of that FIN may come up to 40 ms later (delayed ACK)."""


def pairs(view: View) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the CLOSE_WAIT rows, their FIN_WAIT2 rows, and whether the ages agree.

    Where keepalive runs on the FIN_WAIT2 leg its last_ack_recv is that of the last answered probe and says
    nothing about its age; such legs, and those of which the kernel gives no clock, are paired by process alone.
    """
    s = view.sockets
    wait = view.in_state(tcp.CLOSE_WAIT) & view.holder_found & (s.rqueue == 0) & ~view.sent
    half = view.in_state(tcp.FIN_WAIT2) & view.holder_found & ~view.moved & ~view.read
    half &= (s.shutdown == 2) | ~s.present("shutdown")
    half &= s.rqueue == 0  # what the far side said is there: it is the relay that does not go on
    if not wait.any() or not half.any():
        none = np.empty(0, np.int64)
        return none, none, np.empty(0, np.bool_)
    first = view.holders.first_pid()
    # The two ends of one connection in one process are no relay.
    other = view.other
    own = (other >= 0) & (first[np.maximum(other, 0)] == first)
    left: list[NDArray[np.int64]] = []
    right: list[NDArray[np.int64]] = []
    agree: list[NDArray[np.bool_]] = []
    # One leg was accepted (a listener has its port), the other one the relay opened itself.
    accepted = view.accepted
    for wait_mask, half_mask in (
        (wait & ~own & accepted, half & ~own & ~accepted),
        (wait & ~own & ~accepted, half & ~own & accepted),
    ):
        by_wait, by_half = view.pid_rows(wait_mask), view.pid_rows(half_mask)
        for pid in sorted(by_wait.keys() & by_half.keys()):
            a, b = by_wait[pid], by_half[pid]
            # The two ends of one connection, which further processes may hold as well, are no relay.
            a, b = a[~np.isin(other[a], b)], b[~np.isin(other[b], a)]
            blind = (s.timer[b] == 2) | ~s.present("last_ack_recv_ms")[b]
            used = np.zeros(len(a), np.bool_)
            plain = b[~blind]
            i, j = _nearest(
                s.last_ack_recv_ms[a].astype(np.int64), s.last_ack_recv_ms[plain].astype(np.int64)
            )
            used[i] = True
            left.append(a[i])
            right.append(plain[j])
            agree.append(np.ones(len(i), np.bool_))
            rest, keep = a[~used], b[blind]
            n = min(len(rest), len(keep))
            left.append(rest[:n])
            right.append(keep[:n])
            agree.append(np.zeros(n, np.bool_))
    if not left:
        none = np.empty(0, np.int64)
        return none, none, np.empty(0, np.bool_)
    return np.concatenate(left), np.concatenate(right), np.concatenate(agree)


def _nearest(a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair two lists of ages, each member once, where they differ by no more than the tolerance."""
    i_order, j_order = np.argsort(a, kind="stable"), np.argsort(b, kind="stable")
    i = j = 0
    out_i: list[int] = []
    out_j: list[int] = []
    ages_a, ages_b = a[i_order].tolist(), b[j_order].tolist()
    while i < len(ages_a) and j < len(ages_b):
        gap = ages_a[i] - ages_b[j]
        if abs(gap) <= TOLERANCE_MS + ages_a[i] // 1000:
            out_i.append(i)
            out_j.append(j)
            i += 1
            j += 1
        elif gap < 0:
            i += 1
        else:
            j += 1
    return i_order[out_i], j_order[out_j]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains: both legs of every pair."""
    mask = np.zeros(len(view), np.bool_)
    wait, half, _ = pairs(view)
    mask[wait] = True
    mask[half] = True
    return mask


OURS = "finwait-relay"
"""What the workers of `finwait relay` call themselves (PR_SET_NAME)."""
_KEEPALIVE = 2
"""``idiag_timer``: keepalive."""


def _ours(view: View, rows: NDArray[np.int64]) -> bool:
    """Return whether the process that holds a group is a worker of `finwait relay`."""
    process = view.processes.get(int(view.holders.first_pid()[rows[0]]))
    return process is not None and process.comm == OURS


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    """Return a notice for pairs that their relay watches: it is finwait's, and probes are under way on all legs."""
    probed = bool((view.sockets.timer[rows] == _KEEPALIVE).all())
    return "notice" if probed and _ours(view, rows) else "problem"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    wait, half, agree = pairs(view)
    mine = np.isin(wait, rows) | np.isin(half, rows)
    n = "1 pair" if mine.sum() == 1 else f"{mine.sum()} pairs"
    fresh = _fresh(view, wait[mine], half[mine])
    if fresh:
        return look_again(
            f"on {fresh} of {n} data passed in the last {RECENT_MS // 1000} s: the answer may still be streaming; "
            "`--for 5s` looks twice and tells"
        )
    if agree[mine].all():
        return likely(f"{n} in one process, the legs of equal age within {TOLERANCE_MS} ms")
    if not view.sockets.present("last_ack_recv_ms")[half[mine]].all():
        return possible(f"{n} in one process; nothing says how old some FIN_WAIT2 legs are")
    return possible(f"{n} in one process; keepalive hides the age of some FIN_WAIT2 legs")


def _fresh(view: View, wait: NDArray[np.int64], half: NDArray[np.int64]) -> int:
    """Return on how many pairs data passed so short ago that a single look cannot say whether more will."""
    return int((just_received(view)[half] | just_sent(view)[wait]).sum())


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    wait, half, _ = pairs(view)
    mine = np.isin(wait, rows) | np.isin(half, rows)
    legs = Evidence(
        "legs",
        f"CLOSE_WAIT ×{mine.sum()}, FIN_WAIT2 ×{mine.sum()}",
        "sock_diag and /proc/PID/fd",
        "the same process holds both: it relays, and passed one side's FIN on to the other",
    )
    if _ours(view, rows):
        holder = Evidence(
            "holder",
            OURS,
            "/proc/PID/stat",
            "finwait's relay: it ends a pair whose peer is gone, and all after `half_close` of silence; "
            "`finwait relay ls --half-closed` shows which connection it is, and when",
        )
        legs_and_holder: tuple[Evidence, ...] = (legs, holder)
    else:
        legs_and_holder = (legs,)
    if len(rows) > 1:
        return legs_and_holder
    # Asked about one leg: say which the other is.
    row = int((half if wait[mine][0] == rows[0] else wait)[mine][0])
    fds = ", ".join(f"fd {fd}" for _, fd in view.holders.of(row)[:1])
    return (
        *legs_and_holder,
        Evidence(
            "other leg",
            " → ".join(view.ends(row)),
            "sock_diag and /proc/PID/fd",
            f"{tcp.state_name(int(view.sockets.state[row]))}, {fds}",
        ),
    )


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    """Return what ends a group by what is known of the far servers, for which its relay waits."""
    _, half, _ = pairs(view)
    waiting = half[np.isin(half, rows)]
    if not len(waiting):  # asked about the other leg alone
        wait, half, _ = pairs(view)
        waiting = half[np.isin(wait, rows)]
    if peer_missing(view)[waiting].all():
        return (_PROBE, _BOTH, _DEADLINE)
    if peer_unseen(view)[waiting].any():
        return (_PROBE, _AT_SERVER, _BOTH, _DEADLINE, PREVENT_SILENCE)
    return (_AT_SERVER, _BOTH, _DEADLINE)


_PROBE = replace(
    probe("relay-pair"),
    text="probe it: where the far server is gone its leg ends, and a relay that watches it closes the other one",
)
_AT_SERVER = Remedy("close at the far server: its FIN lets the relay finish both legs")
_BOTH = Remedy(
    "end both legs: a FIN to the one peer, and from the far end to the relay where that is here (else a RST)",
    "destructive",
    "finwait clear relay-pair",
)
_DEADLINE = Remedy(
    "a deadline for the second direction in the relay (bounded half-close) prevents the next one"
)

RULE = Rule(
    name="relay-pair",
    title="a relay passed on one side's FIN and waits for the other side for ever",
    severity="problem",
    rank=30,
    owners=True,
    means="by-state",
    beyond_sysctls="one process holds both legs; no timer runs on either",
    claims=("C3", "X52", "S01"),
    clues=(
        Clue("inode", "not 0: both legs are held, so no kernel timeout applies"),
        Clue("rqueue", "0: the relay has read everything, the end of file too"),
        Clue("last_ack_recv_ms", "about the same on both legs: they stopped together"),
        Clue("last_data_recv_ms", "since data last came, on either leg"),
    ),
    ends=(_PROBE, _AT_SERVER, _BOTH, _DEADLINE, PREVENT_SILENCE),
    does_not=(
        NOT_FIN_TIMEOUT,
        NOT_KEEPALIVE_ALIVE,
        Advice("destroy one leg", "the other leg stays, and nothing tells the relay to give it up"),
    ),
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    softens=("fin-wait2-held", "close-wait-eof-read"),
    remedies=_remedies,
)
