"""How long it takes: every span of time that finwait predicts, worked out as the kernel works it out.

Mirrors net/ipv4/tcp_timer.c: ``tcp_keepalive_timer``, ``tcp_write_timeout`` with ``retransmits_timed_out`` and
``tcp_model_timeout``, ``tcp_probe_timer``, ``tcp_orphan_retries``; and ``tcp_fin_time``, ``tcp_time_wait``.

The surprise that runs through all of it: limits that look like counts (tcp_retries2, tcp_orphan_retries,
TCP_KEEPCNT) or like times (TCP_USER_TIMEOUT) are *conditions that a timer looks at when it fires*. tcp_retries2
stands for the time that so many retransmissions would take on a path with an RTO of 200 ms, whatever the RTO is; and
a user timeout of 12 s ends a connection that is probed every 5 s after 15 s.

What it does not know: how late the kernel's timer wheel fires (up to an eighth of the time that is left when it is
set, in practice some per cent), a route's own ``rto_min``, ICMP errors that take back a doubling, thin streams.
`finwait lab prove` measures what it predicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.table.units import duration_text

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = [
    "DEFAULTS",
    "FAST_RTO_MS",
    "LINGER2_MAX_S",
    "TIME_WAIT_S",
    "End",
    "Limits",
    "PeerGone",
    "UnderWay",
    "as_orphan",
    "base_rto_ms",
    "ends_by_itself",
    "fin_wait2_orphan_s",
    "keepalive",
    "left_ms",
    "limits_of",
    "of_row",
    "opening",
    "opening_of",
    "orphan",
    "peer_gone",
    "probes_left",
    "retransmission",
    "retransmissions_left",
    "span",
    "text",
    "under_way",
    "user_timeout_for",
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
_SYN_RTO_MS: Final = 1000
"""TCP_TIMEOUT_INIT."""
_SYN_LINEAR: Final = 4
"""What tcp_syn_linear_timeouts is by default, where the kernel has it (6.5)."""
_ORPHAN_RETRIES: Final = 8
"""What a tcp_orphan_retries of 0 means while the RTO is below its maximum."""
_NEVER: Final = 10_000
"""Retransmissions after which we stop: days, by any setting."""
_PROBES_ENOUGH: Final = 300
"""Probes after which nothing changes any more: tcp_retries2 and TCP_KEEPCNT are a byte at most."""
_DOUBLINGS: Final = 40
_ROWS_ASKED: Final = 200
_ACT_MS: Final = 10_000
"""Within so long after the look an act has been done."""
_QUEUE_FULL_MS: Final = 500
"""TCP_RESOURCE_PROBE_INTERVAL: how soon the kernel tries again what a full queue of its own did not take."""
_ANSWER_PAUSE_MS: Final = 500
"""tcp_invalid_ratelimit of the peer: it answers segments outside its window no more often."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings of a network namespace that decide; the kernel's defaults where they are not known."""

    retries2: int = 15
    orphan_retries: int = 0
    rto_max_ms: int = 120_000
    fin_timeout_s: int = 60
    syn_retries: int = 6
    syn_linear: int | None = None
    """tcp_syn_linear_timeouts: so many SYNs are sent again without a doubling, beside the others; None for unknown."""

    @classmethod
    def of(cls, sysctls: Mapping[str, str]) -> Limits:
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
        )


DEFAULTS: Final = Limits()


@dataclass(frozen=True, slots=True)
class End:
    """When the kernel gives a connection up."""

    seconds: float
    tries: int
    """Probes or retransmissions that went unanswered by then, a tail loss probe not counted."""


