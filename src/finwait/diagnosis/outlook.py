"""When a connection ends by itself, if nobody does anything about it: `Outlook`, of each row and of a finding.

What is counted comes from `finwait.diagnosis.forecast`; here it is decided which of its clocks runs. At most one
timer of a socket is armed (``icsk_pending``, and the keepalive timer), and the state says what it means:

* a minisocket (timer 3) leaves when its timer fires;
* a handshake is given up after its own retries, at each side by other settings (`finwait.diagnosis.opening`);
* the retransmission timer (1) and the timer of window probes (4) give up after a number of tries, or after
  TCP_USER_TIMEOUT where the socket has one; a peer that answers window probes is waited for without end, and of one
  that has not answered the last probe yet nothing is known; where a peer has some room and nothing failed yet, the
  timer only sends the next data;
* keepalive (2) finds a dead peer, never a live one;
* without a timer nothing fires: it ends when somebody closes, here or at the other end.

What this cannot see: what programs will do, and whether a silent peer lives. TCP_USER_TIMEOUT and the times of
keepalive are known only where the options of the socket were read (`finwait.kernel.socket_options`), and those of an
orphan never are: it has no descriptor. Where they were not, `why` says so, and what only TCP_USER_TIMEOUT would end is
"unknown" rather than "never".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.attribution.mptcp import MPTCP
from finwait.diagnosis import forecast, opening, wheel, window_probes
from finwait.diagnosis.view import View
from finwait.table.units import duration_text
from finwait.table.vocabulary import ENDS
from finwait.uapi import tcp
from finwait.uapi.observation import SocketOptions

__all__ = ["ENDS", "Outlook", "brief", "of_finding", "of_row", "of_rows", "text"]

_RETRANSMISSION, _KEEPALIVE, _TIME_WAIT, _PROBES = 1, 2, 3, 4


_WAITING: Final = (tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)
"""States in which something that was sent may wait for an answer."""
_TIMED: Final = {
    _RETRANSMISSION: _WAITING,
    _KEEPALIVE: (*_WAITING, tcp.FIN_WAIT2),
    _TIME_WAIT: (tcp.FIN_WAIT2, tcp.TIME_WAIT),
    _PROBES: _WAITING,
}
"""The states in which each timer runs, handshakes left out."""


class Outlook(Struct, frozen=True):
    """When, and by what, a connection ends if nobody acts."""

    ends: str
    """One of `ENDS`."""
    at_least_s: float | None
    """From the look on, in seconds, of keepalive from the peer's last answer on; None where nothing bounds it."""
    at_most_s: float | None
    """… by what the kernel's timers may be late."""
    why: str
    sooner_s: float | None = None
    """The earliest end if its program set an option that could not be read (TCP_USER_TIMEOUT, TCP_RTO_MAX_MS): when the
    timer fires, for the kernel gives up at no other moment. None where the options are known, or change nothing."""

    @property
    def earliest_s(self) -> float | None:
        """The bound that holds whatever was set."""
        return self.at_least_s if self.sooner_s is None else self.sooner_s


