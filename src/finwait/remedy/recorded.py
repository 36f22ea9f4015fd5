"""What an act of the journal says that it did, believed only as far as finwait could have done it.

The journal is a file: a disk may have damaged it, or somebody edited it. So each act is looked at here, whole, before
it is shown, taken back or settled. Settings are `finwait.remedy.journal.settings_act`; this is for acts on connections.
What is found here is plain values; nothing is looked up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from finwait.errors import FinwaitError
from finwait.remedy.journal import settings_act
from finwait.remedy.plan import End, Step
from finwait.table.sockets import address_text, pack_address
from finwait.table.units import printable
from finwait.uapi import tcp
from finwait.uapi.inet_diag import FAMILY_NAMES, PROTOCOL_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finwait.remedy.journal import Entry

__all__ = ["OptionsAct", "check_act", "connection_of", "options_act", "unheld", "unsound"]

_NO_COOKIE: Final = (1 << 64) - 1
"""INET_DIAG_NOCOOKIE: to the kernel it means *any* socket of that tuple, so nothing that is read may carry it."""
_MOST: Final = (1 << 31) - 1
"""Of a value: an ``int`` of the kernel. An old one may be more than setsockopt(2) takes: it was a sysctl's."""


class OptionsAct(msgspec.Struct, frozen=True):
    """What an act of kind ``sockopt`` changed."""

    end: End
    inode: int
    holders: tuple[tuple[int, int, str], ...]
    """(pid, fd, comm) of each descriptor that referred to it."""
    before: dict[str, int]
    after: dict[str, int]
    """The same options."""
    followed: tuple[str, ...]
    """Options that had the value of their sysctl."""

    @property
    def cookie(self) -> int:
        """What names the socket, in its namespace."""
        return int(self.end.cookie, 16)


class _Held(msgspec.Struct, frozen=True):
    inode: int
    holders: tuple[tuple[int, int, str], ...]


class _Options(msgspec.Struct, frozen=True):
    options: dict[str, int]
    followed: tuple[str, ...] = ()


_T = TypeVar("_T")


def _converted(entry: Entry, written: Mapping[str, object], form: type[_T]) -> _T:
    try:
        return msgspec.convert(dict(written), type=form)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _damaged(entry, str(error)) from None


def _damaged(entry: Entry, why: str) -> FinwaitError:
    error = FinwaitError(f"act {entry.id} of the journal is damaged: {printable(why[:200])}")
    error.hint = (
        "`finwait journal -o json` shows what is left of it; move the file away to start a new journal"
    )
    return error


def connection_of(entry: Entry) -> End:
    """Return the connection that an act was done to.

    Raises:
        FinwaitError: the act says nothing that identifies one.
    """
    end = _converted(entry, entry.target, End)
    if wrong := unsound(end):
        raise _damaged(entry, wrong)
    return end


def options_act(entry: Entry) -> OptionsAct:
    """Return what an act of kind ``sockopt`` changed.

    Raises:
        FinwaitError: it says what finwait would not have written.
    """
    end = connection_of(entry)
    held = _converted(entry, entry.target, _Held)
    before, after = (_converted(entry, part, _Options) for part in (entry.before, entry.after))
    if wrong := unheld(held.inode, held.holders):
        raise _damaged(entry, wrong)
    if not before.options or before.options.keys() != after.options.keys():
        raise _damaged(entry, "the options before it and after it are not the same ones")
    if other := before.options.keys() - tcp.OPTION_RANGES.keys():
        raise _damaged(entry, f"finwait does not set the option `{min(other)}`")
    for name, value in (*before.options.items(), *after.options.items()):
        if not 0 <= value <= (1 if name == "keepalive" else _MOST):
            raise _damaged(entry, f"{name} of {value}: no socket has that")
    return OptionsAct(end, held.inode, held.holders, before.options, after.options, before.followed)


def check_act(entry: Entry) -> None:
    """Refuse an act that finwait did not write so.

    Raises:
        Refused: it is none that finwait could have done.
        FinwaitError: it is damaged.
    """
    if entry.kind == "sysctl":
        settings_act(entry)
    elif entry.kind == "sockopt":
        options_act(entry)
    elif entry.kind in ("destroy", "shutdown"):
        connection_of(entry)


def unheld(inode: int, holders: tuple[tuple[int, int, str], ...]) -> str | None:
    """Return what is wrong with an inode and those who are said to hold it, or None."""
    if not 0 <= inode < 1 << 32:
        return f"inode {inode}: there is no such socket"
    for pid, fd, _ in holders:
        if not (0 < pid < 1 << 31 and 0 <= fd < 1 << 31):
            return f"pid {pid}, descriptor {fd}: no such holder"
    return None


def unsound(end: Step | End) -> str | None:
    """Return what is wrong with an identity, or None. Only what identifies one socket may go to the kernel."""
    try:
        cookie = int(end.cookie, 16)
    except ValueError:
        cookie = -1
    if not 0 < cookie < _NO_COOKIE:
        return f"`{printable(end.cookie)}` is not a cookie"
    if end.family not in FAMILY_NAMES or end.protocol not in PROTOCOL_NAMES:
        return f"{end.family}, {end.protocol}: not a family and a protocol of TCP connections"
    if not (0 <= end.netns < 1 << 32 and 0 <= end.ifindex < 1 << 32):
        return f"{end.netns}, {end.ifindex}: not a namespace and an interface"
    if not (0 <= end.sport < 1 << 16 and 0 <= end.dport < 1 << 16):
        return f"{end.sport}, {end.dport}: not ports"
    if not tcp.is_state_name(end.state):
        return f"`{printable(end.state)}` is not a state"
    for address in (end.src, end.dst):
        if not _canonical(address):  # a scope may hold anything
            return f"`{printable(address)}` is not an address"
        if end.family == 2 and ":" in address:
            return f"`{address}` is not an IPv4 address"
    return None


@lru_cache(maxsize=8192)
def _canonical(address: str) -> bool:
    """Return whether an address is written as we write it."""
    try:
        return address_text(*pack_address(address)) == address
    except ValueError:
        return False
