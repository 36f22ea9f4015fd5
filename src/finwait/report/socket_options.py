"""The options of a socket, as text: what each is, and what it means for a connection that is to close."""

from __future__ import annotations

import errno
from typing import Any

from finwait.diagnosis import forecast
from finwait.table.units import duration_text
from finwait.uapi.observation import SocketOptions

__all__ = ["as_json", "keepalive_text", "linger_text", "meaning"]


def keepalive_text(options: SocketOptions) -> str | None:
    """Return `off`, or `on 600/15/5`; None where it is not known."""
    if options.keepalive is None:
        return None
    if not options.keepalive:
        return "off"
    return f"on {options.keepidle_s}/{options.keepintvl_s}/{options.keepcnt}"


def linger_text(options: SocketOptions) -> str | None:
    """Return `off`, `reset` or a time; None where it is not known."""
    if options.linger_s is None:
        return None
    if options.linger_s < 0:
        return "off"
    return f"{options.linger_s} s" if options.linger_s else "reset"


def meaning(options: SocketOptions) -> list[tuple[str, str]]:
    """Return options with what each means here, those that change how the connection ends first."""
    if options.errno:
        return [("options", f"could not be read ({errno.errorcode.get(options.errno, options.errno)})")]
    result = [("keepalive", _keepalive(options)), ("user timeout", _user_timeout(options))]
    if (linger := linger_text(options)) not in (None, "off"):
        says = (
            "close() sends a RST at once"
            if linger == "reset"
            else "close() waits that long for the data to arrive"
        )
        result.append(("linger", f"{linger}: {says}"))
    if linger == "reset":
        pass  # it does not come to FIN_WAIT2
    elif options.linger2_s is not None and options.linger2_s < 0:
        result.append(("linger2", "−1: closed by its program, it does not stay in FIN_WAIT2 at all"))
    elif options.linger2_s is not None:
        result.append(
            (
                "linger2",
                f"{options.linger2_s} s: so long it stays in FIN_WAIT2 once every holder has closed it",
            )
        )
    if options.rto_max_ms is not None and options.rto_max_ms < forecast.DEFAULTS.rto_max_ms:
        most = duration_text(options.rto_max_ms)
        result.append(("RTO max", f"{most}: what is not acknowledged is sent again at least that often"))
    for name, ms, call in (
        ("receive timeout", options.rcvtimeo_ms, "a call that reads"),
        ("send timeout", options.sndtimeo_ms, "a call that writes"),
    ):
        if ms:
            result.append((name, f"{duration_text(ms)}: {call} returns after that"))
    rest = [
        text
        for on, text in (
            (options.nodelay, "TCP_NODELAY"),
            (options.reuseaddr, "SO_REUSEADDR"),
            (options.reuseport, "SO_REUSEPORT"),
            (options.defer_accept_s, f"TCP_DEFER_ACCEPT {options.defer_accept_s} s"),
            (options.mark, f"SO_MARK {options.mark or 0:#x}"),
            (options.congestion, options.congestion),
        )
        if on
    ]
    if rest:
        result.append(("also set", ", ".join(rest) + "; they do not change how it ends"))
    return [(name, text) for name, text in result if text]


def _keepalive(options: SocketOptions) -> str:
    if options.keepalive is None:
        return ""
    if not options.keepalive:
        return "off: while it is idle, nothing finds out that the peer is dead"
    times = (options.keepidle_s, options.keepintvl_s, options.keepcnt)
    if None in times:
        return "on"
    idle, interval, count = (number or 0 for number in times)
    end = forecast.keepalive(idle, interval, count, options.user_timeout_ms or 0)
    span = f"{round(end.seconds)} s"
    return (
        f"on {idle}/{interval}/{count}: a dead peer is found after {span} of silence; a live one that does not close "
        "answers for ever"
    )


def _user_timeout(options: SocketOptions) -> str:
    if not options.user_timeout_ms:
        return ""
    span = duration_text(options.user_timeout_ms)
    return f"{span}: data or a FIN that stays unacknowledged that long ends the connection"


def as_json(options: SocketOptions | None) -> dict[str, Any] | None:
    """Return the options of a socket as a JSON object; None where they were not or could not be read."""
    if options is None or options.errno:
        return None
    return {
        "keepalive": options.keepalive,
        "keepidle_s": options.keepidle_s,
        "keepintvl_s": options.keepintvl_s,
        "keepcnt": options.keepcnt,
        "user_timeout_ms": options.user_timeout_ms,
        "linger_s": options.linger_s,
        "linger2_s": options.linger2_s,
        "nodelay": options.nodelay,
        "defer_accept_s": options.defer_accept_s,
        "rcvtimeo_ms": options.rcvtimeo_ms,
        "sndtimeo_ms": options.sndtimeo_ms,
        "reuseaddr": options.reuseaddr,
        "reuseport": options.reuseport,
        "mark": options.mark,
        "congestion": options.congestion or None,
        "syncnt": options.syncnt,
        "rto_max_ms": options.rto_max_ms,
    }
