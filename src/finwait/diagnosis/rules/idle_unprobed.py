"""idle-unprobed: silent for long, and nothing would notice if the peer were dead.

Seen as       ESTABLISHED with no timer, silent for `--idle` (10 min) or more; or a held connection (ESTABLISHED or
              FIN_WAIT2) whose other end is gone from a namespace of this machine where others that it connects to at
              that address are, and which has heard nothing for longer than the look took. ESTABLISHED
              also where a namespace here has the other end's address, and nothing shows that it is the peer's. An
              MPTCP connection is silent when all its subflows are, and keepalive on one of them is keepalive.
Why it stays  An idle connection sends nothing. If the peer vanished without a FIN (node lost, pod deleted after
              its network), this end learns it only by sending: data, or a keepalive probe.
Not this      timer 2: keepalive is on. An other end that is there and ESTABLISHED. An address that a namespace
              here has as well, while nothing shows that it is the peer's: then only a probe can tell.
What ends it  A keepalive probe: a live peer answers and nothing happens, a dead one ends the connection.
What does not `tcp_keepalive_*` sysctls: they do not turn keepalive on, and never reach a socket without it.
Reproduce     finwait lab run idle-unprobed
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    NOT_FIN_TIMEOUT,
    NOT_USER_TIMEOUT_IDLE,
    NOT_WAITING_FOR_THE_GONE,
    PREVENT_SILENCE,
    absence,
    destroy,
    mptcp_rows,
    peer_doubtful,
    peer_missing,
    possible,
    probe,
    silence,
    unclocked,
)
from finwait.diagnosis.rules.holder_not_found import kernels_own
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def _gone(view: View) -> NDArray[np.bool_]:
    return view.on_every_subflow(peer_missing(view))


def _doubtful(view: View) -> NDArray[np.bool_]:
    return view.on_every_subflow(peer_doubtful(view))


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    quiet = view.held & view.on_every_subflow(s.timer == 0)
    idle = silence(view, "last_data_sent_ms", "last_data_recv_ms", "last_ack_recv_ms")
    lone = (view.other < 0) & view.on_every_subflow(view.other < 0)
    long = view.connections_in(tcp.ESTABLISHED) & (idle >= view.options.idle_ms) & lone
    long &= ~kernels_own(view)  # what is mounted may be silent for hours
    # CLOSE_WAIT whose peer is gone is the normal fate of a leak: its own rules say it better.
    gone = view.connections_in(tcp.ESTABLISHED) & _doubtful(view)
    # And a half-close whose program does not read what came waits for its own program, not for a peer.
    gone |= view.connections_in(tcp.FIN_WAIT2) & (s.rqueue == 0) & _gone(view)
    return quiet & (long | gone)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if _gone(view)[rows].all():
        return absence(view, "the peer's address is on this machine, and no socket there has this connection")
    if _doubtful(view)[rows].all():
        return possible(
            "a namespace here has the peer's address and no such connection, but another network may have it too; "
            "a probe tells"
        )
    return possible("an idle connection with a live peer looks the same; only a probe can tell")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    missing = int(_doubtful(view)[rows].sum())
    if not missing:
        return ()
    return (
        Evidence(
            "other end",
            f"absent ×{missing}",
            "sock_diag in the namespace that has the peer's address",
            "that namespace was dumped in all states and has no such connection"
            if _gone(view)[rows].sum() == missing
            else "no such connection in a namespace with that address; nothing shows that it is the peer's",
        ),
    )


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "problem" if _gone(view)[rows].any() else "notice"


_CLUES = (
    Clue("timer", "0: no keepalive, nothing in flight; no event will ever come from this side"),
    Clue("last_data_recv_ms", "since data last arrived"),
    Clue("last_data_sent_ms", "since data was last sent"),
    Clue("last_ack_recv_ms", "since anything was last heard of the peer"),
)
_DOES_NOT = (
    Advice(
        "`net.ipv4.tcp_keepalive_time`",
        "it only gives the default to sockets that turn keepalive on themselves",
        proofs=("armed-keepalive",),
    ),
    NOT_FIN_TIMEOUT,
    NOT_USER_TIMEOUT_IDLE,
)

RULE = Rule(
    name="idle-unprobed",
    title="silent, and nothing would notice if the peer were dead",
    severity="notice",
    rank=55,
    means="keepalive",
    beyond_sysctls="no timer is armed on it, so no timer value matters",
    claims=("C9", "X21", "S18"),
    clues=_CLUES,
    ends=(probe("idle-unprobed"), PREVENT_SILENCE),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    cases=(
        Case(
            title="an MPTCP connection: silent on all its subflows, and nothing would notice if the peer were dead",
            rows=mptcp_rows,
            clues=(
                Clue("protocol", "262: the MPTCP connection itself; no timer runs on any of its subflows"),
                Clue("mptcp_subflows", "additional subflows"),
            ),
            ends=(
                Remedy(
                    "keepalive, which its program has to set (`finwait probe` acts on single TCP connections): it "
                    "runs on the subflows; where the peer is gone they end, and the connection after "
                    "`net.mptcp.close_timeout`"
                ),
                PREVENT_SILENCE,
            ),
            does_not=_DOES_NOT,
        ),
        Case(
            title="silent, and its peer is gone: the peer's address is on this machine, and the connection is not",
            rows=_gone,
            clues=_CLUES,
            ends=(
                Remedy(
                    "probe it: the peer's kernel answers with a RST, or not at all, and either ends it",
                    "reversible",
                    "finwait probe rule = idle-unprobed",
                ),
                destroy("idle-unprobed"),
                PREVENT_SILENCE,
            ),
            does_not=(NOT_WAITING_FOR_THE_GONE, *_DOES_NOT),
        ),
    ),
    unjudged=lambda view: unclocked(
        view,
        view.connections_in(tcp.ESTABLISHED)
        & view.held
        & view.on_every_subflow(view.sockets.timer == 0)
        & (view.other < 0),
    ),
)
