"""How long a handshake lasts that is not completed: a SYN that nobody answers, and the answer to one (`answering`).

Mirrors net/ipv4/tcp_timer.c as `finwait.diagnosis.forecast` does, for SYN_SENT: ``tcp_write_timeout`` gives up by the
count (tcp_syn_retries and tcp_syn_linear_timeouts), or by the time that tcp_syn_retries stands for. TCP_USER_TIMEOUT
takes the place of that time (``retransmits_timed_out``), counts from the first SYN, and so also lengthens, up to the
count.

TCP_SYNCNT takes the place of tcp_syn_retries.

The other side, SYN_RECV, is no socket yet but a request of the listener's, with a timer of its own
(net/ipv4/inet_connection_sock.c: ``reqsk_timer_handler``, ``syn_ack_recalc``, ``tcp_reqsk_timeout``). It is dropped at
the firing before which the timer has fired tcp_synack_retries times; the listener's TCP_SYNCNT takes the place of
that. How often it has fired is not told: ``idiag_retrans`` counts SYN-ACKs that were sent again, and each SYN that
the client sends again makes one more and sets the timer anew (``tcp_check_req``). So a request lasts at least what
follows if all of them were firings, and at most what follows if no more were than the armed timer shows. While more
than half of the backlog is handshakes the kernel drops old ones after as few as 2 retries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from finwait.diagnosis import wheel
from finwait.diagnosis.forecast import DEFAULTS, Expiry, NamespaceLimits, model_ms
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.view import View
    from finwait.uapi.observation import SocketOptions

__all__ = ["Handshake", "Opening", "answering", "answers_left_ms", "expiry", "of_row"]

_SYN_RTO_MS: Final = 1000
"""TCP_TIMEOUT_INIT."""
_FEW_RETRIES: Final = 2
"""So often at least the kernel sends a SYN-ACK again, also where too many handshakes wait."""
_SMALL_BACKLOG: Final = 8
"""A backlog counts as this many at least."""
_FIRINGS: Final = 127
"""``num_timeout`` is a field of 7 bits."""
_SYN_LINEAR: Final = 4
"""What tcp_syn_linear_timeouts is by default, where the kernel has it (6.5)."""


def _fires_ms(
    limits: NamespaceLimits, linear: int, user_timeout_ms: int = 0, *, late: bool = False
) -> list[int]:
    """Return when the timer of a SYN fires that nobody answers: each sends it again, the last one gives up.

    Args:
        limits: of the namespace.
        linear: tcp_syn_linear_timeouts.
        user_timeout_ms: TCP_USER_TIMEOUT of the socket; 0 for none. The timer is set to no more than is left of it.
        late: whether timers are as late as they may be, for the limits; the answer is without it.
    """
    rto = now = _SYN_RTO_MS
    fires, waits = [now], [now]
    while True:
        passed = now + (wheel.late_ms(*waits) if late else 0)
        if len(fires) > limits.syn_retries + linear:
            return fires
        if user_timeout_ms and now >= user_timeout_ms:
            return fires
        model = model_ms(limits.syn_retries, limits.rto_max_ms, _SYN_RTO_MS)
        if not user_timeout_ms and passed >= model and len(fires) > 1:
            return fires
        if len(fires) > linear:
            rto = min(2 * rto, limits.rto_max_ms)
        waits.append(min(rto, user_timeout_ms - now) if user_timeout_ms else rto)
        now += waits[-1]
        fires.append(now)


def _waits_ms(fires: list[int], since: int = 0) -> list[int]:
    """Return what the timer was set to for each firing, from one on."""
    return [now - before for before, now in zip([0, *fires[:-1]], fires, strict=True)][since:]


def expiry(limits: NamespaceLimits = DEFAULTS, user_timeout_ms: int = 0) -> Expiry:
    """Return how long connect() tries when no SYN is answered; TCP_SYNCNT is given as `syn_retries`."""
    linear = limits.syn_linear or 0
    fires = _fires_ms(limits, linear, user_timeout_ms)
    early = _fires_ms(limits, linear, user_timeout_ms, late=True)
    late_ms = wheel.late_ms(*_waits_ms(fires))
    return Expiry(early[-1] / 1000, len(early) - 1, (fires[-1] + late_ms) / 1000)


class Opening(Struct, frozen=True):
    """What is known of a connection in SYN_SENT."""

    since_ms: int
    """Its first SYN was sent so long ago."""
    least_ms: int
    """The kernel gives up after so long from the look, at the earliest."""
    most_ms: int
    """… and at the latest."""


def of_row(view: View, row: int, options: SocketOptions | None = None) -> Opening:
    """Return since when the SYN of a row in SYN_SENT is unanswered, and when the kernel gives up.

    Args:
        view: the sockets.
        row: which.
        options: of the socket; None where they are not known.
    """
    s = view.sockets
    space = view.namespaces.get(int(s.netns[row]))
    limits = NamespaceLimits.of(space.sysctls) if space is not None else DEFAULTS
    tries, remaining_ms = int(s.retrans[row]), int(s.expires_ms[row])
    user_timeout_ms = 0
    if options is not None:
        user_timeout_ms = options.user_timeout_ms or 0
        limits = replace(
            limits,
            syn_retries=limits.syn_retries if options.syncnt is None else options.syncnt,
            rto_max_ms=options.rto_max_ms or limits.rto_max_ms,
        )
    linear = limits.syn_linear
    if linear is None:  # each SYN sent again without a doubling tells that there are such
        linear = _SYN_LINEAR if s.present("backoff")[row] and tries > s.backoff[row] else 0
    fires = _fires_ms(limits, linear, user_timeout_ms)
    early = _fires_ms(limits, linear, user_timeout_ms, late=True)
    armed = min(tries, len(fires) - 1)
    next_ms = fires[armed]
    late_ms = wheel.late_ms(*_waits_ms(fires, armed))
    return Opening(
        max(next_ms - remaining_ms, 0),
        max(early[-1] - next_ms, 0) + remaining_ms,
        fires[-1] - next_ms + remaining_ms + round(late_ms),
    )


def answers_left_ms(retries: int, firings: int, rto_max_ms: int = DEFAULTS.rto_max_ms) -> list[int]:
    """Return what the timer of a SYN-ACK is set to after its next firing, until the request is dropped.

    Args:
        retries: tcp_synack_retries, or TCP_SYNCNT of the listener.
        firings: how often the timer has fired so far.
        rto_max_ms: what no timer exceeds.
    """
    return [min(_SYN_RTO_MS << min(n, 20), rto_max_ms) for n in range(firings + 1, retries + 1)]


class Handshake(Struct, frozen=True):
    """What is known of a handshake that a client has begun and not completed (SYN_RECV)."""

    least_ms: int
    """The kernel drops it after so long from the look, at the earliest."""
    most_ms: int
    """… and at the latest, unless the client sends its SYN again."""
    retries: int
    """So often the SYN-ACK is sent again: tcp_synack_retries, or TCP_SYNCNT of the listener."""
    own: bool
    """Whether the listener has set that itself (TCP_SYNCNT)."""
    read: bool
    """Whether the options of every listener that may have received the SYN are known."""
    maybe_own: int
    """A TCP_SYNCNT of the listener that may as well be none: the option reads as tcp_syn_retries then; 0 for none."""
    deferred: bool
    """Whether a listener waits for data (TCP_DEFER_ACCEPT), so that the client may have completed its part."""
    crowded: bool
    """Whether so many handshakes wait that the kernel may drop this one sooner."""


def answering(view: View, row: int) -> Handshake | None:
    """Return when the kernel drops a handshake that its client does not complete; None where no setting is known.

    Args:
        view: the sockets.
        row: which; a request in SYN_RECV.
    """
    s = view.sockets
    space = view.namespaces.get(int(s.netns[row]))
    limits = NamespaceLimits.of(space.sysctls) if space is not None else DEFAULTS
    if limits.synack_retries is None:
        return None
    at, to = view.handshakes
    doors = to[np.searchsorted(at, row, "left") : np.searchsorted(at, row, "right")].tolist()
    options = [view.socket_options.get(int(s.inode[door])) for door in doors]
    known = [asked for asked in options if asked is not None and asked.syncnt is not None]
    # Unset, it reads as tcp_syn_retries: of the two the setting that nobody made is taken.
    syn_retries = limits.syn_retries
    set_ = {asked.syncnt or 0 for asked in known} - {syn_retries}
    unset = len(known) < len(doors) or any(asked.syncnt == syn_retries for asked in known) or not doors
    counts = {*set_, limits.synack_retries} if unset else set_
    delays = [asked.defer_accept_s or 0 for asked in known]
    backlog = [max(int(s.wqueue[door]), _SMALL_BACKLOG) for door in doors]
    crowded = any(2 * int(view.handshakes_at[d]) > n for d, n in zip(doors, backlog, strict=True))
    low, high = min(counts), max(counts)
    few = min(low, _FEW_RETRIES) if crowded else low
    remaining_ms, fired = int(s.expires_ms[row]), _firings(view, row, limits.rto_max_ms)
    # Of one that has the client's ACK and waits for data, no SYN-ACK is sent, and nothing counts the firings.
    sure = _FIRINGS if any(delays) else fired[1]
    last = max(high, *(_deferred(delay) for delay in delays), 0)
    late_ms = wheel.late_ms(
        _set_ms(fired[0], limits.rto_max_ms), *answers_left_ms(last, fired[0], limits.rto_max_ms)
    )
    return Handshake(
        remaining_ms + sum(answers_left_ms(few, sure, limits.rto_max_ms)),
        remaining_ms + sum(answers_left_ms(last, fired[0], limits.rto_max_ms)) + round(late_ms),
        high,
        own=not unset,
        read=bool(doors) and len(known) == len(doors),
        maybe_own=syn_retries
        if syn_retries != high and any(asked.syncnt == syn_retries for asked in known)
        else 0,
        deferred=any(delays),
        crowded=crowded,
    )


def _set_ms(firings: int, rto_max_ms: int) -> int:
    """Return what the timer of a SYN-ACK was set to last."""
    return min(_SYN_RTO_MS << min(firings, 20), rto_max_ms)


def _firings(view: View, row: int, rto_max_ms: int) -> tuple[int, int]:
    """Return how often the timer of a SYN-ACK has fired, at least and at most.

    At least as often as makes the timer as long as it still runs; and each SYN-ACK that was sent again, and that no
    SYN of the client's has asked for, is a firing. How many SYNs that were is known where the client is here.
    """
    s = view.sockets
    sent, remaining_ms = int(s.retrans[row]), int(s.expires_ms[row])
    least = 0
    while _set_ms(least, rto_max_ms) < min(remaining_ms, rto_max_ms):
        least += 1
    client = int(view.other[row])
    if client >= 0 and s.state[client] == tcp.SYN_SENT:
        least = max(least, sent - int(s.retrans[client]))
    return least, max(least, sent)


def _deferred(seconds: int) -> int:
    """Return how many retries a TCP_DEFER_ACCEPT stands for (``retrans_to_secs`` turned round)."""
    retries, passed, wait = 0, 0, _SYN_RTO_MS // 1000
    while passed < seconds:
        retries, passed = retries + 1, passed + wait
        wait = min(2 * wait, DEFAULTS.rto_max_ms // 1000)
    return retries
