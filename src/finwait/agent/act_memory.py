"""What policies did, as the agent itself knows it: the journal may say more, and never less. Pure.

The journal is what lasts. It is a file, and whoever moves it away would refill every budget of an agent that goes on.
So the agent keeps what it wrote and read, and where the journal lacks acts of the last day nothing is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from finwait.agent.episodes import Instant
from finwait.agent.policy import DAY_S, PastAct
from finwait.errors import FinwaitError

__all__ = ["ActMemory"]

_MOST: Final = 20_000

_ActKey = tuple[str, int, str, int, int, str]


class ActMemory:
    """Acts of policies that were written down, or read.

    Args:
        boot: id of this boot.
    """

    def __init__(self, boot: str) -> None:
        self._boot = boot
        self._acts: dict[_ActKey, PastAct] = {}

    def wrote(self, act: PastAct) -> None:
        """Keep an act that was written into the journal."""
        self._acts.setdefault(_key(act), act)

    def read(self, acts: Iterable[PastAct], now: Instant) -> list[PastAct]:
        """Return what the journal has, and what it no longer has of longer ago, the newest first.

        Raises:
            FinwaitError: acts of the last 24 hours that were there are missing.
        """
        acts = list(acts)
        recorded = set(map(_key, acts))
        missing = [act for key, act in self._acts.items() if key not in recorded]
        if lately := sum(act.age_s(now, self._boot) < DAY_S for act in missing):
            noun = "act" if lately == 1 else "acts"
            raise FinwaitError(
                f"the journal no longer has {lately} {noun} of the last 24 hours: it was removed, replaced or "
                "changed; put it back, or start the agent anew"
            )
        every = [*acts, *missing][:_MOST]
        self._acts = {_key(act): act for act in every}
        return every


def _key(act: PastAct) -> _ActKey:
    return act.boot, act.at.boot_ns, act.rule, act.netns, act.cookie, act.means
