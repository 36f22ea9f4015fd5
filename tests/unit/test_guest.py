"""What surrounds the emulated kernels: which package is taken, what a guest that died has said, what the page says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.guest import __main__ as guest
from tests.guest import debian
from tests.guest.boot import Ran, lines_of
from tests.guest.chosen import TESTS
from tests.guest.page import page


class Shelf:
    """An apt that knows some packages."""

    def __init__(self, *names: str, gone: frozenset[str] = frozenset()) -> None:
        self.names, self.gone = names, gone

    def run(self, command: str, *words: str) -> str:
        assert command == "apt-cache"
        if words[0] == "pkgnames":
            return "\n".join(self.names)
        return (
            "  Candidate: (none)\n" if words[1] in self.gone else "  Installed: (none)\n  Candidate: 1.2-3\n"
        )


@pytest.mark.parametrize(
    ("version", "names", "taken"),
    [
        ("5.10", ["linux-image-5.10.0-9-amd64", "linux-image-5.10.0-46-amd64"], "5.10.0-46-amd64"),
        ("6.1", ["linux-image-6.1.0-50-amd64", "linux-image-6.12.9+deb12-amd64"], "6.1.0-50-amd64"),
        (
            "7.2",
            ["linux-image-7.2.9+deb13-cloud-amd64", "linux-image-7.2.3+deb13-amd64"],
            "7.2.3+deb13-amd64",
        ),
        ("6.1", ["linux-image-6.1.0-50-amd64-dbg", "linux-image-6.1.0-50-rt-amd64"], None),
    ],
)
def test_the_newest_plain_kernel_of_a_version_is_taken(
    version: str, names: list[str], taken: str | None
) -> None:
    found = debian._newest(Shelf(*names), version)  # type: ignore[arg-type]
    assert (found and found[0]) == taken


def test_a_name_without_a_package_behind_it_is_passed_over() -> None:
    names = ("linux-image-6.1.0-51-amd64", "linux-image-6.1.0-50-amd64")
    assert debian._newest(Shelf(*names, gone=frozenset(names[:1])), "6.1") == ("6.1.0-50-amd64", "1.2-3")  # type: ignore[arg-type]


def test_offline_nothing_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(debian.NotHere, match="not in"):
        debian.kernel("6.1", tmp_path, offline=True)
    assert not list(tmp_path.iterdir())


def test_a_guest_that_died_in_the_middle_of_a_line_has_said_the_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "results"
    assert lines_of(path) == []
    path.write_text('{"kind": "boot"}\n{"kind": "act"}\n{"kin')
    assert [row["kind"] for row in lines_of(path)] == ["boot", "act"]


def row(kind: str, name: str, verdict: str, detail: str = "") -> dict[str, Any]:
    return {"kind": kind, "name": name, "verdict": verdict, "detail": detail}


def test_the_page_tells_what_differs_from_what_is_not_here_and_from_what_was_not_measured() -> None:
    old = [
        row("scenario", "a", "ok"),
        row("scenario", "b", "not here", "the kernel has no MPTCP"),
        row("destroy", "FIN_WAIT1 orphan", "ok", "FIN_WAIT1 with no timer, silent"),
        row("act", "check", "differs", "status 3"),
    ]
    new = [row("scenario", "a", "ok"), row("scenario", "b", "ok"), row("act", "check", "ok")]
    head = {"release": "r", "package": "p", "date": "2026-11-28"}
    text = page([{"kernel": "5.10", "results": old, **head}, {"kernel": "6.1", "results": new, **head}])
    assert "| The lab's scenarios, each diagnosed as what it is | 1 of 2 | 2 of 2 |" in text
    assert "| `finwait check` | differs | ok |" in text
    assert "- 5.10, scenario `b`: the kernel has no MPTCP" in text
    assert "- 5.10, act `check`: differs: status 3" in text
    assert "| FIN_WAIT1 orphan | FIN_WAIT1 with no timer, silent | not measured |" in text


def test_the_page_groups_what_was_tried_on_restricted_machines_and_names_the_kernel_tests() -> None:
    rows = [
        row("restriction", "lockdown=integrity: `probe`", "ok"),
        row("restriction", "lockdown=integrity: `trace`", "differs", "status 1"),
        row("restriction", "no module is loaded on demand: `list`", "ok"),
    ]
    text = page([{"kernel": "6.12", "release": "r", "package": "p", "date": "2026-11-29", "results": rows}])
    assert "| `lockdown=integrity` | 6.12 | `probe` | `trace` |" in text
    assert "| no module is loaded on demand | 6.12 | `list` | – |" in text
    assert "- 6.12, restriction lockdown=integrity: `trace`: differs: status 1" in text
    assert "`test_sockets_against_proc`" in text


def test_every_chosen_kernel_test_exists() -> None:
    folder = Path(__file__).parents[1] / "kernel"
    assert [name for name in TESTS if not (folder / f"{name}.py").exists()] == []


def measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *rows: dict[str, Any], whole: bool
) -> list[str]:
    monkeypatch.setattr(guest, "MEASURED", tmp_path)
    old = [
        row("tests", "test_a", "differs", "1 of 2"),
        row("test", "test_a::b", "differs"),
        row("act", "check", "ok"),
    ]
    (tmp_path / "6.1.json").write_text(json.dumps({"results": old}))
    guest._keep("6.1", "r", "p", Ran(tmp_path, 1.0, True, rows), "emulated", whole=whole)
    return [f"{r['kind']} {r['name']}" for r in json.loads((tmp_path / "6.1.json").read_text())["results"]]


def test_what_is_measured_again_replaces_what_it_measured_before_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot, passed = row("boot", "r", "ok"), row("tests", "test_a", "ok", "2 of 2")
    recording = row("recording", "time-wait", "ok")
    for whole in (True, False):
        found = measured_again(tmp_path, monkeypatch, boot, passed, recording, whole=whole)
        assert found == [
            "act check",
            "tests test_a",
        ]  # a test that failed and passes now is not told any more
    found = measured_again(tmp_path, monkeypatch, row("act", "probe", "ok"), whole=False)
    assert found == ["tests test_a", "test test_a::b", "act check", "act probe"]


def test_what_is_kept_keeps_its_day_and_what_a_guest_said_before_it_was_ended_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "MEASURED", tmp_path)
    old = [row("scenario", "a", "ok"), row("scenario", "b", "ok")]
    head = {"kernel": "6.1", "date": "2026-01-02", "release": "q", "package": "p", "results": old}
    (tmp_path / "6.1.json").write_text(json.dumps(head))
    guest._keep("6.1", "r", "p", Ran(tmp_path, 1.0, False, (row("scenario", "b", "ok"),)), "", whole=False)
    kept = json.loads((tmp_path / "6.1.json").read_text())
    assert [(one["name"], one["date"]) for one in kept["results"]] == [
        ("a", "2026-01-02"),
        ("b", kept["date"]),
    ]
    assert [one.get("release") for one in kept["results"]] == ["q", None]
    assert f"| 6.1 | r, q | p | 2026-01-02 to {kept['date']} |" in page([kept])


def test_a_guest_that_measured_nothing_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "MEASURED", tmp_path)
    guest._keep("6.1", "r", "p", Ran(tmp_path, 1.0, False, (row("boot", "r", "ok"),)), "", whole=False)
    assert not list(tmp_path.iterdir())


def test_the_page_names_what_was_tried_on_other_kernels_only() -> None:
    head = {"release": "r", "package": "p", "date": "2026-11-28"}
    old = {"kernel": "5.10", "results": [row("scenario", "a", "ok"), row("proof", "p", "ok")], **head}
    new = {"kernel": "6.1", "results": [row("scenario", "a", "ok"), row("scenario", "b", "ok")], **head}
    text = page([old, new])
    assert "- 5.10, scenarios not tried: `b`\n" in text
    assert "6.1, demonstrations not tried" not in text, "the table says that none was measured"


def test_a_restriction_that_is_measured_again_keeps_nothing_that_is_no_longer_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "MEASURED", tmp_path)
    old = [row("restriction", "yama=1: `a`", "differs"), row("restriction", "yama=2: `a`", "ok")]
    (tmp_path / "6.1.json").write_text(json.dumps({"results": old}))
    again = (row("restriction", "yama=1: `b`", "ok"),)
    guest._keep("6.1", "r", "p", Ran(tmp_path, 1.0, True, again), "emulated")
    kept = json.loads((tmp_path / "6.1.json").read_text())["results"]
    assert [one["name"] for one in kept] == ["yama=2: `a`", "yama=1: `b`"]


FIRST = """
import pytest
def test_one(): pass
@pytest.mark.parametrize("address", ["::1"])
def test_two(address): raise ValueError("two")
@pytest.fixture
def broken(): raise OSError("no")
def test_three(broken): pass
"""
SECOND = """
import pytest
def test_four(): pytest.skip("no MPTCP")
"""
ENDED = """
import os
def test_five(): pass
def test_six(): os._exit(9)
"""


def outcomes_of(folder: Path, **modules: str) -> list[tuple[str, str, str, str]]:
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    options = ("-q", "-p", "no:cacheprovider", "-p", "tests.guest.outcomes", "--rootdir", str(folder))
    words = [sys.executable, "-m", "pytest", "-c", os.devnull, *options, str(folder)]
    environment = {**os.environ, "GUEST_OUT": str(folder), "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(words, cwd=folder, env=environment, capture_output=True, check=False, timeout=110)
    return [(r["kind"], r["name"], r["verdict"], r["detail"]) for r in lines_of(folder / "results")]


def test_kernel_tests_are_told_by_module_and_those_that_did_not_pass_by_name(tmp_path: Path) -> None:
    rows = outcomes_of(tmp_path, test_a=FIRST, test_b=SECOND)
    assert rows == [
        ("test", "test_a::test_two[::1]", "differs", "ValueError: two"),
        ("test", "test_a::test_three", "differs", "OSError: no"),
        ("tests", "test_a", "differs", "1 of 3"),
        ("test", "test_b::test_four", "not here", "no MPTCP"),
        ("tests", "test_b", "ok", "0 of 1"),
    ]
    one = {"kernel": "6.1", "release": "r", "package": "p", "date": "d"}
    text = page(
        [{**one, "results": [row(kind, name, verdict, detail) for kind, name, verdict, detail in rows]}]
    )
    assert "| Kernel tests (those that ask the kernel) | 1 of 4 |" in text
    assert "- 6.1, test `test_a::test_two[::1]`: differs: ValueError: two" in text
    some = page([{**one, "results": [row("tests", TESTS[1], "ok", "3 of 3")]}])
    assert f"On 6.1 only these ran: `{TESTS[1]}`." in some


def test_a_guest_that_is_ended_has_told_of_the_modules_before_and_of_none_by_half(tmp_path: Path) -> None:
    rows = outcomes_of(tmp_path, test_b=SECOND, test_c=ENDED)
    assert [name for _, name, _, _ in rows] == ["test_b::test_four", "test_b"]


def test_a_module_that_cannot_be_loaded_differs(tmp_path: Path) -> None:
    rows = outcomes_of(tmp_path, test_d="import there_is_no_such_module\n")
    assert rows[0][:3] == ("test", "test_d::its module", "differs")
    assert "there_is_no_such_module" in rows[0][3]
    assert rows[1] == ("tests", "test_d", "differs", "0 of 1")
