"""The lock holds what pyproject.toml asks for, for every Python that we support, and names no place to get it from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)]
LOCKS = ("requirements.lock", "requirements-fuzz.lock", "requirements-site.lock", "requirements-deploy.lock")
TEXTS = {name: (ROOT / name).read_text() for name in LOCKS}


def entries(text: str) -> Iterator[tuple[Requirement, list[str]]]:
    """Yield each locked requirement with its hashes."""
    for entry in re.split(r"\n(?=\w)", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)):
        words, *hashes = entry.split(" \\\n")
        yield Requirement(words), [h.strip() for h in hashes]


def asked(extra: str) -> Iterator[Requirement]:
    """Yield what the project asks for with this extra, what the extra names of itself included."""
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in map(Requirement, extras[extra]):
        if requirement.name == PROJECT["project"]["name"]:
            for other in requirement.extras:
                yield from asked(other)
        else:
            yield requirement


def meant(requirement: Requirement, python: str) -> bool:
    """Whether this requirement is for this Python on Linux."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.1"}
    return requirement.marker is None or requirement.marker.evaluate(
        {k: str(v) for k, v in environment.items()}
    )


@pytest.mark.parametrize("name", TEXTS)
def test_every_locked_version_is_exact_and_has_hashes(name: str) -> None:
    locked = list(entries(TEXTS[name]))
    assert len(locked) >= 2
    for requirement, hashes in locked:
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), requirement


@pytest.mark.parametrize("name", TEXTS)
def test_the_lock_names_no_registry(name: str) -> None:
    assert "://" not in TEXTS[name]
    assert not re.search(r"--(?:extra-)?index|--find-links|--trusted-host", TEXTS[name])


@pytest.mark.parametrize("python", PYTHONS)
def test_all_that_the_project_asks_for_is_locked_once_within_its_ranges(python: str) -> None:
    build = PROJECT["build-system"]["requires"]
    assert set(build) <= set(PROJECT["dependency-groups"]["build"])
    main = [*map(Requirement, PROJECT["dependency-groups"]["build"]), *asked("dev")]
    main += map(Requirement, PROJECT["project"]["dependencies"])
    site = list(map(Requirement, PROJECT["dependency-groups"]["site"]))
    deploy = list(map(Requirement, PROJECT["dependency-groups"]["deploy"]))
    for name, wanted in zip(LOCKS, (main, list(asked("fuzz")), site, deploy), strict=True):
        locked = [(r.name.lower(), r) for r, _ in entries(TEXTS[name]) if meant(r, python)]
        assert len(locked) == len({lower for lower, _ in locked}), "two versions of one package"
        for requirement in wanted:
            if meant(requirement, python):
                (found,) = (r for lower, r in locked if lower == requirement.name.lower())
                version = str(found.specifier).removeprefix("==")
                assert requirement.specifier.contains(version), f"{requirement}: {version} is locked"


@pytest.mark.parametrize("name", LOCKS[1:])
def test_the_other_locks_agree_with_the_main_one(name: str) -> None:
    main = {str(r): hashes for r, hashes in entries(TEXTS["requirements.lock"])}
    names = {r.name for r, _ in entries(TEXTS["requirements.lock"])}
    for requirement, hashes in entries(TEXTS[name]):
        if requirement.name in names:
            assert main[str(requirement)] == hashes
