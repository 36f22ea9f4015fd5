"""egress-blocked: the peer has room, and what we have to say cannot leave this machine.

Seen as       timer 4 (window probes) although snd_wnd is above 0, nothing in flight (unacked 0), and probes that
              were tried (retrans, which counts them under timer 4).
Why it stays  The kernel refused to send: a rule of nftables or iptables in OUTPUT or POSTROUTING that drops, no
              route or an unreachable one, an interface that is down, a queueing discipline that is full, an IPsec
              policy. Nothing is in flight, so the retransmission timer has nothing to do; the kernel tries again
              by the timer of window probes. Whatever refuses keeps refusing until somebody changes it here.
Not this      snd_wnd 0: the peer has no room (zero-window). timer 1: the segment left, or was accepted by a network
              card, and nobody answers (fin-unanswered-orphan, fin-unanswered-held, data-unanswered). Segments that
              were in flight before the way was blocked stay on timer 1; TCPRetransFail then rises.
What ends it  Removing the local rule, or restoring route and interface: the next probe gets out and the connection
              goes on. Otherwise time: an orphan is given up after tcp_orphan_retries probes (by default 8: about
              104 s), a held one after tcp_retries2 of them (by default 15: about 15 min). Where a full queue refuses
              them they are 0.5 s apart, and it is over within seconds.
What does not Anything at the peer: no segment of ours gets there. SOCK_DESTROY removes this end, and its RST is
              blocked as well, so that the peer keeps its end.
Reproduce     finwait lab run egress-blocked
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import forecast
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import RECENT_MS, certain, likely, look_again, orphans
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

DOUBLINGS = 4
"""So many doublings of the probe timer, which begins at 200 ms or more, take 3 s at least."""
AT_ONCE = 7
"""So many probes take 3 s where a full queue refuses them: one every TCP_RESOURCE_PROBE_INTERVAL (0.5 s)."""


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    states = view.in_state(tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)
    open_window = s.present("snd_wnd") & (s.snd_wnd > 0) & (s.unacked == 0)
    return states & (s.timer == 4) & (s.retrans > 0) & (s.wqueue > 0) & open_window & ~view.sent


def _open(view: View) -> NDArray[np.bool_]:
    return view.in_state(tcp.ESTABLISHED, tcp.CLOSE_WAIT)


def _long(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows have been refused for three seconds and more."""
    s = view.sockets
    return (
        (s.backoff[rows] >= DOUBLINGS)
        | (s.retrans[rows] >= AT_ONCE)
        | (view.moved_known[rows] & (view.watched_ms >= RECENT_MS))
    )


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    closing = view.sockets.state[rows] != tcp.ESTABLISHED
    return "problem" if (_long(view, rows) & closing).any() else "notice"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    tries = int(view.sockets.retrans[rows].min())
    said = f"the window is open and nothing is in flight after {tries} or more attempts to send"
    if not _long(view, rows).any():
        return look_again(f"{said}, but not for long; `--for 5s` looks twice and tells")
    if tries > 1:
        return certain(f"{said}: this kernel could not hand the segment on")
    return likely(f"{said}: this kernel could not hand the segment on")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    result = []
    for number in np.unique(view.sockets.netns[rows]).tolist():
        namespace = view.namespaces.get(number)
        counted = namespace.counters if namespace is not None else {}
        for name, file, says in (
            (
                "TcpExt.TCPRetransFail",
                "netstat",
                "retransmissions that could not leave, of all connections of the namespace",
            ),
            ("Ip.OutNoRoutes", "snmp", "packets without a route, of the whole namespace"),
        ):
            if counted.get(name):
                result.append(Evidence(name.partition(".")[2], str(counted[name]), f"/proc/net/{file}", says))
    return (*result, *orphans(view, rows))


def _span(*, orphaned: bool) -> str:
    return forecast.span(forecast.zero_window(orphaned=orphaned, answered=False))


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    remove = _REMOVE_OPEN if _open(view)[rows].all() else _REMOVE
    when = f"time: it is given up {forecast.ends_by_itself(view, rows)}, without TCP_USER_TIMEOUT"
    return (*_LOOK, remove, Remedy(when, "read-only", proofs=("full-queue-limits",)))


_LOOK = (
    Remedy(
        "find what refuses: rules of the firewall in this namespace, `nft list ruleset` or `iptables-save -c`",
        "read-only",
    ),
    Remedy("queueing disciplines that drop, `tc -s qdisc`; routes, `ip route get PEER`", "read-only"),
)
_REMOVE = Remedy(
    "remove that rule, or restore route and interface: the next probe gets out, the FIN behind it"
)
_REMOVE_OPEN = Remedy("remove that rule, or restore route and interface: the next probe gets out")
_ENDS = (
    *_LOOK,
    _REMOVE,
    Remedy(
        "time: with the kernel's defaults an orphan is given up after 8 probes "
        f"(about {_span(orphaned=True)}), a held one after 15 (about {_span(orphaned=False)}); where a full queue "
        "refuses them they are 0.5 s apart",
        proofs=("full-queue-limits",),
    ),
)
_DOES_NOT = (
    Advice("anything at the peer", "no segment of ours gets there"),
    Advice(
        "`ss -K` or SOCK_DESTROY", "it removes this end; its RST is blocked too, and the peer keeps its end"
    ),
    Advice(
        "lower `net.ipv4.tcp_fin_timeout`", "it is about FIN_WAIT2; what is sent here was never acknowledged"
    ),
)
_CLUES = (
    Clue("timer", "4: probing, although the window is open"),
    Clue("snd_wnd", "above 0: the peer has room"),
    Clue("unacked", "0: nothing is in flight"),
    Clue("retrans", "attempts that this machine refused (probes, under timer 4)"),
    Clue("backoff", "doublings of the timer; 0 with many attempts: a full queue refuses"),
    Clue("expires_ms", "until the next attempt"),
)

RULE = Rule(
    name="egress-blocked",
    title="closed, and our segments cannot leave this machine: the kernel itself refuses to send them",
    severity="problem",
    rank=34,
    means="by-state",
    beyond_sysctls="this machine refuses to send; only the limits of retries govern how long it tries",
    claims=("C18",),
    clues=(
        *_CLUES,
        Clue("notsent_bytes", "bytes that were never sent once, a FIN counting 1"),
        Clue("inode", "0: an orphan, bounded by tcp_orphan_retries; else held, by tcp_retries2"),
    ),
    ends=_ENDS,
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    remedies=_remedies,
    cases=(
        Case(
            title="still open, and its data cannot leave this machine: the kernel itself refuses to send it",
            rows=_open,
            clues=(*_CLUES, Clue("notsent_bytes", "bytes that were never sent once")),
            ends=(
                *_LOOK,
                _REMOVE_OPEN,
                Remedy(
                    "time: with the kernel's defaults it is given up after 15 probes "
                    f"(tcp_retries2, about {_span(orphaned=False)})",
                    proofs=("full-queue-limits",),
                ),
            ),
            does_not=_DOES_NOT[:2],
        ),
    ),
)
