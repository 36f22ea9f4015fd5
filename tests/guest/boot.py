"""One boot: a kernel under qemu, a job inside, its results in a folder."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.guest.debian import Kernel, NotHere
from tests.guest.image import initramfs

__all__ = ["Ran", "boot", "lines_of"]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a boot left."""

    folder: Path
    seconds: float
    finished: bool
    """Whether the job came to its end; otherwise ``results`` has what it had said before."""
    results: tuple[dict[str, Any], ...]


def boot(
    kernel: Kernel,
    place: Path,
    disks: tuple[Path, Path],
    job: Sequence[str],
    *,
    arguments: Sequence[str] = (),
    limit_s: float = 2400,
    name: str = "",
) -> Ran:
    """Boot a kernel, run a job of ``tests.guest.inside`` in it, and return what it said.

    Args:
        kernel: which.
        place: the cache; the results are in its folder ``results``.
        disks: programs and clone, see `tests.guest.image`.
        job: words for ``tests.guest.inside``.
        arguments: more words for the kernel's command line.
        limit_s: the guest is ended after this long.
        name: of the results' folder.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise NotHere("`qemu-system-x86_64` is not installed (package qemu-system-x86)")
    folder = place / "results" / (name or f"{kernel.wanted}-{'-'.join(job)}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    line = (
        "console=ttyS0 panic=-1 quiet edd=off random.trust_cpu=on mitigations=off nowatchdog no_timer_check"
    )
    line += f" date={int(time.time())}"
    # One processor: with two, a kernel that patches its own code (a static key) while the other runs it was seen to
    # stop at a breakpoint that nobody else sees (`int3` in inet_ehashfn, 6.12): that is the emulation's.
    words = (
        *("nice", "-n", "5", qemu, "-M", "q35", "-accel", "tcg,thread=single", "-cpu", "Haswell-v4"),
        *("-smp", "1", "-m", "2500", "-nographic", "-no-reboot", "-nodefaults"),
        *("-serial", "stdio", "-monitor", "none", "-net", "none", "-device", "virtio-rng-pci"),
        *("-kernel", str(kernel.image), "-initrd", str(initramfs(kernel, place))),
        *(w for d in disks for w in ("-drive", f"file={d},format=raw,if=virtio,readonly=on")),
        *_shared("mods", kernel.modules, read_only=True),
        *_shared("out", folder),
        *("-append", " ".join((line, *arguments, f"job={','.join(job)}"))),
    )
    begin = time.monotonic()
    with (place / "lock").open("w") as lock, (folder / "console").open("wb") as console:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one guest at a time: it takes a processor for minutes
        begin = time.monotonic()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()
    lines = lines_of(folder / "results")
    return Ran(folder, time.monotonic() - begin, (folder / "status").exists(), tuple(lines))


def _shared(tag: str, path: Path, *, read_only: bool = False) -> tuple[str, str]:
    more = ",readonly=on,multidevs=remap" if read_only else ""
    return "-virtfs", f"local,path={path},mount_tag={tag},security_model=none{more}"


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the results that a guest wrote, as far as it came."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:  # the guest died in the middle of it
            break
    return found
