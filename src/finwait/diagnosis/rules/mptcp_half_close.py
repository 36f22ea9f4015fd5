"""mptcp-half-close: an MPTCP connection does not finish closing; its subflows look ESTABLISHED.

Seen as       An MPTCP row (IPPROTO_MPTCP dump) in FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK or
              CLOSING.
Why it stays  As with TCP, one side shut down sending and the other does not close. But the FIN
              belongs to the data level: the TCP subflows stay ESTABLISHED with shutdown bits 0.
Not this      A connection that fell back to plain TCP: its TCP row is correct, and this one is
              called healthy. An answer that is
              still streaming: mptcp_bytes_received or mptcp_bytes_acked grows between two looks.
              One look says "possible" if a subflow carried data in the last 3 s, or if none was
              found by its token.
What ends it  In FIN_WAIT2 the peer's close; in CLOSE_WAIT close() by its own program; destroying
              the subflows. A peer that has closed its socket resets a CLOSE_WAIT 60 s
              later (Linux, whatever net.mptcp.close_timeout is); the descriptor stays.
Won't help    Looking at TCP rows; tcp_fin_timeout while it is held.
Reproduce     finwait lab run mptcp-half-close
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    CLOSE_AT_PEER,
    NOT_FIN_TIMEOUT,
    PREVENT_SILENCE,
    RECENT_MS,
    by_namespace,
    certain,
    likely,
    look_again,
    peer_missing,
    peer_unseen,
    watched_long,
)
from finwait.diagnosis.view import View
from finwait.errors import Gap
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    states = (tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)
    still = (~view.moved & ~view.sent) | _ignored(view) | view.fell_back
    return (s.protocol == 262) & np.isin(s.state, states) & view.held & still


def _ignored(view: View) -> NDArray[np.bool_]:
    """Return rows that receive what their program leaves where it is: it is stopped, or what is unread only grew.

    What is unread is told in memory, of which a little may be read or come without a change.
    """
    s = view.sockets
    grew = (s.rqueue > view.queue_before) & (view.queue_before > 0) & ~view.read
    return (s.protocol == 262) & (s.state == tcp.FIN_WAIT2) & view.moved & (grew | view.halted)


def _unread(view: View) -> NDArray[np.bool_]:
    """Return half-closed rows whose own program leaves something unread: it is that one that keeps them."""
    s = view.sockets
    stays = (s.protocol == 262) & (s.state == tcp.FIN_WAIT2) & (s.rqueue > 0) & ~view.read
    return _ignored(view) | stays


def _shut_out(view: View) -> NDArray[np.bool_]:
    """Return rows whose peer has closed its end and has no room for the answer: a subflow probes its window."""
    s = view.sockets
    whole, part = view.subflows
    out = np.zeros(len(view), np.bool_)
    out[whole[view.shut_out[part] & ~view.sent[part]]] = True
    return out & (s.protocol == 262) & (s.state == tcp.CLOSE_WAIT)


def _kept(view: View) -> NDArray[np.bool_]:
    """Return rows whose peer has closed: their own program is to do so, too."""
    s = view.sockets
    return (s.protocol == 262) & (s.state == tcp.CLOSE_WAIT)


def _sent(view: View) -> NDArray[np.bool_]:
    """Return rows whose own end of data the peer has not acknowledged."""
    s = view.sockets
    return (s.protocol == 262) & np.isin(s.state, (tcp.FIN_WAIT1, tcp.CLOSING, tcp.LAST_ACK))


def _quiet(view: View, rows: NDArray[np.int64]) -> bool:
    """Return whether all subflows of all rows are known to have carried nothing for a while."""
    s = view.sockets
    whole, part = view.subflows
    part = part[np.isin(whole, rows)]
    reported = s.present("mptcp_token_local")[part] & s.present("last_data_recv_ms")[part]
    recent = (s.last_data_recv_ms[part] < RECENT_MS) | (s.last_data_sent_ms[part] < RECENT_MS)
    return bool(np.isin(rows, whole).all() and reported.all() and not recent.any())


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    if view.fell_back[rows].all():
        return "healthy"
    return "notice" if _shut_out(view)[rows].all() else "problem"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if view.fell_back[rows].all():
        return certain("its flags say that it fell back to TCP")
    if ignored := int(_ignored(view)[rows].sum()):
        if not watched_long(view)[rows].all():
            return look_again("bytes arrive, and the program may still read them; check with `--for 5s`")
        on = "" if ignored == len(rows) else f" on {ignored} of {len(rows)}"
        arrival = (
            f"bytes arrived{on}, and the program read none, in {view.watched_ms / 1000:.1f} s of watching"
        )
        if view.halted[rows].all():
            return certain(f"{arrival}: it is stopped")
        return likely(f"{arrival}; a program that reads again later looks the same")
    if watched_long(view)[rows].all():
        return certain(f"no byte arrived or was acknowledged in {view.watched_ms / 1000:.1f} s of watching")
    if _quiet(view, rows):
        return certain(
            "the MPTCP row is the connection, and its state is the one that counts; no subflow carried data "
            f"for {RECENT_MS // 1000} s"
        )
    return look_again("the answer may still be streaming; check with `--for 5s`")


def _unlisted(view: View) -> list[Gap]:
    """Return the namespaces in which MPTCP has open subflows, and the connections that they belong to are not told."""
    s = view.sockets
    subflows = view.in_state(tcp.ESTABLISHED) & (s.ulp == b"mptcp")
    listed = distinct(s.netns[s.protocol == 262])
    return by_namespace(
        view,
        subflows & ~np.isin(s.netns, listed),
        lambda _: "list its MPTCP connections, only their subflows",
        "the module mptcp_diag (Linux 5.9)",
    )


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    if _unread(view)[rows].all():
        return (_READ, _END)
    if _shut_out(view)[rows].all():
        return (_PEER_READS, _END)
    if _kept(view)[rows].all():
        return (_CLOSE_HERE, _END)
    if peer_missing(view)[rows].all():
        return (_END,)
    if peer_unseen(view)[rows].any():
        return (_PROBE, CLOSE_AT_PEER, _END, PREVENT_SILENCE)
    return (CLOSE_AT_PEER, _END)


_PROBE = Remedy(
    "set keepalive in its program (`finwait probe` acts on single TCP connections); keepalive runs on the "
    "subflows: if the peer is gone they end, and the connection ends after `net.mptcp.close_timeout`",
)
_READ = Remedy("make this program read everything, or close the connection here")
_PEER_READS = Remedy("make the peer's program read what was sent, or close its socket")
_CLOSE_HERE = Remedy(
    "close() in the program that holds it: the peer has sent all that it will send; a restart of it closes it, too"
)
_END = Remedy(
    "send a FIN from its CLOSE_WAIT end if that is on this machine, otherwise a reset (MPTCP fast close) "
    "through the descriptor; SOCK_DESTROY does not support MPTCP",
    "destructive",
    "finwait clear mptcp-half-close",
)

_CLUES = (
    Clue("protocol", "262: the MPTCP connection itself, not one of its subflows"),
    Clue("state", "the state of the data level in which it is stuck"),
    Clue("inode", "not 0: a descriptor refers to it"),
    Clue("mptcp_subflows", "additional subflows, each with its own TCP row"),
    Clue("mptcp_bytes_received", "bytes received on all subflows"),
    Clue("rqueue", "memory taken by unread data"),
)

_NOT_TCP_ROWS = Advice(
    "look at the TCP rows",
    "subflows stay ESTABLISHED, with shutdown bits 0",
    proofs=("mptcp-half-close",),
)

RULE = Rule(
    name="mptcp-half-close",
    title="an MPTCP connection is half-closed and held; its subflows still look ESTABLISHED",
    severity="problem",
    rank=45,
    harm="leak",
    turn=Turn("peer", "close()"),
    means="by-state",
    beyond_sysctls="the MPTCP connection has to close, not its subflows",
    claims=("C17", "X49"),
    clues=_CLUES,
    ends=(_PROBE, CLOSE_AT_PEER, _END, PREVENT_SILENCE),
    does_not=(
        _NOT_TCP_ROWS,
        NOT_FIN_TIMEOUT,
    ),
    confidence=_confidence,
    grade=_grade,
    match=match,
    unjudged=_unlisted,
    remedies=_remedies,
    cases=(
        Case(
            title="an MPTCP connection that is plain TCP: its TCP row says what there is to say",
            severity="healthy",
            turn=Turn("kernel"),
            rows=lambda view: view.fell_back,
            clues=(Clue("mptcp_flags", "bit 0: it fell back to TCP, for the peer does not speak MPTCP"),),
            ends=(Remedy("see its TCP row: `finwait list` shows both, with the same ports", "read-only"),),
            does_not=(),
        ),
        Case(
            title="an MPTCP connection is half-closed and held: this program leaves unread what arrives",
            turn=Turn("holder", "read, close()"),
            rows=_unread,
            clues=_CLUES,
            ends=(_READ, _END),
            does_not=(NOT_FIN_TIMEOUT,),
        ),
        Case(
            title="an MPTCP connection cannot send its answer: the peer has closed its end and has no room",
            severity="notice",
            turn=Turn("peer", "read"),
            rows=_shut_out,
            clues=(*_CLUES, Clue("wqueue", "bytes that wait for room")),
            ends=(_PEER_READS, _END),
            does_not=(_NOT_TCP_ROWS, NOT_FIN_TIMEOUT),
        ),
        Case(
            title="the peer of an MPTCP connection has closed, and this program keeps its end",
            turn=Turn("holder", "close()"),
            rows=_kept,
            clues=_CLUES,
            ends=(_CLOSE_HERE, _END),
            does_not=(_NOT_TCP_ROWS, NOT_FIN_TIMEOUT),
        ),
        Case(
            title="an MPTCP connection has sent its end of data, and the peer has not acknowledged it",
            turn=Turn("far", "answer"),
            rows=_sent,
            clues=_CLUES,
            ends=(_PROBE, _END),
            does_not=(_NOT_TCP_ROWS, NOT_FIN_TIMEOUT),
        ),
    ),
)
