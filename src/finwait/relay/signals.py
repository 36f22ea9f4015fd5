"""The signals that a supervisor takes, from before it can handle them until it has cleaned up.

========  =====================================================================================
signal    meaning
========  =====================================================================================
TERM INT  drain: stop accepting, let connections end, cut the rest after ``drain``. Again: stop now
HUP       read the configuration again; connections that live keep what they began with
USR2      start the program anew with the same sockets, and drain when it is ready
USR1      open the access log again (HUP does, too)
========  =====================================================================================
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

__all__ = ["hold_signals", "hold_signals_to_the_end", "ignore_signals", "take_signals"]

_SIGNALS: Final = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))
_WAITING: Final = frozenset((signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))


def hold_signals() -> None:
    """Keep what asks a running relay for something waiting until it runs; without that it would end a starting one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITING)


def take_signals(
    loop: asyncio.AbstractEventLoop, handlers: Mapping[signal.Signals, Callable[[], None]]
) -> None:
    """Take signals from now on, those that `hold_signals` kept waiting first."""
    assert handlers.keys() == _SIGNALS
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    # More signals than fit into the loop's pipe are no mistake of ours: a traceback would say so.
    signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def hold_signals_to_the_end() -> None:
    """Take no signal any more while what there is is cleaned up."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def ignore_signals() -> None:
    """Drop what waits, and all that may come; asyncio put back the defaults, which kill."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