def of_row(view: View, row: int) -> Outlook:
    """Return when a row ends by itself."""
    s = view.sockets
    state, timer = int(s.state[row]), int(s.timer[row])
    options = view.socket_options.get(int(s.inode[row])) if s.inode[row] else None
    options = None if options is not None and options.errno else options
    if not s.present("timer")[row] and state != tcp.LISTEN:
        return Outlook("unknown", None, None, "what was read does not say which timer runs")
    if view.undecided[row]:
        return Outlook("unknown", None, None, "what was read does not say whether a process holds it")
    if state == tcp.LISTEN and s.rqueue[row]:
        return Outlook(
            "unknown", None, None, "its queue empties when its program accepts; nothing tells when"
        )
    if state == tcp.LISTEN:
        return Outlook("never", None, None, "it listens until its program closes it")
    if s.protocol[row] == MPTCP:
        return _of_subflows(view, row, options)
    if state == tcp.SYN_SENT:
        return _opening(view, row, options)
    if state in (tcp.SYN_RECV, tcp.NEW_SYN_RECV):
        return _answering(view, row)
    if timer and state not in _TIMED.get(timer, ()):
        return Outlook(
            "unknown", None, None, f"what timer {timer} does in {tcp.state_name(state)} is not known"
        )
    if timer and not s.present("expires_ms")[row]:
        return Outlook("timer" if timer == _TIME_WAIT else "unknown", None, None, _NOT_TOLD)
    if timer == _TIME_WAIT:
        least_s = int(s.expires_ms[row]) / 1000
        return Outlook("timer", least_s, least_s + _late_s(view, row), "the timewait timer")
    if timer in (_RETRANSMISSION, _PROBES):
        return _given_up(view, row, options)
    if timer == _KEEPALIVE and not s.inode[row] and state == tcp.FIN_WAIT2:
        return _long_orphan(view, row)
    if timer == _KEEPALIVE or (options is not None and options.keepalive):
        return _probed(options)
    return _idle(view, row, state)


def _of_subflows(view: View, row: int, options: SocketOptions | None) -> Outlook:
    """Of an MPTCP connection: its subflows retransmit and probe; its own timer gives it up."""
    s = view.sockets
    state, timer = int(s.state[row]), int(s.timer[row])
    whole, part = view.subflows
    parts = part[whole == row]
    if view.fell_back[row] and len(parts) == 1:
        return of_row(view, int(parts[0]))
    if state == tcp.SYN_SENT:
        opening_ = parts[s.state[parts] == tcp.SYN_SENT].tolist()
        if opening_:
            return _opening(view, opening_[0], options)
        return Outlook("unknown", None, None, "its subflow, which sends the SYN, was not seen")
    if timer == _KEEPALIVE:  # sk_timer, which MPTCP uses for this
        if len(parts) and s.inode[row]:
            return Outlook(
                "unknown", None, None, "a timer of MPTCP runs; whether it ends a subflow or all is not known"
            )
        why = (
            "its timer of `net.mptcp.close_timeout`"
            if s.inode[row]
            else "its timer, from when its program closed it"
        )
        return _close_timeout(view, row, why)
    if timer:
        return Outlook("unknown", None, None, "it sends again over its subflows, whose ends decide")
    if state == tcp.CLOSE_WAIT and view.held[row]:
        if view.shut_out[parts].any():
            return Outlook("peer", None, None, "it waits for the peer's program to read, and probes for room")
        return _kept(view, row)
    if options is not None and options.keepalive:
        return Outlook("keepalive", None, None, "keepalive of its subflows; a live peer answers for ever")
    return _idle(view, row, state)


def _close_timeout(view: View, row: int, why: str) -> Outlook:
    """Of an MPTCP row whose timer to give it up runs, and of what that ends.

    mptcp_close_timeout(), net/mptcp/protocol.c: TCP_TIMEWAIT_LEN for an orphan, whatever net.mptcp.close_timeout is.
    """
    s, set_s = view.sockets, float(forecast.TIME_WAIT_S)
    if s.inode[row]:
        space = view.namespaces.get(int(s.netns[row]))
        set_s = (space.sysctl("mptcp/close_timeout") if space is not None else None) or set_s
    least_ms = float(s.expires_ms[row])
    late_ms = max(wheel.late_ms(least_ms), wheel.late_ms(1000 * set_s))
    return Outlook("timer", least_ms / 1000, (least_ms + late_ms) / 1000, why)


