"""What the guest boots from: this machine's programs and this clone as squashfs, and a small initramfs.

The programs change rarely and take half a minute to pack: they are kept in the cache until a package of this
machine changes. The clone is packed anew for every run. Both are read through one disk each; a memory file
system lies over them.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.guest.debian import Kernel, NotHere

__all__ = ["ROOT", "clone", "initramfs", "programs"]

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
PROGRAMS = (
    *(
        "/usr/bin",
        "/usr/sbin",
        "/usr/lib64",
        "/usr/libexec",
        "/usr/include",
        LIBRARIES,
        "/usr/lib/gcc",
        "/usr/lib/locale",
    ),
    *(
        "/usr/lib/python3",
        "/usr/lib/sysctl.d",
        "/usr/lib/modprobe.d",
        "/usr/lib/terminfo",
        "/usr/share/terminfo",
    ),
)
NOT_NEEDED = (
    *(
        f"{LIBRARIES[1:]}/{name}"
        for name in ("libLLVM*", "libclang*", "libwebkit*", "libicu*.a", "dri", "valgrind", "libx26*")
    ),
    *(
        f"usr/bin/{name}"
        for name in ("qemu-*", "node", "docker*", "containerd*", "prom*", "x86_64-linux-gnu-lto-dump*")
    ),
)
"""Large, and used by nothing that runs in the guest. What this machine does not have is simply not left out."""
MODULES = ("virtio_pci", "virtio_blk", "squashfs", "9pnet_virtio", "9p", "overlay", "virtio_rng")
_PACK = ("-noappend", "-noI", "-noD", "-noF", "-noX", "-no-progress", "-quiet")
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in /m/*; do insmod $m 2>/dev/null; done
mount -t squashfs -o ro /dev/vda /ro && mount -t squashfs -o ro /dev/vdb /clone || exec poweroff -f
mount -t tmpfs tmpfs /rw; mkdir /rw/a /rw/b /rw/c /rw/d
mount -t overlay -o lowerdir=/ro,upperdir=/rw/a,workdir=/rw/b overlay /new || exec poweroff -f
mkdir -p /new@ROOT@ /new/run /new/proc /new/sys /new/dev /new/tmp /new/root
mount -t overlay -o lowerdir=/clone,upperdir=/rw/c,workdir=/rw/d overlay /new@ROOT@ || exec poweroff -f
mount --move /proc /new/proc; mount --move /sys /new/sys; mount --move /dev /new/dev
mount -t tmpfs tmpfs /new/run; mkdir /new/run/netns
exec switch_root /new /bin/bash @ROOT@/tests/guest/init @ROOT@ @PYTHON@
"""


def _pack(target: Path, *words: str) -> None:
    if shutil.which("mksquashfs") is None:
        raise NotHere("`mksquashfs` is not installed (package squashfs-tools)")
    new = target.with_suffix(".new")
    done = subprocess.run(
        ["mksquashfs", *words[:1], str(new), *words[1:]], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise NotHere(f"`mksquashfs` failed: {done.stderr.strip()[-200:]}")
    new.replace(target)


def programs(place: Path) -> Path:
    """Return the squashfs of this machine's programs and this Python, packed if it is not current."""
    python = Path(sys.base_prefix).resolve()
    status = Path("/var/lib/dpkg/status")
    mark = hashlib.sha256(repr((python, sys.version, PROGRAMS, NOT_NEEDED, INIT)).encode())
    mark.update(status.read_bytes() if status.exists() else b"")
    target, stamp = place / "programs.squashfs", place / "programs.stamp"
    if target.exists() and stamp.exists() and stamp.read_text() == mark.hexdigest():
        return target
    place.mkdir(parents=True, exist_ok=True)
    own = [] if python.is_relative_to("/usr") else [str(python)]
    libraries = [str(p) for p in Path("/usr/lib").glob("python3.*")]
    folders = [
        f
        for f in (*PROGRAMS, *libraries, "/etc", "/bin", "/sbin", "/lib", "/lib64", *own)
        if Path(f).exists()
    ]
    left_out = [
        *NOT_NEEDED,
        f"{str(python)[1:]}/lib/python3*/site-packages",
        f"{str(python)[1:]}/lib/python3*/test",
    ]
    new = target.with_suffix(".new")
    new.unlink(missing_ok=True)
    words = ["mksquashfs", *folders, str(new), "-no-strip", *_PACK, "-wildcards", "-e", *left_out]
    done = subprocess.run(["nice", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotHere(f"`mksquashfs` failed: {done.stderr.strip()[-200:]}")
    new.replace(target)
    stamp.write_text(mark.hexdigest())
    return target


def clone(place: Path) -> Path:
    """Return the squashfs of this clone with its environment, packed anew."""
    compile_all = [sys.executable, "-m", "compileall", "-q", str(ROOT / "src"), str(ROOT / "tests")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(compile_all, env=environment, check=True)
    target = place / "clone.squashfs"
    left_out = [".git", ".mypy_cache", ".ruff_cache", ".hypothesis", ".venv/3.*", ".venv/lock"]
    _pack(target, str(ROOT), *_PACK, "-wildcards", "-e", *left_out)
    return target


def initramfs(kernel: Kernel, place: Path) -> Path:
    """Make the initramfs of a kernel: busybox, the modules that reach the disks, and an init; return its path."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise NotHere("`busybox` is not installed (package busybox-static)")
    base = str(kernel.modules).rpartition("/lib/modules")[0]
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        for name in ("bin", "m", "proc", "sys", "dev", "new", "ro", "rw", "clone"):
            (top / name).mkdir()
        shutil.copy(busybox, top / "bin")
        files: dict[str, Path] = {}
        for module in MODULES:
            words = ["modprobe", "-d", base, "-S", kernel.release, "--show-depends", module]
            shown = subprocess.run(words, capture_output=True, text=True, check=False).stdout
            for line in shown.splitlines():
                kind, _, path = line.partition(" ")
                if kind == "insmod":
                    files.setdefault(Path(path.split()[0]).name, Path(path.split()[0]))
        for number, (name, file) in enumerate(files.items()):
            (top / "m" / f"{number:03d}-{name.split('.ko')[0]}.ko").write_bytes(_plain(file))
        python = f"{sys.base_prefix}/bin"
        (top / "init").write_text(INIT.replace("@ROOT@", str(ROOT)).replace("@PYTHON@", python))
        (top / "init").chmod(0o755)
        names = "\n".join(str(p.relative_to(top)) for p in sorted(top.rglob("*")))
        made = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=names.encode(), cwd=top,
                              capture_output=True, check=True)  # fmt: skip
    target = place / "kernels" / f"{kernel.wanted}.initramfs"
    target.write_bytes(gzip.compress(made.stdout, 1))
    return target


def _plain(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-qdc", str(path)], capture_output=True, check=True).stdout
    return data
