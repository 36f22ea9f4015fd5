"""How long it takes: every span of time that finwait predicts, worked out as the kernel works it out.

Mirrors net/ipv4/tcp_timer.c: ``tcp_keepalive_timer``, ``tcp_write_timeout`` with ``retransmits_timed_out`` and
``tcp_model_timeout``, ``tcp_probe_timer``, ``tcp_orphan_retries``; and ``tcp_fin_time``, ``tcp_time_wait``.

The surprise that runs through all of it: limits that look like counts (tcp_retries2, tcp_orphan_retries,
TCP_KEEPCNT) or like times (TCP_USER_TIMEOUT) are *conditions that a timer looks at when it fires*. tcp_retries2
stands for the time that so many retransmissions would take on a path with an RTO of 200 ms, whatever the RTO is; and
a user timeout of 12 s ends a connection that is probed every 5 s after 15 s.

Timers fire late, by up to an eighth of what they were set to (`finwait.diagnosis.wheel`). That decides more than some
per cent: a firing that is just too early for a limit by the sum of its waits may be past it. So what is predicted has
two ends: `seconds` and `most_s` of an `Expiry`.

What it does not know: a route's own ``rto_min``, ICMP errors that take back a doubling, thin streams, and, where the
options of a socket could not be read, TCP_RTO_MAX_MS: a socket keeps the maximum of its RTO from when it was made, or
its program sets one, and sock_diag tells neither. What is *proven* therefore never exceeds what the clocks of the
socket say (`probed_ms`), and what is *predicted* follows the armed timer where that contradicts the namespace
(`limits_of`).
`finwait lab prove` measures what it predicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.diagnosis import wheel
from finwait.diagnosis.window_probes import answers, room, sends_next
from finwait.table.units import duration_text

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = [
    "DEFAULTS",
    "FAST_RTO_MS",
    "LINGER2_MAX_S",
    "TIME_WAIT_S",
    "Expiry",
    "NamespaceLimits",
    "UnderWay",
    "about",
    "as_orphan",
    "base_rto_ms",
    "ends_by_itself",
    "fin_wait2_orphan_s",
    "keepalive",
    "left",
    "limits_of",
    "model_ms",
    "orphan",
    "probed_ms",
    "probes_left",
    "retransmission",
    "retransmissions_left",
    "span",
    "text",
    "under_way",
    "waited_ms",
    "zero_window",
]

TIME_WAIT_S: Final = 60.0
"""TCP_TIMEWAIT_LEN: compiled in."""
LINGER2_MAX_S: Final = 120
"""TCP_FIN_TIMEOUT_MAX: what TCP_LINGER2 is cut to. The sysctl is not."""
FAST_RTO_MS: Final = 204.0
"""The RTO of a path that answers within a few milliseconds: TCP_RTO_MIN and the round trip, in jiffies."""
_RTO_MIN_MS: Final = 200
"""TCP_RTO_MIN, which `tcp_model_timeout` counts with whatever the RTO is."""
_ORPHAN_RETRIES: Final = 8
"""What a tcp_orphan_retries of 0 means while the RTO is below its maximum."""
_NEVER: Final = 10_000
"""Retransmissions after which we stop: days, by any setting."""
_PROBES_ENOUGH: Final = 300
"""Probes after which nothing changes any more: tcp_retries2 and TCP_KEEPCNT are a byte at most."""
_DOUBLINGS: Final = 40
_RTO_MOST_MS: Final = 120_000
"""TCP_RTO_MAX: neither tcp_rto_max_ms nor TCP_RTO_MAX_MS can be more."""
_ROWS_ASKED: Final = 200
_ACT_MS: Final = 10_000
"""Within so long after the look an act has been done."""
_QUEUE_FULL_MS: Final = 500
"""TCP_RESOURCE_PROBE_INTERVAL: how soon the kernel tries again what a full queue of its own did not take."""
_ANSWER_PAUSE_MS: Final = 500
"""tcp_invalid_ratelimit of the peer: it answers segments outside its window no more often."""


class NamespaceLimits(Struct, frozen=True):
    """Settings of a network namespace that decide; the kernel's defaults where they are not known."""

    retries2: int = 15
    orphan_retries: int = 0
    rto_max_ms: int = 120_000
    fin_timeout_s: int = 60
    syn_retries: int = 6
    syn_linear: int | None = None
    """tcp_syn_linear_timeouts: so many SYNs are sent again without a doubling, beside the others; None for unknown."""
    synack_retries: int | None = None
    """tcp_synack_retries; None for unknown."""

    @classmethod
    def of(cls, sysctls: Mapping[str, str]) -> NamespaceLimits:
        """Read them from the sysctls of a namespace (``ipv4/tcp_retries2`` → ``15``)."""

        def known(name: str) -> int | None:
            words = sysctls.get(f"ipv4/tcp_{name}", "").split()
            return int(words[0]) if words and words[0].lstrip("-").isdecimal() else None

        def number(name: str, default: int) -> int:
            return default if (value := known(name)) is None else value

        return cls(
            number("retries2", DEFAULTS.retries2),
            number("orphan_retries", DEFAULTS.orphan_retries),
            max(number("rto_max_ms", DEFAULTS.rto_max_ms), 1),
            number("fin_timeout", DEFAULTS.fin_timeout_s),
            number("syn_retries", DEFAULTS.syn_retries),
            known("syn_linear_timeouts"),
            known("synack_retries"),
        )


