"""Write what can be given away: a wheel, the sources, and one file that is finwait with all that it needs.

    python deploy/dist.py OUT PYTHON_WITH_SHIV [RELEASE_URL]

The one file (a zip that Python runs, made by shiv) is for one Python and one machine: it has numpy in it. It unpacks
itself below ``~/.shiv`` when it is first run (SHIV_ROOT names another folder). So is ``kubectl finwait``, in the
archive that krew unpacks; with the address under which the files will be given away there is a manifest for it, too.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from deploy import krew
from deploy.image.build import LOCK, ROOT, WHEELS, commit_time, stanzas

__all__ = ["main"]

PREAMBLE: Final = f"/usr/bin/env python3.{sys.version_info.minor}"


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, cwd=ROOT)


def main(argv: list[str]) -> int:
    """Write the files and say which they are."""
    out, shiv, release = Path(argv[0]).resolve(), argv[1], "".join(argv[2:3])
    shutil.rmtree(out, ignore_errors=True)
    os.environ["SOURCE_DATE_EPOCH"] = str(commit_time())
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", out)
    (wheel,) = out.glob("*.whl")
    version = wheel.name.split("-")[1]
    with tempfile.TemporaryDirectory(prefix="finwait-dist-") as folder:
        site, wanted = Path(folder) / "site", Path(folder) / "wanted.txt"
        wanted.write_text(stanzas(LOCK.read_text(), WHEELS, f"3.{sys.version_info.minor}"))
        install = (
            sys.executable,
            "-m",
            "pip",
            "install",
            "-qq",
            "--no-deps",
            "--no-compile",
            "--target",
            site,
        )
        _run(*install, "--only-binary", ":all:", "--require-hashes", "-r", wanted)
        _run(*install, wheel)
        for tests in (*site.glob("numpy/**/tests"), site / "numpy/f2py", site / "bin"):
            shutil.rmtree(tests, ignore_errors=True)
        kind = f"{version}-cp3{sys.version_info.minor}-linux_{platform.machine()}"
        plugin = Path(folder) / krew.PROGRAM
        for script, file in (("finwait", out / f"finwait-{kind}.pyz"), (krew.PROGRAM, plugin)):
            _run(
                shiv, "-m", "shiv", "--site-packages", site, "--console-script", script, "--reproducible",
                "--compressed",
                "--extend-pythonpath",  # for the processes that finwait starts
                "--python", PREAMBLE, "--output-file", file,
            )  # fmt: skip
        packed = krew.archive({krew.PROGRAM: plugin, "LICENSE": ROOT / "LICENSE"}, commit_time())
    archive = out / f"{krew.PROGRAM}-{kind}.tar.gz"
    archive.write_bytes(packed)
    if release:
        address = f"{release.rstrip('/')}/{archive.name}"
        python = f"3.{sys.version_info.minor}"
        (out / "krew.yaml").write_text(krew.manifest(version, packed, address, platform.machine(), python))
    for path in sorted(out.iterdir()):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
