"""What would have let us borrow a descriptor: what is said of yama, and to whom sudo is recommended."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from finwait.errors import PermissionNeeded
from finwait.kernel import pidfd, rights


@pytest.mark.parametrize(
    ("scope", "said", "sudo"),
    [
        ("0", "the same user", True),
        ("1", "CAP_SYS_PTRACE", True),
        ("2", "CAP_SYS_PTRACE", True),
        ("3", "below 3", False),
    ],
)
def test_sudo_is_recommended_where_root_may(
    scope: str, said: str, sudo: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yama = tmp_path / "ptrace_scope"
    yama.write_text(f"{scope}\n")
    monkeypatch.setattr(pidfd, "YAMA", yama)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(rights, "held", lambda: 0)
    error = pidfd._explain(OSError(errno.EPERM, ""), 7, 3, 1)
    assert isinstance(error, PermissionNeeded)
    assert said in error.hint
    assert ("sudo" in error.hint) == sudo
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "sudo" not in str(getattr(pidfd._explain(OSError(errno.EPERM, ""), 7, 3, 1), "hint", ""))
