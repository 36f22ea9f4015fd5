"""The looks of a recording as pictures: in sequence, and step by step."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np

from finwait import session
from finwait.errors import FilterError
from finwait.recording import Replay
from finwait.table.filter import Filter
from finwait.tui.feed import Picture, evidence, selected
from finwait.tui.listing import Known, plain_rows
from finwait.uapi import tcp
from finwait.uapi.observation import Observation, Plan

__all__ = ["Recorded"]

_NO_FLOWS: Final = "a recording holds looks, not what passed between them"


class Recorded:
    """Pictures of a recording.

    Args:
        looks: as `finwait.recording.read` gives them.
        wanted: the FILTER, or None.
        refresh: seconds until the next look is shown by itself.
    """

    live = False

    def __init__(self, looks: Sequence[Observation], wanted: Filter | None, *, refresh: float) -> None:
        if not looks:
            raise ValueError("a recording has at least one look")
        self._looks = tuple(looks)
        self._wanted = wanted
        self._refresh = refresh
        self._place = 0
        self._shown = False
        self._by_hand = False
        self._ended = False
        self._changed = threading.Condition()
        self._diagnoses: dict[int, session.Diagnosis] = {}

    def diagnosis(self, place: int) -> session.Diagnosis:
        """Return the diagnosis of a look, compared with the first; made once."""
        if place not in self._diagnoses:
            machine = Replay([self._looks[0], self._looks[place]] if place else self._looks[:1])
            plan = Plan(established_limit=None)
            look = session.Look(plan=plan, watch_ms=1 if place else 0)
            self._diagnoses[place] = session.diagnose(machine, how=look)
        return self._diagnoses[place]

    def next(self) -> Picture:
        """Return the next look, when its time has come or a key asked for it."""
        with self._changed:
            if self._shown:
                last = self._place == len(self._looks) - 1
                stay = last or self._by_hand
                told = self._changed.wait_for(
                    lambda: self._ended or not self._shown, None if stay else self._refresh
                )
                if not told and not stay:
                    self._place += 1
            self._shown = True
            place, wanted = self._place, self._wanted
        return self._picture(self.diagnosis(place), place, wanted)

    def _picture(self, diagnosis: session.Diagnosis, place: int, wanted: Filter | None) -> Picture:
        sockets = diagnosis.view.sockets
        notes = [str(gap) for gap in diagnosis.gaps if gap.needs]
        mask = np.ones(len(sockets), np.bool_)
        if wanted is not None:
            try:
                mask = selected(wanted, diagnosis)
            except (FilterError, ValueError) as error:
                notes.append(f"the FILTER asks for what the recording does not hold: {error}")
        counts = np.bincount(sockets.state[mask].astype(np.int64) & 15, minlength=16).tolist()
        keep = mask & (sockets.state != tcp.LISTEN)
        look = self._looks[place]
        moment = datetime.fromtimestamp(look.facts.unix_ns / 1e9, UTC)
        names = {inode: ns.names for inode, ns in diagnosis.view.namespaces.items()}
        return Picture(
            plain_rows(
                sockets.select(keep), Known.of(diagnosis), names, least_ms=diagnosis.view.at_least_ms[keep]
            ),
            {state: n for state, n in enumerate(counts) if n},
            None,
            _NO_FLOWS,
            0,
            0.0,
            0.0,
            tuple(notes),
            f"look {place + 1} of {len(self._looks)}, {moment:%Y-%m-%d %H:%M:%S} UTC",
        )

    def _again(self) -> None:
        self._shown = False
        self._changed.notify_all()

    def want(self, wanted: Filter | None) -> None:
        """Show only what a FILTER selects."""
        with self._changed:
            self._wanted = wanted
            self._again()

    def want_causes(self, wanted: bool) -> None:
        """Do nothing: every look is diagnosed."""

    def list_established(self, wanted: bool) -> None:
        """Do nothing: what was recorded is all shown."""

    def now(self) -> None:
        """Do nothing: a recording does not change."""

    def step(self, by: int) -> None:
        """Go on or back so many looks; they do not go on by themselves any more."""
        with self._changed:
            self._place = max(0, min(self._place + by, len(self._looks) - 1))
            self._by_hand = True
            self._again()

    def evidence(self, cookie: int, width: int) -> str:
        """Return everything about a connection of the look that is shown.

        Raises:
            TargetGone: it is not in this look.
        """
        return evidence(self.diagnosis(self._place), cookie, width)

    def end(self) -> None:
        """Make `next` return."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
