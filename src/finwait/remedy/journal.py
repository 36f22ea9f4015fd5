"""What an act tells the journal, as the core sees it.

Every act that changes the machine is written down before it is done and completed after. The journal itself,
a file, is `finwait.kernel.journal`; the core knows only this protocol, so that plans can be tried with a
journal in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Act", "Journal", "Kind"]

Kind = Literal["sysctl", "destroy", "sockopt", "shutdown", "conntrack-delete"]


@dataclass(frozen=True, slots=True)
class Act:
    """Something that is about to be done to the machine."""

    kind: Kind
    target: Mapping[str, Any]
    """Whom it is done to: the identity of a socket or namespace, in JSON's types."""
    before: Mapping[str, Any] = field(default_factory=dict)
    """What is so now and would have to be put back."""
    after: Mapping[str, Any] = field(default_factory=dict)
    """What shall be so."""
    why: str = ""
    undoes: int | None = None
    """The id of the act that this one takes back."""


class Entry(Protocol):
    """An act as the journal remembers it."""

    @property
    def id(self) -> int:
        """Its number."""

    @property
    def kind(self) -> str:
        """What was done: one of `Kind`."""

    @property
    def target(self) -> Mapping[str, Any]:
        """Whom it was done to."""

    @property
    def before(self) -> Mapping[str, Any]:
        """What was so before."""

    @property
    def after(self) -> Mapping[str, Any]:
        """What was to be so."""

    @property
    def result(self) -> Mapping[str, Any] | None:
        """What came of it; None while it is not known to have ended."""

    @property
    def undone_by(self) -> int | None:
        """The act that took it back, if one did."""


class Journal(Protocol):
    """Where acts are written down."""

    def record(self, act: Act) -> int:
        """Write an act down, durably, before it is done; return its id.

        Raises:
            KernelError: it could not be written, so the act must not be done.
        """

    def complete(self, act_id: int, result: Mapping[str, Any]) -> None:
        """Write down what came of an act."""

    def get(self, act_id: int) -> Entry:
        """Return an act.

        Raises:
            ValueError: there is no such act.
        """
