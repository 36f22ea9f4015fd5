"""fin-unanswered-orphan: closed by its program, and nobody acknowledges the FIN.

Seen as       FIN_WAIT1, LAST_ACK or CLOSING with inode 0, on the retransmission timer.
Why it stays  The path or the peer is gone. The kernel retransmits the FIN for the time that
              tcp_orphan_retries stands for (0 means 8: about 104 s), and gives up without a RST. If
              data is queued before the FIN (wqueue above 1), that data is retransmitted; with
              notsent_bytes above 0 the FIN itself was never sent. If the other end is on this
              machine and has the FIN (CLOSE_WAIT, LAST_ACK, CLOSING, TIME_WAIT), the peer does
              answer: its acknowledgment is lost on the way back. Without a timer (timer 0) none of
              this happens: kernels before 6.12 leave such an orphan behind when SOCK_DESTROY is
              used on it.
Not this      An inode: then tcp_retries2 is the limit, about 15 minutes by default
              (fin-unanswered-held). timer 4: the FIN could not even be sent (zero-window,
              egress-blocked).
What ends it  Time. tcp_orphan_retries limits later ones. Without a timer, only a segment from the
              peer: a RST, or the missing acknowledgment.
Won't help    tcp_fin_timeout: it applies to FIN_WAIT2.
Reproduce     finwait lab run fin-unanswered-orphan
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import forecast
from finwait.diagnosis.arrival import (
    FIND_THE_LOSS,
    NOT_AT_PEER,
    WAY_BACK,
    arrived,
    fin_arrived,
    looks,
    observed,
)
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import UNLESS_SET, certain, likely, look_again, orphans, watched_long
from finwait.diagnosis.view import View
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

__all__ = ["BEHIND_DATA", "NOT_FIN_TIMEOUT_HERE", "RULE", "data_before_fin", "match", "unanswered"]

_PATHS: Final = 3
"""How many cgroups are named; the others are counted."""
NOT_FIN_TIMEOUT_HERE = Advice(
    "lower `net.ipv4.tcp_fin_timeout`",
    "it applies to FIN_WAIT2; this FIN was never acknowledged",
    proofs=("orphan-retries",),
)


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    return (
        view.in_state(tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING)
        & ~view.held
        & (((s.timer == 1) & (s.retrans >= view.options.retransmits)) | (s.timer == 0))
        & ~view.sent  # data before the FIN gets through
    )


def _without_timer(view: View) -> NDArray[np.bool_]:
    """Return orphans that nothing will end: an orphan that waits for anything has a timer."""
    return view.in_state(tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING) & ~view.held & (view.sockets.timer == 0)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if not _without_timer(view)[rows].all():
        return unanswered(view, rows)
    if watched_long(view)[rows].all():
        return certain(f"no timer was running at either of two looks, {view.watched_ms / 1000:.1f} s apart")
    return look_again(
        "no timer is running; a healthy orphan can look like that for an instant, check with `--for 5s`"
    )


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "problem" if _without_timer(view)[rows].all() else "notice"


def data_before_fin(view: View) -> NDArray[np.bool_]:
    """Return rows on which the FIN of a program that closed is not all that is unacknowledged (it counts 1)."""
    s = view.sockets
    return view.in_state(tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING) & ((s.wqueue > 1) | (s.notsent_bytes > 0))


def unanswered(view: View, rows: NDArray[np.int64]) -> Confidence:
    """Return how sure it is that nobody answers, and what it is that is retransmitted."""
    s = view.sockets
    tries = f"at least {int(s.retrans[rows].min())} retransmissions"
    if arrived(view)[rows].all():
        return _arrived(view, rows, tries)
    if not data_before_fin(view)[rows].any():
        return certain(f"{tries} of the FIN without an answer")
    low, high = int(s.wqueue[rows].min()) - 1, int(s.wqueue[rows].max()) - 1
    behind = f"{low} bytes" if low == high else f"{low} … {high} bytes"
    never = "and was never sent" if (s.notsent_bytes[rows] > 0).all() else "that nobody acknowledged"
    return certain(f"{tries} of data without an answer; the FIN is queued behind {behind} {never}")


def _arrived(view: View, rows: NDArray[np.int64], tries: str) -> Confidence:
    """Return how sure it is that only the acknowledgment is lost."""
    shown = "only our FIN can have put the other end in its state"
    if not fin_arrived(view)[rows].all():
        shown = "the other end has received more than this end has had acknowledged"
    if watched_long(view)[rows].all():
        return certain(f"{tries}, and {shown}; no acknowledgment came in {view.watched_ms / 1000:.1f} s")
    return likely(
        f"{tries}, and {shown}; in a single look an acknowledgment may be on its way, check with `--for 5s`"
    )


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    return (*observed(view, rows), *orphans(view, rows), *_made_in(view, rows))


def _made_in(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    paths = sorted(
        {
            view.cgroup_paths[c]
            for c in distinct(view.sockets.cgroup_id[rows]).tolist()
            if c in view.cgroup_paths
        }
    )
    if not paths:
        return ()
    more = len(paths) - _PATHS
    return (
        Evidence(
            "cgroup",
            ", ".join(paths[:_PATHS]) + (f" and {more} more" if more > 0 else ""),
            "INET_DIAG_CGROUP_ID",
            "where the socket was created; the only trace left of its program",
        ),
    )


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    if _without_timer(view)[rows].all():
        return _NEVER
    when = Remedy(
        f"{forecast.ends_by_itself(view, rows)}, {UNLESS_SET}",
        "read-only",
        proofs=("retransmission-limits", "orphan-retries"),
    )
    return (*looks(view, rows), when, *_ENDS[1:])


_NEVER = (
    Remedy("a RST from the peer, or the missing acknowledgment: end the connection there"),
    Remedy("a reboot"),
)
_ENDS = (
    Remedy(
        f"it ends by itself {forecast.span(forecast.orphan())} after its FIN, with the kernel's defaults",
        "read-only",
        proofs=("retransmission-limits", "orphan-retries"),
    ),
    Remedy(
        "`tcp_orphan_retries` limits the next ones; so does TCP_USER_TIMEOUT in the program",
        proofs=("orphan-retries", "retransmission-limits"),
    ),
)
_DOES_NOT = (
    NOT_FIN_TIMEOUT_HERE,
    Advice("`tcp_orphan_retries=0`", "0 is the default and means 8", proofs=("orphan-retries",)),
)
BEHIND_DATA = (
    Clue("state", "the program has closed it; that does not mean that the FIN was sent"),
    Clue("timer", "1: data before the FIN is being retransmitted"),
    Clue("retrans", "unanswered retransmissions in a row"),
    Clue("wqueue", "unacknowledged bytes; the FIN behind them counts as 1"),
    Clue(
        "notsent_bytes",
        "bytes of these that were never sent, the FIN counting as 1; 0: the FIN was sent with the rest",
    ),
)

RULE = Rule(
    name="fin-unanswered-orphan",
    title="closed by its program; the FIN is retransmitted and nobody answers",
    severity="notice",
    rank=40,
    harm="residue",
    turn=Turn("kernel"),
    means="by-state",
    beyond_sysctls="only the orphan retransmission limits apply to it",
    claims=("C11", "S21", "X04", "X55"),
    clues=(
        Clue("state", "our FIN was sent and is not acknowledged"),
        Clue("inode", "0: no descriptor refers to it any more"),
        Clue("timer", "1: the FIN is being retransmitted"),
        Clue("retrans", "unanswered retransmissions in a row"),
        Clue("wqueue", "unacknowledged bytes; the FIN counts as 1"),
        Clue("cgroup_id", "where the socket was created"),
    ),
    ends=_ENDS,
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    remedies=_remedies,
    grade=_grade,
    cases=(
        Case(
            title="closed by its program, not acknowledged, and no timer is running; nothing here will ever end it",
            rows=_without_timer,
            clues=(
                Clue("state", "the FIN, or data before it, was not acknowledged"),
                Clue("inode", "0: no descriptor refers to it any more"),
                Clue("timer", "0: nothing will fire"),
                Clue("wqueue", "unacknowledged bytes; the FIN counts as 1"),
                Clue("cgroup_id", "where the socket was created"),
            ),
            ends=_NEVER,
            does_not=(
                Advice(
                    "waiting", "no timer is running, so the kernel sends nothing again and never gives up"
                ),
                Advice(
                    "`ss -K` or SOCK_DESTROY",
                    "before Linux 6.12 this is what leaves an orphan without a timer; a second time does "
                    "nothing more",
                ),
            ),
        ),
        Case(
            title=(
                "closed by its program; the peer has received what was sent, but its acknowledgment is lost on "
                "the way back"
            ),
            rows=arrived,
            clues=(
                Clue("state", "our FIN was sent, but no acknowledgment of it arrived"),
                Clue("inode", "0: no descriptor refers to it any more"),
                Clue("timer", "1: the FIN, or data before it, is being retransmitted"),
                Clue("retrans", "retransmissions in a row without an acknowledgment arriving"),
                Clue("wqueue", "unacknowledged bytes; the FIN counts as 1"),
                Clue("cgroup_id", "where the socket was created"),
            ),
            ends=(FIND_THE_LOSS, WAY_BACK, *_ENDS),
            does_not=(NOT_AT_PEER, *_DOES_NOT),
        ),
        Case(
            title="closed by its program; data before the FIN is retransmitted and nobody answers",
            rows=data_before_fin,
            clues=(
                *BEHIND_DATA,
                Clue("inode", "0: no descriptor refers to it any more"),
                Clue("cgroup_id", "where the socket was created"),
            ),
            ends=_ENDS,
            does_not=_DOES_NOT,
        ),
    ),
)
