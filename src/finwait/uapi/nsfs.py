"""How a network namespace is named by the person who asks: one syntax for every ``--netns``.

``net:[4026531840]`` is what readlink(2) says of ``/proc/PID/ns/net``. Inodes of nsfs begin at 0xF0000000
(PROC_DYNAMIC_FIRST of fs/proc/inode.c) and process ids end at 2^22 (PID_MAX_LIMIT of include/linux/threads.h), so a
bare number is never both. Text only: what a name leads to is found in ``finwait.kernel.netns``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["NetnsName", "parse_netns_name"]

_PID_MAX: Final = 1 << 22
_INODE_MAX: Final = (1 << 32) - 1
_FORM: Final = re.compile(r"(pid:|netns:|net:\[|)([0-9]{1,19})(\]?)", re.ASCII)
_PREFIX: Final = ("pid:", "netns:", "net:[")
_LONGEST_NAME: Final = 255
"""NAME_MAX: a name of `ip netns` is that of a file."""


@dataclass(frozen=True, slots=True)
class NetnsName:
    """A network namespace as somebody named it."""

    text: str
    """As it was written."""
    form: Literal["name", "path", "pid", "inode"]
    number: int = 0
    """The pid or the inode."""

    def __str__(self) -> str:
        return self.text


def parse_netns_name(text: str) -> NetnsName:
    """Read a name of ``ip netns`` or ``host``, an inode, a pid, or the path of an nsfs file.

    A number is a pid up to 4194304 and an inode beyond; ``pid:812``, ``netns:4026531840`` and ``net:[4026531840]`` are
    taken too.

    Raises:
        ValueError: it is none of them.
    """
    wrong = f"`{text[:60]}` names no network namespace: write a name of `ip netns`, `host`, an inode, a pid or a path"
    if not text.strip() or "\0" in text:
        raise ValueError(wrong)
    if "/" in text:
        return NetnsName(text, "path")
    if match := _FORM.fullmatch(text):
        begin, number = match[1], int(match[2])
        if (begin == "net:[") != bool(match[3]):
            raise ValueError(wrong)
        if begin == "pid:" or (not begin and number <= _PID_MAX):
            if not 1 <= number <= _PID_MAX:
                raise ValueError(wrong)
            return NetnsName(text, "pid", number)
        if not 1 <= number <= _INODE_MAX:
            raise ValueError(wrong)
        return NetnsName(text, "inode", number)
    if text.isdecimal() or text.startswith((*_PREFIX, "-")) or text in (".", ".."):
        raise ValueError(wrong)
    if len(text.encode(errors="surrogateescape")) > _LONGEST_NAME or not text.isprintable():
        raise ValueError(wrong)
    return NetnsName(text, "name")
