"""syn-unanswered: connect() waits, and the peer answers no SYN.

Seen as       SYN_SENT on the retransmission timer, with its SYN retransmitted at least twice.
Why it stays  Nobody answers: the host is gone, a filter drops the SYN or its answer, or the
              listener's accept queue is full, so its kernel drops SYNs. If a full listener on this
              machine may be the one, finwait names it: in the same namespace, or in one that
              interfaces connect with it. It is certain that nobody answers, not why: the address may
              be translated on the way (DNAT), or belong to another machine or namespace as well.
Not this      A handshake in progress (handshake), even with one lost SYN. An old connection on the
              same ports at the other end, which accepts no SYN (half-open). A closed port: its RST
              refuses the connection at once.
What ends it  An answer; or time: tcp_syn_retries (6: 127 s, or 131 s if tcp_syn_linear_timeouts is
              4), after which connect() fails with ETIMEDOUT. A timeout in the program.
Won't help    Any setting for closing connections; keepalive and tcp_retries2, which apply to open
              connections.
Reproduce     finwait lab run syn-unanswered
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import opening
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import certain, half_open, holder_names, likely, possible
from finwait.diagnosis.view import View
from finwait.table.sockets import MAPPED
from finwait.table.units import duration_text
from finwait.uapi import tcp
from finwait.uapi.observation import SocketOptions

__all__ = ["RULE", "match"]

TRIES = 2
"""Of a SYN that was sent again so often not just one packet was lost."""
_SHOWN = 3
_ANY_IPV4 = (0, MAPPED)
_LO = 1
"""The interface `lo` of every namespace."""
_LOOPBACK4 = 0xFFFF << 8 | 127
"""The beginning of ::ffff:127.0.0.0/104."""
_LOOPBACK6 = (0, 1)


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    retried: NDArray[np.bool_] = (
        (s.state == tcp.SYN_SENT) & (s.protocol == 6) & (s.timer == 1) & (s.retrans >= TRIES)
    )
    return retried & ~half_open.match(view) if retried.any() else retried


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    low = int(view.sockets.retrans[rows].min())
    reason = f"at least {low} SYNs were retransmitted without an answer"
    doors = _full_listeners(view, rows)
    if len(doors) < len(rows):
        return certain(reason)
    translated = bool(view.flow_natted[rows].any())
    if translated or any(len(_owners_of(view, row)) > 1 for row in doors):
        why = "its address is translated on the way" if translated else "several namespaces have its address"
        return possible(f"{reason}, but {why}, so they may be meant for another listener")
    return likely(f"{reason}; a filter, DNAT or another owner of the address may be the cause instead")


def _owners_of(view: View, row: int) -> list[int]:
    """Return the namespaces that have the address which a row connects to, and that interfaces lead to."""
    target, netns = tuple(view.sockets.dst[row].tolist()), int(view.sockets.netns[row])
    if _loopback(target):
        return [netns]
    return [n for n, ns in view.namespaces.items() if target in ns.addresses and view.connected(netns, n)]


def _full_listeners(view: View, rows: NDArray[np.int64]) -> dict[int, list[int]]:
    """Return for rows the listeners with a full queue that they may be meant for: their port, and an address of theirs.

    An address may be another machine's as well, or translated on the way; a row whose listener is not found has none.
    """
    s = view.sockets
    full = np.flatnonzero((s.state == tcp.LISTEN) & (s.protocol == 6) & (s.rqueue > s.wqueue))
    doors: dict[int, list[int]] = {}
    for door in full.tolist():
        doors.setdefault(int(s.sport[door]), []).append(door)
    listeners: dict[int, list[int]] = {}
    for row in rows[np.isin(s.dport[rows], [*doors])].tolist() if doors else ():
        target = tuple(s.dst[row].tolist())
        matching = [door for door in doors[int(s.dport[row])] if _listens(view, door, row, target)]
        if matching:
            listeners[row] = matching
    return listeners


def _listens(view: View, door: int, row: int, target: tuple[int, int]) -> bool:
    """Return whether a listener may take a connection that a row opens to an address.

    It must be of the family of the address, and hear on an interface that the SYN can come from: one that is bound to
    a device hears nothing else. Within a namespace SYNs come from `lo`, or from the device that the row is bound to;
    between namespaces never from `lo`, and which other one is not known.

    Only one in the same namespace takes those to a loopback address. A listener on every address takes those to the
    addresses of its namespace, and no others; of its own namespace they may be unknown.
    """
    s = view.sockets
    bound, number, netns = tuple(s.src[door].tolist()), int(s.netns[door]), int(s.netns[row])
    if (
        bound != target
        and bound != (_ANY_IPV4 if _ipv4(target) else (0, 0))
        and not _dual(view, door, target)
    ):
        return False
    device, own = int(s.ifindex[door]), int(s.ifindex[row])
    if device and (device not in (own or _LO, own) if number == netns else device == _LO):
        return False
    if _loopback(target):
        return number == netns
    space = view.namespaces.get(number)
    addresses = space.addresses if space is not None else frozenset()
    if number == netns:
        return bound == target or target in addresses or not addresses
    return target in addresses and view.connected(netns, number)


def _ipv4(address: tuple[int, int]) -> bool:
    return address[0] == 0 and address[1] >> 32 == 0xFFFF


def _dual(view: View, door: int, target: tuple[int, int]) -> bool:
    """Return whether a listener on `::` takes connections to an IPv4 address as well."""
    s = view.sockets
    return _ipv4(target) and not s.src[door].any() and not s.v6only[door]


def _loopback(address: tuple[int, int]) -> bool:
    return address == _LOOPBACK6 or (address[0] == 0 and address[1] >> 24 == _LOOPBACK4)


def _at_full(view: View) -> NDArray[np.bool_]:
    """Return which rows meet a full queue of this machine."""
    out = np.zeros(len(view), np.bool_)
    out[[*_full_listeners(view, np.flatnonzero(match(view)))]] = True
    return out


def _options(view: View, row: int) -> SocketOptions | None:
    """Return the options of a row's socket; None where they were not read."""
    options = view.socket_options.get(int(view.sockets.inode[row]))
    return None if options is None or options.errno else options


