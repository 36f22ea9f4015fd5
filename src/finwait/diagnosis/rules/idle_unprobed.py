"""idle-unprobed: silent for a long time, and nothing would notice if the peer were dead.

Seen as       ESTABLISHED without a timer, and silent for `--idle` (10 min) or more. Or a held
              connection (ESTABLISHED or FIN_WAIT2) whose other end is missing from the namespace of
              this machine that has its address, if other connections show that this namespace is
              the one reached, and nothing was heard for longer than the look took. ESTABLISHED is
              also reported if a namespace here has the other end's address but nothing shows that
              it is the peer's. An MPTCP connection is silent when all its subflows are; keepalive
              on one of them counts.
Why it stays  An idle connection sends nothing. If the peer vanished without a FIN (a node lost, a
              pod deleted after its network), this end notices only when it sends something: data,
              or a keepalive probe.
Not this      timer 2: keepalive is on. The other end exists and is ESTABLISHED. A namespace here
              also has the peer's address, but nothing shows that it is the peer's: then only a
              probe can tell.
What ends it  A keepalive probe: a live peer answers and nothing happens; a dead one ends the
              connection.
Won't help    `tcp_keepalive_*` sysctls: they do not turn keepalive on, and never reach a socket
              without it.
Reproduce     finwait lab run idle-unprobed
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
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
            "a namespace here has the peer's address but no such connection; another network may use the "
            "same address, a probe can tell"
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
            else "a namespace with that address has no such connection, but nothing shows that it is the peer's",
        ),
    )


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "problem" if _gone(view)[rows].all() else "notice"


_CLUES = (
    Clue("timer", "0: no keepalive and nothing in flight; this end will never notice anything by itself"),
    Clue("last_data_recv_ms", "time since data last arrived"),
    Clue("last_data_sent_ms", "time since data was last sent"),
    Clue("last_ack_recv_ms", "time since anything was last heard from the peer"),
)
_DOES_NOT = (
    Advice(
        "`net.ipv4.tcp_keepalive_time`",
        "it only sets the default for sockets whose program turns keepalive on",
        proofs=("armed-keepalive",),
    ),
    NOT_FIN_TIMEOUT,
    NOT_USER_TIMEOUT_IDLE,
)

RULE = Rule(
    name="idle-unprobed",
    title="silent; nothing would notice if the peer were dead",
    severity="notice",
    rank=55,
    harm="residue",
    turn=Turn("you", "probe"),
    means="keepalive",
    beyond_sysctls="no timer is running on it, so no timer value matters",
    claims=("C9", "X21", "S18"),
    clues=_CLUES,
    ends=(probe("idle-unprobed"), PREVENT_SILENCE),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    proven=lambda view, rows: _gone(view)[rows],
    cases=(
        Case(
            title="an MPTCP connection is silent on all its subflows; nothing would notice if the peer were dead",
            rows=mptcp_rows,
            clues=(
                Clue(
                    "protocol", "262: the MPTCP connection itself; no timer is running on any of its subflows"
                ),
                Clue("mptcp_subflows", "additional subflows"),
            ),
            ends=(
                Remedy(
                    "set keepalive in its program (`finwait probe` acts on single TCP connections); "
                    "keepalive runs on the subflows: if the peer is gone they end, and the connection ends "
                    "after `net.mptcp.close_timeout`"
                ),
                PREVENT_SILENCE,
            ),
            does_not=_DOES_NOT,
        ),
        Case(
            title="silent, and the peer is gone: its address is on this machine, but the connection is not",
            rows=_gone,
            clues=_CLUES,
            ends=(
                Remedy(
                    "probe it: the peer's kernel answers with a RST or not at all; either one ends it",
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
