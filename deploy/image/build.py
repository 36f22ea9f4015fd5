"""Build finwait's container image from Debian packages and wheels, without a registry and without root.

    python deploy/image/build.py OUT [--twice]

Debian 12's packages come from where this machine's apt gets them, wheels by pip with the hashes of the lock.
Packages are unpacked, not installed: no script of theirs runs, and there is no package manager, no shell and no other
program in the image than Python and finwait. Python's own modules are compiled with the image's own Python.

OUT gets ``finwait-VERSION-amd64.oci.tar`` (an OCI image layout, `deploy.image.oci`), ``….spdx.json`` (what is in it,
`deploy.image.sbom`) and ``….digest``. The same packages, the same checkout and the same zlib make the same digest;
``--twice`` builds it again, in another folder, and compares.
"""

from __future__ import annotations

import argparse
import email
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[2]))

from deploy.image.oci import ImageText, layer_of, write_layout
from deploy.image.sbom import Part, spdx

__all__ = ["DEBIAN", "LOCK", "ROOT", "WHEELS", "build", "commit_time", "main", "stanzas"]

ROOT: Final = Path(__file__).parents[2]
LOCK: Final = ROOT / "requirements.lock"
PYTHON: Final = "3.11"
USER: Final = 59944
"""Of the process that serves, as in the chart: no other image's processes run as this."""
MOST_BYTES: Final = 45_000_000

DEBIAN: Final = (
    "base-files", "libc6", "libgcc-s1", "gcc-12-base", "libstdc++6", "zlib1g", "libbz2-1.0", "liblzma5", "libexpat1",
    "libffi8", "libssl3", "libsqlite3-0", "libuuid1", "libpython3.11-minimal", "libpython3.11-stdlib",
    "python3.11-minimal",
)  # fmt: skip
"""Packages, each by its name. What they depend on and Python does without is left out: dpkg, tar, mawk, readline,
ncurses, Kerberos, Berkeley DB. `_PRUNED` has the modules that need these."""
WHEELS: Final = (
    "numpy", "msgspec", "prometheus-client", "pyyaml",
    # of `finwait top`
    "textual", "rich", "markdown-it-py", "mdurl", "mdit-py-plugins", "linkify-it-py", "platformdirs",
    "pygments", "typing-extensions",
)  # fmt: skip
"""What finwait, `finwait agent`, `finwait audit` and `finwait top` need."""
_PLATFORMS: Final = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)
_SITE: Final = f"usr/local/lib/python{PYTHON}/dist-packages"
_PRUNED: Final = (
    # Debian: programs, and what only people read. Copyright files stay.
    "etc/init.d",
    "etc/dpkg", "etc/update-motd.d", "sbin", "usr/sbin", "usr/share/man", "usr/share/lintian", "usr/share/bug",
    "usr/share/locale", "usr/share/info", "usr/share/doc/**/changelog*", "usr/share/doc/**/NEWS*",
    "usr/share/doc/**/README*", "usr/share/doc/**/examples", "usr/share/doc/**/test*", "usr/share/binfmts",
    "usr/share/applications", "usr/share/pixmaps", "usr/share/gdb", "usr/share/base-files",
    "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/audit", "usr/lib/x86_64-linux-gnu/engines-3",
    "usr/bin/[!p]*", "usr/bin/pldd",
    # Python: what no command of ours imports, and modules whose libraries are not here.
    *(f"usr/lib/python{PYTHON}/{name}" for name in (
        "lib2to3", "pydoc_data", "ensurepip", "test", "idlelib", "turtledemo", "distutils", "__pycache__",
    )),
    *(f"usr/lib/python{PYTHON}/lib-dynload/{name}.*" for name in (
        "nis", "_dbm", "readline", "_curses", "_curses_panel", "_crypt",
    )),
    # numpy
    *(f"{_SITE}/numpy/{name}" for name in (
        "**/tests", "**/*.pyi", "**/*.pxd", "**/*.h", "**/*.a", "**/*.ini", "f2py", "distutils", "_pyinstaller",
        "_core/lib", "random/lib", "random/_examples", "conftest.py",
    )),
    # the others
    f"{_SITE}/**/*.pyi", f"{_SITE}/**/*.c", f"{_SITE}/**/*.pyx",
)  # fmt: skip
_PASSWD: Final = f"""\
root:x:0:0:root:/root:/nonexistent
finwait:x:{USER}:{USER}:finwait:/nonexistent:/nonexistent
nobody:x:65534:65534:nobody:/nonexistent:/nonexistent
"""
_GROUP: Final = f"root:x:0:\nfinwait:x:{USER}:\nnogroup:x:65534:\n"
_FINWAIT: Final = f"""\
#!/usr/bin/python{PYTHON} -I
import sys

from finwait.cli import main

sys.exit(main())
"""