def _unless(view: View, rows: NDArray[np.int64]) -> str:
    """Return what may end some rows sooner or later than it was computed, because it was not read."""
    read = [_options(view, row) for row in rows.tolist()]
    unread = [
        name
        for name, values in (
            ("TCP_SYNCNT", [options and options.syncnt for options in read]),
            ("TCP_USER_TIMEOUT", [options and options.user_timeout_ms for options in read]),
        )
        if None in values
    ]
    return f", unless the program set {' or '.join(unread)}" if unread else ""


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    spans = [opening.of_row(view, row, _options(view, row)) for row in rows.tolist()]
    since, remaining_ms = max(span.since_ms for span in spans), max(span.least_ms for span in spans)
    result = [
        Evidence(
            "waits since", duration_text(since), "inet_diag_msg.idiag_retrans and idiag_expires",
            "the longest wait since the first SYN, derived from the kernel's retransmission times",
        ),
        Evidence(
            "gives up in", duration_text(remaining_ms),
            "tcp_syn_retries or TCP_SYNCNT, tcp_syn_linear_timeouts and TCP_USER_TIMEOUT",
            f"the last to give up{_unless(view, rows)}; connect() then fails with ETIMEDOUT",
        ),
    ]  # fmt: skip
    listeners = _full_listeners(view, rows)
    doors = sorted({door for group in listeners.values() for door in group})
    spaces = max((len(_owners_of(view, row)) for row in listeners), default=0)
    several = f"; {spaces} namespaces have this address, so another may be meant" if spaces > 1 else ""
    for door in doors[:_SHOWN]:
        s = view.sockets
        number = int(s.netns[door])
        place = view.namespaces[number].label if number in view.namespaces else f"netns {number}"
        result.append(
            Evidence(
                "full listener",
                f"{view.ends(door)[0]} in {place}, {s.rqueue[door]} of {s.wqueue[door]} waiting",
                "sock_diag",
                f"of {holder_names(view, door)}{_pace(view, door)}; while its accept queue is full, its kernel drops "
                f"SYNs that are meant for it{several}",
            )
        )
    if (more := len(doors) - _SHOWN) > 0:
        result.append(Evidence("full listener", f"and {more} more", "sock_diag", "they may be meant as well"))
    return tuple(result)


def _pace(view: View, door: int) -> str:
    """Say that a program accepts, where two looks showed it: it is too slow, and a restart would cure nothing."""
    return ", which accepts, but too slowly" if view.accepting.taken[door] else ""


_QUEUE = Remedy(
    "if that listener is meant, its program has to accept, or to accept faster (`finwait explain accept-queue-full` "
    "shows how)",
    proofs=("syn-retries",),
)
_PATH = Remedy(
    "find out what drops the SYN or its answer: the peer's host, its accept queue, or a filter on either side",
)
_OWN = Remedy(
    "it ends by itself: connect() fails when tcp_syn_retries are used up; TCP_SYNCNT, TCP_USER_TIMEOUT or "
    "the program's own timeout end it sooner",
    proofs=("syn-retries",),
)

_CLUES = (
    Clue("state", "opening"),
    Clue("timer", "1: the SYN is being retransmitted"),
    Clue("retrans", "SYNs retransmitted without an answer"),
    Clue("expires_ms", "time until the next one"),
)
_DOES_NOT = (
    Advice("turn on keepalive", "it probes open connections; this one is not open"),
    Advice(
        "lower `net.ipv4.tcp_retries2`",
        "it applies to open connections; tcp_syn_retries applies to this one",
        proofs=("syn-retries",),
    ),
)

RULE = Rule(
    name="syn-unanswered",
    title="connect() waits; the peer answers no SYN",
    severity="notice",
    rank=80,
    harm="stall",
    turn=Turn("far", "answer"),
    means="by-state",
    beyond_sysctls="only tcp_syn_retries decides how long connect() tries",
    claims=("C19b", "X60"),
    clues=_CLUES,
    ends=(_PATH, _OWN),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    cases=(
        Case(
            title="connect() waits; it may be meant for a listener here whose accept queue is full",
            turn=Turn("peer", "accept()"),
            rows=_at_full,
            clues=_CLUES,
            ends=(_QUEUE, _PATH, _OWN),
            does_not=_DOES_NOT,
        ),
    ),
)