def keepalive(idle_s: int, interval_s: int, count: int, user_timeout_ms: int = 0) -> End:
    """Return after what silence an idle connection ends whose peer answers no probe.

    The timer looks at the connection when it has been silent for ``idle_s`` and then every ``interval_s``. At each
    look it ends it or sends a probe. Without TCP_USER_TIMEOUT it ends it when ``count`` probes are out; with it the
    count is void: when the silence has reached the user timeout, and one probe is out.
    """
    probes = count
    if user_timeout_ms:
        probes = max(1, -(-(user_timeout_ms - 1000 * idle_s) // (1000 * interval_s)))
    return End(float(idle_s + interval_s * probes), probes)


def user_timeout_for(idle_s: int, interval_s: int, count: int) -> tuple[int, int]:
    """Return the user timeouts (least and most, ms) with which keepalive still waits for ``count`` probes.

    The least is no tighter than it must be: in the middle of the last interval, since timers are late.
    """
    most = 1000 * (idle_s + interval_s * count)
    return most - 500 * interval_s, most


def _model_ms(boundary: int, rto_max_ms: int, base_ms: int = _RTO_MIN_MS) -> int:
    """``tcp_model_timeout``: the time that so many retransmissions take with an RTO of 200 ms, or of ``base_ms``."""
    doublings = max((rto_max_ms // base_ms).bit_length() - 1, 0)
    if boundary <= doublings:
        return ((2 << boundary) - 1) * base_ms
    return ((2 << doublings) - 1) * base_ms + (boundary - doublings) * rto_max_ms


def _syn_timer_ms(limits: Limits, linear: int) -> list[int]:
    """Return when the timer of a SYN fires that nobody answers: each sends it again, the last one gives up."""
    rto = now = _SYN_RTO_MS
    fires = [now]
    while len(fires) <= limits.syn_retries + linear and now < _model_ms(
        limits.syn_retries, limits.rto_max_ms, _SYN_RTO_MS
    ):
        if len(fires) > linear:
            rto = min(2 * rto, limits.rto_max_ms)
        now += rto
        fires.append(now)
    return fires


def opening(limits: Limits = DEFAULTS) -> End:
    """Return how long connect() tries when no SYN is answered; TCP_SYNCNT and TCP_USER_TIMEOUT may change it."""
    fires = _syn_timer_ms(limits, limits.syn_linear or 0)
    return End(fires[-1] / 1000, len(fires) - 1)


def _orphan_retries(limits: Limits, *, alive: bool) -> int:
    return limits.orphan_retries or (_ORPHAN_RETRIES if alive else 0)


def retransmission(
    limits: Limits = DEFAULTS,
    rto_ms: float = FAST_RTO_MS,
    *,
    orphaned: bool = False,
    user_timeout_ms: int = 0,
    tail_loss_probe: bool = True,
) -> End:
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
    first = rto * (2 if tail_loss_probe else 1)
    if user_timeout_ms:  # the timer is set to what is left of it (tcp_clamp_rto_to_user_timeout)
        tries, left = 1, float(user_timeout_ms)
        while (rto := min(2 * rto, limits.rto_max_ms)) < min(left, limits.rto_max_ms):
            tries, left = tries + 1, left - rto
        return End((first + user_timeout_ms) / 1000, tries + max(math.ceil(left / rto) - 1, 0))
    more = retransmissions_left(limits, rto, 0, 0.0, orphaned=orphaned)
    return End(first / 1000 + more.seconds, more.tries)


@dataclass(frozen=True, slots=True)
class PeerGone:
    """What ends a connection whose peer is gone, with the options that its socket has."""

    silence_s: float | None
    """After so long a silence, when nothing is in flight; None: never, as keepalive is off."""
    probes: int
    """Probes that are unanswered by then."""
    count: int
    """… and TCP_KEEPCNT."""
    user_timeout_ms: int
    unacknowledged_s: float
    """After so long, when data is in flight."""


def peer_gone(options: Mapping[str, int], limits: Limits = DEFAULTS) -> PeerGone:
    """Return what ends a connection whose peer is gone.

    Args:
        options: all of `finwait.kernel.pidfd.KEEPALIVE_OPTIONS` by name.
        limits: what decides how long unacknowledged data is sent again.
    """
    timeout, count = options["user_timeout_ms"], options["keepcnt"]
    idle = keepalive(options["keepidle"], options["keepintvl"], count, timeout)
    busy = retransmission(limits, user_timeout_ms=timeout)
    if not options["keepalive"]:
        return PeerGone(None, 0, count, timeout, busy.seconds)
    return PeerGone(idle.seconds, idle.tries, count, timeout, busy.seconds)


def orphan(limits: Limits = DEFAULTS, rto_ms: float = FAST_RTO_MS) -> End:
    """Return how long an orphan lives whose FIN nobody acknowledges."""
    return retransmission(limits, rto_ms, orphaned=True)


def zero_window(
    limits: Limits = DEFAULTS,
    rto_ms: float = FAST_RTO_MS,
    *,
    orphaned: bool = False,
    answered: bool = True,
    user_timeout_ms: int = 0,
) -> End | None:
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
    aborted = now + user_timeout_ms if user_timeout_ms else float("inf")
    backoff = out = 0
    answer_due = 0.0
    for tries in range(_PROBES_ENOUGH):
        most = limits.retries2
        if orphaned:
            alive = base * 2**backoff < limits.rto_max_ms
            most = _orphan_retries(limits, alive=alive)
            if not alive and backoff >= most:
                return End(now / 1000, tries)
        if out >= most or now >= aborted:
            return End(now / 1000, tries)
        if answered and now >= answer_due:
            out, answer_due = 0, now + _ANSWER_PAUSE_MS
        else:
            out += 1
        backoff += backoff < min(limits.retries2, _DOUBLINGS)
        now = min(now + min(base * 2**backoff, limits.rto_max_ms), aborted)
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
    wanted = max(float(timeout_s), least)
    if wanted <= TIME_WAIT_S:
        return wanted
    beyond = wanted - TIME_WAIT_S
    return beyond + max(beyond, least)


def retransmissions_left(
    limits: Limits, rto_ms: float, tries: int, since_first_ms: float, *, orphaned: bool = False
) -> End:
    """Return from the next firing of the timer on how long retransmissions go on that nobody acknowledges.

    Args:
        limits: of the namespace.
        rto_ms: what the timer was last set to: the doublings so far are in it.
        tries: retransmissions so far.
        since_first_ms: time from the first of them to the next firing.
        orphaned: whether no process holds the socket.
    """
    rto = min(rto_ms, limits.rto_max_ms)
    left = 0.0
    for n in range(tries, _NEVER):
        boundary = limits.retries2
        if orphaned:
            boundary = _orphan_retries(limits, alive=rto < limits.rto_max_ms)
        if n and since_first_ms + left >= _model_ms(boundary, limits.rto_max_ms):
            return End(left / 1000, n)
        rto = min(2 * rto, limits.rto_max_ms)
        left += rto
    return End(float("inf"), _NEVER)


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


def of_row(view: View, row: int) -> End | None:
    """Return when the kernel gives up what a row waits for, from when it began to wait; None for never.

    Of a row on the retransmission timer (1), which nobody answers, or on the timer of window probes (4), which a peer
    without room answers, unless two in a row went unanswered. TCP_USER_TIMEOUT, which sock_diag does not tell, may
    end it sooner or later.
    """
    s = view.sockets
    limits, orphaned = limits_of(view, row), _orphaned(view, row)
    if s.timer[row] == 1:
        return retransmission(limits, _base_ms(view, row), orphaned=orphaned)
    if s.timer[row] == 4:
        rto = base_rto_ms(int(s.rto_us[row]), 0)
        return zero_window(limits, rto, orphaned=orphaned, answered=not _silent(view, row))
    return None


def opening_of(view: View, row: int) -> tuple[int, int]:
    """Return since when a SYN is unanswered, and when the kernel gives up, in ms, of a row in SYN_SENT."""
    s = view.sockets
    space = view.namespaces.get(int(s.netns[row]))
    limits = Limits.of(space.sysctls) if space is not None else DEFAULTS
    tries, left = int(s.retrans[row]), int(s.expires_ms[row])
    linear = limits.syn_linear
    if linear is None:  # each SYN sent again without a doubling tells that there are such
        linear = _SYN_LINEAR if s.present("backoff")[row] and tries > s.backoff[row] else 0
    fires = _syn_timer_ms(limits, linear)
    next_ms = fires[min(tries, len(fires) - 1)]
    return max(next_ms - left, 0), fires[-1] - next_ms + left


_UNANSWERED = 2
"""Window probes in a row without answer that are no chance: one may be under way."""


def _silent(view: View, row: int) -> bool:
    """Return whether nobody answers the window probes of a row; ``retrans`` counts those since the last answer."""
    s = view.sockets
    # Where there is room, it is this machine that refuses to send.
    room = s.present("snd_wnd")[row] and s.snd_wnd[row] > 0
    return bool(room or s.retrans[row] >= _UNANSWERED)


def probes_left(
    limits: Limits,
    rto_ms: float,
    backoff: int,
    out: int,
    *,
    orphaned: bool,
    answered: bool = False,
    queue_full: bool = False,
) -> End | None:
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
    """
    left = 0.0
    rto_ms = max(rto_ms, _RTO_MIN_MS)
    for tries in range(_PROBES_ENOUGH):
        most = limits.retries2
        if orphaned:
            alive = rto_ms * 2**backoff < limits.rto_max_ms
            most = _orphan_retries(limits, alive=alive)
            if not alive and backoff >= most:
                return End(left / 1000, tries)
        if out >= most:
            return End(left / 1000, tries)
        out = 0 if answered else out + 1
        if queue_full:
            left += _QUEUE_FULL_MS
            continue
        backoff += backoff < min(limits.retries2, _DOUBLINGS)
        left += min(rto_ms * 2**backoff, limits.rto_max_ms)
    return None


def _queue_full(view: View, row: int) -> bool:
    """Return whether a full queue refuses the probes of a row: the kernel counts them then, and doubles nothing."""
    s = view.sockets
    undoubled = int(s.retrans[row]) - int(s.backoff[row])
    return undoubled > s.backoff[row] and s.expires_ms[row] <= _QUEUE_FULL_MS


def left_ms(view: View, row: int) -> int | None:
    """Return the longest that a row stays before the kernel gives it up, as `of_row`; None for ever.

    From when its timer fires: what it has waited so far matters where a limit is a time, and the waits that come are
    as long as the RTO has become. Where the kernel has sent again more often than it has doubled the RTO, a queue of
    its own was full in between.
    """
    s = view.sockets
    if s.timer[row] == 4:
        more = probes_left(
            limits_of(view, row),
            base_rto_ms(int(s.rto_us[row]), 0),
            int(s.backoff[row]),
            int(s.retrans[row]),
            orphaned=_orphaned(view, row),
            answered=not _silent(view, row),
            queue_full=_queue_full(view, row),
        )
        return None if more is None else int(s.expires_ms[row]) + int(1000 * more.seconds)
    if s.timer[row] != 1:
        return None
    limits, base = limits_of(view, row), _base_ms(view, row)
    tries, backoff, expires = int(s.retrans[row]), int(s.backoff[row]), int(s.expires_ms[row])
    rto = min(base * 2**backoff, limits.rto_max_ms)
    since = _doubled_ms(base, backoff, limits.rto_max_ms) + _QUEUE_FULL_MS * max(tries - backoff, 0)
    if not tries:  # what fires next may be the tail loss probe, which is no retransmission yet
        expires += round(rto)
    left = retransmissions_left(limits, rto, tries, since, orphaned=_orphaned(view, row)).seconds
    return None if left == float("inf") else expires + round(1000 * left)


def _doubled_ms(base_ms: float, backoff: int, rto_max_ms: int) -> float:
    """Return the time from the first retransmission or probe to when the armed timer fires, after so many doublings."""
    return sum(min(base_ms * 2**n, rto_max_ms) for n in range(1, backoff + 1))


def _base_ms(view: View, row: int) -> float:
    """Return the RTO of a row before its doublings; where it is at its maximum, by the round trip of the path."""
    s, limits = view.sockets, limits_of(view, row)
    rto_us, backoff = int(s.rto_us[row]), min(int(s.backoff[row]), _DOUBLINGS)
    if not s.present("rto_us")[row] or rto_us <= 0:
        return FAST_RTO_MS
    if not backoff or rto_us < 1000 * limits.rto_max_ms:
        return rto_us / (1000 << backoff)
    round_trip = int(s.rtt_us[row]) / 1000 if s.present("rtt_us")[row] else 0.0
    return min(max(FAST_RTO_MS, _RTO_MIN_MS + round_trip), float(limits.rto_max_ms))


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What waits already when a user timeout is set, and what becomes of it."""

    window_shut: bool
    """Whether it waits for room at its peer; else to be acknowledged."""
    lives: bool
    """Whether the peer answers window probes: then what ends is a connection whose peer lives."""
    waited_s: float
    """It has waited for so long, at least."""
    ends_s: float | None
    """It ends after so long from the look, unless the peer takes it; None: never by itself."""
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
    shut = timer == 4 and not (s.present("snd_wnd")[row] and s.snd_wnd[row] > 0)
    late: float | None = None
    waited = max(counted + base - expires, 0.0) if known else 0.0
    if user_timeout_ms:
        ends: float | None = (expires + max(user_timeout_ms - counted, 0.0)) / 1000
        if expires < _ACT_MS:  # then it is set anew, and knows no user timeout yet
            again = min(base * 2 ** (backoff + 1), limits.rto_max_ms)
            late = (expires + max(user_timeout_ms - counted, again)) / 1000
    else:
        left = left_ms(view, row)
        ends = None if left is None else left / 1000
    return UnderWay(shut, shut and not _silent(view, row), waited / 1000, ends, late)


def limits_of(view: View, row: int) -> Limits:
    """Return the limits of a row's namespace."""
    space = view.namespaces.get(int(view.sockets.netns[row]))
    return Limits.of(space.sysctls) if space is not None else DEFAULTS


def _orphaned(view: View, row: int) -> bool:
    return not view.sockets.inode[row] and not view.queued[row]


def as_orphan(view: View, rows: NDArray[np.int64]) -> str:
    """Return how long rows on the retransmission timer would live as orphans, from when they began to wait."""
    ends = []
    for row in rows[:: max(1, len(rows) // _ROWS_ASKED)].tolist():
        limits = limits_of(view, row)
        ends.append(orphan(limits, _base_ms(view, row)))
    return span(max(ends, key=lambda end: end.seconds))


def span(end: End | None) -> str:
    """Return when the kernel gives up, as `text`; ``never``."""
    return "never" if end is None or end.seconds == float("inf") else text(end.seconds)


def ends_by_itself(view: View, rows: NDArray[np.int64]) -> str:
    """Return when the last of some rows is given up, in words that follow "it ends by itself": ``in about 83 s``.

    Of many rows some are asked.
    """
    some = rows[:: max(1, len(rows) // _ROWS_ASKED)]
    left = [left_ms(view, row) for row in some.tolist()]
    known = [ms for ms in left if ms is not None]
    if not known:
        return "never"
    about = f"in about {text(max(known) / 1000)}"
    return about if len(known) == len(left) else f"{about}, some never"


def text(seconds: float) -> str:
    """Return a predicted span as people read it: ``3.3 s``, ``135 s``, ``15 min``."""
    if seconds >= 600:
        return duration_text(round(1000 * seconds))
    return f"{seconds:.0f} s" if seconds >= 10 or seconds == int(seconds) else f"{seconds:.1f} s"