def _kept(view: View, row: int) -> Outlook:
    """Of an MPTCP connection whose peer has closed: a peer that let go of it, too, resets it when its patience ends.

    mptcp_worker(), net/mptcp/protocol.c: an orphan whose timer is over sends MP_FASTCLOSE.
    """
    s, other = view.sockets, int(view.other[row])
    if other < 0:
        why = "a peer that has closed its socket resets this 60 s later (Linux); one that keeps it does not"
        return Outlook("unknown", None, None, why)
    if not s.inode[other] and s.timer[other] == _KEEPALIVE:
        why = "the other end, which nobody holds, resets it by its timer; the descriptor stays"
        return _close_timeout(view, other, why)
    return Outlook(
        "never", None, None, "no timer runs, and the other end is held, so only its program can close it"
    )


def of_rows(view: View, rows: NDArray[np.int64]) -> list[Outlook]:
    """Return when each of some rows ends by itself; rows that wait for the same share one answer.

    Without a timer, or with keepalive's, of a socket whose options were not read, only the state and whether a program
    holds it decide.
    """
    s = view.sockets
    state, timer, inode = s.state[rows], s.timer[rows], s.inode[rows]
    plain = (timer == 0) | ((timer == _KEEPALIVE) & ((inode != 0) | (state != tcp.FIN_WAIT2)))
    plain &= np.isin(state, _TIMED[_KEEPALIVE]) & (s.protocol[rows] != MPTCP)
    plain &= s.present("timer")[rows] & s.present("expires_ms")[rows] & ~view.undecided[rows]
    plain &= ~np.isin(inode, np.array([*view.socket_options], np.uint64))
    held = view.held[rows].astype(np.int64)
    keys = np.where(plain, state.astype(np.int64) << 3 | (timer != 0) << 2 | held << 1 | (inode != 0), -1)
    shared: dict[int, Outlook] = {}
    result = []
    for row, key in zip(rows.tolist(), keys.tolist(), strict=True):
        known = shared.get(key)
        if known is None:
            known = of_row(view, row)
            if key >= 0:
                shared[key] = known
        result.append(known)
    return result


def _late_s(view: View, row: int) -> float:
    """Return by how much the timer of a minisocket, or of an orphan in FIN_WAIT2, is late at most.

    What it was set to is not told: TIME_WAIT_S, TCP_LINGER2, or tcp_fin_timeout, of which part may be over.
    """
    s = view.sockets
    set_ms = [float(s.expires_ms[row]), 1000 * forecast.TIME_WAIT_S]
    if s.state[row] == tcp.FIN_WAIT2:
        set_ms.append(1000 * _beyond_s(view, row))
    return max(wheel.late_ms(ms) for ms in set_ms) / 1000


def _beyond_s(view: View, row: int) -> float:
    """Return by how much an orphan's time in FIN_WAIT2 exceeds 60 s, at most: it is a minisocket for that time."""
    space = view.namespaces.get(int(view.sockets.netns[row]))
    timeout = space.sysctl("ipv4/tcp_fin_timeout") if space is not None else None
    return max((timeout or 0) - forecast.TIME_WAIT_S, forecast.LINGER2_MAX_S - forecast.TIME_WAIT_S)


def _opening(view: View, row: int, options: SocketOptions | None) -> Outlook:
    """Of a row whose SYN nobody answers."""
    if view.sockets.timer[row] != _RETRANSMISSION:
        return Outlook(
            "unknown", None, None, "no SYN is being sent again: it may wait for the first data (Fast Open)"
        )
    timeout = options.user_timeout_ms if options is not None else None
    syncnt = options.syncnt if options is not None else None
    end = opening.of_row(view, row, options)
    why = "SYNs without an answer; unless the peer answers"
    if timeout:
        why += f"; TCP_USER_TIMEOUT {duration_text(timeout)}"
    unread = (
        ("TCP_SYNCNT", syncnt is None),
        ("TCP_USER_TIMEOUT", timeout is None),
        ("TCP_RTO_MAX_MS", _rto_max_unread(view, row, options)),
    )
    if names := " or ".join(name for name, missing in unread if missing):
        why += f"; a {names}, which was not read, would change it"
    return Outlook(
        "retries",
        end.least_ms / 1000,
        end.most_ms / 1000,
        why,
        _sooner_s(view, row, options, end.least_ms / 1000),
    )


