"""Files that commands are told to read: never waited for, never without end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finwait.cli import main


@pytest.mark.parametrize("words", [("tune", "plan", "--no-diagnosis"), ("clear", "--plan")])
@pytest.mark.parametrize("kind", ["FIFO", "device", "directory"])
def test_what_is_no_file_is_refused(
    tmp_path: Path, words: tuple[str, ...], kind: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "file"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.mkdir()
    assert main([*words, str(path)]) != 0
    assert f"it is a {kind}" in capsys.readouterr().err


def test_a_profile_without_end_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "large.conf"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert main(["tune", "plan", "--no-diagnosis", str(path)]) != 0
    assert "larger than 1 MiB" in capsys.readouterr().err
