"""Kernels as Debian packages: found, fetched and unpacked beside the system, never installed.

The apt that does it has its own lists, status and cache. It takes the addresses from the sources that this
machine has, with the suite's name replaced, so that a mirror or a proxy of the machine's owner is respected,
and no address stands here.
"""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DEFAULT", "Kernel", "NotHere", "kernel"]

DEFAULT = ("5.10", "6.1", "6.12", "7.2")
"""The oldest that Debian still mends, the two stable ones, and one newer than what finwait was written on."""
SUITES = {
    "5.10": ("bullseye-security", "bullseye"),
    "6.1": ("bookworm-security", "bookworm"),
    "6.12": ("bookworm-backports", "trixie-security", "trixie"),
}
"""Where to look first; any other version is looked for in `NEWER`."""
NEWER = ("trixie-backports", "sid", "experimental")
ARCHITECTURE = "amd64"


class NotHere(Exception):
    """What is needed to boot a kernel is not to be had; the message says what and why."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel."""

    wanted: str
    """As asked for, such as ``5.10``."""
    release: str
    """What ``uname -r`` will say."""
    package: str
    """Version of the package."""
    image: Path
    modules: Path
    """The directory that holds the directory named for the release."""


def _run(*words: str, cwd: Path | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise NotHere(f"`{' '.join(words[:2])}` failed: {said[-1] if said else done.returncode}")
    return done.stdout


class _Apt:
    """A private apt for one suite."""

    def __init__(self, place: Path, suite: str) -> None:
        self.place = place / "apt" / suite
        for folder in ("lists/partial", "cache/archives/partial", "empty"):
            (self.place / folder).mkdir(parents=True, exist_ok=True)
        (self.place / "status").touch()
        (self.place / "sources.list").write_text(_source(suite))
        self.options = (
            *("-o", f"Dir::Etc::SourceList={self.place}/sources.list"),
            *("-o", f"Dir::Etc::SourceParts={self.place}/empty"),
            *("-o", f"Dir::State::Lists={self.place}/lists"),
            *("-o", f"Dir::State::Status={self.place}/status"),
            *("-o", f"Dir::Cache={self.place}/cache"),
            *("-o", f"APT::Architecture={ARCHITECTURE}"),
            *("-o", "Acquire::Check-Valid-Until=false"),  # what is archived has run out, and is still signed
            *("-o", "APT::Sandbox::User=root"),  # the user _apt cannot write into a home directory
        )

    def run(self, command: str, *words: str, cwd: Path | None = None) -> str:
        return _run(command, *self.options, *words, cwd=cwd)


def _source(suite: str) -> str:
    """Return the line for ``suite``, with the address that this machine uses for Debian, or its security updates."""
    if not Path("/usr/bin/apt-get").exists():
        raise NotHere("this is no Debian: kernels are fetched by apt")
    form = "$(LABEL)|$(CODENAME)|$(REPO_URI)"
    found: dict[bool, str] = {}
    for line in _run("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines():
        label, codename, address = line.split("|")
        if label.startswith("Debian") and "Backports" not in label:
            found.setdefault("-security" in codename, address)
    security = suite.endswith("-security")
    if security not in found:
        what = "security updates" if security else "Debian"
        raise NotHere(f"no source of {what} among this machine's apt sources (run `apt-get update` once)")
    ring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    return f"deb [signed-by={ring}] {found[security]} {suite} main\n"


def _newest(apt: _Apt, version: str) -> tuple[str, str] | None:
    """Return the newest image of a version: its name without ``linux-image-``, and the package's version."""
    release = rf"{re.escape(version)}[.-][\d.~-]*(?:\+deb[\d.]+)?-{ARCHITECTURE}"
    pattern = re.compile(f"linux-image-({release})")
    names = [m[1] for name in apt.run("apt-cache", "pkgnames").split() if (m := pattern.fullmatch(name))]
    for name in sorted(names, key=lambda n: [int(x) for x in re.findall(r"\d+", n)], reverse=True):
        shown = apt.run("apt-cache", "policy", f"linux-image-{name}")
        candidate = re.search(r"Candidate: (\d\S*)", shown)
        if candidate:
            return name, candidate[1]
    return None


def kernel(version: str, place: Path, *, fresh: bool = False, offline: bool = False) -> Kernel:
    """Return the kernel of a version, fetched and unpacked if it is not in the cache.

    Args:
        version: the beginning of its version: ``6.1``.
        place: the cache.
        fresh: look for a newer one even where one is in the cache.
        offline: take what is in the cache or nothing.

    Raises:
        NotHere: it cannot be had.
    """
    if platform.machine() != "x86_64":
        raise NotHere(f"the guest has this machine's own programs, and they are for {platform.machine()}")
    folder = place / "kernels" / version
    if not fresh and (folder / "package").exists():
        return _unpacked(version, folder)
    if offline:
        raise NotHere(f"kernel {version} is not in {place}")
    reasons = []
    for suite in SUITES.get(version, NEWER):
        try:
            apt = _Apt(place, suite)
            apt.run("apt-get", "update", "-qq")
            found = _newest(apt, version)
        except NotHere as error:
            reasons.append(f"{suite}: {error}")
            continue
        if found is None:
            reasons.append(f"{suite} has none")
            continue
        _fetch(apt, *found, folder)
        return _unpacked(version, folder)
    raise NotHere(f"no kernel {version}: {'; '.join(reasons)}")


def _fetch(apt: _Apt, name: str, version: str, folder: Path) -> None:
    if (folder / "package").exists() and (folder / "package").read_text() == version:
        return
    asked = apt.run("apt-cache", "depends", "--important", f"linux-image-{name}")
    parts = [p for p in (f"linux-binary-{name}", f"linux-modules-{name}") if f" {p}\n" in asked + "\n"]
    _run("rm", "-rf", str(folder))
    (folder / "debs").mkdir(parents=True)
    apt.run("apt-get", "download", "-qq", *(parts or [f"linux-image-{name}"]), cwd=folder / "debs")
    for deb in sorted((folder / "debs").glob("*.deb")):
        _run("dpkg-deb", "-x", str(deb), str(folder))
    _run("rm", "-rf", str(folder / "debs"))
    (folder / "package").write_text(version)


def _unpacked(version: str, folder: Path) -> Kernel:
    images = [
        *folder.glob("boot/vmlinuz*"),
        *folder.glob("usr/lib/modules/*/vmlinuz"),
        *folder.glob("boot/bzImage*"),
    ]
    modules = [*folder.glob("lib/modules/*"), *folder.glob("usr/lib/modules/*")]
    if not images or not modules:
        raise NotHere(f"the package of kernel {version} has no image or no modules where they are looked for")
    if not (modules[0] / "modules.dep").exists():
        base = str(modules[0]).rpartition("/lib/modules/")[0]
        _run("depmod", "-b", base, modules[0].name)
    package = (folder / "package").read_text()
    return Kernel(version, modules[0].name, package, images[0], modules[0].parent)
