"""`finwait report` and `finwait compare` as commands: where they write, what they refuse, their status."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from finwait.cli import main

CAPTURES = Path(__file__).parents[2] / "captures/linux-6.18"
RELAY = str(CAPTURES / "relay-pair.finwait")
LOOK = ["--from", RELAY, "--not-holder", "1"]


def test_the_first_word_is_the_file_and_the_rest_a_filter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.html"
    assert main(["report", str(path), "rule", "=", "relay-pair", *LOOK]) == 0
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert "relay-pair" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert capsys.readouterr().err.startswith(f"finwait: wrote `{path}` (")
    assert main(["report", str(path), *LOOK, "rule", "=", "fin-wait2-held"]) == 0  # options in between
    assert main(["report", *LOOK, str(path), "rule", "=", "fin-wait2-held"]) == 0
    assert "fin-wait2-held" in path.read_text()
    assert "<code>relay-pair</code>" not in path.read_text()
    capsys.readouterr()
    assert main(["report", "rule", "=", "relay-pair", *LOOK]) == 0
    assert capsys.readouterr().out.startswith("<!DOCTYPE html>")
    assert main(["report", "-", *LOOK, "-o", "md"]) == 0
    assert capsys.readouterr().out.startswith("### ❌ ")


@pytest.mark.parametrize(("name", "begins"), [("x.md", "###"), ("x.htm", "<!DOC"), ("x.json", '{"apiV')])
def test_the_ending_says_the_format(tmp_path: Path, name: str, begins: str) -> None:
    assert main(["report", str(tmp_path / name), *LOOK]) == 0
    assert (tmp_path / name).read_text().startswith(begins)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_page_is_not_for_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["report", *LOOK]) == 2
    assert "name a file" in capsys.readouterr().err


def test_a_file_without_an_ending_is_told_to_have_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "stuck", *LOOK]) == 2
    assert "`finwait report stuck.html`" in capsys.readouterr().err


def test_a_link_is_not_followed_and_a_file_is_replaced_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, link = tmp_path / "target.html", tmp_path / "link.html"
    target.write_text("before")
    link.symlink_to(target)
    assert main(["report", str(link), *LOOK]) == 1
    assert "could not write the report" in capsys.readouterr().err
    assert target.read_text() == "before"
    assert main(["report", str(target), *LOOK]) == 0
    assert target.read_text().startswith("<!DOCTYPE html>")
    assert main(["report", str(tmp_path / "no/such.html"), *LOOK]) == 1
    assert sorted(os.listdir(tmp_path)) == ["link.html", "target.html"]


def test_what_was_not_seen_is_in_the_file_and_in_the_status(tmp_path: Path) -> None:
    path = tmp_path / "x.html"
    assert main(["report", str(path), "--from", RELAY]) == 3
    assert "could not" in path.read_text()
    assert "list its descriptors" in path.read_text()


def test_a_redacted_report_has_none_of_the_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = tmp_path / "secret-customer.finwait"
    recording.write_bytes(Path(RELAY).read_bytes())
    paths = [tmp_path / "plain.html", tmp_path / "redacted.html"]
    for path, more in zip(paths, ([], ["--redact"]), strict=True):
        assert main(["report", str(path), "--from", str(recording), "--not-holder", "1", *more]) == 0
    plain, redacted = (path.read_text() for path in paths)
    for name in ("backend", "secret-customer", "10.48.128.216", "host-ea75be"):
        assert name in plain
        assert name not in redacted
    assert "pseudonyms" in redacted
    assert stat.S_IMODE(paths[1].stat().st_mode) == 0o644
    assert "host-ea75be" not in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("words", [["comm", "=", "backend"], ["dst", "10.0.0.1"], ["pod", "=", "x"]])
def test_a_filter_by_what_is_redacted_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "-", "-o", "md", "--redact", *LOOK, *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "`--redact` replaces what the FILTER asks for" in said.err
    assert main(["report", "-", "-o", "md", "--redact", *LOOK, "state", "close-wait"]) == 0


def test_compare_has_a_status_for_pipelines(capsys: pytest.CaptureFixture[str]) -> None:
    other = str(CAPTURES / "kube-proxy-userspace.finwait")
    walled = ["--not-holder", "1"]
    assert main(["compare", RELAY, other, *walled]) == 1
    assert main(["compare", RELAY, RELAY, *walled]) == 0
    assert main(["compare", RELAY, RELAY]) == 3
    assert main(["compare", RELAY, other, "rule", "=", "fin-wait2-held", *walled]) == 0
    assert main(["compare", RELAY, "/nonexistent", *walled]) == 1
    capsys.readouterr()
    assert main(["compare", RELAY, other, *walled, "-o", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["kind"], document["verdict"]) == ("Comparison", "worse")
    assert {g["rule"]: (g["a"], g["b"], g["worse"]) for g in document["groups"]} == {
        "relay-pair": (8, 14, True), "close-wait-eof-read": (6, 8, True), "fin-wait2-held": (1, 0, False),
    }  # fmt: skip
