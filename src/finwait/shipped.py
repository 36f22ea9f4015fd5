"""The data files that ship inside the package: the knowledge base and the profiles.

An edge: it opens files, through `importlib.resources`, so that it works from a wheel and from a zip. Turning
the bytes into values is `finwait.remedy.knowledge` and `finwait.remedy.tuning`.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from finwait.remedy.knowledge import Knowledge, parse_knowledge
from finwait.remedy.tuning import Profile, parse_profile

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["knowledge", "profile_names", "profiles"]


def _read(package: str, suffix: str) -> dict[str, bytes]:
    folder = resources.files(package)
    return {item.name: item.read_bytes() for item in folder.iterdir() if item.name.endswith(suffix)}


@cache
def knowledge() -> Knowledge:
    """Return the knowledge base that ships with finwait.

    Raises:
        DecodeError: the installation is damaged.
    """
    return parse_knowledge(_read("finwait.remedy.knowledge", ".toml"))


@cache
def profiles() -> Mapping[str, Profile]:
    """Return the profiles that ship with finwait, by name.

    Raises:
        DecodeError: the installation is damaged.
    """
    files = _read("finwait.remedy.profiles", ".toml")
    return {name.removesuffix(".toml"): parse_profile(name, data) for name, data in sorted(files.items())}


def profile_names() -> tuple[str, ...]:
    """Return the names of the shipped profiles without reading them, sorted."""
    folder = resources.files("finwait.remedy.profiles")
    return tuple(sorted(i.name.removesuffix(".toml") for i in folder.iterdir() if i.name.endswith(".toml")))