def _answering(view: View, row: int) -> Outlook:
    """Of a handshake that a client has begun and not completed."""
    s = view.sockets
    if s.timer[row] != _RETRANSMISSION:
        return Outlook("unknown", None, None, "the timer of its SYN-ACK was not armed when it was looked at")
    if s.inode[row] or s.present("rto_us")[row]:  # a request has no tcp_info
        why = "a socket in SYN_RECV (Fast Open, or SYNs that crossed); how often it tries is not known"
        return Outlook("unknown", None, None, why)
    end = opening.answering(view, row)
    if end is None:
        return Outlook("unknown", None, None, "tcp_synack_retries of its namespace was not read")
    setting = "TCP_SYNCNT of its listener" if end.own else "tcp_synack_retries"
    parts = [
        f"the client has not completed the handshake; {setting} is {end.retries}",
        "later if the client sends its SYN again",
    ]
    if end.crowded:
        parts.append("sooner while more than half of the listener's backlog is handshakes")
    if end.deferred:
        parts.append("its listener waits for data (TCP_DEFER_ACCEPT)")
    if not end.read:
        parts.append("a TCP_SYNCNT or TCP_DEFER_ACCEPT of its listener, which was not read, would change it")
    elif end.maybe_own:
        parts.append(
            f"unless its listener itself set TCP_SYNCNT to {end.maybe_own}, which reads the same as unset"
        )
    return Outlook("retries", end.least_ms / 1000, end.most_ms / 1000, "; ".join(parts))


def _sooner_s(view: View, row: int, options: SocketOptions | None, least_s: float) -> float | None:
    """Return `Outlook.sooner_s` of a row that the kernel gives up when a timer fires."""
    if (
        options is not None
        and options.user_timeout_ms is not None
        and not _rto_max_unread(view, row, options)
    ):
        return None
    return min(least_s, int(view.sockets.expires_ms[row]) / 1000)


def _rto_max_unread(view: View, row: int, options: SocketOptions | None) -> bool:
    """Return whether the socket may have a TCP_RTO_MAX_MS that is not known; kernels that know none have no sysctl."""
    if options is not None and options.rto_max_ms is not None:
        return False
    space = view.namespaces.get(int(view.sockets.netns[row]))
    return space is not None and "ipv4/tcp_rto_max_ms" in space.sysctls


def _unread(view: View, row: int, *more: str) -> str:
    """Return that TCP_USER_TIMEOUT and further options are not known, and why."""
    orphan = not view.sockets.inode[row] and not view.queued[row]
    names = " or ".join(("TCP_USER_TIMEOUT", *more))
    return f"{names}, which {'cannot be read of an orphan' if orphan else 'was not read'}"


_ANSWERS: Final = "its peer answers window probes, and had no room at the last"


def _given_up(view: View, row: int, options: SocketOptions | None) -> Outlook:
    """Of a row whose data, FIN or window probe waits for an answer."""
    if window_probes.sends_next(view, row):
        when = duration_text(int(view.sockets.expires_ms[row]))
        return Outlook(
            "unknown", None, None, f"the peer has some room; its timer sends what fits within {when}"
        )
    timeout = options.user_timeout_ms if options is not None else None
    more = ("TCP_RTO_MAX_MS",) if _rto_max_unread(view, row, options) else ()
    waiting = forecast.under_way(view, row, timeout or 0)
    if waiting is None or waiting.ends_s is None:
        if timeout is not None:
            return Outlook("never", None, None, _ANSWERS)
        return Outlook("unknown", None, None, f"{_ANSWERS}; only a {_unread(view, row)}, would end it")
    if waiting.most_s is None:
        least = duration_text(round(1000 * waiting.ends_s))
        why = f"{_tried(view, row, lives=None)}; if the peer is gone, it ends in about {least}"
        unread = "" if timeout is not None else f"; a {_unread(view, row, *more)}, would change it"
        return Outlook("unknown", None, None, why + unread)
    tried = _tried(view, row, lives=waiting.lives)
    why = f"{tried}; {_otherwise(view, row, shut=waiting.lives is not False)}"
    if timeout:
        why += f"; TCP_USER_TIMEOUT {duration_text(timeout)}"
    elif timeout is None:
        why += f"; a {_unread(view, row, *more)}, would change it"
    sooner_s = _sooner_s(view, row, options, waiting.ends_s)
    return Outlook("retries", waiting.ends_s, waiting.most_s, why, sooner_s)


