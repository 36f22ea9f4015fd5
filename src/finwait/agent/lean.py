"""Settings of this process that keep its memory small: it runs for weeks, and what it got once it hardly gives back.

*Arenas.* The C library gives each thread a heap of its own, up to eight for each processor. A look at namespaces is a
thread, an answer is one: each leaves some MB in another heap. One heap for all saves 3 MB; the threads take turns
anyway.

*Thresholds.* What is larger than the threshold is mapped, and given back when it is freed. The library raises it as
large blocks come and go, to 32 MB, so that they stay: fixed, they do not.

*OpenSSL.* ``hashlib`` loads it for what Python can do itself: 4 MB for the names of groups on the page. A process that
wants TLS still gets it.

*Cycles.* What a command makes it keeps until it ends, so `finwait.cli` rarely looks for garbage. Here there is some.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from typing import Final

__all__ = ["begin_small", "stay_small"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""malloc.h of glibc; another C library has no `mallopt`, or ignores it."""
_LARGE: Final = 1 << 17


def begin_small() -> None:
    """Set what must be set before memory is used, and before there are threads."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _LARGE)
    if "_hashlib" not in sys.modules:
        sys.modules["_hashlib"] = None  # type: ignore[assignment]  # as documented: it cannot be imported


def stay_small() -> None:
    """Let go of what starting has left behind, once everything has been made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(2000, 10, 10)
