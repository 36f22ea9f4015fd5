"""`user = NAME`: on this machine, and of a recording of this boot, by its users; else refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from finwait.cli import main
from finwait.kernel import procfs
from finwait.recording import open_recording
from finwait.session import snapshot
from finwait.uapi import tcp

CAPTURES = Path(__file__).parents[2] / "captures/linux-6.18"
RECORDING = str(CAPTURES / "fin-wait2-orphan.finwait")
FACTS = snapshot(open_recording(RECORDING)).observation.facts


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> set[int]:
    assert main(["list", *words, "--from", RECORDING, "-o", "jsonl"]) in (0, 3)
    return {int(json.loads(line)["cookie"], 16) for line in capsys.readouterr().out.splitlines()}


def test_who_made_a_minisocket_is_not_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "facts", lambda: FACTS)
    by_name, by_number = rows(capsys, "user", "=", "root"), rows(capsys, "user", "=", "0")
    assert by_name == by_number
    s = snapshot(open_recording(RECORDING)).sockets
    unknown = (s.timer == 3) | ((s.uid == 0) & (s.inode == 0)) | (s.state == tcp.TIME_WAIT)
    assert unknown.any()
    assert by_name == set(s.cookie[(s.uid == 0) & ~unknown].tolist())
    assert by_name
    assert rows(capsys, "user", "!=", "root") == set(s.cookie[(s.uid != 0) & ~unknown].tolist())


@pytest.mark.parametrize("name", ["www-data", "nobody", "ro*"])
def test_a_name_is_refused_with_what_can_be_used_where_users_are_another_machines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(procfs, "facts", lambda: replace(FACTS, boot_id="another"))
    for words in (["user", "=", name], ["sport", "=", ":1", "or", "user", "!=", name]):
        assert main(["list", *words, "--from", RECORDING]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "user names" in said.err
        assert "`user = 33`" in said.err


def test_the_users_of_this_machine_are_those_of_a_recording_of_this_boot(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "facts", lambda: FACTS)
    assert main(["list", "user", "=", "no-such-user", "--from", RECORDING, "-o", "jsonl"]) == 1
    assert "`user = no-such-user` cannot match anything" in capsys.readouterr().err
    assert rows(capsys, "user", "=", "root") == rows(capsys, "user", "=", "0")
