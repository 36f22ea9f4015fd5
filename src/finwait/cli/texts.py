"""What commands ask of pasted text; no command of its own."""

from __future__ import annotations

import argparse

__all__ = ["moment_ns", "refuse_text"]


def refuse_text(path: str) -> None:
    """Refuse a pasted text where connections are told by their cookies.

    Raises:
        UsageError: it is one.
    """
    from finwait.errors import UsageError
    from finwait.pasted import is_text

    if is_text(path):
        raise UsageError(
            "`--from`: a pasted text does not identify connections, so nothing can be planned with it",
            hint="plan on the machine itself, or from a recording of it (`finwait record`)",
        )


def moment_ns(text: str) -> int:
    """Return a time as nanoseconds since 1970 (argparse type).

    Raises:
        ArgumentTypeError: it is none.
    """
    from finwait.pasted import time_of

    when = time_of(text)
    if when is None:
        raise argparse.ArgumentTypeError(
            f"`{text}` is no time: write it as `date -Is` prints it, for example 2026-11-30T22:10:00Z"
        )
    return when
