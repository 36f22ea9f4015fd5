"""Patterns of a FILTER: what a name, a pod, a container or a cgroup has to look like.

In a pattern ``*`` is any text and ``?`` any character.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["MATCHERS", "cgroup_path", "could_be_name", "glob"]


def glob(pattern: str) -> Callable[[str], bool]:
    """Return a test for a pattern in which ``*`` is any text and ``?`` any character.

    Anybody may write the pattern, so the time of the test grows as the text, whatever the pattern is: what stands
    between two ``*`` is searched once, from the left, and where it stands first leaves most room for the rest.
    """
    first, *others = re.sub(r"\*+", "*", pattern).split("*")
    if not others:
        return pattern.__eq__ if "?" not in pattern else lambda text: _same(first, text)
    last = others.pop()
    searches = tuple(map(_search, others))
    least, before, after = len(pattern) - pattern.count("*"), len(first), len(last)

    def matches(text: str) -> bool:
        end = len(text) - after
        if len(text) < least or not (_same(first, text[:before]) and _same(last, text[end:])):
            return False
        place = before
        for search in searches:
            place = search(text, place, end)
            if place < 0:
                return False
        return True

    return matches


def _same(piece: str, text: str) -> bool:
    """Return whether a text is like a piece, in which ``?`` is any character."""
    if piece == text:
        return True
    return (
        "?" in piece
        and len(piece) == len(text)
        and all(p in ("?", c) for p, c in zip(piece, text, strict=True))
    )


def _search(piece: str) -> Callable[[str, int, int], int]:
    """Return what searches a piece in a text between two places: where the first that is like it ends, −1 for none."""
    size = len(piece)
    if "?" not in piece:

        def find(text: str, begin: int, end: int) -> int:
            place = text.find(piece, begin, end)
            return place + size if place >= 0 else -1

        return find
    # One bit for each beginning of the piece that the text up to here ends with (Baeza-Yates and Gonnet's Shift-And):
    # a step for each character, where a regular expression would begin again at each place.
    anything = 0
    alike: dict[str, int] = {}
    for k, p in enumerate(piece):
        if p == "?":
            anything |= 1 << k
        else:
            alike[p] = alike.get(p, 0) | 1 << k
    bits = {p: places | anything for p, places in alike.items()}
    whole = 1 << (size - 1)

    def step_through(text: str, begin: int, end: int) -> int:
        begun = 0
        for place in range(begin, end):
            begun = (begun << 1 | 1) & bits.get(text[place], anything)
            if begun & whole:
                return place + 1
        return -1

    return step_through


def _pod(pattern: str) -> Callable[[str], bool]:
    """Match ``namespace/name``, a bare name in any namespace, or a UID in either spelling."""
    uid = glob(pattern.lower().replace("_", "-").removeprefix("pod"))
    name = glob(pattern)
    whole = "/" in pattern

    def matches(text: str) -> bool:
        if name(text if whole else text.rpartition("/")[2]):
            return True
        return "/" not in text and uid(text.lower().replace("_", "-").removeprefix("pod"))

    return matches


def _path(pattern: str) -> Callable[[str], bool]:
    """Match ``namespace/name``, or a bare name in any namespace."""
    name = glob(pattern)
    whole = "/" in pattern
    return lambda text: name(text if whole else text.rpartition("/")[2])


def _container(pattern: str) -> Callable[[str], bool]:
    """Match a name, an id, or the beginning of an id; ``containerd://`` and the like are left out."""
    pattern = pattern.rpartition("://")[2]
    name = glob(pattern)
    hexadecimal = re.fullmatch(r"[0-9a-f]+", pattern) is not None

    def matches(text: str) -> bool:
        text = text.rpartition("://")[2]
        return name(text) or (
            hexadecimal and text.startswith(pattern) and re.fullmatch(r"[0-9a-f]{12,}", text) is not None
        )

    return matches


def could_be_name(kind: str, pattern: str) -> bool:
    """Return whether a pattern may mean what is not known beside an id: the name of a pod or of a container."""
    if kind == "container":
        return re.fullmatch(r"[0-9a-f*?]+", pattern.rpartition("://")[2]) is None
    if kind == "pod":
        return re.fullmatch(r"[0-9a-f*?-]+", pattern.lower().replace("_", "-").removeprefix("pod")) is None
    return True


def _pid(pattern: str) -> Callable[[str], bool]:
    return pattern.__eq__


def cgroup_path(path: str) -> str:
    """Return a cgroup's path below the mount point: ``/kubepods/besteffort``."""
    parts = [p for p in path.split("/") if p not in {"", "."}]
    if parts[:3] == ["sys", "fs", "cgroup"]:
        parts = parts[4:] if parts[3:4] == ["unified"] else parts[3:]
    return "/" + "/".join(parts)


MATCHERS: Final[Mapping[str, Callable[[str], Callable[[str], bool]]]] = MappingProxyType(
    {"pod": _pod, "container": _container, "pid": _pid, "workload": _path, "service": _path}
)
