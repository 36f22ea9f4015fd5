"""What ends a connection whose peer is gone, by the options that its socket has.

The times come from `finwait.diagnosis.forecast`; here they are put together for one socket, and for a user timeout that
leaves keepalive its count of probes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import Struct

from finwait.diagnosis import wheel
from finwait.diagnosis.forecast import DEFAULTS, NamespaceLimits, keepalive, retransmission

__all__ = ["PeerGone", "peer_gone", "user_timeout_for"]


class PeerGone(Struct, frozen=True):
    """What ends a connection whose peer is gone, with the options that its socket has."""

    silence_s: float | None
    """After so long a silence, when nothing is in flight; None: never, as keepalive is off."""
    probes: int
    """Probes that are unanswered by then."""
    count: int
    """… and TCP_KEEPCNT."""
    user_timeout_ms: int
    unacknowledged_s: float
    """After so long, when data is in flight; at the earliest."""
    unacknowledged_most_s: float
    """… and at the latest."""


def peer_gone(options: Mapping[str, int], limits: NamespaceLimits = DEFAULTS) -> PeerGone:
    """Return what ends a connection whose peer is gone.

    Args:
        options: all of `finwait.kernel.pidfd.KEEPALIVE_OPTIONS` by name.
        limits: what decides how long unacknowledged data is sent again.
    """
    timeout, count = options["user_timeout_ms"], options["keepcnt"]
    idle = keepalive(options["keepidle"], options["keepintvl"], count, timeout)
    busy = retransmission(limits, user_timeout_ms=timeout)
    if not options["keepalive"]:
        return PeerGone(None, 0, count, timeout, busy.seconds, busy.most_s)
    return PeerGone(idle.seconds, idle.tries, count, timeout, busy.seconds, busy.most_s)


def user_timeout_for(idle_s: int, interval_s: int, count: int) -> tuple[int, int]:
    """Return user timeouts (least and most, ms) with which keepalive still waits for ``count`` probes at least.

    The user timeout takes the place of the count, and is compared each time the timer fires, which is late: by up to
    an eighth of a long ``idle_s`` (`finwait.diagnosis.wheel`). It must not have passed before the last probe is due,
    however late the ones before were. Where that takes longer than the interval, a dead peer is sent more probes.
    """
    nominal = 1000 * (idle_s + interval_s * count)
    before_last = nominal - 1000 * interval_s
    late = wheel.late_ms(1000.0 * idle_s, *([1000.0 * interval_s] * (count - 1)))
    least = max(nominal - 500 * interval_s, math.ceil((before_last + late) / 500) * 500 + 500)
    return least, max(nominal, least)
