"""What window probes (timer 4) say of a peer: whether it answers, and whether there is room for more data.

Source: ``tcp_probe_timer()`` and ``tcp_send_probe0()``, net/ipv4/tcp_timer.c and tcp_output.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = ["answers", "room", "sends_next"]

_UNANSWERED = 2
"""Window probes in a row without answer that are no chance: one may be under way."""


def answers(view: View, row: int) -> bool | None:
    """Return whether the peer of a row answers window probes; None where the last one is not answered yet.

    Nor has it answered where none was sent. ``retrans`` counts those since the last answer. One alone may be under
    way, or be the first that nobody answers.
    """
    s = view.sockets
    out = int(s.retrans[row])
    if not out:  # each probe doubles the wait for the next one
        return None if s.present("backoff")[row] and not s.backoff[row] else True
    # Where there is room, it is this machine that refuses to send.
    return False if out >= _UNANSWERED or room(view, row) else None


def room(view: View, row: int) -> bool:
    """Return whether the peer has room for more, as far as its window is known."""
    s = view.sockets
    return bool(s.present("snd_wnd")[row] and s.snd_wnd[row] > 0)


def sends_next(view: View, row: int) -> bool:
    """Return whether the timer of window probes (4) will send data: there is some room, and no attempt has failed.

    The peer's window holds less than a segment, so the kernel waits for more of it, and then sends what fits.
    """
    s = view.sockets
    return bool(s.timer[row] == 4 and room(view, row) and not s.retrans[row])
