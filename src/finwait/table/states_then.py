"""How many sockets were in each state at a look: what is kept of a look that is over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

if TYPE_CHECKING:
    from finwait.table.sockets import SocketTable

__all__ = ["StatesThen", "states_then"]


class StatesThen(Struct, frozen=True):
    """Sockets by state, at a moment."""

    unix_ns: int
    counts: Mapping[int, int]


def states_then(unix_ns: int, sockets: SocketTable) -> StatesThen:
    """Return how many sockets of a look are in each state."""
    numbers, counts = np.unique(sockets.state, return_counts=True)
    return StatesThen(unix_ns, dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