DEFAULTS: Final = NamespaceLimits()


class Expiry(Struct, frozen=True):
    """When the kernel gives a connection up."""

    seconds: float
    """At the earliest: timers never fire before their time."""
    tries: int
    """Probes or retransmissions that went unanswered by then, a tail loss probe not counted."""
    most_s: float
    """At the latest, by what the wheel of the kernel's timers adds."""


def keepalive(idle_s: int, interval_s: int, count: int, user_timeout_ms: int = 0) -> Expiry:
    """Return after what silence an idle connection ends whose peer answers no probe.

    The timer looks at the connection when it has been silent for ``idle_s`` and then every ``interval_s``. At each
    look it ends it or sends a probe. Without TCP_USER_TIMEOUT it ends it when ``count`` probes are out; with it the
    count is void: when the silence has reached the user timeout, and one probe is out.
    """
    probes = count
    if user_timeout_ms:
        probes = max(1, -(-(user_timeout_ms - 1000 * idle_s) // (1000 * interval_s)))
    late_ms = wheel.late_ms(1000 * idle_s) + probes * wheel.late_ms(1000 * interval_s)
    ends_s = float(idle_s + interval_s * probes)
    return Expiry(ends_s, probes, ends_s + late_ms / 1000)


def model_ms(boundary: int, rto_max_ms: int, base_ms: int = _RTO_MIN_MS) -> int:
    """``tcp_model_timeout``: the time that so many retransmissions take with an RTO of 200 ms, or of ``base_ms``."""
    doublings = max((rto_max_ms // base_ms).bit_length() - 1, 0)
    if boundary <= doublings:
        return ((2 << boundary) - 1) * base_ms
    return ((2 << doublings) - 1) * base_ms + (boundary - doublings) * rto_max_ms


def _orphan_retries(limits: NamespaceLimits, *, alive: bool) -> int:
    return limits.orphan_retries or (_ORPHAN_RETRIES if alive else 0)


def retransmission(
    limits: NamespaceLimits = DEFAULTS,
    rto_ms: float = FAST_RTO_MS,
    *,
    orphaned: bool = False,
    user_timeout_ms: int = 0,
    tail_loss_probe: bool = True,
) -> Expiry:
    """Return how long data or a FIN that nobody acknowledges is sent again, from its first sending.

    The clock of the limits starts with the first retransmission, which itself comes an RTO after the tail loss probe,
    or after the sending where there is none. TCP_USER_TIMEOUT takes the place of tcp_retries2 and of
    tcp_orphan_retries, in both directions.

    Args:
        limits: of the namespace.
        rto_ms: the RTO before any doubling, see `base_rto_ms`.
        orphaned: whether no process holds the socket.
        user_timeout_ms: TCP_USER_TIMEOUT of the socket; 0 for none.
        tail_loss_probe: whether one is sent, as it is by default.
    """
    rto = min(rto_ms, limits.rto_max_ms)
    waits = [rto] * (2 if tail_loss_probe else 1)
    first, first_late = sum(waits), wheel.late_ms(*waits, rto_ms=rto_ms)
    if user_timeout_ms:  # the timer is set to what is left of it (tcp_clamp_rto_to_user_timeout)
        late_ms = first_late + wheel.late_ms(user_timeout_ms, rto_ms=rto_ms)
        tries, remaining = 1, float(user_timeout_ms)
        while (rto := min(2 * rto, limits.rto_max_ms)) < min(remaining, limits.rto_max_ms):
            tries, remaining = tries + 1, remaining - rto
        tries += max(math.ceil(remaining / rto) - 1, 0)
        ends_ms = first + user_timeout_ms
        return Expiry(ends_ms / 1000, tries, (ends_ms + late_ms) / 1000)
    more = retransmissions_left(limits, rto, 0, orphaned=orphaned)
    return Expiry(first / 1000 + more.seconds, more.tries, (first + first_late) / 1000 + more.most_s)


def orphan(limits: NamespaceLimits = DEFAULTS, rto_ms: float = FAST_RTO_MS) -> Expiry:
    """Return how long an orphan lives whose FIN nobody acknowledges."""
    return retransmission(limits, rto_ms, orphaned=True)


def zero_window(
    limits: NamespaceLimits = DEFAULTS,
    rto_ms: float = FAST_RTO_MS,
    *,
    orphaned: bool = False,
    answered: bool = True,
    user_timeout_ms: int = 0,
) -> Expiry | None:
    """Return how long a connection waits for room at its peer, from the moment there is none; None for ever.

    Args:
        limits: of the namespace.
        rto_ms: the RTO before any doubling.
        orphaned: whether no process holds the socket.
        answered: whether the peer answers the window probes, as it does at most twice a second
            (tcp_invalid_ratelimit); an answer starts their count anew, not their pace.
        user_timeout_ms: TCP_USER_TIMEOUT of the socket; 0 for none. It counts from the first probe, and beside the
            other limits.
    """
    base = now = float(max(rto_ms, _RTO_MIN_MS))
    waits = [base]
    aborted = now + user_timeout_ms if user_timeout_ms else float("inf")

    def ended(tries: int) -> Expiry:
        return Expiry(now / 1000, tries, (now + wheel.late_ms(*waits, rto_ms=rto_ms)) / 1000)

    backoff = out = 0
    answer_due = 0.0
    for tries in range(_PROBES_ENOUGH):
        most = limits.retries2
        if orphaned:
            alive = base * 2**backoff < limits.rto_max_ms
            most = _orphan_retries(limits, alive=alive)
            if not alive and backoff >= most:
                return ended(tries)
        if out >= most or now >= aborted:
            return ended(tries)
        if answered and now >= answer_due:
            out, answer_due = 0, now + _ANSWER_PAUSE_MS
        else:
            out += 1
        backoff += backoff < min(limits.retries2, _DOUBLINGS)
        waits.append(min(base * 2**backoff, limits.rto_max_ms, aborted - now))
        now += waits[-1]
    return None


def fin_wait2_orphan_s(timeout_s: int, rto_ms: float = FAST_RTO_MS) -> float:
    """Return how long an orphan stays in FIN_WAIT2, its FIN being acknowledged.

    Args:
        timeout_s: tcp_fin_timeout, or TCP_LINGER2 of the socket (at most 120, `LINGER2_MAX_S`).
        rto_ms: its RTO; neither span is shorter than 3.5 of them.

    Up to 60 s it is a minisocket for that long. Above, it stays a full socket for what exceeds 60 s, and then becomes a
    minisocket *for what exceeds 60 s again*: 62 gives 4 s, 120 gives 120 s, and 200 gives 280 s.
    """
    least = 3.5 * rto_ms / 1000
    timeout = max(float(timeout_s), least)
    if timeout <= TIME_WAIT_S:
        return timeout
    beyond = timeout - TIME_WAIT_S
    return beyond + max(beyond, least)


def retransmissions_left(
    limits: NamespaceLimits,
    rto_ms: float,
    tries: int,
    waits_ms: tuple[float, ...] = (),
    refused_ms: float = 0.0,
    *,
    orphaned: bool = False,
) -> Expiry:
    """Return from the next firing of the timer on how long retransmissions go on that nobody acknowledges.

    That firing counts from when it is due; how late it is, is in the answer.

    Args:
        limits: of the namespace.
        rto_ms: what the timer was last set to: the doublings so far are in it.
        tries: retransmissions so far.
        waits_ms: what the timer was set to from the first of them on, each time; the armed one last.
        refused_ms: … and how long besides those a full queue of this machine refused them.
        orphaned: whether no process holds the socket.
    """
    least, most, tries_then = math.inf, 0.0, _NEVER
    for hz in wheel.tick_rates(rto_ms):
        early, late, n = _given_up(limits, rto_ms, tries, waits_ms, refused_ms, orphaned, hz)
        least, tries_then, most = *min((least, tries_then), (early, n)), max(most, late)
    return Expiry(least / 1000, tries_then, most / 1000)


@lru_cache(maxsize=4096)
def _given_up(
    limits: NamespaceLimits, rto_ms: float, tries: int, waits_ms: tuple[float, ...], refused_ms: float,
    orphaned: bool, hz: int,
) -> tuple[float, float, int]:  # fmt: skip
    """Return `retransmissions_left` at one tick rate: from when to when, and the tries by the former."""
    chain = wheel.Chain(hz)
    past_ms = 0.0
    for ms in waits_ms:
        past_ms = chain.most_ms
        chain.wait(ms)
    since, remaining = sum(waits_ms) + refused_ms, 0.0
    unsure_ms = refused_ms / 8 + 1000 / hz  # `retransmits_timed_out` takes a tick for passed
    rto, early, first = min(rto_ms, limits.rto_max_ms), math.inf, _NEVER
    for n in range(tries, _NEVER):
        boundary = limits.retries2
        if orphaned:
            boundary = _orphan_retries(limits, alive=rto < limits.rto_max_ms)
        short = model_ms(boundary, limits.rto_max_ms) - since - remaining
        if n and early == math.inf and short <= chain.most_ms + unsure_ms:
            early, first = remaining + max(short - past_ms - unsure_ms, 0.0), n
        if n and short <= chain.least_ms:
            return early, remaining + chain.most_ms - past_ms, first
        rto = min(2 * rto, limits.rto_max_ms)
        remaining += rto
        chain.wait(rto)
    return math.inf, math.inf, _NEVER


def base_rto_ms(rto_us: int, backoff: int, rto_max_ms: int = DEFAULTS.rto_max_ms) -> float:
    """Return the RTO before its doublings, from what tcp_info tells; where that was cut to the maximum, the usual one.

    Args:
        rto_us: ``tcpi_rto``, which the doublings are in; 0 for not known.
        backoff: ``tcpi_backoff``.
        rto_max_ms: of the namespace.
    """
    if rto_us <= 0 or backoff > 30 or (backoff and rto_us >= 1000 * rto_max_ms):
        return FAST_RTO_MS
    return rto_us / (1000 << backoff)


def waited_ms(rto_us: NDArray[Any], retransmits: NDArray[Any], backoff: NDArray[Any]) -> NDArray[np.int64]:
    """Return for how long first unacknowledged segments have waited, at least, by their retransmissions; −1 unknown.

    Each was sent when the timer fired, which was then set to twice the time (or to the maximum): the one before
    the last wait was at least half of it, and so on back to the first. Where the two counts differ, an ICMP error took
    doublings back, or the stream is thin, and nothing is concluded.
    """
    known = (retransmits > 0) & (retransmits == backoff) & (rto_us > 0)
    before = 1 - 0.5 ** np.minimum(backoff, 60).astype(np.float64)
    return np.where(known, rto_us * before / 1000, -1).astype(np.int64)


# ── of connections that were seen ────────────────────────────────────────────────────────────────────────


def probes_left(
    limits: NamespaceLimits,
    rto_ms: float,
    backoff: int,
    out: int,
    *,
    orphaned: bool,
    answered: bool = False,
    queue_full: bool = False,
    armed: bool = False,
) -> Expiry | None:
    """Return from the next firing of the timer on how long window probes go on; None for ever.

    Args:
        limits: of the namespace.
        rto_ms: the RTO before any doubling.
        backoff: doublings so far.
        out: probes without answer so far.
        orphaned: whether no process holds the socket.
        answered: whether the peer answers, which starts the count anew and not the pace.
        queue_full: whether a full queue of this machine takes none of them: then the kernel tries again every 0.5 s
            (TCP_RESOURCE_PROBE_INTERVAL), and nothing is doubled.
        armed: whether the next firing itself may be late: it counts from when it is due.
    """
    rto_ms = max(rto_ms, _RTO_MIN_MS)
    due = float(_QUEUE_FULL_MS if queue_full else min(rto_ms * 2**backoff, limits.rto_max_ms))
    waits = [due] if armed else []

    def ended(tries: int) -> Expiry:
        ends_ms = sum(waits) - (due if armed else 0.0)
        return Expiry(ends_ms / 1000, tries, (ends_ms + wheel.late_ms(*waits, rto_ms=rto_ms)) / 1000)

    for tries in range(_PROBES_ENOUGH):
        most = limits.retries2
        if orphaned:
            alive = rto_ms * 2**backoff < limits.rto_max_ms
            most = _orphan_retries(limits, alive=alive)
            if not alive and backoff >= most:
                return ended(tries)
        if out >= most:
            return ended(tries)
        out = 0 if answered else out + 1
        if queue_full:
            waits.append(_QUEUE_FULL_MS)
            continue
        backoff += backoff < min(limits.retries2, _DOUBLINGS)
        waits.append(min(rto_ms * 2**backoff, limits.rto_max_ms))
    return None


def _queue_full(view: View, row: int) -> bool:
    """Return whether a full queue refuses the probes of a row: the kernel counts them then, and doubles nothing."""
    s = view.sockets
    undoubled = int(s.retrans[row]) - int(s.backoff[row])
    return undoubled > s.backoff[row] and s.expires_ms[row] <= _QUEUE_FULL_MS


def left(view: View, row: int) -> Expiry | None:
    """Return, from the look on, when the kernel gives up what a row waits for; None where no count ends it.

    Of a row on the retransmission timer (1), which nobody answers, or on the timer of window probes (4), which a peer
    without room answers, unless two in a row went unanswered. Where the last one is not answered yet (`_answers`), it
    ends between what follows if none ever is and what follows if each is: ``most_s`` is infinite where that is never.
    TCP_USER_TIMEOUT and TCP_RTO_MAX_MS, which sock_diag does not tell, may end it sooner or later.

    From when its timer fires: what it has waited so far matters where a limit is a time, and the waits that come are
    as long as the RTO has become. Where the kernel has sent again more often than it has doubled the RTO, a queue of
    its own was full in between.
    """
    s = view.sockets
    if s.timer[row] not in (1, 4) or sends_next(view, row):
        return None
    limits, orphaned = limits_of(view, row), _orphaned(view, row)
    tries, backoff, expires_ms = int(s.retrans[row]), int(s.backoff[row]), float(s.expires_ms[row])
    if s.timer[row] == 4:
        lives, base, full = answers(view, row), base_rto_ms(int(s.rto_us[row]), 0), _queue_full(view, row)
        either = (False, True) if lives is None else (lives,)
        asked = {"orphaned": orphaned, "queue_full": full, "armed": True}
        ends = [probes_left(limits, base, backoff, tries, answered=each, **asked) for each in either]
        if not (known := [end for end in ends if end is not None]):
            return None
        most_s = max(math.inf if end is None else end.most_s for end in ends)
        first = replace(min(known, key=lambda end: end.seconds), most_s=most_s)
        return _later(first, expires_ms, expires_ms)
    base = _base_ms(view, row)
    rto = min(base * 2**backoff, limits.rto_max_ms)
    refused_ms = float(_QUEUE_FULL_MS * max(tries - backoff, 0))
    waits = tuple(_doublings(base, backoff, limits.rto_max_ms))
    more = retransmissions_left(limits, rto, tries, waits, refused_ms, orphaned=orphaned)
    if tries or more.seconds == math.inf:
        return None if more.seconds == math.inf else _later(more, expires_ms, expires_ms)
    # What fires next may be the tail loss probe, which is no retransmission yet.
    return _later(more, expires_ms, expires_ms + rto + wheel.late_ms(rto, rto, rto_ms=rto))


def _later(end: Expiry, least_ms: float, most_ms: float) -> Expiry:
    return Expiry(end.seconds + least_ms / 1000, end.tries, end.most_s + most_ms / 1000)


def _doublings(base_ms: float, backoff: int, rto_max_ms: int) -> Iterable[float]:
    """Return what the timer was set to from the first retransmission or probe on; the armed one last."""
    return (min(base_ms * 2**n, rto_max_ms) for n in range(1, min(backoff, 255) + 1))


def _doubled_ms(base_ms: float, backoff: int, rto_max_ms: int) -> float:
    """Return the time from the first retransmission or probe to when the armed timer fires, after so many doublings."""
    return sum(_doublings(base_ms, backoff, rto_max_ms))


def probed_ms(view: View, row: int, *, unanswered: bool) -> int:
    """Return for how long at least what waits on a row has been probed for in vain.

    Every probe but the last was followed by a wait that is over. Those that a full queue of this machine refused were
    `_QUEUE_FULL_MS` apart, the others doubled the wait. How long a wait could become is known of the namespace only,
    and doublings of earlier retransmissions may still be in the count: no more is proven than the clocks allow. An
    answer starts `last_ack_recv_ms` anew, and data that is taken was sent, which starts `last_data_sent_ms` anew.

    Args:
        view: the sockets.
        row: which; on the timer of window probes (4).
        unanswered: whether to count from the peer's last answer on, as `retrans` does; else from when it last took
            anything, as the doublings do.
    """
    s = view.sockets
    limits, backoff = limits_of(view, row), min(int(s.backoff[row]), _DOUBLINGS)
    tries = int(s.retrans[row]) if unanswered else backoff
    base = max(base_rto_ms(int(s.rto_us[row]), 0), float(_RTO_MIN_MS))
    doubled = min(tries, backoff)
    waits = [min(base * 2**n, limits.rto_max_ms) for n in range(1, doubled + 1)]
    waits += [float(_QUEUE_FULL_MS)] * (tries - doubled)
    if not waits:
        return 0
    over = sum(waits) - max(waits)
    if tries >= backoff:  # no answer came in between: the first probe itself was an RTO late
        over += base
    if tries <= backoff and s.present("expires_ms")[row]:
        over += max(min(base * 2**backoff, limits.rto_max_ms) - int(s.expires_ms[row]), 0.0)
    clock = "last_ack_recv_ms" if unanswered else "last_data_sent_ms"
    if s.present(clock)[row]:
        over = min(over, int(s.column(clock)[row]))
    return int(over)


def _base_ms(view: View, row: int) -> float:
    """Return the RTO of a row before its doublings; where it is at its maximum, by the round trip of the path."""
    s, limits = view.sockets, limits_of(view, row)
    rto_us, backoff = int(s.rto_us[row]), min(int(s.backoff[row]), _DOUBLINGS)
    if not rto_us:  # or not known
        return FAST_RTO_MS
    if not backoff or rto_us < 1000 * limits.rto_max_ms:
        return rto_us / (1000 << backoff)
    round_trip = int(s.rtt_us[row]) / 1000 if s.present("rtt_us")[row] else 0.0
    return min(max(FAST_RTO_MS, _RTO_MIN_MS + round_trip), float(limits.rto_max_ms))


class UnderWay(Struct, frozen=True):
    """What waits already when a user timeout is set, and what becomes of it."""

    window_shut: bool
    """Whether it waits for room at its peer; else to be acknowledged."""
    lives: bool | None
    """Whether the peer answers window probes: then what ends is a connection whose peer lives. None where the last
    probe is not answered yet, or none was sent."""
    waited_s: float
    """It has waited for so long, at least."""
    ends_s: float | None
    """It ends after so long from the look, unless the peer takes it; None: never by itself."""
    most_s: float | None = None
    """… at the latest, as timers are late; None where `ends_s` is, and where it may never end."""
    late_s: float | None = None
    """… or after so long, if its timer fires between the look and the act, as it may; None where it hardly will."""


def under_way(view: View, row: int, user_timeout_ms: int) -> UnderWay | None:
    """Return what becomes of what waits on a row once TCP_USER_TIMEOUT is set; None where nothing waits.

    The timer that is armed is not set anew: the timeout is looked at when it fires, and counts from the first
    retransmission or the first window probe. Then the next timer is no longer than what is left of it
    (``tcp_clamp_rto_to_user_timeout``, ``tcp_clamp_probe0_to_user_timeout``).

    Args:
        view: the sockets.
        row: which.
        user_timeout_ms: what is set; 0 for none.
    """
    s = view.sockets
    timer, backoff = int(s.timer[row]), int(s.backoff[row])
    if timer not in (1, 4):
        return None
    limits = limits_of(view, row)
    expires = int(s.expires_ms[row])
    if timer == 1:
        known = backoff == int(s.retrans[row]) and s.rto_us[row] > 0
        base = _base_ms(view, row)
    else:
        known, base = True, max(base_rto_ms(int(s.rto_us[row]), 0), float(_RTO_MIN_MS))
    # From the first retransmission or probe to when the armed timer fires: each wait was twice the one before.
    counted = _doubled_ms(base, backoff, limits.rto_max_ms) if known else 0.0
    shut = timer == 4 and not room(view, row)
    waited = max(counted + base - expires, 0.0) if known else 0.0
    lives = answers(view, row) if shut else False
    if not user_timeout_ms:
        end = left(view, row)
        if end is None:
            return UnderWay(shut, lives, waited / 1000, None)
        return UnderWay(
            shut, lives, waited / 1000, end.seconds, end.most_s if end.most_s < math.inf else None
        )
    ends_ms, most_ms = _timed_out_ms(base, backoff if known else 0, limits.rto_max_ms, user_timeout_ms)
    if timer == 1 and not s.retrans[row]:  # what is armed may be the tail loss probe
        most_ms += base
    late: float | None = None
    if expires < _ACT_MS:  # then it is set anew, and knows no user timeout yet
        again = min(base * 2 ** (backoff + 1), limits.rto_max_ms)
        late = (expires + max(user_timeout_ms - counted, again)) / 1000
    return UnderWay(shut, lives, waited / 1000, (expires + ends_ms) / 1000, (expires + most_ms) / 1000, late)


def _timed_out_ms(base_ms: float, backoff: int, rto_max_ms: int, user_timeout_ms: int) -> tuple[float, float]:
    """Return when a user timeout ends it, at the earliest and at the latest, from when the armed timer is due."""
    waits = [base_ms, *_doublings(base_ms, backoff, rto_max_ms)]
    remaining = user_timeout_ms - sum(waits[1:])
    # By how late the timers were, more of it has passed.
    least = remaining - wheel.late_ms(*waits[1:-1], rto_ms=waits[-1])
    most = max(remaining, 0.0) + wheel.late_ms(max(remaining, waits[-1]), rto_ms=waits[-1])
    return max(least, 0.0), most


def limits_of(view: View, row: int) -> NamespaceLimits:
    """Return the limits of a row: those of its namespace; of the RTO, what its socket or its timer says."""
    s = view.sockets
    space = view.namespaces.get(int(s.netns[row]))
    limits = NamespaceLimits.of(space.sysctls) if space is not None else DEFAULTS
    options = view.socket_options.get(int(s.inode[row])) if s.inode[row] else None
    rto_max = None if options is None else options.rto_max_ms
    if not rto_max:
        rto_max = _rto_max_shown_ms(view, row, limits.rto_max_ms)
    return limits if rto_max == limits.rto_max_ms else replace(limits, rto_max_ms=rto_max)


def _rto_max_shown_ms(view: View, row: int, said_ms: int) -> int:
    """Return the maximum of the RTO of a row by its timer, or what is said of its namespace where it shows none.

    No timer is set for longer than the maximum: one that is shows that the socket has a greater one. And an RTO that,
    its doublings taken back, is far below what any RTO begins with was cut: it is itself the maximum.
    """
    s = view.sockets
    timer, backoff = int(s.timer[row]), int(s.backoff[row])
    if timer not in (1, 4):
        return said_ms
    # The timer wheel may add up to an eighth.
    if s.present("expires_ms")[row] and int(s.expires_ms[row]) > said_ms + said_ms // 8:
        return _RTO_MOST_MS
    rto_ms = int(s.rto_us[row]) // 1000 if s.present("rto_us")[row] else 0
    if (
        timer == 1
        and backoff
        and 0 < rto_ms < said_ms
        and rto_ms < (_RTO_MIN_MS // 2) << min(backoff, _DOUBLINGS)
    ):
        return rto_ms
    return said_ms


def _orphaned(view: View, row: int) -> bool:
    return not view.sockets.inode[row] and not view.queued[row]


def as_orphan(view: View, rows: NDArray[np.int64]) -> str:
    """Return how long rows on the retransmission timer would live as orphans, from when they began to wait."""
    sample = rows[:: max(1, len(rows) // _ROWS_ASKED)].tolist()
    return _last(orphan(limits_of(view, row), _base_ms(view, row)) for row in sample)


def span(end: Expiry | None) -> str:
    """Return when the kernel gives up, as `about`; ``never``."""
    return "never" if end is None or end.seconds == math.inf else about(end.seconds, end.most_s)


def _last(ends: Iterable[Expiry]) -> str:
    """Return when the last of some ends comes, as `about`."""
    bounds = [(end.seconds, end.most_s) for end in ends]
    return about(max(least for least, _ in bounds), max(most for _, most in bounds))


def about(least_s: float, most_s: float) -> str:
    """Return a predicted span as people read it: ``104 s``, and ``6.6 s to 14 s`` where "about" would not say it.

    What is no more than the lateness of a timer, an eighth, "about" says.
    """
    return text(least_s) if most_s <= 1.15 * least_s + 1 else f"{text(least_s)} to {text(most_s)}"


def ends_by_itself(view: View, rows: NDArray[np.int64]) -> str:
    """Return when the last of some rows is given up, as a clause: ``it ends by itself in about 83 s``.

    Of many rows some are asked.
    """
    sample = rows[:: max(1, len(rows) // _ROWS_ASKED)]
    remaining = [left(view, row) for row in sample.tolist()]
    # What may never end, and what never does, have no last moment.
    known = [end for end in remaining if end is not None and end.most_s < math.inf]
    if not known:
        return "it ends by itself only if its peer is gone" if any(remaining) else "it does not end by itself"
    when = f"it ends by itself in about {_last(known)}"
    return when if len(known) == len(remaining) else f"{when}, some do not"


def text(seconds: float) -> str:
    """Return a predicted span as people read it: ``3.3 s``, ``135 s``, ``15 min``."""
    if seconds >= 600:
        return duration_text(round(1000 * seconds))
    return f"{seconds:.0f} s" if seconds >= 10 or seconds == int(seconds) else f"{seconds:.1f} s"