def stanzas(lock: str, names: Iterable[str], python: str = PYTHON) -> str:
    """Return the part of a lock file that is about these packages, for one Python.

    Raises:
        ValueError: one is not in it.
    """
    wanted = {name.lower() for name in names}
    result: dict[str, str] = {}
    for stanza in re.split(r"\n(?=[a-z])", re.sub(r"^\s*#.*\n", "", lock, flags=re.MULTILINE)):
        name, _, condition = stanza.partition("\n")[0].partition(" ; ")
        bounds = re.findall(r"python_full_version (<|>=) '3\.(\d+)'", condition)
        minor = int(python.partition(".")[2])
        if all((minor < int(bound)) if sign == "<" else (minor >= int(bound)) for sign, bound in bounds):
            result[name.split("==")[0]] = stanza
    if missing := wanted - set(result):
        raise ValueError(f"{LOCK.name} has no {', '.join(sorted(missing))}")
    return "\n".join(result[name] for name in sorted(wanted)) + "\n"


def _run(*words: str | Path, **more: str | Path | dict[str, str]) -> str:
    done = subprocess.run([str(w) for w in words], check=False, capture_output=True, text=True, **more)  # type: ignore[call-overload]
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit(f"failed: {' '.join(map(str, words))[:300]}")
    return str(done.stdout)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch_debian(place: Path) -> list[Part]:
    """Download Debian's packages into a folder; return what they are."""
    policy = _run("apt-cache", "policy", f"python{PYTHON}-minimal")
    if "Candidate: 3." not in policy:
        raise SystemExit(
            f"this machine's apt knows no python{PYTHON}-minimal: the image is made of Debian 12"
        )
    _run("apt-get", "download", "-qq", *(f"{name}:amd64" for name in DEBIAN), cwd=place)
    parts = []
    for path in sorted(place.glob("*.deb")):
        name, version = (_run("dpkg-deb", "--field", path, field).strip() for field in ("Package", "Version"))
        parts.append(Part("deb", name, version, _sha256(path)))
    if sorted(part.name for part in parts) != sorted(DEBIAN):
        raise SystemExit(f"apt gave other packages than asked for: {sorted(part.name for part in parts)}")
    return parts


