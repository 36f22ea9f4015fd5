"""`.ci/tests`: what fails beside others is tried once more alone, and still fails where it is a fault."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
ONCE = """
from pathlib import Path

def test_fails_once():
    seen = Path(__file__).with_name("seen")
    before = seen.exists()
    seen.touch()
    assert before
"""
ALWAYS = "def test_fails(): assert False\n"
SIX = "".join(f"def test_{n}(): assert False\n" for n in range(6))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("tests", "status", "named"),
    [
        ("def test_right(): pass\n", 0, False),
        (ONCE, 0, True),
        (ONCE + ALWAYS, 1, True),
        (SIX, 1, False),
        ("import nothing_of_this_name\n", 2, False),
    ],
    ids=["none", "once", "once and always", "six", "no module"],
)
def test_what_failed_is_tried_once_more_alone_and_named(
    tmp_path: Path, tests: str, status: int, named: bool
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "tests", tmp_path / ".ci")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / "test_own.py").write_text(tests)
    (tmp_path / "pytest.ini").touch()
    done = subprocess.run(
        [tmp_path / ".ci" / "tests", "0"],
        cwd=tmp_path,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stdout
    assert ("Failed beside other tests" in done.stdout) == named
