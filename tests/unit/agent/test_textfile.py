"""The metrics as a file: what is said where they cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finwait.agent.textfile import write_textfile
from tests.unit.agent.test_metrics import PICTURE


def test_what_cannot_be_written_is_a_gap_with_the_age_of_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("prometheus_client")
    assert write_textfile(str(tmp_path), PICTURE, quiet=False) is None
    path = tmp_path / "finwait.prom"
    os.utime(path, (1_700_000_000, 1_700_000_000))

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("finwait.files.new_file", refuse)
    gap = write_textfile(str(tmp_path), PICTURE, quiet=True)
    assert gap is not None
    assert gap.where == f"`{path}`"
    written = "those that are there were written at 2023-11-14T22:13:20Z"
    assert gap.doing == f"write the metrics: Read-only file system; {written}"
    path.unlink()
    again = write_textfile(str(tmp_path), PICTURE, quiet=False)
    assert again is not None
    assert again.doing.endswith("; none are there")
    assert capsys.readouterr().err.count("cannot be written") == 1
