"""Why tracing is not to be had, by what the kernel shows: lockdown is not told as a missing tracepoint."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from finwait.errors import KernelError, NotSupported, PermissionNeeded
from finwait.kernel import tracefs


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tracefs that is a directory of ours, and a kernel that is not locked down."""
    root = tmp_path / "tracing"
    root.mkdir()
    monkeypatch.setattr(tracefs, "_mounted", lambda: str(root))
    monkeypatch.setattr(tracefs, "LOCKDOWN", tmp_path / "lockdown")
    return root


def refusal() -> KernelError:
    with pytest.raises(KernelError) as told, tracefs.Tracing(["sock/inet_sock_set_state"]):
        pass
    return told.value


def test_an_empty_tracefs_of_a_locked_down_kernel_is_told_as_lockdown(mounted: Path) -> None:
    (mounted.parent / "lockdown").write_text("none integrity [confidentiality]\n")
    error = refusal()
    assert "`confidentiality`" in error.hint
    assert isinstance(error, PermissionNeeded)


def test_where_lockdown_cannot_be_read_both_reasons_are_told(mounted: Path) -> None:
    assert mounted.is_dir()
    error = refusal()
    assert "locked down" in error.hint
    assert "without tracepoints" in error.hint


def test_integrity_does_not_keep_from_tracing(mounted: Path) -> None:
    (mounted.parent / "lockdown").write_text("none [integrity] confidentiality\n")
    assert "`confidentiality`" not in refusal().hint


def test_a_file_that_refuses_under_lockdown_is_told_as_lockdown(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mounted / "events").mkdir()
    (mounted / "instances").mkdir()
    (mounted.parent / "lockdown").write_text("none integrity [confidentiality]\n")
    plain = tracefs._bytes_of

    def refuse(path: str) -> bytes:
        if "header_page" in path:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return plain(path)

    monkeypatch.setattr(tracefs, "_bytes_of", refuse)
    assert "`confidentiality`" in refusal().hint


def test_without_lockdown_a_missing_event_is_a_missing_event(mounted: Path) -> None:
    (mounted / "events").mkdir()
    (mounted / "instances").mkdir()
    assert isinstance(refusal(), NotSupported)
