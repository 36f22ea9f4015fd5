"""`make rule`: what it writes is right at once, but for what only a person can write, and says what that is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from scaffold.rule import FILES, create, main, next_claim, ranks, remove, to_write

from finwait.diagnosis import catalogue
from finwait.remedy.knowledge import Claim

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
COPIED = (
    "src",
    "scaffold",
    "docs",
    "share",
    "tests",
    "bench",
    "fuzz",
    "pyproject.toml",
    "README.md",
    "examples",
)
NAME = "longest-name-that-a-rule-may-get"
NEW = [where.format(module=NAME.replace("-", "_")) for where in FILES.values()]


def ignored(folder: str, names: list[str]) -> list[str]:
    """Recordings are large, and no part of it."""
    return [
        n
        for n in names
        if n == "__pycache__" or n.endswith(".finwait") or (folder.endswith("docs") and n == "img")
    ]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout with a new rule in it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        there = ROOT / name
        if there.is_dir():
            shutil.copytree(there, copy / name, ignore=ignored)
        else:
            shutil.copyfile(there, copy / name)
    create(copy, NAME)
    return copy


def run(checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a Python module in the copy, on the copy."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {
        "PYTHONPATH": str(checkout / "src")
    }
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=checkout, env=env, capture_output=True, text=True, timeout=280
    )


def test_the_name_is_registered_and_what_takes_the_rest_stays_the_last(checkout: Path) -> None:
    done = run(checkout, "finwait", "rules", "-o", "name")
    assert done.stdout.split() == [*catalogue.NAMES[:-1], NAME, catalogue.NAMES[-1]], done.stderr
    assert NAME in run(checkout, "finwait", "lab", "list").stdout
    assert run(checkout, "finwait", "explain", NAME).stdout.startswith(NAME)


def test_what_is_written_passes_lint(checkout: Path) -> None:
    for command in (("ruff", "format", "--check"), ("ruff", "check")):
        done = run(checkout, *command, *NEW, "src/finwait/diagnosis/catalogue.py")
        assert not done.returncode, done.stdout + done.stderr


def test_what_is_written_passes_types(checkout: Path) -> None:
    done = run(checkout, "mypy", "--follow-imports=silent", "--cache-dir", str(checkout / "cache"), *NEW)
    assert not done.returncode, done.stdout + done.stderr


def test_its_tests_fail_and_say_what_to_write(checkout: Path) -> None:
    done = run(checkout, "pytest", "-q", "-p", "no:cacheprovider", NEW[2])
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed" in done.stdout
    module = NEW[0]
    assert f"write SEEN in this file, and `match` in {module}" in done.stdout
    assert "write NEAREST in this file" in done.stdout


def test_the_tests_of_the_documentation_name_every_place_that_is_left(checkout: Path) -> None:
    made = run_script(checkout, "docs/generate.py")
    assert f"docs/reference/rules/{NAME}.md: written" in made.stdout, made.stderr
    done = run(
        checkout,
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/docs/test_docs.py",
        "-k",
        f"{NAME} and rule",
    )
    places = to_write(checkout, NAME)
    assert len(places) > 15
    assert [place for place in places if place not in done.stdout] == []
    assert f"sudo .venv/bin/python -m tests.captures.make {NAME}" in done.stdout
    others = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(others) == 2, others


def run_script(checkout: Path, script: str) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ) | {"PYTHONPATH": str(checkout / "src")}
    return subprocess.run(
        [sys.executable, script], cwd=checkout, env=env, capture_output=True, text=True, timeout=280
    )


def test_the_scenario_says_that_it_is_not_written(checkout: Path) -> None:
    done = run(checkout, "finwait", "lab", "run", NAME)
    assert done.returncode == 1
    assert "not written yet" in done.stderr or "cannot run" in done.stderr, done.stderr


def test_the_ranks_are_listed_in_order() -> None:
    lines = [line.split() for line in ranks()]
    assert sorted(lines, key=lambda words: (int(words[0]), words[2])) == lines
    assert {name for _, _, name in lines} == set(catalogue.NAMES)


def test_the_next_fact_is_one_that_the_ledger_does_not_have() -> None:
    number = next_claim(ROOT)
    known = set(re.findall(r"^### (\w+)$", (ROOT / "docs/reference/ledger.md").read_text(), re.MULTILINE))
    assert number not in known
    assert f"X{int(number[1:]) - 1}" in known


def test_the_steps_that_are_printed_are_those_of_the_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaffold.rule.create", lambda *_: [])
    assert main([NAME]) == 0
    printed = capsys.readouterr().out
    page = (ROOT / "CONTRIBUTING.md").read_text()
    steps = (
        "finwait lab run",
        "tests/kernel/test_rules.py",
        "tests.captures.make",
        "tests/captures",
        "--golden",
    )
    for text in (printed, page[page.index("1. Fill in those places") :]):
        places = [
            text.index(step) for step in ("finwait lab run", "tests/kernel/test_rules.py", "captures.make")
        ]
        assert places == sorted(places)
        flat = " ".join(text.split())
        assert "If your rule takes a row of another scenario, put the row under `others` there" in flat
        assert "only re-told, never re-made" in flat
        assert [step for step in (*steps, "--ranks", "--remove", "Unreleased") if step not in text] == []


def test_the_page_names_every_field_that_a_fact_must_have() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    must = [f.encode_name for f in msgspec.structs.fields(Claim) if f.required]
    assert [name for name in must if f"`{name}`" not in page] == []


def test_a_half_made_rule_is_taken_back_whole_and_a_committed_one_not(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name in ("src/finwait/diagnosis/catalogue.py", "src/finwait/diagnosis/rules/relay_pair.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    before = {p: p.read_text() for p in tmp_path.rglob("*.py")}
    create(tmp_path, NAME)
    recording = tmp_path / "tests/captures/linux-9.9"
    recording.mkdir(parents=True)
    (recording / f"{NAME}.finwait").touch()
    remove(tmp_path, NAME)
    left = {p: p.read_text() for p in tmp_path.rglob("*.py")}
    assert left == before
    assert not list(recording.iterdir())
    with pytest.raises(ValueError, match="there is no rule"):
        remove(tmp_path, NAME)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    with pytest.raises(ValueError, match="is committed"):
        remove(tmp_path, "relay-pair")
    assert {p: p.read_text() for p in before} == before


@pytest.mark.parametrize(
    "name",
    [
        "Held",
        "fin_wait2",
        "-held",
        "held-",
        "fin--wait",
        "1st",
        "a" * 33,
        "close sockets",
        "../evil",
        "class",
        "",
    ],
)
def test_what_cannot_be_a_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a rule"):
        create(tmp_path, name)


def test_a_name_that_is_taken_is_refused_and_nothing_is_written(checkout: Path) -> None:
    before = sorted(p for p in checkout.rglob("*.py"))
    for name in (NAME, "fin-wait2-held", "kube-proxy-userspace"):
        with pytest.raises(ValueError, match="is taken"):
            create(checkout, name)
    assert sorted(p for p in checkout.rglob("*.py")) == before
