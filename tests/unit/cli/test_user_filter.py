"""`user = NAME`: on this machine by its users, of a recording by what is the same everywhere, else refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finwait.cli import main
from finwait.kernel import procfs
from finwait.recording import open_recording
from finwait.session import snapshot
from finwait.uapi import tcp

CAPTURES = Path(__file__).parents[2] / "captures/linux-6.18"
RECORDING = str(CAPTURES / "fin-wait2-orphan.finwait")


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> set[int]:
    assert main(["list", *words, "--from", RECORDING, "-o", "jsonl"]) in (0, 3)
    return {json.loads(line)["cookie"] for line in capsys.readouterr().out.splitlines()}


def test_root_is_root_everywhere_and_a_minisocket_is_nobodys_for_all_we_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_name, by_number = rows(capsys, "user", "=", "root"), rows(capsys, "user", "=", "0")
    assert by_name == by_number
    s = snapshot(open_recording(RECORDING)).sockets
    unknown = (s.timer == 3) | ((s.uid == 0) & (s.inode == 0)) | (s.state == tcp.TIME_WAIT)
    assert unknown.any()
    assert by_name == set(s.cookie[(s.uid == 0) & ~unknown].tolist())
    assert by_name
    assert rows(capsys, "user", "!=", "root") == set(s.cookie[(s.uid != 0) & ~unknown].tolist())


@pytest.mark.parametrize("name", ["www-data", "nobody", "ro*", "*"])
def test_another_name_is_refused_with_what_can_be_used(capsys: pytest.CaptureFixture[str], name: str) -> None:
    for words in (["user", "=", name], ["sport", "=", ":1", "or", "user", "!=", name]):
        assert main(["list", *words, "--from", RECORDING]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "names of users" in said.err
        assert "`user = 1000`" in said.err


def test_the_users_of_this_machine_are_those_of_a_recording_of_this_boot(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = snapshot(open_recording(RECORDING)).observation.facts
    monkeypatch.setattr(procfs, "facts", lambda: recorded)
    assert rows(capsys, "user", "=", "no-such-user") == set()
    assert rows(capsys, "user", "=", "root") == rows(capsys, "user", "=", "0")
