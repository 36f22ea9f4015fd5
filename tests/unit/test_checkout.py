"""What a checkout brings for editors and for `git commit` needs no network, and fits the rest."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_the_hooks_fetch_nothing_and_run_what_the_lock_has() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    lock = (ROOT / "requirements.lock").read_text()
    packages = {"ruff": "ruff", "mypy": "mypy", "lint-imports": "import-linter", "python": ""}
    for hook in repos[0]["hooks"]:
        program = hook["entry"].split()[0]
        assert hook["language"] == "system"
        assert program.startswith(".venv/bin/")
        assert f"\n{packages[program.removeprefix('.venv/bin/')]}" in lock


def test_the_hooks_ask_what_make_asks() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = " ".join(hook["entry"] for hook in repo["hooks"])
    makefile = (ROOT / "Makefile").read_text()
    asked = re.findall(r"\$\(BIN\)/(ruff format|ruff check|mypy|lint-imports)", makefile)
    assert {tool for tool in asked if f".venv/bin/{tool}" not in entries} == set()


def test_editors_and_ruff_agree_on_the_length_of_a_line() -> None:
    parser = configparser.ConfigParser()
    parser.read_string((ROOT / ".editorconfig").read_text().replace("root = true", "", 1))
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert parser["*.py"].getint("max_line_length") == ruff["line-length"]