def _tried(view: View, row: int, *, lives: bool | None) -> str:
    """Return what was tried in vain; ``lives`` as `forecast.UnderWay.lives`."""
    tries = int(view.sockets.retrans[row])
    if lives:
        return _ANSWERS
    if lives is None:
        return "the last window probe is not answered yet" if tries else "no window probe was sent yet"
    if not tries:
        return "waits for an answer; nothing was sent again yet"
    attempt = "window probe" if int(view.sockets.timer[row]) == _PROBES else "retransmission"
    return f"{tries} {attempt}{'' if tries == 1 else 's'} without an answer"


def _otherwise(view: View, row: int, *, shut: bool) -> str:
    """Return what keeps the kernel from giving up: only in LAST_ACK an answer is itself the end."""
    if shut:
        return "unless the peer makes room"
    if view.sockets.state[row] == tcp.LAST_ACK and int(view.sockets.timer[row]) == _RETRANSMISSION:
        return "sooner if the peer answers"
    return "unless the peer answers"


def _long_orphan(view: View, row: int) -> Outlook:
    """Of an orphan in FIN_WAIT2 that is still a full socket: it becomes a minisocket for as long again."""
    remaining_s, beyond_s = int(view.sockets.expires_ms[row]) / 1000, _beyond_s(view, row)
    most_s = remaining_s + _late_s(view, row) + beyond_s + wheel.late_ms(1000 * beyond_s) / 1000
    return Outlook("timer", remaining_s, most_s, "its FIN_WAIT2 timer, and then a minisocket's")


def _probed(options: SocketOptions | None) -> Outlook:
    """Of a row that waits for its peer, whom keepalive asks."""
    alive = "a live peer answers for ever"
    times = () if options is None else (options.keepidle_s, options.keepintvl_s, options.keepcnt)
    known = [number for number in times if number is not None]
    if options is None or len(known) != 3:
        return Outlook("keepalive", None, None, f"keepalive, whose times were not read; {alive}")
    idle, interval, count = known
    end = forecast.keepalive(idle, interval, count, options.user_timeout_ms or 0)
    why = f"keepalive {idle}/{interval}/{count}, from the last answer of a peer that is dead; {alive}"
    return Outlook("keepalive", end.seconds, end.most_s, why)


def _idle(view: View, row: int, state: int) -> Outlook:
    """Of a row without a timer."""
    if not view.held[row] and state in (tcp.ESTABLISHED, tcp.CLOSE_WAIT):
        return Outlook(
            "unknown",
            None,
            None,
            "it waits for accept(), and no timer runs; when its program takes it is not known",
        )
    if state == tcp.FIN_WAIT2:
        return Outlook("peer", None, None, "no timer runs while it waits for the peer's FIN")
    if state == tcp.CLOSE_WAIT:
        return Outlook("never", None, None, "no timer runs, so only its program can close it")
    if state == tcp.ESTABLISHED:
        return Outlook("never", None, None, "it is open, and no timer runs")
    if state == tcp.CLOSE and view.sockets.inode[row]:
        return Outlook("never", None, None, "the kernel has given it up, and only its program can close it")
    return Outlook("unknown", None, None, "no timer was armed when it was looked at")


_NOT_TOLD: Final = "a timer runs; what was read does not say when it is due"
_ORDER: Final = {end: k for k, end in enumerate(ENDS)}


