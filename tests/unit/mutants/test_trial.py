"""A small tree of its own: what is tested is killed, what is not survives, and nothing of the tree is changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scaffold.rule import FILES

from tests.mutants.__main__ import explained, summary
from tests.mutants.areas import AREAS
from tests.mutants.operators import mutants_of
from tests.mutants.trial import Kept, Result, sample

REPOSITORY = Path(__file__).resolve().parents[3]
MODULE = "src/finwait/relay/wheel.py"
TESTS = "tests/unit/relay/test_wheel.py"
SOURCE = """\
def larger(a, b):
    if a > b:
        return a
    return b

def unseen(a):
    return a + 1

def for_ever(n):
    while n > 0:
        n -= 1
    return n
"""
TEST = """\
from pathlib import Path

from finwait.relay import wheel as tiny

def test_larger():
    assert Path(tiny.__file__).parents[3].name == 'tree', 'a test must see the copy'
    assert tiny.larger(1, 2) == tiny.larger(2, 1) == 2

def test_it_ends():
    assert tiny.for_ever(3) == 0
"""


def apart() -> bool:
    words = [
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount",
        "--mount-proc",
        "--net",
        "true",
    ]
    return bool(shutil.which("unshare")) and subprocess.run(words, capture_output=True).returncode == 0


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for path, text in (
        (MODULE, SOURCE),
        ("src/finwait/__init__.py", ""),
        ("src/finwait/relay/__init__.py", ""),
        ("tests/__init__.py", ""),
        (TESTS, TEST),
        ("pyproject.toml", '[tool.pytest.ini_options]\nfilterwarnings = ["error"]\n'),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    shutil.copytree(REPOSITORY / "tests" / "mutants", root / "tests" / "mutants")
    (root / "tests/mutants/SURVIVORS.md").write_text(f"- `{MODULE} larger boundary: a > b → (a >= b)`\n")
    trial = root / "tests/mutants/trial.py"
    trial.write_text(trial.read_text().replace("AT_LEAST = 30.0", "AT_LEAST = 15.0"))
    return root


def run(root: Path, *options: str) -> tuple[int, str]:
    words = [sys.executable, "-m", "tests.mutants", "-j", "2", *options]
    done = subprocess.run(
        words, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)}
    )
    assert not done.stderr
    return done.returncode, done.stdout


@pytest.mark.timeout(600)
@pytest.mark.skipif(not apart(), reason="needs namespaces of its own (unshare)")
def test_what_is_tested_is_killed_and_what_is_not_survives(tree: Path) -> None:
    before = {path: path.read_bytes() for path in tree.rglob("*.py")}
    status, said = run(tree)
    unseen = [
        "unseen arithmetic: a + 1 → (a - 1)",
        "unseen constant: 1 → (1 + 1)",
        "unseen constant: 1 → (1 - 1)",
        "unseen return value: a + 1 → None",
    ]
    assert status == 1
    assert sorted(line for line in said.splitlines() if line.startswith("- ")) == [
        f"- `{MODULE} {name}`" for name in unseen
    ]
    kept = Kept(tree, tree / "build/mutants.jsonl")
    mutants = mutants_of(MODULE, (tree / MODULE).read_bytes())
    results = {name.removeprefix(f"{MODULE} "): r for name, r in kept.results(mutants).items()}
    assert len(results) == len(mutants)
    assert {name for name, r in results.items() if r.outcome == "survived"} == {
        *unseen,
        "larger boundary: a > b → (a >= b)",  # of two equal numbers either is the larger
    }
    assert results["larger comparison: a > b → (a <= b)"].outcome == "killed"
    assert results["for_ever removed statement: n -= 1 → pass"].outcome == "timeout"
    assert {path: path.read_bytes() for path in tree.rglob("*.py")} == before

    # What is known is not tried again; after a change of the tests, what survived is.
    assert f"{len(mutants)} of them known already" in run(tree)[1]
    with (tree / TESTS).open("a") as test:
        test.write("\n\ndef test_unseen():\n    assert tiny.unseen(1) == 2\n")
    assert run(tree, "--only", "unseen")[0] == 0
    assert {r.outcome for name, r in kept_now(tree).items() if "unseen" in name} == {"killed"}


def kept_now(tree: Path) -> dict[str, Result]:
    mutants = mutants_of(MODULE, (tree / MODULE).read_bytes())
    return Kept(tree, tree / "build/mutants.jsonl").results(mutants)


@pytest.mark.timeout(600)
@pytest.mark.skipif(not apart(), reason="needs namespaces of its own (unshare)")
def test_tests_that_fail_anyway_kill_nothing(tree: Path) -> None:
    with (tree / TESTS).open("a") as test:
        test.write("\n\ndef test_anyway():\n    assert not tiny\n")
    words = [sys.executable, "-m", "tests.mutants", "-j", "1"]
    done = subprocess.run(
        words, cwd=tree, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tree)}
    )
    assert done.returncode == 1
    assert f"{TESTS} fails on the unchanged code (1)" in done.stderr
    assert kept_now(tree) == {}


def test_a_sample_is_the_same_for_a_seed_and_nearly_so_after_a_change_elsewhere() -> None:
    def of(source: str) -> list[str]:
        possible = [*mutants_of("a.py", source.encode()), *mutants_of("b.py", ("x = 1\n" * 50).encode())]
        return [m.name for m in sample(possible, 7, 30)]

    one, other = of("y = 2\n"), of("y = 2\nz = a < b\n")
    assert one == of("y = 2\n")
    assert len(set(one) & set(other)) >= 27
    possible = mutants_of("b.py", ("x = 1\n" * 50).encode())
    assert sample(possible, 1, 30) != sample(possible, 2, 30)


def test_the_tests_that_have_the_name_of_a_module_come_first() -> None:
    files = AREAS["diagnosis"].files(REPOSITORY, "src/finwait/diagnosis/forecast.py")
    assert files[:2] == ["tests/unit/diagnosis/test_forecast.py", "tests/unit/diagnosis/test_rules.py"]
    assert len(files) == len(set(files))


def test_every_pattern_of_an_area_matches_something() -> None:
    to_come = [
        Path(destination.format(module="new")) for destination in FILES.values()
    ]  # where `make rule` writes
    for area in AREAS.values():
        assert all(list(REPOSITORY.glob(f"src/finwait/{pattern}")) for pattern in area.modules)
        for pattern in area.tests:
            assert list(REPOSITORY.glob(pattern)) or any(path.match(pattern) for path in to_come), pattern


def test_survivors_are_explained_by_their_names_and_counted_by_area() -> None:
    page = "# Title\n\n- `a.py f constant: 1 → (1 + 1)`\n  why nothing can differ\n- other\n"
    assert explained(page) == {"a.py f constant: 1 → (1 + 1)"}
    (killed, survived) = mutants_of("src/finwait/relay/machine.py", b"x = a < b\n")
    table = summary([Result(killed, "killed"), Result(survived, "survived")])
    assert [line.split() for line in table[1:]] == [
        ["relay", "2", "1", "0", "1", "50.0"],
        ["all", "2", "1", "0", "1", "50.0"],
    ]


def test_the_tests_that_make_rule_writes_are_among_those_of_the_area(tmp_path: Path) -> None:
    written = tmp_path / FILES["test.py.in"].format(module="my_rule")
    written.parent.mkdir(parents=True)
    written.write_text("")
    found = AREAS["rules"].files(tmp_path, "src/finwait/diagnosis/rules/my_rule.py")
    assert found == [str(written.relative_to(tmp_path))]
