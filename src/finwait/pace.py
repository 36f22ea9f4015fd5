"""When something is due that costs processor time, so that it takes no more than a share of one processor.

Pure: the caller reads the clocks.
"""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Pace"]


class Pace(Struct):
    """When something is due that may take no more than a share of one CPU."""

    refresh: float
    """Seconds between two times, at least."""
    share: float
    due: float = 0.0

    def done(self, begun: float, cost: float) -> None:
        """Say when it was begun, and how many seconds of a CPU it cost."""
        self.due = begun + max(self.refresh, cost / self.share)

    def at_once(self) -> None:
        """Let it be due now."""
        self.due = 0.0