def fetch_wheels(place: Path) -> list[Part]:
    """Download wheels into a folder, those of the lock alone, and build our own; return what they are."""
    wanted = place / "wanted.txt"
    wanted.write_text(stanzas(LOCK.read_text(), WHEELS))
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    words = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "--python-version", PYTHON)
    _run(
        sys.executable, "-m", "pip", "download", "-qq", *words, "--implementation", "cp", *platforms, "-r", wanted,
        "-d", place,
    )  # fmt: skip
    wanted.unlink()
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place, cwd=ROOT)
    parts = []
    for path in sorted(place.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            (name,) = (n for n in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            about = email.message_from_bytes(wheel.read(name))
        licence = about["License-Expression"] or about["License"] or ""
        parts.append(Part("pypi", about["Name"], about["Version"], _sha256(path), licence.strip()))
    return parts


def _unpack_wheel(path: Path, root: Path) -> None:
    """Put a wheel where Debian's Python finds it; its programs are left out."""
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            parts = Path(name).parts
            if parts[0].endswith(".data"):
                if parts[1] in ("scripts", "headers"):
                    continue
                below = Path("usr/local") if parts[1] == "data" else Path(_SITE)
                target = root / below / Path(*parts[2:])
            else:
                target = root / _SITE / name
            if name.endswith("/"):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(wheel.read(name))


def _pruned(root: Path) -> Iterator[Path]:
    for pattern in _PRUNED:
        yield from root.glob(pattern)


def _compile(root: Path) -> None:
    """Compile all modules with the image's own Python; the files say nothing of when and where."""
    libraries = [root / "lib/x86_64-linux-gnu", root / "usr/lib/x86_64-linux-gnu"]
    environment = {"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
    _run(
        libraries[0] / "ld-linux-x86-64.so.2", "--library-path", ":".join(map(str, libraries)),
        root / f"usr/bin/python{PYTHON}", "-S", "-m", "compileall", "-q", "-f", "-j", "1",
        "--invalidation-mode", "unchecked-hash", "-s", root, "-p", "/",
        root / f"usr/lib/python{PYTHON}", root / _SITE,
        env=environment,
    )  # fmt: skip


def fill(root: Path, debian: Path, wheels: Path, document: bytes) -> None:
    """Put everything into the folder that becomes the image."""
    for path in sorted(debian.glob("*.deb")):
        _run("dpkg-deb", "--extract", path, root)
        described = _run("dpkg-deb", "--field", path)
        status = (
            root / f"var/lib/dpkg/status.d/{path.name.partition('_')[0]}"
        )  # where scanners of images look
        status.parent.mkdir(parents=True, exist_ok=True)
        status.write_text(described)
    for path in sorted(wheels.glob("*.whl")):
        _unpack_wheel(path, root)
    for path in list(_pruned(root)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    _compile(root)
    (root / "usr/bin/python3").symlink_to(f"python{PYTHON}")
    (root / "etc/passwd").write_text(_PASSWD)
    (root / "etc/group").write_text(_GROUP)
    (root / "usr/bin/finwait").write_text(_FINWAIT)
    (root / "usr/bin/finwait").chmod(0o755)
    for name in ("etc/finwait", "usr/share/finwait", "var/lib/finwait", "run/finwait", "run/finwait-serve"):
        (root / name).mkdir(parents=True)
    (root / "usr/share/finwait/sbom.spdx.json").write_bytes(document)
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o1777 if path.relative_to(root) in (Path("tmp"), Path("var/tmp")) else 0o755)
        elif not path.is_symlink():
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def _ours(name: str) -> bool:
    """Whether a path belongs to the upper layer, which changes with every version of finwait."""
    below = (
        f"{_SITE}/finwait",
        "usr/local/share/",
        "usr/share/finwait",
        "etc/finwait",
        "run/finwait",
        "var/lib/finwait",
    )
    return name == "usr/bin/finwait" or name.startswith(below)


def build(work: Path, debian: Path, wheels: Path, parts: list[Part], epoch: int, out: Path) -> str:
    """Build the image; return its digest.

    Args:
        work: an empty folder.
        debian: with the packages.
        wheels: with the wheels.
        parts: what they are.
        epoch: when, in seconds.
        out: the archive.
    """
    root = work / "root"
    root.mkdir()
    (version,) = (part.version for part in parts if part.name == "finwait")
    document = spdx("finwait", version, parts, epoch)
    fill(root, debian, wheels, document)
    lower = layer_of(root, "Debian 12 packages and wheels", epoch, lambda name: not _ours(name))
    upper = layer_of(root, f"finwait {version}", epoch, _ours)
    labels = {
        "org.opencontainers.image.title": "finwait",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.description": "Finds and explains TCP connections that do not finish closing",
    }
    environment = {"PATH": "/usr/local/bin:/usr/bin", "LANG": "C.UTF-8"}
    text = ImageText(f"localhost/finwait:{version}", ("/usr/bin/finwait",), environment, labels, epoch)
    digest = write_layout(out, (lower, upper), text)
    out.with_suffix("").with_suffix(".spdx.json").write_bytes(document)
    return digest


def commit_time() -> int:
    """Return the time of the last commit, or what SOURCE_DATE_EPOCH says."""
    if text := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(text)
    done = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip() else 1_700_000_000


def main(argv: list[str]) -> int:
    """Build, say what came out, and compare."""
    parser = argparse.ArgumentParser(description="Build finwait's container image.")
    parser.add_argument("out", type=Path, help="folder for the image")
    parser.add_argument("--twice", action="store_true", help="build it again and compare the digests")
    args = parser.parse_args(argv)
    epoch = commit_time()
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch)  # for the wheel
    os.umask(0o022)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="finwait-image-") as folder:
        work = Path(folder)
        debian, wheels = work / "debian", work / "wheels"
        debian.mkdir()
        wheels.mkdir()
        parts = [*fetch_debian(debian), *fetch_wheels(wheels)]
        (version,) = (part.version for part in parts if part.name == "finwait")
        out = args.out / f"finwait-{version}-amd64.oci.tar"
        digests = set()
        for k in range(2 if args.twice else 1):
            again = work / f"build-{'again' * k}"
            again.mkdir()
            digests.add(build(again, debian, wheels, parts, epoch, out))
            shutil.rmtree(again)
    if len(digests) != 1:
        raise SystemExit(f"two builds, two digests: {', '.join(sorted(digests))}")
    (digest,) = digests
    out.with_suffix("").with_suffix(".digest").write_text(f"{digest}\n")
    size = out.stat().st_size
    print(f"{out}\n{digest}\n{size / 1e6:.1f} MB, {len(parts)} packages{', built twice alike' * args.twice}")
    if size > MOST_BYTES:
        raise SystemExit(f"more than {MOST_BYTES / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
