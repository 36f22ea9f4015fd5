"""Whether the other end of a connection is still there: a keepalive for some seconds, and what follows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from finwait.acting.borrowed import borrow, not_gone, uninterrupted
from finwait.acting.identity import NOT_ENTERED, Journal, Say, in_words, quiet, reread, rows_by_cookie
from finwait.acting.options import claim_options, put_back
from finwait.diagnosis import forecast
from finwait.errors import FinwaitError, TargetGone
from finwait.kernel import pidfd
from finwait.remedy.outcome import Probe
from finwait.remedy.plan import Step
from finwait.uapi import tcp

__all__ = ["probe"]


def probe(
    steps: Sequence[Step],
    journal: Journal,
    *,
    keepalive: tuple[int, int, int] = (1, 1, 3),
    fault: Callable[[str], None] = quiet,
    say: Say = quiet,
    unrestored: dict[int, str] | None = None,
) -> list[Probe]:
    """Ask connections whether their peers live, and leave every option as it was.

    A keepalive is armed through a borrowed descriptor, its outcome watched by sock_diag, and the options are
    put back also when this is interrupted; what a SIGKILL leaves behind, `restore` puts back by the journal. A
    connection whose options could not be put back, or which another act is at, is not touched.

    Args:
        steps: the connections, as a plan names them.
        journal: where acts are written down before they are done.
        keepalive: idle, interval (seconds) and count.
        fault: called with the name of each stage; a test's way to stop in the middle.
        say: told what is being done.
        unrestored: takes, by index, why options are not as they were; also when this raises.

    Raises:
        KernelError: the journal could not be written; nothing was done.
    """
    idle, interval, count = keepalive
    wanted = {"keepidle": idle, "keepintvl": interval, "keepcnt": count, "user_timeout_ms": 0, "keepalive": 1}
    claim = claim_options(
        dict(enumerate(steps)), dict.fromkeys(range(len(steps)), wanted), journal, lambda _: "probe"
    )
    found = {k: _unprobed(steps[k], error) for k, error in claim.errors.items()}
    begun: dict[int, float] = {}
    ended: dict[int, str] = {} if unrestored is None else unrestored
    moved: set[int] = set()
    try:
        fault("journaled")
        unarmed: dict[int, FinwaitError] = {}
        for k in claim.ids:
            try:
                with borrow(steps[k]) as sock:
                    before_arming = time.monotonic()
                    pidfd.set_options(sock, wanted)
                begun[k] = before_arming
            except FinwaitError as error:
                unarmed[k] = error
        unarmed |= not_gone(dict(enumerate(steps)), unarmed)
        found |= {k: _unprobed(steps[k], error) for k, error in unarmed.items()}
        fault("armed")
        silence = forecast.keepalive(idle, interval, count).seconds
        say(f"probing {len(begun)} connections for up to {silence + 1:.0f} s")
        first = {k: at + idle for k, at in begun.items()}
        _watch({k: steps[k] for k in begun}, first, found, keepalive)
    finally:
        with uninterrupted():
            ended |= put_back({k: steps[k] for k in claim.ids}, claim.before, moved)
            journal.complete_many(
                {
                    act: {"error": ended[k]}
                    if k in ended
                    else {"result": found[k].verdict if k in found else "interrupted", "restored": True}
                    for k, act in claim.ids.items()
                    if k not in moved
                }
            )
    for k in claim.ids:
        found[k] = replace(found[k], unrestored=ended.get(k, ""), pinned=claim.followed[k])
    return [found[k] for k in range(len(steps))]


def _unprobed(step: Step, error: FinwaitError) -> Probe:
    return Probe(step, "gone" if isinstance(error, TargetGone) else "not judged", in_words(error))


_JIFFIES_S: Final = 0.02
"""Timers and ages are counted in jiffies, of 10 ms at most: two of them may be missing."""


def _watch(
    steps: Mapping[int, Step],
    first: Mapping[int, float],
    found: dict[int, Probe],
    keepalive: tuple[int, int, int],
) -> None:
    """Poll until each connection is judged: an answer, a row that vanished or moved on, or data in flight.

    Args:
        steps: the connections, all of which are armed.
        first: when the first probe of each is due, CLOCK_MONOTONIC: a whole idle time after it was armed, also where
            keepalive was on before, as `pidfd.set_options` starts the timer anew.
        found: takes the verdicts.
        keepalive: idle, interval (seconds) and count.
    """
    idle_s, interval_s, count = keepalive
    wait_s = forecast.keepalive(*keepalive).seconds + 1.0
    most: dict[int, int] = dict.fromkeys(steps, 0)
    rtt_s: dict[int, float] = dict.fromkeys(steps, 0.0)
    open_ = dict(steps)
    due = dict(first)
    arrived: dict[int, float] = dict.fromkeys(steps, 0.0)
    while open_:
        time.sleep(0.05)
        asked = time.monotonic()
        table, closed = reread(open_.values())
        read = time.monotonic()
        rows = rows_by_cookie(table)
        for k, step in list(open_.items()):
            since = read - due[k]
            row = rows.get((step.netns, int(step.cookie, 16)))
            if row is None and step.netns in closed:
                found[k] = Probe(step, "not judged", NOT_ENTERED)
                del open_[k]
                continue
            if row is None:
                found[k] = _vanished(step, since, most[k], rtt_s[k], interval_s, count)
                del open_[k]
                continue
            state = tcp.state_name(int(table.state[row]))
            timer = int(table.timer[row])
            if state != step.state or timer == 3 or int(table.inode[row]) != step.inode:
                found[k] = Probe(step, "gone", f"one of its programs closed it meanwhile: it is in {state}")
                del open_[k]
                continue
            if timer in (1, 4):
                found[k] = Probe(step, "not judged", "data is in flight: keepalive does not run then")
                del open_[k]
                continue
            # Of a keepalive timer it is the probes that no acknowledgement has followed yet.
            unanswered = int(table.retrans[row]) if timer == 2 else 0
            most[k] = max(most[k], unanswered)
            rtt_s[k] = int(table.rtt_us[row]) / 1e6
            # The last acknowledgement came at this time or later: the kernel read its age after we had asked.
            arrived[k] = max(arrived[k], asked - int(table.last_ack_recv_ms[row]) / 1000)
            if not unanswered and arrived[k] >= first[k] - _JIFFIES_S:
                probe_answered = arrived[k] >= due[k] - _JIFFIES_S
                what = "a probe" if probe_answered else "data meanwhile, before a probe was due"
                found[k] = Probe(step, "alive", f"the peer acknowledged {what}")
                del open_[k]
                continue
            if arrived[k] < first[k]:  # then the kernel waits for as long a silence again
                due[k] = max(due[k], arrived[k] + idle_s)
            if since > wait_s - idle_s:
                found[k] = Probe(step, "not judged", f"{most[k]} probes sent, no verdict in {wait_s:.0f} s")
                del open_[k]


def _vanished(
    step: Step, since: float, unanswered: int, rtt_s: float, interval_s: float, count: int
) -> Probe:
    """Judge a connection that the kernel has no more, ``since`` seconds after the first probe was due."""
    if since < 0:
        return Probe(step, "gone", "it ended before a probe was sent")
    if unanswered >= count and since >= interval_s * count:
        return Probe(step, "dead", f"{unanswered} probes went unanswered; the kernel ended it")
    try:
        with borrow(step):
            return Probe(
                step, "reset", "it ended while its program holds it: a RST, the peer's socket is gone"
            )
    except FinwaitError:
        pass
    # A program closes at once what failed; one that ended it itself did so at any time.
    if since <= interval_s * max(unanswered - 1, 0) + 2 * rtt_s + 0.3:
        return Probe(step, "reset", "it ended with a probe: most likely a RST, the peer's socket is gone")
    return Probe(step, "gone", f"it ended, and its program let go of it, with {unanswered} probes unanswered")
