"""Files that commands are told to read: never waited for, never without end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finwait.cli import main
from finwait.remedy.plan import Plan
from finwait.report.plan import plan_json as encode


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


def _plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_bytes(encode(Plan(0, "another boot", (), (), (), ())))
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("how", ["mode", "owner"])
def test_a_plan_that_others_may_have_written_is_refused(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "state"))
    path = _plan(tmp_path)
    if how == "mode":
        path.chmod(0o666)
    elif os.geteuid() == 0:
        os.chown(path, 65534, -1)
    else:
        pytest.skip("only root can give a file away")
    assert main(["clear", "--dry-run", "--plan", str(path)]) != 0
    err = capsys.readouterr().err
    assert ("others can write to it (mode 0666)" if how == "mode" else "it belongs to nobody") in err
    assert f"hint: read it; if you agree to it, pass it on: `--plan - < {path}`" in err


def test_a_plan_of_our_own_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "state"))
    assert main(["clear", "--dry-run", "--plan", str(_plan(tmp_path))]) == 4
    assert "the plan was made before this machine was started" in capsys.readouterr().err


def test_a_plan_on_standard_input_is_whoever_s_who_passes_it_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "state"))
    path = _plan(tmp_path)
    path.chmod(0o666)
    with path.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(["clear", "--dry-run", "--plan", "-"]) == 4
    assert "the plan was made before" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("clear", "--dry-run", "--plan"),
        ("tune", "plan", "--no-diagnosis"),
        ("relay", "run", "--check", "--config"),
    ],
    ids=str,
)
def test_a_file_behind_a_link_of_somebody_else_is_not_taken_for_what_was_named(
    words: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a link away")
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "state"))
    link = tmp_path / "link"
    link.symlink_to(_plan(tmp_path))
    os.chown(link, 65534, -1, follow_symlinks=False)
    assert main([*words, str(link)]) != 0
    said = capsys.readouterr().err
    assert "it is a symbolic link of nobody's, and is not followed" in said
    assert "hint: name the file that it leads to" in said


@pytest.mark.parametrize("how", ["mode", "owner"])
def test_settings_of_a_file_that_others_may_have_written_are_shown_and_not_set(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "x.conf"
    path.write_text("net.ipv4.tcp_fin_timeout = 61\n")
    if how == "mode":
        path.chmod(0o666)
    elif os.geteuid() == 0:
        os.chown(path, 65534, -1)
    else:
        pytest.skip("only root can give a file away")
    assert main(["tune", "plan", "--no-diagnosis", str(path)]) in (0, 3)
    assert main(["tune", "apply", "--no-diagnosis", str(path)]) != 0
    assert "hint: read it; if you agree to it, apply a copy of your own" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()