def of_finding(view: View, rows: NDArray[np.int64]) -> Outlook | None:
    """Return when the last of some rows ends by itself; None without rows.

    Where their ends differ, that of the most lasting kind, with the widest bounds of all that are of this kind.
    """
    known = view.worked_out.get(id(rows))
    if known is None or known[0] is not rows:
        outlook = _together(of_rows(view, _telling(view, rows)))
        view.worked_out[id(rows)] = known = rows, outlook
    return known[1]


def _telling(view: View, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows that decide when the last of a finding ends.

    Of minisockets of one state and namespace, whose ends their timer alone tells, those that end first and last.
    """
    s = view.sockets
    timed = s.timer[rows] == _TIME_WAIT
    if not timed.any():
        return rows[:_LOOKED_AT]
    mini = rows[timed]
    order = mini[np.lexsort((s.expires_ms[mini], s.state[mini], s.netns[mini]))]
    alike = (np.diff(s.state[order].astype(np.int64)) == 0) & (np.diff(s.netns[order].astype(np.int64)) == 0)
    first, last = np.concatenate([[True], ~alike]), np.concatenate([~alike, [True]])
    return np.concatenate([order[first | last], rows[~timed][:_LOOKED_AT]])


_LOOKED_AT: Final = 2_000
"""Rows of a finding whose ends are worked out; they share a cause."""


def _together(outlooks: Iterable[Outlook]) -> Outlook | None:
    ordered = sorted(outlooks, key=lambda outlook: _ORDER[outlook.ends])
    if not ordered:
        return None
    same = [outlook for outlook in ordered if outlook.ends == ordered[0].ends]
    least = [outlook.at_least_s for outlook in same]
    most = [outlook.at_most_s for outlook in same]
    reasons = list(dict.fromkeys(outlook.why for outlook in same))
    return Outlook(
        ordered[0].ends,
        None if None in least else min(n for n in least if n is not None),
        None if None in most else max(n for n in most if n is not None),
        reasons[0] + (" (others differ)" if len(reasons) > 1 else ""),
        min((outlook.sooner_s for outlook in same if outlook.sooner_s is not None), default=None),
    )


def text(outlook: Outlook) -> str:
    """Return it as a person reads it: `never: …`, `in 43–57 s: …`."""
    least, most = outlook.at_least_s, outlook.at_most_s
    if outlook.ends in ("never", "peer"):
        return f"never by itself: {outlook.why}"
    if outlook.ends == "unknown":
        return f"unknown: {outlook.why}"
    if outlook.ends == "keepalive":
        return f"{'' if least is None else f'after about {round(least)} s of silence: '}{outlook.why}"
    if least is None or most is None:
        return outlook.why
    word = "in" if outlook.ends == "retries" else "within"
    return f"{word} about {_span(outlook.ends, least, most)}: {outlook.why}"


def brief(outlook: Outlook) -> str:
    """Return it in a word or two, for a column: ``never``, ``57 s``, ``if dead`` (its peer), ``unknown``."""
    if outlook.ends in ("never", "peer"):
        return "never"
    if outlook.ends == "unknown" or outlook.ends == "keepalive":
        return "unknown" if outlook.ends == "unknown" else "if dead"
    least, most = outlook.at_least_s, outlook.at_most_s
    if least is None or most is None:
        return "unknown"
    return f"in {duration_text(round(1000 * (least if _as_one(outlook.ends, least, most) else most)))}"


def _as_one(ends: str, least: float, most: float) -> bool:
    """Return whether two bounds differ by no more than a timer may be late, which "about" says (`forecast.about`)."""
    return most <= 1.15 * least + (_TIMER_LATE_S if ends == "timer" else 1.0)


_TIMER_LATE_S: Final = 8.0
"""What a timer of a minute may be late by."""


def _span(ends: str, least: float, most: float) -> str:
    low, high = duration_text(round(1000 * least)), duration_text(round(1000 * most))
    return low if low == high or _as_one(ends, least, most) else f"{low} to {high}"
