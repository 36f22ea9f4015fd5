"""What becomes of connections under a keepalive of ours: whether their peers live.

`finwait probe` and the means ``keepalive`` of `finwait clear` both watch and judge with this.

*What is evidence.* An acknowledgement that came after the first probe was due. A RST is a segment: the socket's count
of segments that came in says whether there was one, as long as its program holds the descriptor. (SO_ERROR is not read:
that takes the error away from the program.) Who sent the RST cannot be seen from here: the peer's kernel, or a box on
the path; where the other end is on this machine it is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from finwait.acting.aftermath import still_there
from finwait.acting.borrowed import borrow
from finwait.acting.identity import NOT_ENTERED, key_of, reread, rows_by_cookie
from finwait.diagnosis import forecast
from finwait.errors import FinwaitError
from finwait.kernel import pidfd
from finwait.kernel.interruption import check, pause
from finwait.remedy.outcome import Probe
from finwait.remedy.plan import Step
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp

__all__ = ["watch"]

_JIFFIES_S: Final = 0.02
"""Timers and ages are counted in jiffies, of 10 ms at most: two of them may be missing."""


class _Watched(Struct):
    """What has been seen of one connection."""

    step: Step
    first: float
    """When its first probe is due; times are of CLOCK_MONOTONIC."""
    due: float
    """When it is due after all: data that is acknowledged before makes the kernel wait for as long again."""
    unanswered: int = 0
    """Probes without answer, at most."""
    rtt_s: float = 0.0
    segments: int | None = None
    """Segments that have come in, at the last look."""
    earliest: float = 0.0
    """The last acknowledgement came at this time or later, …"""
    latest: float = 0.0
    """… and at this time or earlier."""


def watch(
    steps: Mapping[int, Step],
    first: Mapping[int, float],
    probes: dict[int, Probe],
    keepalive: tuple[int, int, int],
) -> None:
    """Poll until each connection is judged: an answer, a row that vanished or moved on, or data in flight.

    Raises KeyboardInterrupt when that is interrupted.

    Args:
        steps: the connections, all of which are armed.
        first: when the first probe of each is due, CLOCK_MONOTONIC: a whole idle time after it was armed, also where
            keepalive was on before, as `pidfd.set_options` starts the timer anew.
        probes: takes the verdicts.
        keepalive: idle, interval (seconds) and count.
    """
    open_ = {k: _Watched(step, first[k], first[k]) for k, step in steps.items()}
    while open_:
        pause(0.05)
        check()
        asked = time.monotonic()
        table, closed = reread(seen.step for seen in open_.values())
        read = time.monotonic()
        rows = rows_by_cookie(table)
        for k, seen in list(open_.items()):
            row = rows.get(key_of(seen.step))
            if row is not None:
                verdict = _judged(seen, table, row, asked, read, keepalive)
            elif seen.step.netns in closed:
                verdict = Probe(seen.step, "not judged", NOT_ENTERED)
            else:
                verdict = _vanished(seen, read - seen.due, keepalive)
            if verdict is not None:
                probes[k] = verdict
                del open_[k]


def _judged(
    seen: _Watched, table: SocketTable, row: int, asked: float, read: float, keepalive: tuple[int, int, int]
) -> Probe | None:
    """Judge a connection that is still there; None for not yet.

    Args:
        seen: what was seen of it before.
        table: of this look.
        row: which.
        asked: when the look began.
        read: when it had ended: the row is from some moment in between.
        keepalive: idle, interval (seconds) and count.
    """
    idle_s, interval_s, count = keepalive
    step = seen.step
    state, timer = tcp.state_name(int(table.state[row])), int(table.timer[row])
    if state != step.state or timer == 3 or int(table.inode[row]) != step.inode:
        return Probe(step, "gone", f"one of its programs closed it meanwhile: it is in {state}")
    if timer in (1, 4):
        return Probe(step, "not judged", "data is in flight: keepalive does not run then")
    # Of a keepalive timer it is the probes that no acknowledgement has followed yet.
    unanswered = int(table.retrans[row]) if timer == 2 else 0
    seen.unanswered = max(seen.unanswered, unanswered)
    seen.rtt_s = int(table.rtt_us[row]) / 1e6
    seen.segments = int(table.segs_in[row]) if table.present("segs_in")[row] else None
    age_s = int(table.last_ack_recv_ms[row]) / 1000
    seen.earliest = max(seen.earliest, asked - age_s)
    seen.latest = read - age_s if seen.latest < seen.earliest else min(seen.latest, read - age_s)
    over = read - seen.due > interval_s * count + 1.0
    if not unanswered and seen.earliest >= seen.first - _JIFFIES_S:
        if seen.earliest >= seen.due - _JIFFIES_S:
            return Probe(step, "alive", "the peer acknowledged a probe")
        return Probe(step, "alive", "the peer acknowledged data meanwhile, before a probe was due")
    if not unanswered and over and seen.latest >= seen.first - _JIFFIES_S:
        return Probe(step, "alive", "the peer acknowledged a probe, or data at the same moment")
    if seen.latest < seen.first - _JIFFIES_S:  # then the kernel waits for as long a silence again
        seen.due = max(seen.due, seen.latest + idle_s)
    if over:
        wait_s = forecast.keepalive(*keepalive).seconds + 1.0
        detail = f"{seen.unanswered} probes sent, no verdict in {wait_s:.0f} s"
        return Probe(step, "not judged", detail)
    return None


def _vanished(seen: _Watched, since: float, keepalive: tuple[int, int, int]) -> Probe:
    """Judge a connection that the kernel has no more, ``since`` seconds after the first probe was due."""
    _, interval_s, count = keepalive
    step, unanswered = seen.step, seen.unanswered
    if since < 0:
        return Probe(step, "gone", "it ended before a probe was sent")
    if unanswered >= count and since >= interval_s * count:
        return Probe(step, "dead", f"{unanswered} probes went unanswered; the kernel ended it")
    try:
        with borrow(step) as sock:
            segments = pidfd.segments_in(sock)
    except FinwaitError:
        # A program closes at once what failed; one that ended it itself did so at any time.
        if since <= interval_s * max(unanswered - 1, 0) + 2 * seen.rtt_s + 0.3:
            return Probe(step, "reset", f"it ended with a probe: most likely a RST came, {_sender(step)}")
        return Probe(
            step, "gone", f"it ended, and its program closed it, with {unanswered} probes unanswered"
        )
    if segments is None or seen.segments is None:
        cause = "it ended while its program still holds it: most likely a RST came"
    elif segments > seen.segments:
        cause = "a RST came"
    else:
        return Probe(step, "gone", "it was ended on this machine (`ss -K`, for example): no RST came")
    return Probe(step, "reset", f"{cause}, {_sender(step)}")


def _sender(step: Step) -> str:
    """Say who may have sent a RST; the other end is asked where it is on this machine."""
    if step.other is not None:
        other_seen = still_there([step.other]).get(key_of(step.other))
        if other_seen is not None and not other_seen.unknown:
            return (
                f"and the other end, which is on this machine, is still in {other_seen.state}: something on the path "
                "sent it (a firewall that rejects, for example)"
            )
    return "from the peer's machine, where its socket is gone, or from something on the path"
