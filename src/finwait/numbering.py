"""The numbers of an overview, kept for ten minutes, so that ``finwait explain 2`` means what was on the screen.

A number alone would name another group as soon as one more appears. So what is kept with it are the cookies of its
connections (of what has no rows, the processes), in a directory that a boot empties: ``/run/finwait`` for root,
``$XDG_RUNTIME_DIR/finwait`` for others, ``$FINWAIT_STATE_DIR`` where that is set. Where there is no such place, or it
is full, or somebody else could write there, nothing is kept, and the next command says so.

What this cannot see: two terminals of one user share the numbers; the later overview counts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from finwait import files
from finwait.diagnosis.numbered import Numbered
from finwait.errors import FileRefused, FinwaitError
from finwait.kernel.boot import boot_id
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.finding import Finding
    from finwait.diagnosis.view import View

__all__ = ["KEPT_FOR_S", "keep", "numbered"]

KEPT_FOR_S: Final = 600
"""How long a number is good for."""
_MOST: Final = 200_000
"""Cookies that are kept of an overview; a group beyond that has none, and its number is not kept."""
_MOST_BYTES: Final = 16 << 20
_FILE: Final = "overview.json"


class _Overview(msgspec.Struct, frozen=True):
    """What is in the file."""

    boot_id: str
    boottime_ns: int
    recorded: str
    """The recording that it was of; empty for the running machine."""
    groups: tuple[Numbered, ...]


class _Place(Struct, frozen=True):
    path: str
    why: str = ""
    """Why there is none."""


def _place() -> _Place:
    if named := os.environ.get("FINWAIT_STATE_DIR"):
        return _Place(str(Path(named).absolute()))
    if os.geteuid() == 0:
        return _Place("/run/finwait")
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/"):
        return _Place(f"{base}/finwait")
    return _Place("", "XDG_RUNTIME_DIR is not set, so there is no place to keep them")


def keep(view: View, groups: Sequence[Finding], *, now_ns: int, recorded: str = "") -> bool:
    """Keep the numbers of the groups of an overview, the first of which has number 1; return whether they are kept.

    Those of an earlier overview never stay: its groups are not on the screen any more.

    Args:
        view: the sockets.
        groups: in the order of the overview.
        now_ns: CLOCK_BOOTTIME.
        recorded: the absolute path of the recording that it is of; empty for the running machine.
    """
    place = _place()
    if not place.path:
        return False
    room = _MOST
    kept = []
    for number, group in enumerate(groups, 1):
        if (room := room - len(group.rows)) < 0:
            break
        spaces, cookies = view.sockets.netns[group.rows], view.sockets.cookie[group.rows]
        pairs = tuple(zip(spaces.tolist(), cookies.tolist(), strict=True))
        has_open = bool((view.sockets.state[group.rows] == tcp.ESTABLISHED).any())
        kept.append(Numbered(number, group.rule, group.count, group.netns, group.pids, pairs, has_open))
    data = msgspec.json.encode(_Overview(boot_id(), now_ns, recorded, tuple(kept)))
    try:
        _write(place.path, data)
    except (OSError, FinwaitError):
        _forget(place.path)
        return False
    return True


def _forget(directory: str) -> None:
    """Remove the numbers of an earlier overview, as far as that is possible."""
    with contextlib.suppress(OSError, FinwaitError), files.folder(directory) as folder:
        os.unlink(_FILE, dir_fd=folder.fd)


def _write(directory: str, data: bytes) -> None:
    """Replace the file.

    Raises:
        FileRefused: somebody else can write there.
        OSError: the kernel refused.
    """
    folder = files.folder(directory, make=True)
    path = folder.name_of(_FILE)
    if reason := folder.alone or folder.way:
        folder.close()
        raise FileRefused(path, reason)
    file = files.new_file(path, where=folder)
    try:
        with open(file.fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            file.publish()
    finally:
        file.discard()


def numbered(number: int, *, now_ns: int, recorded: str = "") -> tuple[Numbered, float]:
    """Return what a number stood for, and how many seconds ago.

    Raises:
        FinwaitError: no numbers are kept, they are older than `KEPT_FOR_S` or of something else, or there is none such.
    """
    hint = "run `finwait` first; its numbers are good for 10 minutes"
    place = _place()
    if not place.path:
        raise _unknown(number, place.why, "name a connection, or a rule")
    try:
        data = files.read(f"{place.path}/{_FILE}", _MOST_BYTES, own=hint)
        kept = msgspec.json.decode(data, type=_Overview)
        _check(kept)
    except FileNotFoundError:
        raise _unknown(number, "no overview was printed before", hint) from None
    except (
        OSError,
        FinwaitError,
        ValueError,
        RecursionError,
    ) as error:  # a DecodeError of msgspec is a ValueError
        raise _unknown(number, f"`{place.path}/{_FILE}` cannot be read: {error}", hint) from None
    age_s = (now_ns - kept.boottime_ns) / 1e9
    if kept.recorded != recorded:
        of = f"the recording `{kept.recorded}`" if kept.recorded else "the running machine"
        raise _unknown(number, f"the last overview was of {of}", "give the same `--from` as there")
    if kept.boot_id != boot_id():
        raise _unknown(number, "the last overview is of another boot", hint)
    if not 0 <= age_s <= KEPT_FOR_S:
        raise _unknown(number, "the last overview is older than 10 minutes", hint)
    group = next((group for group in kept.groups if group.number == number), None)
    if group is None:
        many = len(kept.groups)
        raise _unknown(number, f"the last overview had {many} group{'' if many == 1 else 's'}", hint)
    return group, age_s


def _check(overview: _Overview) -> None:
    """Refuse numbers that no kernel gives.

    Raises:
        ValueError: there is one.
    """
    if not 0 <= overview.boottime_ns < 1 << 63:
        raise ValueError("no time since boot")
    for group in overview.groups:
        spaces, cookies = (group.netns, *(n for n, _ in group.cookies)), (c for _, c in group.cookies)
        small = all(0 <= number < 1 << 32 for number in (*spaces, *group.pids, group.count, group.number))
        if not small or not all(0 <= cookie < 1 << 64 for cookie in cookies):
            raise ValueError(f"group {group.number % 10_000}: a number is out of range")


def _unknown(number: int, why: str, hint: str) -> FinwaitError:
    error = FinwaitError(f"it is not known which group {number} is: {why}")
    error.hint = hint
    return error
