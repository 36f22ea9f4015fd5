"""A plan as a value: steps, each one act on one connection, and what was left alone.

It can be printed, written to a file (`finwait.remedy.plan_file`), reviewed, and applied later, when everything that it
rests on is read again. How it is made from findings is `finwait.remedy.making`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from finwait.diagnosis.rule import Means
from finwait.errors import Refused
from finwait.remedy.cost import Cost
from finwait.table.units import endpoint

__all__ = ["CLASS", "MEANS", "SEES", "End", "Left", "Plan", "Refusal", "Sees", "Step", "permit"]

MEANS: Final[tuple[Means, ...]] = ("fin", "keepalive", "user-timeout", "reset", "destroy")

CLASS: Final = {
    "fin": "destructive",
    "keepalive": "reversible",
    "user-timeout": "reversible",
    "reset": "destructive",
    "destroy": "destructive",
}

Sees = Literal[
    "fin",
    "fin-then-reset",
    "probe",
    "give-up",
    "reset",
    "reset-if-path",
    "nothing",
    "nothing-through-nat",
    "unknown",
]

SEES: Final[Mapping[Sees, str]] = {
    "fin": "a FIN (clean close)",
    "fin-then-reset": "a FIN now; a RST when the program closes it with unread data",
    "probe": "a keepalive probe; if it is alive it answers, and nothing else happens",
    "give-up": "nothing new; the connection is dropped if its data stays unacknowledged for the time set",
    "reset": "a RST, once, not repeated",
    "reset-if-path": "a RST, if the path works",
    "nothing": "nothing: no packet is sent in this state",
    "nothing-through-nat": "nothing: the RST cannot cross the translation that is gone",
    "unknown": "unknown",
}
"""What the peer gets to see of an act, and in words."""


class End(msgspec.Struct, frozen=True):
    """The other end of a connection, when it is on this machine too."""

    netns: int
    protocol: int
    family: int
    src: str
    sport: int
    dst: str
    dport: int
    state: str
    cookie: str
    ifindex: int = 0


class Step(msgspec.Struct, frozen=True):
    """One act on one connection; the identity is the cookie, in its namespace."""

    means: Means
    kind: str
    """Class of the remedy: ``reversible`` or ``destructive``."""
    rule: str
    netns: int
    protocol: int
    family: int
    src: str
    sport: int
    dst: str
    dport: int
    state: str
    cookie: str
    inode: int
    bytes_received: int
    bytes_acked: int
    holders: tuple[tuple[int, int, str], ...]
    """(pid, fd, comm) of each descriptor that refers to it."""
    sees: Sees
    """What the peer sees of it."""
    peer_told: str
    """The same in words."""
    stays: str = ""
    """What is still there afterwards."""
    ifindex: int = 0
    """Interface that the socket is bound to; 0 for none."""
    other: End | None = None
    """The other end, when it is here: it is looked at afterwards, too."""
    selected: End | None = None
    """The end that was selected, when the act is done at its other end."""
    note: str = ""
    """Why it is this means, where another would be expected."""
    gone: bool = False
    """Whether it was not there any more when a plan from a file was looked at again."""
    holders_known: bool = True
    """Whether no holders means that there are none: every process was inspected, or it is an orphan (inode 0)."""
    holder_doubt: str = ""
    """Why its holders are unknown, in words; empty where they are known, and in a plan from a file."""
    pair: int = 0
    """Number, in the plan, of what is ended as a whole or not at all: the two legs of a relay pair, or all legs that
    may belong together; 0 for a connection by itself."""
    cost: Cost | None = None
    """What it costs, where it destroys; None of a gentler means, and in a plan from a file."""


class Left(msgspec.Struct, frozen=True):
    """A connection that the plan leaves alone, and the guard that says so."""

    end: End
    guard: str
    reason: str
    wait_ms: int = 0
    """After so long the guard would not speak any more, if nothing changes; 0 where that is no help, or not known."""

    @property
    def connection(self) -> str:
        """Both addresses and the state, in words."""
        return _ends(self.end)


class Refusal(msgspec.Struct, frozen=True):
    """A guard that speaks against a plan as a whole: it can be read, and not be carried out."""

    guard: str
    reason: str
    override: str
    """What would overrule it."""


class Plan(msgspec.Struct, frozen=True):
    """Steps, and what was left out."""

    made_unix_ns: int
    boot_id: str
    steps: tuple[Step, ...]
    left: tuple[Left, ...] = ()
    advice: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    """Why the whole of it may not be carried out, if so."""


def permit(plan: Plan) -> None:
    """Let a plan pass that may be carried out as a whole.

    Raises:
        Refused: guard ``max`` or ``share``.
    """
    for refusal in plan.refused:
        raise Refused(refusal.guard, refusal.reason, override=refusal.override)


def _ends(end: Step | End) -> str:
    return f"{endpoint(end.src, end.sport)} → {endpoint(end.dst, end.dport)} {end.state}"
