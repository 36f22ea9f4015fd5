"""`finwait trace` refuses what it cannot mean in one sentence, before anything is traced."""

from __future__ import annotations

import pytest

from finwait.cli import main


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["trace", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("option", ["--for", "--stuck", "--interval"])
@pytest.mark.parametrize("value", ["1x", "abc", "3q", "-1s", "", "1e3s", "٣s", "9" * 400 + "d"])
def test_a_duration_that_is_none_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    said = refused(capsys, f"{option}={value}")
    assert option in said
    assert "duration" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--interval", "0s"], "10ms or more"),
        (["--count", "-1"], "1 or more"),
        (["--count", "many"], "1 or more"),
        (["--buffer-kb", "0"], "1 to 2097152"),
        (["--buffer-kb", "99999999999"], "1 to 2097152"),
        (["--stuck", "1s", "--summary"], "choose one"),
        (["--follow-connection", "--summary"], "choose one"),
        (["--summary", "-o", "csv"], "not csv"),
        (["--stuck", "1s", "-o", "csv"], "text or wide or jsonl, not csv"),
        (["--follow-connection", "-o", "parquet"], "not parquet"),
        (["--stuck", "1s", "--no-lookup"], "--no-lookup"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert told in refused(capsys, *words)


def test_parquet_on_a_terminal_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "redirect" in refused(capsys, "-o", "parquet")
