"""Acts of the journal as lines for a person: what was done to whom, what came of it, and what an undo would do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from finwait.errors import FinwaitError
from finwait.remedy.journal import settings_act
from finwait.remedy.recorded import options_act
from finwait.report.shape import IDENTITY, MORE, connection, owner
from finwait.table.units import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from finwait.remedy.journal import Entry

__all__ = [
    "ActLine",
    "act_line",
    "act_result",
    "entry_json",
    "undone_json",
    "unfinished_lines",
    "whom",
    "would_do",
    "would_json",
]

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


def act_result(entry: Entry, *, cut: bool) -> str:
    """Return the result of an act in a few words; ``cut`` where it was interrupted (crash or kill)."""
    result = entry.result or {}
    known = result.get("error") or result.get("result")
    if known:
        return printable(str(known))
    return (
        f"interrupted: `finwait undo {entry.id}`" if cut else "being done" if entry.result is None else "done"
    )


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


def would_json(entry: Entry) -> dict[str, Any]:
    """Return what taking an act back would do, as JSON's types."""
    return {"act": entry.id, "kind": entry.kind, "would": would_do(entry)[1:]}


def undone_json(entry: Entry, result: str) -> dict[str, Any]:
    """Return what came of taking an act back, as JSON's types."""
    return {"act": entry.id, "kind": entry.kind, "result": result}


def entry_json(entry: Entry) -> dict[str, Any]:
    """Return an act as JSON's types: whom it was done to in the shape of every document.

    The journal is a file and may say anything: what does not fit stays under ``target``, as it was written.
    """
    written: dict[str, Any] = msgspec.to_builtins(entry)
    target = dict(written.pop("target"))
    end = _connection(target) if target.keys() >= {"src", "sport", "dst", "dport", "cookie"} else None
    if end is not None:
        for name in (*IDENTITY, *MORE, "holders", "connection"):
            target.pop(name, None)
    elif isinstance(cookie := target.get("cookie"), int):  # of a network namespace
        target["netns_cookie"] = f"{cookie:#x}"
        del target["cookie"]
    return {
        "id": written.pop("id"),
        "kind": written.pop("kind"),
        "connection": end,
        "target": target,
        **written,
    }


def _connection(target: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the connection that an act was done to; None where the target is not one as finwait writes it."""
    try:
        owners = [owner(int(pid), int(fd), str(comm)) for pid, fd, comm in target.get("holders", ())]
        return connection(
            **{name: target.get(name) for name in IDENTITY},  # type: ignore[arg-type]
            inode=target.get("inode"),
            owners=owners,
        )
    except (TypeError, ValueError):
        return None


def would_do(entry: Entry) -> list[str]:
    """Return what taking an act back would do, as lines for a person.

    Raises:
        Refused: it is no act that finwait could have done.
        FinwaitError: the act is damaged.
    """
    lines = [f"act {entry.id}, {entry.kind} of {whom(entry)}:"]
    if entry.kind == "sysctl":
        act = settings_act(entry)
        lines[0] = f"act {entry.id}, settings of netns {act.netns}:"
        lines += [f"  {key}: {act.after.get(key, '?')} -> {value}" for key, value in act.before.items()]
        if act.drop_in:
            lines.append(f"  {act.drop_in}: {'removed' if act.text_before is None else 'restored to:'}")
            lines += [f"    {line}" for line in (act.text_before or "").splitlines()]
    elif entry.kind == "sockopt":
        options = options_act(entry)
        lines[0] = f"act {entry.id}, options of {whom(entry)}:"
        lines.append("  " + ", ".join(f"{n} {options.after[n]} → {v}" for n, v in options.before.items()))
    else:
        lines.append("  interrupted, and cannot be reverted; finwait checks its result")
    return [printable(line) for line in lines]


class ActLine(Struct, frozen=True):
    """An act as a line of a table."""

    id: int
    when: str
    """``2026-05-01 12:00:00Z``."""
    user: str
    kind: str
    whom: str
    why: str
    result: str
    failed: bool
    """It failed, or was interrupted."""
    undo: tuple[str, ...]
    """What taking it back would do, as lines."""


def act_line(entry: Entry, *, cut: bool) -> ActLine:
    """Return an act as a line; ``cut`` where it was interrupted (crash or kill)."""
    try:
        undo = tuple(would_do(entry))
    except FinwaitError as error:
        undo = (printable(str(error)),)
    return ActLine(
        entry.id,
        datetime.fromtimestamp(entry.started_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ"),
        printable(entry.user),
        printable(entry.kind),
        whom(entry),
        printable(entry.why),
        act_result(entry, cut=cut) + (f" (undone by {entry.undone_by})" if entry.undone_by else ""),
        cut or bool((entry.result or {}).get("error")),
        undo,
    )
