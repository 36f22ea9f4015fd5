"""egress-blocked: the peer has room, but our segments cannot leave this machine.

Seen as       timer 4 (window probes) although snd_wnd is above 0, nothing is in flight (unacked 0),
              and probes were tried (retrans counts them under timer 4). It is a problem once
              they prove that it has lasted 3 s.
Why it stays  The kernel refused to send. The cause is a dropping rule of nftables or iptables in
              OUTPUT or POSTROUTING, a missing or unreachable route, an interface that is down, a
              full queueing discipline, or an IPsec policy. Nothing is in flight, so the
              retransmission timer has nothing to do; the kernel retries on the window probe timer.
              It keeps refusing until somebody changes that here.
Not this      snd_wnd 0: the peer has no room (zero-window). timer 1: the segment left, or a network
              card accepted it, and nobody answers (fin-unanswered-orphan, fin-unanswered-held,
              data-unanswered). Segments that were in flight before the path was blocked stay on
              timer 1; TCPRetransFail then rises.
What ends it  Removing the local rule, or restoring the route and interface: the next probe gets out
              and the connection continues. Otherwise time: an orphan is given up after
              tcp_orphan_retries probes (by default 8: about 104 s), a held socket after
              tcp_retries2 probes (by default 15: about 15 min). If a full queue refuses them,
              probes are 0.5 s apart, and the kernel gives up within seconds.
Won't help    Any action at the peer: none of our segments gets there. SOCK_DESTROY removes this
              end, but its RST is blocked as well, so the peer keeps its end.
Reproduce     finwait lab run egress-blocked
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import forecast
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import RECENT_MS, UNLESS_SET, certain, look_again, orphans
from finwait.diagnosis.view import View
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    states = view.in_state(tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)
    open_window = s.present("snd_wnd") & (s.snd_wnd > 0) & (s.unacked == 0)
    return states & (s.timer == 4) & (s.retrans > 0) & (s.wqueue > 0) & open_window & ~view.sent


def _open(view: View) -> NDArray[np.bool_]:
    return view.in_state(tcp.ESTABLISHED, tcp.CLOSE_WAIT)


def _long(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows have been refused for three seconds and more, by the probes that were refused.

    That two looks found nothing sent proves less: what is refused may have been written just before the second.
    """
    since = [forecast.probed_ms(view, row, unanswered=True) for row in rows.tolist()]
    return np.array(since, np.int64) >= RECENT_MS


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "problem" if _long(view, rows).all() else "notice"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    tries = int(view.sockets.retrans[rows].min())
    reason = f"the window is open and nothing is in flight after {tries} or more attempts to send"
    if not _long(view, rows).all():
        return look_again(f"{reason}, but only for a short time; check with `--for 5s`")
    return certain(f"{reason}; this kernel could not send the segment")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    result = []
    for number in distinct(view.sockets.netns[rows]).tolist():
        namespace = view.namespaces.get(number)
        counted = namespace.counters if namespace is not None else {}
        for name, file, says in (
            (
                "TcpExt.TCPRetransFail",
                "netstat",
                "retransmissions that could not be sent, for all connections of the namespace",
            ),
            ("Ip.OutNoRoutes", "snmp", "packets without a route, for the whole namespace"),
        ):
            if counted.get(name):
                result.append(Evidence(name.partition(".")[2], str(counted[name]), f"/proc/net/{file}", says))
    return (*result, *orphans(view, rows))


def _span(*, orphaned: bool) -> str:
    return forecast.span(forecast.zero_window(orphaned=orphaned, answered=False))


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    remove = _REMOVE_OPEN if _open(view)[rows].all() else _REMOVE
    when = f"wait: {forecast.ends_by_itself(view, rows)}, {UNLESS_SET}"
    return (*_LOOK, remove, Remedy(when, "read-only", proofs=("full-queue-limits",)))


_LOOK = (
    Remedy(
        "find what refuses: firewall rules in this namespace (`nft list ruleset` or `iptables-save -c`)",
        "read-only",
    ),
    Remedy(
        "check queueing disciplines that drop (`tc -s qdisc`) and routes (`ip route get PEER`)", "read-only"
    ),
)
_REMOVE = Remedy(
    "remove that rule, or restore the route or interface; the next probe then gets out, and the FIN after it"
)
_REMOVE_OPEN = Remedy("remove that rule, or restore the route or interface; the next probe then gets out")
_ENDS = (
    *_LOOK,
    _REMOVE,
    Remedy(
        "wait: with the kernel's defaults an orphan is given up after 8 probes (about "
        f"{_span(orphaned=True)}), a held one after 15 (about {_span(orphaned=False)}); if a full queue "
        "refuses them, probes are 0.5 s apart",
        proofs=("full-queue-limits",),
    ),
)
_DOES_NOT = (
    Advice("any action at the peer", "none of our segments gets there"),
    Advice(
        "`ss -K` or SOCK_DESTROY", "it removes this end; its RST is blocked too, so the peer keeps its end"
    ),
    Advice(
        "lower `net.ipv4.tcp_fin_timeout`",
        "it applies to FIN_WAIT2; what is sent here was never acknowledged",
    ),
)
_CLUES = (
    Clue("timer", "4: probing although the window is open"),
    Clue("snd_wnd", "above 0: the peer has room"),
    Clue("unacked", "0: nothing is in flight"),
    Clue("retrans", "attempts that this machine refused (they count as probes under timer 4)"),
    Clue("backoff", "how often the timer was doubled; 0 after many attempts means that a full queue refuses"),
    Clue("expires_ms", "time until the next attempt"),
)

RULE = Rule(
    name="egress-blocked",
    title="closed, but our segments cannot leave this machine; the kernel refuses to send them",
    severity="problem",
    rank=34,
    harm="stall",
    turn=Turn("path", "let it pass"),
    means="by-state",
    beyond_sysctls="this machine refuses to send; only the retry limits decide how long it tries",
    claims=("C18",),
    clues=(
        *_CLUES,
        Clue("notsent_bytes", "bytes that were never sent; a FIN counts as 1"),
        Clue("inode", "0: an orphan, limited by tcp_orphan_retries; else held, limited by tcp_retries2"),
    ),
    ends=_ENDS,
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    proven=_long,
    remedies=_remedies,
    cases=(
        Case(
            title="still open, but its data cannot leave this machine; the kernel refuses to send it",
            rows=_open,
            clues=(*_CLUES, Clue("notsent_bytes", "bytes that were never sent")),
            ends=(
                *_LOOK,
                _REMOVE_OPEN,
                Remedy(
                    "wait: with the kernel's defaults it is given up after 15 probes (tcp_retries2, about "
                    f"{_span(orphaned=False)})",
                    proofs=("full-queue-limits",),
                ),
            ),
            does_not=_DOES_NOT[:2],
        ),
    ),
)
