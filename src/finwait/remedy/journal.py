"""What an act tells the journal, as the core sees it.

Every act that changes the machine is written down before it is done and completed after. The journal itself,
a file, is `finwait.kernel.journal`; the core knows only this protocol, so that plans can be tried with a
journal in memory.

What is read back is not believed: `settings_act` returns only what finwait itself could have written.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

from msgspec import Struct, field

from finwait.errors import Refused
from finwait.remedy.settings.catalogue import by_key

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KINDS", "Act", "Journal", "Kind", "SettingsAct", "check_undo", "foreign_line", "settings_act"]

Kind = Literal["sysctl", "destroy", "sockopt", "shutdown", "conntrack-delete"]
KINDS: Final[frozenset[str]] = frozenset(get_args(Kind))
_SENT: Final = {
    "destroy": "a RST was sent",
    "shutdown": "a FIN was sent",
    "conntrack-delete": "it deleted a conntrack entry",
}
_VALUE: Final = re.compile(r"-?\d{1,19}\Z")
_DROP_IN: Final = re.compile(r"(?:.*/)?(90-finwait-[A-Za-z0-9_.-]+\.conf)", re.ASCII)


class Act(Struct, frozen=True):
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
    decided_by: str = ""
    """The policy that decided it; empty where a person did."""


class Entry(Protocol):
    """An act as the journal remembers it."""

    @property
    def id(self) -> int:
        """Its number."""

    @property
    def kind(self) -> str:
        """What was done: one of `Kind`."""

    @property
    def started_ns(self) -> int:
        """When it was begun, by the clock of the wall."""

    @property
    def user(self) -> str:
        """Who did it."""

    @property
    def why(self) -> str:
        """What it was done for."""

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


class SettingsAct(Struct, frozen=True):
    """What an act of kind ``sysctl`` changed, as far as finwait could have changed it."""

    netns: int
    cookie: int
    boot_id: str
    before: Mapping[str, str]
    """The values to put back, by key."""
    after: Mapping[str, str]
    """The values that it set."""
    drop_in: str
    """The name of the sysctl.d file that it wrote; empty for none."""
    text_before: str | None
    """What the file held; None if there was none."""
    text_after: str


def check_undo(entry: Entry) -> None:
    """Refuse to take back what cannot be: an act of another kind, one that was taken back, or what was sent.

    Raises:
        Refused: so it is (guards ``unknown-kind``, ``undone``, ``restored``, ``irreversible``).
    """
    if entry.kind not in KINDS:
        raise Refused(
            "unknown-kind",
            f"act {entry.id} is of kind `{entry.kind}`, which this version does not support; revert it with "
            "the version of finwait that made it",
        )
    if entry.undone_by is not None:
        raise Refused("undone", f"act {entry.id} was already reverted, by act {entry.undone_by}")
    if entry.result is not None and entry.result.get("restored"):
        raise Refused("restored", f"act {entry.id} changed nothing: there is nothing to revert")
    if entry.result is not None and (sent := _SENT.get(entry.kind)):
        raise Refused("irreversible", f"act {entry.id} cannot be reverted: {sent}")


def settings_act(entry: Entry) -> SettingsAct:
    """Return what an act of kind ``sysctl`` changed.

    The journal is a file. Whatever it says, only sysctls that finwait sets get a value, and only a whole number; and a
    sysctl.d file gets no line that finwait does not write.

    Raises:
        Refused: the act says something that finwait does not do (guard ``catalogue``).
    """

    def no(reason: str) -> Refused:
        return Refused("catalogue", f"act {entry.id}: {reason}, so this act is not finwait's")

    values = []
    for part in (entry.before, entry.after):
        settings = part.get("sysctl", {})
        if not isinstance(settings, dict):
            raise no("its sysctls are not a table")
        for key, value in settings.items():
            setting = by_key(key)
            if setting is None or setting.key != key:
                raise no(f"finwait does not set `{key}`")
            if not isinstance(value, str) or not _VALUE.match(value):
                raise no(f"{value!r} is not a value of {key}")
        values.append(settings)
    if values[0].keys() != values[1].keys():
        raise no("the sysctls before it and after it are not the same ones")
    where = [entry.target.get(name) for name in ("netns", "cookie", "boot_id")]
    if not (isinstance(where[0], int) and isinstance(where[1], int) and isinstance(where[2], str)):
        raise no("it names no network namespace")
    name = ""
    texts: list[str | None] = [None, ""]
    drops: list[Any] = [part.get("drop_in") for part in (entry.before, entry.after)]
    if drops != [None, None]:
        names = [_drop_in_name(drop) for drop in drops]
        if not names[0] or names[0] != names[1]:
            raise no("it names no sysctl.d file of finwait's")
        name, texts = names[0], [drop["text"] for drop in drops]
        if texts[1] is None:
            raise no("it wrote no sysctl.d file")
        for line in (foreign_line(text) for text in texts if text is not None):
            if line:
                raise no(f"finwait does not write the line `{line}` to {name}")
    return SettingsAct(where[0], where[1], where[2], values[0], values[1], name, texts[0], texts[1] or "")


def _drop_in_name(drop: object) -> str:
    """Return the name of the file of a ``drop_in``, or an empty string if it is none of ours."""
    if not isinstance(drop, dict) or not isinstance(drop.get("path"), str):
        return ""
    if not isinstance(drop.get("text", 0), str | None):
        return ""
    match = _DROP_IN.fullmatch(drop["path"])
    return match[1] if match else ""


def foreign_line(text: str) -> str:
    """Return the first line of a sysctl.d file that finwait does not write; empty if there is none."""
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        key, _, value = (part.strip() for part in line.partition("="))
        if by_key(key) is None or not _VALUE.match(value):
            return line[:100]
    return ""
