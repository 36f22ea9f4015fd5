"""Acts of the journal as lines for a person: what was done to whom, what came of it, and what an undo would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.remedy.journal import settings_act
from finwait.table.units import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from finwait.remedy.journal import Entry

__all__ = ["unfinished_lines", "whom", "would_do"]

_ADVICE = {
    "sockopt": "its options may still be changed",
    "sysctl": "settings may still be changed",
    "destroy": "it may have been ended",
    "shutdown": "its FIN may have been sent",
    "conntrack-delete": "it may have been deleted",
}

_UNKNOWN = "this version of finwait does not know such acts"


def whom(entry: Entry) -> str:
    """Return what an act was done to, in words."""
    target = entry.target
    if entry.kind == "sysctl":
        return printable(_settings(entry))
    return printable(str(target.get("connection") or target.get("original") or "?"))


def _settings(entry: Entry) -> str:
    """Return namespace and settings of an act; the journal is a file, and may say anything."""
    number, name = entry.target.get("netns", "?"), entry.target.get("name")
    where = f"{name} (netns {number})" if name and name != f"netns:{number}" else f"netns {number}"
    before, after = (part.get("sysctl") for part in (entry.before, entry.after))
    before, after = (part if isinstance(part, dict) else {} for part in (before, after))
    changes = [f"{key} {before.get(key, '?')} → {value}" for key, value in after.items()]
    if isinstance(drop := entry.after.get("drop_in"), dict):
        changes.append(str(drop.get("path")))
    return f"{where}: {', '.join(changes) or 'no setting'}"


def unfinished_lines(cut: Sequence[Entry]) -> Iterator[str]:
    """Say which acts were interrupted, and what to do about each kind."""
    if not cut:
        return
    yield (
        f"finwait: {len(cut)} acts of the journal were interrupted (crash or kill):\n"
        if len(cut) > 1
        else "finwait: an act of the journal was interrupted (crash or kill):\n"
    )
    for entry in cut[:5]:
        yield f"  act {entry.id}, {entry.kind} of {whom(entry)}: {_ADVICE.get(entry.kind, _UNKNOWN)}\n"
    if len(cut) > 5:
        yield f"  … and {len(cut) - 5} more; `finwait journal --incomplete` lists them\n"
    yield "hint: `finwait undo --incomplete` reverts what it can and checks the rest\n"


def would_do(entry: Entry) -> list[str]:
    """Return what taking an act back would do, as lines for a person.

    Raises:
        Refused: it is no act that finwait could have done.
    """
    lines = [f"act {entry.id}, {entry.kind} of {whom(entry)}:"]
    if entry.kind == "sysctl":
        did = settings_act(entry)
        lines[0] = f"act {entry.id}, settings of netns {did.netns}:"
        lines += [f"  {key}: {did.after.get(key, '?')} -> {value}" for key, value in did.before.items()]
        if did.drop_in:
            lines.append(f"  {did.drop_in}: {'removed' if did.text_before is None else 'restored to:'}")
            lines += [f"    {line}" for line in (did.text_before or "").splitlines()]
    elif entry.kind == "sockopt":
        after, before = ({**part.get("options", {})} for part in (entry.after, entry.before))
        lines[0] = f"act {entry.id}, options of {whom(entry)}:"
        lines.append("  " + ", ".join(f"{name} {after.get(name, '?')} → {v}" for name, v in before.items()))
    else:
        lines.append("  interrupted, and cannot be reverted; finwait checks its result")
    return [printable(line) for line in lines]
