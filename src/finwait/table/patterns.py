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
    """Return a test for a pattern in which ``*`` is any text and ``?`` any character."""
    if "*" not in pattern and "?" not in pattern:
        return pattern.__eq__
    parts = (
        ".*" if c[0] == "*" else "." if c == "?" else re.escape(c)
        for c in re.findall(r"\*+|.", pattern, re.DOTALL)
    )
    compiled = re.compile("".join(parts), re.DOTALL)
    return lambda text: compiled.fullmatch(text) is not None


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
